"""Terms of sums over pairs as formulas of coordinates. A compiler fuses them, and their derivatives are formulas again.

A formula takes ``rows``, tensors ``(batch, n, 1)``, and ``columns``, tensors ``(batch, 1, m)``, to terms ``(batch, n, m)``. Every
input is a row or a column: coordinates of points, weights, parameters of the kernel (one entry per row), cotangents.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ddeq.held import held_numbers
from ddeq.kernels import Kernel

__all__ = ["Coordinates", "Formula", "exponent_formula", "kernel_formula", "numbers_of", "structure"]

Terms = tuple[Tensor, ...]


class Coordinates:
    """Points as a tuple of their coordinates, with the arithmetic that kernels use."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)

    def sum(self, dim: int) -> Tensor:
        """Sum over the coordinates, which take the place of the last dimension."""
        if dim != -1:
            raise ValueError(f"dim: expected -1, the coordinates of points, got {dim}")
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total + part
        return total

    def __getitem__(self, index: slice) -> Coordinates:
        return Coordinates(self.parts[index])

    def __pow__(self, exponent: int) -> Coordinates:
        return self * self if exponent == 2 else Coordinates([p**exponent for p in self.parts])

    def __neg__(self) -> Coordinates:
        return Coordinates([-p for p in self.parts])

    def __add__(self, other: Any) -> Coordinates:
        return Coordinates([p + q for p, q in self._with(other)])

    def __sub__(self, other: Any) -> Coordinates:
        return Coordinates([p - q for p, q in self._with(other)])

    def __rsub__(self, other: Any) -> Coordinates:
        return Coordinates([q - p for p, q in self._with(other)])

    def __mul__(self, other: Any) -> Coordinates:
        return Coordinates([p * q for p, q in self._with(other)])

    def __truediv__(self, other: Any) -> Coordinates:
        return Coordinates([p / q for p, q in self._with(other)])

    __radd__, __rmul__ = __add__, __mul__

    def __getattr__(self, name: str) -> Callable[..., Coordinates]:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{name} is not available for the coordinates of points; use arithmetic, exp, log and sum(-1)")
        return lambda *args: Coordinates([getattr(p, name)(*args) for p in self.parts])

    def _with(self, other: Any) -> Iterator[tuple[Tensor, Any]]:
        if not isinstance(other, Coordinates):
            return ((p, other) for p in self.parts)
        return zip(self.parts, other.parts, strict=True)


@dataclass(frozen=True)
class Formula:
    """A function of rows and columns to terms. Formulas with equal keys are the same function."""

    key: tuple[Hashable, ...]
    function: Callable[[Sequence[Tensor], Sequence[Tensor]], Terms] = field(compare=False, repr=False)

    def pull_back(self, rows: int, wanted: tuple[int, ...], *, transposed: bool = False) -> Formula:
        """The formula of a derivative: cotangents follow the rows, and the sums of its terms are gradients in some of the inputs.

        Parameters
        ----------
        rows
            Number of the rows of this formula.
        wanted
            Indices of the rows in which the gradients are.
        transposed
            Whether they are in columns instead. Rows and columns then change places, and cotangents are columns.
        """

        def pulled(left: Sequence[Tensor], right: Sequence[Tensor]) -> Terms:
            own, cotangents = (right[:rows], right[rows:]) if transposed else (left[:rows], left[rows:])
            other = left if transposed else right
            with torch.enable_grad():
                varied = list(other if transposed else own)
                pairs = left[0] + right[0]
                for i in wanted:  # one copy for each pair, so that the gradient is one for each pair
                    varied[i] = varied[i] + torch.zeros_like(pairs)
                    if not varied[i].requires_grad:
                        varied[i].requires_grad_()
                terms = self.function(own, varied) if transposed else self.function(varied, other)
                total = sum(((c * t).sum() for c, t in zip(cotangents, terms, strict=True)), torch.zeros_like(pairs).sum())
                if not total.requires_grad:
                    return tuple(torch.zeros_like(varied[i]) for i in wanted)
                return torch.autograd.grad(total, [varied[i] for i in wanted], create_graph=True, materialize_grads=True)

        return Formula((*self.key, "transposed" if transposed else "rows", wanted), pulled)


