"""All that needs a GPU to be measured, in one run: right results there, speed of sums and solves, and time to train.

1. *The same results.* Value, gradient and second derivative of discrepancies by every backend, and a flow, a stationary measure,
   a fixed point and a DDEQ with their gradients, on the device in single and in double precision against the CPU in double.
2. *Sums.* The gradient of an energy distance by every backend and by KeOps used directly, beside the device's limit: the
   operations of a matrix product in single precision. The sizes at which one backend overtakes another are those that
   ``ddeq.reductions.choose`` should know (``CROSSOVERS``).
3. *Solves.* An equilibrium of the weights for MNIST at batch 256: its wall time over the time that its kernels alone take, for a
   cell as it is, compiled, and recorded as a CUDA graph.
4. *Training.* Minutes until MNIST-pc is classified to 98.5 %, by ``benchmarks/race.py``; with ``--data FOLDER``.

    python benchmarks/gpu.py [--data FOLDER] [--parts results sums solves training] [--minutes 6] [--device cuda]

``--device cpu`` takes small sizes, to see that the script runs. Times are medians over repeats, after a first call.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("PYKEOPS_VERBOSE", "0")

import torch
from common import add_output, keep, machine, without_output
from equilibrium import Rows, markdown
from suite import OPERATIONS
from torch import Tensor, nn

import ddeq
from ddeq import DiscreteMeasure, fixed_point
from ddeq.data import load_digits
from ddeq.flows import AdaptiveEuler, Euler, equilibrium
from ddeq.functionals import MMD, Chamfer, Functional, PotentialEnergy, SinkhornDivergence, SlicedMMD, SlicedWasserstein
from ddeq.kernels import IMQ, Gaussian, Kernel, Laplace, Matern, Riesz
from ddeq.nn import DDEQ, EquilibriumCell, InducedSetEncoder, LearnedReference, load_pretrained, pretrained_preprocessing
from ddeq.reductions import backend, choose, integrate_kernel_gradient
from ddeq.solvers import Anderson, Auto, Broyden, NewtonKrylov, Picard, Stop

PARTS = ("results", "sums", "solves", "training")
BACKENDS = ("dense", "compiled", "keops")
KERNELS: dict[str, Kernel] = {
    "Riesz(1)": Riesz(1.0),
    "Gaussian": Gaussian(0.7),
    "Laplace": Laplace(0.7),
    "Matern(3/2)": Matern(1.5, 0.7),
    "IMQ": IMQ(0.7),
}
ENOUGH = {torch.float32: 2e-3, torch.float64: 1e-8}
"""Largest error, relative to the largest number of a result, with which it counts as the same."""


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(way: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median over repeats, after two calls that compile and warm up."""
    way(), way()
    laps = []
    for _ in range(repeats):
        sync(device)
        start = time.perf_counter()
        way()
        sync(device)
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)


# --- 1. the same results ---


def cloud(n: int, dim: int, seed: int, batch: tuple[int, ...] = ()) -> DiscreteMeasure:
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(*batch, n, generator=g, dtype=torch.float64) + 0.5
    points = torch.randn(*batch, n, dim, generator=g, dtype=torch.float64)
    return DiscreteMeasure(points, weights / weights.sum(-1, keepdim=True))


def derivatives(functional: Functional, mu: DiscreteMeasure) -> dict[str, Tensor]:
    """Value, Wasserstein gradient, and the derivative of its sum of squares in the points."""
    x = mu.points.clone().requires_grad_()
    gradient = functional.wasserstein_gradient(mu.with_points(x))
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    return {"value": functional(mu), "gradient": gradient.detach(), "second derivative": second}


