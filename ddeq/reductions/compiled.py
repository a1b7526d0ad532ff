"""Sums over pairs by ``torch.compile``: one fused loop for each formula, by C++ on CPU and Triton on GPU; no pair is stored.

Compiled code has no derivative of a derivative, so each derivative is a formula of its own, compiled at first use.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as _shapes
from torch.fx.experimental.proxy_tensor import make_fx

from ddeq.kernels import Gaussian, Kernel
from ddeq.kernels.distances import by_cdist
from ddeq.reductions import dense
from ddeq.reductions.formulas import Formula, exponent_formula, kernel_formula, numbers_of

__all__ = ["max_pairs", "sum_gradients", "sum_pairs", "try_out"]

Run = Callable[..., tuple[Tensor, ...]]
FUSED: dict[str, Any] = {"realize_reads_threshold": 10**9, "realize_opcount_threshold": 10**9}
"""Inductor's options: however long the term is, it is computed within the loop and not stored."""
FUSED_UP_TO = 32
"""Up to this dimension a sum is one loop over pairs; above, outer sums are matrix products of blocks of kernel values."""
AT_A_TIME = 16
"""Coordinates that a compiled loop over pairs adds to their distance."""
shapes: Any = _shapes

_compiled: dict[tuple[object, ...], Run] = {}


def sum_pairs(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``sum_j k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m, c)`` to ``(*batch, n, c)``."""
    if x.shape[-1] > FUSED_UP_TO:
        return dense.sum_pairs(kernel, x, y, b, squared_distances if kernel.is_radial else by_cdist)
    rows, columns = [*_coordinates(x), *_numbers(kernel, x)], [*_coordinates(y), *_coordinates(b)]
    formula = kernel_formula(kernel, x.shape[-1], b.shape[-1])
    return _points(_sums(formula, rows, columns), x)


def sum_gradients(kernel: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``sum_j grad_x k(x_i, y_j) b_j``: ``(*batch, n, d)``, ``(*batch, m, d)``, ``(*batch, m)`` to ``(*batch, n, d)``."""
    dim = x.shape[-1]
    if dim > FUSED_UP_TO:
        return dense.sum_gradients(kernel, x, y, b, squared_distances if kernel.is_radial else by_cdist)
    rows, columns = [*_coordinates(x), *_numbers(kernel, x)], [*_coordinates(y), *_coordinates(b.unsqueeze(-1))]
    formula = kernel_formula(kernel, dim, 1).pull_back(len(rows), tuple(range(dim)))
    return _points(_sums(formula, [*rows, torch.ones_like(rows[0])], columns), x)


@torch.no_grad()
def max_pairs(kernel: Kernel, x: Tensor, y: Tensor, alive: Tensor) -> Tensor:
    """``max_j log k(x_i, y_j)`` over the ``alive`` ``(*batch, m)``: ``(*batch, n)``, without derivatives."""
    if x.shape[-1] > FUSED_UP_TO:
        return dense.max_pairs(kernel, x, y, alive)
    rows, columns = [*_coordinates(x), *_numbers(kernel, x)], _coordinates(y)
    columns.append(torch.where(alive, 0.0, -torch.inf).to(x).reshape(columns[0].shape))
    (largest,) = _run(exponent_formula(kernel, x.shape[-1]), rows, columns, largest=True)
    return largest.reshape(x.shape[:-1])


