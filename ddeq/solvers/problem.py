"""The fixed-point problem that solvers see: points, an image, and the inner product of L2(mu)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.iteration import Evaluation, Stop
from ddeq.iteration.loop import DIVERGENCE, Process
from ddeq.measures import DiscreteMeasure
from ddeq.solvers.linearization import by_forward_mode, by_reverse_mode
from ddeq.solvers.metric import relative_discrepancy

__all__ = ["FixedPoint", "FixedPointIteration", "Solver"]


@dataclass
class Counter:
    """What all selections of the samples of a problem share."""

    count: int = 0
    """How often the map was evaluated."""
    forward_mode: bool = True
    """Whether it is not known yet that an operation in the map lacks forward-mode derivatives."""
    seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    """The last iterate, its image, their difference and its norm, so that solvers need not take them again."""


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

    def linearized(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The products :math:`v \mapsto \partial\Phi(z)\, v`; each counts as an evaluation.

        A function that knows them itself has a method ``linearized``; else they are derivatives of its ``image``.
        """
        counter, own = self.counter, getattr(self.function, "linearized", None)
        push = by_forward_mode(self.function.image, z) if own is None else own(z)
        reverse: list[Callable[[Tensor], Tensor]] = []

        def product(v: Tensor) -> Tensor:
            counter.count += 1
            if counter.forward_mode:
                try:
                    return push(v)
                except Exception:  # errors of many kinds; if it is one of the map itself, it comes again
                    counter.forward_mode = False
            if not reverse:
                counter.count += 1
                reverse.append(by_reverse_mode(self.function.image, z))
            return reverse[0](v)

        return product

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
        return self.norms(a)[0]

    def residual(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        r"""The residual :math:`\Phi(z) - z` and its norm, which carries no derivatives; both are known from `evaluate`."""
        seen = self.counter.seen
        if seen is not None and seen[0] is z and seen[1] is image:
            return seen[2], seen[3]
        r = image - z
        return r, self.norm(r.detach())

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


FAR = 4.0
"""An extrapolated iterate so many times larger than where the residual last changed much is looked at with suspicion."""


class _Seen(NamedTuple):
    """What the iteration remembers besides the solver's state: the last iterate and its image, and where the residual,
    ``absolute``, was last half or twice as large."""

    solver: Any
    z: Tensor | None
    image: Tensor | None
    limit: Tensor | None
    absolute: Tensor | None
    size: Tensor | None


class FixedPointIteration(Process):
    """A solver on a problem, as the loop sees it: residuals relative to the size of the image, or of a metric."""

    def __init__(self, problem: FixedPoint, solver: Solver, stop: Stop) -> None:
        self._problem, self._solver, self._stop = problem, solver, stop

    def start(self, z: Tensor) -> _Seen:
        """What `iterate` takes as the first memory."""
        return _Seen(self._solver.init(self._problem, z), None, None, None, None, None)

    def evaluate(self, value: Tensor, memory: _Seen) -> tuple[Evaluation, _Seen]:
        problem, stop = self._problem, self._stop
        found = problem.image(value)
        z, image = value.detach(), found.detach()
        r = image - z
        if memory.z is None or memory.image is None:
            absolute, size, start = problem.norms(r, image, z)
            growth = torch.zeros_like(absolute)
        else:
            absolute, size, start, moved, grown = problem.norms(r, image, z, z - memory.z, image - memory.image)
            growth = torch.where(moved > 0, grown / moved, 0.0)
        problem.counter.seen = None if value.requires_grad or found.requires_grad else (value, found, r, absolute)
        scale = size + stop.atol / stop.rtol
        if stop.metric is None:
            residual = absolute / scale
        else:
            residual = relative_discrepancy(stop.metric, problem.measure(z), problem.measure(image), stop.atol / stop.rtol)
        size, seen = start + scale, memory._replace(z=z, image=image)
        if getattr(self._solver, "retreats", False):
            residual, size, seen = self._unless_lost(residual, absolute, size, seen)
        note = getattr(memory.solver, "steps_of_each", None)
        return Evaluation(residual, absolute, growth, size, found, note), seen

    def _unless_lost(self, residual: Tensor, absolute: Tensor, size: Tensor, seen: _Seen) -> tuple[Tensor, Tensor, _Seen]:
        """Residual and size for a solver that extrapolates and knows a way back.

        What is not finite or too large is no solution, and for the solver to deal with. Nor is a point far away whose residual
        is small next to it only because it is far away: where there is no fixed point, extrapolation leads there.
        """
        if seen.limit is None or seen.absolute is None or seen.size is None:
            return residual, size, seen._replace(limit=DIVERGENCE * size, absolute=absolute, size=size)
        ratio, wild = size / seen.size, ~(size <= seen.limit)
        far = ratio > FAR
        drowned = seen.absolute < 100.0 * torch.finfo(size.dtype).eps * size  # the residual would be rounding there
        lost = wild | (far & (drowned | (absolute * ratio > FAR * seen.absolute)))
        other = ~lost & ((absolute <= 0.5 * seen.absolute) | (~far & (absolute >= 2.0 * seen.absolute)))
        seen = seen._replace(absolute=torch.where(other, absolute, seen.absolute), size=torch.where(other, size, seen.size))
        return torch.where(lost, torch.inf, residual), torch.where(wild, 0.0, size), seen

    def advance(self, value: Tensor, memory: _Seen, found: Tensor, step: int) -> tuple[Tensor, _Seen]:
        z, state = self._solver.step(self._problem, value, found, memory.solver)
        return z, memory._replace(solver=state)

    def select(self, keep: Tensor) -> FixedPointIteration:
        return type(self)(self._problem.select(keep), self._solver, self._stop)
