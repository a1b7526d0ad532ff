"""What a solve costs besides its evaluations: its wall time over evaluations times the time of one evaluation of the cell.

    python benchmarks/overhead.py [--batch 64] [--points 150] [--tolerance 1e-4] [--repeats 31]

Every repeat takes the time of each solve, and right before and after it that of as many evaluations of the cell alone, one
after the other from where the solve begins; the ratio is the median over repeats of the solve's time over theirs. The solve's
own checks of its first image, its selections of samples that are left, and its result are in its time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import add_output, keep, machine
from equilibrium import markdown, problem

from ddeq import fixed_point
from ddeq.nn import EquilibriumCell
from ddeq.solvers import Anderson, Auto, Broyden, Picard, Stop


def seconds(way: Any) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


@torch.no_grad()
def overhead(solver: Any, stop: Stop, options: argparse.Namespace) -> dict[str, Any]:
    """One row: evaluations, milliseconds of one of them alone and in the solve, and the ratio."""
    model, rho = problem(options.batch, options.points, EquilibriumCell)
    mu, context = model.reference(rho.batch_shape, rho.points), model.encoder(rho)

    def solve() -> int:
        return fixed_point(model.cell, mu, context, in_dims=0, solver=solver, stop=stop).evaluations

    def evaluations(count: int) -> None:
        state = mu
        for _ in range(count):
            state = model.cell(state, context)

    count = solve()
    alone, whole, ratios = [], [], []
    for _ in range(options.repeats):
        before, middle, after = (
            seconds(lambda: evaluations(count)),
            seconds(solve),
            seconds(lambda: evaluations(count)),
        )
        alone.append((before + after) / 2 / count)
        whole.append(middle / count)
        ratios.append(whole[-1] / alone[-1])
    return {
        "solver": repr(solver).split("(")[0],
        "relative tolerance": f"{stop.rtol:g}",
        "evaluations": count,
        "ms of an evaluation alone": f"{1e3 * statistics.median(alone):.2f}",
        "ms of a solve per evaluation": f"{1e3 * statistics.median(whole):.2f}",
        "ratio (quartiles)": "{1:.2f} ({0:.2f} to {2:.2f})".format(*statistics.quantiles(ratios, n=4)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--points", type=int, default=150)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--repeats", type=int, default=31)
    add_output(parser)
    options = parser.parse_args()
    strict = Stop(rtol=options.tolerance / 100)
    rows = []
    for solver in (Picard(), Anderson(), Broyden(), Auto()):
        for stop in (Stop(rtol=options.tolerance), strict):
            rows.append(overhead(solver, stop, options))
            print(rows[-1], flush=True)
    command = f"python benchmarks/overhead.py --batch {options.batch} --points {options.points} --repeats {options.repeats}"
    command += f" --tolerance {options.tolerance:g}"
    text = "\n".join(
        [
            "# What a solve costs besides its evaluations",
            "",
            *(__doc__ or "").strip().splitlines()[4:],
            "",
            f"Batch {options.batch}. `EquilibriumCell` of width 128, 10 atoms with 16 marks, untrained, attending to clouds "
            f"of up to {options.points} points; no gradients.",
            "",
            *markdown(rows),
            "",
            f"Made by `{command}` on {machine()}.",
            "",
        ]
    )
    keep(options.output, "overhead", text, {"command": command, "where": machine(), "rows": rows})


if __name__ == "__main__":
    main()
