"""What a result depends on: the tensors of a module laid open, and tensors that enter a function unseen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddeq.autodiff.derivatives import alias, graph_leaves

__all__ = ["open_tensors", "strangers"]


def open_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module and those of its buffers that require grad, by the names that ``functional_call`` takes."""
    return dict(module.named_parameters()) | {name: b for name, b in module.named_buffers() if b.requires_grad}


def strangers(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, set[Tensor]]:
    """``function(*tensors)``, detached, and the leaves that require grad and take part in it without being among ``tensors``."""
    with torch.enable_grad():
        copies = [alias(t, False) if t.is_floating_point() else t for t in tensors]
        value = function(*copies)
        unseen = graph_leaves(value) - set(copies)
        if unseen:  # leaves that the function makes for derivatives of its own are others each time
            unseen &= graph_leaves(function(*copies))
    return value.detach(), unseen
