"""Polynomial kernels: finitely many moments."""

from __future__ import annotations

import functools

from ddeq.integers import whole
from ddeq.kernels.base import Kernel, positive
from ddeq.kernels.symbols import Symbolic

__all__ = ["Polynomial"]


class Polynomial(Kernel):
    r"""Polynomial kernel :math:`k(x, y) = (a\, x \cdot y + c)^p`: it sees the moments of a measure up to order :math:`p`.

    Not characteristic, and not translation invariant: far from the origin its values are large and differences of them are
    lost in rounding. Centre the data.

    Parameters
    ----------
    degree
        :math:`p`, a whole number >= 1.
    offset
        :math:`c \ge 0`; 0 leaves the moments of order :math:`p` only.
    scale
        :math:`a > 0`.

    Raises
    ------
    ValueError
        If an option is outside of its range.

    References
    ----------
    :cite:t:`scholkopf2002learning`.
    """

    def __init__(self, degree: int = 2, offset: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        degree = whole("degree", degree)
        if not 0 <= offset < float("inf"):
            raise ValueError(f"offset: expected a finite number >= 0, got {offset}")
        self.degree, self.offset, self.scale = degree, float(offset), float(positive("scale", scale))

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        base = self.scale * (x * y).sum(-1) + self.offset
        return functools.reduce(lambda a, b: a * b, [base] * self.degree)  # KeOps' powers are in single precision

    def extra_repr(self) -> str:
        return f"degree={self.degree}, offset={self.offset:g}, scale={self.scale:g}"
