"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels, for demonstrations without a download."""

from __future__ import annotations

from typing import Literal

import torch

from ddeq.data.dataset import MeasureDataset
from ddeq.data.images import intensities_to_masses, pixels_to_points

__all__ = ["load_digits"]

HELD_OUT = 0.2
"""Share of the images in the test split."""


def load_digits(split: Literal["train", "test"] | None = None) -> MeasureDataset:
    """Scikit-learn's digits as probability measures on the square from -1 to 1: pixels of positive intensity are atoms.

    Parameters
    ----------
    split
        ``"train"`` (80 %), ``"test"`` (20 %, drawn once, stratified by class, with a fixed seed), or None for all.

    Raises
    ------
    ValueError
        If ``split`` is none of these.
    ImportError
        If scikit-learn is not installed.

    References
    ----------
    :cite:t:`alpaydin1998optical`.
    """
    if split not in ("train", "test", None):
        raise ValueError(f"split: expected 'train', 'test' or None, got {split!r}")
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise ImportError("load_digits needs scikit-learn: pip install 'ddeq[data]'") from None
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).flip(1)  # the first row is the top one, where y is largest
    image, y, x = images.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(image, minlength=len(images)).cumsum(0)])
    points = pixels_to_points(torch.stack([x, y], -1), 8)
    weights = intensities_to_masses(images[image, y, x], offsets)
    data = MeasureDataset(points, weights, offsets, torch.from_numpy(bunch.target), [str(i) for i in range(10)])
    if split is None:
        return data
    train, test = model_selection.train_test_split(range(len(data)), test_size=HELD_OUT, random_state=0, stratify=bunch.target)
    return data.subset(sorted(train if split == "train" else test))
