"""Classification of point clouds by a DDEQ: the model, its training and its evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ddeq.data
from ddeq.data import Augmentation, MeasureDataset, Mixing
from ddeq.experiments.baselines import Baseline
from ddeq.experiments.task import Batch, EquilibriumTask, convergence
from ddeq.iteration import Stop
from ddeq.nn import DDEQ, Classifier, EquilibriumCell, InducedSetEncoder, LearnedReference, build

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


class ClassificationTask(EquilibriumTask):
    """Trains a classifier of measures with cross-entropy.

    Parameters
    ----------
    classifier
        A `ddeq.nn.Classifier`, or a module from measures (and a generator) to logits, such as those of
        `ddeq.experiments.baselines`; or the configuration of one for `ddeq.nn.build`.
    label_smoothing
        Of the cross-entropy.
    mixing
        How to make measures of two each, before they are augmented, or its configuration; the loss is mixed alike.
    augment, learning_rate, weight_decay, warm_up, penalty, growth, penalised, training_stop, seed, kind
        As in `EquilibriumTask`.
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
        mixing: dict[str, Any] | Mixing | None = None,
        penalty: float = 1.0,
        growth: float = 0.5,
        penalised: float = 0.25,
        training_stop: Stop | None = None,
        seed: int = 0,
        kind: Literal["largest", "frobenius"] = "largest",
    ) -> None:
        super().__init__(
            classifier, augment, learning_rate, weight_decay, warm_up, penalty, growth, penalised, training_stop, seed, kind
        )
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction="none")
        self.mixing: Mixing | None = build(mixing, modules=[ddeq.data]) if isinstance(mixing, dict) else mixing

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rho, labels = batch
        mixed = None if self.mixing is None else self.mixing(rho, generator)
        logits = self.model(self.augmented(rho if mixed is None else mixed.measure, generator), generator=generator)
        losses = self.cross_entropy(logits, labels)
        if mixed is not None:
            losses = torch.lerp(self.cross_entropy(logits, labels[mixed.partner]), losses, mixed.share.to(losses.dtype))
        loss: Tensor = losses.mean()
        if isinstance(self.model, Baseline):
            loss = loss + self.model.regularizer()
        return loss, {"accuracy": _accuracy(logits, labels)}

    def score(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        rho, labels = batch
        logits = self.model(rho)
        return {"loss": nn.functional.cross_entropy(logits, labels), "accuracy": _accuracy(logits, labels)}


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).float().mean()


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does on a data set; residuals and steps are means over samples."""

    accuracy: float
    """Share of the measures whose class has the largest logit."""
    residual: float
    """Relative residual of the solves."""
    steps: float
    """Steps of the solves."""
    converged: float
    """Share of the solves that ended as CONVERGED."""
    support: float
    """Mean effective number of atoms of the equilibria."""
    logits: Tensor
    """``(N, classes)``, in the order of the data set."""


@torch.no_grad()
def evaluate(classifier: Classifier, data: MeasureDataset, batch_size: int = 256) -> Evaluation:
    """Accuracy and convergence of a classifier in evaluation mode.

    Parameters
    ----------
    classifier
        The classifier; its mode stays as it was.
    data
        Labelled measures.
    batch_size
        Size of the batches; results do not depend on it.
    """
    training = classifier.training
    classifier.eval()
    found: dict[str, list[Tensor]] = {}
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    for rho, labels in data.loader(batch_size):
        logits = classifier(rho.to(device)).cpu()
        solution = classifier.solution
        assert solution is not None
        numbers = {"logits": logits, "correct": (logits.argmax(-1) == labels).float(), **convergence(solution)}
        for name, value in numbers.items():
            found.setdefault(name, []).append(value)
    classifier.train(training)
    joined = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    logits = joined.pop("logits")
    means = {name: float(t.double().mean()) for name, t in joined.items()}
    return Evaluation(accuracy=means.pop("correct"), logits=logits, **means)
