"""All benchmarks, one after the other, and one report: what was wanted and what was found, compared with what the machine can do.

    python benchmarks/suite.py [--short] [--reference CHECKOUT] [--before CHECKOUT] [--data MODELNET40 MNIST_PC]
                               [--ott PYTHON] [--only NAME ...] [--output FOLDER]

``--short`` takes less than a quarter of an hour on two cores and writes to ``outputs/bench``; else the full runs, which take more
than an hour, go to ``benchmarks/results``. With ``--only`` the report speaks of the others as earlier runs have left them. The
peers are those of the development environment (KeOps, geomloss, POT, torchdeq, plain PyTorch), the paper's code where a checkout
is given, and OTT-JAX where an interpreter that has it is given.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, keep, machine
from sinkhorn_tables import ACCURACIES, least_ratio, slowest_flow, worst_gradient

Found = dict[str, Any]
"""What each benchmark left, by its name."""
SHORT = {
    "limits": [],
    "reductions": ["--sizes", "1000", "10000", "30000", "--dims", "3", "--repeats", "3", "--seconds", "3"],
    "sliced": ["--sizes", "1000", "10000", "100000", "1000000", "--repeats", "2"],
    "sorting": ["--sizes", "10000", "100000", "--threads", "1", "--repeats", "1"],
    "functionals": ["--sizes", "300", "--sliced", "10000", "--repeats", "2", "--limit", "1"],
    "flows": ["--points", "1000", "--steps", "20", "--repeats", "2", "--seconds", "3", "--parts", "few", "overhead"],
    "products": ["--sizes", "200", "1000", "--repeats", "3"],
    "scripts": ["--repeats", "1", "--threads", "1", "--parts", "methods"],
    "spaces": ["--sizes", "200", "--steps", "20", "--repeats", "2"],
    "equilibrium": ["--repeats", "2"],
    "lbfgs": ["--repeats", "1"],
    "bandwidth": ["--repeats", "5", "--steps", "3"],
    "regularized": ["--rounds", "3"],
    "sinkhorn": ["--short"],
    "overhead": ["--repeats", "15"],
    "classics": ["--seeds", "2"],
    "profiling": ["--rounds", "1", "--repeats", "5"],
    "throughput": ["--clouds", "8", "--points", "256", "--repeats", "2"],
    "sharded": ["--sizes", "4000", "8000", "--ranks", "1", "2", "--steps", "3"],
}
FULL: dict[str, list[str]] = {name: [] for name in SHORT} | {
    "reductions": ["--sizes", "100", "1000", "3000", "10000", "30000", "100000", "--repeats", "3", "--seconds", "5"],
    "flows": ["--racing", "100", "--steps", "20", "--repeats", "3", "--seconds", "3"],
    "equilibrium": ["--repeats", "3"],
    "throughput": ["--repeats", "3"],
    "starts": [],
}


@dataclass(frozen=True)
class Goal:
    """Something that is wanted of a number in what the benchmarks found."""

    what: str
    wanted: str
    number: Callable[[Found], float]
    met: Callable[[float], bool]
    shown: str = "{:.3g}"


def limits(folder: Path) -> None:
    """What the machine can do: additions and products in a matrix product, numbers copied, exponentials."""

    def best(call: Callable[[], Any], repeats: int = 7) -> float:
        call()
        laps = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            laps.append(time.perf_counter() - start)
        return min(laps)

    a, big = torch.randn(2048, 2048), torch.randn(2**25)
    other, some = torch.empty_like(big), torch.randn(2**16)
    out = torch.empty_like(some)
    found = {
        "operations a second": 2 * 2048**3 / best(lambda: a @ a),
        "bytes copied a second": 2 * 4 * big.numel() / best(lambda: other.copy_(big)),
        "exponentials a second": some.numel() * 100 / best(lambda: [torch.exp(some, out=out) for _ in range(100)]),
    }
    lines = ["# What the machine can do", "", "| | in single precision |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in found.items()]
    command = "python benchmarks/suite.py --only limits"
    text = "\n".join([*lines, "", f"Made by `{command}` on {machine()}.", ""])
    keep(folder, "limits", text, {"command": command, "where": machine(), **found})


def ratio_to_keops(found: Found) -> float:
    """KeOps' time over ours for the gradient of the energy distance in dimension 3, at the largest size of both."""
    rows = [r for r in found["reductions"]["rows"] if r["kernel"] == "energy" and r["dim"] == 3]
    ours, theirs = (
        {r["n"]: r["seconds"] for r in rows if r["way"] == way and r.get("seconds")} for way in ("ddeq auto", "KeOps")
    )
    n = max(ours.keys() & theirs.keys())
    return theirs[n] / ours[n]


