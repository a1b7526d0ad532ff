"""Plans, potentials and maps of exact transport: against POT, by hand, and by the laws of duality."""

import ot
import pytest
import torch
from generic import generic_measure as measure
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from ddeq import DiscreteMeasure
from ddeq.functionals.wasserstein import Wasserstein
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures

near = measures(offsets=(0.0,), scales=(1.0,))
single = measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,))
factors = st.sampled_from([0.25, 1.0, 3.0])
DOUBLE = torch.float64


def costs(mu, nu):
    return 0.5 * (mu.points.unsqueeze(-2) - nu.points.unsqueeze(-3)).square().sum(-1)


# --- laws ---


@pytest.mark.theorem("T3")
@given(mu=near, nu=single, c=factors)
def test_a_plan_has_both_marginals_and_the_cost_of_the_value(mu, nu, c):
    mu, nu = c * mu, c * nu
    functional = Wasserstein(nu)
    plan = functional.plan(mu)
    assert plan.shape == (*mu.batch_shape, mu.n, nu.n)
    assert (plan >= 0).all()
    assert_close(plan.sum(-1), mu.weights, scale=c)
    assert_close(plan.sum(-2), nu.weights.expand(*mu.batch_shape, -1), scale=c)
    assert_close((plan * costs(mu, nu)).sum((-2, -1)), functional(mu), scale=c)


@pytest.mark.theorem("T3")
@given(mu=near, nu=single, c=factors)
def test_potentials_are_feasible_and_optimal(mu, nu, c):
    """phi + psi <= c but between atoms of mass zero, equal where mass goes, and the integrals add up to the value."""
    mu, nu = c * mu, c * nu
    functional = Wasserstein(nu)
    phi, psi = functional.potentials(mu)
    slack = costs(mu, nu) - phi.unsqueeze(-1) - psi.unsqueeze(-2)
    live = mu.support().unsqueeze(-1) | nu.support().unsqueeze(-2)
    assert (slack[live] >= -1e-10).all()
    assert (slack[functional.plan(mu) > 1e-9 * c].abs() <= 1e-9).all()
    dual = (mu.weights * phi).sum(-1) + (nu.weights * psi).sum(-1)
    assert_close(dual, functional(mu), scale=c)
    assert_close(phi, functional.first_variation(mu), scale=1.0)


@pytest.mark.theorem("T3")
@given(mu=near, nu=single)
def test_the_map_is_the_point_minus_the_gradient(mu, nu):
    functional, elsewhere = Wasserstein(nu), 0.7 * mu.points.flip(-1) + 0.31
    for x in (None, elsewhere):
        at = mu.points if x is None else x
        assert_close(functional.transport_map(mu, x), at - functional.wasserstein_gradient(mu, x), scale=1.0)
    images, weights = functional.plan(mu) @ nu.points, mu.weights.unsqueeze(-1)
    merged = functional.transport_map(mu) * weights  # coincident atoms share the mean of their place
    assert_close(merged.sum(-2), images.sum(-2), scale=1.0)


@pytest.mark.theorem("T1")
def test_they_are_those_of_the_measure():
    """An atom that is split has the mass of its parts, one of mass zero none, and permuted atoms permuted rows."""
    mu, nu = measure(5), measure(4, seed=1)
    functional = Wasserstein(nu)
    plan, (phi, psi), images = functional.plan(mu), functional.potentials(mu), functional.transport_map(mu)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = mu.permute_atoms(order)
    assert_close(functional.plan(permuted), plan[order])
    assert_close(functional.transport_map(permuted), images[order])
    split = mu.split_atom(2, 0.3)
    expected = torch.cat([plan[:2], 0.3 * plan[2:3], plan[3:], 0.7 * plan[2:3]])
    found, shares = functional.plan(split), split.weights[[2, 5]] / mu.weights[2]
    expected[2], expected[5] = shares[0] * plan[2], shares[1] * plan[2]
    assert_close(found, expected)
    assert_close(functional.potentials(split)[0], torch.cat([phi, phi[2:3]]), scale=1.0)
    assert_close(functional.potentials(split)[1], psi, scale=1.0)
    assert_close(functional.transport_map(split), torch.cat([images, images[2:3]]))
    padded = Wasserstein(nu.pad_atoms(2)).plan(mu.pad_atoms(1))
    assert_close(padded, torch.nn.functional.pad(plan, (0, 2, 0, 1)))


