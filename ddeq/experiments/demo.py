"""The demonstration: train a DDEQ on embedded digits, solve an equilibrium with every solver, flow one digit to another."""

from __future__ import annotations

import json
import logging
import platform
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddeq import __version__
from ddeq.data import MeasureDataset, RandomAffine, load_digits
from ddeq.experiments.classification import ClassificationTask, Evaluation, build_classifier, evaluate
from ddeq.flows import Euler, Trajectory, flow
from ddeq.functionals import MMD
from ddeq.functionals.kernels import Riesz
from ddeq.iteration import Status, Stop
from ddeq.measures import DiscreteMeasure
from ddeq.nn import Classifier
from ddeq.solvers import Anderson, ParticleFlow, Picard, Solution, Solver, fixed_point

__all__ = ["run"]

EPOCHS = 150
BATCH = 64
TOLERANCE = Stop(rtol=1e-5, max_steps=200)
SOLVERS: dict[str, Solver] = {
    "Picard": Picard(),
    "Anderson": Anderson(),
    "ParticleFlow, moving target": ParticleFlow(target="moving"),
    "ParticleFlow, frozen target": ParticleFlow(target="frozen"),
}
FROM, TO = 3, 8
"""Digits between which the flow runs, the first of each class in the test split; the equilibrium shown is that of the former."""


