"""Without an import: functions that ``torch.compile`` leaves alone, and whether a package is there. Importing takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["is_installed", "untraced"]

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """As ``torch.compiler.disable``, once there is a compiler that could trace ``function``."""

    disabled: list[Callable[P, T]] = []  # not functools.cache: the compiler warns where it meets one

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return run


def is_installed(package: str) -> bool:
    """Whether there is such a package; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # something keeps it from being imported
        return False
