"""Memories: what an inner problem keeps from one step of a solve for the next one.

A memory is a pytree: tensors ``(*batch, ...)``, numbers, and values that can be computed again, which are `Cached`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor

__all__ = ["Cached", "check_memory", "memory_of_all", "memory_rows", "restored_memory", "saved_memory"]

Own = TypeVar("Own", bound="Cached")
Saved = tuple[Tensor | None, ...]
"""The leaves of a memory as they are saved; None for those that are not."""


class Cached(ABC):
    """A value in a memory that can be computed again, such as the Gram matrix of a target: kept during a solve, never saved.

    To write one: a class that holds the value and defines `rows`. When a solve goes on from a file, the value is that which
    ``prepare`` computes where there is no memory.
    """

    @abstractmethod
    def rows(self: Own, keep: Tensor) -> Own:
        """The value for the entries ``keep`` of the first batch dimension; itself, if all samples share it."""


def memory_rows(memory: Any, keep: Tensor) -> Any:
    """The memory of the entries ``keep`` of the first batch dimension."""

    def chosen(leaf: Any) -> Any:
        return leaf[keep] if isinstance(leaf, Tensor) else leaf.rows(keep) if isinstance(leaf, Cached) else leaf

    return memory if memory is None else pytree.tree_map(chosen, memory)


def memory_of_all(whole: Any, memory: Any, index: Tensor) -> Any:
    """The memory ``whole`` of all samples, its entries ``index`` replaced by those of ``memory``."""

    def joined(all_: Any, some: Any) -> Any:
        return all_.index_copy(0, index, some) if isinstance(some, Tensor) else some

    return pytree.tree_map(joined, whole, memory)


def saved_memory(memory: Any) -> Saved:
    """What is saved of a memory: its tensors and numbers, in their order."""
    return () if memory is None else tuple(_saved(leaf) for leaf in pytree.tree_leaves(memory))


def restored_memory(fresh: Any, saved: Saved) -> Any:
    """A memory as ``fresh`` with what was saved in its place; None if another kind of memory was saved."""
    leaves, spec = pytree.tree_flatten(fresh)
    if len(leaves) != len(saved) or not all(_fits(a, b) for a, b in zip(leaves, saved, strict=True)):
        return None
    return pytree.tree_unflatten([_restored(a, b) for a, b in zip(leaves, saved, strict=True)], spec)


def check_memory(name: str, memory: Any, batch_shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless every tensor of a memory has one entry for each sample, and no history."""
    for leaf in pytree.tree_leaves(memory):
        if not isinstance(leaf, Tensor):
            continue
        if tuple(leaf.shape[: len(batch_shape)]) != batch_shape:
            raise ValueError(
                f"{name}: expected all tensors of the memory to begin with the batch shape {batch_shape}, got one of shape "
                f"{tuple(leaf.shape)}; give each sample its own entry, or let a ddeq.functionals.Cached hold what all share"
            )
        if leaf.requires_grad:
            raise ValueError(f"{name}: a tensor of the memory requires grad; detach it, a memory carries no derivatives")


def _saved(leaf: Any) -> Tensor | None:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    if isinstance(leaf, float):
        return torch.tensor(leaf, dtype=torch.float64, device="cpu")
    return (
        torch.tensor(leaf, dtype=torch.bool if isinstance(leaf, bool) else torch.long, device="cpu")
        if isinstance(leaf, int)
        else None
    )


def _fits(fresh: Any, saved: Tensor | None) -> bool:
    """Whether a leaf that was saved, or was not, belongs to the same place of a fresh memory."""
    kept = isinstance(fresh, Tensor | int | float)
    if saved is None or not kept:
        return saved is None and not kept
    return saved.shape == (fresh.shape if isinstance(fresh, Tensor) else ())


def _restored(fresh: Any, saved: Tensor | None) -> Any:
    if saved is None:
        return fresh
    return saved.to(fresh) if isinstance(fresh, Tensor) else type(fresh)(saved.item())
