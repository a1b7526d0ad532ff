"""Spaces, geometries, noises, reactions and steppers of several species as those of the measure in which they are stored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.geometries import Geometry
from ddeq.flows.noise import Noise
from ddeq.flows.reaction import Reaction
from ddeq.flows.steppers import Stepper
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packed import PackedFunctional
from ddeq.functionals.packing import Species
from ddeq.iteration import InnerProduct, Iterate, Step
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Field, Space

__all__ = ["PackedGeometry", "PackedNoise", "PackedReaction", "PackedSpace", "PackedStepper"]


@dataclass(frozen=True)
class PackedSpace(Space):
    """The product of the spaces of some species.

    Parameters
    ----------
    packing
        How the species are stored.
    parts
        The space of each, in their order.
    """

    packing: Species
    parts: tuple[Space, ...]

    @classmethod
    def of(cls, packing: Species, spaces: Mapping[str, Any]) -> Space:
        """That of spaces by name; Euclidean space where all of them are."""
        for name, space in spaces.items():
            if not isinstance(space, Space):
                raise ValueError(f"space: expected a ddeq.spaces.Space such as Sphere() for {name!r}, got {space!r}")
        if all(space == Euclidean() for space in spaces.values()):
            return Euclidean()
        return cls(packing, tuple(spaces.values()))

    @property
    def has_boundary(self) -> bool:  # type: ignore[override]
        return any(space.has_boundary for space in self.parts)

    @property
    def is_flat(self) -> bool:  # type: ignore[override]
        return all(space.is_flat for space in self.parts)

    @property
    def is_periodic(self) -> bool:  # type: ignore[override]
        return any(space.is_periodic for space in self.parts)

    def _each(self, name: str, *fields: Tensor, after: tuple[Any, ...] = ()) -> dict[str, Any]:
        """What a method of each space gives."""
        parts = [self.packing.unpack_field(field) for field in fields]
        names = [species for species, *_ in self.packing.shapes]
        return {
            species: getattr(space, name)(*(part[species] for part in parts), *after)
            for species, space in zip(names, self.parts, strict=True)
        }

    def _field(self, name: str, *fields: Tensor, after: tuple[Any, ...] = ()) -> Tensor:
        return self.packing.pack_field(self._each(name, *fields, after=after))

    def admitted(self, mu: DiscreteMeasure, name: str = "mu0") -> DiscreteMeasure:
        measures = self.packing.unpack(mu)
        spaces = zip(measures.items(), self.parts, strict=True)
        return self.packing.pack({species: space.admitted(nu, f"{name}[{species!r}]") for (species, nu), space in spaces})

    def contains(self, x: Tensor) -> Tensor:
        return self.packing.pack_numbers(self._each("contains", x))

    def project(self, x: Tensor) -> Tensor:
        return self._field("project", x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return self._field("tangent", x, v)

    def velocity(self, x: Tensor, force: Tensor) -> Tensor:
        return self._field("velocity", x, force)

    def inner(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        found = self._each("inner", x, a, b)
        dims = {species: d for species, _, d, _ in self.packing.shapes}
        whole = {s: torch.nn.functional.pad(t.unsqueeze(-1), (0, dims[s] - 1)) for s, t in found.items()}  # once for each atom
        return self.packing.pack_field(whole).squeeze(-1)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self._field("retract", x, v)

    def transport(self, x: Tensor, v: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        found = self._each("transport", x, v, *fields)
        return tuple(self.packing.pack_field({s: parts[k] for s, parts in found.items()}) for k in range(len(fields)))

    def travelled(self, x: Tensor, v: Tensor, y: Tensor) -> Tensor:
        return self._field("travelled", x, v, y)

    def _map(self, name: str, x: Tensor, force: Tensor) -> Field:
        maps = self._each(name, x, force)

        def mapped(b: Tensor) -> Tensor:
            parts = self.packing.unpack_field(b)
            return self.packing.pack_field({species: map(parts[species]) for species, map in maps.items()})

        return mapped

    def frame(self, x: Tensor, force: Tensor) -> Field:
        return self._map("frame", x, force)

    def moving(self, x: Tensor, force: Tensor) -> Field:
        return self._map("moving", x, force)

    def chart(self, x: Tensor, v: Tensor) -> Tensor:
        return self._field("chart", x, v)

    def noise(self, x: Tensor, xi: Tensor) -> Tensor:
        return self._field("noise", x, xi)

    def kick(self, x: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        return self._field("kick", x, move, after=(variance,))

    def around(self, x: Tensor) -> Tensor:
        return self._field("around", x)

    def near(self, x: Tensor, y: Tensor) -> Tensor:
        return self._field("near", x, y)

    def induced_at(self, x: Tensor) -> bool:
        return all(self._each("induced_at", x).values())

    def second_order_at(self, x: Tensor) -> bool:
        return all(self._each("second_order_at", x).values())


class _OneOf(Functional):
    """A packed functional as one of one species, while the others are held fixed."""

    def __init__(self, functional: Functional, packing: Species, measures: Mapping[str, DiscreteMeasure], name: str) -> None:
        super().__init__()
        self.functional, self._of, self._others, self._name = functional, packing, dict(measures), name

    def _whole(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        return self._of.pack({**self._others, self._name: mu})

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        return self.functional(self._whole(mu))

    def wasserstein_gradient(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        if x is not None:
            raise ValueError("x: in a system, geometries other than Wasserstein know velocities at the atoms alone")
        return self._of.unpack_field(self.functional.wasserstein_gradient(self._whole(mu)))[self._name]


@dataclass(frozen=True)
class PackedGeometry(Geometry):
    """The product of the geometries of some species; parameters as of `PackedSpace`."""

    packing: Species
    parts: tuple[Geometry, ...]

    is_wasserstein: ClassVar[bool] = False

    @classmethod
    def of(cls, packing: Species, geometries: Mapping[str, Any]) -> Geometry:
        """That of geometries by name; the first where all are that of Wasserstein."""
        for name, geometry in geometries.items():
            if not isinstance(geometry, Geometry):
                raise ValueError(f"geometry: expected a ddeq.flows.Geometry such as Wasserstein() for {name!r}, got {geometry!r}")
        parts = tuple(geometries.values())
        return parts[0] if all(part.is_wasserstein for part in parts) else cls(packing, parts)

    @property
    def is_pointwise(self) -> bool:  # type: ignore[override]
        return all(part.is_gradient for part in self.parts)

    @property
    def replaces_entropy(self) -> bool:  # type: ignore[override]
        return any(part.replaces_entropy for part in self.parts)

    @property
    def space(self) -> Space | None:
        spaces = [part.space or Euclidean() for part in self.parts]
        return None if all(s == Euclidean() for s in spaces) else PackedSpace(self.packing, tuple(spaces))

    def mobility(self, mu: DiscreteMeasure) -> Callable[[Tensor], Tensor]:
        pairs = zip(self.packing.unpack(mu).items(), self.parts, strict=True)
        maps = {name: part.mobility(nu) for (name, nu), part in pairs}

        def mapped(force: Tensor) -> Tensor:
            parts = self.packing.unpack_field(force)
            return self.packing.pack_field({name: map(parts[name]) for name, map in maps.items()})

        return mapped

    def velocity(self, functional: Functional, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        measures = self.packing.unpack(mu)
        places: dict[str, Any] = dict.fromkeys(measures) if x is None else self.packing.unpack_field(x)
        found = {}
        for name, part in zip(measures, self.parts, strict=True):
            of = _OneOf(functional, self.packing, measures, name)
            found[name] = part.velocity(of, measures[name], places[name])
        return self.packing.pack_field(found)


@dataclass(frozen=True)
class PackedNoise(Noise):
    """Noises of some species; None where a species has none."""

    packing: Species
    parts: tuple[Noise | None, ...]

    @classmethod
    def of(cls, packing: Species, noises: Mapping[str, Any]) -> Noise | None:
        """Of noises by name."""
        for name, noise in noises.items():
            if not isinstance(noise, Noise | None):
                raise ValueError(f"noise: expected a ddeq.flows.Noise, or None, for {name!r}, got {noise!r}")
        return None if all(noise is None for noise in noises.values()) else cls(packing, tuple(noises.values()))

    @property
    def stands_for_entropy(self) -> bool:  # type: ignore[override]
        return any(part is not None and part.stands_for_entropy for part in self.parts)

    def _each(self, draw: Callable[[], Tensor], of: Callable[[Noise, Callable[[], Tensor]], Tensor | None]) -> Tensor | None:
        names = [species for species, *_ in self.packing.shapes]
        still = self.packing.unpack_field(torch.zeros_like(draw()))

        def own(name: str) -> Tensor:
            return self.packing.unpack_field(draw())[name]

        pairs = zip(names, self.parts, strict=True)
        moves = {name: None if part is None else of(part, partial(own, name)) for name, part in pairs}
        if all(move is None for move in moves.values()):
            return None
        return self.packing.pack_field({name: still[name] if move is None else move for name, move in moves.items()})

    def displacement(self, equation: FunctionalDescent, draw: Callable[[], Tensor], step: int) -> Tensor | None:
        return self._each(draw, lambda noise, own: noise.displacement(equation, own, step))

    def kick(self, equation: FunctionalDescent, draw: Callable[[], Tensor], duration: float | Tensor, step: int) -> Tensor | None:
        return self._each(draw, lambda noise, own: noise.kick(equation, own, duration, step))

    def variance(self, equation: FunctionalDescent, duration: float | Tensor, step: int) -> float | Tensor:
        found = [0.0 if part is None else part.variance(equation, duration, step) for part in self.parts]
        if any(not torch.equal(torch.as_tensor(v), torch.as_tensor(found[0])) for v in found):
            raise ValueError("noise: expected the same temperature for all species on a space or in a geometry of its own")
        return found[0]


@dataclass(frozen=True)
class PackedReaction(Reaction):
    """Reactions of some species, each of which keeps or changes the mass of its own; None where a species has none."""

    packing: Species
    parts: tuple[Reaction | None, ...]

    @classmethod
    def of(cls, packing: Species, reactions: Mapping[str, Any]) -> Reaction | None:
        """Of reactions by name."""
        for name, reaction in reactions.items():
            if not isinstance(reaction, Reaction | None):
                raise ValueError(f"reaction: expected a ddeq.flows.Reaction, or None, for {name!r}, got {reaction!r}")
            if reaction is not None and reaction.jumps:
                raise ValueError("reaction: in a system weights move, and atoms do not jump; leave birth_death out")
        return None if all(r is None for r in reactions.values()) else cls(packing, tuple(reactions.values()))

    @property
    def conserves(self) -> bool:
        return all(part is None or part.conserves for part in self.parts)

    def _each(self, equation: FunctionalDescent, mu: DiscreteMeasure) -> list[tuple[str, Reaction | None, Any, DiscreteMeasure]]:
        functional = equation.functional
        assert isinstance(functional, PackedFunctional)
        measures = self.packing.unpack(mu)
        found = []
        for (name, nu), part in zip(measures.items(), self.parts, strict=True):
            own = copy.copy(equation)
            own.dynamics, own.like = functional.functional.of_species(measures, name), nu
            own.inner = InnerProduct.of(nu.points, nu.weights)
            found.append((name, part, own, nu))
        return found

    def react(self, equation: FunctionalDescent, mu: DiscreteMeasure, duration: float | Tensor, step: int) -> Tensor:
        weights = {
            name: nu.weights if part is None else part.react(own, nu, duration, step)
            for name, part, own, nu in self._each(equation, mu)
        }
        return self.packing.pack_numbers(weights)

    def dissipation(self, equation: FunctionalDescent, mu: DiscreteMeasure, step: int) -> Tensor:
        rates = [part.dissipation(own, nu, step) for _, part, own, nu in self._each(equation, mu) if part is not None]
        return torch.stack(rates).sum(0)

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> PackedReaction:
        return PackedReaction(self.packing, tuple(None if r is None else r.rows(keep, batch_shape) for r in self.parts))


class _Alone(Dynamics):
    """What one species follows while the others are held fixed."""

    def __init__(self, of: Callable[[DiscreteMeasure], Tensor]) -> None:
        super().__init__()
        self._of = of

    def velocity(self, mu: DiscreteMeasure, x: Tensor | None = None) -> Tensor:
        if x is not None:
            raise ValueError("x: a stepper of one species knows velocities at the atoms alone")
        return self._of(mu)


@dataclass(frozen=True)
class PackedStepper(Stepper):
    """A stepper for each species, all of which step at once from where they are: descent and ascent at rates of their own.

    The time of a step is that of the first species.
    """

    packing: Species
    steppers: tuple[Stepper, ...]

    in_spaces: ClassVar[bool] = True

    @classmethod
    def of(cls, packing: Species, steppers: Mapping[str, Any]) -> Stepper:
        """Of steppers by name."""
        names = [species for species, *_ in packing.shapes]
        if steppers.keys() != set(names):
            raise ValueError(f"stepper: expected one for all, or one for each of {names}, got {list(steppers)}")
        for name, stepper in steppers.items():
            if not isinstance(stepper, Stepper):
                raise ValueError(f"stepper: expected a ddeq.flows.Stepper for {name!r}, got {stepper!r}")
            if stepper.needs_energy or stepper.descends or stepper.draws:
                raise ValueError(
                    f"stepper: {type(stepper).__name__} for {name!r} alone would go by an energy that the others change; take it "
                    "for all species, or Euler, Heun or Optimizer for each"
                )
        return cls(packing, tuple(steppers[name] for name in names))

    @property
    def has_momentum(self) -> bool:  # type: ignore[override]
        return any(part.has_momentum for part in self.steppers)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return all(part.differentiable for part in self.steppers)

    def _each(self, equation: FunctionalDescent, at: Iterate) -> list[tuple[Stepper, FunctionalDescent, Iterate]]:
        measures = self.packing.unpack(equation.measure(at.z))
        residuals = self.packing.unpack_field(at.residual)
        spaces = equation.space.parts if isinstance(equation.space, PackedSpace) else (Euclidean(),) * len(measures)

        def velocity(nu: DiscreteMeasure, name: str) -> Tensor:
            z = self.packing.pack_field({**{k: m.points for k, m in measures.items()}, name: nu.points})
            return self.packing.unpack_field(equation.residual(z))[name]

        found = []
        for (name, nu), part, space in zip(measures.items(), self.steppers, spaces, strict=True):
            own = FunctionalDescent(_Alone(partial(velocity, name=name)), nu, space=space)
            own._samples = equation._samples
            here = Iterate(nu.points, residuals[name], own.inner.norm(residuals[name]), at.size, at.step, at.draw)
            found.append((part, own, here))
        return found

    def init(self, equation: FunctionalDescent, at: Iterate) -> tuple[Any, ...]:
        return tuple(part.init(own, here) for part, own, here in self._each(equation, at))

    def step(self, equation: FunctionalDescent, at: Iterate, state: tuple[Any, ...]) -> Step:
        each = self._each(equation, at)
        taken = [part.step(own, here, before) for (part, own, here), before in zip(each, state, strict=True)]
        names = [species for species, *_ in self.packing.shapes]
        z = self.packing.pack_field({name: step.z for name, step in zip(names, taken, strict=True)})
        evaluations = sum(step.evaluations for step in taken)
        return Step(z, tuple(step.state for step in taken), evaluations=evaluations, duration=taken[0].duration)