def test_each_measure_of_a_batch_gets_what_it_gets_alone():
    mu, nu, x = measure(5, batch=(3, 2)), measure(4, batch=(3, 2), seed=2), torch.randn(3, 2, 6, 2, dtype=DOUBLE)
    together = Wasserstein(nu)
    for i in (0, 2):
        alone, m = Wasserstein(nu[i, 1]), mu[i, 1]
        assert_close(together.plan(mu)[i, 1], alone.plan(m))
        assert_close(together.transport_map(mu)[i, 1], alone.transport_map(m))
        assert_close(together.transport_map(mu, x)[i, 1], alone.transport_map(m, x[i, 1]))
        for a, b in zip(together.potentials(mu), alone.potentials(m), strict=True):
            assert_close(a[i, 1], b, scale=1.0)


# --- values ---


@pytest.mark.parametrize("mass", [1.0, 2.5])
def test_against_pot(mass):
    """Weights in general position: plan, map, and potentials up to a constant are unique."""
    mu, nu = mass * measure(9), mass * measure(12, seed=1)
    a, b, cost = mu.weights.numpy(), nu.weights.numpy(), 0.5 * cdist(mu.points, nu.points, "sqeuclidean")
    plan = torch.as_tensor(ot.emd(a, b, cost))
    value, log = ot.lp.emd2(a, b, cost, log=True)
    functional = Wasserstein(nu)
    assert_close(functional(mu), torch.tensor(float(value), dtype=DOUBLE))
    assert_close(functional.plan(mu), plan)
    assert_close(functional.transport_map(mu), plan @ nu.points / mu.weights.unsqueeze(-1))
    phi, psi = functional.potentials(mu)
    u, v = (torch.as_tensor(log[name]) for name in "uv")
    assert_close(phi - phi[0], u - u[0])
    assert_close(psi - psi[0], v - v[0])


def test_by_hand():
    """Two atoms of masses 1 and 2 onto three of mass 1: the second one splits."""
    mu = DiscreteMeasure(torch.tensor([[0.0], [4.0]]).double(), torch.tensor([1.0, 2.0]).double())
    nu = DiscreteMeasure(torch.tensor([[5.0], [1.0], [7.0]]).double(), torch.ones(3).double())
    functional = Wasserstein(nu)
    assert_close(functional.plan(mu), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=DOUBLE))
    assert_close(functional(mu), torch.tensor(0.5 + 0.5 + 4.5, dtype=DOUBLE))
    assert_close(functional.transport_map(mu), torch.tensor([[1.0], [6.0]], dtype=DOUBLE))
    assert_close(
        functional.transport_map(mu, torch.tensor([[-9.0], [9.0]], dtype=DOUBLE))[:, 0], torch.tensor([1.0, 7.0]).double()
    )


@pytest.mark.theorem("T13")
def test_translations():
    """The map is the translation, and the potentials are affine."""
    mu, shift = 2.0 * measure(8), torch.tensor([1e4, -2.0], dtype=DOUBLE)
    nu = mu.push_forward(lambda x: x + shift)
    functional = Wasserstein(nu)
    assert_close(functional.transport_map(mu), nu.points)
    assert_close(functional.plan(mu), mu.weights.diag())
    single = Wasserstein(nu.to(torch.float32))
    images, plan = single.transport_map(mu.to(torch.float32)), single.plan(mu.to(torch.float32))
    assert images.dtype == plan.dtype == single.potentials(mu.to(torch.float32))[1].dtype == torch.float32
    assert_close(images, nu.points.float(), scale=1e4)


# --- derivatives, where the plan is unique ---


def test_derivatives_by_finite_differences():
    mu, nu = measure(4), 2.5 * measure(5, seed=10)
    inputs = [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights)]

    def results(x, w, y, v):
        m, functional = DiscreteMeasure(x, w * (v.sum() / w.sum())), Wasserstein(DiscreteMeasure(y, v))
        phi, psi = functional.potentials(m)
        return functional.plan(m), phi - phi[0], psi - psi[0], functional.transport_map(m), functional.transport_map(m, x + 0.3)

    assert torch.autograd.gradcheck(results, inputs)


def test_under_transforms():
    mu, functional = measure(4), Wasserstein(measure(5, seed=1))
    total = torch.func.grad(lambda p: functional.transport_map(mu.with_points(p)).square().sum())(mu.points)
    assert_close(total, torch.zeros_like(total))
    with pytest.raises(RuntimeError, match="measures are batched already"):
        torch.vmap(functional.plan)(measure(4, batch=(3,)))
