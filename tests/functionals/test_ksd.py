"""The kernel Stein discrepancy against its definition, closed forms between normal distributions, and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.functionals import Smoothness
from ddeq.functionals.ksd import KSD
from ddeq.functionals.stein import SteinKernel
from ddeq.kernels import IMQ, Gaussian, Laplace, Matern, Polynomial, Riesz
from ddeq.reductions import backend, block_size
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_first_variation, check_gradient, check_value
from ddeq.testing.strategies import measures

KERNELS = {
    "gaussian": Gaussian(0.8),
    "several gaussians": Gaussian([0.5, 2.0]),
    "imq": IMQ(1.3),
    "matern 3/2": Matern(1.5, 1.0),
    "matern 5/2": Matern(2.5, 1.0),
    "sum and multiple": 2.0 * (Gaussian(1.0) + 0.5 * IMQ(0.7)),
    "learned": Gaussian(nn.Parameter(torch.tensor(0.8, dtype=torch.float64))),
}


def normal(x):
    return -x


def double_well(x):
    return x - x**3


class Score(nn.Module):
    """The score of a normal distribution with a diagonal precision that trains."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.precision = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def forward(self, x):
        return self.precision * (self.mean - x)


def quadrature(mean, dim, nodes=22):
    """A normal distribution of unit covariance, by the rule of Gauss and Hermite."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    points = torch.cartesian_prod(*[x] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[w / w.sum()] * dim).reshape(-1, dim).prod(-1)
    return DiscreteMeasure(points + torch.tensor(mean, dtype=torch.float64), weights)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("mean", [(0.0,), (0.7,), (0.5, -1.0)])
@pytest.mark.parametrize("bandwidth", [1.0, 2.0])
def test_of_shifted_normal_distributions(mean, bandwidth):
    """KSD^2(N(m, I), N(0, I)) = |m|^2 E k(X, X') with X - X' ~ N(0, 2 I), as scores differ by the constant m."""
    dim, square = len(mean), sum(m * m for m in mean)
    expected = 0.5 * square * (bandwidth**2 / (bandwidth**2 + 2)) ** (dim / 2)
    value = KSD(normal, Gaussian(bandwidth))(quadrature(mean, dim)).item()
    assert value == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.theorem("T3")
def test_samples_of_the_density_are_near_it():
    """Half the mean of k_pi(x, x), divided by the number of atoms: 1/2 (E|x|^2 + d / h^2) / n for the Gaussian kernel."""
    sample = DiscreteMeasure(torch.randn(2000, 2, dtype=torch.float64))
    F = KSD(normal, Gaussian(1.0))
    assert F(sample).item() == pytest.approx(2 / 2000, rel=0.5)
    assert F(sample.push_forward(lambda x: x + 1.0)) > 100 * F(sample)


def stein_by_definition(kernel, score, x, y):
    """a.b k + a.grad_y k + b.grad_x k + div_x grad_y k, by automatic differentiation of the kernel for one pair."""

    def k(x, y):
        return kernel(x[None], y[None])[0, 0]

    a, b = score(x), score(y)
    of_x, of_y = torch.func.grad(k, 0)(x, y), torch.func.grad(k, 1)(x, y)
    mixed = torch.func.jacrev(torch.func.grad(k, 1), 0)(x, y)
    return (a @ b) * k(x, y) + a @ of_y + b @ of_x + mixed.trace()


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("name", KERNELS)
def test_the_stein_kernel_is_what_its_definition_says(name):
    kernel = KERNELS[name]
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    expected = torch.stack([torch.stack([stein_by_definition(kernel, double_well, p, q) for q in y]) for p in x])
    with_scores = [torch.cat([p, double_well(p)], -1) for p in (x, y)]
    assert_close(SteinKernel(kernel, 3)(*with_scores), expected)


@pytest.mark.parametrize(
    ("name", "slope"), [("gaussian", -0.5 / 0.64), ("imq", -0.5 / 1.69), ("matern 3/2", -1.5), ("matern 5/2", -5 / 6)]
)
def test_the_stein_kernel_on_the_diagonal(name, slope):
    """|a|^2 phi(0) - 2 d phi'(0), where distances have no derivatives."""
    x = torch.randn(4, 3, dtype=torch.float64)
    z = torch.cat([x, double_well(x)], -1)
    values = SteinKernel(KERNELS[name], 3)(z, z).diagonal()
    assert_close(values, double_well(x).square().sum(-1) - 6 * slope)


@pytest.mark.parametrize("name", ["gaussian", "imq", "matern 5/2"])
def test_second_derivatives_where_atoms_coincide(name):
    """Central differences of the gradient, at two atoms in one place that move apart."""
    F, x = KSD(double_well, KERNELS[name]), torch.tensor([[0.3, -0.4], [0.3, -0.4]], dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([[1.0, -0.5], [-0.3, 0.8]], dtype=torch.float64)
    (slope,) = torch.autograd.grad(F(DiscreteMeasure(x)), x, create_graph=True)
    (product,) = torch.autograd.grad((slope * direction).sum(), x)

    def slope_at(t):
        y = (x + t * direction).detach().requires_grad_()
        return torch.autograd.grad(F(DiscreteMeasure(y)), y)[0]

    step = 1e-4
    assert_close(product, (slope_at(step) - slope_at(-step)) / (2 * step), rtol=1e-3 if name == "matern 5/2" else 1e-6)


@pytest.mark.theorem("T1")
@given(mu=measures(offsets=(0.0, 10.0)))
def test_values_depend_on_the_measure_alone(mu):
    check_value(KSD(normal, IMQ(1.0)), mu)


@pytest.mark.theorem("T2")
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_derivatives_are_those_of_the_value(mu):
    F = KSD(double_well, Gaussian(1.0))
    check_first_variation(F, mu)
    check_gradient(F, mu)


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("name", KERNELS)
def test_the_users_check_passes(name):
    check_functional(KSD(Score(), KERNELS[name]))


def test_derivatives_in_everything_that_enters():
    mu = DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64)).split_atom(0, 0.5)
    numbers = (torch.tensor(v, dtype=torch.float64) for v in (0.9, [0.3, -0.2], [1.0, 2.0]))
    tensors = [t.clone().requires_grad_() for t in (mu.points, mu.weights, *numbers)]

    def functional(bandwidth, mean, precision):
        return KSD(lambda x: precision * (mean - x), Gaussian([bandwidth, 2.0]))

    def value(x, w, *others):
        return functional(*others)(DiscreteMeasure(x, w))

    def force(x, w, *others):
        return functional(*others).wasserstein_gradient(DiscreteMeasure(x, w))

    for f in (value, force):
        assert torch.autograd.gradcheck(f, tensors)
        assert torch.autograd.gradgradcheck(f, tensors)


