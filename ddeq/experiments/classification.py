"""Classification of point clouds by a DDEQ: the model, its training and its evaluation."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import ddeq.data
from ddeq.data import Augmentation, Compose, MeasureDataset, generator_for
from ddeq.experiments.baselines import Baseline
from ddeq.experiments.clouds import Clouds
from ddeq.experiments.machine import machine
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure
from ddeq.nn import (
    DDEQ,
    Classifier,
    EquilibriumCell,
    InducedSetEncoder,
    LearnedReference,
    build,
    effective_support,
    spectral_radius,
)
from ddeq.solvers import Solution

__all__ = ["ClassificationTask", "Evaluation", "build_classifier", "evaluate"]


def build_classifier(
    dim: int,
    num_classes: int,
    *,
    width: int = 64,
    atoms: int = 8,
    mark_dim: int = 8,
    heads: int = 4,
    inducing: int = 16,
    stop: Stop = Stop(rtol=1e-3, max_steps=40),
) -> Classifier:
    """A DDEQ classifier of clouds in ``dim`` dimensions, with learned marks and one layer in its cell.

    Parameters
    ----------
    dim, num_classes
        Dimension of the input's points, and number of classes.
    width, atoms, mark_dim
        Dimension of the equilibrium's points, their number, and the dimension of their marks.
    heads, inducing
        Heads of all attentions, and inducing points of the encoder.
    stop
        When a solve stops.
    """
    encoder = InducedSetEncoder(dim, width, heads=heads, inducing=inducing)
    cell = EquilibriumCell(width, mark_dim, heads=heads)
    return Classifier(DDEQ(encoder, cell, LearnedReference(atoms, width, mark_dim), stop=stop), num_classes)


class ClassificationTask(lightning.LightningModule):
    """Trains a `ddeq.nn.Classifier` with cross-entropy and a penalty that keeps its cell a contraction; or another classifier.

    All randomness of a training step is a function of the seed, the epoch, the batch and the process: a run that goes on from
    a checkpoint draws what it would have drawn.

    Parameters
    ----------
    classifier
        The model, or its configuration for `ddeq.nn.build`: a `ddeq.nn.Classifier`, or a module from measures (and a generator)
        to logits, such as those of `ddeq.experiments.baselines`.
    augment
        Random change of a batch of measures, called with the measures and a generator; or a list of configurations of
        those of ``ddeq.data``, done one after the other; None for none.
    learning_rate, weight_decay, warm_up
        Of AdamW; the learning rate rises for the share ``warm_up`` of the steps, and falls (one cycle).
    label_smoothing
        Of the cross-entropy.
    penalty
        Weight of `ddeq.nn.jacobian_penalty` on the direction in which the cell contracts least; `ConvergenceGuard` raises it.
    growth
        Growth in that direction from which it is penalised.
    training_stop
        When a solve stops in training, where tight equilibria are not worth their time; None for that of the model.
    seed
        Seed of all randomness of training but the order of the batches.
    """

    def __init__(
        self,
        classifier: dict[str, Any] | nn.Module,
        *,
        augment: list[dict[str, Any]] | Augmentation | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.1,
        warm_up: float = 0.15,
        label_smoothing: float = 0.1,
        penalty: float = 1.0,
        growth: float = 0.5,
        training_stop: Stop | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.configuration = classifier if isinstance(classifier, dict) else None
        """That of the classifier, where it was made from one."""
        if self.configuration is not None:
            self.save_hyperparameters({"classifier": self.configuration})
        self.classifier: nn.Module = build(classifier, dotted=True) if isinstance(classifier, dict) else classifier
        self.augment = Compose(build(augment, modules=[ddeq.data])) if isinstance(augment, list) else augment
        self.learning_rate, self.weight_decay, self.warm_up = learning_rate, weight_decay, warm_up
        self.penalty, self.growth, self.training_stop, self.seed = penalty, growth, training_stop, seed
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.record: dict[str, Any] = {"seed": seed, "seconds": 0.0}
        """How the model was trained, kept in its checkpoints."""

    def training_step(self, batch: tuple[DiscreteMeasure, Tensor], index: int) -> Tensor:
        rho, labels = batch
        generator = generator_for(self.seed, self.current_epoch, index, self.global_rank)
        if self.augment is not None:
            rho = self.augment(rho, generator)
        with self._stopping_as_in_training():
            logits = self.classifier(rho, generator=generator)
        loss: Tensor = self.loss(logits, labels)
        numbers = {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == labels).float().mean()}
        if isinstance(self.classifier, Classifier):
            solution = self.classifier.solution
            assert solution is not None
            numbers |= {"penalty": torch.tensor(self.penalty)} | _convergence(solution)
            if self.penalty > 0:
                growth = self.classifier.model.penalty(solution, steps=2, target=self.growth, generator=generator).mean()
                loss = loss + self.penalty * growth
                numbers["excess growth"] = growth.detach()
        elif isinstance(self.classifier, Baseline):
            loss = loss + self.classifier.regularizer()
        self._log("train", numbers, len(labels))
        return loss

    def validation_step(self, batch: tuple[DiscreteMeasure, Tensor], index: int) -> None:
        self._evaluate("validation", batch, index)

    def test_step(self, batch: tuple[DiscreteMeasure, Tensor], index: int) -> None:
        self._evaluate("test", batch, index)

    def predict_step(self, batch: tuple[DiscreteMeasure, Tensor], index: int) -> Tensor:
        """Logits ``(B, classes)``."""
        logits: Tensor = self.classifier(batch[0])
        return logits

    def _evaluate(self, stage: str, batch: tuple[DiscreteMeasure, Tensor], index: int) -> None:
        rho, labels = batch
        with torch.autocast(self.device.type, enabled=False):
            logits = self.classifier(rho)
            numbers = {
                "loss": nn.functional.cross_entropy(logits, labels),
                "accuracy": (logits.argmax(-1) == labels).float().mean(),
            }
            if isinstance(self.classifier, Classifier):
                solution = self.classifier.solution
                assert solution is not None
                numbers |= _convergence(solution)
                numbers["support"] = effective_support(solution.measure).mean()
                if index == 0:  # a batch is enough, and the radius takes many products
                    self._log(stage, {"spectral radius": _radius(self.classifier, solution)}, 1)
        self._log(stage, numbers, len(labels))

    def _log(self, stage: str, numbers: dict[str, Tensor], batch_size: int) -> None:
        for name, value in numbers.items():
            self.log(
                f"{stage}/{name}",
                value.float(),
                prog_bar=name in ("accuracy", "residual", "converged"),
                on_step=stage == "train",
                on_epoch=True,
                batch_size=batch_size,
                sync_dist=stage != "train",
            )

    @contextlib.contextmanager
    def _stopping_as_in_training(self) -> Iterator[None]:
        if self.training_stop is None or not isinstance(self.classifier, Classifier):
            yield
            return
        model = self.classifier.model
        model.stop, kept = self.training_stop, model.stop
        try:
            yield
        finally:
            model.stop = kept

    def on_fit_start(self) -> None:
        path = getattr(getattr(self.trainer, "datamodule", None), "path", None)
        command = " ".join(["python -m ddeq", *("FOLDER" if a == path else shlex.quote(a) for a in sys.argv[1:])])
        self.record |= {"command": command, "hardware": f"{machine()}, {self.trainer.world_size} processes"}
        self._since = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.record["seconds"], self._since = self.record["seconds"] + now - self._since, now
        self.record["epochs"] = self.trainer.current_epoch + 1
        checkpoint["training"] = dict(self.record)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.record |= checkpoint.get("training", {})

    def transfer_batch_to_device(self, batch: tuple[DiscreteMeasure, Tensor], device: torch.device, index: int) -> Any:
        return batch[0].to(device), batch[1].to(device)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        data = getattr(self.trainer, "datamodule", None)
        steps = data.steps(self.trainer) if isinstance(data, Clouds) else int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=self.warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _convergence(solution: Solution) -> dict[str, Tensor]:
    """Means over a batch of what its solves did."""
    return {
        "residual": solution.residual.mean(),
        "steps": solution.steps.float().mean(),
        "converged": solution.converged.float().mean(),
    }


def _radius(classifier: Classifier, solution: Solution) -> Tensor:
    """Largest spectral radius of the cell's linearisation among a few of the equilibria."""
    with torch.inference_mode(False), torch.enable_grad():  # the radius takes derivatives; trainers evaluate without
        few = tree_map_only(Tensor, lambda t: t[:16].clone(), (solution.measure, solution.args))
        measure, args = few
        return spectral_radius(classifier.model.cell, measure, *args, generator=generator_for(0)).max()


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on a data set; residuals and steps are means over samples."""

    accuracy: float
    residual: float
    steps: float
    converged: float
    """Share of the solves that ended as CONVERGED."""
    support: float
    """Mean effective number of atoms of the equilibria."""
    logits: Tensor
    """``(N, classes)``, in the order of the data set."""


@torch.no_grad()
def evaluate(classifier: Classifier, data: MeasureDataset, batch_size: int = 256) -> Evaluation:
    """Accuracy and convergence of a classifier in evaluation mode."""
    training = classifier.training
    classifier.eval()
    found: dict[str, list[Tensor]] = {"correct": [], "residual": [], "steps": [], "converged": [], "support": [], "logits": []}
    for rho, labels in data.loader(batch_size):
        logits = classifier(rho)
        solution = classifier.solution
        assert solution is not None
        found["logits"].append(logits)
        found["correct"].append((logits.argmax(-1) == labels).float())
        found["residual"].append(solution.residual)
        found["steps"].append(solution.steps.float())
        found["converged"].append(solution.converged.float())
        found["support"].append(effective_support(solution.measure))
    classifier.train(training)
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    logits = joined.pop("logits")
    means = {name: float(t.double().mean()) for name, t in joined.items()}
    return Evaluation(accuracy=means.pop("correct"), logits=logits, **means)
