"""The place and size that every shape of the data room has: mean zero, in the unit ball."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.measures import DiscreteMeasure

__all__ = ["normalize"]

CHUNK = 512
"""So many clouds are normalised at once, which bounds the memory of intermediate results."""


def normalize(mu: DiscreteMeasure) -> DiscreteMeasure:
    r"""Move and scale each measure so that its mean is zero and its farthest atom lies at distance one.

    .. math:: T_\#\mu, \qquad T(x) = \frac{x - m}{r}, \qquad m = \int x \,\mathrm d\mu / \mu(\mathbb R^d),
              \qquad r = \max_{x \in \operatorname{supp} \mu} |x - m| .

    The centre is the mean of the measure, not of the bounding box, as in ModelNet's usual releases. Atoms of mass zero move
    along and count neither for the centre nor for the radius. A measure in one point goes to the origin.

    Parameters
    ----------
    mu
        Measures ``(*batch, n, d)`` of positive mass.

    Raises
    ------
    ValueError
        If a measure has mass zero.
    """
    centred = mu.points - mu.mean().unsqueeze(-2)
    radius = torch.where(mu.support(), torch.linalg.vector_norm(centred, dim=-1), 0.0).amax(-1)
    return mu.with_points(centred / torch.where(radius > 0, radius, 1.0)[..., None, None])


def normalize_clouds(points: Tensor) -> Tensor:
    """`normalize` for clouds ``(N, n, d)`` of equal masses, in double precision; the result has the default type."""
    dtype = torch.get_default_dtype()  # only the result: meshes may lie far from the origin
    return torch.cat([normalize(DiscreteMeasure(chunk.double())).points.to(dtype) for chunk in points.split(CHUNK)])
