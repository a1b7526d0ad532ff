"""Derivatives of functions of tensors that are differentiable again, and what a graph of autograd depends on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "alias",
    "check_recordable",
    "forward_levels",
    "forward_mode_is_missing",
    "gradient",
    "graph_leaves",
    "plain",
    "under_transforms",
]

LACKS_FORWARD_MODE = re.compile(r"forward[ -](mode|AD)|functorch|torch\.func\b|data pointer|autograd\.Function")
"""How PyTorch and ddeq say that something cannot run on dual numbers."""


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of ``f(x).sum()`` in ``x``, with a graph where the caller records one and there is something to record.

    Works under ``torch.no_grad``, ``torch.func`` transforms and ``torch.compile``; under ``torch.inference_mode`` it is a
    `RuntimeError`.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        transformed: Tensor = torch.func.grad(lambda t: f(t).sum())(x)
        return transformed
    check_recordable("the gradient of a functional")
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        y = alias(x, record)
        value = f(y)
        if not value.requires_grad:
            return torch.zeros_like(x)
        (g,) = torch.autograd.grad(value.sum(), y, create_graph=record, materialize_grads=True)
    # A graph that leads to nothing but y would make every result of a loop depend on all before it, for no one's use.
    return g.detach() if record and not x.requires_grad and graph_leaves(g) <= {y} else g


def check_recordable(what: str) -> None:
    """Raise a `RuntimeError` under ``torch.inference_mode``, where autograd records nothing and derivatives would be zero."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{what} needs autograd, which torch.inference_mode() forbids; use torch.no_grad()")


def forward_mode_is_missing(error: Exception) -> bool:
    """Whether an error says that an operation has no forward-mode derivative."""
    return LACKS_FORWARD_MODE.search(str(error)) is not None


def alias(x: Tensor, record: bool) -> Tensor:
    """``x`` as an own node of the graph that requires grad: tied to the history of ``x`` if ``record``, else without one."""
    return x.view_as(x) if record and x.requires_grad else x.detach().requires_grad_()


def graph_leaves(*outputs: Tensor) -> set[Tensor]:
    """The leaves that require grad in the graph of ``outputs``: what their derivatives can reach."""
    leaves: set[Tensor] = {t for t in outputs if t.requires_grad and t.grad_fn is None}
    seen = set()
    queue = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        queue += [parent for parent, _ in node.next_functions if parent is not None]
    return leaves


def under_transforms() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def forward_levels() -> int:
    """How many forward-mode derivatives of ``torch.func`` are under way, one within another.

    PyTorch takes no forward-mode derivative of the ``jvp`` of a function of its own kind: from two on, other code must run.
    """
    if not torch._C._are_functorch_transforms_active():
        return 0
    functorch: Any = torch._C._functorch
    return sum(i.key() == functorch.TransformType.Jvp for i in functorch.get_interpreter_stack() or ())


@contextmanager
def plain(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``tensors`` as constants, without what `torch.func.grad` and forward mode wrap around them, also for what follows within.

    So their numbers can be read, by NumPy too. Not for tensors under `torch.vmap`, which have no numbers of their own.
    """
    functorch: Any = torch._C._functorch
    constants = []
    for t in tensors:
        while functorch.is_functorch_wrapped_tensor(t):
            t = functorch.get_unwrapped(t)
        constants.append(t)
    with torch._C._DisableFuncTorch():
        yield tuple(t.detach() for t in constants)


@contextmanager
def reusable_graphs() -> Iterator[None]:
    """Graphs of compiled functions that are recorded within may be run backward more than once.

    PyTorch's compiler else gives away buffers of the forward pass to the first run.
    """
    with torch._functorch.config.patch(donated_buffer=False):
        yield
