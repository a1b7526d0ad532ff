"""Clouds per second in training and in inference: our DDEQ, the paper's way and the baselines, on the same batches, in turn.

A training step is what `ddeq.experiments.ClassificationTask` does with a batch (forward, loss, penalty, backward) and the
optimiser's step; augmentation is left out, so that all points count. Inference is the forward pass in evaluation mode. Models
are those of ``configs/``, ours with the weights that ship, where there are some: how many steps a solve takes depends on them.

    python benchmarks/throughput.py [--dataset modelnet mnist_pc] [--data FOLDER ...] [--precision 32 bf16] [--repeats 5]

``--data`` gives the folder of each data set; without, clouds are random points on spheres and circles, of the same sizes. Times
are medians over repeats taken in turn after a first call, with the slowest and the fastest.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import add_output, keep, machine
from contestants import OURS, PAPER, contestants, read
from torch import Tensor

import ddeq
from ddeq.data import load_mnist_pc, load_modelnet
from ddeq.experiments import ClassificationTask
from ddeq.experiments.command_line import prepare_process
from ddeq.nn import Classifier, load_pretrained

SIZES = {"modelnet": (32, 1024, 3, 40), "mnist_pc": (64, 150, 2, 10)}
"""Clouds of a batch, points of a random cloud, their dimension, and classes."""
WEIGHTS = {"modelnet": "modelnet40", "mnist_pc": "mnist_pc"}

Row = dict[str, Any]
Batch = tuple[ddeq.DiscreteMeasure, Tensor]


def batch_of(dataset: str, data: str | None, clouds: int | None, points: int | None) -> Batch:
    """Validation clouds, or random ones."""
    batch, n, dim, classes = SIZES[dataset]
    batch, n = clouds or batch, points or n
    if data is not None:
        load = {"modelnet": load_modelnet, "mnist_pc": load_mnist_pc}[dataset]
        found = load(data, "validation")
        return found.batch(torch.linspace(0, len(found) - 1, batch).long())
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(batch, n, dim, generator=generator), dim=-1)
    return ddeq.DiscreteMeasure(x), torch.randint(classes, (batch,), generator=generator)


def task_of(dataset: str, name: str) -> tuple[ClassificationTask, bool]:
    """The task, and whether its weights are trained ones."""
    files = contestants(dataset)[name]
    task: ClassificationTask = read(
        files, "--data.path=none", "--model.init_args.augment=null", "--trainer.accelerator=cpu"
    ).model
    try:
        if name == OURS:
            task.model = load_pretrained(WEIGHTS[dataset])
            return task, True
    except (ValueError, FileNotFoundError):  # none ship
        pass
    return task, False


@contextlib.contextmanager
def precision_of(name: str) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
        yield


def ways(task: ClassificationTask, batch: Batch, precision: str) -> dict[str, Callable[[], None]]:
    """A step of training and of inference."""
    optimizer = torch.optim.AdamW(task.parameters(), 0.0)  # weights, and so the work of a solve, stay as they are

    def training() -> None:
        task.train()
        optimizer.zero_grad()
        with precision_of(precision):
            loss = task.training_step(batch, 0)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def inference() -> None:
        task.eval()
        with precision_of(precision):
            task.model(batch[0])

    return {"training": training, "inference": inference}


def measure(dataset: str, data: str | None, options: argparse.Namespace) -> list[Row]:
    batch = batch_of(dataset, data, options.clouds, options.points)
    rows: list[Row] = []
    runs: list[tuple[Row, Callable[[], None], list[float]]] = []
    for name in contestants(dataset):
        if options.only and name not in options.only:
            continue
        task, trained = task_of(dataset, name)
        parameters = sum(p.numel() for p in task.model.parameters())
        for precision in options.precision:
            for what, way in ways(task, batch, precision).items():
                way()
                row: Row = {
                    "model": f"{name}{'' if trained or name not in (OURS, PAPER) else ', untrained'}",
                    "parameters": parameters,
                    "precision": precision,
                    "what": what,
                    "solver steps": steps_of(task),
                }
                rows.append(row)
                runs.append((row, way, []))
    for _ in range(options.repeats):
        for _, way, seconds in runs:
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
    count = batch[0].batch_shape[0]
    for row, _, seconds in runs:
        row["clouds per second"] = count / statistics.median(seconds)
        row["slowest"], row["fastest"] = count / max(seconds), count / min(seconds)
    return rows


def steps_of(task: ClassificationTask) -> float | None:
    """Mean number of steps of the last solve, for a model that has one."""
    if not isinstance(task.model, Classifier) or task.model.solution is None:
        return None
    return float(task.model.solution.steps.double().mean())


def markdown(rows: list[Row]) -> list[str]:
    """A line for each model and precision."""
    lines = [
        "| model | parameters | precision | training: clouds per second | inference: clouds per second | solver steps |",
        "|---|---|---|---|---|---|",
    ]
    for model, precision in dict.fromkeys((r["model"], r["precision"]) for r in rows):
        pair = [r for r in rows if (r["model"], r["precision"]) == (model, precision)]
        speeds = [f"{number(r['clouds per second'])} ({number(r['slowest'])} to {number(r['fastest'])})" for r in pair]
        steps = [r["solver steps"] for r in pair]
        solves = "" if None in steps else ", ".join(f"{s:.1f}" for s in steps)
        lines.append(f"| {model} | {pair[0]['parameters']:,} | {precision} | {' | '.join(speeds)} | {solves} |")
    return lines


def number(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--data", nargs="+", default=None, metavar="FOLDER", help="of each data set; default: random clouds")
    parser.add_argument("--precision", nargs="+", choices=["32", "bf16"], default=["32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clouds", type=int, default=None, help="of a batch (default: 32 shapes, 64 digits)")
    parser.add_argument("--points", type=int, default=None, help="of a random cloud (default: 1,024 and 150)")
    parser.add_argument("--only", nargs="+", default=None, metavar="MODEL", help="those of these names")
    add_output(parser)
    options = parser.parse_args()
    if options.data is not None and len(options.data) != len(options.dataset):
        parser.error(f"--data: expected a folder for each of {options.dataset}, got {len(options.data)}")
    warnings.filterwarnings("ignore", message=".*self.log.*")
    prepare_process()
    command = " ".join(
        ["python benchmarks/throughput.py --dataset", *options.dataset]
        + (["--data", *("FOLDER" for _ in options.data)] if options.data else [])
        + ["--precision", *options.precision, f"--repeats {options.repeats}"]
        + [f"--{name} {getattr(options, name)}" for name in ("clouds", "points") if getattr(options, name)]
        + (["--only", *(f"'{name}'" for name in options.only)] if options.only else [])
    )
    parts: dict[str, list[Row]] = {}
    for i, dataset in enumerate(options.dataset):
        parts[dataset] = measure(dataset, options.data[i] if options.data else None, options)
        write(parts, command, options)


def write(parts: dict[str, list[Row]], command: str, options: argparse.Namespace) -> None:
    where = machine()
    lines = ["# Throughput", ""]
    for dataset, rows in parts.items():
        clouds, points = options.clouds or SIZES[dataset][0], options.points or SIZES[dataset][1]
        kind = "validation clouds" if options.data else f"random clouds of {points:,} points"
        lines += [f"## {dataset}: batches of {clouds} {kind}", "", *markdown(rows), ""]
    lines += [
        "Medians, with the slowest and the fastest of the repeats; each model in turn, on the same batch. Solver steps: means "
        "over the batch in training (where a solve may stop earlier, as the configuration says) and in inference.",
        "",
        f"Made by `{command}` on {where}.",
        "",
    ]
    text = "\n".join(lines)
    found = {"command": command, "where": where, "parts": parts}
    keep(options.output, "throughput", text, found)


if __name__ == "__main__":
    main()
