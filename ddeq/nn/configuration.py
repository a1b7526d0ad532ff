"""Models from configurations: nested mappings of names and options, as YAML and JSON hold them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["build"]

KEY = "class"
HOME = ("ddeq.nn", "ddeq.solvers", "ddeq.iteration")
"""Where a name without dots is looked for, among the public names."""


def build(configuration: Any, *, modules: Sequence[ModuleType] = (), dotted: bool = False) -> Any:
    """The object that a configuration describes.

    A mapping with the key ``"class"`` becomes an instance of the class of that name; its other entries are the options, built
    first. Mappings without that key, lists and plain values stay what they are, with what they hold built.

    Parameters
    ----------
    configuration
        For example ``{"class": "LearnedReference", "n": 16, "dim": 64, "mark_dim": 8}``.
    modules
        Modules whose public names are known besides those of ``ddeq.nn``, ``ddeq.solvers`` and ``ddeq.iteration``.
    dotted
        Whether a name may have dots and is then imported: for configurations that you trust, since an import runs code.

    Raises
    ------
    ValueError
        If a name is unknown, or an option is not one of its class; the message names both.

    Examples
    --------
    >>> build({"class": "Stop", "rtol": 1e-3})
    Stop(rtol=0.001, atol=1e-08, max_steps=100, check_every=1, patience=100, metric=None)
    """
    if isinstance(configuration, Mapping):
        parts = {key: build(value, modules=modules, dotted=dotted) for key, value in configuration.items()}
        if KEY not in parts:
            return parts
        name = parts.pop(KEY)
        made = _find(name, modules, dotted)
        _check_options(name, made, parts)
        return made(**parts)
    if isinstance(configuration, (list, tuple)):
        return [build(part, modules=modules, dotted=dotted) for part in configuration]
    return configuration


def _check_options(name: str, made: Any, options: Mapping[str, Any]) -> None:
    signature = inspect.signature(made)
    try:
        signature.bind(**options)
    except TypeError as error:
        unknown = [f"{option!r}" for option in options if option not in signature.parameters]
        what = f"unknown option {', '.join(unknown)}" if unknown else str(error)
        raise ValueError(f"{name}: {what}; it takes {signature}") from None


def _find(name: Any, modules: Sequence[ModuleType], dotted: bool) -> Any:
    if isinstance(name, str) and "." in name and dotted:
        place, _, last = name.rpartition(".")
        try:
            return getattr(importlib.import_module(place), last)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"class: {name!r} cannot be imported ({error})") from None
    known = [importlib.import_module(home) for home in HOME] + list(modules)
    for module in known:
        if isinstance(name, str) and name in module.__all__ and inspect.isclass(getattr(module, name)):
            return getattr(module, name)
    names = sorted(n for module in known for n in module.__all__ if inspect.isclass(getattr(module, n)))
    raise ValueError(f"class: expected one of {names}{' or a dotted name' if dotted else ''}, got {name!r}")
