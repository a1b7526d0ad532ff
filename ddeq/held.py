"""How modules hold numbers, tensors and measures: they follow ``.to()``, are saved, and keep their history in autograd."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.memory import memory_rows

__all__ = ["HeldMeasure", "Holder", "changed", "copied", "held_numbers", "select", "store"]

M = TypeVar("M", bound=nn.Module)


def store(module: nn.Module, name: str, value: float | Tensor | None, *, shared: bool = False) -> None:
    """Hold a number as it is, an ``nn.Parameter`` as a parameter and another tensor as a buffer.

    A tensor is one number, or one for each measure of a batch; if ``shared``, something that all measures use.
    """
    if isinstance(value, Tensor) and not shared:
        module.__dict__["_of_samples"] = (*module.__dict__.get("_of_samples", ()), name)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
        return
    setattr(module, name, value)
    if isinstance(value, float):
        module.__dict__["_numbers"] = (*held_numbers(module), name)


def held_numbers(module: nn.Module) -> tuple[str, ...]:
    """Names of the numbers that `store` put into the module: another number in their place changes no formula."""
    names: tuple[str, ...] = module.__dict__.get("_numbers", ())
    return names


def select(module: nn.Module, keep: Tensor, batch_shape: tuple[int, ...]) -> nn.Module:
    """A copy whose measures and numbers are those of the entries ``keep`` of the first batch dimension; differentiable.

    What is held for a batch of another shape than ``batch_shape`` is shared by all, and stays; so do other modules' tensors.
    """
    if isinstance(module, HeldMeasure):
        measure = module()
        return HeldMeasure(measure[keep]) if measure.batch_shape == batch_shape else module
    chosen = copy.copy(module)
    parts: dict[str, dict[str, Any]] = {kind: dict(module.__dict__[kind]) for kind in ("_parameters", "_buffers", "_modules")}
    for name, part in parts["_modules"].items():
        parts["_modules"][name] = None if part is None else select(part, keep, batch_shape)
    for name in module.__dict__.get("_of_samples", ()):
        value = getattr(module, name)
        if value.shape == batch_shape:
            parts["_parameters"].pop(name, None)  # part of a parameter is none
            parts["_buffers"][name] = value[keep]
    memory = module.__dict__.get("memory")
    chosen.__dict__.update(parts if memory is None else parts | {"memory": memory_rows(memory, keep)})
    return chosen


def changed(module: M, *, memory: Any = None, **parts: nn.Module) -> M:
    """The same module, its tensors and their history shared, with a ``memory`` and other modules in the place of ``parts``."""
    other: M = type(module).__new__(type(module))
    other.__dict__.update(module.__dict__, memory=memory, _modules={**module._modules, **parts})
    return other


def copied(record: Any, memo: Any) -> Any:
    """A deep copy of a dataclass without the history of its tensors, which autograd cannot copy."""

    def without_history(value: Any) -> Any:
        return tree_map_only(Tensor, lambda t: t if t.is_leaf else t.detach(), value)

    return type(record)(**{f.name: copy.deepcopy(without_history(getattr(record, f.name)), memo) for f in fields(record)})


class Holder(nn.Module):
    """A module whose copies and files have the tensors that it holds, not how they were computed."""

    def __getstate__(self) -> dict[str, Any]:
        buffers = {k: b if b is None or b.is_leaf else b.detach() for k, b in self._buffers.items()}
        return self.__dict__ | {"_buffers": buffers}


class HeldMeasure(Holder):
    """A measure as part of a module; calling it gives the measure as it is now."""

    def __init__(self, measure: DiscreteMeasure) -> None:
        super().__init__()
        for name in ("points", "weights", "marks"):
            store(self, name, getattr(measure, name))

    def forward(self) -> DiscreteMeasure:
        return self.measure

    @property
    def measure(self) -> DiscreteMeasure:
        """The measure as it is now."""
        parts = {**self._buffers, **self._parameters}
        return unchecked(parts["points"], parts["weights"], parts.get("marks"))
