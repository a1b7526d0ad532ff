r"""`WeightEquation`: fixed points of maps that move the weights of a measure."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ddeq.iteration import Equation, InnerProduct, Iterate, Sizes
from ddeq.measures import DiscreteMeasure, unchecked, values_are_known
from ddeq.solvers.map_equation import MapEquation

__all__ = ["WeightEquation", "weights_at"]


class WeightEquation(MapEquation):
    r"""The weights :math:`w = \Phi(w)` of a measure whose points and marks stay (moving weights, T25).

    The iterate is :math:`z_i = 2 \sqrt{w_i / w^0_i}`, ``(*batch, n)``, with the weights :math:`w^0` of the start: in
    :math:`L^2(\mu_0)` the squared length of a change is :math:`\sum_i w^0_i\, \mathrm dz_i^2 = \sum_i \mathrm dw_i^2 / w_i`.
    Back from it, :math:`w_i \propto w^0_i z_i^2` has the mass of the start, whatever the iterate: no weight is negative, and
    those that are zero stay zero. An atom with mass that the map takes away entirely has no derivatives.

    Parameters and errors are those of `MapEquation`; in an evaluation it is an error too if the map changes the mass, gives mass
    to an atom that has none at the start, or makes a weight negative.
    """

    keeps: ClassVar[tuple[str, ...]] = ("points", "marks")

    def start(self) -> Tensor:
        return torch.full_like(self.mu.weights.detach(), 2.0)

    def measure(self, z: Tensor) -> DiscreteMeasure:
        return self.mu.with_weights(weights_at(z, self.mu.weights))

    def admitted(self, z: Tensor) -> Tensor:
        return z

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        sizes = super().sizes(z, residual, previous)
        return sizes if sizes.size is None else sizes._replace(size=0.5 * sizes.size)  # that of w is the root of the mass

    def image(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        return Equation.image(self, mu)

    def coupled(self, z: Tensor, residual: Tensor) -> Tensor:
        return Equation.coupled(self, z, residual)

    def matched(self, z: Tensor, status: Tensor, tolerance: float) -> tuple[MapEquation, Tensor | None]:  # type: ignore[override]
        return self, None  # atoms stay where they are

    def _inner(self) -> InnerProduct:
        return InnerProduct(self.mu.weights, dims=1)

    def _change(self, z: Tensor, image: DiscreteMeasure, weights: Tensor) -> Tensor:
        _check_weights(weights, image.weights)
        return torch.where(weights > 0, _coordinates(image.weights, weights) - z, 0.0)

    def _given(self) -> list[Tensor]:
        return [self.mu.weights, self.mu.points] + ([] if self.mu.marks is None else [self.mu.marks])

    def _made(self, z: Tensor, rest: list[Tensor]) -> DiscreteMeasure:
        weights, points = rest.pop(0), rest.pop(0)
        return unchecked(points, weights_at(z, weights), None if self.mu.marks is None else rest.pop(0))


def weights_at(z: Tensor, start: Tensor) -> Tensor:
    """The weights at ``z``, of the mass of the ``start``."""
    grown = start * z.square()
    return grown * (start.sum(-1, keepdim=True) / grown.sum(-1, keepdim=True))


def _coordinates(weights: Tensor, start: Tensor) -> Tensor:
    """The iterate at which there are these ``weights``; the root has the derivative 0 at 0."""
    ratio = weights / torch.where(start > 0, start, 1.0)
    positive = ratio > 0
    return 2.0 * torch.where(positive, torch.where(positive, ratio, 1.0).sqrt(), 0.0 * ratio)


def _check_weights(start: Tensor, image: Tensor) -> None:
    """Raise a `ValueError` unless ``image`` are weights of the mass of the ``start``, and zero where that is."""
    if torch._C._are_functorch_transforms_active() or not values_are_known(image):
        return
    start, image = start.detach(), image.detach()
    mass, allowed = start.sum(-1), torch.finfo(start.dtype).eps ** 0.5
    off = ((image.sum(-1) - mass).abs() > allowed * mass).unsqueeze(-1)
    raised = (start == 0) & (image > allowed * mass.unsqueeze(-1))
    negative = image < 0
    if not bool((off | raised | negative).any()):  # comparisons are false for NaN: such a sample has diverged
        return
    if bool(negative.any()):
        raise ValueError(f"map: expected weights that are not negative, got one of {float(image.min()):.3g}")
    if bool(raised.any()):
        raise ValueError(
            "map: it gives mass to atoms whose weight in mu0 is zero, and weights of zero stay zero. Start with positive weights "
            "there, or let the map leave these atoms without mass"
        )
    sample = off.squeeze(-1).reshape(-1).nonzero()[0, 0]
    raise ValueError(
        f"map: expected it to keep the mass of its argument, {float(mass.reshape(-1)[sample]):.6g}, got "
        f"{float(image.sum(-1).reshape(-1)[sample]):.6g}; for mass one end it with .normalized()"
    )
