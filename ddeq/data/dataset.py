"""`MeasureDataset`: labelled clouds of different sizes, batched with atoms of mass zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddeq.data.buckets import BucketSampler
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
        If the offsets do not cut the points into ``N`` clouds of at least one atom, a label has no name, or devices differ.
    """

    def __init__(
        self,
        points: Float[Tensor, "total d"],
        weights: Float[Tensor, " total"],
        offsets: Integer[Tensor, " _"],
        labels: Integer[Tensor, " N"],
        class_names: Sequence[str],
    ) -> None:
        DiscreteMeasure(points, weights)  # raises where they are no measure
        for name, t in (("offsets", offsets), ("labels", labels)):
            if t.device != points.device:
                raise ValueError(f"{name}: expected a tensor on {points.device} as of points, got one on {t.device}")
        if labels.ndim != 1:
            raise ValueError(f"labels: expected shape (N,), got {tuple(labels.shape)}")
        check_offsets(offsets, len(points), len(labels))
        if not bool(((labels >= 0) & (labels < len(class_names))).all()):
            seen = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels: expected numbers from 0 to {len(class_names) - 1}, got {seen}")
        self.points, self.weights, self.offsets, self.labels = points, weights, offsets.long(), labels.long()
        self.class_names = list(class_names)

    @property
    def sizes(self) -> Int[Tensor, " N"]:
        """Number of atoms of each measure, ``(N,)``."""
        return self.offsets.diff()

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
        """The measures ``index`` as one batch, padded with atoms of mass zero, and their labels; at least one."""
        index = self._numbers(index)
        sizes = self.offsets[index + 1] - self.offsets[index]
        place = torch.arange(int(sizes.max()), device=sizes.device)
        inside = place < sizes.unsqueeze(-1)
        atom = self.offsets[index].unsqueeze(-1) + torch.where(inside, place, 0)
        weights = torch.where(inside, self.weights[atom], 0.0)
        return unchecked(self.points[atom], weights), self.labels[index]

    def __getitems__(self, index: Sequence[int]) -> tuple[DiscreteMeasure, Tensor]:  # what a DataLoader asks for
        return self.batch(index)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        bucket: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> DataLoader[tuple[DiscreteMeasure, Tensor]]:
        """Batches of measures, padded with atoms of mass zero, with their labels ``(batch_size,)``.

        Parameters
        ----------
        batch_size
            Size of the batches; the last one may be smaller.
        shuffle, generator
            Whether the order is random, and what draws it.
        num_workers, pin_memory, drop_last
            As in `torch.utils.data.DataLoader`.
        bucket
            Whether the batches are those of a `BucketSampler`, the loader's ``batch_sampler``: each of measures of about the
            same size. Call ``loader.batch_sampler.set_epoch(epoch)`` before each epoch, for another order in each.
        seed, rank, world_size
            Those of the `BucketSampler`, which needs no ``generator``.

        Raises
        ------
        ValueError
            If an option is given that the kind of batches has no use for.
        """
        if not bucket and (seed, rank, world_size) != (0, 0, 1):
            raise ValueError(f"bucket: expected True, as seed={seed}, rank={rank} or world_size={world_size} are given")
        if bucket and generator is not None:
            raise ValueError("generator: expected None for bucket=True, which draws from the seed, got a generator")
        if bucket:
            options: dict[str, Any] = {
                "batch_sampler": BucketSampler(
                    self.sizes, batch_size, seed, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
                )
            }
        else:
            options = {"batch_size": batch_size, "shuffle": shuffle, "generator": generator, "drop_last": drop_last}
        batches: Any = self  # a data set of batches, by __getitems__
        return DataLoader(
            batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            collate_fn=as_it_is,
            **options,
        )

    def subset(self, index: Tensor | Sequence[int]) -> MeasureDataset:
        """The data set of the measures ``index``: their numbers, or for each measure whether it is one of them."""
        index = self._numbers(index)
        sizes = self.offsets[index + 1] - self.offsets[index]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        total = int(offsets[-1])
        first = torch.repeat_interleave(self.offsets[index] - offsets[:-1], sizes, output_size=total)
        atom = torch.arange(total, device=sizes.device) + first
        return MeasureDataset(self.points[atom], self.weights[atom], offsets, self.labels[index], self.class_names)

    def _numbers(self, index: Tensor | Sequence[int]) -> Tensor:
        """Numbers from 0 on of what ``index`` chooses, at least one; negative ones count from the end."""
        index = torch.as_tensor(index, device=self.labels.device)
        if index.dtype == torch.bool and index.shape == self.labels.shape:
            index = index.nonzero().squeeze(-1)
        if index.ndim != 1 or len(index) == 0 or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise IndexError(
                f"index: expected at least one number, in one dimension, got {index.dtype} of shape {tuple(index.shape)}"
            )
        if not -len(self) <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"index: expected numbers below {len(self)}, got {int(index.min())} to {int(index.max())}")
        return index.long() % len(self)

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


def as_it_is(batch: Any) -> Any:
    """`MeasureDataset.__getitems__` has put the batch together already."""
    return batch
