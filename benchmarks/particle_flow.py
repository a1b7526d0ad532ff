"""The particle flow compared with Picard: evaluations of the map until random contractions are solved.

Affine maps of points and their mean, whose linear part has the given norm in L2(mu), and maps that are not affine, from
Gaussian clouds. Unmarked, with a frozen target, both solvers are stopped by ``Wasserstein``, which does not ask which atom
goes where; with a moving one, and at distinct marks, by the residual atom by atom. A row is a setting, over all kinds of maps;
a ratio is of evaluations. The bounds are 6 times Picard's and 20 without marks, 1.5 times and 10 with marks, and
5 ln(1/rtol) ((1 + L)/(1 - L))^2 with a moving target.

    python benchmarks/particle_flow.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import add_output, keep, machine, without_output

from ddeq import DiscreteMeasure, fixed_point
from ddeq.functionals import Wasserstein
from ddeq.solvers import ParticleFlow, Picard, Stop

RTOL = 1e-4
MOST = 12_000
Map = Callable[[DiscreteMeasure], DiscreteMeasure]


def contractions(d: int, rate: float, g: torch.Generator) -> dict[str, Map]:
    """Maps of Lipschitz constant ``rate`` in L2(mu), by name."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def scaled(a: torch.Tensor) -> torch.Tensor:
        return a * rate / torch.linalg.matrix_norm(a, 2)

    def affine(matrix: torch.Tensor, of_mean: torch.Tensor | None = None) -> Map:
        shift = normal(d)

        def map(mu: DiscreteMeasure) -> DiscreteMeasure:
            points = mu.points @ matrix.mT + shift
            return mu.with_points(points if of_mean is None else points + mu.mean().unsqueeze(-2) @ of_mean.mT)

        return map

    def curved(mu: DiscreteMeasure) -> DiscreteMeasure:
        mean = mu.mean().unsqueeze(-2)
        return mu.with_points(rate * (0.7 * torch.sin(mu.points @ turn.mT) + 0.3 * torch.tanh(mean)) + 1.0)

    eye, square, turn = torch.eye(d, dtype=torch.float64), normal(d, d), torch.linalg.qr(normal(d, d))[0]
    fluctuation = scaled(normal(d, d))
    return {
        "multiple": affine(rate * eye),
        "negative": affine(-rate * eye),
        "rotation": affine(rate * turn),
        "diagonal": affine(scaled(torch.diag(normal(d)))),
        "symmetric": affine(scaled(square + square.mT)),
        "non-normal": affine(scaled(torch.triu(normal(d, d), 1) + 0.1 * normal(d, d))),
        "mean field": affine(fluctuation, rate * turn - fluctuation),
        "not affine": curved,
    }


def marked(map: Map) -> Map:
    """The map, and a push of its own for each atom."""

    def driven(mu: DiscreteMeasure) -> DiscreteMeasure:
        image = map(mu)
        return image.with_points(image.points + mu.marks)

    return driven


def compare(setting: str, n: int, d: int, rate: float, seeds: int) -> dict[str, Any]:
    """One row: what the flow needs compared with Picard, over all maps and seeds."""
    ratios, shares, converged, solves, worst = [], [], 0, 0, ""
    for seed in range(seeds):
        g = torch.Generator().manual_seed(1000 * seed + 10 * n + d)
        points = torch.randn(n, d, generator=g, dtype=torch.float64)
        marks = torch.randn(n, d, generator=g, dtype=torch.float64)
        for name, map in contractions(d, rate, g).items():
            mu, frozen = DiscreteMeasure(points), setting.startswith("frozen")
            if "marked" in setting and "unmarked" not in setting:
                mu, map = mu.with_marks(marks), marked(map)
            metric = Wasserstein if setting == "frozen, unmarked" else None
            picard = fixed_point(map, mu, solver=Picard(), stop=Stop(rtol=RTOL, max_steps=MOST, metric=metric))
            known = {"frozen, unmarked": 6 * picard.evaluations + 20, "frozen, marked": 1.5 * picard.evaluations + 10}
            held = known.get(setting, 5.0 * math.log(1.0 / RTOL) * ((1 + rate) / (1 - rate)) ** 2)
            steps = min(MOST, int(held) - 1 if frozen else int(held - 1) // 2)
            stop = Stop(rtol=RTOL, max_steps=steps, patience=steps, metric=metric)
            flow = fixed_point(map, mu, solver=ParticleFlow(target="frozen" if frozen else "moving"), stop=stop)
            solves, converged = solves + 1, converged + int(flow.converged)
            ratios.append(flow.evaluations / picard.evaluations)
            shares.append(flow.evaluations / held)
            if shares[-1] == max(shares):
                worst = name
    return {
        "setting": setting,
        "n": n,
        "d": d,
        "rate": rate,
        "solves": solves,
        "converged": converged,
        "mean ratio to Picard": sum(ratios) / len(ratios),
        "largest ratio to Picard": max(ratios),
        "largest share of the bound": max(shares),
        "of which map": worst,
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="clouds and maps of each setting")
    add_output(parser)
    options = parser.parse_args()
    sizes, rates = [(n, d) for d in (2, 3, 8) for n in (10, 30, 100)], (0.3, 0.5, 0.7, 0.9)
    settings = [("frozen, unmarked", n, d, rate) for n, d in sizes for rate in rates]
    settings += [("frozen, unmarked", n, 1, rate) for n in (10, 30, 100) for rate in rates]
    settings += [("frozen, marked", 30, d, rate) for d in (2, 8) for rate in rates]
    settings += [("moving, marked", 10, d, rate) for d in (2, 8) for rate in (0.01, 0.3, 0.5, 0.7)]
    settings += [("moving, unmarked", 10, d, rate) for d in (2, 8) for rate in (0.01, 0.3, 0.5, 0.7)]
    settings += [("moving, marked", 10, 2, 0.9), ("moving, unmarked", 10, 2, 0.9)]
    start, rows = time.perf_counter(), []
    for setting in settings:
        seeds = 1 if setting[0].startswith("moving") else options.seeds
        rows.append(compare(*setting, seeds=seeds))
        print(f"{time.perf_counter() - start:.0f} s", rows[-1], flush=True)
    command = " ".join(["python", "benchmarks/particle_flow.py", *without_output(sys.argv[1:])])
    totals = {
        name: (sum(r["converged"] for r in rows if r["setting"] == name), sum(r["solves"] for r in rows if r["setting"] == name))
        for name in dict.fromkeys(r["setting"] for r in rows)
    }
    lines = ["# The particle flow compared with Picard", "", f"Relative tolerance {RTOL:g}; evaluations of the map.", ""]
    lines += [f"- {name}: {done} of {all_} solves CONVERGED within the bound" for name, (done, all_) in totals.items()]
    lines += ["", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |" for row in rows]
    lines += ["", f"Made by `{command}` on {machine()}.", ""]
    keep(options.output, "particle_flow", "\n".join(lines), {"command": command, "where": machine(), "rows": rows})


if __name__ == "__main__":
    main()
