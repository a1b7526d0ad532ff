"""Gradients of kernel discrepancies by every backend and its peers, side by side in one run: time, peak memory, error.

The task is that of a step of a flow: the Wasserstein gradient of ``MMD(nu, kernel)`` at the N atoms of a measure against N of
a target, two sums over N^2 pairs, for the energy distance's kernel -|x - y| and a Gaussian one. Peers, as a user would write
them: KeOps used directly (symbolic sums of the gradient), geomloss (its loss and backward: how its gradient is had), plain
PyTorch by broadcast differences, and plain PyTorch by |x|^2 - 2xy + |y|^2 and matrix products, which is fast in high dimension
and wrong where these terms cancel.

    python benchmarks/reductions.py [--sizes 1000 3000 10000 30000 100000] [--dims 2 3 16 128] [--repeats 5] [--seconds 40]
    python benchmarks/reductions.py --crossovers

Times are medians over repeats taken in turn after one call that compiles; errors are those of the sum against the target,
against double precision, relative to the sum of the terms' absolute values, at a few points. A way that is expected to take more
than ``--seconds`` a call, or whose array of pairs would exceed a gigabyte, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("PYKEOPS_VERBOSE", "0")

import torch
from common import add_output, added_megabytes, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure
from ddeq.kernels import Gaussian, Kernel, Riesz
from ddeq.reductions import backend, choose, integrate_kernel_gradient

KERNELS: dict[str, Kernel] = {"energy": Riesz(1.0), "gaussian": Gaussian(1.0)}
CANCELLING = {"PyTorch, matrix products", "geomloss, tensorized"}
"""Peers that take distances as |x|^2 - 2xy + |y|^2."""
MOST_PAIRS = 2**28
"""Numbers in a gigabyte of single precision."""


Sum = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(name: str, kernel: str) -> Sum:
    def run(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        with backend(name):
            return integrate_kernel_gradient(KERNELS[kernel], x, DiscreteMeasure(y, w))

    return run


def keops_directly(kernel: str) -> Sum:
    from pykeops.torch import LazyTensor

    def run(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        difference = LazyTensor(x[:, None]) - LazyTensor(y[None])
        s = (difference**2).sum(-1)
        factor = -s.rsqrt() if kernel == "energy" else -(-0.5 * s).exp()
        return (factor * LazyTensor(w[None, :, None]) * difference).sum(1, backend="CPU")

    return run


def geomloss_gradient(kernel: str, online: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The whole gradient at once: geomloss has no other."""
    import geomloss

    loss = geomloss.SamplesLoss(kernel, blur=1.0, backend="online" if online else "tensorized")

    def run(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(w, x, w, y).sum(), x)
        return gradient / w[:, None]

    return run


