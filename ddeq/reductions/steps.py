"""Sums on the line for masses of few values, as of a measure of equal atoms less another one: sorting is most of the work.

The masses of a row are then known from the numbers of its points by comparisons, and everything is added up in chunks that stay
in the caches of a CPU, in several threads, without derivatives. The sums for all masses are in `ddeq.reductions.sorted`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddeq.reductions.sorting import MANY, chunks, in_threads, steps_of, values_of_steps

__all__ = ["energy_of_steps", "signs_of_steps", "steps_of_rows"]


def _rows(z: Tensor) -> list[tuple[int, ...]]:
    return list(product(*map(range, z.shape[:-1])))


def steps_of_rows(z: Tensor, b: Tensor) -> list[tuple[Any, Any]] | None:
    """`steps_of` the one mass that each point of ``z`` has, row by row; None if there are more, or one has other masses."""
    if z.shape[-1] < MANY or b.shape != (*z.shape[:-1], 1, z.shape[-1]):
        return None
    masses, rows = b.detach().squeeze(-2).numpy(), _rows(z)
    steps: list[tuple[Any, Any]] = []
    for k, row in enumerate(rows):
        same = k > 0 and masses[row].__array_interface__["data"] == masses[rows[k - 1]].__array_interface__["data"]
        found = steps[-1] if same else steps_of(masses[row])
        if found is None:
            return None
        steps.append(found)
    return steps


def signs_of_steps(order: Tensor, steps: list[tuple[Any, Any]], first: int) -> Tensor:
    """`sum_signs` of such masses at different points, in chunks that stay in the caches."""
    orders = order.numpy()
    found = np.empty((*order.shape[:-1], first), steps[0][1].dtype)

    def one(work: tuple[tuple[int, ...], tuple[Any, Any]]) -> None:
        row, (ends, values) = work
        if first < order.shape[-1] and ends.tolist() == [first]:
            _signs_of_first(orders[row], first, values, found[row])
            return
        total = (np.diff(ends, prepend=0, append=order.shape[-1]) * values).sum()
        left = 0.0
        for part in chunks(order.shape[-1]):
            index = orders[row][part]
            b = values_of_steps(ends, values, index)
            upto = torch.from_numpy(b).cumsum(0).numpy()  # several times as fast as NumPy's
            upto += left
            left = upto[-1]
            signs = 2.0 * upto
            signs -= b
            signs -= total
            if first < order.shape[-1]:
                kept = np.flatnonzero(index < first)
                index, signs = index.take(kept), signs.take(kept)
            found[row][index] = signs

    in_threads(one, list(zip(_rows(order), steps, strict=True)), order.numel())
    return torch.from_numpy(found)


def _signs_of_first(order: Any, first: int, values: Any, found: Any) -> None:
    """Writes into ``found`` the sums of signs at the points before ``first``, which have the first mass, and all others the last.

    The mass up to such a point follows from its place among all and its place among its own.
    """
    own, other = (float(value) for value in values)
    constant = own * (1 - first) - other * (len(order) - first)
    before = 0
    for part in chunks(len(order)):
        here = order[part]
        place = np.flatnonzero(here < first)
        index = here.take(place)
        rank = np.arange(before, before + len(place))
        place += part.start
        place -= rank  # how many of the others are before
        signs = np.multiply(rank, 2.0 * own)
        signs += constant
        signs += place * (2.0 * other)
        found[index] = signs
        before += len(rank)


def energy_of_steps(z: Tensor, b: Tensor) -> Tensor | None:
    """`self_energy` of masses that take one value and then another, as of a measure less another one; None if it does not apply.

    Which of both a point has is put into the last bit of its place, so that a sort of numbers alone carries the masses along.
    The places are rounded to even last bits by this, as if the input had been.
    """
    steps = steps_of_rows(z, b)
    if steps is None or any(len(ends) > 1 for ends, _ in steps):
        return None
    lines = z.detach().numpy()

    def one(work: tuple[tuple[int, ...], tuple[Any, Any]]) -> float:
        row, (ends, values) = work
        return _energy_of_row(lines[row], int(ends[0]) if len(ends) else z.shape[-1], values)

    found = in_threads(one, list(zip(_rows(z), steps, strict=True)), z.numel())
    energies = torch.tensor(found, dtype=z.dtype, device=z.device).reshape(z.shape[:-1])
    return energies if bool(energies.isfinite().all()) else None


def _energy_of_row(z: Any, end: int, values: Any) -> float:
    """The energy of points of which those before ``end`` have the first mass and the others the last."""
    n, total = len(z), end * values[0] + (len(z) - end) * values[-1]
    keys = z.copy()
    bits = keys.view(np.int64)
    bits &= -2
    bits[end:] |= 1
    keys.sort()
    energy, left = 0.0, 0.0
    for part in chunks(n - 1):
        here = bits[part.start : part.stop + 1]
        upto = torch.from_numpy(np.take(values, here[:-1] & 1, mode="clip")).cumsum_(0).numpy()
        upto += left
        left = upto[-1]
        gaps = np.diff((here & -2).view(np.float64))
        gaps *= upto
        upto -= total
        gaps *= upto
        energy += gaps.sum()
    return float(energy)
