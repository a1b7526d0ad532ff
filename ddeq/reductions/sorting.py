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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddeq.autodiff import under_transforms

__all__ = ["arrange", "ascending", "ascending_and_distinct", "in_threads", "is_plain", "put_back", "sort"]

FEW = 2**11
"""Below so many numbers PyTorch sorts as fast."""
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
    return ascending_and_distinct(values)[0]


def ascending_and_distinct(values: Tensor) -> tuple[Tensor, bool]:
    """`ascending`, and whether it is known that in no row two values are equal."""
    values = values.detach()
    if not _sorts_here(values):
        return values.argsort(dim=-1, stable=True), False
    rows = values.reshape(-1, values.shape[-1]).numpy()
    order = np.empty(rows.shape, np.int64)
    distinct = in_threads(lambda block: _sort_rows(rows[block], order[block]), _blocks(rows.shape), rows.size)
    return torch.from_numpy(order).reshape(values.shape), all(distinct)


def arrange(t: Tensor, order: Tensor) -> Tensor:
    """``t.gather(-1, order)``, where the dimensions before the last broadcast; differentiable in ``t``."""
    shape = torch.broadcast_shapes(t.shape[:-1], order.shape[:-1])
    if order.shape.numel() < FEW or not is_plain(t, order):
        return t.expand(*shape, -1).gather(-1, order.expand(*shape, -1))
    rows, orders = (np.broadcast_to(a.detach().numpy(), (*shape, a.shape[-1])) for a in (t, order))
    found = np.empty(orders.shape, rows.dtype)
    places = list(np.ndindex(*shape))
    addresses = [rows[place].__array_interface__["data"][0] for place in places]
    steps = {address: _steps(rows[place]) for address, place in dict(zip(addresses, places, strict=True)).items()}

    def one(k: int) -> None:
        row, place = steps[addresses[k]], places[k]
        if row is None:
            np.take(rows[place], orders[place], out=found[place], mode="clip")
        else:
            _choose(row, orders[place], found[place])

    in_threads(one, list(range(len(places))), orders.size)
    return torch.from_numpy(found)


def put_back(t: Tensor, order: Tensor, first: int | None = None) -> Tensor:
    """The inverse of `arrange`: entry ``order[k]`` of the result is ``t[k]``. With ``first`` only so many entries, the first ones."""
    order = order.expand(t.shape)
    first = t.shape[-1] if first is None else first
    if t.numel() < FEW or not is_plain(t, order):
        return torch.zeros_like(t).scatter(-1, order, t)[..., :first]
    values, orders = t.detach().numpy(), order.numpy()
    found = np.empty((*t.shape[:-1], first), values.dtype)

    def one(row: tuple[int, ...]) -> None:
        where, what = orders[row], values[row]
        if first < t.shape[-1]:
            kept = np.flatnonzero(where < first)
            where, what = where.take(kept), what.take(kept)
        found[row][where] = what

    in_threads(one, list(np.ndindex(*t.shape[:-1])), t.numel())
    return torch.from_numpy(found)


def is_plain(*tensors: Tensor) -> bool:
    """Whether the numbers of tensors are all that matters: on CPU, with no derivative, transform, trace or mode under way."""
    if under_transforms() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    records = torch.is_grad_enabled()
    return all(type(t.detach()) is Tensor and t.device.type == "cpu" and not (records and t.requires_grad) for t in tensors)


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
        waited = [other.exception() for other in others]  # nobody writes into an array that the caller has given up
    del waited
    found += [other.result() for other in others]
    return [found[k % threads][k // threads] for k in range(len(pieces))]


def _sorts_here(values: Tensor) -> bool:
    """Whether NumPy is to find the order, for which derivatives do not matter."""
    return values.dtype in (torch.float32, torch.float64) and values.numel() >= FEW and is_plain(values.detach())


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    """Groups of rows of about `CHUNK` numbers, or single ones."""
    step = max(1, CHUNK // max(1, shape[1]))
    return [slice(k, k + step) for k in range(0, shape[0], step)]


def _parts(n: int) -> list[tuple[int, int]]:
    return [(k, min(k + CHUNK, n)) for k in range(0, n, CHUNK)]


def _sort_rows(rows: Any, order: Any) -> bool:
    """Writes into ``order`` what sorts each of the ``rows``; whether it is known that no two values in a row are equal."""
    n = rows.shape[1]
    low = (1 << max(1, (n - 1).bit_length())) - 1
    keys = order  # the order takes the place of the keys, which are sorted in place
    for start, end in _parts(n):
        _pack(rows[:, start:end], low, start, keys[:, start:end])
    if n:
        keys.sort(axis=-1)
        if (keys[:, -1] > (PLUS_INFINITY | low)).any() or (keys[:, 0] < (MINUS_INFINITY & ~low)).any():
            rows = np.where(np.isnan(rows), np.nan, rows)  # one NaN, above infinity, in the place of many
            for start, end in _parts(n):
                _pack(rows[:, start:end], low, start, keys[:, start:end])
            keys.sort(axis=-1)
    near: list[tuple[Any, Any]] = []
    for start, end in _parts(n):
        agree = (keys[:, start : min(end, n - 1)] ^ keys[:, start + 1 : end + 1]) <= low
        if agree.any():
            row, place = agree.nonzero()
            near.append((row, place + start))
        keys[:, start:end] &= low
    return not near or _put_right(rows, order, *(np.concatenate(a) for a in zip(*near, strict=True)))


def _pack(values: Any, low: int, start: int, keys: Any) -> None:
    """Integers ordered as the ``values``, with the number of each in the bits ``low``."""
    bits = np.add(values, 0.0, dtype=np.float64).view(np.int64)  # -0.0 + 0.0 is 0.0
    bits ^= (bits >> 63) & 0x7FFFFFFFFFFFFFFF  # of two negative numbers the one with larger bits is smaller
    bits &= ~low
    np.bitwise_or(bits, np.arange(start, start + bits.shape[1]), out=keys)


def _put_right(rows: Any, order: Any, row: Any, place: Any) -> bool:
    """Orders what agrees in its high bits with the next one, which is at these places; whether all is different then."""
    first, second = (rows[row, order[row, k]] for k in (place, place + 1))
    distinct = bool(((first < second) | (first > second)).all())  # false where both are NaN
    for k in np.unique(row[first > second]):
        here = place[row == k]
        here = np.union1d(here, here + 1)
        numbers = order[k, here]
        values = rows[k, numbers]
        by_value = values.argsort(kind="stable")  # what agrees in its high bits was in the order of the indices
        order[k, here], values = numbers[by_value], values[by_value]
        distinct = distinct and bool((values[1:] > values[:-1]).all())
    return distinct


def _steps(row: Any) -> list[tuple[int, float]] | None:
    """Where a row that is constant but for a few steps, as weights of measures often are, begins to have which values."""
    bits = row.view(f"i{row.itemsize}")  # of which -0.0 and 0.0 have different ones
    if len(row) < FEW or np.count_nonzero(np.diff(bits[:: 1 + len(row) // SAMPLE])) > MOST_STEPS:
        return None
    begin = np.flatnonzero(bits[1:] != bits[:-1])
    return None if len(begin) > MOST_STEPS else [(k, row[k]) for k in (0, *(begin + 1))]


def _choose(steps: list[tuple[int, float]], order: Any, found: Any) -> None:
    """``row[order]`` of a row with such ``steps``, by comparisons: faster than to look it up all over memory."""
    for start, end in _parts(len(order)):
        part = found[start:end]
        part.fill(steps[0][1])
        for begin, value in steps[1:]:
            np.copyto(part, value, where=order[start:end] >= begin)
