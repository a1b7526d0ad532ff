"""Evaluations that our fixed-point solvers and scipy's take on equations whose counts are known, in one run.

Linear equations of random matrices and rotations about a point, scipy's own test problems, and residuals that are flat where
the solve starts.

    python benchmarks/classics.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure, fixed_point
from ddeq.iteration import Status
from ddeq.solvers import Anderson, Auto, Broyden, NewtonKrylov, Solver, Stop

Function = Callable[[Tensor], Tensor]
OURS = {
    "Anderson()": Anderson(),
    "Anderson(50)": Anderson(memory=50),
    "Broyden()": Broyden(),
    "Broyden(50)": Broyden(memory=50),
    "NewtonKrylov()": NewtonKrylov(),
    "Auto()": Auto(),
}
SCIPY = ["anderson", "broyden1", "krylov", "hybr"]
ENOUGH = 6e-6


def cubic(z: Tensor) -> Tensor:
    return -z.new_tensor([3.0, 2.0, 1.5, 1.0, 0.5]) * z - 0.01 * (z @ z) * z


def badly_scaled(z: Tensor) -> Tensor:
    return torch.stack([1e4 * z[0] * z[1] - 1.0, torch.exp(-z[0]) + torch.exp(-z[1]) - (1.0 + 1e-4)])


def pipes(z: Tensor) -> Tensor:
    pressure = 0.5 * z.square()
    return torch.cat([pressure[1:] - pressure[:1], (z.sum() - 4.0)[None]])


def wavy(z: Tensor) -> Tensor:
    matrix = z.new_tensor([[-4.256, 14.7], [0.8394989, 0.59964207]])
    x, y = z
    return -torch.linalg.solve(matrix, torch.stack([(x + 3.0) * (y**5 - 7.0) + 18.0, torch.sin(y * torch.exp(x) - 1.0)]))


def linear(n: int, seed: int) -> Function:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, n), (n,)))
    return lambda z: a @ z - b


def rotation(n: int, seed: int) -> Function:
    g = torch.Generator().manual_seed(seed)
    skew, centre = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, n), (n,)))
    turn = torch.matrix_exp(skew - skew.T)
    return lambda z: turn @ (z - centre) + centre - z


def problems(seeds: int) -> dict[str, list[tuple[Function, list[float]]]]:
    return {
        "linear, n = 4": [(linear(4, s), [0.0] * 4) for s in range(seeds)],
        "linear, n = 20": [(linear(20, s), [0.0] * 20) for s in range(seeds)],
        "rotation, n = 14": [(rotation(14, s), [0.0] * 14) for s in range(seeds)],
        "cubic (scipy's F)": [(cubic, [1.0] * 5)],
        "Powell, badly scaled (F4)": [(badly_scaled, [-1.0, -2.0])],
        "pipes (F5)": [(pipes, [2.0, 0.0, 2.0, 0.0])],
        "F6": [(wavy, [-0.5, 1.4])],
        "-arctan z from 9": [(lambda z: -torch.arctan(z), [9.0])],
        "-3 arctan z from 9": [(lambda z: -3.0 * torch.arctan(z), [9.0])],
        "-arctan z from 30 points": [(lambda z: -torch.arctan(z), torch.linspace(-9, 9, 30).tolist())],
    }


def by_ours(f: Function, start: list[float], solver: Solver) -> int | str:
    z = torch.tensor([start], dtype=torch.float64)

    def map(mu: DiscreteMeasure) -> DiscreteMeasure:
        return mu.with_points(mu.points + f(mu.points[0]))

    solution = fixed_point(map, DiscreteMeasure(z), solver=solver, stop=Stop(rtol=1e-8, max_steps=400))
    return solution.evaluations if bool(solution.converged) else Status(int(solution.status)).name


def by_scipy(f: Function, start: list[float], method: str) -> int | str:
    calls = []

    def counting(z: Any) -> Any:
        calls.append(z)
        return f(torch.as_tensor(z)).numpy()

    options = {"maxfev": 4000} if method == "hybr" else {"maxiter": 500, "fatol": ENOUGH}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = scipy.optimize.root(counting, np.array(start), method=method, options=options)
    except ValueError:
        return "error"
    return len(calls) if np.abs(f(torch.as_tensor(found.x)).numpy()).max() <= ENOUGH else "failed"


def median(counts: list[int | str]) -> int | str:
    numbers = [c for c in counts if isinstance(c, int)]
    return next(c for c in counts if isinstance(c, str)) if len(numbers) < len(counts) else round(statistics.median(numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    add_output(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, cases in problems(options.seeds).items():
        ours = {label: median([by_ours(f, z, solver) for f, z in cases]) for label, solver in OURS.items()}
        rows[name] = ours | {label: median([by_scipy(f, z, label) for f, z in cases]) for label in SCIPY}
    columns = [*OURS, *SCIPY]
    lines = [
        "# Evaluations on equations whose counts are known",
        "",
        "Our solvers to `Stop(rtol=1e-8)`, scipy's until the largest component is at most 6e-6 (`hybr` to its own tolerance).",
        f"Medians over {options.seeds} random matrices, where there are any. In exact arithmetic linear equations in n unknowns",
        "take n + 2 evaluations by Anderson's method and at most 2 n + 1 by Broyden's, with enough memory (equivariant",
        "acceleration, T9).",
        "",
        f"| problem | {' | '.join(f'`{c}`' if c in OURS else f'scipy {c}' for c in columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(str(row[c]) for c in columns)} |" for name, row in rows.items()),
        "",
        f"Made by `python benchmarks/{' '.join(['classics.py', *without_output(sys.argv[1:])])}` on {machine()}.",
        "",
    ]
    keep(options.output, "classics", "\n".join(lines), rows)


if __name__ == "__main__":
    main()
