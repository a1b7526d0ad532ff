"""When to stop, and how it ended."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

from ddeq.integers import set_whole

__all__ = ["Status", "Stop"]


@dataclass(frozen=True)
class Stop:
    """When an iteration stops, for each sample of a batch by itself.

    Parameters
    ----------
    rtol
        A sample has converged when its relative residual is at most ``rtol`` and, where residuals are relative to an iterate
        that may grow, the absolute one is at most half of its largest so far, or ``rtol`` times the size at the start.
    atol
        Absolute residual that is accepted whatever the size: residuals are measured relative to a size plus ``atol / rtol``.
    max_steps
        Most steps to take; 0 only evaluates the start.
    check_every
        Look every so many steps whether all samples have finished: on a GPU each look waits for the device. Results
        do not depend on it.
    patience
        A fixed point whose residual has had no new minimum for so many steps ends as STAGNATED. (Flows may speed up
        after a long time, and ignore it.)

    metric
        What the residual measures; None: what the method measures by itself, the distance between a point and its image
        for fixed points and the norm of the gradient for flows. A flow takes ``"energy"`` too: by how much the energy
        changes in a step. A fixed point takes a discrepancy between measures, such as ``MMD``.

    Raises
    ------
    ValueError
        If a tolerance is negative or not finite, ``rtol`` is zero, or a number of steps is not a whole one in its range.
    """

    rtol: float = 1e-4
    atol: float = 1e-8
    max_steps: int = 100
    check_every: int = 1
    patience: int = 100
    metric: Any = None

    def __post_init__(self) -> None:
        for name, least in (("rtol", "positive"), ("atol", "non-negative")):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0 and (value > 0 or name == "atol")):
                raise ValueError(f"{name}: expected a {least} finite number, got {value}")
        set_whole(self, 0, "max_steps")
        set_whole(self, 1, "check_every", "patience")


class Status(enum.IntEnum):
    """How an iteration ended for a sample."""

    CONVERGED = 0
    """The residual is at most the tolerance, and has come down: not only the iterate has grown (see `Stop`)."""
    MAX_STEPS = 1
    """All steps were taken and the residual is still above the tolerance."""
    DIVERGED = 2
    """The iterates became NaN, infinite, or far larger than they were at the start."""
    STAGNATED = 3
    """The residual has stopped falling above the tolerance."""
    COMPLETED = 4
    """All steps were taken, as asked for without a stop."""
