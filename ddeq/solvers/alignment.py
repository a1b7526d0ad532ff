"""Which atom of a measure is the image of which, for measures that are fixed as measures only (implicit differentiation, T7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.exact_transport import solve

__all__ = ["alignment"]

MAX_STEPS = 1_000_000


def alignment(
    z: Float[Tensor, "*batch n d"], image: Float[Tensor, "*batch n d"], weights: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch n n"]:
    r"""Matrix :math:`R` that takes images back to atoms: :math:`z \approx R\,\Phi(z)` where :math:`\mu` and
    :math:`\Phi(\mu)` are close as measures.

    With an optimal plan :math:`\pi_{ij}` from the image of atom :math:`i` to atom :math:`j`,

    .. math:: R_{ji} = \pi_{ij} / w_j ,

    the inverse of :math:`P = \pi / w` on displacements that are equal on coincident atoms (implicit differentiation, T7):
    :math:`R\Phi` is a map of which :math:`z` is a fixed point atom by atom, so that every adjoint applies to it as it is.
    Coincident atoms share what comes to their place in proportion to their masses; atoms of mass zero keep their own images.

    Parameters
    ----------
    z, image
        Atoms and their images.
    weights
        Their masses.
    """
    n, shape = z.shape[-2], z.shape
    matrices = [
        _one(*(t.detach().double().cpu().numpy() for t in sample))
        for sample in zip(z.reshape(-1, n, shape[-1]), image.reshape(-1, n, shape[-1]), weights.reshape(-1, n), strict=True)
    ]
    return torch.as_tensor(np.stack(matrices)).to(z).reshape(*shape[:-2], n, n)


def _one(z: Any, image: Any, weights: Any) -> Any:
    live = np.flatnonzero(weights > 0)
    matrix = np.diag(np.where(weights > 0, 0.0, 1.0))
    if np.ptp(weights[live]) <= 1e-6 * weights.max():
        from scipy.optimize import linear_sum_assignment
        from scipy.spatial.distance import cdist

        rows, columns = linear_sum_assignment(cdist(z[live], image[live], "sqeuclidean"))
        matrix[live[rows], live[columns]] = 1.0
        return matrix
    share = weights / weights.sum()
    plan = solve(image, share, z, share, MAX_STEPS)
    moved = np.zeros((len(z), len(z)))  # from place to place
    moved[plan.rows, plan.columns] = plan.masses
    source, target = plan.source_places, plan.target_places
    at_source, at_target = (np.bincount(places, share, minlength=len(z)) for places in (source, target))
    pairs = moved[np.ix_(source[live], target[live])].T * share[live]
    matrix[np.ix_(live, live)] = pairs / (at_source[source[live]] * at_target[target[live]][:, None])
    return matrix
