"""Equilibrium solves side by side, in one run: the paper's way, torchdeq's solvers and ours, on the same maps.

1. *The paper's way*, written from its description: particles start at random and descend MMD^2 between the measure and its
   image (Riesz kernel, r = 1) by plain gradient steps through the network, which encodes the input again in every step.
   With ``--reference DIRECTORY``, a checkout of the paper's code (github.com/j-geuter/DDEQs, which needs no installation),
   its own forward pass too, and our solvers on its own network.
2. *torchdeq* and our solvers on the same maps to the same relative tolerance: evaluations, seconds, residual, and the error of
   the implicit gradient against a solve in double precision that is unrolled to the end.
3. *Memory*: by how much forward and backward raise the peak of a process, for few and for many steps.

    python benchmarks/equilibrium.py [--batch 8] [--points 150] [--repeats 5] [--reference DIRECTORY]

Times are medians over repeats in turn, with the smallest and largest; residuals are relative ones in L2(mu), the largest of
the batch, computed afterwards by the same code for all.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import add_output, added_megabytes, keep, machine

import ddeq.solvers
from ddeq import DiscreteMeasure, fixed_point
from ddeq.functionals import MMD
from ddeq.nn import DDEQ, ContractiveCell, EquilibriumCell, InducedSetEncoder, LearnedReference
from ddeq.solvers import Anderson, Implicit, Picard, Stop, Unrolled

STEPS = 200
TOLERANCE = 1e-5
SOLVERS = [
    getattr(ddeq.solvers, n)() for n in ("Picard", "Anderson", "Broyden", "NewtonKrylov", "Auto") if n in ddeq.solvers.__all__
]

Rows = list[dict[str, Any]]


def timed(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return times


def relative_residual(image: torch.Tensor, z: torch.Tensor) -> float:
    """Largest of the batch, in L2 of equal masses."""
    return float(((image - z).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)).max())


# --- 1. the paper's way ---


def problem(batch: int, points: int, cell: type = EquilibriumCell, seed: int = 0) -> tuple[DDEQ, DiscreteMeasure]:
    """A cell of the paper's size (10 particles of dimension 128) and random clouds of different sizes."""
    torch.manual_seed(seed)
    width, atoms, marks = 128, 10, 16
    model = DDEQ(InducedSetEncoder(2, width), cell(width, marks), LearnedReference(atoms, width, marks))
    clouds = [torch.rand(points - 10 * i, 2) * 2 - 1 for i in range(min(batch, 8))]
    return model.eval(), DiscreteMeasure.from_clouds([clouds[i % len(clouds)] for i in range(batch)])


def descend(model: DDEQ, rho: DiscreteMeasure, step_size: float, steps: int = STEPS) -> DiscreteMeasure:
    """The paper's forward pass; in each step the input is encoded again."""
    mu = model.reference(rho.batch_shape, rho.points)
    z = mu.points.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([z], lr=step_size)
    for _ in range(steps):
        state = mu.detach().with_points(z)
        loss = 2.0 * MMD(model.cell(state, model.encoder(rho)))(state).sum()
        optimizer.zero_grad()
        loss.backward(inputs=[z])
        optimizer.step()
    return mu.detach().with_points(z.detach())


@torch.no_grad()
def solve(model: DDEQ, rho: DiscreteMeasure, solver: Any) -> DiscreteMeasure:
    """Ours: the context once, then the solve, down to 1e-4."""
    mu = model.reference(rho.batch_shape, rho.points)
    return fixed_point(model.cell, mu, model.encoder(rho), in_dims=0, solver=solver, stop=Stop(rtol=1e-4)).measure


def papers_way(options: argparse.Namespace) -> Rows:
    model, rho = problem(options.batch, options.points)

    @torch.no_grad()
    def residual(mu: DiscreteMeasure) -> float:
        return relative_residual(model.cell(mu, model.encoder(rho)).points, mu.points)

    # The step size that serves the paper's way best, of a few, found on this problem.
    best = min((10.0, 30.0, 100.0, 300.0), key=lambda s: residual(descend(model, rho, s)))
    ways: dict[str, Callable[[], DiscreteMeasure]] = {
        f"the paper's way: {STEPS} descent steps (step size {best:g})": lambda: descend(model, rho, best),
        "ddeq, Picard": lambda: solve(model, rho, Picard()),
        "ddeq, Anderson": lambda: solve(model, rho, Anderson()),
    }
    residuals = {name: residual(way()) for name, way in ways.items()}
    return table(timed(ways, options.repeats), residuals)