@torch.no_grad()
def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(*batch, n, m)`` from differences, some coordinates at a time; for many faster than ``cdist``."""
    batch, dim = x.shape[:-2], x.shape[-1]
    rows, columns = x.detach().reshape(-1, *x.shape[-2:]), y.detach().reshape(-1, *y.shape[-2:]).mT.contiguous()
    total = x.new_zeros(len(rows), x.shape[-2], y.shape[-2])
    for k in range(0, dim, AT_A_TIME):
        some = slice(k, min(k + AT_A_TIME, dim))
        (total,) = _compiled_squares()(total, rows[..., some].contiguous(), columns[:, some])
    return total.reshape(*batch, *total.shape[1:])


@functools.cache
def _compiled_squares() -> Run:
    def add_squares(total: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        for k in range(x.shape[-1]):
            difference = x[..., k : k + 1] - y[:, k : k + 1]
            total = total + difference * difference
        return (total,)

    return _without_duck_shapes(torch.compile(add_squares, dynamic=True, options=FUSED))


def try_out(device: torch.device) -> None:
    """A first small sum, which raises whatever is missing for all others."""
    x = torch.zeros(2, 1, device=device)
    sum_pairs(Gaussian(1.0), x, x, x)


def _sums(formula: Formula, rows: list[Tensor], columns: list[Tensor]) -> tuple[Tensor, ...]:
    """The sums over columns of the terms, ``(batch, n)`` each, differentiable at every order."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*rows, *columns)):
        sums: tuple[Tensor, ...] = _Sums.apply(formula, len(rows), *rows, *columns)  # type: ignore[no-untyped-call]
        return sums
    return _run(formula, rows, columns)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, formula: Formula, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.formula, ctx.count = formula, count
        ctx.save_for_backward(*tensors)
        return _run(formula, tensors[:count], tensors[count:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        count, formula = ctx.count, ctx.formula
        rows, columns = list(ctx.saved_tensors[:count]), list(ctx.saved_tensors[count:])
        duals = [c.contiguous() for c in cotangents]
        needed = ctx.needs_input_grad[2:]
        grads: list[Tensor | None] = [None] * len(needed)
        of_rows = tuple(i for i in range(count) if needed[i])
        of_columns = tuple(i for i in range(len(columns)) if needed[count + i])
        if of_rows:
            for i, g in zip(of_rows, _sums(formula.pull_back(count, of_rows), [*rows, *duals], columns), strict=True):
                grads[i] = g
        if of_columns:
            pulled = formula.pull_back(count, of_columns, transposed=True)
            for i, g in zip(of_columns, _sums(pulled, columns, [*rows, *duals]), strict=True):
                grads[count + i] = g
        return None, None, *grads


def _run(formula: Formula, rows: Sequence[Tensor], columns: Sequence[Tensor], largest: bool = False) -> tuple[Tensor, ...]:
    first = rows[0]
    key = (formula.key, len(rows), len(columns), first.dtype, first.device.type)
    run = _compiled.get(key)
    if run is None:
        run = _compiled[key] = _compile(formula, len(rows), len(columns), first, largest)
    with torch.no_grad():
        return run(*(t.detach() for t in (*rows, *columns)))


def _compile(formula: Formula, rows: int, columns: int, like: Tensor, largest: bool) -> Run:
    def reduced(*tensors: Tensor) -> tuple[Tensor, ...]:
        left, right = [t.unsqueeze(-1) for t in tensors[:rows]], [t.unsqueeze(-2) for t in tensors[rows:]]
        shape = (left[0] + right[0]).shape
        terms = (t.broadcast_to(shape) for t in formula.function(left, right))
        return tuple(t.amax(-1) if largest else t.sum(-1) for t in terms)

    examples = [like.new_ones(2, n) for n in [3] * rows + [5] * columns]
    with shapes.patch(use_duck_shape=False):
        graph = make_fx(reduced, tracing_mode="symbolic")(*examples)
    return _without_duck_shapes(torch.compile(graph, dynamic=True, options=FUSED))


def _without_duck_shapes(run: Run) -> Run:
    """Sizes that are equal at the first call are not taken to be equal for ever."""

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        with shapes.patch(use_duck_shape=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about its own affairs
            return run(*tensors)

    return call  # type: ignore[no-any-return]


def _coordinates(t: Tensor) -> list[Tensor]:
    """The coordinates of points ``(*batch, n, d)``, each ``(batch, n)`` in one piece."""
    return list(t.reshape(-1, *t.shape[-2:]).permute(2, 0, 1).contiguous().unbind(0))


def _numbers(kernel: Kernel, x: Tensor) -> list[Tensor]:
    """The numbers of a kernel, one entry for each row of pairs, ``(batch, n)``."""
    batch, n = x.shape[:-2], x.shape[-2]
    values = (v.to(x) if isinstance(v, Tensor) else x.new_tensor(v) for v in numbers_of(kernel).values())
    return [v.expand(batch).reshape(-1, 1).expand(-1, n).contiguous() for v in values]


def _points(coordinates: Sequence[Tensor], x: Tensor) -> Tensor:
    return torch.stack(list(coordinates), -1).reshape(*x.shape[:-1], len(coordinates))
