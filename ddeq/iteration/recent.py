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

    Rows lie in a buffer with room for further ones. Whoever appends first from a given end writes behind it, where no earlier
    `Recent` looks; anyone else gets a buffer of their own. As a pytree it is its `rows`.
    """

    __slots__ = ("_end", "_room", "rows")

    def __init__(self, rows: Tensor, room: _Room | None = None, end: int = 0) -> None:
        self.rows, self._room, self._end = rows, room, end

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
        room, end = self._room, self._end
        if room is None or not room.is_free(end):
            room, end = _Room(kept, 2 * most), kept.shape[-2]
            room.is_free(end)
        place = room.buffer[..., end, :]
        written = row(place)
        if written is not place:
            place.copy_(written)
        return Recent(room.buffer[..., end - kept.shape[-2] : end + 1, :], room, end + 1)


class _Room:
    """A buffer that begins with some rows."""

    def __init__(self, rows: Tensor, capacity: int) -> None:
        count = rows.shape[-2]
        self.buffer = rows.new_empty(*rows.shape[:-2], capacity, rows.shape[-1])
        self.buffer[..., :count, :] = rows
        self._capacity, self._next = capacity, itertools.count(count)  # counts atomically, whatever the threads

    def is_free(self, place: int) -> bool:
        """Whether nobody has written there yet; then the place is the caller's."""
        return place < self._capacity and next(self._next) == place


pytree.register_pytree_node(
    Recent,
    lambda recent: ([recent.rows], None),
    lambda rows, _: Recent(*rows),
    serialized_type_name="ddeq.iteration.Recent",
)
