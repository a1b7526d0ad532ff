"""Random mixtures of two measures of a batch, for training with labels that are mixed alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddeq.draws import normal, uniform
from ddeq.measures import DiscreteMeasure

__all__ = ["MixHalfSpaces", "Mixed", "Mixing"]


class Mixed(NamedTuple):
    """Measures made of two each."""

    measure: DiscreteMeasure
    """The mixtures, one for each measure of the batch."""
    partner: Int[Tensor, " b"]
    """Where in the batch the second one stands."""
    share: Float[Tensor, " b"]
    """Share of the first one."""


@runtime_checkable
class Mixing(Protocol):
    """A random way to make measures of two each."""

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> Mixed:
        """Mix each measure of the batch with another one; the generator is PyTorch's own where none is given."""


@dataclass(frozen=True)
class MixHalfSpaces:
    r"""Cuts each measure of a batch by a plane and joins it with what another one has on the other side.

    .. math:: \mu_i \;\mapsto\; \mu_i|_{\langle u, x\rangle > a} + \mu_j|_{\langle u, x\rangle < b},

    with a direction :math:`u` uniform on the sphere, a share :math:`s \sim U(0, 1)`, and :math:`a` and :math:`b` such that the
    first part has the share :math:`s` of the mass of :math:`\mu_i`, and the second the share :math:`1 - s` of the mass of
    :math:`\mu_j`, the next measure of the batch. An atom on a plane is divided. A classifier learns from a mixture that its
    class is that of the first one with weight :math:`s` and that of the second with weight :math:`1 - s`.

    Parameters
    ----------
    probability
        Chance of each measure to be mixed; the others stay as they are, with share one.

    Raises
    ------
    ValueError
        If ``probability`` is not in [0, 1].

    References
    ----------
    :cite:t:`yun2019cutmix`; :cite:t:`zhang2022pointcutmix`, for point clouds.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability: expected a number in [0, 1], got {self.probability}")

    def __call__(self, mu: DiscreteMeasure, generator: torch.Generator | None = None) -> Mixed:
        """Mix the measures of a batch.

        Raises
        ------
        ValueError
            If ``mu`` is not a batch in one dimension, or bears marks.
        """
        if len(mu.batch_shape) != 1 or mu.marks is not None:
            raise ValueError(
                f"mu: expected a batch (b,) of measures without marks, got the batch shape {mu.batch_shape}"
                + ("" if mu.marks is None else " and marks")
            )
        drawn = uniform((*mu.batch_shape, 2), mu.points, generator, torch.float64)
        direction = normal((*mu.batch_shape, mu.dim), mu.points, generator)
        share = torch.where(drawn[:, 0] < self.probability, drawn[:, 1], 1.0).to(mu.dtype)
        partner = torch.arange(len(share), device=mu.device).roll(-1)
        near = _beyond(mu, direction, share)
        far = _beyond(mu[partner], -direction, 1 - share)
        return Mixed(_without_the_dead(near + far), partner, share)


def _beyond(mu: DiscreteMeasure, direction: Tensor, share: Tensor) -> DiscreteMeasure:
    """The part of each measure that lies farthest along the direction and has that share of its mass."""
    along = (mu.points @ direction.unsqueeze(-1)).squeeze(-1)
    order = along.argsort(dim=-1, descending=True, stable=True)
    weights = mu.weights.gather(-1, order)
    before = weights.cumsum(-1) - weights
    kept = ((share * mu.mass()).unsqueeze(-1) - before).clamp_min(0.0)
    kept = torch.where(share.unsqueeze(-1) < 1, torch.minimum(kept, weights), weights)  # all of it, whatever the rounding
    return mu.with_weights(torch.zeros_like(kept).scatter(-1, order, kept))


def _without_the_dead(mu: DiscreteMeasure) -> DiscreteMeasure:
    """The same measures in as many atoms as the largest of them has."""
    live = mu.support()
    n = max(1, int(live.sum(-1).max()))
    order = (~live).to(torch.uint8).argsort(dim=-1, stable=True)[..., :n]
    points = mu.points.gather(-2, order.unsqueeze(-1).expand(*order.shape, mu.dim))
    return DiscreteMeasure(points, mu.weights.gather(-1, order))