def reference_way(checkout: Path, options: argparse.Namespace) -> Rows:
    """The paper's own code and network; our solvers on that network as it stands, and with what depends on the input kept."""
    for name in ("wandb", "plotting"):  # it logs and draws there, if it is asked to
        stand_in = types.ModuleType(name)
        stand_in.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
        sys.modules.setdefault(name, stand_in)
    sys.path.insert(0, str(checkout / "src"))
    import get_hyperparams
    import gradientflow
    import torchdeq.solver
    import utils

    torchdeq.solver.register_solver("mmd", gradientflow.mmd_gf)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        network = get_hyperparams.get_hyperparams_classifier_mnist(types.SimpleNamespace(stop_mode="rel"))[0].eval()
    x = torch.rand(options.batch, options.points, 2) * 2 - 1
    kept = copy.deepcopy(network)
    for name in ("equivariant_x", "ln2", "equivariant_x2", "ln5", "x_self_encoder"):
        keep_first_output(getattr(kept.deq_model, name))
    found: dict[str, torch.Tensor] = {}

    def theirs() -> None:
        found["the paper's code, its network"] = first(network(x, use_classifier=False)[0])

    def image(mu: DiscreteMeasure, network: Any = network) -> DiscreteMeasure:
        return mu.with_points(network.deq_model(mu.points, x, x_mask=utils.get_mask(x))[0])

    @torch.no_grad()
    def ours(name: str, network: Any, solver: Any) -> None:
        start = DiscreteMeasure(torch.randn(options.batch, 10, network.d_z))
        map = lambda mu: image(mu, network)  # noqa: E731
        found[name] = fixed_point(map, start, solver=solver, stop=Stop(rtol=1e-4)).measure.points

    ways: dict[str, Callable[[], Any]] = {"the paper's code, its network": theirs}
    for solver in (Picard(), Anderson()):
        for which, chosen in (("as it stands", network), ("its input encoded once", kept)):
            name = f"ddeq, {type(solver).__name__}, the paper's network, {which}"
            ways[name] = lambda name=name, chosen=chosen, solver=solver: ours(name, chosen, solver)
    times = timed(ways, max(1, options.repeats // 3))
    with torch.no_grad():
        residuals = {name: relative_residual(image(DiscreteMeasure(z)).points, z) for name, z in found.items()}
    return table(times, residuals)


def keep_first_output(module: torch.nn.Module) -> None:
    """From its second call on, the module gives what it gave at the first one."""
    forward, outputs = module.forward, []

    def kept(*args: Any, **options: Any) -> Any:
        if not outputs:
            outputs.append(forward(*args, **options))
        return outputs[0]

    module.forward = kept  # type: ignore[method-assign]


def first(z: Any) -> torch.Tensor:
    tensor: torch.Tensor = z[0] if isinstance(z, (list, tuple)) else z
    return tensor.detach()


def table(times: dict[str, list[float]], residuals: dict[str, float]) -> Rows:
    slow = statistics.median(next(iter(times.values())))
    return [
        {
            "solve": name,
            "seconds (smallest to largest)": f"{statistics.median(t):.3f} ({min(t):.3f} to {max(t):.3f})",
            "times faster": f"{slow / statistics.median(t):.0f}",
            "largest relative residual": f"{residuals[name]:.1e}",
        }
        for name, t in times.items()
    ]


# --- 2. torchdeq ---

Map = Callable[..., torch.Tensor]


def maps(batch: int, points: int) -> dict[str, tuple[Map, torch.Tensor, list[torch.Tensor]]]:
    """Maps of points and parameters, starts and parameters, in double precision."""
    found: dict[str, tuple[Map, torch.Tensor, list[torch.Tensor]]] = {}
    for cell in (EquilibriumCell, ContractiveCell):
        model, rho = problem(batch, points, cell)
        model, rho = model.double(), rho.to(torch.float64)
        with torch.no_grad():
            context = model.encoder(rho)
            start = model.reference(rho.batch_shape, rho.points)
        names, parameters = zip(*((k, p.detach()) for k, p in model.cell.named_parameters()), strict=True)

        def image(
            z: torch.Tensor,
            *tensors: torch.Tensor,
            model: Any = model,
            context: Any = context,
            start: Any = start,
            names: Any = names,
        ) -> torch.Tensor:
            mu, given = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(z.dtype), (start, context))
            mu = mu.with_points(z)
            return torch.func.functional_call(model.cell, dict(zip(names, tensors, strict=True)), (mu, given)).points

        found[f"{cell.__name__}, untrained, 10 atoms, dimension 128"] = (image, start.points, list(parameters))
    g = torch.Generator().manual_seed(0)
    for radius in (0.9, 0.99):
        a = torch.randn(200, 200, generator=g, dtype=torch.float64)
        a = a * radius / torch.linalg.eigvals(a).abs().max()
        b = torch.randn(batch, 200, generator=g, dtype=torch.float64)

        def affine(z: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (z.flatten(1) @ a.mT + b).reshape(z.shape)

        found[f"affine, dimension 200, spectral radius {radius}"] = (
            affine,
            torch.zeros(batch, 100, 2, dtype=torch.float64),
            [a, b],
        )
    turn = torch.block_diag(
        *(0.9 * torch.linalg.matrix_exp(torch.tensor([[0.0, -t], [t, 0.0]])) for t in torch.linspace(0.2, 3, 20))
    )
    b = torch.randn(batch, 40, generator=g, dtype=torch.float64)
    found["20 rotations by 0.2 to 3, each shrinking by 0.9"] = (
        affine,
        torch.zeros(batch, 20, 2, dtype=torch.float64),
        [turn.double(), b],
    )
    return found


def truth(map: Map, start: torch.Tensor, parameters: list[torch.Tensor], loss: torch.Tensor) -> list[torch.Tensor]:
    """Gradients in double precision, through every step of Picard's iteration until nothing changes."""
    inputs = [p.clone().requires_grad_() for p in parameters]
    stop = Stop(rtol=1e-12, atol=1e-14, max_steps=4000, patience=50)

    def on_measures(mu: DiscreteMeasure, *tensors: torch.Tensor) -> DiscreteMeasure:
        return mu.with_points(map(mu.points, *tensors))

    solution = fixed_point(
        on_measures, DiscreteMeasure(start), *inputs, solver=Picard(), stop=stop, adjoint=Unrolled(checkpoint=True)
    )
    return list(torch.autograd.grad((solution.measure.points * loss).sum(), inputs))


def with_ours(map: Map, start: torch.Tensor, parameters: list[torch.Tensor], loss: torch.Tensor, solver: Any) -> dict[str, Any]:
    inputs = [p.requires_grad_() for p in parameters]
    stop, reports = Stop(rtol=TOLERANCE, max_steps=300), []

    def on_measures(mu: DiscreteMeasure, *tensors: torch.Tensor) -> DiscreteMeasure:
        return mu.with_points(map(mu.points, *tensors))

    adjoint = Implicit(solver, report=reports.append)
    clock = [time.perf_counter()]
    solution = fixed_point(on_measures, DiscreteMeasure(start), *inputs, solver=solver, stop=stop, adjoint=adjoint)
    clock.append(time.perf_counter())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grads = torch.autograd.grad((solution.measure.points * loss).sum(), inputs)
    clock.append(time.perf_counter())
    return {
        "z": solution.measure.points.detach(),
        "grads": grads,
        "counts": (solution.evaluations, reports[0].products),
        "clock": clock,
    }


def with_torchdeq(
    map: Map, start: torch.Tensor, parameters: list[torch.Tensor], loss: torch.Tensor, solver: str
) -> dict[str, Any]:
    from torchdeq import get_deq

    inputs, count, steps = [p.requires_grad_() for p in parameters], [0], []
    deq = get_deq(
        f_solver=solver, b_solver=solver, ift=True, f_tol=TOLERANCE, b_tol=TOLERANCE, f_stop_mode="rel", b_stop_mode="rel",
        f_max_iter=300, b_max_iter=300,
    )  # fmt: skip

    def image(z: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return map(z, *inputs)

    clock = [time.perf_counter()]
    z = deq(image, start, backward_writer=lambda info: steps.append(float(info["nstep"].max())))[0][-1]
    clock.append(time.perf_counter())
    forward = count[0]
    grads = torch.autograd.grad((z * loss).sum(), inputs)
    clock.append(time.perf_counter())
    return {"z": z.detach(), "grads": grads, "counts": (forward, int(steps[0])), "clock": clock}


def against_torchdeq(options: argparse.Namespace) -> Rows:
    rows: Rows = []
    for name, (map, start, parameters) in maps(options.batch, options.points).items():
        loss = torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=start.dtype)
        exact = torch.cat([g.flatten() for g in truth(map, start, parameters, loss)])
        single = [t.float() for t in (start, loss, *parameters)]
        ways = {f"torchdeq, {s}": (with_torchdeq, s) for s in ("fixed_point_iter", "anderson", "broyden")}
        ways |= {f"ddeq, {type(s).__name__}": (with_ours, s) for s in SOLVERS}
        for way, (run, solver) in ways.items():
            attempts = []
            for _ in range(options.repeats):
                low = [t.clone() for t in single]
                attempts.append(run(map, low[0], low[2:], low[1], solver))
            last = attempts[-1]
            with torch.no_grad():
                residual = relative_residual(map(last["z"], *single[2:]), last["z"])
            grads = torch.cat([g.flatten() for g in last["grads"]]).double()
            seconds = [statistics.median(a["clock"][i + 1] - a["clock"][i] for a in attempts) for i in (0, 1)]
            rows.append(
                {
                    "map": name,
                    "solver": way,
                    "evaluations": last["counts"][0],
                    "seconds": f"{seconds[0]:.4f}",
                    "residual": f"{residual:.1e}",
                    "products backward": last["counts"][1],
                    "seconds backward": f"{seconds[1]:.4f}",
                    "gradient error": f"{float((grads - exact).norm() / exact.norm()):.1e}",
                }
            )
            print(rows[-1], flush=True)
    return rows


# --- 3. memory ---

PREPARE = """
import torch, warnings
warnings.simplefilter("ignore")
import ddeq
from ddeq.nn import DDEQ, EquilibriumCell, InducedSetEncoder, LearnedReference
from ddeq.solvers import Implicit, Picard, Stop, Unrolled
torch.manual_seed(0)
model = DDEQ(InducedSetEncoder(2, 128), EquilibriumCell(128, 16), LearnedReference(32, 128, 16), solver=Picard())
rho = ddeq.DiscreteMeasure(torch.rand(64, 64, 2))
def run(adjoint, steps, rho=rho):
    model.stop, model.adjoint = Stop(rtol=1e-30, atol=0.0, max_steps=steps, patience=10**6), adjoint
    z = model(rho).measure.points
    if adjoint is not None:
        z.square().sum().backward()
run(Implicit(), 2, rho[:1])
"""


def memory() -> Rows:
    rows: Rows = []
    ways = {
        "Implicit(Picard())": (10, 50, 200),
        "Implicit()": (100, 200, 400),  # its tolerance is out of reach, so that it ends with GMRES, whose bases are kept
        "Unrolled()": (10, 40),
        "Unrolled(checkpoint=True)": (10, 40),
    }
    for name, steps in ways.items():
        rows += [
            {
                "adjoint": name,
                "steps": k,
                "megabytes that forward and backward add": f"{added_megabytes(PREPARE, f'run({name}, {k})'):.0f}",
            }
            for k in steps
        ]
        print(*rows[-len(steps) :], sep="\n", flush=True)
    return rows


# --- all of it ---


def markdown(rows: Rows) -> list[str]:
    names = list(rows[0])
    return [
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(r[n]) for n in names) + " |" for r in rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--points", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference", type=Path, default=None, help="a checkout of the paper's code")
    add_output(parser)
    options = parser.parse_args()
    parts = {
        "The paper's way": papers_way(options),
        "torchdeq": against_torchdeq(options),
        "Memory": memory(),
    }
    if options.reference is not None:
        parts["The paper's code"] = reference_way(options.reference, options)
    command = f"python benchmarks/equilibrium.py --batch {options.batch} --points {options.points} --repeats {options.repeats}"
    command += " --reference CHECKOUT" if options.reference else ""
    write(parts, command, machine(), options.output)


NOTES = {
    "torchdeq": f"Single precision, relative tolerance {TOLERANCE:g} forward and backward, at most 300 steps; batch as above. "
    "Errors are those of the whole gradient, relative; the truth is double precision, unrolled. torchdeq returns its solution "
    "after one more application of the map, which its residual here includes.",
    "Memory": "Batch 64, 32 atoms of dimension 128; each line in a process of its own that gives freed memory back at once, "
    "after a solve of one sample.",
    "The paper's code": "Both solve the paper's network with its own parameters at the start, on the same inputs.",
}


def write(parts: dict[str, Rows], command: str, where: str, folder: Path) -> None:
    lines = ["# Equilibrium solve", ""]
    for title, rows in parts.items():
        lines += [f"## {title}", "", *([NOTES[title], ""] if title in NOTES else []), *markdown(rows), ""]
    text = "\n".join([*lines, f"Made by `{command}` on {where}.", ""])
    keep(folder, "equilibrium", text, {"command": command, "where": where, "parts": parts})


if __name__ == "__main__":
    main()
