"""The words for parts of a data set, and where a file stands."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["Split", "check_split"]

Split = Literal["train", "validation", "test"]


def check_split(split: object) -> None:
    """Raise a `ValueError` unless ``split`` is a `Split` or None."""
    if split not in (*get_args(Split), None):
        raise ValueError(f"split: expected 'train', 'validation', 'test' or None, got {split!r}")
