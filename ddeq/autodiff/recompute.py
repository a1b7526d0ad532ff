"""Trade memory for time: keep the inputs of a function, compute it again in backward, at every order of derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["autocast_now", "forward_autocast", "recompute", "without_autocast"]

Outputs = tuple[Tensor, ...]


def recompute(function: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
    """``function(*inputs)`` without its intermediate results being kept for backward.

    Unlike ``torch.utils.checkpoint`` the backward pass is such a function again, so that no derivative of any order
    holds more than one evaluation at a time. ``function`` must depend on tensors that require grad through ``inputs``
    only.
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in inputs)):
        return function(*inputs)
    outputs: Outputs = _Recompute.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return outputs


def autocast_now(device: torch.device) -> Callable[[], torch.autocast]:
    """Makes the autocast that holds now on the ``device`` hold again later: backward passes run without it.

    Casts are not cached: a parameter that is cast where nothing is recorded would be found by who needs its gradient.
    """
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For sums and small linear systems, whose digits matter, between evaluations of a function under autocast."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
        ctx.function, ctx.autocast = function, autocast_now(inputs[0].device)
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        inputs = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        function, autocast, count = ctx.function, ctx.autocast, len(inputs)

        def pull_back(*tensors: Tensor) -> Outputs:
            record = torch.is_grad_enabled()
            with torch.enable_grad(), autocast():
                # Fresh leaves, or aliases where a graph is recorded: derivatives in them, and no further back.
                primal = [t.view_as(t) if record and t.requires_grad else t.detach() for t in tensors[:count]]
                for i in wanted:
                    if not primal[i].requires_grad:
                        primal[i].requires_grad_()
                pairs = [(o, c) for o, c in zip(function(*primal), tensors[count:], strict=True) if o.requires_grad]
                outputs, duals = zip(*pairs, strict=True) if pairs else ((), ())
                grads: Outputs = torch.autograd.grad(
                    outputs, [primal[i] for i in wanted], duals, create_graph=record, materialize_grads=True
                )
            return grads

        grads = dict(zip(wanted, recompute(pull_back, *inputs, *cotangents), strict=True))
        return None, *(grads.get(i) for i in range(count))


def forward_autocast(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes the autocast that holds now on the ``device`` hold again within `without_autocast`; nothing where it is off."""
    return autocast_now(device) if torch.is_autocast_enabled(device.type) else nullcontext
