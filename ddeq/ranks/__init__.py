"""Tensors that are spread over the ranks of a process group, as PyTorch's DTensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_true", "check_not_sharded", "gathered", "is_sharded", "placed_like", "summed", "write"]


def is_sharded(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is a DTensor, as `ddeq.reductions.shard` makes them."""
    distributed = _dtensors()
    return distributed is not None and any(isinstance(t, distributed.DTensor) for t in tensors)


def placed_like(t: Tensor, like: Tensor, *, atoms: bool = False) -> Tensor:
    """``t``, which all ranks have, as a DTensor if ``like`` is one: replicated, or split along its ``atoms`` as ``like`` is."""
    if not is_sharded(like) or is_sharded(t):
        return t
    from torch.distributed.tensor import Replicate

    from ddeq.ranks.dtensors import united

    spread: Any = like
    return united(t, spread.device_mesh, Replicate(), spread.placements[0] if atoms else Replicate())


def gathered(t: Tensor) -> Tensor:
    """A plain tensor with all entries, on every rank; collective where ``t`` is spread over ranks."""
    if not is_sharded(t):
        return t
    from torch.distributed.tensor import Replicate

    from ddeq.ranks.dtensors import local

    return local(t, t.device_mesh, Replicate(), Replicate())  # type: ignore[attr-defined]


def summed(t: Tensor) -> Tensor:
    """``t``, added up over ranks where each has a term of a sum: PyTorch reads a rank's own term as if it were the sum."""
    if not is_sharded(t) or not any(place.is_partial() for place in t.placements):  # type: ignore[attr-defined]
        return t
    from torch.distributed.tensor import Replicate

    from ddeq.ranks.dtensors import local, united

    mesh = t.device_mesh  # type: ignore[attr-defined]
    return united(local(t, mesh, Replicate(), Replicate()), mesh, Replicate(), Replicate())


def all_true(mask: Tensor) -> bool:
    """Whether a mask is true everywhere, on all ranks."""
    return bool(gathered(mask).all())


def write(path: str | Path, tensors: Mapping[str, Tensor | None]) -> None:
    """Write the ``tensors`` to a safetensors file at ``path``, by the first rank where they are spread over several.

    What is None is left out, what is spread over ranks is gathered.
    """
    from safetensors.torch import save_file

    given = {name: t.detach() for name, t in tensors.items() if t is not None}
    meshes = [t.device_mesh for t in given.values() if is_sharded(t)]  # type: ignore[attr-defined]
    found = {name: gathered(t) for name, t in given.items()}
    if not meshes or meshes[0].get_local_rank() == 0:
        save_file({name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in found.items()}, path)


def check_not_sharded(name: str, *tensors: Tensor) -> None:
    """Raise a `ValueError` about the argument ``name`` if its ``tensors`` are spread over ranks."""
    if is_sharded(*tensors):
        raise ValueError(f"{name}: expected all atoms in one place, got some on each rank; take ddeq.reductions.gather({name})")


def _dtensors() -> Any:
    """PyTorch's module, if it has been imported: importing it is slow."""
    return sys.modules.get("torch.distributed.tensor")
