"""From raw clouds, as arrays hold them, to measures like those that the loaders give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddeq.data.images import pixels_to_points
from ddeq.data.normalization import normalize
from ddeq.measures import DiscreteMeasure

__all__ = ["digit_measure", "shape_measure"]

SIZE = 28
"""Pixels of a side of MNIST's images."""
OUTSIDE = 1.5
"""Coordinates beyond this are pixels: those on the square from -1 to 1 do not come near it."""


def digit_measure(cloud: Any) -> DiscreteMeasure:
    """An MNIST digit as a probability on the square from -1 to 1, as `load_mnist_pc` gives it.

    Parameters
    ----------
    cloud
        Pixels ``(*batch, n, 3)`` as a tensor or array: column, row from the bottom, intensity; those of intensity zero or
        less are padding. Or ``(*batch, n, 2)`` without intensities; or a list of such clouds, which may differ in size; or a
        measure in the plane, in pixels or on the square already.

    Raises
    ------
    ValueError
        If it is none of these, or a cloud has no pixel of positive intensity.
    """
    if isinstance(cloud, DiscreteMeasure):
        if cloud.dim != 2:
            raise ValueError(f"cloud: expected a measure in the plane, got dimension {cloud.dim}")
        pixels = torch.where(cloud.support().unsqueeze(-1), cloud.points, 0.0).abs().amax((-2, -1), keepdim=True) > OUTSIDE
        digit: DiscreteMeasure = cloud.to(torch.get_default_dtype())
        return digit.with_points(torch.where(pixels, pixels_to_points(digit.points, SIZE), digit.points)).normalized()
    if isinstance(cloud, Sequence):
        return DiscreteMeasure.stack([digit_measure(one) for one in cloud])
    array = _array(cloud, (2, 3))
    array = array.to(torch.get_default_dtype())
    points, intensities = array[..., :2], array[..., 2] if array.shape[-1] == 3 else torch.ones_like(array[..., 0])
    return DiscreteMeasure(pixels_to_points(points, SIZE), intensities.clamp_min(0.0)).normalized()


def shape_measure(cloud: Any) -> DiscreteMeasure:
    """A shape in space as `load_modelnet` gives it: atoms of equal mass, mean zero, in the unit ball.

    Parameters
    ----------
    cloud
        Points ``(*batch, n, 3)`` as a tensor or array, or ``(*batch, n, 6)`` with normals, which are not used; or a list of
        such clouds, which may differ in size; or a measure in space.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if isinstance(cloud, DiscreteMeasure):
        if cloud.dim != 3:
            raise ValueError(f"cloud: expected a measure in space, got dimension {cloud.dim}")
        return _normalized(cloud)
    if isinstance(cloud, Sequence):
        return DiscreteMeasure.stack([shape_measure(one) for one in cloud])
    return _normalized(DiscreteMeasure(_array(cloud, (3, 6))[..., :3].contiguous()))


def _normalized(mu: DiscreteMeasure) -> DiscreteMeasure:
    """A probability with mean zero in the unit ball, found in double precision: meshes may lie far from the origin."""
    return normalize(mu.to(torch.float64).normalized()).to(torch.get_default_dtype())


def _array(cloud: Any, columns: tuple[int, int]) -> Tensor:
    array = torch.as_tensor(cloud)
    if array.ndim < 2 or array.shape[-1] not in columns or array.shape[-2] == 0 or array.is_complex():
        raise ValueError(
            f"cloud: expected numbers of shape (*batch, n, {columns[0]}) or (*batch, n, {columns[1]}), got {tuple(array.shape)}"
        )
    return array if array.dtype in (torch.float32, torch.float64) else array.to(torch.get_default_dtype())
