"""`Trajectory`: what a flow leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float, Int
from torch import Tensor

from ddeq.files import read_tensors
from ddeq.flows.stored import check_shapes, read_measures, read_part, read_remains
from ddeq.held import copied
from ddeq.iteration import Status
from ddeq.iteration.solution import shown_measures
from ddeq.measures import DiscreteMeasure
from ddeq.memory import Saved
from ddeq.ranks import write

__all__ = ["Recorder", "Remains", "Trajectory"]


class Remains(NamedTuple):
    """What a flow needs besides its last measure to go on as if it had not stopped."""

    taken: int
    """Number of steps that the flow has taken: where schedules go on."""
    memory: tuple[Tensor, ...]
    """The tensors of the stepper's state, ``(*batch, ...)`` each."""
    scale: Tensor | None
    """To what residuals are relative, ``(*batch,)``; None where nothing was to converge."""
    generator_state: Tensor | None
    """State of the generator of the noise."""
    of_functional: Saved = ()
    """What is saved of the memory of the functional, `ddeq.Functional.prepare`; None for each part that is not."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A flow's recorded measures with their times and energies, and how it ended.

    ``ddeq.flow(functional, trajectory, ...)`` goes on from the last record, on the path that the flow would have taken.
    """

    measures: Any
    """The recorded measures, time first: points ``(T, *batch, n, d)``; of several species a dict of them."""
    times: Float[Tensor, "*times"]
    """Times of the records, ``(T,)``, or ``(T, *batch)`` where step sizes differ between samples."""
    energies: Any
    """Energies of the records, a tensor ``(T, *batch)``; of `Varying` each that of its step. A dict of them for a game, None for
    a `VelocityField`."""
    status: Int[Tensor, "*batch"]
    """`ddeq.iteration.Status` of each sample, ``(*batch,)``."""
    steps: Int[Tensor, "*batch"]
    """Steps that each sample took, ``(*batch,)``."""
    dissipation: Any
    r"""``(T, *batch)``: rates :math:`-\mathrm dF/\mathrm dt` at which geometry and reaction lower the energy; or None."""
    remains: Remains | None = None
    """What is needed to go on."""

    @property
    def measure(self) -> Any:
        """The last measure; of several species a dict."""
        if isinstance(self.measures, DiscreteMeasure):
            return self.measures[-1]
        return {name: mu[-1] for name, mu in self.measures.items()}

    def of_species(self, name: str) -> Trajectory:
        """The records of one species of a system, with its own energies where it is a game; it cannot go on.

        Raises
        ------
        ValueError
            If there is no measure by that ``name``.
        """
        if not isinstance(self.measures, dict) or name not in self.measures:
            seen = list(self.measures) if isinstance(self.measures, dict) else "a single measure"
            raise ValueError(f"name: expected one of the measures of a system, got {name!r} and {seen}")
        energies = self.energies[name] if isinstance(self.energies, dict) else None
        return replace(self, measures=self.measures[name], energies=energies, dissipation=None, remains=None)

    @property
    def converged(self) -> Tensor:
        """``(*batch,)``: which samples ended as CONVERGED."""
        return self.status == Status.CONVERGED.value

    def __deepcopy__(self, memo: dict[Any, Any]) -> Trajectory:
        copy: Trajectory = copied(self, memo)
        return copy

    def __repr__(self) -> str:
        ends = ", ".join(
            f"{int((self.status == s.value).sum())} {s.name}" for s in Status if bool((self.status == s.value).any())
        )
        return f"Trajectory(records={len(self.times)}, measure={shown_measures(self.measure)}; {ends})"

    def save(self, path: str | Path) -> None:
        """Write the trajectory, and what is needed to go on, to the safetensors file ``path``."""
        tensors: dict[str, Tensor | None] = {}
        for name in _FIELDS:  # of several species "energies.prey"
            value = getattr(self, name)
            tensors |= {f"{name}.{k}": t for k, t in value.items()} if isinstance(value, dict) else {name: value}
        species = {"": self.measures} if isinstance(self.measures, DiscreteMeasure) else self.measures
        for key, mu in species.items():
            end = f".{key}" if key else ""
            tensors |= {f"{name}{end}": getattr(mu, name) for name in ("points", "weights", "marks")}
        if self.remains is not None:
            tensors |= {f"memory.{i}": t for i, t in enumerate(self.remains.memory)}
            tensors |= {"taken": torch.tensor(self.remains.taken, dtype=torch.long, device="cpu"), "scale": self.remains.scale}
            tensors["generator_state"] = self.remains.generator_state
            tensors |= {f"of_functional.{i}": t for i, t in enumerate(self.remains.of_functional)}
            tensors["parts_of_functional"] = torch.tensor(len(self.remains.of_functional), dtype=torch.long, device="cpu")
        write(path, tensors)

    def to(self, device: torch.device | str) -> Trajectory:
        """The same trajectory on another device, where its flow can go on; the state of a generator stays on the CPU."""

        def moved(value: Any) -> Any:
            return pytree.tree_map_only(Tensor, lambda t: t.to(device), value)

        remains = None if self.remains is None else moved(self.remains)
        if remains is not None and self.remains is not None:
            remains = remains._replace(generator_state=self.remains.generator_state)
        return Trajectory(moved(self.measures), **{name: moved(getattr(self, name)) for name in _FIELDS}, remains=remains)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Trajectory:
        """Read a trajectory that `save` wrote, whatever device it was on.

        Parameters
        ----------
        path
            The file.
        device
            Where to put the trajectory.

        Raises
        ------
        ValueError
            If the file is broken or holds something else.
        """
        tensors, _ = read_tensors(path, device)
        missing = {"points", "weights", *_FIELDS} - {"energies", "dissipation"} - {name.partition(".")[0] for name in tensors}
        if missing:
            raise ValueError(f"path: expected a file that Trajectory.save wrote, but it lacks {sorted(missing)}")
        fields: dict[str, Any] = {name: read_part(tensors, name) for name in _FIELDS}
        try:
            measures, remains = read_measures(tensors), read_remains(tensors)
            numbers = {name: fields[name] for name in ("energies", "dissipation")}
            check_shapes(measures, fields["status"], numbers, fields["steps"], fields["times"])
        except ValueError as error:
            raise ValueError(f"path: {path} holds no trajectory: {error}") from None
        return cls(measures, **fields, remains=None if remains is None else Remains(*remains))


