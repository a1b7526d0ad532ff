"""Flows, values and gradients of the Sinkhorn divergence against geomloss, POT and OTT-JAX, in turn within one run.

    python benchmarks/sinkhorn.py [--short] [--ott PYTHON] [--flows 500 2000] [--cold 500 2000 10000] [--threads 1 2]

The blur is 0.05. In the plane a noisy ring and two moons in the unit square, in space a sphere and a noisy torus in the unit
cube. Each number of threads is a process of its own that is held to as many cores. Errors are those of the gradient, relative and
in L2 of the measure, against `SinkhornDivergence` in double precision with marginals to 1e-12, which is compared with POT's
iterations in the logarithmic domain, run to 1e-9. Ratios are peers' times over ours: above 1 ours is faster. Those of flows are
medians over steps, those of single evaluations medians over rounds.

1. *Flows*: Euler steps of size 0.1 from the ring to the moons by `ddeq.flow`, and by plain loops with geomloss and autograd.
   After each step of ours each loop makes one of its own, so that the machine is the same for all. With energies recorded
   `ddeq.flow` also computes the value about a hundred times along the flow.
2. *Cold*: value and gradient of one pair of measures, without what an earlier solve has found. Peers go from coarse to fine
   settings, all in turn. What takes less than a second is run twice, and timed the second time. What takes longer than ``--slow``
   seconds is timed once, what takes longer than ``--limit`` is stopped there, and finer settings are left out.

POT's tolerance is the relative error of the marginals in L2. OTT-JAX, whose threshold bounds their error in L1, is measured where
``--ott`` names an interpreter that has it; its functions are compiled before they are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from common import add_output, keep, machine, without_output
from functionals import geomloss, gradient
from sinkhorn_tables import report
from sinkhorn_ways import BLUR, OURS, Lap, Way, against_pot, clouds, divergence, error, ott_jax, reference, ways
from torch import Tensor

import ddeq
from ddeq import DiscreteMeasure
from ddeq.flows import Euler
from ddeq.functionals import SinkhornDivergence
from ddeq.iteration import Report

STEP = 0.1
DTYPES = {"single": torch.float32, "double": torch.float64}
SHORT = {"flows": [200], "steps": 20, "cold": [150, 400], "large": 400, "repeats": 1, "threads": [1]}
Row = dict[str, Any]
UNLIMITED = 1e9


# --- 1. flows ---


class Loops:
    """Steps of geomloss after each step of `ddeq.flow`, and the seconds of both.

    Keeps measures of our flow, and the velocities that it has there, before some of its steps.
    """

    def __init__(self, x: Tensor, y: Tensor, kept: set[int]) -> None:
        self.losses = {name: geomloss(y, "sinkhorn", name, p=2, blur=BLUR) for name in ("auto", "multiscale")}
        self.points = dict.fromkeys(self.losses, x)
        self.laps: dict[str, list[float]] = {name: [] for name in (OURS, *self.losses)}
        self.wanted, self.kept = kept, dict[int, tuple[Tensor, Tensor]]()
        self.since = time.perf_counter()

    def step(self, report: Report) -> None:
        self.laps[OURS].append(time.perf_counter() - self.since)
        for name, value in self.losses.items():
            start = time.perf_counter()
            points = self.points[name]
            self.points[name] = points - STEP * len(points) * gradient(value, points)
            self.laps[name].append(time.perf_counter() - start)
        if report.step in self.wanted:
            equation = report.equation  # as prepared: with what the flow remembers
            self.kept[report.step] = report.value.clone(), equation.residual(report.value, *equation.tensors)
        self.since = time.perf_counter()

    def end(self) -> None:
        """What comes after the last report belongs to the last step."""
        self.laps[OURS][-1] += time.perf_counter() - self.since


def flow(n: int, precision: str, steps: int, energies: bool) -> tuple[Row, Loops]:
    x, y = clouds(n, 2, DTYPES[precision])
    F, mu, record = SinkhornDivergence(DiscreteMeasure(y), BLUR), DiscreteMeasure(x), None if energies else steps
    warm = Loops(x, y, set())
    ddeq.flow(F, mu, Euler(STEP), 3, record=record, callback=warm.step)  # compiles
    loops = Loops(x, y, {0, steps // 20, steps // 4, steps // 2, steps - 1})
    ours = ddeq.flow(F, mu, Euler(STEP), steps, record=record, callback=loops.step).measure
    loops.end()
    laps = loops.laps
    row: Row = {"atoms": n, "precision": precision, "energies": energies, "milliseconds": 1e3 * statistics.mean(laps[OURS])}
    row["end"] = divergence(ours.points, y)
    for name in loops.losses:
        row[name] = {
            "milliseconds": 1e3 * statistics.mean(laps[name]),
            "ratio": statistics.median(b / a for a, b in zip(laps[OURS], laps[name], strict=True)),
            "whole": sum(laps[name]) / sum(laps[OURS]),
            "end": divergence(loops.points[name], y),
        }
    return row, loops


def errors(n: int, precision: str, loops: Loops) -> list[Row]:
    """Of ours in the flow, and of geomloss at the same measures."""
    _, y = clouds(n, 2, DTYPES[precision])
    rows = []
    for step, (points, velocity) in loops.kept.items():
        truth = n * reference(points, y)
        found = n * gradient(loops.losses["auto"], points)
        rows.append(
            {
                "atoms": n,
                "precision": precision,
                "step": step,
                "size": float(truth.norm() / n**0.5),
                "ddeq": error(-velocity, truth),
                "geomloss": error(found, truth),
            }
        )
    return rows


# --- 2. value and gradient, cold ---


def lap_of(way: Way, limit: float) -> Lap | None:
    """A short way is run twice: caches and threads are warm the second time."""
    lap = way.run(limit)
    return way.run(limit) if lap is not None and lap[0] < 1.0 else lap


def cold(n: int, dim: int, precision: str, options: argparse.Namespace) -> tuple[list[Row], str]:
    """A row for each way, and the version of OTT-JAX."""
    x, y = clouds(n, dim, DTYPES[precision])
    truth = reference(x, y)
    laps: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    found: dict[str, Tensor] = {}
    stopped: dict[str, Way] = {}
    with ott_jax(options.ott, x, y) as ott:
        ours, *peers = ways(x, y, n >= options.large, ott)
        left = peers
        for _ in range(options.repeats):
            lap = lap_of(ours, UNLIMITED)
            assert lap is not None
            laps[OURS].append(lap[0])
            found[OURS] = lap[1]
            for way in left:
                if way.family in stopped:
                    continue
                lap = lap_of(way, options.limit)
                if lap is None:
                    stopped[way.family] = way
                    continue
                laps[way.name].append(lap[0])
                ratios[way.name].append(lap[0] / laps[OURS][-1])
                found[way.name] = lap[1]
            left = [way for way in left if way.name in laps and max(laps[way.name]) <= options.slow]
        version = "" if ott is None else ott.version
    rows = []
    for way in (ours, *peers):
        row: Row = {"atoms": n, "dim": dim, "precision": precision, "peer": way.peer, "way": way.name}
        if way.name in found:
            row |= {"seconds": statistics.median(laps[way.name]), "error": error(found[way.name], truth)}
            row["ratio"] = statistics.median(ratios[way.name]) if way.peer != OURS else 1.0
        elif way in stopped.values():  # lower bounds
            row |= {"seconds": options.limit, "ratio": options.limit / statistics.median(laps[OURS]), "stopped": True}
        else:
            continue
        rows.append(row)
        print(row, flush=True)
    return rows, version


# --- both, for one number of threads ---


def measured(options: argparse.Namespace) -> Row:
    found: Row = {"threads": torch.get_num_threads(), "flows": [], "errors": [], "cold": [], "ott": "", "where": machine()}
    if options.flows:
        x, y = clouds(min(options.flows), 2, torch.float64)
        found["from POT"] = against_pot(x, y)
        print("the reference and POT differ by", found["from POT"], flush=True)
    for n in options.flows:
        for precision in DTYPES:
            for energies in (False, True):
                row, loops = flow(n, precision, options.steps, energies)
                found["flows"].append(row)
                print(row, flush=True)
            found["errors"] += errors(n, precision, loops)
            print(*found["errors"][-len(loops.kept) :], sep="\n", flush=True)
    for n in options.cold:
        large = n >= options.large
        for dim, precision in [(2, "single"), (3, "single") if large else (2, "double")]:
            rows, version = cold(n, dim, precision, options)
            found["cold"] += rows
            found["ott"] = found["ott"] or version
    return found


def with_threads(threads: int, words: list[str]) -> Row:
    """In a process of its own, held to as many cores, so that every library keeps to them."""
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, __file__, *words, "--worker", str(file)]
        subprocess.run(command, check=True, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        found: Row = json.loads(file.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="small sizes, one round, one thread")
    parser.add_argument("--flows", type=int, nargs="*", default=[500, 2000], metavar="ATOMS")
    parser.add_argument("--steps", type=int, default=200, help="of a flow (%(default)s)")
    parser.add_argument("--cold", type=int, nargs="*", default=[500, 2000, 10_000], metavar="ATOMS")
    parser.add_argument("--large", type=int, default=10_000, metavar="ATOMS", help="from here on single precision, in space too")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of values and gradients (%(default)s)")
    parser.add_argument("--slow", type=float, default=10.0, metavar="SECONDS", help="more than this is timed once (%(default)s)")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="of a value and gradient (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ott", metavar="PYTHON", help="an interpreter with ott-jax")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    add_output(parser)
    if "--short" in sys.argv:
        parser.set_defaults(**SHORT)
    options = parser.parse_args()
    if options.worker is not None:
        options.worker.write_text(json.dumps(measured(options)))
        return
    cores = len(os.sched_getaffinity(0))
    if max(options.threads) > cores:
        parser.error(f"--threads: expected at most {cores}, the number of cores, got {max(options.threads)}")
    words = without_output(sys.argv[1:])
    runs = [with_threads(threads, words) for threads in options.threads]
    shown = ["PYTHON" if word == options.ott else word for word in words]
    command = " ".join(["python benchmarks/sinkhorn.py", *shown])
    where = ", ".join(filter(None, (runs[-1]["where"], runs[-1]["ott"])))
    text = report((__doc__ or "").strip().splitlines()[4:], runs, f"Made by `{command}` on {where}.")
    keep(options.output, "sinkhorn", text, {"command": command, "where": where, "runs": runs})


if __name__ == "__main__":
    main()
