"""The nearest neighbours of points."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["nearest"]


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