OPERATIONS = 20
"""Additions and products for a pair in dimension 3: differences 3, square 5, root and division as 4, weighted sums 6, rest 2."""


def share_of_limit(found: Found) -> float:
    """Operations of the largest kernel gradient by our fastest backend, in a second, over those of a matrix product."""
    rows = [r for r in found["reductions"]["rows"] if (r["kernel"], r["dim"], r["way"]) == ("energy", 3, "ddeq auto")]
    last = max((r for r in rows if r.get("seconds")), key=lambda r: r["n"])
    return 2 * last["n"] ** 2 * OPERATIONS / last["seconds"] / found["limits"]["operations a second"]


def against_the_paper(found: Found) -> float:
    """How many times faster than the paper's way, or its code where that was given, our fastest solve is."""
    parts = found["equilibrium"]["parts"]
    rows = parts.get("The paper's code", parts["The paper's way"])
    return max(float(r["times faster"].replace(",", "")) for r in rows if r["solve"].startswith("ddeq"))


def most_overhead(found: Found, atoms: int) -> float:
    """Largest ratio of a solve's time to that of its evaluations, less one, with a number of atoms."""
    rows = [r for r in found["overhead"]["rows"] if r["atoms"] == str(atoms)]
    return max(float(r["ratio (quartiles)"].split()[0]) for r in rows) - 1.0


def memory_growth(found: Found) -> float:
    """Memory of an implicit gradient after 200 steps over that after 10."""
    rows = [r for r in found["equilibrium"]["parts"]["Memory"] if r["adjoint"] == "Implicit(Picard())"]
    used = {int(r["steps"]): float(r["megabytes that forward and backward add"]) for r in rows}
    return used[max(used)] / max(used[min(used)], 1.0)


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    x, y = [math.log(n) for n in sizes], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def sliced_exponent(found: Found) -> float:
    """With which power of the number of atoms the time of `SlicedMMD` grows."""
    rows = found["sliced"]["rows"]
    return exponent([r["atoms"] for r in rows], [r["seconds"] for r in rows])


def kernel_exponent(found: Found) -> float:
    """With which power the time of the kernel gradient grows, over its last decade."""
    rows = [r for r in found["reductions"]["rows"] if (r["kernel"], r["dim"], r["way"]) == ("energy", 3, "ddeq auto")]
    known = {r["n"]: r["seconds"] for r in rows if r.get("seconds")}
    last = {n: s for n, s in known.items() if n >= max(known) / 10}
    return exponent(list(last), list(last.values()))


GOALS = {
    "equilibrium": [
        Goal(
            "equilibrium solve: times faster than the paper's way, at a smaller residual",
            "at least 100",
            against_the_paper,
            lambda x: x >= 100,
        ),
        Goal("implicit gradient: memory after 200 steps over that after 10", "at most 1.1", memory_growth, lambda x: x <= 1.1),
    ],
    "overhead": [
        Goal(
            f"solver overhead with {atoms} atoms, the largest of all solvers",
            "at most 15 %",
            partial(most_overhead, atoms=atoms),
            lambda x: x <= 0.15,
            "{:.0%}",
        )
        for atoms in (10, 128)
    ],
    "reductions": [
        Goal("kernel gradient, d = 3, largest N: times faster than KeOps", "at least 5", ratio_to_keops, lambda x: x >= 5),
        Goal(
            "kernel gradient: share of the operations of a matrix product",
            "at least 50 %",
            share_of_limit,
            lambda x: x >= 0.5,
            "{:.0%}",
        ),
        Goal("kernel gradient: time grows as N to the power", "at most 2.1", kernel_exponent, lambda x: x <= 2.1, "{:.2f}"),
    ],
    "sinkhorn": [
        Goal(
            "Sinkhorn flow: our time per step over that of geomloss's default, the largest",
            "at most 1",
            lambda found: slowest_flow(found["sinkhorn"]),
            lambda x: x <= 1,
        ),
        Goal(
            "Sinkhorn flow: relative error of the gradient, the largest",
            "below 1e-3",
            lambda found: worst_gradient(found["sinkhorn"]),
            lambda x: x < 1e-3,
        ),
        Goal(
            "Sinkhorn divergence, cold: times faster than geomloss with a gradient within 2 %, the least",
            "more than 1",
            lambda found: least_ratio(found["sinkhorn"], ["geomloss"], ACCURACIES[0]),
            lambda x: x > 1,
        ),
        Goal(
            f"Sinkhorn divergence, cold: times faster than POT and OTT-JAX with an error of {ACCURACIES[-1]:g}, the least",
            "more than 1",
            lambda found: least_ratio(found["sinkhorn"], ["POT", "OTT-JAX"], ACCURACIES[-1]),
            lambda x: x > 1,
        ),
    ],
    "sliced": [
        Goal(
            "SlicedMMD, largest N: seconds of value and gradient",
            "a few (at most 10)",
            lambda found: found["sliced"]["rows"][-1]["seconds"],
            lambda x: x <= 10,
        ),
        Goal("SlicedMMD: time grows as N to the power", "at most 1.1", sliced_exponent, lambda x: x <= 1.1, "{:.2f}"),
    ],
    "bandwidth": [
        Goal(
            "median_bandwidth, equal weights: time over that of torch.pdist(x).median(), largest",
            "at most 1",
            lambda found: max(row["equal, ratio"] for row in found["bandwidth"]["medians"]),
            lambda x: x <= 1,
            "{:.2f}",
        ),
    ],
}


