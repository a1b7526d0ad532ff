"""The flat torus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.spaces.convex import as_vector, check_constant
from ddeq.spaces.space import Space, length, rounding

__all__ = ["Torus"]


@dataclass(frozen=True)
class Torus(Space):
    r"""The flat torus: :math:`x_k` and :math:`x_k + L_k` are the same place, and points have :math:`0 \le x_k \le L_k`.

    A functional on it must be periodic, which those with a Euclidean kernel or distance are not: `embed` takes points to
    circles, one for each coordinate, so that ``Functional.of(lambda mu: F(mu.push_forward(torus.embed)))`` is periodic for
    every ``F``. A flow refuses others.

    Parameters
    ----------
    period
        :math:`L`: a number for all coordinates, or one for each, ``(d,)``.

    Raises
    ------
    ValueError
        If a period is not positive and finite, or requires grad.
    """

    period: float | Tensor = 1.0

    is_flat: ClassVar[bool] = True
    is_periodic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        period = check_constant("period", self.period)
        if period.ndim > 1 or not bool((torch.isfinite(period) & (period > 0)).all()):
            raise ValueError(f"period: expected a positive finite number, or one for each coordinate, got {self.period!r}")

    def check_dimension(self, d: int, name: str) -> None:
        if isinstance(self.period, Tensor) and self.period.ndim and self.period.shape[0] != d:
            raise ValueError(f"{name}: expected points of dimension {self.period.shape[0]}, that of the periods, got {d}")

    def contains(self, x: Tensor) -> Tensor:
        period, slack = as_vector(self.period, x), rounding(x)
        return ((x >= -slack * period) & (x <= (1.0 + slack) * period)).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return torch.remainder(x, as_vector(self.period, x))

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.project(x + v)

    def chart(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v  # the same place, without a jump

    def around(self, x: Tensor) -> Tensor:
        return x + as_vector(self.period, x)

    def near(self, x: Tensor, y: Tensor) -> Tensor:
        period = as_vector(self.period, x)
        return y - period * torch.round((y - x).detach() / period)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        period = as_vector(self.period, x)
        apart = torch.remainder(x - y, period)
        return length(torch.minimum(apart, period - apart))

    def embed(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n e"]:
        r"""Points on circles of length :math:`L_k` in :math:`\mathbb R^{2d}`: short distances stay what they are, to third
        order."""
        period = as_vector(self.period, x)
        angle = 2.0 * torch.pi * x / period
        radius = period / (2.0 * torch.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)
