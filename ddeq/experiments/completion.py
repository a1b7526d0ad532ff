"""Completion of point clouds: a part of each measure is removed, and a model says what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ddeq.data
import ddeq.functionals
from ddeq.data import Augmentation, MeasureDataset, Removal, generator_for
from ddeq.experiments.task import Batch, EquilibriumTask, convergence
from ddeq.functionals import Chamfer, Functional, Wasserstein
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure
from ddeq.nn import Completer, build

__all__ = ["CompletionEvaluation", "CompletionTask", "evaluate_completion"]


class CompletionTask(EquilibriumTask):
    r"""Trains a model to complete measures, by a discrepancy between what it completes and the whole measure.

    Evaluation removes the same parts every time. It logs ``Chamfer``, the sum of both mean squared distances, and ``W2``, the
    transport distance.

    Parameters
    ----------
    completer
        A `ddeq.nn.Completer`, or a module from known measures (and a generator) to completed ones, from coarse to fine, such
        as `ddeq.experiments.baselines.PCN`; or the configuration of one for `ddeq.nn.build`.
    removal
        What is removed: a random map from a measure to its known and its missing part, or the configuration of one of
        ``ddeq.data``.
    discrepancy, options
        Name of a class of ``ddeq.functionals`` that is made from a target, and its other options; or several names, with the
        coefficient of each in a sum, such as ``{"MMD": 1.0, "Chamfer": 1.0}``, and no options.
    atoms
        How many atoms a `Completer` adds; None for as many as its reference has.
    coarse
        Weight of the discrepancy of all measures but the last, where a model gives several.
    transported
        Of so many measures of each batch ``W2`` is computed: it takes long.
    augment, learning_rate, weight_decay, warm_up, penalty, growth, penalised, training_stop, seed, kind
        As in `EquilibriumTask`.

    Raises
    ------
    ValueError
        If ``discrepancy`` is no name of ``ddeq.functionals``, or there are several and options.
    """

    def __init__(
        self,
        completer: dict[str, Any] | nn.Module,
        *,
        removal: dict[str, Any] | Removal,
        discrepancy: str | dict[str, float] = "SinkhornDivergence",
        options: dict[str, Any] | None = None,
        atoms: int | None = None,
        coarse: float = 1.0,
        transported: int = 8,
        augment: list[dict[str, Any]] | Augmentation | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.05,
        warm_up: float = 0.1,
        penalty: float = 1.0,
        growth: float = 0.6,
        penalised: float = 0.25,
        training_stop: Stop | None = None,
        seed: int = 0,
        kind: Literal["largest", "frobenius"] = "largest",
    ) -> None:
        super().__init__(
            completer, augment, learning_rate, weight_decay, warm_up, penalty, growth, penalised, training_stop, seed, kind
        )
        self.removal: Removal = build(removal, modules=[ddeq.data]) if isinstance(removal, dict) else removal
        self.removal_configuration = removal if isinstance(removal, dict) else None
        """That of the removal, where it was made from one; kept in checkpoints."""
        self.terms = {discrepancy: 1.0} if isinstance(discrepancy, str) else dict(discrepancy)
        """Names of discrepancies, and the coefficient of each in the loss."""
        for name in self.terms or [""]:
            if name not in ddeq.functionals.__all__:
                raise ValueError(f"discrepancy: expected a name of ddeq.functionals, got {name!r}")
        if options and len(self.terms) > 1:
            raise ValueError(f"options: expected none with several discrepancies, got {options}")
        self.options = options or {}
        self.atoms, self.coarse, self.transported = atoms, coarse, transported

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        whole = self.augmented(batch[0], generator).normalized()
        known, _ = self.removal(whole, generator)
        discrepancy = self.discrepancy(whole)
        *coarse, fine = self.complete(known, generator)
        loss: Tensor = discrepancy(fine).mean()
        return loss + self.coarse * sum(discrepancy(mu).mean() for mu in coarse), {}

    def score(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        whole = batch[0].normalized()
        known, _ = self.removal(whole, generator)
        completed = self.complete(known, None)[-1]
        few = slice(0, self.transported)
        return {
            "Chamfer": 2.0 * Chamfer(whole)(completed).mean(),
            "W2": (2.0 * Wasserstein(whole[few])(completed[few])).clamp_min(0.0).sqrt().mean(),
        }

    def discrepancy(self, whole: DiscreteMeasure) -> Functional:
        """How far a measure is from the ``whole``: what is trained to be small."""
        terms = [factor * getattr(ddeq.functionals, name)(whole, **self.options) for name, factor in self.terms.items()]
        total: Functional = sum(terms[1:], terms[0])
        return total

    def complete(self, known: DiscreteMeasure, generator: torch.Generator | None) -> list[DiscreteMeasure]:
        """What the model makes of the ``known`` measures, with this ``generator``: probabilities, the finest one last."""
        options = {} if self.atoms is None else {"n": self.atoms}
        made = self.model(known, generator=generator, **options)
        return [mu.normalized() for mu in (made if isinstance(made, (tuple, list)) else [made])]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put into ``checkpoint`` how the model was trained, its configuration, what was removed, and the loss."""
        super().on_save_checkpoint(checkpoint)
        checkpoint |= {"removal": self.removal_configuration, "discrepancy": " + ".join(self.terms)}

    def predict_step(self, batch: Batch, index: int) -> DiscreteMeasure:
        """The completed measures of ``batch``; what is removed is what evaluation removes from batch number ``index``."""
        known, _ = self.removal(batch[0].normalized(), self.generator_of("test", index))
        return self.complete(known, None)[-1]


