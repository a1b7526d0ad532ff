"""`Smoothness`: where functionals are twice differentiable."""

from __future__ import annotations

import enum

__all__ = ["Smoothness"]


class Smoothness(enum.IntEnum):
    """Where a functional is twice differentiable in the points; a sum is as smooth as its least smooth part."""

    SMOOTH = 0
    """Everywhere."""
    AS_POTENTIAL = 1
    """Where the function is that the user gave."""
    OFF_DIAGONAL = 2
    """Where no two different atoms coincide; at coincident ones derivatives of distances are zero by convention."""
    ALMOST_EVERYWHERE = 3
    """Outside a set of measure zero."""
