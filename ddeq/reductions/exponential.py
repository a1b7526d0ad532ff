"""Kernels of the form ``exp(log k + g - a)``, so that sums of exponentials are sums of a kernel."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ddeq.kernels import Kernel
from ddeq.kernels.symbols import Symbolic, at_most, leading, trailing

__all__ = ["Exponential"]

LARGEST = 60.0
"""Bound on exponents. Those of atoms of mass zero are not normalised; their exponentials must stay finite: 0 * inf is NaN."""


class Exponential(Kernel):
    r"""The kernel :math:`\exp(\log k(x, y) + g(y) - a(x))` on points ``(x, a)`` and ``(y, g)`` of one dimension more.

    If :math:`a(x)` is the largest exponent of an atom of positive mass, no exponential overflows.
    """

    def __init__(self, kernel: Kernel, dim: int) -> None:
        super().__init__()
        self.kernel, self.dim = kernel, dim
        self.runs_on_keops = kernel.runs_on_keops

    def log_pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        own = self.kernel.log_pair(leading(x, self.dim), leading(y, self.dim))
        return own + trailing(y, self.dim).sum(-1) - trailing(x, self.dim).sum(-1)

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return at_most(self.log_pair(x, y), LARGEST).exp()

    def log_matrix(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        own = self.kernel.log_matrix(x[..., : self.dim], y[..., : self.dim])
        return own + y[..., self.dim :].mT - x[..., self.dim :]

    def forward(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        return at_most(self.log_matrix(x, y), LARGEST).exp()  # type: ignore[no-any-return]
