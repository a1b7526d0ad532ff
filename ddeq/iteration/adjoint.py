"""`Adjoint`: how gradients flow through a solve; and what all adjoints share that find a solution first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.autodiff import without_autocast
from ddeq.integers import set_whole
from ddeq.iteration.declared import Declared
from ddeq.iteration.driver import Outcome
from ddeq.iteration.equation import Equation
from ddeq.iteration.failures import ConvergenceWarning, DivergedWarning, UnconvergedWarning, UnmatchedAtomsWarning
from ddeq.iteration.status import Status, Stop
from ddeq.messages import warn

__all__ = ["Adjoint", "AttachedAdjoint", "OneStep", "Phantom", "Run", "Unrolled"]

MISMATCH = 10.0
"""Atoms and images that a metric calls equal may be this many tolerances apart before a gradient is called inexact."""


@runtime_checkable
class Run(Protocol):
    """Solves an equation from a start and by a method that the caller has chosen."""

    def __call__(self, equation: Equation, stop: Stop, /, *, watch: bool = False) -> Outcome:
        """Solve; ``watch``: it is an error if a tensor that requires grad enters and is not among ``equation.tensors``."""
        ...


class Adjoint(Declared, ABC):
    """A frozen set of options that says how gradients flow through a solve.

    It owns the grad mode: `solve` decides what autograd records, and may change the equation before it is solved.
    """

    records: ClassVar[bool] = False
    """Whether autograd records the solve itself, so that gradients reach the start."""

    @abstractmethod
    def solve(self, equation: Equation, run: Run, stop: Stop) -> Outcome:
        """The outcome of ``run(equation, stop)``, its ``value`` a differentiable function of ``equation.tensors``.

        Parameters
        ----------
        equation
            What to solve.
        run
            Solves it: ``run(equation, stop)``.
        stop
            When to stop.
        """


class AttachedAdjoint(Adjoint):
    """An adjoint that finds a solution without recording how, and makes it a function of the tensors of the equation afterwards.

    A subclass defines `attach`. Tensors that would enter unseen are an error. Samples that diverged get zero gradients; of these,
    and of samples that did not converge, a warning is given in backward.
    """

    @abstractmethod
    def attach(self, equation: Equation, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        """``z``, the same numbers, as a differentiable function of ``equation.tensors``.

        Parameters
        ----------
        equation
            What was solved.
        z
            The solution, ``(*batch, ...)``.
        status
            `Status` of each sample, ``(*batch,)``.
        stop
            The tolerances of the solve.
        """

    def solve(self, equation: Equation, run: Run, stop: Stop) -> Outcome:
        differentiated = torch.is_grad_enabled()
        with torch.no_grad():
            outcome = run(equation, stop, watch=differentiated)
        if not (differentiated and any(t.requires_grad for t in equation.tensors)):
            return outcome
        with without_autocast(outcome.value.device):
            return replace(outcome, value=self._attach_all(equation, outcome, stop))

    def _attach_all(self, equation: Equation, outcome: Outcome, stop: Stop) -> Tensor:
        z, status = outcome.value, outcome.status
        equation, _ = equation.prepared(z.detach(), outcome.memory, outcome.taken, None)
        warnings: list[ConvergenceWarning] = []
        if stop.metric is not None:
            # The atoms are first matched with their images (implicit differentiation, T7).
            equation, mismatch = equation.matched(z, status, MISMATCH * stop.rtol)
            if mismatch is not None and bool((apart := mismatch > MISMATCH * stop.rtol).any()):
                text = (
                    "some fixed points agree with their images in the metric of `stop`, but not atom by atom: gradients are off"
                )
                warnings.append(UnmatchedAtomsWarning(text, failed=apart, residual=mismatch, wanted=MISMATCH * stop.rtol))
        failed = (status == Status.MAX_STEPS.value) | (status == Status.STAGNATED.value)
        diverged = status == Status.DIVERGED.value
        if bool(diverged.any()):
            tied = self._attach_without(diverged, equation, z, status, stop)
        else:
            tied = self.attach(equation, z, status, stop)
        if bool(failed.any()):
            text = f"some {equation.name} did not converge; gradients are taken where the solve ended: {equation.remedy}"
            warnings.append(UnconvergedWarning(text, failed=failed, residual=outcome.residual, wanted=stop.rtol))
        if bool(diverged.any()):
            text = f"some {equation.name} diverged; their gradients are set to zero"
            if not equation.removable:
                text += f"; {equation.how_to_remove}"
            warnings.append(DivergedWarning(text, failed=diverged))
        return _WarnInBackward.apply(tied, warnings) if warnings else tied  # type: ignore[no-untyped-call]

    def _attach_without(self, diverged: Tensor, equation: Equation, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        """Zero times NaN is NaN: where it is known how to leave samples out, diverged ones take no part in backward."""
        if not bool(diverged.any()):
            return self.attach(equation, z, status, stop)
        if bool(diverged.all()):
            return _Constant.apply(z, *equation.tensors)  # type: ignore[no-any-return,no-untyped-call]
        rows = (~diverged).unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)
        if equation.removable and len(rows) < len(diverged):
            left = self._attach_without(diverged[rows], equation.rows(rows), z[rows], status[rows], stop)
            return z.index_copy(0, rows, left)
        there = diverged.reshape(*diverged.shape, *(1,) * (z.ndim - diverged.ndim))
        return torch.where(there, z, self.attach(equation, z, status, stop))


@dataclass(frozen=True)
class Phantom(AttachedAdjoint):
    r"""Derivatives through ``steps`` damped steps of plain iteration at the solution: a truncated Neumann series.

    The value stays that of the solution. For a fixed point, with ``steps`` :math:`= K` and no damping, :math:`(I - J)^{-1}` is
    replaced by :math:`\sum_{k < K} J^k`; the error falls like the spectral radius of :math:`J` to the power :math:`K`.

    Parameters
    ----------
    steps
        Number of steps, at least one.
    damping
        Share of the old iterate in each, ``0 <= damping < 1``.

    Raises
    ------
    ValueError
        If an option is outside its range.

    References
    ----------
    :cite:t:`geng2021training`.
    """

    steps: int = 5
    damping: float = 0.0

    def __post_init__(self) -> None:
        set_whole(self, 1, "steps")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping: expected 0 <= damping < 1, got {self.damping}")

    def attach(self, equation: Equation, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        y = z
        for _ in range(self.steps):
            y = y + (1.0 - self.damping) * equation.residual(y)
        return z + (y - y.detach())  # the value must not move: training and evaluation see the same solution


@dataclass(frozen=True)
class OneStep(AttachedAdjoint):
    r"""Derivatives of one step of plain iteration at the solution, :math:`(I - J)^{-1} \approx I`: cheap and biased.

    References
    ----------
    :cite:t:`fung2022jfb`.
    """

    def attach(self, equation: Equation, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        y = z + equation.residual(z)
        return z + (y - y.detach())


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """Autograd records the solve itself: right for what was computed, converged or not, at memory that grows with steps.

    The only adjoint in which gradients reach the start, and tensors that a map captures.

    Parameters
    ----------
    steps
        Most steps to take; default: those of ``stop``. Samples that converge stop earlier, and the iterate of least residual is
        what is returned and differentiated.
    checkpoint
        Keep the iterates only and evaluate the residual again in backward, one step at a time, for derivatives of any order. What
        then grows with the steps is a few iterates each, not the intermediate results of an evaluation. Tensors that enter
        without being parameters, buffers or arguments are then an error, as with the other adjoints.

    Raises
    ------
    ValueError
        If ``steps`` is neither a whole number of at least zero nor None.

    References
    ----------
    :cite:t:`griewank2008evaluating`; :cite:t:`chen2016training`, evaluating again in backward.
    """

    steps: int | None = None
    checkpoint: bool = False

    records: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps is not None:
            set_whole(self, 0, "steps")

    def solve(self, equation: Equation, run: Run, stop: Stop) -> Outcome:
        if self.steps is not None:
            stop = replace(stop, max_steps=self.steps)
        if self.checkpoint and torch.is_grad_enabled():
            return run(equation.recomputed(), stop, watch=True)
        return run(equation, stop)


class _WarnInBackward(torch.autograd.Function):
    """The identity; warns in backward, when a gradient is taken that is not what it seems."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, warnings: list[ConvergenceWarning]) -> Tensor:
        ctx.warnings = warnings
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        for warning in ctx.warnings:
            warn(warning)
        return cotangents[0], None


class _Constant(torch.autograd.Function):
    """``z`` as a function of tensors on which it does not depend: they get zero gradients, not none."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *(torch.zeros_like(t) for t in ctx.saved_tensors)
