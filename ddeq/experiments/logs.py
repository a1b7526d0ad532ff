"""What a training leaves in its folder: its metrics, and a checkpoint of its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["KeptCSVLogger", "LastCheckpoint"]


class KeptCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger``, which writes ``metrics.csv``, without its removal of what earlier runs have left there.

    Theirs become ``metrics-1.csv``, ``metrics-2.csv``, and so on: those of a run that goes on are in all of them.
    """

    @property
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None and rank_zero_only.rank == 0:
            file = Path(self.log_dir) / "metrics.csv"
            if file.exists():
                number = 1
                while (kept := file.with_name(f"metrics-{number}.csv")).exists():
                    number += 1
                file.rename(kept)
        return super().experiment


class LastCheckpoint(lightning.Callback):
    """Keeps the last steps too, wherever the interval of the checkpoints ends; before averages take the place of weights."""

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None:
            trainer.save_checkpoint(Path(folder) / "last.ckpt")
