"""Completions by ours and by PCN: distances to the whole measures, solves, parameters, and twelve of each in a picture.

    python benchmarks/completion.py --dataset mnist_pc | modelnet --data FOLDER --ours CHECKPOINT --pcn CHECKPOINT ...
        [--inputs 1000]

Checkpoints are those of ``python -m ddeq fit`` with `CompletionTask`; each is given the same known parts of the same validation
inputs. Ours is also asked for twice as many atoms as in training. Results are kept for each data set.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from common import add_output, keep, machine, without_output

import ddeq.data
from ddeq import DiscreteMeasure
from ddeq.data import MeasureDataset, Removal, generator_for, load_mnist_pc, load_modelnet
from ddeq.experiments import CompletionEvaluation, evaluate_completion
from ddeq.files import read_checkpoint
from ddeq.nn import Completer, build

NAMES = {"mnist_pc": "MNIST as measures", "modelnet": "ModelNet40"}
SHOWN = 12
KNOWN, ADDED = "#20508e", "#d9722c"
LEAST = 5
"""Classes with fewer of the inputs are not compared."""


def load(checkpoint: Path) -> tuple[torch.nn.Module, Removal, dict[str, Any], str]:
    """The model, what was removed in its training, how it was trained, and its name."""
    saved = read_checkpoint(checkpoint)
    model = build(saved["configuration"], dotted=True)
    model.load_state_dict({k.removeprefix("model."): v for k, v in saved["state_dict"].items() if k.startswith("model.")})
    kind = "ours" if isinstance(model, Completer) else f"PCN, trained by {saved['discrepancy']}"
    return model.eval(), build(saved["removal"], modules=[ddeq.data]), saved["training"], kind


def row(name: str, model: torch.nn.Module, result: CompletionEvaluation, training: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes of training": training.get("seconds", 0.0) / 60,
        "W2": float(result.transport.mean()),
        "W2 of the known part": float(result.known.mean()),
        "Chamfer": float(result.chamfer.mean()),
        "CONVERGED": result.converged,
        "residual": result.residual,
        "by class": {
            int(c): [float(result.transport[result.labels == c].mean()), float(result.chamfer[result.labels == c].mean())]
            for c in result.labels.unique()
            if int((result.labels == c).sum()) >= LEAST
        },
    }


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | parameters | minutes of training | W2 | Chamfer, times 1,000 | solves CONVERGED |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        converged = "" if r["CONVERGED"] is None else f"{r['CONVERGED']:.1%}"
        lines.append(
            f"| {r['model']} | {r['parameters']:,} | {r['minutes of training']:.0f} | {r['W2']:.4f} | "
            f"{1000 * r['Chamfer']:.2f} | {converged} |"
        )
    lines += ["", f"The known part alone: W2 {rows[0]['W2 of the known part']:.4f}.", ""]
    ours, rivals = rows[0]["by class"], [r for r in rows if r["model"].startswith("PCN")]
    for rival in rivals:
        shared = ours.keys() & rival["by class"].keys()
        better = [sum(ours[c][i] < rival["by class"][c][i] for c in shared) for i in (0, 1)]
        both = sum(all(a < b for a, b in zip(ours[c], rival["by class"][c], strict=True)) for c in shared)
        lines.append(
            f"Against {rival['model']}: W2 is smaller for {better[0]} of {len(shared)} classes, Chamfer for {better[1]}, "
            f"both for {both}."
        )
    return lines


def draw(rows: dict[str, list[DiscreteMeasure]], titles: list[str], path: Path) -> None:
    """A row of pictures for each name, one column for each input with its title; masses are the areas of dots.

    What ours adds is orange: its atoms follow those of the input.
    """
    import matplotlib.pyplot as plt

    space = next(iter(rows.values()))[0].dim == 3
    columns = len(next(iter(rows.values())))
    kind = {"projection": "3d"} if space else {}
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.1 * columns, 1.22 * len(rows)), subplot_kw=kind, layout="constrained", squeeze=False
    )
    for line, (name, measures) in zip(axes, rows.items(), strict=True):
        for axis, mu in zip(line, measures, strict=True):
            alive = mu.weights > 0
            x, w = mu.points[alive], mu.weights[alive] / mu.weights.sum()
            added = (torch.arange(mu.n)[alive] >= rows["input"][0].n) & name.startswith("ours")
            colours = [ADDED if new else KNOWN for new in added.tolist()]
            if space:
                axis.scatter(x[:, 0], x[:, 2], x[:, 1], s=(500.0 * w).clamp(0.4, 6.0), c=colours, linewidths=0)
                axis.view_init(18, -60)
                axis.set_box_aspect((1, 1, 1), zoom=1.2)
                axis.set_axis_off()
                axis.set_xlim(-0.8, 0.8), axis.set_ylim(-0.8, 0.8), axis.set_zlim(-0.8, 0.8)
            else:
                axis.scatter(x[:, 0], x[:, 1], s=(600.0 * w).clamp(0.3, 12.0), c=colours, linewidths=0)
                axis.set_xlim(-1.05, 1.05), axis.set_ylim(-1.05, 1.05)
                axis.set_aspect("equal")
                axis.set_xticks([]), axis.set_yticks([])
        name = name.split(",")[0]
        if name == "input":
            for axis, title in zip(line, titles, strict=True):
                axis.set_title(title, fontsize=8, pad=2)
        if space:
            line[0].text2D(-0.25, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="center", fontsize=9)
        else:
            line[0].set_ylabel(name, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@torch.no_grad()
def examples(
    models: dict[str, torch.nn.Module], data: MeasureDataset, removal: Removal
) -> tuple[dict[str, list[DiscreteMeasure]], list[str]]:
    """Known parts, completions and wholes of a few inputs, one of each class as far as there are so many, and their classes."""
    first = [int((data.labels == c).nonzero()[0]) for c in data.labels.unique()]
    more = [i for i in range(len(data)) if i not in first]
    whole, labels = data.batch(torch.tensor((first + more)[:SHOWN]))
    whole = whole.normalized()
    known, _ = removal(whole, generator_for(0, "examples"))
    rows = {"input": known}
    for name, model in models.items():
        made = model(known)
        rows[name] = made[-1] if isinstance(made, (tuple, list)) else made
    rows["truth"] = whole
    return {name: list(mu) for name, mu in rows.items()}, [data.class_names[c].replace("_", " ") for c in labels.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=list(NAMES), required=True)
    parser.add_argument("--data", required=True, help="file or folder of the data")
    parser.add_argument("--ours", type=Path, required=True, help="a checkpoint of our completer")
    parser.add_argument("--pcn", type=Path, nargs="+", required=True, help="checkpoints of PCN")
    parser.add_argument("--inputs", type=int, default=1000, help="so many validation inputs, evenly spaced (%(default)s)")
    add_output(parser)
    options = parser.parse_args()
    read = {"mnist_pc": load_mnist_pc, "modelnet": load_modelnet}[options.dataset]
    validation = read(options.data, "validation")
    data = validation.subset(torch.linspace(0, len(validation) - 1, min(options.inputs, len(validation))).long())
    ours, removal, training, _ = load(options.ours)
    assert isinstance(ours, Completer)
    rows = [row("ours", ours, evaluate_completion(ours, data, removal), training)]
    assert ours.solution is not None
    atoms = 2 * ours.solution.measure.n
    rows.append(row(f"ours, {atoms} atoms", ours, evaluate_completion(ours, data, removal, atoms=atoms), training))
    shown = {"ours": ours}
    for checkpoint in options.pcn:
        rival, _, training, name = load(checkpoint)
        rows.append(row(name, rival, evaluate_completion(rival, data, removal), training))
        shown = {name: rival, **shown}
    command = ["python benchmarks/completion.py"]
    for word in without_output(options_shown()):
        command.append(shlex.quote(word))
    part = {"command": " ".join(command), "where": machine(), "inputs": len(data), "rows": rows}
    numbers = options.output / "completion.json"
    parts: dict[str, Any] = (json.loads(numbers.read_text()) if numbers.exists() else {}) | {options.dataset: part}
    lines = ["# Completions", ""]
    for name, found in parts.items():
        lines += [f"## {NAMES[name]}: {found['inputs']:,} validation inputs", "", *markdown(found["rows"]), ""]
        lines += [f"![Inputs, completions and truths](completion_{name}.png)", ""]
        lines += [f"Made by `{found['command']}` on {found['where']}.", ""]
    keep(options.output, "completion", "\n".join(lines), parts)
    draw(*examples(shown, data, removal), options.output / f"completion_{options.dataset}.png")


def options_shown() -> list[str]:
    """The arguments of the command, files by their names alone."""
    pairs = zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)
    return ["FOLDER" if before == "--data" else Path(w).name if w.endswith(".ckpt") else w for before, w in pairs]


if __name__ == "__main__":
    main()
