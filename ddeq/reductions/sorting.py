"""Sorting along a dimension, as ``torch.sort(stable=True)`` does: on CPU several times as fast, by the sorts of NumPy.

NumPy sorts integers with vector instructions, but gives no order. So the number of each entry is put into the low bits of an
integer whose high bits are as the value: those of single precision fit in whole; of double precision the last bits are left out,
and the few entries that agree in the others are put right afterwards. Older NumPy, or a CPU without such instructions, is slower.

Nothing here depends on the values in a way that a transform could not see: where a derivative is recorded, values go through
``gather`` and ``scatter``; under ``torch.func`` and ``torch.compile``, and on other devices, PyTorch sorts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddeq.autodiff import under_transforms

__all__ = [
    "MANY",
    "arrange",
    "ascending",
    "ascending_with_ties",
    "chunks",
    "in_threads",
    "is_plain",
    "members",
    "put_back",
    "runs",
    "sort",
    "sorted_values",
    "steps_of",
    "values_of_steps",
]

FEW = 2**11
"""Below so many numbers PyTorch sorts as fast."""
MANY = 2**13
"""From so many numbers on NumPy moves them, and rows are worked on in chunks."""
CHUNK = 2**15
"""Numbers at a time, so that what is between two steps stays in the caches."""
PARALLEL = 2**16
"""From this many numbers on, threads share the rows."""
MOST_STEPS, SAMPLE = 2, 64
"""Steps that a row may have to be looked up by comparisons, and at how many places it is looked at first."""
PLUS_INFINITY, MINUS_INFINITY = 0x7FF0000000000000, -0x7FF0000000000001
"""What `_pack` makes of them, but for the low bits."""

_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def sort(values: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Sorted ``values`` and the indices that sort them; equal ones, of which 0 and -0 are two, in the order of their indices.

    NaN comes last. The first output is differentiable in ``values``.
    """
    if not values.ndim or not _sorts_here(values):
        ordered = values.sort(dim=dim, stable=True)
        return ordered.values, ordered.indices
    moved = values.movedim(dim, -1)
    order = ascending(moved)
    return arrange(moved, order).movedim(-1, dim), order.movedim(-1, dim)


def ascending(values: Tensor) -> Tensor:
    """The indices that sort ``values`` along the last dimension, as `sort` gives them."""
    return ascending_with_ties(values)[0]


