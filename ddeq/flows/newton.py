"""`NewtonFinish`: Newton's method where a flow is close to a stationary measure, and the flow's own steps elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.downhill import leads_downhill
from ddeq.flows.quadratic_model import QuadraticModel
from ddeq.flows.resolution import energy_resolution
from ddeq.flows.steppers import Stepper
from ddeq.flows.symmetries import Place, find_symmetries
from ddeq.iteration import Iterate, Step, Stop

__all__ = ["NewtonFinish"]

FIRST = 20
"""Steps of the flow before the first attempt."""
FIRST_OF_SUPERLINEAR = 300
"""The same of a stepper that converges nearly as fast."""
NEAR = 0.1
"""Norm of the velocity, relative to the start, from which an attempt is made."""
LATE = 200
"""Steps of the flow after which it is made wherever the flow is."""
LONGEST = 400
"""Most steps of the flow between two attempts."""
COST = 2
"""Steps of the flow before the next attempt, for each product of a failed one."""
BUDGET = 10
"""Most products with it in all, for each step that the stop allows."""
SHIFTS = 6
"""Shifts that are tried in an attempt, the first one zero."""
SHARE = 0.1
"""Share of the decrease that the quadratic model promises which a step must keep."""


class _State(NamedTuple):
    stepper: Any
    fresh: Any
    """The state of the stepper at the start."""
    wait: Tensor
    """Steps of the flow until the next attempt, ``(*batch,)``."""
    pause: Tensor
    """How many they were for the last one, ``(*batch,)``."""
    products: Tensor
    """Products so far, ``(*batch,)``."""
    over: Tensor
    """Whether no attempt is made any more: neither it nor the flow moves the sample, or it leads elsewhere; ``(*batch,)``."""
    taken: Tensor
    """Accepted attempts so far, ``(*batch,)``."""
    uphill: Tensor
    """Whether the velocity was seen not to be that of a descent, 0 or 1, ``(*batch,)``."""
    possible: bool
    """Whether no operation is known to lack second derivatives in torch."""


class _Attempt(NamedTuple):
    accepted: Tensor
    """``(*batch,)``"""
    points: Tensor
    energy: Tensor
    products: Tensor
    """``(*batch,)``"""
    uphill: Tensor
    """Whether no attempt was made because the velocity is not that of a descent, ``(*batch,)``."""
    evaluations: int = 0
    """Gradients, and products with the Hessian, on the batch."""
    possible: bool = True
    """Whether the functional has second derivatives in torch."""

    def joined_with(self, other: _Attempt, joined: Callable[[Tensor, Tensor], Tensor]) -> _Attempt:
        """What is known of other samples put among these."""
        return _Attempt(
            joined(self.accepted, other.accepted),
            joined(self.points, other.points),
            joined(self.energy, other.energy),
            joined(self.products, other.products),
            joined(self.uphill, other.uphill),
            self.evaluations + other.evaluations,
            other.possible,
        )


class _NotTwiceDifferentiable(Exception):
    """Of an operation in a functional that has no second derivative in torch."""


@dataclass(frozen=True)
class NewtonFinish(Stepper):
    r"""A stepper whose step is one of Newton's method where that helps a sample to converge, else that of another stepper.

    With :math:`H` the Hessian of the functional in :math:`L^2(\mu)`, rigid motions that leave the functional as it is projected
    out (equilibria, T16), at most 64 products give an orthonormal basis of the Krylov space of the gradient :math:`g`
    (Lanczos), in which :math:`H` has eigenvalues :math:`\theta_i` and vectors :math:`u_i`. The step is

    .. math:: x = -\sum_i \frac{\langle g, u_i\rangle}{|\theta_i| + \lambda} u_i ,

    with the least shift :math:`\lambda` of 0 and five growing ones (Levenberg) for which it is accepted; :math:`\theta_i = 0`, to
    rounding, is left out. Every such step leads downhill; along negative curvature it leads away from saddles and maxima. It is
    accepted if

    - the energy falls by a tenth of what the quadratic model promises, or
    - that is less than energies scatter when points are shaken in their last digits, the energy does not rise by more, no
      :math:`\theta_i` is negative, the gradient becomes smaller, and the mean slope along the step is negative;
    - and it does not converge, to the tolerance, if some :math:`\theta_i` is negative: no flow ends with such a step.

    So the energy never rises but for rounding, and where the last step ends is no saddle that the gradient before could see.

    An attempt is made once the velocity is a tenth of that at the start and 20 steps of the flow are done, or 200; again at once
    if it helped, after longer and longer pauses if not; and where the flow is stuck. Each sample is judged by itself. Atoms that
    coincide move together, those of mass zero stay. A stepper that is ``superlinear`` has 300 steps before the first attempt.

    Where the velocity is not that of a descent, as in a game, whose mobility is indefinite, no attempt is made: lower energies
    would lead away from where the flow comes to rest.

    Parameters
    ----------
    flow
        The other stepper.
    stop
        When samples have converged.

    References
    ----------
    :cite:t:`dauphin2014identifying`, on absolute values of curvature; :cite:t:`gould1999solving`.
    """

    flow: Stepper
    stop: Stop

    parts: ClassVar[tuple[str, ...]] = ("newton", "uphill")

    def __post_init__(self) -> None:
        for capability in (
            "descends",
            "explicit",
            "has_momentum",
            "needs_gradients",
            "superlinear",
            "in_spaces",
        ):  # of the stepper within
            object.__setattr__(self, capability, getattr(self.flow, capability))

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        state = self.flow.init(equation, at)
        none = torch.zeros_like(at.norm)
        wait = FIRST_OF_SUPERLINEAR if self.superlinear else FIRST
        return _State(state, state, none + wait, none + FIRST, none, none > 0, none.long(), none.long(), True)

    def step(self, equation: FunctionalDescent, at: Iterate, state: _State) -> Step:
        norm, points = at.norm, at.z
        scale = at.size - self.stop.atol / self.stop.rtol  # the norm at the start
        least = self.stop.rtol * at.size
        unfinished = torch.isfinite(norm) & (norm > least)
        able = unfinished & ~state.over & (state.products < BUDGET * self.stop.max_steps)
        due = able & (state.wait <= 0) & ((norm <= NEAR * scale) | (state.wait <= FIRST - LATE))
        attempt = self._attempt(equation, points, norm / scale, least, due, state.possible)
        accepted, over = attempt.accepted, state.over
        if bool((accepted | ~unfinished).all()):
            taken = Step(points, state.stepper, duration=torch.zeros_like(norm))
        else:
            taken = self.flow.step(equation, at, state.stepper)
            if not self.has_momentum:
                still = unfinished & ~accepted & (taken.z == points).flatten(norm.ndim).all(-1)
                again = self._attempt(equation, points, norm / scale, least, still & able & ~due, attempt.possible)
                attempt = _merged(attempt, again)
                accepted = attempt.accepted
                over = over | (still & ~accepted)
        over = over | attempt.uphill
        count, uphill = state.taken + accepted, state.uphill.maximum(attempt.uphill.long())
        tried = attempt.products > 0
        pause = torch.where(tried, torch.maximum(2 * state.pause, COST * attempt.products).clamp(max=LONGEST), state.pause)
        pause = torch.where(accepted, FIRST, pause)
        wait = torch.where(tried, torch.where(accepted, FIRST - LATE, pause), state.wait - 1)
        instead = state.fresh if self.has_momentum else state.stepper
        inner = taken.state
        if inner is not None:
            inner = pytree.tree_map(
                lambda a, b: torch.where(_like(accepted, a), a, b) if isinstance(a, Tensor) else b, instead, inner
            )
        energy = attempt.energy if bool(accepted.all()) else taken.energy
        duration = torch.as_tensor(taken.duration, dtype=norm.dtype, device=norm.device)
        return Step(
            torch.where(_like(accepted, points), attempt.points, taken.z),
            _State(inner, state.fresh, wait, pause, state.products + attempt.products, over, count, uphill, attempt.possible),
            evaluations=taken.evaluations + attempt.evaluations,
            duration=torch.where(accepted, 0.0, duration),
            energy=energy if energy is None else torch.where(accepted, attempt.energy, energy),
            note=torch.stack([count, uphill], -1),
        )

    def _attempt(
        self, equation: FunctionalDescent, points: Tensor, residual: Tensor, least: Tensor, due: Tensor, possible: bool
    ) -> _Attempt:
        """A step of the samples that are due; the others are left out of the computation where it is known how."""
        nothing = torch.zeros_like(residual)
        none = _Attempt(torch.zeros_like(due), points, nothing, nothing, torch.zeros_like(due), possible=possible)
        if not possible or not bool(due.any()):
            return none
        try:
            if not equation.removable:
                return self._newton(equation, points, residual, least, due)
            rows = due.unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)
            found = self._newton(equation.rows(rows), points[rows], residual[rows], least[rows], due[rows])
        except _NotTwiceDifferentiable:
            return none._replace(possible=False)
        return none.joined_with(found, lambda a, b: a.index_copy(0, rows, b))

    @torch.no_grad()
    def _newton(self, of: FunctionalDescent, points: Tensor, residual: Tensor, least: Tensor, due: Tensor) -> _Attempt:
        equation, chart = of.in_chart(points)
        place_of = torch.positive if chart is None else chart.points
        functional, like, inner = equation.functional, equation.like, equation.inner
        eps = torch.finfo(points.dtype).eps
        alive = like.support().unsqueeze(-1)
        masses = torch.where(alive, like.weights.unsqueeze(-1), 1.0)
        count = [0]  # of what is evaluated in this attempt

        def gradient(z: Tensor) -> Tensor:
            count[0] += 1
            return -equation.force(z)

        with torch.enable_grad():
            z = points.detach().requires_grad_()
            g = gradient(z)
        force, size = g.detach(), inner.norm(g)
        uphill = torch.zeros_like(due) if of.geometry.is_gradient else due & ~leads_downhill(of, points, of.force(points))
        count[0] += not of.geometry.is_gradient
        due = due & ~uphill
        if not bool(due.any()):
            return _Attempt(due, points, torch.zeros_like(size), torch.zeros_like(size), uphill, count[0])
        place = Place.of(points, like.weights, points)
        keys = functional.keys(like.with_points(points))
        together = _Together.of(points if keys is None else keys, like.weights, like.marks if functional.reads_marks else None)
        symmetries = find_symmetries(gradient, place, 10 * (eps ** (2 / 3) + functional.tolerance))

        def admissible(field: Tensor) -> Tensor:
            return together(symmetries.without(field))

        def hessian(x: Tensor) -> Tensor:
            count[0] += 1
            if not g.requires_grad:
                return torch.zeros_like(x)
            try:
                (image,) = torch.autograd.grad(g, z, x * masses, retain_graph=True, materialize_grads=True)
            except RuntimeError as error:
                if "not implemented" in str(error) or "differentiate twice" in str(error):
                    raise _NotTwiceDifferentiable from error
                raise
            return admissible(torch.where(alive, image / masses, 0.0))

        due = due & torch.isfinite(size) & (size > 0)
        right = torch.where(_like(due, force), admissible(force), 0.0)
        model = QuadraticModel.of(hessian, right, like.weights.unsqueeze(-1), residual.clamp(1e-6, 1e-2))
        open_ = due & model.sound
        start = equation.energy(points)
        noise = energy_resolution(equation, place, start, -force)
        accepted, moved, energy = torch.zeros_like(due), points, start
        shift, following = torch.zeros_like(size), None
        for _ in range(SHIFTS):
            if not bool(open_.any()):
                break
            x, promised = model.step(shift)
            if following is None:
                length = inner.norm(x)
                following = size / torch.where(length > 0, length, 1.0)
            there = points + torch.where(_like(open_, x) & alive, together(x), 0.0)
            slope, reached = gradient(there), equation.energy(there)
            left = inner.norm(slope)
            fits = open_ & torch.isfinite(left) & (model.convex | (self._speed(of, place_of(there), left) > least))
            taken = fits & (reached <= start - torch.maximum(SHARE * promised, noise))
            blind = fits & model.convex & (SHARE * promised <= noise)
            taken = taken | (blind & (reached <= start + noise) & (left < size) & (inner(slope + force, x) <= 0))
            accepted, open_ = accepted | taken, open_ & ~taken
            moved, energy = torch.where(_like(taken, there), there, moved), torch.where(taken, reached, energy)
            shift, following = following, 8.0 * following
        return _Attempt(accepted, place_of(moved), energy, torch.where(due, model.products, 0.0), uphill, count[0])

    @staticmethod
    def _speed(equation: FunctionalDescent, points: Tensor, norm: Tensor) -> Tensor:
        """Norm of the velocity at points where that of the gradient is known, ``(*batch,)``."""
        return norm if equation.geometry.is_gradient else equation.inner.norm(equation.residual(points))


def _merged(first: _Attempt, second: _Attempt) -> _Attempt:
    """Two attempts of different samples as one."""
    tried = second.products > 0
    both = first.joined_with(second, lambda a, b: torch.where(_like(tried, b), b, a))
    return both._replace(uphill=first.uphill | second.uphill)


@dataclass(frozen=True)
class _Together:
    """Makes a field one of the place: atoms that coincide have the same vector, to the last digit (measure consistency, T1)."""

    group: Tensor | None
    """Number of the place of each atom, ``(all atoms,)``; None where all places differ."""
    share: Tensor
    """Share of each atom in the mass there, ``(*batch, n, 1)``."""

    @classmethod
    def of(cls, points: Tensor, weights: Tensor, marks: Tensor | None) -> _Together:
        n, d = points.shape[-2:]
        rows = [points.reshape(-1, d) + 0.0] + ([] if marks is None else [marks.reshape(-1, marks.shape[-1]).to(points)])
        sample = torch.arange(len(rows[0]), device=points.device) // n
        found, group = torch.unique(
            torch.cat([sample.unsqueeze(-1).double(), *(r.double() for r in rows)], -1), dim=0, return_inverse=True
        )
        if len(found) == len(group):
            return cls(None, weights)
        flat = weights.flatten()
        mass = torch.zeros_like(flat).index_add(0, group, flat)[group]
        return cls(group, (flat / torch.where(mass > 0, mass, 1.0)).reshape(weights.shape).unsqueeze(-1))

    def __call__(self, field: Tensor) -> Tensor:
        if self.group is None:
            return field
        flat = (self.share * field).reshape(-1, field.shape[-1])
        return torch.zeros_like(flat).index_add(0, self.group, flat)[self.group].reshape(field.shape)


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape((*mask.shape, *(1,) * (value.ndim - mask.ndim)))
