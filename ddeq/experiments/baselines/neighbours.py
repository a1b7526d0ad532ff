"""Neighbours, and points far from each other, among the atoms of the support.

Which of several atoms at the same distance is taken depends on the order of the atoms, and on grids many are: therefore
atoms are put into an order of their own first, so that permutations and padding change nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["canonical_order", "farthest_points", "nearest"]


def canonical_order(features: Float[Tensor, "b n c"], inside: Bool[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The order of the atoms by their first feature, then the second and so on; those outside of the support are last."""
    order = torch.arange(features.shape[1], device=features.device).expand(features.shape[:2])
    for key in [*features.detach().unbind(-1)[::-1], (~inside).to(features.dtype)]:
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


@torch.no_grad()
def farthest_points(points: Float[Tensor, "b n d"], inside: Bool[Tensor, "b n"], count: int) -> Int[Tensor, "b count"]:
    """Atoms that are far from each other: the first one, and again and again the one farthest from those before it.

    A measure of fewer than ``count`` atoms begins to repeat itself when all are taken.
    """
    chosen = [inside.to(torch.uint8).argmax(-1)]
    gap = torch.where(inside, torch.inf, -torch.inf).to(points)
    for _ in range(count - 1):
        last = points.gather(1, chosen[-1].view(-1, 1, 1).expand(-1, 1, points.shape[-1]))
        gap = torch.minimum(gap, (points - last).square().sum(-1))
        chosen.append(gap.argmax(-1))  # the first of several
    return torch.stack(chosen, -1)


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "q d"],
    points: Float[Tensor, "p d"],
    query_sizes: list[int],
    sizes: list[int],
    k: int,
) -> Int[Tensor, "q k"]:
    """Rows of the ``k`` nearest ``points`` of each query in its own measure, the nearest one first.

    Both are packed, ``sizes`` of them in each measure. Where a measure has fewer than ``k``, its row ends with ``-1``.
    """
    found = []
    start = 0
    for q, p in zip(queries.split(query_sizes), points.split(sizes), strict=True):
        distances = torch.cdist(q, p, compute_mode="donot_use_mm_for_euclid_dist")
        near = start + distances.topk(min(k, len(p)), largest=False).indices
        found.append(torch.nn.functional.pad(near, (0, k - near.shape[-1]), value=-1))
        start += len(p)
    return torch.cat(found)