def ascending_with_ties(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """`ascending`, and at which places ``row * n + k`` a sorted row has one number in ``k`` and ``k + 1``, if that is known."""
    values = values.detach()
    if not _sorts_here(values):
        return values.argsort(dim=-1, stable=True), None
    rows = values.reshape(-1, values.shape[-1]).numpy()
    order = np.empty(rows.shape, np.int64)

    def one(block: slice) -> Any:
        return _sort_rows(rows[block], order[block]) + block.start * rows.shape[1]

    ties = in_threads(one, chunks(*rows.shape), rows.size)
    return torch.from_numpy(order).reshape(values.shape), torch.from_numpy(np.concatenate(ties))


def runs(ties: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place of each run of equal numbers, from the ties between them."""
    apart = ties.diff() > 1
    border = torch.ones_like(ties[:1], dtype=torch.bool)
    return ties[torch.cat([border, apart])], ties[torch.cat([apart, border])] + 1


def members(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """All places of the runs, and the number of the run to which each belongs."""
    length = last - first + 1
    run = torch.repeat_interleave(length)
    return torch.arange(len(run), device=run.device) - (length.cumsum(0) - length - first)[run], run


def arrange(t: Tensor, order: Tensor) -> Tensor:
    """``t.gather(-1, order)``, where the dimensions before the last broadcast; differentiable in ``t``."""
    shape = np.broadcast_shapes(t.shape[:-1], order.shape[:-1])
    t, order = t.expand(*shape, -1), order.expand(*shape, -1)
    if order.numel() < MANY or not _moves_here(t, order):
        return t.gather(-1, order)
    rows, orders = t.detach().numpy(), order.numpy()
    found = np.empty(orders.shape, rows.dtype)
    places = list(product(*map(range, shape)))
    addresses = [rows[place].__array_interface__["data"][0] for place in places]
    steps = {address: steps_of(rows[place]) for address, place in dict(zip(addresses, places, strict=True)).items()}

    def one(k: int) -> None:
        row, place = steps[addresses[k]], places[k]
        if row is None:
            np.take(rows[place], orders[place], out=found[place], mode="clip")
        else:
            for part in chunks(order.shape[-1]):
                found[place][part] = values_of_steps(*row, orders[place][part])

    in_threads(one, list(range(len(places))), orders.size)
    return torch.from_numpy(found)


def sorted_values(values: Tensor) -> Tensor:
    """`sort` along the last dimension without the indices, which takes half of the time where no derivative is recorded."""
    if not (_sorts_here(values) and is_plain(values)):
        return sort(values)[0]
    rows = values.detach().reshape(-1, values.shape[-1]).numpy()
    found = np.empty(rows.shape, rows.dtype)

    def one(block: slice) -> None:
        found[block] = rows[block]
        found[block].sort(axis=-1)

    in_threads(one, chunks(*rows.shape), rows.size)
    return torch.from_numpy(found).reshape(values.shape)


def put_back(t: Tensor, order: Tensor, first: int | None = None) -> Tensor:
    """The inverse of `arrange`: entry ``order[k]`` of the result is ``t[k]``; with ``first`` only the first so many entries."""
    order = order.expand(t.shape)
    first = t.shape[-1] if first is None else first
    if t.numel() < MANY or not _moves_here(t, order):
        return torch.zeros_like(t).scatter(-1, order, t)[..., :first]
    values, orders = t.detach().numpy(), order.numpy()
    found = np.empty((*t.shape[:-1], first), values.dtype)

    def one(row: tuple[int, ...]) -> None:
        where, what = orders[row], values[row]
        if first < t.shape[-1]:
            kept = np.flatnonzero(where < first)
            where, what = where.take(kept), what.take(kept)
        found[row][where] = what

    in_threads(one, list(product(*map(range, t.shape[:-1]))), t.numel())
    return torch.from_numpy(found)


def is_plain(*tensors: Tensor) -> bool:
    """Whether the numbers of tensors are all that matters: on CPU, with no derivative, transform, trace or mode under way."""
    if under_transforms() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    records = torch.is_grad_enabled()
    return all(
        type(t.detach()) is Tensor and not t.is_neg() and t.device.type == "cpu" and not (records and t.requires_grad)
        for t in tensors
    )


def in_threads(work: Callable[[Any], Any], pieces: list[Any], numbers: int = PARALLEL) -> list[Any]:
    """``work(piece)`` for all ``pieces``, by as many threads as PyTorch has if there are many ``numbers``.

    The caller takes its share. ``work`` should spend its time in NumPy, which lets other threads run, and never call this.
    """
    threads = min(torch.get_num_threads(), len(pieces)) if numbers >= PARALLEL else 1
    if threads <= 1:
        return [work(piece) for piece in pieces]
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, "ddeq-sorting")
    shares = [pieces[k::threads] for k in range(threads)]
    others = [_pools[threads].submit(lambda share: [work(p) for p in share], share) for share in shares[1:]]
    try:
        found = [[work(p) for p in shares[0]]]
    finally:
        waited = [other.exception() for other in others]  # no thread still writes where the caller has failed
    del waited
    found += [other.result() for other in others]
    return [found[k % threads][k // threads] for k in range(len(pieces))]


def chunks(n: int, width: int = 1) -> list[slice]:
    """Slices of ``range(n)`` whose items, of ``width`` numbers each, stay in the caches."""
    step = max(1, CHUNK // max(1, width))
    return [slice(k, min(k + step, n)) for k in range(0, n, step)]


def _sorts_here(values: Tensor) -> bool:
    """Whether NumPy is to find the order, for which derivatives do not matter."""
    return values.dtype in (torch.float32, torch.float64) and values.numel() >= FEW and is_plain(values.detach())


def _moves_here(t: Tensor, order: Tensor) -> bool:
    return t.dtype in (torch.float32, torch.float64) and is_plain(t, order)


def _sort_rows(rows: Any, order: Any) -> Any:
    """Writes into ``order`` what sorts each of the ``rows``; the places of ties."""
    n = rows.shape[1]
    low = (1 << max(1, (n - 1).bit_length())) - 1
    keys = order  # the order takes the place of the keys, which are sorted in place
    for part in chunks(n):
        _pack(rows[:, part], low, part.start, keys[:, part])
    if n:
        keys.sort(axis=-1)
        if (keys[:, -1] > (PLUS_INFINITY | low)).any() or (keys[:, 0] < (MINUS_INFINITY & ~low)).any():
            rows = np.where(np.isnan(rows), np.nan, rows)  # one NaN, above infinity, in the place of many
            for part in chunks(n):
                _pack(rows[:, part], low, part.start, keys[:, part])
            keys.sort(axis=-1)
    near = [np.empty(0, np.int64)]
    for part in chunks(n):
        differ = keys[:, part.start : min(part.stop, n - 1)] ^ keys[:, part.start + 1 : part.stop + 1]
        agree = differ.view(np.uint64) <= low
        if agree.any():
            row, place = agree.nonzero()
            near.append(row * n + place + part.start)
        keys[:, part] &= low
    return _put_right(rows, order, np.concatenate(near))


def _pack(values: Any, low: int, start: int, keys: Any) -> None:
    """Integers ordered as the ``values``, with the number of each in the bits ``low``."""
    bits = np.add(values, 0.0, dtype=np.float64).view(np.int64)  # -0.0 + 0.0 is 0.0
    bits ^= (bits >> 63) & 0x7FFFFFFFFFFFFFFF  # of two negative numbers the one with larger bits is smaller
    bits &= ~low
    np.bitwise_or(bits, np.arange(start, start + bits.shape[1]), out=keys)


def _put_right(rows: Any, order: Any, near: Any) -> Any:
    """Orders what agrees in its high bits with the next one, which is at the places ``near``; those of ties."""
    row, place = np.divmod(near, max(1, rows.shape[1]))

    def neighbours() -> tuple[Any, Any]:
        return rows[row, order[row, place]], rows[row, order[row, place + 1]]

    first, second = neighbours()
    wrong = np.unique(row[first > second])
    for k in wrong:
        here = place[row == k]
        here = np.union1d(here, here + 1)
        numbers = order[k, here]
        order[k, here] = numbers[rows[k, numbers].argsort(kind="stable")]  # equal ones were in the order of the indices
    if len(wrong):
        first, second = neighbours()
    return near[~(first < second)]  # NaN and NaN are a tie


def steps_of(row: Any) -> tuple[Any, Any] | None:
    """Where a row that is constant but for a few steps, as weights of measures often are, has them, and its values."""
    bits = row.view(f"i{row.itemsize}")  # of which -0.0 and 0.0 have different ones
    if len(row) < MANY or np.count_nonzero(np.diff(bits[:: 1 + len(row) // SAMPLE])) > MOST_STEPS:
        return None
    ends = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    return None if len(ends) > MOST_STEPS else (ends, row[np.append(0, ends)])


def values_of_steps(ends: Any, values: Any, index: Any) -> Any:
    """``row[index]`` of a row with such steps, by comparisons: random reads from all of it are slower."""
    step = np.zeros(len(index), np.int8)
    for end in ends:
        step += index >= end
    return np.take(values, step, mode="clip")
