"""What makes a DDEQ work: one thing changed at a time, trained from three seeds each, one table for each question.

    python benchmarks/ablations.py [--dataset digits | mnist_pc] [--data FOLDER] [--limit N] [--epochs 30] [--seeds 3]
        [--tables solver adjoint ...] [--at-once 1]

Every run is a process of its own: the configuration of the data set in ``configs``, for classification or for completion, one
option changed, trained for ``--epochs`` passes in single precision, evaluated on the validation split with the default
tolerance. With ``--at-once 2`` two are trained at a time, each with half of the cores. Runs that the results hold already, of
the same numbers, are not done again, so that an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from common import add_output, keep, machine, without_output

CONFIGS = Path(__file__).parents[1] / "configs"

Change = dict[str, Any]
"""Paths in the configuration of the task, and what stands there instead; ``model`` is the DDEQ, whatever its head."""
KEPT = object()
"""What stands for the entry of this name that was there before."""
Run = dict[str, Any]
"""What one training gave, and its seed."""


class Table(NamedTuple):
    """A question, the task that answers it, and the variants to choose from."""

    title: str
    task: Literal["classification", "completion"]
    variants: dict[str, Change]


TABLES = {
    "solver": Table(
        "Solver",
        "classification",
        {
            "Picard": {"model.solver": {"class": "Picard"}},
            "Anderson (default)": {"model.solver": {"class": "Anderson"}},
            "Broyden": {"model.solver": {"class": "Broyden"}},
            "Auto": {"model.solver": {"class": "Auto"}},
            "ParticleFlow, frozen target": {"model.solver": {"class": "ParticleFlow", "target": "frozen"}},
            "ParticleFlow, moving target": {
                "model.solver": {"class": "ParticleFlow"},
                "model.stop": {"class": "Stop", "rtol": 1e-3, "max_steps": 200},
                "training_stop": {"rtol": 1e-2, "max_steps": 200},
            },
            "ParticleFlow, 200 steps, as in the paper": {
                "model.solver": {"class": "ddeq.experiments.paper_flow", "step_size": 5.0},
                "model.stop": {"class": "Stop", "rtol": 1e-3, "max_steps": 200, "patience": 200},
                "training_stop": {"rtol": 1e-2, "max_steps": 200, "patience": 200},
            },
        },
    ),
    "adjoint": Table(
        "Adjoint",
        "classification",
        {
            "Implicit (default)": {"model.adjoint": {"class": "Implicit"}},
            "Phantom(2)": {"model.adjoint": {"class": "Phantom", "steps": 2}},
            "Phantom(5)": {"model.adjoint": {"class": "Phantom", "steps": 5}},
            "OneStep, as in the paper": {"model.adjoint": {"class": "OneStep"}},
            "Unrolled": {"model.adjoint": {"class": "Unrolled"}},
        },
    ),
    "marks of a classifier": Table(
        "Marks of a classifier",
        "classification",
        {
            "dimension 8": {"model.cell.mark_dim": 8, "model.reference.mark_dim": 8},
            "dimension 2": {"model.cell.mark_dim": 2, "model.reference.mark_dim": 2},
            "no marks": {"model.cell.mark_dim": 0, "model.reference.mark_dim": 0},
        },
    ),
    "marks": Table(
        "Marks of a completion",
        "completion",
        {
            "dimension 8": {"model.cell.mark_dim": 8, "model.reference.mark_dim": 8},
            "dimension 2": {"model.cell.mark_dim": 2, "model.reference.mark_dim": 2},
            "no marks, learned starts": {
                "model.cell.mark_dim": 0,
                "model.reference": {"class": "LearnedReference", "n": KEPT, "dim": KEPT, "mark_dim": 0},
            },
        },
    ),
    "atoms": Table(
        "Number of atoms, in training and in use",
        "completion",
        {f"{n} atoms": {"model.reference.n": n} for n in (4, 16, 64)},
    ),
    "contraction": Table(
        "What keeps the cell a contraction",
        "completion",
        {
            "penalty on the largest direction, above 0.6 (default)": {},
            "penalty on the largest direction, above 0.3": {"growth": 0.3},
            "penalty on the Frobenius norm": {"kind": "frobenius"},
            "by construction": {"model.cell.class": "ContractiveCell", "penalty": 0.0},
            "nothing": {"penalty": 0.0},
        },
    ),
    "encoder": Table(
        "Encoder",
        "classification",
        {
            "local geometry": {},
            "induced sets": {"model.encoder": {"class": "InducedSetEncoder", "dim": KEPT, "width": KEPT}},
            "pointwise": {"model.encoder": {"class": "InducedSetEncoder", "dim": KEPT, "width": KEPT, "blocks": 0}},
        },
    ),
}
IN_USE = (4, 16, 64)
"""Numbers of atoms with which models of the table ``atoms`` are evaluated."""


def changed(task: dict[str, Any], change: Change) -> dict[str, Any]:
    """The task's configuration with other entries at the paths of ``change``."""
    made = copy.deepcopy(task)
    head = next(name for name in ("classifier", "completer") if name in made)
    for path, value in change.items():
        *places, last = path.split(".")
        part = made
        for place in places:
            part = (part[head] if place == "model" else part)[place]
        if isinstance(value, dict):
            value = {name: part[last][name] if entry is KEPT else entry for name, entry in value.items()}
        part[last] = value
    return made