def task_discrepancy(kernel: Kernel) -> Callable[[torch.device, torch.dtype], dict[str, Tensor]]:
    def task(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        mu, nu = cloud(400, 3, 0).to(device, dtype), cloud(500, 3, 1).to(device, dtype)
        return derivatives(MMD(nu, kernel), mu)

    return task


def task_functional(make: Callable[[DiscreteMeasure], Functional]) -> Callable[[torch.device, torch.dtype], dict[str, Tensor]]:
    def task(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        F = make(cloud(60, 3, 1).to(device, dtype)).to(device)
        mu = cloud(50, 3, 0).to(device, dtype)
        return {"value": F(mu), "gradient": F.wasserstein_gradient(mu)}

    return task


def bowl(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def task_flow(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    F = MMD(cloud(80, 2, 1).to(device, dtype), Gaussian(1.0)) + 0.1 * PotentialEnergy(bowl)
    trajectory = ddeq.flow(F, cloud(60, 2, 0, (2,)).to(device, dtype), stepper=Euler(0.2), steps=50)
    return {"points": trajectory.measure.points, "energies": trajectory.energies}


def task_stationary(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    target = cloud(20, 2, 1).to(device, dtype)
    y = target.points.clone().requires_grad_()
    F = MMD(target.with_points(y), Gaussian(1.5)) + PotentialEnergy(bowl)
    stop = Stop(rtol=1e-8 if dtype == torch.float64 else 1e-4, max_steps=500)
    solution = equilibrium(F, cloud(4, 2, 0).to(device, dtype), stepper=AdaptiveEuler(), stop=stop)
    value = bowl(solution.measure.points).sum()
    (gradient,) = torch.autograd.grad(value, y)
    return {"value": value.detach(), "gradient in the target": gradient}


def task_fixed_point(solver: Any) -> Callable[[torch.device, torch.dtype], dict[str, Tensor]]:
    def task(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(0)
        weight = (0.8 * torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64))[0]).to(device, dtype)
        weight.requires_grad_()
        mu = cloud(12, 8, 0, (5,)).to(device, dtype)

        def image(mu: DiscreteMeasure, weight: Tensor) -> DiscreteMeasure:
            mean = mu.mean().unsqueeze(-2)
            return mu.push_forward(lambda z: torch.tanh(z @ weight + 0.2 * mean) + mu.weights.unsqueeze(-1))

        stop = Stop(rtol=1e-10 if dtype == torch.float64 else 1e-5, max_steps=500)
        solution = fixed_point(image, mu, weight, solver=solver, stop=stop)
        (gradient,) = torch.autograd.grad(solution.measure.points.square().sum(), weight)
        return {"points": solution.measure.points.detach(), "gradient": gradient}

    return task


def task_ddeq(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    width, marks = 32, 8
    stop = Stop(rtol=1e-9 if dtype == torch.float64 else 1e-5, max_steps=200)
    model = DDEQ(InducedSetEncoder(2, width), EquilibriumCell(width, marks), LearnedReference(6, width, marks), stop=stop)
    model = model.to(device, dtype).eval()
    rho = cloud(30, 2, 0, (4,)).to(device, dtype)
    solution = model(rho)
    solution.measure.points.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"points": solution.measure.points.detach(), "gradient in the parameters": gradient}


FUNCTIONALS: dict[str, Callable[[DiscreteMeasure], Functional]] = {
    "SlicedMMD": lambda nu: SlicedMMD(nu, n_projections=16),
    "SlicedWasserstein": lambda nu: SlicedWasserstein(nu, n_projections=16),
    "SinkhornDivergence": lambda nu: SinkhornDivergence(nu, blur=0.3),
    "Chamfer": Chamfer,
}
SOLVERS = (Picard(), Anderson(), Broyden(), NewtonKrylov(), Auto())


def results(device: torch.device, short: bool) -> Rows:
    """A row for each task, precision and backend: the largest error of each result."""
    tasks: dict[str, Any] = {f"MMD, {name}": task_discrepancy(kernel) for name, kernel in KERNELS.items()}
    tasks |= {name: task_functional(make) for name, make in FUNCTIONALS.items()}
    tasks |= {"flow": task_flow, "stationary measure": task_stationary}
    tasks |= {f"fixed point, {type(s).__name__}": task_fixed_point(s) for s in SOLVERS}
    tasks |= {"DDEQ": task_ddeq}
    rows = []
    for name, task in tasks.items():
        with backend("dense"):
            exact = task(torch.device("cpu"), torch.float64)
        for dtype in (torch.float32, torch.float64):
            for way in BACKENDS if name.startswith("MMD") else ("auto",):
                if short and way == "keops" and name != "MMD, Gaussian":
                    continue
                with backend(way):
                    found = task(device, dtype)
                errors = {
                    what: float((found[what].double().cpu() - e).abs().max() / e.abs().max().clamp_min(1e-30))
                    for what, e in exact.items()
                }
                rows.append(
                    {
                        "task": name,
                        "precision": str(dtype).removeprefix("torch."),
                        "backend": way,
                        "largest relative errors": ", ".join(f"{what} {error:.1e}" for what, error in errors.items()),
                        "the same": "yes" if max(errors.values()) <= ENOUGH[dtype] else "NO",
                    }
                )
                print(rows[-1], flush=True)
    return rows


# --- 2. sums ---


def operations_a_second(device: torch.device, n: int) -> float:
    """Of a matrix product in single precision, without the reduced one of tensor cores."""
    torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(n, n, device=device)
    return 2 * n**3 / seconds(lambda: a @ a, device, 7)


def keops_directly(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    difference = LazyTensor(x[:, None]) - LazyTensor(y[None])
    factor = -((difference**2).sum(-1)).rsqrt()
    where = "GPU" if x.is_cuda else "CPU"
    found: Tensor = (factor * LazyTensor(w[None, :, None]) * difference).sum(1, backend=where)
    return found


def sums(device: torch.device, short: bool) -> tuple[Rows, float]:
    """The gradient of an energy distance in dimension 3: seconds, pairs a second, and the share of the limit."""
    limit = operations_a_second(device, 1024 if short else 8192)
    rows: Rows = []
    for n in (1_000, 3_000) if short else (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000):
        g = torch.Generator().manual_seed(0)
        x, y = (torch.randn(n, 3, generator=g).to(device) for _ in range(2))
        w = torch.full((n,), 1.0 / n, device=device)
        nu = DiscreteMeasure(y, w)
        chosen = choose(n, n, device, kernel=Riesz(1.0)).name
        for way in (*BACKENDS, "KeOps, used directly"):
            if way == "dense" and n > 30_000:
                continue

            def run(way: str = way, x: Tensor = x, y: Tensor = y, w: Tensor = w, nu: DiscreteMeasure = nu) -> Tensor:
                if way.startswith("KeOps"):
                    return keops_directly(x, x, w) - keops_directly(x, y, w)
                with backend(way):
                    own = integrate_kernel_gradient(Riesz(1.0), x, DiscreteMeasure(x, w))
                    return own - integrate_kernel_gradient(Riesz(1.0), x, nu)

            time_taken = seconds(run, device, 3 if n > 100_000 else 9)
            rows.append(
                {
                    "N": f"{n:,}",
                    "way": f"ddeq {way}" if way in BACKENDS else way,
                    "auto takes it": "yes" if way == chosen else "",
                    "milliseconds": f"{1e3 * time_taken:.3g}",
                    "pairs a second": f"{2 * n * n / time_taken:.3g}",
                    "share of the limit": f"{2 * n * n * OPERATIONS / time_taken / limit:.1%}",
                }
            )
            print(rows[-1], flush=True)
    return rows, limit


# --- 3. solves ---


class Graphed(nn.Module):
    """A cell recorded as a CUDA graph, whose images are their own memory: the next replay writes over that of the graph."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = torch.compile(cell, mode="reduce-overhead")

    def forward(self, mu: DiscreteMeasure, context: Any) -> DiscreteMeasure:
        return mu.with_points(self.cell(mu, context).points.clone())


def kernel_seconds(way: Callable[[], Any], device: torch.device) -> float:
    """Seconds that the device computes during a call: the sum of its kernels' own times."""
    activity = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        way()
        sync(device)
    events = profile.key_averages()
    if device.type == "cuda":
        return sum(e.self_device_time_total for e in events) / 1e6
    return sum(e.self_cpu_time_total for e in events if e.key.startswith("aten::")) / 1e6


@torch.no_grad()
def solves(device: torch.device, short: bool) -> Rows:
    """Wall time of a solve over its kernels' own, for each solver and way of running the cell."""
    batch = 32 if short else 256
    classifier = load_pretrained("mnist_pc").to(device)
    model = classifier.model
    digits, _ = load_digits("test").batch(torch.arange(batch))
    rho = pretrained_preprocessing("mnist_pc")(digits).to(device)
    context, start = model.encoder(rho), model.reference(rho.batch_shape, rho.points)
    cells = {"as it is": model.cell, "compiled": torch.compile(model.cell)}
    if device.type == "cuda":
        cells["a CUDA graph"] = Graphed(model.cell)
    rows: Rows = []
    for solver in (Picard(), Anderson(), Auto()):
        for how, cell in cells.items():
            for every in (1, 4):
                stop = Stop(rtol=1e-3, max_steps=50, check_every=every)

                def solve(cell: nn.Module = cell, solver: Any = solver, stop: Stop = stop) -> ddeq.solvers.Solution:
                    return fixed_point(cell, start, context, solver=solver, stop=stop)

                solution = solve()
                wall, own = seconds(solve, device, 5 if short else 31), kernel_seconds(solve, device)
                rows.append(
                    {
                        "solver": type(solver).__name__,
                        "cell": how,
                        "check_every": every,
                        "evaluations": solution.evaluations,
                        "CONVERGED": f"{float(solution.converged.float().mean()):.1%}",
                        "milliseconds": f"{1e3 * wall:.2f}",
                        "of its kernels": f"{1e3 * own:.2f}",
                        "ratio": f"{wall / own:.2f}",
                    }
                )
                print(rows[-1], flush=True)
    return rows


# --- 4. training ---


def training(data: str, minutes: float, folder: Path) -> Rows:
    """When our classifier was at 98.5 % of 2,000 validation digits."""
    script = str(Path(__file__).with_name("race.py"))
    words = ["--dataset", "mnist_pc", "--data", data, "--minutes", f"{minutes:g}", "--every", "0.25", "--inputs", "2000"]
    subprocess.run([sys.executable, script, *words, "--contestants", "ddeq", "--output", str(folder / "gpu")], check=True)
    run = json.loads((folder / "gpu" / "race.json").read_text())["mnist_pc"]["runs"]["ddeq"]
    there = [p["seconds"] for p in run["points"] if p["accuracy"] >= 0.985]
    return [
        {
            "minutes of training": f"{run['points'][-1]['seconds'] / 60:.1f}",
            "accuracy": f"{run['points'][-1]['accuracy']:.2%}",
            "minutes to 98.5 %": f"{there[0] / 60:.1f}" if there else "not reached",
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of MNIST-pc, for the training")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=6.0, help="of training (%(default)s)")
    parser.add_argument("--device", default="cuda")
    add_output(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: no GPU is here; --device cpu shows that the script runs")
    short = device.type != "cuda"
    where = machine() if short else f"{torch.cuda.get_device_name(device)}, {machine()}"
    lines = ["# On a GPU" if not short else "# A short run without a GPU", ""]
    found: dict[str, Any] = {"where": where}
    if "results" in options.parts:
        found["results"] = results(device, short)
        lines += ["## The same results as on the CPU", "", *markdown(found["results"]), ""]
    if "sums" in options.parts:
        found["sums"], found["operations a second"] = sums(device, short)
        lines += ["## Sums over pairs: the gradient of an energy distance in dimension 3", "", *markdown(found["sums"]), ""]
        lines += [f"The limit: {found['operations a second']:.3g} operations a second, of a matrix product.", ""]
    if "solves" in options.parts:
        found["solves"] = solves(device, short)
        lines += ["## Equilibrium solves", "", *markdown(found["solves"]), ""]
    if "training" in options.parts and options.data:
        found["training"] = training(options.data, options.minutes, options.output)
        lines += ["## Training on MNIST-pc", "", *markdown(found["training"]), ""]
    words = without_output(sys.argv[1:])
    if "--data" in words:
        words[words.index("--data") + 1] = "FOLDER"
    found["command"] = f"python benchmarks/gpu.py {shlex.join(words)}".strip()
    keep(options.output, "gpu", "\n".join([*lines, f"Made by `{found['command']}` on {where}.", ""]), found, show=False)


if __name__ == "__main__":
    main()
