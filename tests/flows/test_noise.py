"""Noise: known laws, the cure for a stuck flow, and randomness that can be repeated."""

import pytest
import torch
from hypothesis import given
from landscapes import DOUBLE, FEW, cloud, quadratic

from ddeq import flow
from ddeq.flows import Euler, Heun, Langevin, Nesterov, NoiseInjection, Proximal, Stein
from ddeq.functionals import MMD, KLDivergence, PotentialEnergy
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close, check_flow
from ddeq.testing.strategies import measures
from proofs_checks.test_t14_known_flows import heat_variance, ou_mean, ou_variance, ula_stationary_variance

MANY = 40_000


def seeded(seed=0):
    """Not the seeds of the clouds: noise that repeats their draws is not independent of them."""
    return torch.Generator().manual_seed(1000 + seed)


@pytest.mark.theorem("T14")
@pytest.mark.parametrize("stepper", [Euler(0.01), Heun(0.01), Proximal(0.01)], ids=repr)
def test_ornstein_uhlenbeck(stepper):
    """Mean and variance at a time, within four standard errors plus the error of the step."""
    stiffness, time = 1.5, 0.5
    start = cloud(MANY, 1, scale=0.5, shift=2.0)
    end = flow(quadratic(stiffness), start, stepper=stepper, steps=50, noise=Langevin(1.0), generator=seeded(), record=50).measure
    variance = float(ou_variance(time, 0.25, stiffness))
    assert end.mean().item() == pytest.approx(float(ou_mean(time, 2.0, stiffness)), abs=4 * (variance / MANY) ** 0.5 + 0.02)
    assert end.covariance().item() == pytest.approx(variance, rel=4 * (2 / MANY) ** 0.5 + 0.02)


@pytest.mark.theorem("T14")
def test_heat():
    flat = PotentialEnergy(lambda x: 0.0 * x[..., 0])
    end = flow(flat, cloud(MANY, 1), stepper=Euler(0.1), steps=10, noise=Langevin(0.7), generator=seeded(), record=10).measure
    assert end.covariance().item() == pytest.approx(float(heat_variance(0.7, 1.0)), rel=4 * (2 / MANY) ** 0.5)


@pytest.mark.theorem("T14")
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_the_bias_of_langevin_steps_is_the_known_one(tau):
    stiffness = 1.5
    end = flow(
        quadratic(stiffness),
        cloud(MANY, 1),
        stepper=Euler(tau),
        steps=int(10 / tau),
        noise=Langevin(1.0),
        generator=seeded(),
        record=99,
    ).measure
    expected = float(ula_stationary_variance(stiffness, tau))
    assert end.covariance().item() == pytest.approx(expected, rel=4 * (2 / MANY) ** 0.5)
    assert abs(expected - 1 / stiffness) > 8 * (2 / MANY) ** 0.5 / stiffness  # and it can be told from none


@pytest.mark.theorem("T17")
def test_langevin_and_svgd_find_the_same_posterior():
    covariance = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=DOUBLE)
    mean = torch.tensor([1.0, -1.0], dtype=DOUBLE)

    def log_density(x):
        return -0.5 * ((x - mean) @ torch.linalg.inv(covariance) * (x - mean)).sum(-1)

    noisy = flow(
        PotentialEnergy(lambda x: -log_density(x)),
        cloud(MANY),
        stepper=Euler(0.02),
        steps=400,
        noise=Langevin(1.0),
        generator=seeded(),
        record=400,
    ).measure
    stein = flow(KLDivergence(log_density, 0.3), cloud(150), stepper=Euler(0.5), geometry=Stein(), steps=400, record=400).measure
    for mu, error in ((noisy, 0.03), (stein, 0.08)):
        assert_close(mu.mean(), mean, rtol=error)
        assert_close(mu.covariance(), covariance, rtol=error)


@pytest.mark.theorem("T17")
def test_noise_cures_a_stuck_flow():
    """A target out of reach of the kernel: a plain flow hardly starts, and noise injection brings it there."""
    away = torch.tensor([6.0, 0.0], dtype=DOUBLE)
    F = MMD(cloud(20, seed=1, scale=0.5, shift=away), Gaussian(1.0))
    start, steps = cloud(20, scale=0.5), 3000
    options = {"stepper": Euler(0.5), "steps": steps, "record": steps}
    plain = flow(F, start, **options)
    noise = NoiseInjection(lambda k: 6.0 * max(0.0, 1 - k / (0.8 * steps)))
    cured = flow(F, start, noise=noise, generator=seeded(1), **options)
    assert (plain.measure.mean() - away).norm() > 4.0
    assert (cured.measure.mean() - away).norm() < 1.5  # one atom in twenty may be left on the way
    assert cured.energies[-1] < 0.2 * plain.energies[-1]


