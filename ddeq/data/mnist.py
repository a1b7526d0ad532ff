"""MNIST digits as point clouds in the plane."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ddeq.data.dataset import MeasureDataset
from ddeq.data.images import intensities_to_masses, pixels_to_points

__all__ = ["load_mnist_pc"]

VALIDATION = 10_000
"""The last so many training digits are the validation split."""


def load_mnist_pc(path: str | Path, split: Literal["train", "validation", "test"] | None = None) -> MeasureDataset:
    """MNIST as measures on the square from -1 to 1: pixels of positive intensity are atoms, their intensities masses.

    Parameters
    ----------
    path
        An ``.npz`` file with ``points`` uint8 ``(total, 3)`` (column, row from the bottom, intensity), ``offsets``
        ``(N + 1,)`` and ``labels`` ``(N,)``; or a folder with ``train.npz`` and maybe ``test.npz``.
    split
        ``"train"``: all but the last 10,000 digits of the training file; ``"validation"``: those; ``"test"``: all of the
        test file. None: all of the file, or all of ``train.npz`` in the folder.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file lacks an array or holds others than described, or ``split`` is unknown.
    """
    if split not in ("train", "validation", "test", None):
        raise ValueError(f"split: expected 'train', 'validation', 'test' or None, got {split!r}")
    path = Path(path)
    file = path / ("test.npz" if split == "test" else "train.npz") if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"path: expected an .npz file of MNIST point clouds, or a folder with one, got {file}")
    with np.load(file) as arrays:
        missing = {"points", "offsets", "labels"} - set(arrays.files)
        if missing:
            raise ValueError(f"path: {file} lacks the arrays {sorted(missing)}; it has {arrays.files}")
        cloud, offsets, labels = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("points", "offsets", "labels"))
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise ValueError(f"path: expected points of shape (total, 3) in {file}, got {tuple(cloud.shape)}")
    points = pixels_to_points(cloud[:, :2], 28)
    data = MeasureDataset(points, intensities_to_masses(cloud[:, 2], offsets), offsets, labels, [str(i) for i in range(10)])
    if split in ("train", "validation"):
        if len(data) <= VALIDATION:
            raise ValueError(f"path: expected more than {VALIDATION} digits to split, got {len(data)}; use split=None")
        border = len(data) - VALIDATION
        return data.subset(range(border) if split == "train" else range(border, len(data)))
    return data
