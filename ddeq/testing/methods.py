"""What solvers and steppers have in common as methods: pure steps, a state for each sample, batches whose samples leave."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.draws import Draws
from ddeq.iteration import Equation, Iterate, Method, Outcome, Step, Stop, iterate
from ddeq.iteration.checks import check_state
from ddeq.testing.close import assert_close
from ddeq.testing.purity import assert_unchanged, copied, named_tensors, same_numbers, stated

__all__ = ["Watched", "check_batches", "check_pure"]


class Moment(NamedTuple):
    """What a step was given and gave."""

    equation: Any
    at: Iterate
    state: Any
    step: Step
    copies: dict[str, Tensor]


class Watched(Method[Any]):
    """A method whose every step is recorded and checked as it is made.

    Parameters
    ----------
    method
        The method.
    """

    def __init__(self, method: Method[Any]) -> None:
        self.method = method
        self.moments: list[Moment] = []

    @property
    def recovers(self) -> bool:  # type: ignore[override]
        return self.method.recovers

    @property
    def removable(self) -> bool:  # type: ignore[override]
        return self.method.removable

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.method.parts

    @property
    def ends_when_still(self) -> bool:
        return self.method.ends_when_still

    def perturbed(self, equation: Any, z: Tensor, step: int, draw: Draws | None) -> Any:
        return self.method.perturbed(equation, z, step, draw)

    def init(self, equation: Any, at: Iterate) -> Any:
        before = copied(at=at, equation=equation)
        with stated("init"):
            state = self.method.init(equation, at)
        assert_unchanged("purity: `init` changes what it was given", before, equation=equation, at=at)
        self._check_state(equation, state, "`init`")
        return state

    def step(self, equation: Any, at: Iterate, state: Any) -> Step:
        before = copied(at=at, state=state, equation=equation)
        with stated("step"):
            step = self.method.step(equation, at, state)
        assert_unchanged("purity: `step` changes what it was given", before, equation=equation, at=at, state=state)
        self._check_step(equation, at, step)
        self.moments.append(Moment(equation, at, state, step, before | copied(step=step)))
        return step

    def _check_state(self, equation: Equation, state: Any, of: str) -> None:
        try:
            check_state(self.method, state, equation.inner.batch_shape)
        except ValueError as error:
            raise AssertionError(f"batch-first state: after {of}: {error}") from None

    def _check_step(self, equation: Equation, at: Iterate, step: Any) -> None:
        name, batch = type(self.method).__name__, equation.inner.batch_shape
        if not isinstance(step, Step):
            raise AssertionError(f"step: {name}.step gives a {type(step).__name__}; expected Step(z, state)")
        if not isinstance(step.z, Tensor) or (step.z.shape, step.z.dtype, step.z.device) != (at.z.shape, at.z.dtype, at.z.device):
            seen = f"{tuple(step.z.shape)}, {step.z.dtype}" if isinstance(step.z, Tensor) else type(step.z).__name__
            raise AssertionError(f"step: expected the next iterate as the last, {tuple(at.z.shape)}, {at.z.dtype}; got {seen}")
        self._check_state(equation, step.state, "`step`")
        wanted = {"energy": batch, "status": batch, "note": (*batch, len(self.parts))}
        for field, shape in wanted.items():
            value = getattr(step, field)
            if value is not None and tuple(value.shape) != shape:
                raise AssertionError(f"step: expected `{field}` of shape {shape}, got {tuple(value.shape)}")
        if isinstance(step.duration, Tensor) and tuple(step.duration.shape) not in ((), batch):
            raise AssertionError(f"step: expected a duration of shape () or {batch}, got {tuple(step.duration.shape)}")
        if isinstance(step.evaluations, bool) or not isinstance(step.evaluations, int) or step.evaluations < 0:
            raise AssertionError(f"step: expected a whole number >= 0 of `evaluations`, got {step.evaluations!r}")


def check_pure(method: Method[Any], equation: Equation, z: Tensor, steps: int = 6) -> list[Moment]:
    """Purity of ``init`` and ``step``, and a state with an entry for each sample; the steps that were made.

    Each step is made again from what it was given, after all further steps: the same bits come out.

    Parameters
    ----------
    method, equation, z
        The method, a problem, and a start.
    steps
        How many steps to make.
    """
    watched = Watched(method)
    with torch.no_grad(), stated("purity"):
        iterate(equation, Stop(rtol=1e-300, atol=0.0, max_steps=steps), z=z, method=watched, converging=False)
        for number, moment in reversed(list(enumerate(watched.moments))):
            given, law = moment[:3], f"purity: step {number}"
            names = {"equation": moment.equation, "at": moment.at, "state": moment.state, "step": moment.step}
            assert_unchanged(f"{law}: a later step changes what belongs to it", moment.copies, **names)
            again = dict(named_tensors(method.step(*given), "step"))
            first = dict(named_tensors(moment.step, "step"))
            if again.keys() != first.keys():
                raise AssertionError(f"{law}: made again from the same state it gives other things, {sorted(again)}")
            for name, t in first.items():
                if not same_numbers(t, again[name]):
                    apart = float((t.double() - again[name].double()).abs().max()) if t.shape == again[name].shape else torch.nan
                    raise AssertionError(
                        f"{law}: made again from the same iterate and state, {name} differs by {apart:.3e}; what a step needs of "
                        "the last one belongs into its state, not into the object or a global"
                    )
    return watched.moments


Run = Callable[[Equation, Stop], Outcome]


def check_batches(
    run: Run, method: Method[Any], moments: list[Moment], equation: Equation, stop: Stop, *, few: int = 6, rtol: float = 1e-6
) -> None:
    """Each sample of a batch gets what it gets alone, whether finished ones are removed or not.

    Parameters
    ----------
    run
        Runs the method on an equation from its own start.
    method, moments
        The method, and steps that it has made.
    equation
        The problem of a batch, `removable`.
    stop
        When a sample stops.
    few
        Steps after which iterates must agree to rounding, whatever the tolerance.
    rtol
        Allowed relative difference.
    """
    rows = equation.inner.batch_shape[0]
    short = Stop(rtol=1e-300, atol=0.0, max_steps=few)
    together, whole = run(equation, short), run(equation, stop)
    alone = [equation.rows(torch.tensor([i], device=together.value.device)) for i in range(rows)]
    for i, one in enumerate(alone):
        law = f"one sample at a time: sample {i} of {rows}"
        with stated(f"{law}, alone"):
            first = run(one, short)
        assert_close(together.value[i : i + 1], first.value, f"{law}: {few} steps in the batch and alone", rtol=rtol)
    if method.removable:
        for moment in moments[1:]:
            _check_removal(method, moment, rtol)
    _assert_same("removal of samples: finished ones are removed", whole, _kept(run, equation, stop), slice(None), rtol)
    for i, one in enumerate(alone):
        law = f"one sample at a time: sample {i} of {rows}, in the batch and alone"
        _assert_same(law, whole, run(one, stop), slice(i, i + 1), rtol)


def _check_removal(method: Method[Any], moment: Moment, rtol: float) -> None:
    """A step of the samples that are left is that which they make among all."""
    rows = moment.equation.inner.batch_shape[0]
    for keep in ([rows - 1], list(range(0, rows, 2))):
        index = torch.tensor(keep, device=moment.at.z.device)
        law = f"removal of samples: in step {moment.at.step} those that are left, {keep} of {rows}, go elsewhere than among all"
        state = pytree.tree_map_only(Tensor, itemgetter(index), moment.state)
        with stated(law):
            step = method.step(moment.equation.rows(index), moment.at.rows(index), state)
        hint = "All that a step remembers of single samples must be tensors in its state."
        assert_close(step.z, moment.step.z[index], law, rtol=rtol, hint=hint)


def _kept(run: Run, equation: Equation, stop: Stop) -> Outcome:
    """With all samples kept in the computation."""
    removable, equation.removable = equation.removable, False
    try:
        return run(equation, stop)
    finally:
        equation.removable = removable


def _assert_same(law: str, actual: Outcome, expected: Outcome, rows: slice, rtol: float) -> None:
    for name in ("status", "steps"):
        a, b = getattr(actual, name)[rows], getattr(expected, name)
        if not torch.equal(a, b):
            raise AssertionError(f"{law}: its {name} is {a.tolist()}, and else {b.tolist()}")
    assert_close(actual.value[rows], expected.value, law, rtol=rtol, scale=1e-3)
