"""Published methods in ddeq against the plain scripts that one would write instead, at the sizes of papers and prototypes.

    python benchmarks/scripts.py [--repeats 5] [--threads 1 2] [--parts methods sweep] [--sizes 50 200 ...] [--dims 2 16 ...]

The scripts are those of `plain.py`: loops on tensors with what authors would cache. Both sides do the same number of steps
from the same points, in single precision without autograd, and end at the same points (the largest difference is in the
table; where inner problems are solved to a tolerance, it is theirs). Times are medians of runs in turn, ratios medians of the
ratios of pairs; ddeq records the end alone, as the scripts do, and in a column of their own are ratios of flows with the
hundred records that are the default, which hold energies and dissipation too. The seconds of the first call, which compiles
and imports, are named as well.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import plain
import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure, fixed_point, flow
from ddeq.flows import Euler, FisherRao, NoiseInjection, Proximal, Stein
from ddeq.functionals import (
    KALE,
    KSD,
    MMD,
    DrMMD,
    Entropy,
    Functional,
    KLDivergence,
    SinkhornDivergence,
    SlicedMMD,
    SlicedWasserstein,
    Wasserstein,
)
from ddeq.kernels import Gaussian, Riesz
from ddeq.solvers import Anderson, Picard, Stop

WANTED_SMALL, WANTED = 1.2, 1.0
"""Most times the script's time with 50 atoms, and with 200 or more."""
SEED = 7
MANY, WANTED_MANY = 2000, 0.2
"""Where sums over pairs dominate: so many atoms in at most 16 dimensions, and what is wanted there."""


@dataclass(frozen=True)
class Case:
    """One method at one size: the script, the same in ddeq, and how many steps they do."""

    name: str
    atoms: int
    dim: int
    steps: int
    script: Callable[[], Tensor]
    ours: Callable[[int | None], Tensor]
    """Given what `flow` calls ``record``."""


