"""Sliced Wasserstein distances: means of one-dimensional ones, which sorting solves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.functionals.base import Smoothness
from ddeq.functionals.directions import SlicedDiscrepancy, around, by_coordinate, lift, project
from ddeq.functionals.line_transport import LineTransport
from ddeq.functionals.masses import changes, mass_ratio, probabilities
from ddeq.functionals.variations import places
from ddeq.measures import DiscreteMeasure
from ddeq.reductions.sorted import in_sum_precision

__all__ = ["SlicedWasserstein"]


class SlicedWasserstein(SlicedDiscrepancy):
    r"""Sliced Wasserstein distance from a target :math:`\nu`, as a mean over projections: half its square for ``p = 2``.

    .. math:: F(\mu) = \frac1L \sum_{l=1}^L \min_{\pi_l} \int \tfrac1p |s - t|^p \,\mathrm d\pi_l(s, t)
              = \frac1L \sum_l \tfrac1p\, W_p^p(\theta_l \cdot \mu, \theta_l \cdot \nu), \qquad
              \frac{\delta F}{\delta \mu}(x) = \frac1L \sum_l \phi_l(\theta_l \cdot x),

    .. math:: \nabla_W F(\mu)(x) = \frac1L \sum_l \phi_l'(\theta_l \cdot x)\, \theta_l, \qquad
              \phi_l'(s) = s - T_l(s) \;(p = 2), \quad \text{the mean of } \operatorname{sign}(s - t) \;(p = 1),

    with Kantorovich potentials :math:`\phi_l` and barycentric maps :math:`T_l` between the projections (the catalogue, T3). So
    ``p = 2`` is :math:`\frac12 \mathrm{SW}_2^2`, and ``p = 1`` the mean of :math:`W_1` without a factor. It takes :math:`O(L N
    \log N)` time and :math:`O(N)` memory. Masses must agree, and are transported as they are: twice the mass is twice the
    value, with the same potentials and gradients.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    p
        Exponent of the cost, 2 or 1.
    n_projections
        Number :math:`L` of directions, spread evenly over the sphere and always the same; on the line one suffices.
    directions
        Unit vectors ``(n_projections, d)`` to take instead; an ``nn.Parameter`` trains, and gradients reach a tensor.
    generator
        Draws independent uniform directions instead, which estimate the mean over all without bias.

    resample
        Draw directions anew in each step of a flow, from the flow's generator, so that its gradient is right in the mean. With
        fixed ones a flow stops where the few projections agree, in high dimension far from the target (varying energies, T24).

    Raises
    ------
    ValueError
        If ``p`` is not 1 or 2, ``n_projections`` is not a positive whole number, or ``directions`` are not unit vectors of
        the target's dimension; or if measures and targets do not fit, or their masses differ.

    Notes
    -----
    Atoms whose projections coincide share their mass: each has the mean slope of the place. Potentials are not unique
    where cumulative weights of both measures agree, as they always do for equal weights and equal numbers; the mean of the
    two neighbouring ones is taken then, at dead atoms and between atoms too. Second derivatives hold for the order and the
    coupling of the projections as they are; in the points they are those of the library's formulas, not their jumps.

    References
    ----------
    :cite:t:`bonneel2015sliced`; :cite:t:`santambrogio2015optimal`, chapter 2.

    Examples
    --------
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x]])) for x in (0.0, 3.0))
    >>> SlicedWasserstein(nu)(mu), SlicedWasserstein(nu, p=1)(mu)
    (tensor(4.5000), tensor(3.))
    """

    removable = True
    smoothness = Smoothness.ALMOST_EVERYWHERE

    def __init__(
        self,
        target: DiscreteMeasure,
        p: int = 2,
        n_projections: int = 64,
        *,
        directions: Float[Tensor, "l d"] | None = None,
        generator: torch.Generator | None = None,
        resample: bool = False,
    ) -> None:
        super().__init__(target, n_projections, directions, generator, resample)
        if p not in (1, 2):
            raise ValueError(f"p: expected 1 or 2, got {p!r}")
        self.p = int(p)

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        def value(directions: Tensor, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
            transport = LineTransport.between(project(x, directions), a, project(y, directions), b, self.p)
            total = transport.cost()
            for masses, one_way in ((a, transport), (b, transport.reversed())):
                change = changes(masses)
                if change is not None:
                    total = total + (change * one_way.potentials()).sum(-1)
            return total.sum(0)

        return (self._mean_of(value, mu) * in_sum_precision(self.target.mass())).to(mu.dtype)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        m = mu.n if x is None else x.shape[-2]

        def potentials(directions: Tensor, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
            transport = LineTransport.between(project(x, directions), a, project(y, directions), b, self.p)
            return transport.potentials()[..., :m].sum(0)

        ratio = mass_ratio(mu, self.target).unsqueeze(-1)
        return (self._mean_of(potentials, mu, x) * ratio).to(mu.dtype)

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        m = mu.n if x is None else x.shape[-2]

        def slopes(directions: Tensor, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
            transport = LineTransport.between(project(x, directions), a, project(y, directions), b, self.p)
            return lift(transport.slopes()[..., :m], directions)

        ratio = mass_ratio(mu, self.target)[..., None, None]
        return (self._mean_of(slopes, mu, x) * ratio).to(mu.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"

    def _mean_of(self, integrand: Callable[..., Tensor], mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        """Mean over directions of a function of points and probabilities of ``mu``, after places ``x``, and of the target."""
        nu = self._target_for(mu)
        points = around(nu, mu.points)
        a, b = probabilities(mu, nu)
        if x is not None:
            x = places(mu, x)
            points, a = torch.cat([around(nu, x), points], -2), torch.cat([a.new_zeros(x.shape[:-1]), a], -1)
        x, y = by_coordinate(points), by_coordinate(around(nu, nu.points))
        return self._mean(integrand, a.numel() + b.numel(), x, a, y, b)
