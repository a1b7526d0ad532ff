"""The files of data sets: the words for their parts, where they stand, and how they are opened."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Split", "check_split", "find_file", "open_bytes", "read_arrays"]

Array: TypeAlias = NDArray[Any]
"""An array of NumPy of any shape and type."""
Split = Literal["train", "validation", "test"]


def check_split(split: object) -> None:
    """Raise a `ValueError` unless ``split`` is a `Split` or None."""
    if split not in (*get_args(Split), None):
        raise ValueError(f"split: expected 'train', 'validation', 'test' or None, got {split!r}")


def find_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of the files ``names`` that there is in one of the ``folders``, earlier names first."""
    return next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)


def open_bytes(file: Path) -> io.BufferedIOBase:
    """Open a file that may be compressed by gzip, whatever its name."""
    with file.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file) if compressed else file.open("rb")


def read_arrays(file: Path, names: Sequence[str]) -> dict[str, Array]:
    """The arrays ``names`` of an ``.npz`` file; a `ValueError` if it is none or lacks one."""
    try:
        with np.load(file) as arrays:
            missing = set(names) - set(arrays.files)
            if not missing:
                return {name: arrays[name] for name in names}
            seen = arrays.files
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"path: {file} cannot be read as an .npz file of plain arrays: {error}") from None
    raise ValueError(f"path: {file} lacks the arrays {sorted(missing)}; it has {seen}")
