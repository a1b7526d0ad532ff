"""Steps whose size is found on the way, so that the energy never increases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.schedules import check_schedule, number_at, over_atoms
from ddeq.flows.steppers import Stepper
from ddeq.iteration import Descent, Iterate, Step

__all__ = ["AdaptiveEuler"]

GROWTH = {"barzilai_borwein": 10.0, "armijo": 2.0}
"""By how much a step may be longer than the one before."""
SUFFICIENT = 1e-4
"""Share of the decrease that the slope promises which a step must keep."""
MOST_TRIALS = 30
"""Step sizes that are tried in a step; then the energy cannot be lowered, to rounding."""
FINE_TRIALS = 6
"""After so many of them, step sizes fall by ten."""


class _State(NamedTuple):
    tau: Tensor
    """The last step size of each sample, ``(*batch,)``; 0 before the first step."""
    points: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class AdaptiveEuler(Stepper):
    r"""Explicit Euler steps of a size that is found anew in each step and for each sample; the energy never increases.

    The first trial of a step is the one of Barzilai and Borwein,
    :math:`\tau = \langle s, s\rangle / \langle s, y\rangle` in :math:`L^2(\mu)` with the last change :math:`s` of the points
    and :math:`y` of the gradient, or twice the last step (Armijo). It is shortened until

    .. math:: F(\mu_{k+1}) \le F(\mu_k) - 10^{-4}\, \tau\, s_k ,

    with the rate :math:`s_k` at which the energy falls along the velocity, in its geometry. Where no step lowers the energy
    the sample stays; under ``stop`` it ends as STAGNATED. Autograd takes the step sizes as constants.

    Parameters
    ----------
    step_size
        The first trial: a positive number, or one for each sample.
    rule
        ``"barzilai_borwein"`` (far fewer steps where the energy is stiff) or ``"armijo"``.

    Raises
    ------
    ValueError
        If the step size is not positive and finite, or the rule is another.

    References
    ----------
    :cite:t:`barzilai1988two`; :cite:t:`armijo1966minimization`.
    """

    step_size: float | Tensor = 1.0
    rule: Literal["barzilai_borwein", "armijo"] = "barzilai_borwein"

    descends: ClassVar[bool] = True
    in_spaces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if callable(self.step_size):
            raise ValueError("step_size: expected the first step size, as a number or a tensor; AdaptiveEuler finds the others")
        check_schedule("step_size", self.step_size)
        if self.rule not in GROWTH:
            raise ValueError(f"rule: expected 'barzilai_borwein' or 'armijo', got {self.rule!r}")

    def init(self, equation: Descent, at: Iterate) -> _State:
        first = number_at("step_size", self.step_size, 0, batch_shape=tuple(at.norm.shape))
        tau = torch.as_tensor(first, dtype=at.z.dtype, device=at.z.device).expand(at.norm.shape)
        return _State(equation.inner.per_sample(tau), at.z, torch.full_like(at.z, torch.nan))

    def step(self, equation: Descent, at: Iterate, state: _State) -> Step:
        with torch.no_grad():
            tau, energy = self._line_search(equation, at, state)
        moved = equation.moved(at.z, over_atoms(tau) * at.residual)
        kept = torch.where(tau > 0, tau, state.tau)
        return Step(moved, _State(kept, at.z.detach(), at.residual.detach()), duration=tau, energy=energy)

    def _line_search(self, equation: Descent, at: Iterate, state: _State) -> tuple[Tensor, Tensor]:
        """Step sizes and energies there, ``(*batch,)`` each."""
        x, v = at.z.detach(), at.residual.detach()
        start = equation.energy(x) if at.energy is None else at.energy.detach()
        slope = equation.slope(x, v)
        rounding = 8.0 * torch.finfo(x.dtype).eps * start.abs()
        tau, searching = self._first_trial(equation, x, v, state), slope > 0
        found, energy = torch.zeros_like(tau), start
        for trial in range(MOST_TRIALS):
            reached = equation.energy(equation.moved(x, over_atoms(tau) * v))
            promised = SUFFICIENT * tau * slope
            # A decrease that rounding hides need not be seen, an increase is never taken.
            enough = (reached <= start - promised) | ((reached <= start) & (promised <= rounding))
            taken = searching & enough
            found, energy = torch.where(taken, tau, found), torch.where(taken, reached, energy)
            searching = searching & ~enough
            if not bool(searching.any()):
                break
            shortening = _shortening(start, reached, tau * slope, most=0.5 if trial < FINE_TRIALS else 0.1)
            tau = torch.where(searching, tau * shortening, tau)
        return found, energy

    def _first_trial(self, equation: Descent, x: Tensor, v: Tensor, state: _State) -> Tensor:
        first = torch.isnan(state.velocity).flatten(state.tau.ndim).any(-1)
        longest = torch.where(first, state.tau, GROWTH[self.rule] * state.tau)
        if self.rule == "armijo":
            return longest
        before = torch.where(first[..., None, None], 0.0, state.velocity)
        stayed = (x == state.points).flatten(state.tau.ndim).all(-1)
        last = over_atoms(torch.where(stayed, 0.0, state.tau)) * before
        s = equation.travelled(state.points, last, x)
        y = equation.carried(state.points, last, before)[0] - v
        curvature = equation.product(x, s, y)
        trial = equation.product(x, s, s) / torch.where(curvature > 0, curvature, 1.0)
        known = (curvature > 0) & (trial > 0) & torch.isfinite(trial) & ~first
        return torch.where(known, trial.minimum(longest), longest)


def _shortening(start: Tensor, reached: Tensor, promised: Tensor, most: float) -> Tensor:
    """Factor to the minimum of the parabola through what was seen, between a tenth and ``most``."""
    excess = reached - start + promised
    factor = promised / (2.0 * torch.where(excess > 0, excess, 1.0))
    return torch.where(torch.isfinite(reached) & (excess > 0), factor.clamp(0.1, most), 0.1)
