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

from ddeq import __version__
from ddeq.data import MeasureDataset
from ddeq.experiments.classification import Evaluation, evaluate
from ddeq.experiments.clouds import Clouds
from ddeq.experiments.machine import machine
from ddeq.nn import Classifier, build, load_weights, save_weights

__all__ = ["export", "main", "spread_over_starts"]

TERMS = {
    "mnist_pc": "MNIST (LeCun, Cortes and Burges), CC BY-SA 3.0.",
    "modelnet": "ModelNet40 (Wu et al. 2015), for academic research only; so are weights that were trained on it.",
    "digits": "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), CC BY 4.0.",
}
PREPROCESSING = {"mnist_pc": "digit_measure", "modelnet": "shape_measure", "digits": "normalize"}
SAMPLES = 500
"""So many inputs are solved from several starts."""


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m ddeq export``."""
    parser = argparse.ArgumentParser(prog="ddeq export", description="Write a checkpoint's classifier and its card.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of `python -m ddeq fit`")
    parser.add_argument("output", type=Path, help="the .safetensors file; the card is written beside it")
    parser.add_argument("--dataset", choices=list(TERMS), required=True)
    parser.add_argument("--data", help="file or folder of the data, whose validation split the card's numbers are of")
    options = parser.parse_args(arguments)
    command = f"python -m ddeq export {shlex.quote(options.checkpoint.name)} {options.output.name} --dataset {options.dataset}"
    print(export(options.checkpoint, options.output, options.dataset, options.data, command))


def export(checkpoint: Path, output: Path, dataset: str, data: str | None, command: str = "") -> str:
    """Write ``output`` and, beside it, its card ``.md`` and the card's numbers ``.json``; returns the card.

    Parameters
    ----------
    checkpoint
        Of a `ClassificationTask` that was made from a configuration.
    output
        The safetensors file.
    dataset, data
        As in `Clouds`.
    command
        How this was called, for the card.

    Raises
    ------
    ValueError
        If the checkpoint holds no configuration.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)
    configuration = saved.get("configuration")
    if configuration is None:
        raise ValueError(f"checkpoint: expected one of a task that was made from a configuration, got {checkpoint}")
    model = build(configuration, dotted=True)
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)})
    save_weights(output, model, configuration, PREPROCESSING[dataset])
    classifier = load_weights(output)
    assert isinstance(classifier, Classifier)
    validation = Clouds(dataset, data).split("validation")  # type: ignore[arg-type]
    before = time.perf_counter()
    result = evaluate(classifier, validation, 64)
    seconds = time.perf_counter() - before
    numbers: dict[str, Any] = {
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "bytes": output.stat().st_size,
        "validation inputs": len(validation),
        "validation accuracy": result.accuracy,
        "relative residual, mean": result.residual,
        "steps, mean": result.steps,
        "share of solves CONVERGED": result.converged,
        "effective number of atoms, mean": result.support,
        "clouds per second, evaluation": len(validation) / seconds,
        **spread_over_starts(classifier, validation),
        "training": saved.get("training", {}),
        "evaluated on": f"{machine()}, torch {torch.__version__}, ddeq {__version__}",
    }
    output.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
    card = _card(output.stem, dataset, configuration, numbers, result, command)
    output.with_suffix(".md").write_text(card)
    return card


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
    name: str, dataset: str, configuration: dict[str, Any], numbers: dict[str, Any], result: Evaluation, command: str
) -> str:
    training = numbers["training"]
    rows = {
        "Validation accuracy": f"{result.accuracy:.2%} of {numbers['validation inputs']:,}",
        "Parameters": f"{numbers['parameters']:,}",
        "Solves CONVERGED (default solver)": f"{result.converged:.2%}, after {result.steps:.1f} steps in the mean",
        "Mean relative residual": f"{result.residual:.1e}",
        "Effective number of atoms": f"{result.support:.1f}",
        f"Same class from {numbers['starts']} starts": f"{numbers['same class from all starts']:.2%} of "
        f"{numbers['inputs solved from all starts']}; probabilities differ by at most "
        f"{numbers['largest difference of a probability']:.1e}",
        "Clouds per second (evaluation)": f"{numbers['clouds per second, evaluation']:.0f}",
        "Training command": f"`{training.get('command', 'not recorded')}`",
        "Seed": str(training.get("seed", "not recorded")),
        "Training time": f"{training['seconds'] / 60:.1f} minutes" if "seconds" in training else "not recorded",
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
