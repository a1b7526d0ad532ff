"""Sorting: exactly the order of ``torch.sort(stable=True)``, for numbers of every kind, on every path."""

import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddeq.reductions import sorting

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    torch.inf,
    -torch.inf,
    torch.nan,
    -torch.nan,
    1e-310,
    -1e-310,
    1e-40,
    1.0 + 2.0**-52,
    1.0 - 2.0**-53,
]


@pytest.fixture
def always(monkeypatch):
    """NumPy sorts and moves few numbers too, in three threads and small chunks."""
    monkeypatch.setattr(sorting, "FEW", 1)
    monkeypatch.setattr(sorting, "MANY", 1)
    monkeypatch.setattr(sorting, "CHUNK", 16)
    monkeypatch.setattr(sorting, "PARALLEL", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def same(a, b):
    """Bit by bit but for the kind of NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) and signs(a, b)


def signs(a, b):
    return torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


def check(x):
    expected = x.sort(dim=-1, stable=True)
    values, order = sorting.sort(x)
    assert torch.equal(order, expected.indices)
    assert same(values, expected.values)
    assert torch.equal(sorting.ascending(x), order)
    assert torch.equal(sorting.sorted_values(x).nan_to_num(7.5), values.nan_to_num(7.5))
    assert same(sorting.put_back(values, order), x)
    few = x.shape[-1] // 3
    assert same(sorting.put_back(values, order, few), x[..., :few])
    ties = sorting.ascending_with_ties(x)[1]
    if ties is not None and x.shape[-1] > 1:
        equal = (values[..., 1:] == values[..., :-1]) | (values[..., 1:].isnan() & values[..., :-1].isnan())
        row, k = equal.reshape(-1, x.shape[-1] - 1).nonzero(as_tuple=True)
        assert torch.equal(ties, row * x.shape[-1] + k)


@settings(max_examples=60)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]), size=st.integers(1, 60))
def test_the_order_is_that_of_torch(data, dtype, size):
    numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.integers(-2, 2).map(float))
    x = torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size)), dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FEW": 1, "MANY": 1, "CHUNK": 16, "PARALLEL": 8}.items():
            patch.setattr(sorting, name, value)
        check(x)
        check(torch.stack([x, x.flip(0), -x]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5000,), (3, 2000), (2, 3, 700), (300, 11), (40_000,), (3, 1)])
def test_many_numbers(dtype, shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g, dtype=dtype)
    for numbers in (x, (4 * x).round(), torch.zeros_like(x), 1.0 + 1e-13 * x, (1.0 + 1e-15 * x), 1e-310 * x, 1e-5 * x.round()):
        check(numbers)
    mixed = torch.tensor(SPECIAL, dtype=dtype)[torch.randint(len(SPECIAL), shape, generator=g)]
    check(mixed)
    check(torch.where(x > 0.5, mixed, x))


def test_values_that_agree_in_their_high_bits_are_put_right():
    """Closer together than the bits that the number of each leaves."""
    n = 5000
    x = torch.ones(n, dtype=torch.float64) + 2.0**-52 * torch.randperm(n, generator=torch.Generator().manual_seed(0))
    check(x)
    check(torch.stack([x, -x, torch.randn(n, dtype=torch.float64)]))
    check(x // 2.0**-45 * 2.0**-45)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 40), (2, 0), (0, 3), (1, 9), (70,), (100, 3)])
def test_any_layout_and_dimension(shape):
    x = torch.randn(shape, dtype=torch.float64)
    for dim in range(-len(shape), len(shape)):
        values, order = sorting.sort(x, dim)
        expected = x.sort(dim=dim, stable=True)
        assert torch.equal(values, expected.values)
        assert torch.equal(order, expected.indices)
    spread = torch.randn(*shape[:-1], 3 * shape[-1])[..., ::3]
    if shape[-1]:
        check(spread)
        check(spread[..., :1].expand(shape))
    check(torch.randn(40, 6).mT)


@pytest.mark.usefixtures("always")
def test_moving_broadcasts_and_knows_steps():
    order = torch.randn(2, 1, 50).argsort(-1)
    t = torch.randn(4, 50)
    assert torch.equal(sorting.arrange(t, order), t.expand(2, 4, 50).gather(-1, order.expand(2, 4, 50)))
    for ends in ([50], [20, 30], [1, 48, 1], [10, 10, 10, 20]):
        steps = torch.randn(len(ends)).repeat_interleave(torch.tensor(ends))
        assert torch.equal(sorting.arrange(steps, order), steps.expand(2, 1, 50).gather(-1, order))


def test_runs_of_ties_and_their_members():
    first, last = sorting.runs(torch.tensor([1, 2, 3, 7, 9]))
    assert (first.tolist(), last.tolist()) == ([1, 7, 9], [4, 8, 10])
    places, run = sorting.members(first, last)
    assert (places.tolist(), run.tolist()) == ([1, 2, 3, 4, 7, 8, 9, 10], [0, 0, 0, 0, 1, 1, 2, 2])


@pytest.mark.usefixtures("always")
def test_derivatives_and_transforms():
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(20.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sorting.sort(x)[0].square() * weights).sum(), x, create_graph=True)
    rank = x.argsort(-1).argsort(-1)
    assert torch.equal(gradient, 2 * x * rank)
    assert torch.equal(torch.autograd.grad(gradient.sum(), x)[0], 2.0 * rank)
    x = x.detach()
    expected = x.sort(dim=-1, stable=True)
    for function in (sorting.sort, torch.vmap(sorting.sort)):
        values, order = function(x)
        assert torch.equal(values, expected.values)
        assert torch.equal(order, expected.indices)
    slopes = torch.func.grad(lambda x: (sorting.sort(x)[0] * weights).sum())(x)
    assert torch.equal(slopes, rank.double())
    tangent = torch.func.jvp(lambda x: sorting.sort(x)[0], (x,), (torch.ones_like(x),))[1]
    assert torch.equal(tangent, torch.ones_like(x))
    assert sorting.sort(x.to("meta"))[1].shape == x.shape
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        assert sorting.ascending(mode.from_tensor(x)).shape == x.shape
    assert torch.equal(sorting.ascending(x.half()), x.half().argsort(dim=-1, stable=True))


@pytest.mark.usefixtures("always")
def test_several_callers_share_the_threads():
    x = torch.randn(8, 2000, dtype=torch.float64)
    expected, found = x.argsort(dim=-1, stable=True), [None] * 6

    def work(k):
        found[k] = all(torch.equal(sorting.ascending(x), expected) for _ in range(4))

    callers = [threading.Thread(target=work, args=(k,)) for k in range(len(found))]
    [t.start() for t in callers]
    [t.join() for t in callers]
    assert all(found)


@pytest.mark.usefixtures("always")
def test_an_error_in_a_thread_reaches_the_caller():
    def work(piece):
        if piece == 4:
            raise ZeroDivisionError
        return piece

    assert sorting.in_threads(work, [0, 1, 2, 3]) == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        sorting.in_threads(work, list(range(8)))


@pytest.mark.usefixtures("always")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    x = torch.randn(8, 200, dtype=torch.float64)
    expected = sorting.ascending(x)  # threads exist now, and do not survive the fork
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(sorting.ascending(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
