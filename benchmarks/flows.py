"""Flows between two shapes, side by side with plain PyTorch and geomloss: cost per step, what steppers need.

Four parts: an energy distance flow (``MMD`` with the Riesz kernel) of a few thousand points; a flow of ``SlicedMMD`` of many;
what `ddeq.flow` adds to the gradients that it takes, and what records cost; evaluations and seconds to a given energy, for
each stepper on a smooth and on a stiff problem. Peers as a user would write them: the energy by ``torch.cdist``, by
differences, or sorted along lines, and autograd; geomloss's loss and autograd; KeOps used directly.

    python benchmarks/flows.py [--data PATH] [--points 2000] [--many 100000] [--steps 100] [--repeats 5] [--seconds 40]
                               [--parts few many overhead steppers] [--pictures FOLDER]

``--data``: an .npz file with ``points`` (shapes, points, 3), ``labels`` and ``class_names``, such as ModelNet40 sampled at 1,024
points; the first shape of each of two ``--classes`` is taken, and filled up by points drawn in triangles between a point and
two of its six nearest neighbours. Without it, points on a torus flow to a knotted tube.

Times are medians over repeats in turn after one run that warms up and compiles; single precision. A way is repeated only until
it has taken ``--seconds`` in all, and one that is expected to take longer for a single gradient is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("PYKEOPS_VERBOSE", "0")

import numpy as np
import torch
from common import add_output, added_megabytes, keep, machine, without_output
from torch import Tensor

import ddeq
from ddeq import DiscreteMeasure
from ddeq.flows import AdaptiveEuler, Euler, Heun, Nesterov, Proximal, Stepper
from ddeq.functionals import MMD, Functional, PotentialEnergy, SlicedMMD
from ddeq.iteration import Report, Stop
from ddeq.kernels import Gaussian, Riesz
from ddeq.reductions import backend, choose

CLASSES = ("airplane", "chair")
STEP = 0.1
"""Step size of the flows of energy distances."""
PROJECTIONS = 64
GOAL = 1e-4
"""Share of the energy at the start, above the least one known, that steppers are to reach."""
MOST_GRADIENTS = 5000


# Shapes


def shapes(data: str | None, classes: list[str], points: int) -> tuple[Tensor, Tensor]:
    """Two shapes of so many points ``(points, 3)`` within the unit ball."""
    g = torch.Generator().manual_seed(0)
    if data is None:
        return torus(points, g), knot(points, g)
    file = np.load(data)
    names, labels = [str(name) for name in file["class_names"]], file["labels"]
    found = [torch.from_numpy(file["points"][int((labels == names.index(c)).argmax())]).float() for c in classes]
    a, b = (filled(shape - shape.mean(0), points, g) for shape in found)
    return a / a.norm(dim=-1).max(), b / b.norm(dim=-1).max()


def filled(shape: Tensor, points: int, g: torch.Generator) -> Tensor:
    """A surface with more points, each in a triangle between one that is there and two of its nearest neighbours."""
    if points <= len(shape):
        return shape[torch.randperm(len(shape), generator=g)[:points]]
    near = torch.cdist(shape, shape).topk(7, largest=False).indices[:, 1:]
    new = points - len(shape)
    corner = torch.arange(new) % len(shape)
    pair = torch.rand(new, 6, generator=g).topk(2).indices
    corners = torch.stack([shape[corner], *(shape[near[corner, pair[:, i]]] for i in range(2))], -2)
    shares = -torch.rand(new, 3, generator=g).clamp_min(1e-7).log()
    return torch.cat([shape, (shares[..., None] * corners).sum(-2) / shares.sum(-1, keepdim=True)])


def torus(points: int, g: torch.Generator) -> Tensor:
    u, v = 2 * math.pi * torch.rand(2, points, generator=g)
    return torch.stack([(0.7 + 0.25 * v.cos()) * u.cos(), (0.7 + 0.25 * v.cos()) * u.sin(), 0.25 * v.sin()], -1)


def knot(points: int, g: torch.Generator) -> Tensor:
    """A trefoil with some thickness."""
    t = 2 * math.pi * torch.rand(points, generator=g)
    curve = torch.stack([t.sin() + 2 * (2 * t).sin(), t.cos() - 2 * (2 * t).cos(), -(3 * t).sin()], -1) / 3.5
    around = torch.nn.functional.normalize(torch.randn(points, 3, generator=g), dim=-1)
    return curve + 0.06 * around


# Time


def laps(ways: dict[str, Callable[[], object]], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Times of each way, in turn; all have run before."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            if sum(times[name]) <= seconds:
                times[name].append(timed(way))
    return times


def timed(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


# Energy distances of a few thousand points


def ours(x: Tensor, y: Tensor, steps: int, name: str = "auto") -> Tensor:
    functional = MMD(DiscreteMeasure(y), Riesz(1.0))
    with backend(name):
        return ddeq.flow(functional, DiscreteMeasure(x), stepper=Euler(STEP), steps=steps, record=steps).measure.points


def descended(energy: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """The loop that a user writes: points that require grad, an energy, autograd, a step."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(x), x)
        x = x.detach() - STEP * len(x) * gradient
    return x


