"""Which backend computes a sum: `choose`, and the warning where it is not the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.kernels import Kernel
from ddeq.messages import warn
from ddeq.reductions.backends import Backend, named
from ddeq.reductions.builtin import DENSE
from ddeq.reductions.settings import wanted_backend

__all__ = ["BackendWarning", "Choice", "choose", "chosen"]

CROSSOVERS = {
    "cpu": {"sorted": 2**12, "products": 2**12, "compiled": 2**18, "keops": 2**18},
    "cuda": {"sorted": 2**24, "products": 2**20, "compiled": 2**24, "keops": 2**22},
}
"""Numbers of pairs from which ``auto`` prefers a backend to the dense one.

On CPU ``benchmarks/reductions.py --crossovers`` finds compiled sums faster from 2**14 pairs on; ``auto`` waits until they save
milliseconds, since the first one takes seconds to compile. The numbers for GPU are not measured yet.
"""
MANY_COORDINATES, MORE_COORDINATES = 16, 32
"""Dimensions from which ``auto`` prefers matrix products for radial kernels to the dense backend, and to fused loops."""
ORDER = {"cpu": ("compiled", "keops"), "cuda": ("keops", "compiled")}
"""Backends that ``auto`` tries for many pairs, the preferred one first."""
TRANSFORMS = "transforms of torch.func and forward-mode differentiation run on the dense backend only"


class BackendWarning(UserWarning):
    """The backend that was asked for cannot compute a sum, and another one does.

    Parameters
    ----------
    wanted, used
        Names of the two backends.
    reason
        Why the first one cannot.
    """

    def __init__(self, wanted: str, used: str, reason: str) -> None:
        super().__init__(wanted, used, reason)
        self.wanted, self.used, self.reason = wanted, used, reason

    def __str__(self) -> str:
        return f"backend {self.wanted!r} cannot run here ({self.reason}); {self.used!r} runs instead"


class Choice(NamedTuple):
    """A backend and why it was chosen."""

    name: str
    """Name of the backend."""
    reason: str
    """The reason, as text."""


def choose(n: int, m: int, device: torch.device, *, dim: int = 3, batch: int = 1, kernel: Kernel | None = None) -> Choice:
    """The backend that computes a sum of ``kernel`` over ``n x m`` pairs, and the reason.

    Parameters
    ----------
    n, m, batch
        Numbers of points on either side, and of such problems in the batch.
    device, dim
        Device and dimension of the points.
    kernel
        The kernel; default: one that every backend can sum.

    Examples
    --------
    >>> choose(100, 100, torch.device("cpu"))
    Choice(name='dense', reason='10000 pairs are below the 262144 from which a compiled sum is faster')
    """
    name, reason = _choice(batch * n * m, device, dim, kernel)
    return Choice(name, reason())


def chosen(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Backend:
    """The backend that sums ``kernel`` over the pairs of ``x`` and ``y`` with the weights ``b``."""
    batch = x.shape[:-2].numel()
    backend = named(_choice(batch * x.shape[-2] * y.shape[-2], x.device, x.shape[-1], kernel)[0])
    if not backend.differentiable and torch.is_grad_enabled():
        held = (*kernel.parameters(), *kernel.buffers())
        if any(t.requires_grad for t in (x, y, b, *held)):
            backend = named(_instead(backend.name, "its sums are not differentiable")[0])
    return backend


_Reason = Callable[[], str]
"""A reason, written out only where it is read: the choice is made for every sum."""


def _choice(pairs: int, device: torch.device, dim: int, kernel: Kernel | None) -> tuple[str, _Reason]:
    """The name of a backend, and the reason."""
    wanted, transformed = wanted_backend(), under_transforms()
    if wanted == DENSE.name:
        return DENSE.name, lambda: "asked for"
    if wanted != "auto":
        backend = named(wanted)
        if transformed and not backend.transforms:
            return _instead(wanted, TRANSFORMS)
        obstacle = _obstacle(backend, device, dim, kernel)
        if obstacle is None:
            return wanted, lambda: "asked for"
        if not backend.specialised:
            return _instead(wanted, obstacle)
    return (DENSE.name, lambda: TRANSFORMS) if transformed else _automatic(pairs, device, dim, kernel)


def _automatic(pairs: int, device: torch.device, dim: int, kernel: Kernel | None) -> tuple[str, _Reason]:
    kind = device.type if device.type in CROSSOVERS else "cpu"
    limits, order = CROSSOVERS[kind], ORDER[kind]
    if dim == 1 and pairs >= limits["sorted"] and named("sorted").obstacle(device, kernel) is None:
        return "sorted", lambda: f"{pairs} pairs on the line"
    if _are_for_products(pairs, device, dim, kernel, limits):
        return "products", lambda: f"{pairs} pairs in dimension {dim}"
    first = min(order, key=limits.__getitem__)
    if pairs < limits[first]:
        return DENSE.name, lambda: f"{pairs} pairs are below the {limits[first]} from which a {first} sum is faster"
    obstacles: list[str] = []
    for name in order:
        obstacle = _obstacle(named(name), device, dim, kernel)
        if obstacle is None and pairs >= limits[name]:
            return name, lambda: "; ".join([f"{pairs} pairs in dimension {dim} on {device.type}", *obstacles])
        obstacles.append(obstacle or f"{pairs} pairs are below the {limits[name]} from which {name} is faster")
    return DENSE.name, lambda: "; ".join(obstacles)


def _are_for_products(pairs: int, device: torch.device, dim: int, kernel: Kernel | None, limits: dict[str, int]) -> bool:
    if dim < MANY_COORDINATES or pairs < limits["products"] or named("products").obstacle(device, kernel) is not None:
        return False
    fused = limits["compiled"]
    return dim >= MORE_COORDINATES or pairs < fused or named("compiled").obstacle(device, kernel) is not None


def _obstacle(backend: Backend, device: torch.device, dim: int, kernel: Kernel | None) -> str | None:
    if backend.max_dim is not None and dim > backend.max_dim:
        return f"its points have dimension {backend.max_dim} at most"
    return backend.obstacle(device, kernel)


def _instead(wanted: str, obstacle: str) -> tuple[str, _Reason]:
    warn(BackendWarning(wanted, DENSE.name, obstacle))
    return DENSE.name, lambda: obstacle