@dataclass(frozen=True)
class CompletionEvaluation:
    """What a model makes of the known parts of a data set's measures, one number for each."""

    chamfer: Tensor
    """Sum of both mean squared distances to the nearest atom, ``(N,)``."""
    transport: Tensor
    """Transport distance :math:`W_2`, ``(N,)``."""
    known: Tensor
    """The transport distance of the known part alone, made a probability, ``(N,)``."""
    labels: Tensor
    """Labels of the measures, ``(N,)``."""
    converged: float | None
    """Share of the solves that ended as CONVERGED, and"""
    residual: float | None
    """their mean relative residual,"""
    steps: float | None
    """steps, and"""
    support: float | None
    """effective number of atoms; None for a model without solves."""


@torch.no_grad()
def evaluate_completion(
    model: nn.Module, data: MeasureDataset, removal: Removal, *, atoms: int | None = None, batch_size: int = 100, seed: int = 0
) -> CompletionEvaluation:
    """Distances from a model's completions to the whole measures, in evaluation mode.

    Parameters
    ----------
    model
        A `ddeq.nn.Completer`, or another module as in `CompletionTask`.
    data
        Measures.
    removal
        What is removed; drawn for each batch as a function of ``seed`` and its number.
    atoms
        How many atoms a `Completer` adds; None for as many as its reference has.
    batch_size
        Size of the batches; what is removed depends on it.
    seed
        Of the removals.
    """
    training = model.training
    model.eval()
    options = {} if atoms is None else {"n": atoms}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: dict[str, list[Tensor]] = {name: [] for name in ("chamfer", "transport", "known", "labels")}
    solves: dict[str, list[Tensor]] = {name: [] for name in ("converged", "residual", "steps", "support")}
    for index, (measures, labels) in enumerate(data.loader(batch_size)):
        whole = measures.normalized()
        known, _ = removal(whole, generator_for(seed, "completion", index))
        whole, known = whole.to(device), known.to(device)
        made = model(known, **options)
        fine = (made[-1] if isinstance(made, (tuple, list)) else made).normalized()
        distance = Wasserstein(whole)
        found["chamfer"].append(2.0 * Chamfer(whole)(fine))
        found["transport"].append((2.0 * distance(fine)).clamp_min(0.0).sqrt())
        found["known"].append((2.0 * distance(known.normalized())).clamp_min(0.0).sqrt())
        found["labels"].append(labels)
        if isinstance(model, Completer):
            solution = model.solution
            assert solution is not None
            for name, value in convergence(solution).items():
                solves[name].append(value)
    model.train(training)
    means = {name: float(torch.cat(parts).double().mean()) if parts else None for name, parts in solves.items()}
    numbers: dict[str, Any] = {name: torch.cat(parts).cpu() for name, parts in found.items()} | means
    return CompletionEvaluation(**numbers)
