"""Under transforms, under the caller's compiler, and where no compiler is: never a crash, and a message where one is due."""

import os
import subprocess
import sys

import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD, Entropy
from ddeq.kernels import Gaussian, Kernel, Riesz
from ddeq.reductions import BackendWarning, backend, block_size, choose, integrate_kernel, log_integrate_kernel
from ddeq.testing import assert_close

CPU = torch.device("cpu")


def cloud(n, seed=0, dtype=torch.float64):
    return DiscreteMeasure(torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype))


@pytest.mark.parametrize("kernel", [Gaussian(0.7), Riesz(1.0)], ids=repr)
def test_transforms(kernel):
    """grad, vmap, jvp and forward-mode run on the dense backend, in blocks too."""
    mu, x = cloud(5), torch.randn(3, 4, 2, dtype=torch.float64)

    def total(x):
        return integrate_kernel(kernel, x, mu).square().sum()

    with block_size(20):
        gradients = torch.vmap(torch.func.grad(total))(x)
        y, slope = torch.func.jvp(total, (x[0],), (torch.ones_like(x[0]),))
        with torch.autograd.forward_ad.dual_level():
            dual = total(torch.autograd.forward_ad.make_dual(x[0], torch.ones_like(x[0])))
            also = torch.autograd.forward_ad.unpack_dual(dual).tangent
    for i in range(3):
        p = x[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(total(p), p)
        assert_close(gradients[i], expected)
    p = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(p), p)
    assert_close(slope, expected.sum())
    assert_close(also, expected.sum())
    assert_close(y, total(x[0]))


def test_a_backend_that_cannot_says_so():
    mu = cloud(5)
    with backend("compiled"), pytest.warns(BackendWarning, match=r"'compiled' cannot run here \(transforms of torch.func"):
        torch.vmap(lambda x: integrate_kernel(Gaussian(1.0), x, mu))(mu.points[None])


class WithAttribute(Kernel):
    """A kernel that holds what no key can be made of."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def pair(self, x, y):
        return (-((x - y) ** 2).sum(-1)).exp()


@pytest.mark.parametrize("value", [[1.0, 2.0], torch.ones(())], ids=["a list", "a loose tensor"])
def test_kernels_without_a_known_formula_run_dense(value):
    with backend("compiled"), pytest.warns(BackendWarning, match="formula is not known"):
        assert choose(10, 10, CPU, kernel=WithAttribute(value)).name == "dense"


@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.parametrize("n", [20, 700], ids=["stored", "above the block"])
@pytest.mark.parametrize("make", [lambda nu: MMD(nu, Gaussian(1.0)), lambda nu: Entropy(0.5)], ids=["mmd", "entropy"])
def test_under_the_callers_compiler(n, make):
    mu, F = cloud(n), make(cloud(n + 1, seed=1))
    expected = F(mu), F.wasserstein_gradient(mu)

    @torch.compile
    def both(points):
        nu = mu.with_points(points)
        return F(nu), F.wasserstein_gradient(nu)

    with block_size(10**5):
        for a, b in zip(both(mu.points), expected, strict=True):
            assert_close(a, b)


def choice_of_keops(environment):
    """What KeOps says of itself in an environment; sums that it has compiled before are in its cache."""
    program = (
        "import torch; from ddeq.reductions.backends import named; print(named('keops').obstacle(torch.device('cpu'), None))"
    )
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_without_a_compiler(tmp_path):
    """A process whose C++ compiler is nowhere: the dense sums, one message, the same numbers."""
    program = (
        "import torch; from ddeq import DiscreteMeasure; from ddeq.kernels import Gaussian;"
        "from ddeq.reductions import choose, integrate_kernel; x = torch.arange(1400.0).reshape(-1, 2) / 700;"
        "print(choose(700, 700, x.device, dim=2)); print(integrate_kernel(Gaussian(1.0), x, DiscreteMeasure(x)).sum().item())"
    )
    nowhere = {
        "CXX": "/nowhere/c++",
        "CC": "/nowhere/cc",
        "PATH": os.path.dirname(sys.executable),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    environment = {k: v for k, v in os.environ.items() if k not in nowhere} | nowhere
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "no C++ compiler" in choice_of_keops(environment)
    choice, value = found.stdout.strip().splitlines()[-2:]
    x = torch.arange(1400.0).reshape(-1, 2) / 700
    assert "name='dense'" in choice
    assert "failed at a first sum" in choice
    assert float(value) == pytest.approx(integrate_kernel(Gaussian(1.0), x, DiscreteMeasure(x)).sum().item(), rel=1e-5)


def test_bounded_memory_of_logarithms():
    mu = cloud(300)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    points = mu.points.clone().requires_grad_()
    with backend("dense"), block_size(6000), hooks:
        log_integrate_kernel(Gaussian(0.5), points, mu).sum().backward()
    assert max(kept) <= 6000
