"""Classification of point clouds by a DDEQ: the model, its training and its evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from ddeq.data import MeasureDataset
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure
from ddeq.nn import DDEQ, Classifier, EquilibriumCell, InducedSetEncoder, LearnedReference, effective_support

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
    """Trains a `ddeq.nn.Classifier` with cross-entropy and a penalty that keeps its cell a contraction.

    Parameters
    ----------
    classifier
        The model.
    augment
        Random change of a batch of measures, called with the measures and a generator; None for none.
    learning_rate, weight_decay
        Of AdamW; the learning rate rises and falls once (one cycle).
    label_smoothing
        Of the cross-entropy.
    penalty
        Weight of `ddeq.nn.jacobian_penalty` on the direction in which the cell contracts least.
    growth
        Growth in that direction from which it is penalised.
    seed
        Seed of all randomness of training but the order of the batches.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        augment: Callable[[DiscreteMeasure, torch.Generator], DiscreteMeasure] | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.1,
        label_smoothing: float = 0.1,
        penalty: float = 1.0,
        growth: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classifier, self.augment = classifier, augment
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.penalty, self.growth = penalty, growth
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.generator = torch.Generator().manual_seed(seed)

    def training_step(self, batch: tuple[DiscreteMeasure, Tensor], index: int) -> Tensor:
        rho, labels = batch
        if self.augment is not None:
            rho = self.augment(rho, self.generator)
        logits = self.classifier(rho, generator=self.generator)
        loss: Tensor = self.loss(logits, labels)
        solution = self.classifier.solution
        assert solution is not None
        growth = self.classifier.model.penalty(solution, steps=2, target=self.growth, generator=self.generator).mean()
        self.log("accuracy", (logits.argmax(-1) == labels).float().mean(), prog_bar=True)
        self.log("residual", solution.residual.mean(), prog_bar=True)
        self.log("evaluations", float(solution.evaluations), prog_bar=True)
        self.log("converged", solution.converged.float().mean(), prog_bar=True)
        return loss + self.penalty * growth

    def transfer_batch_to_device(self, batch: tuple[DiscreteMeasure, Tensor], device: torch.device, index: int) -> Any:
        return batch[0].to(device), batch[1].to(device)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
