"""What flows with a reaction run on: points and weights that move together."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.geometries import Geometry
from ddeq.flows.reaction import Reaction
from ddeq.functionals.dynamics import Dynamics
from ddeq.iteration import InnerProduct, Iterate, Sizes
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["ReactingDescent"]


class ReactingDescent(FunctionalDescent):
    """Descent by moving atoms and their masses: the iterate is points and weights side by side, ``(*batch, n, d + 1)``.

    The residual is the velocity of the points; its size includes what the reaction does.

    Parameters
    ----------
    functional, like, geometry, space, shardable
        As in `FunctionalDescent`.
    reaction
        What moves the masses.
    counts_reaction
        Whether the reaction counts in the norm of the residual, which takes a first variation more.
    """

    def __init__(
        self,
        functional: Dynamics,
        like: DiscreteMeasure,
        geometry: Geometry,
        *,
        reaction: Reaction,
        counts_reaction: bool,
        space: Space = Euclidean(),
        shardable: bool = False,
    ) -> None:
        super().__init__(functional, like, geometry, space=space, shardable=shardable)
        self.reaction, self.counts_reaction, self._step = reaction, counts_reaction, 0
        # Any atom may lose its mass later. The limit concerns points alone: it is applied where these are known.
        self._points_inner = InnerProduct.of(like.points, like.weights, always=True)
        self.inner = InnerProduct(like.weights)
        of_reaction = reaction.functional
        self.removable = self.removable and (of_reaction is None or of_reaction.removable)

    def measure(self, z: Tensor) -> DiscreteMeasure:
        return self.like.with_points(z[..., :-1]).with_weights(z[..., -1])

    def pack(self, mu: DiscreteMeasure) -> Tensor:
        return torch.cat([mu.points, mu.weights.unsqueeze(-1)], -1)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        points = self._at(z)
        return points.inner.bounded(points.residual(z[..., :-1], *tensors), 0.0)

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        points = self._at(z)
        norm = points.sizes(z[..., :-1], residual, None).norm
        if not self.counts_reaction:
            return Sizes(norm)
        return Sizes((norm.square() + self.reaction.dissipation(points, points.like, self._step)).sqrt())

    def energy(self, z: Tensor) -> Tensor:
        return self._at(z).energy(z[..., :-1])

    def at(self, here: Iterate) -> tuple[FunctionalDescent, Iterate]:
        points = Iterate(here.z[..., :-1], here.residual, here.norm, here.size, here.step, here.draw, None, here.energy)
        return self._at(here.z), points

    def at_step(self, step: int) -> ReactingDescent:
        other = copy.copy(self)
        other._step = step
        return other

    def rows(self, keep: Tensor) -> ReactingDescent:
        reaction = self.reaction.rows(keep, self.like.batch_shape)
        chosen = super().rows(keep)
        assert isinstance(chosen, ReactingDescent)
        chosen.reaction, chosen._points_inner = reaction, self._points_inner.rows(keep)
        return chosen

    def _at(self, z: Tensor) -> FunctionalDescent:
        """The descent of the points at these weights."""
        points = FunctionalDescent.__new__(FunctionalDescent)
        points.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_open", "tensors")})
        points.like = self.measure(z)
        points.inner = InnerProduct(points.like.weights, limit=self._points_inner.limit)
        return points
