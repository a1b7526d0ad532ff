"""The one loop, on a process whose every residual is known."""

import pytest
import torch

from ddeq.iteration import Evaluation, Status, Stop, iterate
from ddeq.iteration.loop import DIVERGENCE


class Script:
    """Sample i has residual ``residuals[i][step]`` and moves to ``step + 1``; ``seen`` tells which samples were evaluated."""

    def __init__(self, residuals, index=None, seen=None):
        self.residuals = torch.as_tensor(residuals, dtype=torch.float64)
        self.index = torch.arange(len(self.residuals)) if index is None else index
        self.seen = [] if seen is None else seen

    def evaluate(self, value, memory):
        self.seen.append(self.index.tolist())
        step = int(memory)
        residual = self.residuals[self.index, min(step, self.residuals.shape[1] - 1)]
        size = torch.where(residual.isnan(), residual, 1.0 + 0 * residual)
        return Evaluation(residual, residual, torch.zeros_like(residual), size, None), memory

    def advance(self, value, memory, found, step):
        return value + 1.0, memory + 1

    def select(self, keep):
        return Script(self.residuals, self.index[keep], self.seen)


def run(residuals, **options):
    script = Script(residuals)
    stop = options.pop("stop", Stop(rtol=0.1, max_steps=4))
    n = len(script.residuals)
    value = torch.zeros(n, 1, dtype=torch.float64)
    return script, iterate(script, value, 0, stop=stop, batch_shape=(n,), **options)


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
    script, outcome = run(rows, removable=removable, trace=True, stop=Stop(rtol=0.1, max_steps=4, check_every=check_every))
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
    assert len(script.seen) == 4  # the last iterate is not evaluated


def test_zero_steps_only_evaluate_the_start():
    script, outcome = run([HARD], stop=Stop(rtol=0.1, max_steps=0))
    assert (outcome.status.item(), outcome.steps.item(), len(script.seen)) == (Status.MAX_STEPS, 0, 1)


def test_stagnation():
    _, outcome = run([[1.0] + [0.5] * (100 + 9)], stop=Stop(rtol=0.1, max_steps=100 + 9))
    assert outcome.status.item() == Status.STAGNATED
    assert outcome.steps.item() == 100 + 1


def test_growth_beyond_all_bounds_is_divergence():
    class Growing(Script):
        def evaluate(self, value, memory):
            evaluation, memory = super().evaluate(value, memory)
            return evaluation._replace(size=torch.full_like(evaluation.size, 10.0 ** float(memory))), memory

    script = Growing([[1.0] * 20])
    outcome = iterate(script, torch.zeros(1, 1), 0, stop=Stop(rtol=0.1, max_steps=19), batch_shape=(1,))
    assert outcome.status.item() == Status.DIVERGED
    assert 10.0 ** outcome.steps.item() > DIVERGENCE


def test_a_step_that_is_not_finite_ends_the_sample_where_it_was():
    class Jump(Script):
        def advance(self, value, memory, found, step):
            return value + torch.tensor([[1.0], [torch.inf if step == 1 else 1.0]]), memory + 1

    outcome = iterate(Jump([[1.0] * 5, [1.0] * 5]), torch.zeros(2, 1), 0, stop=Stop(max_steps=3), batch_shape=(2,), best=False)
    assert outcome.status.tolist() == [Status.MAX_STEPS, Status.DIVERGED]
    assert outcome.value.flatten().tolist() == [3, 1]


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
