"""Random maps of measures: what they keep, what they commute with, and what they draw."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.data import (
    Compose,
    Jitter,
    RandomAffine,
    RandomRotation,
    RandomScaling,
    RandomShift,
    RandomSubsample,
    load_digits,
    normalize,
)
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures

PUSH_FORWARDS = [
    (2, RandomAffine()),
    (3, RandomRotation()),
    (3, RandomRotation((1.0, -2.0, 0.5), 30.0)),
    (2, RandomScaling()),
    (3, RandomScaling(0.5, 0.5, per_axis=False)),
    (1, RandomShift(3.0)),
    (3, Compose([RandomRotation(), RandomScaling(0.9, 1.1), RandomShift()])),
]
ALL = [*PUSH_FORWARDS, (2, Jitter(0.5)), (3, RandomSubsample(2)), (2, Compose([RandomSubsample(3), Jitter()]))]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(*shape, dead=0, marks=False):
    weights = torch.rand(shape[:-1], dtype=torch.float64) + 0.1
    weights[..., :dead] = 0.0
    mark = torch.randn(*shape[:-1], 2, dtype=torch.float64) if marks else None
    return DiscreteMeasure(torch.randn(shape, dtype=torch.float64), weights, mark)


@pytest.mark.parametrize(("dim", "augment"), ALL, ids=repr)
@given(data=st.data())
def test_mass_and_marks_stay_and_the_generator_decides(dim, augment, data):
    mu = data.draw(measures(dim=dim, mark_dim=1, batch_shapes=((), (2,), (2, 3))))
    a, b, c = augment(mu, seeded(1)), augment(mu, seeded(1)), augment(mu, seeded(2))
    assert_close(a.mass(), mu.mass())
    assert a.batch_shape == mu.batch_shape
    assert (a.dtype, a.dim) == (mu.dtype, mu.dim)
    assert torch.equal(a.points, b.points)
    assert torch.equal(a.weights, b.weights)
    assert a.marks is not None
    if isinstance(augment, RandomShift):
        assert not torch.equal(a.points, c.points)


@pytest.mark.theorem("T1")
@pytest.mark.parametrize(("dim", "augment"), PUSH_FORWARDS, ids=repr)
@given(data=st.data())
def test_push_forwards_depend_on_the_measure_alone(dim, augment, data):
    mu = data.draw(measures(dim=dim, batch_shapes=((), (2,), (2, 3))))
    image, scale = augment(mu, seeded()), float(mu.points.abs().max())
    index = torch.tensor(data.draw(st.permutations(range(mu.n))))
    for same in (
        lambda m: m.permute_atoms(index),
        lambda m: m.pad_atoms(3),
        lambda m: m.split_atom(0, 0.3),
    ):
        assert_close(augment(same(mu), seeded()).points, same(image).points, scale=scale)


@pytest.mark.parametrize(("dim", "augment"), PUSH_FORWARDS, ids=repr)
def test_each_measure_of_a_batch_has_a_map_of_its_own(dim, augment):
    mu = DiscreteMeasure(torch.ones(2, 3, 1, dim) + torch.rand(1, 1, 5, dim))
    image = augment(mu, seeded())
    same = isinstance(augment, RandomScaling) and augment.low == augment.high
    assert len({round(float(x), 5) for x in image.points[..., 0, 0].flatten()}) == (1 if same else 6)


@given(mu=measures(dim=3), axis=st.tuples(*3 * [st.floats(-2, 2)]).filter(lambda a: math.hypot(*a) > 0.1))
def test_rotations_keep_distances_orientation_and_the_axis(mu, axis):
    image = RandomRotation(axis)(mu, seeded())
    scale = mu.points.abs().max()
    assert_close(torch.linalg.vector_norm(image.points, dim=-1), torch.linalg.vector_norm(mu.points, dim=-1), scale=scale)
    assert_close(torch.cdist(image.points, image.points), torch.cdist(mu.points, mu.points), scale=scale, units=1e5)
    frame = DiscreteMeasure(torch.eye(3, dtype=torch.float64))
    assert_close(torch.linalg.det(RandomRotation(axis)(frame, seeded()).points), torch.ones((), dtype=torch.float64))
    along = DiscreteMeasure(torch.tensor([axis], dtype=torch.float64))
    assert_close(RandomRotation(axis)(along, seeded()).points, along.points, scale=2.0)


def test_rotations_cover_the_angles_asked_for():
    mu = DiscreteMeasure(torch.tensor([1.0, 0.0, 5.0]).expand(2000, 1, 3))
    for degrees in (180.0, 30.0):
        x, y, z = RandomRotation(degrees=degrees)(mu, seeded()).points[:, 0].unbind(-1)
        angle = torch.rad2deg(torch.atan2(y, x))
        assert angle.abs().max() <= degrees + 1e-3
        assert abs(angle.mean()) < 0.1 * degrees
        assert_close(angle.std(), torch.tensor(degrees / math.sqrt(3)), rtol=0.05)
        assert_close(z, torch.full((2000,), 5.0))


def test_scales_lie_between_their_bounds():
    mu = DiscreteMeasure(torch.ones(1000, 1, 3))
    for per_axis in (True, False):
        factor = RandomScaling(0.5, 4.0, per_axis=per_axis)(mu, seeded()).points[:, 0]
        assert 0.5 <= factor.min() < 0.55
        assert 3.7 < factor.max() <= 4.0
        assert abs(factor.log().mean() - math.log(math.sqrt(2))) < 0.1
        assert bool((factor[:, 0] == factor[:, 1]).all()) != per_axis


def test_affine_maps_are_affine():
    mu, _ = load_digits("test").batch(range(4))
    image = RandomAffine()(mu, seeded(1))
    assert image.weights is mu.weights
    ones = torch.cat([mu.points, torch.ones(4, mu.n, 1)], -1)
    assert_close(ones @ torch.linalg.lstsq(ones, image.points).solution, image.points, rtol=1e-4)
    assert torch.equal(RandomAffine(0, 0, 0, 0)(mu).points, mu.points)


def test_noise_is_drawn_per_atom_and_clipped():
    mu = DiscreteMeasure(torch.zeros(4, 1000, 3))
    noise = Jitter(0.1, clip=0.15)(mu, seeded()).points
    assert noise.abs().max() <= 0.15
    assert len(noise.unique()) > 5000
    assert_close(Jitter(0.1, clip=None)(mu, seeded()).points.std(), torch.tensor(0.1), rtol=0.03)
    shuffled = torch.randperm(1000)
    assert torch.equal(Jitter(0.0)(mu.permute_atoms(shuffled)).points, mu.points)


@given(mu=measures(dim=2, max_atoms=6, mark_dim=1), n=st.integers(1, 6), seed=st.integers(0, 5))
def test_subsamples_are_atoms_with_mass(mu, n, seed):
    kept = RandomSubsample(n)(mu, seeded(seed))
    assert kept.n == min(n, mu.n)
    alive = mu.support().sum(-1)
    assert torch.equal(kept.support().sum(-1), alive.clamp(max=kept.n))
    for old, new in zip([mu] if not mu.batch_shape else mu, [kept] if not mu.batch_shape else kept, strict=True):
        atoms = torch.cat([old.points, old.marks], -1)[old.support()].tolist()
        for atom in torch.cat([new.points, new.marks], -1)[new.support()].tolist():
            atoms.remove(atom)  # without replacement: each is there once


@pytest.mark.theorem("T1")
def test_subsamples_ignore_padding():
    mu = cloud(3, 10, 2, marks=True)
    kept = RandomSubsample(4)(mu, seeded())
    padded = RandomSubsample(4)(mu.pad_atoms(7), seeded())
    assert torch.equal(kept.points, padded.points)
    assert torch.equal(kept.marks, padded.marks)
    assert_close(kept.weights, padded.weights)
    assert int(RandomSubsample(12)(mu.pad_atoms(7), seeded()).support().sum()) == 30


def test_subsamples_draw_each_atom_with_the_same_chance():
    weights = torch.tensor([0.0, 0.5, 0.1, 0.0, 0.2, 0.2])
    mu = DiscreteMeasure(torch.arange(6.0)[:, None], weights).expand(20_000)
    kept = RandomSubsample(2)(mu, seeded())
    assert bool((kept.points.diff(dim=1) > 0).all())  # the order stays
    counts = torch.bincount(kept.points.long().flatten(), minlength=6) / 20_000
    assert_close(counts, 0.5 * (weights > 0).float(), rtol=0.03)
    ratio = kept.weights / weights[kept.points[..., 0].long()]
    assert_close(ratio[:, 0], ratio[:, 1])
    assert_close(kept.mass(), torch.ones(20_000))


def test_subsamples_of_a_measure_without_mass_have_none():
    kept = RandomSubsample(2)(DiscreteMeasure(torch.zeros(2, 5, 2), torch.zeros(2, 5)), seeded())
    assert torch.equal(kept.weights, torch.zeros(2, 2))


@given(mu=measures(dim=2, batch_shapes=((), (2,), (2, 3))), data=st.data())
def test_normalized_shapes_have_mean_zero_and_radius_one(mu, data):
    image = normalize(mu)
    radius = torch.where(mu.support(), image.points.norm(dim=-1), 0.0).amax(-1)
    spread = torch.where(mu.support().unsqueeze(-1), mu.points - mu.mean().unsqueeze(-2), 0.0).norm(dim=-1).amax(-1)
    single = spread <= 1e-9 * mu.points.abs().amax((-1, -2))  # in one point, up to rounding
    assert_close(torch.where(single, 1.0, radius), torch.ones_like(radius))
    rounding = mu.points.abs().amax((-1, -2)) / spread.clamp(min=1e-300)
    assert bool(((image.mean().norm(dim=-1) < 1e-13 * (1 + rounding)) | single).all())
    assert_close(image.weights, mu.weights)
    index = torch.tensor(data.draw(st.permutations(range(mu.n))))
    if not bool(single.any()):
        again, scale = normalize(mu.permute_atoms(index).pad_atoms(2)), float(rounding.max())
        assert_close(again.points, image.permute_atoms(index).pad_atoms(2).points, scale=scale)


def test_normalized_clouds_ignore_dead_atoms_and_keep_points_at_the_origin():
    mu = DiscreteMeasure(torch.tensor([[1.0, 0.0], [3.0, 0.0], [100.0, 100.0]]), torch.tensor([1.0, 1.0, 0.0]))
    assert_close(normalize(mu).points[:2], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert torch.equal(normalize(DiscreteMeasure(torch.full((1, 3), 7.0))).points, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="positive total mass"):
        normalize(mu.with_weights(torch.zeros(3)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomRotation((0.0, 0.0, 0.0)), "axis: expected three finite numbers"),
        (lambda: RandomRotation((1.0, 0.0)), "axis"),
        (lambda: RandomRotation(degrees=-1.0), "degrees: expected a finite number >= 0, got -1.0"),
        (lambda: RandomScaling(0.0, 1.0), "low: expected finite factors"),
        (lambda: RandomScaling(2.0, 1.0), "low=2.0 and high=1.0"),
        (lambda: RandomShift(-1.0), "size"),
        (lambda: Jitter(-1.0), "sigma"),
        (lambda: Jitter(0.1, -1.0), "clip"),
        (lambda: RandomSubsample(0), "n: expected a number of atoms >= 1, got 0"),
        (lambda: RandomRotation()(DiscreteMeasure(torch.zeros(3, 2))), "points in space, got dimension 2"),
        (lambda: RandomAffine()(DiscreteMeasure(torch.zeros(3, 3))), "points in the plane, got dimension 3"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
