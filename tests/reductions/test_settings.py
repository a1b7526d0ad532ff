"""Settings: a default of the process, overrides in a context alone, and backward passes that keep what forward used."""

import asyncio
import contextvars
import gc
import threading

import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.kernels import Gaussian, Riesz
from ddeq.reductions import (
    backend,
    block_size,
    choose,
    dense,
    integrate_kernel,
    integrate_kernel_gradient,
    integrate_pairs,
    log_integrate_kernel,
    nearest_squared_distance,
    settings,
)
from ddeq.testing import assert_close

CPU = torch.device("cpu")
KEOPS = pytest.mark.xdist_group("keops")
COMPILED = pytest.mark.xdist_group("compiled")
NAMES = ["dense", "sorted", pytest.param("keops", marks=KEOPS), pytest.param("compiled", marks=COMPILED)]


@pytest.fixture(autouse=True)
def _defaults(monkeypatch):
    """Each test starts from the first defaults, and leaves them."""
    for variable, default in ((settings._backend, "auto"), (settings._block_size, 2**24)):
        monkeypatch.setattr(variable, "default", default)
        monkeypatch.setattr(variable, "set_by", None)


def seen():
    return settings.wanted_backend(), settings.numbers_per_block()


def seen_by_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(seen()))
    thread.start()
    thread.join()
    return found[0]


def test_a_plain_call_sets_the_default_of_the_process():
    backend("dense")
    block_size(10)
    assert seen() == seen_by_a_thread() == ("dense", 10)
    backend("auto")
    assert seen() == seen_by_a_thread() == ("auto", 10)


def test_a_block_overrides_in_its_own_context_and_restores():
    with backend("dense"), block_size(10):
        assert seen() == ("dense", 10)
        assert seen_by_a_thread() == ("auto", 2**24)
        with backend("auto"):
            assert seen() == ("auto", 10)
        assert seen() == ("dense", 10)
        assert contextvars.copy_context().run(seen) == ("dense", 10)
    assert seen() == seen_by_a_thread() == ("auto", 2**24)
    with pytest.raises(KeyError), backend("dense"):
        raise KeyError
    assert seen() == ("auto", 2**24)


def test_a_plain_call_within_a_block_waits_for_its_end():
    with backend("dense"):
        backend("sorted")
        assert seen()[0] == "dense"
        assert seen_by_a_thread()[0] == "sorted"
    assert seen()[0] == "sorted"


def test_a_setting_may_be_entered_again_and_later():
    setting = backend("dense")
    assert seen_by_a_thread()[0] == "dense"
    with setting:
        assert seen_by_a_thread()[0] == "auto"
        with setting:
            pass
        assert seen()[0] == "dense"
    assert seen()[0] == "auto"


def test_asynchronous_tasks_keep_their_own():
    async def task(name, other):
        with backend(name):
            for _ in range(5):
                await asyncio.sleep(0)
                assert choose(10, 10, CPU) == ((name, "asked for") if name == "dense" else choose(10, 10, CPU))
                assert seen()[0] == name
        assert seen()[0] == "auto"

    async def both():
        await asyncio.gather(task("dense", "sorted"), task("sorted", "dense"))

    asyncio.run(both())
    assert seen()[0] == "auto"


