"""How gradients flow through a fixed point."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.autodiff import without_autocast
from ddeq.iteration import ConvergenceError, ConvergenceWarning, Evaluation, Status, Stop, implicit_function, iterate
from ddeq.solvers.alignment import alignment
from ddeq.solvers.auto import Auto
from ddeq.solvers.bound_map import BoundMap
from ddeq.solvers.problem import FixedPoint, FixedPointIteration, Solver

__all__ = ["Adjoint", "AdjointReport", "Implicit", "OneStep", "Phantom", "Unrolled", "attach"]

log = logging.getLogger("ddeq")

MISMATCH = 10.0
"""Atoms and images that a metric calls equal may be this many tolerances apart before a gradient is called inexact."""


@runtime_checkable
class Adjoint(Protocol):
    """A frozen set of options that ties a solution to what it depends on."""

    def attach(self, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        """``z``, the same numbers, as a differentiable function of ``bound.tensors``.

        Parameters
        ----------
        bound
            The map at its arguments, as a function of points alone.
        z
            The points of the solution, ``(*batch, n, d)``.
        status
            `ddeq.iteration.Status` of each sample, ``(*batch,)``.
        stop
            The tolerances of the solve.
        """
        ...


@dataclass(frozen=True, eq=False)
class AdjointReport:
    """How the solve of an adjoint equation went, for each sample ``(*batch,)``."""

    residual: Tensor
    """Relative to the gradient that came in."""
    steps: Tensor
    """Steps of the solver."""
    status: Tensor
    """`ddeq.iteration.Status` as whole numbers."""
    growth: Tensor
    """How many times larger the solution is than the gradient that came in; where that is much, little is sure."""
    products: int
    """Products with the transposed Jacobian, on the batch."""


@dataclass(frozen=True)
class Implicit:
    r"""Exact derivatives of every order by the implicit-function rule (T7), at constant memory.

    .. math:: \bar\theta = (\partial_\theta \Phi)^\top u, \qquad u = J^\top u + \bar z, \quad J = \partial_z \Phi(z^*),

    the adjoint equation being solved as a fixed-point problem of its own. Samples that did not converge are
    differentiated at their best iterate, with a `ConvergenceWarning`; those that diverged get zero, with another.

    A gradient that is not right says so. When the adjoint equation has been solved as well as it goes, its residual
    :math:`|J^\top u + \bar z - u| / |\bar z|` is compared with the tolerance. It is relative to :math:`\bar z` because
    the iterates of a singular equation grow without end, next to which any residual is small. An equation also fails whose
    solution is more than ``1 / rtol`` times :math:`\bar z` (or where rounding leaves less than half of the digits): there
    :math:`I - J` is singular as far as the tolerance can tell, as where fixed points are not isolated. (If
    :math:`I - J` is singular but :math:`\bar z` is orthogonal to its kernel, the loss does not see the direction in which
    the fixed point is undetermined. Such an equation has a solution, and there is nothing to report.)

    Parameters
    ----------
    solver
        Solver of the adjoint equation, one that sees points only; default ``Auto(contraction=0.0)``:
        Anderson's steps, and Newton's (which here is GMRES) where their residual stops falling.
    on_failure
        Whether an adjoint equation that was not solved warns, or raises a `ConvergenceError`.
    stop
        Its tolerance and steps; default: those of the forward solve.
    report
        Called in backward with an `AdjointReport`, once for each adjoint equation (again for those of second derivatives).

    Raises
    ------
    ValueError
        If an option is not what it should be.

    References
    ----------
    :cite:t:`christianson1994reverse`; :cite:t:`bai2019deep`.
    """

    solver: Solver | None = None
    on_failure: Literal["warn", "raise"] = "warn"
    stop: Stop | None = field(default=None, kw_only=True)
    report: Callable[[AdjointReport], object] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.on_failure not in ("warn", "raise"):
            raise ValueError(f"on_failure: expected 'warn' or 'raise', got {self.on_failure!r}")
        for name, kind, example in (("solver", Solver, "Anderson()"), ("stop", Stop, "Stop(rtol=1e-6)")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, type)):
                raise ValueError(f"{name}: expected an instance such as {example} or None, got {value!r}")

    def attach(self, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        solve = _AdjointSolve(self, bound.mu.weights.detach(), status, replace(self.stop or stop, metric=None))
        return implicit_function(lambda z, *t: bound.image_of(z, *t) - z, solve, z, *bound.tensors)


class _AdjointSolve:
    """``x = A(x) + x + b`` by a solver of fixed points, for each sample in units of its ``b``."""

    def __init__(self, options: Implicit, weights: Tensor, status: Tensor, stop: Stop) -> None:
        self._options, self._status = options, status
        self._solver = options.solver or Auto(contraction=0.0)
        self._stop = stop
        live = weights > 0
        mean = weights.mean(-1, keepdim=True)
        # Cotangents carry the mass of their atoms, so their inner product divides by it. Atoms of mass zero count as
        # average ones: their cotangents vanish unless the loss looks at them, and then their equations must hold too.
        inverse = 1.0 / torch.where(live, weights, torch.where(mean > 0, mean, 1.0))
        self._inverse, self._weights = inverse, torch.where(live, weights, mean)

    def __call__(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> Tensor:
        with without_autocast(b.device):
            weights = self._inverse if dual else self._weights
            size = b.abs().amax((-2, -1), keepdim=True)  # squares of small numbers would be zero
            size = torch.where(size > 0, size, 1.0)
            norm = FixedPoint(_Affine(operator, b), weights).norm(b / size)[..., None, None]
            size = size * torch.where(norm > 0, norm, 1.0)
            problem = FixedPoint(_Affine(operator, b / size), weights)
            iteration = _AdjointIteration(problem, self._solver, self._stop)
            outcome = iterate(iteration, b / size, iteration.start(b), stop=self._stop, batch_shape=tuple(b.shape[:-2]))
            growth = problem.norm(outcome.value)
            self._judge(AdjointReport(outcome.residual, outcome.steps, outcome.status, growth, problem.counter.count))
        return outcome.value * size

    def _judge(self, report: AdjointReport) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("adjoint: largest residual %.1e, %d products", float(report.residual.max()), report.products)
        if self._options.report is not None:
            self._options.report(report)
        largest = min(1.0 / self._stop.rtol, torch.finfo(report.growth.dtype).eps ** -0.5)
        considered = self._status != Status.DIVERGED.value
        failed = considered & (report.status != Status.CONVERGED.value)
        singular = considered & ~failed & (report.growth > largest)
        messages = []
        if bool(failed.any()):
            messages.append(
                f"{int(failed.sum())} of {failed.numel()} adjoint equations were not solved (largest relative residual "
                f"{float(report.residual[failed].max()):.1e}, wanted {self._stop.rtol:.1e}): gradients are inexact, or the "
                "system is singular (the fixed point is not isolated). Give the adjoint more steps or another solver, "
                "Implicit(solver, stop=Stop(...)), or make the map contract more"
            )
        if bool(singular.any()):
            messages.append(
                f"{int(singular.sum())} of {singular.numel()} adjoint equations are singular to the tolerance: their "
                f"solutions are up to {float(report.growth[singular].max()):.1e} times the gradient that came in. The fixed "
                "point is not isolated, or hardly so, and its derivatives mean little; make the map contract more, or lower the "
                "rtol"
            )
        for message in messages:
            if self._options.on_failure == "raise":
                raise ConvergenceError(message, report)
            warnings.warn(message, ConvergenceWarning, stacklevel=2)


class _AdjointIteration(FixedPointIteration):
    """Residuals relative to the right-hand side, which has norm one: next to an iterate that grows for ever all are small."""

    def evaluate(self, value: Tensor, memory: Any) -> tuple[Evaluation, Any]:
        evaluation, memory = super().evaluate(value, memory)
        usable = torch.isfinite(evaluation.residual)  # the others are lost, and for the solver to deal with
        return evaluation._replace(residual=torch.where(usable, evaluation.absolute, torch.inf)), memory


@dataclass(frozen=True)
class Phantom:
    r"""Derivatives through ``steps`` damped applications of the map at the solution: a truncated Neumann series.

    The value stays that of the solution. With ``steps`` :math:`= K` and no damping, :math:`(I - J)^{-1}` is replaced by
    :math:`\sum_{k < K} J^k`; the error falls like the spectral radius of :math:`J` to the power :math:`K`.

    Parameters
    ----------
    steps
        Number of applications, at least one.
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
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps: expected a whole number >= 1, got {self.steps!r}")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping: expected 0 <= damping < 1, got {self.damping}")

    def attach(self, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        y = z
        for _ in range(self.steps):
            y = torch.lerp(bound.image(y), y, self.damping)
        return z + (y - y.detach())  # the value must not move: training and evaluation see the same solution


@dataclass(frozen=True)
class OneStep:
    r"""Derivatives of one application of the map at the solution, :math:`(I - J)^{-1} \approx I`: cheap and biased.

    References
    ----------
    :cite:t:`fung2022jfb`.
    """

    def attach(self, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        return Phantom(steps=1).attach(bound, z, status, stop)


@dataclass(frozen=True)
class Unrolled:
    """Autograd records the solve itself: right for what was computed, converged or not, at memory that grows with steps.

    The only adjoint in which gradients reach ``mu0.points``, and tensors that the map captures.

    Parameters
    ----------
    steps
        Most steps of the solver to take; default: those of ``stop``. Samples that converge stop earlier, and the iterate of least
        residual is what is returned and differentiated.
    checkpoint
        Keep the iterates only and evaluate the map again in backward, one step at a time, for derivatives of any order. What
        then grows with the steps is a few iterates each, not the intermediate results of the map. Tensors that the map
        captures are then an error, as with the other adjoints.

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

    def __post_init__(self) -> None:
        if self.steps is not None and not (isinstance(self.steps, int) and self.steps >= 0):
            raise ValueError(f"steps: expected a whole number >= 0 or None, got {self.steps!r}")

    def attach(self, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
        return z


def attach(adjoint: Adjoint, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
    """``adjoint.attach`` for the samples that did not diverge; the others get zero gradients. Warns in backward of both.

    Zero times NaN is NaN: where it is known how to leave samples out, those that diverged take no part in backward. Where a
    metric between measures has stopped the solve, the atoms are first matched with their images (T7).
    """
    messages = []
    with without_autocast(z.device):
        if stop.metric is not None:
            bound, mismatch = _align(bound, z, status, MISMATCH * stop.rtol)
            apart = mismatch > MISMATCH * stop.rtol
            if bool(apart.any()):
                messages.append(
                    f"{int(apart.sum())} of {apart.numel()} fixed points agree with their images in the metric of `stop`, "
                    f"but atom by atom they are up to {float(mismatch.max()):.1e} apart, relative to their size: gradients are "
                    "inexact"
                )
        tied = _attach_without_diverged(adjoint, bound, z, status, stop)
    failed = int(((status == Status.MAX_STEPS.value) | (status == Status.STAGNATED.value)).sum())
    diverged = int((status == Status.DIVERGED.value).sum())
    if failed:
        messages.append(
            f"{failed} of {status.numel()} fixed points did not converge; their gradients are taken at the best iterate. More "
            "steps, another solver or a stabler map may help"
        )
    if diverged:
        remedy = "" if bound.removable else "; declare in_dims, so that they take no part in backward where the map is NaN"
        messages.append(f"{diverged} of {status.numel()} fixed points diverged; their gradients are set to zero{remedy}")
    return _Announce.apply(tied, messages) if messages else tied  # type: ignore[no-untyped-call]


def _align(bound: BoundMap, z: Tensor, status: Tensor, near: float) -> tuple[BoundMap, Tensor]:
    """The map with its images matched to atoms, unless all are ``near`` already, and how far apart they are then, relatively."""
    with torch.no_grad():
        z, weights = z.detach(), bound.mu.weights.detach()
        usable = status != Status.DIVERGED.value
        image = bound.image(z)
        problem = FixedPoint(_Affine(torch.zeros_like, z), weights)
        size = problem.norm(z)

        def mismatch(image: Tensor) -> Tensor:
            return torch.where(usable, problem.norm(image - z) / torch.where(size > 0, size, 1.0), 0.0)

        before = mismatch(image)
        if bool((before <= near).all()):
            return bound, before
        there = usable[..., None, None]
        matrix = alignment(torch.where(there, z, 0.0), torch.where(there, image, 0.0), weights)
        return bound.aligned(matrix), mismatch(matrix @ image)


def _attach_without_diverged(adjoint: Adjoint, bound: BoundMap, z: Tensor, status: Tensor, stop: Stop) -> Tensor:
    diverged = status == Status.DIVERGED.value
    if not bool(diverged.any()):
        return adjoint.attach(bound, z, status, stop)
    if bool(diverged.all()):
        return _Constant.apply(z, *bound.tensors)  # type: ignore[no-any-return,no-untyped-call]
    rows = (~diverged).unsqueeze(-1).flatten(1).any(-1).nonzero().squeeze(-1)
    if bound.removable and len(rows) < len(diverged):
        left = _attach_without_diverged(adjoint, bound.select(rows), z[rows], status[rows], stop)
        return z.index_copy(0, rows, left)
    return torch.where(diverged[..., None, None], z, adjoint.attach(bound, z, status, stop))


class _Announce(torch.autograd.Function):
    """The identity; warns in backward, when a gradient is taken that is not what it seems."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, messages: list[str]) -> Tensor:
        ctx.messages = messages
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        for message in ctx.messages:
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
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


@dataclass(frozen=True)
class _Affine:
    operator: Callable[[Tensor], Tensor]
    b: Tensor

    def image(self, z: Tensor) -> Tensor:
        return self.operator(z) + z + self.b

    def linearized(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Products with the derivative, the same everywhere: a solver that asks for them gets the operator itself."""
        return lambda v: self.operator(v) + v

    def select(self, keep: Tensor) -> _Affine:
        raise AssertionError("adjoint equations are solved for all samples together")
