"""Steps that go unwatched are those that a callback makes the flow look at: to the last bit, and where samples diverge too."""

import pytest
import torch

from ddeq import DiscreteMeasure, flow
from ddeq.flows import Euler, Heun, Langevin, Nesterov, NoiseInjection, Underdamped
from ddeq.functionals import MMD, PotentialEnergy
from ddeq.functionals.base import Functional
from ddeq.iteration import Status, Stop
from ddeq.kernels import Gaussian

GENERATOR = 5


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quartic(x):
    return 0.25 * x.square().sum(-1).square()


class Cliff(Functional):
    """Its velocity is bounded, and infinite beyond a place: the points are finite until they get there."""

    removable = True

    def forward(self, mu):
        return -(mu.weights * mu.points.sum(-1)).sum(-1)

    def wasserstein_gradient(self, mu, x=None):
        points = mu.points if x is None else x
        return torch.where(points < 5.0, -torch.ones_like(points), -torch.inf)


def both(functional, mu, steps, **options):
    """The flow as it is, and with every step looked at."""

    def run(callback):
        generator = torch.Generator().manual_seed(GENERATOR)
        return flow(functional, mu, steps=steps, generator=generator, callback=callback, **options)

    return run(None), run(lambda report: None)


def assert_same(a, b):
    for name in ("times", "energies", "dissipation", "status", "steps"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.measures.points, b.measures.points)
    assert a.remains.taken == b.remains.taken
    for x, y in zip(a.remains.memory, b.remains.memory, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    "options",
    [
        {"stepper": Euler(0.1)},
        {"stepper": Heun(0.1)},
        {"stepper": Nesterov(0.1)},
        {"stepper": Underdamped(0.1)},
        {"noise": Langevin(0.1)},
        {"noise": NoiseInjection(0.3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [0, 1, 63, 64, 65, 150])
def test_paths_are_the_same(options, steps):
    F = MMD(DiscreteMeasure(cloud(6, 2, seed=1)), Gaussian(1.0))
    assert_same(*both(F, DiscreteMeasure(cloud(2, 5, 2)), steps, record=7, **options))


@pytest.mark.parametrize("stepper", [Euler(0.1), Heun(0.1), Nesterov(0.05)], ids=str)
@pytest.mark.parametrize("removable", [False, True])
def test_samples_that_diverge_end_where_they_were_last_finite(stepper, removable):
    """At different steps: the start of the second is large, and the third explodes at once."""
    F = PotentialEnergy(lambda x: -quartic(x))
    F.removable = removable
    mu = DiscreteMeasure(torch.tensor([0.05, 0.5, 1.4, 30.0], dtype=torch.float64).reshape(4, 1, 1).expand(4, 2, 2).clone())
    found, watched = both(F, mu, 400, stepper=stepper, record=3)
    assert_same(found, watched)
    assert [Status(int(s)) for s in found.status][1:] == [Status.DIVERGED] * 3
    assert torch.isfinite(found.measures.points).all()
    assert len({int(s) for s in found.steps}) == 4


def test_an_infinite_velocity_is_seen():
    found, watched = both(Cliff(), DiscreteMeasure(torch.zeros(1, 1, dtype=torch.float64)), 100, stepper=Euler(0.1))
    assert_same(found, watched)
    assert Status(int(found.status)) is Status.DIVERGED
    assert float(found.measure.points) == pytest.approx(5.0, abs=0.1)


def test_a_single_measure_with_noise_diverges_as_it_would_watched():
    F = PotentialEnergy(lambda x: -quartic(x))
    mu = DiscreteMeasure(torch.full((3, 2), 0.4, dtype=torch.float64))
    found, watched = both(F, mu, 300, noise=Langevin(0.05), stepper=Euler(0.05), record=10)
    assert_same(found, watched)
    assert Status(int(found.status)) is Status.DIVERGED


def test_derivatives_are_those_of_watched_steps():
    nu = DiscreteMeasure(cloud(6, 2, seed=1))

    def gradient(callback):
        x = cloud(5, 2).requires_grad_()
        flow(MMD(nu, Gaussian(1.0)), DiscreteMeasure(x), steps=70, callback=callback).measure.points.sum().backward()
        return x.grad

    assert torch.equal(gradient(None), gradient(lambda report: None))


def test_a_stop_is_looked_at_in_every_step():
    mu, F = DiscreteMeasure(cloud(5, 2)), PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    found = flow(F, mu, Euler(0.5), stop=Stop(rtol=1e-3, max_steps=500))
    assert Status(int(found.status)) is Status.CONVERGED
    assert int(found.steps) == 10  # 2^-10 < 1e-3
