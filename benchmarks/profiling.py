"""Where the time of a model goes: products of matrices, other arithmetic, copies, and what belongs to no operation.

    python benchmarks/profiling.py [--before CHECKOUT] [--batch 64] [--points 150] [--rounds 5] [--repeats 9]

A classifier (induced sets, a cell of width 128 with 10 marked atoms) on ragged clouds: inference, a step of training, and a
solve alone by Anderson to 1e-4; and a solve of 128 atoms that attend to 512 points, 8 at once, as completions have; on one
thread. Milliseconds of the whole are medians without a profiler; PyTorch's profiler
says how many of them the operations take themselves, and the rest is Python, dispatch and waiting for memory. With
``--before``, a checkout of an earlier state of this library, both are measured in turn, each in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {
    "products of matrices": ("mm", "bmm", "addmm", "addbmm", "baddbmm", "matmul", "linear", "_scaled_dot", "mv", "dot"),
    "copies and selections": (
        "copy_", "clone", "cat", "stack", "index", "gather", "scatter", "contiguous", "_to_copy", "fill_", "zero", "ones", "full",
        "empty", "where", "masked_fill", "select_backward", "slice_backward", "constant_pad", "nonzero", "new_", "arange",
    ),
}  # fmt: skip
"""Beginnings of the names of operations; all others are other arithmetic."""
OTHER, REST = "other arithmetic", "no operation"
ROOT = Path(__file__).parents[1]


def kind(operation: str) -> str:
    """Of an operation of the profiler, such as ``aten::bmm``."""
    name = operation.split("::")[-1]
    return next((k for k, beginnings in KINDS.items() if name.startswith(beginnings)), OTHER)


def cases(batch: int, points: int) -> dict[str, Callable[[], Any]]:
    """What is profiled, by name."""
    import torch
    from torch.nn.functional import cross_entropy

    from ddeq import DiscreteMeasure, fixed_point
    from ddeq.nn import DDEQ, Classifier, EquilibriumCell, InducedSetEncoder, LearnedReference
    from ddeq.solvers import Anderson, Stop

    torch.manual_seed(0)
    model = DDEQ(InducedSetEncoder(2, 128), EquilibriumCell(128, 16), LearnedReference(10, 128, 16), stop=Stop(rtol=1e-4))
    classifier = Classifier(model, 10).eval()
    clouds = [torch.rand(points - 10 * (i % 8), 2) * 2 - 1 for i in range(batch)]
    rho, labels = DiscreteMeasure.from_clouds(clouds), torch.arange(batch) % 10
    with torch.no_grad():
        mu, context = model.reference(rho.batch_shape, rho.points), model.encoder(rho)

    @torch.no_grad()
    def inference() -> None:
        classifier(rho)

    def training() -> None:
        cross_entropy(classifier(rho), labels).backward()
        classifier.zero_grad()

    completing = DDEQ(InducedSetEncoder(3, 128), EquilibriumCell(128, 16), LearnedReference(128, 128, 16)).eval()
    shapes = DiscreteMeasure(torch.rand(8, 512, 3))
    with torch.no_grad():
        many, seen = completing.reference(shapes.batch_shape, shapes.points), completing.encoder(shapes)

    @torch.no_grad()
    def solve() -> None:
        fixed_point(model.cell, mu, context, in_dims=0, solver=Anderson(), stop=Stop(rtol=1e-4))

    @torch.no_grad()
    def solve_many() -> None:
        fixed_point(completing.cell, many, seen, in_dims=0, solver=Anderson(), stop=Stop(rtol=1e-4))

    return {"inference": inference, "step of training": training, "solve alone": solve, "solve of 128 atoms": solve_many}


def measure(batch: int, points: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each case, whole and by kind, and the number of operations; in this process."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    found = {}
    for name, case in cases(batch, points).items():
        case()
        laps = []
        for _ in range(repeats):
            start = time.perf_counter()
            case()
            laps.append(1e3 * (time.perf_counter() - start))
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            case()
        parts = dict.fromkeys([*KINDS, OTHER], 0.0)
        events = [e for e in profiler.key_averages() if "::" in e.key]
        for event in events:
            parts[kind(event.key)] += 1e-3 * event.self_cpu_time_total
        whole = statistics.median(laps)
        rest = max(0.0, whole - sum(parts.values()))
        found[name] = {"whole": whole, **parts, REST: rest, "operations": float(sum(e.count for e in events))}
    return found


def child(checkout: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """`measure` in a process of its own, with the library of ``checkout``."""
    words = [sys.executable, __file__, "--child", "--batch", str(options.batch), "--points", str(options.points)]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, "--repeats", str(options.repeats)], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["library"]).resolve().is_relative_to(checkout.resolve()), said["library"]
    found: dict[str, dict[str, float]] = said["found"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, default=None, help="a checkout of an earlier state of this library")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--points", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5, help="processes for each state (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="calls in each process (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    options = parser.parse_args()
    if options.child:
        import ddeq

        print(json.dumps({"library": ddeq.__file__, "found": measure(options.batch, options.points, options.repeats)}))
        return
    from common import keep, machine, without_output

    states = ({"before": options.before} if options.before else {}) | {"now": ROOT}
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {state: [] for state in states}
    for _ in range(options.rounds):
        for state, checkout in states.items():
            rounds[state].append(child(checkout, options))
    columns = ["whole", *KINDS, OTHER, REST, "operations"]
    found = {
        state: {case: {c: statistics.median(r[case][c] for r in some) for c in columns} for case in some[0]}
        for state, some in rounds.items()
    }
    words = without_output(sys.argv[1:])
    if options.before:
        words[words.index("--before") + 1] = said_of(options.before)
    command = " ".join(["python benchmarks/profiling.py", *words])
    lines = ["# Where the time of a model goes", "", *(__doc__ or "").strip().splitlines()[4:], ""]
    lines += [f"Batch {options.batch}, clouds of up to {options.points} points; milliseconds.", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for case in found["now"]:
        for state in states:
            numbers = found[state][case]
            cells = [f"{numbers[c]:,.0f}" if c == "operations" else f"{numbers[c]:.1f}" for c in columns]
            lines.append(f"| {case}{f', {state}' if options.before else ''} | " + " | ".join(cells) + " |")
    if options.before:
        ratios = {
            case: [b[case]["whole"] / a[case]["whole"] for b, a in zip(*rounds.values(), strict=True)] for case in found["now"]
        }
        said = ", ".join(f"{case} {statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for case, r in ratios.items())
        lines += ["", f"Times faster than before, in pairs of processes: {said}."]
    lines += ["", f"Made by `{command}` on {machine()}.", ""]
    keep(options.output, "profiling", "\n".join(lines), {"command": command, "where": machine(), "found": found})


def said_of(checkout: Path) -> str:
    """The commit of a checkout, with the day of it."""
    git = ["git", "-C", str(checkout), "log", "-1", "--format=%h,%as", "--abbrev=7"]
    return "CHECKOUT_OF_" + subprocess.run(git, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().replace(",", "_OF_")


if __name__ == "__main__":
    main()
