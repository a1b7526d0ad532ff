"""The formats in which ModelNet is published, read into one: clouds of the same number of points, labels, and class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddeq.data.files import UNREADABLE, Array, files_in, find_file, read_arrays
from ddeq.data.meshes import surface_points
from ddeq.files import EXPANSION

__all__ = ["Shapes", "read_shapes"]


HDF5 = (".h5", ".hdf5")
FILTERS = {1, 2, 3}
"""Numbers of HDF5's own filters: gzip, shuffled bytes, check sums. Others are loaded as plug-ins."""


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
        if path.suffix.lower() == ".npz":
            return _read_npz(path)
        if path.suffix.lower() in HDF5:
            return _read_hdf5([path])
        if path.suffix.lower() == ".txt":
            return _read_hdf5(_listed(path))
        raise ValueError(f"path: expected a file named .npz or .h5, got {path}; single meshes are read by load_mesh")
    if (file := find_file([path], [f"{part}.npz"])) is not None:
        return _read_npz(file)
    if files := _hdf5_files(path, part):
        return _read_hdf5(files)
    if meshes := [mesh for folder in sorted(path.glob(f"*/{part}")) for mesh in files_in(folder, ".off")]:
        # Names from both parts, so that a class has the same label in each.
        names = sorted({folder.parent.name for word in ("train", "test") for folder in path.glob(f"*/{word}") if folder.is_dir()})
        return _read_meshes(meshes, [mesh.parent.parent.name for mesh in meshes], names, n_points, seed)
    if meshes := files_in(path, ".off"):
        classes = [mesh.stem.rpartition("_")[0] or mesh.stem for mesh in meshes]  # night_stand_0001.off
        return _read_meshes(meshes, classes, sorted(set(classes)), n_points, seed)
    raise FileNotFoundError(
        f"path: expected {part}.npz, {part}_files.txt, ply_data_{part}*.h5, <class>/{part}/*.off or *.off in {path}, found none"
    )


def _read_npz(file: Path) -> Shapes:
    arrays = read_arrays(file, ["points", "labels", "class_names"])
    return Shapes(arrays["points"], arrays["labels"], [str(name) for name in arrays["class_names"]])


def _hdf5_files(folder: Path, part: str) -> list[Path]:
    """What the list of files names, or all files of the part."""
    if (listing := find_file([folder], [f"{part}_files.txt"])) is not None:
        return _listed(listing)
    return [file for file in files_in(folder, *HDF5) if file.name.lower().startswith(f"ply_data_{part}")]


def _listed(listing: Path) -> list[Path]:
    """The files that a list names: where it says that they are, seen from its folder, or in the folder itself."""
    folder, files = listing.parent, []
    for name in (Path(line.strip()) for line in listing.read_text().splitlines() if line.strip()):
        there = [file for file in (folder / name, folder / name.name) if file.is_file()]
        if not there:
            raise FileNotFoundError(f"path: expected {name.name} in {folder}, as {listing.name} lists it, found none")
        files.append(there[0])
    if not files:
        raise ValueError(f"path: expected names of HDF5 files in {listing}, got none")
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
                clouds.append(_data_set(opened, "data"))
                labels.append(_data_set(opened, "label").reshape(-1))
        except (*UNREADABLE, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"path: {file} cannot be read as HDF5: {error}") from None
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith("path: ") else f"path: {file}: {error}") from None
        if clouds[-1].shape[1:] != clouds[0].shape[1:] or clouds[-1].ndim != 3 or clouds[-1].shape[2] != 3:
            raise ValueError(f"path: expected data of shape (N, n, 3) in {file}, the same n in all files, got {clouds[-1].shape}")
    x, y, z = np.moveaxis(np.concatenate(clouds), -1, 0)
    names = find_file([files[0].parent, files[0].parent.parent], ["shape_names.txt"])
    label = np.concatenate(labels)
    found = [str(i) for i in range(int(label.max(initial=0)) + 1)] if names is None else names.read_text().split()
    return Shapes(np.stack([x, -z, y], -1), label, found)  # its second axis points up


def _data_set(opened: Any, name: str) -> Array:
    """Numbers of a data set that the file itself holds, of the size that it says."""
    import h5py

    found = opened[name] if isinstance(opened.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual or found.dtype.kind not in "uif":
        raise ValueError(f"expected numbers in the file itself as the data set {name!r}, got another object")
    plist = found.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if not filters <= FILTERS:
        raise ValueError(f"expected the data set {name!r} plain or compressed by gzip, got the filters {sorted(filters)}")
    said, held = found.size * found.dtype.itemsize, found.id.get_storage_size()
    if said > (EXPANSION if h5py.h5z.FILTER_DEFLATE in filters else 1) * held:
        raise ValueError(f"the data set {name!r} is said to hold {said:,} bytes, got {held:,}")
    return np.asarray(found[:])


def _read_meshes(files: Sequence[Path], classes: Sequence[str], names: list[str], n_points: int, seed: int) -> Shapes:
    clouds = np.stack([surface_points(file, n_points, seed) for file in files])
    return Shapes(clouds, np.array([names.index(name) for name in classes]), names)