def train(options: argparse.Namespace) -> Run:
    """One run, in this process."""
    from contestants import read

    from ddeq.experiments.command_line import prepare_process

    prepare_process()
    warnings.filterwarnings("ignore")
    logging.getLogger("ddeq").setLevel(logging.ERROR)
    table, name, seed = TABLES[options.run[0]], options.run[1], int(options.run[2])
    ending = {"classification": "", "completion": "_completion"}[table.task]
    configuration = yaml.safe_load((CONFIGS / f"{options.dataset}{ending}.yaml").read_text())
    task = changed(configuration["model"]["init_args"], table.variants[name] | {"seed": seed})
    configuration["model"]["init_args"] = task
    configuration["seed_everything"] = seed
    configuration["guard"] = {"share": 0.0}  # what a solve that fails does to a training is what is asked here
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(configuration, file)
        file.flush()
        data = [f"--data.path={options.data}"] if options.data else []
        data += [f"--data.limit={options.limit}"] if options.limit else []
        rest = [f"--trainer.max_epochs={options.epochs}", "--trainer.limit_val_batches=0", "--trainer.precision=32-true"]
        cli = read([Path(file.name)], *data, *rest, "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false")
    start = time.perf_counter()
    cli.trainer.fit(cli.model, cli.datamodule)
    seconds = time.perf_counter() - start
    validation = cli.datamodule.split("validation")
    validation = validation.subset(torch.linspace(0, len(validation) - 1, min(len(validation), options.inputs)).long())
    found = {"seed": seed, "seconds": seconds, "megabytes": peak()}
    if table.task == "classification":
        return found | classified(cli.model, validation)
    return found | completed(cli.model, validation, IN_USE if options.run[0] == "atoms" else ())


def classified(task: Any, validation: Any) -> dict[str, float]:
    """What a trained classifier does on ``validation``."""
    from ddeq.experiments import evaluate

    result = evaluate(task.model.eval(), validation)
    names = ("accuracy", "residual", "converged", "steps", "support")
    return {name: getattr(result, name) for name in names} | {"radius": radius(task.model, validation.batch(torch.arange(16))[0])}


