"""Systems of several measures: stored as one, so that every stepper and solver runs on them, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddeq.flows.geometries import Geometry
from ddeq.flows.packed_geometry import PackedGeometry
from ddeq.flows.packed_noise import PackedNoise
from ddeq.flows.packed_reaction import PackedReaction
from ddeq.flows.packed_space import PackedSpace
from ddeq.flows.packed_stepper import PackedStepper
from ddeq.flows.trajectory import Trajectory
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packed import OfSpecies, packed
from ddeq.functionals.packing import Outer, Packing, Species
from ddeq.iteration import Report, Solution
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean

__all__ = ["Game", "System"]


class Game(Dynamics):
    r"""Species each of which descends a functional of its own, :math:`\dot x = -\nabla_{\mu^s} F_s(\mu^1, \dots, \mu^S)`.

    Every functional reads all measures. There is no energy that falls; a trajectory records those of all species, and None where
    some are `Varying`.

    Parameters
    ----------
    functionals
        A functional of ``measures: dict`` for each species, or `Varying` ones.

    Raises
    ------
    ValueError
        If one of them is no functional.
    """

    is_force = True

    def __init__(self, functionals: Mapping[str, Dynamics]) -> None:
        super().__init__()
        for name, functional in functionals.items():
            if not (isinstance(functional, Dynamics) and functional.has_energy):
                raise ValueError(
                    f"functional: expected a ddeq.Functional, or Varying ones, for {name!r}, got {functional!r}; velocities of "
                    "all species are one VelocityField"
                )
        self.functionals = nn.ModuleDict(dict(functionals))
        self.removable = all(F.removable for F in functionals.values())
        self.remembers = any(F.remembers for F in functionals.values())
        self.draws = any(F.draws for F in functionals.values())
        self.varies = any(F.varies for F in functionals.values())

    def velocity(self, mu: Any, x: Any = None) -> Any:
        forces = {}
        for name, functional in self.functionals.items():
            assert isinstance(functional, Functional)
            at = None if x is None else x[name]
            forces[name] = -OfSpecies(functional, mu, name).wasserstein_gradient(mu[name], at)
        return forces

    def energies(self, mu: Any) -> dict[str, Tensor] | None:
        return None if self.varies else {name: functional(mu) for name, functional in self.functionals.items()}

    def prepare(self, mu: Any, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Game, Any]:
        made, memories = {}, {}
        for name, functional in self.functionals.items():
            assert isinstance(functional, Dynamics)
            made[name], memories[name] = functional.prepare(mu, None if memory is None else memory[name], step, generator)
        return Game(made), memories

    def __repr__(self) -> str:
        return f"Game({', '.join(f'{name}: {F!r}' for name, F in self.functionals.items())})"


@dataclass(frozen=True)
class System:
    """A flow or an equilibrium of several measures as one of the measure in which they are stored.

    Parameters
    ----------
    packing
        How they are stored.
    dynamics
        What the packed measure follows.
    start
        Where: the packed measure, or the packed trajectory that goes on.
    """

    packing: Packing
    dynamics: Dynamics
    start: Any

    @classmethod
    def of(cls, functional: object, mu0: object) -> System | None:
        """That of a functional, or of several by name, and a start; None where there is one measure by itself."""
        measures = mu0.measure if isinstance(mu0, Trajectory) else mu0
        if isinstance(measures, Mapping):
            packing: Packing = Species.of(measures)
            dynamics = functional
            if isinstance(functional, Mapping):
                if functional.keys() != measures.keys():
                    raise ValueError(f"functional: expected one for each of {list(measures)}, got {list(functional)}")
                dynamics = Game({name: functional[name] for name in measures})
            if isinstance(functional, Functional) and functional.couples_batch:
                raise ValueError(f"functional: {functional!r} couples the samples of one batch, got measures by name")
        elif isinstance(functional, Functional) and functional.couples_batch and isinstance(measures, DiscreteMeasure):
            if not measures.batch_shape:
                raise ValueError(f"mu0: {functional!r} couples the samples of a batch, expected one, got a single measure")
            _check_outer(functional, measures.batch_shape[-1])
            packing, dynamics = Outer(measures.batch_shape[-1], measures.n, functional.outer_weights), functional
        else:
            if isinstance(functional, Mapping):
                raise ValueError("mu0: expected measures by name for functionals by name, {'prey': mu, 'predator': nu}")
            return None
        if not isinstance(dynamics, Dynamics):
            raise ValueError(
                f"functional: expected a functional of measures by name, or one for each of them, got {dynamics!r}; "
                "Functional.of(lambda measures: ...)"
            )
        start: Any = packing.pack(measures)
        if isinstance(mu0, Trajectory):
            start = replace(mu0, measures=packing.pack(mu0.measures))
        return cls(packing, packed(dynamics, packing), start)

    def options(
        self, stepper: Any, geometry: Any, noise: Any = None, reaction: Any = None, space: Any = Euclidean()
    ) -> dict[str, Any]:
        """The parts of a flow, in this order, one for all species or a dict of one for each, as those of the packed measure."""
        if isinstance(self.packing, Outer):
            return self._of_outer(stepper, geometry, noise, reaction, space)
        assert isinstance(self.packing, Species)
        each = self._each
        return {
            "stepper": PackedStepper.of(self.packing, stepper) if isinstance(stepper, Mapping) else stepper,
            "geometry": PackedGeometry.of(self.packing, each("geometry", geometry)),
            "noise": PackedNoise.of(self.packing, each("noise", noise)),
            "reaction": PackedReaction.of(self.packing, each("reaction", reaction)),
            "space": PackedSpace.of(self.packing, each("space", space)),
        }

    def _of_outer(self, stepper: Any, geometry: Any, noise: Any, reaction: Any, space: Any) -> dict[str, Any]:
        parts = {"stepper": stepper, "geometry": geometry, "noise": noise, "reaction": reaction, "space": space}
        for name, part in parts.items():
            if isinstance(part, Mapping):
                raise ValueError(f"{name}: expected one for all measures of a batch that is coupled, got {part!r}")
        if reaction is not None:
            raise ValueError("reaction: masses of a measure of measures do not move; leave it out")
        if isinstance(geometry, Geometry) and not geometry.is_wasserstein:
            raise ValueError(f"geometry: a measure of measures flows in the geometry of Wasserstein, got {geometry!r}")
        return parts

    def _each(self, name: str, part: Any) -> dict[str, Any]:
        assert isinstance(self.packing, Species)
        names = [species for species, *_ in self.packing.shapes]
        if not isinstance(part, Mapping):
            return dict.fromkeys(names, part)
        if part.keys() != set(names):
            raise ValueError(f"{name}: expected one for all, or one for each of {names}, got {list(part)}")
        return {species: part[species] for species in names}

    def unpacked(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory of the measures."""
        return replace(trajectory, measures=self.packing.unpack(trajectory.measures))

    def solved(self, solution: Solution) -> Solution:
        """The solution with the measures."""
        return replace(solution, measure=self.packing.unpack(solution.measure))

    def callback(self, callback: Callable[[Report], object] | None) -> Callable[[Report], object] | None:
        """A callback whose report has the points of the measures as its value."""
        if callback is None:
            return None

        def called(report: Report) -> object:
            points = report.value[..., : report.value.shape[-1] - self._extra(report)]
            return callback(report._replace(value=self.packing.unpack_field(points)))

        return called

    def _extra(self, report: Report) -> int:
        """Coordinates of the iterate behind those of the points: the weight, with a reaction."""
        width = 1 if isinstance(self.packing, Species) else self.start_measure.dim
        return report.value.shape[-1] - width

    @property
    def start_measure(self) -> DiscreteMeasure:
        """The packed start."""
        start: DiscreteMeasure = self.start.measure if isinstance(self.start, Trajectory) else self.start
        return start


def _check_outer(functional: Functional, count: int) -> None:
    weights = functional.outer_weights
    if weights is None:
        return
    if weights.shape != (count,) or bool((weights < 0).any()) or not bool(weights.sum() > 0) or weights.requires_grad:
        raise ValueError(
            f"outer_weights: expected {count} non-negative numbers, one for each sample of the last batch dimension, without "
            f"derivatives, got {weights!r}"
        )
