"""MNIST digits as point clouds in the plane."""

from __future__ import annotations

from pathlib import Path

import torch

from ddeq.data.dataset import MeasureDataset
from ddeq.data.files import Split, check_split
from ddeq.data.images import intensities_to_masses, pixels_to_points
from ddeq.data.mnist_files import find_digits, read_digits

__all__ = ["load_mnist_pc"]

VALIDATION = 10_000
"""The last so many training digits are the validation split."""


def load_mnist_pc(path: str | Path, split: Split | None = None) -> MeasureDataset:
    """MNIST as measures on the square from -1 to 1: pixels of positive intensity are atoms, their intensities masses.

    Parameters
    ----------
    path
        One file, or a folder with one for each part, in any of these formats; they give the same measures.

        - Images and labels as first published: ``train-images-idx3-ubyte`` beside ``train-labels-idx1-ubyte``, and ``t10k-...``
          for the test part; also with a dot before ``idx``, compressed (``.gz``), or where torchvision puts them (``MNIST/raw``).
        - "Point Cloud MNIST 2D": ``train.csv`` and ``test.csv`` with columns ``label, x0, y0, v0, x1, y1, v1, ...`` in any order,
          or in this one without a header; -1 for absent points.
        - ``train.npz`` and ``test.npz`` with ``points`` uint8 ``(total, 3)`` (column, row from the bottom, intensity),
          ``offsets`` ``(N + 1,)`` and ``labels`` ``(N,)``.
    split
        ``"train"``: all but the last 10,000 digits of the training file; ``"validation"``: those; ``"test"``: all of the
        test file. None: all of the training file. Of a ``path`` that is a file, ``"test"`` and None take all.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists what was looked for.
    ValueError
        If a file holds other things than described (for CSV files with the line), or ``split`` is unknown.

    References
    ----------
    :cite:t:`lecun1998gradient`; :cite:t:`garcia2020point`, "Point Cloud MNIST 2D".
    """
    check_split(split)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected an .npz, .csv or idx file of MNIST digits, or a folder with one, got {path}")
    digits = read_digits(find_digits(path, "test" if split == "test" else "train") if path.is_dir() else path)
    pixels, offsets, labels = (torch.from_numpy(array.copy()) for array in digits)
    masses = intensities_to_masses(pixels[:, 2], offsets)
    data = MeasureDataset(pixels_to_points(pixels[:, :2], 28), masses, offsets, labels, [str(i) for i in range(10)])
    if split in ("train", "validation"):
        if len(data) <= VALIDATION:
            raise ValueError(f"path: expected more than {VALIDATION} digits to split, got {len(data)}; use split=None")
        border = len(data) - VALIDATION
        return data.subset(range(border) if split == "train" else range(border, len(data)))
    return data