def by_cdist(y: Tensor, mode: str = "use_mm_for_euclid_dist_if_necessary") -> Callable[[Tensor], Tensor]:
    """What depends on ``x`` in half the energy distance; the distances within the target are left out."""
    return lambda x: torch.cdist(x, y, compute_mode=mode).mean() - 0.5 * torch.cdist(x, x, compute_mode=mode).mean()


def by_differences(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x[:, None] - y).norm(dim=-1).mean() - 0.5 * (x[:, None] - x).norm(dim=-1).mean()


def by_geomloss(y: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    import geomloss

    loss = geomloss.SamplesLoss("energy", backend=kind)
    return lambda x: loss(x, y)


def by_keops(x: Tensor, y: Tensor, steps: int) -> Tensor:
    """KeOps used directly, with the gradient worked out by hand."""
    from reductions import keops_directly

    gradient = keops_directly("energy")
    of_x, of_y = (torch.full((len(z),), 1.0 / len(z)) for z in (x, y))
    for _ in range(steps):
        x = x - STEP * (gradient(x, x, of_x) - gradient(x, y, of_y))
    return x


def few_ways(x: Tensor, y: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    compiled = torch.compile(by_differences(y))
    return {
        "ddeq.flow, auto": lambda: ours(x, y, steps),
        "ddeq.flow, compiled": lambda: ours(x, y, steps, "compiled"),
        "ddeq.flow, keops": lambda: ours(x, y, steps, "keops"),
        "ddeq.flow, dense": lambda: ours(x, y, steps, "dense"),
        "PyTorch, torch.cdist": lambda: descended(by_cdist(y), x, steps),
        "PyTorch, differences": lambda: descended(by_differences(y), x, steps),
        "PyTorch, differences, torch.compile": lambda: descended(compiled, x, steps),
        "KeOps, gradient by hand": lambda: by_keops(x, y, steps),
        "geomloss, tensorized": lambda: descended(by_geomloss(y, "tensorized"), x, steps),
        "geomloss, online": lambda: descended(by_geomloss(y, "online"), x, steps),
    }


def few(x: Tensor, y: Tensor, steps: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    truth = descended(by_cdist(y.double(), "donot_use_mm_for_euclid_dist"), x.double(), steps)
    energy = MMD(DiscreteMeasure(y.double()))
    ways, ends = few_ways(x, y, steps), {}
    for name, way in list(ways.items()):
        try:
            ends[name] = way()
        except Exception as error:  # noqa: BLE001  # a peer that does not run here is a row that says so
            print(f"{name}: {type(error).__name__}: {error}".splitlines()[0], flush=True)
            del ways[name]
    times = laps(ways, repeats, seconds)
    rows = []
    for name, t in times.items():
        end = ends[name].double()
        rows.append(
            {
                "way": name,
                "seconds per step": statistics.median(t) / steps,
                "from": min(t) / steps,
                "to": max(t) / steps,
                "times slower": statistics.median(t) / statistics.median(times["ddeq.flow, auto"]),
                "difference": float((end - truth).norm() / truth.norm()),
                "energy": float(energy(DiscreteMeasure(end))),
            }
        )
        print(rows[-1], flush=True)
    start = float(energy(DiscreteMeasure(x.double())))
    rows.append({"way": "double precision", "energy": float(energy(DiscreteMeasure(truth))), "energy at the start": start})
    return rows


# Sliced energy distances of many points


def sliced(y: Tensor) -> SlicedMMD:
    return SlicedMMD(DiscreteMeasure(y), n_projections=PROJECTIONS)


def ours_sliced(x: Tensor, y: Tensor, steps: int) -> Tensor:
    return ddeq.flow(sliced(y), DiscreteMeasure(x), stepper=Euler(STEP), steps=steps, record=steps).measure.points


def by_sorting(y: Tensor, at_once: int) -> Callable[[Tensor], Tensor]:
    """The same energy in plain PyTorch: along each line the integral of the squared difference of distribution functions."""
    directions = sliced(y).directions
    constant = 2.0  # of mean projected distances in space, for |x - y| itself

    def energy(x: Tensor) -> Tensor:
        masses = torch.cat([x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), -1 / len(y))])
        total = x.new_zeros(())
        for some in directions.split(at_once):
            places, order = torch.cat([x @ some.T, y @ some.T]).sort(dim=0)
            difference = masses[order].cumsum(0)[:-1]
            total = total + (difference.square() * places.diff(dim=0)).sum()
        return constant * total / len(directions)

    return energy


def many_ways(x: Tensor, y: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    return {
        "ddeq.flow of SlicedMMD": lambda: ours_sliced(x, y, steps),
        "PyTorch, torch.sort": lambda: descended(by_sorting(y, PROJECTIONS), x, steps),
    }


def exact_gradients(x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The gradient of the energy distance itself, once."""

    def of_ours(name: str) -> Tensor:
        with backend(name):
            return MMD(DiscreteMeasure(y)).wasserstein_gradient(DiscreteMeasure(x))

    def of_geomloss() -> Tensor:
        points = x.detach().requires_grad_()
        return torch.autograd.grad(by_geomloss(y, "online")(points), points)[0] * len(x)

    return {
        "MMD, compiled": lambda: of_ours("compiled"),
        "MMD, keops": lambda: of_ours("keops"),
        "geomloss, online": of_geomloss,
    }


def added(way: str, points: int) -> float:
    """Megabytes that a step of a flow, or a gradient, adds; on generated shapes, for which no file is read."""
    prepare = (
        f"import flows as f; x, y = f.shapes(None, [], {points})\n"
        f"f.sliced_and_exact(x[:2000], y[:2000])[{way!r}](); run = f.sliced_and_exact(x, y)[{way!r}]\n"
        "open('/proc/self/clear_refs', 'w').write('5')"  # forgets the peak of compilation
    )
    return added_megabytes(prepare, "run()")


def sliced_and_exact(x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    return many_ways(x, y, 1) | exact_gradients(x, y)


def many(x: Tensor, y: Tensor, steps: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    ways, rows = many_ways(x, y, steps), []
    ends = {name: way() for name, way in ways.items()}
    times = laps(ways, repeats, seconds)
    start = float(sliced(y)(DiscreteMeasure(x)))
    reference = ends["ddeq.flow of SlicedMMD"].double()
    for name, t in times.items():
        rows.append(
            {
                "way": name,
                "seconds per step": statistics.median(t) / steps,
                "from": min(t) / steps,
                "to": max(t) / steps,
                "difference from ours": float((ends[name].double() - reference).norm() / reference.norm()),
                "energy": float(sliced(y)(DiscreteMeasure(ends[name]))) / start,
                "megabytes": added(name, len(x)),
            }
        )
        print(rows[-1], flush=True)
    share = max(1, len(x) // 10)
    warm_up, whole = exact_gradients(x[:share], y[:share]), exact_gradients(x, y)
    for name, gradient in whole.items():
        try:
            warm_up[name]()
            expected = (len(x) / share) ** 2 * timed(warm_up[name])
        except Exception as error:  # noqa: BLE001  # a peer that does not run here is left out
            print(f"{name}: {type(error).__name__}: {error}".splitlines()[0], flush=True)
            continue
        row: dict[str, Any] = {"way": name, "expected seconds": expected}
        if expected <= seconds:
            first = timed(gradient)  # may compile once more
            row |= {
                "seconds per step": min(first, timed(gradient)) if first < seconds / 4 else first,
                "megabytes": added(name, len(x)),
            }
        rows.append(row)
        print(row, flush=True)
    first = rows[0]["seconds per step"]
    for row in rows:
        row["times slower"] = row.get("seconds per step", row.get("expected seconds")) / first
    return rows


# What the driver adds


def overhead(x: Tensor, y: Tensor, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Flows against the gradients that they take."""
    rows = []
    problems: list[tuple[str, Functional, int]] = []
    for n in sizes:
        target = DiscreteMeasure(y[:n])
        problems += [("MMD, Riesz", MMD(target), n), ("MMD, Gaussian", MMD(target, Gaussian(0.5)), n)]
        problems += [("SlicedMMD", SlicedMMD(target, n_projections=PROJECTIONS), n)]
    for name, F, n in problems:
        mu = DiscreteMeasure(x[:n])
        one = statistics.median(timed(lambda F=F, mu=mu: F.wasserstein_gradient(mu)) for _ in range(10))
        steps = min(400, max(20, int(1.0 / one)))
        options = {"stepper": Euler(STEP), "steps": steps}

        def gradients(F: Functional = F, mu: DiscreteMeasure = mu, steps: int = steps) -> None:
            for _ in range(steps):
                F.wasserstein_gradient(mu)

        def energies(F: Functional = F, mu: DiscreteMeasure = mu, steps: int = steps) -> None:
            for _ in range(steps):
                F(mu)

        ways = {
            "gradient": gradients,
            "flow": lambda F=F, mu=mu, o=options, k=steps: ddeq.flow(F, mu, **o, record=k),
            "energy": energies,
            "flow, every step recorded": lambda F=F, mu=mu, o=options: ddeq.flow(F, mu, **o, record=1),
        }
        for way in ways.values():
            way()
        seconds = {k: [t / steps for t in v] for k, v in laps(ways, repeats, math.inf).items()}
        ratios = [flow / gradient for flow, gradient in zip(seconds["flow"], seconds["gradient"], strict=True)]
        row: dict[str, Any] = {"functional": name, "atoms": n, "steps": steps}
        row |= {k: statistics.median(v) for k, v in seconds.items()}
        row |= {"ratio": statistics.median(ratios), "ratio from": min(ratios), "ratio to": max(ratios)}
        rows.append(row)
        print(row, flush=True)
    return rows


# What steppers need


class _Ended(Exception):
    """Ends a flow from within."""


class Counted(Functional):
    """A functional that counts how often it is asked, and ends the flow at ``most`` gradients."""

    def __init__(self, functional: Functional, most: float = math.inf) -> None:
        super().__init__()
        self.functional, self.smoothness, self.most = functional, functional.smoothness, most
        self.energies = self.gradients = 0

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        self.energies += 1
        return self.functional(mu)

    def first_variation(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        return self.functional.first_variation(mu, x)

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        self.gradients += 1
        if self.gradients > self.most:
            raise _Ended
        return self.functional.wasserstein_gradient(mu, x)


def smooth(target: DiscreteMeasure) -> Functional:
    return MMD(target, Gaussian(0.5))


def stiff(target: DiscreteMeasure) -> Functional:
    """The same in a well that is a thousand times steeper in one direction than in another."""
    well = torch.tensor([0.1, 1.0, 100.0], dtype=target.dtype)
    return MMD(target, Gaussian(0.5)) + PotentialEnergy(lambda x: 0.5 * (well * x.square()).sum(-1))


PROBLEMS: dict[str, tuple[Callable[[DiscreteMeasure], Functional], tuple[float, ...], tuple[float, ...]]] = {
    # step sizes that are tried: of explicit steps, and of implicit ones
    "smooth": (smooth, (1.0, 0.5, 2.0), (10.0, 100.0)),
    "stiff": (stiff, (0.01, 0.019), (1.0, 10.0)),
}


def steppers_for(problem: str) -> dict[str, list[Stepper]]:
    _, explicit, implicit = PROBLEMS[problem]
    return {
        "Euler": [Euler(tau) for tau in explicit],
        "Heun": [Heun(tau) for tau in explicit],
        "Nesterov": [Nesterov(tau) for tau in explicit],
        "AdaptiveEuler": [AdaptiveEuler()],
        "AdaptiveEuler, Armijo": [AdaptiveEuler(rule="armijo")],
        "Proximal": [Proximal(tau) for tau in implicit],
        "Proximal, inner to 1e-2": [Proximal(tau, inner=Stop(rtol=1e-2, max_steps=500)) for tau in implicit],
    }


def attempt(goal: float, F: Functional, mu: DiscreteMeasure, stepper: Stepper, most: float) -> dict[str, Any]:
    """How far a stepper comes with so many gradients, and what it asks for on the way to an energy of ``goal``."""
    counted = Counted(F, most)
    seen = {"reached": False, "steps": 0, "energy": math.inf, "gradients": most, "energies": 0}

    def look(report: Report) -> None:
        energy = float(F(mu.with_points(report.value)))
        seen.update(steps=report.step, energy=min(energy, seen["energy"]))
        if energy <= goal:  # the gradient here is not part of the way, nor is the energy of the start, which is recorded
            seen.update(reached=True, gradients=counted.gradients - 1, energies=counted.energies - 1)
            raise _Ended

    with contextlib.suppress(_Ended):
        ddeq.flow(counted, mu, stepper=stepper, steps=most, record=most, callback=look)
    return seen


def race(x: Tensor, y: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Evaluations and seconds that each stepper needs to come close to the least energy that is known, in double precision."""
    mu, nu = DiscreteMeasure(x.double()), DiscreteMeasure(y.double())
    rows: list[dict[str, Any]] = []
    for problem, (make, *_) in PROBLEMS.items():
        F = make(nu)
        start = float(F(mu))
        least = float(F(ddeq.flow(F, mu, stepper=AdaptiveEuler(), steps=1000, record=1000).measure))
        goal = least + GOAL * (start - least)
        for name, candidates in steppers_for(problem).items():
            tried: list[dict[str, Any]] = []
            for stepper in candidates:
                most = min((t["gradients"] for t in tried if t["reached"]), default=MOST_GRADIENTS)
                tried.append(attempt(goal, F, mu, stepper, most) | {"options": stepper})
            best = min(tried, key=lambda t: (not t["reached"], t["gradients"] + t["energies"], t["energy"]))
            stepper, steps = best.pop("options"), best["steps"]
            row = {"problem": problem, "stepper": name, "step size": stepper.step_size, **best}
            row["energy"] = (best["energy"] - least) / (start - least)
            if best["reached"]:
                way = {name: lambda F=F, s=stepper, k=steps: ddeq.flow(F, mu, stepper=s, steps=k, record=max(1, k))}
                row["seconds"] = statistics.median(laps(way, repeats, 10.0)[name])
            rows.append(row)
            print(row, flush=True)
    return rows


# Tables


def tables(found: dict[str, Any]) -> list[str]:
    lines = ["# Flows between two shapes", "", found["data"]]
    if "few" in found:
        *rows, truth = found["few"]
        lines += [
            "",
            f"## Energy distance, {found['points']:,} points to {found['points']:,}, {found['steps']} Euler steps of {STEP}",
            "",
            "| | seconds per step (smallest to largest) | times as long as ours | difference of the end | energy at the end |",
            "|---|---|---|---|---|",
            *(
                f"| {r['way']} | {r['seconds per step']:.2g} ({r['from']:.2g} to {r['to']:.2g}) | {r['times slower']:.2g} "
                f"| {r['difference']:.0e} | {r['energy']:.6g} |"
                for r in rows
            ),
            "",
            f"`auto` chose {found['chose']}. Differences are relative ones of all coordinates, from the loop by differences in "
            f"double precision, which takes the energy from {truth['energy at the start']:.6g} to {truth['energy']:.6g}. "
            "Loops in PyTorch leave out the energy of the target alone; the flow takes it twice, at both ends.",
        ]
    if "many" in found:
        lines += [
            "",
            f"## {found['atoms']:,} points to {found['atoms']:,}",
            "",
            f"`SlicedMMD` along {PROJECTIONS} directions, {found['steps, many']} Euler steps of {STEP}; below, one gradient "
            "of the energy distance itself.",
            "",
            "| | seconds per step | times as long as ours | peak MB added | difference of the end | energy left |",
            "|---|---|---|---|---|---|",
        ]
        for r in found["many"]:
            seconds = r.get("seconds per step")
            shown = f"about {r['expected seconds']:.2g}, not run" if seconds is None else f"{seconds:.3g}"
            if "from" in r:
                shown += f" ({r['from']:.3g} to {r['to']:.3g})"
            memory = f"{r['megabytes']:.0f}" if "megabytes" in r else ""
            difference = f"{r['difference from ours']:.0e}" if "energy" in r else ""
            energy = f"{r['energy']:.2g}" if "energy" in r else ""
            lines.append(f"| {r['way']} | {shown} | {r['times slower']:.2g} | {memory} | {difference} | {energy} |")
    if "overhead" in found:
        lines += [
            "",
            "## What `ddeq.flow` adds",
            "",
            "Milliseconds per step: of the gradient alone, of a flow that records its two ends, of the energy, and of a flow "
            "that records every step.",
            "",
            "| | atoms | gradient | flow | flow / gradient (smallest to largest) | energy | all recorded |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {r['functional']} | {r['atoms']:,} | {1e3 * r['gradient']:.3g} | {1e3 * r['flow']:.3g} "
                f"| {r['ratio']:.2f} ({r['ratio from']:.2f} to {r['ratio to']:.2f}) | {1e3 * r['energy']:.3g} "
                f"| {1e3 * r['flow, every step recorded']:.3g} |"
                for r in found["overhead"]
            ),
        ]
    if "steppers" in found:
        lines += [
            "",
            f"## What steppers need, {found['racing']:,} points, double precision",
            "",
            f"Until the energy above the least one known is {GOAL:g} of that at the start, at most {MOST_GRADIENTS:,} "
            "gradients. Smooth: `MMD` with a Gaussian kernel of bandwidth 0.5. Stiff: that in a quadratic well with "
            "curvatures 0.1, 1 and 100. Step sizes are the best of a few.",
            "",
            "| problem | stepper | step size | steps | gradients | energies | seconds | energy left |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in found["steppers"]:
            size = "" if "Adaptive" in r["stepper"] else f"{r['step size']:g}"
            counts = "not reached | | |"
            if r["reached"]:
                counts = f"{r['steps']} | {r['gradients']} | {r['energies']} | {r['seconds']:.2g}"
            lines.append(f"| {r['problem']} | {r['stepper']} | {size} | {counts} | {r['energy']:.2g} |")
    return [*lines, "", f"Made by `{found['command']}` on {found['where']}.", ""]


def draw(folder: Path, data: str | None, classes: list[str], points: int, atoms: int) -> None:
    """Snapshots of both flows."""
    from ddeq.viz import plot_trajectory

    folder.mkdir(parents=True, exist_ok=True)
    for name, n, make in (("few", points, lambda y: MMD(DiscreteMeasure(y))), ("many", atoms, sliced)):
        x, y = shapes(data, classes, n)
        trajectory = ddeq.flow(make(y), DiscreteMeasure(x), stepper=Euler(0.5), steps=100, record=4)
        figure = plot_trajectory(trajectory, DiscreteMeasure(y))
        figure.savefig(folder / f"{name}.png", dpi=130)


def command(options: argparse.Namespace) -> str:
    """What was called, without where the data lie."""
    words = without_output(sys.argv[1:])
    for option, shown in (("--data", "PATH"), ("--pictures", "FOLDER")):
        if option in words:
            words[words.index(option) + 1] = shown
    return " ".join(["python benchmarks/flows.py", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--classes", nargs=2, default=list(CLASSES))
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--racing", type=int, default=500, help="points for the comparison of steppers")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--parts", nargs="+", default=["few", "many", "overhead", "steppers"])
    parser.add_argument("--pictures", type=Path)
    add_output(parser)
    options = parser.parse_args()
    data, classes, steps, repeats = options.data, options.classes, options.steps, options.repeats
    known = (
        "Points on a torus flow to a knotted tube."
        if data is None
        else f"The first {classes[0]} of the data flows to the first {classes[1]}; each has 1,024 points and, for more, ones "
        "drawn in triangles between a point and two of its six nearest neighbours, scaled into the unit ball."
    )
    found: dict[str, Any] = {"command": command(options), "where": machine(), "data": known}
    x, y = shapes(data, classes, options.points)
    if "few" in options.parts:
        chose = choose(len(x), len(y), x.device, kernel=Riesz(1.0)).name
        found |= {"points": len(x), "steps": steps, "chose": chose, "few": few(x, y, steps, repeats, options.seconds)}
    if "overhead" in options.parts:
        found["overhead"] = overhead(x, y, [min(100, len(x)), len(x)], repeats)
    if "steppers" in options.parts:
        found |= {"racing": options.racing, "steppers": race(*shapes(data, classes, options.racing), repeats)}
    if "many" in options.parts:
        x, y = shapes(data, classes, options.many)
        shorter = max(1, steps // 5)
        rows = many(x, y, shorter, repeats, options.seconds)
        found |= {"atoms": len(x), "steps, many": shorter, "many": rows}
    text = "\n".join(tables(found))
    keep(options.output, "flows", text, found)
    if options.pictures is not None:
        draw(options.pictures, data, classes, options.points, options.many)


if __name__ == "__main__":
    main()