def test_scores_and_bandwidths_train():
    F = KSD(Score(), KERNELS["learned"])
    F(DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64))).backward()
    assert len(list(F.parameters())) == 3
    assert all(p.grad is not None and (p.grad != 0).all() for p in F.parameters())


def test_in_blocks_and_without_a_graph():
    F, mu = KSD(double_well, IMQ(1.0)), DiscreteMeasure(torch.randn(2, 7, 2, dtype=torch.float64))
    points = mu.points.clone().requires_grad_()

    def results():
        (slope,) = torch.autograd.grad(F(mu.with_points(points)).sum(), points, create_graph=True)
        return slope, *torch.autograd.grad(slope.square().sum(), points)

    whole = results()
    with block_size(40):
        for a, b in zip(results(), whole, strict=True):
            assert_close(a, b)
    with torch.no_grad():
        assert_close(F.wasserstein_gradient(mu) * mu.weights.unsqueeze(-1), whole[0])
        assert not F.wasserstein_gradient(mu).requires_grad


@pytest.mark.slow
def test_compiled_sums_give_the_same_numbers():
    F, mu = KSD(double_well, Matern(2.5, 1.0)), DiscreteMeasure(torch.randn(2, 7, 2, dtype=torch.float64))
    points = mu.points.clone().requires_grad_()

    def results():
        (slope,) = torch.autograd.grad(F(mu.with_points(points)).sum(), points, create_graph=True)
        return slope, *torch.autograd.grad(slope.square().sum(), points)

    whole = results()
    with backend("compiled"):
        for a, b in zip(results(), whole, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("name", ["gaussian", "matern 5/2", "sum and multiple"])
def test_inside_function_transforms(name):
    F, mu = KSD(double_well, KERNELS[name]), DiscreteMeasure(torch.randn(2, 3, 2, dtype=torch.float64))
    assert_close(torch.vmap(F)(mu), F(mu))
    assert_close(torch.vmap(F.wasserstein_gradient)(mu), F.wasserstein_gradient(mu))
    slope = torch.func.grad(lambda x: F(mu.with_points(x)).sum())(mu.points)
    assert_close(slope / mu.weights.unsqueeze(-1), F.wasserstein_gradient(mu))
    hessian = torch.func.jacrev(torch.func.grad(lambda x: F(mu[0].with_points(x))))(mu.points[0])
    assert_close(hessian, torch.autograd.functional.hessian(lambda x: F(mu[0].with_points(x)), mu.points[0]))


def test_one_bandwidth_for_each_measure():
    mu, bandwidths = DiscreteMeasure(torch.randn(3, 4, 2, dtype=torch.float64)), torch.tensor([0.5, 1.0, 2.0]).double()
    together = KSD(normal, Gaussian(bandwidths)).wasserstein_gradient(mu)
    for i in range(3):
        assert_close(together[i], KSD(normal, Gaussian(float(bandwidths[i]))).wasserstein_gradient(mu[i]))


def test_marks_and_smoothness():
    mu = DiscreteMeasure(torch.randn(3, 2), marks=torch.randn(3, 1))
    F = KSD(normal, Gaussian(1.0))
    assert_close(F(mu), F(mu.with_marks(None)))
    assert F.smoothness is Smoothness.AS_POTENTIAL


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda mu: KSD(normal, Laplace(1.0)), "kernel: .*twice differentiable.*Laplace"),
        (lambda mu: KSD(normal, Riesz(1.0)), "kernel: "),
        (lambda mu: KSD(normal, Gaussian(1.0) + Laplace(1.0)), "kernel: "),
        (lambda mu: KSD(normal, Polynomial(2)), "kernel: .*distance.*Polynomial"),
        (lambda mu: KSD(normal, Gaussian(1.0) + Polynomial(2)), "kernel: .*distance"),
        (lambda mu: KSD(normal, "gaussian"), "kernel: "),
        (lambda mu: KSD(mu, Gaussian(1.0)), "score: expected a function"),
        (lambda mu: KSD(lambda x: x.sum(-1), Gaussian(1.0))(mu), r"score: .*\(3, 2\).*got \(3,\)"),
        (lambda mu: KSD(lambda x: None, Gaussian(1.0))(mu), "score: .*NoneType"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(DiscreteMeasure(torch.randn(3, 2)))
