"""The fixed-point problem that solvers see: points, an image, and the inner product of L2(mu)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.iteration import Evaluation, Stop
from ddeq.iteration.loop import DIVERGENCE, Process, agreed
from ddeq.iteration.massless import held_back
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
    seen: Seen | None = None
    """What the iteration found at the last iterate, so that solvers need not take it again; None where autograd records."""


class Seen(NamedTuple):
    """An iterate, its image, and what is known of the two; the same tensors, not equal ones, are what it speaks of."""

    z: Tensor
    image: Tensor
    residual: Tensor
    absolute: Tensor  # its norm
    size: Tensor  # the norm of the image
    before: tuple[Tensor, Tensor] | None = None  # the last iterate and its image
    changes: tuple[Tensor, Tensor] | None = None  # of the two since then


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
    """The map of points."""
    weights: Tensor
    """``(*batch, n)``: the masses of the atoms or, for cotangents, their inverses."""
    like: DiscreteMeasure | None = None
    """The measure whose atoms are sought; None where the points are not those of a measure."""
    counter: Counter = field(default_factory=Counter)
    """Counts evaluations, those of all selections of its samples together."""
    limit: Tensor | None = None
    """Beyond this, ``(*batch, 1, 1)``, atoms of mass zero do not go; None where there are none."""

    def image(self, z: Tensor) -> Tensor:
        r""":math:`\Phi(z)`; every call counts as an evaluation. Atoms of mass zero that would run away stay where they are."""
        self.counter.count += 1
        return held_back(self.function.image(z), z, self.weights, self.limit)

    def linearized(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The products :math:`v \mapsto \partial\Phi(z)\, v`; each counts as an evaluation.

        A function that knows them itself has a method ``linearized``; else they are derivatives of its ``image``. ``v`` is of the
        size of residuals: what is as large as no iterate may be, at an atom of mass zero, is left out.
        """
        counter, own = self.counter, getattr(self.function, "linearized", None)
        push = by_forward_mode(self.function.image, z) if own is None else own(z)
        reverse: list[Callable[[Tensor], Tensor]] = []

        def product(v: Tensor) -> Tensor:
            counter.count += 1
            if counter.forward_mode:
                try:
                    return held_back(push(v), 0.0, self.weights, self.limit)
                except Exception:  # errors of many kinds; if it is one of the map itself, it comes again
                    counter.forward_mode = False
            if not reverse:
                counter.count += 1
                reverse.append(by_reverse_mode(self.function.image, z))
            return held_back(reverse[0](v), 0.0, self.weights, self.limit)

        return product

    def measure(self, z: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``z``; a `ValueError` where the points are not those of a measure."""
        if self.like is None:
            raise ValueError("solver: this problem is not one on measures; take Picard, Anderson or another point solver")
        return self.like.with_points(z)

    def map(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        r""":math:`\Phi(\mu)` as a map on measures."""
        return self.measure(self.image(mu.points))

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\langle a, b \rangle = \sum_i w_i\, a_i \cdot b_i`, ``(*batch,)``."""
        products = (a * b).sum(-1)
        if self.limit is not None:  # zero times what overflows is NaN
            products = torch.where(self.weights > 0, products, 0.0)
        return (self.weights * products).sum(-1)

    def norm(self, a: Tensor) -> Tensor:
        """Norm of ``a`` in that inner product, ``(*batch,)``."""
        return self.norms(a)[0]

    def residual(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        r"""The residual :math:`\Phi(z) - z` and its norm, which carries no derivatives.

        Both are known already where ``z`` and ``image`` are what the iteration saw last.
        """
        seen = self.counter.seen
        if seen is not None and seen.z is z and seen.image is image:
            return seen.residual, seen.absolute
        r = image - z
        return r, self.norm(r.detach())

    def changes(self, z: Tensor, image: Tensor, old: Tensor, old_image: Tensor) -> tuple[Tensor, Tensor]:
        """``z - old`` and ``image - old_image``; known already where these are what the iteration saw last."""
        seen = self.counter.seen
        if seen is None or seen.before is None or seen.changes is None:
            return z - old, image - old_image
        same = seen.z is z and seen.image is image and seen.before[0] is old and seen.before[1] is old_image
        return seen.changes if same else (z - old, image - old_image)

    def norms(self, *fields: Tensor) -> tuple[Tensor, ...]:
        """The norms of several ``fields``, of each in one pass over its numbers."""
        lengths = torch.stack([torch.linalg.vector_norm(field, dim=-1) for field in fields])
        if self.limit is not None:
            lengths = torch.where(self.weights > 0, lengths, 0.0)
        return (self.weights * lengths.square()).sum(-1).sqrt().unbind(0)

    def select(self, keep: Tensor) -> FixedPoint:
        """The problem of the samples ``keep``."""
        like = None if self.like is None else self.like[keep]
        limit = None if self.limit is None else self.limit[keep]
        return replace(self, function=self.function.select(keep), weights=self.weights[keep], like=like, limit=limit)


@runtime_checkable
class Solver(Protocol):
    """A frozen set of options with pure ``init`` and ``step``; stopping, batches and gradients are not its business."""

    def init(self, problem: FixedPoint, z: Tensor) -> Any:
        """The state before the first step on ``problem`` from ``z``: a pytree of tensors ``(*batch, ...)``, or None."""
        ...

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: Any) -> tuple[Tensor, Any]:
        r"""The next iterate and state.

        Parameters
        ----------
        problem
            The problem: images, products with their derivative, and the inner product of :math:`L^2(\mu)`.
        z
            The iterate, ``(*batch, n, d)``.
        image
            Its image, of the same shape.
        state
            What `init` or the last step gave.
        """
        ...


FAR = 4.0
"""An extrapolated iterate so many times larger than where the residual last changed much is looked at with suspicion."""


class _Memory(NamedTuple):
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

    def start(self, z: Tensor) -> _Memory:
        """What `iterate` takes as the first memory."""
        return _Memory(self._solver.init(self._problem, z), None, None, None, None, None)

    def evaluate(self, value: Tensor, memory: _Memory) -> tuple[Evaluation, _Memory]:
        problem, stop = self._problem, self._stop
        found, last = problem.image(value), problem.counter.seen
        recorded = value.requires_grad or found.requires_grad
        z, image = (value.detach(), found.detach()) if recorded else (value, found)
        r, before, changes = image - z, None, None
        if memory.z is None or memory.image is None:
            absolute, size, start = problem.norms(r, image, z)
            growth = torch.zeros_like(absolute)
        else:
            if last is not None and last.image is value and memory.image is value:  # a plain step: the changes are residuals
                absolute, size = problem.norms(r, image)
                start, moved, grown, changes = last.size, last.absolute, absolute, (last.residual, r)
            else:
                changes = z - memory.z, image - memory.image
                absolute, size, start, moved, grown = problem.norms(r, image, z, *changes)
            growth, known = grown / moved, moved > 0
            growth = growth if agreed(known) else torch.where(known, growth, 0.0)
            before = memory.z, memory.image
        problem.counter.seen = None if recorded else Seen(value, found, r, absolute, size, before, changes)
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

    def _unless_lost(self, residual: Tensor, absolute: Tensor, size: Tensor, seen: _Memory) -> tuple[Tensor, Tensor, _Memory]:
        """Residual and size for a solver that extrapolates and knows a way back.

        What is not finite or too large is no solution, and for the solver to deal with. Nor is a point far away whose residual
        is small next to it only because it is far away: where there is no fixed point, extrapolation leads there.
        """
        if seen.limit is None or seen.absolute is None or seen.size is None:
            return residual, size, seen._replace(limit=DIVERGENCE * size, absolute=absolute, size=size)
        ratio, wild = size / seen.size, ~(size <= seen.limit)
        far = ratio > FAR
        if agreed(~(wild | far)):
            other = (absolute <= 0.5 * seen.absolute) | (absolute >= 2.0 * seen.absolute)
            if agreed(other):
                return residual, size, seen._replace(absolute=absolute, size=size)
            last, sizes = torch.where(other, absolute, seen.absolute), torch.where(other, size, seen.size)
            return residual, size, seen._replace(absolute=last, size=sizes)
        drowned = seen.absolute < 100.0 * torch.finfo(size.dtype).eps * size  # the residual would be rounding there
        lost = wild | (far & (drowned | (absolute * ratio > FAR * seen.absolute)))
        other = ~lost & ((absolute <= 0.5 * seen.absolute) | (~far & (absolute >= 2.0 * seen.absolute)))
        seen = seen._replace(absolute=torch.where(other, absolute, seen.absolute), size=torch.where(other, size, seen.size))
        return torch.where(lost, torch.inf, residual), torch.where(wild, 0.0, size), seen

    def advance(self, value: Tensor, memory: _Memory, found: Tensor, step: int) -> tuple[Tensor, _Memory]:
        problem = self._problem
        z, state = self._solver.step(problem, value, found, memory.solver)
        return held_back(z, value, problem.weights, problem.limit), memory._replace(solver=state)

    def select(self, keep: Tensor) -> FixedPointIteration:
        return type(self)(self._problem.select(keep), self._solver, self._stop)
