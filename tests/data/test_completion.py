"""Completion tasks: nothing is lost, enough stays, and how the measure is stored decides nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from ddeq import DiscreteMeasure
from ddeq.data import Removal, RemoveDiscs, RemoveHalfSpace
from ddeq.testing import assert_close
from ddeq.testing.samples import with_dead_atoms
from ddeq.testing.strategies import measures

TASKS = [RemoveDiscs(), RemoveDiscs(1, 0.3, keep=0.5), RemoveDiscs(3, 1e6), RemoveHalfSpace(), RemoveHalfSpace((0.9, 0.9))]
every_task = pytest.mark.parametrize("task", TASKS, ids=repr)
nasty = measures(batch_shapes=((), (2,), (2, 3)), mark_dim=1, normalized=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(*batch, n=40, dim=2, dtype=torch.float32, seed=0):
    g = seeded(seed)
    weights = torch.rand(*batch, n, generator=g, dtype=dtype) + 0.1
    return DiscreteMeasure(2 * torch.rand(*batch, n, dim, generator=g, dtype=dtype) - 1, weights)


@every_task
@given(mu=nasty, seed=st.integers(0, 3))
def test_known_and_missing_are_the_measure(task, mu, seed):
    assert isinstance(task, Removal)
    known, missing = task(mu, seeded(seed))
    for part in (known, missing):
        assert part.points is mu.points
        assert part.marks is mu.marks
        assert bool(((part.weights == 0) | (part.weights == mu.weights)).all())
    assert torch.equal(known.weights + missing.weights, mu.weights)
    assert bool((known.mass() > 0).all())
    again = task(mu, seeded(seed))
    assert all(torch.equal(a.weights, b.weights) for a, b in zip((known, missing), again, strict=True))


@pytest.mark.theorem("T1")
@every_task
@given(mu=nasty, seed=st.integers(0, 3), data=st.data())
def test_what_is_cut_off_does_not_depend_on_storage(task, mu, seed, data):
    """With the same draws: permuting, splitting and padding atoms do the same to both parts."""
    parts = task(mu, seeded(seed))
    index = torch.tensor(data.draw(st.permutations(range(mu.n))))
    atom, fraction = data.draw(st.integers(0, mu.n - 1)), data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    for same in (lambda m: m.permute_atoms(index), with_dead_atoms, lambda m: m.split_atom(atom, fraction)):
        for part, other in zip(parts, task(same(mu), seeded(seed)), strict=True):
            assert_close(other.weights, same(part).weights, scale=1.0)


@every_task
def test_each_measure_of_a_batch_has_draws_of_its_own(task):
    mu = cloud().expand(2, 3)
    missing = task(mu, seeded())[1].weights.flatten(0, 1)
    assert len({tuple((row > 0).tolist()) for row in missing}) >= 3  # what little stays may be the same for some
    other = task(mu, seeded(1))[1].weights.flatten(0, 1)
    assert not torch.equal(missing, other)


def test_draws_are_those_of_the_generator_alone():
    before = torch.get_rng_state()
    for task in TASKS:
        task(cloud(4), seeded())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_discs_are_discs(dim, count):
    mu = cloud(20, dim=dim, n=60)
    _, missing = RemoveDiscs(count, 0.3)(mu, seeded())
    for points, gone in zip(mu.points, missing.support(), strict=True):
        balls = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") <= 0.3
        unions = balls if count == 1 else (balls.unsqueeze(0) | balls.unsqueeze(1)).flatten(0, 1)
        assert bool((unions == gone).all(-1).any())


def test_centres_are_drawn_in_proportion_to_mass():
    weights = torch.tensor([0.0, 0.3, 0.1, 0.0, 0.4, 0.2, 0.0])
    mu = DiscreteMeasure(torch.arange(7.0)[torch.tensor([3, 6, 0, 2, 5, 1, 4])][:, None], weights).expand(20_000)
    gone = RemoveDiscs(1, 0.0)(mu, seeded())[1].support()
    assert bool((gone.sum(-1) == 1).all())
    assert_close(gone.float().mean(0), weights, rtol=0.03)


def test_discs_shrink_rather_than_take_too_much():
    """On the line, with unit gaps: of a ball without bound the nearest atoms go, until a quarter of the mass stays."""
    mu = DiscreteMeasure(torch.arange(8.0)[:, None] ** 1.01).expand(50)
    known, missing = RemoveDiscs(1, 1e3, keep=0.25)(mu, seeded())
    assert_close(known.mass(), torch.full((50,), 0.25))
    assert bool((missing.support().float().diff(dim=-1).abs().sum(-1) <= 2).all())  # an interval
    heavy = DiscreteMeasure(torch.tensor([[0.0], [0.0], [9.0]]), torch.tensor([0.5, 0.45, 0.05])).expand(50)
    taken = RemoveDiscs(2, 1.0)(heavy, seeded())[1]
    assert bool((taken.weights[:, :2] == 0).all())  # one place with more than 0.9 of the mass stays
    assert 0 < int((taken.weights[:, 2] > 0).sum()) < 15


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_half_spaces_are_half_spaces(dim):
    mu = cloud(20, dim=dim, n=50)
    known, missing = RemoveHalfSpace()(mu, seeded())
    for points, gone in zip(mu.points.double(), missing.support(), strict=True):
        # Some plane is between the parts: a linear program finds it.
        x = torch.cat([points, torch.ones(50, 1)], -1) * torch.where(gone, -1.0, 1.0).unsqueeze(-1)
        assert 0 < int(gone.sum()) <= 25 + 5
        assert linprog(np.zeros(dim + 1), x.numpy(), -np.ones(50), bounds=(None, None)).success
    assert_close(known.mass() + missing.mass(), mu.mass())


def test_half_spaces_cut_off_the_share_that_is_drawn():
    mu = cloud(500, n=100, dim=3)
    atom = mu.weights.amax(-1) / mu.mass()
    for least, largest in ((0.3, 0.3), (0.25, 0.5)):
        share = RemoveHalfSpace((least, largest))(mu, seeded())[1].mass() / mu.mass()
        assert bool((share > least - atom).all())
        assert bool((share <= largest + 1e-6).all())
        assert_close(share.mean(), torch.tensor((least + largest) / 2), rtol=0.05)
    assert share.max() - share.min() > 0.2


def test_normals_are_uniform():
    """What is cut off of a circle lies in any direction."""
    angle = torch.arange(60.0) * (2 * math.pi / 60)
    mu = DiscreteMeasure(torch.stack([angle.cos(), angle.sin()], -1)).expand(3000)
    mean = RemoveHalfSpace((0.2, 0.2))(mu, seeded())[1].mean()
    direction = torch.atan2(mean[:, 1], mean[:, 0])
    for k in (1, 2, 3):
        assert (k * direction).cos().mean().hypot((k * direction).sin().mean()) < 0.05


def test_derivatives_reach_both_parts():
    points, weights = torch.randn(9, 2, requires_grad=True), torch.full((9,), 1 / 9, requires_grad=True)
    for task in TASKS:
        known, missing = task(DiscreteMeasure(points, weights), seeded())
        (gradient,) = torch.autograd.grad(2 * known.mass() + missing.mass(), weights)
        assert_close(gradient, torch.where(known.support(), 2.0, 1.0))
        assert known.points is points


def test_a_measure_without_mass_has_no_parts():
    mu = DiscreteMeasure(torch.randn(2, 5, 2), torch.zeros(2, 5))
    for task in TASKS:
        assert all(torch.equal(part.weights, mu.weights) for part in task(mu, seeded()))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RemoveDiscs(0), "count: expected a number of balls >= 1, got 0"),
        (lambda: RemoveDiscs(radius=-1.0), "radius: expected a finite number >= 0, got -1.0"),
        (lambda: RemoveDiscs(radius=math.inf), "radius"),
        (lambda: RemoveDiscs(keep=0.0), "keep: expected a share between 0 and 1, got 0.0"),
        (lambda: RemoveDiscs(keep=1.0), "keep"),
        (lambda: RemoveHalfSpace((0.5, 0.25)), r"share: .*got \(0.5, 0.25\)"),
        (lambda: RemoveHalfSpace((0.0, 0.25)), "share"),
        (lambda: RemoveHalfSpace((0.5, 1.0)), "share"),
        (lambda: RemoveHalfSpace((0.5,)), "share"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
