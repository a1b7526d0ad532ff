"""What convex sets share: projected steps, reflected noise."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from ddeq.spaces.space import Space, length

__all__ = ["Convex", "as_vector", "check_constant"]


class Convex(Space):
    """A closed convex set with the Euclidean metric; to write one: `contains`, `project`, `tangent`, `frame` and `reflect`."""

    has_boundary: ClassVar[bool] = True
    is_flat: ClassVar[bool] = True

    @abstractmethod
    def reflect(self, x: Tensor, move: Tensor) -> Tensor:
        """The end of the path that starts at ``x`` along ``move``, has its length, and is reflected at the boundary.

        Its law is symmetric in start and end where that of ``move`` is isotropic: the uniform law stays.
        """

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.project(x + v)

    def travelled(self, x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        return y - x

    def noise(self, x: Tensor, xi: Tensor) -> Tensor:
        return xi

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        return self.reflect(x, self.noise(x, move))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return length(x - y)


def as_vector(value: float | Tensor, x: Tensor) -> Tensor:
    """A number or a vector in the dtype and on the device of ``x``."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def check_constant(name: str, value: float | Tensor) -> Tensor:
    """A number or a tensor of numbers without NaN and without derivatives; else a `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, Real | Tensor):
        raise ValueError(f"{name}: expected a number or a tensor, got {value!r}")
    given = torch.as_tensor(value)
    if given.requires_grad:
        raise ValueError(f"{name}: it requires grad, but no gradient reaches a space; detach it")
    if bool(given.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got NaN")
    return given
