"""`FisherRao(conserve=False)`: masses that grow and shrink as the first variation says, with its constant."""

import pytest
import torch
from hypothesis import given
from landscapes import DOUBLE, FEW, cloud, quadratic

from ddeq import DiscreteMeasure, Functional, flow
from ddeq.flows import AdaptiveEuler, Euler, FisherRao, Heun, Langevin, Stein
from ddeq.functionals import (
    KALE,
    KSD,
    MMD,
    Chamfer,
    DrMMD,
    Entropy,
    FixedPointDiscrepancy,
    InteractionEnergy,
    InternalEnergy,
    KLDivergence,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedMMD,
    SlicedWasserstein,
    Wasserstein,
)
from ddeq.iteration import Status, Stop
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close, check_flow, check_functional
from ddeq.testing.strategies import measures
from proofs_checks.test_t17_growth import growing_mass

NICE = {"offsets": (0.0,), "scales": (1.0,)}
TARGET = cloud(4, seed=3, shift=0.7)
F = MMD(TARGET, Gaussian(1.0))
GROWTH = FisherRao(2.0, conserve=False)

EXACT = [
    F,
    SinkhornDivergence(TARGET, blur=0.5, reach=1.0),
    KALE(TARGET, Gaussian(1.0), 0.1),
    DrMMD(TARGET, Gaussian(1.0), 0.1),
    KSD(lambda x: -x, Gaussian(1.0)),
    Entropy(0.4),
    InternalEnergy(lambda r: r**2, 0.5),
    quadratic(),
    InteractionEnergy(lambda z: z.square().sum(-1)),
    0.3 * Entropy(0.4) + quadratic(),
    FixedPointDiscrepancy(lambda mu: mu.push_forward(torch.sin), MMD),
]
UP_TO_A_CONSTANT = [
    MMD(TARGET),
    SinkhornDivergence(TARGET, blur=0.5),
    Wasserstein(TARGET),
    SlicedWasserstein(TARGET),
    SlicedMMD(TARGET),
    Chamfer(TARGET),
    KLDivergence(lambda x: -0.5 * x.square().sum(-1), 0.4),
    2.0 * SlicedMMD(TARGET) + quadratic(),
]


class Deconvolution(Functional):
    """Misfit of a signal, of which the measure is a blurred cause, plus a multiple of the mass."""

    removable = True

    def __init__(self, signal, width=0.06, penalty=1e-4):
        super().__init__()
        self.register_buffer("signal", signal)
        self.width, self.penalty = width, penalty

    def blurred(self, mu):
        places = torch.linspace(0, 1, self.signal.shape[-1], dtype=DOUBLE).unsqueeze(-1)
        bumps = torch.exp(-0.5 * ((places - mu.points[..., 0].unsqueeze(-2)) / self.width) ** 2)
        return (mu.weights.unsqueeze(-2) * bumps).sum(-1)

    def forward(self, mu):
        return 0.5 * (self.blurred(mu) - self.signal).square().mean(-1) + self.penalty * mu.mass()


@pytest.mark.theorem("T17")
def test_a_sparse_deconvolution_finds_its_spikes():
    spikes = DiscreteMeasure(torch.tensor([[0.2], [0.5], [0.75]], dtype=DOUBLE), torch.tensor([1.0, 0.6, 0.8], dtype=DOUBLE))
    F = Deconvolution(Deconvolution(torch.zeros(100, dtype=DOUBLE)).blurred(spikes))
    start = DiscreteMeasure(torch.linspace(0, 1, 40, dtype=DOUBLE).unsqueeze(-1), torch.full((40,), 0.02, dtype=DOUBLE))
    trajectory = flow(F, start, Euler(0.05), steps=1500, reaction=FisherRao(300.0, conserve=False), record=1500)
    end = trajectory.measure
    near = end.weights.unsqueeze(-1) * ((end.points - spikes.points[:, 0]).abs() < 0.1)
    masses = near.sum(0)
    places = (near * end.points).sum(0) / masses
    assert_close(places, spikes.points[:, 0], rtol=1e-3)
    assert_close(masses, spikes.weights - 1e-4 / 0.1063, rtol=2e-3)  # the penalty over the squared norm of a bump
    far = (end.points - spikes.points[:, 0]).abs().amin(-1) > 0.02
    assert end.weights[far].sum() < 0.01
    # The certificate of a minimiser: no place at which mass would lower the energy.
    grid = torch.linspace(0, 1, 300, dtype=DOUBLE).unsqueeze(-1)
    assert F.first_variation(end, grid).min() > -0.1 * F.penalty
    conserved = flow(F, start, Euler(0.05), steps=200, reaction=FisherRao(300.0), record=200)
    assert conserved.energies[-1] > 20 * trajectory.energies[-1]


@pytest.mark.theorem("T17")
def test_one_atom_grows_along_a_logistic_curve():
    class Misfit(Functional):
        def forward(self, mu):
            return 0.5 * (mu.mass() - 1.5).square() + 0.3 * mu.mass()

    mu = DiscreteMeasure(torch.zeros(1, 1, dtype=DOUBLE), torch.tensor([0.1], dtype=DOUBLE))
    errors = []
    for steps in (100, 200):
        trajectory = flow(Misfit(), mu, Euler(2.0 / steps), steps=steps, reaction=FisherRao(0.7, conserve=False), record=steps)
        errors.append(float(trajectory.measure.mass()) - float(growing_mass(1.2, 0.1, 0.7, 2.0)))
    assert abs(errors[1]) < 2e-3
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)  # of order one


