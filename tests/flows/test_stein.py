"""The Stein geometry: its velocity by parts, its dissipation, and a posterior."""

import pytest
import torch
from hypothesis import given
from landscapes import DOUBLE, FEW, cloud, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import AdaptiveEuler, Euler, Heun, Nesterov, Proximal, Stein, stein
from ddeq.functionals import KSD, MMD, Entropy, KLDivergence, PotentialEnergy
from ddeq.iteration import Stop
from ddeq.kernels import IMQ, Gaussian, Matern, Polynomial, median_bandwidth
from ddeq.testing import assert_close, check_flow
from ddeq.testing.strategies import measures

COVARIANCE = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=DOUBLE)
MEAN = torch.tensor([1.0, -1.0], dtype=DOUBLE)


def log_density(x):
    return -0.5 * ((x - MEAN) @ torch.linalg.inv(COVARIANCE) * (x - MEAN)).sum(-1)


@pytest.mark.theorem("T17")
def test_velocity_of_svgd():
    """Against the sum of Liu and Wang, written out."""
    mu, h = cloud(6, batch=(2,)).with_weights(torch.rand(2, 6, dtype=DOUBLE)), 0.9
    x = mu.points
    difference = x.unsqueeze(-2) - x.unsqueeze(-3)  # i, j
    k = (-difference.square().sum(-1) / (2 * h**2)).exp() * mu.weights.unsqueeze(-2)
    score = -(x - MEAN) @ torch.linalg.inv(COVARIANCE)
    expected = k @ score + (k.unsqueeze(-1) * difference / h**2).sum(-2)
    assert_close(Stein(Gaussian(h)).velocity(KLDivergence(log_density, 0.3), mu), expected)


@pytest.mark.theorem("T17")
def test_entropy_is_found_by_how_a_functional_is_put_together():
    mu, geometry = cloud(5), Stein(Gaussian(0.9))
    V = PotentialEnergy(lambda x: -log_density(x))
    c = torch.tensor(0.5, dtype=DOUBLE)
    parts = V + 0.5 * Entropy(0.3)
    for other in (
        0.5 * Entropy(0.7) + V,
        c * Entropy(0.3) + V,
        0.5 * KLDivergence(log_density, 0.1) + 0.5 * V,
        0.25 * (2 * parts) + 0.5 * parts,
    ):
        assert_close(geometry.velocity(other, mu), geometry.velocity(parts, mu))
    without = geometry.velocity(V, mu)
    assert (without - geometry.velocity(parts, mu)).norm() > 0.1


@pytest.mark.parametrize("kernel", [Polynomial(2), Gaussian(1.0)], ids=repr)
def test_repulsion_of_any_kernel(kernel):
    """Derivatives in the second argument, against finite differences of the kernel matrix."""
    mu, eps = cloud(4), 1e-6
    velocity = Stein(kernel).velocity(Entropy(0.5), mu)
    for c in range(2):
        step = eps * torch.eye(2, dtype=DOUBLE)[c]
        slope = (kernel(mu.points, mu.points + step) - kernel(mu.points, mu.points - step)) / (2 * eps)
        assert_close(velocity[:, c], slope @ mu.weights, rtol=1e-7)


@pytest.mark.theorem("T17")
@pytest.mark.parametrize("functional", [MMD(cloud(4, seed=3), Gaussian(1.0)), quadratic()], ids=["mmd", "potential"])
@pytest.mark.parametrize("kernel", [Gaussian(1.0), IMQ(1.0), Matern(2.5, 1.0)], ids=repr)
def test_energy_falls_at_the_rate_of_the_squared_norm(functional, kernel):
    step = 1e-6
    trajectory = flow(functional, cloud(5), stepper=Euler(step), geometry=Stein(kernel), steps=1)
    rate = (trajectory.energies[0] - trajectory.energies[1]) / step
    assert_close(trajectory.dissipation[0], rate, rtol=1e-4)
    assert (trajectory.dissipation >= 0).all()


