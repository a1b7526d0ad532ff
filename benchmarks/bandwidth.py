"""`median_bandwidth` against `torch.pdist(x).median()`, and what the default of `Stein()` adds to a step of SVGD.

    python benchmarks/bandwidth.py [--sizes 200 1000 2000] [--dims 2 16] [--repeats 20] [--steps 20] [--threads 1]
        [--device cpu]

Standard normal points. Weights are equal, as those of `torch.pdist(x).median()` are, or random. SVGD: flows of a KL divergence
with Euler steps, without autograd, with the bandwidth of each measure (`Stein()`) and with a given one (`Stein(Gaussian(h))`).
Times are medians over repeats, the contestants taking turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure, flow
from ddeq.flows import Euler, Stein
from ddeq.functionals import KLDivergence
from ddeq.kernels import Gaussian, median_bandwidth

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def milliseconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each call, all in turn."""
    laps: dict[str, list[float]] = {name: [] for name in calls}
    for lap in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if lap > 1:
                laps[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in laps.items()}


def of_medians(n: int, dim: int, dtype: str, repeats: int, device: str) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(*shape, generator=g, dtype=DTYPES[dtype]).to(device) for shape in ((n, dim), (n,)))
    equal, unequal = DiscreteMeasure(x), DiscreteMeasure(x, weights.abs())
    error = float((median_bandwidth(equal) / torch.pdist(x).median() - 1.0).abs())
    assert error < 1e-6, error
    calls = {
        "pdist": lambda: torch.pdist(x).median(),
        "equal": lambda: median_bandwidth(equal),
        "unequal": lambda: median_bandwidth(unequal),
    }
    found = milliseconds(calls, repeats)
    ratios = {f"{name}, ratio": found[name] / found["pdist"] for name in ("equal", "unequal")}
    return {"points": n, "dimension": dim, "dtype": dtype} | found | ratios


def log_density(x: Tensor) -> Tensor:
    return -0.5 * x.square().sum(-1)


def of_steps(n: int, dim: int, steps: int, repeats: int, device: str) -> dict[str, Any]:
    mu = DiscreteMeasure(2.0 * torch.randn(n, dim, generator=torch.Generator().manual_seed(0)).to(device))
    given = Stein(Gaussian(float(median_bandwidth(mu))))

    def run(geometry: Stein) -> object:
        with torch.no_grad():
            return flow(KLDivergence(log_density, 0.5), mu, Euler(0.1), steps, geometry, record=steps)

    found = milliseconds({"median": lambda: run(Stein()), "given": lambda: run(given)}, repeats)
    found = {name: t / steps for name, t in found.items()}
    return {"points": n, "dimension": dim} | found | {"ratio": found["median"] / found["given"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 2000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    add_output(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [(n, d) for n in options.sizes for d in options.dims]
    medians = [of_medians(n, d, dtype, options.repeats, options.device) for dtype in DTYPES for n, d in cases]
    flows = [of_steps(n, d, options.steps, max(3, options.repeats // 4), options.device) for n, d in cases]
    command = "python benchmarks/bandwidth.py " + " ".join(without_output(sys.argv[1:]))
    lines = [
        "# Bandwidths from data",
        "",
        "`median_bandwidth` against `torch.pdist(x).median()`, milliseconds and ratios.",
        "",
        "| points | dimension | dtype | pdist | equal weights | ratio | unequal weights | ratio |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['points']:,} | {r['dimension']} | {r['dtype']} | {r['pdist']:.3g} | {r['equal']:.3g} "
            f"| {r['equal, ratio']:.2f} | {r['unequal']:.3g} | {r['unequal, ratio']:.2f} |"
            for r in medians
        ),
        "",
        "A step of SVGD, single precision, milliseconds: with the median of each measure, and with a given bandwidth.",
        "",
        "| points | dimension | `Stein()` | `Stein(Gaussian(h))` | ratio |",
        "|---|---|---|---|---|",
        *(f"| {r['points']:,} | {r['dimension']} | {r['median']:.3g} | {r['given']:.3g} | {r['ratio']:.2f} |" for r in flows),
        "",
        f"Made by `{command.strip()}` on {machine()}; threads: {options.threads}, device: {options.device}.",
        "",
    ]
    found = {"command": command.strip(), "where": machine(), "medians": medians, "flows": flows}
    keep(options.output, "bandwidth", "\n".join(lines), found)


if __name__ == "__main__":
    main()
