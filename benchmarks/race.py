"""Ours and the paper's way trained for the same time: accuracy on validation data against the seconds of training.

Each contestant is trained by `ddeq.experiments.ClassificationTask` as its configuration says, in a process of its own; the
one-cycle schedule of the learning rate goes by the share of the time that has passed, so that each one's ends with the race.
Weights are taken as they are, not averaged over steps. Evaluation is not counted.

    python benchmarks/race.py [--dataset digits | mnist_pc | modelnet] [--data FOLDER] [--minutes 30] [--every 2]
        [--inputs 1000] [--contestants NAME ... | all] [--at-once 1]

With ``--at-once 2`` two contestants are trained at a time, each with half of the cores. The names of contestants are those of
``configs/baselines``, without the data set. Results are kept for each data set, and a race replaces those of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lightning
import torch
from common import add_output, machine
from contestants import OURS, PAPER, contestants, read

from ddeq.experiments.command_line import prepare_process

NAMES = {"digits": "scikit-learn's digits", "mnist_pc": "MNIST as measures", "modelnet": "ModelNet40"}

Race = dict[str, Any]


class Clock(lightning.Callback):
    """Counts the seconds of training without those of evaluation, ends it after ``limit``, and notes what evaluations find."""

    def __init__(self, limit: float) -> None:
        self.limit, self.seconds, self.since = limit, 0.0, 0.0
        self.points: list[dict[str, float]] = []

    def on_train_start(self, trainer: lightning.Trainer, task: Any) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._count()
        trainer.should_stop = self.seconds >= self.limit  # after a last evaluation

    def on_validation_start(self, trainer: lightning.Trainer, task: Any) -> None:
        self._count()

    def on_validation_end(self, trainer: lightning.Trainer, task: Any) -> None:
        found = {
            k.removeprefix("validation/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("validation/")
        }
        self.points.append({"seconds": self.seconds, "batches": trainer.global_step, **found})
        print(f"  {self.seconds / 60:6.2f} minutes, {trainer.global_step} batches: accuracy {found['accuracy']:.4f}", flush=True)
        self.since = time.perf_counter()

    def step_schedule(self, scheduler: Any, metric: Any) -> None:
        """The learning rate follows the share of the time that has passed."""
        share = min(1.0, self.seconds / self.limit)
        scheduler.last_epoch = int(share * (scheduler.total_steps - 1)) - 1
        scheduler.step()

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now


def train(files: list[Path], options: argparse.Namespace) -> Race:
    """One contestant: its evaluations in the order of time."""
    data = [f"--data.path={options.data}"] if options.data else []
    every = f"--trainer.val_check_interval={json.dumps({'seconds': round(60 * options.every)})}"
    rest = ["--trainer.max_epochs=100000", "--trainer.max_time=null", "--trainer.check_val_every_n_epoch=1"]
    quiet = ["--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false"]
    cli = read(files, *data, every, *rest, *quiet)
    clock = Clock(60 * options.minutes)
    cli.trainer.callbacks.append(clock)
    cli.model.lr_scheduler_step = clock.step_schedule
    validation = cli.datamodule.split("validation")
    some = torch.linspace(0, len(validation) - 1, min(options.inputs, len(validation))).long()
    cli.datamodule.trainer = cli.trainer
    cli.trainer.fit(cli.model, cli.datamodule.train_dataloader(), validation.subset(some).loader(cli.datamodule.test_batch_size))
    parameters = sum(p.numel() for p in cli.model.model.parameters())
    return {"parameters": parameters, "inputs": len(some), "epochs": cli.trainer.current_epoch, "points": clock.points}


def markdown(race: Race) -> list[str]:
    """A line for each contestant: where it ends, and when it first was where the last one ends."""
    runs = race["runs"]
    lowest = min(run["points"][-1]["accuracy"] for run in runs.values())
    lines = [
        f"| model | parameters | batches | batches a second | accuracy | minutes to {lowest:.1%} | share of solves CONVERGED |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        last = run["points"][-1]
        there = next(p["seconds"] for p in run["points"] if p["accuracy"] >= lowest) / 60
        converged = f"{last['converged']:.1%}" if "converged" in last else ""
        lines.append(
            f"| {name} | {run['parameters']:,} | {last['batches']:,} | {last['batches'] / last['seconds']:.2f} | "
            f"{last['accuracy']:.2%} | {there:.2g} | {converged} |"
        )
    return lines


def draw(races: dict[str, Race], path: Path) -> None:
    """A panel for each data set: accuracy against minutes, each line with its name and where it ends."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for race in races.values() for name in race["runs"]))
    colours = dict(zip(names, plt.cm.tab10.colors, strict=False))
    figure, axes = plt.subplots(1, len(races), figsize=(6.4 * len(races), 4.2), squeeze=False, layout="constrained")
    for axis, (dataset, race) in zip(axes[0], races.items(), strict=True):
        ends, longest = {}, race["minutes"]
        for name, run in race["runs"].items():
            minutes = [p["seconds"] / 60 for p in run["points"]]
            accuracy = [100 * p["accuracy"] for p in run["points"]]
            style = {"lw": 2.5} if name in (OURS, PAPER) else {"lw": 1.2, "ls": "--"}
            axis.plot(minutes, accuracy, color=colours[name], marker="o", ms=3.5, label=name, clip_on=False, **style)
            ends[name] = accuracy[-1]
            longest = max(longest, minutes[-1])
        bottom, top = axis.get_ylim()
        for name, height in apart(ends, 0.06 * (top - bottom)).items():
            text = f"  {name}, {ends[name]:.1f} %"
            axis.annotate(text, (longest, height), color=colours[name], va="center", fontsize=9, annotation_clip=False)
        axis.set_xlim(0, longest)  # the last batch may end a little late
        axis.set_ylim(bottom, top)
        axis.set_title(f"{NAMES[dataset]}: the same time for each", loc="left", fontsize=11)
        axis.set_xlabel("minutes of training, without evaluation")
        axis.set_ylabel("validation accuracy in %")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def apart(heights: dict[str, float], gap: float) -> dict[str, float]:
    """The same order of heights, each pushed down to be ``gap`` below the one above."""
    found: dict[str, float] = {}
    highest = float("inf")
    for name, height in sorted(heights.items(), key=lambda item: -item[1]):
        found[name] = highest = min(height, highest - gap)
    return found


