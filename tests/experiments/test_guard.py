"""The guard raises the penalty when solves begin to fail, says so, and lets go when they converge again."""

import logging
from types import SimpleNamespace

import pytest
import torch

from ddeq.experiments import build_classifier
from ddeq.experiments.guard import ConvergenceGuard
from ddeq.iteration import Stop


class Recorder(logging.Handler):
    """Keeps what is logged: pytest's own way is off in this suite."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def recorder():
    handler, logger = Recorder(), logging.getLogger("ddeq")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def task():
    classifier = build_classifier(2, 3, width=8, atoms=2, mark_dim=2, heads=2, inducing=2)
    return SimpleNamespace(model=classifier, penalty=0.5, device=torch.device("cpu"))


pytestmark = pytest.mark.unchecked  # stand-ins for a trainer
TRAINER = SimpleNamespace(global_step=7, strategy=SimpleNamespace(reduce=lambda t, reduce_op: t))


def steps(guard, task, shares):
    """Let the guard see batches in which these shares of the solves converged."""
    for share in shares:
        task.model.solution = SimpleNamespace(converged=torch.arange(10) < round(10 * share))
        guard.on_train_batch_end(TRAINER, task, None, None, 0)
    return task.penalty


def test_penalty_follows_convergence(task, recorder):
    guard = ConvergenceGuard(share=0.9, window=3, factor=2.0, largest=4.0, patience=2)
    assert steps(guard, task, [1.0, 1.0, 0.9]) == 0.5
    assert not recorder.records
    assert steps(guard, task, [1.0, 0.5]) == 0.5  # the window is not full
    assert steps(guard, task, [0.5]) == 1.0
    (warning,) = recorder.records
    assert warning.levelno == logging.WARNING
    assert "only 66.7 % of the last 3" in warning.getMessage()
    assert "from 0.5 to 1" in warning.getMessage()
    assert steps(guard, task, [0.0] * 9) == 2.0  # four times the first one, and no more
    assert "stays at its largest" in recorder.records[-1].getMessage()
    assert steps(guard, task, [1.0] * 6) == 1.0
    assert steps(guard, task, [1.0] * 60) == 0.5


def test_state_goes_through_checkpoints(task):
    guard = ConvergenceGuard(window=2)
    steps(guard, task, [0.0, 0.0, 0.0])
    again = ConvergenceGuard(window=2)
    again.load_state_dict(guard.state_dict())
    fresh = SimpleNamespace(**(vars(task) | {"penalty": 0.5}))
    again.on_train_start(TRAINER, fresh)
    assert fresh.penalty == task.penalty == 1.0
    assert steps(again, fresh, [0.0]) == steps(guard, task, [0.0]) == 2.0


def test_other_models_are_let_be(task):
    other = SimpleNamespace(model=torch.nn.Linear(1, 1), penalty=0.5, device=torch.device("cpu"))
    ConvergenceGuard(window=1).on_train_batch_end(TRAINER, other, None, None, 0)
    assert other.penalty == 0.5


@pytest.mark.parametrize("options", [{"share": 1.5}, {"window": 0}, {"factor": 1.0}, {"largest": 0.5}, {"patience": 0}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ConvergenceGuard(**options)


def test_a_starved_solver_is_noticed(recorder):
    """End to end on a cell: one step is too few for a solve to converge."""
    from ddeq import DiscreteMeasure

    classifier = build_classifier(2, 3, width=8, atoms=2, mark_dim=2, heads=2, inducing=2, stop=Stop(rtol=1e-6, max_steps=1))
    task = SimpleNamespace(model=classifier.eval(), penalty=1.0, device=torch.device("cpu"))
    with torch.no_grad():
        classifier(DiscreteMeasure(torch.randn(4, 6, 2)))
    ConvergenceGuard(window=1).on_train_batch_end(TRAINER, task, None, None, 0)
    assert task.penalty == 2.0
    assert len(recorder.records) == 1
