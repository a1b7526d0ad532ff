"""The exact Wasserstein distance: against POT, in closed form, potentials that are optimal, and derivatives of second order."""

import warnings

import ot
import pytest
import torch
from generic import assert_gradients_follow_the_value
from generic import generic_measure as measure
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from ddeq import DiscreteMeasure
from ddeq.functionals import FixedPointDiscrepancy, Smoothness
from ddeq.functionals.sliced_wasserstein import SlicedWasserstein
from ddeq.functionals.wasserstein import Wasserstein
from ddeq.iteration import InnerProblemWarning
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_first_variation, check_value
from ddeq.testing.strategies import measures

near = measures(offsets=(0.0,), scales=(1.0,))
single = measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,))


# --- values ---


@given(mu=measures(batch_shapes=((),)), nu=measures(batch_shapes=((),)))
def test_against_pot(mu, nu):
    live = [(m.points[m.support()], m.weights[m.support()]) for m in (mu, nu)]
    (x, a), (y, b) = live
    cost = cdist(x, y, "sqeuclidean")
    size = float(cost.max())  # tolerances of the peer are absolute
    peer = ot.emd2((a / a.sum()).numpy(), (b / b.sum()).numpy(), cost / (size or 1.0))
    assert_close(Wasserstein(nu)(mu), torch.tensor(0.5 * size * float(peer), dtype=torch.float64), scale=size)


@pytest.mark.theorem("T3")
@given(mu=measures(dim=1, batch_shapes=((),)), nu=measures(dim=1, batch_shapes=((),)))
def test_on_the_line_it_is_what_sorting_gives(mu, nu):
    size = torch.cat([mu.points, nu.points]).flatten()
    size = (size.max() - size.min()).square()
    assert_close(Wasserstein(nu)(mu), SlicedWasserstein(nu)(mu), scale=size)


@pytest.mark.theorem("T13")
def test_affine_maps_cost_what_gaussians_do():
    """Images under a positive definite A: the optimal plan is the map, and W_2 that of Gaussians with these moments."""
    mu = measure(12, dim=2)
    A, shift = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    nu = mu.push_forward(lambda x: x @ A + shift)
    S = mu.covariance()
    vectors = torch.linalg.eigh(S)
    root = vectors.eigenvectors @ vectors.eigenvalues.sqrt().diag() @ vectors.eigenvectors.mT
    cross = torch.linalg.eigvalsh(root @ (A @ S @ A) @ root).sqrt().sum()
    squared = (mu.mean() - nu.mean()).square().sum() + S.trace() + (A @ S @ A).trace() - 2 * cross
    assert_close(Wasserstein(nu)(mu), 0.5 * squared)
    assert_close(Wasserstein(nu).wasserstein_gradient(mu), mu.points - nu.points)


def test_metric_between_point_masses():
    x, y = (DiscreteMeasure(torch.tensor([p])) for p in ([0.0, 0.0], [3.0, 4.0]))
    assert Wasserstein(y)(x).item() == pytest.approx(12.5)
    assert Wasserstein(y)(x).dtype == torch.float32


@pytest.mark.theorem("T2")
def test_masses_are_transported_as_they_are():
    """Twice the mass is twice the value, with the same potential and gradient; 3 units of mass moved by 2 cost 6."""
    mu, nu, x = measure(5), measure(7, seed=1), measure(3, seed=2).points
    one, three = Wasserstein(nu), Wasserstein(3.0 * nu)
    assert_close(three(3.0 * mu), 3.0 * one(mu))
    for at in (None, x):
        assert_close(three.wasserstein_gradient(3.0 * mu, at), one.wasserstein_gradient(mu, at))
        assert_close(three.first_variation(3.0 * mu, at), one.first_variation(mu, at))
    here, there = (3.0 * DiscreteMeasure(torch.tensor([[z]])) for z in (0.0, 2.0))
    assert Wasserstein(there)(here).item() == pytest.approx(6.0)
    each = torch.tensor([1.0, 0.5], dtype=torch.float64)
    batch, targets = each * mu.expand(2), each * nu.expand(2)
    assert_close(Wasserstein(targets)(batch), each * one(mu))


# --- laws ---


@pytest.mark.theorem("T1")
@given(data=st.data())
def test_values_and_derivatives_on_nasty_measures(data):
    check_value(Wasserstein(data.draw(measures(batch_shapes=((),)))), data.draw(measures()))
    functional, mu = Wasserstein(data.draw(single)), data.draw(near)
    check_first_variation(functional, mu)
    assert_gradients_follow_the_value(functional, mu)


