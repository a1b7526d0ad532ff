"""Potential energies: each atom by itself in a landscape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Functional, Smoothness
from ddeq.functionals.variations import places
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import is_sharded
from ddeq.reductions import integrate

__all__ = ["PotentialEnergy"]


class PotentialEnergy(Functional):
    r"""Potential energy of a measure.

    .. math:: F(\mu) = \int V \,\mathrm d\mu, \qquad \frac{\delta F}{\delta \mu} = V, \qquad \nabla_W F(\mu) = \nabla V .

    Parameters
    ----------
    potential
        Function :math:`V`, points ``(*batch, n, d)`` to energies ``(*batch, n)``; an ``nn.Module`` trains.

    Raises
    ------
    ValueError
        If ``potential`` returns another shape; the message shows both.

    References
    ----------
    :cite:t:`santambrogio2015optimal`, chapter 7.

    Examples
    --------
    >>> import torch
    >>> F = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    >>> F.wasserstein_gradient(DiscreteMeasure(torch.tensor([[1.0, 2.0]])))
    tensor([[1., 2.]])
    """

    smoothness = Smoothness.AS_POTENTIAL
    exact_variation = True

    def __init__(self, potential: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(potential):
            raise ValueError(f"potential: expected a function of points, got {type(potential).__name__}")
        self.potential = potential

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return integrate(self.first_variation(mu), mu)

    def evaluate_all(self, measures: Sequence[DiscreteMeasure]) -> list[Tensor]:
        if len(measures) == 1 or is_sharded(measures[0].points):
            return [self(mu) for mu in measures]
        points = torch.cat([mu.points for mu in measures], -2)  # as more atoms: the potential sees points of the same shape
        energies = self.first_variation(measures[0], points).unflatten(-1, (len(measures), -1)).movedim(-2, 0)
        return list(integrate(energies, DiscreteMeasure.stack([mu.with_marks(None) for mu in measures])).unbind(0))

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        x = places(mu, x)
        energies = self.potential(x)
        if energies.shape != x.shape[:-1]:
            raise ValueError(
                f"potential: expected points {tuple(x.shape)} to go to energies {tuple(x.shape[:-1])}, "
                f"got {tuple(energies.shape)}"
            )
        return energies

    def extra_repr(self) -> str:
        return f"potential={getattr(self.potential, '__name__', type(self.potential).__name__)}"
