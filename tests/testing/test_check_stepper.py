"""`check_stepper`: the library's steppers pass, and each wrong one fails with a message that names the law."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ddeq.flows import LBFGS, AdaptiveEuler, Euler, Heun, Nesterov, Proximal, Stepper
from ddeq.iteration import Step, Stop
from ddeq.testing import check_stepper

SHORT = Stop(rtol=0.3, max_steps=30)
STEPPERS = [
    (Euler(), {}),
    (Euler(lambda k: 0.5 / (k + 1)), {"stop": SHORT}),
    (Euler(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)), {}),
    (Heun(), {}),
    (Nesterov(), {}),
    (Nesterov(0.3, restart=False), {}),
    (AdaptiveEuler(), {"exact": False}),
    (AdaptiveEuler(rule="armijo"), {"exact": False}),
    (LBFGS(), {}),
    (LBFGS(1), {}),
    (Proximal(), {"stop": SHORT, "rtol": 1e-5}),
    (Proximal(1.0, inner=Stop(rtol=1e-8, max_steps=300)), {"stop": SHORT, "rtol": 1e-5}),
]


@pytest.mark.theorem("T10")
@pytest.mark.parametrize(
    ("stepper", "options"), STEPPERS, ids=lambda value: "" if isinstance(value, dict) else type(value).__name__
)
def test_steppers_of_the_library_pass(stepper, options):
    check_stepper(stepper, **options)


@dataclass(frozen=True)
class Plain(Stepper):
    """A right one, to be made wrong."""

    step_size: float = 0.1

    def init(self, equation, at):
        return None

    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual, None, duration=self.step_size)


@dataclass(frozen=True)
class Uphill(Plain):
    def step(self, equation, at, state):
        return Step(at.z - self.step_size * at.residual, None, duration=self.step_size)


@dataclass(frozen=True)
class SaysDescends(Plain):
    descends: ClassVar[bool] = True


@dataclass(frozen=True)
class HiddenMomentum(Plain):
    def init(self, equation, at):
        return at.z

    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual + 0.3 * (at.z - state), at.z, duration=self.step_size)


@dataclass(frozen=True)
class SaysExplicit(Plain):
    def step(self, equation, at, state):
        return Step(at.z + self.step_size * equation.residual(at.z), None, duration=self.step_size, evaluations=1)


@dataclass(frozen=True)
class NoTime(Plain):
    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual, None)


@dataclass(frozen=True)
class WrongEnergy(Plain):
    """That of the points before the step."""

    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual, None, duration=self.step_size, energy=equation.energy(at.z))


@dataclass(frozen=True)
class Remembers(Plain):
    def step(self, equation, at, state):
        object.__setattr__(self, "step_size", 0.9 * self.step_size)
        return super().step(equation, at, state)


@dataclass(frozen=True)
class WritesIntoThePoints(Plain):
    def step(self, equation, at, state):
        return Step(at.z.add_(at.residual, alpha=self.step_size).clone(), None, duration=self.step_size)


@dataclass(frozen=True)
class CountsAtoms(Plain):
    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual / at.z.shape[-2], None, duration=self.step_size)


@dataclass(frozen=True)
class LooksAtTheBatch(Plain):
    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual / (1.0 + at.norm.max()), None, duration=self.step_size)


@dataclass(frozen=True)
class ForAllSamplesOfTheStart(Plain):
    """Its state is no tensor, so that samples that leave stay in it."""

    def init(self, equation, at):
        return tuple(at.norm.tolist())

    def step(self, equation, at, state):
        sizes = at.z.new_tensor(state)[: len(at.norm)]
        return Step(at.z + (self.step_size * (1.0 + sizes) / 5.0)[..., None, None] * at.residual, state, duration=self.step_size)


@dataclass(frozen=True)
class CountsByItself(Plain):
    """Steps that fall with a number in its state which is no tensor: after a break it begins anew."""

    def init(self, equation, at):
        return 0

    def step(self, equation, at, state):
        tau = self.step_size / (state + 1)
        return Step(at.z + tau * at.residual, state + 1, duration=tau)


@dataclass(frozen=True)
class OneBatchDimension(Plain):
    def step(self, equation, at, state):
        tau = (self.step_size * torch.ones_like(at.norm))[:, None, None]
        return Step(at.z + tau * at.residual, None, duration=self.step_size)


@dataclass(frozen=True)
class DefaultDtype(Plain):
    def step(self, equation, at, state):
        return Step(at.z + (torch.ones(()) * 0.1).to(at.z) * at.residual, None, duration=self.step_size)


@dataclass(frozen=True)
class Detached(Plain):
    def step(self, equation, at, state):
        return Step(at.z.detach() + self.step_size * at.residual, None, duration=self.step_size)


@dataclass(frozen=True)
class RestsWithMomentum(Plain):
    has_momentum: ClassVar[bool] = True

    @property
    def ends_when_still(self):
        return True


@dataclass(frozen=True)
class StateOfAll(Plain):
    def init(self, equation, at):
        return at.norm.sum()

    def step(self, equation, at, state):
        return Step(at.z + self.step_size * at.residual, state, duration=self.step_size)


class DuckTyped:
    init, step = Plain.init, Plain.step


@pytest.mark.parametrize(
    ("stepper", "message"),
    [
        (Uphill(), "direction: .*downhill"),
        (SaysDescends(), r"dissipation \(T10\): SaysDescends says that it descends"),
        (HiddenMomentum(), "has_momentum: HiddenMomentum says that atoms rest"),
        (SaysExplicit(), "explicit: SaysExplicit says that it follows"),
        (NoTime(), "duration"),
        (WrongEnergy(), "energy: step 0 says one"),
        (Remembers(), "purity: .*made again|options"),
        (WritesIntoThePoints(), r"purity: .*at\.z.* was changed"),
        (CountsAtoms(), r"measure consistency \(T1\): splitting"),
        (LooksAtTheBatch(), "one sample at a time"),
        (ForAllSamplesOfTheStart(), "removal of samples|one sample at a time"),
        (CountsByItself(), "going on: a flow that goes on"),
        (OneBatchDimension(), r"batches: a flow in a batch of shape \(\)"),
        (DefaultDtype(), "default dtype"),
        (Detached(), "differentiable: .*finite differences"),
        (RestsWithMomentum(), "typed capabilities: .*momentum"),
        (StateOfAll(), "batch-first state"),
        (DuckTyped(), "typed capabilities: DuckTyped is not a subclass of Stepper"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.unchecked
def test_wrong_steppers_are_found(stepper, message):
    with pytest.raises(AssertionError, match=message):
        check_stepper(stepper)


def test_right_steppers_pass():
    check_stepper(Plain())
