"""The equilibrium solve against the paper's way, side by side: same cell, same weights, same inputs, one run.

The paper's way, written from its description: particles start at random and descend MMD^2 between the measure and its
image (Riesz kernel, r = 1) by plain gradient steps through the network, which encodes the input again in every step.
Ours: the context is computed once, and the fixed point is found by Picard's or Anderson's iteration.

    python benchmarks/equilibrium.py [--batch 8] [--points 150] [--repeats 5]

Times are medians over repeats in turn, with the smallest and largest; the residual is the relative one in L2(mu).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import machine

from ddeq import DiscreteMeasure, fixed_point
from ddeq.functionals import MMD
from ddeq.nn import DDEQ, EquilibriumCell, InducedSetEncoder, LearnedReference
from ddeq.solvers import Anderson, Picard, Stop

RESULTS = Path(__file__).parent / "results"
STEPS = 200


def problem(batch: int, points: int, seed: int = 0) -> tuple[DDEQ, DiscreteMeasure]:
    """A cell of the paper's size (10 particles of dimension 128) and random clouds of different sizes."""
    torch.manual_seed(seed)
    width, atoms, marks = 128, 10, 16
    model = DDEQ(InducedSetEncoder(2, width), EquilibriumCell(width, marks), LearnedReference(atoms, width, marks))
    clouds = [torch.rand(points - 10 * i, 2) * 2 - 1 for i in range(min(batch, 8))]
    return model.eval(), DiscreteMeasure.from_clouds([clouds[i % len(clouds)] for i in range(batch)])


def descend(model: DDEQ, rho: DiscreteMeasure, step_size: float, steps: int = STEPS) -> DiscreteMeasure:
    """The paper's forward pass; in each step the input is encoded again."""
    mu = model.reference(rho.batch_shape, rho.points)
    z = mu.points.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([z], lr=step_size)
    for _ in range(steps):
        state = mu.detach().with_points(z)
        loss = 2.0 * MMD(model.cell(state, model.encoder(rho)))(state).sum()
        optimizer.zero_grad()
        loss.backward(inputs=[z])
        optimizer.step()
    return mu.detach().with_points(z.detach())


@torch.no_grad()
def solve(model: DDEQ, rho: DiscreteMeasure, solver: Picard | Anderson) -> DiscreteMeasure:
    """Ours: the context once, then the solve, down to 1e-4."""
    mu = model.reference(rho.batch_shape, rho.points)
    stop = Stop(rtol=1e-4, max_steps=100)
    return fixed_point(model.cell, mu, model.encoder(rho), in_dims=0, solver=solver, stop=stop).measure


@torch.no_grad()
def residual(model: DDEQ, rho: DiscreteMeasure, mu: DiscreteMeasure) -> float:
    """The largest relative residual of the batch."""
    image = model.cell(mu, model.encoder(rho)).points

    def norm(a: torch.Tensor) -> torch.Tensor:
        return (mu.weights * a.square().sum(-1)).sum(-1).sqrt()

    return float((norm(image - mu.points) / norm(image)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--points", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model, rho = problem(options.batch, options.points)
    # The step size that serves the paper's way best, of a few, found on this problem.
    step_sizes = (10.0, 30.0, 100.0, 300.0)
    best = min(step_sizes, key=lambda s: residual(model, rho, descend(model, rho, s)))
    ways: dict[str, Callable[[], DiscreteMeasure]] = {
        f"the paper's way: {STEPS} descent steps (step size {best:g})": lambda: descend(model, rho, best),
        "ddeq, Picard": lambda: solve(model, rho, Picard()),
        "ddeq, Anderson": lambda: solve(model, rho, Anderson()),
    }
    residuals = {name: residual(model, rho, way()) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    first = statistics.median(next(iter(times.values())))
    rows = [
        {
            "way": name,
            "seconds": statistics.median(t),
            "from": min(t),
            "to": max(t),
            "times faster": first / statistics.median(t),
            "largest residual": residuals[name],
        }
        for name, t in times.items()
    ]
    command = f"python benchmarks/equilibrium.py --batch {options.batch} --points {options.points} --repeats {options.repeats}"
    write(rows, command, machine())


def write(rows: list[dict[str, object]], command: str, where: str) -> None:
    lines = [
        "| solve | seconds (smallest to largest) | times faster | largest relative residual |",
        "|---|---|---|---|",
        *(
            f"| {r['way']} | {r['seconds']:.3f} ({r['from']:.3f} to {r['to']:.3f}) | {r['times faster']:.0f} "
            f"| {r['largest residual']:.1e} |"
            for r in rows
        ),
    ]
    text = "\n".join(["# Equilibrium solve", "", *lines, "", f"Made by `{command}` on {where}.", ""])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "equilibrium.md").write_text(text)
    (RESULTS / "equilibrium.json").write_text(json.dumps({"command": command, "where": where, "rows": rows}, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
