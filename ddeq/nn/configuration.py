"""Models from configurations: nested mappings of names and options, as YAML and JSON hold them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

from torch import nn

__all__ = ["build", "trusted_packages"]

KEY = "class"
HOME = ("ddeq.nn", "ddeq.solvers", "ddeq.iteration")
"""Where a name without dots is looked for, among the public names."""
KNOWN = ("ddeq", "torch.nn")
"""Packages whose modules and dataclasses a name with dots may always be."""
HARMLESS = ("ddeq.experiments.paper_flow",)
"""Functions that a name with dots may always be."""
_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted_packages", default=())


@contextmanager
def trusted_packages(*names: str) -> Iterator[None]:
    """Let configurations within the block name all that the packages ``names`` hold, such as models of your own.

    Importing runs a package's code, and building calls what is named with the options that the configuration gives.

    Raises
    ------
    ValueError
        If a name is none of a package.
    """
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"names: expected names of packages, such as 'my_project', got {name!r}")
    token = _trusted.set((*_trusted.get(), *names))
    try:
        yield
    finally:
        _trusted.reset(token)


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
        Whether a name may have dots. It is then a module (`torch.nn.Module`) or a dataclass of ``ddeq`` or ``torch.nn``, or
        anything of the packages named by `trusted_packages`. Nothing else is imported.

    Raises
    ------
    ValueError
        If a name is unknown, or of a package that is not trusted, or an option is not one of its class; the message names both.

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
        return _imported(name)
    known = [importlib.import_module(home) for home in HOME] + list(modules)
    for module in known:
        if isinstance(name, str) and name in module.__all__ and inspect.isclass(getattr(module, name)):
            return getattr(module, name)
    names = sorted(n for module in known for n in module.__all__ if inspect.isclass(getattr(module, n)))
    raise ValueError(f"class: expected one of {names}{' or a dotted name' if dotted else ''}, got {name!r}")


def _imported(name: str) -> Any:
    """What a name with dots stands for, if it is known or trusted."""
    trusted = _within(name, _trusted.get())
    if not trusted and not _within(name, KNOWN):
        raise ValueError(
            f"class: {name!r} is of no package among {[*KNOWN, *_trusted.get()]}; if you trust the configuration, say so: "
            f"`with ddeq.nn.trusted_packages({name.split('.')[0]!r}):`, or --trust {name.split('.')[0]} on the command line"
        )
    place, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(place), last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"class: {name!r} cannot be imported ({error})") from None
    plain = inspect.isclass(found) and (issubclass(found, nn.Module) or is_dataclass(found))
    if not trusted and name not in HARMLESS and not (plain and _within(found.__module__, KNOWN)):
        raise ValueError(f"class: expected a torch.nn.Module or a dataclass of {' or '.join(KNOWN)}, got {name!r}")
    return found


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)
