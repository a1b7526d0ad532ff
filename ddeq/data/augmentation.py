"""Random changes of measures that leave their labels as they are, as push-forwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.measures import DiscreteMeasure

__all__ = ["RandomAffine"]


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

        def uniform(size: float, *shape: int) -> Tensor:
            drawn = torch.rand(*mu.batch_shape, *shape, generator=generator, dtype=mu.dtype)
            return ((2 * drawn - 1) * size).to(mu.device)

        angle = uniform(math.radians(self.degrees))
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
        stretch = torch.diag_embed(uniform(math.log1p(self.scale), 2).exp())
        stretch[..., 0, 1] = uniform(self.shear)
        linear, shift = rotation @ stretch, uniform(self.shift, 1, 2)
        return mu.push_forward(lambda x: x @ linear.mT + shift)
