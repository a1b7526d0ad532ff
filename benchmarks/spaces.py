"""What a step on a space costs next to one in Euclidean space, without and with Langevin noise.

    python benchmarks/spaces.py [--sizes 200 2000] [--steps 20] [--repeats 3] [--threads 1]

Flows by Euler's method in dimension 3, double precision, without autograd, of an `MMD` with a Gaussian kernel to a target of as
many atoms, and of a potential whose gradient is next to free. Times are medians over repeats, each next to a flow in
Euclidean space; the checks at the start of a flow count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import geoopt
import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure, flow
from ddeq.flows import Euler, Geometry, Langevin, Mirror, Preconditioned, SimplexEntropy, Wasserstein
from ddeq.functionals import MMD, Functional, PotentialEnergy
from ddeq.kernels import Gaussian
from ddeq.spaces import Box, Euclidean, HalfSpace, Manifold, Product, Simplex, Space, Sphere, Torus

DIM = 3
STEP = 1e-3
EUCLIDEAN = "`Euclidean()`"
SIMPLEX = "`Mirror(SimplexEntropy())`"
WAYS: dict[str, tuple[Space, Geometry]] = {
    EUCLIDEAN: (Euclidean(), Wasserstein()),
    "`Sphere()`": (Sphere(), Wasserstein()),
    "`Torus()`": (Torus(), Wasserstein()),
    "`Box()`": (Box(), Wasserstein()),
    "`HalfSpace(n)`": (HalfSpace(torch.tensor([1.0, 2.0, 2.0])), Wasserstein()),
    "`Simplex()`": (Simplex(), Wasserstein()),
    "`Product((Sphere(), 2), (Box(), 1))`": (Product((Sphere(), 2), (Box(), 1)), Wasserstein()),
    "`Manifold(geoopt.Sphere())`": (Manifold(geoopt.Sphere()), Wasserstein()),
    "`Manifold(geoopt.PoincareBall())`": (Manifold(geoopt.PoincareBall()), Wasserstein()),
    "`Preconditioned(c)`, a diagonal": (Euclidean(), Preconditioned(torch.tensor([0.5, 1.0, 2.0]))),
    "`Preconditioned(C)`, of the place": (Euclidean(), Preconditioned(lambda x: 1.0 + x.square())),
    SIMPLEX: (Euclidean(), Mirror(SimplexEntropy())),
}


def start(name: str, space: Space, n: int, seed: int) -> DiscreteMeasure:
    points = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if name == SIMPLEX:
        return DiscreteMeasure(points.softmax(-1))
    return DiscreteMeasure(space.project(0.2 + 0.2 * points.clamp(-1.5, 1.5)))  # inside of the unit ball


def functional(kind: str, name: str, space: Space, n: int) -> Functional:
    target = start(name, space, n, 1)
    if isinstance(space, Torus):
        if kind == "potential":
            return PotentialEnergy(lambda x: (2.0 * torch.pi * x).cos().sum(-1))
        distance = MMD(target.push_forward(space.embed), Gaussian(0.5))
        return Functional.of(lambda mu: distance(mu.push_forward(space.embed)))
    return MMD(target, Gaussian(0.5)) if kind == "MMD" else PotentialEnergy(pull)


def pull(x: Tensor) -> Tensor:
    return x.square().sum(-1)


def of_size(kind: str, n: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a step on each space, without and with noise, and ratios to the Euclidean ones in turn."""
    problems = {name: (functional(kind, name, s, n), start(name, s, n, 0), s, g) for name, (s, g) in WAYS.items()}
    generator = torch.Generator().manual_seed(0)

    def timed(name: str, noise: Langevin | None, steps: int) -> float:
        F, mu, space, geometry = problems[name]
        begun = time.perf_counter()
        with torch.no_grad():
            flow(F, mu, Euler(STEP), steps, geometry, noise, space=space, record=steps, generator=generator)
        return 1e3 * (time.perf_counter() - begun) / steps

    rows: list[dict[str, Any]] = [{"energy": kind, "atoms": n, "space": name} for name in problems]
    for row in rows:
        for column, noise in (("plain", None), ("noisy", Langevin(0.1))):
            timed(row["space"], noise, 1)  # warms up
            pairs = [[timed(name, noise, steps) for name in (EUCLIDEAN, row["space"])] for _ in range(repeats)]
            row[column] = statistics.median(there for _, there in pairs)
            row[column + " ratio"] = statistics.median(there / here for here, there in pairs)
    return rows


def shown(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    add_output(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [r for kind in ("potential", "MMD") for n in options.sizes for r in of_size(kind, n, options.steps, options.repeats)]
    cases = [(kind, n) for kind in ("potential", "MMD") for n in options.sizes]
    command = "python benchmarks/spaces.py " + " ".join(without_output(sys.argv[1:]))
    lines = [
        "# Steps on spaces",
        "",
        "Milliseconds of a step of Euler's method, without noise / with `Langevin` noise, and in brackets the ratios to "
        f"Euclidean ones that were measured in turn; dimension {DIM}, double precision, flows of {options.steps} steps.",
        "",
        "| space or geometry | " + " | ".join(f"{kind}, {n:,} atoms" for kind, n in cases) + " |",
        "|---" * (1 + len(cases)) + "|",
    ]
    for name in WAYS:
        cells = []
        for kind, n in cases:
            r = next(r for r in rows if (r["space"], r["energy"], r["atoms"]) == (name, kind, n))
            cells.append(f"{shown(r['plain'])} / {shown(r['noisy'])} ({r['plain ratio']:.1f} / {r['noisy ratio']:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "On the torus the MMD is that of points on circles, in dimension 6, by autograd.",
        "",
        f"Made by `{command.strip()}` on {machine()}; threads: {options.threads}. Other programs ran on the machine at the same",
        "time: ratios mean more than milliseconds.",
        "",
    ]
    found = {"command": command.strip(), "where": machine(), "rows": rows}
    keep(options.output, "spaces", "\n".join(lines), found)


if __name__ == "__main__":
    main()
