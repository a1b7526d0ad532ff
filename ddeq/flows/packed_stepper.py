"""The steppers of several species as that of the measure in which they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.packed_space import PackedSpace
from ddeq.flows.steppers import Stepper
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packing import Species
from ddeq.iteration import Iterate, Step
from ddeq.iteration.declared import label_of
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean

__all__ = ["PackedStepper"]


class _Alone(Dynamics):
    """What one species follows while the others are held fixed."""

    def __init__(self, of: Callable[[DiscreteMeasure], Tensor]) -> None:
        super().__init__()
        self._of = of

    def velocity(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        if x is not None:
            raise ValueError("x: a stepper of one species knows velocities at the atoms alone")
        return self._of(mu)


@dataclass(frozen=True)
class PackedStepper(Stepper):
    """A stepper for each species, all of which step at once from where they are: descent and ascent at rates of their own.

    The time of a step is that of the first species.
    """

    packing: Species
    steppers: tuple[Stepper, ...]

    in_spaces: ClassVar[bool] = True

    @classmethod
    def of(cls, packing: Species, steppers: Mapping[str, Any]) -> Stepper:
        """Of steppers by name."""
        names = [species for species, *_ in packing.shapes]
        if steppers.keys() != set(names):
            raise ValueError(f"stepper: expected one for all, or one for each of {names}, got {list(steppers)}")
        for name, stepper in steppers.items():
            if not isinstance(stepper, Stepper):
                raise ValueError(f"stepper: expected a ddeq.flows.Stepper for {name!r}, got {stepper!r}")
            if stepper.needs_energy or stepper.descends or stepper.draws:
                raise ValueError(
                    f"stepper: {type(stepper).__name__} for {name!r} alone would go by an energy that the others change; take it "
                    "for all species, or Euler, Heun or Optimizer for each"
                )
        return cls(packing, tuple(steppers[name] for name in names))

    @property
    def label(self) -> str:
        return label_of(self.steppers)

    @property
    def has_momentum(self) -> bool:  # type: ignore[override]
        return any(part.has_momentum for part in self.steppers)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return all(part.differentiable for part in self.steppers)

    def _each(self, equation: FunctionalDescent, at: Iterate) -> list[tuple[Stepper, FunctionalDescent, Iterate]]:
        measures = self.packing.unpack(equation.measure(at.z))
        residuals = self.packing.unpack_field(at.residual)
        spaces = equation.space.parts if isinstance(equation.space, PackedSpace) else (Euclidean(),) * len(measures)

        def velocity(nu: DiscreteMeasure, name: str) -> Tensor:
            z = self.packing.pack_field({**{k: m.points for k, m in measures.items()}, name: nu.points})
            return self.packing.unpack_field(equation.residual(z))[name]

        found = []
        for (name, nu), part, space in zip(measures.items(), self.steppers, spaces, strict=True):
            own = FunctionalDescent(_Alone(partial(velocity, name=name)), nu, space=space)
            own._samples = equation._samples
            here = Iterate(nu.points, residuals[name], own.inner.norm(residuals[name]), at.size, at.step, at.draw)
            found.append((part, own, here))
        return found

    def init(self, equation: FunctionalDescent, at: Iterate) -> tuple[Any, ...]:
        return tuple(part.init(own, here) for part, own, here in self._each(equation, at))

    def step(self, equation: FunctionalDescent, at: Iterate, state: tuple[Any, ...]) -> Step:
        each = self._each(equation, at)
        taken = [part.step(own, here, before) for (part, own, here), before in zip(each, state, strict=True)]
        names = [species for species, *_ in self.packing.shapes]
        z = self.packing.pack_field({name: step.z for name, step in zip(names, taken, strict=True)})
        evaluations = sum(step.evaluations for step in taken)
        return Step(z, tuple(step.state for step in taken), evaluations=evaluations, duration=taken[0].duration)
