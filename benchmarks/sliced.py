"""`SlicedMMD` from a thousand to a million atoms: value and gradient, memory, and the exponent with which time grows.

Half of the atoms are the measure's, half the target's; dimension 3, 32 directions, single precision. Beside it the energy
distance itself, exact and quadratic, by the fastest backend, at sizes where it takes seconds.

    python benchmarks/sliced.py [--sizes 1000 3000 10000 30000 100000 300000 1000000] [--repeats 5]

Times are medians over repeats; memory is the peak above that before, in a process of its own; the exponent is the slope of a
least-squares line through logarithms of time and size.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time

import torch
from common import add_output, added_megabytes, keep, machine, without_output

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD, SlicedMMD


def problem(atoms: int) -> tuple[SlicedMMD, DiscreteMeasure]:
    g = torch.Generator().manual_seed(0)
    mu, nu = (DiscreteMeasure(torch.randn(atoms // 2, 3, generator=g) + shift) for shift in (0.0, 0.5))
    return SlicedMMD(nu, n_projections=32), mu


def evaluate(F: SlicedMMD, mu: DiscreteMeasure) -> None:
    F(mu)
    F.wasserstein_gradient(mu)


def median_time(atoms: int, repeats: int) -> float:
    F, mu = problem(atoms)
    evaluate(F, mu)
    laps = []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluate(F, mu)
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)


def exact_time(atoms: int) -> float:
    """The energy distance itself, by the fastest backend of ours."""
    F, mu = problem(atoms)
    exact = MMD(F.target)
    start = time.perf_counter()
    exact(mu)
    exact.wasserstein_gradient(mu)
    return time.perf_counter() - start


def peak_megabytes(atoms: int) -> float:
    prepare = f"import sliced as s; s.evaluate(*s.problem(1000)); given = s.problem({atoms})"
    return added_megabytes(prepare, "s.evaluate(*given)")


def exponent(sizes: list[int], values: list[float]) -> float:
    x, y = [math.log(n) for n in sizes], [math.log(v) for v in values]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    add_output(parser)
    options = parser.parse_args()
    rows = []
    for n in options.sizes:
        row = {"atoms": n, "seconds": median_time(n, options.repeats), "megabytes": peak_megabytes(n)}
        if n <= 100_000:
            exact_time(n)  # compiles
            row["exact, seconds"] = exact_time(n)
        rows.append(row)
        print(row, flush=True)
    growth = exponent(options.sizes, [r["seconds"] for r in rows])
    command = "python benchmarks/sliced.py " + " ".join(without_output(sys.argv[1:]))
    lines = [
        "# SlicedMMD",
        "",
        "Value and gradient, dimension 3, 32 directions; beside it the exact `MMD(target, Riesz(1.0))`.",
        "",
        "| atoms of both measures | seconds | peak MB | exact, seconds |",
        "|---|---|---|---|",
        *(
            f"| {r['atoms']:,} | {r['seconds']:.3g} | {r['megabytes']:.0f} | {r.get('exact, seconds', float('nan')):.3g} |"
            for r in rows
        ),
        "",
        f"Time grows with the exponent {growth:.2f}.",
        "",
        f"Made by `{command.strip()}` on {machine()}.",
        "",
    ]
    text = "\n".join(lines).replace("nan", "")
    found = {"command": command.strip(), "where": machine(), "exponent": growth, "rows": rows}
    keep(options.output, "sliced", text, found)


if __name__ == "__main__":
    main()
