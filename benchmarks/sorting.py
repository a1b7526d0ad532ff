"""Sorting: `SlicedMMD`, `SlicedWasserstein` and the energy distance on the line, against loops with ``torch.sort``.

Value and Wasserstein gradient, in single precision, with as many atoms of the measure as of the target, all of equal mass, in
dimension 3 with 64 directions, or in dimension 1. The plain functions are what an author writes: for each direction project,
sort, add up, and for the gradient write back where the atoms were.

    python benchmarks/sorting.py [--sizes 10000 100000 1000000] [--threads 1 2] [--repeats 3] [--block 8] [--blocks 8]

Both sides take turns, in blocks of directions where there are many atoms, of which ``--blocks`` are measured; times are medians
over these and repeats, times the number of all blocks. The last column is the largest difference of the two results, relative to
the largest entry.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD, Functional, SlicedMMD, SlicedWasserstein
from ddeq.functionals.directions import unit_directions
from ddeq.kernels import Riesz

DIRECTIONS = 64
WHOLE = 200_000
"""Up to so many atoms all directions are one block."""


def plain_mmd(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    n, m = len(x), len(y)
    b = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)])
    total = torch.zeros(())
    for direction in directions:
        z, order = torch.sort(torch.cat([x @ direction, y @ direction]))
        total = total + (z.diff() * b[order].cumsum(0)[:-1].square()).sum()
    return total / len(directions)


def plain_mmd_gradient(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    n, m = len(x), len(y)
    b = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)])
    total = torch.zeros_like(x)
    for direction in directions:
        _, order = torch.sort(torch.cat([x @ direction, y @ direction]))
        masses = b[order]
        slopes = torch.empty_like(masses)
        slopes[order] = 2 * masses.cumsum(0) - masses
        total -= slopes[:n, None] * direction
    return total / len(directions)


def plain_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    total = torch.zeros(())
    for direction in directions:
        total = total + 0.5 * (torch.sort(x @ direction).values - torch.sort(y @ direction).values).square().mean()
    return total / len(directions)


def plain_wasserstein_gradient(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for direction in directions:
        projected, order = torch.sort(x @ direction)
        slopes = torch.empty_like(projected)
        slopes[order] = projected - torch.sort(y @ direction).values
        total += slopes[:, None] * direction
    return total / len(directions)


@dataclass(frozen=True)
class Case:
    """A functional, in a dimension, and its plain value and gradient up to a constant factor."""

    name: str
    dim: int
    make: Callable[[DiscreteMeasure, Tensor], Functional]
    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor]
    factor: float = 1.0


CASES = [
    Case("SlicedMMD", 3, lambda nu, d: SlicedMMD(nu, n_projections=len(d), directions=d), plain_mmd, plain_mmd_gradient, 2.0),
    Case(
        "SlicedWasserstein",
        3,
        lambda nu, d: SlicedWasserstein(nu, n_projections=len(d), directions=d),
        plain_wasserstein,
        plain_wasserstein_gradient,
    ),
    Case("MMD(nu, Riesz(1.0)), on the line", 1, lambda nu, d: MMD(nu, Riesz(1.0)), plain_mmd, plain_mmd_gradient),
]


def race(case: Case, atoms: int, threads: int, repeats: int, block: int, most: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(atoms, case.dim, generator=g) + shift for shift in (0.0, 0.5))
    mu, nu = DiscreteMeasure(x), DiscreteMeasure(y)
    directions = unit_directions(DIRECTIONS, case.dim).float()
    blocks = [directions] if atoms <= WHOLE else list(directions.split(block))
    functionals = [case.make(nu, d) for d in blocks[:most]]
    rows = []
    for what in ("value", "gradient"):
        plain = case.value if what == "value" else case.gradient
        laps: dict[str, list[float]] = {"plain": [], "ddeq": []}
        error = 0.0
        for repeat in range(repeats + 1):
            for F, d in zip(functionals if repeat else functionals[:1], blocks, strict=False):
                ours = F if what == "value" else F.wasserstein_gradient
                start = time.perf_counter()
                expected = plain(x, y, d)
                middle = time.perf_counter()
                found = ours(mu)
                end = time.perf_counter()
                if repeat:  # the first one warms up
                    laps["plain"].append(middle - start)
                    laps["ddeq"].append(end - middle)
                expected = case.factor * expected
                error = max(error, ((found - expected).abs().max() / expected.abs().max()).item())
        seconds = {side: statistics.median(times) * len(blocks) for side, times in laps.items()}
        rows.append(
            {
                "functional": case.name,
                "what": what,
                "atoms": atoms,
                "threads": threads,
                **seconds,
                "ratio": statistics.median(a / b for a, b in zip(laps["plain"], laps["ddeq"], strict=True)),
                "difference": error,
            }
        )
        print(rows[-1], flush=True)
    return rows


def speed_up(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], float]:
    """Our time with the fewest threads over that with the most."""
    found = {}
    for key in dict.fromkeys((r["functional"], r["what"], r["atoms"]) for r in rows):
        times = {r["threads"]: r["ddeq"] for r in rows if (r["functional"], r["what"], r["atoms"]) == key}
        found[key] = times[min(times)] / times[max(times)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--block", type=int, default=8, help="directions at a time, with many atoms")
    parser.add_argument("--blocks", type=int, default=8, help="how many of these blocks to measure")
    add_output(parser)
    options = parser.parse_args()
    rows = [
        row
        for case in CASES
        for atoms in options.sizes
        for threads in options.threads
        for row in race(case, atoms, threads, options.repeats, options.block, options.blocks)
    ]
    faster = speed_up(rows)
    command = "python benchmarks/sorting.py " + " ".join(without_output(sys.argv[1:]))
    lines = [
        "# Sorting",
        "",
        f"Seconds of value and Wasserstein gradient, single precision, {DIRECTIONS} directions in dimension 3 or on the line;",
        "next to a plain loop with `torch.sort`. Both measures have so many atoms each.",
        "",
        "| functional | | atoms | threads | plain | ddeq | times faster | difference |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['functional']} | {r['what']} | {r['atoms']:,} | {r['threads']} | {r['plain']:.3g} | {r['ddeq']:.3g} "
            f"| {r['ratio']:.1f} | {r['difference']:.0e} |"
            for r in rows
        ),
        "",
        f"With {max(options.threads)} threads over {min(options.threads)}, ddeq: "
        + "; ".join(f"{name}, {what}, {atoms:,}: {ratio:.2f}" for (name, what, atoms), ratio in faster.items())
        + ".",
        "",
        f"Made by `{command.strip()}` on {machine()}.",
        "",
    ]
    keep(options.output, "sorting", "\n".join(lines), {"command": command.strip(), "where": machine(), "rows": rows})


if __name__ == "__main__":
    main()
