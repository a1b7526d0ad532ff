"""Sliced Wasserstein distances against POT, and their potentials and slopes, ties included."""

import ot
import pytest
import torch
from generic import generic_measure as measure
from hypothesis import given

from ddeq import DiscreteMeasure
from ddeq.functionals import line_transport
from ddeq.functionals.line_transport import LineTransport
from ddeq.functionals.sliced_wasserstein import SlicedWasserstein
from ddeq.testing import assert_close, check_functional
from ddeq.testing.strategies import measures

line = measures(dim=1, batch_shapes=((),), offsets=(0.0,), scales=(1.0,))


@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # in POT
@pytest.mark.parametrize("p", [1, 2])
@given(mu=measures(batch_shapes=((),), offsets=(0.0,)), nu=measures(batch_shapes=((),), offsets=(0.0,)))
def test_against_pot(p, mu, nu):
    functional = SlicedWasserstein(nu, p, 5)
    peer = ot.sliced.sliced_wasserstein_distance(
        mu.points, nu.points, mu.weights, nu.weights, p=p, projections=functional.directions.mT
    )
    assert_close(functional(mu), peer.reshape(()) ** p / p, scale=1.0)
    x, y = mu.points[:, 0], nu.points[:, 0]
    on_an_axis = SlicedWasserstein(nu, p, directions=torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert_close(on_an_axis(mu), ot.wasserstein_1d(x, y, mu.weights, nu.weights, p=p).reshape(()) / p, scale=1.0)


@pytest.mark.theorem("T12")
def test_first_order_on_the_line_is_the_area_between_distribution_functions():
    mu, nu = measure(7, 1), measure(5, 1, seed=1)
    z = torch.cat([mu.points, nu.points]).squeeze(-1).sort().values
    difference = sum(s * (m.weights * (m.points.mT <= z[:, None])).sum(-1) for s, m in ((1, mu), (-1, nu)))
    assert_close(SlicedWasserstein(nu, 1)(mu), (difference[:-1].abs() * z.diff()).sum())


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("p", [1, 2])
@given(mu=line, nu=line)
def test_potentials_are_optimal(p, mu, nu):
    """Weak duality turns into equality, ties or not: phi + psi <= c, and their integrals add up to the value."""
    phi, psi = SlicedWasserstein(nu, p).first_variation(mu), SlicedWasserstein(mu, p).first_variation(nu)
    cost = (mu.points - nu.points.mT).abs() ** p / p
    slack = (cost - phi.unsqueeze(-1) - psi)[mu.support()][:, nu.support()].min()
    dual = (mu.weights * phi).sum() + (nu.weights * psi).sum() + slack
    assert_close(dual, SlicedWasserstein(nu, p)(mu), scale=1.0)


@pytest.mark.theorem("T3")
def test_gradient_is_the_distance_to_the_barycentric_map():
    """Two places, one of them shared by two atoms, onto three: by hand."""
    mu = DiscreteMeasure(torch.tensor([[0.0], [4.0], [0.0]]).double(), torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))
    nu = DiscreteMeasure(torch.tensor([[1.0], [3.0], [5.0]]).double(), torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64))
    first, second = (0.3 * 1.0 + 0.2 * 3.0) / 0.5, (0.2 * 3.0 + 0.3 * 5.0) / 0.5
    expected = torch.tensor([[0.0 - first], [4.0 - second], [0.0 - first]], dtype=torch.float64)
    assert_close(SlicedWasserstein(nu).wasserstein_gradient(mu), expected)
    assert_close(SlicedWasserstein(nu, 1).wasserstein_gradient(mu), torch.tensor([[-1.0], [-0.2], [-1.0]], dtype=torch.float64))
    between = SlicedWasserstein(nu).wasserstein_gradient(mu, torch.tensor([[2.0], [-1.0], [7.0]], dtype=torch.float64))
    assert_close(between, torch.tensor([[2.0 - 3.0], [-1.0 - 1.0], [7.0 - 5.0]], dtype=torch.float64))


