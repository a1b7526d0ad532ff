"""What a solve costs besides its evaluations: its wall time over evaluations times the time of one evaluation of the cell.

    python benchmarks/overhead.py [--tolerance 1e-4] [--repeats 31]

Every repeat takes the time of each solve, and right before and after it that of as many evaluations of the cell alone, one
after the other from where the solve begins; the ratio is the median over repeats of the solve's time over theirs. The solve's
own checks of its first image, its selections of samples that are left, and its result are in its time. Two sizes, as a
classifier of digits and a completion of shapes have them: 64 samples of 10 atoms that attend to up to 150 points, and 16 of 128
atoms that attend to 512.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import add_output, keep, machine
from equilibrium import markdown

from ddeq import DiscreteMeasure, fixed_point
from ddeq.nn import DDEQ, EquilibriumCell, InducedSetEncoder, LearnedReference
from ddeq.solvers import Anderson, Auto, Broyden, Picard, Stop

SIZES = {10: (64, 150), 128: (16, 512)}
"""Samples and points of their clouds, for a number of atoms."""
WIDTH, MARKS = 128, 16


def problem(atoms: int) -> tuple[DDEQ, DiscreteMeasure]:
    """An untrained model and random clouds, the smaller ones of different sizes."""
    torch.manual_seed(0)
    batch, points = SIZES[atoms]
    dim = 2 if points < 512 else 3
    model = DDEQ(InducedSetEncoder(dim, WIDTH), EquilibriumCell(WIDTH, MARKS), LearnedReference(atoms, WIDTH, MARKS))
    fewer = 10 if points < 512 else 0
    clouds = [torch.rand(points - fewer * (i % 8), dim) * 2 - 1 for i in range(batch)]
    return model.eval(), DiscreteMeasure.from_clouds(clouds)


def seconds(way: Any) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


@torch.no_grad()
def overhead(solver: Any, stop: Stop, atoms: int, repeats: int) -> dict[str, Any]:
    """One row: evaluations, milliseconds of one of them alone and in the solve, and the ratio."""
    model, rho = problem(atoms)
    mu, context = model.reference(rho.batch_shape, rho.points), model.encoder(rho)

    def solve() -> int:
        return fixed_point(model.cell, mu, context, in_dims=0, solver=solver, stop=stop).evaluations

    def evaluations(count: int) -> None:
        state = mu
        for _ in range(count):
            state = model.cell(state, context)

    count = solve()
    alone, whole, ratios = [], [], []
    for _ in range(repeats):
        before, middle, after = (
            seconds(lambda: evaluations(count)),
            seconds(solve),
            seconds(lambda: evaluations(count)),
        )
        alone.append((before + after) / 2 / count)
        whole.append(middle / count)
        ratios.append(whole[-1] / alone[-1])
    return {
        "atoms": str(atoms),
        "solver": repr(solver).split("(")[0],
        "relative tolerance": f"{stop.rtol:g}",
        "evaluations": count,
        "ms of an evaluation alone": f"{1e3 * statistics.median(alone):.2f}",
        "ms of a solve per evaluation": f"{1e3 * statistics.median(whole):.2f}",
        "ratio (quartiles)": "{1:.2f} ({0:.2f} to {2:.2f})".format(*statistics.quantiles(ratios, n=4)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--repeats", type=int, default=31)
    add_output(parser)
    options = parser.parse_args()
    strict = Stop(rtol=options.tolerance / 100)
    rows = []
    for atoms in SIZES:
        for solver in (Picard(), Anderson(), Broyden(), Auto()):
            for stop in (Stop(rtol=options.tolerance), strict):
                rows.append(overhead(solver, stop, atoms, options.repeats))
                print(rows[-1], flush=True)
    command = f"python benchmarks/overhead.py --tolerance {options.tolerance:g} --repeats {options.repeats}"
    text = "\n".join(
        [
            "# What a solve costs besides its evaluations",
            "",
            *(__doc__ or "").strip().splitlines()[4:],
            "",
            f"`EquilibriumCell` of width {WIDTH} with {MARKS} marks, untrained; no gradients. With few atoms an evaluation is "
            "short, and the passes over ten earlier iterates that an extrapolation makes are not small beside it.",
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
