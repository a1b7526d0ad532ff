"""What sinkhorn.py compares: clouds, ways to value and gradient of the Sinkhorn divergence, and a reference that is checked."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KEOPS_VERBOSE", "0")
os.environ.setdefault("PYKEOPS_VERBOSE", "0")

import numpy as np
import ot
import torch
from functionals import Value, differences, geomloss, gradient, ours
from torch import Tensor

from ddeq import DiscreteMeasure
from ddeq.functionals import SinkhornDivergence
from ddeq.iteration import Status, Stop

BLUR = 0.05
OURS, GEOMLOSS, POT, OTT_JAX = "ddeq", "geomloss", "POT", "OTT-JAX"
SCALINGS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Of geomloss; the first is its default."""
TOLERANCES = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5)
"""Relative errors of the marginals at which POT ends, in L2, and OTT-JAX, in L1, whose default is 1e-3."""
MOST = 10_000
"""Iterations."""

warnings.filterwarnings("ignore", module="ot")


# --- clouds, in the unit square or cube ---


def ring(n: int, g: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(n, generator=g, dtype=torch.float64)
    return 0.5 + 0.35 * torch.stack([angle.cos(), angle.sin()], -1) + 0.02 * normal(n, 2, g)


def two_moons(n: int, g: torch.Generator) -> Tensor:
    """Half circles that reach into each other, half of the atoms on each."""
    angle = math.pi * torch.rand(n, generator=g, dtype=torch.float64)
    upper, lower = torch.stack([angle.cos(), angle.sin()], -1), torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
    both = torch.where((torch.arange(n) % 2 == 0).unsqueeze(-1), upper, lower)
    return 0.5 + 0.25 * (both - torch.tensor([0.5, 0.25]) + 0.05 * normal(n, 2, g))


def sphere(n: int, g: torch.Generator) -> Tensor:
    return 0.5 + 0.4 * torch.nn.functional.normalize(normal(n, 3, g), dim=-1)


def torus(n: int, g: torch.Generator) -> Tensor:
    angle, around = 2 * math.pi * torch.rand(2, n, generator=g, dtype=torch.float64)
    radius = 0.3 + 0.1 * around.cos()
    return 0.5 + torch.stack([radius * angle.cos(), radius * angle.sin(), 0.1 * around.sin()], -1) + 0.01 * normal(n, 3, g)


def normal(n: int, dim: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, dim, generator=g, dtype=torch.float64)


def clouds(n: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """In the plane a noisy ring and two moons, in space a sphere and a noisy torus."""
    g = torch.Generator().manual_seed(0)
    start, target = {2: (ring, two_moons), 3: (sphere, torus)}[dim]
    return start(n, g).to(dtype), target(n, g).to(dtype)


# --- the reference ---


def reference(x: Tensor, y: Tensor) -> Tensor:
    """Gradient in the points, of a solve in double precision whose marginals have the relative error 1e-12."""
    F = SinkhornDivergence(DiscreteMeasure(y.double()), BLUR, stop=Stop(rtol=1e-12, max_steps=1000))
    found = gradient(ours(F), x.double())
    if F.status is None or (F.status != Status.CONVERGED).any():
        raise RuntimeError("the reference has not converged")
    return found


def divergence(x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(SinkhornDivergence(DiscreteMeasure(y.double()), BLUR)(DiscreteMeasure(x.double())))


def error(found: Tensor, truth: Tensor) -> float:
    """Relative, in L2 of the measure."""
    return float((found.double() - truth).norm() / truth.norm())


def against_pot(x: Tensor, y: Tensor) -> float:
    """By how much the reference differs from the gradient of POT's iterations in the logarithmic domain, run to 1e-9."""
    return error(gradient(pot(y.double(), 1e-9, 10 * MOST), x.double()), reference(x, y))


# --- ways ---


def pot(y: Tensor, tolerance: float, most: int = MOST) -> Value:
    """Three regularized problems, each iterated in the logarithmic domain; derivatives by the envelope theorem."""

    def cost(x: Tensor, y: Tensor) -> Tensor:
        # POT's error is not a relative one: in L2 of counts, where the marginal itself has the norm n**-0.5.
        options: dict[str, Any] = {"max_iter": most, "tol": tolerance * len(y) ** -0.5, "grad": "envelope"}
        return ot.solve(0.5 * differences(x, y).square().sum(-1), reg=BLUR**2, reg_type="KL", **options).value

    return lambda x: cost(x, y) - 0.5 * cost(x, x) - 0.5 * cost(y, y)


Lap = tuple[float, Tensor]
"""Seconds of value and gradient, and the gradient."""


@dataclass(frozen=True)
class Way:
    """One way to value and gradient; ``run`` gives None where they would take longer than it is given seconds."""

    peer: str
    setting: str
    run: Callable[[float], Lap | None]

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.peer, self.setting)))

    @property
    def family(self) -> str:
        """What goes from coarse to fine: a peer, or one of its backends."""
        return self.name.partition(", scaling")[0] if self.peer == GEOMLOSS else self.peer


