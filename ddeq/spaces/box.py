"""Boxes: a lower and an upper bound for each coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.spaces.convex import Convex, as_vector, check_constant
from ddeq.spaces.space import Field, rounding

__all__ = ["Box"]


@dataclass(frozen=True)
class Box(Convex):
    r"""The box :math:`\{x : l_k \le x_k \le u_k\}`; steps of descent are projected, noise is reflected.

    Parameters
    ----------
    low, high
        Bounds: a number for all coordinates, or one for each, ``(d,)``; infinite where there is none.

    Raises
    ------
    ValueError
        If a bound is NaN or requires grad, or ``low < high`` does not hold everywhere.

    References
    ----------
    :cite:t:`skorokhod1961stochastic`, reflected diffusions; :cite:t:`bertsekas1976goldstein`, projected descent.
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0

    def __post_init__(self) -> None:
        low, high = (check_constant(name, getattr(self, name)) for name in ("low", "high"))
        if low.ndim > 1 or high.ndim > 1 or (low.ndim and high.ndim and low.shape != high.shape):
            raise ValueError(
                f"low, high: expected numbers or one for each coordinate, (d,), got {tuple(low.shape)}, {tuple(high.shape)}"
            )
        if not bool((low.double().cpu() < high.double().cpu()).all()):
            raise ValueError(f"low, high: expected low < high in each coordinate, got low={self.low}, high={self.high}")

    def check_dimension(self, d: int, name: str) -> None:
        for which in (self.low, self.high):
            if isinstance(which, Tensor) and which.ndim and which.shape[0] != d:
                raise ValueError(f"{name}: expected points of dimension {which.shape[0]}, that of {self!r}, got {d}")

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return as_vector(self.low, x), as_vector(self.high, x)

    def contains(self, x: Tensor) -> Tensor:
        low, high = self._bounds(x)
        slack = rounding(x) * (1.0 + x.abs())
        return ((x >= low - slack) & (x <= high + slack)).all(-1)

    def project(self, x: Tensor) -> Tensor:
        low, high = self._bounds(x)
        return torch.maximum(torch.minimum(x, high), low)

    def _held(self, x: Tensor, v: Tensor) -> Tensor:
        """Which coordinates are at a bound that ``v`` points out of."""
        low, high = self._bounds(x)
        return ((x <= low) & (v < 0)) | ((x >= high) & (v > 0))

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.where(self._held(x, v), 0.0, v)

    def frame(self, x: Tensor, force: Tensor) -> Field:
        held = self._held(x, force)
        return lambda b: torch.where(held, 0.0, b)

    def reflect(self, x: Tensor, move: Tensor) -> Tensor:
        low, high = self._bounds(x)
        y = x + move
        below, above = torch.isfinite(low), torch.isfinite(high)
        bottom, top = torch.where(below, low, 0.0), torch.where(above, high, 0.0)
        width = torch.where(below & above, top - bottom, 1.0)
        folded = bottom + width - (torch.remainder(y - bottom, 2.0 * width) - width).abs()
        one_sided = torch.where(below, bottom + (y - bottom).abs(), torch.where(above, top - (top - y).abs(), y))
        return self.project(torch.where(below & above, folded, one_sided))
