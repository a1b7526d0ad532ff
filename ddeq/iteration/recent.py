"""`Recent`: the last rows of a growing history; a row is appended without copying them and without changing what was there."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.utils._pytree as pytree
from torch import Tensor

__all__ = ["Recent"]


class Recent:
    """The most recent rows ``(*batch, k, size)``, oldest first. Immutable: `appended` gives another one.

    Rows lie in a buffer with free space behind them. The first call of `appended` from a given end writes there, where no earlier
    `Recent` looks; any other call gets a buffer of its own. As a pytree it is its `rows`.
    """

    __slots__ = ("_buffer", "_end", "rows")

    def __init__(self, rows: Tensor, buffer: _Buffer | None = None, end: int = 0) -> None:
        self.rows, self._buffer, self._end = rows, buffer, end

    @classmethod
    def empty(cls, like: Tensor, size: int) -> Recent:
        """No rows, for samples as those of ``like``, ``(*batch, ...)``, of ``size`` numbers each."""
        return cls(like.new_empty(*like.shape, 0, size))

    def appended(self, row: Callable[[Tensor | None], Tensor], most: int) -> Recent:
        """With one more row, and without the oldest where there would be more than ``most``.

        ``row`` gives the row ``(*batch, size)``; it may write it to the tensor that it is given.
        """
        kept = self.rows[..., max(0, self.rows.shape[-2] + 1 - most) :, :]
        if torch.is_grad_enabled():
            return Recent(torch.cat([kept, row(None).unsqueeze(-2)], -2))
        buffer, end = self._buffer, self._end
        if buffer is None or not buffer.is_free(end):
            buffer, end = _Buffer(kept, most + max(4, most // 2)), kept.shape[-2]
            buffer.is_free(end)
        place = buffer.numbers[..., end, :]
        written = row(place)
        if written is not place:
            place.copy_(written)
        return Recent(buffer.numbers[..., end - kept.shape[-2] : end + 1, :], buffer, end + 1)


class _Buffer:
    """A buffer that begins with some rows."""

    def __init__(self, rows: Tensor, capacity: int) -> None:
        count = rows.shape[-2]
        self.numbers = rows.new_empty(*rows.shape[:-2], capacity, rows.shape[-1])
        self.numbers[..., :count, :] = rows
        self._capacity, self._next = capacity, itertools.count(count)  # counts atomically, whatever the threads

    def is_free(self, place: int) -> bool:
        """Whether nothing was written there yet; then the place belongs to the caller."""
        return place < self._capacity and next(self._next) == place


pytree.register_pytree_node(
    Recent,
    lambda recent: ([recent.rows], None),
    lambda rows, _: Recent(*rows),
    serialized_type_name="ddeq.iteration.Recent",
)
