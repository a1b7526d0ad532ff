"""How modules hold numbers, tensors and measures: they follow ``.to()``, are saved, and keep their history in autograd."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["HeldMeasure", "held_numbers", "store"]


def store(module: nn.Module, name: str, value: float | Tensor | None) -> None:
    """Hold a number as it is, an ``nn.Parameter`` as a parameter and another tensor as a buffer."""
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


class HeldMeasure(nn.Module):
    """A measure as part of a module; calling it gives the measure as it is now."""

    def __init__(self, measure: DiscreteMeasure) -> None:
        super().__init__()
        for name in ("points", "weights", "marks"):
            store(self, name, getattr(measure, name))

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files hold the measure, not how it was computed.
        buffers = {k: None if b is None else b.detach() if not b.is_leaf else b for k, b in self._buffers.items()}
        return self.__dict__ | {"_buffers": buffers}

    def forward(self) -> DiscreteMeasure:
        return unchecked(self.points, self.weights, self.marks)
