"""The spaces of several species as that of the measure in which they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddeq.functionals.packing import Species
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Field, Space

__all__ = ["PackedSpace"]


@dataclass(frozen=True)
class PackedSpace(Space):
    """The product of the spaces of some species.

    Parameters
    ----------
    packing
        How the species are stored.
    parts
        The space of each, in their order.
    """

    packing: Species
    parts: tuple[Space, ...]

    @classmethod
    def of(cls, packing: Species, spaces: Mapping[str, Any]) -> Space:
        """That of spaces by name; Euclidean space where all of them are."""
        for name, space in spaces.items():
            if not isinstance(space, Space):
                raise ValueError(f"space: expected a ddeq.spaces.Space such as Sphere() for {name!r}, got {space!r}")
        if all(space == Euclidean() for space in spaces.values()):
            return Euclidean()
        return cls(packing, tuple(spaces.values()))

    @property
    def has_boundary(self) -> bool:  # type: ignore[override]
        return any(space.has_boundary for space in self.parts)

    @property
    def is_flat(self) -> bool:  # type: ignore[override]
        return all(space.is_flat for space in self.parts)

    @property
    def is_periodic(self) -> bool:  # type: ignore[override]
        return any(space.is_periodic for space in self.parts)

    def _each(self, name: str, *fields: Tensor, after: tuple[Any, ...] = ()) -> dict[str, Any]:
        """What a method of each space gives."""
        parts = [self.packing.unpack_field(field) for field in fields]
        names = [species for species, *_ in self.packing.shapes]
        return {
            species: getattr(space, name)(*(part[species] for part in parts), *after)
            for species, space in zip(names, self.parts, strict=True)
        }

    def _field(self, name: str, *fields: Tensor, after: tuple[Any, ...] = ()) -> Tensor:
        return self.packing.pack_field(self._each(name, *fields, after=after))

    def admitted(self, mu: DiscreteMeasure, name: str = "mu0") -> DiscreteMeasure:
        measures = self.packing.unpack(mu)
        spaces = zip(measures.items(), self.parts, strict=True)
        return self.packing.pack({species: space.admitted(nu, f"{name}[{species!r}]") for (species, nu), space in spaces})

    def contains(self, x: Tensor) -> Tensor:
        return self.packing.pack_numbers(self._each("contains", x))

    def project(self, x: Tensor) -> Tensor:
        return self._field("project", x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return self._field("tangent", x, v)

    def velocity(self, x: Tensor, force: Tensor) -> Tensor:
        return self._field("velocity", x, force)

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        found = self._each("inner", x, a, b)
        dims = {species: d for species, _, d, _ in self.packing.shapes}
        whole = {s: torch.nn.functional.pad(t.unsqueeze(-1), (0, dims[s] - 1)) for s, t in found.items()}  # once for each atom
        return self.packing.pack_field(whole).squeeze(-1)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self._field("retract", x, v)

    def transport(self, x: Tensor, v: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        found = self._each("transport", x, v, *fields)
        return tuple(self.packing.pack_field({s: parts[k] for s, parts in found.items()}) for k in range(len(fields)))

    def travelled(self, x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        return self._field("travelled", x, v, y)

    def _map(self, name: str, x: Tensor, force: Tensor) -> Field:
        maps = self._each(name, x, force)

        def mapped(b: Tensor) -> Tensor:
            parts = self.packing.unpack_field(b)
            return self.packing.pack_field({species: map(parts[species]) for species, map in maps.items()})

        return mapped

    def frame(self, x: Tensor, force: Tensor) -> Field:
        return self._map("frame", x, force)

    def moving(self, x: Tensor, force: Tensor) -> Field:
        return self._map("moving", x, force)

    def chart(self, x: Tensor, v: Tensor) -> Tensor:
        return self._field("chart", x, v)

    def noise(self, x: Tensor, xi: Tensor) -> Tensor:
        return self._field("noise", x, xi)

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        return self._field("kick", x, move, after=(variance,))

    def around(self, x: Tensor) -> Tensor:
        return self._field("around", x)

    def near(self, x: Tensor, y: Tensor) -> Tensor:
        return self._field("near", x, y)

    def induced_at(self, x: Tensor) -> bool:
        return all(self._each("induced_at", x).values())

    def second_order_at(self, x: Tensor) -> bool:
        return all(self._each("second_order_at", x).values())