@pytest.mark.theorem("T17")
def test_injected_noise_widens_the_kernel():
    """The mean velocity is that of a wider kernel."""
    h, beta, draws = 1.0, 1.5, 100_000
    nu, mu = cloud(1, seed=1, shift=2.0), cloud(1)
    wide = (h**2 / (h**2 + beta**2)) * Gaussian((h**2 + beta**2) ** 0.5)  # to the power d / 2, d = 2
    many = mu.expand(draws)
    moved = flow(MMD(nu, Gaussian(h)), many, stepper=Euler(1.0), steps=1, noise=NoiseInjection(beta), generator=seeded()).measure
    velocity = (moved.points - many.points).mean(0)
    expected = flow(MMD(nu, wide), mu, stepper=Euler(1.0), steps=1).measure.points - mu.points
    assert_close(velocity, expected, rtol=0.05)


@pytest.mark.parametrize("noise", [Langevin(0.3), NoiseInjection(0.3)], ids=repr)
@FEW
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_noisy_flows_are_equivariant_under_permuted_noise(noise, mu):
    check_flow(MMD(cloud(4), Gaussian(1.0)), mu, stepper=Heun(0.1), steps=3, noise=noise)


@pytest.mark.parametrize("noise", [Langevin(0.3), NoiseInjection(lambda k: 0.3 / (k + 1))], ids=["langevin", "injection"])
def test_the_same_generator_gives_the_same_path(noise):
    options = {"stepper": Euler(0.1), "steps": 5, "noise": noise}
    a, b, c = (flow(quadratic(), cloud(4), generator=seeded(s), **options).measures.points for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a[-1], c[-1])
    torch.manual_seed(5)
    first = flow(quadratic(), cloud(4), **options).measures.points
    torch.manual_seed(5)
    assert torch.equal(first, flow(quadratic(), cloud(4), **options).measures.points)


def test_noise_of_one_sample_does_not_depend_on_others_that_stop():
    start = cloud(3, batch=(3,)).push_forward(lambda x: x * torch.tensor([1.0, 1e-3, 5.0], dtype=DOUBLE)[:, None, None])
    F, options = MMD(cloud(3, batch=(3,)), Gaussian(3.0)), {"stepper": Euler(1.0), "noise": NoiseInjection(0.01)}
    left = flow(F, start, stop=Stop(rtol=0.2, max_steps=30), generator=seeded(), **options)
    F.removable = False
    frozen = flow(F, start, stop=Stop(rtol=0.2, max_steps=30), generator=seeded(), **options)
    assert len(set(left.steps.tolist())) > 1
    assert_close(left.measure.points, frozen.measure.points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_temperatures_for_each_sample(dtype):
    flat = PotentialEnergy(lambda x: 0.0 * x[..., 0])
    start = cloud(2000, 1, batch=(3,), scale=0.0).to(dtype)
    temperature = torch.tensor([0.0, 0.5, 2.0])
    end = flow(flat, start, stepper=Euler(1.0), steps=1, noise=Langevin(temperature), generator=seeded()).measure
    assert end.dtype == dtype
    assert end.covariance().flatten().tolist() == pytest.approx([0.0, 1.0, 4.0], rel=0.15)


def test_momentum_takes_injected_noise():
    trajectory = flow(
        MMD(cloud(4), Gaussian(1.0)), cloud(5), stepper=Nesterov(0.2), steps=5, noise=NoiseInjection(0.1), generator=seeded()
    )
    assert torch.isfinite(trajectory.measure.points).all()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Langevin(-1.0), "temperature"),
        (lambda: NoiseInjection(float("nan")), "schedule"),
        (lambda: flow(quadratic(), cloud(2), steps=1, noise=Langevin(lambda k: -1.0)), "temperature"),
        (lambda: flow(quadratic(), cloud(2), steps=1, noise=Langevin(torch.ones(2))), "temperature"),
        (lambda: flow(quadratic(), cloud(2), steps=1, noise=Langevin(), generator=0), "generator"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
