"""A flow of an MMD whose atoms are spread over processes: seconds and bytes of a step against the cost model of the docs.

    python benchmarks/sharded.py [--sizes 4000 8000 16000] [--ranks 1 2] [--steps 5] [--predict 1e9] [--ranks-there 1024]
        [--pairs-there 1.5e12] [--bytes-there 5e10]

Each number of ranks is a job of its own, by gloo, one thread for each rank; times are medians over steps and the largest over
ranks, bytes are counted where they are sent. The model is fitted to one number, the pairs that one rank sums in a second.
``--predict`` puts other numbers into it: atoms, ranks, pairs a second of a device, bytes a second between two.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

from common import add_output, keep, machine, without_output

DIM, NUMBER = 3, 4
"""Dimension, and bytes of a number in single precision."""


def job(sizes: list[int], steps: int) -> None:
    """What one rank does; the first one prints a line of JSON for each size."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    import ddeq
    from ddeq.functionals import MMD
    from ddeq.kernels import Gaussian

    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    sent = [0]
    send = dist.P2POp

    def counted(operation: Any, tensor: Any, *rest: Any) -> Any:
        sent[0] += tensor.numel() * tensor.element_size() * (operation is dist.isend)
        return send(operation, tensor, *rest)

    dist.P2POp = counted  # type: ignore[misc, assignment]
    for n in sizes:
        g = torch.Generator().manual_seed(0)
        mu, nu = (ddeq.reductions.shard(ddeq.DiscreteMeasure(torch.randn(n, DIM, generator=g)), mesh) for _ in range(2))
        F, laps = MMD(nu, Gaussian(1.0)), []
        for lap in range(steps + 2):  # the first ones compile
            dist.barrier()
            sent[0], start = 0, time.perf_counter()
            with torch.no_grad():
                F.wasserstein_gradient(mu)
            laps += [time.perf_counter() - start] if lap >= 2 else []
        slowest = torch.tensor(statistics.median(laps))
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        if mesh.get_rank() == 0:
            print(json.dumps({"atoms": n, "ranks": mesh.size(), "seconds": slowest.item(), "bytes": sent[0]}), flush=True)
    dist.destroy_process_group()


def measured(sizes: list[int], ranks: int, steps: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__, "--job"]
    command += ["--steps", str(steps), "--sizes", *map(str, sizes)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def pairs(n: float, ranks: int) -> float:
    """Pairs that each rank sums in a step: its atoms with all of the measure and all of the target."""
    return 2.0 * n * n / ranks


def traffic(n: float, ranks: int) -> float:
    """Bytes that each rank sends in a step: all shards but one of both measures, points and weights."""
    return 2.0 * (ranks - 1) * (n / ranks) * (DIM + 1) * NUMBER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4000, 8000, 16000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--predict", type=float, default=1e9, help="atoms of each measure (%(default)g)")
    parser.add_argument("--ranks-there", type=int, default=1024)
    parser.add_argument("--pairs-there", type=float, default=1.5e12, help="pairs a second of one device (%(default)g, assumed)")
    parser.add_argument("--bytes-there", type=float, default=5e10, help="bytes a second between two (%(default)g, assumed)")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    if options.job:
        job(options.sizes, options.steps)
        return
    rows = [row for ranks in options.ranks for row in measured(options.sizes, ranks, options.steps)]
    alone = [row for row in rows if row["ranks"] == 1]
    rate = pairs(alone[-1]["atoms"], 1) / alone[-1]["seconds"]
    for row in rows:
        n, ranks = row["atoms"], row["ranks"]
        row |= {"model seconds": pairs(n, ranks) / rate, "model bytes": traffic(n, ranks)}
        row["speed-up"] = next(a["seconds"] for a in alone if a["atoms"] == n) / row["seconds"]
        print(row, flush=True)
    n, ranks = options.predict, options.ranks_there
    there = {
        "atoms": n,
        "ranks": ranks,
        "seconds of sums": pairs(n, ranks) / options.pairs_there,
        "seconds of sending": traffic(n, ranks) / options.bytes_there,
        "gigabytes sent": traffic(n, ranks) / 1e9,
        "gigabytes held": 3 * 2 * n / ranks * (DIM + 1) * NUMBER / 1e9,
    }
    command = f"python benchmarks/sharded.py {shlex.join(without_output(sys.argv[1:]))}".strip()
    text = "\n".join(
        [
            "# A step of a flow whose atoms are spread over processes",
            "",
            "`MMD(target, Gaussian(1.0)).wasserstein_gradient` in dimension 3, as many atoms in the target as in the measure;",
            "one thread for each rank.",
            "",
            "| atoms of each | ranks | seconds | model | speed-up | bytes sent by a rank | model |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {r['atoms']:,} | {r['ranks']} | {r['seconds']:.3g} | {r['model seconds']:.3g} | {r['speed-up']:.2f} | "
                f"{r['bytes']:,} | {r['model bytes']:,.0f} |"
                for r in rows
            ),
            "",
            f"The model has one number from here: {rate:.2g} pairs a second of one rank. With {options.pairs_there:.2g} pairs",
            f"and {options.bytes_there:.2g} bytes a second of a device, both assumed, it gives for {n:.0e} atoms on",
            f"{ranks:,} ranks {there['seconds of sums']:.3g} s of sums and {there['seconds of sending']:.2g} s of sending in a",
            f"step; a rank sends {there['gigabytes sent']:.2g} GB and holds {there['gigabytes held']:.2g} GB of atoms.",
            "",
            f"Made by `{command}` on {machine()}.",
            "",
        ]
    )
    found = {"command": command, "where": machine(), "pairs a second": rate, "rows": rows, "prediction": there}
    keep(options.output, "sharded", text, found)


if __name__ == "__main__":
    main()
