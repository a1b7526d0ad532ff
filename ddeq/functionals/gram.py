"""Gram matrices of kernels as operators, and the regularised systems in which they stand.

For the Gram matrix :math:`K` of the atoms of a measure and :math:`D = \\mathrm{diag}(d)`, :math:`d \\ge 0`,

.. math:: (\\lambda + K D)^{-1} r = \\tfrac1\\lambda (r - K D^{1/2} S D^{1/2} r), \\qquad
          (\\lambda + D K)^{-1} r = \\tfrac1\\lambda (r - D^{1/2} S D^{1/2} K r), \\qquad
          S = (\\lambda + D^{1/2} K D^{1/2})^{-1} ,

so that one symmetric positive definite system serves both, also where some of the :math:`d` are zero. It is factorised where
the matrix stays within `ddeq.reductions.block_size`, and solved by conjugate gradients where not: then no matrix is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.iteration import InnerProblemWarning, conjugate_gradients
from ddeq.kernels import Kernel
from ddeq.measures import unchecked
from ddeq.messages import warn
from ddeq.reductions import integrate_kernel
from ddeq.reductions.settings import blocks_are_below

__all__ = ["Gram", "RegularizedSystem"]

PASSES = 4
"""Most solves for one right-hand side: each further one removes what rounding, divided by the regularisation, left."""
AIM, ACCEPT = 32, 1e4
"""Rounding units that a relative residual should have, and from which on it is worth a warning."""
MOST_PRODUCTS = 1000
"""Most products of the conjugate gradients in one pass."""


@dataclass(frozen=True)
class Gram:
    """A Gram matrix as an operator, without derivatives."""

    product: Callable[[Tensor], Tensor]
    """The matrix times values, ``(*batch, m)`` to ``(*batch, m)``."""
    matrix: Tensor | None
    """The matrix ``(*batch, m, m)``, where it is stored; ``(m, m)`` serves every batch."""

    @classmethod
    def of(cls, kernel: Kernel, points: Tensor) -> Gram:
        """The matrix of ``points`` ``(*batch, m, d)``, stored where it stays within `ddeq.reductions.block_size`."""
        points = points.detach()
        if cls.is_stored(points):
            with torch.no_grad():
                return cls.stored(kernel(points, points))
        ones = unchecked(points, torch.ones_like(points[..., 0]))

        @torch.no_grad()
        def product(values: Tensor) -> Tensor:
            x = points.expand(*values.shape[:-1], *points.shape[-2:])
            return integrate_kernel(kernel, x, ones, values.unsqueeze(-1)).squeeze(-1)

        return cls(product, None)

    @staticmethod
    def is_stored(points: Tensor) -> bool:
        """Whether the matrix of ``points`` is stored."""
        return not blocks_are_below(points.shape[:-1].numel() * points.shape[-2])

    @classmethod
    def stored(cls, matrix: Tensor) -> Gram:
        """The operator of a matrix."""
        return cls(lambda values: (matrix @ values.unsqueeze(-1)).squeeze(-1), matrix)

    def rows(self, keep: Tensor) -> Gram:
        """The matrices ``keep`` of the first batch dimension, where they are stored; one matrix for all stays."""
        if self.matrix is None:
            raise ValueError("keep: a Gram matrix that is not stored serves all measures of its batch")
        return self if self.matrix.ndim == 2 else Gram.stored(self.matrix[keep])


class RegularizedSystem:
    r"""The matrix :math:`\lambda + K D` and its transpose :math:`\lambda + D K`, to be solved with; no derivatives.

    Parameters
    ----------
    gram
        The Gram matrix :math:`K`.
    density
        Entries :math:`d \ge 0` of :math:`D`, ``(*batch, m)``.
    regularization
        :math:`\lambda > 0`, ``(*batch, 1)``.
    """

    def __init__(self, gram: Gram, density: Tensor, regularization: Tensor) -> None:
        self.gram, self.density, self.regularization = gram, density.detach(), regularization.detach()
        self._root = self.density.sqrt()
        self._factor: Tensor | None = None

    def rows(self, keep: Tensor) -> RegularizedSystem:
        """The system of the entries ``keep`` of the first batch dimension; what serves all measures stays."""
        density, regularization = (t[keep] if t.ndim > 1 else t for t in (self.density, self.regularization))
        chosen = RegularizedSystem(self.gram.rows(keep), density, regularization)
        factor = self._factor
        chosen._factor = factor if factor is None or factor.ndim == 2 else factor[keep]
        return chosen

    @torch.no_grad()
    def solve(self, right: Tensor, *, transposed: bool = False) -> Tensor:
        r"""Solution :math:`x` of :math:`(\lambda + K D) x = r` or, ``transposed``, of :math:`(\lambda + D K) x = r`.

        Parameters
        ----------
        right
            :math:`r`, ``(*batch, m)``.

        Raises
        ------
        ValueError
            If the regularised matrix is not positive definite in the arithmetic at hand.

        Warns
        -----
        InnerProblemWarning
            If an equation does not hold to rounding after all; the message gives the residual.
        """
        if not bool(right.any()):
            return torch.zeros_like(right)
        eps = torch.finfo(right.dtype).eps
        best, least = torch.zeros_like(right), torch.ones_like(right[..., :1])
        x, rest = best, right
        for _ in range(PASSES):
            x = x + self.solve_once(rest, transposed)
            multiple = self.regularization * x
            rest = right - multiple - self._product(x, transposed)
            left = rest.abs().amax(-1, keepdim=True)
            if bool((left <= AIM * eps * torch.maximum(right.abs(), multiple.abs()).amax(-1, keepdim=True)).all()):
                return x
            size = right.abs() + multiple.abs() + self._product(x.abs(), transposed)  # of what is added up
            size = size.amax(-1, keepdim=True)
            residual = left / torch.where(size > 0, size, 1.0)
            better = residual < least
            best, least = torch.where(better, x, best), torch.where(better, residual, least)
            if bool(((residual <= AIM * eps) | ~better).all()):
                break
        failed = least > ACCEPT * eps
        if bool(failed.any()):
            text = (
                "some regularised kernel systems were not solved: take a larger regularization, or a larger "
                "ddeq.reductions.block_size, with which they are factorised"
            )
            warn(InnerProblemWarning(text, failed=failed, residual=least, wanted=AIM * eps))
        return best

    def _product(self, x: Tensor, transposed: bool) -> Tensor:
        return self.density * self.gram.product(x) if transposed else self.gram.product(self.density * x)

    def solve_once(self, right: Tensor, transposed: bool = False) -> Tensor:
        """`solve`, but for what rounding leaves of it; under ``torch.no_grad``."""
        if transposed:
            return (right - self._root * self._symmetric(self._root * self.gram.product(right))) / self.regularization
        return (right - self.gram.product(self._root * self._symmetric(self._root * right))) / self.regularization

    def _symmetric(self, right: Tensor) -> Tensor:
        """Solve with the symmetric matrix between the two."""
        matrix = self.gram.matrix
        if matrix is None:
            root, regularization = self._root, self.regularization

            def operator(z: Tensor) -> Tensor:
                return regularization * z + root * self.gram.product(root * z)

            # What this leaves over, the next pass takes up.
            rtol = torch.finfo(right.dtype).eps ** 0.6
            return conjugate_gradients(operator, right, rtol=rtol, max_steps=MOST_PRODUCTS).x
        if self._factor is None:
            scaled = (self._root.unsqueeze(-1) * matrix).mul_(self._root.unsqueeze(-2))
            scaled.diagonal(dim1=-2, dim2=-1).add_(self.regularization)
            self._factor, info = torch.linalg.cholesky_ex(scaled)
            if bool((info > 0).any()):
                raise ValueError(
                    f"regularization: {float(self.regularization.min()):.1e} is lost in the rounding of a kernel matrix in "
                    f"{right.dtype}, or the kernel is not positive definite; take a larger one"
                )
        if self._factor.ndim == 2 and right.ndim > 1:  # one factor for all
            return torch.cholesky_solve(right.reshape(-1, right.shape[-1]).mT, self._factor).mT.reshape(right.shape)
        return torch.cholesky_solve(right.unsqueeze(-1), self._factor).squeeze(-1)
