"""Random numbers that depend on what they are for, not on what was drawn before them."""

from __future__ import annotations

import hashlib
from operator import index
from typing import SupportsIndex

import torch

__all__ = ["generator_for", "seed_for"]


def generator_for(seed: SupportsIndex, *keys: SupportsIndex | str) -> torch.Generator:
    """A generator on the CPU whose stream is a function of ``seed`` and ``keys``.

    With the epoch and the number of a sample or of a batch as keys, a run that goes on after an interruption draws what it
    would have drawn, whichever process asks, and in whichever order.

    Parameters
    ----------
    seed
        The seed of the run.
    keys
        What the draws are for: numbers and words, such as ``epoch, index``.

    Examples
    --------
    >>> a, b = (torch.rand(2, generator=generator_for(7, 3, 12)) for _ in range(2))
    >>> bool((a == b).all()), bool((a == torch.rand(2, generator=generator_for(7, 3, 13))).any())
    (True, False)
    """
    return torch.Generator().manual_seed(seed_for(seed, *keys))


def seed_for(seed: SupportsIndex, *keys: SupportsIndex | str) -> int:
    """The seed of `generator_for`, 64 bits."""
    # Numbers of NumPy and of PyTorch print otherwise than those of Python. A hash, since sums of keys would collide.
    name = repr((index(seed), *(key if isinstance(key, str) else index(key) for key in keys)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