@pytest.mark.theorem("T2")
def test_the_users_check_passes():
    for nu in (measure(6, seed=1), measure(5, dim=1), measure(4, dim=3, batch=(2,)), measure(5, dtype=torch.float32)):
        check_functional(Wasserstein(nu))
    equal = DiscreteMeasure(torch.randn(2, 6, 2, dtype=torch.float64))
    grid = DiscreteMeasure(torch.randint(3, (2, 9, 2)).double())
    check_functional(Wasserstein(equal[0]), [equal, grid, equal.pad_atoms(2)])
    check_functional(Wasserstein(3.0 * equal[0]), 3.0 * equal)


@pytest.mark.theorem("T1")
@given(mu=measures(dtype=torch.float32, offsets=(0.0, 1e4), scales=(1.0,)))
def test_single_precision_far_away(mu):
    nu = measure(4, dtype=torch.float32, seed=3)
    nu = nu.with_points(nu.points + mu.points.flatten(0, -2)[:1])
    size = (mu.points.amax((-2, -1)) - mu.points.amin((-2, -1)) + 1.0).max().square()
    expected = Wasserstein(nu.to(torch.float64))(mu.to(torch.float64))
    assert_close(Wasserstein(nu)(mu), expected.float(), scale=size, units=20)


def test_each_measure_of_a_batch_gets_what_it_gets_alone():
    mu, nu, x = measure(5, batch=(3, 2)), measure(4, batch=(3, 2), seed=2), torch.randn(3, 2, 6, 2, dtype=torch.float64)
    together = Wasserstein(nu)
    for i in (0, 2):
        alone, m = Wasserstein(nu[i, 1]), mu[i, 1]
        assert_close(together(mu)[i, 1], alone(m))
        assert_close(together.wasserstein_gradient(mu)[i, 1], alone.wasserstein_gradient(m))
        assert_close(together.first_variation(mu, x)[i, 1], alone.first_variation(m, x[i, 1]), scale=1.0)


# --- potentials ---


@pytest.mark.theorem("T3")
@given(mu=single, nu=single)
def test_potentials_are_optimal(mu, nu):
    """phi + psi <= c up to one constant, and their integrals add up to the value, unique or not."""
    phi, psi = Wasserstein(nu).first_variation(mu), Wasserstein(mu).first_variation(nu)
    value = Wasserstein(nu)(mu)
    cost = 0.5 * (mu.points.unsqueeze(-2) - nu.points).square().sum(-1)
    live, there = mu.support(), nu.support()
    transform = (cost - phi.unsqueeze(-1))[live].min(0).values  # the best partner of phi
    assert_close((mu.weights * phi).sum() + (nu.weights * transform).sum(), value, scale=1.0)
    slack = (cost.mT - psi.unsqueeze(-1))[there].min(0).values
    assert_close((nu.weights * psi).sum() + (mu.weights * slack).sum(), value, scale=1.0)


@pytest.mark.theorem("T3")
def test_off_the_atoms_it_is_the_c_transform():
    mu, nu, x = measure(6), measure(5, seed=1), measure(7, seed=2).points
    phi = Wasserstein(nu).first_variation(mu)
    cost = 0.5 * (mu.points.unsqueeze(-2) - nu.points).square().sum(-1)
    psi = (cost - phi.unsqueeze(-1)).min(0).values
    expected = (0.5 * (x.unsqueeze(-2) - nu.points).square().sum(-1) - psi).min(-1)
    assert_close(Wasserstein(nu).first_variation(mu, x), expected.values)
    assert_close(Wasserstein(nu).wasserstein_gradient(mu, x), x - nu.points[expected.indices])


@pytest.mark.theorem("T3")
def test_gradient_is_the_distance_to_the_barycentric_map():
    """Coincident atoms share their mass, and an atom of mass zero among them moves as they do."""
    mu, nu = measure(5), measure(7, seed=1)
    plan = ot.emd(mu.weights.numpy(), nu.weights.numpy(), cdist(mu.points, nu.points, "sqeuclidean"))
    expected = mu.points - torch.as_tensor(plan) @ nu.points / mu.weights.unsqueeze(-1)
    functional = Wasserstein(nu)
    assert_close(functional.wasserstein_gradient(mu), expected)
    doubled = functional.wasserstein_gradient(mu.split_atom(2, 0.4).pad_atoms(1))
    assert_close(doubled, torch.cat([expected, expected[2:3], expected[:1]]))
    assert_close(functional.wasserstein_gradient(mu, mu.points), expected)