@pytest.mark.theorem("T3")
def test_a_tie_is_met_halfway():
    """Equal weights: between the atoms the level 1/2 belongs to both targets."""
    mu, nu = (DiscreteMeasure(torch.tensor(points, dtype=torch.float64)) for points in ([[0.0], [4.0]], [[1.0], [7.0]]))
    x = torch.tensor([[3.0]], dtype=torch.float64)
    assert SlicedWasserstein(nu).wasserstein_gradient(mu, x).item() == pytest.approx(3.0 - 4.0)
    mirrored = SlicedWasserstein(nu.push_forward(torch.neg)).wasserstein_gradient(mu.push_forward(torch.neg), -x)
    assert mirrored.item() == pytest.approx(1.0)


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("p", [1, 2])
def test_masses_are_transported_as_they_are(p):
    """Twice the mass is twice the value, with the same slopes; half the cost of moving a mass of 3 by 2 is 6."""
    mu, nu, x = measure(5), measure(4, seed=1), measure(3, seed=2).points
    one, three = SlicedWasserstein(nu, p), SlicedWasserstein(3.0 * nu, p)
    assert_close(three(3.0 * mu), 3.0 * one(mu))
    for at in (None, x):
        assert_close(three.wasserstein_gradient(3.0 * mu, at), one.wasserstein_gradient(mu, at))
        assert_close(three.first_variation(3.0 * mu, at), one.first_variation(mu, at))
    check_functional(three, 3.0 * mu)
    here, there = (3.0 * DiscreteMeasure(torch.tensor([[z]])) for z in (0.0, 2.0))
    assert SlicedWasserstein(there, p)(here).item() == pytest.approx(6.0)


@pytest.mark.theorem("T13")
def test_translations_cost_what_they_should():
    """1/2 E <theta, c>^2 = |c|^2 / (2 d), by as many directions as there are."""
    mu, shift = measure(9, dim=3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    functional = SlicedWasserstein(mu.with_points(mu.points + shift), 2, 1000)
    assert functional(mu).item() == pytest.approx(shift.square().sum().item() / 6, rel=1e-3)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("p", [1, 2])
def test_the_users_check_passes_where_potentials_are_not_unique(p):
    """Equal weights and equal numbers, or all atoms on few lines: the override and the default take the same ones."""
    equal = DiscreteMeasure(torch.randn(2, 6, 2, dtype=torch.float64))
    grid = DiscreteMeasure(torch.randint(3, (2, 9, 2)).double())
    nu = DiscreteMeasure(torch.randn(6, 2, dtype=torch.float64))
    check_functional(SlicedWasserstein(nu, p, 5), [equal, grid, equal.pad_atoms(2)])
    axes = torch.eye(2, dtype=torch.float64)
    check_functional(SlicedWasserstein(nu, p, directions=axes), equal)
    check_functional(SlicedWasserstein(grid[0], p, directions=axes), grid)


def everything(transport, *points):
    """Cost, slopes and potentials, and their derivatives in what requires grad."""
    results = [transport.cost(), transport.slopes(), transport.potentials(), transport.reversed().slopes()]
    inputs = [t for t in points if t.requires_grad]
    if inputs:
        total = sum((r * torch.linspace(1, 2, r.shape[-1] if r.ndim else 1, dtype=r.dtype)).sum() for r in results)
        results += torch.autograd.grad(total, inputs)
    return results


@pytest.mark.parametrize("size", [7, 3000])  # the many are sorted in another way
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("recorded", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_equal_atoms_are_matched_as_any_others_are_coupled(size, p, recorded, ties):
    s, t = torch.randn(2, size, dtype=torch.float64), torch.randn(2, size, dtype=torch.float64)
    if ties:
        s, t = (8 * s).round() / 8, torch.where(t > 0, (8 * t).round() / 8, t)
    for k in recorded:
        (s, t)[k].requires_grad_()
    a = torch.full((size,), 1 / size, dtype=torch.float64)
    matched, coupled = LineTransport.between(s, a, t, a, p), line_transport._Coupled.between(s, a, t, a, p)
    assert type(matched) is not type(coupled)
    for actual, expected in zip(everything(matched, s, t), everything(coupled, s, t), strict=True):
        assert_close(actual, expected, scale=1.0, rtol=1e-9)


def test_unequal_masses_are_not_matched():
    s, t, a = torch.randn(4).double(), torch.randn(4).double(), torch.full((4,), 0.25).double()
    others = (torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), a.clone().requires_grad_())
    assert all(isinstance(LineTransport.between(s, b, t, a, 2), line_transport._Coupled) for b in others)
    assert isinstance(LineTransport.between(s, a, torch.randn(3).double(), a[:3] * 4 / 3, 2), line_transport._Coupled)
