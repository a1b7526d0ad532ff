"""Kernels: formulas, positivity, conventions at zero distance, bandwidths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.kernels import IMQ, Gaussian, Laplace, Riesz, median_bandwidth
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import kernels, measures

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
    for kernel, curvature in ((Gaussian(2.0), -1 / 4), (IMQ(2.0), -1 / 4), (Riesz(1.0), 0.0), (Laplace(1.0), 0.0)):
        hessian = torch.autograd.functional.hessian(lambda x, k=kernel: k(x, torch.zeros(1, 1)).sum(), torch.zeros(1, 1))
        assert hessian.item() == pytest.approx(curvature)


def test_bandwidths_may_be_learned_or_one_per_measure():
    trained = Gaussian(nn.Parameter(torch.tensor(1.0)))
    assert len(list(trained.parameters())) == 1
    x = torch.randn(3, 4, 2)
    per_measure = Gaussian(torch.tensor([0.5, 1.0, 2.0]))(x, x)
    for i, h in enumerate((0.5, 1.0, 2.0)):
        assert_close(per_measure[i], Gaussian(h)(x[i], x[i]))


@pytest.mark.theorem("T1")
@given(mu=measures(min_atoms=3, batch_shapes=((2,),), offsets=(0.0,)))
def test_median_bandwidth_depends_on_the_measure_alone(mu):
    mu = mu.with_points(mu.points + torch.arange(mu.n)[:, None])  # not all in one place
    h = median_bandwidth(mu)
    assert h.shape == (2,)
    for name, same in same_measure(mu).items():
        other = median_bandwidth(same)
        near_tie = (other - h).abs() > 1e-9 * h  # half of the mass may lie on either side, to rounding
        assert near_tie.sum() == 0 or mu.n <= 4, name


def test_median_of_two_points_is_their_distance():
    mu = DiscreteMeasure(torch.tensor([[0.0], [3.0]]))
    assert median_bandwidth(mu).item() == pytest.approx(3.0)
    with pytest.raises(ValueError, match="at least two"):
        median_bandwidth(DiscreteMeasure(torch.zeros(2, 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), "bandwidth: .*0.0"),
        (lambda: Gaussian(-1.0), "bandwidth"),
        (lambda: Gaussian(float("nan")), "bandwidth"),
        (lambda: Gaussian([]), "bandwidth: .*empty"),
        (lambda: Laplace(torch.tensor([1.0, -1.0])), "bandwidth: .*-1"),
        (lambda: IMQ(1.0, exponent=0.0), "exponent"),
        (lambda: Riesz(0.0), "r: "),
        (lambda: Riesz(2.0), "r: .*between 0 and 2"),
        (lambda: -1.0 * Gaussian(1.0), "factor"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
