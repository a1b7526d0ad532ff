"""``python -m ddeq export``: weights that ship, from a checkpoint, with a card that says where they come from."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ddeq.data
from ddeq import __version__
from ddeq.data import MeasureDataset
from ddeq.experiments.classification import evaluate
from ddeq.experiments.clouds import Clouds
from ddeq.experiments.completion import evaluate_completion
from ddeq.experiments.machine import machine
from ddeq.experiments.task import largest_radius
from ddeq.files import read_checkpoint
from ddeq.nn import Classifier, Completer, Head, build, load_weights, save_weights, trusted_packages
from ddeq.nn.pretrained import build_with_weights

__all__ = ["export", "main", "spread_over_starts"]

TERMS = {
    "mnist_pc": "MNIST (LeCun, Cortes and Burges), CC BY-SA 3.0.",
    "modelnet": "ModelNet40 (Wu et al. 2015), for academic research only; so are weights that were trained on it.",
    "digits": "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), CC BY 4.0.",
}
PREPROCESSING = {"mnist_pc": "digit_measure", "modelnet": "shape_measure", "digits": "normalize"}
SAMPLES = 500
"""So many inputs are solved from several starts."""
COMPLETIONS = 2000
"""At most so many inputs are completed for a card: exact transport takes its time."""


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m ddeq export``."""
    parser = argparse.ArgumentParser(prog="ddeq export", description="Write a checkpoint's model and its card.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of `python -m ddeq fit`")
    parser.add_argument("output", type=Path, help="the .safetensors file; the card is written beside it")
    parser.add_argument("--dataset", choices=list(TERMS), required=True)
    parser.add_argument("--data", help="file or folder of the data, whose validation split the card's numbers are of")
    parser.add_argument("--note", default="", help="a sentence on how it was trained, for the card")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="a package whose classes may be built")
    options = parser.parse_args(arguments)
    command = f"python -m ddeq export {shlex.quote(options.checkpoint.name)} {options.output.name} --dataset {options.dataset}"
    with trusted_packages(*options.trust):
        print(export(options.checkpoint, options.output, options.dataset, options.data, command, options.note))


def export(checkpoint: Path, output: Path, dataset: str, data: str | None, command: str = "", note: str = "") -> str:
    """Write ``output`` and, beside it, its card ``.md`` and the card's numbers ``.json``; returns the card.

    Parameters
    ----------
    checkpoint
        Of a `ClassificationTask` or a `CompletionTask` that was made from a configuration.
    output
        The safetensors file.
    dataset, data
        As in `Clouds`.
    command
        How this was called, for the card.
    note
        A sentence on how the model was trained, for the card.

    Raises
    ------
    ValueError
        If the checkpoint cannot be read without running code that it names, holds no configuration, one of packages that are
        not trusted (`ddeq.nn.trusted_packages`), or that of another model than a classifier or a completer.
    """
    saved = read_checkpoint(checkpoint)
    configuration, state = saved.get("configuration"), saved.get("state_dict")
    if configuration is None or not isinstance(state, dict):
        raise ValueError(f"checkpoint: expected one of a task that was made from a configuration, got {checkpoint}")
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    model = build_with_weights(configuration, weights, checkpoint, dotted=True)
    save_weights(output, model, configuration, PREPROCESSING[dataset])
    shipped = load_weights(output)
    validation = Clouds(dataset, data).split("validation")  # type: ignore[arg-type]
    if isinstance(shipped, Classifier):
        numbers, rows = _of_classifier(shipped, validation)
    elif isinstance(shipped, Completer):
        numbers, rows = _of_completer(shipped, validation, saved["removal"])
    else:
        raise ValueError(f"checkpoint: expected that of a Classifier or a Completer, got {type(shipped).__name__}")
    numbers = {
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "bytes": output.stat().st_size,
        "validation inputs": len(validation),
        **numbers,
        "spectral radius, largest of 16": _radius(shipped, validation),
        "training": saved.get("training", {}) | ({"note": note} if note else {}),
        "evaluated on": f"{machine()}, torch {torch.__version__}, ddeq {__version__}",
    }
    output.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
    card = _card(output.stem, dataset, configuration, numbers, rows, command)
    output.with_suffix(".md").write_text(card)
    return card


def _of_classifier(classifier: Classifier, validation: MeasureDataset) -> tuple[dict[str, Any], dict[str, str]]:
    """Numbers of a classifier, and those that its card shows."""
    before = time.perf_counter()
    result = evaluate(classifier, validation, 64)
    seconds = time.perf_counter() - before
    starts = spread_over_starts(classifier, validation)
    numbers = {
        "validation accuracy": result.accuracy,
        "relative residual, mean": result.residual,
        "steps, mean": result.steps,
        "share of solves CONVERGED": result.converged,
        "effective number of atoms, mean": result.support,
        "clouds per second, evaluation": len(validation) / seconds,
        **starts,
    }
    rows = {
        "Validation accuracy": f"{result.accuracy:.2%} of {len(validation):,}",
        **_solves(result.converged, result.steps, result.residual, result.support),
        f"Same class from {starts['starts']} starts": f"{starts['same class from all starts']:.2%} of "
        f"{starts['inputs solved from all starts']}; probabilities differ by at most "
        f"{starts['largest difference of a probability']:.1e}",
        "Clouds per second (evaluation)": f"{len(validation) / seconds:.0f}",
    }
    return numbers, rows


