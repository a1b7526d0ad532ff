"""What a result depends on: the tensors of a module, and tensors that enter a function without being arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddeq.autodiff.derivatives import alias, graph_leaves

__all__ = ["OpenModule", "unseen_leaves"]


class OpenModule:
    """A module as a function of its parameters, and of those of its buffers that require grad, each once: `tensors`.

    ``functional_call`` must be told all places of a tensor, but not two names of one place: where two names of a module lead
    to one submodule, its own treatment of shared tensors leaves the substitutes behind.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._numbers: dict[str, int] = {}
        tensors: dict[Tensor, int] = {}
        for prefix, part in module.named_modules():
            held = dict(part.named_parameters(recurse=False))
            held |= {name: b for name, b in part.named_buffers(recurse=False) if b.requires_grad}
            for name, tensor in held.items():
                self._numbers[f"{prefix}.{name}" if prefix else name] = tensors.setdefault(tensor, len(tensors))
        self.tensors: list[Tensor] = list(tensors)

    def __call__(self, tensors: Sequence[Tensor], *args: Any) -> Any:
        """``module(*args)`` with other tensors in the place of its own, in the order of `tensors`."""
        if not self._numbers:
            return self.module(*args)
        named = {name: tensors[i] for name, i in self._numbers.items()}
        return torch.func.functional_call(self.module, named, args, tie_weights=False)


def unseen_leaves(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, set[Tensor]]:
    """``function(*tensors)``, detached, and the leaves that require grad and take part in it without being among ``tensors``."""
    with torch.enable_grad():
        copies = [alias(t, False) if t.is_floating_point() else t for t in tensors]
        value = function(*copies)
        unseen = graph_leaves(value) - set(copies)
        if unseen:  # leaves that the function makes for derivatives of its own are others each time
            unseen &= graph_leaves(function(*copies))
    return value.detach(), unseen