# --- derivatives of second order ---


def build(x, w, y, v):
    """Of the mass of the target, so that changes of its weights change that too."""
    return DiscreteMeasure(x, w * (v.sum() / w.sum())), Wasserstein(DiscreteMeasure(y, v))


def value(x, w, y, v):
    mu, functional = build(x, w, y, v)
    return functional(mu)


def gradient(x, w, y, v):
    mu, functional = build(x, w, y, v)
    return functional.wasserstein_gradient(mu)


def potential(x, w, y, v):
    mu, functional = build(x, w, y, v)
    f = functional.first_variation(mu)
    return f - f[0]


def potential_elsewhere(x, w, y, v):
    mu, functional = build(x, w, y, v)
    f = functional.first_variation(mu, 0.5 * x[:3] + 0.1)
    return f - f[0]


def inputs(seed=0, mass=1.0):
    mu, nu = measure(4, seed=seed), mass * measure(5, seed=seed + 10)
    return [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights)]


@pytest.mark.theorem("T3")
@pytest.mark.parametrize(("seed", "mass"), [(0, 1.0), (1, 2.5)])
@pytest.mark.parametrize("function", [value, gradient, potential, potential_elsewhere])
def test_derivatives_by_finite_differences(function, seed, mass):
    """In points and weights of both measures: of the potential in the points too, through the tree of the plan."""
    assert torch.autograd.gradcheck(function, inputs(seed, mass))
    if function in (value, gradient):
        assert torch.autograd.gradgradcheck(function, inputs(seed, mass))


def test_hessian_in_every_mode():
    mu, functional = measure(4, batch=(2,)), Wasserstein(measure(5, seed=1))

    def total(points):
        return functional(mu.with_points(points)).sum()

    expected = torch.autograd.functional.hessian(total, mu.points)
    assert_close(torch.func.hessian(total)(mu.points), expected)
    diagonal = (mu.weights.unsqueeze(-1) * torch.ones_like(mu.points)).flatten().diag()
    assert_close(expected.reshape(diagonal.shape), diagonal)

    def force(weights):
        return functional.wasserstein_gradient(mu.with_weights(weights / weights.sum(-1, keepdim=True)))

    assert_close(torch.func.jacfwd(force)(mu.weights), torch.autograd.functional.jacobian(force, mu.weights))


def test_as_the_discrepancy_of_a_fixed_point():
    """The target then moves with the measure, in points and in weights, those of mass zero included."""

    def shrink(m):
        return m.with_points(0.5 * m.points + 0.2 * m.normalized().mean().unsqueeze(-2))

    check_functional(FixedPointDiscrepancy(shrink, Wasserstein(measure(3))), measure(4, batch=(2,), seed=8))


def test_declared_smoothness():
    assert Wasserstein(measure(3)).smoothness is Smoothness.ALMOST_EVERYWHERE


# --- what goes wrong ---


def test_an_unfinished_linear_program_warns_with_numbers():
    mu, nu = measure(40), measure(40, seed=1)
    with pytest.warns(InnerProblemWarning, match="relative duality gap") as caught:
        Wasserstein(nu, max_steps=1)(mu)
    assert caught[0].message.residual > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Wasserstein(nu)(mu)


def test_vmap_is_refused_with_the_remedy():
    mu = measure(4, batch=(3,))
    for function in (Wasserstein(measure(5)), Wasserstein(measure(5)).wasserstein_gradient):
        with pytest.raises(RuntimeError, match="measures are batched already"):
            torch.vmap(function)(mu)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda nu: Wasserstein(nu.points), "target: "),
        (lambda nu: Wasserstein(nu, max_steps=0), "max_steps: expected a whole number >= 1, got 0"),
        (lambda nu: Wasserstein(nu, max_steps=2.5), "max_steps: "),
        (lambda nu: Wasserstein(nu)(2.0 * nu), "mu: expected the mass of the target, 1, got 2"),
        (lambda nu: Wasserstein(0.0 * nu)(nu), "target: expected measures of positive total mass"),
        (lambda nu: Wasserstein(nu)(measure(3, dim=3)), "dimension 2"),
        (lambda nu: Wasserstein(nu)(nu.to(torch.float32)), "float32"),
        (lambda nu: Wasserstein(measure(3, batch=(2,)))(measure(3, batch=(3,))), "batch"),
        (lambda nu: Wasserstein(nu).first_variation(nu, torch.zeros(5, 3).double()), "x: "),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(measure(4))
