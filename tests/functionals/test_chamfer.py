"""The Chamfer distance: known values, a function of the measure, and what it has in the place of a first variation.

It is not in the catalogue of `conftest.py`, since T2 does not hold: a supremum over the support has no first variation. What does
hold of the laws there is tested here.
"""

import pytest
import torch
from generic import generic_measure as measure
from hypothesis import given

import ddeq
from ddeq import DiscreteMeasure
from ddeq.flows import Euler
from ddeq.functionals import MMD, Chamfer, FixedPointDiscrepancy, Smoothness
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_value
from ddeq.testing.samples import same_measure, with_dead_atoms
from ddeq.testing.strategies import measures

single = measures(batch_shapes=((),))
near = measures(offsets=(0.0,), scales=(1.0,))


def by_hand(mu, nu):
    """Loops over atoms of positive mass."""

    def one_way(a, b):
        live = [(x, w) for x, w in zip(a.points, a.weights, strict=True) if w > 0]
        distances = [w * min((x - y).square().sum() for y in b.points[b.support()]) for x, w in live]
        return sum(distances) / a.mass()

    return 0.5 * (one_way(mu, nu) + one_way(nu, mu))


# --- values ---


@given(mu=single, nu=single)
def test_against_loops(mu, nu):
    every = torch.cat([mu.points, nu.points])
    assert_close(Chamfer(nu)(mu), by_hand(mu, nu), scale=(every.amax() - every.amin()).square())


def test_known_values():
    def of(*x):
        return DiscreteMeasure(torch.tensor(x).unsqueeze(-1))

    assert Chamfer(of(3.0))(of(0.0)).item() == pytest.approx(9.0)  # twice |0 - 3|^2 / 2
    assert Chamfer(of(0.0, 1.0, 2.0))(of(1.0)).item() == pytest.approx(1 / 3)  # nothing, and (1 + 0 + 1) / 3 / 2
    mu = measure(6)
    assert Chamfer(mu)(mu).item() == 0.0
    circle = torch.arange(360.0).deg2rad()
    ring = DiscreteMeasure(torch.stack([circle.cos(), circle.sin()], -1))
    assert Chamfer(ring)(ring.push_forward(lambda x: 3.0 * x)).item() == pytest.approx(4.0)


def test_it_is_symmetric_and_knows_no_mass():
    mu, nu = measure(5, seed=1), measure(7, seed=2)
    assert_close(Chamfer(nu)(mu), Chamfer(mu)(nu))
    assert_close(Chamfer(0.2 * nu)(3.0 * mu), Chamfer(nu)(mu))


def test_targets_for_each_measure_or_one_for_all():
    mu, nu = measure(4, batch=(3,)), measure(5, batch=(3,), seed=1)
    together, alone = Chamfer(nu), [Chamfer(nu[i]) for i in range(3)]
    for i in range(3):
        assert_close(together(mu)[i], alone[i](mu[i]))
        assert_close(alone[0](mu)[i], alone[0](mu[i]))
        assert_close(together.wasserstein_gradient(mu)[i], alone[i].wasserstein_gradient(mu[i]))
    assert_close(together.rows(torch.tensor([2]), (3,))(mu[2:]), together(mu)[2:])
    assert_close(torch.vmap(alone[0])(mu), alone[0](mu))
    assert_close(torch.vmap(alone[0].wasserstein_gradient)(mu), alone[0].wasserstein_gradient(mu))


def test_single_precision_and_far_away():
    mu, nu = measure(6), measure(5, seed=1)
    moved = [m.push_forward(lambda x: x + 64.0).to(torch.float32) for m in (mu, nu)]
    assert_close(Chamfer(moved[1])(moved[0]), Chamfer(nu)(mu).float(), rtol=1e-3)


# --- laws ---


@pytest.mark.theorem("T1")
@given(mu=measures(), nu=single)
def test_it_is_a_function_of_the_measure(mu, nu):
    check_value(Chamfer(nu), mu)
    for change, same in same_measure(nu).items():
        scale = 1e-3 * (1.0 + float(mu.points.abs().max()))
        assert_close(Chamfer(same)(mu), Chamfer(nu)(mu), change, scale=scale)


def test_the_users_check_passes():
    check_functional(Chamfer(measure(6, seed=1)), first_variation=False)
    check_functional(Chamfer(measure(5, dim=3, dtype=torch.float32)), first_variation=False)


