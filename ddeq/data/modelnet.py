"""ModelNet: shapes of 10 or 40 classes as measures in space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddeq.data.dataset import MeasureDataset
from ddeq.data.normalization import normalize_clouds
from ddeq.data.splits import Split, check_split

__all__ = ["load_modelnet"]

VALIDATION = 5
"""One training shape in so many is kept for validation: those whose index this divides."""


def load_modelnet(path: str | Path, split: Split | None = None, *, n_points: int = 1024, seed: int = 0) -> MeasureDataset:
    """ModelNet shapes as uniform measures on ``n_points`` points of their surface, with mean zero, in the unit ball.

    Parameters
    ----------
    path
        An ``.npz`` file with ``points`` ``(N, n, 3)``, ``labels`` ``(N,)`` and ``class_names``; or a folder with
        ``train.npz`` and maybe ``test.npz``.
    split
        ``"train"``: the training shapes whose index 5 does not divide; ``"validation"``: the others; ``"test"``: the test
        shapes. None: all of the file, or all training shapes of the folder.
    n_points
        How many points to take of a longer cloud, at random.
    seed
        Of what is taken at random.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file lacks an array or holds others than described, has clouds of fewer points, or ``split`` is unknown.

    Notes
    -----
    The third axis points up.

    References
    ----------
    Wu et al. (2015), 3D ShapeNets: a deep representation for volumetric shapes, CVPR.
    """
    check_split(split)
    path = Path(path)
    file = path / ("test.npz" if split == "test" else "train.npz") if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"path: expected an .npz file of ModelNet shapes, or a folder with one, got {file}")
    data = _as_measures(*_read_npz(file), n_points=n_points, seed=seed)
    index = torch.arange(len(data))
    if split == "train":
        return data.subset(index[index % VALIDATION != 0])
    return data.subset(index[index % VALIDATION == 0]) if split == "validation" else data


def _read_npz(file: Path) -> tuple[Tensor, Tensor, list[str]]:
    with np.load(file) as arrays:
        missing = {"points", "labels", "class_names"} - set(arrays.files)
        if missing:
            raise ValueError(f"path: {file} lacks the arrays {sorted(missing)}; it has {arrays.files}")
        points, labels = torch.from_numpy(arrays["points"]), torch.from_numpy(arrays["labels"].astype(np.int64))
        return points, labels, [str(name) for name in arrays["class_names"]]


def _as_measures(points: Tensor, labels: Tensor, class_names: Sequence[str], *, n_points: int, seed: int) -> MeasureDataset:
    count, n = points.shape[:2]
    if not 1 <= n_points <= n:
        raise ValueError(f"n_points: expected a number from 1 to {n}, the points of each cloud, got {n_points}")
    if n_points < n:
        order = torch.rand(count, n, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :n_points]
        points = points.gather(1, order.unsqueeze(-1).expand(-1, -1, 3))
    points = normalize_clouds(points).flatten(0, 1)
    weights = points.new_full((len(points),), 1 / n_points)
    return MeasureDataset(points, weights, torch.arange(count + 1) * n_points, labels, class_names)
