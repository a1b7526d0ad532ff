"""The commands ``python -m ddeq fit | validate | test | predict --config FILE``, by Lightning's command line."""

from __future__ import annotations

import argparse
import ctypes
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

from ddeq.experiments.clouds import Clouds
from ddeq.experiments.guard import ConvergenceGuard
from ddeq.experiments.logs import LastCheckpoint
from ddeq.experiments.task import EquilibriumTask
from ddeq.files import read_checkpoint
from ddeq.measures import DiscreteMeasure
from ddeq.nn import trusted_packages

__all__ = ["CommandLine", "Predictions", "main", "prepare_process"]


IMPORTED = ("ddeq", "lightning", "torch.nn", "torch.optim")
"""Packages whose classes a configuration of the command line may always name."""


class CommandLine(LightningCLI):
    """LightningCLI with a `ConvergenceGuard`, and predictions that are written to a file."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ConvergenceGuard, "guard")
        parser.add_lightning_class_args(Predictions, "predictions")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the arguments, and refuse a checkpoint that would run code or that is broken."""
        super().parse_arguments(parser, args)
        subcommand = self.config.get("subcommand")
        if subcommand is None:  # classes are made and nothing is run
            return
        options = self.config[subcommand]
        if options.get("weights_only") is False:
            raise ValueError("weights_only: expected true, since other checkpoints run code, got false; leave it out")
        options.weights_only = True
        path = options.get("ckpt_path")
        if path is not None and Path(path).is_file():  # Lightning finds those that "last" and "best" mean
            read_checkpoint(path)

    def before_fit(self) -> None:
        """The first callback is `LastCheckpoint`."""
        self.trainer.callbacks.insert(0, LastCheckpoint())


class Predictions(BasePredictionWriter):
    """Writes what ``predict`` finds, for each measure with its number and its label.

    Of a classifier a line with the class and all probabilities; of a completer a line for each atom of positive mass of the
    completed probability, with its weight and coordinates.

    Parameters
    ----------
    path
        The CSV file; each process of several adds its number to the name.
    """

    def __init__(self, path: str = "outputs/predictions.csv") -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        data = trainer.datamodule.split(trainer.datamodule.test_split)
        index = [i for batches in batch_indices for batch in batches for i in batch]
        path = self.path if trainer.world_size == 1 else self.path.with_stem(f"{self.path.stem}-{trainer.global_rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = [data.class_names[int(data.labels[i])] for i in index]
        lines = _atoms if isinstance(predictions[0], DiscreteMeasure) else _classes
        with path.open("w") as file:
            file.writelines(",".join(line) + "\n" for line in lines(list(predictions), index, labels, data.class_names))
        print(f"predictions: {path}")


def _classes(logits: list[Tensor], index: list[int], labels: list[str], names: Sequence[str]) -> Iterator[list[str]]:
    found = torch.cat(logits).float()
    yield ["index", "label", "prediction", *(f"p({name})" for name in names)]
    for i, label, row, p in zip(index, labels, found.argmax(-1).tolist(), found.softmax(-1).tolist(), strict=True):
        yield [str(i), label, names[row], *(f"{q:.6f}" for q in p)]


def _atoms(measures: list[DiscreteMeasure], index: list[int], labels: list[str], names: Sequence[str]) -> Iterator[list[str]]:
    yield ["index", "label", "weight", *(f"x{k + 1}" for k in range(measures[0].dim))]
    for i, label, mu in zip(index, labels, (mu for batch in measures for mu in batch), strict=True):
        for weight, point in zip(mu.weights.tolist(), mu.points.tolist(), strict=True):
            if weight > 0:
                yield [str(i), label, f"{weight:.8f}", *(f"{x:.6f}" for x in point)]


def main(arguments: Sequence[str]) -> None:
    """Run a command of the experiments.

    A configuration may name classes of `IMPORTED` and of the packages that ``--trust PACKAGE`` adds, which may be given often.
    """
    trust = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    trust.add_argument("--trust", action="append", default=[])
    trusted, rest = trust.parse_known_args(list(arguments))
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*IMPORTED, *trusted.trust])
    prepare_process()
    warnings.filterwarnings("ignore", module="lightning")  # hints on workers and logging steps
    with trusted_packages(*trusted.trust):
        CommandLine(
            EquilibriumTask,
            Clouds,
            subclass_mode_model=True,
            args=rest,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, "gradient_clip_val": 1.0},
            save_config_kwargs={"overwrite": True},
        )


def prepare_process() -> None:
    """Settings of a training process that no library should make: they are of the process as a whole.

    Denormal numbers, which Gaussian kernels are full of and which slow processors down, become zero. Where the C library
    is glibc, large blocks of memory are kept for the next batch instead of being given back and cleared each time.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)
