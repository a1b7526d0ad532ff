"""The unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.spaces.space import Space, length, rounding

__all__ = ["Sphere"]


@dataclass(frozen=True)
class Sphere(Space):
    r"""The unit sphere :math:`S^{d-1} = \{x \in \mathbb R^d : |x| = 1\}`, with the metric of the surrounding space.

    Steps follow great circles (the exponential map), along which vectors are transported in parallel.

    References
    ----------
    :cite:t:`absil2008optimization`.
    """

    def contains(self, x: Tensor) -> Tensor:
        return (length(x) - 1.0).abs() <= rounding(x)

    def check_dimension(self, d: int, name: str) -> None:
        if d < 2:
            raise ValueError(f"{name}: expected points of dimension 2 or more on a sphere, got {d}")

    def project(self, x: Tensor) -> Tensor:
        largest = x.detach().abs().amax(-1, keepdim=True)
        known = largest > 0
        x = x / torch.where(known, largest, 1.0)  # whose square does not vanish
        pole = torch.zeros_like(x)
        pole[..., -1] = 1.0
        x = torch.where(known, x, pole)
        return x / length(x, keepdim=True)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v - (x * v).sum(-1, keepdim=True) * x

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        ratio, versed = _sines(v)
        y = x - versed * v.square().sum(-1, keepdim=True) * x + ratio * v
        return y / length(y, keepdim=True)

    def transport(self, x: Tensor, v: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        ratio, versed = _sines(v)
        out = []
        for u in fields:
            along = (u * v).sum(-1, keepdim=True)
            out.append(u - along * (versed * v + ratio * x))
        return tuple(out)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        apart, together = length(x - y), length(x + y)
        return 2.0 * torch.atan2(apart, together)


def _sines(v: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sin\theta/\theta` and :math:`(1 - \cos\theta)/\theta^2` for the lengths :math:`\theta` of ``v``, smooth at
    zero."""
    square = v.square().sum(-1, keepdim=True)
    small = square < 1e-2
    angle = torch.where(small, 1.0, square).sqrt()
    s = torch.where(small, square, 0.0)  # of Taylor's series, whose next terms are below rounding
    sine = 1.0 - s / 6.0 * (1.0 - s / 20.0 * (1.0 - s / 42.0 * (1.0 - s / 72.0 * (1.0 - s / 110.0))))
    versed = 0.5 - s / 24.0 * (1.0 - s / 30.0 * (1.0 - s / 56.0 * (1.0 - s / 90.0 * (1.0 - s / 132.0))))
    large = 2.0 * ((0.5 * angle).sin() / angle).square()
    return torch.where(small, sine, angle.sin() / angle), torch.where(small, versed, large)
