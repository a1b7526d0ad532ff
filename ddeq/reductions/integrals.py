"""Integrals of functions of one and of two points against a measure."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import dense
from ddeq.reductions.backend import choose

__all__ = ["integrate", "integrate_kernel", "integrate_pairs"]


def integrate(values: Float[Tensor, "*batch n"], mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
    r"""Integral :math:`\int f \,\mathrm d\mu = \sum_i w_i f_i` of the ``values`` of :math:`f` at the atoms.

    Raises
    ------
    ValueError
        If there is not one value per atom.
    """
    if values.shape[-1:] != (mu.n,):
        raise ValueError(f"values: expected one per atom, shape {(*mu.batch_shape, mu.n)}, got {tuple(values.shape)}")
    return (mu.weights * values).sum(-1)


def integrate_kernel(
    kernel: Kernel,
    x: Float[Tensor, "*batch n d"],
    mu: DiscreteMeasure,
    values: Float[Tensor, "*batch m c"] | None = None,
) -> Float[Tensor, "*batch n"] | Float[Tensor, "*batch n c"]:
    r"""Integral :math:`\int k(x_i, y) f(y) \,\mathrm d\mu(y)` of a kernel and the ``values`` of a function.

    Parameters
    ----------
    kernel
        The kernel :math:`k`.
    x
        Points ``(*batch, n, d)`` at which the integral is wanted.
    mu
        Measure with ``m`` atoms; a single one serves every point set of the batch.
    values
        Values ``(*batch, m, c)`` at the atoms of ``mu``; default: the constant one, and no last dimension in the result.

    Raises
    ------
    ValueError
        If ``x`` and ``mu`` differ in dimension, dtype or device, or their batch shapes do not broadcast.
    """
    mu = _against(x, mu)
    b = mu.weights.unsqueeze(-1) if values is None else mu.weights.unsqueeze(-1) * values
    if choose(x.shape[-2], mu.n, x.device).name == "keops":
        from ddeq.reductions import keops

        total: Tensor = keops.sum_pairs(kernel, x, mu.points, b)
    else:
        total = dense.sum_pairs(kernel.pair, x, mu.points, b, kernel)
    return total.squeeze(-1) if values is None else total


def integrate_pairs(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch n d"], mu: DiscreteMeasure
) -> Float[Tensor, "*batch n"]:
    r"""Integral :math:`\int f(x_i - y) \,\mathrm d\mu(y)` of a ``function`` of displacements.

    ``function`` takes ``(*batch, n, m, d)`` to ``(*batch, n, m)``.

    Raises
    ------
    ValueError
        If ``function`` returns another shape, or ``x`` and ``mu`` differ in dimension, dtype or device.
    """
    mu = _against(x, mu)

    def pair(x: Tensor, y: Tensor) -> Tensor:
        displacements = x - y
        values = function(displacements)
        if values.shape != displacements.shape[:-1]:
            raise ValueError(
                f"function: expected {tuple(displacements.shape)} to go to {tuple(displacements.shape[:-1])}, "
                f"got {tuple(values.shape)}"
            )
        return values

    module = function if isinstance(function, nn.Module) else None
    return dense.sum_pairs(pair, x, mu.points, mu.weights.unsqueeze(-1), module).squeeze(-1)


def _against(x: Tensor, mu: DiscreteMeasure) -> DiscreteMeasure:
    """``mu`` in the batch shape of ``x``, once they are known to fit."""
    if x.shape[-1] != mu.dim:
        raise ValueError(f"x: expected points of dimension {mu.dim} as of the measure, got {x.shape[-1]}")
    if (x.dtype, x.device) != (mu.dtype, mu.device):
        raise ValueError(f"x: expected {mu.dtype} on {mu.device} as of the measure, got {x.dtype} on {x.device}")
    try:
        return mu.expand(*x.shape[:-2])
    except RuntimeError:
        raise ValueError(f"x: batch shape {tuple(x.shape[:-2])} does not take a measure of batch {mu.batch_shape}") from None
