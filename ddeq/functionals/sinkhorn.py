"""The Sinkhorn divergence: entropic optimal transport without its bias."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.functionals.base import Smoothness, places
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.entropic import EntropicTransport, envelope
from ddeq.functionals.masses import probabilities
from ddeq.functionals.potentials import Between, Within
from ddeq.functionals.sinkhorn_solver import solved
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian
from ddeq.kernels.base import positive
from ddeq.measures import DiscreteMeasure, check_mass, unchecked
from ddeq.reductions import integrate, kernel_average

__all__ = ["SinkhornDivergence"]


RTOL = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Default relative error of the marginals, by the precision of the measures."""


class SinkhornDivergence(Discrepancy):
    r"""Sinkhorn divergence from a target :math:`\nu`, for the cost :math:`\tfrac12|x - y|^2`.

    .. math:: F(\mu) = \mathrm{OT}_\varepsilon(\mu, \nu) - \tfrac12 \mathrm{OT}_\varepsilon(\mu, \mu)
              - \tfrac12 \mathrm{OT}_\varepsilon(\nu, \nu), \qquad
              \frac{\delta F}{\delta \mu} = f_{\mu,\nu} - f_{\mu,\mu} , \qquad \varepsilon = \text{blur}^2 ,

    where :math:`\mathrm{OT}_\varepsilon(\mu, \nu) = \min_\pi \int \tfrac12|x - y|^2 \,\mathrm d\pi
    + \varepsilon\, \mathrm{KL}(\pi \,|\, \mu \otimes \nu)`. It tends to :math:`\tfrac12 W_2^2` as ``blur`` falls and to half the
    squared distance of the means (that of an MMD with the kernel :math:`-\tfrac12|x - y|^2`) as it grows. With a ``reach`` the
    marginals of :math:`\pi` are only held by :math:`\text{reach}^2\, \mathrm{KL}`, masses may differ, and mass that is several
    times ``reach`` away is not transported (between two atoms at the distance :math:`d` about
    :math:`e^{-d^2 / (4\, \text{reach}^2)}` of it is).

    Potentials are those of a converged solve; derivatives of every order follow from the equations that they obey (implicit
    differentiation, T7).

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    blur
        Length :math:`\sqrt\varepsilon > 0` below which the transport is blurred.
    reach
        Length over which transport gives way to mass that is created and destroyed; None: everything is transported.
    stop
        When a solve stops: ``rtol`` bounds the relative error of the marginals, in L2 of the target, where rounding is below
        it. Default: ``Stop(rtol=1e-12, max_steps=100)``. Potentials are solved in double precision, whatever the measures have.

    Raises
    ------
    ValueError
        If ``blur`` or ``reach`` is not positive, or, without ``reach``, a measure's mass differs from its target's.

    Warns
    -----
    InnerProblemWarning
        If a solve did not reach its tolerance; the message gives the residual. `status` says it for each sample.

    Notes
    -----
    Without ``reach`` masses are normalised inside, which changes the first variation by a constant, and the value is multiplied
    by the mass again. (That of `Wasserstein` is not: as ``blur`` falls the two agree at mass one only.) Marginals are solved by
    Newton's method: with dense matrices up to about a thousand atoms, by conjugate gradients above.

    References
    ----------
    :cite:t:`feydy2019interpolating`; :cite:t:`sejourne2019sinkhorn`, with a ``reach``.

    Examples
    --------
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x, 0.0]])) for x in (0.0, 3.0))
    >>> SinkhornDivergence(nu, blur=0.1)(mu)  # half of the squared distance of two point masses
    tensor(4.5000)
    """

    removable = True
    smoothness = Smoothness.SMOOTH

    def __init__(
        self, target: DiscreteMeasure, blur: float = 0.05, reach: float | None = None, *, stop: Stop | None = None
    ) -> None:
        super().__init__(target)
        self.blur = float(positive("blur", blur))
        self.reach = None if reach is None else float(positive("reach", reach))
        self.stop = stop
        self.tolerance = RTOL[torch.float64] if stop is None else stop.rtol
        self.status: Tensor | None = None
        """`ddeq.iteration.Status` of each sample's solve at the last evaluation, ``(*batch,)``; None before the first."""

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        given = mu
        mu, nu = self._prepared(mu)
        # The dual objective as a function of one potential, the other its transform; stationary, so that g, p and q count as still.
        g, p, q = (envelope(potential) for potential in self._potentials(mu, nu, given.dtype))
        transport = self._transport
        f, own, of_target = transport.transform(g, nu, mu.points), self._again(p, mu), self._again(q, nu)
        at_mu = transport.reduced(f) - 0.5 * (transport.reduced(own) + transport.decay(p))
        at_nu = transport.decay(g) - 0.5 * (transport.reduced(of_target) + transport.decay(q))
        value = integrate(at_mu, mu) + integrate(at_nu, nu)
        return (value * self._target_for(given).mass() if self.reach is None else value).to(given.dtype)

    def _again(self, potential: Tensor, mu: DiscreteMeasure) -> Tensor:
        """The transform of a potential of ``mu`` and itself, which differs from it in its derivatives only."""
        if torch.is_grad_enabled() and any(t.requires_grad for t in (potential, mu.points, mu.weights)):
            return self._transport.transform(potential, mu, mu.points)
        return potential

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        dtype, x = mu.dtype, places(mu, x).double()
        mu, nu = self._prepared(mu)
        g, p, _ = self._potentials(mu, nu, dtype)
        transport = self._transport
        f, own = transport.transform(g, nu, x), transport.transform(p, mu, x)
        if self.reach is None:
            return (f - own).to(dtype)
        scale = transport.rho + transport.epsilon
        return (scale * (transport.marginal(own) - transport.marginal(f))).to(dtype)

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        dtype, x = mu.dtype, places(mu, x).double()
        mu, nu = self._prepared(mu)
        g, p, _ = self._potentials(mu, nu, dtype)
        (to_target, f), (to_itself, own) = self._displacements(x, nu, g), self._displacements(x, mu, p)
        if self.reach is None:
            return (to_itself - to_target).to(dtype)
        marginals = (self._transport.marginal(potential).unsqueeze(-1) for potential in (f, own))
        return (next(marginals) * -to_target + next(marginals) * to_itself).to(dtype)

    def _displacements(self, x: Tensor, measure: DiscreteMeasure, potential: Tensor) -> tuple[Tensor, Tensor]:
        r"""From ``x`` to where its mass goes on average, :math:`-\nabla f/\tau`, and the transform :math:`f` of the potential."""
        transport = self._transport
        around = measure.points.mean(-2, keepdim=True).detach()
        exponents = potential / transport.epsilon
        logarithm, average = kernel_average(Gaussian(self.blur), x, measure, measure.points - around, exponents)
        return average - (x - around), -transport.tau * transport.epsilon * logarithm

    @property
    def _transport(self) -> EntropicTransport:
        return EntropicTransport(self.blur, self.reach)

    def _prepared(self, mu: DiscreteMeasure) -> tuple[DiscreteMeasure, DiscreteMeasure]:
        """The measures in double precision, of mass one where marginals are held."""
        if under_transforms():
            raise RuntimeError(
                "SinkhornDivergence solves to a tolerance, which torch.func cannot trace: measures are batched already"
            )
        mu, nu = mu.to(torch.float64), self._target_for(mu).to(torch.float64)
        if self.reach is None:
            w, v = probabilities(mu, nu)
            return unchecked(mu.points, w), unchecked(nu.points, v)
        check_mass("mu", mu)
        check_mass("target", nu)
        return mu, nu

    def _potentials(self, mu: DiscreteMeasure, nu: DiscreteMeasure, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """``g`` and ``q`` at the atoms of ``nu`` and ``p`` at those of ``mu``; keeps the worst status of the three solves."""
        transport = self._transport
        stop = Stop(rtol=RTOL[dtype], max_steps=100) if self.stop is None else self.stop
        q, of_target = solved(Within(transport, nu.points, nu.weights), stop, torch.zeros_like(nu.weights), annealed=False)
        p, within = solved(Within(transport, mu.points, mu.weights), stop, torch.zeros_like(mu.weights), annealed=False)
        # Near the target the potential of the target itself is near.
        g, between = solved(Between(transport, mu.points, mu.weights, nu.points, nu.weights), stop, q, annealed=True)
        self.status = torch.stack([between, within, of_target]).amax(0)
        return g, p, q

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blur={self.blur:g}" + ("" if self.reach is None else f", reach={self.reach:g}")
