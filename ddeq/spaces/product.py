"""Products of spaces: each takes some of the coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.integers import is_whole
from ddeq.spaces.space import Field, Space

__all__ = ["Product"]


@dataclass(frozen=True, init=False, repr=False)
class Product(Space):
    r"""A product :math:`S_1 \times \dots \times S_k`, whose points are those of the factors one behind the other.

    ``Product((Sphere(), 3), (Box(0.0, 1.0), 1))`` holds points of dimension 4.

    Parameters
    ----------
    factors
        Pairs of a space and the number of coordinates that it takes.

    Raises
    ------
    ValueError
        If a factor is no pair of a `Space` and a positive number, or its space has no such dimension.
    """

    factors: tuple[tuple[Space, int], ...]

    def __init__(self, *factors: tuple[Space, int]) -> None:
        if not factors:
            raise ValueError("factors: expected pairs (space, number of coordinates), got none")
        for factor in factors:
            right = isinstance(factor, tuple) and len(factor) == 2 and isinstance(factor[0], Space)
            if not right or not is_whole(factor[1]) or factor[1] < 1:
                raise ValueError(f"factors: expected pairs (space, number of coordinates), got {factor!r}")
            factor[0].check_dimension(factor[1], "factors")
        object.__setattr__(self, "factors", factors)

    def __repr__(self) -> str:
        return f"Product({', '.join(repr(f) for f in self.factors)})"

    @property
    def has_boundary(self) -> bool:  # type: ignore[override]
        """Whether one of the factors has one."""
        return any(space.has_boundary for space, _ in self.factors)

    @property
    def is_flat(self) -> bool:  # type: ignore[override]
        """Whether all factors are."""
        return all(space.is_flat for space, _ in self.factors)

    @property
    def is_periodic(self) -> bool:  # type: ignore[override]
        """Whether one of the factors is."""
        return any(space.is_periodic for space, _ in self.factors)

    def check_dimension(self, d: int, name: str) -> None:
        wanted = sum(k for _, k in self.factors)
        if d != wanted:
            raise ValueError(f"{name}: expected points of dimension {wanted}, that of {self!r}, got {d}")

    def _split(self, *fields: Tensor) -> Iterator[tuple[Space, tuple[Tensor, ...]]]:
        sizes = [k for _, k in self.factors]
        parts = zip(*(field.split(sizes, -1) for field in fields), strict=True)
        return zip((space for space, _ in self.factors), parts, strict=True)

    def contains(self, x: Tensor) -> Tensor:
        return torch.stack([space.contains(a) for space, (a,) in self._split(x)], -1).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return torch.cat([space.project(a) for space, (a,) in self._split(x)], -1)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.cat([space.tangent(*a) for space, a in self._split(x, v)], -1)

    def velocity(self, x: Tensor, force: Tensor) -> Tensor:
        return torch.cat([space.velocity(*a) for space, a in self._split(x, force)], -1)

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([space.inner(*parts) for space, parts in self._split(x, a, b)], -1).sum(-1)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.cat([space.retract(*a) for space, a in self._split(x, v)], -1)

    def transport(self, x: Tensor, v: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        carried = [space.transport(*parts) for space, parts in self._split(x, v, *fields)]
        return tuple(torch.cat(parts, -1) for parts in zip(*carried, strict=True))

    def travelled(self, x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        return torch.cat([space.travelled(*a) for space, a in self._split(x, v, y)], -1)

    def frame(self, x: Tensor, force: Tensor) -> Field:
        sizes = [k for _, k in self.factors]
        frames = [space.frame(*a) for space, a in self._split(x, force)]
        return lambda b: torch.cat([f(part) for f, part in zip(frames, b.split(sizes, -1), strict=True)], -1)

    def moving(self, x: Tensor, force: Tensor) -> Field:
        sizes = [k for _, k in self.factors]
        maps = [space.moving(*a) for space, a in self._split(x, force)]
        return lambda b: torch.cat([f(part) for f, part in zip(maps, b.split(sizes, -1), strict=True)], -1)

    def chart(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.cat([space.chart(*a) for space, a in self._split(x, v)], -1)

    def noise(self, x: Tensor, xi: Tensor) -> Tensor:
        return torch.cat([space.noise(*a) for space, a in self._split(x, xi)], -1)

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        return torch.cat([space.kick(a, b, variance) for space, (a, b) in self._split(x, move)], -1)

    def around(self, x: Tensor) -> Tensor:
        return torch.cat([space.around(a) for space, (a,) in self._split(x)], -1)

    def near(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([space.near(*a) for space, a in self._split(x, y)], -1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([space.distance(*a) for space, a in self._split(x, y)], -1).square().sum(-1).sqrt()

    def induced_at(self, x: Tensor) -> bool:
        return all(space.induced_at(a) for space, (a,) in self._split(x))

    def second_order_at(self, x: Tensor) -> bool:
        return all(space.second_order_at(a) for space, (a,) in self._split(x))
