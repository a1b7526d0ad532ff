"""Every configuration in ``configs`` makes a task, and what goes on top of another stays the same task on the same data."""

from pathlib import Path

import pytest

from ddeq.experiments import Clouds, EquilibriumTask
from ddeq.experiments.command_line import CommandLine

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def layers(path):
    """The files to be read, one on top of the other: those in folders change one of those above, the longest name that fits."""
    if path.parent == CONFIGS:
        return [path]
    bases = [base for base in CONFIGS.glob("*.yaml") if path.stem.startswith(base.stem)]
    return [max(bases, key=lambda base: len(base.stem)), path]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONFIGS)) for path in FILES])
def test_configurations_make_tasks(path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ddeq"])  # Lightning warns of arguments given in two ways

    def read(files):
        return CommandLine(
            EquilibriumTask,
            Clouds,
            subclass_mode_model=True,
            run=False,
            save_config_callback=None,
            trainer_defaults={"use_distributed_sampler": False, "gradient_clip_val": 1.0},
            args=[f"--config={file}" for file in files]
            + ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.accelerator=cpu", "--trainer.logger=false"]
            + ["--trainer.callbacks=null", "--trainer.enable_checkpointing=false"]
            + ([] if path.stem.startswith("digits") else ["--data.path=FOLDER"]),
        )

    files = layers(path)
    made, base = read(files), read(files[:1])
    assert type(made.model) is type(base.model)
    assert made.datamodule.dataset == base.datamodule.dataset
    assert sum(p.numel() for p in made.model.parameters()) > 1000
    if len(files) == 1:  # ours writes where its name says
        assert f"outputs/{path.stem}" in path.read_text()
