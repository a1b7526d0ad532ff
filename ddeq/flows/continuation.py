"""How a flow begins where another one ended: random numbers, states of steppers, times, and the steps that are recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from ddeq.draws import Draws
from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.method import FlowMethod
from ddeq.flows.trajectory import Remains, Trajectory
from ddeq.functionals.dynamics import Dynamics
from ddeq.integers import is_whole, whole
from ddeq.iteration import Iterate, Outcome
from ddeq.iteration.method import state_tensors
from ddeq.measures import DiscreteMeasure

__all__ = ["clock_of", "draws_of", "remains_of", "steps_to_record", "whole_state"]

RECORDS = 100
"""About how many records a flow keeps where the caller does not choose."""


def remains_of(before: Trajectory | None, functional: Dynamics) -> Remains:
    """What a flow before left to go on with."""
    if before is None:
        return Remains(0, (), None, None)
    wanted = "with energies" if functional.has_energy else "without energies"
    if functional.is_force and not functional.varies:
        wanted = "with those of each species"
    seen = "without energies"
    if before.energies is not None:
        seen = "with those of each species" if isinstance(before.energies, dict) else "with energies"
    if seen != wanted:
        raise ValueError(f"mu0: expected a trajectory {wanted}, as of {functional!r}, got one {seen}; use trajectory.measure")
    if before.remains is None:
        raise ValueError("mu0: the trajectory does not say how its flow goes on; start anew from trajectory.measure")
    return before.remains


def draws_of(method: FlowMethod, generator: torch.Generator | None, remains: Remains, mu0: DiscreteMeasure) -> Draws | None:
    """Where the random numbers of a flow come from."""
    if not method.is_random:
        return None
    if generator is None:
        generator = torch.Generator()
        if remains.generator_state is None:
            generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
        else:
            generator.set_state(remains.generator_state.cpu())
    return Draws(generator, mu0.points)


def clock_of(durations: list[float | Tensor], steps: Tensor, mu0: DiscreteMeasure, before: Trajectory | None) -> Tensor:
    """The time after each step, that at the start first: ``(steps + 1,)``, or with the batch behind."""
    start = torch.zeros((), dtype=mu0.dtype, device=mu0.device) if before is None else before.times[-1]
    if not durations:
        return start.unsqueeze(0)
    dtype, device = mu0.dtype, mu0.device
    if any(isinstance(t, Tensor) for t in durations):
        given = [torch.as_tensor(t, dtype=dtype, device=device) for t in durations]
        times = torch.stack(torch.broadcast_tensors(start, *given)[1:])
    else:  # in one piece: a device waits for each
        numbers = torch.tensor(durations, dtype=dtype, device=device)
        times = numbers.reshape(-1, *(1,) * start.ndim).expand(-1, *start.shape)
    if times.ndim > 1:  # the time of a sample that has finished stops
        number = torch.arange(len(times), device=times.device)
        times = torch.where(number.reshape(-1, *(1,) * steps.ndim) < steps, times, 0.0)
    return start + torch.cat([torch.zeros_like(times[:1]), times.cumsum(0)])


def whole_state(outcome: Outcome, method: FlowMethod, equation: FunctionalDescent) -> tuple[Tensor, ...]:
    """The tensors of the stepper's state for all samples; those that were removed begin anew where they ended."""
    left, shape = state_tensors(outcome.state), equation.inner.batch_shape
    if not left or len(outcome.left) == (shape[0] if shape else 1):
        return left
    z, norm = outcome.value.detach(), outcome.absolute
    end = Iterate(z, torch.zeros_like(equation.measure(z).points), norm, outcome.scale, 0)
    fresh = state_tensors(method.init(equation, end))
    return tuple(all_.index_copy(0, outcome.left, t) for all_, t in zip(fresh, left, strict=True))


def steps_to_record(record: int | Iterable[int] | None, first: int, last: int) -> set[int] | range:
    """The numbers of the steps that are recorded."""
    if record is None:
        record = max(1, (last - first) // RECORDS)
    if is_whole(record):
        every = whole("record", record, what="number of steps, or the steps to record, each")
        return {first, *range(first - first % every, last + 1, every)}
    try:
        wanted = list(cast(Iterable[int], record))
    except TypeError:
        raise ValueError(f"record: expected a number of steps >= 1, or the steps to record, got {record!r}") from None
    if not all(is_whole(step) and first <= step <= last for step in wanted):
        raise ValueError(f"record: expected steps between {first} and {last}, got {wanted}")
    return {int(step) for step in wanted} | {first}
