"""What throughput.py and race.py compare: models with their data and training, as the command line's configurations say."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

from ddeq.experiments import Clouds, EquilibriumTask
from ddeq.experiments.command_line import CommandLine

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = {"modelnet": "modelnet40", "mnist_pc": "mnist_pc", "digits": "digits"}
"""The configuration of ours for each data set of `Clouds`; those of others are read on top of it."""
OURS, PAPER = "ddeq", "the DDEQ paper's way"


def contestants(dataset: str) -> dict[str, list[Path]]:
    """The configuration files of each, later ones overriding earlier ones."""
    base = CONFIGS / f"{BASE[dataset]}.yaml"
    others = {PAPER: CONFIGS / "paper" / base.name}
    for path in sorted((CONFIGS / "baselines").glob(f"{base.stem}_*.yaml")):
        if not path.stem.startswith(f"{base.stem}_completion"):  # another task
            others[title(path)] = path
    return {OURS: [base]} | {name: [base, path] for name, path in others.items()}


def title(path: Path) -> str:
    """A configuration's name in tables and pictures."""
    return path.stem.removeprefix("modelnet40_").removeprefix("mnist_pc_").replace("_", " ")


def read(files: Sequence[Path], *options: str) -> LightningCLI:
    """The task (``.model``), the data (``.datamodule``) and the trainer that configuration files and options describe.

    In one process, with neither checkpoints nor logs: what is compared is measured by the caller.
    """
    warnings.filterwarnings("ignore", module="lightning")  # hints on workers and logging steps
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    arguments = [f"--config={path}" for path in files]
    alone = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    return CommandLine(
        EquilibriumTask,
        Clouds,
        subclass_mode_model=True,
        run=False,
        save_config_callback=None,
        seed_everything_default=0,
        trainer_defaults={"use_distributed_sampler": False, "gradient_clip_val": 1.0},
        args=[*arguments, *alone, "--trainer.callbacks=null", "--trainer.enable_model_summary=false", *options],
    )
