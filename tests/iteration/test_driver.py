"""The one loop, on a process whose every residual is known."""

from functools import partial

import pytest
import torch

from ddeq.iteration import Equation, Implicit, InnerProduct, Method, Sizes, Status, Step, Stop, iterate
from ddeq.iteration.inner import DIVERGENCE


class Script(Equation):
    """Sample i has residual ``residuals[i][step]`` where its iterate is ``step``; ``seen`` tells which samples were evaluated."""

    def __init__(self, residuals, index=None, seen=None, removable=False):
        self.residuals = torch.as_tensor(residuals, dtype=torch.float64)
        self.index = torch.arange(len(self.residuals)) if index is None else index
        self.seen = [] if seen is None else seen
        self.removable = removable
        self.inner = InnerProduct(torch.ones(len(self.index), 1, dtype=torch.float64), dims=1)

    def residual(self, z, *tensors):
        self.seen.append(self.index.tolist())
        step = z.squeeze(-1).long().clamp_max(self.residuals.shape[1] - 1)
        return self.residuals[self.index, step].unsqueeze(-1)

    def sizes(self, z, residual, previous):
        norm = residual.squeeze(-1)
        return Sizes(norm, torch.ones_like(norm), torch.where(norm.isnan(), norm, 1.0))

    def rows(self, keep):
        return type(self)(self.residuals, self.index[keep], self.seen, self.removable)


class Next(Method):
    """One step further; a sample whose state is below zero jumps to infinity."""

    def init(self, equation, at):
        return torch.zeros_like(at.norm)

    def step(self, equation, at, state):
        return Step(at.z + 1.0, state + 1)


def run(residuals, removable=False, method=None, **options):
    script = Script(residuals, removable=removable)
    stop = options.pop("stop", Stop(rtol=0.1, atol=0.0, max_steps=4))
    z = torch.zeros(len(script.residuals), 1, dtype=torch.float64)
    return script, iterate(script, stop, z=z, method=method or Next(), **options)


EASY, HARD, FAILING, BROKEN = [1, 0.05, 9, 9, 9], [1, 0.9, 0.8, 0.4, 0.01], [1, 0.5, 0.7, 0.6, 0.9], [1, 0.5, torch.nan, 0, 0]


def test_every_sample_has_its_own_end():
    _, outcome = run([EASY, HARD, FAILING, BROKEN])
    assert outcome.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED]
    assert outcome.steps.tolist() == [1, 4, 4, 2]
    assert outcome.residual.tolist() == [0.05, 0.01, 0.5, 0.5]


def test_the_best_iterate_is_returned_or_the_last():
    _, outcome = run([EASY, HARD, FAILING, BROKEN])
    assert outcome.value.flatten().tolist() == [1, 4, 1, 1]
    _, outcome = run([EASY, HARD, FAILING, BROKEN], best=False)
    assert outcome.value.flatten().tolist() == [1, 4, 4, 1]  # of one that broke, the last that was in order


@pytest.mark.parametrize("removable", [False, True])
@pytest.mark.parametrize("check_every", [1, 3])
def test_removal_and_rare_looks_change_no_result(removable, check_every):
    rows = [EASY, HARD, FAILING, BROKEN]
    _, expected = run(rows, trace=True)
    script, outcome = run(
        rows, removable=removable, trace=True, stop=Stop(rtol=0.1, atol=0.0, max_steps=4, check_every=check_every)
    )
    for name in ("value", "residual", "steps", "status"):
        assert torch.equal(getattr(outcome, name), getattr(expected, name)), name
    assert torch.equal(outcome.trace.nan_to_num(-1), expected.trace.nan_to_num(-1))
    assert (len(script.seen[-1]) < 4) == removable


def test_trace_is_nan_once_a_sample_has_finished():
    _, outcome = run([EASY, HARD], trace=True)
    assert outcome.trace[:, 1].tolist() == [1, 0.9, 0.8, 0.4, 0.01]
    assert outcome.trace[:2, 0].tolist() == [1, 0.05]
    assert outcome.trace[2:, 0].isnan().all()