def test_threads_that_enter_and_leave_at_once_leave_the_default():
    """Created in one order and entered in another, settings never become each other's default."""
    wrong = []

    def work(name, size):
        for _ in range(300):
            with backend(name), block_size(size):
                if seen() != (name, size):
                    wrong.append(seen())

    threads = [threading.Thread(target=work, args=args) for args in (("dense", 5), ("sorted", 6), ("keops", 7), ("auto", 8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert seen() == ("auto", 2**24)
    first, second = backend("dense"), backend("sorted")
    with first:
        pass
    del first
    with second:
        pass
    assert seen()[0] == "auto"
    backend("dense")
    first, second = backend("keops"), backend("sorted")
    with first:
        assert seen_by_a_thread()[0] == "sorted"
        with second:
            assert seen_by_a_thread()[0] == "dense"
    assert seen()[0] == "dense"


def test_plain_calls_are_not_kept():
    for _ in range(10):
        backend("dense")
        backend("sorted")
    gc.collect()
    assert sum(type(o) is settings.Setting for o in gc.get_objects()) <= 2


class _Forbidden:
    """No setting may be read within."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch

    def __enter__(self):
        def read(self):
            raise AssertionError("a backward pass reads a setting")

        self.patch.setattr(settings._Variable, "get", read)

    def __exit__(self, *error):
        self.patch.undo()


@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "sorted",
        pytest.param("keops", marks=[KEOPS, pytest.mark.slow]),  # second derivatives compile for minutes
        pytest.param("compiled", marks=[COMPILED, pytest.mark.slow]),
    ],
)
def test_backward_keeps_what_forward_used(name, monkeypatch):
    """Once the block has ended: first and second derivatives without a look at the settings, and the same numbers."""
    dim, kernel = (1, Riesz(1.0)) if name == "sorted" else (2, Gaussian(torch.nn.Parameter(torch.tensor(0.7).double())))
    x, y = (torch.randn(n, dim, dtype=torch.float64, requires_grad=True) for n in (9, 8))
    w = torch.rand(8, dtype=torch.float64, requires_grad=True)
    inputs, positive = [x, y, w, *kernel.parameters()], name == "dense"

    def second_derivatives(forbidden):
        with backend(name), block_size(20):
            mu = DiscreteMeasure(y, w)
            sums = [integrate_kernel(kernel, x, mu).sin().sum(), integrate_kernel_gradient(kernel, x, mu).sin().sum()]
            if positive:
                sums.append(log_integrate_kernel(kernel, x, mu).sin().sum())
        with forbidden:
            first = torch.autograd.grad(sum(sums), inputs, create_graph=True)
            return torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), inputs)

    actual = second_derivatives(_Forbidden(monkeypatch))
    name = "dense"
    for a, b in zip(actual, second_derivatives(backend("auto")), strict=True):
        assert_close(a, b, units=1e5)


def test_blocks_of_backward_are_those_of_forward(monkeypatch):
    """The largest matrix of a backward pass is that of a block of the forward pass."""
    kernel, sizes = Gaussian(1.0), []
    of_radial = type(kernel).forward
    monkeypatch.setattr(type(kernel), "forward", lambda self, x, y: sizes.append(x.shape[-2]) or of_radial(self, x, y))
    x, mu = torch.randn(50, 2, requires_grad=True), DiscreteMeasure(torch.randn(40, 2))
    with backend("dense"), block_size(40 * 2 * 5):
        total = integrate_kernel(kernel, x, mu).sum() + integrate_kernel_gradient(kernel, x, mu).sum()
    forward = max(sizes)
    sizes.clear()
    (g,) = torch.autograd.grad(total, x, create_graph=True)
    g.sum().backward()
    assert sizes
    assert max(sizes) == forward == 5


def test_functions_and_nearest_atoms_keep_their_blocks(monkeypatch):
    x, mu = torch.randn(50, 2, requires_grad=True), DiscreteMeasure(torch.randn(40, 2))
    with block_size(400):
        total = integrate_pairs(lambda d: d.square().sum(-1), x, mu).sum() + nearest_squared_distance(x, mu).sum()
    with _Forbidden(monkeypatch):
        (g,) = torch.autograd.grad(total, x, create_graph=True)
        g.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_rows_of_a_block():
    x, y = torch.zeros(3, 10, 2), torch.zeros(3, 20, 2)
    with block_size(3 * 20 * 2 * 4):
        assert settings.rows_per_block(x, y, 2) == 4
        assert settings.blocks_are_below(481)
        assert not settings.blocks_are_below(480)
        assert not dense.are_few(x, y)
    with block_size(1):
        assert settings.rows_per_block(x, y, 2) == 1
    assert settings.rows_per_block(x, y, 1, cached=True) == 2**20 // 60
    assert dense.are_few(x, y)
