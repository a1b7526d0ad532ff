"""`Backend` and its registry, what happens where a backend cannot compute a sum, and how deep the calls are."""

import ast
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import ddeq
from ddeq import DiscreteMeasure
from ddeq.autodiff import gradient
from ddeq.functionals import MMD
from ddeq.kernels import IMQ, Gaussian, Matern, Riesz
from ddeq.reductions import (
    Backend,
    BackendWarning,
    backend,
    backends,
    choose,
    integrate_kernel,
    integrate_kernel_gradient,
    log_integrate_kernel,
    register,
    settings,
)
from ddeq.reductions.backends import named
from ddeq.reductions.trials import Trial
from ddeq.testing import assert_close

CPU = torch.device("cpu")
FOLDER = Path(ddeq.__file__).parent


class Mine(Backend):
    """Plain sums that note which operations were asked for."""

    name = "mine"

    def __init__(self, obstacle=None):
        self.asked, self._obstacle = [], obstacle

    def obstacle(self, device, kernel):
        return self._obstacle

    def sum_pairs(self, kernel, x, y, b):
        self.asked.append("sum_pairs")
        return kernel(x, y) @ b

    def sum_gradients(self, kernel, x, y, b):
        self.asked.append("sum_gradients")
        return gradient(lambda p: (kernel(p, y) @ b.unsqueeze(-1)).sum(), x)

    @torch.no_grad()
    def max_pairs(self, kernel, x, y, alive):
        self.asked.append("max_pairs")
        return kernel.log_matrix(x, y).masked_fill(~alive.unsqueeze(-2), -torch.inf).amax(-1)


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(backends, "_made", dict(backends._made))
    monkeypatch.setattr(settings, "_known", dict(settings._known))


