"""A solver that changes its method with the problem: cheap steps first, Newton's where they do not converge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.integers import set_whole
from ddeq.iteration.anderson import Anderson
from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Solver
from ddeq.iteration.newton_krylov import NewtonKrylov, NewtonState
from ddeq.iteration.samples import agreed, choose
from ddeq.iteration.secant import History
from ddeq.iteration.status import Status

__all__ = ["Auto"]

PICARD, ANDERSON, NEWTON = range(3)
FALL = 0.9
"""A residual falls if it comes below this share of the least one before."""


class AutoState(NamedTuple):
    step: int
    history: History
    newton: NewtonState
    stage: Tensor  # which of the three a sample is at, (*batch,)
    last: Tensor  # its last residual
    least: Tensor  # the least one that counted as a fall
    waited: Tensor  # evaluations since then
    steps_of_each: Tensor  # (*batch, 3)
    extra: Tensor  # evaluations besides one for each step, (*batch,)


@dataclass(frozen=True)
class Auto(Solver):
    r"""Picard's steps while they contract well, then Anderson's, then Newton's where the residual stops falling.

    Each sample changes by itself: from `Picard` to `Anderson` when a step leaves more than ``contraction`` of the residual, on
    to `NewtonKrylov` when ``patience`` evaluations have not brought it below nine tenths of the least one so far, and back
    to Anderson when Newton's have not either. Anderson's history is kept from the first step on. ``solution.used`` tells how
    many steps each sample took with each.

    Newton's products with the derivative count: no sample takes more than ``max_steps`` of the stop, and one, evaluations of the
    map. It ends with MAX_STEPS where they are used up. (``solution.evaluations`` counts those of the whole batch. Where samples
    take Newton's steps at different times, these may be more.)

    Parameters
    ----------
    contraction
        Share of the residual that one of Picard's steps may leave, ``0 <= contraction <= 1``; 0 starts with Anderson.
    patience
        Evaluations without a fall, at least one.
    anderson, newton
        The options of the two.

    Raises
    ------
    ValueError
        If an option is outside its range or not what it should be.
    """

    contraction: float = 0.5
    patience: int = 30
    anderson: Anderson = field(default_factory=Anderson)
    newton: NewtonKrylov = field(default_factory=NewtonKrylov)

    recovers: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ("Picard", "Anderson", "NewtonKrylov")

    def __post_init__(self) -> None:
        if not 0.0 <= self.contraction <= 1.0:
            raise ValueError(f"contraction: expected a share between 0 and 1, got {self.contraction}")
        set_whole(self, 1, "patience")
        for name, kind in (("anderson", Anderson), ("newton", NewtonKrylov)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: expected {kind.__name__}(...), got {getattr(self, name)!r}")

    def init(self, equation: Equation, at: Iterate) -> AutoState:
        infinite = torch.full_like(at.norm, torch.inf)
        stage = torch.zeros_like(infinite, dtype=torch.long)
        each = torch.zeros(*stage.shape, len(self.parts), dtype=torch.long, device=stage.device)
        history, newton = self.anderson.init(equation, at), self.newton.init(equation, at)
        return AutoState(0, history, newton, stage, infinite, infinite, stage, each, stage)

    def step(self, equation: Equation, at: Iterate, state: AutoState) -> Step:
        size = at.norm
        fell = size < FALL * state.least
        waited = torch.where(fell, 0, state.waited + 1)
        slow = ~(size <= self.contraction * state.last) if state.step else torch.full_like(fell, self.contraction == 0.0)
        stage = torch.where((state.stage == PICARD) & slow, ANDERSON, state.stage)
        tired = (state.stage == ANDERSON) & (waited >= self.patience)
        stage = torch.where(tired, NEWTON, torch.where((state.stage == NEWTON) & (waited >= self.patience), ANDERSON, stage))
        waited = torch.where(stage == state.stage, waited, 0)
        # Evaluations that are left besides that of the next iterate.
        left = None if at.most is None else at.most - 1 - state.step - state.extra
        accelerated = self.anderson.step(equation, at, state.history)
        plain, strong, newton, extra = stage == PICARD, stage == NEWTON, state.newton, state.extra
        proposal, status, evaluations = accelerated.z, accelerated.status, 0
        all_plain = agreed(plain)
        if all_plain or bool(plain.any()):
            proposal = choose(plain, at.image, proposal)
        if state.step >= self.patience:  # before that no sample can have exceeded its patience: a GPU need not be asked
            if bool(strong.any()):
                able = strong if left is None else strong & (left >= 2)
                direct = self.newton.step_of(equation, at, newton, able, left)
                newton, evaluations = direct.state, direct.evaluations
                extra = extra + torch.where(able, newton.products, 0).to(extra)
                proposal = choose(able, direct.z, proposal)
                ended = torch.full_like(stage, -1) if direct.status is None else direct.status
                status = ended if status is None else torch.where(able, ended, status)
            else:  # a sample that comes back to it begins anew
                newton = newton._replace(size=torch.full_like(newton.size, torch.inf))
        if status is not None:
            status = torch.where(plain, -1, status)
        if left is not None and state.step >= self.patience:
            status = torch.where(left < 0, Status.MAX_STEPS.value, -1 if status is None else status)
        each = state.steps_of_each + torch.nn.functional.one_hot(stage, len(self.parts))
        following = AutoState(
            step=state.step + 1,
            history=accelerated.state,
            newton=newton,
            stage=stage,
            last=size,
            least=torch.where(fell, size, state.least),
            waited=waited,
            steps_of_each=each,
            extra=extra,
        )
        return Step(proposal, following, evaluations, None, None, status, each, to_image=all_plain)
