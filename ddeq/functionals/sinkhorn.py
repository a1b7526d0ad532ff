"""The Sinkhorn divergence: entropic optimal transport without its bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import under_transforms, with_gradient
from ddeq.functionals.base import Smoothness
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.functionals.entropic import EntropicTransport
from ddeq.functionals.geomloss_start import Start, check_start, potential_by_geomloss, takes_geomloss
from ddeq.functionals.masses import probabilities
from ddeq.functionals.plans import Plan
from ddeq.functionals.potentials import Between, Within
from ddeq.functionals.sinkhorn_memory import Potentials, Solution, SolvedAt
from ddeq.functionals.sinkhorn_solver import Guess, solved
from ddeq.functionals.variations import places
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian
from ddeq.kernels.base import positive
from ddeq.measures import DiscreteMeasure, check_mass, unchecked
from ddeq.reductions import integrate, kernel_average
from ddeq.untraced import untraced

__all__ = ["SinkhornDivergence"]


RTOL = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Default relative error of the marginals, by the precision of the measures."""


class SinkhornDivergence(Discrepancy):
    r"""Sinkhorn divergence from a target :math:`\nu`, for the cost :math:`c = \tfrac12|x - y|^2`.

    .. math:: F(\mu) = \mathrm{OT}_\varepsilon(\mu, \nu) - \tfrac12 \mathrm{OT}_\varepsilon(\mu, \mu)
              - \tfrac12 \mathrm{OT}_\varepsilon(\nu, \nu), \qquad
              \frac{\delta F}{\delta \mu} = f_{\mu,\nu} - f_{\mu,\mu} , \qquad \varepsilon = \text{blur}^2 ,

    where :math:`\mathrm{OT}_\varepsilon(\mu, \nu) = \min_\pi \int c \,\mathrm d\pi
    + \varepsilon\, \mathrm{KL}(\pi \,|\, \mu \otimes \nu)`. It tends to :math:`\tfrac12 W_2^2` as ``blur`` falls and to half the
    squared distance of the means (that of an MMD with the kernel :math:`-\tfrac12|x - y|^2`) as it grows.

    With a ``reach``, :math:`\rho = \text{reach}^2`, the marginals of :math:`\pi` are only held by :math:`\rho\, \mathrm{KL}`, and
    masses may differ:

    .. math:: \mathrm{OT}_\varepsilon(\mu, \nu) = \min_\pi \int c \,\mathrm d\pi + \rho\,\mathrm{KL}(\pi_1 | \mu)
              + \rho\,\mathrm{KL}(\pi_2 | \nu) + \varepsilon\, \mathrm{KL}(\pi \,|\, \mu \otimes \nu) , \qquad
              F(\mu) = \dots + \tfrac\varepsilon2 (m_\mu - m_\nu)^2 ,

    with masses :math:`m` and :math:`\mathrm{KL}(\alpha | \beta) = \int \log\tfrac{\mathrm d\alpha}{\mathrm d\beta}
    \,\mathrm d\alpha - m_\alpha + m_\beta`; the last term makes it positive. The first variation is
    :math:`(\rho + \varepsilon)(e^{-f_{\mu,\mu}/\rho} - e^{-f_{\mu,\nu}/\rho})`. Mass that is several times ``reach`` away is not
    transported (between two atoms at the distance :math:`d` about :math:`e^{-d^2 / (4\, \text{reach}^2)}` of it is).

    Potentials are those of a converged solve. First derivatives follow from them (the value is stationary in them), those of
    higher order by implicit differentiation (T7). Along a flow each solve starts from the last one's solution.

    Parameters
    ----------
    target
        Measure :math:`\nu`: one for all, or one for each measure of the batch.
    blur
        Length :math:`\sqrt\varepsilon > 0` below which the transport is blurred.
    reach
        Length over which transport gives way to mass that is created and destroyed; None: everything is transported.
    stop
        When a solve stops: ``rtol`` bounds the relative error of the marginals, in L2 of the measure, where rounding is below
        it. Default: at most 100 steps, and an ``rtol`` of 1e-12 in double precision, of 1e-5 in single precision.
    start
        Where a solve without an earlier solution starts: ``"cells"``, from the solution for cells of atoms; ``"geomloss"``, from
        geomloss's coarse-to-fine potentials; ``"auto"``: from the latter where measures are too large for matrices of all pairs.

    Raises
    ------
    ValueError
        If ``blur`` or ``reach`` is not positive, or, without ``reach``, a measure's mass differs from its target's.

    Warns
    -----
    InnerProblemWarning
        If a solve did not reach its tolerance; the message gives the residual, and the best iterate is used. `status` says it
        for each sample.
    AdjointWarning
        If second derivatives, or derivatives of the potentials, were not solved for: where the plan falls apart into parts whose
        masses they would change.

    Notes
    -----
    Without ``reach`` masses are normalised inside, which changes the first variation by a constant, and the value is multiplied
    by the mass again: twice the mass, twice the value, as with `Wasserstein`.

    Newton's method finds the potentials, in double precision sums where the tolerance is below 1e-5. Its linear systems are
    factorised up to 256 atoms; above, conjugate gradients solve them, with a correction on 128 cells of atoms. The blur falls
    from the size of the measures, first for cells of atoms, unless the start is near: an earlier solution, or the potential of
    the target where the measure is close to it. With a ``reach`` each step has the best constant added.

    References
    ----------
    :cite:t:`feydy2019interpolating`; :cite:t:`sejourne2019sinkhorn`, with a ``reach``; :cite:t:`sejourne2022faster`, on the
    best constant.

    Examples
    --------
    >>> mu, nu = (DiscreteMeasure(torch.tensor([[x, 0.0]])) for x in (0.0, 3.0))
    >>> SinkhornDivergence(nu, blur=0.1)(mu)  # half of the squared distance of two point masses
    tensor(4.5000)
    """

    removable = True
    smoothness = Smoothness.SMOOTH

    def __init__(
        self,
        target: DiscreteMeasure,
        blur: float = 0.05,
        reach: float | None = None,
        *,
        stop: Stop | None = None,
        start: Start = "auto",
    ) -> None:
        super().__init__(target)
        self.blur = float(positive("blur", blur))
        self.reach = None if reach is None else float(positive("reach", reach))
        self.exact_variation = self.reach is not None  # without, masses are normalised
        self.stop, self.start = stop, check_start(start)
        self.tolerance = RTOL[torch.float64] if stop is None else stop.rtol
        self.status: Tensor | None = None
        """`ddeq.iteration.Status` of each sample's solve at the last evaluation, ``(*batch,)``; None before the first."""

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        given = mu
        mu, nu = self._prepared(mu)
        solution = self._solution(mu, nu, given.dtype)
        value = self._value(mu, nu, *(of.plan().f for of in solution), *(of.z.detach() for of in solution))
        if _records(mu, nu):
            tensors = mu.points, mu.weights, nu.points, nu.weights
            gradient, written = partial(self._gradient, mu, nu, solution), partial(self._written, solution)
            # It takes functions, which a compiler cannot trace.
            value = untraced(with_gradient)(value.detach(), gradient, written, tensors)
        return (value * self._target_for(given).mass() if self.reach is None else value).to(given.dtype)

    def _value(
        self, mu: DiscreteMeasure, nu: DiscreteMeasure, f: Tensor, own: Tensor, of_target: Tensor, g: Tensor, p: Tensor, q: Tensor
    ) -> Tensor:
        """The dual objective as a function of one potential, the other its transform: stationary in the one."""
        transport = self._transport
        at_mu = transport.reduced(f) - 0.5 * (transport.reduced(own) + transport.decay(p))
        at_nu = transport.decay(g) - 0.5 * (transport.reduced(of_target) + transport.decay(q))
        return integrate(at_mu, mu) + integrate(at_nu, nu)

    def _written(self, solution: Solution, x: Tensor, w: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The value at given potentials as a function that autograd records."""
        mu, nu, transport = unchecked(x, w), unchecked(y, v), self._transport
        g, p, q = (of.z for of in solution)
        f, own = transport.transform(g, nu, x), transport.transform(p, mu, x)
        return self._value(mu, nu, f, own, transport.transform(q, nu, y), g, p, q)

    @torch.no_grad()
    def _gradient(
        self, mu: DiscreteMeasure, nu: DiscreteMeasure, solution: Solution, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, None, None] | None:
        """Gradients of the value in points and weights of ``mu``; None where it is wanted of the target too, or of dead atoms."""
        of_points, of_weights, *of_target = wanted
        if any(of_target) or not _serves(mu, solution):
            return None
        f, own = (of.plan().f for of in (solution.between, solution.within))
        points = weights = None
        if of_points:
            points = mu.weights.unsqueeze(-1) * self._at_places(mu.points, mu, nu, solution, by_plans=True)
        if of_weights:
            weights = self._variation(f, own)
        return points, weights, None, None

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        dtype, x = mu.dtype, places(mu, x).double()
        mu, nu = self._prepared(mu)
        between, within, _ = self._solution(mu, nu, dtype)
        transport = self._transport
        f, own = transport.transform(between.z, nu, x), transport.transform(within.z, mu, x)
        return self._variation(f, own).to(dtype)

    def _variation(self, f: Tensor, own: Tensor) -> Tensor:
        transport = self._transport
        if self.reach is None:
            return f - own
        return (transport.rho + transport.epsilon) * (transport.marginal(own) - transport.marginal(f))

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        dtype, at_atoms, x = mu.dtype, x is None, places(mu, x).double()
        mu, nu = self._prepared(mu)
        solution = self._solution(mu, nu, dtype)
        by_plans = at_atoms and not _records(x, mu, nu) and _serves(mu, solution)
        return self._at_places(x, mu, nu, solution, by_plans).to(dtype)

    def _at_places(self, x: Tensor, mu: DiscreteMeasure, nu: DiscreteMeasure, solution: Solution, by_plans: bool) -> Tensor:
        """The Wasserstein gradient at ``x``; ``by_plans``: at the atoms, without derivatives."""
        gradient = torch.zeros_like(x)
        for of, measure, sign in ((solution.within, mu, 1.0), (solution.between, nu, -1.0)):
            step, potential = _step_at_atoms(x, measure, of.plan()) if by_plans else self._step(x, measure, of.z)
            gradient = gradient + sign * self._transport.marginal(potential).unsqueeze(-1) * step
        return gradient

    def prepare(
        self, mu: DiscreteMeasure, memory: Potentials | None, step: int, generator: torch.Generator | None
    ) -> tuple[SinkhornDivergence, Potentials]:
        dtype = mu.dtype
        double, nu = self._prepared(mu)
        found = self._solution(double, nu, dtype, None if memory is None else memory.extrapolated())
        g, p, q = (of.z.detach() for of in found)
        before = (g, p) if memory is None or memory.g is None else (memory.g, memory.p)
        memory = Potentials(g, p, q, found.of_target.status, (g - before[0], p - before[1]))
        return self.with_memory((memory, SolvedAt(double, found))), memory

    def plan(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch n m"]:
        r"""Optimal plan :math:`\pi` from ``mu`` to the target, a matrix of masses.

        .. math:: \pi_{ij} = e^{(f_i + g_j - c_{ij})/\varepsilon}\, w_i v_j .

        Its marginals are the measures, as they are, or with a ``reach`` near them. Differentiable.
        """
        given, (mu, nu) = mu, self._prepared(mu)
        f, g = self._both(mu, nu, given.dtype)
        mass = 1.0 if self.reach is not None else self._target_for(given).to(torch.float64).mass()[..., None, None]
        return (mass * self._transport.plan(f, mu, g, nu)).to(given.dtype)

    def potentials(self, mu: DiscreteMeasure) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch m"]]:
        r"""Potentials :math:`f` at the atoms of ``mu`` and :math:`g` at those of the target, of the transport between them.

        Without a ``reach`` they are determined up to a constant, here such that their means agree. Differentiable.
        """
        given, (mu, nu) = mu, self._prepared(mu)
        f, g = self._both(mu, nu, given.dtype)
        if self.reach is None:
            shift = (0.5 * (integrate(f, mu) - integrate(g, nu))).unsqueeze(-1)
            f, g = f - shift, g + shift
        return f.to(given.dtype), g.to(given.dtype)

    def transport_map(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m d"]:
        r"""Where the plan from ``mu`` sends mass at ``x`` (default: the atoms) on average: its barycentric map.

        .. math:: T(x) = \frac{\int y\, e^{(g(y) - c(x, y))/\varepsilon} \,\mathrm d\nu(y)}
                              {\int e^{(g(y) - c(x, y))/\varepsilon} \,\mathrm d\nu(y)} = x - \nabla f(x)

        (without a ``reach``; with one the gradient is that of :math:`f/\tau`). Differentiable.

        References
        ----------
        :cite:t:`pooladian2021entropic`.
        """
        dtype, x = mu.dtype, places(mu, x).double()
        mu, nu = self._prepared(mu)
        return (x + self._step(x, nu, self._solution(mu, nu, dtype).between.z)[0]).to(dtype)

    @property
    def _transport(self) -> EntropicTransport:
        return EntropicTransport(self.blur, self.reach)

    def _step(self, x: Tensor, measure: DiscreteMeasure, potential: Tensor) -> tuple[Tensor, Tensor]:
        r"""From ``x`` to where its mass goes on average, :math:`-\nabla f/\tau`, and the transform :math:`f` of the potential."""
        transport, around = self._transport, measure.points.mean(-2, keepdim=True).detach()
        exponents = potential / transport.epsilon
        logarithm, average = kernel_average(Gaussian(self.blur), x, measure, measure.points - around, exponents)
        return average - (x - around), -transport.tau * transport.epsilon * logarithm

    def _both(self, mu: DiscreteMeasure, nu: DiscreteMeasure, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        g = self._solution(mu, nu, dtype).between.z
        return self._transport.transform(g, nu, mu.points), g

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

    def _stop_for(self, dtype: torch.dtype) -> Stop:
        return Stop(rtol=RTOL.get(dtype, RTOL[torch.float32])) if self.stop is None else self.stop

    @untraced  # its steps depend on what they find
    def _solution(
        self, mu: DiscreteMeasure, nu: DiscreteMeasure, dtype: torch.dtype, before: Potentials | None = None
    ) -> Solution:
        """The three potentials; keeps the worst status of their solves. ``before``: those of the step before."""
        transport, stop = self._transport, self._stop_for(dtype)
        start, guess = before, Guess.NEAR
        found: Solution | None = None
        if start is None and self.memory is not None:
            start, at = self.memory
            found, guess = at.found(mu), Guess.SOLVED
        if found is not None and not _records(mu, nu):
            self.status = found.status
            return found
        if found is not None:
            guess = Guess.KNOWN
        if start is None:
            start, guess = Potentials(None, torch.zeros_like(mu.weights), torch.zeros_like(nu.weights)), Guess.PERHAPS
        target = Within(transport, nu.points, nu.weights)
        of_target = solved(target, stop, start.q, guess if guess is Guess.PERHAPS else Guess.KNOWN)
        within = solved(Within(transport, mu.points, mu.weights), stop, start.p, guess)
        # Near the target the potential of the target itself is near.
        between = Between(transport, mu.points, mu.weights, nu.points, nu.weights)
        coarse = None
        if guess is Guess.PERHAPS and takes_geomloss(self.start, mu, nu):
            coarse = partial(potential_by_geomloss, transport, mu.detach(), nu.detach())
        to_target = solved(between, stop, of_target.z if start.g is None else start.g, guess, coarse)
        # What was not solved again ended as it did then.
        if start.status_of_q is not None:
            of_target = replace(of_target, status=start.status_of_q)
        if found is not None:
            to_target, within = (replace(a, status=b.status) for a, b in ((to_target, found.between), (within, found.within)))
        solution = Solution(to_target, within, of_target)
        self.status = solution.status
        return solution

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blur={self.blur:g}" + ("" if self.reach is None else f", reach={self.reach:g}")


def _records(*of: DiscreteMeasure | Tensor) -> bool:
    """Whether autograd records what depends on these."""
    tensors = [t for m in of for t in ([m] if isinstance(m, Tensor) else [m.points, m.weights])]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _serves(mu: DiscreteMeasure, solution: Solution) -> bool:
    """Whether the plans of a solution are right at all atoms of ``mu``."""
    return all(of.plan().serves_dead_rows for of in (solution.between, solution.within)) or bool(mu.support().all())


def _step_at_atoms(x: Tensor, measure: DiscreteMeasure, plan: Plan) -> tuple[Tensor, Tensor]:
    """`SinkhornDivergence._step` at the atoms ``x`` of the first measure of a plan, without derivatives."""
    around = measure.points.mean(-2, keepdim=True)
    return plan.average(measure.points - around) - (x - around), plan.f
