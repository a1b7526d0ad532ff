"""The files of data sets: the words for their parts, where they stand, and how they are opened."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ddeq.files import check_archive

__all__ = [
    "UNREADABLE",
    "Array",
    "Split",
    "check_split",
    "files_in",
    "find_file",
    "open_bytes",
    "read_arrays",
    "read_bytes",
    "whole_labels",
]

Array: TypeAlias = NDArray[Any]
"""An array of NumPy of any shape and type."""
Split = Literal["train", "validation", "test"]
PIECE = 2**24
"""So many bytes are read at once."""
UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile)
"""What reading a broken file may raise."""


def check_split(split: object) -> None:
    """Raise a `ValueError` unless ``split`` is a `Split` or None."""
    if split not in (*get_args(Split), None):
        raise ValueError(f"split: expected 'train', 'validation', 'test' or None, got {split!r}")


def find_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of the files ``names`` that there is in one of the ``folders``, earlier names first, in capitals or not."""
    there = [{file.name.lower(): file for file in files_in(folder)} for folder in folders]
    return next((files[name.lower()] for name in names for files in there if name.lower() in files), None)


def files_in(folder: Path, *endings: str) -> list[Path]:
    """The files of a folder whose names end so, in capitals or not, in the order of their names; none that are hidden."""
    if not folder.is_dir():
        return []
    names = (file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    return sorted(file for file in names if not endings or file.name.lower().endswith(endings))


def open_bytes(file: Path) -> io.BufferedIOBase:
    """Open a file that may be compressed by gzip, whatever its name."""
    with file.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file) if compressed else file.open("rb")


def read_arrays(file: Path, names: Sequence[str]) -> dict[str, Array]:
    """The arrays ``names`` of an ``.npz`` file, letters as text; a `ValueError` if it is none or lacks one."""
    try:
        check_archive(file, "an .npz file of plain arrays")
        with np.load(file) as arrays:
            missing = set(names) - set(arrays.files)
            if not missing:
                found = {name: _entry(arrays, name) for name in names}
                return {name: np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a for name, a in found.items()}
            seen = arrays.files
    except (*UNREADABLE, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"path: {file} cannot be read as an .npz file of plain arrays: {error}") from None
    raise ValueError(f"path: {file} lacks the arrays {sorted(missing)}; it has {seen}")


def _entry(arrays: Any, name: str) -> Array:
    """An array of an ``.npz`` file, after a look at the size that it says it has: NumPy makes room before it reads."""
    with arrays.zip.open(f"{name}.npy") as entry:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(entry)
        if version not in read:
            raise ValueError(f"{name!r} is of an unknown version {version}")
        shape, _, dtype = read[version](entry)
    said, held = math.prod(shape) * dtype.itemsize, arrays.zip.getinfo(f"{name}.npy").file_size
    if said > held:
        raise ValueError(f"{name!r} is said to hold {said:,} bytes, got {held:,}")
    array: Array = arrays[name]
    return array


def read_bytes(file: Path, most: int) -> bytes:
    """The first bytes of a file that may be compressed by gzip, ``most`` of them or fewer; room is made as they are found."""
    with open_bytes(file) as opened:
        pieces = [opened.read(min(PIECE, most))]
        while pieces[-1] and (left := most - sum(map(len, pieces))) > 0:
            pieces.append(opened.read(min(PIECE, left)))
    return b"".join(pieces)


def whole_labels(labels: Array, classes: int, file: Path) -> Array:
    """Labels ``(N,)`` or ``(N, 1)`` of any numeric type as whole numbers ``(N,)``; a `ValueError` if they are no classes."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "uifb" or not bool((flat == np.floor(flat)).all()):
        raise ValueError(f"path: expected whole numbers of shape (N,) as labels in {file}, got {labels.dtype} {labels.shape}")
    whole = flat.astype(np.int64)
    wrong = np.flatnonzero((whole < 0) | (whole >= classes))
    if len(wrong):
        raise ValueError(f"path: expected labels from 0 to {classes - 1} in {file}, got {whole[wrong[0]]}, label {wrong[0]}")
    return whole
