"""KALE against closed forms, a brute-force maximisation, limits, and finite differences of what enters it."""

import math

import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given
from regularized import BATCHES, check_everything_that_enters, check_large_problems, dirac, measure
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD, regularized_newton
from ddeq.functionals.kale import KALE
from ddeq.iteration import InnerProblemWarning, Stop
from ddeq.kernels import IMQ, Gaussian, Laplace, Riesz
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_first_variation, check_gradient, check_value
from ddeq.testing.strategies import measures

TARGET = measure(4, seed=1)


def functionals():
    return {
        "gaussian": KALE(TARGET, Gaussian(1.0), 0.1),
        "imq, weak": KALE(TARGET, IMQ(1.0), 10.0),
        "laplace": KALE(TARGET, Laplace(1.0), 0.3),
        "small": KALE(TARGET, Gaussian(0.7), 1e-3),
        "dead and coincident atoms": KALE(TARGET.split_atom(0, 0.3).pad_atoms(2), Gaussian(1.0), 0.1),
        "one atom": KALE(dirac(0.2, -0.1), Gaussian(1.0), 0.1),
    }


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("regularization", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("distance", [0.0, 1.0, 5.0])
def test_of_point_masses(regularization, distance):
    """lambda u + e^u = k(x, y) is solved by Lambert's function."""
    b = math.exp(-(distance**2) / 2)
    z = b / regularization
    u = z - scipy.special.wrightomega(z - math.log(regularization))  # W(e^z)
    square = (1 - 2 * b * math.exp(u) + math.exp(2 * u)) / regularization**2
    witness = (1 - b * math.exp(u)) / regularization
    value = (1 + regularization) * (1 + witness - math.exp(u) - regularization / 2 * square)
    F, mu = KALE(dirac(0.0, 0.0), Gaussian(1.0), regularization), dirac(distance, 0.0)
    assert F(mu).item() == pytest.approx(value, rel=1e-9, abs=1e-9)  # the formula cancels
    assert F.first_variation(mu).item() == pytest.approx((1 + regularization) * witness, rel=1e-9, abs=1e-9)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("regularization", [0.05, 1.0])
def test_against_a_brute_force_maximisation(seed, regularization):
    """Over functions sum_i a_i k(z_i, .) with z the atoms of both measures, among which the maximiser is."""
    mu, nu, kernel = measure(3, seed=seed), measure(4, seed=seed + 10), Gaussian(1.0)
    z = torch.cat([mu.points, nu.points])
    gram, at_mu, at_nu = (kernel(p, z) for p in (z, mu.points, nu.points))

    def loss(a):
        a = torch.from_numpy(a).requires_grad_()
        penalty = regularization / 2 * (a @ gram @ a)
        value = 1 + mu.weights @ (at_mu @ a) - nu.weights @ (at_nu @ a).exp() - penalty
        (slope,) = torch.autograd.grad(-value, a)
        return -value.item(), slope.numpy()

    found = scipy.optimize.minimize(loss, torch.zeros(len(z), dtype=torch.float64).numpy(), jac=True, method="BFGS", tol=1e-10)
    F = KALE(nu, kernel, regularization)
    assert F(mu).item() == pytest.approx(-(1 + regularization) * found.fun, rel=1e-9)
    witness = (1 + regularization) * (at_mu @ torch.from_numpy(found.x))
    assert_close(F.first_variation(mu), witness, rtol=1e-5)


@pytest.mark.theorem("T3")
def test_it_tends_to_half_of_mmd_squared_as_the_regularisation_grows():
    mu = measure(5, seed=3)
    half = MMD(TARGET, Gaussian(1.0))
    for regularization in (1e3, 1e6):
        F = KALE(TARGET, Gaussian(1.0), regularization)
        assert F(mu).item() == pytest.approx(half(mu).item(), rel=10 / regularization)
        assert_close(F.wasserstein_gradient(mu), half.wasserstein_gradient(mu), rtol=10 / regularization)


@pytest.mark.theorem("T3")
def test_it_tends_to_the_kullback_leibler_divergence_as_the_regularisation_falls():
    """Between measures on the same places, which the kernel tells apart."""
    places = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    w, v = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    divergence = (w * (w / v).log()).sum()
    F = KALE(DiscreteMeasure(places, v), Gaussian(0.2), 1e-6)
    assert F(DiscreteMeasure(places, w)).item() == pytest.approx(divergence.item(), rel=1e-4)


def test_it_is_zero_on_its_target_and_positive_elsewhere():
    for F in functionals().values():
        on_target = F(F.target)
        assert_close(on_target, torch.zeros_like(on_target), scale=1.0)
        assert_close(F.first_variation(F.target), torch.zeros_like(F.target.weights), scale=1.0)
        assert F(measure(3, seed=5)) > 0


@pytest.mark.parametrize("mass", [0.5, 2.0])
def test_masses_need_not_be_one(mass):
    """The constant of T3: with a target of mass M and h = 0 the value is (1 + lambda)(1 - M)."""
    F = KALE(mass * TARGET, Gaussian(1.0), 0.3)
    assert F(mass * TARGET).item() == pytest.approx(1.3 * (1 - mass), rel=1e-12)
    check_functional(F)


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


@pytest.mark.theorem("T1")
def test_copies_of_target_atoms_change_nothing():
    mu = measure(3, seed=2)
    plain, stored_otherwise = functionals()["gaussian"], functionals()["dead and coincident atoms"]
    assert_close(plain(mu), stored_otherwise(mu))
    assert_close(plain.wasserstein_gradient(mu), stored_otherwise.wasserstein_gradient(mu))


@pytest.mark.theorem("T7")
def test_derivatives_in_everything_that_enters():
    check_everything_that_enters(KALE)


@pytest.mark.theorem("T7")
def test_problems_too_large_to_store():
    check_large_problems(KALE)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_of_targets_and_one_for_all(batch):
    mu, nu = measure(3, batch=(3,), seed=0), measure(4, batch=batch, seed=1)
    F = KALE(nu, Gaussian(1.0), torch.tensor([0.01, 0.1, 10.0], dtype=torch.float64))
    for i in range(3):
        alone = KALE(nu[i] if batch else nu, Gaussian(1.0), (0.01, 0.1, 10.0)[i])
        assert_close(F(mu)[i], alone(mu[i]))
        assert_close(F.wasserstein_gradient(mu)[i], alone.wasserstein_gradient(mu[i]))


def test_atoms_of_the_target_without_mass_take_finite_gradients():
    """Also where the witness is so large that its exponential is not a number of the type."""
    places = torch.tensor([[0.0], [40.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    F = KALE(DiscreteMeasure(places, weights), Gaussian(1.0), 1e-3)
    (slope,) = torch.autograd.grad(F(DiscreteMeasure(places + 0.5)), weights)
    assert torch.isfinite(slope).all()
    assert slope[1] < -1e100
    alive = DiscreteMeasure(places[:1])
    assert_close(F(DiscreteMeasure(places + 0.5)), KALE(alive, Gaussian(1.0), 1e-3)(DiscreteMeasure(places + 0.5)))


@pytest.mark.theorem("T2")
def test_the_slope_in_the_weight_of_a_dead_atom_of_the_target():
    """dF/dv = -(1 + lambda) e^h there, which needs h where the target has no mass."""
    mu, nu = measure(3, seed=0), measure(3, seed=1).pad_atoms(1)
    points = nu.points + torch.tensor([[0.0, 0.0]] * 3 + [[0.3, 0.2]], dtype=torch.float64)
    weights = nu.weights.clone().requires_grad_()
    F = KALE(DiscreteMeasure(points, weights), Gaussian(1.0), 0.2)
    (slope,) = torch.autograd.grad(F(mu), weights)
    assert_close(slope, -1.2 * (F.first_variation(mu, points) / 1.2).exp())


def test_inside_function_transforms():
    F, mu = functionals()["gaussian"], measure(3, batch=(2,), seed=4)
    value, slope = F(mu), F.wasserstein_gradient(mu)
    assert_close(torch.vmap(F)(mu), value)
    assert_close(torch.vmap(F.wasserstein_gradient)(mu), slope)
    by_transform = torch.func.grad(lambda x: F(mu.with_points(x)).sum())(mu.points)
    assert_close(by_transform / mu.weights.unsqueeze(-1), slope)
    one, direction = mu[0], torch.randn(3, 2, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: F(one.with_points(x)), one.points)
    (product,) = torch.func.vjp(torch.func.grad(lambda x: F(one.with_points(x))), one.points)[1](direction)
    assert_close(product, (hessian * direction).sum((-2, -1)))


def test_single_precision_agrees_with_double():
    mu = measure(5, seed=0)
    for F in functionals().values():
        single = KALE(F.target.to(torch.float32), F.kernel, F.regularization)
        error, scale = 1e-6 / min(1.0, F.regularization), 1.0 + F.regularization
        assert_close(single(mu.to(torch.float32)).double(), F(mu), scale=scale, rtol=error)
        slope = single.wasserstein_gradient(mu.to(torch.float32)).double()
        assert_close(slope, F.wasserstein_gradient(mu), scale=scale, rtol=error)


def test_it_holds_the_regularisation_as_modules_do():
    parameter = nn.Parameter(torch.tensor(0.1))
    F = KALE(TARGET, Gaussian(1.0), parameter)
    assert any(p is parameter for p in F.parameters())
    assert "regularization" in KALE(TARGET, Gaussian(1.0), torch.tensor(0.1)).state_dict()
    assert "regularization=0.1" in repr(KALE(TARGET, Gaussian(1.0), 0.1))
    assert not functionals()["gaussian"](measure(3)).requires_grad


def test_without_enough_steps_it_warns_with_the_residual_and_a_remedy(monkeypatch):
    monkeypatch.setattr(regularized_newton, "STOP", Stop(max_steps=1, atol=0.0))
    F = KALE(TARGET, Gaussian(1.0), 0.01)
    with pytest.warns(InnerProblemWarning, match=r"KALE: some problems .*larger regularization") as caught:
        assert torch.isfinite(F(measure(3)))
    assert (caught[0].message.failed, caught[0].message.total) == (1, 1)
    assert caught[0].message.residual > caught[0].message.wanted > 0


class Capturing(Gaussian):
    """Scaled by a tensor that it does not register."""

    def profile(self, s):
        return super().profile(s) * SECRET


SECRET = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda mu: KALE(mu, Gaussian(1.0), 0.0), "regularization: "),
        (lambda mu: KALE(mu, Gaussian(1.0), -1.0), "regularization: "),
        (lambda mu: KALE(mu, Gaussian(1.0), torch.tensor(float("nan"))), "regularization: "),
        (lambda mu: KALE(mu, Gaussian(1.0), torch.tensor([0.1, 0.1]))(mu), "regularization: .*shape"),
        (lambda mu: KALE(mu, Riesz(1.0), 0.1), "kernel: .*Riesz.*unbounded"),
        (lambda mu: KALE(mu, Gaussian(1.0) + 0.5 * Riesz(1.0), 0.1), "kernel: "),
        (lambda mu: KALE(mu, 2.0 * Riesz(1.0), 0.1), "kernel: "),
        (lambda mu: KALE(mu, "gaussian", 0.1), "kernel: "),
        (lambda mu: KALE(mu.points, Gaussian(1.0), 0.1), "target: "),
        (lambda mu: KALE(mu, Capturing(1.0), 0.1)(mu), "kernel: .*register"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(measure(3))


def test_a_regularisation_that_trains_below_zero_is_found_out():
    parameter = nn.Parameter(torch.tensor(0.1))
    F = KALE(TARGET, Gaussian(1.0), parameter)
    with torch.no_grad():
        parameter.fill_(-0.1)
    with pytest.raises(ValueError, match="regularization: "):
        F(measure(3))
