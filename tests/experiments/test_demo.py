"""The demonstration runs from the command line, and its training learns."""

import json

import pytest
import torch

from ddeq.__main__ import main
from ddeq.data import load_digits
from ddeq.experiments import build_classifier, evaluate
from ddeq.experiments.demo import first_of_class, solve_by_all, train


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_pictures_and_numbers(tmp_path, capsys):
    assert main(["demo", "--epochs", "1", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("equilibrium.png", "convergence.png", "flow.png", "results.json"):
        assert (tmp_path / name).stat().st_size > 0
        assert str(tmp_path / name) in printed
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["evaluates identically twice"]
    assert numbers["parameters"] <= 150_000
    assert numbers["solvers"]["Anderson"]["status"] == "CONVERGED"
    assert numbers["flow energies"][1] < 0.1 * numbers["flow energies"][0]


@pytest.mark.filterwarnings("ignore")
def test_training_is_reproducible():
    data = load_digits("train").subset(range(128))
    a, b = (train(data, epochs=1, seed=3)[0] for _ in range(2))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_learns():
    classifier, _ = train(load_digits("train"), epochs=25, seed=0)
    result = evaluate(classifier, load_digits("test"))
    assert result.accuracy > 0.9
    assert result.converged > 0.99


def test_evaluation_leaves_the_mode_as_it_was():
    classifier = build_classifier(2, 10).train()
    data = load_digits("test").subset(range(20))
    result = evaluate(classifier, data, batch_size=7)
    assert classifier.training
    assert result.logits.shape == (20, 10)
    assert result.converged == 1.0


def test_all_solvers_are_compared_on_one_input():
    solutions, seconds = solve_by_all(build_classifier(2, 10).eval(), first_of_class(load_digits("test"), 3))
    assert len(solutions) == 4
    assert set(solutions) == set(seconds)
    assert all(solution.converged for solution in solutions.values())
    assert solutions["Anderson"].evaluations <= solutions["Picard"].evaluations
