"""Fixed points of maps on several measures: stored as one, so that every point solver runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ddeq.functionals.packing import Species
from ddeq.iteration import Equation
from ddeq.measures import DiscreteMeasure
from ddeq.solvers.map_equation import Map, MapEquation, check_kind

__all__ = ["SystemEquation", "packed_map"]


class SystemEquation(MapEquation):
    """The points of several measures that a packed map leaves as they are; parameters as of `MapEquation`."""

    def image(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        return Equation.image(self, mu)

    def coupled(self, z: Tensor, residual: Tensor) -> Tensor:
        return Equation.coupled(self, z, residual)

    def matched(self, z: Tensor, status: Tensor, tolerance: float) -> tuple[MapEquation, Tensor | None]:  # type: ignore[override]
        return self, None


def packed_map(map: Map, packing: Species) -> Map:
    """A map of measures by name as one of the measure in which they are stored."""
    return _PackedModule(map, packing) if isinstance(map, nn.Module) else _Packed(map, packing)


class _Packed:
    """The same of a function."""

    def __init__(self, map: Map, packing: Species) -> None:
        self._map, self._packing = map, packing

    def __call__(self, mu: DiscreteMeasure, *args: Any) -> DiscreteMeasure:
        return _image(self._map, self._packing, mu, args)


class _PackedModule(nn.Module):
    def __init__(self, map: nn.Module, packing: Species) -> None:
        super().__init__()
        self.map, self._packing = map, packing

    def forward(self, mu: DiscreteMeasure, *args: Any) -> DiscreteMeasure:
        return _image(self.map, self._packing, mu, args)


def _image(map: Map, packing: Species, mu: DiscreteMeasure, args: tuple[Any, ...]) -> DiscreteMeasure:
    measures = packing.unpack(mu)
    images: Any = map(measures, *args)
    if not isinstance(images, Mapping) or images.keys() != measures.keys():
        seen = list(images) if isinstance(images, Mapping) else type(images).__name__
        raise ValueError(f"map: expected it to return measures by the names {list(measures)}, got {seen}")
    for name, before in measures.items():
        try:
            check_kind(before, images[name], ("weights", "marks"))
        except ValueError as error:
            raise ValueError(f"{error}; so it is for {name!r}") from None
    return mu.with_points(packing.pack_field({name: image.points for name, image in images.items()}))