def report(found: Found, minutes: dict[str, float], command: str) -> str:
    lines = ["# Report", "", "| | wanted | found | |", "|---|---|---|---|"]
    for goal in goals_of(found):
        number = goal.number(found)
        shown, end = goal.shown.format(number).replace("%", " %"), "met" if goal.met(number) else "missed"
        lines.append(f"| {goal.what} | {goal.wanted} | {shown} | {end} |")
    lines += [
        "",
        "No GPU was measured; `python benchmarks/gpu.py` does it where there is one.",
        "",
        "| benchmark | minutes | made by |",
        "|---|---|---|",
        *(
            f"| {name} | {f'{minutes[name]:.1f}' if name in minutes else ''} | {made_by(found[name])} |"
            for name in FULL
            if name in found
        ),
        "",
        f"Made by `{command}` on {machine()}; each benchmark has a file of its name.",
        "",
    ]
    return "\n".join(lines)


def goals_of(found: Found) -> list[Goal]:
    """Those whose numbers are known."""
    known = [name for name in GOALS if name in found and (name != "reductions" or "limits" in found)]
    return [goal for name in known for goal in GOALS[name]]


def made_by(found: dict[str, Any]) -> str:
    commands = found.get("commands") or [found.get("command", "")]
    return ", ".join(f"`{c.strip()}`" for c in commands if c)


def earlier(folder: Path) -> tuple[Found, dict[str, float]]:
    """What earlier runs have left in ``folder``, and the minutes that they took."""
    found = {name: json.loads(file.read_text()) for name in FULL if (file := folder / f"{name}.json").exists()}
    last = folder / "report.json"
    return found, json.loads(last.read_text())["minutes"] if last.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="less than a quarter of an hour on two cores")
    parser.add_argument("--reference", type=Path, default=None, help="a checkout of the paper's code, to be run with ours")
    parser.add_argument("--before", type=Path, default=None, help="a checkout of this library at an earlier state")
    parser.add_argument("--data", nargs=2, default=None, metavar="FOLDER", help="of ModelNet40 and of MNIST as point clouds")
    parser.add_argument("--only", nargs="*", choices=list(FULL), default=None, metavar="NAME", help="none: only the report")
    parser.add_argument("--output", type=Path, default=None, help="folder of the results")
    parser.add_argument("--ott", default=None, metavar="PYTHON", help="an interpreter that has ott-jax")
    options = parser.parse_args()
    folder = options.output or (Path("outputs/bench") if options.short else RESULTS)
    more = {
        "equilibrium": ["--reference", str(options.reference)] if options.reference else [],
        "profiling": ["--before", str(options.before)] if options.before else [],
        "flows": ["--data", str(Path(options.data[0], "train.npz"))] if options.data else [],
        "throughput": ["--data", *options.data] if options.data else [],
        "sinkhorn": ["--ott", options.ott] if options.ott else [],
    }
    found, minutes = ({}, {}) if options.only is None else earlier(folder)
    for name, arguments in (SHORT if options.short else FULL).items():
        if options.only is not None and name not in options.only:
            continue
        start = time.perf_counter()
        if name == "limits":
            limits(folder)
        else:
            script = str(Path(__file__).with_name(f"{name}.py"))
            words = [*arguments, *more.get(name, []), "--output", str(folder)]
            subprocess.run([sys.executable, script, *words], check=True)
        minutes[name] = (time.perf_counter() - start) / 60
        found[name] = json.loads((folder / f"{name}.json").read_text())
    command = f"python benchmarks/suite.py{' --short' if options.short else ''}"
    command += " --reference CHECKOUT" if options.reference else ""
    command += " --before CHECKOUT" if options.before else ""
    command += " --data MODELNET40 MNIST_PC" if options.data else ""
    command += " --ott PYTHON" if options.ott else ""
    command += "" if options.only is None else " ".join(["", "--only", *options.only])
    goals = {goal.what: goal.number(found) for goal in goals_of(found)}
    text = report(found, minutes, command)
    keep(folder, "report", text, {"command": command, "where": machine(), "goals": goals, "minutes": minutes})


if __name__ == "__main__":
    main()
