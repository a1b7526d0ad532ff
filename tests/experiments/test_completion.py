"""Completion from training to a card: what is evaluated, and what a file of weights gives back."""

import csv
import json

import lightning
import pytest
import torch
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.data import RemoveDiscs, RemoveHalfSpace, generator_for, load_digits
from ddeq.experiments import Clouds, CompletionTask, evaluate_completion
from ddeq.experiments.command_line import Predictions
from ddeq.experiments.export import export
from ddeq.functionals import MMD, Chamfer, Wasserstein
from ddeq.nn import Completer, load_weights

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {
    "class": "Completer",
    "model": {
        "class": "DDEQ",
        "encoder": {"class": "InducedSetEncoder", "dim": 2, "width": 8, "heads": 2, "inducing": 4},
        "cell": {"class": "EquilibriumCell", "width": 8, "mark_dim": 2, "heads": 2},
        "reference": {"class": "GaussianReference", "n": 6, "dim": 8, "mark_dim": 2},
        "stop": {"class": "Stop", "rtol": 1e-3, "max_steps": 30},
    },
}


class Nothing(nn.Module):
    """Leaves the known part as it is."""

    def forward(self, known, generator=None):
        return known


class Knows(nn.Module):
    """Gives two measures, a wrong one and then the right one."""

    def __init__(self, wholes):
        super().__init__()
        self.wholes = wholes

    def forward(self, known, generator=None):
        return known, self.wholes.pop(0)


def test_evaluation_measures_distances_to_the_whole():
    data, removal = load_digits("test").subset(range(12)), RemoveHalfSpace()
    result = evaluate_completion(Nothing(), data, removal, batch_size=5)
    assert result.converged is None
    torch.testing.assert_close(result.transport, result.known)
    assert result.labels.tolist() == data.labels.tolist()
    (whole, _), *_ = data.loader(5)
    known, _ = removal(whole.normalized(), generator_for(0, "completion", 0))
    torch.testing.assert_close(result.chamfer[:5], 2.0 * Chamfer(whole.normalized())(known.normalized()))
    torch.testing.assert_close(result.transport[:5].square(), 2.0 * Wasserstein(whole.normalized())(known.normalized()))


def test_of_several_measures_the_finest_counts():
    data = load_digits("test").subset(range(6))
    wholes = [measures.normalized() for measures, _ in data.loader(4)]
    result = evaluate_completion(Knows(wholes), data, RemoveDiscs(), batch_size=4)
    assert float(result.chamfer.max()) == 0.0
    assert float(result.transport.max()) < 1e-3
    assert float(result.known.min()) > 0.01


def test_the_loss_may_be_a_sum_of_discrepancies():
    g = torch.Generator().manual_seed(0)
    whole, other = (DiscreteMeasure(torch.rand(3, n, 2, generator=g)) for n in (7, 9))
    task = CompletionTask(SMALL, removal=RemoveDiscs(), discrepancy={"MMD": 2.0, "Chamfer": 0.5})
    assert torch.allclose(task.discrepancy(whole)(other), 2.0 * MMD(whole)(other) + 0.5 * Chamfer(whole)(other))
    for wrong in ("MDM", {"MMD": 1.0, "Chamfers": 1.0}, {}):
        with pytest.raises(ValueError, match="discrepancy: expected a name of"):
            CompletionTask(SMALL, removal=RemoveDiscs(), discrepancy=wrong)
    with pytest.raises(ValueError, match="options: expected none with several"):
        CompletionTask(SMALL, removal=RemoveDiscs(), discrepancy={"MMD": 1.0, "Chamfer": 1.0}, options={"blur": 0.1})


def test_a_trained_completer_is_exported_with_its_distances(tmp_path):
    removal = {"class": "RemoveDiscs", "count": 1, "radius": 0.5}
    task = CompletionTask(SMALL, removal=removal, discrepancy="MMD")
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(task, Clouds("digits", limit=64, batch_size=16))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    card = export(tmp_path / "last.ckpt", tmp_path / "small.safetensors", "digits", None, "a command")
    numbers = json.loads((tmp_path / "small.json").read_text())
    assert numbers["removal"] == removal
    assert numbers["completed"] == 360
    for atoms in ("6 atoms", "12 atoms"):
        assert numbers[atoms]["W2, mean"] > 0.0
        assert f"With {atoms} added" in card
    assert 0.0 < numbers["spectral radius, largest of 16"] < 10.0
    completer, rho = load_weights(tmp_path / "small.safetensors"), DiscreteMeasure(torch.rand(2, 9, 2))
    assert isinstance(completer, Completer)
    assert torch.equal(completer(rho, n=12).points, task.model.eval()(rho, n=12).points)


def test_predictions_are_completed_measures(tmp_path):
    file = tmp_path / "deep" / "completed.csv"
    task = CompletionTask(SMALL, removal=RemoveHalfSpace())
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, limit_predict_batches=2, callbacks=[Predictions(str(file))]
    )
    trainer.predict(task, datamodule=Clouds("digits", test_batch_size=3), return_predictions=False)
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert sorted({int(row["index"]) for row in rows}) == list(range(6))
    for i in range(6):
        atoms = [row for row in rows if int(row["index"]) == i]
        assert sum(float(row["weight"]) for row in atoms) == pytest.approx(1.0, abs=1e-5)
        assert {row["label"] for row in atoms} == {str(int(load_digits("test").labels[i]))}
        assert {"x1", "x2"} <= atoms[0].keys()


@pytest.mark.unchecked
def test_an_unknown_kind_of_penalty_is_an_error():
    with pytest.raises(ValueError, match="kind: expected 'largest' or 'frobenius', got 'all'"):
        CompletionTask(SMALL, removal=RemoveDiscs(), kind="all")


def test_the_penalty_may_be_that_of_the_frobenius_norm():
    data = Clouds("digits", limit=32, batch_size=16)
    penalties = {}
    for kind in ("largest", "frobenius"):
        torch.manual_seed(0)
        task = CompletionTask(SMALL, removal=RemoveDiscs(), discrepancy="MMD", growth=0.0, kind=kind)
        seen = []
        task._log = lambda stage, numbers, size, seen=seen: seen.append(float(numbers["excess growth"]))
        trainer = lightning.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        trainer.fit(task, data)
        penalties[kind] = seen[0]
    assert 0.0 < penalties["frobenius"] < penalties["largest"]  # a mean over directions, and the largest
