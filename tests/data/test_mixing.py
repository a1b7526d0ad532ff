"""Mixtures of two measures of a batch: what they are made of, and that they are functions of the measures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.data import MixHalfSpaces
from ddeq.functionals import MMD
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clouds(b=5, n=40, dim=2, seed=0):
    g = seeded(seed)
    points = torch.randn(b, n, dim, generator=g, dtype=torch.float64)
    return DiscreteMeasure(points, torch.rand(b, n, generator=g, dtype=torch.float64))


@given(mu=measures(batch_shapes=((1,), (3,))), seed=st.integers(0, 100))
def test_the_mass_is_made_of_the_two_shares(mu, seed):
    mixed = MixHalfSpaces(1.0)(mu, seeded(seed))
    mass = mu.mass()
    assert_close(mixed.measure.mass(), mixed.share * mass + (1 - mixed.share) * mass[mixed.partner])
    assert torch.equal(mixed.partner, torch.arange(len(mass)).roll(-1))


def test_the_parts_lie_on_two_sides_and_come_from_the_two_measures():
    mu = clouds()
    mixed = MixHalfSpaces(1.0)(mu, seeded(3))
    for i, j in enumerate(mixed.partner):
        own = {tuple(x.tolist()): w.item() for x, w in zip(mu.points[i], mu.weights[i], strict=True)}
        other = {tuple(x.tolist()): w.item() for x, w in zip(mu.points[j], mu.weights[j], strict=True)}
        mass = {True: 0.0, False: 0.0}
        for x, w in zip(mixed.measure.points[i], mixed.measure.weights[i], strict=True):
            place = tuple(x.tolist())
            assert place in own or place in other
            assert w <= (own if place in own else other)[place]
            mass[place in own] += w.item()
        assert mass[True] == pytest.approx(float(mixed.share[i] * mu.mass()[i]))
        assert mass[False] == pytest.approx(float((1 - mixed.share[i]) * mu.mass()[j]))


def test_two_equal_measures_give_that_measure():
    one = clouds(1)
    mu = DiscreteMeasure(one.points.expand(2, -1, -1), one.weights.expand(2, -1))
    mixed = MixHalfSpaces(1.0)(mu, seeded(1))
    assert MMD(mu)(mixed.measure).max() < 1e-12


@pytest.mark.theorem("T1")
@given(fraction=st.floats(0, 1), seed=st.integers(0, 100))
def test_splitting_padding_and_permuting_change_nothing(fraction, seed):
    mu = clouds(3, 6)
    expected = MixHalfSpaces(1.0)(mu, seeded(seed))
    order = torch.randperm(mu.n + 3, generator=seeded(seed))
    mixed = MixHalfSpaces(1.0)(mu.split_atom(2, fraction).pad_atoms(2).permute_atoms(order), seeded(seed))
    assert torch.equal(mixed.share, expected.share)
    assert MMD(expected.measure)(mixed.measure).max() < 1e-12


def test_without_mixing_measures_stay_as_they_are_bit_for_bit():
    mu = clouds()
    mixed = MixHalfSpaces(0.0)(mu, seeded())
    assert torch.equal(mixed.share, torch.ones(5, dtype=torch.float64))
    assert torch.equal(mixed.measure.points, mu.points)
    assert torch.equal(mixed.measure.weights, mu.weights)


def test_about_the_share_that_was_asked_for_is_mixed():
    mixed = MixHalfSpaces(0.3)(clouds(1000, 2), seeded())
    assert 250 < int((mixed.share < 1).sum()) < 350


@pytest.mark.unchecked
def test_bad_input_is_named():
    with pytest.raises(ValueError, match="probability: expected a number"):
        MixHalfSpaces(1.5)
    with pytest.raises(ValueError, match=r"mu: expected a batch \(b,\)"):
        MixHalfSpaces()(clouds()[0])
    with pytest.raises(ValueError, match="and marks"):
        MixHalfSpaces()(clouds().with_marks(torch.zeros(5, 40, 1, dtype=torch.float64)))
