"""Every combination that the table allows runs; every other one is an error that says why."""

import itertools

import pytest
import torch
from landscapes import DOUBLE, cloud, quadratic

from ddeq import flow
from ddeq.flows import (
    LBFGS,
    AdaptiveEuler,
    Euler,
    FisherRao,
    Heun,
    Langevin,
    Nesterov,
    NoiseInjection,
    Optimizer,
    Proximal,
    Stein,
    Wasserstein,
)
from ddeq.functionals import MMD, KLDivergence
from ddeq.kernels import Gaussian

STEPPERS = [Euler(0.1), Heun(0.1), Nesterov(0.1), Optimizer(torch.optim.Adam), AdaptiveEuler(0.1), LBFGS(), Proximal(0.1)]
GEOMETRIES = [Wasserstein(), Stein()]
NOISES = [None, Langevin(0.1), NoiseInjection(0.1)]
F = MMD(cloud(4, seed=3), Gaussian(1.0)) + 0.3 * quadratic()
REACTIONS = [
    None,
    FisherRao(1.0, functional=F),
    FisherRao(1.0, functional=F, conserve=False),
    FisherRao(1.0, birth_death=True, functional=F),
]


def makes_sense(stepper, geometry, noise, reaction):
    """The table of `ddeq.flow`."""
    plain = isinstance(stepper, Euler | Heun)
    if isinstance(noise, Langevin) and not ((plain or isinstance(stepper, Proximal)) and isinstance(geometry, Wasserstein)):
        return False
    if isinstance(noise, NoiseInjection) and not (plain or isinstance(stepper, Nesterov | Optimizer)):
        return False
    if isinstance(stepper, LBFGS) and not isinstance(geometry, Wasserstein):
        return False
    return reaction is None or not reaction.birth_death or plain


@pytest.mark.parametrize(
    "parts", list(itertools.product(STEPPERS, GEOMETRIES, NOISES, REACTIONS)), ids=lambda p: "-".join(type(x).__name__ for x in p)
)
def test_combinations(parts):
    stepper, geometry, noise, reaction = parts
    options = {"stepper": stepper, "geometry": geometry, "noise": noise, "reaction": reaction}
    mu = cloud(4, batch=(2,))
    if not makes_sense(*parts):
        with pytest.raises(ValueError, match=r"^(noise|reaction|geometry): .*; |^(noise|reaction): .*: "):
            flow(F, mu, steps=1, **options)
        return
    g = torch.Generator().manual_seed(0)
    trajectory = flow(F, mu, steps=3, generator=g, **options)
    assert torch.isfinite(trajectory.measure.points).all()
    assert trajectory.energies.shape == trajectory.dissipation.shape == (4, 2)
    assert not torch.equal(trajectory.measure.points, mu.points)
    conserved = torch.allclose(trajectory.measure.mass(), mu.mass())
    assert conserved == (reaction is None or reaction.conserve)


@pytest.mark.theorem("T17")
def test_entropy_does_not_count_twice():
    kl = KLDivergence(lambda x: -0.5 * x.square().sum(-1), 0.3)
    with pytest.raises(ValueError, match="count twice"):
        flow(kl, cloud(3), steps=1, noise=Langevin(1.0))
    with pytest.raises(ValueError, match="count twice"):
        flow(quadratic() + 0.5 * kl, cloud(3), steps=1, noise=Langevin(1.0))
    with pytest.raises(ValueError, match="whole energy"):
        flow(quadratic(), cloud(3), steps=1, noise=Langevin(1.0), reaction=FisherRao(1.0))


def test_births_do_not_take_marks_along():
    mu = cloud(3).with_marks(torch.zeros(3, 1, dtype=DOUBLE))
    with pytest.raises(ValueError, match="marks"):
        flow(quadratic(), mu, steps=1, reaction=FisherRao(1.0, birth_death=True))
    assert flow(quadratic(), mu, steps=1, reaction=FisherRao(1.0)).measure.marks is not None
