"""The Stein kernel of a radial kernel and a score, whose integral against the score's own measure is zero."""

from __future__ import annotations

from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.kernels import Kernel
from ddeq.kernels.symbols import Symbolic, leading, trailing

__all__ = ["SteinKernel"]


class SteinKernel(Kernel):
    r"""The Stein kernel of a radial kernel, on points that carry their scores.

    With :math:`k(x, y) = \phi(s)`, :math:`s = |x - y|^2`, and the scores :math:`a` at :math:`x` and :math:`b` at :math:`y`,

    .. math:: k_\pi = a \cdot b\, k + a \cdot \nabla_y k + b \cdot \nabla_x k + \nabla_x \cdot \nabla_y k
              = a \cdot b\, \phi + 2 \phi'\, (b - a) \cdot (x - y) - 2 d\, \phi' - 4 s\, \phi'' .

    Its points are ``(x, a)``, of dimension ``2 * dim``, so that it sums like any other kernel.

    Parameters
    ----------
    kernel
        Radial kernel, twice differentiable at :math:`x = y`; sums and multiples of such, parameters included.
    dim
        Dimension :math:`d` of the points without their scores.

    Raises
    ------
    ValueError
        If ``kernel`` is not a function of the distance, or has a kink at :math:`x = y`.
    """

    runs_on_keops = False  # it has no derivatives of profiles

    def __init__(self, kernel: Kernel, dim: int) -> None:
        super().__init__()
        if not isinstance(kernel, Kernel) or not kernel.is_radial:
            raise ValueError(f"kernel: expected a function of the distance such as Gaussian(1.0), got {kernel!r}")
        if not kernel.smooth_on_the_diagonal:
            raise ValueError(
                f"kernel: expected one that is twice differentiable at x = y, such as Gaussian(1.0) or IMQ(1.0), got {kernel!r}"
            )
        self.kernel, self.dim = kernel, dim
        self.positive_definite = kernel.positive_definite

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        displacement = leading(x, self.dim) - leading(y, self.dim)
        at_x, at_y = trailing(x, self.dim), trailing(y, self.dim)
        s = (displacement**2).sum(-1)
        value, first, second = _derivatives(self.kernel, s)
        mixed = ((at_y - at_x) * displacement).sum(-1)
        return (at_x * at_y).sum(-1) * value + 2.0 * first * (mixed - self.dim) - 4.0 * s * second

    def extra_repr(self) -> str:
        return f"{self.kernel!r}, dim={self.dim}"


def _derivatives(kernel: Kernel, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The profile of a radial kernel and its first two derivatives in the squared distance."""

    def profile(t: Tensor) -> Tensor:
        value: Tensor = kernel.profile(t)
        return value

    def first(t: Tensor) -> Tensor:
        return gradient(profile, t)

    return profile(s), first(s), gradient(first, s)
