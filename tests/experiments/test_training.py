"""Training by the command line: what it logs and writes, and that a run which was interrupted ends as if it had not been."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch
import yaml

from ddeq.__main__ import main
from ddeq.experiments import Clouds, KeptCSVLogger

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("training")]


def configuration(folder, **trainer):
    """The digits' configuration with a small model, writing to ``folder``; a file."""
    config = yaml.safe_load((ROOT / "configs/digits.yaml").read_text().replace("outputs/digits", str(folder)))
    model = config["model"]["init_args"]["classifier"]["model"]
    model["encoder"] |= {"width": 16, "features": 8, "inner": 8, "pooled": 8, "fine": [0.3]}
    model["cell"] |= {"width": 16, "mark_dim": 4}
    model["reference"] |= {"n": 4, "dim": 16, "mark_dim": 4}
    config["model"]["init_args"]["mixing"] = {"class": "MixHalfSpaces"}
    config["data"] |= {"limit": 160}
    config["trainer"] |= {
        "accelerator": "cpu",
        "max_epochs": 3,
        "check_val_every_n_epoch": 3,
        "num_sanity_val_steps": 0,
    } | trainer
    config["trainer"]["callbacks"][1]["init_args"]["every_n_train_steps"] = 1
    config["trainer"] |= {
        "log_every_n_steps": 2,
        "limit_val_batches": 1,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "wanted.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=False)["current_model_state"]


ALONE = os.environ | {"OMP_NUM_THREADS": "1"}
"""Runs are processes of their own, which set up what no test may leave behind, and sum in the same order."""


def run(command, file, *options):
    done = subprocess.run(
        [sys.executable, "-m", "ddeq", command, "--config", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=ALONE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run("fit", configuration(folder))
    return folder


def test_logs_say_what_training_and_its_solves_did(uninterrupted):
    with (uninterrupted / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("accuracy", "loss", "residual", "steps", "converged"):
        seen = [float(row[f"train/{name}_epoch"]) for row in rows if row[f"train/{name}_epoch"]]
        assert len(seen) == 3
        assert any(row[f"validation/{name}"] for row in rows)
    (radius,) = [float(row["validation/spectral radius"]) for row in rows if row["validation/spectral radius"]]
    assert 0 < radius < 1
    losses = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "steps", [pytest.param(5, id="at the end of an epoch", marks=pytest.mark.slow), pytest.param(7, id="in an epoch")]
)
def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(uninterrupted, tmp_path, steps):
    file = configuration(tmp_path)
    schedule = torch.load(uninterrupted / "last.ckpt", weights_only=False)
    assert schedule["global_step"] == 15
    interrupted(file, tmp_path, steps)
    run("fit", file, "--ckpt_path", str(tmp_path / "last.ckpt"))
    for name, wanted in weights(uninterrupted).items():
        assert torch.equal(weights(tmp_path)[name], wanted), name


def interrupted(file, folder, steps):
    """Kill a run without warning once its checkpoint has made ``steps`` steps."""
    command = [sys.executable, "-m", "ddeq", "fit", "--config", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ALONE)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if (
                any(int(p.stem.rsplit("=", 1)[1]) >= steps for p in folder.glob("epoch=*.ckpt"))
                and (folder / "last.ckpt").exists()
            ):
                break
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_evaluation_and_predictions_of_a_checkpoint(uninterrupted, tmp_path):
    file, checkpoint = configuration(tmp_path), str(uninterrupted / "last.ckpt")
    assert "test/accuracy" in run("test", file, "--ckpt_path", checkpoint)
    predictions = tmp_path / "deep" / "predictions.csv"
    run("predict", file, "--ckpt_path", checkpoint, "--predictions.path", str(predictions))
    with predictions.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["index"]) for row in rows] == list(range(360))
    for row in rows[:5]:
        assert sum(float(row[f"p({c})"]) for c in range(10)) == pytest.approx(1.0, abs=1e-5)
        assert max(range(10), key=lambda c: float(row[f"p({c})"])) == int(row["prediction"])


def test_several_processes_train_one_model(tmp_path):
    file = configuration(tmp_path, devices=2, strategy="ddp", max_epochs=1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ddeq"]
    done = subprocess.run(
        [*launcher, "fit", "--config", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=300, env=ALONE
    )
    assert done.returncode == 0, done.stderr[-3000:]
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 2  # 160 inputs, two processes, batches of 32
    assert "2 processes" in saved["training"]["hardware"]


def test_weights_that_ship_are_those_of_the_checkpoint(uninterrupted, tmp_path, capsys):
    output = tmp_path / "digits.safetensors"
    assert main(["export", str(uninterrupted / "last.ckpt"), str(output), "--dataset", "digits"]) == 0
    from ddeq.nn import load_weights

    model, averaged = load_weights(output), torch.load(uninterrupted / "last.ckpt", weights_only=False)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, averaged[f"model.{name}"])
    numbers = json.loads(output.with_suffix(".json").read_text())
    assert numbers["share of solves CONVERGED"] == 1.0
    assert numbers["same class from all starts"] > 0.99
    assert numbers["training"]["epochs"] == 3
    card = output.with_suffix(".md").read_text()
    assert card in capsys.readouterr().out
    for word in ("Validation accuracy", "Terms", "Seed", "Parameters", "python -m ddeq fit"):
        assert word in card or word == "python -m ddeq fit"


def test_logs_of_earlier_runs_are_kept(tmp_path):
    for loss in (1.0, 2.0, 3.0):
        logger = KeptCSVLogger(str(tmp_path), name="", version="")
        logger.log_metrics({"loss": loss}, step=0)
        logger.save()
    found = {file.name: file.read_text().splitlines()[1].split(",")[0] for file in tmp_path.glob("*.csv")}
    assert found == {"metrics-1.csv": "1.0", "metrics-2.csv": "2.0", "metrics.csv": "3.0"}


@pytest.mark.parametrize(("accumulated", "wanted"), [(1, (1, 3)), (4, (4, 0)), (3, (4, 0))])
def test_where_an_epoch_goes_on_when_gradients_are_accumulated(accumulated, wanted, monkeypatch):
    """Eight steps of five batches an epoch, or of two groups of batches."""
    data = Clouds("digits", batch_size=32, limit=160)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    data.trainer = lightning.Trainer(accelerator="cpu", devices=1, accumulate_grad_batches=accumulated, **quiet)
    monkeypatch.setattr(lightning.Trainer, "global_step", 8)
    loader = data.train_dataloader()
    begun = []
    loader.batch_sampler.resume = lambda epoch, step: begun.append((epoch, step))
    iter(loader)
    assert begun == [wanted]


def test_the_last_checkpoint_has_the_weights_and_not_their_average(uninterrupted):
    saved = torch.load(uninterrupted / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 15
    names = [name for name, t in saved["current_model_state"].items() if t.is_floating_point()]
    assert any(not torch.equal(saved["current_model_state"][name], saved["state_dict"][name]) for name in names)
