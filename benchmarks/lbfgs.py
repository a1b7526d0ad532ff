"""Gradients until the largest entry of the gradient is 1e-5: ours and scipy's, on the same functions from their standard starts.

The classical functions are potentials of a single atom, whose coordinates are the unknowns; the energies of measures have their
atoms as unknowns. For all ways the function, the start and the wanted gradient are the same: ours stop when the Euclidean norm of
the gradient in the points is 1e-5, which is stricter for more than one unknown; scipy's when its largest entry is.

    python benchmarks/lbfgs.py [--repeats 3]

Gradients are counted, and products with the Hessian where Newton's method takes them; energies are counted separately. scipy
computes both together. Double precision.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import add_output, keep, machine
from scipy.optimize import minimize
from torch import Tensor

import ddeq
from ddeq import DiscreteMeasure, Functional
from ddeq.flows import LBFGS, AdaptiveEuler, equilibrium
from ddeq.functionals import MMD, PotentialEnergy, SinkhornDivergence
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian

TOLERANCE = 1e-5
DOUBLE = torch.float64
MOST = 2000
Rows = list[dict[str, Any]]


def rosenbrock(x: Tensor) -> Tensor:
    return 100 * (x[..., 1] - x[..., 0] ** 2) ** 2 + (1 - x[..., 0]) ** 2


def beale(x: Tensor) -> Tensor:
    a, b = x[..., 0], x[..., 1]
    return (1.5 - a * (1 - b)) ** 2 + (2.25 - a * (1 - b**2)) ** 2 + (2.625 - a * (1 - b**3)) ** 2


def trigonometric(x: Tensor) -> Tensor:
    n = x.shape[-1]
    index = torch.arange(1, n + 1, dtype=x.dtype)
    return (n - x.cos().sum(-1, keepdim=True) + index * (1 - x.cos()) - x.sin()).square().sum(-1)


def fletcher_powell(n: int) -> tuple[Callable[[Tensor], Tensor], list[float]]:
    """Sum of squares of n trigonometric sums with random coefficients, and a start near a zero."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(-100, 101, (2, n, n), generator=g).to(DOUBLE)
    zero, away = 3.14 * (2 * torch.rand(2, n, generator=g, dtype=DOUBLE) - 1)
    wanted = a @ zero.sin() + b @ zero.cos()
    return lambda x: (wanted - x.sin() @ a.T - x.cos() @ b.T).square().sum(-1), (zero + 0.1 * away).tolist()


def chain(x: Tensor, fixed: bool = False) -> Tensor:
    """Springs of length 1 in a row that begins at 0, and ends at n + 1 if it is ``fixed`` there."""
    ends = [torch.zeros_like(x[..., :1]), x] + ([torch.full_like(x[..., :1], x.shape[-1] + 1)] if fixed else [])
    return 0.5 * (torch.cat(ends, -1).diff(dim=-1) - 1).square().sum(-1)


def cloud(n: int, seed: int) -> DiscreteMeasure:
    return DiscreteMeasure(torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))


def problems() -> dict[str, tuple[Functional, DiscreteMeasure]]:
    """Functionals and starts."""

    def atom(potential: Callable[[Tensor], Tensor], start: list[float]) -> tuple[Functional, DiscreteMeasure]:
        return PotentialEnergy(potential), DiscreteMeasure(torch.tensor([start], dtype=DOUBLE))

    found = {
        "Rosenbrock": atom(rosenbrock, [-1.2, 1.0]),
        "Beale": atom(beale, [1.0, 1.0]),
        "trigonometric, 70 unknowns": atom(trigonometric, [1 / 70] * 70),
        "trigonometric of Fletcher and Powell, 70 unknowns": atom(*fletcher_powell(70)),
        "half of the first trigonometric": atom(lambda x: 0.5 * trigonometric(x), [1 / 70] * 70),
    }
    for n in (10, 15, 20, 25):
        found[f"chain of {n} springs, one end fixed"] = atom(chain, [0.0] * n)
        found[f"chain of {n + 1} springs, both ends fixed"] = atom(lambda x: chain(x, fixed=True), [0.0] * n)
    found["MMD, Gaussian kernel, 20 atoms to 30"] = (MMD(cloud(30, 1), Gaussian(1.0)), cloud(20, 0))
    found["Sinkhorn divergence, 20 atoms to 30"] = (SinkhornDivergence(cloud(30, 1), blur=0.3), cloud(20, 0))
    return found


