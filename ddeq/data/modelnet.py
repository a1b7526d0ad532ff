"""ModelNet: shapes of 10 or 40 classes as measures in space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddeq.data.dataset import MeasureDataset
from ddeq.data.files import Split, check_split, whole_labels
from ddeq.data.modelnet_files import read_shapes
from ddeq.data.normalization import normalize_clouds
from ddeq.data.randomness import generator_for
from ddeq.integers import whole

__all__ = ["load_modelnet"]

POINTS = 1024
"""So many points a shape has, where nothing else is asked for."""
VALIDATION = 5
"""One training shape in so many is kept for validation: those whose index this divides."""


def load_modelnet(path: str | Path, split: Split | None = None, *, n_points: int | None = None, seed: int = 0) -> MeasureDataset:
    """ModelNet shapes as uniform measures on ``n_points`` points of their surface, with mean zero, in the unit ball.

    Parameters
    ----------
    path
        A file, or a folder in one of these formats, looked for in this order.

        - ``train.npz`` and ``test.npz`` with ``points`` ``(N, n, 3)``, ``labels`` ``(N,)`` and ``class_names``.
        - The release ``modelnet40_ply_hdf5_2048``: ``ply_data_train*.h5`` and ``ply_data_test*.h5`` (those that
          ``train_files.txt`` and ``test_files.txt`` list, where they are there) with ``shape_names.txt``.
        - The original meshes: ``<class>/train/*.off`` and ``<class>/test/*.off``; or a folder with meshes named
          ``<class>_<number>.off``, which are then training and test shapes alike.
    split
        ``"train"``: the training shapes whose index 5 does not divide; ``"validation"``: the others; ``"test"``: the test
        shapes. None: all training shapes. Of a ``path`` that is a file, ``"test"`` and None take all.
    n_points
        How many points to draw from each mesh, or to take at random of a longer cloud. Default: 1,024, or all of a shorter one.
    seed
        Of the draws. Those of a mesh depend on the seed and the file's name alone.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists what was looked for.
    ValueError
        If a file holds other things than described (for meshes with the line, see `load_mesh`), has clouds of fewer than
        ``n_points`` points, or ``split`` is unknown.
    ImportError
        If a format needs a package that is not installed.

    Notes
    -----
    The third axis points up, as in the meshes; clouds of the HDF5 release, where the second does, are turned about the first.
    Every format is normalised by `normalize`, after points are taken.

    References
    ----------
    :cite:t:`wu2015shapenets`.
    """
    check_split(split)
    n_points = None if n_points is None else whole("n_points", n_points)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file of ModelNet shapes, or a folder with some, got {path}")
    shapes = read_shapes(path, "test" if split == "test" else "train", n_points or POINTS, seed)
    if shapes.points.ndim != 3 or shapes.points.shape[2] != 3 or len(shapes.labels) != len(shapes.points):
        raise ValueError(
            f"path: expected points of shape (N, n, 3) and labels of shape (N,) in {path}, got {shapes.points.shape} and "
            f"{shapes.labels.shape}"
        )
    labels = whole_labels(shapes.labels, len(shapes.class_names), path)
    bad = np.flatnonzero(~np.isfinite(shapes.points).all((1, 2)))
    if len(bad):
        raise ValueError(f"path: expected finite coordinates in {path}, got others in cloud {bad[0]}")
    index = np.arange(len(labels))
    if split in ("train", "validation"):
        index = index[(index % VALIDATION == 0) == (split == "validation")]
    if not len(index):
        raise ValueError(f"path: expected at least one shape for the split {split!r} in {path}, which has {len(labels)} in all")
    points, n = torch.from_numpy(shapes.points), shapes.points.shape[1]
    n_points = min(POINTS, n) if n_points is None else n_points
    if n_points > n:
        raise ValueError(f"n_points: expected at most {n}, the points of each cloud in {path}, got {n_points}")
    if n_points < n:  # before shapes are chosen, so that a shape has the same points in each split
        taken = torch.rand(points.shape[:2], generator=generator_for(seed)).argsort(-1)[:, :n_points]
        points = points.gather(1, taken.unsqueeze(-1).expand(-1, -1, 3))
    atoms = normalize_clouds(points[torch.from_numpy(index)]).flatten(0, 1)
    weights = atoms.new_full((len(atoms),), 1 / n_points)
    offsets = torch.arange(len(index) + 1) * n_points
    return MeasureDataset(atoms, weights, offsets, torch.from_numpy(labels[index]), shapes.class_names)
