"""`MeasureDataset`: labelled clouds of different sizes, batched with atoms of mass zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["MeasureDataset"]


class MeasureDataset(Dataset[tuple[DiscreteMeasure, int]]):
    """Labelled measures, stored one after the other.

    Parameters
    ----------
    points
        All atoms, ``(total, d)``, floating point.
    weights
        Their masses, ``(total,)``.
    offsets
        Where each measure begins and the last one ends, ``(N + 1,)``, whole numbers.
    labels
        Whole numbers ``(N,)``.
    class_names
        A name for each label.

    Raises
    ------
    ValueError
        If the offsets do not cut the points into ``N`` clouds of at least one atom, or a label has no name.
    """

    def __init__(self, points: Tensor, weights: Tensor, offsets: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
        DiscreteMeasure(points, weights)  # raises where they are no measure
        check_offsets(offsets, len(points), len(labels))
        if not bool(((labels >= 0) & (labels < len(class_names))).all()):
            raise ValueError(f"labels: expected numbers from 0 to {len(class_names) - 1}, got up to {int(labels.max())}")
        self.points, self.weights, self.offsets, self.labels = points, weights, offsets.long(), labels.long()
        self.class_names = list(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[DiscreteMeasure, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"expected a number below {len(self)}, got {i}")
        i %= len(self)
        cloud = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return unchecked(self.points[cloud], self.weights[cloud]), int(self.labels[i])

    def __iter__(self) -> Iterator[tuple[DiscreteMeasure, int]]:
        return (self[i] for i in range(len(self)))

    def batch(self, index: Tensor | Sequence[int]) -> tuple[DiscreteMeasure, Tensor]:
        """The measures ``index`` as one batch, padded with atoms of mass zero, and their labels."""
        index = torch.as_tensor(index)
        sizes = self.offsets[index + 1] - self.offsets[index]
        place = torch.arange(int(sizes.max()))
        inside = place < sizes.unsqueeze(-1)
        atom = self.offsets[index].unsqueeze(-1) + torch.where(inside, place, 0)
        weights = torch.where(inside, self.weights[atom], 0.0)
        return unchecked(self.points[atom], weights), self.labels[index]

    def __getitems__(self, index: Sequence[int]) -> tuple[DiscreteMeasure, Tensor]:  # what a DataLoader asks for
        return self.batch(index)

    def loader(
        self, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None, num_workers: int = 0
    ) -> DataLoader[tuple[DiscreteMeasure, Tensor]]:
        """Batches of ``batch_size`` measures, padded with atoms of mass zero, with their labels ``(batch_size,)``."""
        batches: Any = self  # a data set of batches, by __getitems__
        return DataLoader(
            batches, batch_size, shuffle=shuffle, generator=generator, num_workers=num_workers, collate_fn=_as_it_is
        )

    def subset(self, index: Tensor | Sequence[int]) -> MeasureDataset:
        """The data set of the measures ``index``."""
        index = torch.as_tensor(index)
        sizes = self.offsets[index + 1] - self.offsets[index]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        atom = torch.arange(int(offsets[-1])) + torch.repeat_interleave(self.offsets[index] - offsets[:-1], sizes)
        return MeasureDataset(self.points[atom], self.weights[atom], offsets, self.labels[index], self.class_names)

    def __repr__(self) -> str:
        return f"MeasureDataset({len(self)} measures, {len(self.points)} atoms, {len(self.class_names)} classes)"


def check_offsets(offsets: Tensor, total: int, count: int) -> None:
    """Raise a `ValueError` unless ``offsets`` cut ``total`` atoms into ``count`` clouds of at least one atom."""
    whole = not offsets.dtype.is_floating_point and offsets.shape == (count + 1,)
    if not whole or int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((offsets.diff() < 1).any()):
        raise ValueError(
            f"offsets: expected {count + 1} increasing whole numbers from 0 to {total}, got shape {tuple(offsets.shape)} of "
            f"{offsets.dtype}, from {float(offsets.min()):g} to {float(offsets.max()):g}"
        )


def _as_it_is(batch: Any) -> Any:
    """`MeasureDataset.__getitems__` has put the batch together already."""
    return batch
