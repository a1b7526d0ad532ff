"""How a flow moves in one step of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddeq.flows.problem import Descent
from ddeq.measures import values_are_known

__all__ = ["Euler", "StepSize", "Stepper"]

StepSize = float | Tensor | Callable[[int], float | Tensor]
"""A number, a tensor with one for each sample ``(*batch,)``, or a function of the number of the step that gives either."""


@runtime_checkable
class Stepper(Protocol):
    """A frozen set of options with pure ``init`` and ``step``."""

    def init(self, problem: Descent, points: Tensor) -> Any:
        """The state before the first step: a pytree of tensors ``(*batch, ...)``, or None."""
        ...

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: Any, step: int) -> tuple[Tensor, Any]:
        """The points after the step, and the new state; ``velocity`` is the one at ``points``."""
        ...

    def duration(self, step: int) -> float | Tensor:
        """The time that the step takes."""
        ...


@dataclass(frozen=True)
class Euler:
    r"""Explicit Euler steps, :math:`x_i \leftarrow x_i - \tau \nabla_W F(\mu)(x_i)`, of order one.

    For an :math:`\ell`-smooth functional the energy falls for ``step_size`` :math:`\tau < 2/\ell` (T10).

    Parameters
    ----------
    step_size
        A positive number, one for each sample, or a schedule of either.

    Raises
    ------
    ValueError
        If a step size is not positive and finite.
    """

    step_size: StepSize = 0.1

    def __post_init__(self) -> None:
        if not callable(self.step_size):
            _check_step_size(self.step_size)

    def init(self, problem: Descent, points: Tensor) -> None:
        return None

    def step(self, problem: Descent, points: Tensor, velocity: Tensor, state: None, step: int) -> tuple[Tensor, None]:
        tau = self.duration(step)
        return points + (tau[..., None, None] if isinstance(tau, Tensor) else tau) * velocity, state

    def duration(self, step: int) -> float | Tensor:
        return _check_step_size(self.step_size(step)) if callable(self.step_size) else self.step_size


def _check_step_size(value: float | Tensor) -> float | Tensor:
    if isinstance(value, Tensor):
        if values_are_known(value) and not bool(((value > 0) & torch.isfinite(value)).all()):
            raise ValueError(f"step_size: expected positive finite numbers, got {value.detach().min().item()}")
    elif not 0 < value < float("inf"):
        raise ValueError(f"step_size: expected a positive finite number, got {value}")
    return value