_FIELDS = ("times", "energies", "status", "steps", "dissipation")


class Record(NamedTuple):
    """What is known of a flow after a step."""

    measure: DiscreteMeasure
    energy: Tensor | None
    dissipation: Tensor | None


class Recorder:
    """Collects the measures of a flow at chosen steps, on top of those of a flow that goes on."""

    def __init__(self, steps: set[int] | range, before: Trajectory | None = None) -> None:
        self._wanted, self._before = steps, before
        self._records: dict[int, Record] = {}

    def wants(self, step: int) -> bool:
        """Whether the step is one of those to record."""
        return step in self._wanted

    def record(self, step: int, record: Record) -> None:
        """Keep a measure."""
        self._records[step] = record

    def trajectory(self, clock: Tensor, first: int, status: Tensor, steps: Tensor, remains: Remains) -> Trajectory:
        """What was collected; ``clock`` has the time after each step, ``first`` is the number of the step at its start."""
        before = self._before
        if before is not None and len(self._records) > 1:
            self._records.pop(first, None)  # the last record of the flow that goes on
        elif before is not None:
            return _with_end(before, status, steps, remains)
        measures, energies, dissipation = zip(*self._records.values(), strict=True)
        found = Trajectory(
            DiscreteMeasure.stack(measures),
            clock[torch.tensor([step - first for step in self._records], dtype=torch.long, device=clock.device)],
            _stacked(energies),
            status,
            steps,
            _stacked(dissipation),
            remains,
        )
        return found if before is None else _joined(before, found)


def _stacked(numbers: tuple[Any, ...]) -> Any:
    known = [t for t in numbers if t is not None]
    return pytree.tree_map(lambda *parts: torch.stack(parts), *known) if known else None


def _joined(before: Trajectory, after: Trajectory) -> Trajectory:
    """Two parts of a flow as one."""

    def cat(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b])

    def both(a: Any, b: Any) -> Any:
        return None if a is None or b is None else pytree.tree_map(cat, a, b)

    batch_shape = tuple(after.status.shape)
    times = [t[(...,) + (None,) * (1 + len(batch_shape) - t.ndim)] for t in (before.times, after.times)]
    if before.times.ndim != after.times.ndim:
        times = [t.expand(len(t), *batch_shape) for t in times]
    else:
        times = [before.times, after.times]
    measures: DiscreteMeasure = pytree.tree_map(cat, before.measures, after.measures)
    return Trajectory(
        measures,
        cat(*times),
        both(before.energies, after.energies),
        after.status,
        before.steps + after.steps,
        both(before.dissipation, after.dissipation),
        after.remains,
    )


def _with_end(before: Trajectory, status: Tensor, steps: Tensor, remains: Remains) -> Trajectory:
    """A flow that went on for no step at all."""
    measures, times, energies = before.measures, before.times, before.energies
    return Trajectory(measures, times, energies, status, before.steps + steps, before.dissipation, remains)


torch.serialization.add_safe_globals([Trajectory, Remains])  # torch.load takes trajectories: they hold tensors and numbers
