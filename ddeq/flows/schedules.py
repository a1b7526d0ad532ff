"""Numbers that may change from step to step and differ between the samples of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ddeq.measures import values_are_known

__all__ = ["Schedule", "check_schedule", "number_at", "over_atoms"]

Schedule = float | Tensor | Callable[[int], float | Tensor]
"""A number, a tensor with one for each sample ``(*batch,)``, or a function of the number of the step that gives either."""


def check_schedule(name: str, value: Any, *, zero: bool = False) -> None:
    """Raise a `ValueError` unless ``value`` is a schedule, positive (or non-negative, with ``zero``) where it is known."""
    if not callable(value):
        _check_number(name, value, zero)


def number_at(name: str, value: Schedule, step: int, *, batch_shape: tuple[int, ...], zero: bool = False) -> float | Tensor:
    """The number at a step, or one for each sample of the batch.

    Raises
    ------
    ValueError
        If it is not positive (non-negative, with ``zero``) and finite, or of another shape than () and ``batch_shape``.
    """
    number = _check_number(name, value(step), zero) if callable(value) else value
    if isinstance(number, Tensor) and number.shape not in ((), batch_shape):
        raise ValueError(f"{name}: expected one number, or one for each sample, shape {batch_shape}, got {tuple(number.shape)}")
    return number


def over_atoms(number: float | Tensor, dims: int = 2) -> float | Tensor:
    """A number for each sample with dimensions for atoms and coordinates behind, to multiply fields with."""
    return number[(...,) + (None,) * dims] if isinstance(number, Tensor) else number


def _check_number(name: str, value: Any, zero: bool) -> float | Tensor:
    wanted = "non-negative" if zero else "positive"
    if isinstance(value, Tensor):
        right = ((value >= 0) if zero else (value > 0)) & torch.isfinite(value)
        if values_are_known(value) and not bool(right.all()):
            raise ValueError(f"{name}: expected {wanted} finite numbers, got {value.detach()[~right][0].item()}")
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected a number, a tensor or a function of the step, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and (number >= 0 if zero else number > 0)):
        raise ValueError(f"{name}: expected a {wanted} finite number, got {value}")
    return number
