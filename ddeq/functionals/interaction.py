"""Interaction energies: atoms that attract or repel each other in pairs."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional, Smoothness, places
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate, integrate_pairs

__all__ = ["InteractionEnergy"]


class InteractionEnergy(Functional):
    r"""Pairwise interaction energy of a measure.

    .. math:: F(\mu) = \tfrac12 \iint W(x - y) \,\mathrm d\mu(x)\,\mathrm d\mu(y),
              \qquad \frac{\delta F}{\delta \mu} = W * \mu, \qquad \nabla_W F(\mu) = \nabla W * \mu .

    Parameters
    ----------
    potential
        Even function :math:`W`: displacements ``(*batch, n, m, d)`` to energies ``(*batch, n, m)``; a module trains.

    Raises
    ------
    ValueError
        If ``potential`` returns another shape; the message shows both.

    Notes
    -----
    The double integral includes the diagonal (a V-statistic), so that splitting an atom leaves the energy as it is (measure
    consistency, T1). Where :math:`W` is a function of a distance, its gradient at zero must be finite: guard roots and powers.

    References
    ----------
    :cite:t:`carrillo2019blob`.
    """

    smoothness = Smoothness.AS_POTENTIAL
    exact_variation = True

    def __init__(self, potential: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(potential):
            raise ValueError(f"potential: expected a function of points, got {type(potential).__name__}")
        self.potential = potential

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return 0.5 * integrate(self.first_variation(mu), mu)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        return integrate_pairs(self.potential, places(mu, x), mu)

    def extra_repr(self) -> str:
        return f"potential={getattr(self.potential, '__name__', type(self.potential).__name__)}"
