"""Functions that ``torch.compile`` leaves alone, without an import of the compiler: that takes a second, and may fail."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["untraced"]

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """As ``torch.compiler.disable``, once there is a compiler that could trace ``function``."""

    @functools.cache
    def outside() -> Callable[P, T]:
        disabled: Callable[P, T] = torch.compiler.disable(function)
        return disabled

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return (outside() if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return run
