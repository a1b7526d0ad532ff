"""The median heuristic: a weighted median of distances, by whichever way it is found."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.kernels import bandwidth, median_bandwidth
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures

WAYS = {
    "as it chooses": {},
    "by rank or near the median of a sample": {"FEW_PAIRS": 0},
    "by rank or in blocks, by sorting": {"FEW_PAIRS": 0, "MOST_PAIRS": 40, "BLOCK": {"cpu": 7}},
    "in blocks, near the median of a sample": {"FEW_PAIRS": 0, "MOST_PAIRS": 40, "BLOCK": {"cpu": 30}, "SAMPLES": (1, 9)},
}
DOUBLE = torch.float64


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setattr(bandwidth, name, value)


def assert_median(h, mu, nu):
    """Less than half of the mass of all pairs of different places is nearer than ``h``, and half is as near."""
    distance = torch.cdist(mu.points, nu.points, compute_mode="donot_use_mm_for_euclid_dist")
    mass = torch.outer(mu.weights, nu.weights).double() * (distance > 0)
    half, rounding = 0.5 * mass.sum(), 1e-9 * mass.sum()
    assert mass[distance < (1.0 - 1e-6) * h].sum() <= half + rounding
    assert mass[distance <= (1.0 + 1e-6) * h].sum() >= half - rounding


@pytest.mark.usefixtures("way")
@given(mu=measures(batch_shapes=((2,),)), nu=measures(batch_shapes=((2,),)), own=st.booleans())
def test_half_of_the_mass_is_nearer(mu, nu, own):
    medians = median_bandwidth(mu, None if own else nu, coincident=0.0)
    for h, m, other in zip(medians, mu, mu if own else nu, strict=True):
        assert_median(h, m, other)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("equal", [True, False], ids=["equal weights", "unequal"])
@pytest.mark.parametrize("dim", [2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_of_many_points(equal, dim, dtype):
    g = torch.Generator().manual_seed(dim)
    x, y = torch.randn(90, dim, generator=g, dtype=dtype), torch.randn(80, dim, generator=g, dtype=dtype)
    mu = DiscreteMeasure(x, None if equal else torch.rand(90, generator=g, dtype=dtype) ** 3)
    if equal:
        assert_close(median_bandwidth(mu), torch.pdist(x).median())
    assert_median(median_bandwidth(mu), mu, mu)
    assert_median(median_bandwidth(mu, DiscreteMeasure(y)), mu, DiscreteMeasure(y))


@pytest.mark.theorem("T1")
@pytest.mark.usefixtures("way")
@given(mu=measures(min_atoms=3, batch_shapes=((2,),), offsets=(0.0,)))
def test_it_depends_on_the_measure_alone(mu):
    """Also where half of the mass is on either side of a pair exactly: the lower one of two is the median."""
    mu = mu.with_points(mu.points + torch.arange(mu.n)[:, None])  # not all in one place
    h = median_bandwidth(mu)
    assert h.shape == (2,)
    for name, same in same_measure(mu).items():
        assert_close(median_bandwidth(same), h, name, rtol=1e-9)
    for i in range(2):
        assert_close(median_bandwidth(mu[i]), h[i])


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_equal_weights_are_no_special_case(dtype):
    """100 atoms, found by rank; one of them split, in blocks: 4,950 pairs have a tie in the middle."""
    mu = DiscreteMeasure(torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=dtype))
    for same in (mu.split_atom(3, 0.3), mu.pad_atoms(4), mu.permute_atoms(torch.arange(99, -1, -1)), 3.0 * mu, mu + mu):
        assert_close(median_bandwidth(same), median_bandwidth(mu))


def test_a_sample_that_misleads_costs_a_second_look(monkeypatch):
    mu = DiscreteMeasure(torch.randn(2, 90, 2, dtype=DOUBLE), torch.rand(2, 90, dtype=DOUBLE))
    expected = median_bandwidth(mu)
    for size in range(1, 5):  # so few distances mislead in one of the two directions, or in none
        monkeypatch.setattr(bandwidth, "SAMPLES", (size, size))
        assert_close(median_bandwidth(mu), expected)
    monkeypatch.setattr(bandwidth, "CACHED", 0)
    for low, high in ((0.01, 0.02), (50.0, 60.0), (0.0, 0.01), (50.0, float("inf"))):
        monkeypatch.setattr(bandwidth, "_bracket", lambda *_, found=(low, high): found)
        assert_close(median_bandwidth(mu), expected)


@pytest.mark.parametrize("n", [10, 100])
def test_within_transforms_it_is_a_constant(n):
    mu = DiscreteMeasure(torch.randn(2, n, 2, dtype=DOUBLE))
    h = median_bandwidth(mu)

    def scaled(points):
        return (points * median_bandwidth(mu.with_points(points), coincident=1.0)[:, None, None]).sum()

    expected = h[:, None, None].expand(mu.points.shape)
    assert_close(torch.func.grad(scaled)(mu.points), expected)
    assert_close(torch.func.jvp(torch.func.grad(scaled), (mu.points,), (mu.points,))[0], expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mu.points, mu.points)
        tangent = torch.autograd.forward_ad.unpack_dual(scaled(dual)).tangent
    assert_close(tangent, (expected * mu.points).sum())
    assert_close(torch.vmap(lambda m: median_bandwidth(m, coincident=1.0))(mu), h)


def test_median_of_two_points_is_their_distance():
    mu = DiscreteMeasure(torch.tensor([[0.0], [3.0]]))
    assert median_bandwidth(mu).item() == pytest.approx(3.0)


@pytest.mark.usefixtures("way")
def test_all_in_one_place():
    mu = DiscreteMeasure(torch.zeros(3, 70, 1))
    with pytest.raises(ValueError, match="at least two"):
        median_bandwidth(mu)
    assert median_bandwidth(mu, coincident=2.0).tolist() == [2.0, 2.0, 2.0]
    one = DiscreteMeasure(torch.randn(70, 1), torch.eye(70)[0])
    assert median_bandwidth(one, coincident=2.0).item() == 2.0
    apart = mu.with_points(torch.cat([mu.points[:1], mu.points[:1], mu.points[:1] + torch.arange(70)[:, None]]))
    assert (median_bandwidth(apart, coincident=2.0)[:2] == 2.0).all()


def test_one_measure_serves_a_batch():
    g = torch.Generator().manual_seed(0)
    mu, nu = DiscreteMeasure(torch.randn(2, 5, 2, generator=g)), DiscreteMeasure(torch.randn(4, 2, generator=g))
    assert_close(median_bandwidth(mu, nu)[1], median_bandwidth(mu[1], nu))