def kernel_formula(kernel: Kernel, dim: int, channels: int) -> Formula:
    """``k(x, y) b`` for each of the channels of ``b``: rows are ``x`` and the kernel's numbers, columns are ``y`` and ``b``."""

    def terms(k: Kernel, x: Coordinates, y: Coordinates, others: Sequence[Tensor]) -> Terms:
        return tuple(k.pair(x, y) * b for b in others)

    return _formula_of(kernel, dim, terms, ("sum", channels))


def exponent_formula(kernel: Kernel, dim: int) -> Formula:
    """``log k(x, y) + b`` for one column ``b``; rows and columns as in `kernel_formula`."""

    def terms(k: Kernel, x: Coordinates, y: Coordinates, others: Sequence[Tensor]) -> Terms:
        return tuple(k.log_pair(x, y) + b for b in others)

    return _formula_of(kernel, dim, terms, ("exponent",))


def _formula_of(kernel: Kernel, dim: int, terms: Callable[..., Terms], name: tuple[Hashable, ...]) -> Formula:
    names, template = tuple(numbers_of(kernel)), _without_numbers(kernel)

    def function(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Terms:
        own = _with_numbers(template, dict(zip(names, rows[dim:], strict=True)))
        return terms(own, Coordinates(rows[:dim]), Coordinates(columns[:dim]), columns[dim:])

    return Formula((structure(kernel), dim, *name), function)


def structure(kernel: Kernel) -> Hashable:
    """A key of the formula of a kernel: its parts and their options, without the numbers that are inputs of the formula.

    Raises
    ------
    TypeError
        If the kernel holds something that is not hashable, or a tensor that is neither a parameter nor a buffer.
    """
    parts = []
    for name, module in kernel.named_modules():
        hidden = {*_MODULE_ATTRIBUTES, *held_numbers(module), "_numbers"}
        options = tuple(sorted((k, v) for k, v in vars(module).items() if k not in hidden))
        loose = [k for k, v in options if isinstance(v, Tensor)]
        if loose:
            raise TypeError(f"{loose[0]} is a tensor that is neither a parameter nor a buffer")
        parts.append((name, type(module), options, tuple(_own_numbers(module))))
    key = tuple(parts)
    hash(key)
    return key


_MODULE_ATTRIBUTES = set(vars(nn.Module()))


def numbers_of(kernel: Kernel) -> dict[str, float | Tensor]:
    """The numbers, parameters and buffers of a kernel and its parts, by their qualified names."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in kernel.named_modules()
        for name, value in _own_numbers(module).items()
    }


def _own_numbers(module: nn.Module) -> dict[str, float | Tensor]:
    tensors = {k: t for k, t in [*module._parameters.items(), *module._buffers.items()] if t is not None}
    return {**{name: getattr(module, name) for name in held_numbers(module)}, **tensors}


def _without_numbers(module: Any) -> Any:
    """A shallow copy without numbers, parameters and buffers."""
    other = copy.copy(module)
    names = _own_numbers(module)
    other.__dict__ = {k: v for k, v in vars(module).items() if k not in names}
    other.__dict__["_parameters"] = other.__dict__["_buffers"] = {}
    other.__dict__["_modules"] = {k: _without_numbers(m) for k, m in module._modules.items()}
    return other


def _with_numbers(template: Any, numbers: dict[str, Tensor], prefix: str = "") -> Any:
    """A copy of the template with tensors in the place of its numbers."""
    other = copy.copy(template)
    own = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix) and "." not in k.removeprefix(prefix)}
    modules = {k: _with_numbers(m, numbers, f"{prefix}{k}.") for k, m in template._modules.items()}
    other.__dict__ = {**vars(template), **own, "_modules": modules}
    return other
