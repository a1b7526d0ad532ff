"""Squared distances by matrix products of centred points; pairs that are close relative to their norms, by differences.

For centred points with ``|x|^2 + |y|^2 <= C |x - y|^2`` the rounding of ``|x|^2 + |y|^2 - 2 x y`` is at most about ``4 C`` times
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
from ddeq.kernels.distances import by_cdist, products_are_reduced, sums_of_differences

__all__ = ["Products", "by_products"]

SAFE = {torch.float32: 16.0, torch.float64: 64.0}
"""The constant ``C``: products of so many digits serve for a pair where ``|x|^2 + |y|^2 <= C |x - y|^2``."""
SAFE_IN_DOUBLE = 2.0**20
"""The same for points in single precision whose products are in double precision."""
MANY = 1 / 16
"""Fraction of close pairs above which products of more digits take the place of those in single precision."""
MOST = 1 / 2
"""Fraction of close pairs above which the whole block is from differences."""
AT_A_TIME = 2**20
"""Numbers in the differences of close pairs that are stored at once."""


def by_products(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(*batch, n, m)`` by matrix products, as exact as from differences up to a moderate factor."""
    if not (x.numel() and y.numel()) or x.shape[:-2] != y.shape[:-2]:
        return by_cdist(x, y)
    with torch.no_grad(), without_autocast(x.device):
        return Products(x, y).block(0, x.shape[-2]).squares


class Near(NamedTuple):
    """Pairs whose squared distances are from differences."""

    row: Tensor
    """Number of the row, those of all batch entries counted together."""
    column: Tensor
    """Number of the column, counted likewise."""
    place: tuple[Tensor, Tensor, Tensor]
    """Index into ``(batch, rows, m)``."""


class _Level(NamedTuple):
    """Points for products of a certain number of digits: ``left @ right.mT`` are the squared distances."""

    left: Tensor
    right: Tensor
    safe: float


class Block(NamedTuple):
    """The pairs of some rows of ``x`` with all of ``y``."""

    begin: int
    squares: Tensor
    """Squared distances ``(*batch, rows, m)``."""
    level: _Level | None
    """The products that they are from; None if all are from differences."""
    near: Near | None
    """The exceptions."""


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
    def _first(self) -> _Level:
        dtype = torch.float64 if products_are_reduced(self.x) else self.x.dtype
        return self._double if dtype != self.x.dtype else self._level(dtype, SAFE[dtype])

    @cached_property
    def _double(self) -> _Level:
        return self._level(torch.float64, SAFE_IN_DOUBLE)

    def _level(self, dtype: torch.dtype, safe: float) -> _Level:
        x, y = (t.reshape(-1, *t.shape[-2:]).to(dtype) for t in (self.x, self.y))
        centre = y.mean(-2, keepdim=True)
        far = y - centre
        near = far if self.same else x - centre
        of_far = _norms(far)
        a, a_rest = of_far if self.same else _norms(near)
        b, b_rest = of_far
        one = torch.ones_like
        # Large terms last: the rounding of a partial sum is relative to its size.
        left = torch.cat([a_rest, one(a), -2.0 * near, a, one(a)], -1)
        return _Level(left, torch.cat([one(b), b_rest, far, one(b), b], -1), safe)

    def block(self, begin: int, end: int) -> Block:
        """The rows ``begin`` to ``end``."""
        level, rows = self._first, slice(begin, end)
        s = level.left[:, rows] @ level.right.mT
        near = self._near(s, level, begin)
        if near is not None and s.dtype != torch.float64 and len(near.row) > MANY * s.numel():
            level = self._double
            s = level.left[:, rows] @ level.right.mT
            near = self._near(s, level, begin)
        shape = (*self.x.shape[:-2], s.shape[-2], s.shape[-1])
        if near is not None and len(near.row) > MOST * s.numel():
            return Block(begin, by_cdist(self.x[..., rows, :], self.y), None, None)
        if near is not None:
            s[near.place] = torch.cat([d.square().sum(-1) for _, d in self._differences(near)]).to(s.dtype)
        if self.same:
            _own(s, begin).zero_()
        return Block(begin, s.to(self.x.dtype).reshape(shape), level, near)

    def gradients(self, block: Block, slopes: Tensor, b: Tensor) -> Tensor:
        """``sum_j slopes_ij b_j (x_i - y_j)``, ``(*batch, rows, d)``. Overwrites the ``slopes`` ``(*batch, rows, m)``."""
        rows = slice(block.begin, block.begin + slopes.shape[-2])
        if block.level is None:
            return sums_of_differences(slopes * b.unsqueeze(-2), self.x[..., rows, :], self.y, by_cdist, block.squares)
        dim, level = self.x.shape[-1], block.level
        c, w = slopes.reshape(-1, *slopes.shape[-2:]).contiguous(), b.reshape(-1, b.shape[-1], 1)
        if self.same:
            _own(c, block.begin).zero_()
        close = None
        if block.near is not None:
            close = c[block.near.place]
            c[block.near.place] = 0.0
        # The columns of `right` are the points and a one: products with it are the sums over j of c_ij y_j and of c_ij.
        sums = c.to(level.right.dtype) @ (level.right[..., 2:-1] * w)
        total = (level.left[:, rows, 2:-2] * (-0.5 * sums[..., dim:])).sub_(sums[..., :dim]).to(c.dtype)
        if block.near is not None and close is not None:
            close = close * w.flatten()[block.near.column]
            entry, row, _ = block.near.place
            row = row + entry * slopes.shape[-2]
            flat = total.reshape(-1, dim)
            for some, differences in self._differences(block.near):
                flat.index_add_(0, row[some], differences.mul_(close[some].unsqueeze(-1)))
        return total.reshape(*slopes.shape[:-1], dim)

    def _near(self, s: Tensor, level: _Level, begin: int) -> Near | None:
        """The pairs for which the products ``s`` do not serve; first by rows, which nearly always settles it."""
        if self.same:
            _own(s, begin).fill_(torch.inf)
        a, b = level.left[:, begin : begin + s.shape[-2], -2], level.right[..., -1]
        suspects = ~(level.safe * s.amin(-1) >= a + b.amax(-1, keepdim=True))  # true for NaN
        if not bool(suspects.any()):
            return None
        entry, row = suspects.nonzero(as_tuple=True)
        which, column = (~(level.safe * s[entry, row] >= a[entry, row].unsqueeze(-1) + b[entry])).nonzero(as_tuple=True)
        if not len(which):
            return None
        entry, row = entry[which], row[which]
        return Near(entry * self.x.shape[-2] + row + begin, entry * self.y.shape[-2] + column, (entry, row, column))

    def _differences(self, near: Near) -> Iterator[tuple[slice, Tensor]]:
        """The differences of close pairs, some at a time."""
        dim = self.x.shape[-1]
        x, y = self.x.reshape(-1, dim), self.y.reshape(-1, dim)
        size = max(1, AT_A_TIME // dim)
        for begin in range(0, len(near.row), size):
            some = slice(begin, begin + size)
            yield some, x.index_select(0, near.row[some]).sub_(y.index_select(0, near.column[some]))


def _norms(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms ``(*batch, n, 1)``, and what their rounding leaves."""
    exact = x.double().square().sum(-1, keepdim=True)
    rounded = exact.to(x.dtype)
    return rounded, (exact - rounded).to(x.dtype)


def _own(s: Tensor, begin: int) -> Tensor:
    """The pairs of points with themselves, a view of ``(batch, rows, m)``."""
    return s[..., begin : begin + s.shape[-2]].diagonal(dim1=-2, dim2=-1)