def cloud(n, dim=2, seed=0):
    return DiscreteMeasure(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_a_backend_of_ones_own():
    mine, mu, x = Mine(), cloud(5), cloud(4, seed=1).points
    with pytest.raises(ValueError, match=r"name: expected one of auto, dense, .*, got 'mine'; ddeq.reductions.register adds"):
        backend("mine")
    register(mine)
    expected = [f(Gaussian(1.0), x, mu) for f in (integrate_kernel, integrate_kernel_gradient, log_integrate_kernel)]
    with backend("mine"):
        assert choose(10, 10, CPU) == ("mine", "asked for")
        actual = [f(Gaussian(1.0), x, mu) for f in (integrate_kernel, integrate_kernel_gradient, log_integrate_kernel)]
    assert mine.asked == ["sum_pairs", "sum_gradients", "max_pairs", "sum_pairs"]
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


@pytest.mark.unchecked
def test_what_can_be_registered():
    register(Mine())
    with pytest.raises(ValueError, match=r"one named 'mine' is registered already; .* replace=True"):
        register(Mine())
    second = Mine()
    register(second, replace=True)
    assert named("mine") is second
    for name in ("dense", "keops", "compiled", "sorted"):
        with pytest.raises(ValueError, match=f"one named '{name}' is registered already"):
            register(type("Other", (Mine,), {"name": name})())
    with pytest.raises(ValueError, match="'auto' stands for the choice"):
        register(type("Other", (Mine,), {"name": "auto"})(), replace=True)
    with pytest.raises(TypeError, match="pass an instance, not the class"):
        register(Mine)
    with pytest.raises(TypeError, match="has no `name`"):
        register(type("Other", (Mine,), {"name": ""})())
    with pytest.raises(TypeError, match="abstract"):
        type("Other", (Backend,), {})()


def test_capabilities_are_declared():
    assert [(named(n).transforms, named(n).max_dim, named(n).specialised) for n in ("dense", "keops", "compiled", "sorted")] == [
        (True, None, False),
        (False, None, False),
        (False, None, False),
        (False, 1, True),
    ]
    assert all(named(n).differentiable for n in ("dense", "keops", "compiled", "sorted"))


def test_an_obstacle_is_a_warning_with_attributes():
    register(Mine("it is switched off"))
    with (
        backend("mine"),
        pytest.warns(BackendWarning, match="'mine' cannot run here .it is switched off.; 'dense' runs") as found,
    ):
        integrate_kernel(Gaussian(1.0), cloud(3).points, cloud(3))
    warning = found[0].message
    assert (warning.wanted, warning.used, warning.reason) == ("mine", "dense", "it is switched off")
    again = pickle.loads(pickle.dumps(warning))
    assert (str(again), again.reason) == (str(warning), warning.reason)


def test_warnings_point_to_the_line_of_the_user(tmp_path):
    """In a process of its own: here the checks of shapes lie in between."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, warnings, ddeq\n"
        "from ddeq.functionals import MMD\n"
        "from ddeq.kernels import Matern\n"
        "mu = ddeq.DiscreteMeasure(torch.zeros(2, 1))\n"
        "with ddeq.reductions.backend('keops'), warnings.catch_warnings(record=True) as found:\n"
        "    MMD(mu, Matern(1.5, 1.0)).wasserstein_gradient(mu)\n"
        "print(found[0].filename, found[0].lineno)\n"
    )
    printed = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(script), "6"]


def test_repeated_warnings_are_merged():
    """The text has no numbers that change, such as a bandwidth that is learned."""
    with backend("keops"), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for h in (0.5, 0.6, 0.7):
            integrate_kernel(0.5 * Matern(1.5, h) + IMQ(h), cloud(3).points, cloud(3))
    assert len(found) == 1
    assert "KeOps does not differentiate Matern correctly" in str(found[0].message)


def test_what_is_declared_is_respected():
    class OnTheLine(Mine):
        max_dim = 1

    class ForFew(Mine):
        specialised = True

    class Values(Mine):
        differentiable = False

    class Anywhere(Mine):
        transforms = True

    mu = cloud(3)
    for made, name in ((OnTheLine(), "line"), (ForFew("no"), "few"), (Values(), "values"), (Anywhere(), "anywhere")):
        type(made).name = name
        register(made)
    with backend("line"), pytest.warns(BackendWarning, match="dimension 1 at most"):
        assert choose(10, 10, CPU, dim=2).name == "dense"
    with backend("few"):
        assert choose(10, 10, CPU).name == "dense"
    with backend("values"):
        integrate_kernel(Gaussian(1.0), mu.points, mu)
        with torch.no_grad():
            integrate_kernel(Gaussian(1.0), mu.points.clone().requires_grad_(), mu)
        for kernel, x in (
            (Gaussian(1.0), mu.points.clone().requires_grad_()),
            (Gaussian(torch.nn.Parameter(torch.ones(()))), mu.points),
        ):
            with pytest.warns(BackendWarning, match="not differentiable"):
                assert integrate_kernel(kernel, x, mu).requires_grad
    assert named("values").asked == ["sum_pairs"] * 2
    with backend("anywhere"):
        torch.vmap(lambda x: integrate_kernel(Gaussian(1.0), x, mu))(mu.points[None])
    assert named("anywhere").asked == ["sum_pairs"]


def frames_of_ddeq():
    """How many functions of ddeq are being called here."""
    frame, count = sys._getframe(1), 0
    while frame is not None:
        count += Path(frame.f_code.co_filename).is_relative_to(FOLDER)
        frame = frame.f_back
    return count


@pytest.mark.parametrize("n", [5, 300], ids=["few pairs", "many pairs"])
def test_few_calls_lie_between_a_gradient_and_its_sum(n, monkeypatch):
    """At most four functions between `wasserstein_gradient` and the backend's sum, and as many from there to the kernel."""
    depths = {}

    class Counting(Mine):
        name = "counting"

        def sum_gradients(self, kernel, x, y, b):
            depths["backend"] = frames_of_ddeq()
            return super().sum_gradients(kernel, x, y, b)

    of_gaussian = Gaussian.profile_and_derivative

    def profile_and_derivative(self, s):
        depths["kernel"] = frames_of_ddeq()
        return of_gaussian(self, s)

    register(Counting())
    mu, F = cloud(n), MMD(cloud(n, seed=1), Gaussian(1.0))
    with backend("counting"):
        F.wasserstein_gradient(mu)
    monkeypatch.setattr(Gaussian, "profile_and_derivative", profile_and_derivative)
    with backend("dense"):
        F.wasserstein_gradient(mu)
    inside = 1  # `wasserstein_gradient` itself
    assert depths["backend"] - inside <= 4  # the sum itself included
    assert depths["kernel"] - depths["backend"] <= 4


def reductions_imported_by(file):
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ddeq.reductions":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddeq.reductions."):
            yield node.module.split(".")[2]


