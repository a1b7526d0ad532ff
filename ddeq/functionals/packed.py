"""Functionals and velocity fields of several measures as those of the measure in which they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packing import Outer, Packing
from ddeq.measures import DiscreteMeasure

__all__ = ["PackedFunctional", "packed"]


def packed(dynamics: Dynamics, packing: Packing) -> Dynamics:
    """What the packed measure follows where the measures follow ``dynamics``."""
    return PackedFunctional(dynamics, packing) if isinstance(dynamics, Functional) else _PackedDynamics(dynamics, packing)


class PackedFunctional(Functional):
    """A functional of several measures as one of the packed measure, with the gradients that it has itself.

    Parameters
    ----------
    functional
        Of several measures.
    packing
        How they are stored.
    """

    def __init__(self, functional: Functional, packing: Packing) -> None:
        super().__init__()
        self.functional, self._packed = functional, packing
        self.smoothness, self.tolerance, self.reads_marks = functional.smoothness, functional.tolerance, functional.reads_marks
        self.exact_variation, self.varies = functional.exact_variation, functional.varies
        self.remembers, self.draws = functional.remembers, functional.draws
        self.removable = functional.removable and not isinstance(packing, Outer)

    @property
    def packing(self) -> Packing:
        """How the measures are stored."""
        return self._packed

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return self.functional(self._packed.unpack(mu))

    def first_variation(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        if x is not None:
            raise ValueError("x: expected None; packed measures have first variations at the atoms alone")
        return self._packed.pack_numbers(self.functional.first_variation(self._packed.unpack(mu)))

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        places = None if x is None else self._packed.unpack_field(x)
        return self._packed.pack_field(self.functional.wasserstein_gradient(self._packed.unpack(mu), places))

    def keys(self, mu: DiscreteMeasure) -> Tensor | None:
        return self._packed.keys(mu)

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Functional, Any]:
        functional, memory = self.functional.prepare(self._packed.unpack(mu), memory, step, generator)
        return PackedFunctional(functional, self._packed), memory

    def __repr__(self) -> str:
        return repr(self.functional)


class _PackedDynamics(Dynamics):
    """The same of dynamics of several measures that are no functional."""

    def __init__(self, dynamics: Dynamics, packing: Packing) -> None:
        super().__init__()
        self.dynamics, self._packed = dynamics, packing
        self.has_energy, self.varies, self.is_force = dynamics.has_energy, dynamics.varies, dynamics.is_force
        self.remembers, self.draws, self.removable = dynamics.remembers, dynamics.draws, dynamics.removable

    def velocity(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        places = None if x is None else self._packed.unpack_field(x)
        return self._packed.pack_field(self.dynamics.velocity(self._packed.unpack(mu), places))

    def energies(self, mu: DiscreteMeasure) -> Any:
        return self.dynamics.energies(self._packed.unpack(mu))

    def keys(self, mu: DiscreteMeasure) -> Tensor | None:
        return self._packed.keys(mu)

    @property
    def example(self) -> Dynamics:
        return self if self.dynamics.example is self.dynamics else packed(self.dynamics.example, self._packed)

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Dynamics, Any]:
        dynamics, memory = self.dynamics.prepare(self._packed.unpack(mu), memory, step, generator)
        return packed(dynamics, self._packed), memory

    def __repr__(self) -> str:
        return repr(self.dynamics)
