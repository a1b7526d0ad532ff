"""Images as measures: pixels are atoms, intensities are masses."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.data.dataset import check_offsets

__all__ = ["intensities_to_masses", "pixels_to_points"]


def pixels_to_points(pixels: Tensor, size: int) -> Tensor:
    """Pixel positions ``(total, 2)`` from 0 to ``size - 1`` in the square from -1 to 1."""
    half = (size - 1) / 2
    return (pixels.to(torch.get_default_dtype()) - half) / half


def intensities_to_masses(intensities: Tensor, offsets: Tensor) -> Tensor:
    """Intensities ``(total,)`` divided by their sum in each image, so that each measure is a probability."""
    check_offsets(offsets, len(intensities), len(offsets) - 1)
    sizes = offsets.diff()
    image = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    values = intensities.to(torch.get_default_dtype())
    return values / values.new_zeros(len(sizes)).index_add(0, image, values)[image]