def test_modules_do_not_import_each_other_in_a_circle():
    """Imports within functions included."""
    files = {file.stem: file for file in (FOLDER / "reductions").glob("*.py") if file.stem != "__init__"}
    imports = {name: set(reductions_imported_by(file)) & set(files) for name, file in files.items()}
    assert not imports["settings"]
    while imports:
        free = {name for name, needed in imports.items() if not needed & set(imports)}
        assert free, f"in a circle: {imports}"
        imports = {name: needed for name, needed in imports.items() if name not in free}


def test_importing_reductions_is_light():
    program = "import ddeq.reductions, sys; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"pykeops", "torch.distributed.tensor", "torch._dynamo", "ddeq.reductions.compiled"}


def test_a_trial_is_made_once_by_many_threads():
    made, barrier = [], threading.Barrier(8)

    def run(device):
        made.append(device.type)

    def fail(device):
        made.append(device.type)
        raise OSError("no compiler\nand more")

    for function, expected in ((run, None), (fail, "library failed at a first sum: OSError: no compiler")):
        made.clear()
        trial, found = Trial("library", function), []

        def ask(trial=trial, found=found):
            barrier.wait()
            found.append(trial.failure(CPU))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == ["cpu"]
        assert found == [expected] * 8


@pytest.mark.xdist_group("compiled")
def test_threads_share_compiled_code():
    """Sums in several threads at once, of sizes not seen before: the same numbers, and nothing compiled twice."""
    from ddeq.reductions import compiled

    mu, found = cloud(6), {}
    kernel = Gaussian(0.7)

    def work(n):
        with backend("compiled"):
            found[n] = integrate_kernel_gradient(kernel, cloud(n, seed=n).points, mu)

    before = len(compiled._compiled)
    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled._compiled) <= before + 2
    for n, value in found.items():
        with backend("dense"):
            assert_close(value, integrate_kernel_gradient(kernel, cloud(n, seed=n).points, mu))
    assert len(found) == 4


@pytest.mark.xdist_group("compiled")
def test_compiled_sums_leave_the_warning_filters(tmp_path):
    """To change filters makes Python repeat every warning that it has shown; the checks of shapes do so too."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, warnings, ddeq\n"
        "from ddeq.kernels import Gaussian\n"
        "mu = ddeq.DiscreteMeasure(torch.randn(6, 2))\n"
        "with ddeq.reductions.backend('compiled'):\n"
        "    ddeq.reductions.integrate_kernel(Gaussian(1.0), mu.points, mu)\n"
        "    with warnings.catch_warnings(record=True) as found:\n"
        "        warnings.simplefilter('default')\n"
        "        for _ in range(3):\n"
        "            ddeq.reductions.integrate_kernel(Gaussian(1.0), mu.points, mu)\n"
        "            warnings.warn('once', UserWarning, stacklevel=1)\n"
        "print(len(found))\n"
    )
    assert subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "sorted",
        pytest.param("keops", marks=[pytest.mark.xdist_group("keops"), pytest.mark.slow]),
        pytest.param("compiled", marks=pytest.mark.xdist_group("compiled")),
    ],
)
def test_inference_mode_works_or_says_what_to_do(name):
    mu = cloud(5, dim=1)
    kernel = Riesz(1.0) if name == "sorted" else Gaussian(0.7)
    with backend(name):
        expected = integrate_kernel(kernel, mu.points, mu), integrate_kernel_gradient(kernel, mu.points, mu)
        with torch.inference_mode():
            assert_close(integrate_kernel(kernel, mu.points, mu), expected[0])
            if name == "dense":
                for k in (kernel, ddeq.kernels.Polynomial(2)):
                    with pytest.raises(
                        RuntimeError, match=r"needs autograd, which torch.inference_mode\(\) forbids; use torch.no_grad"
                    ):
                        integrate_kernel_gradient(k, mu.points, mu)
            else:
                assert_close(integrate_kernel_gradient(kernel, mu.points, mu), expected[1])
