"""Whole numbers as options: those of NumPy and PyTorch too, but no truth values."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_whole", "set_whole", "whole"]


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number: an ``int``, or what says by ``__index__`` that it is one; no truth value."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and (value.ndim or value.dtype is torch.bool)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def whole(name: str, value: Any, least: int = 1, *, what: str = "whole number") -> int:
    """The option ``name`` as an ``int``; a `ValueError` that says ``what`` it should be, if it is none or less than ``least``."""
    if not is_whole(value) or operator.index(value) < least:
        raise ValueError(f"{name}: expected a {what} >= {least}, got {value!r}")
    return operator.index(value)


def set_whole(options: object, least: int, *names: str) -> None:
    """Make the fields ``names`` of a frozen dataclass ``int``; a `ValueError` for one that is none or less than ``least``."""
    for name in names:
        object.__setattr__(options, name, whole(name, getattr(options, name), least))
