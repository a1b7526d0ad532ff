"""What makes a DDEQ work: one thing changed at a time, trained from three seeds each, one table for each question.

    python benchmarks/ablations.py [--dataset digits | mnist_pc] [--data FOLDER] [--limit N] [--epochs 30] [--seeds 3]
        [--tables solver adjoint ...]

Every run is a process of its own: the configuration of the data set in ``configs``, one option changed, trained for ``--epochs``
passes in single precision, evaluated on the validation split with the default tolerance. Runs that the results hold already,
of the same numbers, are not done again, so that an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from common import add_output, keep, machine, without_output

CONFIGS = Path(__file__).parents[1] / "configs"
FLOW = {"class": "ParticleFlow", "stepper": {"class": "ddeq.flows.Euler", "step_size": 5.0}}
LONG = {"rtol": 1e-2, "max_steps": 200, "patience": 200}
"""When the paper's flow stops."""

Change = dict[str, Any]
"""Paths in the configuration of the task, and what stands there instead."""
MODEL = "classifier.model"
TABLES: dict[str, dict[str, Change]] = {
    "solver": {
        "Picard": {f"{MODEL}.solver": {"class": "Picard"}},
        "Anderson": {f"{MODEL}.solver": {"class": "Anderson"}},
        "Broyden": {f"{MODEL}.solver": {"class": "Broyden"}},
        "Auto (default)": {f"{MODEL}.solver": {"class": "Auto"}},
        "ParticleFlow, 200 steps, as in the paper": {
            f"{MODEL}.solver": FLOW,
            f"{MODEL}.stop": {"class": "Stop", "rtol": 1e-3, "max_steps": 200, "patience": 200},
            "training_stop": LONG,
        },
    },
    "adjoint": {
        "Implicit": {f"{MODEL}.adjoint": {"class": "Implicit"}},
        "Phantom(2)": {f"{MODEL}.adjoint": {"class": "Phantom", "steps": 2}},
        "Phantom(5)": {f"{MODEL}.adjoint": {"class": "Phantom", "steps": 5}},
        "OneStep, as in the paper": {f"{MODEL}.adjoint": {"class": "OneStep"}},
        "Unrolled": {f"{MODEL}.adjoint": {"class": "Unrolled"}},
    },
    "marks": {
        "marks of dimension 8": {},
        "marks of dimension 2": {f"{MODEL}.cell.mark_dim": 2, f"{MODEL}.reference.mark_dim": 2},
        "no marks": {f"{MODEL}.cell.mark_dim": 0, f"{MODEL}.reference.mark_dim": 0},
    },
    "atoms": {
        f"{n} atoms": {f"{MODEL}.reference": {"class": "GaussianReference", "dim": 64, "mark_dim": 8, "n": n}}
        for n in (4, 16, 64)
    },
    "contraction": {
        "penalty on the largest direction (default)": {},
        "penalty on the Frobenius norm": {"kind": "frobenius"},
        "by construction": {f"{MODEL}.cell": {"class": "ContractiveCell", "width": 64, "mark_dim": 8}, "penalty": 0.0},
        "nothing": {"penalty": 0.0},
    },
    "encoder": {
        "local geometry": {},
        "induced sets": {f"{MODEL}.encoder": {"class": "InducedSetEncoder", "dim": 2, "width": 64}},
        "pointwise": {f"{MODEL}.encoder": {"class": "InducedSetEncoder", "dim": 2, "width": 64, "blocks": 0}},
    },
}
IN_USE = (4, 16, 64)
"""Numbers of atoms with which models of the table ``atoms`` are evaluated."""
TITLES = {
    "solver": "Solver",
    "adjoint": "Adjoint",
    "marks": "Marks",
    "atoms": "Number of atoms, in training and in use",
    "contraction": "What keeps the cell a contraction",
    "encoder": "Encoder",
}


def changed(configuration: dict[str, Any], change: Change) -> dict[str, Any]:
    """The task's configuration with other entries at the paths of ``change``."""
    made = copy.deepcopy(configuration)
    for path, value in change.items():
        *places, last = path.split(".")
        part = made
        for place in places:
            part = part.setdefault(place, {})
        part[last] = value
    return made


