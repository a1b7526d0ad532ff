"""Integrals of functions of one and of two points against a measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import placed_like, summed
from ddeq.reductions.dispatch import backend_for
from ddeq.reductions.exponential import Exponential
from ddeq.reductions.placement import sum_function

__all__ = [
    "energy_of_difference",
    "gradient_of_difference",
    "integrate",
    "integrate_kernel",
    "integrate_kernel_gradient",
    "integrate_pairs",
    "kernel_average",
    "log_integrate_kernel",
]


def integrate(values: Float[Tensor, "*batch n"], mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
    r"""Integral :math:`\int f \,\mathrm d\mu = \sum_i w_i f_i` of the ``values`` of :math:`f` at the atoms.

    An atom of mass zero adds nothing, even where :math:`f` is infinite or undefined.

    Raises
    ------
    ValueError
        If there is not one value per atom.
    """
    if values.shape[-1:] != (mu.n,):
        raise ValueError(f"values: expected one per atom, shape {(*mu.batch_shape, mu.n)}, got {tuple(values.shape)}")
    massless = (mu.weights == 0) & ~torch.isfinite(values)
    return summed((mu.weights * torch.where(massless, 0.0, values)).sum(-1))


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
    mu = against(x, mu)
    b = mu.weights.unsqueeze(-1) if values is None else mu.weights.unsqueeze(-1) * values
    total = backend_for(kernel, x, mu.points, b).sum_pairs(kernel, x, mu.points, b)
    return total.squeeze(-1) if values is None else total


def integrate_kernel_gradient(kernel: Kernel, x: Float[Tensor, "*batch n d"], mu: DiscreteMeasure) -> Float[Tensor, "*batch n d"]:
    r"""Integral :math:`\int \nabla_1 k(x_i, y) \,\mathrm d\mu(y)`: the gradient of `integrate_kernel` in ``x``, in one sum.

    Parameters
    ----------
    kernel
        The kernel :math:`k`.
    x
        Points ``(*batch, n, d)`` at which the integral is wanted.
    mu
        Measure; a single one serves every point set of the batch.

    Raises
    ------
    ValueError
        If ``x`` and ``mu`` differ in dimension, dtype or device, or their batch shapes do not broadcast.
    """
    mu = against(x, mu)
    return backend_for(kernel, x, mu.points, mu.weights).sum_gradients(kernel, x, mu.points, mu.weights)


def energy_of_difference(kernel: Kernel, mu: DiscreteMeasure, nu: DiscreteMeasure) -> Float[Tensor, "*batch"] | None:
    r"""Energy :math:`\tfrac12 \iint k \,\mathrm d(\mu - \nu)\,\mathrm d(\mu - \nu)`, half of the squared MMD.

    None if the backend has it by sums over pairs only: by `integrate_kernel`.

    Parameters
    ----------
    kernel
        The kernel :math:`k`.
    mu, nu
        Measures of one dimension and batch shape.
    """
    return backend_for(kernel, mu.points, nu.points, nu.weights).energy_of_difference(kernel, *_parts(mu), *_parts(nu))


def gradient_of_difference(kernel: Kernel, mu: DiscreteMeasure, nu: DiscreteMeasure) -> Float[Tensor, "*batch n d"] | None:
    r"""Integral :math:`\int \nabla_1 k(x_i, y) \,\mathrm d(\mu - \nu)(y)` at the atoms :math:`x_i` of :math:`\mu`.

    None if the backend has it by sums over pairs only: by `integrate_kernel_gradient`.

    Parameters
    ----------
    kernel
        The kernel :math:`k`.
    mu, nu
        Measures of one dimension and batch shape.
    """
    return backend_for(kernel, mu.points, nu.points, nu.weights).gradients_of_difference(kernel, *_parts(mu), *_parts(nu))


def _parts(mu: DiscreteMeasure) -> tuple[Tensor, Tensor]:
    return mu.points, mu.weights


def log_integrate_kernel(
    kernel: Kernel,
    x: Float[Tensor, "*batch n d"],
    mu: DiscreteMeasure,
    exponents: Float[Tensor, "*batch m"] | None = None,
) -> Float[Tensor, "*batch n"]:
    r"""Logarithm :math:`\log \int k(x_i, y)\, e^{g(y)} \,\mathrm d\mu(y)` of an integral, without overflow or underflow.

    The logarithm of a kernel density estimate; with a Gaussian kernel of bandwidth :math:`\sqrt\varepsilon`, the soft minimum
    of Sinkhorn's algorithm. Derivatives in weights that are zero are finite: no logarithm of a weight is taken.

    Parameters
    ----------
    kernel
        A positive kernel :math:`k`.
    x
        Points ``(*batch, n, d)`` at which the integral is wanted.
    mu
        Measure with ``m`` atoms; a single one serves every point set of the batch.
    exponents
        Values :math:`g` at the atoms of ``mu``, ``(*batch, m)``; default 0.

    Raises
    ------
    ValueError
        If ``x`` and ``mu`` differ in dimension, dtype or device, or their batch shapes do not broadcast.
    """
    kernel, x, y, shift, mu = _without_overflow(kernel, x, mu, exponents)
    b = mu.weights.unsqueeze(-1)
    return shift + backend_for(kernel, x, y, b).sum_pairs(kernel, x, y, b).squeeze(-1).log()


def kernel_average(
    kernel: Kernel,
    x: Float[Tensor, "*batch n d"],
    mu: DiscreteMeasure,
    values: Float[Tensor, "*batch m c"],
    exponents: Float[Tensor, "*batch m"] | None = None,
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n c"]]:
    r"""Logarithm of a kernel density, and average of a function by it.

    .. math:: \log p(x_i) , \quad p(x_i) = \int k(x_i, y)\, e^{g(y)} \,\mathrm d\mu(y) , \qquad
              \frac1{p(x_i)} \int k(x_i, y)\, e^{g(y)} f(y) \,\mathrm d\mu(y) .

    The kernel density and the regression of Nadaraya and Watson, without overflow or underflow: far from all atoms the average
    is that of the nearest ones. With the places of the atoms as values, the average minus :math:`x_i` is the mean shift.

    Parameters
    ----------
    kernel
        A positive kernel :math:`k`.
    x
        Points ``(*batch, n, d)`` at which the average is wanted.
    mu
        Measure of positive mass with ``m`` atoms; a single one serves every point set of the batch.
    values
        Values ``(*batch, m, c)`` of :math:`f` at the atoms of ``mu``.
    exponents
        Values :math:`g` at the atoms of ``mu``, ``(*batch, m)``; default 0.

    Raises
    ------
    ValueError
        If ``x`` and ``mu`` differ in dimension, dtype or device, or their batch shapes do not broadcast.

    References
    ----------
    :cite:t:`comaniciu2002mean`, the mean shift.
    """
    kernel, x, y, shift, mu = _without_overflow(kernel, x, mu, exponents)
    b = mu.weights.unsqueeze(-1) * torch.cat([torch.ones_like(values[..., :1]), values], -1)
    total = backend_for(kernel, x, y, b).sum_pairs(kernel, x, y, b)
    return shift + total[..., 0].log(), total[..., 1:] / total[..., :1]


def _without_overflow(
    kernel: Kernel, x: Tensor, mu: DiscreteMeasure, exponents: Tensor | None = None
) -> tuple[Kernel, Tensor, Tensor, Tensor, DiscreteMeasure]:
    """A kernel and points for which the largest term of each sum is one, and the logarithm that sums are to be shifted by."""
    mu = against(x, mu)
    x = placed_like(x, mu.points)
    g = torch.zeros_like(mu.weights) if exponents is None else exponents.expand(mu.weights.shape)
    exponential, y = Exponential(kernel, mu.dim), torch.cat([mu.points, g.unsqueeze(-1)], -1)
    start, alive = torch.cat([x, torch.zeros_like(x[..., :1])], -1).detach(), mu.support()
    backend = backend_for(exponential, start, y.detach(), alive)
    shift = backend.max_pairs(exponential, start, y.detach(), alive).detach()
    shift = torch.where(torch.isfinite(shift), shift, 0.0)  # a measure of mass zero: the logarithm below is of zero
    return exponential, torch.cat([x, shift.unsqueeze(-1)], -1), y, shift, mu


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
    mu = against(x, mu)

    def pairs(x: Tensor, y: Tensor) -> Tensor:
        displacements = x.unsqueeze(-2) - y.unsqueeze(-3)
        values = function(displacements)
        if values.shape != displacements.shape[:-1]:
            raise ValueError(
                f"function: expected {tuple(displacements.shape)} to go to {tuple(displacements.shape[:-1])}, "
                f"got {tuple(values.shape)}"
            )
        return values

    module = function if isinstance(function, nn.Module) else None
    return sum_function(pairs, x, mu.points, mu.weights.unsqueeze(-1), module).squeeze(-1)


def against(x: Tensor, mu: DiscreteMeasure) -> DiscreteMeasure:
    """``mu`` in the batch shape of ``x``, after a check that they fit together."""
    if x.shape[-1] != mu.dim:
        raise ValueError(f"x: expected points of dimension {mu.dim} as of the measure, got {x.shape[-1]}")
    if (x.dtype, x.device) != (mu.dtype, mu.device):
        raise ValueError(f"x: expected {mu.dtype} on {mu.device} as of the measure, got {x.dtype} on {x.device}")
    try:
        return mu.expand(*x.shape[:-2])
    except RuntimeError:
        raise ValueError(f"x: batch shape {tuple(x.shape[:-2])} does not take a measure of batch {mu.batch_shape}") from None
