"""Picard's iteration: apply the map again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Solver

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard(Solver):
    r"""Damped fixed-point iteration, :math:`z_{k+1} = (1 - a) \Phi(z_k) + a z_k` (Krasnoselskii and Mann).

    Converges at rate :math:`a + (1 - a) L` if the map is an :math:`L`-contraction (error bounds, T8); cycles on rotations, where
    `Anderson` does not.

    With ``coupling="optimal"`` an atom is averaged not with its own image but with what the optimal coupling of
    :math:`\mu_k` and :math:`\Phi(\mu_k)` sends it to: the step moves along the geodesic between the two measures, and is
    zero where they agree. That is for maps whose fixed point is one as a measure only (fixed-point discrepancy, T4): their
    images are the same atoms in another order, averaging with which would mix them up. The solve then needs a metric that does
    not ask for the order either, such as ``Stop(metric=Wasserstein)``.

    Parameters
    ----------
    damping
        The share :math:`0 \le a < 1` of the old iterate.
    coupling
        ``"index"``: each atom with its own image; ``"optimal"``: with the barycentric projection of the optimal coupling.
        That is a linear program for each sample and step, on the CPU, and carries no derivatives of the coupling.

    Raises
    ------
    ValueError
        If an option is not in its range.

    References
    ----------
    :cite:t:`mann1953mean`; :cite:t:`krasnoselskii1955two`.
    """

    damping: float = 0.0
    coupling: Literal["index", "optimal"] = "index"

    def __post_init__(self) -> None:
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping: expected 0 <= damping < 1, got {self.damping}")
        if self.coupling not in ("index", "optimal"):
            raise ValueError(f"coupling: expected 'index' or 'optimal', got {self.coupling!r}")

    @property
    def needs_measures(self) -> bool:  # type: ignore[override]
        """Whether it couples measures."""
        return self.coupling == "optimal"

    def init(self, equation: Equation, at: Iterate) -> None:
        return None

    def step(self, equation: Equation, at: Iterate, state: None) -> Step:
        if self.coupling == "index" and not self.damping:
            return Step(at.image, None, to_image=True)
        residual = equation.coupled(at.z, at.residual) if self.coupling == "optimal" else at.residual
        return Step(torch.add(at.z, residual, alpha=1.0 - self.damping), None)
