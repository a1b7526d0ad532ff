"""The fixed-point problem that solvers see: points, an image, and the inner product of L2(mu)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.iteration import Evaluation, Stop
from ddeq.iteration.loop import Process
from ddeq.measures import DiscreteMeasure

__all__ = ["FixedPoint", "FixedPointIteration", "Solver"]


@dataclass
class Counter:
    """How often a map was evaluated, over all selections of its samples."""

    count: int = 0


@runtime_checkable
class Function(Protocol):
    """A map of points ``(*batch, n, d)`` that can be restricted to some entries of its first batch dimension."""

    def image(self, z: Tensor) -> Tensor: ...

    def select(self, keep: Tensor) -> Function: ...


@dataclass(frozen=True)
class FixedPoint:
    r"""Find points :math:`z` with :math:`z = \Phi(z)`.

    Inner products weigh each atom with its mass, so that what a solver makes of them depends on the measure alone (T9).
    """

    function: Function
    weights: Tensor
    """``(*batch, n)``: the masses of the atoms or, for cotangents, their inverses."""
    like: DiscreteMeasure | None = None
    """The measure whose atoms are sought; None where the points are not those of a measure."""
    counter: Counter = field(default_factory=Counter)

    def image(self, z: Tensor) -> Tensor:
        r""":math:`\Phi(z)`; every call counts as an evaluation."""
        self.counter.count += 1
        return self.function.image(z)

    def measure(self, z: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``z``."""
        if self.like is None:
            raise ValueError("solver: this problem is not one on measures; take Picard, Anderson or another point solver")
        return self.like.with_points(z)

    def map(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        r""":math:`\Phi(\mu)` as a map on measures."""
        return self.measure(self.image(mu.points))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\langle a, b \rangle = \sum_i w_i\, a_i \cdot b_i`, ``(*batch,)``."""
        return (self.weights * (a * b).sum(-1)).sum(-1)

    def norm(self, a: Tensor) -> Tensor:
        """Norm of that inner product, ``(*batch,)``."""
        return self.inner(a, a).sqrt()

    def norms(self, *fields: Tensor) -> tuple[Tensor, ...]:
        """The norms of several, of each in one pass over its numbers."""
        lengths = torch.stack([torch.linalg.vector_norm(field, dim=-1) for field in fields])
        return (self.weights * lengths.square()).sum(-1).sqrt().unbind(0)

    def select(self, keep: Tensor) -> FixedPoint:
        """The problem of the samples ``keep``."""
        like = None if self.like is None else self.like[keep]
        return FixedPoint(self.function.select(keep), self.weights[keep], like, self.counter)


@runtime_checkable
class Solver(Protocol):
    """A frozen set of options with pure ``init`` and ``step``; stopping, batches and gradients are not its business."""

    def init(self, problem: FixedPoint, z: Tensor) -> Any:
        """The state before the first step: a pytree of tensors ``(*batch, ...)``, or None."""
        ...

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next iterate and state, from an iterate and its image."""
        ...


class _Seen(NamedTuple):
    """What the iteration remembers besides the solver's state: the last iterate and its image."""

    solver: Any
    z: Tensor | None
    image: Tensor | None


class FixedPointIteration(Process):
    """A solver on a problem, as the loop sees it: residuals relative to the size of the image."""

    def __init__(self, problem: FixedPoint, solver: Solver, stop: Stop) -> None:
        self._problem, self._solver, self._stop = problem, solver, stop

    def start(self, z: Tensor) -> _Seen:
        """What `iterate` takes as the first memory."""
        return _Seen(self._solver.init(self._problem, z), None, None)

    def evaluate(self, value: Tensor, memory: _Seen) -> tuple[Evaluation, _Seen]:
        problem = self._problem
        found = problem.image(value)
        z, image = value.detach(), found.detach()
        before = (z, image) if memory.z is None or memory.image is None else (memory.z, memory.image)
        absolute, size, start, moved, grown = problem.norms(image - z, image, z, z - before[0], image - before[1])
        growth = torch.where(moved > 0, grown / moved, 0.0)
        scale = size + self._stop.atol / self._stop.rtol
        evaluation = Evaluation(absolute / scale, absolute, growth, start + scale, found)
        return evaluation, memory._replace(z=z, image=image)

    def advance(self, value: Tensor, memory: _Seen, found: Tensor, step: int) -> tuple[Tensor, _Seen]:
        z, state = self._solver.step(self._problem, value, found, memory.solver)
        return z, memory._replace(solver=state)

    def select(self, keep: Tensor) -> FixedPointIteration:
        return FixedPointIteration(self._problem.select(keep), self._solver, self._stop)