def cloud(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def mixture(x: Tensor) -> Tensor:
    """Log density of two Gaussians, to a constant."""
    return torch.logaddexp(-0.5 * (x - 1.5).square().sum(-1), -0.5 * (x + 1.5).square().sum(-1))


def score(x: Tensor) -> Tensor:
    return 1.5 * torch.tanh(1.5 * x.sum(-1, keepdim=True)) - x


def descent(functional: Functional, x: Tensor, tau: float, steps: int, **options: Any) -> Callable[[int | None], Tensor]:
    options = {"stepper": Euler(tau)} | options

    def run(record: int | None) -> Tensor:
        generator = torch.Generator().manual_seed(SEED) if "noise" in options else None
        found = flow(functional, DiscreteMeasure(x), steps=steps, record=record, generator=generator, **options)
        points: Tensor = found.measure.points
        return points

    return run


def methods() -> Iterator[Case]:
    """The published methods, each at the sizes of its paper and of a prototype."""
    for n in (50, 200, 1000):
        x, y = cloud(n, 2, 0), cloud(n, 2, 1, 2.0)
        nu, gaussian, steps = DiscreteMeasure(y), Gaussian(1.0), 100 if n < 1000 else 20
        yield Case(
            "MMD flow, Gaussian", n, 2, steps,
            lambda x=x, y=y, steps=steps: plain.mmd_flow(x, y, 1.0, 0.1, steps),
            descent(MMD(nu, gaussian), x, 0.1, steps),
        )  # fmt: skip
        yield Case(
            "MMD flow, Riesz", n, 2, steps,
            lambda x=x, y=y, steps=steps: plain.energy_distance_flow(x, y, 0.1, steps),
            descent(MMD(nu, Riesz(1.0)), x, 0.1, steps),
        )  # fmt: skip
        yield Case(
            "MMD flow with noise injection", n, 2, steps,
            lambda x=x, y=y, steps=steps: plain.noisy_mmd_flow(
                x, y, 1.0, 0.1, steps, torch.Generator().manual_seed(SEED)
            ),
            descent(MMD(nu, gaussian), x, 0.1, steps, noise=NoiseInjection(1.0)),
        )  # fmt: skip
        yield Case(
            "SVGD, score given", n, 2, steps,
            lambda x=x, steps=steps: plain.svgd(x, score, 0.1, steps),
            descent(Entropy(1.0) + Posterior(), x, 0.1, steps, geometry=Stein()),
        )  # fmt: skip
        yield Case(
            "SVGD, score by autograd", n, 2, steps,
            lambda x=x, steps=steps: plain.svgd(x, mixture, 0.1, steps, autograd=True),
            descent(KLDivergence(mixture, 1.0), x, 0.1, steps, geometry=Stein()),
        )  # fmt: skip
        yield Case(
            "Wasserstein-Fisher-Rao of an MMD", n, 2, steps,
            lambda x=x, y=y, steps=steps, n=n: plain.fisher_rao_flow(x, torch.full((n,), 1.0 / n), y, 1.0, 0.1, steps)[0],
            descent(MMD(nu, gaussian), x, 0.1, steps, reaction=FisherRao()),
        )  # fmt: skip
    for n in (50, 200):
        x, y = cloud(n, 2, 0), cloud(n, 2, 1, 1.0)
        nu, gaussian = DiscreteMeasure(y), Gaussian(1.0)
        yield Case(
            "KALE flow", n, 2, 50,
            lambda x=x, y=y: plain.kale_flow(x.double(), y.double(), 1.0, 0.1, 0.01, 50),
            descent(KALE(nu.to(torch.float64), gaussian, 0.1), x.double(), 0.01, 50),
        )  # fmt: skip
        yield Case(
            "DrMMD flow", n, 2, 50,
            lambda x=x, y=y: plain.drmmd_flow(x.double(), y.double(), 1.0, 0.1, 0.005, 50),
            descent(DrMMD(nu.to(torch.float64), gaussian, 0.1), x.double(), 0.005, 50),
        )  # fmt: skip
        yield Case(
            "KSD descent", n, 2, 50,
            lambda x=x: plain.ksd_descent(x, score, 1.0, 0.05, 50),
            descent(KSD(score, gaussian), x, 0.05, 50),
        )  # fmt: skip
        yield Case(
            "Sinkhorn flow", n, 2, 20,
            lambda x=x, y=y: plain.sinkhorn_flow(x, y, 0.25, 0.2, 20, 1e-6),
            descent(SinkhornDivergence(nu, blur=0.5, stop=Stop(rtol=1e-6, max_steps=1000)), x, 0.2, 20),
        )  # fmt: skip
        yield Case(
            "JKO steps of an MMD", n, 2, 10,
            lambda x=x, y=y: plain.jko_flow(x, y, 1.0, 0.5, 10),
            descent(MMD(nu, gaussian), x, 0.5, 10, stepper=Proximal(0.5)),
        )  # fmt: skip
    for n in (200, 2000):
        x, y = cloud(n, 3, 0), cloud(n, 3, 1, 1.0)
        directions = torch.nn.functional.normalize(cloud(50, 3, 2), dim=-1)
        nu = DiscreteMeasure(y)
        yield Case(
            "sliced Wasserstein flow", n, 3, 50,
            lambda x=x, y=y, u=directions: plain.sliced_wasserstein_flow(x, y, u, 0.2, 50),
            descent(SlicedWasserstein(nu, directions=directions), x, 0.2, 50),
        )  # fmt: skip
        yield Case(
            "sliced MMD flow", n, 3, 50,
            lambda x=x, y=y, u=directions: plain.sliced_mmd_flow(x, y, u, 0.2, 50),
            descent(SlicedMMD(nu, directions=directions), x, 0.1, 50),
        )  # fmt: skip
    for n in (100, 800):
        data, neurons = cloud(500, 20, 3), 0.5 * cloud(n, 22, 4)
        labels = data[:, 0] * torch.tanh(data[:, 1])
        yield Case(
            "mean-field network of two layers", n, 22, 100,
            lambda x=neurons, data=data, labels=labels: plain.mean_field_network(x, data, labels, 0.2, 100),
            descent(Network(data, labels), neurons, 0.2, 100),
        )  # fmt: skip
    x, clouds = cloud(100, 2, 0), [cloud(200, 2, seed, 2.0 * seed) for seed in (1, 2, 3)]
    yield Case(
        "barycentre of Wasserstein", 100, 2, 10,
        lambda: plain.w2_barycentre(x, clouds, 10),
        # Half the squared distance is least after a step of size one.
        descent(sum((Wasserstein(DiscreteMeasure(c)) for c in clouds), start=0) / len(clouds), x, 1.0, 10),
    )  # fmt: skip
    for n, k in ((2000, 50), (10000, 200)):
        data = cloud(n, 2, 1)
        centres = data[:k].clone()
        yield Case(
            "k-means", k, 2, 20,
            lambda x=centres, data=data: plain.k_means(x, data, 20),
            lambda record, x=centres, data=data: fixed_point(
                Lloyd(data), DiscreteMeasure(x), solver=Picard(), stop=Stop(rtol=1e-30, max_steps=20)
            ).measure.points,
        )  # fmt: skip
    for n in (50, 200):
        inputs, weight, x = cloud(2 * n, 16, 5), cloud(16, 16, 6) / 8.0, torch.zeros(n, 16)
        yield Case(
            "deep equilibrium model on sets", n, 16, 30,
            lambda x=x, u=inputs, w=weight: plain.deep_equilibrium(x, u, w, 5, 1e-5, 50),
            lambda record, x=x, u=inputs, w=weight: fixed_point(
                lambda mu: mu.push_forward(
                    lambda z: torch.tanh(0.5 * z @ w + torch.softmax(z @ u.T / 4.0, -1) @ u)
                ),
                DiscreteMeasure(x), solver=Anderson(5), stop=Stop(rtol=1e-5, max_steps=50),
            ).measure.points,
        )  # fmt: skip


class Posterior(Functional):
    """The mean of minus the logarithm of a density whose score is known."""

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return -(mu.weights * mixture(mu.points)).sum(-1)

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        return -score(mu.points if x is None else x)


class Network(Functional):
    """Half the mean squared error of a two-layer network with the atoms as neurons."""

    def __init__(self, data: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.data, self.labels = data, labels

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        a, b, c = mu.points.split([self.data.shape[1], 1, 1], -1)
        hidden = torch.tanh(self.data @ a.mT + b.mT)
        error = hidden @ (c * mu.weights.unsqueeze(-1)) - self.labels.unsqueeze(-1)
        return 0.5 * error.square().mean((-2, -1))


class Lloyd:
    """Lloyd's step as a map of measures: centres with the shares of the data that are nearest to them."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __call__(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        return mu.with_points(plain.k_means(mu.points, self.data, 1))


def sweep(sizes: list[int], dims: list[int]) -> Iterator[Case]:
    """Flows by MMD, KSD and SVGD over numbers of atoms and dimensions."""
    for d in dims:
        for n in sizes:
            h = math.sqrt(d)
            x, y = cloud(n, d, 0), cloud(n, d, 1, 0.5)
            steps = max(3, min(100, 20_000_000 // (n * n * max(d, 4))))
            yield Case(
                "MMD flow, Gaussian", n, d, steps,
                lambda x=x, y=y, h=h, steps=steps: plain.mmd_flow(x, y, h, 0.1, steps),
                descent(MMD(DiscreteMeasure(y), Gaussian(h)), x, 0.1, steps),
            )  # fmt: skip
            yield Case(
                "KSD descent", n, d, steps,
                lambda x=x, h=h, steps=steps: plain.ksd_descent(x, torch.neg, h, 0.05, steps),
                descent(KSD(torch.neg, Gaussian(h)), x, 0.05, steps),
            )  # fmt: skip
            yield Case(
                "SVGD, score given", n, d, steps,
                lambda x=x, steps=steps: plain.svgd(x, torch.neg, 0.1, steps),
                descent(Entropy(h) + Normal(), x, 0.1, steps, geometry=Stein()),
            )  # fmt: skip


class Normal(Functional):
    """The potential part of the relative entropy of a standard normal density."""

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return 0.5 * (mu.weights * mu.points.square().sum(-1)).sum(-1)

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        return mu.points if x is None else x


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found


@torch.no_grad()
def measured(case: Case, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step on both sides, their ratio, the first call and how far apart the results are."""
    first, ours = timed(partial(case.ours, case.steps))
    _, script = timed(case.script)
    calls = (case.script, partial(case.ours, case.steps), partial(case.ours, None))
    laps = [[timed(call)[0] for call in calls] for _ in range(repeats)]
    wanted = WANTED_SMALL if case.atoms < 200 else WANTED
    if case.atoms >= MANY and case.dim <= 16 and "sliced" not in case.name:
        wanted = WANTED_MANY
    return {
        "method": case.name,
        "atoms": case.atoms,
        "dim": case.dim,
        "threads": torch.get_num_threads(),
        "script": 1e3 * statistics.median(a for a, _, _ in laps) / case.steps,
        "ours": 1e3 * statistics.median(b for _, b, _ in laps) / case.steps,
        "ratio": statistics.median(b / a for a, b, _ in laps),
        "recorded": statistics.median(c / a for a, _, c in laps),
        "wanted": wanted,
        "first": first,
        "apart": float((ours - script).abs().max() / script.abs().max()),
    }


def table(rows: list[dict[str, Any]], threads: list[int]) -> list[str]:
    ratios = " | ".join(f"ratio, {t} thread{'s' * (t > 1)}" for t in threads)
    lines = [
        f"| method | atoms | dimension | script, ms a step | ddeq, ms a step | {ratios} "
        "| wanted | with records | first call, s | results apart |",
        "|---" * (9 + len(threads)) + "|",
    ]
    for row in rows:
        if row["threads"] != threads[0]:
            continue
        key = ("method", "atoms", "dim")
        same = [next(r for r in rows if r["threads"] == t and all(r[k] == row[k] for k in key)) for t in threads]
        cells = " | ".join(f"**{r['ratio']:.2f}**" if r["ratio"] > r["wanted"] else f"{r['ratio']:.2f}" for r in same)
        lines.append(
            f"| {row['method']} | {row['atoms']:,} | {row['dim']} | {row['script']:.3g} | {row['ours']:.3g} | {cells} "
            f"| {row['wanted']} | {row['recorded']:.2f} | {row['first']:.1f} | {row['apart']:.0e} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parts", nargs="+", choices=("methods", "sweep"), default=["methods", "sweep"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 500, 1000, 2000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 16, 64, 256])
    parser.add_argument("--only", nargs="+", help="methods whose names contain one of these words")
    add_output(parser)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for part in options.parts:
        found[part] = []
        for threads in options.threads:
            torch.set_num_threads(threads)
            for case in methods() if part == "methods" else sweep(options.sizes, options.dims):
                if options.only is None or any(word in case.name for word in options.only):
                    found[part].append(measured(case, options.repeats))
                    print({k: v if isinstance(v, str | int) else f"{v:.3g}" for k, v in found[part][-1].items()}, flush=True)
    command = "python benchmarks/scripts.py " + " ".join(without_output(sys.argv[1:]))
    lines = [
        "# Plain scripts and ddeq",
        "",
        "Time of a step in ddeq over that in a plain PyTorch script of the same method (`benchmarks/plain.py`), single "
        "precision. Ratios above what is wanted are bold. ddeq keeps the end alone, as the script does; with records: with the "
        "hundred records of measures, energies and dissipation that are the default.",
    ]
    for part, rows in found.items():
        lines += ["", "## " + {"methods": "Published methods", "sweep": "Over atoms and dimensions"}[part], ""]
        lines += table(rows, options.threads)
    lines += ["", f"Made by `{command.strip()}`.", ""]
    keep(options.output, "scripts", "\n".join(lines), {"command": command, "machine": machine(), **found})


if __name__ == "__main__":
    main()
