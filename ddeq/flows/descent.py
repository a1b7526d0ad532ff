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
from ddeq.flows.schedules import Schedule, number_at
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.iteration import Descent, InnerProduct, Iterate
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.memory import check_memory

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
    shardable
        Whether ``like`` may be spread over ranks.
    """

    counts_reaction: bool = False
    """Whether a reaction counts in the norm of the residual."""

    name = "flows"
    remedy = "take more steps, another stepper or a larger rtol in stop=Stop(...)"
    how_to_remove = "declare the functional `removable`, so that they take no part in backward"

    def __init__(
        self, functional: Dynamics, like: DiscreteMeasure, geometry: Geometry = Wasserstein(), *, shardable: bool = False
    ) -> None:
        self.dynamics, self.like, self.geometry, self.shardable = functional, like, geometry, shardable
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
        x = None if self.displacement is None else z + self.displacement
        with self._autocast():
            if not tensors and self.geometry.is_wasserstein:
                return self.dynamics.velocity(self.like.with_points(z), x)
            if not tensors:
                return self.geometry.velocity(self.functional, self.like.with_points(z), x)
            weights, *rest = tensors
            marks = None if self.like.marks is None else rest.pop(0)
            velocity: Tensor = self._open(rest, unchecked(z, weights, marks), x)
        return velocity

    def energy(self, z: Tensor) -> Tensor:
        with self._autocast():
            return self.functional(self.measure(z))

    def slope(self, z: Tensor, velocity: Tensor) -> Tensor:
        if self.geometry.is_wasserstein:
            return self.inner(velocity, velocity)
        return self.geometry.slope(self.functional, self.measure(z), velocity)

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
        other.__dict__.pop("_open", None)
        other.__dict__.pop("tensors", None)
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
        return OpenModule(_Velocity(self.dynamics, self.geometry))


def _checked(dynamics: Dynamics, found: object, batch_shape: tuple[int, ...]) -> Dynamics:
    """What `Dynamics.prepare` gave, once it is known to be of the same kind, and its memory to fit the batch."""
    name = f"{type(dynamics).__name__}.prepare"
    kind = Functional if dynamics.has_energy else Dynamics
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], kind)):
        wanted = f"a {kind.__name__} and a memory"
        raise ValueError(f"{name}: expected {wanted}, got {found!r}; return self.with_memory(...), memory")
    check_memory(name, found[1], batch_shape)
    return found[0]


class _Velocity(nn.Module):
    """The velocity of a functional in a geometry as a ``forward``: ``functional_call`` reaches nothing else."""

    def __init__(self, dynamics: Dynamics, geometry: Geometry) -> None:
        super().__init__()
        self.dynamics, self.geometry = dynamics, geometry
        self.held: Any = nn.ModuleList(v for v in vars(geometry).values() if isinstance(v, nn.Module))

    def forward(self, mu: DiscreteMeasure, x: Tensor | None) -> Tensor:
        if self.geometry.is_wasserstein:
            return self.dynamics.velocity(mu, x)
        assert isinstance(self.dynamics, Functional)  # other geometries are of descents
        return self.geometry.velocity(self.dynamics, mu, x)
