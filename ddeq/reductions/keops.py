"""The KeOps backend: sums over pairs from symbolic formulas, compiled at first use, without storing pairs."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import threading
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddeq.kernels import Gaussian, Kernel
from ddeq.reductions.backends import Backend
from ddeq.reductions.trials import Trial
from ddeq.untraced import is_installed, untraced

__all__ = ["KeOps"]

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
"""Types of device, and what KeOps calls them. It is told which: by itself it would move CPU tensors to a GPU."""


class KeOps(Backend):
    """Sums over pairs by KeOps, which generates and compiles code for each formula, dtype, dimension and derivative.

    References
    ----------
    :cite:t:`charlier2021kernel`.
    """

    name = "keops"

    def __init__(self) -> None:
        self._trial = Trial("pykeops", self._try_out)

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        if device.type not in DEVICES:
            return f"KeOps runs on CPU and CUDA devices, not on {device.type}"
        if kernel is not None and not kernel.runs_on_keops:
            wrong = [type(m).__name__ for m in kernel.modules() if isinstance(m, Kernel) and not m.runs_on_keops]
            return f"KeOps does not differentiate {wrong[-1]} correctly"  # the last one: a sum comes before its parts
        if not is_installed("pykeops"):
            return "pykeops is not installed"
        return self._trial.failure(device)

    @untraced  # formulas cannot be traced
    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        formula = kernel.pair(_row(x), _column(y)) * _column(b)
        total: Tensor = formula.sum(dim=x.ndim - 1, backend=DEVICES[x.device.type])
        return total

    @untraced
    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"]:
        row = _row(x)
        formula = kernel.pair(row, _column(y)).grad(row, _column(b.unsqueeze(-1)))
        total: Tensor = formula.sum(dim=x.ndim - 1, backend=DEVICES[x.device.type])
        return total

    @untraced
    @torch.no_grad()
    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        lowest = (~alive).to(x).unsqueeze(-1) * torch.finfo(x.dtype).min
        formula = kernel.log_pair(_row(x), _column(y)) + _column(lowest)
        largest: Tensor = formula.max(dim=x.ndim - 1, backend=DEVICES[x.device.type])
        return largest.squeeze(-1)

    def _try_out(self, device: torch.device) -> None:
        """Without a compiler KeOps imports, and fails at the first sum that another process has not compiled before."""
        compilers = shlex.split(os.environ["CXX"])[:1] if os.environ.get("CXX") else ["g++", "clang++"]
        if not any(map(shutil.which, compilers)):
            raise OSError(f"found no C++ compiler ({', '.join(compilers)})")
        x = torch.zeros(2, 1, dtype=torch.float32, device=device)
        self.sum_pairs(Gaussian(1.0), x, x, x)


def _row(t: Tensor) -> Any:
    return _symbolic(t.unsqueeze(-2))


def _column(t: Tensor) -> Any:
    return _symbolic(t.unsqueeze(-3))


def _symbolic(t: Tensor) -> Any:
    return _lazy_tensor()(t.contiguous())


@functools.cache
def _lazy_tensor() -> Any:
    """The class of KeOps' symbolic tensors, after a look-up of its compiled formulas is made one that threads wait for."""
    for name in ("PYKEOPS_VERBOSE", "KEOPS_VERBOSE"):  # otherwise it prints at import and at each compilation
        os.environ.setdefault(name, "0")
    from pykeops.common import keops_io
    from pykeops.torch import LazyTensor

    with _compiling:
        for key, binder in keops_io.keops_binder.items():
            if not isinstance(binder, _OneAtATime):
                keops_io.keops_binder[key] = _OneAtATime(binder)
    return LazyTensor


_compiling = threading.RLock()


class _OneAtATime:
    """A table of KeOps' compiled formulas. Two threads would compile one that is missing into the same files at once."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __call__(self, *key: Any) -> Any:
        with _compiling:
            return self._table(*key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)
