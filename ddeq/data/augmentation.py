"""Random changes of measures that leave their labels as they are, as push-forwards: one map for each measure of a batch.

They move atoms and keep masses and marks, so they commute with permuting, splitting and padding atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.draws import uniform
from ddeq.measures import DiscreteMeasure

__all__ = ["Augmentation", "Compose", "RandomAffine", "RandomRotation", "RandomScaling", "RandomShift"]


@runtime_checkable
class Augmentation(Protocol):
    """A random map of measures, drawn for each measure of a batch."""

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Change each measure of ``mu``; the generator is PyTorch's own where none is given."""


@dataclass(frozen=True)
class RandomAffine:
    """Rotates, scales, shears and shifts each planar measure of a batch by a random affine map of its own.

    Parameters
    ----------
    degrees
        Rotations are uniform between minus and plus this.
    scale
        Each axis is scaled by a factor that is log-uniform between ``1 / (1 + scale)`` and ``1 + scale``.
    shear
        Shears are uniform between minus and plus this.
    shift
        Shifts of each coordinate are uniform between minus and plus this.
    """

    degrees: float = 15.0
    scale: float = 0.15
    shear: float = 0.15
    shift: float = 0.15

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Draw a map for each measure of ``mu`` and push it forward.

        Raises
        ------
        ValueError
            If the points are not in the plane.
        """
        if mu.dim != 2:
            raise ValueError(f"mu: expected points in the plane, got dimension {mu.dim}")
        angle = _symmetric(mu, math.radians(self.degrees), generator)
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
        stretch = torch.diag_embed(_symmetric(mu, math.log1p(self.scale), generator, 2).exp())
        stretch[..., 0, 1] = _symmetric(mu, self.shear, generator)
        linear, shift = rotation @ stretch, _symmetric(mu, self.shift, generator, 1, 2)
        return mu.push_forward(lambda x: x @ linear.mT + shift)


@dataclass(frozen=True)
class RandomRotation:
    r"""Turns each measure in space about an axis through the origin, by a random angle of its own.

    .. math:: x \mapsto x \cos\theta + (a \times x) \sin\theta + a \langle a, x\rangle (1 - \cos\theta),
              \qquad \theta \sim U(-\text{degrees}, \text{degrees}),

    with :math:`a` the unit vector along ``axis`` (Rodrigues' formula).

    Parameters
    ----------
    axis
        Direction of the axis; the default points up in the shapes of `load_modelnet`.
    degrees
        Bound of the angles; the default gives all rotations about the axis.

    Raises
    ------
    ValueError
        If ``axis`` is not three finite numbers of which one is not zero, or ``degrees`` is negative.
    """

    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    degrees: float = 180.0

    def __post_init__(self) -> None:
        if len(self.axis) != 3 or not 0 < math.hypot(*self.axis) < math.inf:
            raise ValueError(f"axis: expected three finite numbers, not all zero, got {self.axis}")
        _check_size("degrees", self.degrees)

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Draw an angle for each measure of ``mu`` and turn it; a `ValueError` if the points are not in space."""
        if mu.dim != 3:
            raise ValueError(f"mu: expected points in space, got dimension {mu.dim}")
        angle = _symmetric(mu, math.radians(self.degrees), generator, 1, 1)
        a, b, c = (value / math.hypot(*self.axis) for value in self.axis)
        cross = mu.points.new_tensor([[0.0, -c, b], [c, 0.0, -a], [-b, a, 0.0]])
        linear = torch.eye(3, dtype=mu.dtype, device=mu.device) + cross * angle.sin() + cross @ cross * (1 - angle.cos())
        return mu.push_forward(lambda x: x @ linear.mT)


@dataclass(frozen=True)
class RandomScaling:
    """Scales each measure by random factors, log-uniform between ``low`` and ``high``.

    Parameters
    ----------
    low, high
        Bounds of the factors, positive.
    per_axis
        Whether each axis has a factor of its own (which changes the shape), or all have one in common.

    Raises
    ------
    ValueError
        If not ``0 < low <= high``.

    References
    ----------
    :cite:t:`wang2019dynamic`, whose code has these bounds.
    """

    low: float = 2 / 3
    high: float = 3 / 2
    per_axis: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ValueError(f"low: expected finite factors 0 < low <= high, got low={self.low} and high={self.high}")

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Draw factors for each measure of ``mu`` and scale it about the origin."""
        middle, half = (math.log(self.high) + math.log(self.low)) / 2, (math.log(self.high) - math.log(self.low)) / 2
        factor = (middle + _symmetric(mu, half, generator, 1, mu.dim if self.per_axis else 1)).exp()
        return mu.push_forward(lambda x: x * factor)


@dataclass(frozen=True)
class RandomShift:
    """Moves each measure by a random vector, uniform in the cube of coordinates between minus and plus ``size``.

    Parameters
    ----------
    size
        Bound of each coordinate of the vector.

    Raises
    ------
    ValueError
        If ``size`` is negative.
    """

    size: float = 0.2

    def __post_init__(self) -> None:
        _check_size("size", self.size)

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Draw a vector for each measure of ``mu`` and add it to the atoms."""
        shift = _symmetric(mu, self.size, generator, 1, mu.dim)
        return mu.push_forward(lambda x: x + shift)


@dataclass(frozen=True)
class Compose:
    """One random map after the other, the first of ``maps`` first, with draws from one generator.

    Examples
    --------
    >>> augment = Compose([RandomRotation(degrees=180.0), RandomScaling(0.8, 1.25), RandomShift(0.1)])
    >>> augment(DiscreteMeasure(torch.zeros(8, 100, 3)), torch.Generator().manual_seed(0)).batch_shape
    (8,)
    """

    maps: Iterable[Augmentation]

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))  # not a list that may change, nor one that is read only once

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """Apply the maps to ``mu``."""
        for augment in self.maps:
            mu = augment(mu, generator)
        return mu


def _symmetric(mu: DiscreteMeasure, size: float, generator: torch.Generator | None, *shape: int) -> Tensor:
    """Uniform numbers between minus and plus ``size``, ``(*batch, *shape)``."""
    return (2 * uniform((*mu.batch_shape, *shape), mu.points, generator) - 1) * size


def _check_size(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
