r"""`JointEquation`: fixed points of maps that move the points and the weights of a measure."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.iteration import InnerProduct, Iterate, Sizes, Stop
from ddeq.iteration.samples import Measured
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.solvers.map_equation import MapEquation
from ddeq.solvers.weight_equation import WeightEquation, weights_at

__all__ = ["JointEquation"]


class JointEquation(WeightEquation):
    r"""The points and weights :math:`(x, w) = \Phi(x, w)` of a measure whose marks stay.

    The iterate is points and coordinates of weights (`WeightEquation`) side by side, ``(*batch, n, d + 1)``, the latter in
    units in which both parts have the same size at the start. The squared relative residual is the sum of that of the points, in
    :math:`L^2(\mu)`, and that of the weights.
    """

    keeps = ("marks",)
    judges = True

    def start(self) -> Tensor:
        return self._packed(MapEquation.start(self), super().start())

    def measure(self, z: Tensor) -> DiscreteMeasure:
        points, at = self._parts(z)
        return unchecked(points, weights_at(at, self.mu.weights), self.mu.marks)

    def admitted(self, z: Tensor) -> Tensor:
        return torch.cat([MapEquation.admitted(self, z[..., :-1]), z[..., -1:]], -1)

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        return MapEquation.sizes(self, z, residual, previous)

    def judged(self, at: Iterate, stop: Stop) -> Measured:
        if stop.metric is not None:
            return super().judged(at, stop)
        return Measured(self.relative(at.z, at.residual, stop.atol / stop.rtol), at.norm, None, at.size)

    def relative(self, z: Tensor, residual: Tensor, floor: float) -> Tensor:
        """The root of the sum of the squared relative residuals of points and weights, ``(*batch,)``; no derivatives."""
        z, residual = z.detach(), residual.detach()
        (points, _), (moved, turned) = self._parts(z), self._parts(residual)
        of_points = InnerProduct.of(points, self.measure(z).weights)
        change, size = of_points.norms(moved, points + moved)
        of_weights = InnerProduct(self.mu.weights.detach(), dims=1).norm(turned) / (self.mu.mass().detach().sqrt() + floor)
        return torch.hypot(change / (size + floor), of_weights)

    def matched(self, z: Tensor, status: Tensor, tolerance: float) -> tuple[MapEquation, Tensor | None]:  # type: ignore[override]
        # Masses move too, so there is nothing to match atoms by: say how far apart they are.
        with torch.no_grad():
            return self, self.relative(z, self.residual(z.detach()), 0.0)

    def rows(self, keep: Tensor) -> JointEquation:
        chosen = super().rows(keep)
        assert isinstance(chosen, JointEquation)
        chosen._unit = self._unit[keep]
        return chosen

    def _inner(self) -> InnerProduct:
        of_points = InnerProduct.of(self.mu.points, self.mu.weights)
        size = of_points.norm(self.mu.points.detach()) / (2.0 * self.mu.mass().detach().sqrt())
        self._unit = torch.where(size > 0, size, 1.0)[..., None, None]
        return of_points

    def _change(self, z: Tensor, image: DiscreteMeasure, weights: Tensor) -> Tensor:
        points, at = self._parts(z)
        return self._packed(self.space.near(points, image.points) - points, super()._change(at, image, weights))

    def _given(self) -> list[Tensor]:
        return MapEquation._given(self)

    def _made(self, z: Tensor, rest: list[Tensor]) -> DiscreteMeasure:
        points, at = self._parts(z)
        return unchecked(points, weights_at(at, rest.pop(0)), None if self.mu.marks is None else rest.pop(0))

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points and coordinates of weights of an iterate, or the changes of both."""
        return z[..., :-1], z[..., -1] / self._unit.squeeze(-1)

    def _packed(self, points: Tensor, at: Tensor) -> Tensor:
        return torch.cat([points, self._unit * at.unsqueeze(-1)], -1)
