"""Flows of KALE and DrMMD on three rings: ddeq against plain PyTorch scripts as the authors of the two papers write them.

    python benchmarks/regularized.py [--rounds 7] [--steps 100] [--atoms 300] [--output FOLDER]

300 atoms start close to one place and flow to 300 atoms on three rings in the plane, by 100 Euler steps. The script for KALE
starts Newton's method from the solution of the step before, the one for DrMMD factorises its matrix once. Both sum gradients of
kernels from the differences of points, as is common, or by matrix products, which is faster, but cancels far from the origin.
All sides run in turns in one process on one thread, in double precision; what is compared is the median of the ratios of times.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

import ddeq
from ddeq import DiscreteMeasure
from ddeq.flows import Euler
from ddeq.functionals import KALE, DrMMD
from ddeq.kernels import Gaussian

BANDWIDTH, REGULARIZATION, STEP = 0.3, 1e-2, 1e-3
Pull = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
TOLERANCE = 1e-6
"""Relative residual at which the script for KALE ends Newton's method."""


def three_rings(atoms: int) -> tuple[Tensor, Tensor]:
    """Where the atoms start, and the atoms of the target: rings of radius 0.3 around the corners of a triangle."""
    g = torch.Generator().manual_seed(0)
    angle = torch.linspace(0, 2 * math.pi, atoms // 3 + 1, dtype=torch.float64)[:-1]
    ring = 0.3 * torch.stack([angle.cos(), angle.sin()], -1)
    centres = torch.tensor([[-0.35, 0.0], [0.35, 0.0], [0.0, 0.6]], dtype=torch.float64)
    target = (centres.unsqueeze(1) + ring).reshape(-1, 2)
    start = torch.tensor([0.0, 0.2]) + 0.1 * torch.randn(len(target), 2, generator=g, dtype=torch.float64)
    return start, target


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(x, y).square() / (2 * BANDWIDTH**2))


def from_differences(x: Tensor, y: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """Gradients in ``x`` of ``k @ b``, for the kernel matrix ``k`` of ``x`` and ``y``."""
    return torch.einsum("ij,ijd->id", k * b, y - x.unsqueeze(1)) / BANDWIDTH**2


def by_products(x: Tensor, y: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """The same by matrix products."""
    weighted = k * b
    return (weighted @ y - weighted.sum(1, keepdim=True) * x) / BANDWIDTH**2


def plain_kale(x: Tensor, y: Tensor, steps: int, pull: Pull) -> Tensor:
    """Newton's method for the dual, from the solution of the step before; the gradient in closed form."""
    n, m, lam = len(x), len(y), REGULARIZATION
    k_yy, identity = gaussian(y, y), torch.eye(len(y), dtype=y.dtype)
    u = torch.zeros(m, dtype=y.dtype)
    for _ in range(steps):
        k_xy = gaussian(x, y)
        right = k_xy.mean(0)
        while True:
            density = u.exp() / m
            residual = right - lam * u - k_yy @ density
            if residual.norm() <= TOLERANCE * right.norm():
                break
            u = u + torch.linalg.solve(lam * identity + k_yy * density, residual)
        mean = torch.full((n,), 1.0 / n, dtype=x.dtype)
        gradient = (1 + lam) / lam * (pull(x, x, gaussian(x, x), mean) - pull(x, y, k_xy, density))
        x = x - STEP * gradient
    return x


def plain_drmmd(x: Tensor, y: Tensor, steps: int, pull: Pull) -> Tensor:
    """The factorisation of the regularised Gram matrix is computed once; the gradient in closed form."""
    n, m, lam = len(x), len(y), REGULARIZATION
    k_yy = gaussian(y, y)
    factor = torch.linalg.cholesky(m * lam * torch.eye(m, dtype=y.dtype) + k_yy)
    embedded = k_yy.mean(1)
    for _ in range(steps):
        k_xy = gaussian(x, y)
        right = k_xy.mean(0) - embedded
        u = m * torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
        mean = torch.full((n,), 1.0 / n, dtype=x.dtype)
        gradient = 2 * (1 + lam) / lam * (pull(x, x, gaussian(x, x), mean) - pull(x, y, k_xy, (1 + u) / m))
        x = x - STEP * gradient
    return x


def ours(divergence: type[KALE] | type[DrMMD], x: Tensor, y: Tensor, steps: int, record: int) -> Tensor:
    functional = divergence(DiscreteMeasure(y), Gaussian(BANDWIDTH), REGULARIZATION)
    return ddeq.flow(functional, DiscreteMeasure(x), Euler(STEP), steps, record=record).measure.points


def lap(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often both sides run, in turns")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--atoms", type=int, default=300)
    add_output(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    x, y = three_rings(options.atoms)
    rows, found = [], []
    for name, divergence, plain in (("KALE", KALE, plain_kale), ("DrMMD", DrMMD, plain_drmmd)):
        sides = {
            "ddeq, the end recorded": partial(ours, divergence, x, y, options.steps, options.steps),
            "ddeq, every step recorded": partial(ours, divergence, x, y, options.steps, 1),
            "script, from differences": partial(plain, x, y, options.steps, from_differences),
            "script, by matrix products": partial(plain, x, y, options.steps, by_products),
        }
        ends = [run() for run in sides.values()]
        laps = [[lap(run) for run in sides.values()] for _ in range(options.rounds)]
        for i, side in enumerate(sides):
            ratios = [statistics.median(each[i] / each[j] for each in laps) for j in (2, 3)]
            time_per_step = 1e3 / options.steps * statistics.median(each[i] for each in laps)
            apart = float((ends[i] - ends[2]).abs().max())
            rows.append(f"| {name} | {side} | {time_per_step:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {apart:.0e} |")
            found.append({"functional": name, "side": side, "milliseconds": time_per_step, "ratios": ratios, "apart": apart})
    text = "\n".join(
        [
            "# KALE and DrMMD against scripts that remember",
            "",
            f"{options.atoms} atoms flow to three rings by {options.steps} Euler steps; milliseconds per step, and the median of",
            f"{options.rounds} ratios of times in one run, one thread, double precision. With every step recorded ddeq also",
            "computes the energy of each step, which the scripts do not.",
            "",
            "| functional | side | time | over differences | over products | farthest that the atoms end apart |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{machine()}. `python benchmarks/regularized.py {' '.join(without_output(arguments))}`".rstrip(" `") + "`",
            "",
        ]
    )
    keep(options.output, "regularized", text, {"machine": machine(), "flows": found})


if __name__ == "__main__":
    main(sys.argv[1:])
