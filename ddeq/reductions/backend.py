"""Which code sums over pairs of atoms: a global setting, also as a context manager, and the choice that ``auto`` makes."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.kernels import Kernel, Riesz

__all__ = ["BackendWarning", "Choice", "backend", "block_size", "choose"]

Name = Literal["auto", "dense", "keops", "compiled", "sorted"]
logger = logging.getLogger("ddeq")

CROSSOVERS = {
    "cpu": {"sorted": 2**12, "compiled": 2**18, "keops": 2**18},
    "cuda": {"sorted": 2**24, "compiled": 2**24, "keops": 2**22},
}
"""From how many pairs on ``auto`` takes a backend in the place of the dense one.

On CPU ``benchmarks/reductions.py --crossovers`` finds compiled sums faster from 2**14 pairs on; ``auto`` waits until they save
milliseconds, since the first one takes seconds to compile. Those for GPU are guesses that wait for a measurement.
"""
CACHED = 2**20
"""Numbers that a block of kernel values holds at most: larger ones leave the caches of a CPU."""


class BackendWarning(UserWarning):
    """A backend that was asked for cannot run here; the message says why, and another one runs instead."""


class Choice(NamedTuple):
    """A backend and the reason for which it was chosen."""

    name: str
    """``"dense"``, ``"compiled"``, ``"keops"`` or ``"sorted"``."""
    reason: str
    """In words."""


class _Settings:
    backend: Name = "auto"
    block_size: int = 2**24


class _Setting:
    """Set one of the settings now; restore the old value on leaving a ``with`` block."""

    def __init__(self, name: str, value: object) -> None:
        self._name, self._before = name, getattr(_Settings, name)
        setattr(_Settings, name, value)

    def __enter__(self) -> _Setting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        setattr(_Settings, self._name, self._before)


def backend(name: Name) -> _Setting:
    """Choose the code that sums over pairs of atoms, globally or within a ``with`` block.

    Parameters
    ----------
    name
        - ``"dense"``: PyTorch, in blocks; everywhere, with every transform of ``torch.func``;
        - ``"compiled"``: loops fused by ``torch.compile``; needs a C++ compiler on CPU, Triton on GPU;
        - ``"keops"``: KeOps; needs pykeops and a compiler;
        - ``"sorted"``: by sorting, for ``Riesz(1.0)`` on the line; other kernels run as by ``"auto"``;
        - ``"auto"``, the default: by size, dimension, device and what is installed; see `choose`.

        A backend that cannot run a sum emits a `BackendWarning` and another one runs in its place.

    Raises
    ------
    ValueError
        If ``name`` is none of these.

    References
    ----------
    :cite:t:`charlier2021kernel`, on KeOps.

    Examples
    --------
    >>> with backend("dense"):
    ...     choose(10, 10, torch.device("cpu"))
    Choice(name='dense', reason='asked for')
    """
    if name not in get_args(Name):
        raise ValueError(f"name: expected one of {', '.join(get_args(Name))}, got {name!r}")
    return _Setting("backend", name)


def block_size(numbers: int) -> _Setting:
    """Most numbers that a dense block of pairs may hold at a time, globally or within a ``with`` block (default ``2**24``).

    Raises
    ------
    ValueError
        If ``numbers`` is not a positive integer.
    """
    if numbers < 1:
        raise ValueError(f"numbers: expected a positive integer, got {numbers}")
    return _Setting("block_size", int(numbers))


def choose(n: int, m: int, device: torch.device, *, dim: int = 3, batch: int = 1, kernel: Kernel | None = None) -> Choice:
    """The backend that a sum of ``kernel`` over ``n x m`` pairs takes, and why.

    Parameters
    ----------
    n, m, batch
        Numbers of atoms, and of such problems at once.
    device, dim
        Where the atoms are, and in which dimension.
    kernel
        The kernel; default: one that every backend can sum.

    Examples
    --------
    >>> choose(100, 100, torch.device("cpu"))
    Choice(name='dense', reason='10000 pairs are below the 262144 from which a compiled sum is faster')
    """
    wanted = _Settings.backend
    if wanted == "dense":
        return Choice("dense", "asked for")
    if under_transforms():
        return _instead(wanted, "transforms of torch.func and forward-mode differentiation run on the dense backend only")
    limits = CROSSOVERS.get(device.type, CROSSOVERS["cpu"])
    pairs = batch * n * m
    if isinstance(kernel, Riesz) and kernel.r == 1.0 and dim == 1:
        if wanted == "sorted" or (wanted == "auto" and pairs >= limits["sorted"]):
            return Choice("sorted", "asked for" if wanted == "sorted" else f"{pairs} pairs on the line")
    elif wanted == "sorted":
        wanted = "auto"
    if wanted in ("compiled", "keops"):
        obstacle = _obstacle(wanted, kernel, device)
        return Choice(wanted, "asked for") if obstacle is None else _instead(wanted, obstacle)
    if pairs < limits["compiled"]:
        return Choice("dense", f"{pairs} pairs are below the {limits['compiled']} from which a compiled sum is faster")
    order: tuple[Name, ...] = ("keops", "compiled") if device.type == "cuda" else ("compiled", "keops")
    obstacles: list[str] = []
    for name in order:
        obstacle = _obstacle(name, kernel, device)
        if obstacle is None and pairs >= limits[name]:
            return Choice(name, "; ".join([f"{pairs} pairs in dimension {dim} on {device.type}", *obstacles]))
        obstacles.append(obstacle or f"{pairs} pairs are below the {limits[name]} from which {name} is faster")
    return Choice("dense", "; ".join(obstacles))


def _instead(wanted: Name, obstacle: str) -> Choice:
    if wanted != "auto":
        message = f"backend {wanted!r} cannot run here ({obstacle}); 'dense' runs instead"
        warnings.warn(message, BackendWarning, stacklevel=4)
    return Choice("dense", obstacle)


def _obstacle(name: Name, kernel: Kernel | None, device: torch.device) -> str | None:
    """Why a backend cannot sum a kernel here, if so."""
    if name == "keops":
        if kernel is not None and not kernel.runs_on_keops:
            return f"KeOps does not differentiate {kernel!r} rightly"
        return _keops_failure()
    if kernel is not None:
        from ddeq.reductions.formulas import structure

        try:
            structure(kernel)
        except TypeError as error:
            return f"{kernel!r} cannot be compiled, because its formula is not known from its options: {error}"
    return _compiler_failure(device.type)


@functools.cache
def _keops_failure() -> str | None:
    """Why a first small sum of KeOps failed, if so: without a compiler it imports, and fails at first use."""
    if importlib.util.find_spec("pykeops") is None:
        return "pykeops is not installed"
    from ddeq.reductions import keops

    return _failure("pykeops", keops.try_out)


@functools.cache
def _compiler_failure(device: str) -> str | None:
    """Why a first small sum by torch.compile failed on such a device, if so."""
    from ddeq.reductions import compiled

    return _failure("torch.compile", lambda: compiled.try_out(torch.device(device)))


def _failure(name: str, try_out: Callable[[], None]) -> str | None:
    reason = None
    for wait in (0.0, 2.0, 5.0):
        time.sleep(wait)
        try:
            try_out()
        except ImportError as error:  # another process may just be writing the library that this one reads
            reason = _first_line(name, error)
        except Exception as error:  # whatever a compiler or a driver raises: the slower path is there
            reason = _first_line(name, error)
            break
        else:
            return None
    logger.warning("%s; another backend runs instead", reason)
    return reason


def _first_line(name: str, error: Exception) -> str:
    return f"{name} failed at a first sum: {type(error).__name__}: {error}".splitlines()[0]


def rows_per_block(x: Tensor, y: Tensor, width: int, *, cached: bool = False) -> int:
    """Rows of ``x`` for which the pairs with all of ``y``, of ``width`` numbers each, stay within `block_size`."""
    bound = min(_Settings.block_size, CACHED) if cached and x.device.type == "cpu" else _Settings.block_size
    return max(1, bound // max(1, x.shape[:-2].numel() * y.shape[-2] * width))


def blocks_are_below(numbers: int) -> bool:
    """Whether the caller allows less than so many numbers in a block."""
    return _Settings.block_size < numbers
