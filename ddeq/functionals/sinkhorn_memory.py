"""The potentials of a Sinkhorn divergence: those of one solution, and what is remembered of them from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.functionals.sinkhorn_solver import Solved
from ddeq.measures import DiscreteMeasure
from ddeq.memory import Cached

__all__ = ["Potentials", "Solution", "SolvedAt"]


class Potentials(NamedTuple):
    """What is remembered from step to step, ``(*batch, m)``, ``(*batch, n)`` and ``(*batch, m)``; no derivatives."""

    g: Tensor | None
    p: Tensor
    q: Tensor
    status_of_q: Tensor | None = None
    """`Status` of the solve that found `q`, ``(*batch,)``: it is not solved again."""
    changes: tuple[Tensor, ...] = ()
    """How `g` and `p` changed in the last step."""

    def extrapolated(self) -> Potentials:
        """Those that the next step would have if it changed them as the last one did."""
        assert self.g is not None
        return self._replace(g=self.g + self.changes[0], p=self.p + self.changes[1])


class Solution(NamedTuple):
    """The potentials from the measure to the target, of the measure and itself, of the target and itself."""

    between: Solved
    within: Solved
    of_target: Solved

    @property
    def status(self) -> Tensor:
        """The worst `Status` of the three solves, ``(*batch,)``."""
        return torch.stack([of.status for of in self]).amax(0)


@dataclass(frozen=True)
class SolvedAt(Cached):
    """The solution at the measure for which a functional was prepared."""

    mu: DiscreteMeasure | None
    solution: Solution | None

    def rows(self, keep: Tensor) -> SolvedAt:
        return SolvedAt(None, None)

    def found(self, mu: DiscreteMeasure) -> Solution | None:
        """The solution, if ``mu`` is that measure."""
        if self.mu is None or not (torch.equal(self.mu.points, mu.points) and torch.equal(self.mu.weights, mu.weights)):
            return None
        return self.solution
