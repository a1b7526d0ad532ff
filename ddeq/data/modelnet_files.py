"""The formats in which ModelNet is published, read into one: clouds of the same number of points, labels, and class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddeq.data.files import Array, find_file, read_arrays
from ddeq.data.meshes import surface_points

__all__ = ["Shapes", "read_shapes"]


class Shapes(NamedTuple):
    """Clouds with labels."""

    points: Array
    """``(N, n, 3)``, the third axis up."""
    labels: Array
    """``(N,)``."""
    class_names: list[str]
    """A name for each label."""


def read_shapes(path: Path, part: str, n_points: int, seed: int) -> Shapes:
    """Read the shapes of ``part`` (``"train"`` or ``"test"``) from a folder, or all of a file.

    Clouds have the points of the file; of meshes ``n_points`` are drawn.
    """
    if path.is_file():
        if path.suffix == ".npz":
            return _read_npz(path)
        if path.suffix in (".h5", ".hdf5"):
            return _read_hdf5([path])
        raise ValueError(f"path: expected a file named .npz or .h5, got {path}; single meshes are read by load_mesh")
    if (file := find_file([path], [f"{part}.npz"])) is not None:
        return _read_npz(file)
    if files := _hdf5_files(path, part):
        return _read_hdf5(files)
    if meshes := sorted(path.glob(f"*/{part}/*.off")):
        # Names from both parts, so that a class has the same label in each.
        names = sorted({folder.parent.name for word in ("train", "test") for folder in path.glob(f"*/{word}") if folder.is_dir()})
        return _read_meshes(meshes, [mesh.parent.parent.name for mesh in meshes], names, n_points, seed)
    if meshes := sorted(path.glob("*.off")):
        classes = [mesh.stem.rpartition("_")[0] or mesh.stem for mesh in meshes]  # night_stand_0001.off
        return _read_meshes(meshes, classes, sorted(set(classes)), n_points, seed)
    raise FileNotFoundError(
        f"path: expected {part}.npz, {part}_files.txt, ply_data_{part}*.h5, <class>/{part}/*.off or *.off in {path}, found none"
    )


def _read_npz(file: Path) -> Shapes:
    arrays = read_arrays(file, ["points", "labels", "class_names"])
    return Shapes(arrays["points"], arrays["labels"], [str(name) for name in arrays["class_names"]])


def _hdf5_files(folder: Path, part: str) -> list[Path]:
    """What the list of files names, wherever it says that they are, or all files of the part."""
    listing = folder / f"{part}_files.txt"
    if not listing.is_file():
        return sorted(folder.glob(f"ply_data_{part}*.h5"))
    files = [folder / Path(line.strip()).name for line in listing.read_text().splitlines() if line.strip()]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"path: expected {file.name} in {folder}, as {listing.name} lists it, found none")
    return files


def _read_hdf5(files: Sequence[Path]) -> Shapes:
    try:
        import h5py
    except ImportError:
        raise ImportError("load_modelnet needs h5py for HDF5 files: pip install 'ddeq[data]'") from None
    clouds, labels = [], []
    for file in files:
        try:
            with h5py.File(file) as opened:
                missing = {"data", "label"} - set(opened)
                if missing:
                    raise ValueError(f"path: {file} lacks the data sets {sorted(missing)}; it has {sorted(opened)}")
                clouds.append(opened["data"][:])
                labels.append(opened["label"][:].reshape(-1))
        except OSError as error:
            raise ValueError(f"path: {file} cannot be read as HDF5: {error}") from None
        if clouds[-1].shape[1:] != clouds[0].shape[1:] or clouds[-1].ndim != 3 or clouds[-1].shape[2] != 3:
            raise ValueError(f"path: expected data of shape (N, n, 3) in {file}, the same n in all files, got {clouds[-1].shape}")
    x, y, z = np.moveaxis(np.concatenate(clouds), -1, 0)
    names = files[0].parent / "shape_names.txt"
    label = np.concatenate(labels)
    found = names.read_text().split() if names.is_file() else [str(i) for i in range(int(label.max(initial=0)) + 1)]
    return Shapes(np.stack([x, -z, y], -1), label, found)  # its second axis points up


def _read_meshes(files: Sequence[Path], classes: Sequence[str], names: list[str], n_points: int, seed: int) -> Shapes:
    clouds = np.stack([surface_points(file, n_points, seed) for file in files])
    return Shapes(clouds, np.array([names.index(name) for name in classes]), names)
