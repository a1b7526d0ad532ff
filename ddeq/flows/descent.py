"""What flows run on: the velocity of a functional in a geometry as the residual of an equation."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddeq.autodiff import OpenModule, forward_autocast, recompute
from ddeq.draws import Draws
from ddeq.flows.geometries import Geometry, Wasserstein
from ddeq.flows.on_space import InChart, OnSpace
from ddeq.flows.schedules import Schedule, number_at, over_atoms
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.iteration import Descent, InnerProduct, Iterate, Sizes
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.memory import check_memory
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["FunctionalDescent"]


Own = TypeVar("Own", bound="FunctionalDescent")


class FunctionalDescent(Descent):
    """Descent of a functional, or dynamics without an energy, by moving the atoms of ``like``, whose weights and marks stay.

    The iterate is the points, ``(*batch, n, d)``, and the residual their velocity. `tensors` are what the velocity may depend on:
    weights and marks, the parameters of the functional and of a kernel of the geometry, and those of their buffers that
    require grad.

    Parameters
    ----------
    functional
        The energy that falls, or dynamics without one.
    like
        Measures whose weights and marks the atoms have.
    geometry
        What turns the gradient of the energy into a velocity.
    space
        Where the atoms live; `Euclidean` unless the geometry brings another.
    shardable
        Whether ``like`` may be spread over ranks.
    """

    counts_reaction: bool = False
    """Whether a reaction counts in the norm of the residual."""

    name = "flows"
    remedy = "take more steps, another stepper or a larger rtol in stop=Stop(...)"
    how_to_remove = "declare the functional `removable`, so that they take no part in backward"

    def __init__(
        self,
        functional: Dynamics,
        like: DiscreteMeasure,
        geometry: Geometry = Wasserstein(),
        *,
        space: Space = Euclidean(),
        shardable: bool = False,
    ) -> None:
        self.dynamics, self.like, self.geometry, self.shardable = functional, like, geometry, shardable
        self.constrained = space != Euclidean()
        """Whether atoms live on a space that was given, and not in all of Euclidean space."""
        self.space = geometry.space or space
        self.inner = InnerProduct.of(like.points, like.weights)
        self.varies = functional.varies
        # What a sample ends with in a step must be known of all samples: it is another energy in the next one.
        self.removable = functional.removable and not functional.varies and bool(like.batch_shape)
        self.displacement: Tensor | None = None
        """Velocities are those at so displaced points, ``(*batch, n, d)``, as injected noise wants it."""
        self._autocast = forward_autocast(like.device)
        self._samples: tuple[tuple[int, ...], Tensor] | None = None  # whole batch shape, entries that are left

    @property
    def functional(self) -> Functional:
        """The energy that falls; a `ValueError` where there is none."""
        if not isinstance(self.dynamics, Functional):
            raise ValueError(
                f"functional: expected one with an energy, got {self.dynamics!r}; use Euler or Heun, and no reaction"
            )
        return self.dynamics

    def measure(self, z: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``z``."""
        return self.like.with_points(z)

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        if self.recomputes and not tensors:
            return recompute(lambda z, *t: (self.residual(z, *t),), z, *self.tensors)[0]
        there = z if self.displacement is None else self.space.kick(z, self.displacement, 0.0)
        x = None if self.displacement is None else there
        with self._autocast():
            if tensors:
                weights, *rest = tensors
                marks = None if self.like.marks is None else rest.pop(0)
                velocity: Tensor = self._open(rest, unchecked(z, weights, marks), x)
            else:
                mu, driving = unchecked(z, self.like.weights, self.like.marks), self._driving
                if self.geometry.is_wasserstein and isinstance(driving, Functional):
                    velocity = -driving.wasserstein_gradient(mu, x)
                else:
                    velocity = _velocity(driving, self.geometry, mu, x)
        if self.constrained and not (self.geometry.is_wasserstein and self.dynamics.has_energy):
            on_space = self.space.velocity if self.dynamics.is_force else self.space.tangent
            velocity = on_space(there, velocity)
        if self.displacement is not None and not self.space.is_flat:
            velocity = self.returned(z, self.space.noise(z, self.displacement), there, velocity)
        return velocity

    @cached_property
    def _driving(self) -> Dynamics:
        """The functional whose gradient is that on the space, or dynamics without one."""
        return OnSpace(self.functional, self.space) if self.constrained and self.dynamics.has_energy else self.dynamics

    def energy(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self.functional(self.measure(z))

    @property
    def keeps_nonfinite(self) -> bool:  # type: ignore[override]
        return not self.has_metric and self.inner.limit is None

    @property
    def has_metric(self) -> bool:
        """Whether vectors are measured in the metric of a space."""
        return self.constrained or self.geometry.space is not None

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        return Sizes(
            self.inner.norm(residual) if not self.has_metric else self.product(z, residual, residual).clamp_min(0).sqrt()
        )

    def product(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if not self.has_metric:
            return self.inner(a, b)
        return self.inner.of_products(self.space.inner(z, a, b))

    def moved(self, z: Tensor, step: Tensor) -> Tensor:
        return self.space.retract(z, _finite(step)) if self.has_metric else z + step

    def travelled(self, z: Tensor, step: Tensor, there: Tensor) -> Tensor:
        return self.space.travelled(z, _finite(step), there) if self.has_metric else there - z

    def carried(self, z: Tensor, step: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        return self.space.transport(z, _finite(step), *fields) if self.has_metric else fields

    def returned(self, z: Tensor, step: Tensor, there: Tensor, field: Tensor) -> Tensor:
        if self.space.is_flat:
            return field
        return self.space.transport(there, -self.space.travelled(z, step, there), field)[0]

    def kicked(self, z: Tensor, move: Tensor, variance: float | Tensor) -> Tensor:
        """Where random moves ``move`` lead from ``z``, isotropic with a ``variance`` of each coordinate, ``()`` or
        ``(*batch,)``."""
        return self.space.kick(z, move, over_atoms(variance)) if self.has_metric else z + move

    def tangent_noise(self, z: Tensor, xi: Tensor) -> Tensor:
        """Vectors at ``z`` that are standard normal in the metric of the space, of standard normal ``xi``."""
        return self.space.noise(z, xi) if self.has_metric else xi

    def slope(self, z: Tensor, velocity: Tensor) -> Tensor:
        if self.geometry.is_gradient:
            return self.product(z, velocity, velocity)
        if self.constrained:
            return self.inner(self.force(z), velocity)
        return self.geometry.slope(self.functional, self.measure(z), velocity)

    def dissipation(self, mu: DiscreteMeasure) -> Tensor:
        """Rate at which the geometry lowers the energy at ``mu``, ``(*batch,)``."""
        if not self.has_metric:
            return self.geometry.dissipation(self.functional, mu)
        there = FunctionalDescent(self.functional, mu, self.geometry, space=self.space)
        return there.slope(mu.points, there.residual(mu.points))

    def force(self, z: Tensor) -> Tensor:
        """Minus the Wasserstein gradient at the atoms ``z``, whatever the geometry; zero at atoms of mass zero."""
        return torch.where(self.like.support().unsqueeze(-1), -self.functional.wasserstein_gradient(self.measure(z)), 0.0)

    def number(self, name: str, schedule: Schedule, step: int, *, zero: bool = False) -> float | Tensor:
        """A number of a stepper, a noise or a reaction at a step, for the samples that are left.

        Parameters
        ----------
        name
            What it is called in messages.
        schedule
            A number, one for each sample of the whole flow, or a function from the number of the step to either.
        step
            Number of the step.
        zero
            Whether it may be zero.

        Raises
        ------
        ValueError
            If it is not positive (non-negative, with ``zero``) and finite, or not one for each sample.
        """
        whole, left = self._samples or (self.like.batch_shape, None)
        number = number_at(name, schedule, step, batch_shape=whole, zero=zero)
        if not isinstance(number, Tensor):
            return number
        number = number.to(self.like.device, self.like.dtype)
        return self.inner.per_sample(number if left is None or number.ndim == 0 else number[left])

    def displaced(self, displacement: Tensor) -> FunctionalDescent:
        """The same descent, with velocities taken at displaced points."""
        other = copy.copy(self)
        other.displacement = displacement
        return other

    def in_chart(self, points: Tensor) -> tuple[FunctionalDescent, InChart | None]:
        """The descent in coordinates around ``points``, in the geometry of Wasserstein, and what takes these to points.

        In Euclidean space the coordinates are the points themselves: then there is no chart.
        """
        if not self.has_metric:
            return self, None
        chart = InChart(self.functional, self.space, points, self.force(points))
        local = self._with(chart)
        local.geometry, local.space, local.constrained = Wasserstein(), Euclidean(), False
        return local, chart

    def at_step(self, step: int) -> FunctionalDescent:
        """The descent at a step, by whose number schedules may go."""
        return self

    def prepared(self: Own, z: Tensor, memory: Any, step: int, draw: Draws | None) -> tuple[Own, Any]:
        dynamics = self.dynamics
        if not dynamics.remembers:
            return self, None
        with torch.no_grad(), self._autocast():
            mu = self.measure(z.detach()).detach()
            found = dynamics.prepare(mu, memory, step, None if draw is None else draw.generator)
        other = self._with(_checked(dynamics, found, mu.batch_shape) if memory is None else found[0])
        return other, found[1]

    def _with(self: Own, dynamics: Dynamics) -> Own:
        """The descent of another functional."""
        other = copy.copy(self)
        other.dynamics = dynamics
        for name in ("_open", "tensors", "_driving"):
            other.__dict__.pop(name, None)
        return other

    def rows(self, keep: Tensor) -> FunctionalDescent:
        chosen = self._with(self.dynamics.rows(keep, self.like.batch_shape))
        chosen.like = self.like[keep]
        chosen.inner = self.inner.rows(keep)
        chosen.displacement = None if self.displacement is None else self.displacement[keep]
        whole, left = self._samples or (self.like.batch_shape, None)
        chosen._samples = whole, keep if left is None else left[keep]
        return chosen

    def at(self, here: Iterate) -> tuple[FunctionalDescent, Iterate]:
        """The descent of the points alone, and the iterate of the points."""
        return self, here

    def pack(self, mu: DiscreteMeasure) -> Tensor:
        """The iterate of a measure."""
        return mu.points

    def unseen(self, shapes: str) -> str:
        return (
            f"functional: tensors of shapes {shapes} that require grad enter {self.dynamics!r} from outside, where their "
            "gradient would be lost. Let an nn.Module hold them, as parameters or buffers: a potential that is a module "
            "instead of a function, coefficient * F, a target; or detach them"
        )

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """What the velocity may depend on besides the points."""
        given = [self.like.weights] + ([] if self.like.marks is None else [self.like.marks])
        return (*given, *self._open.tensors)

    @cached_property
    def _open(self) -> OpenModule:
        return OpenModule(_Velocity(self._driving, self.geometry))


def _checked(dynamics: Dynamics, found: object, batch_shape: tuple[int, ...]) -> Dynamics:
    """What `Dynamics.prepare` gave, once it is known to be of the same kind, and its memory to fit the batch."""
    name = f"{type(dynamics).__name__}.prepare"
    kind = Functional if dynamics.has_energy else Dynamics
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], kind)):
        wanted = f"a {kind.__name__} and a memory"
        raise ValueError(f"{name}: expected {wanted}, got {found!r}; return self.with_memory(...), memory")
    check_memory(name, found[1], batch_shape)
    return found[0]


def _finite(step: Tensor) -> Tensor:
    """A step that is zero where it is not finite: of a sample that has diverged, at which eigenvalues need not be computed."""
    return torch.where(torch.isfinite(step).all(-1, keepdim=True), step, 0.0)


class _Velocity(nn.Module):
    """The velocity of a functional in a geometry as a ``forward``: ``functional_call`` reaches nothing else."""

    def __init__(self, dynamics: Dynamics, geometry: Geometry) -> None:
        super().__init__()
        self.dynamics, self.geometry = dynamics, geometry
        self.held: Any = nn.ModuleList(v for v in vars(geometry).values() if isinstance(v, nn.Module))

    def forward(self, mu: DiscreteMeasure, x: Tensor | None) -> Tensor:
        return _velocity(self.dynamics, self.geometry, mu, x)


def _velocity(dynamics: Dynamics, geometry: Geometry, mu: DiscreteMeasure, x: Tensor | None) -> Tensor:
    if geometry.is_wasserstein:
        velocity: Tensor = dynamics.velocity(mu, x)
        return velocity
    assert isinstance(dynamics, Functional)  # other geometries are of descents
    return geometry.velocity(dynamics, mu, x)