def run(output: Path, *, epochs: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Train, evaluate, solve, flow; write three pictures and ``results.json`` to ``output`` and print where they are."""
    output.mkdir(parents=True, exist_ok=True)
    epochs = EPOCHS if epochs is None else epochs
    print("1. A DDEQ classifier on scikit-learn's digits: each image is a measure, pixels are atoms, intensities masses.")
    classifier, seconds = train(load_digits("train"), epochs, seed)
    test = load_digits("test")
    result, again = evaluate(classifier, test), evaluate(classifier, test)
    parameters = sum(p.numel() for p in classifier.parameters())
    same = bool(torch.equal(result.logits, again.logits))
    print(_summary(result, len(test), parameters, seconds, same))

    print("\n2. One equilibrium by every solver (tolerance 1e-5):")
    source, target = (first_of_class(test, digit) for digit in (FROM, TO))
    solutions, times = solve_by_all(classifier, source)
    print(_table(classifier, solutions, times))

    print(f"\n3. The flow of 1/2 MMD^2 (Riesz kernel) from a digit {FROM} to a digit {TO}:")
    trajectory = digit_flow(source, target)
    print(f"   energy {float(trajectory.energies[0]):.4f} at the start, {float(trajectory.energies[-1]):.6f} at the end")

    paths = draw(output, classifier, source, target, solutions, trajectory)
    numbers = {
        "command": f"python -m ddeq demo --epochs {epochs} --seed {seed}",
        "where": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, ddeq {__version__}",
        "seconds of training": seconds,
        "parameters": parameters,
        "evaluates identically twice": same,
        **{k: v for k, v in asdict(result).items() if k != "logits"},
        "solvers": {name: _row(classifier, name, s, times[name]) for name, s in solutions.items()},
        "flow energies": [float(trajectory.energies[0]), float(trajectory.energies[-1])],
    }
    (output / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print("\nPictures and numbers:", *(f"   {path}" for path in [*paths, output / "results.json"]), sep="\n")
    return numbers


def train(data: MeasureDataset, epochs: int, seed: int) -> tuple[Classifier, float]:
    """The classifier after training, with the running mean of its weights, and the seconds that it took."""
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging, TQDMProgressBar

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = build_classifier(2, len(data.class_names))
    task = ClassificationTask(classifier, augment=RandomAffine(12.0, 0.12, 0.12, 0.12), seed=seed)
    batches = data.loader(BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # hints on workers and logging steps
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            callbacks=[TQDMProgressBar(refresh_rate=5), EMAWeightAveraging(decay=0.995)],
        )
        start = time.perf_counter()
        trainer.fit(task, batches)
    return classifier.cpu().eval(), time.perf_counter() - start


@torch.no_grad()
def solve_by_all(classifier: Classifier, rho: DiscreteMeasure) -> tuple[dict[str, Solution], dict[str, float]]:
    """The equilibrium of one input by each solver, and the seconds."""
    model = classifier.model
    context = model.encoder(rho)
    start = model.reference(rho.batch_shape, rho.points)
    solutions, times = {}, {}
    for name, solver in SOLVERS.items():
        fixed_point(model.cell, start, context, solver=solver, stop=Stop(max_steps=2))  # what is loaded at first use
        before = time.perf_counter()
        solutions[name] = fixed_point(model.cell, start, context, solver=solver, stop=TOLERANCE, trace=True)
        times[name] = time.perf_counter() - before
    return solutions, times


@torch.no_grad()
def digit_flow(source: DiscreteMeasure, target: DiscreteMeasure) -> Trajectory:
    """Gradient flow of half the squared energy distance."""
    steps = torch.linspace(0, 1, 400)
    return flow(MMD(target, Riesz(1.0)), source, stepper=Euler(lambda k: 0.1 * (1.0 - 0.95 * float(steps[k]))), steps=400)


def first_of_class(data: MeasureDataset, digit: int) -> DiscreteMeasure:
    """The first image of a digit."""
    return data[int((data.labels == digit).nonzero()[0])][0]


def draw(
    output: Path,
    classifier: Classifier,
    source: DiscreteMeasure,
    target: DiscreteMeasure,
    solutions: dict[str, Solution],
    trajectory: Trajectory,
) -> list[Path]:
    """The three pictures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from ddeq import viz

    cell, mu = classifier.model.cell, solutions["Anderson"].measure
    with torch.no_grad():
        shares: Tensor = cell.attention_shares(mu, classifier.model.encoder(source))  # type: ignore[operator]
    figures = {"equilibrium": viz.plot_attention(source, shares, equilibrium=mu)}
    figures["equilibrium"].suptitle(
        f"The equilibrium of a digit {FROM}, and how its {mu.n} atoms attend to the pixels in each of the cell's heads",
        fontsize=11,
    )
    figures["convergence"], ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    traces = {name: solution.trace for name, solution in solutions.items() if solution.trace is not None}
    viz.plot_convergence(traces, ax, tolerance=TOLERANCE.rtol)
    ax.set_title("One equilibrium by four solvers", fontsize=11)
    figures["flow"] = viz.plot_trajectory(trajectory, target)
    figures["flow"].suptitle(f"Flow of half the squared energy distance: a digit {FROM} becomes a digit {TO}", fontsize=11)
    paths = []
    for name, figure in figures.items():
        paths.append(output / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def _summary(result: Evaluation, count: int, parameters: int, seconds: float, same: bool) -> str:
    rows = [
        ("accuracy on held-out digits", f"{result.accuracy:.2%} of {count}"),
        ("parameters", f"{parameters:,}"),
        ("mean residual of the equilibria", f"{result.residual:.1e}"),
        ("mean number of steps", f"{result.steps:.1f}"),
        ("solves converged at 1e-3", f"{result.converged:.2%}"),
        ("effective number of atoms", f"{result.support:.1f}"),
        ("a second evaluation gives the same", "yes" if same else "NO"),
        ("training", f"{seconds:.0f} s"),
    ]
    return "\n".join(f"   {name:36}{value}" for name, value in rows)


def _row(classifier: Classifier, name: str, solution: Solution, seconds: float) -> dict[str, Any]:
    """What a solver did: evaluations, seconds, residual, and the discrepancy between the measure and its image."""
    with torch.no_grad():
        image = classifier.model.cell(solution.measure, *solution.args)
        discrepancy = MMD(image)(solution.measure)
    return {
        "evaluations": solution.evaluations,
        "seconds": seconds,
        "residual": float(solution.residual),
        "discrepancy": float(discrepancy),
        "status": Status(int(solution.status)).name,
    }


def _table(classifier: Classifier, solutions: dict[str, Solution], times: dict[str, float]) -> str:
    lines = [f"   {'solver':30}{'evaluations':>12}{'seconds':>10}{'residual':>11}{'1/2 MMD^2':>11}  status"]
    for name, solution in solutions.items():
        row = _row(classifier, name, solution, times[name])
        lines.append(
            f"   {name:30}{row['evaluations']:12d}{row['seconds']:10.3f}{row['residual']:11.1e}{row['discrepancy']:11.1e}"
            f"  {row['status']}"
        )
    return "\n".join(lines)
