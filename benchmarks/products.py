"""A step of an MMD flow in many dimensions: `ddeq` against the script that it replaces.

    python benchmarks/products.py [--sizes 200 500 1000 2000] [--dims 16 64 256] [--repeats 9] [--threads 1]

Value and gradient of half the squared MMD of N atoms from N atoms of a target, single precision, with the Gaussian kernel and the
energy distance's. The scripts are written as authors write them: the kernel matrices of both measures and between them, squared
distances by matrix products (`|x|^2 + |y|^2 - 2 x.y`) or ``torch.cdist``, their means, and autograd. A second one leaves out the
target's own matrix, which does not depend on the atoms. Ours are ``MMD.forward``, the target's own term included, and
``MMD.wasserstein_gradient`` on the backend that ``auto`` takes; they are exact where the script cancels. A flow without a record
of energies needs the gradient alone.

Ways take turns, three calls each; the least time of each way is shown, since other programs can only add to it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from common import add_output, keep, machine, without_output
from torch import Tensor

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD
from ddeq.kernels import Gaussian, Kernel, Riesz
from ddeq.reductions import choose

Way = Callable[[], object]


def matrix(kernel: str, h: float, x: Tensor, y: Tensor) -> Tensor:
    if kernel == "energy":
        return -torch.cdist(x, y)
    s = (x.square().sum(-1)[:, None] + y.square().sum(-1) - 2 * x @ y.mT).clamp_min(0.0)
    return torch.exp(-s / (2 * h * h))


def script(kernel: str, h: float, x: Tensor, y: Tensor, target: bool) -> Way:
    def run() -> tuple[Tensor, Tensor]:
        p = x.clone().requires_grad_()
        loss = 0.5 * matrix(kernel, h, p, p).mean() - matrix(kernel, h, p, y).mean()
        if target:
            loss = loss + 0.5 * matrix(kernel, h, y, y).mean()
        (gradient,) = torch.autograd.grad(loss, p)
        return loss.detach(), gradient * len(x)

    return run


def ours(kernel: Kernel, x: Tensor, y: Tensor, value: bool) -> Way:
    mu, functional = DiscreteMeasure(x), MMD(DiscreteMeasure(y), kernel)

    def run() -> tuple[Tensor | None, Tensor]:
        return functional(mu) if value else None, functional.wasserstein_gradient(mu)

    return run


def measure(kernel: str, n: int, dim: int, repeats: int) -> dict[str, object]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, dim, generator=g), torch.randn(n, dim, generator=g) + 0.3
    h = (2 * dim) ** 0.5 / 1.5
    k: Kernel = Riesz(1.0) if kernel == "energy" else Gaussian(h)
    ways = {
        "script": script(kernel, h, x, y, target=True),
        "script without the target's term": script(kernel, h, x, y, target=False),
        "ddeq auto": ours(k, x, y, value=True),
        "ddeq auto, gradient alone": ours(k, x, y, value=False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for lap in range(repeats + 1):
        for name, way in ways.items():
            way()
            for _ in range(3):
                start = time.perf_counter()
                way()
                if lap:
                    times[name].append(time.perf_counter() - start)
    best = {name: 1e3 * min(laps) for name, laps in times.items()}
    return {
        "kernel": kernel,
        "dim": dim,
        "n": n,
        **best,
        "auto / script": best["ddeq auto"] / best["script"],
        "chose": choose(n, n, x.device, dim=dim, kernel=k).name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 500, 1000, 2000])
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    add_output(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for kernel in ("gaussian", "energy"):
        for dim in options.dims:
            for n in options.sizes:
                rows.append(measure(kernel, n, dim, options.repeats))
                print(rows[-1], flush=True)
    shown = [name for name in rows[0] if name not in ("kernel", "dim", "n")]
    command = "python benchmarks/products.py " + " ".join(without_output(sys.argv[1:]))
    lines = ["# A step of an MMD flow in many dimensions", "", *(__doc__ or "").strip().splitlines()[4:], "", "Milliseconds."]
    for kernel in ("gaussian", "energy"):
        lines += ["", f"## {kernel}", "", "| d | N | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
        for row in (r for r in rows if r["kernel"] == kernel):
            cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in (row[name] for name in shown)]
            lines.append(f"| {row['dim']} | {row['n']} | " + " | ".join(cells) + " |")
    lines += ["", f"Made by `{command.strip()}` on {machine()}.", ""]
    keep(options.output, "products", "\n".join(lines), {"command": command, "where": machine(), "rows": rows})


if __name__ == "__main__":
    main()
