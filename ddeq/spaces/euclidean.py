"""Euclidean space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddeq.spaces.space import Space, length

__all__ = ["Euclidean"]


@dataclass(frozen=True)
class Euclidean(Space):
    r"""All of :math:`\mathbb R^d`: where atoms live unless a space is given."""

    is_flat: ClassVar[bool] = True

    def contains(self, x: Tensor) -> Tensor:
        return torch.isfinite(x).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return x + v

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return length(x - y)
