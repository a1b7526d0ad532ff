"""What a file says of a trajectory: read by names, and refused where its parts do not fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.integers import whole
from ddeq.measures import rebuilt

__all__ = ["check_shapes", "read_measures", "read_part", "read_remains"]

PARTS = 2**16
"""No memory of a functional has more parts."""


def read_part(tensors: Mapping[str, Tensor], name: str) -> Any:
    """The tensor ``name`` of a file, or those of each species, or None."""
    parts = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
    return parts or tensors.get(name)


def read_measures(tensors: Mapping[str, Tensor]) -> Any:
    """The recorded measures, or those of each species; a `ValueError` for points and weights that do not fit each other."""
    points, weights, marks = (read_part(tensors, name) for name in ("points", "weights", "marks"))
    if not isinstance(points, dict):
        return rebuilt(points, weights, marks)
    if not isinstance(weights, dict) or points.keys() != weights.keys() or not isinstance(marks, dict | None):
        raise ValueError("weights: expected those of the species that have points")
    return {name: rebuilt(points[name], weights[name], (marks or {}).get(name)) for name in points}


def read_remains(tensors: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
    """What a file says of how the flow goes on, as the fields of `Remains`; a `ValueError` if that cannot be."""
    if "taken" not in tensors:
        return None
    taken, parts = (whole(name, tensors.get(name, 0), 0) for name in ("taken", "parts_of_functional"))
    count = sum(name.startswith("memory.") for name in tensors)
    if parts > PARTS or any(f"memory.{i}" not in tensors for i in range(count)):
        raise ValueError(
            f"parts_of_functional, memory: expected up to {PARTS:,} parts, all of them there, got {parts:,} and {count}"
        )
    state = tensors.get("generator_state")
    memory = tuple(tensors[f"memory.{i}"] for i in range(count))
    of_functional = tuple(tensors.get(f"of_functional.{i}") for i in range(parts))
    return taken, memory, tensors.get("scale"), None if state is None else state.cpu(), of_functional


def check_shapes(measures: Any, status: Tensor, records: Mapping[str, Any], steps: Tensor, times: Tensor) -> None:
    """Raise a `ValueError` unless there is a record, with a time and one of the numbers ``records`` of each sample."""
    batch = tuple(status.shape)
    for mu in measures.values() if isinstance(measures, dict) else (measures,):
        shape = mu.batch_shape
        if not shape or shape[0] == 0 or shape[1 : 1 + len(batch)] != batch:
            raise ValueError(f"points: expected records of measures of batch shape {batch}, time first, got batch shape {shape}")
        wanted = {"times": shape[:1] if times.ndim == 1 else (*shape[:1], *batch), "steps": batch}
        found = {"times": [times], "steps": [steps]} | {name: pytree.tree_leaves(value) for name, value in records.items()}
        for name, tensors in found.items():
            right = wanted.get(name, (*shape[:1], *batch))
            if wrong := [t for t in tensors if t is not None and tuple(t.shape) != right]:
                raise ValueError(f"{name}: expected shape {right}, got {tuple(wrong[0].shape)}")
