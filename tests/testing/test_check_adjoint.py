"""`check_adjoint`: the library's adjoints pass, and each wrong one fails with a message that names the law."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from maps import mean_field

from ddeq.solvers import Adjoint, Anderson, AttachedAdjoint, Implicit, OneStep, Phantom, Picard, Stop, Unrolled
from ddeq.testing import check_adjoint

ADJOINTS = [
    (Implicit(), {}),
    (Implicit(Picard()), {}),
    (Phantom(), {"exact": False}),
    (Phantom(60), {}),
    (OneStep(), {"exact": False}),
    (Unrolled(), {}),
    (Unrolled(checkpoint=True), {}),
    (Implicit(), {"solver": Anderson()}),
    (Unrolled(), {"solver": Anderson()}),
]


@pytest.mark.theorem("T7")
@pytest.mark.parametrize(("adjoint", "options"), ADJOINTS, ids=lambda value: "" if value == {} else repr(value))
def test_adjoints_of_the_library_pass(adjoint, options):
    check_adjoint(adjoint, **options)


def test_a_problem_of_ones_own():
    args = torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.1, 0.2], dtype=torch.float64)
    check_adjoint(Implicit(), mean_field, None, *args)


@dataclass(frozen=True)
class NoHistory(Adjoint):
    def solve(self, equation, run, stop):
        with torch.no_grad():
            return run(equation, stop, watch=True)


@dataclass(frozen=True)
class ExactIsExpected(AttachedAdjoint):
    def attach(self, equation, z, status, stop):
        return OneStep().attach(equation, z, status, stop)


@dataclass(frozen=True)
class MovesTheValue(AttachedAdjoint):
    def attach(self, equation, z, status, stop):
        return z + 1e-4 * equation.residual(z + 1.0)


@dataclass(frozen=True)
class ForgetsTensors(AttachedAdjoint):
    """Derivatives in the parameters of a module alone."""

    def attach(self, equation, z, status, stop):
        *_, last = equation.tensors
        return z + 0.0 * last.sum()


@dataclass(frozen=True)
class FirstOrderOnly(AttachedAdjoint):
    """Exact at first order; its derivative is a constant."""

    def attach(self, equation, z, status, stop):
        value = Implicit().attach(equation, z, status, stop)
        tensors = [t for t in equation.tensors if t.requires_grad]
        return _Once.apply(value.detach(), value, *tensors)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, value, *tensors):
        with torch.enable_grad():
            ctx.graph = value
        ctx.save_for_backward(*tensors)
        return z.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cotangent):
        return None, cotangent, *(torch.zeros_like(t) for t in ctx.saved_tensors)


@dataclass(frozen=True)
class LosesCaptured(AttachedAdjoint):
    def solve(self, equation, run, stop):
        with torch.no_grad():
            outcome = run(equation, stop)
        if not torch.is_grad_enabled():
            return outcome
        return replace(outcome, value=Implicit().attach(equation, outcome.value, outcome.status, stop))

    def attach(self, equation, z, status, stop):
        return z


@dataclass(frozen=True)
class LeavesGradOff(Adjoint):
    def solve(self, equation, run, stop):
        outcome = Implicit().solve(equation, run, stop)
        torch.set_grad_enabled(False)
        return outcome


@dataclass(frozen=True)
class LeavesGradOffAfterErrors(Adjoint):
    def solve(self, equation, run, stop):
        mode = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        found = run(equation, stop, watch=mode)
        torch.set_grad_enabled(mode)
        return replace(found, value=Implicit()._attach_all(equation, found, stop)) if mode else found


@dataclass(frozen=True)
class FillsGrad(Adjoint):
    def solve(self, equation, run, stop):
        outcome = Implicit().solve(equation, run, stop)
        if outcome.value.requires_grad:
            outcome.value.sum().backward(retain_graph=True)
        return outcome


@dataclass(frozen=True)
class SaysRecords(Adjoint):
    records: ClassVar[bool] = True

    def solve(self, equation, run, stop):
        return Implicit().solve(equation, run, stop)


@dataclass(frozen=True)
class GradUnderNoGrad(Adjoint):
    records: ClassVar[bool] = True

    def solve(self, equation, run, stop):
        with torch.enable_grad():
            return run(equation, stop)


@dataclass(frozen=True)
class SolvesLess(Adjoint):
    """Fewer steps where gradients are wanted."""

    records: ClassVar[bool] = True

    def solve(self, equation, run, stop):
        return run(equation, replace(stop, max_steps=5) if torch.is_grad_enabled() else stop)


@dataclass(frozen=True)
class OnlyMaps(AttachedAdjoint):
    """Looks for a map that other equations do not have."""

    def attach(self, equation, z, status, stop):
        assert equation.map is not None
        return Implicit().attach(equation, z, status, stop)


@dataclass(frozen=True)
class DifferentiatesTheDiverged(Adjoint):
    """With derivatives of samples that have no fixed point."""

    def solve(self, equation, run, stop):
        wanted = torch.is_grad_enabled()
        with torch.no_grad():
            outcome = run(equation, stop, watch=wanted)
        if not wanted:
            return outcome
        return replace(outcome, value=Phantom(60).attach(equation, outcome.value, outcome.status, stop))


class DuckTyped:
    solve = NoHistory.solve


@pytest.mark.parametrize(
    ("adjoint", "message"),
    [
        (NoHistory(), "gradients: the solution has no history"),
        (ExactIsExpected(), r"gradients \(implicit differentiation, T7\): along a direction in weights"),
        (MovesTheValue(), "value: the solution is another where gradients are wanted"),
        (ForgetsTensors(), "gradients: they do not reach weights"),
        (FirstOrderOnly(), "second derivatives"),
        (LosesCaptured(), "captured tensors: .*lost without a word|samples that diverged"),
        (LeavesGradOff(), "grad mode: it was True before the solve and is False"),
        (LeavesGradOffAfterErrors(), "grad mode: it was True before an error"),
        (FillsGrad(), r"purity: the solve fills the \.grad"),
        (SaysRecords(), "records: gradients of three steps in the start|captured"),
        (GradUnderNoGrad(), "grad mode: under torch.no_grad"),
        (SolvesLess(), "value: .*ends as"),
        (DifferentiatesTheDiverged(), "samples that diverged: the gradient of one is"),
        (OnlyMaps(), "other equations"),
        (DuckTyped(), "typed capabilities: DuckTyped is not a subclass of Adjoint"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.unchecked
def test_wrong_adjoints_are_found(adjoint, message):
    mode = torch.is_grad_enabled()
    try:
        with pytest.raises(AssertionError, match=message):
            check_adjoint(adjoint)
    finally:
        torch.set_grad_enabled(mode)


def test_inexact_adjoints_are_held_to_less():
    with pytest.raises(AssertionError, match="do not reach weights"):
        check_adjoint(ForgetsTensors(), exact=False)
    check_adjoint(ExactIsExpected(), exact=False, stop=Stop(rtol=1e-10))
