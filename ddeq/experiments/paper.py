"""What the paper on DDEQs solves its equilibria with, under a name that configurations can use."""

from __future__ import annotations

from typing import Literal

from ddeq.flows import Euler
from ddeq.functionals import MMD
from ddeq.solvers import ParticleFlow

__all__ = ["paper_flow"]


def paper_flow(step_size: float = 5.0, target: Literal["moving", "frozen"] = "moving") -> ParticleFlow:
    """The particle flow with the settings of the paper: explicit Euler steps down half the energy distance.

    Parameters
    ----------
    step_size
        Size of the steps.
    target
        As in `ParticleFlow`.

    References
    ----------
    :cite:t:`geuter2025ddeqs`.
    """
    return ParticleFlow(MMD, Euler(step_size), target=target)
