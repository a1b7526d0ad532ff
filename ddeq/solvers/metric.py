"""A discrepancy between measures as the residual of a fixed point: it does not ask which atom goes where."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.functionals.discrepancy import DiscrepancyLike, against
from ddeq.measures import DiscreteMeasure

__all__ = ["check_metric", "relative_discrepancy"]


def relative_discrepancy(
    metric: DiscrepancyLike, mu: DiscreteMeasure, image: DiscreteMeasure, floor: float
) -> tuple[Tensor, Tensor]:
    r"""Residual :math:`\sqrt{2 D(\mu, \Phi(\mu))} \,/\, (\sqrt{2 D(0_\#\mu, \Phi(\mu))} + \text{floor})` and its
    denominator, ``(*batch,)`` each.

    Discrepancies are halves of squares, and the size of a measure is its distance from all its mass at the origin: with half
    the squared Wasserstein distance this is :math:`W_2(\mu, \Phi(\mu)) / (|\Phi(\mu)| + \text{floor})`, at most the
    index-coupled residual. The square root halves the digits, so measures are compared in double precision.

    Parameters
    ----------
    metric
        Function from a target to a functional, such as ``MMD``, or a discrepancy, whose own target does not matter.
    mu, image
        The measures.
    floor
        ``atol / rtol``.
    """
    mu, target = mu.detach().to(torch.float64), image.detach().to(torch.float64)
    functional = against(metric, target)
    with torch.no_grad():
        # Rounding may make them negative: never rounded down to "equal".
        apart = functional(mu).abs()
        size = functional(mu.with_points(torch.zeros_like(mu.points))).abs()
    size = ((2.0 * size).sqrt() + floor).clamp_min(torch.finfo(torch.float64).tiny)
    return ((2.0 * apart).sqrt() / size).to(image.dtype), size.to(image.dtype)


def check_metric(metric: object, mu: DiscreteMeasure) -> None:
    """Raise a `ValueError` unless ``metric`` makes discrepancies between measures."""
    try:
        against(metric, mu)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"stop: expected as its metric a discrepancy between measures, such as MMD or `lambda nu: MMD(nu, kernel)`, got "
            f"{metric!r} ({error})"
        ) from None