@pytest.mark.theorem("T17")
@pytest.mark.parametrize("geometry", [None, Stein(Gaussian(1.0))], ids=["wasserstein", "stein"])
def test_energy_falls_at_the_rate_of_both(geometry):
    step, options = 1e-6, {} if geometry is None else {"geometry": geometry}
    mu = cloud(5).with_weights(torch.rand(5, dtype=DOUBLE) / 3)
    trajectory = flow(F, mu, Euler(step), steps=1, reaction=GROWTH, **options)
    assert_close(trajectory.dissipation[0], (trajectory.energies[0] - trajectory.energies[1]) / step, rtol=1e-4)
    without = flow(F, mu, Euler(step), steps=1, **options).dissipation[0]
    assert_close(trajectory.dissipation[0] - without, 2.0 * (mu.weights * F.first_variation(mu).square()).sum())


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("stepper", [Euler(0.1), Heun(0.1), AdaptiveEuler(0.2)], ids=repr)
@FEW
@given(mu=measures(**NICE, normalized=False))
def test_growth_sees_the_measure_alone(stepper, mu):
    units = 1e8 if stepper.descends else 2e4
    check_flow(F, mu, stepper=stepper, reaction=GROWTH, steps=3, descends=stepper.descends, units=units)


def test_a_batch_stops_where_neither_atoms_nor_masses_change():
    mu = cloud(5, batch=(3,)).with_weights(torch.rand(3, 5, dtype=DOUBLE))
    options = {"stepper": Euler(0.3), "stop": Stop(rtol=1e-2, max_steps=2000), "reaction": GROWTH}
    together = flow(F, mu, **options)
    assert (together.status == Status.CONVERGED).all()
    assert_close(together.measure.weights[1], flow(F, mu[1], **options).measure.weights, rtol=1e-8)
    squares = (together.measure.weights * F.first_variation(together.measure).square()).sum(-1)
    assert (squares <= 1e-4 * together.dissipation[0]).all()


def test_mass_that_grows_without_end_has_diverged():
    mu = cloud(2)
    end = flow(-quadratic(), mu, Euler(10.0), steps=50, reaction=FisherRao(10.0, conserve=False))
    assert end.status.item() == Status.DIVERGED
    assert torch.isfinite(end.measure.weights).all()


def test_gradients_reach_weights_and_rates():
    rate = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    weights = (torch.rand(3, dtype=DOUBLE) + 0.2).requires_grad_()

    def end(rate, weights):
        mu = DiscreteMeasure(cloud(3).points, weights)
        return flow(F, mu, Euler(0.1), steps=2, reaction=FisherRao(rate, conserve=False)).measure.weights

    assert torch.autograd.gradcheck(end, (rate, weights))


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("functional", EXACT, ids=lambda f: type(f).__name__)
def test_exact_variations_are_exact(functional):
    """The mass times the mean of the first variation is the rate at which the value grows with the mass."""
    assert functional.exact_variation
    mu = cloud(5, batch=(2,)).with_weights(torch.rand(2, 5, dtype=DOUBLE) + 0.1)
    h = 1e-5
    slope = (functional((1 + h) * mu) - functional((1 - h) * mu)) / (2 * h)
    assert_close((mu.weights * functional.first_variation(mu)).sum(-1), slope, rtol=1e-6, scale=1e-2)
    flow(functional, mu, Euler(1e-3), steps=2, reaction=GROWTH)


@pytest.mark.parametrize("functional", UP_TO_A_CONSTANT, ids=lambda f: type(f).__name__)
def test_energies_that_normalise_masses_are_refused(functional):
    assert not functional.exact_variation
    with pytest.raises(ValueError, match=r"reaction: mass is to grow .* up to a constant only.*FisherRao\(rate\)"):
        flow(functional, cloud(4), steps=1, reaction=GROWTH)


class Closed(PotentialEnergy):
    """A closed form of one's own, without its constant."""

    def first_variation(self, mu, x=None):
        return super().first_variation(mu, x) - 1.0

    def forward(self, mu):
        return super().forward(mu) + mu.mass()


def test_a_closed_form_is_up_to_a_constant_unless_it_says_so():
    check_functional(Closed(lambda x: x.square().sum(-1)))
    assert not Closed(lambda x: x).exact_variation

    class Claims(Closed):
        exact_variation = True

    with pytest.raises(AssertionError, match=r"T2 .*the constant differs"):
        check_functional(Claims(lambda x: x.square().sum(-1)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FisherRao(1.0, conserve=0), "conserve: expected True or False"),
        (lambda: FisherRao(1.0, birth_death=True, conserve=False), "conserve: births and deaths keep all weights"),
        (
            lambda: flow(quadratic(), cloud(3), steps=1, noise=Langevin(0.1), reaction=GROWTH),
            "an entropy that the reaction does not see",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
