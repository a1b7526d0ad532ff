"""Coarse measures: functions of the measure on grids too, masses that add up, centres far from each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.nn import coarsen
from ddeq.nn.coarsening import canonical_order, farthest_points
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures, permutations

counts = st.integers(1, 7)
anywhere = measures(scales=(1.0,), normalized=False)


def same(a, b, law=""):
    assert torch.equal(a.points, b.points), law
    assert_close(a.weights, b.weights, law)


@pytest.mark.theorem("T1")
@pytest.mark.theorem("T19")
@given(mu=anywhere, count=counts, h=st.sampled_from([0.1, 1.0]))
def test_a_coarse_measure_is_a_function_of_the_measure(mu, count, h):
    """Centres are the same in the same order, though distances on the grid of the strategy tie."""
    for change, stored in same_measure(mu).items():
        same(coarsen(stored, count, h).measure, coarsen(mu, count, h).measure, change)


@pytest.mark.theorem("T1")
@given(order=permutations(16), count=st.integers(1, 16), doubled=st.integers(0, 15))
def test_permutations_of_a_square_grid(order, count, doubled):
    mu = DiscreteMeasure(torch.cartesian_prod(*[torch.arange(4.0)] * 2), torch.arange(1.0, 17.0))
    expected = coarsen(mu, count, 0.8).measure
    same(coarsen(mu.permute_atoms(order), count, 0.8).measure, expected)
    same(coarsen(mu.split_atom(doubled, 0.5).permute_atoms(torch.cat([order, torch.tensor([16])])), count, 0.8).measure, expected)


@pytest.mark.theorem("T19")
@given(mu=anywhere, count=counts)
def test_masses_add_up_and_centres_are_atoms(mu, count):
    coarse, atoms = coarsen(mu, count, 0.3)
    assert_close(coarse.mass(), mu.mass())
    assert (coarse.weights >= 0).all()
    assert coarse.marks is None
    assert torch.equal(coarse.points, mu.points.gather(-2, atoms.unsqueeze(-1).expand_as(coarse.points)))
    assert mu.support().gather(-1, atoms).all()


@pytest.mark.theorem("T19")
@given(mu=measures(scales=(1.0,), batch_shapes=((),)), more=st.integers(1, 4))
def test_more_centres_than_places_are_the_same_measure_with_atoms_of_mass_zero(mu, more):
    places = len(mu.points[mu.support()].unique(dim=0))
    enough, many = (coarsen(mu, count, 0.7).measure for count in (places, places + more))
    same(many, enough.pad_atoms(more))
    assert len(enough.points.unique(dim=0)) == places


@pytest.mark.theorem("T19")
@given(mu=measures(offsets=(0.0,), scales=(1.0,)), count=counts, far=st.sampled_from([-3.5, 1e4]))
def test_translations_move_the_centres(mu, count, far):
    moved, coarse = coarsen(mu.with_points(mu.points + far), count, 0.5).measure, coarsen(mu, count, 0.5).measure
    same(moved, coarse.with_points(coarse.points + far))


def test_by_hand():
    mu = DiscreteMeasure(torch.tensor([[2.0], [1.0], [10.0], [0.0], [-9.0]]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]))
    coarse, atoms = coarsen(mu, 3, 1e-3)
    assert atoms.tolist() == [3, 2, 0]
    assert_close(coarse.weights, torch.tensor([0.5, 0.3, 0.2]), rtol=1e-6)  # the atom at 1 is shared by 0 and 2
    assert coarsen(mu, 1, 0.5).measure.weights.item() == pytest.approx(1.0)


def test_the_formula_and_its_derivatives():
    mu = DiscreteMeasure(torch.randn(6, 2).double(), torch.tensor([0.5, 0.3, 0.0, 0.2, 0.1, 0.4], dtype=torch.float64))
    coarse, atoms = coarsen(mu, 3, 0.6)

    def masses(points, weights):
        kernel = (-0.5 * (points[atoms].unsqueeze(1) - points).square().sum(-1) / 0.36).exp()
        return (kernel / kernel.sum(0)) @ weights

    assert_close(coarse.weights, masses(mu.points, mu.weights))
    of = lambda x, w: coarsen(mu.with_points(x).with_weights(w), 3, 0.6).measure.weights
    for a, b in zip(*(torch.autograd.functional.jacobian(f, (mu.points, mu.weights)) for f in (of, masses)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_batches_are_coarsened_one_by_one(batch):
    mu = DiscreteMeasure(torch.randn(*batch, 7, 2), torch.rand(*batch, 7))
    coarse, atoms = coarsen(mu, 4, 0.5)
    assert coarse.points.shape == (*batch, 4, 2)
    assert atoms.shape == (*batch, 4)
    if batch:
        last = tuple(k - 1 for k in batch)
        same(coarse[last], coarsen(mu[last], 4, 0.5).measure)


def test_order_and_choice():
    points = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-5.0, 0.0]]])
    inside = torch.tensor([[True, True, True, False]])
    assert canonical_order(points, inside).tolist() == [[2, 1, 0, 3]]
    assert farthest_points(points, inside, 4).tolist() == [[0, 1, 2, 0]]


def test_masses_are_in_full_precision_under_autocast():
    mu = DiscreteMeasure(torch.randn(20, 2), torch.rand(20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = coarsen(mu, 5, 0.3).measure
    same(half, coarsen(mu, 5, 0.3).measure)


@pytest.mark.unchecked
@pytest.mark.parametrize(("count", "bandwidth"), [(0, 1.0), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_bad_input(count, bandwidth):
    with pytest.raises(ValueError, match="count, bandwidth: "):
        coarsen(DiscreteMeasure(torch.zeros(4, 2)), count, bandwidth)
