"""The simplex of probability vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.spaces.convex import Convex
from ddeq.spaces.space import Field, rounding

__all__ = ["Simplex"]


@dataclass(frozen=True)
class Simplex(Convex):
    r"""Probability vectors :math:`\{x : x_k \ge 0, \sum_k x_k = 1\}`; steps of descent are projected, noise is reflected.

    Noise moves in the plane of the simplex, with unit variance in each of its directions. Where the boundary is singular for a
    flow, as of a Dirichlet law, `ddeq.flows.Mirror` keeps atoms inside.

    References
    ----------
    :cite:t:`duchi2008efficient`, the projection.
    """

    def contains(self, x: Tensor) -> Tensor:
        slack = rounding(x)
        return (x >= -slack).all(-1) & ((x.sum(-1) - 1.0).abs() <= slack * (1.0 + x.abs().sum(-1)))

    def check_dimension(self, d: int, name: str) -> None:
        if d < 2:
            raise ValueError(f"{name}: expected points of dimension 2 or more in a simplex, got {d}")

    def project(self, x: Tensor) -> Tensor:
        lowered = _level(x, torch.zeros_like(x, dtype=torch.bool), x.new_ones(x.shape[:-1]))
        nearest = (x - lowered).clamp_min(0.0)
        return torch.where(_inside(nearest), nearest, 0.0 * nearest)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        free = _inside(x)
        moved = v - _level(v, free, v.new_zeros(v.shape[:-1]))
        return torch.where(free, moved, moved.clamp_min(0.0))

    def frame(self, x: Tensor, force: Tensor) -> Field:
        held = ~_inside(x) & (self.tangent(x, force) <= 0) & (force != 0).any(-1, keepdim=True)
        count = (~held).sum(-1, keepdim=True).clamp_min(1)

        def within(b: Tensor) -> Tensor:
            b = torch.where(held, 0.0, b)
            return torch.where(held, 0.0, b - b.sum(-1, keepdim=True) / count)

        return within

    def noise(self, x: Tensor, xi: Tensor) -> Tensor:
        return xi - xi.mean(-1, keepdim=True)

    def reflect(self, x: Tensor, move: Tensor) -> Tensor:
        d, left = x.shape[-1], move
        while True:  # from face to face
            leaving = left < 0
            time = torch.where(leaving, x / torch.where(leaving, -left, 1.0), torch.inf)
            first, face = time.min(-1, keepdim=True)
            hits = (first < 1.0) & torch.isfinite(left).all(-1, keepdim=True)
            if not bool(hits.any()):
                return self.project(x + left)
            first = torch.where(hits, first.clamp_min(0.0), 0.0)
            at_face = torch.zeros_like(x).scatter(-1, face, 1.0)
            reached = (x + first * left).clamp_min(0.0)
            x = torch.where(hits, torch.where(at_face > 0, 0.0, reached), x)
            normal = at_face - 1.0 / d
            outward = (left * at_face).sum(-1, keepdim=True) * (d / (d - 1.0))
            left = torch.where(hits, (1.0 - first) * (left - 2.0 * outward * normal), left)


def _inside(x: Tensor) -> Tensor:
    """Which coordinates are positive, and not so by rounding alone."""
    return x > 8.0 * torch.finfo(x.dtype).eps


def _level(v: Tensor, free: Tensor, total: Tensor) -> Tensor:
    r"""The number :math:`\lambda` with :math:`\sum_{free} (v - \lambda) + \sum_{rest} (v - \lambda)_+` = ``total``; ``(...,
    1)``."""
    count, start = free.sum(-1, keepdim=True), torch.where(free, v, 0.0).sum(-1, keepdim=True) - total.unsqueeze(-1)
    others = torch.where(free, -torch.inf, v).sort(-1, descending=True).values
    sums = start + torch.where(torch.isfinite(others), others, 0.0).cumsum(-1)
    number = count + torch.arange(1, v.shape[-1] + 1, device=v.device)
    levels = torch.cat([start / count.clamp_min(1), sums / number], -1)
    kept = (others > sums / number).sum(-1, keepdim=True)  # a run from the start
    return levels.gather(-1, kept)