def broadcast(kernel: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        difference = x[:, None] - y
        s = difference.square().sum(-1)
        factor = torch.where(s > 0, -s.clamp_min(1e-30).rsqrt(), 0.0) if kernel == "energy" else -(-0.5 * s).exp()
        return ((factor * w)[..., None] * difference).sum(1)

    return run


def matrix_products(kernel: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """|x|^2 - 2xy + |y|^2 and matrix products: fast in high dimension, and wrong where these cancel."""

    def run(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        s = (x.square().sum(-1)[:, None] - 2 * x @ y.mT + y.square().sum(-1)).clamp_min(0.0)
        factor = torch.where(s > 0, -s.clamp_min(1e-30).rsqrt(), 0.0) if kernel == "energy" else -(-0.5 * s).exp()
        factor = factor * w
        return x * factor.sum(-1, keepdim=True) - factor @ y

    return run


def ways(kernel: str, n: int, dim: int) -> dict[str, Sum]:
    """Ways to sum against one measure."""
    found = {
        "ddeq auto": ours("auto", kernel),
        "ddeq dense": ours("dense", kernel),
        "ddeq compiled": ours("compiled", kernel),
        "ddeq keops": ours("keops", kernel),
        "KeOps": keops_directly(kernel),
        "PyTorch, differences": broadcast(kernel),
        "PyTorch, matrix products": matrix_products(kernel),
    }
    if n * n * dim > MOST_PAIRS:
        del found["PyTorch, differences"]
    if n * n > MOST_PAIRS:
        del found["PyTorch, matrix products"]
    if dim > 32:
        del found["ddeq compiled"], found["ddeq keops"]  # minutes of compilation, for a way that auto does not take
    return found


def gradients(kernel: str, n: int, dim: int) -> dict[str, Sum]:
    """Ways to the gradient of the discrepancy."""

    def of(f: Sum) -> Sum:
        return lambda x, y, w: f(x, x, w) - f(x, y, w)

    found = {name: of(f) for name, f in ways(kernel, n, dim).items()}
    found["geomloss, KeOps"] = geomloss_gradient(kernel, online=True)
    if n * n * dim <= MOST_PAIRS:
        found["geomloss, tensorized"] = geomloss_gradient(kernel, online=False)
    return found


def error(result: Tensor, kernel: str, x: Tensor, y: Tensor, w: Tensor) -> float:
    """Largest error at a few points, relative to the sum of the absolute terms, against double precision."""
    chosen = slice(0, 16)
    difference = x[chosen, None].double() - y.double()
    s = difference.square().sum(-1)
    factor = torch.where(s > 0, -1 / s.sqrt(), 0.0) if kernel == "energy" else -(-0.5 * s).exp()
    terms = (factor * w.double())[..., None] * difference
    return float(((result[chosen].double() - terms.sum(1)).abs() / terms.abs().sum(1)).max())


def measure(kernel: str, n: int, dim: int, repeats: int, seconds: float, known: dict[str, float]) -> list[dict[str, object]]:
    """Rows of one table; ``known`` holds the time per pair of each way at the size before."""
    g = torch.Generator().manual_seed(0)
    # In high dimension all distances grow, and a Gaussian kernel of bandwidth one would vanish.
    x, y = (torch.randn(n, dim, generator=g) * min(1.0, 4.0 / dim**0.5) for _ in range(2))
    w = torch.full((n,), 1.0 / n)
    running = {k: f for k, f in gradients(kernel, n, dim).items() if known.get(k, 0.0) * n * n <= seconds}
    sums, times = ways(kernel, n, dim), {k: [] for k in running}
    errors = {k: error(sums[k](x, y, w), kernel, x, y, w) if k in sums else None for k in running}
    for f in running.values():
        f(x, y, w)
    for lap in range(repeats):
        for k, f in running.items():
            if lap >= 2 and sum(times[k]) > seconds:
                continue
            start = time.perf_counter()
            f(x, y, w)
            times[k].append(time.perf_counter() - start)
    rows = []
    for k, t in times.items():
        median = statistics.median(t)
        known[k] = median / n / n
        row = {
            "kernel": kernel,
            "dim": dim,
            "n": n,
            "way": k,
            "seconds": median,
            "from": min(t),
            "to": max(t),
            "error": errors[k],
        }
        if k == "ddeq auto":
            row["chose"] = choose(n, n, x.device, dim=dim, kernel=KERNELS[kernel]).name
        rows.append(row)
        print(
            f"{kernel:9} d={dim:3} n={n:6} {k:26} {median:10.5f} s {2 * n * n / median / 1e9:7.3f} Gpairs/s {errors[k]}",
            flush=True,
        )
    return rows


def peak_memory(kernel: str, n: int, dim: int, way: str) -> float:
    """Megabytes that a call needs."""
    prepare = (
        f"import torch, reductions as r; x, y = torch.randn({n}, {dim}), torch.randn({n}, {dim})\n"
        f"w = torch.full(({n},), 1 / {n})\n"
        f"f = r.gradients({kernel!r}, {n}, {dim})[{way!r}]; f(x[:800], y[:800], w[:800])"
    )
    return added_megabytes(prepare, "f(x, y, w)")


def crossovers() -> None:
    """The number of pairs from which another backend is faster than the dense one, by doubling."""
    many = [
        (kernel, dim, dtype) for dtype in (torch.float32, torch.float64) for dim in (8, 16, 32, 64, 256) for kernel in KERNELS
    ]
    for kernel, dim, dtype in [("energy", 3, torch.float32), ("gaussian", 3, torch.float32), *many]:
        for n in (64, 128, 256, 512, 1024, 2048):
            x, y, w = torch.randn(n, dim, dtype=dtype), torch.randn(n, dim, dtype=dtype), torch.full((n,), 1.0 / n, dtype=dtype)
            shown = []
            for name in ("dense", "compiled", "keops") if dim <= 3 else ("dense", "compiled", "products"):
                run = ours(name, kernel)
                run(x, y, w)
                laps: list[float] = []
                while len(laps) < 3 or (len(laps) < 15 and sum(laps) < 0.5):
                    start = time.perf_counter()
                    run(x, y, w)
                    laps.append(time.perf_counter() - start)
                shown.append(f"{name} {statistics.median(laps) * 1e3:8.3f} ms")
            print(f"{dtype} {kernel} d={dim} pairs={n * n:8} " + "  ".join(shown), flush=True)
    for n in (64, 128, 256, 512, 1024):
        x, y, w = torch.randn(n, 1), torch.randn(n, 1), torch.full((n,), 1.0 / n)
        shown = []
        for name in ("dense", "sorted"):
            laps = []
            for _ in range(15):
                start = time.perf_counter()
                ours(name, "energy")(x, y, w)
                laps.append(time.perf_counter() - start)
            shown.append(f"{name} {statistics.median(laps) * 1e3:8.3f} ms")
        print(f"energy d=1 pairs={n * n:8} " + "  ".join(shown), flush=True)


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Time against N, a panel for each kernel and dimension."""
    import matplotlib.pyplot as plt

    panels = sorted({(r["kernel"], r["dim"]) for r in rows}, key=str)
    dims = sorted({d for _, d in panels})
    figure, axes = plt.subplots(2, len(dims), figsize=(3.4 * len(dims), 6), sharex=True, squeeze=False, layout="constrained")
    names = list(dict.fromkeys(r["way"] for r in rows))
    colours = dict(zip(names, plt.cm.tab10.colors, strict=False))
    for i, kernel in enumerate(("energy", "gaussian")):
        for j, dim in enumerate(dims):
            axis = axes[i][j]
            for name in names:
                mine = [r for r in rows if (r["kernel"], r["dim"], r["way"]) == (kernel, dim, name)]
                if mine:
                    style = {"lw": 3, "alpha": 0.5} if name == "ddeq auto" else {"lw": 1.2, "marker": "o", "ms": 3}
                    axis.loglog([r["n"] for r in mine], [r["seconds"] for r in mine], label=name, color=colours[name], **style)
            axis.set_title(f"{kernel}, d = {dim}", fontsize=10)
            axis.grid(alpha=0.3)
            if j == 0:
                axis.set_ylabel("seconds per gradient")
            if i == 1:
                axis.set_xlabel("N")
    handles = {h.get_label(): h for a in axes.flat for h in a.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def table(rows: list[dict[str, object]]) -> list[str]:
    lines = []
    for kernel in dict.fromkeys(r["kernel"] for r in rows):
        for dim in sorted({r["dim"] for r in rows}):
            mine = [r for r in rows if (r["kernel"], r["dim"]) == (kernel, dim)]
            sizes = list(dict.fromkeys(r["n"] for r in mine))
            lines += [
                "",
                f"## {kernel}, d = {dim}: seconds",
                "",
                "| | " + " | ".join(f"N = {n:,}" for n in sizes) + " | largest error |",
            ]
            lines.append("|---" * (len(sizes) + 2) + "|")
            for way in dict.fromkeys(r["way"] for r in mine):
                by_size = {r["n"]: r for r in mine if r["way"] == way}
                cells = [f"{by_size[n]['seconds']:.3g}" if n in by_size else "" for n in sizes]
                seen = [r["error"] for r in by_size.values() if r["error"] is not None]
                lines.append(f"| {way} | " + " | ".join(cells) + f" | {f'{max(seen):.0e}' if seen else ''} |")
            chose = {r["n"]: r["chose"] for r in mine if "chose" in r}
            lines.append("| *auto chose* | " + " | ".join(chose.get(n, "") for n in sizes) + " | |")
            peers = [w for w in dict.fromkeys(r["way"] for r in mine) if not str(w).startswith("ddeq")]
            ratio = []
            for n in sizes:
                t = {r["way"]: r["seconds"] for r in mine if r["n"] == n}
                best = min((t[p] for p in peers if p in t and p not in CANCELLING), default=None)
                keops = t.get("KeOps")
                shown = [f"{other / t['ddeq auto']:.1f}" if other and "ddeq auto" in t else "" for other in (keops, best)]
                ratio.append(" / ".join(shown))
            lines.append(
                "| *auto is faster than KeOps / than the best peer that takes differences by* | " + " | ".join(ratio) + " | |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3, 16, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--crossovers", action="store_true")
    parser.add_argument("--append", action="store_true", help="keep the rows of other dimensions that an earlier run has left")
    add_output(parser)
    options = parser.parse_args()
    if options.crossovers:
        return crossovers()
    rows = []
    for dim in options.dims:
        for kernel in KERNELS:
            known: dict[str, float] = {}
            for n in options.sizes:
                rows += measure(kernel, n, dim, options.repeats, options.seconds, known)
    commands = ["python benchmarks/reductions.py " + " ".join(without_output(sys.argv[1:]))]
    memory: dict[str, float] = {}
    if options.append:
        before = json.loads((options.output / "reductions.json").read_text())
        rows = [r for r in before["rows"] if r["dim"] not in options.dims] + rows
        commands, memory = list(dict.fromkeys([*before["commands"], *commands])), before["memory"]
    if not memory:
        memory = {way: peak_memory("energy", 10_000, 3, way) for way in gradients("energy", 10_000, 3)}
    lines = [
        "# Gradients of kernel discrepancies",
        "",
        "Seconds for the gradient of an MMD at N atoms against N of the target, single precision, medians.",
        *table(rows),
    ]
    lines += [
        "",
        "## Memory",
        "",
        "Megabytes above what was there before, energy, d = 3, N = 10,000.",
        "",
        "| | MB |",
        "|---|---|",
    ]
    lines += [f"| {way} | {m:.0f} |" for way, m in memory.items()]
    lines += [
        "",
        "![Time against N](reductions.png)",
        "",
        f"Made by `{'`, then `'.join(c.strip() for c in commands)}` on {machine()}.",
        "",
    ]
    found = {"commands": commands, "where": machine(), "rows": rows, "memory": memory}
    keep(options.output, "reductions", "\n".join(lines), found)
    draw(rows, options.output / "reductions.png")
    return None


if __name__ == "__main__":
    main()
