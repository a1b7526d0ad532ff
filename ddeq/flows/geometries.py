"""In which geometry a functional is descended: what the gradient is, and so the velocity of the atoms."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Wasserstein"]


@dataclass(frozen=True)
class Wasserstein:
    r"""The geometry of optimal transport: velocity :math:`-\nabla_W F(\mu)` (T10)."""