def test_callbacks_see_all_samples():
    reports = []
    run([EASY, HARD], removable=True, callback=reports.append)
    assert [r.step for r in reports] == [0, 1, 2, 3, 4]
    assert [r.active.tolist() for r in reports][1:3] == [[False, True], [False, True]]
    assert reports[-1].value.flatten().tolist() == [1, 4]


def test_without_convergence_all_steps_are_taken():
    script, outcome = run([EASY], converging=False, best=False)
    assert outcome.status.tolist() == [Status.COMPLETED]
    assert outcome.steps.tolist() == [4]
    assert len(script.seen) == outcome.evaluations == 5  # the last iterate is evaluated too


def test_zero_steps_only_evaluate_the_start():
    script, outcome = run([HARD], stop=Stop(rtol=0.1, atol=0.0, max_steps=0))
    assert (outcome.status.item(), outcome.steps.item(), len(script.seen)) == (Status.MAX_STEPS, 0, 1)


def test_stagnation():
    _, outcome = run([[1.0] + [0.5] * (100 + 9)], stop=Stop(rtol=0.1, max_steps=100 + 9))
    assert outcome.status.item() == Status.STAGNATED
    assert outcome.steps.item() == 100 + 1


def test_growth_beyond_all_bounds_is_divergence():
    class Growing(Script):
        def sizes(self, z, residual, previous):
            return super().sizes(z, residual, previous)._replace(extent=10.0 ** z.squeeze(-1))

    script = Growing([[1.0] * 20])
    stop = Stop(rtol=0.1, atol=0.0, max_steps=19)
    outcome = iterate(script, stop, z=torch.zeros(1, 1, dtype=torch.float64), method=Next())
    assert outcome.status.item() == Status.DIVERGED
    assert 10.0 ** outcome.steps.item() > DIVERGENCE


class Jump(Next):
    """The second sample goes to infinity in its second step."""

    def step(self, equation, at, state):
        return Step(at.z + torch.tensor([[1.0], [torch.inf if at.step == 1 else 1.0]], dtype=torch.float64), state + 1)


def test_a_step_that_is_not_finite_ends_the_sample_where_it_was():
    _, outcome = run([[1.0] * 5, [1.0] * 5], method=Jump(), stop=Stop(max_steps=3), best=False)
    assert outcome.status.tolist() == [Status.MAX_STEPS, Status.DIVERGED]
    assert outcome.value.flatten().tolist() == [3, 1]


class GivesUp(Next):
    """Ends the first sample after two steps by a status of its own."""

    def step(self, equation, at, state):
        status = torch.full_like(at.norm, -1, dtype=torch.long)
        status[0] = Status.STAGNATED if at.step == 2 else -1
        return Step(at.z + 1.0, state + 1, status=status)


def test_a_method_may_end_a_sample_by_a_status():
    _, outcome = run([[1.0] * 5, [1.0] * 5], method=GivesUp(), best=False)
    assert outcome.status.tolist() == [Status.STAGNATED, Status.MAX_STEPS]
    assert outcome.steps.tolist() == [2, 4]
    assert outcome.value.flatten().tolist() == [2, 4]


def test_evaluations_of_the_method_count():
    class Busy(Next):
        def step(self, equation, at, state):
            return Step(at.z + 1.0, state + 1, evaluations=3)

    assert run([HARD], method=Busy())[1].evaluations == 5 + 4 * 3


@pytest.mark.parametrize("state", [torch.tensor(0.0), torch.zeros(3, 2)], ids=["no dimension", "another batch"])
def test_a_state_without_an_entry_for_each_sample_is_refused_at_once(state):
    class Wrong(Next):
        def init(self, equation, at):
            return state

    with pytest.raises(ValueError, match="Wrong: expected all tensors of its state to begin with the batch shape"):
        run([EASY, HARD], method=Wrong())


def test_a_state_that_turns_wrong_in_a_step_is_refused_too():
    class Wrong(Next):
        def step(self, equation, at, state):
            return Step(at.z + 1.0, state.sum())

    with pytest.raises(ValueError, match="Wrong: expected all tensors of its state"):
        run([EASY, HARD], method=Wrong())