@contextmanager
def capped(seconds: float) -> Iterator[None]:
    """Raises a TimeoutError in the body after so many seconds, between two calls of compiled code."""

    def end(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_grad_enabled(True)  # where it was off when the body ended


def here(peer: str, setting: str, value: Value, x: Tensor) -> Way:
    """A way of this process."""

    def run(limit: float) -> Lap | None:
        try:
            with capped(limit):
                start = time.perf_counter()
                found = gradient(value, x)
                return time.perf_counter() - start, found
        except TimeoutError:
            return None

    return Way(peer, setting, run)


class OTT:
    """OTT-JAX on one pair of measures, in a process of another interpreter, which inherits the cores of this one."""

    def __init__(self, python: str, x: Tensor, y: Tensor, folder: Path) -> None:
        self.words = [python, str(Path(__file__).with_name("sinkhorn_ott.py")), str(x.dtype).removeprefix("torch.")]
        self.points, self.found = folder / "points.npz", folder / "gradient.npy"
        np.savez(self.points, x=x.numpy(), y=y.numpy())
        self.child: subprocess.Popen[str] | None = None
        self.version = ""

    def way(self, threshold: float) -> Way:
        setting = f"threshold {threshold:g}" + (" (its default)" if threshold == 1e-3 else "")
        return Way(OTT_JAX, setting, lambda limit: self.ask(threshold, limit))

    def ask(self, threshold: float, limit: float) -> Lap | None:
        if self.child is None:
            self.child = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            assert self.child.stdout is not None
            self.version = json.loads(self.child.stdout.readline())["version"]
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        asked = {"points": str(self.points), "gradient": str(self.found), "blur": BLUR, "threshold": threshold, "most": MOST}
        self.child.stdin.write(json.dumps(asked) + "\n")
        self.child.stdin.flush()
        if not select.select([self.child.stdout], [], [], limit)[0]:
            self.close()
            return None
        return json.loads(self.child.stdout.readline())["seconds"], torch.from_numpy(np.load(self.found))

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


def ways(x: Tensor, y: Tensor, large: bool, ott: OTT | None) -> list[Way]:
    """Ours first, then each peer from coarse to fine. All are warm: what is to be compiled is compiled."""
    found = [here(OURS, "", ours(SinkhornDivergence(DiscreteMeasure(y), BLUR)), x)]
    gradient(ours(SinkhornDivergence(DiscreteMeasure(y), BLUR)), x)
    some = slice(0, 64)
    for backend in ("multiscale",) if large else ("tensorized", "multiscale"):
        gradient(geomloss(y[some], "sinkhorn", backend, p=2, blur=BLUR), x[some])
        for scaling in SCALINGS:
            value = geomloss(y, "sinkhorn", backend, p=2, blur=BLUR, scaling=scaling)
            default = " (its default)" if backend == "tensorized" and scaling == SCALINGS[0] else ""
            found.append(here(GEOMLOSS, f"{backend}, scaling {scaling:g}{default}", value, x))
    if large:
        gradient(geomloss(y[some], "sinkhorn", "online", p=2, blur=BLUR), x[some])  # what it chooses up to 10,000 atoms
        value = geomloss(y, "sinkhorn", "auto", p=2, blur=BLUR)
        found.append(here(GEOMLOSS, "auto, scaling 0.5 (its default)", value, x))
    found += [here(POT, f"to {tolerance:g}", pot(y, tolerance), x) for tolerance in TOLERANCES]
    if ott is not None:
        found += [ott.way(threshold) for threshold in TOLERANCES]
    return found


@contextmanager
def ott_jax(python: str | None, x: Tensor, y: Tensor) -> Iterator[OTT | None]:
    """OTT-JAX for the length of a measurement, or None without an interpreter."""
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        peer = OTT(python, x, y, Path(folder))
        try:
            yield peer
        finally:
            peer.close()
