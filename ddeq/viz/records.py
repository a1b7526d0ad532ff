"""The records of one sample of a flow, and moments of its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.flows import Trajectory
from ddeq.integers import whole
from ddeq.measures import DiscreteMeasure

__all__ = ["Records", "Spacing", "check_spacing", "moments", "records_of"]

Spacing = Literal["log", "time"]
STRETCH = 9.0
"""Logarithmic moments are spaced evenly in log(1 + 9 t / end): the middle one is at a quarter of the time."""


@dataclass(frozen=True)
class Records:
    """Measures of one sample in time."""

    measures: DiscreteMeasure
    """``(T,)`` measures, in double precision on the CPU."""
    times: Float[Tensor, " T"]

    @property
    def shares(self) -> Float[Tensor, "T n"]:
        """Masses, relative to the total mass at the start."""
        weights = self.measures.weights
        return weights / weights[0].sum()

    def nearest(self, time: float) -> int:
        """Number of the record at the nearest time."""
        return int((self.times - time).abs().argmin())

    def at(self, time: float) -> DiscreteMeasure:
        """The measure at a time; between two records atoms move, and masses change, at constant speed."""
        after = int(torch.searchsorted(self.times, time).clamp(1, max(len(self.times) - 1, 1)))
        after = min(after, len(self.times) - 1)
        before = max(after - 1, 0)
        span = float(self.times[after] - self.times[before])
        fraction = 0.0 if span == 0 else min(max((time - float(self.times[before])) / span, 0.0), 1.0)
        a, b = self.measures[before], self.measures[after]
        return DiscreteMeasure(torch.lerp(a.points, b.points, fraction), torch.lerp(a.weights, b.weights, fraction))


def records_of(trajectory: Trajectory, sample: int | tuple[int, ...] | None) -> Records:
    """The records of a flow of one measure, or of one sample of a batch."""
    if isinstance(trajectory.measures, dict):
        names = list(trajectory.measures)
        raise ValueError(f"trajectory: expected the flow of one measure, got {names}; trajectory.of_species({names[0]!r}) is one")
    batch = trajectory.measures.batch_shape[1:]
    if sample is None and batch:
        raise ValueError(f"trajectory: expected the flow of one measure, got a batch of shape {batch}; choose one by sample=i")
    index = () if sample is None else sample if isinstance(sample, tuple) else (sample,)
    if len(index) != len(batch) or not all(-size <= i < size for i, size in zip(index, batch, strict=True)):
        raise ValueError(f"sample: expected the index of a sample in a batch of shape {batch}, got {sample}")
    one: tuple[slice | int, ...] = (slice(None), *index)
    measures = trajectory.measures[one].detach().to("cpu", torch.float64)
    times = trajectory.times.detach().to("cpu", torch.float64)
    return Records(measures.with_marks(None), times[one[: times.ndim]])  # measures of measures share a time


def moments(records: Records, count: int, spacing: Spacing) -> list[float]:
    """``count`` moments from the first record to the last, evenly spaced in time or in its logarithm."""
    count = whole("frames", count)
    check_spacing(spacing)
    even = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
    if spacing == "log":
        even = ((1.0 + STRETCH) ** even - 1.0) / STRETCH
    return torch.lerp(records.times[0], records.times[-1], even).tolist()


def check_spacing(spacing: str) -> None:
    """Raise a `ValueError` for a spacing that there is not."""
    if spacing not in ("log", "time"):
        raise ValueError(f"spacing: expected 'log' or 'time', got {spacing!r}")
