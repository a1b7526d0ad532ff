"""What every training of a model with equilibria shares: randomness, solves, the penalty, logs, and how it went."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import ddeq.data
from ddeq.data import Augmentation, Compose, generator_for
from ddeq.experiments.clouds import Clouds
from ddeq.experiments.machine import machine
from ddeq.files import read_checkpoint
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure
from ddeq.nn import Head, build, effective_support, spectral_radius
from ddeq.solvers import Solution

__all__ = ["EquilibriumTask"]

Batch = tuple[DiscreteMeasure, Tensor]


class EquilibriumTask(lightning.LightningModule):
    """Trains a model with a penalty that keeps its cell a contraction; what the loss is, a subclass says.

    All randomness of a training step is a function of the seed, the epoch, the batch and the process: a run that goes on from
    a checkpoint draws what it would have drawn.

    Parameters
    ----------
    model
        A `ddeq.nn.Head`, or another module, which has no equilibria and is trained by its loss alone; or the configuration of
        one for `ddeq.nn.build`.
    augment
        Random change of a batch of measures, called with the measures and a generator; or a list of configurations of
        those of ``ddeq.data``, done one after the other; None for none.
    learning_rate, weight_decay, warm_up
        Of AdamW; the learning rate rises for the share ``warm_up`` of the steps, and falls (one cycle).
    penalty
        Weight of `ddeq.nn.jacobian_penalty` on the direction in which the cell contracts least; `ConvergenceGuard` raises it.
    growth
        Growth in that direction from which it is penalised.
    penalised
        Share of a batch's samples for which the growth is measured, at least one: it costs as much as a few evaluations of
        the cell.
    training_stop
        When a solve stops in training, where tight equilibria are not worth their time; None for that of the model.
    seed
        Seed of all randomness of training but the order of the batches.
    kind
        Which penalty, as in `ddeq.nn.jacobian_penalty`; ``growth`` plays no part in ``"frobenius"``.

    Raises
    ------
    ValueError
        If ``penalised`` is no share, ``kind`` is none of the two, or a configuration does not say what it should.
    """

    model: nn.Module

    def __init__(
        self,
        model: dict[str, Any] | nn.Module,
        augment: list[dict[str, Any]] | Augmentation | None,
        learning_rate: float,
        weight_decay: float,
        warm_up: float,
        penalty: float,
        growth: float,
        penalised: float,
        training_stop: Stop | None,
        seed: int,
        kind: Literal["largest", "frobenius"] = "largest",
    ) -> None:
        super().__init__()
        self.configuration = model if isinstance(model, dict) else None
        """That of the model, where it was made from one; kept in its checkpoints."""
        self.model = build(model, dotted=True) if isinstance(model, dict) else model
        self.augment = Compose(build(augment, modules=[ddeq.data])) if isinstance(augment, list) else augment
        self.learning_rate, self.weight_decay, self.warm_up = learning_rate, weight_decay, warm_up
        if not 0 < penalised <= 1:
            raise ValueError(f"penalised: expected a share in (0, 1], got {penalised}")
        if kind not in ("largest", "frobenius"):
            raise ValueError(f"kind: expected 'largest' or 'frobenius', got {kind!r}")
        self.penalty, self.growth, self.penalised, self.kind = penalty, growth, penalised, kind
        self.training_stop, self.seed = training_stop, seed
        self.record: dict[str, Any] = {"seed": seed, "seconds": 0.0}
        """How the model was trained, kept in its checkpoints."""

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``batch`` in training, which this augments with ``generator``, and numbers for the log."""

    def augmented(self, rho: DiscreteMeasure, generator: torch.Generator) -> DiscreteMeasure:
        """The measures ``rho`` with a random change drawn with ``generator``, if there is to be one."""
        return rho if self.augment is None else self.augment(rho, generator)

    @abstractmethod
    def score(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Numbers that say how good the model is on ``batch``; ``generator`` is the same in every evaluation."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of ``batch``, number ``index`` of the epoch, with the penalty on its solves."""
        generator = generator_for(self.seed, self.current_epoch, index, self.global_rank)
        samples = batch[0].batch_shape[0]
        with self._stopping_as_in_training():
            loss, numbers = self.loss(batch, generator)
        numbers = {"loss": loss.detach()} | numbers
        if isinstance(self.model, Head):
            solution = _last(self.model)
            numbers |= {"penalty": torch.tensor(self.penalty)} | means(convergence(solution, support=False))
            if self.penalty > 0:
                some = max(1, round(self.penalised * samples))
                options = {"steps": 2, "target": self.growth} if self.kind == "largest" else {}
                growth = self.model.model.penalty(solution, samples=some, kind=self.kind, generator=generator, **options)
                loss = loss + self.penalty * growth.mean()
                numbers["excess growth"] = growth.detach().mean()
        self._log("train", numbers, samples)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log `score` and convergence on ``batch``, number ``index`` of the validation split."""
        self._evaluate("validation", batch, index)

    def test_step(self, batch: Batch, index: int) -> None:
        """Log `score` and convergence on ``batch``, number ``index`` of the test split."""
        self._evaluate("test", batch, index)

    def predict_step(self, batch: Batch, index: int) -> Any:
        """What the model says of the measures of ``batch``; its number ``index`` does not matter."""
        return self.model(batch[0])

    def generator_of(self, stage: str, index: int) -> torch.Generator:
        """The randomness of batch number ``index`` in the evaluation ``stage``, such as ``"test"``."""
        return generator_for(self.seed, stage, index, self.global_rank)

    def _evaluate(self, stage: str, batch: Batch, index: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            numbers = self.score(batch, self.generator_of(stage, index))
            if isinstance(self.model, Head):
                solution = _last(self.model)
                numbers |= means(convergence(solution))
                if index == 0:  # a batch is enough, and the radius takes many products
                    self._log(stage, {"spectral radius": largest_radius(self.model, solution)}, 1)
        self._log(stage, numbers, batch[0].batch_shape[0])

    def _log(self, stage: str, numbers: dict[str, Tensor], batch_size: int) -> None:
        for name, value in numbers.items():
            self.log(
                f"{stage}/{name}",
                value.float(),
                prog_bar=name in ("accuracy", "Chamfer", "residual", "converged"),
                on_step=stage == "train",
                on_epoch=True,
                batch_size=batch_size,
                sync_dist=stage != "train",
            )

    @contextlib.contextmanager
    def _stopping_as_in_training(self) -> Iterator[None]:
        if self.training_stop is None or not isinstance(self.model, Head):
            yield
            return
        model = self.model.model
        model.stop, kept = self.training_stop, model.stop
        try:
            yield
        finally:
            model.stop = kept

    def on_fit_start(self) -> None:
        """Note with which command and on what machine training runs."""
        path = getattr(getattr(self.trainer, "datamodule", None), "path", None)
        command = " ".join(["python -m ddeq", *("FOLDER" if a == path else shlex.quote(a) for a in sys.argv[1:])])
        self.record |= {"command": command, "hardware": f"{machine()}, {self.trainer.world_size} processes"}
        self._since = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put into ``checkpoint`` how the model was trained, and its configuration."""
        now = time.perf_counter()
        self.record["seconds"], self._since = self.record["seconds"] + now - self._since, now
        epochs = self.trainer.current_epoch + 1  # the one at work counts
        self.record["epochs"] = min(epochs, self.trainer.max_epochs or epochs)
        checkpoint |= {"training": dict(self.record), "configuration": self.configuration}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, weights_only: bool | None = True, **kwargs: Any) -> Any:
        """As Lightning's, but nothing that the file at ``checkpoint_path`` names is run, unless ``weights_only`` is False.

        ``args`` and ``kwargs`` as there; a `ValueError` for a file that is broken, or would run code.
        """
        if weights_only is not False and Path(checkpoint_path).is_file():
            read_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, weights_only=weights_only, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take from ``checkpoint`` how the model was trained so far."""
        self.record |= checkpoint.get("training", {})

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Any:
        """The measures and labels of ``batch`` on ``device``, whichever loader ``index`` it comes from."""
        return batch[0].to(device), batch[1].to(device)

    def configure_optimizers(self) -> Any:
        """AdamW with one cycle of the learning rate over all steps."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        data = getattr(self.trainer, "datamodule", None)
        steps = data.steps(self.trainer) if isinstance(data, Clouds) else int(self.trainer.estimated_stepping_batches)
        rise = max(self.warm_up, min(0.9, 2.0 / steps))  # the schedule divides by its steps of rising but one
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _last(head: Head) -> Solution:
    assert head.solution is not None
    return head.solution


def convergence(solution: Solution, *, support: bool = True) -> dict[str, Tensor]:
    """What the solve of each sample did, as numbers ``(*batch,)``; the effective ``support`` looks at all pairs of atoms."""
    found = {"residual": solution.residual, "steps": solution.steps.float(), "converged": solution.converged.float()}
    return found | ({"support": effective_support(solution.measure)} if support else {})


def means(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over a batch."""
    return {name: t.mean() for name, t in numbers.items()}


def largest_radius(head: Head, solution: Solution) -> Tensor:
    """Largest spectral radius of the cell's linearisation among a few of the equilibria."""
    with torch.inference_mode(False), torch.enable_grad():  # the radius takes derivatives; trainers evaluate without
        measure, args = tree_map_only(Tensor, lambda t: t[:16].clone(), (solution.measure, solution.args))
        return spectral_radius(head.model.cell, measure, *args, generator=generator_for(0)).max()
