"""`Trajectory`: what a flow leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["Trajectory"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A flow's recorded measures with their times and energies, and how it ended."""

    measures: DiscreteMeasure
    """The recorded measures, time first: points ``(T, *batch, n, d)``."""
    times: Tensor
    """Times of the records, ``(T,)``, or ``(T, *batch)`` where step sizes differ between samples."""
    energies: Tensor
    """Energies of the records, ``(T, *batch)``."""
    status: Tensor
    """`ddeq.iteration.Status` of each sample, ``(*batch,)``."""
    steps: Tensor
    """Steps that each sample took, ``(*batch,)``."""

    @property
    def measure(self) -> DiscreteMeasure:
        """The last measure."""
        return self.measures[-1]

    def __repr__(self) -> str:
        return f"Trajectory(records={len(self.energies)}, measure={self.measure})"

    def save(self, path: str | Path) -> None:
        """Write the trajectory to a safetensors file."""
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name) for name in ("times", "energies", "status", "steps")}
        tensors |= {name: getattr(self.measures, name) for name in ("points", "weights", "marks")}
        save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items() if t is not None}, path)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read a trajectory that `save` wrote."""
        from safetensors.torch import load_file

        tensors = load_file(path)
        missing = {"points", "weights", "times", "energies", "status", "steps"} - tensors.keys()
        if missing:
            raise ValueError(f"path: expected a file that Trajectory.save wrote, but it lacks {sorted(missing)}")
        measures = unchecked(tensors.pop("points"), tensors.pop("weights"), tensors.pop("marks", None))
        return cls(measures, **tensors)


class Recorder:
    """Collects the measures of a flow at chosen steps."""

    def __init__(self, steps: set[int] | range) -> None:
        self._wanted = steps
        self._records: dict[int, tuple[Tensor, DiscreteMeasure, Tensor]] = {}

    def wants(self, step: int) -> bool:
        """Whether the step is one of those to record."""
        return step in self._wanted

    def record(self, step: int, time: Tensor, measure: DiscreteMeasure, energy: Tensor) -> None:
        """Keep a measure."""
        self._records[step] = (time, measure, energy)

    def finish(self, step: int, time: Tensor, measure: DiscreteMeasure, energy: Tensor) -> None:
        """Keep the last measure, and nothing after it: there all samples stood still already."""
        self._records = {k: r for k, r in self._records.items() if k < step} | {step: (time, measure, energy)}

    def trajectory(self, status: Tensor, steps: Tensor) -> Trajectory:
        """What was collected."""
        times, measures, energies = zip(*self._records.values(), strict=True)
        stacked = torch.stack(torch.broadcast_tensors(*times))
        return Trajectory(DiscreteMeasure.stack(measures), stacked, torch.stack(energies), status, steps)
