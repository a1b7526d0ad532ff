"""The noises of several species as that of the measure in which they are stored."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.noise import Noise
from ddeq.flows.packed_descent import descent_of
from ddeq.functionals.packing import Species
from ddeq.iteration.declared import label_of

__all__ = ["PackedNoise"]

_Own = Callable[[], Tensor]
"""Draws standard normal numbers for the atoms of one species."""


@dataclass(frozen=True)
class PackedNoise(Noise):
    """Noises of some species; None where a species has none."""

    packing: Species
    parts: tuple[Noise | None, ...]

    @classmethod
    def of(cls, packing: Species, noises: Mapping[str, Any]) -> Noise | None:
        """Of noises by name."""
        for name, noise in noises.items():
            if not isinstance(noise, Noise | None):
                raise ValueError(f"noise: expected a ddeq.flows.Noise, or None, for {name!r}, got {noise!r}")
        return None if all(noise is None for noise in noises.values()) else cls(packing, tuple(noises.values()))

    @property
    def label(self) -> str:
        return label_of(self.parts)

    @property
    def stands_for_entropy(self) -> bool:  # type: ignore[override]
        return any(part is not None and part.stands_for_entropy for part in self.parts)

    def _each(
        self,
        equation: FunctionalDescent,
        draw: Callable[[], Tensor],
        of: Callable[[Noise, FunctionalDescent, _Own], Tensor | None],
    ) -> Tensor | None:
        measures, drawn = self.packing.unpack(equation.like), _Drawn(self.packing, draw)
        moves = {
            name: None if part is None else of(part, descent_of(equation, mu), drawn.of(name))
            for (name, mu), part in zip(measures.items(), self.parts, strict=True)
        }
        if all(move is None for move in moves.values()):
            return None
        still = {name: torch.zeros_like(mu.points) for name, mu in measures.items()}
        return self.packing.pack_field({name: still[name] if move is None else move for name, move in moves.items()})

    def displacement(self, equation: FunctionalDescent, draw: Callable[[], Tensor], step: int) -> Tensor | None:
        return self._each(equation, draw, lambda noise, own, drawn: noise.displacement(own, drawn, step))

    def kick(self, equation: FunctionalDescent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> Tensor | None:
        return self._each(equation, draw, lambda noise, own, drawn: noise.kick(own, drawn, duration, step))

    def variance(self, equation: FunctionalDescent, duration: float | Tensor, step: int) -> float | Tensor:
        found = [0.0 if part is None else part.variance(equation, duration, step) for part in self.parts]
        if any(not torch.equal(torch.as_tensor(v), torch.as_tensor(found[0])) for v in found):
            raise ValueError("noise: expected the same temperature for all species on a space or in a geometry of its own")
        return found[0]


class _Drawn:
    """Numbers that are drawn for all species at once, and of which each has its own part, at each of its calls others."""

    def __init__(self, packing: Species, draw: Callable[[], Tensor]) -> None:
        self._packing, self._draw = packing, draw
        self._known: list[dict[str, Tensor]] = []

    def of(self, name: str) -> _Own:
        """How one species draws."""
        calls = itertools.count()

        def own() -> Tensor:
            call = next(calls)
            if call == len(self._known):
                self._known.append(self._packing.unpack_field(self._draw()))
            return self._known[call][name]

        return own
