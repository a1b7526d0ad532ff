"""`NewtonFinish`: steps of Newton's method where a flow has come near to rest, and the flow's own elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.flows.geometries import Wasserstein
from ddeq.flows.problem import Descent
from ddeq.flows.quadratic_model import QuadraticModel
from ddeq.flows.steppers import Step, Stepper
from ddeq.flows.symmetries import Place, find_symmetries, generic_field
from ddeq.iteration import Stop

__all__ = ["NewtonFinish"]

FIRST = 20
"""Steps of the flow before the first attempt."""
NEAR = 0.1
"""Norm of the velocity, relative to the start, from which an attempt is made."""
LATE = 200
"""Steps of the flow after which it is made wherever the flow is."""
LONGEST = 400
"""Most steps of the flow between two attempts."""
COST = 2
"""Steps of the flow before the next attempt, for each product that one in vain took."""
BUDGET = 10
"""Most products with it in all, for each step that the stop allows."""
SHIFTS = 6
"""Shifts that are tried in an attempt, the first one zero."""
SHAKES = 4
"""Energies by which their scatter is known."""
SHARE = 0.1
"""Share of the decrease that the quadratic model promises which a step must keep."""


class _State(NamedTuple):
    stepper: Any
    fresh: Any
    """The state of the stepper at the start."""
    scale: Tensor
    """The norm of the first velocity, ``(*batch,)``; NaN before."""
    wait: Tensor
    """Steps of the flow until the next attempt, ``(*batch,)``."""
    pause: Tensor
    """How many they were for the last one, ``(*batch,)``."""
    products: Tensor
    """Products so far, ``(*batch,)``."""
    over: Tensor
    """Whether neither flow nor attempt moves the sample, ``(*batch,)``."""


class _Attempt(NamedTuple):
    accepted: Tensor
    """``(*batch,)``"""
    points: Tensor
    energy: Tensor
    products: Tensor
    """``(*batch,)``"""


class _NotTwiceDifferentiable(Exception):
    """Of an operation in a functional that has no second derivative in torch."""


@dataclass
class Tally:
    """What steps of Newton's method have cost."""

    evaluations: int = 0
    """Gradients, and products with the Hessian, of all samples that were tried together."""
    possible: bool = True
    """Whether the functional has second derivatives in torch."""


