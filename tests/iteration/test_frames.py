"""How deep a user's function lies: frames of the library between an entry point and what the user wrote."""

import sys
from pathlib import Path

import pytest
import torch

import ddeq
from ddeq import DiscreteMeasure, Functional, fixed_point, flow
from ddeq.flows import Euler, FisherRao, Heun, Langevin, Nesterov, NoiseInjection
from ddeq.solvers import Anderson, Auto, Broyden, Implicit, OneStep, Phantom, Picard, Unrolled

LIBRARY = str(Path(ddeq.__file__).parent)
MOST = 4


def frames_above(entry, within=None):
    """Frames of the library between the caller and its function ``entry``, wrappers of shape checks left out; ``within``: zero
    where this function of the library is not between them."""
    frame, between = sys._getframe(2), []
    while frame is not None:
        if frame.f_code.co_filename.startswith(LIBRARY):
            if frame.f_code.co_name == entry:
                return len(between) if within is None or within in between else 0
            between.append(frame.f_code.co_name)
        frame = frame.f_back
    raise AssertionError(f"{entry} is not above")


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), Auto()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("adjoint", [Implicit(), Phantom(2), OneStep()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("module", [False, True])
def test_between_fixed_point_and_the_map(solver, adjoint, module):
    depths, weight = [], torch.tensor(0.5, requires_grad=True)

    class Map(torch.nn.Module):
        def forward(self, mu, weight):
            depths.append(frames_above("fixed_point"))
            return mu.push_forward(lambda z: weight * z.sin() + 1)

    map = Map() if module else Map().forward
    fixed_point(map, DiscreteMeasure(torch.zeros(3, 2)), weight, solver=solver, adjoint=adjoint)
    assert len(depths) > 2
    assert max(depths) <= MOST


def test_between_fixed_point_and_a_map_that_is_recorded():
    depths, weight = [], torch.tensor(0.5, requires_grad=True)

    def map(mu, weight):
        depths.append(frames_above("fixed_point"))
        return mu.push_forward(lambda z: weight * z.sin() + 1)

    fixed_point(map, DiscreteMeasure(torch.zeros(3, 2)), weight, adjoint=Unrolled())
    assert max(depths) <= MOST


class Watching(Functional):
    """Notes how deep its gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.depths = []

    def forward(self, mu):
        return 0.5 * (mu.weights * mu.points.square().sum(-1)).sum(-1)

    def wasserstein_gradient(self, mu, x=None):
        self.depths.append(frames_above("flow", within="iterate"))
        return mu.points if x is None else x


@pytest.mark.parametrize(
    "options",
    [
        {"stepper": Euler(0.1)},
        {"stepper": Nesterov(0.1)},
        {"stepper": Heun(0.1)},
        {"noise": Langevin(0.1)},
        {"noise": NoiseInjection(0.1)},
        {"reaction": FisherRao(birth_death=True)},
    ],
    ids=str,
)
def test_between_flow_and_the_gradient(options):
    F = Watching()
    flow(F, DiscreteMeasure(torch.ones(3, 2)), steps=3, **options)
    assert sum(depth > 0 for depth in F.depths) > 2
    assert max(F.depths) <= MOST
