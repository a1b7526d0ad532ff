"""Half-spaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.spaces.convex import Convex, as_vector, check_constant
from ddeq.spaces.space import Field, length, rounding

__all__ = ["HalfSpace"]

ON_PLANE = 64.0
"""Points this many roundings from the plane lie on it: steps along it add up no more, because they are put there again."""


@dataclass(frozen=True)
class HalfSpace(Convex):
    r"""The half-space :math:`\{x : \langle n, x\rangle \ge c\}`; steps of descent are projected, noise is reflected.

    Parameters
    ----------
    normal
        :math:`n`, ``(d,)``, of any length but zero; it points into the half-space.
    offset
        :math:`c`.

    Raises
    ------
    ValueError
        If the normal is not a finite vector different from zero, the offset is no finite number, or one of them requires grad.
    """

    normal: Tensor
    offset: float = 0.0

    def __post_init__(self) -> None:
        normal, offset = (check_constant(name, getattr(self, name)) for name in ("normal", "offset"))
        if normal.ndim != 1 or not bool(torch.isfinite(normal).all()) or not bool((normal != 0).any()):
            raise ValueError(f"normal: expected a finite vector (d,) different from zero, got {self.normal!r}")
        if offset.ndim or not bool(torch.isfinite(offset)):
            raise ValueError(f"offset: expected a finite number, got {self.offset!r}")

    def check_dimension(self, d: int, name: str) -> None:
        if self.normal.shape[0] != d:
            raise ValueError(f"{name}: expected points of dimension {self.normal.shape[0]}, that of the normal, got {d}")

    def _plane(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The unit normal, and signed distances of points from the plane."""
        normal, offset = as_vector(self.normal, x), as_vector(self.offset, x)
        size = length(normal)
        unit = normal / size
        return unit, (x * unit).sum(-1, keepdim=True) - offset / size

    def _slack(self, x: Tensor, share: float) -> Tensor:
        offset, size = as_vector(self.offset, x), length(as_vector(self.normal, x))
        return share * (length(x, keepdim=True) + offset.abs() / size)

    def _near(self, x: Tensor) -> Tensor:
        return self._slack(x, ON_PLANE * torch.finfo(x.dtype).eps)

    def contains(self, x: Tensor) -> Tensor:
        _, height = self._plane(x)
        return (height >= -rounding(x) - self._slack(x, rounding(x))).squeeze(-1)

    def project(self, x: Tensor) -> Tensor:
        unit, height = self._plane(x)
        return torch.where(height <= self._near(x), x - height * unit, x)

    def _held(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The unit normal, and which points are on the plane with a ``v`` that points out, ``(*batch, n, 1)``."""
        unit, height = self._plane(x)
        on_plane = height <= self._near(x)
        return unit, on_plane & ((v * unit).sum(-1, keepdim=True) < 0)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return self.frame(x, v)(v)

    def frame(self, x: Tensor, force: Tensor) -> Field:
        unit, held = self._held(x, force)
        return lambda b: torch.where(held, b - (b * unit).sum(-1, keepdim=True) * unit, b)

    def reflect(self, x: Tensor, move: Tensor) -> Tensor:
        y = x + move
        unit, height = self._plane(y)
        return y - 2.0 * height.clamp_max(0.0) * unit