@dataclass(frozen=True)
class NewtonFinish:
    r"""A stepper whose step is one of Newton's method wherever that brings a sample closer to rest, else that of another stepper.

    With :math:`H` the Hessian of the functional in :math:`L^2(\mu)`, rigid motions that leave the functional as it is projected
    out (T16), at most 64 products give an orthonormal basis of the Krylov space of the gradient :math:`g` (Lanczos), in which
    :math:`H` has eigenvalues :math:`\theta_i` and vectors :math:`u_i`. The step is

    .. math:: x = -\sum_i \frac{\langle g, u_i\rangle}{|\theta_i| + \lambda} u_i ,

    with the least shift :math:`\lambda` of 0 and five growing ones (Levenberg) for which it is accepted; :math:`\theta_i = 0`, to
    rounding, is left out. Every such step leads downhill; along negative curvature it leads away from saddles and maxima. It is
    accepted if

    - the energy falls by a tenth of what the quadratic model promises, or
    - that is less than energies scatter when points are shaken in their last digits, the energy does not rise by more, no
      :math:`\theta_i` is negative, the gradient becomes smaller, and the mean slope along the step is negative;
    - and it does not come to rest, to the tolerance, if some :math:`\theta_i` is negative: no flow ends with such a step.

    So the energy never rises but for rounding, and where the last step ends is no saddle that the gradient before could see.

    An attempt is made once the velocity is a tenth of that at the start and 20 steps of the flow are done, or 200; again at once
    if it helped, ever later if not; and where the flow is stuck. Each sample is judged by itself. Atoms that coincide move
    together, those of mass zero stay.

    Parameters
    ----------
    flow
        The other stepper.
    stop
        When samples have come to rest.

    References
    ----------
    :cite:t:`dauphin2014identifying`, on absolute values of curvature; :cite:t:`gould1999solving`.
    """

    flow: Stepper
    stop: Stop
    tally: Tally = field(default_factory=Tally, compare=False)

    @property
    def descends(self) -> bool:
        return self.flow.descends

    @property
    def explicit(self) -> bool:
        return self.flow.explicit

    @property
    def has_momentum(self) -> bool:
        return self.flow.has_momentum

    def init(self, problem: Descent, points: Tensor) -> _State:
        state = self.flow.init(problem, points)
        none = points.new_zeros(points.shape[:-2])
        return _State(state, state, none + torch.nan, none + FIRST, none + FIRST, none, none > 0)

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: _State, step: int) -> Step:
        norm = problem.inner(velocity, velocity).sqrt()
        scale = torch.where(torch.isnan(state.scale), norm, state.scale)
        least = self.stop.rtol * scale + self.stop.atol
        restless = torch.isfinite(norm) & (norm > least)
        able = restless & ~state.over & (state.products < BUDGET * self.stop.max_steps)
        due = able & (state.wait <= 0) & ((norm <= NEAR * scale) | (state.wait <= FIRST - LATE))
        attempt = self._attempt(problem, points, norm / scale, least, due)
        accepted, over = attempt.accepted, state.over
        if bool((accepted | ~restless).all()):
            taken = Step(points, state.stepper, torch.zeros_like(norm))
        else:
            taken = self.flow.step(problem, points, velocity, state.stepper, step)
            if not self.has_momentum:
                still = restless & ~accepted & (taken.points == points).flatten(norm.ndim).all(-1)
                again = self._attempt(problem, points, norm / scale, least, still & able & ~due)
                attempt = _Attempt(
                    *(torch.where(_like(again.products > 0, b), b, a) for a, b in zip(attempt, again, strict=True))
                )
                accepted = attempt.accepted
                over = over | (still & ~accepted)
        tried = attempt.products > 0
        pause = torch.where(tried, torch.maximum(2 * state.pause, COST * attempt.products).clamp(max=LONGEST), state.pause)
        pause = torch.where(accepted, FIRST, pause)
        wait = torch.where(tried, torch.where(accepted, FIRST - LATE, pause), state.wait - 1)
        instead = state.fresh if self.has_momentum else state.stepper
        inner = taken.state
        if inner is not None:
            inner = pytree.tree_map(lambda a, b: torch.where(_like(accepted, a), a, b), instead, inner)
        energy = attempt.energy if bool(accepted.all()) else taken.energy
        return Step(
            torch.where(_like(accepted, points), attempt.points, taken.points),
            _State(inner, state.fresh, scale, wait, pause, state.products + attempt.products, over),
            torch.where(accepted, 0.0, torch.as_tensor(taken.duration, dtype=norm.dtype, device=norm.device)),
            energy if energy is None else torch.where(accepted, attempt.energy, energy),
        )

    def _attempt(self, problem: Descent, points: Tensor, residual: Tensor, least: Tensor, due: Tensor) -> _Attempt:
        """A step of the samples that are due; the others are left out of the computation where it is known how."""
        nothing = torch.zeros_like(residual)
        none = _Attempt(torch.zeros_like(due), points, nothing, nothing)
        if not self.tally.possible or not bool(due.any()):
            return none
        try:
            if not (problem.functional.selectable and residual.ndim):
                return self._newton(problem, points, residual, least, due)
            rows = due.unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)
            functional = problem.functional.select(rows, problem.like.batch_shape)
            part = replace(problem, functional=functional, like=problem.like[rows], known_energy=None, displacement=None)
            found = self._newton(part, points[rows], residual[rows], least[rows], due[rows])
        except _NotTwiceDifferentiable:
            self.tally.possible = False
            return none
        return _Attempt(*(a.index_copy(0, rows, b) for a, b in zip(none, found, strict=True)))

    @torch.no_grad()
    def _newton(self, problem: Descent, points: Tensor, residual: Tensor, least: Tensor, due: Tensor) -> _Attempt:
        functional, like, eps = problem.functional, problem.like, torch.finfo(points.dtype).eps
        alive = like.support().unsqueeze(-1)
        masses = torch.where(alive, like.weights.unsqueeze(-1), 1.0)

        def gradient(z: Tensor) -> Tensor:
            self.tally.evaluations += 1
            return torch.where(alive, functional.wasserstein_gradient(like.with_points(z)), 0.0)

        with torch.enable_grad():
            z = points.detach().requires_grad_()
            g = gradient(z)
        force = g.detach()
        place = Place.of(points, like.weights, points)
        together = _Together.of(points, like.weights, like.marks if functional.reads_marks else None)
        symmetries = find_symmetries(gradient, place, 10 * (eps ** (2 / 3) + functional.tolerance))

        def admissible(field: Tensor) -> Tensor:
            return together(symmetries.without(field))

        def hessian(x: Tensor) -> Tensor:
            self.tally.evaluations += 1
            if not g.requires_grad:
                return torch.zeros_like(x)
            try:
                (image,) = torch.autograd.grad(g, z, x * masses, retain_graph=True, materialize_grads=True)
            except RuntimeError as error:
                if "not implemented" in str(error) or "differentiate twice" in str(error):
                    raise _NotTwiceDifferentiable from error
                raise
            return admissible(torch.where(alive, image / masses, 0.0))

        size = problem.inner(force, force).sqrt()
        due = due & torch.isfinite(size) & (size > 0)
        right = torch.where(_like(due, force), admissible(force), 0.0)
        model = QuadraticModel.of(hessian, right, like.weights.unsqueeze(-1), residual.clamp(1e-6, 1e-2))
        open_ = due & model.sound
        start = problem.energy(points)
        noise = self._noise(problem, place, start)
        accepted, moved, energy = torch.zeros_like(due), points, start
        shift, following = torch.zeros_like(size), None
        for _ in range(SHIFTS):
            if not bool(open_.any()):
                break
            x, promised = model.step(shift)
            if following is None:
                length = problem.inner(x, x).sqrt()
                following = size / torch.where(length > 0, length, 1.0)
            there = points + torch.where(_like(open_, x) & alive, together(x), 0.0)
            slope, reached = gradient(there), problem.energy(there)
            left = problem.inner(slope, slope).sqrt()
            fits = open_ & torch.isfinite(left) & (model.convex | (self._speed(problem, there, left) > least))
            taken = fits & (reached <= start - torch.maximum(SHARE * promised, noise))
            blind = fits & model.convex & (SHARE * promised <= noise)
            taken = taken | (blind & (reached <= start + noise) & (left < size) & (problem.inner(slope + force, x) <= 0))
            accepted, open_ = accepted | taken, open_ & ~taken
            moved, energy = torch.where(_like(taken, there), there, moved), torch.where(taken, reached, energy)
            shift, following = following, 8.0 * following
        return _Attempt(accepted, moved, energy, torch.where(due, model.products, 0.0))

    @staticmethod
    def _speed(problem: Descent, points: Tensor, norm: Tensor) -> Tensor:
        """Norm of the velocity at points where that of the gradient is known, ``(*batch,)``."""
        if isinstance(problem.geometry, Wasserstein):
            return norm
        velocity = problem.velocity(points)
        return problem.inner(velocity, velocity).sqrt()

    @staticmethod
    def _noise(problem: Descent, place: Place, start: Tensor) -> Tensor:
        """By how much energies scatter, ``(*batch,)``, seen by shaking the points in their last digits."""
        eps = torch.finfo(start.dtype).eps
        scatter = torch.zeros_like(start)
        for k in range(SHAKES):
            shaken = place.points + 2 * eps * generic_field(place, k).sign() * place.points.abs()
            scatter = torch.maximum(scatter, (problem.energy(shaken) - start).abs())
        return 2 * scatter + (4 * eps + problem.functional.tolerance) * start.abs()


@dataclass(frozen=True)
class _Together:
    """Makes a field one of the place: atoms that coincide have the same vector, to the last digit (T1)."""

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
