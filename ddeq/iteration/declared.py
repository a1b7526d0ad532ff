"""Abstract base classes whose capabilities are declared in class attributes, and checks of options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from inspect import get_annotations
from typing import Any

__all__ = ["Declared", "check_kinds", "label_of"]


class Declared:
    """A base class that refuses a subclass whose declared capabilities are not of the type of their defaults."""

    @property
    def label(self) -> str:
        """How messages call it: the name of its class, or those of its parts."""
        return type(self).__name__

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__[1:]:
            for name in get_annotations(base).keys() & cls.__dict__.keys():
                value, default = cls.__dict__[name], base.__dict__.get(name)
                if isinstance(default, bool | tuple) and not isinstance(value, type(default) | property):
                    raise TypeError(f"{cls.__name__}.{name}: expected a {type(default).__name__}, got {value!r}")


def check_kinds(*options: tuple[str, object, Any, str]) -> None:
    """Raise a `ValueError` for the first of the ``options``, (name, value, class, what is wanted), that is of another class."""
    for name, value, kind, wanted in options:
        if not isinstance(value, kind):
            short = value is None or isinstance(value, str | int | float | type) or is_dataclass(value)
            seen = repr(value) if short else type(value).__name__
            raise ValueError(f"{name}: expected {wanted}, got {seen}")


def label_of(parts: Iterable[Declared | None]) -> str:
    """What messages call some parts of the same kind together."""
    return " and ".join(dict.fromkeys(part.label for part in parts if part is not None))
