"""Reactions: mass is conserved, no weight goes negative, and mass reaches what atoms cannot."""

import pytest
import torch
from hypothesis import given
from landscapes import DOUBLE, FEW, cloud, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import AdaptiveEuler, Euler, FisherRao, Heun, Langevin, Nesterov, Proximal, Stein
from ddeq.flows.reaction import jump
from ddeq.functionals import MMD, KLDivergence, PotentialEnergy
from ddeq.iteration import Status, Stop
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close, check_flow
from ddeq.testing.strategies import measures

NICE = {"offsets": (0.0,), "scales": (1.0,)}
TARGET = cloud(4, seed=3, shift=0.7)
STEEP = PotentialEnergy(lambda x: 1e4 * x.square().sum(-1))


@pytest.mark.theorem("T17")
@given(mu=measures(**NICE, normalized=False))
def test_mass_is_conserved_and_no_weight_is_negative(mu):
    """Also where an explicit step of the weights would overshoot by far."""
    end = flow(STEEP, mu, stepper=Euler(1e-9), steps=3, reaction=FisherRao(1e9)).measure
    assert_close(end.mass(), mu.mass())
    assert (end.weights >= 0).all()
    assert torch.equal(end.weights[~mu.support()], torch.zeros_like(end.weights[~mu.support()]))


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("stepper", [Euler(0.1), Heun(0.1), Nesterov(0.1), AdaptiveEuler(0.2)], ids=repr)
@FEW
@given(mu=measures(**NICE))
def test_reactions_see_the_measure_alone(stepper, mu):
    units = 1e8 if stepper.descends else 2e4
    check_flow(
        MMD(TARGET, Gaussian(1.0)), mu, stepper=stepper, reaction=FisherRao(2.0), steps=3, descends=stepper.descends, units=units
    )


@pytest.mark.theorem("T17")
@pytest.mark.parametrize("geometry", [None, Stein(Gaussian(1.0))], ids=["wasserstein", "stein"])
def test_energy_falls_at_the_rate_of_both(geometry):
    step, options = 1e-6, {} if geometry is None else {"geometry": geometry}
    F = MMD(TARGET, Gaussian(1.0))
    mu = cloud(5).with_weights(torch.rand(5, dtype=DOUBLE) / 3)
    trajectory = flow(F, mu, stepper=Euler(step), steps=1, reaction=FisherRao(3.0), **options)
    assert_close(trajectory.dissipation[0], (trajectory.energies[0] - trajectory.energies[1]) / step, rtol=1e-4)
    without = flow(F, mu, stepper=Euler(step), steps=1, **options).dissipation[0]
    variation = F.first_variation(mu)
    centred = variation - (mu.weights * variation).sum() / mu.mass()
    assert_close(trajectory.dissipation[0] - without, 3.0 * (mu.weights * centred.square()).sum())


@pytest.mark.theorem("T17")
def test_two_masses_in_closed_form():
    """In a landscape that pulls no atom the logarithm of the ratio of two masses changes at the difference of the heights."""
    steps = PotentialEnergy(lambda x: torch.floor(x[..., 0]))
    mu = DiscreteMeasure(torch.tensor([[0.5], [2.5]], dtype=DOUBLE), torch.tensor([0.3, 0.9], dtype=DOUBLE))
    w = flow(steps, mu, stepper=Euler(0.1), steps=7, reaction=FisherRao(0.4)).measure.weights
    assert (w[1] / w[0]).log().item() == pytest.approx(torch.tensor(3.0).log().item() - 0.4 * 2.0 * 0.7)
    assert w.sum().item() == pytest.approx(1.2)


@pytest.mark.theorem("T17")
@pytest.mark.parametrize("birth_death", [False, True], ids=["weights", "births"])
def test_mass_reaches_a_mode_that_atoms_cannot(birth_death):
    """Two modes, most atoms at one of them: transport alone leaves too much mass there."""
    nu = cloud(30, seed=1, scale=0.3) + cloud(30, seed=2, scale=0.3, shift=4.0)
    F = MMD(0.5 * nu, Gaussian(0.7))
    mu = 0.9 * cloud(45, scale=0.3) + 0.1 * cloud(5, seed=4, scale=0.3, shift=4.0)
    options = {"stepper": Euler(0.2), "steps": 600, "record": 600}
    plain = flow(F, mu, **options).energies[-1]
    reaction = FisherRao(5.0, birth_death=birth_death)
    cured = flow(F, mu, reaction=reaction, generator=torch.Generator().manual_seed(0), **options)
    assert plain > 0.02
    assert cured.energies[-1] < 0.05 * plain
    if birth_death:
        assert torch.equal(cured.measure.weights, mu.weights)


