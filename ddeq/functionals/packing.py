"""Several measures stored as one: what solvers and steppers then see is one measure on the line, or in the space of its atoms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["Measures", "Outer", "Packing", "Species", "check_species"]

Measures = Mapping[str, DiscreteMeasure]
"""Measures of several species by name."""


class Packing(ABC):
    """How several measures, or fields on their atoms, are stored as one."""

    @abstractmethod
    def pack(self, measures: Any) -> DiscreteMeasure:
        """The measures as one."""

    @abstractmethod
    def unpack(self, mu: DiscreteMeasure) -> Any:
        """The measures that are stored in ``mu``."""

    @abstractmethod
    def pack_field(self, field: Any) -> Tensor:
        """Fields on the atoms of the measures as one on the packed atoms."""

    @abstractmethod
    def unpack_field(self, field: Tensor) -> Any:
        """The fields that are stored in one."""

    @abstractmethod
    def pack_numbers(self, numbers: Any) -> Tensor:
        """A number for each atom of the measures as one for each packed atom, ``(*batch, k)``."""

    @abstractmethod
    def keys(self, mu: DiscreteMeasure) -> Tensor | None:
        """Numbers ``(*batch, k, q)`` that agree where packed atoms are parts of the same place; None: their points do."""


@dataclass(frozen=True)
class Species(Packing):
    r"""Measures by name, of any numbers of atoms and dimensions: each coordinate of each atom is an atom of the line.

    It has the weight of its atom, so that inner products of fields are sums of those in :math:`L^2` of each species.

    Parameters
    ----------
    shapes
        Name, number of atoms, dimension and that of marks, of each species.
    """

    shapes: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, measures: Measures) -> Species:
        """That of some measures."""
        check_species("mu0", measures)
        marks = {name: 0 if mu.marks is None else mu.marks.shape[-1] for name, mu in measures.items()}
        return cls(tuple((name, mu.n, mu.dim, marks[name]) for name, mu in measures.items()))

    @property
    def _sizes(self) -> list[int]:
        return [n * d for _, n, d, _ in self.shapes]

    def pack(self, measures: Measures) -> DiscreteMeasure:
        points = self.pack_field({name: mu.points for name, mu in measures.items()})
        weights = self.pack_numbers({name: mu.weights for name, mu in measures.items()})
        most = max(q for *_, q in self.shapes)
        marks = None
        if most:
            parts = []
            for name, n, d, q in self.shapes:
                mu = measures[name]
                own = mu.points.new_zeros(*mu.batch_shape, n, most)
                if q and mu.marks is not None:
                    own = torch.cat([mu.marks.to(own), own[..., q:]], -1)
                parts.append(own.unsqueeze(-2).expand(*own.shape[:-1], d, most).flatten(-3, -2))
            marks = torch.cat(parts, -2)
        return unchecked(points, weights, marks)

    def unpack(self, mu: DiscreteMeasure) -> dict[str, DiscreteMeasure]:
        points = self.unpack_field(mu.points)
        found = {}
        marks = [None] * len(self.shapes) if mu.marks is None else mu.marks.split(self._sizes, -2)
        for (name, n, d, q), w, m in zip(self.shapes, mu.weights.split(self._sizes, -1), marks, strict=True):
            own = None if m is None or not q else m.unflatten(-2, (n, d))[..., 0, :q]
            found[name] = unchecked(points[name], w.unflatten(-1, (n, d))[..., 0], own)
        return found

    def pack_field(self, field: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([field[name].flatten(-2) for name, *_ in self.shapes], -1).unsqueeze(-1)

    def unpack_field(self, field: Tensor) -> dict[str, Tensor]:
        parts = field.squeeze(-1).split(self._sizes, -1)
        return {name: part.unflatten(-1, (n, d)) for (name, n, d, _), part in zip(self.shapes, parts, strict=True)}

    def pack_numbers(self, numbers: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([numbers[name].repeat_interleave(d, -1) for name, _, d, _ in self.shapes], -1)

    def keys(self, mu: DiscreteMeasure) -> Tensor:
        most, parts = max(d for _, _, d, _ in self.shapes), []
        for number, (name, _, d, _) in enumerate(self.shapes):
            x = self.unpack_field(mu.points)[name].detach()
            whole = torch.cat([x, x.new_zeros(*x.shape[:-1], most - d)], -1)
            whole = whole.unsqueeze(-2).expand(*whole.shape[:-1], d, most)
            which = torch.arange(d, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], d).unsqueeze(-1)
            parts.append(torch.cat([whole, which, torch.full_like(which, number)], -1).flatten(-3, -2))
        return torch.cat(parts, -2)


@dataclass(frozen=True)
class Outer(Packing):
    """The samples of the last batch dimension as one measure of measures: their atoms are those of one measure.

    Parameters
    ----------
    count, atoms
        How many measures there are, and how many atoms each has.
    weights
        Outer weights ``(count,)``; None: equal ones.
    """

    count: int
    atoms: int
    weights: Tensor | None = None

    def _outer(self, like: Tensor) -> Tensor:
        if self.weights is None:
            return like.new_full((self.count, 1), 1.0 / self.count)
        return self.weights.to(like).unsqueeze(-1)

    def pack(self, measures: DiscreteMeasure) -> DiscreteMeasure:
        # Where an outer weight is zero the inner ones are known by a mark alone.
        inner = measures.weights.detach().unsqueeze(-1)
        marks = inner if measures.marks is None else torch.cat([measures.marks.to(inner), inner], -1)
        weights = (measures.weights * self._outer(measures.weights)).flatten(-2)
        return unchecked(measures.points.flatten(-3, -2), weights, marks.flatten(-3, -2))

    def unpack(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        shape, marks = (self.count, self.atoms), mu.marks
        assert marks is not None
        outer = self._outer(mu.weights)
        inner = mu.weights.unflatten(-1, shape) / torch.where(outer > 0, outer, 1.0)
        kept = marks.unflatten(-2, shape)
        inner = torch.where(outer > 0, inner, kept[..., -1].to(inner))
        return unchecked(mu.points.unflatten(-2, shape), inner, kept[..., :-1] if kept.shape[-1] > 1 else None)

    def pack_field(self, field: Tensor) -> Tensor:
        return field.flatten(-3, -2)

    def unpack_field(self, field: Tensor) -> Tensor:
        found: Tensor = field.unflatten(-2, (self.count, self.atoms))
        return found

    def pack_numbers(self, numbers: Tensor) -> Tensor:
        return numbers.flatten(-2)

    def keys(self, mu: DiscreteMeasure) -> Tensor:
        which = torch.arange(self.count, dtype=mu.dtype, device=mu.device).repeat_interleave(self.atoms)
        return torch.cat([mu.points.detach(), which.expand(mu.weights.shape).unsqueeze(-1)], -1)


def check_species(name: str, measures: object) -> None:
    """Raise a `ValueError` unless these are measures by name that share batch shape, dtype and device."""
    if not isinstance(measures, Mapping) or not measures:
        raise ValueError(f"{name}: expected measures by name, {{'prey': mu, 'predator': nu}}, got {measures!r}")
    for key, mu in measures.items():
        if not isinstance(key, str) or "." in key or not isinstance(mu, DiscreteMeasure):
            raise ValueError(f"{name}: expected names without dots and measures, got {key!r}: {type(mu).__name__}")
    kinds = {(mu.batch_shape, mu.dtype, mu.device) for mu in measures.values()}
    if len(kinds) > 1:
        seen = ", ".join(f"{key}: {tuple(mu.batch_shape)}, {mu.dtype}, {mu.device}" for key, mu in measures.items())
        raise ValueError(f"{name}: expected species that share batch shape, dtype and device, got {seen}")
