"""The velocity of the particle flow as the residual of an equation, for steppers."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import over_atoms
from ddeq.functionals.base import Functional
from ddeq.iteration import Equation, Iterate
from ddeq.measures import DiscreteMeasure
from ddeq.solvers.mean_shift import Pair, root

__all__ = ["Drift"]


class Direction(NamedTuple):
    """Where the atoms of a measure are to go, ``(*batch, n, d)``, before steps have a size."""

    direction: Tensor
    velocity: Tensor
    """The direction for a fixed image."""
    gain: Tensor | None
    """Gain of the transposed derivative of the map that was seen, ``(*batch,)``, where the image moves."""


class Drift(FunctionalDescent):
    """The velocity towards the image in one step of the solver (particle flow, T21).

    Parameters
    ----------
    equation, at
        The equation of the fixed point, and the iterate of the step.
    marks
        Marks as the kernel compares them, ``(*batch, n, q)``, or None.
    mark_bandwidth
        As in `Pair`.
    bandwidth
        Bandwidth between points, ``(*batch,)``; None: no two atoms interact, and the velocity is the residual.
    moving
        Whether the image moves with the measure.
    """

    def __init__(
        self,
        equation: Equation,
        at: Iterate,
        marks: Tensor | None,
        mark_bandwidth: float,
        bandwidth: Tensor | None,
        moving: bool,
    ) -> None:
        super().__init__(_JointMMD(self), equation.measure(at.z))
        self.equation, self.marks, self.mark_bandwidth = equation, marks, mark_bandwidth
        self.bandwidth, self.moving = bandwidth, moving
        self.here, self.to_image, self.reached = at.z, at.residual, at.image
        self.evaluations = 0
        """Evaluations of the map so far."""
        self.step: Tensor | None = None
        """What directions are multiplied by, ``(*batch,)``; None: one."""

    def times(self, step: Tensor) -> Drift:
        """The drift whose directions are multiplied by ``step``, ``(*batch,)``."""
        other = copy.copy(self)
        other.step = step
        return other

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        return self.scaled(self.direction(z).direction)

    def scaled(self, direction: Tensor) -> Tensor:
        """The velocity in a ``direction``."""
        return direction if self.step is None else over_atoms(self.step) * direction

    def direction(self, z: Tensor) -> Direction:
        """What is found at ``z``."""
        image, to_image = self.reached, self.to_image
        if z is not self.here:
            image = self._moved(z) if self.moving else self.reached
            to_image = image - z
        alive = self.like.support().unsqueeze(-1)
        velocity = back = to_image
        if self.bandwidth is not None:
            velocity = torch.where(alive, self.pair(z, image).velocity(self.bandwidth), to_image)
        if not self.moving:
            return Direction(velocity, velocity, None)
        if self.bandwidth is not None:
            back = torch.where(alive, -self.pair(image, z).velocity(self.bandwidth), 0.0)
        masses = torch.where(alive, self.like.weights.unsqueeze(-1), 0.0)
        pulled = gradient(lambda z: torch.where(alive, masses * back, 0.0) * self._moved(z), z)
        pulled = torch.where(alive, pulled / torch.where(alive, masses, 1.0), 0.0)
        before, after = self.inner(back, back), self.inner(pulled, pulled)
        some = before > 0
        return Direction(velocity - pulled, velocity, root(torch.where(some, after / torch.where(some, before, 1.0), 0.0)))

    def pair(self, z: Tensor, image: Tensor) -> Pair:
        """The measures with their atoms at ``z`` and at ``image``."""
        marks = None if self.marks is None else (self.marks, self.marks)
        return Pair(self.measure(z), self.measure(image), marks, self.mark_bandwidth)

    def _moved(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.equation.image(self.measure(z)).points


class _JointMMD(Functional):
    """Half the squared MMD from the image on marks times points, at the bandwidth of the step."""

    reads_marks = True

    def __init__(self, drift: Drift) -> None:
        super().__init__()
        self.drift = [drift]  # in a list, so that it is no part of the module

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        (drift,) = self.drift
        pair, h = drift.pair(mu.points, drift.reached), drift.bandwidth
        return pair.energy(pair.extent[..., 0, 0] if h is None else h)
