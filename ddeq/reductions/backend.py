"""Which code sums over pairs of atoms: a global setting, also as a context manager, and the choice that ``auto`` makes."""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
import warnings
from types import TracebackType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = ["BackendWarning", "Choice", "backend", "block_size", "choose"]

Name = Literal["auto", "dense", "keops"]
logger = logging.getLogger("ddeq")

KEOPS_FROM = {"cpu": 2_000_000, "cuda": 16_000_000}
"""Number of pairs per measure from which ``auto`` takes KeOps: below, its overhead of a launch costs more than it saves."""


class BackendWarning(UserWarning):
    """A backend that was asked for cannot run here; the message says why, and the dense one runs instead."""


class Choice(NamedTuple):
    """A backend and the reason for which it was chosen."""

    name: str
    reason: str


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
        ``"dense"``, ``"keops"``, or ``"auto"`` (the default: by size, device and what is installed; see `choose`).

    Raises
    ------
    ValueError
        If ``name`` is none of these.

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


def choose(n: int, m: int, device: torch.device, *, symbolic: bool = True) -> Choice:
    """The backend that a sum over ``n x m`` pairs takes on ``device``, and why; ``symbolic``: KeOps can express it."""
    wanted = _Settings.backend
    if wanted == "dense":
        return Choice("dense", "asked for")
    if not symbolic:
        return Choice("dense", "the function of pairs is a Python function of tensors")
    if wanted == "auto" and n * m < KEOPS_FROM.get(device.type, 0):
        return Choice("dense", f"{n} x {m} pairs are below the size from which KeOps is faster")
    obstacle = _obstacle()
    if obstacle is None:
        return Choice("keops", "asked for" if wanted == "keops" else f"{n} x {m} pairs on {device.type}")
    if wanted == "keops":
        warnings.warn(f"backend 'keops' cannot run here ({obstacle}); 'dense' runs instead", BackendWarning, stacklevel=3)
    return Choice("dense", obstacle)


def _obstacle() -> str | None:
    """Why KeOps cannot run, if so."""
    if torch._C._are_functorch_transforms_active():
        return "KeOps cannot run under torch.func transforms or vmap"
    return _keops_failure()


@functools.cache
def _keops_failure() -> str | None:
    """Why a first small sum of KeOps failed, if so: without a compiler it imports, and fails at first use."""
    if importlib.util.find_spec("pykeops") is None:
        return "pykeops is not installed"
    from ddeq.reductions import keops

    reason = None
    for wait in (0.0, 2.0, 5.0):
        time.sleep(wait)
        try:
            keops.try_out()
        except ImportError as error:  # another process may just be writing the library that this one reads
            reason = _first_line(error)
        except Exception as error:  # whatever a compiler or a driver raises: the slower path is there
            reason = _first_line(error)
            break
        else:
            return None
    logger.warning("%s; the dense backend runs instead", reason)
    return reason


def _first_line(error: Exception) -> str:
    return f"pykeops failed at a first sum: {type(error).__name__}: {error}".splitlines()[0]


def rows_per_block(x: Tensor, y: Tensor) -> int:
    """Rows of ``x`` for which the pairs with all of ``y`` stay within `block_size`."""
    batch = x.shape[:-2].numel()
    return max(1, _Settings.block_size // max(1, batch * y.shape[-2] * y.shape[-1]))