@pytest.mark.theorem("T1")
@given(mu=near, nu=measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,)))
def test_copies_of_an_atom_have_the_same_gradient(mu, nu):
    functional = Chamfer(nu)
    gradient = functional.wasserstein_gradient(mu)
    split = functional.wasserstein_gradient(mu.split_atom(mu.n // 2, 0.25))
    live = mu.support().unsqueeze(-1)
    assert_close(split[..., : mu.n, :].where(live, 0.0), gradient, scale=1.0)
    assert_close(split[..., -1, :], gradient[..., mu.n // 2, :], scale=1.0)
    assert_close(functional.wasserstein_gradient(with_dead_atoms(mu))[..., : mu.n, :], gradient, scale=1.0)


def test_gradients_against_differences():
    mu, nu = with_dead_atoms(measure(6, batch=(2,))), measure(7, batch=(2,), seed=1)
    functional, d, h = Chamfer(nu), measure(9, batch=(2,), seed=2).points, 1e-6
    slope = (functional(mu.with_points(mu.points + h * d)) - functional(mu.with_points(mu.points - h * d))) / (2 * h)
    gradient = functional.wasserstein_gradient(mu)
    assert_close((mu.weights.unsqueeze(-1) * gradient * d).sum((-2, -1)), slope, rtol=1e-7)
    assert bool((gradient[:, 6:] == 0).all())


def test_gradients_reach_points_weights_and_targets_and_are_differentiable():
    x, y = measure(4).points.requires_grad_(), measure(5, seed=1).points.requires_grad_()
    w, v = measure(4, seed=2).weights.requires_grad_(), measure(5, seed=3).weights.requires_grad_()

    def value(x, w, y, v):
        return Chamfer(DiscreteMeasure(y, v))(DiscreteMeasure(x, w))

    assert torch.autograd.gradcheck(value, (x, w, y, v))
    assert torch.autograd.gradgradcheck(value, (x, w, y, v))
    force = Chamfer(DiscreteMeasure(y)).wasserstein_gradient(DiscreteMeasure(x, w))
    assert all(bool(g.any()) for g in torch.autograd.grad(force.square().sum(), (x, w, y)))


@pytest.mark.theorem("T2")
def test_any_mass_at_a_new_place_changes_the_value_at_once():
    """So there is no first variation, and it says so; the gradient grows as an atom loses its mass."""
    mu, nu = DiscreteMeasure(torch.zeros(1, 1).double()), DiscreteMeasure(torch.tensor([[0.0], [2.0]]).double())
    functional = Chamfer(nu)
    assert functional(mu).item() == pytest.approx(1.0)
    forces = []
    for mass in (1e-3, 1e-6):
        more = mu + mass * DiscreteMeasure(torch.ones(1, 1).double())
        assert functional(more).item() == pytest.approx(0.25, abs=1e-3)
        forces.append(functional.wasserstein_gradient(more)[1].item())
    assert forces[1] == pytest.approx(1e3 * forces[0], rel=1e-2)
    assert functional.smoothness is Smoothness.ALMOST_EVERYWHERE
    for F in (functional, functional + MMD(nu), 0.5 * functional):
        with pytest.raises(ValueError, match="first_variation: Chamfer has none"):
            F.first_variation(mu)
    with pytest.raises(ValueError, match="x: expected None"):
        functional.wasserstein_gradient(mu, mu.points)


def test_atoms_flow_to_the_target():
    """Each follows its nearest target, and is pulled by those whose nearest atom it is."""
    nu = DiscreteMeasure(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    mu = DiscreteMeasure(torch.tensor([[-0.3, 0.4], [0.5, -0.2], [7.0, 7.0]]), torch.tensor([0.5, 0.5, 0.0]))
    end = ddeq.flow(Chamfer(nu), mu, stepper=Euler(step_size=0.2), steps=50)
    assert float(Chamfer(nu)(end.measure)) < 1e-6
    assert_close(end.measure.points[:2], nu.points, rtol=1e-3)
    assert torch.equal(end.measure.points[2], mu.points[2])


def test_it_measures_fixed_points_as_other_discrepancies_do():
    mu = DiscreteMeasure(torch.tensor([[1.0], [-1.0]]))
    assert FixedPointDiscrepancy(lambda m: m.push_forward(torch.neg), Chamfer)(mu).item() == 0.0
    assert "Chamfer(target=" in repr(Chamfer(mu))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mu: Chamfer(mu.points), "target: expected a DiscreteMeasure"),
        (lambda mu: Chamfer(mu)(mu.with_points(mu.points[:, :1])), "mu: .*dimension 2"),
        (lambda mu: Chamfer(mu)(mu.to(torch.float64)), "mu: .*float32"),
        (lambda mu: Chamfer(mu)(0.0 * mu), "mu: .*positive total mass"),
        (lambda mu: Chamfer(0.0 * mu)(mu), "target: .*positive total mass"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(DiscreteMeasure(torch.randn(3, 2)))
