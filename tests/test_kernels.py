"""Kernels: formulas, positivity, conventions at zero distance, integrals, bandwidths."""

import math

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.kernels import IMQ, Gaussian, Kernel, Laplace, Matern, Polynomial, Riesz, median_bandwidth
from ddeq.testing import assert_close
from ddeq.testing.strategies import kernels, measures
from proofs_checks.test_t18_kernels import imq_integral, matern_integral

D, BETA = sp.symbols("d beta", positive=True)
X, Y = torch.tensor([[0.0, 0.0]], dtype=torch.float64), torch.tensor([[3.0, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kernel", "value"),
    [
        (Gaussian(5.0), 2.718281828459045**-0.5),
        (Gaussian([5.0, 10.0]), 2.718281828459045**-0.5 + 2.718281828459045**-0.125),
        (Laplace(5.0), 2.718281828459045**-1),
        (IMQ(5.0), 2**-0.5),
        (IMQ(5.0, exponent=2.0), 0.25),
        (Riesz(1.0), -5.0),
        (Riesz(1.5), -(5.0**1.5)),
        (Matern(0.5, 5.0), 2.718281828459045**-1),
        (Matern(1.5, 5.0), (1 + 3**0.5) * 2.718281828459045 ** -(3**0.5)),
        (Matern(2.5, 5.0), (1 + 5**0.5 + 5 / 3) * 2.718281828459045 ** -(5**0.5)),
        (Polynomial(3, offset=2.0, scale=0.5), 8.0),
        (2 * Gaussian(5.0) + Riesz(1.0), 2 * 2.718281828459045**-0.5 - 5),
    ],
    ids=repr,
)
def test_formulas(kernel, value):
    assert kernel(X, Y).item() == pytest.approx(value, rel=1e-14)


@given(mu=measures(batch_shapes=((),)), kernel=kernels())
def test_conditionally_positive_definite(mu, kernel):
    matrix = kernel(mu.points, mu.points)
    charges = torch.randn(mu.n, dtype=mu.dtype)
    charges = charges - charges.mean()
    assert charges @ matrix @ charges >= -1e-12 * matrix.abs().max() * charges.square().sum()


@given(kernel=kernels(), order=st.integers(1, 3))
def test_derivatives_at_zero_distance_are_zero_or_right(kernel, order):
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    value = kernel(x, torch.zeros(1, 2, dtype=torch.float64)).sum()
    for k in range(order):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        assert torch.isfinite(gradient).all()
        if k % 2 == 0:
            assert not gradient.any()
        value = gradient[0, 0]


def test_second_derivative_of_smooth_kernels_at_zero():
    curvatures = (
        (Gaussian(2.0), -1 / 4),
        (IMQ(2.0), -1 / 4),
        (Matern(1.5, 2.0), -3 / 4),
        (Matern(2.5, 2.0), -5 / 12),
        (Riesz(1.0), 0.0),
        (Laplace(1.0), 0.0),
    )
    for kernel, curvature in curvatures:
        hessian = torch.autograd.functional.hessian(lambda x, k=kernel: k(x, torch.zeros(1, 1)).sum(), torch.zeros(1, 1))
        assert hessian.item() == pytest.approx(curvature)


@pytest.mark.theorem("T18")
@pytest.mark.parametrize("nu", [1.5, 2.5])
def test_matern_derivatives_do_not_cancel(nu):
    """At distances of 1e-6 bandwidths, in single precision: the gradient is that of the parabola."""
    x = torch.tensor([[1e-6, 0.0]], requires_grad=True)
    for value in (Matern(nu, 1.0)(x, torch.zeros(1, 2)), Matern(nu, 1.0).log_matrix(x, torch.zeros(1, 2))):
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient[0, 0].item() == pytest.approx({1.5: -3e-6, 2.5: -5e-6 / 3}[nu], rel=1e-4)


@pytest.mark.theorem("T18")
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_integrals_are_those_of_the_proof(dim):
    for order in range(3):
        expected = float(sp.log(matern_integral(order).subs(D, dim)))
        assert Matern(order + 0.5, 2.0).log_integral(dim) == pytest.approx(expected + dim * math.log(2.0))
    assert Laplace(1.0).log_integral(dim) == pytest.approx(Matern(0.5, 1.0).log_integral(dim))
    expected = float(sp.log(imq_integral().subs({D: dim, BETA: 2})))
    assert IMQ(3.0, exponent=2.0).log_integral(dim) == pytest.approx(expected + dim * math.log(3.0))
    both = 0.5 * (Gaussian(1.0) + Gaussian(2.0))
    assert float(both.log_integral(dim)) == pytest.approx(math.log(0.5 * (2 * math.pi) ** (dim / 2) * (1 + 2**dim)))


@pytest.mark.parametrize("kernel", [Gaussian([0.5, 2.0]), Laplace(1.0), Matern(2.5, 1.0), 2 * Gaussian(1.0) + IMQ(1.0)], ids=repr)
def test_logarithms_of_kernels(kernel):
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert_close(kernel.log_matrix(x, y).exp(), kernel(x, y))
    assert_close(kernel.log_pair(x.unsqueeze(-2), y.unsqueeze(-3)), kernel.log_matrix(x, y))
    assert torch.isfinite(kernel.log_matrix(1e3 * x, y)).all()


@pytest.mark.parametrize(
    "kernel",
    [Gaussian(0.7), Gaussian([0.5, 2.0]), Gaussian(torch.tensor([0.5, 2.0])), 2 * Gaussian(1.0) + IMQ(1.0), Riesz(1.0)],
    ids=repr,
)
def test_closed_forms_of_derivatives_of_profiles(kernel):
    s = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k, slope, factor = kernel.profile_and_derivative(s)
    expected = Kernel.profile_and_derivative(kernel, s)
    assert_close(k, expected[0])
    assert_close(factor * slope, expected[1])


def test_a_profile_of_ones_own_has_its_own_derivative():
    class Wider(Gaussian):
        def unit_profile(self, s):
            return (-0.25 * s).exp()

    s = torch.ones(1, 1, dtype=torch.float64)
    _, slope, factor = Wider(1.0).profile_and_derivative(s)
    assert_close(factor * slope, -0.25 * (-0.25 * s).exp())


def test_kernels_show_what_they_are():
    kernel = Gaussian([0.5, 2.0]) + 0.5 * Matern(1.5, 1.0)
    assert repr(kernel) == "Gaussian(bandwidth=[0.5, 2]) + 0.5 * Matern(nu=1.5, bandwidth=1)"
    assert repr(2 * (Laplace(1.0) + Riesz(1.0))) == "2 * (Laplace(bandwidth=1) + Riesz(r=1.0))"


def test_bandwidths_may_be_learned_or_one_per_measure():
    trained = Gaussian(nn.Parameter(torch.tensor(1.0)))
    assert len(list(trained.parameters())) == 1
    x = torch.randn(3, 4, 2)
    per_measure = Gaussian(torch.tensor([0.5, 1.0, 2.0]))(x, x)
    for i, h in enumerate((0.5, 1.0, 2.0)):
        assert_close(per_measure[i], Gaussian(h)(x[i], x[i]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), "bandwidth: .*0.0"),
        (lambda: Gaussian(-1.0), "bandwidth"),
        (lambda: Gaussian(float("nan")), "bandwidth"),
        (lambda: Gaussian([]), "bandwidth: .*empty"),
        (lambda: Laplace(torch.tensor([1.0, -1.0])), "bandwidth: .*-1"),
        (lambda: IMQ(1.0, exponent=0.0), "exponent"),
        (lambda: Matern(1.0, 1.0), "nu: .*0.5, 1.5 or 2.5"),
        (lambda: Polynomial(0), "degree: "),
        (lambda: Polynomial(2, offset=-1.0), "offset: "),
        (lambda: Riesz(1.0).log_integral(2), "not a density"),
        (lambda: IMQ(1.0).log_integral(1), "not a density in dimension 1"),
        (lambda: median_bandwidth(DiscreteMeasure(torch.zeros(2, 1)), DiscreteMeasure(torch.zeros(2, 2))), "nu: "),
        (lambda: Riesz(0.0), "r: "),
        (lambda: Riesz(2.0), "r: .*between 0 and 2"),
        (lambda: -1.0 * Gaussian(1.0), "factor"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    "kernel", [Matern(1.5, 0.7), Matern(2.5, 0.7), Gaussian(0.7), Riesz(1.0), Matern(2.5, 0.7) * 2.0], ids=repr
)
def test_forward_mode_within_forward_mode(kernel, order):
    """PyTorch does not differentiate the forward-mode formula of a function of one's own."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 2, generator=g, dtype=torch.float64), torch.randn(4, 2, generator=g, dtype=torch.float64)

    def value(x):
        return kernel(x, y).square().sum() + kernel(x, x).sum()

    forward, reverse = value, value
    for _ in range(order):
        forward, reverse = torch.func.jacfwd(forward), torch.func.jacrev(reverse)
    assert_close(forward(x), reverse(x), units=1e4)


def test_bandwidths_may_be_numbers_of_numpy():
    assert Gaussian(np.float32(0.5)).bandwidths == [0.5]


@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_slopes_of_equal_distances_are_equal_to_the_last_bit(r):
    """Wherever the pairs are stored: else rounding drives atoms apart that are at one place and repel each other."""
    for n in range(1, 40):
        _, slopes, _ = Riesz(r).profile_and_derivative(torch.full((n,), 0.3, dtype=torch.float64))
        assert bool((slopes == slopes[0]).all())