def _of_completer(
    completer: Completer, validation: MeasureDataset, removal: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Numbers of a completer, with the atoms of its training and with twice as many, and those that its card shows."""
    some = validation.subset(torch.linspace(0, len(validation) - 1, min(COMPLETIONS, len(validation))).long())
    numbers: dict[str, Any] = {"removal": removal, "completed": len(some)}
    rows = {"Removed": f"`{json.dumps(removal)}`", "Completed": f"{len(some):,} validation inputs"}
    atoms = None
    for factor in (1, 2):
        result = evaluate_completion(completer, some, build(removal, modules=[ddeq.data]), atoms=atoms)
        assert completer.solution is not None
        name = f"{completer.solution.measure.n} atoms"
        atoms = 2 * completer.solution.measure.n
        numbers[name] = {
            "W2, mean": float(result.transport.mean()),
            "W2 of the known part, mean": float(result.known.mean()),
            "Chamfer, mean": float(result.chamfer.mean()),
            "share of solves CONVERGED": result.converged,
            "relative residual, mean": result.residual,
            "steps, mean": result.steps,
            "effective number of atoms, mean": result.support,
        }
        rows[f"With {name} added"] = (
            f"W2 {result.transport.mean():.4f} ({result.known.mean():.4f} without), Chamfer {result.chamfer.mean():.5f}"
        )
        if factor == 1:
            rows |= _solves(result.converged, result.steps, result.residual, result.support)
    return numbers, rows


def _solves(converged: float | None, steps: float | None, residual: float | None, support: float | None) -> dict[str, str]:
    return {
        "Solves CONVERGED (default solver)": f"{converged:.2%}, after {steps:.1f} steps in the mean",
        "Mean relative residual": f"{residual:.1e}",
        "Effective number of atoms": f"{support:.1f}",
    }


def _radius(head: Head, data: MeasureDataset) -> float:
    """Largest spectral radius of the cell's linearisation at the equilibria of 16 inputs."""
    rho, _ = data.batch(torch.linspace(0, len(data) - 1, 16).long())
    with torch.no_grad():
        head(rho)
    assert head.solution is not None
    return float(largest_radius(head, head.solution))


@torch.no_grad()
def spread_over_starts(classifier: Classifier, data: MeasureDataset, starts: int = 10) -> dict[str, float]:
    """How far predictions depend on where the solve starts: Gaussian points of several seeds instead of the reference's own.

    Returns
    -------
    The share of inputs whose predicted class is the same from all starts, and the largest difference of a probability.
    """
    reference = classifier.model.reference
    kept, found = reference.points.clone(), []  # type: ignore[attr-defined]
    rho, _ = data.batch(torch.linspace(0, len(data) - 1, min(SAMPLES, len(data))).long())
    try:
        for seed in range(starts):
            reference.points.copy_(torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed)))  # type: ignore[attr-defined]
            found.append(torch.cat([classifier(rho[i : i + 64]).softmax(-1) for i in range(0, rho.batch_shape[0], 64)]))
    finally:
        reference.points.copy_(kept)  # type: ignore[attr-defined]
    probabilities: Tensor = torch.stack(found)
    classes = probabilities.argmax(-1)
    return {
        "starts": starts,
        "inputs solved from all starts": rho.batch_shape[0],
        "same class from all starts": float((classes == classes[0]).all(0).double().mean()),
        "largest difference of a probability": float((probabilities.amax(0) - probabilities.amin(0)).max()),
    }


def _card(
    name: str, dataset: str, configuration: dict[str, Any], numbers: dict[str, Any], rows: dict[str, str], command: str
) -> str:
    training = numbers["training"]
    note = f"; {training['note']}" if "note" in training else ""
    rows = {
        **rows,
        "Spectral radius of the cell": f"{numbers['spectral radius, largest of 16']:.2f}, the largest at 16 equilibria",
        "Parameters": f"{numbers['parameters']:,}",
        "Training command": f"`{training.get('command', 'not recorded')}`",
        "Seed": str(training.get("seed", "not recorded")),
        "Training time": f"{training['seconds'] / 60:.1f} minutes{note}" if "seconds" in training else "not recorded",
        "Training hardware": training.get("hardware", "not recorded"),
        "Epochs": str(training.get("epochs", "not recorded")),
        "Exported by": f"`{command}`",
        "Evaluated on": numbers["evaluated on"],
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    split = {
        "mnist_pc": "the first 50,000 of MNIST's training digits; validation: the last 10,000",
        "modelnet": "four of five of ModelNet40's training shapes; validation: every fifth (index % 5 == 0)",
        "digits": "80 % of scikit-learn's digits; validation: the rest",
    }[dataset]
    return (
        f"# {name}\n\nA distributional deep equilibrium model: `ddeq.nn.load_pretrained({name!r})`.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"**Data.** Trained on {split}. The official test split was not used.\n\n"
        f"**Terms.** {TERMS[dataset]}\n\n**Configuration.**\n\n```json\n{json.dumps(configuration, indent=1)}\n```\n"
    )
