"""The formats in which MNIST is published, read into one: the positive pixels of all images, one image after the other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddeq.data.files import UNREADABLE, Array, find_file, open_bytes, read_arrays, read_bytes, whole_labels

__all__ = ["Digits", "find_digits", "read_digits"]

SIDE = 28
LINES = 4096
"""So many lines of a CSV file are held at once."""
IMAGES, LABELS = 0x803, 0x801
"""The numbers with which idx files begin: bytes, in three dimensions or in one."""


class Digits(NamedTuple):
    """Pixels of positive intensity."""

    pixels: Array
    """Column, row from the bottom, intensity: uint8 ``(total, 3)``."""
    offsets: Array
    """Where each image begins and the last one ends, ``(N + 1,)``."""
    labels: Array
    """``(N,)``."""


def find_digits(folder: Path, part: str) -> Path:
    """The file of ``part`` (``"train"`` or ``"test"``) in a folder; a `FileNotFoundError` that says what was looked for."""
    stems = ["t10k", "test"] if part == "test" else ["train"]
    idx = [f"{stem}-images{dot}idx3-ubyte{end}" for stem in stems for dot in "-." for end in ("", ".gz")]
    names = [f"{part}.npz", f"{part}.csv", f"{part}.csv.gz", *idx]
    folders = [folder, folder / "raw", folder / "MNIST" / "raw"]  # the last two as torchvision puts them
    file = find_file(folders, names)
    if file is None:
        raise FileNotFoundError(f"path: expected one of the files {', '.join(names)} in {folder}, found none")
    return file


def read_digits(file: Path) -> Digits:
    """Read digits from an ``.npz`` file, a CSV file, or an idx file of images beside one of labels."""
    name = file.name.lower()
    if name.endswith(".npz"):
        digits = _read_npz(file)
    elif name.endswith((".csv", ".csv.gz")):
        digits = _read_csv(file)
    elif "ubyte" in name or "idx" in name:
        digits = _read_idx(file)
    else:
        raise ValueError(f"path: expected a file named .npz, .csv or ...idx3-ubyte, got {file}")
    pixels = digits.pixels
    if pixels.ndim != 2 or pixels.shape[1] != 3:
        raise ValueError(f"path: expected points of shape (total, 3) in {file}, got {pixels.shape}")
    if len(pixels) and not (pixels[:, :2].min() >= 0 and pixels[:, :2].max() < SIDE and pixels[:, 2].min() > 0):
        raise ValueError(f"path: expected pixels from 0 to {SIDE - 1} with positive intensities in {file}, got others")
    if digits.offsets.ndim == 1 and digits.offsets.dtype.kind in "ui":
        empty = np.flatnonzero(digits.offsets[1:] <= digits.offsets[:-1])
        if len(empty):
            raise ValueError(f"path: expected pixels of positive intensity in each image of {file}, got none in image {empty[0]}")
    return digits._replace(labels=whole_labels(digits.labels, 10, file))


def _read_npz(file: Path) -> Digits:
    arrays = read_arrays(file, ["points", "offsets", "labels"])
    return Digits(arrays["points"], arrays["offsets"], arrays["labels"])


def _read_csv(file: Path) -> Digits:
    try:
        return _read_lines(file)
    except UNREADABLE as error:
        raise ValueError(f"path: {file} cannot be read: {error}") from None


def _read_lines(file: Path) -> Digits:
    pixels, sizes, labels = [], [], []
    with open_bytes(file) as lines:
        first = lines.readline().decode("utf-8-sig", "replace")
        label, places = _columns(first, file)
        names = any(c.isalpha() for c in first)
        before = [] if names else [first.encode()]
        numbered = ((n, line) for n, line in enumerate(chain(before, lines), 1 + names) if line.strip())
        while chunk := list(islice(numbered, LINES)):
            rows = _parse(chunk, len(first.split(",")), file)
            atoms = rows[:, places]
            present = atoms[..., 2] > 0  # absent points are -1 three times, or 0
            pixels.append(atoms[present].astype(np.uint8))
            sizes.append(present.sum(-1))
            labels.append(rows[:, label])
            outside = present & ((atoms < 0) | (atoms >= (SIDE, SIDE, 256))).any(-1)
            for wrong, wanted in (
                (sizes[-1] == 0, "at least one point, got none"),
                (outside.any(-1), f"pixels from 0 to {SIDE - 1} and intensities up to 255, got others"),
                ((labels[-1] < 0) | (labels[-1] > 9), "a label from 0 to 9, got another"),
            ):
                if wrong.any():
                    raise ValueError(f"path: {file}, line {chunk[wrong.argmax()][0]}: expected {wanted}")
    if not labels:
        raise ValueError(f"path: {file} has no digits, only line 1")
    return Digits(np.concatenate(pixels), _offsets(np.concatenate(sizes)), np.concatenate(labels))


def _columns(header: str, file: Path) -> tuple[int, Array]:
    """Where the label and the points ``(n, 3)`` stand, by the names of the columns, or by their order where they have none."""
    names = [name.strip().strip("\"'").lower() for name in header.split(",")]
    if not any(c.isalpha() for c in header):
        names = ["label", *(f"{letter}{i}" for i in range(len(names) // 3) for letter in "xyv")][: len(names)]
    found = {match.groups(): i for i, name in enumerate(names) if (match := re.fullmatch(r"([xyv])[_ ]?(\d+)", name))}
    numbers = sorted({int(number) for _, number in found})
    labels = [i for i, name in enumerate(names) if name in ("label", "labels", "class", "target", "digit", "y")]
    if len(labels) != 1 or len(found) + 1 != len(names) or not numbers or len(found) != 3 * len(numbers):
        raise ValueError(
            f"path: {file}, line 1: expected columns label, x0, y0, v0, x1, y1, v1, ..., got {header.strip()[:60]!r}"
        )
    places: dict[tuple[str, int], int] = {(letter, int(number)): i for (letter, number), i in found.items()}
    return labels[0], np.array([[places[letter, number] for letter in "xyv"] for number in numbers])


def _parse(lines: Sequence[tuple[int, bytes]], columns: int, file: Path) -> Array:
    """Whole numbers ``(lines, columns)`` of numbered lines; a `ValueError` that names the first bad line."""
    try:
        rows = np.loadtxt([line for _, line in lines], dtype=np.int16, delimiter=",", ndmin=2, comments=None)
        if rows.shape[1] == columns:
            return rows
    except (ValueError, OverflowError):
        pass
    for number, line in lines:
        fields = line.decode(errors="replace").strip().split(",")
        if len(fields) != columns:
            raise ValueError(f"path: {file}, line {number}: expected {columns} columns, got {len(fields)}")
        for field in fields:
            if not re.fullmatch(r"\s*[+-]?\d{1,4}\s*", field):
                raise ValueError(f"path: {file}, line {number}: expected whole numbers, got {field!r}")
    raise ValueError(f"path: {file}: expected {columns} whole numbers in each line, from line {lines[0][0]} on")


def _read_idx(file: Path) -> Digits:
    if "images" not in file.name:
        raise ValueError(f"path: expected the file of images, named ...images...ubyte, got {file}; labels are found beside it")
    stem = file.name.removesuffix(".gz").replace("images", "labels")
    variants = [stem.replace("-idx3", dot + "idx1").replace(".idx3", dot + "idx1") for dot in "-."]
    names = [name + end for name in variants for end in ("", ".gz")]
    beside = find_file([file.parent], names)
    if beside is None:
        raise FileNotFoundError(f"path: expected the labels of {file.name} beside it, in one of {', '.join(names)}, found none")
    images, labels = _idx(file, IMAGES), _idx(beside, LABELS)
    if images.shape[1:] != (SIDE, SIDE) or len(labels) != len(images):
        raise ValueError(
            f"path: expected images of shape (N, {SIDE}, {SIDE}) in {file} and N labels in {beside.name}, got {images.shape} "
            f"and {len(labels)}"
        )
    image, row, column = images.nonzero()
    pixels = np.stack([column.astype(np.uint8), (SIDE - 1 - row).astype(np.uint8), images[image, row, column]], -1)
    return Digits(pixels, _offsets((images != 0).sum((1, 2))), labels)


def _idx(file: Path, magic: int) -> Array:
    rank = magic & 0xFF
    header = 4 * (1 + rank)
    try:
        begin = read_bytes(file, header)
        if len(begin) < header or int.from_bytes(begin[:4], "big") != magic:
            raise ValueError(
                f"path: expected {file} to begin with the bytes {magic.to_bytes(4, 'big').hex()}, got {begin[:4].hex()}"
            )
        shape = [int(n) for n in np.frombuffer(begin, ">u4", rank, 4)]
        said = math.prod(shape)
        content = read_bytes(file, header + said + 1)
    except UNREADABLE as error:
        raise ValueError(f"path: {file} cannot be read: {error}") from None
    if len(content) != header + said:
        found = f"{len(content) - header}" if len(content) < header + said else "more"
        raise ValueError(f"path: expected {said} bytes of data in {file}, as its header says, got {found}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _offsets(sizes: Array) -> Array:
    return np.concatenate([[0], sizes.cumsum()])
