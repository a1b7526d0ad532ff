"""Warnings that point to the user's line, and public names that are going away."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

__all__ = ["renamed", "warn"]

INSIDE = {"ddeq", "torch", "jaxtyping", "beartype"}
"""Packages whose frames are not the user's: ddeq, PyTorch, which calls ddeq in backward, and run-time shape checks."""


def warn(warning: Warning) -> None:
    """Emit ``warning`` at the nearest line outside of ddeq and PyTorch.

    Python shows a warning once for each text and line: keep changing numbers out of the text, and in attributes of the warning.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame):
        frame, level = frame.f_back, level + 1
    # In a thread of autograd's own there is no line of the user's: the warning then points to the outermost one.
    warnings.warn(warning, stacklevel=level)


def renamed(module: str, names: Mapping[str, tuple[str, str]]) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``module`` that gives old public names with a `DeprecationWarning`.

    Parameters
    ----------
    module
        The module that had the names: its ``__name__``.
    names
        For each old name the full name of what stands in its place, and the version that drops the old one.

    Examples
    --------
    In a module that had ``Old``: ``__getattr__ = renamed(__name__, {"Old": ("ddeq.iteration.New", "0.3")})``.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, version = names[name]
        warn(DeprecationWarning(f"{module}.{name} is now {new}; the old name goes away in version {version}"))
        home, _, attribute = new.rpartition(".")
        return getattr(importlib.import_module(home), attribute)

    return get


def _is_inside(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).split(".")[0] in INSIDE