@pytest.mark.theorem("T17")
def test_births_and_deaths_are_right_on_average():
    """The expected measure has the weights of the reaction, for weights of all kinds."""
    mu = DiscreteMeasure(torch.arange(5, dtype=DOUBLE).unsqueeze(-1), torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3], dtype=DOUBLE))
    wanted = torch.tensor([0.25, 0.15, 0.0, 0.35, 0.25], dtype=DOUBLE)
    many = 20_000
    batch = mu.expand(many)
    g = torch.Generator().manual_seed(0)
    drawn = jump(batch, wanted.expand(many, 5), lambda: torch.rand(many, 5, 2, generator=g, dtype=DOUBLE))
    found = torch.stack([(drawn.weights * (drawn.points[..., 0] == k)).sum(-1).mean() for k in range(5)])
    assert_close(found, wanted, rtol=0.02)
    stays = (drawn.points == batch.points).double().mean(0).squeeze(-1)
    assert stays.tolist() == pytest.approx([1.0, 0.375, 1.0, 1.0, 0.25 / 0.3], abs=0.02)  # and not one jump too many


@FEW
@given(mu=measures(**NICE))
def test_births_are_equivariant_under_permuted_noise(mu):
    reaction = FisherRao(20.0, birth_death=True)
    check_flow(MMD(TARGET, Gaussian(1.0)), mu, stepper=Euler(0.1), steps=3, reaction=reaction)


@pytest.mark.slow
@pytest.mark.theorem("T17")
def test_births_with_langevin_noise_sample_a_bimodal_density():
    """A barrier of 8 that Langevin noise does not cross in this time; the reaction sees the entropy too."""

    def log_density(x):
        return -8.0 * (x[..., 0].square() - 1).square()

    kl = KLDivergence(log_density, 0.2)
    start = 0.9 * cloud(450, 1, scale=0.1, shift=1.0) + 0.1 * cloud(50, 1, scale=0.1, shift=-1.0)
    start = start.resample(500, generator=torch.Generator().manual_seed(0))
    V, options = PotentialEnergy(lambda x: -log_density(x)), {"stepper": Euler(0.005), "steps": 400, "record": 400}

    def left(mu):
        return float((mu.weights * (mu.points[:, 0] < 0)).sum())

    g = torch.Generator().manual_seed(1)
    assert left(start) < 0.2
    assert left(flow(V, start, noise=Langevin(1.0), generator=g, **options).measure) < 0.3
    reaction = FisherRao(2.0, birth_death=True, functional=kl)
    assert left(flow(V, start, noise=Langevin(1.0), reaction=reaction, generator=g, **options).measure) == pytest.approx(
        0.5, abs=0.1
    )


def test_steppers_that_promise_descent_keep_their_promise():
    mu = cloud(6).with_weights(torch.rand(6, dtype=DOUBLE) / 3)
    F = MMD(TARGET, Gaussian(0.5)) + 3.0 * quadratic()
    for stepper in (AdaptiveEuler(), Proximal(0.5)):
        energies = flow(F, mu, stepper=stepper, steps=8, record=1, reaction=FisherRao(1e3)).energies
        assert (energies.diff() <= 0).all()


def test_stopping_sees_the_reaction():
    """Where atoms stand still but masses do not, the flow has not converged."""
    steps = PotentialEnergy(lambda x: torch.floor(x[..., 0]))
    mu = DiscreteMeasure(torch.tensor([[0.5], [1.5]], dtype=DOUBLE))
    trajectory = flow(steps, mu, stepper=Euler(0.1), stop=Stop(rtol=0.1, max_steps=200), reaction=FisherRao(1.0))
    assert trajectory.status.item() == Status.CONVERGED
    assert trajectory.steps.item() > 10
    assert trajectory.measure.weights[1] < 0.02


def test_gradients_reach_weights_and_rates():
    rate = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    weights = (torch.rand(3, dtype=DOUBLE) + 0.2).requires_grad_()

    def end(rate, weights):
        mu = DiscreteMeasure(cloud(3).points, weights)
        return flow(MMD(TARGET, Gaussian(1.0)), mu, stepper=Euler(0.1), steps=2, reaction=FisherRao(rate)).measure.weights

    assert torch.autograd.gradcheck(end, (rate, weights))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FisherRao(-1.0), "rate"),
        (lambda: FisherRao(1.0, birth_death="yes"), "birth_death"),
        (lambda: FisherRao(1.0, functional=lambda mu: 0), "functional"),
        (lambda: flow(quadratic(), 0.0 * cloud(2), steps=1, reaction=FisherRao()), "mu0: .*mass"),
        (lambda: flow(quadratic(), cloud(2), steps=1, reaction=0.3), "reaction"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_reaction_with_its_own_energy_descends_that_one():
    """Implicit steps with noise: the reaction is not held up by the energy of the flow."""
    kl = KLDivergence(lambda x: -0.5 * x.square().sum(-1), 0.3)
    mu = DiscreteMeasure(torch.tensor([[0.0], [2.0]], dtype=DOUBLE))
    g = torch.Generator().manual_seed(0)
    end = flow(
        quadratic(),
        mu,
        stepper=Proximal(0.01),
        steps=5,
        noise=Langevin(1e-6),
        reaction=FisherRao(5.0, functional=kl),
        generator=g,
    ).measure
    assert end.weights[0] > 1.2 * end.weights[1]
