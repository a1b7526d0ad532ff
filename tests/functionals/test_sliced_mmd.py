"""Sliced MMDs against the MMDs of which they are means, and to which they tend."""

import pytest
import torch
from generic import generic_measure as measure
from hypothesis import given

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD
from ddeq.functionals.sliced_mmd import SlicedMMD
from ddeq.kernels import Riesz
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures
from proofs_checks.test_t11_slicing import slicing_constant
from proofs_checks.test_t12_one_dimension import energy_distance

line = measures(dim=1, batch_shapes=((),), offsets=(0.0,), scales=(1.0,))


@pytest.mark.theorem("T11")
@pytest.mark.parametrize("r", [1.0, 0.5, 1.5])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_the_constant_makes_it_an_mmd(dim, r):
    mu, nu = measure(6, dim), measure(5, dim, seed=1)
    functional = SlicedMMD(nu, r, 5)
    slices = torch.stack(
        [
            MMD(nu.with_points(nu.points @ theta[:, None]), Riesz(r))(mu.with_points(mu.points @ theta[:, None]))
            for theta in functional.directions
        ]
    )
    assert_close(functional(mu), float(slicing_constant(dim, r)) * slices.mean())


@pytest.mark.theorem("T11")
@pytest.mark.parametrize(
    ("dim", "n", "in_value", "in_gradient"), [(2, 200, 1e-4, 2e-2), (3, 2000, 1e-3, 1e-2), (5, 4000, 1e-2, 5e-2)]
)
def test_many_directions_tend_to_the_mmd(dim, n, in_value, in_gradient):
    mu, nu = measure(20, dim), measure(15, dim, seed=1)
    nu = nu.with_points(nu.points + 0.5)
    sliced, whole = SlicedMMD(nu, 1.0, n), MMD(nu, Riesz(1.0))
    assert_close(sliced(mu), whole(mu), rtol=in_value)
    assert_close(sliced.wasserstein_gradient(mu), whole.wasserstein_gradient(mu), rtol=in_gradient)
    random = SlicedMMD(nu, 1.0, n, generator=torch.Generator().manual_seed(0))
    assert_close(random(mu), whole(mu), rtol=0.1)


@pytest.mark.parametrize("r", [1.0, 0.5, 1.5])
@given(
    mu=measures(dim=1, normalized=False, offsets=(0.0,)),
    nu=measures(dim=1, batch_shapes=((),), normalized=False, offsets=(0.0,)),
)
def test_on_the_line_it_is_the_mmd(r, mu, nu):
    """Masses may differ, and coincident atoms have gradient zero to each other."""
    sliced, whole = SlicedMMD(nu, r), MMD(nu, Riesz(r))
    size = torch.cat([mu.points.flatten(), nu.points.flatten()]).abs().max() + 1e-3
    assert_close(sliced(mu), whole(mu), scale=10 * size)
    assert_close(sliced.first_variation(mu), whole.first_variation(mu), scale=10 * size)
    if r >= 1:  # else gradients of nearly coincident atoms have no bound
        assert_close(sliced.wasserstein_gradient(mu), whole.wasserstein_gradient(mu), scale=10.0, units=1e4)


@pytest.mark.theorem("T12")
@given(mu=line, nu=line)
def test_energy_distance_and_velocity_on_the_line(mu, nu):
    a, b = (list(zip(m.weights.tolist(), m.points.squeeze(-1).tolist(), strict=True)) for m in (mu, nu))
    expected = torch.tensor(0.5 * float(energy_distance(a, b)), dtype=torch.float64)
    assert_close(SlicedMMD(nu)(mu), expected, scale=1.0)
    x, y = mu.points.squeeze(-1), nu.points.squeeze(-1)
    levels = [(m.weights * ((x[:, None] > z) + 0.5 * (x[:, None] == z))).sum(-1) for m, z in ((mu, x), (nu, y))]
    assert_close(-SlicedMMD(nu).wasserstein_gradient(mu).squeeze(-1), 2 * (levels[0] - levels[1]), scale=1.0)


@pytest.mark.theorem("T11")
def test_zero_on_its_target_to_the_last_digit():
    mu = measure(50, dim=3, dtype=torch.float32)
    assert SlicedMMD(mu)(mu).abs() < 1e-14
    shifted = mu.with_points(mu.points + 1e-5)
    assert SlicedMMD(mu)(shifted).item() == pytest.approx(SlicedMMD(mu).double()(shifted.to(torch.float64)).item(), rel=1e-6)


def test_large_measures_in_little_time():
    """A sum over pairs would hold 10^10 numbers."""
    mu, nu = (DiscreteMeasure(torch.randn(100_000, 3)) for _ in range(2))
    functional = SlicedMMD(nu.with_points(nu.points + 1.0), n_projections=2)
    assert functional.wasserstein_gradient(mu).shape == (100_000, 3)
    assert 0.4 < functional(mu).item() < 1.5


@pytest.mark.parametrize("of", ["points", "weights"])
def test_forward_mode_within_forward_mode(of):
    g = torch.Generator().manual_seed(0)
    F = SlicedMMD(DiscreteMeasure(torch.randn(5, 2, generator=g, dtype=torch.float64)), n_projections=3)
    points, weights = torch.randn(4, 2, generator=g, dtype=torch.float64), torch.rand(4, generator=g, dtype=torch.float64)

    def value(t):
        return F(DiscreteMeasure(t, weights) if of == "points" else DiscreteMeasure(points, t))

    at = points if of == "points" else weights
    assert_close(torch.func.jacfwd(torch.func.jacfwd(value))(at), torch.func.hessian(value)(at))
