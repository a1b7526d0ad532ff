"""How often the processor waits for a device, counted on the pretend one: in a step of a flow or a solve, and in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pretend
import torch
from everywhere import Place

from ddeq import fixed_point, flow
from ddeq.data import normalize
from ddeq.flows import AdaptiveEuler, Euler, Heun, Nesterov, Stepper
from ddeq.functionals import KALE, MMD, SinkhornDivergence, SlicedWasserstein
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian
from ddeq.nn import load_pretrained
from ddeq.solvers import Anderson, Broyden, Picard, Solver

__all__ = ["PER_CALL", "PER_STEP"]

PLACE = Place(torch.float64, pretend.NAME)
EVERY = 10


def waits(call: Callable[[], Any]) -> int:
    """Synchronisations of a call."""
    with pretend.counting() as counted:
        call()
    return sum(counted.values())


def per_step(call: Callable[[int], Any]) -> float:
    """Synchronisations of a step, between step 20 and step 40 of a call that makes so many."""
    return (waits(lambda: call(40)) - waits(lambda: call(20))) / 20


def _flow(stepper: Stepper, check_every: int | None) -> Callable[[], float]:
    def run(steps: int) -> Any:
        F, mu = MMD(PLACE.cloud(5, seed=3), Gaussian(1.0)), PLACE.cloud(6, batch=(2,))
        if check_every is None:
            return flow(F, mu, stepper=stepper, steps=steps)
        return flow(F, mu, stepper=stepper, stop=Stop(rtol=1e-9, max_steps=steps, check_every=check_every))

    return lambda: per_step(run)


def _solve(solver: Solver, check_every: int) -> Callable[[], float]:
    """An affine map of dimension 120 that is nearly a rotation: no solver is done after 40 steps."""
    matrix = 0.999 * torch.linalg.qr(torch.randn(120, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    stop = {"rtol": 1e-13, "atol": 0.0, "check_every": check_every, "patience": 1000}

    def run(steps: int) -> Any:
        A = matrix.to(pretend.NAME)
        map = lambda mu: mu.push_forward(lambda x: x @ A + 1.0)
        return fixed_point(map, PLACE.cloud(3, 120, batch=(2,)), solver=solver, stop=Stop(max_steps=steps, **stop))

    return lambda: per_step(run)


def _classifier(name: str) -> Callable[[], int]:
    def run() -> int:
        place = Place(torch.float32, pretend.NAME)
        model, rho = (
            load_pretrained(name).to(pretend.NAME),
            normalize(place.cloud(40, 2 if name == "mnist_pc" else 3, batch=(2,))),
        )
        with torch.no_grad():
            return waits(lambda: model(rho))

    return run


def _gradient(functional: Any) -> Callable[[], int]:
    def run() -> int:
        F, mu = functional(PLACE.cloud(5, seed=3)), PLACE.cloud(6, batch=(2,))
        return waits(lambda: F.wasserstein_gradient(mu))

    return run


PER_STEP: dict[str, Callable[[], float]] = {
    "Euler": _flow(Euler(1e-3), None),
    "Euler with a stop": _flow(Euler(1e-3), 1),
    f"Euler with a stop, check_every={EVERY}": _flow(Euler(1e-3), EVERY),
    "Heun": _flow(Heun(1e-3), None),
    "Nesterov": _flow(Nesterov(1e-3), None),
    "AdaptiveEuler": _flow(AdaptiveEuler(), None),
    **{type(s).__name__: _solve(s, 1) for s in (Picard(), Anderson(), Broyden())},
    **{f"{type(s).__name__}, check_every={EVERY}": _solve(s, EVERY) for s in (Picard(), Anderson(), Broyden())},
}
PER_CALL: dict[str, Callable[[], int]] = {
    "forward of the classifier of digits": _classifier("mnist_pc"),
    "forward of the classifier of shapes": _classifier("modelnet40"),
    "gradient of MMD": _gradient(lambda nu: MMD(nu, Gaussian(1.0))),
    "gradient of SlicedWasserstein": _gradient(lambda nu: SlicedWasserstein(nu, n_projections=8)),
    "gradient of KALE": _gradient(lambda nu: KALE(nu, Gaussian(1.0), 0.5)),
    "gradient of SinkhornDivergence": _gradient(lambda nu: SinkhornDivergence(nu, blur=0.5)),
}
