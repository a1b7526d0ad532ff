"""Blob entropies against closed forms, and far from what an exponential can hold."""

import math

import pytest
import torch
from hypothesis import given
from scipy import integrate as quadrature

from ddeq import DiscreteMeasure
from ddeq.functionals import Entropy, InternalEnergy, KLDivergence, PotentialEnergy
from ddeq.kernels import IMQ, Gaussian, Laplace, Matern, Riesz
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures
from proofs_checks.test_t03_catalogue import blob_entropy_of_gaussian

DENSITIES = [Gaussian, Laplace, lambda h: Matern(1.5, h), lambda h: Matern(2.5, h), lambda h: IMQ(h, exponent=2.0)]


@pytest.mark.parametrize("kernel", DENSITIES, ids=lambda make: repr(make(1.0)))
@pytest.mark.parametrize("dim", [1, 2])
def test_smoothed_densities_integrate_to_one(kernel, dim):
    """Around a point mass, in polar coordinates."""
    F = Entropy(0.7, kernel=kernel)
    origin = DiscreteMeasure(torch.zeros(1, dim, dtype=torch.float64))

    def radial(r):
        x = torch.zeros(1, dim, dtype=torch.float64)
        x[0, 0] = r
        return F.log_density(origin, x).exp().item() * (2.0 if dim == 1 else 2 * math.pi * r)

    assert quadrature.quad(radial, 0, torch.inf)[0] == pytest.approx(1.0, rel=1e-7)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("h", [0.3, 1.0])
def test_entropy_of_a_gaussian(h):
    """A Gaussian by its quantiles: the closed form of the blob, from the proof."""
    levels = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    mu = DiscreteMeasure(2**0.5 * torch.erfinv(2 * levels - 1)[:, None])
    expected = float(blob_entropy_of_gaussian(1, h))
    assert Entropy(h)(mu).item() == pytest.approx(expected, abs=5e-3)


@given(mu=measures(offsets=(0.0, 1e4), scales=(1.0,)))
def test_entropy_is_an_internal_energy(mu):
    """U(r) = r log r."""
    as_internal = InternalEnergy(lambda r: r * r.log(), 0.5)
    assert_close(as_internal(mu), Entropy(0.5)(mu), scale=1.0)
    assert_close(as_internal.wasserstein_gradient(mu), Entropy(0.5).wasserstein_gradient(mu), scale=1.0, units=1e4)


@pytest.mark.theorem("T3")
def test_quadratic_internal_energy_is_an_interaction():
    """U(r) = r^2: the double integral of the kernel."""
    mu = DiscreteMeasure(torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64))
    kernel = Gaussian(0.8)(mu.points, mu.points) / (2 * math.pi * 0.8**2)
    assert_close(InternalEnergy(lambda r: r**2, 0.8)(mu), mu.weights @ kernel @ mu.weights)


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("F", [Entropy(0.1), InternalEnergy(lambda r: r * r.log(), 0.1)], ids=repr)
def test_far_probes_and_far_dead_atoms_do_no_harm(F):
    """A thousand bandwidths away the density is exp(-500000)."""
    mu = DiscreteMeasure(
        torch.tensor([[0.0], [0.1], [100.0]], dtype=torch.float64), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    )
    assert torch.isfinite(F(mu))
    far = torch.tensor([[100.0], [-200.0]], dtype=torch.float64)
    assert torch.isfinite(F.first_variation(mu, far)).all()
    assert torch.isfinite(F.wasserstein_gradient(mu)).all()
    if isinstance(F, Entropy):  # log density: -(x - 0.1)^2/(2 h^2) in the far field
        assert F.first_variation(mu, far)[0].item() == pytest.approx(-(99.9**2) / 0.02, rel=1e-3)
        assert F.wasserstein_gradient(mu, far)[0].item() == pytest.approx(-99.9 / 0.01, rel=1e-3)


@pytest.mark.theorem("T3")
def test_kl_is_entropy_plus_potential():
    mu = DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64))

    def log_density(x):
        return -0.5 * x.square().sum(-1)

    together = KLDivergence(log_density, 0.5)
    parts = Entropy(0.5) + PotentialEnergy(lambda x: -log_density(x))
    for method in ("forward", "first_variation", "wasserstein_gradient"):
        assert_close(getattr(together, method)(mu), getattr(parts, method)(mu))


@pytest.mark.theorem("T3")
def test_the_bias_of_the_blob():
    """The best Gaussian for the divergence to N(0, 1) has variance 1 - h^4: there the dilation's energy is stationary."""
    h = 0.5
    levels = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    normal = 2**0.5 * torch.erfinv(2 * levels - 1)[:, None]

    def slope(variance):
        s = torch.tensor(variance, dtype=torch.float64).sqrt().requires_grad_()
        value = KLDivergence(lambda x: -0.5 * x.square().sum(-1), h)(DiscreteMeasure(s * normal))
        return torch.autograd.grad(value, s)[0].item()

    assert slope(1 - h**4 - 0.02) < 0 < slope(1 - h**4 + 0.02 + h**6)


def test_a_bandwidth_learns():
    h = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    mu = DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda h: Entropy(h)(mu), (h,))
    assert torch.autograd.gradgradcheck(lambda h: Entropy(h).wasserstein_gradient(mu), (h,))
    assert [id(p) for p in Entropy(h).parameters()] == [id(h)]
    several = Entropy(torch.tensor([0.3, 0.6], dtype=torch.float64))
    batch = DiscreteMeasure(torch.randn(2, 4, 2, dtype=torch.float64))
    assert_close(several(batch)[1], Entropy(0.6)(batch[1]))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda mu: Entropy(0.0), "bandwidth: "),
        (lambda mu: Entropy(0.5, kernel=Gaussian(1.0)), "kernel: .*function from a bandwidth"),
        (lambda mu: Entropy(0.5, kernel=lambda h: Riesz(1.0))(mu), "not a density"),
        (lambda mu: Entropy(0.5, kernel=IMQ)(mu), "not a density in dimension 2"),
        (lambda mu: InternalEnergy(lambda r: r.sum(), 0.5)(mu), "density: "),
        (lambda mu: InternalEnergy(3.0, 0.5), "density: "),
        (lambda mu: KLDivergence(lambda x: x, 0.5)(mu), "potential: "),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(DiscreteMeasure(torch.randn(3, 2)))
