"""How far a measure is from being a fixed point of a map on measures."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional
from ddeq.functionals.discrepancy import DiscrepancyLike, against
from ddeq.measures import DiscreteMeasure

__all__ = ["FixedPointDiscrepancy"]


class FixedPointDiscrepancy(Functional):
    r"""Discrepancy between a measure and its image under a map :math:`\Phi` on measures.

    .. math:: G(\mu) = D(\mu, \Phi(\mu)) , \qquad \text{e.g. } \tfrac12 \mathrm{MMD}^2(\mu, \Phi(\mu)) .

    Its Wasserstein gradient includes how the image moves with each atom and with the measure (fixed-point discrepancy, T4).

    Parameters
    ----------
    map
        Map :math:`\Phi` from measures to measures; an ``nn.Module`` trains.
    discrepancy
        Function from a target to a functional, such as ``lambda nu: MMD(nu, Gaussian(1.0))`` or the class ``MMD``; or a
        discrepancy such as ``MMD(any_target, kernel)``, whose own target does not matter.

    Raises
    ------
    ValueError
        If ``discrepancy`` is neither, ``map`` is no function or does not give a measure; the message shows what it is.

    Notes
    -----
    A small value does not say that the atoms stand still: on the measure with atoms -1 and 1 the map :math:`x \mapsto -x`
    has :math:`G = 0`, and near a point mass a smooth kernel sees spread only to fourth order.

    References
    ----------
    :cite:t:`geuter2025ddeqs`.
    """

    reads_marks = True

    def __init__(self, map: Callable[[DiscreteMeasure], DiscreteMeasure], discrepancy: DiscrepancyLike) -> None:
        super().__init__()
        if not callable(map):
            raise ValueError(f"map: expected a function of a measure, got {type(map).__name__}")
        self.map = map
        self.discrepancy = discrepancy

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        image = self.map(mu)
        if not isinstance(image, DiscreteMeasure):
            raise ValueError(f"map: expected it to return a DiscreteMeasure, got {type(image).__name__}; use mu.with_points")
        return against(self.discrepancy, image)(mu)