def test_methods_see_the_iterate_before():
    seen = []

    class Looks(Next):
        def step(self, equation, at, state):
            seen.append((at.step, None if at.previous is None else (at.previous.step, at.previous.previous)))
            return Step(at.z + 1.0, state + 1)

    run([HARD], method=Looks())
    assert seen == [(0, None), (1, (0, None)), (2, (1, None)), (3, (2, None))]


def test_declared_capabilities_are_checked_when_a_class_is_made():
    with pytest.raises(TypeError, match=r"Wrong\.recovers: expected a bool, got 'yes'"):

        class Wrong(Next):
            recovers = "yes"


def test_progress_bar(capsys):
    run([HARD], progress=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": float("nan")}, "rtol"),
        ({"atol": -1.0}, "atol"),
        ({"max_steps": -1}, "max_steps"),
        ({"max_steps": 2.5}, "max_steps"),
        ({"check_every": 0}, "check_every"),
    ],
)
@pytest.mark.unchecked
def test_bad_stop(options, message):
    with pytest.raises(ValueError, match=message):
        Stop(**options)


class InPlace(Next):
    """Writes into the iterate that it is given."""

    def step(self, equation, at, state):
        return Step(at.z.add_(1.0), state + 1)


def test_a_step_that_changes_its_iterate_is_refused_and_the_start_is_kept():
    start = torch.zeros(1, 1, dtype=torch.float64)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"InPlace\.step: changed at\.z or at\.residual in place"),
    ):
        iterate(Script([HARD]), Stop(max_steps=3), z=start, method=InPlace())
    assert start.item() == 0.0


class Bare(Next):
    def step(self, equation, at, state):
        return at.z + 1.0


class Flat(Next):
    def step(self, equation, at, state):
        return Step(at.z.squeeze(-1) + 1.0, state)


class NotRecorded(Next):
    differentiable = False


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": Next}, "method: expected an instance of a subclass of ddeq.iteration.Method"),
        ({"method": Bare()}, r"Bare\.step: expected a ddeq.iteration.Step, got Tensor; return Step\(z, state\)"),
        ({"method": Flat()}, r"Flat\.step: expected the next iterate of shape \(1, 1\), got \(1,\)"),
        ({"z": torch.zeros(1, 2, 1)}, r"z: expected 1 dimensions behind the batch shape \(1,\).* got shape \(1, 2, 1\)"),
        ({"equation": lambda z: z}, "equation: expected an instance of a subclass of ddeq.iteration.Equation"),
    ],
)
def test_mistakes_are_told_by_their_name(options, message):
    given = {"equation": Script([HARD]), "z": torch.zeros(1, 1, dtype=torch.float64), "method": Next()} | options
    equation = given.pop("equation")
    with pytest.raises(ValueError, match=message):
        iterate(equation, Stop(max_steps=3), **given)


def test_an_equation_without_inner_product_says_so():
    class Bare(Equation):
        def residual(self, z, *tensors):
            return -z

    with pytest.raises(ValueError, match=r"Bare\.inner: expected an InnerProduct, which the equation sets, got None"):
        iterate(Bare(), Stop(), z=torch.zeros(1, 1), method=Next())


class Root(Equation):
    """a - z = 0."""

    def __init__(self, a):
        self.tensors = (a,)
        self.inner = InnerProduct(torch.ones_like(a), dims=1)

    def residual(self, z, *tensors):
        (a,) = tensors or self.tensors
        return a - z


def test_methods_that_cannot_be_recorded_are_refused_where_autograd_records():
    a = torch.ones(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match="autograd cannot record the steps of NotRecorded"):
        iterate(Root(a), Stop(max_steps=3), z=torch.zeros(2, 1), method=NotRecorded())


def test_a_residual_that_ignores_the_tensors_it_is_given_says_so():
    class Deaf(Root):
        def residual(self, z, *tensors):
            return self.tensors[0] - z

    a = torch.ones(2, 1, requires_grad=True)
    run = partial(iterate, z=torch.zeros(2, 1), method=Next())
    with pytest.raises(ValueError, match=r"Deaf\.residual: expected it to use the tensors that it is given"):
        Implicit().solve(Deaf(a), run, Stop(max_steps=3))