def completed(task: Any, validation: Any, atoms: tuple[int, ...]) -> dict[str, float]:
    """What a trained `ddeq.nn.Completer` does on ``validation``, also with these numbers of ``atoms``."""
    from ddeq.data import generator_for
    from ddeq.experiments import evaluate_completion

    model = task.model.eval()
    result = evaluate_completion(model, validation, task.removal)
    known, _ = task.removal(validation.batch(torch.arange(16))[0].normalized(), generator_for(0, "radius"))
    found = {
        "transport": float(result.transport.mean()),
        "chamfer": float(result.chamfer.mean()),
        "known": float(result.known.mean()),
        "radius": radius(model, known),
    }
    found |= {name: float(getattr(result, name)) for name in ("residual", "converged", "steps", "support")}
    for n in atoms:
        found[f"transport with {n}"] = float(evaluate_completion(model, validation, task.removal, atoms=n).transport.mean())
    return found


def radius(head: Any, rho: Any) -> float:
    """Largest spectral radius of the cell at the equilibria of ``rho``."""
    from ddeq.nn import spectral_radius

    with torch.no_grad():
        head(rho)
    return float(spectral_radius(head.model.cell, head.solution.measure, *head.solution.args).max())


def peak() -> float:
    """Megabytes that this process had at most."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line) / 1024


def spread(values: list[float], form: str) -> str:
    """Mean and, of several, the standard deviation."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


Column = tuple[str, str, float]
"""Name of a number in a run, how it is written, and a factor."""
SHARED: dict[str, Column] = {  # means alone
    "seconds": ("seconds", "{:.0f}", 1.0),
    "effective atoms": ("support", "{:.1f}", 1.0),
    "steps": ("steps", "{:.1f}", 1.0),
    "residual": ("residual", "{:.0e}", 1.0),
    "CONVERGED, %": ("converged", "{:.0f}", 100.0),
    "spectral radius": ("radius", "{:.2f}", 1.0),
    "peak MB": ("megabytes", "{:.0f}", 1.0),
}
QUALITY: dict[str, dict[str, Column]] = {
    "classification": {"accuracy, %": ("accuracy", "{:.2f}", 100.0)},
    "completion": {"W2": ("transport", "{:.4f}", 1.0), "Chamfer, times 1,000": ("chamfer", "{:.2f}", 1000.0)},
}
"""What is asked of each task; the first is what the picture shows."""


def markdown(name: str, runs: dict[str, list[Run]]) -> list[str]:
    """A line for each variant that has a run."""
    quality = QUALITY[TABLES[name].task]
    if name == "atoms":
        quality = {f"W2 with {n} atoms": (f"transport with {n}", "{:.4f}", 1.0) for n in IN_USE}
    columns = [*quality, *SHARED]
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for variant, found in runs.items():
        cells = [spread([factor * run[key] for run in found], form) for key, form, factor in quality.values()]
        cells += [form.format(statistics.mean(factor * run[key] for run in found)) for key, form, factor in SHARED.values()]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


