"""The bandwidth of the particle flow: a multiple of the distance between a measure and its image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Bandwidth", "follow"]

PATIENCE = 10
"""Steps that the separation may take to fall to `FALL` times what it was, before the ratio is halved."""
FALL = 0.5


class Bandwidth(NamedTuple):
    """What the rule remembers of each sample, ``(*batch,)`` each."""

    ratio: Tensor
    """The bandwidth in units of the separation."""
    least: Tensor
    """The separation when it had last fallen, or the ratio was last halved."""
    waited: Tensor
    """Steps since."""

    @classmethod
    def start(cls, like: Tensor, ratio: float) -> Bandwidth:
        """Before the first step; ``like`` has one number for each sample."""
        return cls(torch.full_like(like, ratio), torch.full_like(like, torch.inf), torch.zeros_like(like))


def follow(state: Bandwidth, separation: Tensor) -> Bandwidth:
    """The rule after one more ``separation``: the ratio is halved where that does not fall (particle flow, T21)."""
    fallen = separation < FALL * state.least
    waited = torch.where(fallen, 0.0, state.waited + 1.0)
    halved = waited >= PATIENCE
    return Bandwidth(
        torch.where(halved, 0.5 * state.ratio, state.ratio),
        torch.where(fallen | halved, separation, state.least),
        torch.where(halved, 0.0, waited),
    )
