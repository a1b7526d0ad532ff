"""Squared distances by matrix products of centred points; pairs that are close relative to their norms, by differences.

For centred points with ``|x|^2 + |y|^2 <= C |x - y|^2`` the rounding of ``|x|^2 + |y|^2 - 2 x y`` is at most ``5 C`` times
that of a distance from differences (distances by matrix products, T18). All other pairs are computed anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.autodiff import without_autocast
from ddeq.kernels.distances import by_cdist, product, products_are_reduced, sums_of_differences

__all__ = ["Block", "Differences", "Products", "by_products"]

SAFE = {torch.float32: 16.0, torch.float64: 64.0}
"""The constant ``C``: products in this precision serve for a pair where ``|x|^2 + |y|^2 <= C |x - y|^2``."""
SAFE_IN_DOUBLE = 2.0**20
"""The same for points in single precision whose products are in double precision."""
MANY = 1 / 16
"""Fraction of close pairs above which products in double precision take the place of those in single precision."""
MOST = 1 / 2
"""Fraction of close pairs above which the whole block is from differences."""
AT_A_TIME = 2**20
"""Numbers in the differences of close pairs that are stored at once."""


def by_products(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(*batch, n, m)`` by matrix products, as exact as from differences up to a moderate factor."""
    if not (x.numel() and y.numel()) or x.shape[:-2] != y.shape[:-2]:
        return by_cdist(x, y)
    with torch.no_grad(), without_autocast(x.device):
        return Products(x, y).block(0, x.shape[-2], 0).squares