def draw(runs: dict[str, dict[str, list[Run]]], path: Path) -> None:
    """A panel for each table: accuracy or distance of each run as a dot, its mean as a bar, and the mean seconds of training."""
    import matplotlib.pyplot as plt

    if not runs:
        return
    rows = -(-len(runs) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11.5, 2.3 * rows), squeeze=False, layout="constrained")
    for axis, (table, found) in zip(axes.flat, runs.items(), strict=False):
        (label, (key, _, factor)), *_ = QUALITY[TABLES[table].task].items()
        for place, some in enumerate(found.values()):
            values = [factor * run[key] for run in some]
            axis.plot(values, [place] * len(some), "o", ms=5, color="#20508e", alpha=0.5, mew=0)
            axis.plot([statistics.mean(values)], [place], "|", ms=16, mew=2.5, color="#c8502a")
            seconds = f"{statistics.mean(run['seconds'] for run in some):.0f} s"
            axis.annotate(seconds, (1.0, place), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                          va="center", fontsize=8, color="0.35", annotation_clip=False)  # fmt: skip
        axis.set_yticks(range(len(found)), [name.removesuffix(" (default)") for name in found], fontsize=9)
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.margins(x=0.08)
        axis.set_xlabel(label, fontsize=9)
        axis.set_title(TABLES[table].title, loc="left", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    for axis in list(axes.flat)[len(runs) :]:
        axis.remove()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def run(table: str, variant: str, seed: int, words: list[str], threads: int) -> Run:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--run", table, variant, str(seed), *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: Run = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=["digits", "mnist_pc"], default="digits")
    parser.add_argument("--data", default=None, help="file or folder of the data; none for the digits")
    parser.add_argument("--limit", type=int, default=None, help="train on so many inputs")
    parser.add_argument("--inputs", type=int, default=2000, help="evaluate on so many (%(default)s)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--at-once", type=int, default=1, help="so many are trained at a time (%(default)s)")
    parser.add_argument("--run", nargs=3, default=None, help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(train(options)))
        return
    setting = {name: getattr(options, name) for name in ("dataset", "limit", "inputs", "epochs")}
    numbers = options.output / "ablations.json"
    kept = json.loads(numbers.read_text()) if numbers.exists() else {}
    found = kept if kept.get("setting") == setting else {"setting": setting, "runs": {}, "conclusions": {}}
    command = shlex.join(["python", "benchmarks/ablations.py", *without_output(sys.argv[1:])])
    found |= {"command": command, "where": machine()}
    words = ["--dataset", options.dataset, "--epochs", str(options.epochs), "--inputs", str(options.inputs)]
    words += ["--data", options.data] if options.data else []
    words += ["--limit", str(options.limit)] if options.limit else []
    wanted = [(t, v, seed) for seed in range(options.seeds) for t in options.tables for v in TABLES[t].variants]
    wanted.sort(key=lambda some: some[1].startswith("ParticleFlow"))  # which takes longest, last
    runs: dict[str, dict[str, list[Run]]] = found["runs"]
    missing = [(t, v, s) for t, v, s in wanted if all(r["seed"] != s for r in runs.get(t, {}).get(v, []))]
    threads = max(1, torch.get_num_threads() // options.at_once)
    with ThreadPoolExecutor(options.at_once) as pool:
        futures = {pool.submit(run, *some, words, threads): some for some in missing}
        for future in as_completed(futures):
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)
            table, variant, seed = futures[future]
            runs.setdefault(table, {}).setdefault(variant, []).append(future.result())
            print(f"{table}: {variant}, seed {seed}: {future.result()}", flush=True)
            write(found, options.output, show=False)
    write(found, options.output, show=True)


def write(found: dict[str, Any], folder: Path, *, show: bool) -> None:
    """The tables and their picture, in the order of `TABLES`."""
    setting, runs = found["setting"], found["runs"]
    ordered = {t: {v: runs[t][v] for v in TABLES[t].variants if v in runs[t]} for t in TABLES if t in runs}
    known = [
        r["known"]
        for t, variants in ordered.items()
        if TABLES[t].task == "completion"
        for some in variants.values()
        for r in some
    ]
    lines = ["# Ablations", "", "![Accuracy or distance, and seconds of training, of each variant](ablations.png)", ""]
    lines += [
        f"{setting['dataset']}: {setting['epochs']} epochs, means and standard deviations over seeds; seconds are of training, "
        "and the spectral radius is the largest at 16 equilibria. In the picture a dot is a run, a bar a mean, beside it the "
        "mean seconds.",
    ]
    lines += [f"The known part alone is at W2 {statistics.mean(known):.4f} from the whole."] if known else []
    lines += [""]
    for table, some in ordered.items():
        conclusion = found["conclusions"].get(table)
        lines += [f"## {TABLES[table].title}", "", *markdown(table, some), "", *([conclusion, ""] if conclusion else [])]
    lines += [f"Made by `{found['command']}` on {found['where']}.{found.get('remark', '')}", ""]
    keep(folder, "ablations", "\n".join(lines), found, show=show)
    draw(ordered, folder / "ablations.png")


if __name__ == "__main__":
    main()
