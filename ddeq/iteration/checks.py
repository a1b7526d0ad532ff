"""What the driver asks of an equation and of a method, so that a mistake is told at once and by its name."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.iteration.declared import check_kinds
from ddeq.iteration.equation import Equation
from ddeq.iteration.inner import InnerProduct
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.method import Method
from ddeq.ranks import check_not_sharded

__all__ = ["check_can_be_recorded", "check_problem", "check_state", "check_step", "check_unchanged", "versions"]


def check_problem(equation: object, z: Tensor, method: object) -> None:
    """Raise a `ValueError` unless the equation, the method and the first iterate fit each other."""
    check_kinds(
        ("equation", equation, Equation, "an instance of a subclass of ddeq.iteration.Equation"),
        ("method", method, Method, "an instance of a subclass of ddeq.iteration.Method, such as Anderson()"),
    )
    assert isinstance(equation, Equation)
    name, inner = type(equation).__name__, getattr(equation, "inner", None)
    if not isinstance(inner, InnerProduct):
        raise ValueError(f"{name}.inner: expected an InnerProduct, which the equation sets, got {inner!r}")
    batch_shape = inner.batch_shape
    if tuple(z.shape[: len(batch_shape)]) != batch_shape or z.ndim != len(batch_shape) + inner.dims:
        raise ValueError(
            f"z: expected {inner.dims} dimensions behind the batch shape {batch_shape}, as {name}.inner says (its weights have "
            f"shape {tuple(inner.weights.shape)}, and dims={inner.dims}), got shape {tuple(z.shape)}"
        )
    if not equation.shardable:
        check_not_sharded("mu0", z)


def check_can_be_recorded(method: Method[Any]) -> None:
    """Raise a `ValueError` if autograd records the steps of a method that it cannot record."""
    if not method.differentiable:
        raise ValueError(method.unrecorded())


def check_step(method: Method[Any], taken: object, z: Tensor) -> None:
    """Raise a `ValueError` unless what a method gives is a step from ``z``."""
    name = f"{type(method).__name__}.step"
    if not isinstance(taken, Step):
        raise ValueError(f"{name}: expected a ddeq.iteration.Step, got {type(taken).__name__}; return Step(z, state)")
    if taken.z.shape != z.shape:
        raise ValueError(f"{name}: expected the next iterate of shape {tuple(z.shape)}, got {tuple(taken.z.shape)}")


def check_state(method: Method[Any], state: Any, batch_shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless every tensor of a method's state has one entry for each sample."""
    for t in pytree.tree_leaves(state):
        if isinstance(t, Tensor) and tuple(t.shape[: len(batch_shape)]) != batch_shape:
            raise ValueError(
                f"{type(method).__name__}: expected all tensors of its state to begin with the batch shape {batch_shape}, got "
                f"one of shape {tuple(t.shape)}; give each sample its own entry, or keep a Python number"
            )


def versions(at: Iterate) -> tuple[int, ...]:
    """Numbers that change when a tensor of the iterate is changed in place."""
    return () if at.z.is_inference() else (at.z._version, at.residual._version)


def check_unchanged(method: Method[Any], at: Iterate, before: tuple[int, ...]) -> None:
    """Raise a `ValueError` if the iterate was changed in place since it had the `versions` ``before``."""
    if versions(at) != before:
        name = type(method).__name__
        raise ValueError(f"{name}.step: changed at.z or at.residual in place; compute new tensors instead")
