"""DrMMD against closed forms, limits, and finite differences of what enters it."""

import math

import pytest
import torch
from hypothesis import given
from regularized import BATCHES, check_everything_that_enters, check_large_problems, dirac, measure

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD
from ddeq.functionals.drmmd import DrMMD
from ddeq.kernels import IMQ, Gaussian, Laplace, Polynomial, Riesz
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_first_variation, check_gradient, check_value
from ddeq.testing.strategies import measures

TARGET = measure(4, seed=1)


def functionals():
    return {
        "gaussian": DrMMD(TARGET, Gaussian(1.0), 0.1),
        "imq, weak": DrMMD(TARGET, IMQ(1.0), 10.0),
        "laplace": DrMMD(TARGET, Laplace(1.0), 0.3),
        "small": DrMMD(TARGET, Gaussian(0.7), 1e-3),
        "dead and coincident atoms": DrMMD(TARGET.split_atom(0, 0.3).pad_atoms(2), Gaussian(1.0), 0.1),
        "one atom": DrMMD(dirac(0.2, -0.1), Gaussian(1.0), 0.1),
    }


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("regularization", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("distance", [0.0, 1.0, 5.0])
def test_of_point_masses(regularization, distance):
    """(Sigma + lambda)^-1 g = (g - <g, phi> phi / (1 + lambda)) / lambda for Sigma = phi (x) phi of norm one."""
    b = math.exp(-(distance**2) / 2)
    value = (1 + regularization) / regularization * (2 - 2 * b - (1 - b) ** 2 / (1 + regularization))
    at_mu = (1 - b - (b - 1) * b / (1 + regularization)) / regularization
    F, mu = DrMMD(dirac(0.0, 0.0), Gaussian(1.0), regularization), dirac(distance, 0.0)
    assert F(mu).item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert F.first_variation(mu).item() == pytest.approx(2 * (1 + regularization) * at_mu, rel=1e-9, abs=1e-12)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("regularization", [1e-3, 0.1, 10.0])
def test_in_a_feature_space_of_finite_dimension(regularization):
    """For the kernel (x.y + 1)^2 on the plane, the covariance operator is a matrix of six rows."""
    mu = measure(5, seed=3)

    def features(p):
        x, y = p.unbind(-1)
        return torch.stack([x * x, y * y, 2**0.5 * x * y, 2**0.5 * x, 2**0.5 * y, torch.ones_like(x)], -1)

    at_mu, at_nu = features(mu.points), features(TARGET.points)
    gap = mu.weights @ at_mu - TARGET.weights @ at_nu
    covariance = (at_nu * TARGET.weights[:, None]).T @ at_nu
    witness = torch.linalg.solve(covariance + regularization * torch.eye(6, dtype=torch.float64), gap)
    F = DrMMD(TARGET, Polynomial(2), regularization)
    assert_close(F(mu), (1 + regularization) * (gap @ witness), rtol=1e-9)
    assert_close(F.first_variation(mu), 2 * (1 + regularization) * (at_mu @ witness), rtol=1e-9)


@pytest.mark.theorem("T3")
def test_it_tends_to_mmd_squared_as_the_regularisation_grows():
    mu = measure(5, seed=3)
    squared = 2 * MMD(TARGET, Gaussian(1.0))
    for regularization in (1e3, 1e6):
        F = DrMMD(TARGET, Gaussian(1.0), regularization)
        assert F(mu).item() == pytest.approx(squared(mu).item(), rel=10 / regularization)
        assert_close(F.wasserstein_gradient(mu), squared.wasserstein_gradient(mu), rtol=10 / regularization)


@pytest.mark.theorem("T3")
def test_it_tends_to_the_chi_squared_divergence_as_the_regularisation_falls():
    """Between measures on the same places, which the kernel tells apart."""
    places = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    w, v = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    F = DrMMD(DiscreteMeasure(places, v), Gaussian(0.2), 1e-6)
    assert F(DiscreteMeasure(places, w)).item() == pytest.approx(((w - v).square() / v).sum().item(), rel=1e-4)


def test_it_is_zero_on_its_target_and_positive_elsewhere():
    for F in functionals().values():
        on_target = F(F.target)
        assert_close(on_target, torch.zeros_like(on_target), scale=1.0)
        assert_close(F.first_variation(F.target), torch.zeros_like(F.target.weights), scale=1.0)
        assert F(measure(3, seed=5)) > 0


@pytest.mark.theorem("T1")
@given(mu=measures())
def test_values_depend_on_the_measure_alone(mu):
    check_value(functionals()["gaussian"], mu)


@pytest.mark.theorem("T2")
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_derivatives_are_those_of_the_value(mu):
    check_first_variation(functionals()["gaussian"], mu)
    check_gradient(functionals()["gaussian"], mu)


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("name", functionals())
def test_the_users_check_passes(name):
    check_functional(functionals()[name])


@pytest.mark.parametrize("mass", [0.5, 2.0])
def test_masses_need_not_be_one(mass):
    check_functional(DrMMD(mass * TARGET, Gaussian(1.0), 0.3))


@pytest.mark.theorem("T1")
def test_copies_of_target_atoms_change_nothing():
    mu = measure(3, seed=2)
    plain, stored_otherwise = functionals()["gaussian"], functionals()["dead and coincident atoms"]
    assert_close(plain(mu), stored_otherwise(mu))
    assert_close(plain.wasserstein_gradient(mu), stored_otherwise.wasserstein_gradient(mu))


@pytest.mark.theorem("T7")
def test_derivatives_in_everything_that_enters():
    check_everything_that_enters(DrMMD)


@pytest.mark.theorem("T7")
def test_problems_too_large_to_store():
    check_large_problems(DrMMD)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_of_targets_and_one_for_all(batch):
    mu, nu = measure(3, batch=(3,), seed=0), measure(4, batch=batch, seed=1)
    F = DrMMD(nu, Gaussian(1.0), torch.tensor([0.01, 0.1, 10.0], dtype=torch.float64))
    for i in range(3):
        alone = DrMMD(nu[i] if batch else nu, Gaussian(1.0), (0.01, 0.1, 10.0)[i])
        assert_close(F(mu)[i], alone(mu[i]))
        assert_close(F.wasserstein_gradient(mu)[i], alone.wasserstein_gradient(mu[i]))


@pytest.mark.theorem("T2")
def test_the_slope_in_the_weight_of_a_dead_atom_of_the_target():
    """dF/dv = -(1 + lambda)(2 h + h^2) there, which needs h where the target has no mass."""
    mu, nu = measure(3, seed=0), measure(3, seed=1).pad_atoms(1)
    points = nu.points + torch.tensor([[0.0, 0.0]] * 3 + [[0.3, 0.2]], dtype=torch.float64)
    weights = nu.weights.clone().requires_grad_()
    F = DrMMD(DiscreteMeasure(points, weights), Gaussian(1.0), 0.2)
    (slope,) = torch.autograd.grad(F(mu), weights)
    h = F.first_variation(mu, points) / 2.4
    assert_close(slope, -1.2 * (2 * h + h.square()))


def test_inside_function_transforms():
    F, mu = functionals()["gaussian"], measure(3, batch=(2,), seed=4)
    assert_close(torch.vmap(F)(mu), F(mu))
    assert_close(torch.vmap(F.wasserstein_gradient)(mu), F.wasserstein_gradient(mu))
    by_transform = torch.func.grad(lambda x: F(mu.with_points(x)).sum())(mu.points)
    assert_close(by_transform / mu.weights.unsqueeze(-1), F.wasserstein_gradient(mu))


def test_single_precision_agrees_with_double():
    mu = measure(5, seed=0)
    for F in functionals().values():
        single = DrMMD(F.target.to(torch.float32), F.kernel, F.regularization)
        error, scale = 1e-6 / min(1.0, F.regularization), 1.0 + F.regularization
        assert_close(single(mu.to(torch.float32)).double(), F(mu), scale=scale, rtol=error)
        slope = single.wasserstein_gradient(mu.to(torch.float32)).double()
        assert_close(slope, F.wasserstein_gradient(mu), scale=scale, rtol=error)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda mu: DrMMD(mu, Gaussian(1.0), 0.0), "regularization: "),
        (lambda mu: DrMMD(mu, Riesz(1.0), 0.1), "kernel: .*DrMMD is unbounded"),
        (lambda mu: DrMMD(mu, Gaussian(1.0), 0.1)(dirac(0.0)), "mu: .*dimension 2"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(measure(3))
