"""Triangle meshes, and the uniform measure on a surface by points drawn from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddeq.data.files import Array
from ddeq.data.off_check import plain_off
from ddeq.data.randomness import seed_for
from ddeq.integers import whole
from ddeq.measures import DiscreteMeasure

if TYPE_CHECKING:
    from trimesh import Trimesh

__all__ = ["load_mesh", "sample_mesh"]


def load_mesh(path: str | Path) -> Trimesh:
    """Read a surface from a file of any format that trimesh reads, and refuse what is none.

    Faces of more than three vertices are cut into triangles that share a vertex, which is exact for convex ones. Faces without
    area are kept, as no point is ever drawn from them. Vertices stay as they are in the file.

    Parameters
    ----------
    path
        The file. Of OFF files the text is checked line by line; ModelNet's malformed headers (``OFF3514 3546 0``) are read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is broken: empty or cut short, coordinates that are no finite numbers, faces of fewer than three vertices or
        of vertices that do not exist, or no area at all. For OFF files the message names the first bad line.
    ImportError
        If trimesh is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file with a mesh, got {path}")
    try:
        import trimesh
    except ImportError:
        raise ImportError("load_mesh needs trimesh: pip install 'ddeq[data]'") from None
    content, kind = path.read_bytes(), path.suffix.lower().removeprefix(".")
    name = f"path: {path}"
    if kind == "off":  # what is left to find out then concerns all faces
        plain, first = plain_off(content.decode(errors="replace"), name)
        content, name = plain.encode(), f"{name}, line {first}"
    try:
        mesh = trimesh.load_mesh(io.BytesIO(content), file_type=kind, process=False)
        _check_surface(mesh)
    except Exception as error:  # each of trimesh's readers fails in its own way
        raise ValueError(f"{name}: no surface that can be read: {error}") from error
    return mesh


def _check_surface(mesh: Any) -> None:
    faces, vertices = np.asarray(mesh.faces), np.asarray(mesh.vertices)
    if len(faces) == 0:
        raise ValueError("it has no faces")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"a face has a vertex {faces.max()} of {len(vertices)}")
    if not np.isfinite(vertices).all():
        raise ValueError(f"vertex {int((~np.isfinite(vertices)).any(-1).argmax()) + 1} has coordinates that are not finite")
    if not 0 < mesh.area < np.inf:
        raise ValueError(f"expected faces with a positive finite area, got {mesh.area:g} in all")


def sample_mesh(mesh: str | Path | Trimesh, n_points: int = 1024, *, seed: int = 0) -> DiscreteMeasure:
    r"""The uniform probability measure on a surface, by ``n_points`` independent points of it.

    .. math:: \frac1n \sum_{i=1}^n \delta_{X_i}, \qquad X_i \sim \frac{\text{area}}{\text{area}(S)} .

    Parameters
    ----------
    mesh
        A surface, or the file of one (see `load_mesh`).
    n_points
        How many points to draw.
    seed
        Of the draws. For files they depend on the seed and the file's name, and not on what was drawn before.

    Raises
    ------
    ValueError
        If the file is broken, the surface has no area, or ``n_points`` is less than one.
    """
    points = surface_points(mesh, n_points, seed)
    return DiscreteMeasure(torch.from_numpy(points).to(torch.get_default_dtype()))


def surface_points(mesh: str | Path | Trimesh, n_points: int, seed: int) -> Array:
    """The points ``(n_points, 3)`` of `sample_mesh`, in double precision."""
    n_points = whole("n_points", n_points)
    if isinstance(mesh, str | Path):
        key, surface = seed_for(seed, Path(mesh).name), load_mesh(mesh)
    else:
        key, surface = seed_for(seed), mesh
        try:
            _check_surface(mesh)
        except ValueError as error:
            raise ValueError(f"mesh: {error}") from None
    from trimesh.sample import sample_surface

    points, _ = sample_surface(surface, n_points, seed=key)
    return np.asarray(points, np.float64)