def run(name: str, options: argparse.Namespace) -> Race:
    """A contestant in a process of its own, with its share of the cores; what it says on its way is passed on."""
    words = [sys.executable, __file__, "--run", name, "--dataset", options.dataset, "--minutes", str(options.minutes)]
    words += ["--every", str(options.every), "--inputs", str(options.inputs)]
    words += ["--data", options.data] if options.data else []
    threads = max(1, torch.get_num_threads() // options.at_once)
    found = ""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}) as child:
        assert child.stdout is not None
        for line in child.stdout:
            found = line
            if not line.startswith("{"):
                print(f"{name}: {line.strip()}", flush=True)
    if child.returncode:
        raise RuntimeError(f"the training of {name} ended with {child.returncode}")
    race: Race = json.loads(found)
    return race


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=list(NAMES), default="digits")
    parser.add_argument("--data", help="file or folder of the data; none for the digits")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, for each (%(default)s)")
    parser.add_argument("--every", type=float, default=2.0, help="minutes from evaluation to evaluation (%(default)s)")
    parser.add_argument("--inputs", type=int, default=1000, help="so many validation inputs, evenly spaced (%(default)s)")
    parser.add_argument("--contestants", nargs="+", default=[OURS, PAPER], metavar="NAME", help="by name, or all")
    parser.add_argument("--at-once", type=int, default=1, help="so many are trained at a time (%(default)s)")
    parser.add_argument("--run", default=None, help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    known = contestants(options.dataset)
    if options.run is not None:
        prepare_process()
        warnings.filterwarnings("ignore", message=".*did not converge.*")  # the tables say how many
        logging.getLogger("ddeq").setLevel(logging.ERROR)
        print(json.dumps(train(known[options.run], options)))
        return
    names = list(known) if options.contestants == ["all"] else options.contestants
    if unknown := set(names) - set(known):
        parser.error(f"--contestants: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    command = f"python benchmarks/race.py --dataset {options.dataset}{' --data FOLDER' if options.data else ''}"
    command += f" --minutes {options.minutes:g} --every {options.every:g} --inputs {options.inputs}"
    command += f" --contestants {shlex.join(options.contestants)}" if options.contestants != [OURS, PAPER] else ""
    command += f" --at-once {options.at_once}" if options.at_once > 1 else ""
    race: Race = {"command": command, "where": machine(), "minutes": options.minutes}
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = {name: pool.submit(run, name, options) for name in names}
        for _ in as_completed(runs.values()):
            race["runs"] = {name: future.result() for name, future in runs.items() if future.done()}
            write(options.dataset, race, options.output)


def write(dataset: str, race: Race, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / "race.json"
    races: dict[str, Race] = (json.loads(numbers.read_text()) if numbers.exists() else {}) | {dataset: race}
    lines = ["# The same time for each", "", *(__doc__ or "").strip().splitlines()[2:5], ""]
    lines += ["With `--at-once 2` two are trained at a time, each with half of the cores.", ""]
    lines += ["![Accuracy against minutes of training](race.png)", ""]
    for name, found in races.items():
        inputs = next(iter(found["runs"].values()))["inputs"]
        lines += [f"## {NAMES[name]}: {found['minutes']:g} minutes, {inputs:,} validation inputs", "", *markdown(found), ""]
        lines += [f"Made by `{found['command']}` on {found['where']}.", ""]
    numbers.write_text(json.dumps(races, indent=1) + "\n")
    (folder / "race.md").write_text("\n".join(lines))
    draw(races, folder / "race.png")


if __name__ == "__main__":
    main()