class Counting(Functional):
    """A functional whose energies are counted."""

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.functional, self.energies, self.smoothness, self.tolerance = (
            functional,
            0,
            functional.smoothness,
            functional.tolerance,
        )

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        self.energies += 1
        return self.functional(mu)

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        return self.functional.wasserstein_gradient(mu, x)


def plain_gradient(functional: Functional, mu: DiscreteMeasure) -> Tensor:
    """The gradient in the points."""
    return mu.weights.unsqueeze(-1) * functional.wasserstein_gradient(mu)


def ours(functional: Functional, mu: DiscreteMeasure, way: str) -> dict[str, Any]:
    counting = Counting(functional)
    gradient = functional.wasserstein_gradient(mu)
    first = float((mu.weights.unsqueeze(-1) * gradient.square()).sum().sqrt())
    # Of equal masses 1 / n the norm in L2(mu) is the root of n times that of the gradient in the points.
    stop = Stop(rtol=TOLERANCE * mu.n**0.5 / first, atol=1e-300, max_steps=MOST)
    options: dict[str, Any] = {
        "flow with LBFGS()": {"stepper": LBFGS(), "finish": False},
        "flow with LBFGS(10)": {"stepper": LBFGS(10), "finish": False},
        "equilibrium": {},
        "equilibrium, AdaptiveEuler and Newton": {"stepper": AdaptiveEuler()},
    }[way]
    solution = equilibrium(counting, mu, stop=stop, **options)
    return {"gradients": solution.evaluations, "energies": counting.energies, "end": solution.measure}


def scipys(functional: Functional, mu: DiscreteMeasure, method: str, **options: Any) -> dict[str, Any]:
    def both(x: Any) -> tuple[float, Any]:
        nu = mu.with_points(torch.as_tensor(x, dtype=DOUBLE).reshape(mu.points.shape))
        return float(functional(nu)), plain_gradient(functional, nu).flatten().numpy()

    done = minimize(both, mu.points.flatten().numpy(), jac=True, method=method, options={"gtol": TOLERANCE, **options})
    end = mu.with_points(torch.as_tensor(done.x, dtype=DOUBLE).reshape(mu.points.shape))
    return {"gradients": int(done.nfev), "energies": int(done.nfev), "end": end}


def ways() -> dict[str, Callable[[Functional, DiscreteMeasure], dict[str, Any]]]:
    found: dict[str, Callable[[Functional, DiscreteMeasure], dict[str, Any]]] = {
        f"ddeq, {name}": lambda F, mu, name=name: ours(F, mu, name)
        for name in ("flow with LBFGS()", "flow with LBFGS(10)", "equilibrium", "equilibrium, AdaptiveEuler and Newton")
    }
    found["scipy, BFGS"] = lambda F, mu: scipys(F, mu, "BFGS")
    for memory in (10, 100):
        found[f"scipy, L-BFGS-B, maxcor={memory}"] = lambda F, mu, memory=memory: scipys(
            F, mu, "L-BFGS-B", maxcor=memory, ftol=0.0, maxfun=10 * MOST, maxiter=10 * MOST
        )
    return found


@torch.no_grad()
def measured(repeats: int) -> Rows:
    rows: Rows = []
    for problem, (F, mu) in problems().items():
        results = {}
        for way, run in ways().items():
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                results[way] = run(F, mu)
                seconds.append(time.perf_counter() - start)
            results[way]["seconds"] = statistics.median(seconds)
        for way, result in results.items():
            rows.append(
                {
                    "problem": problem,
                    "way": way,
                    "gradients": result["gradients"],
                    "times those of BFGS": f"{result['gradients'] / results['scipy, BFGS']['gradients']:.2f}",
                    "energies": result["energies"],
                    "largest entry of the gradient": f"{float(plain_gradient(F, result['end']).abs().max()):.1e}",
                    "energy": f"{float(F(result['end'])):.3e}",
                    "seconds": f"{result['seconds']:.3f}",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    add_output(parser)
    options = parser.parse_args()
    rows = measured(options.repeats)
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    text = (
        "# L-BFGS\n\n"
        f"Gradients until the largest entry of the gradient in the points is {TOLERANCE:g}, in one run, from the same starts.\n\n"
        + "\n".join(lines)
        + f"\n\nMade by `python benchmarks/lbfgs.py --repeats {options.repeats}` on {machine()}.\n"
    )
    keep(options.output, "lbfgs", text, {"rows": rows, "machine": machine(), "version": ddeq.__version__})


if __name__ == "__main__":
    main()