@pytest.mark.theorem("T17")
def test_divergence_falls_at_the_rate_of_the_stein_discrepancy():
    F, kernel, mu = KLDivergence(log_density, 0.3), Gaussian(1.3), cloud(7)
    score = PotentialEnergy(log_density)
    discrepancy = KSD(lambda x: score.wasserstein_gradient(DiscreteMeasure(x)), kernel)
    assert_close(Stein(kernel).dissipation(F, mu), 2 * discrepancy(mu))
    assert_close(Stein(kernel).dissipation(3.0 * F, mu), 9 * 2 * discrepancy(mu))


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("geometry", [Stein(), Stein(Gaussian(0.8)), Stein(IMQ)], ids=["median", "fixed", "imq"])
@FEW
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_stein_flows_see_the_measure_alone(geometry, mu):
    check_flow(KLDivergence(log_density, 0.5), mu, geometry=geometry, stepper=Euler(0.1), steps=3, descends=False)


def test_the_median_is_that_of_each_measure():
    mu = cloud(5, batch=(2,)).push_forward(lambda x: x * torch.tensor([1.0, 3.0], dtype=DOUBLE)[:, None, None])
    F = KLDivergence(log_density, 0.3)
    for i in range(2):
        assert_close(Stein().velocity(F, mu)[i], Stein(Gaussian(median_bandwidth(mu[i]))).velocity(F, mu[i]))
    assert torch.isfinite(Stein().velocity(F, DiscreteMeasure(torch.zeros(3, 2, dtype=DOUBLE)))).all()


def test_the_kernel_is_found_once_for_each_measure(monkeypatch):
    """A step's velocity finds it, and so does each record; descent along a known velocity does not."""
    found = []

    def counted(mu, **options):
        found.append(mu.points)
        return median_bandwidth(mu, **options)

    monkeypatch.setattr(stein, "median_bandwidth", counted)
    divergence, mmd = KLDivergence(log_density, 0.3), MMD(cloud(4, seed=3), Gaussian(1.0))
    velocities, records = 6, 2
    for functional, stepper in ((divergence, Euler(0.1)), (mmd, Euler(0.1)), (mmd, AdaptiveEuler())):
        found.clear()
        flow(functional, cloud(5), geometry=Stein(), stepper=stepper, steps=5, record=5)
        assert len(found) == velocities + records
    here = Stein().at(cloud(5))
    found.clear()
    here.velocity(divergence, cloud(5)), here.mobility(cloud(5)), here.dissipation(divergence, cloud(5))
    assert not found
    assert Stein(here.kernel).at(cloud(6)).kernel is here.kernel


@pytest.mark.theorem("T17")
@pytest.mark.parametrize(
    ("stepper", "steps"),
    [(Euler(0.5), 400), (Heun(0.5), 200), (Nesterov(0.2), 200), (AdaptiveEuler(), 150)],
    ids=lambda p: type(p).__name__,
)
def test_a_posterior(stepper, steps):
    """Its mean, and its covariance up to the known underestimate of few atoms."""
    F = KLDivergence(log_density, 0.3)
    trajectory = flow(F, cloud(100), geometry=Stein(), stepper=stepper, steps=steps, record=steps)
    assert_close(trajectory.measure.mean(), MEAN, rtol=0.03)
    assert_close(trajectory.measure.covariance(), COVARIANCE, rtol=0.1)
    assert trajectory.dissipation[-1] < 1e-2 * trajectory.dissipation[0]


def test_proximal_steps_of_a_divergence():
    """They take the energy itself, so the density is that of the blob, whose bias widens the bandwidth squared."""
    F = KLDivergence(log_density, 0.5)
    trajectory = flow(F, cloud(30), geometry=Stein(Gaussian(1.5)), stepper=Proximal(1.0), steps=15, record=1)
    assert (trajectory.energies.diff() <= 0).all()
    assert_close(trajectory.measure.mean(), MEAN, rtol=0.2)


@pytest.mark.unchecked
@pytest.mark.parametrize("kernel", ["gaussian", 1.0, lambda h: h])
def test_bad_kernels(kernel):
    with pytest.raises(ValueError, match="kernel"):
        Stein(kernel)


@pytest.mark.theorem("T10")
@pytest.mark.parametrize(("kernel", "mass"), [(3e4 * Gaussian(1.0), 1.0), (Gaussian(1.0), 3e4)], ids=["kernel", "mass"])
def test_adaptive_steps_take_the_slope_of_the_geometry(kernel, mass):
    """Where the velocity is long in L2(mu) and short in the space of the kernel."""
    mu = DiscreteMeasure(torch.tensor([[1.0], [2.0]], dtype=DOUBLE)) * mass
    trajectory = flow(quadratic(), mu, stepper=AdaptiveEuler(), geometry=Stein(kernel), stop=Stop(rtol=1e-3, max_steps=300))
    assert trajectory.converged
