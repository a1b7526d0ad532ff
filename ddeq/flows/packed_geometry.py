"""The geometries of several species as that of the measure in which they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ddeq.flows.geometries import Geometry
from ddeq.flows.packed_space import PackedSpace
from ddeq.functionals.base import Functional
from ddeq.functionals.packing import Species
from ddeq.iteration.declared import label_of
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["PackedGeometry"]


class _OneOf(Functional):
    """A packed functional as one of one species, while the others are held fixed."""

    def __init__(self, functional: Functional, packing: Species, measures: Mapping[str, DiscreteMeasure], name: str) -> None:
        super().__init__()
        self.functional, self._of, self._others, self._name = functional, packing, dict(measures), name

    def _whole(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        return self._of.pack({**self._others, self._name: mu})

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return self.functional(self._whole(mu))

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        if x is not None:
            raise ValueError("x: in a system, geometries other than Wasserstein know velocities at the atoms alone")
        return self._of.unpack_field(self.functional.wasserstein_gradient(self._whole(mu)))[self._name]


@dataclass(frozen=True)
class PackedGeometry(Geometry):
    """The product of the geometries of some species; parameters as of `PackedSpace`."""

    packing: Species
    parts: tuple[Geometry, ...]

    is_wasserstein: ClassVar[bool] = False

    @classmethod
    def of(cls, packing: Species, geometries: Mapping[str, Any]) -> Geometry:
        """That of geometries by name; the first where all are that of Wasserstein."""
        for name, geometry in geometries.items():
            if not isinstance(geometry, Geometry):
                raise ValueError(f"geometry: expected a ddeq.flows.Geometry such as Wasserstein() for {name!r}, got {geometry!r}")
        parts = tuple(geometries.values())
        return parts[0] if all(part.is_wasserstein for part in parts) else cls(packing, parts)

    @property
    def label(self) -> str:
        return label_of(self.parts)

    @property
    def is_pointwise(self) -> bool:  # type: ignore[override]
        return all(part.is_gradient for part in self.parts)

    @property
    def replaces_entropy(self) -> bool:  # type: ignore[override]
        return any(part.replaces_entropy for part in self.parts)

    @property
    def space(self) -> Space | None:
        spaces = [part.space or Euclidean() for part in self.parts]
        return None if all(s == Euclidean() for s in spaces) else PackedSpace(self.packing, tuple(spaces))

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        pairs = zip(self.packing.unpack(mu).items(), self.parts, strict=True)
        maps = {name: part.mobility(nu) for (name, nu), part in pairs}

        def mapped(force: Tensor) -> Tensor:
            parts = self.packing.unpack_field(force)
            return self.packing.pack_field({name: map(parts[name]) for name, map in maps.items()})

        return mapped

    def velocity(self, functional: Functional, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        measures = self.packing.unpack(mu)
        places: dict[str, Any] = dict.fromkeys(measures) if x is None else self.packing.unpack_field(x)
        found = {}
        for name, part in zip(measures, self.parts, strict=True):
            of = _OneOf(functional, self.packing, measures, name)
            found[name] = part.velocity(of, measures[name], places[name])
        return self.packing.pack_field(found)
