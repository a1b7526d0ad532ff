"""The compiled backend: sums over pairs as loops that ``torch.compile`` fuses, in C++ on CPU and Triton on GPU.

No pair is stored. Compiled code cannot be differentiated twice: each derivative is a formula of its own, compiled at first use.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.fx.experimental import _config as _shapes
from torch.fx.experimental.proxy_tensor import make_fx

from ddeq.kernels import Gaussian, Kernel
from ddeq.reductions.backends import Backend
from ddeq.reductions.dense import Dense
from ddeq.reductions.formulas import Formula, exponent_formula, kernel_formula, numbers_of, structure
from ddeq.reductions.trials import Trial
from ddeq.reductions.turns import Turns

__all__ = ["Compiled"]

Run = Callable[..., tuple[Tensor, ...]]
FUSED: dict[str, Any] = {"realize_reads_threshold": 10**9, "realize_opcount_threshold": 10**9}
"""Inductor's options: a long term is computed inside of the loop like a short one, and never stored."""
FUSED_UP_TO = 32
"""Up to this dimension a sum is one loop over pairs; above it, matrix products of blocks of the kernel matrix."""
AT_A_TIME = 16
"""Coordinates that one compiled loop over pairs adds to the squared distances."""
shapes: Any = _shapes


class Compiled(Backend):
    """Sums over pairs by ``torch.compile``.

    The formula of a kernel must be known from its options: a kernel that holds unhashable options, or tensors that are neither
    parameters nor buffers, is not compiled.
    """

    name = "compiled"

    def __init__(self) -> None:
        self._trial = Trial("torch.compile", self._try_out)
        self._blocks = Dense(squared_distances)

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        if kernel is not None:
            try:
                structure(kernel)
            except TypeError as error:
                name = type(kernel).__name__
                return f"{name} cannot be compiled, because its formula is not known from its options: {error}"
        return self._trial.failure(device)

    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        if x.shape[-1] > FUSED_UP_TO:
            return self._blocks.sum_pairs(kernel, x, y, b)
        rows, columns = [*_coordinates(x), *_numbers(kernel, x)], [*_coordinates(y), *_coordinates(b)]
        return _points(_sums(kernel_formula(kernel, x.shape[-1], b.shape[-1]), rows, columns), x)

    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"]:
        dim = x.shape[-1]
        if dim > FUSED_UP_TO:
            return self._blocks.sum_gradients(kernel, x, y, b)
        rows, columns = [*_coordinates(x), *_numbers(kernel, x)], [*_coordinates(y), *_coordinates(b.unsqueeze(-1))]
        formula = kernel_formula(kernel, dim, 1).pull_back(len(rows), tuple(range(dim)))
        return _points(_sums(formula, [*rows, torch.ones_like(rows[0])], columns), x)

    @torch.no_grad()
    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        if x.shape[-1] > FUSED_UP_TO:
            return self._blocks.max_pairs(kernel, x, y, alive)
        rows, columns = [*_coordinates(x), *_numbers(kernel, x)], _coordinates(y)
        columns.append(torch.where(alive, 0.0, -torch.inf).to(x).reshape(columns[0].shape))
        (largest,) = _run(exponent_formula(kernel, x.shape[-1]), rows, columns, largest=True)
        return largest.reshape(x.shape[:-1])

    def _try_out(self, device: torch.device) -> None:
        x = torch.zeros(2, 1, dtype=torch.float32, device=device)
        self.sum_pairs(Gaussian(1.0), x, x, x)


@torch.no_grad()
def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(*batch, n, m)`` from differences, `AT_A_TIME` coordinates at once; faster than ``cdist`` for many."""
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

    with _compiler_at_work():
        return _Code(torch.compile(add_squares, dynamic=True, options=FUSED))


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


_compiled: dict[tuple[object, ...], Run] = {}
_turns = Turns()
"""Code is compiled by one thread alone: tracing, the compiler's options and Python's warning filters are the whole process's."""


def _run(formula: Formula, rows: Sequence[Tensor], columns: Sequence[Tensor], largest: bool = False) -> tuple[Tensor, ...]:
    first = rows[0]
    key = (formula.key, len(rows), len(columns), first.dtype, first.device.type)
    run = _compiled.get(key)
    if run is None:
        with _turns.alone():
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
    with _compiler_at_work():
        graph = make_fx(reduced, tracing_mode="symbolic")(*examples)
        return _Code(torch.compile(graph, dynamic=True, options=FUSED))  # imports the compiler, which warns about itself


@contextmanager
def _compiler_at_work() -> Iterator[None]:
    """One thread at a time; without the compiler's warnings about itself; sizes that are equal now are not always equal."""
    with _turns.alone(), shapes.patch(use_duck_shape=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Code:
    """Code of ``torch.compile``, which compiles at the first call and whenever what it relies on has changed.

    A call that may compile is `_compiler_at_work`. No other call is: to change warning filters makes Python repeat warnings.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._prepared: set[tuple[object, ...]] = set()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        kind = _relied_on(tensors)
        if kind in self._prepared:
            with _turns.shared():
                return self._run(*tensors)
        with _compiler_at_work():
            result = self._run(*tensors)
        self._prepared.add(kind)
        return result


def _relied_on(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """What compiled code relies on: sizes that it treats as constants, whether indices fit into 32 bits, the state of PyTorch."""
    first, last = tensors[0], tensors[-1]
    sizes = tuple(min(size, AT_A_TIME + 1) for t in tensors for size in t.shape)
    many = first.numel() * last.shape[-1] >= 2**31
    kind = first.device.type
    return (
        *(sizes, many, first.device, first.is_inference(), torch.is_inference_mode_enabled()),
        *(torch.is_autocast_enabled(kind), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
    )


def _coordinates(t: Tensor) -> list[Tensor]:
    """The coordinates of points ``(*batch, n, d)``, each contiguous of shape ``(batch, n)``."""
    return list(t.reshape(-1, *t.shape[-2:]).permute(2, 0, 1).contiguous().unbind(0))


def _numbers(kernel: Kernel, x: Tensor) -> list[Tensor]:
    """The numbers of a kernel as rows of shape ``(batch, n)``."""
    batch, n = x.shape[:-2], x.shape[-2]
    values = (v.to(x) if isinstance(v, Tensor) else x.new_tensor(v) for v in numbers_of(kernel).values())
    return [v.expand(batch).reshape(-1, 1).expand(-1, n).contiguous() for v in values]


def _points(coordinates: Sequence[Tensor], x: Tensor) -> Tensor:
    return torch.stack(list(coordinates), -1).reshape(*x.shape[:-1], len(coordinates))
