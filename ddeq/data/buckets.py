"""`BucketSampler`: batches of measures of about the same size, so that little is padded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.utils.data import Sampler

from ddeq.data.randomness import generator_for
from ddeq.integers import whole

__all__ = ["BucketSampler"]


class BucketSampler(Sampler[list[int]]):
    """Batches of indices whose measures have about the same number of atoms, in random order.

    In each epoch the indices are sorted by size, up to a random factor between 1 and ``1 + spread``, and cut into batches;
    the batches are then shuffled. The result is a function of ``seed`` and of the epoch: a run that goes on after an
    interruption sees what it would have seen. Without ``drop_last`` every index comes exactly once in an epoch, and the
    batches have sizes that differ by at most one, so that there is no small last one.

    Parameters
    ----------
    sizes
        Number of atoms of each measure, ``(N,)``.
    batch_size
        Largest size of a batch.
    seed
        Of the order.
    shuffle
        False: from the smallest to the largest measure, the same in each epoch.
    drop_last
        Whether all batches have exactly ``batch_size`` indices; those that are left over, others in each epoch, are dropped.
    spread
        How far the sizes in a batch may lie apart, as a share, beyond what sorting gives: more mixes better and pads more.
    rank, world_size
        The number of this process and how many there are. Each gets batches of its own, as many as the others, and the batches
        of one step are of about the same size.

    Raises
    ------
    ValueError
        If an argument is out of its range, or there are fewer batches than processes.

    Notes
    -----
    Under Lightning set ``use_distributed_sampler=False``: this sampler already divides the batches.

    Examples
    --------
    >>> sampler = BucketSampler([3, 50, 4, 49, 5, 51], batch_size=3)
    >>> sampler.set_epoch(1)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 2, 4], [1, 3, 5]]
    """

    def __init__(
        self,
        sizes: Sequence[int] | Integer[Tensor, " N"],
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        spread: float = 0.1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sizes = torch.as_tensor(sizes).cpu()  # batches are made on the CPU, wherever the measures are
        if self.sizes.ndim != 1 or len(self.sizes) == 0 or self.sizes.dtype.is_floating_point or bool((self.sizes < 1).any()):
            raise ValueError(f"sizes: expected at least one whole number >= 1, got {self.sizes}")
        batch_size = whole("batch_size", batch_size)
        if not 0 <= spread < math.inf:
            raise ValueError(f"spread: expected a finite number >= 0, got {spread}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected a number from 0 to {world_size - 1}, got {rank}")
        self.batch_size, self.seed, self.shuffle, self.drop_last, self.spread = batch_size, seed, shuffle, drop_last, spread
        self.rank, self.world_size = rank, world_size
        per_step = batch_size * world_size
        self.steps = len(self.sizes) // per_step if drop_last else -(-len(self.sizes) // per_step)
        """How many batches each process gets in an epoch."""
        if self.steps == 0 or len(self.sizes) < world_size:
            raise ValueError(
                f"sizes: expected enough measures for a batch in each of {world_size} processes, got {len(self.sizes)}"
            )
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch, to its first batch. The epoch at which it is already stays as it is, with its `start`."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def resume(self, epoch: int, start: int) -> None:
        """Begin ``epoch`` at its batch number ``start``, as if those before had been seen already.

        Raises
        ------
        ValueError
            If ``start`` is no number of a batch of the epoch, nor the number of its batches.
        """
        if not 0 <= start <= self.steps:
            raise ValueError(f"start: expected a number from 0 to {self.steps}, got {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        generator, count = generator_for(self.seed, self.epoch), len(self.sizes)
        index, key = torch.arange(count), self.sizes.double()
        order = torch.arange(self.steps)
        if self.shuffle:
            index = torch.randperm(count, generator=generator)
            key = key[index] * (1 + self.spread * torch.rand(count, generator=generator, dtype=torch.float64))
            order = torch.randperm(self.steps, generator=generator)
        batches = self.steps * self.world_size
        if self.drop_last:
            index, key = index[: batches * self.batch_size], key[: batches * self.batch_size]
        # Neighbours in the sorted order go to the same step of different processes.
        groups = index[key.argsort(stable=True)].tensor_split(batches)
        for step in order[self.start :].tolist():
            yield groups[step * self.world_size + self.rank].tolist()
