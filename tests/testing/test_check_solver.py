"""`check_solver`: the library's solvers pass, and each wrong one fails with a message that names the law."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from ddeq.flows import Euler
from ddeq.functionals import MMD
from ddeq.iteration import Status, Step, Stop
from ddeq.kernels import Gaussian
from ddeq.solvers import Anderson, Auto, Broyden, NewtonKrylov, ParticleFlow, Picard, Solver
from ddeq.testing import check_solver


def smooth(nu):
    return MMD(nu, Gaussian(1.0))


SOLVERS = [
    Picard(),
    Picard(0.3),
    Anderson(),
    Anderson(kind="I"),
    Anderson(3, damping=0.2),
    Broyden(),
    Broyden(4, damping=0.2),
    NewtonKrylov(),
    Auto(),
]


@pytest.mark.theorem("T9")
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_solvers_of_the_library_pass(solver):
    check_solver(solver)


@pytest.mark.slow
def test_optimal_coupling_passes():
    check_solver(Picard(0.3, coupling="optimal"), converges=False, exact=False)


@pytest.mark.parametrize("target", ["moving", "frozen"])
def test_the_particle_flow_passes(target):
    solver = ParticleFlow(smooth, stepper=Euler(0.5), target=target)
    check_solver(solver, converges=False, stop=Stop(rtol=1e-6, max_steps=12))


def test_a_problem_of_ones_own():
    def map(mu, shift):
        return mu.with_points(0.3 * mu.points.cos() + shift[..., None, None])

    check_solver(Anderson(), map, None, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), in_dims=0)


@dataclass(frozen=True)
class Plain(Solver):
    """A right one, to be made wrong."""

    def init(self, equation, at):
        return None

    def step(self, equation, at, state):
        return Step(at.z + at.residual, None)


@dataclass(frozen=True)
class WritesIntoTheIterate(Plain):
    def step(self, equation, at, state):
        return Step(at.z.add_(at.residual).clone(), None)


@dataclass(frozen=True)
class WritesIntoItsState(Plain):
    def init(self, equation, at):
        return at.z.clone()

    def step(self, equation, at, state):
        z = at.z + at.residual + 0.1 * (at.z - state)
        state.copy_(at.z)
        return Step(z, state)


@dataclass(frozen=True)
class WritesIntoAnOldState(Plain):
    """Appends to a list that older states hold too."""

    def init(self, equation, at):
        return []

    def step(self, equation, at, state):
        z = at.z + at.residual + (0.1 * (at.z - state[-1]) if state else 0.0)
        state.append(at.z)
        return Step(z, state)


@dataclass(frozen=True)
class Remembers(Plain):
    memory: dict = field(default_factory=dict, hash=False)

    def step(self, equation, at, state):
        before = self.memory.get("z", at.z)
        self.memory["z"] = at.z
        return Step(at.z + at.residual + (0.1 * (at.z - before) if before.shape == at.z.shape else 0.0), None)


@dataclass(frozen=True)
class Random(Plain):
    def step(self, equation, at, state):
        return Step(at.z + (0.9 + 0.1 * torch.rand((), dtype=at.z.dtype)) * at.residual, None)


@dataclass(frozen=True)
class OneNumberForAll(Plain):
    def init(self, equation, at):
        return at.norm.max()

    def step(self, equation, at, state):
        return Step(at.z + at.residual, at.norm.max())


@dataclass(frozen=True)
class LooksAtTheBatch(Plain):
    def step(self, equation, at, state):
        return Step(at.z + at.residual / (1.0 + at.norm.mean()), None)


@dataclass(frozen=True)
class CountsAtoms(Plain):
    """An unweighted norm."""

    def step(self, equation, at, state):
        return Step(at.z + at.residual / (1.0 + at.residual.square().sum((-2, -1), keepdim=True)), None)


@dataclass(frozen=True)
class SortedAtoms(Plain):
    def step(self, equation, at, state):
        share = torch.linspace(0.5, 1.0, at.z.shape[-2] if at.z.ndim > at.norm.ndim + 1 else 1, dtype=at.z.dtype)
        return Step(at.z + share.unsqueeze(-1) * at.residual, None)


@dataclass(frozen=True)
class OneBatchDimension(Plain):
    def step(self, equation, at, state):
        return Step(
            at.z + (0.9 + 0.0 * at.norm)[:, None, None] * at.residual if at.z.ndim > 2 else at.z + 0.8 * at.residual, None
        )


@dataclass(frozen=True)
class DefaultDtype(Plain):
    def step(self, equation, at, state):
        return Step(at.z + (torch.tensor(0.9) * torch.ones(1)).to(at.z) * at.residual, None)


@dataclass(frozen=True)
class FallsToSingle(Plain):
    def step(self, equation, at, state):
        return Step(at.z.float() + at.residual.float(), None)


@dataclass(frozen=True)
class SaysConverged(Plain):
    def step(self, equation, at, state):
        status = torch.where(at.norm < 0.3, Status.CONVERGED.value, -1)
        return Step(at.z + at.residual, None, status=status)


@dataclass(frozen=True)
class SaysRecovers(Plain):
    recovers: ClassVar[bool] = True


@dataclass(frozen=True)
class SpreadsNaN(Plain):
    def step(self, equation, at, state):
        return Step(at.z + at.residual + 0.0 * at.residual.sum(), None)


@dataclass(frozen=True)
class Detached(Plain):
    def step(self, equation, at, state):
        return Step(at.z + 0.5 * at.residual + 0.5 * at.residual.detach(), None)


@dataclass(frozen=True)
class TooSlow(Plain):
    def step(self, equation, at, state):
        return Step(at.z + 0.01 * at.residual, None)


@dataclass(frozen=True)
class OnlyMeasures(Plain):
    """Looks for a measure that other equations do not have, and does not say so."""

    def step(self, equation, at, state):
        return Step(at.z + at.residual * equation.mu.mass()[..., None, None].sign(), None)


@dataclass(frozen=True)
class HidesEvaluations(Plain):
    def step(self, equation, at, state):
        return Step(at.z + 0.5 * (at.residual + equation.residual(at.z + at.residual)), None)


class NoDataclass(Solver):
    init, step = Plain.init, Plain.step


class DuckTyped:
    init, step = Plain.init, Plain.step


@dataclass(frozen=True)
class HoldsAList(Plain):
    numbers: list = field(default_factory=lambda: [1.0])


@dataclass(frozen=True)
class GivesATuple(Plain):
    def step(self, equation, at, state):
        return at.z + at.residual, None


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (WritesIntoTheIterate(), r"purity: .*at\.z.* was changed"),
        (WritesIntoItsState(), r"purity: `step` changes .* state"),
        (WritesIntoAnOldState(), "purity: .*made again"),
        (Remembers(), "purity: .*made again"),
        (Random(), "purity: .*made again"),
        (OneNumberForAll(), "batch-first state"),
        (LooksAtTheBatch(), "one sample at a time"),
        (CountsAtoms(), r"measure consistency \(T1, T9\): splitting"),
        (SortedAtoms(), r"measure consistency \(T1, T9\): permuting"),
        (OneBatchDimension(), r"batches: a problem in a batch of shape \(\)"),
        (DefaultDtype(), "default dtype"),
        (FallsToSingle(), r"step: expected the next iterate as the last, .*float64; got .*float32"),
        (SaysConverged(), "honest status: called converged at residual"),
        (SaysRecovers(), "recovers: SaysRecovers says that it goes on"),
        (SpreadsNaN(), "honest status: images that are NaN|one sample at a time"),
        (Detached(), "differentiable: .*finite differences"),
        (TooSlow(), "convergence: the problem was not solved"),
        (OnlyMeasures(), "needs_measures"),
        (HidesEvaluations(), "evaluations: the map was called"),
        (NoDataclass(), "typed capabilities: .*frozen"),
        (DuckTyped(), "typed capabilities: DuckTyped is not a subclass of Solver"),
        (HoldsAList(), "typed capabilities: .*hashed"),
        (GivesATuple(), r"step: .*expected Step\(z, state\)"),
        (Plain, r"typed capabilities: .*call it, Plain\(\)"),
    ],
    ids=lambda value: getattr(type(value), "__name__", None) if not isinstance(value, str) else "",
)
@pytest.mark.unchecked
def test_wrong_solvers_are_found(solver, message):
    with pytest.raises(AssertionError, match=message):
        check_solver(solver)


def test_right_solvers_pass():
    check_solver(Plain())
