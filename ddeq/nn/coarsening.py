"""Fewer atoms that stand for many: points far from each other, and the masses around them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddeq.autodiff import without_autocast
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["Coarse", "canonical_order", "coarsen", "farthest_points"]


class Coarse(NamedTuple):
    """What `coarsen` gives."""

    measure: DiscreteMeasure
    """The centres, with the masses around them."""
    atoms: Tensor
    """Which atoms the centres are, ``(*batch, count)``."""


def coarsen(mu: DiscreteMeasure, count: int, bandwidth: float) -> Coarse:
    r"""A measure on ``count`` atoms of ``mu`` that are far from each other, each with its share of the mass around it.

    .. math:: \sum_k m_k \delta_{c_k}, \qquad m_k = \sum_j w_j \frac{k_h(c_k - x_j)}{\sum_l k_h(c_l - x_j)}

    with a Gaussian kernel of this ``bandwidth``. It is a function of the measure (measure consistency, T1): the centres depend
    on the support alone and not on the order of the atoms, and all mass goes somewhere. A measure of fewer atoms than ``count``
    has its first centre again, with mass zero, in the places that are left.

    Parameters
    ----------
    mu
        Measures of positive mass; not differentiated in which atoms are taken.
    count
        Number of centres.
    bandwidth
        Width of the soft partition.

    Raises
    ------
    ValueError
        If ``count`` or ``bandwidth`` is not positive.

    References
    ----------
    :cite:t:`gonzalez1985clustering`, centres that are far from each other; :cite:t:`qi2017pointnetpp`, in networks.
    """
    if count < 1 or not bandwidth > 0:
        raise ValueError(f"count, bandwidth: expected positive numbers, got {count} and {bandwidth}")
    points, inside = mu.points.reshape(-1, mu.n, mu.dim), mu.support().reshape(-1, mu.n)
    order = canonical_order(points, inside)
    ordered = points.gather(1, order.unsqueeze(-1).expand_as(points))
    chosen = farthest_points(ordered, inside.gather(1, order), count)
    again = (chosen == chosen[:, :1]) & (torch.arange(count, device=chosen.device) > 0)
    index, again = (t.reshape(*mu.batch_shape, count) for t in (order.gather(1, chosen), again))
    centres = mu.points.gather(-2, index.unsqueeze(-1).expand(*index.shape, mu.dim))
    with without_autocast(centres.device):
        squares = (centres.unsqueeze(-2) - mu.points.unsqueeze(-3)).square().sum(-1)
        logits = (squares * (-0.5 / bandwidth**2)).masked_fill(again.unsqueeze(-1), -torch.inf)
        partition = torch.softmax(logits, -2)
        masses = (partition * mu.weights.unsqueeze(-2)).sum(-1)
    return Coarse(unchecked(centres, masses), index)


@torch.no_grad()
def canonical_order(features: Float[Tensor, "b n c"], inside: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The order of the atoms by their first feature, then the second and so on; those outside of the support are last.

    What is chosen by distance alone depends on the order of the atoms where distances tie, as they do on grids; in this order
    permutations and padding change nothing.
    """
    order = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
    for key in [*features.unbind(-1)[::-1], (~inside).to(features.dtype)]:
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


@torch.no_grad()
def farthest_points(points: Float[Tensor, "b n d"], inside: Bool[Tensor, "b n"], count: int) -> Int[Tensor, "b count"]:
    """Atoms that are far from each other: the first one, and again and again the one farthest from those before it.

    A measure of fewer than ``count`` places repeats the first one when all are taken.
    """
    chosen = [inside.to(torch.uint8).argmax(-1)]
    gap = torch.where(inside, torch.inf, -torch.inf).to(points)
    for _ in range(count - 1):
        last = points.gather(1, chosen[-1].view(-1, 1, 1).expand(-1, 1, points.shape[-1]))
        gap = torch.minimum(gap, (points - last).square().sum(-1))
        chosen.append(gap.argmax(-1))  # the first of several
    return torch.stack(chosen, -1)
