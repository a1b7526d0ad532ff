"""The laws of the whole catalogue, on every nasty measure that the strategy draws."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from ddeq import DiscreteMeasure
from ddeq.functionals import FixedPointDiscrepancy, SinkhornDivergence, Wasserstein
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_first_variation, check_gradient, check_value
from ddeq.testing.strategies import measures

same_functional = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.theorem("T1")
@same_functional
@given(mu=measures())
def test_values_depend_on_the_measure_alone(functional, mu):
    check_value(functional, mu)


@pytest.mark.theorem("T2")
@same_functional
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_first_variation_is_the_derivative_in_the_weights(functional, mu):
    check_first_variation(functional, mu)


@pytest.mark.theorem("T2")
@same_functional
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_wasserstein_gradient_is_the_derivative_in_the_points(functional, mu):
    check_gradient(functional, mu)


@pytest.mark.theorem("T2")
def test_the_users_check_passes(functional):
    check_functional(functional)


@pytest.mark.theorem("T1")
@same_functional
@given(mu=measures(dtype=torch.float32, offsets=(0.0, 100.0), scales=(1.0,)))
def test_single_precision_agrees_with_double(functional, mu):
    single = functional.float()
    try:
        value, gradient = single(mu), single.wasserstein_gradient(mu)
    finally:
        double = functional.double()
    size = 1e-2 + mu.points.abs().max()
    assert value.dtype == torch.float32
    assert_close(value, double(mu.to(torch.float64)).float(), scale=size, units=1e3)
    assert_close(gradient, double.wasserstein_gradient(mu.to(torch.float64)).float(), scale=size, units=1e4)


@same_functional
@given(mu=measures(batch_shapes=((3,),), offsets=(0.0,)))
def test_each_measure_of_a_batch_gets_what_it_gets_alone(functional, mu):
    gradients = functional.wasserstein_gradient(mu)
    for i in range(3):
        assert_close(functional(mu)[i], functional(mu[i]), scale=1.0)
        assert_close(gradients[i], functional.wasserstein_gradient(mu[i]), scale=1.0)


@same_functional
@given(mu=measures(offsets=(0.0,), scales=(1.0,), min_atoms=2))
def test_gradient_at_other_points_is_that_of_the_first_variation(functional, mu):
    x = mu.points.flip(-1) + 0.25
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(functional.first_variation(mu, y).sum(), y)
    assert_close(functional.wasserstein_gradient(mu, x), expected, scale=1.0)


def test_no_graph_without_need(functional):
    mu = DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64))
    trainable = any(p.requires_grad for p in functional.parameters())
    assert functional.wasserstein_gradient(mu).requires_grad == trainable
    with torch.no_grad():
        assert not functional.wasserstein_gradient(mu).requires_grad


def test_inside_function_transforms(functional):
    mu = DiscreteMeasure(torch.randn(2, 3, 2, dtype=torch.float64))
    if isinstance(functional, SinkhornDivergence | Wasserstein):
        with pytest.raises(RuntimeError, match="batched already"):
            torch.vmap(functional)(mu)
        return
    assert_close(torch.vmap(functional)(mu), functional(mu))
    if not isinstance(functional, FixedPointDiscrepancy):
        gradient = torch.vmap(functional.wasserstein_gradient)(mu)
        assert_close(gradient, functional.wasserstein_gradient(mu))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_several_measures_at_once_have_the_values_that_they_have_alone(functional, batch):
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(3, *batch, 4, 2, dtype=torch.float64, generator=generator)
    weights = torch.rand(3, *batch, 4, dtype=torch.float64, generator=generator)
    measures = [DiscreteMeasure(x, w / w.sum(-1, keepdim=True)) for x, w in zip(points, weights, strict=True)]
    with torch.no_grad():
        for at_once, mu in zip(functional.evaluate_all(measures), measures, strict=True):
            assert_close(at_once, functional(mu), scale=1.0)