def train(options: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process."""
    from contestants import read

    from ddeq.experiments import evaluate
    from ddeq.experiments.command_line import prepare_process
    from ddeq.nn import spectral_radius

    prepare_process()
    warnings.filterwarnings("ignore")
    logging.getLogger("ddeq").setLevel(logging.ERROR)
    table, name, seed = options.run
    configuration = yaml.safe_load((CONFIGS / f"{options.dataset}.yaml").read_text())
    task = changed(configuration["model"]["init_args"], TABLES[table][name] | {"seed": int(seed)})
    configuration["model"]["init_args"] = task
    configuration["seed_everything"] = int(seed)
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
    classifier, validation = cli.model.model.eval(), cli.datamodule.split("validation")
    validation = validation.subset(torch.linspace(0, len(validation) - 1, min(len(validation), options.inputs)).long())
    result = evaluate(classifier, validation)
    rho, _ = validation.batch(torch.arange(16))
    with torch.no_grad():
        classifier(rho)
    solution = classifier.solution
    radius = float(spectral_radius(classifier.model.cell, solution.measure, *solution.args).max())
    found = {
        "seconds": seconds,
        "accuracy": result.accuracy,
        "residual": result.residual,
        "converged": result.converged,
        "steps": result.steps,
        "support": result.support,
        "radius": radius,
        "megabytes": peak(),
    }
    if table == "atoms":
        found |= {f"accuracy with {n}": accuracy_with(classifier, validation, n) for n in IN_USE}
    return found


def accuracy_with(classifier: Any, data: Any, n: int) -> float:
    """Accuracy if the equilibria have ``n`` atoms."""
    with torch.no_grad():
        correct = [(classifier(rho, n=n).argmax(-1) == labels).float() for rho, labels in data.loader(256)]
    return float(torch.cat(correct).mean())


def peak() -> float:
    """Megabytes that this process had at most."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line) / 1024


def spread(values: list[float], form: str) -> str:
    """Mean and, of several, the standard deviation."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def markdown(table: str, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    columns = {
        "accuracy, %": ("accuracy", "{:.2f}", 100.0),
        "seconds of training": ("seconds", "{:.0f}", 1.0),
        "residual": ("residual", "{:.1e}", 1.0),
        "CONVERGED, %": ("converged", "{:.1f}", 100.0),
        "steps": ("steps", "{:.1f}", 1.0),
        "spectral radius": ("radius", "{:.2f}", 1.0),
        "effective atoms": ("support", "{:.1f}", 1.0),
        "peak MB": ("megabytes", "{:.0f}", 1.0),
    }
    if table == "atoms":
        columns = {"accuracy, %": columns["accuracy, %"], "seconds of training": columns["seconds of training"]} | {
            f"with {n} atoms, %": (f"accuracy with {n}", "{:.2f}", 100.0) for n in IN_USE
        }
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, found in runs.items():
        cells = [spread([factor * run[key] for run in found], form) for key, form, factor in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(runs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """A panel for each table: the accuracy of each run as a dot, its mean as a bar, and the mean seconds of training."""
    import matplotlib.pyplot as plt

    shown = {table: {name: some for name, some in found.items() if some} for table, found in runs.items()}
    shown = {table: found for table, found in shown.items() if found}
    if not shown:
        return
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11.0, 2.3 * rows), squeeze=False, sharex=True, layout="constrained")
    lowest = min(100 * run["accuracy"] for found in shown.values() for some in found.values() for run in some)
    for axis, (table, found) in zip(axes.flat, shown.items(), strict=False):
        for place, some in enumerate(found.values()):
            accuracy = [100 * run["accuracy"] for run in some]
            axis.plot(accuracy, [place] * len(some), "o", ms=5, color="#20508e", alpha=0.5, mew=0)
            axis.plot([statistics.mean(accuracy)], [place], "|", ms=16, mew=2.5, color="#c8502a")
            seconds = f"{statistics.mean(run['seconds'] for run in some):.0f} s"
            axis.annotate(seconds, (1.0, place), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                          va="center", fontsize=8, color="0.35", annotation_clip=False)  # fmt: skip
        axis.set_yticks(range(len(found)), [name.split(",")[0].removesuffix(" (default)") for name in found], fontsize=9)
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set_xlim(lowest - 1.0, 100.0)
        axis.set_title(TITLES[table], loc="left", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    for axis in list(axes.flat)[len(shown) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel("validation accuracy in %")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=["digits", "mnist_pc"], default="digits")
    parser.add_argument("--data", default=None, help="file or folder of the data; none for the digits")
    parser.add_argument("--limit", type=int, default=None, help="train on so many inputs")
    parser.add_argument("--inputs", type=int, default=2000, help="evaluate on so many (%(default)s)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", choices=list(TITLES), default=list(TITLES))
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
    same = ["--dataset", options.dataset, "--epochs", str(options.epochs), "--inputs", str(options.inputs)]
    same += ["--data", options.data] if options.data else []
    same += ["--limit", str(options.limit)] if options.limit else []
    for table in options.tables:
        for seed in range(options.seeds):
            for name in TABLES[table]:
                runs = found["runs"].setdefault(table, {}).setdefault(name, [])
                if len(runs) > seed:
                    continue
                words = [sys.executable, __file__, "--run", table, name, str(seed), *same]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                print(table, "|", name, "|", seed, "|", runs[-1], flush=True)
                write(found, options.output, show=False)
    write(found, options.output, show=True)


def write(found: dict[str, Any], folder: Path, *, show: bool) -> None:
    setting = found["setting"]
    lines = ["# Ablations", "", "![Accuracy and seconds of training of each variant](ablations.png)", ""]
    lines += [
        f"{setting['dataset']}: {setting['epochs']} epochs, means and standard deviations over seeds; the spectral radius is the "
        "largest at 16 equilibria. In the picture a dot is a run, a bar a mean, beside it the mean seconds of training.",
        "",
    ]
    for table, runs in found["runs"].items():
        finished = {name: some for name, some in runs.items() if some}
        lines += [f"## {TITLES[table]}", "", *markdown(table, finished), "", found["conclusions"].get(table, ""), ""]
    lines += [f"Made by `{found['command']}` on {found['where']}.", ""]
    keep(folder, "ablations", "\n".join(lines), found, show=show)
    draw(found["runs"], folder / "ablations.png")


if __name__ == "__main__":
    main()
