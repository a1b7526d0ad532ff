"""Settings of the sums over pairs: which backend sums, and how many numbers a block of pairs may hold.

Each setting has a default for the process, and ``with`` blocks override it in their own context: other threads and other
asynchronous tasks keep theirs.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from types import TracebackType
from typing import Generic, TypeVar

from torch import Tensor

from ddeq.integers import whole

__all__ = [
    "Setting",
    "backend",
    "backends",
    "block_size",
    "blocks_are_below",
    "declare",
    "numbers_per_block",
    "rows_per_block",
    "wanted_backend",
]

T = TypeVar("T")
CACHED = 2**20
"""Largest number of kernel values in a block on CPU: larger blocks leave its caches."""

_lock = threading.Lock()
_known: dict[str, None] = {"auto": None}


class _Variable(Generic[T]):
    """One setting: its default for the process, and the overrides of the ``with`` blocks that are open in this context."""

    def __init__(self, name: str, default: T) -> None:
        self.default = default
        self.set_by: Setting[T] | None = None
        self.overrides: ContextVar[tuple[T, ...]] = ContextVar(name, default=())

    def get(self) -> T:
        overrides = self.overrides.get()
        return overrides[-1] if overrides else self.default


class Setting(Generic[T]):
    """A value of a setting, as `backend` and `block_size` return it.

    It is the default of the process from its creation on. As a context manager it holds within the ``with`` block only, for
    the context that opened it: it then ceases to be the default.
    """

    def __init__(self, variable: _Variable[T], value: T) -> None:
        self.value = value
        self._variable = variable
        with _lock:
            # Settings that set the default form a list, the last one first. Weakly: one that is gone can no longer leave it.
            self._default_before = variable.default
            self._before = None if variable.set_by is None else weakref.ref(variable.set_by)
            variable.default, variable.set_by = value, self

    def __enter__(self) -> Setting[T]:
        variable = self._variable
        with _lock:
            self._leave_list()
        variable.overrides.set((*variable.overrides.get(), self.value))
        return self

    def _earlier(self) -> Setting[T] | None:
        return None if self._before is None else self._before()

    def _leave_list(self) -> None:
        variable, later = self._variable, self._variable.set_by
        if later is self:
            variable.default, variable.set_by = self._default_before, self._earlier()
        while later is not None and later is not self:
            earlier = later._earlier()
            if earlier is self:
                later._default_before, later._before = self._default_before, self._before
            later = earlier

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._variable.overrides.set(self._variable.overrides.get()[:-1])


_backend = _Variable("ddeq.reductions.backend", "auto")
_block_size = _Variable("ddeq.reductions.block_size", 2**24)


def backend(name: str) -> Setting[str]:
    """Choose the backend that sums over pairs of atoms.

    Called plainly, it sets the default of the process. As a context manager it overrides the default in this context only:
    other threads and asynchronous tasks keep their backend. The backward pass of a sum uses the backend of its forward pass.

    Parameters
    ----------
    name
        - ``"dense"``: PyTorch, in blocks; runs everywhere, under every transform of ``torch.func``;
        - ``"compiled"``: loops fused by ``torch.compile``; needs a C++ compiler on CPU, Triton on GPU;
        - ``"keops"``: KeOps; needs pykeops and a compiler;
        - ``"sorted"``: by sorting, for ``Riesz(1.0)`` in dimension one; other sums run as with ``"auto"``;
        - ``"products"``: matrix products, for radial kernels in many dimensions; other sums run as with ``"auto"``;
        - ``"auto"``, the default: by size, dimension, device and what is installed; see `choose`;
        - the name of a `Backend` of your own, once `register` has been given it.

        If the backend cannot compute a sum, a `BackendWarning` says why and the dense backend runs instead.

    Raises
    ------
    ValueError
        If no backend has this name.

    Notes
    -----
    A function under ``torch.compile`` keeps the settings under which it was compiled.

    References
    ----------
    :cite:t:`charlier2021kernel`, on KeOps.

    Examples
    --------
    >>> import torch
    >>> from ddeq.reductions import choose
    >>> with backend("dense"):
    ...     choose(10, 10, torch.device("cpu"))
    Choice(name='dense', reason='asked for')
    """
    if name not in _known:
        raise ValueError(f"name: expected one of {', '.join(_known)}, got {name!r}; ddeq.reductions.register adds a backend")
    return Setting(_backend, name)


def block_size(numbers: int) -> Setting[int]:
    """Set how many numbers a block of pairs may hold in the dense backend (default ``2**24``).

    Called plainly, it sets the default of the process; as a context manager it overrides the default in this context only.
    The backward pass of a sum uses the blocks of its forward pass.

    Raises
    ------
    ValueError
        If ``numbers`` is not a positive integer.
    """
    return Setting(_block_size, whole("numbers", numbers))


def declare(name: str) -> None:
    """Make the ``name`` of a backend known, so that `backend` accepts it."""
    _known[name] = None


def backends() -> tuple[str, ...]:
    """The names of all backends that are known, ``"auto"`` left out."""
    return tuple(name for name in _known if name != "auto")


def wanted_backend() -> str:
    """The name that `backend` was given: ``"auto"`` or that of a backend."""
    return _backend.get()


def numbers_per_block() -> int:
    """The number that `block_size` was given."""
    return _block_size.get()


# What torch.compiler.assume_constant_result does, without its import of the compiler, which cannot trace context variables.
vars(numbers_per_block)["_dynamo_marked_constant"] = True


def rows_per_block(x: Tensor, y: Tensor, width: int, *, cached: bool = False) -> int:
    """Rows of ``x`` whose pairs with all of ``y``, of ``width`` numbers each, stay within `block_size`.

    ``cached``: also within the caches of a CPU.
    """
    bound = numbers_per_block()
    if cached and x.device.type == "cpu":
        bound = min(bound, CACHED)
    return max(1, bound // max(1, x.shape[:-2].numel() * y.shape[-2] * width))


def blocks_are_below(numbers: int) -> bool:
    """Whether `block_size` allows fewer than ``numbers`` numbers in a block."""
    return numbers_per_block() < numbers