class _Level(NamedTuple):
    """Centred points in one precision."""

    x: Tensor
    """``(batch, n, d)``"""
    y: Tensor
    """``(batch, m, d)``"""
    a: Tensor
    """Squared norms ``(batch, n, 1)``."""
    b: Tensor
    """Squared norms ``(batch, 1, m)``."""
    safe: float
    largest: float
    """The largest ``|x|^2 + |y|^2``."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor, same: bool, safe: float) -> _Level:
        centre = y.mean(-2, keepdim=True)
        far = y - centre
        near = far if same else x - centre
        b = _squared_norms(far)
        a = b if same else _squared_norms(near)
        largest = float(a.amax()) + (0.0 if same else float(b.amax()))
        return cls(near, far, a, b.mT, safe, 2.0 * largest if same else largest)


class Near(NamedTuple):
    """Pairs of a block whose squared distances are from differences."""

    entry: Tensor
    row: Tensor
    column: Tensor


class Block(NamedTuple):
    """The pairs of some rows of ``x`` with all points of ``y`` from a first one on."""

    begin: int
    first: int
    squares: Tensor
    """Squared distances ``(*batch, rows, columns)``."""
    level: _Level | None
    """What they are products of; None if all are from differences."""
    near: Near | None
    """The exceptions."""

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.begin + self.squares.shape[-2])

    @property
    def columns(self) -> slice:
        return slice(self.first, self.first + self.squares.shape[-1])


@dataclass(frozen=True)
class Products:
    """Pairs of the points ``x`` ``(*batch, n, d)`` and ``y`` ``(*batch, m, d)``, neither of them empty, without derivatives."""

    x: Tensor
    y: Tensor

    @cached_property
    def same(self) -> bool:
        """Whether both are one tensor: a point has the distance zero from itself."""
        x, y = self.x, self.y
        return (x.data_ptr(), x.shape, x.stride()) == (y.data_ptr(), y.shape, y.stride())

    @cached_property
    def _plain(self) -> _Level:
        return self._double if products_are_reduced(self.x) else self._level(self.x.dtype, SAFE[self.x.dtype])

    @cached_property
    def _double(self) -> _Level:
        return self._level(torch.float64, SAFE_IN_DOUBLE)

    def _level(self, dtype: torch.dtype, safe: float) -> _Level:
        x, y = (t.reshape(-1, *t.shape[-2:]).to(dtype) for t in (self.x, self.y))
        return _Level.of(x, y, self.same, safe)

    def block(self, begin: int, end: int, first: int) -> Block:
        """The rows from ``begin`` to before ``end``, the columns from ``first`` on; ``begin`` or 0 if both are `same`."""
        rows, columns = slice(begin, min(end, self.x.shape[-2])), slice(first, None)
        level = self._plain
        s, near = self._squares(level, rows, columns)
        if near is not None and s.dtype != torch.float64 and len(near.row) > MANY * s.numel():
            level = self._double
            s, near = self._squares(level, rows, columns)
        shape = (*self.x.shape[:-2], *s.shape[-2:])
        if near is not None and len(near.row) > MOST * s.numel():
            return Block(begin, first, by_cdist(self.x[..., rows, :], self.y[..., columns, :]), None, None)
        if near is not None:
            close = [d.square().sum(-1) for _, d in self.differences(near, begin, first)]
            s[near] = torch.cat(close).to(s.dtype)
        if self.same:
            own(s, begin - first).zero_()
        return Block(begin, first, s.to(self.x.dtype).reshape(shape), level, near)

    def _squares(self, level: _Level, rows: slice, columns: slice) -> tuple[Tensor, Near | None]:
        """Squared distances by products, and the pairs for which these do not serve."""
        a, b = level.a[:, rows], level.b[..., columns]
        s = (a + b).baddbmm_(level.x[:, rows], level.y[:, columns].mT, alpha=-2.0)
        if self.same:
            own(s, rows.start - columns.start).fill_(torch.inf)
        if float(s.amin()) * level.safe >= level.largest:  # mostly; not so for NaN
            return s, None
        suspects = ~(level.safe * s.amin(-1) >= a.squeeze(-1) + b.amax(-1))
        entry, row = suspects.nonzero(as_tuple=True)
        norms = a[entry, row] + b[entry, 0]
        which, column = (~(level.safe * s[entry, row] >= norms)).nonzero(as_tuple=True)
        return s, Near(entry[which], row[which], column) if len(which) else None

    def differences(self, near: Near, begin: int, first: int) -> Iterator[tuple[slice, Tensor]]:
        """The differences of close pairs, some at a time."""
        n, m, dim = self.x.shape[-2], self.y.shape[-2], self.x.shape[-1]
        x, y = self.x.reshape(-1, dim), self.y.reshape(-1, dim)
        row, column = near.entry * n + near.row + begin, near.entry * m + near.column + first
        size = max(1, AT_A_TIME // dim)
        for at in range(0, len(row), size):
            some = slice(at, at + size)
            yield some, x.index_select(0, row[some]).sub_(y.index_select(0, column[some]))


@dataclass(frozen=True)
class Differences:
    """Sums ``sum_j c_ij b_j (x_i - y_j)``, ``(*batch, n, d)``, added to block by block."""

    pairs: Products
    b: Tensor
    """``(*batch, m)``"""

    @cached_property
    def total(self) -> Tensor:
        """The sums over the blocks that were added."""
        return torch.zeros_like(self.pairs.x, memory_format=torch.contiguous_format)

    @cached_property
    def _plain(self) -> Tensor:
        return self.pairs._plain.y * self._weights

    @cached_property
    def _double(self) -> Tensor:
        return self.pairs._double.y * self._weights

    @cached_property
    def _weights(self) -> Tensor:
        return self.b.reshape(-1, self.b.shape[-1], 1)

    def add(self, block: Block, c: Tensor) -> None:
        """Adds a block with the factors ``c`` ``(*batch, rows, columns)``; if the points are the same, its transpose too.

        Overwrites ``c``.
        """
        x, y, total = self.pairs.x, self.pairs.y, self.total
        rows, columns = block.rows, block.columns
        others = slice(rows.stop, None)  # columns whose pairs with these rows are in no other block
        mirrored = self.pairs.same and rows.stop < x.shape[-2]
        if block.level is None:
            a, b = x[..., rows, :], y[..., columns, :]
            total[..., rows, :] += sums_of_differences(c * self.b[..., None, columns], a, b, by_cdist, block.squares)
            if mirrored:
                c, s = c[..., c.shape[-2] :].mT, block.squares[..., c.shape[-2] :].mT
                total[..., others, :] += sums_of_differences(c * self.b[..., None, rows], y[..., others, :], a, by_cdist, s)
            return
        level = block.level
        weighted = self._plain if level is self.pairs._plain else self._double
        c, flat = c.reshape(-1, *c.shape[-2:]).contiguous(), total.view(-1, *total.shape[-2:])
        if self.pairs.same:
            own(c, block.begin - block.first).zero_()
        if block.near is not None:
            self._add_near(block, block.near, c, mirrored)
        for mine, theirs, factors in ((rows, columns, c), (others, rows, c[..., c.shape[-2] :].mT))[: 1 + mirrored]:
            exact = factors.to(weighted.dtype)
            sums = level.x[:, mine] * torch.bmm(exact, self._weights[:, theirs].to(weighted.dtype))
            flat[:, mine] += sums.baddbmm_(exact, weighted[:, theirs], alpha=-1.0).to(flat.dtype)

    def _add_near(self, block: Block, near: Near, c: Tensor, mirrored: bool) -> None:
        """Adds close pairs by their differences, and sets their factors to zero."""
        x, y, b = self.pairs.x, self.pairs.y, self.b.reshape(-1)
        flat = self.total.view(-1, x.shape[-1])
        close = c[near]
        c[near] = 0.0
        row = near.entry * x.shape[-2] + near.row + block.begin
        column = near.entry * y.shape[-2] + near.column + block.first
        for_rows = close * b[column]
        for_columns = torch.where(near.column < c.shape[-2], 0.0, -close * b[row]) if mirrored else None
        for some, d in self.pairs.differences(near, block.begin, block.first):
            flat.index_add_(0, row[some], d * for_rows[some].unsqueeze(-1))
            if for_columns is not None:
                flat.index_add_(0, column[some], d * for_columns[some].unsqueeze(-1))


def add_sums(total: Tensor, pairs: Products, block: Block, values: Tensor, b: Tensor) -> None:
    """Adds ``sum_j values_ij b_j`` over a block to ``total`` ``(*batch, n, c)``; if points are the same, its transpose too."""
    rows = block.rows
    total[..., rows, :] += product(values, b[..., block.columns, :])
    if pairs.same and rows.stop < total.shape[-2]:
        total[..., rows.stop :, :] += product(values[..., values.shape[-2] :].mT, b[..., rows, :])


def own(s: Tensor, offset: int) -> Tensor:
    """The pairs of points with themselves, a view of ``(batch, rows, columns)``."""
    return s[..., offset : offset + s.shape[-2]].diagonal(dim1=-2, dim2=-1)


def _squared_norms(x: Tensor) -> Tensor:
    """``(*batch, n, 1)``, rounded once."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return norms.square_().to(x.dtype)
