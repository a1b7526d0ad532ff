"""The choice of a solver left to the problem: cheap first, strong where that does not do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.loop import choose
from ddeq.solvers.anderson import Anderson
from ddeq.solvers.newton_krylov import NewtonKrylov, NewtonState
from ddeq.solvers.problem import FixedPoint
from ddeq.solvers.secant import History

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


@dataclass(frozen=True)
class Auto:
    r"""Picard's steps while they contract well, then Anderson's, then Newton's where the residual stops falling.

    Each sample changes by itself: from `Picard` to `Anderson` when a step leaves more than ``contraction`` of the residual, on
    to `NewtonKrylov` when ``patience`` evaluations have not brought it below nine tenths of the least one so far, and back
    to Anderson when Newton's have not either. Anderson's history is kept from the first step on. ``solution.used`` tells how
    many steps each sample took with each.

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

    retreats: ClassVar[bool] = True
    """What is not finite, or too large, is left to `step`, which goes back."""
    methods: ClassVar[tuple[str, ...]] = ("Picard", "Anderson", "NewtonKrylov")
    """What the columns of ``steps_of_each`` count."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.contraction <= 1.0:
            raise ValueError(f"contraction: expected a share between 0 and 1, got {self.contraction}")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"patience: expected a whole number >= 1, got {self.patience!r}")
        for name, kind in (("anderson", Anderson), ("newton", NewtonKrylov)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: expected {kind.__name__}(...), got {getattr(self, name)!r}")

    def init(self, problem: FixedPoint, z: Tensor) -> AutoState:
        infinite = z.new_full(z.shape[:-2], torch.inf)
        stage = torch.zeros_like(infinite, dtype=torch.long)
        each = torch.zeros(*stage.shape, len(self.methods), dtype=torch.long, device=z.device)
        history, newton = self.anderson.init(problem, z), self.newton.init(problem, z)
        return AutoState(0, history, newton, stage, infinite, infinite, stage, each)

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: AutoState) -> tuple[Tensor, AutoState]:
        _, size = problem.residual(z, image)
        fell = size < FALL * state.least
        waited = torch.where(fell, 0, state.waited + 1)
        slow = ~(size <= self.contraction * state.last) if state.step else torch.full_like(fell, self.contraction == 0.0)
        stage = torch.where((state.stage == PICARD) & slow, ANDERSON, state.stage)
        tired = (state.stage == ANDERSON) & (waited >= self.patience)
        stage = torch.where(tired, NEWTON, torch.where((state.stage == NEWTON) & (waited >= self.patience), ANDERSON, stage))
        waited = torch.where(stage == state.stage, waited, 0)
        accelerated, history = self.anderson.step(problem, z, image, state.history)
        proposal, newton = choose(stage == PICARD, image, accelerated), state.newton
        strong = stage == NEWTON
        if state.step >= self.patience:  # before that nobody can be tired: a GPU need not be asked
            if bool(strong.any()):
                direct, newton = self.newton.step_of(problem, z, image, newton, strong)
                proposal = choose(strong, direct, proposal)
            else:  # who comes back to it begins anew
                newton = newton._replace(size=torch.full_like(newton.size, torch.inf))
        return proposal, AutoState(
            step=state.step + 1,
            history=history,
            newton=newton,
            stage=stage,
            last=size,
            least=torch.where(fell, size, state.least),
            waited=waited,
            steps_of_each=state.steps_of_each + torch.nn.functional.one_hot(stage, len(self.methods)),
        )
