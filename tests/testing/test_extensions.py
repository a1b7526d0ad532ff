"""A user's own solver, geometry, adjoint, noise and reaction: each complete, short, and held to the laws of the library."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddeq import DiscreteMeasure, fixed_point, flow
from ddeq.flows import Euler, Geometry, Noise, Reaction
from ddeq.functionals import PotentialEnergy
from ddeq.iteration import Step, Stop
from ddeq.solvers import Adjoint, Solver
from ddeq.testing import check_adjoint, check_geometry, check_noise, check_reaction, check_solver

# --- a solver: frozen options, `init` and `step`; what a step remembers is its state, with an entry for each sample ---


@dataclass(frozen=True)
class HeavyBall(Solver):
    """Plain iteration with momentum: z + (Phi(z) - z) + momentum * (z - z before)."""

    momentum: float = 0.2

    def init(self, equation, at):
        return at.z  # where the last step came from: at the start, the start

    def step(self, equation, at, before):
        return Step(at.z + at.residual + self.momentum * (at.z - before), at.z)


def test_heavy_ball():
    check_solver(HeavyBall())


def test_heavy_ball_solves_and_is_differentiated():
    shift = torch.tensor(1.0, requires_grad=True)
    mu0 = DiscreteMeasure(torch.tensor([[0.0], [1.0]]))
    solution = fixed_point(lambda mu, b: mu.with_points(0.5 * mu.points + b), mu0, shift, solver=HeavyBall())
    solution.measure.points.sum().backward()
    assert solution.converged
    assert abs(shift.grad.item() - 4.0) < 1e-3  # each of two atoms lies at 2 * shift


# --- a geometry: how minus the Wasserstein gradient becomes a velocity ---


@dataclass(frozen=True)
class Preconditioned(Geometry):
    """Velocities are minus gradients times a constant positive definite matrix, ``(d, d)``."""

    matrix: Tensor

    def mobility(self, mu):
        matrix = self.matrix.to(mu.points)
        return lambda force: force @ matrix.mT


def test_preconditioned():
    check_geometry(Preconditioned(torch.tensor([[2.0, 0.5], [0.5, 1.0]])))


def test_preconditioned_makes_a_stiff_energy_easy():
    stiffness = torch.tensor([1.0, 100.0])
    F = PotentialEnergy(lambda x: 0.5 * (stiffness * x.square()).sum(-1))
    mu0 = DiscreteMeasure(torch.tensor([[1.0, 1.0], [-2.0, 0.5]]))
    end = flow(F, mu0, Euler(1.0), steps=1, geometry=Preconditioned(torch.diag(1.0 / stiffness))).measure
    assert end.points.abs().max() < 1e-6


# --- an adjoint: how gradients flow through the solve ---


@dataclass(frozen=True)
class Truncated(Adjoint):
    """Autograd records the solve, which takes at most ``steps`` steps."""

    steps: int = 20

    records: ClassVar[bool] = True

    def solve(self, equation, run, stop):
        return run(equation, replace(stop, max_steps=min(self.steps, stop.max_steps)))


def test_truncated():
    check_adjoint(Truncated(100))


def test_truncated_takes_so_many_steps():
    mu0 = DiscreteMeasure(torch.zeros(1, 1))
    b = torch.tensor(1.0, requires_grad=True)
    options = {"solver": HeavyBall(0.0), "stop": Stop(rtol=1e-9), "adjoint": Truncated(3)}
    solution = fixed_point(lambda mu, b: mu.with_points(0.5 * mu.points + b), mu0, b, **options)
    (gradient,) = torch.autograd.grad(solution.measure.points.squeeze(), b)
    assert solution.steps.item() == 3
    assert gradient.item() == 1.75  # 1 + 1/2 + 1/4


# --- a noise: all random numbers come from `draw` ---


@dataclass(frozen=True)
class Shake(Noise):
    """Kicks in random directions after each step, whose length falls like 1 / (number of the step + 1)."""

    length: float = 0.1

    def kick(self, equation, draw, duration, step):
        return self.length / (step + 1) * torch.nn.functional.normalize(draw(), dim=-1)


def test_shake():
    check_noise(Shake(), zero=Shake(0.0))


# --- a reaction: how weights change, and at what rate the energy falls by that ---


@dataclass(frozen=True)
class MultiplicativeWeights(Reaction):
    """Weights are multiplied by exp(-rate * time * first variation) and normalised, so that the mass stays."""

    rate: float = 1.0

    def react(self, equation, mu, duration, step):
        time = torch.as_tensor(duration, dtype=mu.dtype, device=mu.device).unsqueeze(-1)  # one number, or one for each sample
        variation = self.variation(equation, mu)
        grown = mu.weights * torch.exp(-self.rate * time * (variation - variation.amin(-1, keepdim=True)))
        return grown * (mu.mass() / grown.sum(-1)).unsqueeze(-1)

    def dissipation(self, equation, mu, step):
        variation = self.variation(equation, mu)
        mean = (mu.weights * variation).sum(-1) / mu.mass()
        return self.rate * (mu.weights * (variation - mean.unsqueeze(-1)).square()).sum(-1)

    def variation(self, equation, mu):
        """The first variation; atoms of mass zero, wherever they lie, get the largest one of the others."""
        variation = self.energy(equation).first_variation(mu)
        largest = torch.where(mu.support(), variation, -torch.inf).amax(-1, keepdim=True)
        return torch.where(mu.support(), variation, largest)


def test_multiplicative_weights():
    check_reaction(MultiplicativeWeights())


def test_multiplicative_weights_move_mass_downhill():
    F = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    mu0 = DiscreteMeasure(torch.tensor([[0.0], [2.0]]))
    end = flow(F, mu0, Euler(0.1), steps=10, reaction=MultiplicativeWeights()).measure
    assert end.weights[0] > 0.6
    assert torch.isclose(end.mass(), torch.tensor(1.0))
