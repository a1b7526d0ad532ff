"""The reactions of several species as that of the measure in which they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.packed_descent import descent_of
from ddeq.flows.reaction import Reaction
from ddeq.functionals.base import Functional
from ddeq.functionals.packed import OfSpecies, PackedFunctional
from ddeq.functionals.packing import Species
from ddeq.iteration.declared import label_of
from ddeq.measures import DiscreteMeasure

__all__ = ["PackedReaction"]


@dataclass(frozen=True)
class PackedReaction(Reaction):
    """Reactions of some species, each of which keeps or changes the mass of its own; None where a species has none."""

    packing: Species
    parts: tuple[Reaction | None, ...]

    @classmethod
    def of(cls, packing: Species, reactions: Mapping[str, Any]) -> Reaction | None:
        """Of reactions by name."""
        for name, reaction in reactions.items():
            if not isinstance(reaction, Reaction | None):
                raise ValueError(f"reaction: expected a ddeq.flows.Reaction, or None, for {name!r}, got {reaction!r}")
            if reaction is not None and reaction.jumps:
                raise ValueError("reaction: in a system weights move, and atoms do not jump; leave birth_death out")
        if all(r is None for r in reactions.values()):
            return None
        _functional_of(reactions.values())
        return cls(packing, tuple(reactions.values()))

    @property
    def label(self) -> str:
        return label_of(self.parts)

    @property
    def conserves(self) -> bool:
        return all(part is None or part.conserves for part in self.parts)

    @property
    def functional(self) -> Functional | None:  # type: ignore[override]
        """That of the reactions, as one of the packed measure."""
        given = _functional_of(self.parts)
        return None if given is None else PackedFunctional(given, self.packing)

    def _each(self, equation: FunctionalDescent, mu: DiscreteMeasure) -> list[tuple[str, Reaction | None, Any, DiscreteMeasure]]:
        packed, given = equation.functional, _functional_of(self.parts)
        assert isinstance(packed, PackedFunctional)
        measures = self.packing.unpack(mu)
        found: list[tuple[str, Reaction | None, Any, DiscreteMeasure]] = []
        for (name, nu), part in zip(measures.items(), self.parts, strict=True):
            own = OfSpecies(packed.functional if given is None else given, measures, name)
            if part is not None and given is not None:
                part = replace(part, functional=own)  # type: ignore[type-var]
            found.append((name, part, descent_of(equation, nu, own), nu))
        return found

    def react(self, equation: FunctionalDescent, mu: DiscreteMeasure, duration: float | Tensor, step: int) -> Tensor:
        weights = {
            name: nu.weights if part is None else part.react(own, nu, duration, step)
            for name, part, own, nu in self._each(equation, mu)
        }
        return self.packing.pack_numbers(weights)

    def dissipation(self, equation: FunctionalDescent, mu: DiscreteMeasure, step: int) -> Tensor:
        rates = [part.dissipation(own, nu, step) for _, part, own, nu in self._each(equation, mu) if part is not None]
        return torch.stack(rates).sum(0)

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> PackedReaction:
        return PackedReaction(self.packing, tuple(None if r is None else r.rows(keep, batch_shape) for r in self.parts))


def _functional_of(parts: Iterable[Reaction | None]) -> Functional | None:
    """The functional that reactions were given, of all measures and the same for all of them."""
    given = [part.functional for part in parts if part is not None]
    if any(functional is not given[0] for functional in given):
        raise ValueError(
            f"reaction: expected the same functional, of all measures, for the reactions of all species, got {given}"
        )
    return given[0]
