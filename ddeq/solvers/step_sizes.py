"""Sizes of the steps of the particle flow where the image moves too: safe ones, and long ones that must prove themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.iteration import InnerProduct
from ddeq.iteration.samples import choose

__all__ = ["Moving", "step_size"]

LONGEST = 1e4
"""A long step, in units of the safe one."""
FAR = 10.0
"""Where the velocity becomes so many times larger than the least one, the sample goes back there, and on by safe steps."""
PATIENCE = 20
"""So it does where that has not fallen to `FALL` times the least one for so many steps; until it has."""
FALL = 0.99


class Moving(NamedTuple):
    """What is remembered of each sample, ``(*batch,)`` unless something else is said."""

    gain: Tensor
    """Largest gain of the transposed derivative of the map so far."""
    z: Tensor
    """Where the last step was taken from, ``(*batch, n, d)``."""
    direction: Tensor
    """The direction there, zero before the first step, ``(*batch, n, d)``."""
    best_z: Tensor
    best_direction: Tensor
    """Those where the velocity was least."""
    best: Tensor
    """Its norm there."""
    least: Tensor
    """Norm of the velocity when it had last fallen."""
    waited: Tensor
    """Steps since."""

    @classmethod
    def start(cls, z: Tensor, like: Tensor) -> Moving:
        """Before the first step from ``z``; ``like`` has one number for each sample."""
        none, zero, infinite = torch.zeros_like(like), torch.zeros_like(z), torch.full_like(like, torch.inf)
        return cls(none, z, zero, z, zero, infinite, infinite, none)


def step_size(
    state: Moving, z: Tensor, direction: Tensor, gain: Tensor, velocity: Tensor, inner: InnerProduct, long: Tensor
) -> tuple[Tensor, Moving]:
    r"""The size of a step, ``(*batch,)``, and what is then remembered: also where it is taken from (particle flow, T21).

    The safe size is :math:`(1 + \ell)^{-2}` with the largest gain :math:`\ell` so far. The long one is that of Barzilai and
    Borwein, :math:`\langle s, s\rangle / \langle s, y\rangle` with the last change :math:`s` of the points and :math:`y` of minus
    the direction.

    Parameters
    ----------
    state
        What the last step left.
    z, direction, velocity
        The iterate, the direction there, and the velocity for a fixed image, ``(*batch, n, d)``.
    gain
        Gain of the transposed derivative that was seen there.
    inner
        Inner product of L2(mu).
    long
        Samples that may take long steps, ``(*batch,)``.
    """
    gain = torch.maximum(state.gain, gain)
    safe = (1.0 + gain) ** -2
    norm = inner.norm(velocity)
    fallen = norm < FALL * state.least
    least, waited = torch.where(fallen, norm, state.least), torch.where(fallen, 0.0, state.waited + 1.0)
    better = norm < state.best
    best, best_z = torch.minimum(norm, state.best), choose(better, z, state.best_z)
    best_direction = choose(better, direction, state.best_direction)
    bad = long & ((waited >= PATIENCE) | (norm > FAR * least))
    back = bad & (state.waited < PATIENCE)
    waited = torch.where(bad, waited.clamp_min(PATIENCE), waited)
    moved, change = z - state.z, state.direction - direction
    curved = inner(moved, change)
    known = long & ~bad & (curved > 0)
    size = torch.where(known, inner_ratio(inner(moved, moved), torch.where(known, curved, 1.0)), safe)
    start, along = choose(back, best_z, z), choose(back, best_direction, direction)
    return torch.minimum(size, LONGEST * safe), Moving(gain, start, along, best_z, best_direction, best, least, waited)


def inner_ratio(moved: Tensor, curved: Tensor) -> Tensor:
    """The size of Barzilai and Borwein."""
    return moved / curved
