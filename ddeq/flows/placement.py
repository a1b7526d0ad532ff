"""Which parts of a flow make sense on a space, and whether its start lies there."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.geometries import Geometry
from ddeq.flows.noise import Noise
from ddeq.flows.steppers import Stepper
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.entropy import entropy_share
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["check_on_space"]


def check_on_space(
    functional: Dynamics, mu0: DiscreteMeasure, stepper: Stepper, geometry: Geometry, noise: Noise | None, space: Space
) -> DiscreteMeasure:
    """The start, with atoms of mass zero on the space; a `ValueError` unless the parts of a flow make sense there."""
    given = space != Euclidean()
    if given and geometry.space is not None:
        raise ValueError(
            f"space: {geometry.label} says itself how points move, and {space!r} would too; leave one of the two out"
        )
    space = geometry.space or space
    if not given and geometry.space is None:
        return mu0
    mu0 = space.admitted(mu0)
    name = stepper.label
    if not stepper.in_spaces:
        raise ValueError(
            f"stepper: {name} does not say that it keeps atoms on a space; make its steps by equation.moved(z, step) and declare "
            "in_spaces = True"
        )
    if not stepper.explicit and stepper.descends and space.has_boundary and not space.is_flat:
        raise ValueError(f"space: {name} knows no steps on a curved space with a boundary, {space!r}; use AdaptiveEuler")
    if not stepper.explicit and not geometry.is_gradient:
        raise ValueError(f"geometry: {name} knows no steps of {geometry.label} on {space!r}; use Euler or Heun")
    if given and not geometry.is_wasserstein:
        _check_geometry(functional, mu0, geometry, space)
    if stepper.draws and (space.has_boundary or not geometry.is_wasserstein):
        raise ValueError(
            f"stepper: momenta of {name} are not reflected at a boundary, nor known in {geometry.label}; use Euler with "
            "Langevin noise"
        )
    if ((noise is not None and noise.stands_for_entropy) or stepper.draws) and not space.second_order_at(mu0.points):
        raise ValueError(
            f"space: steps in {space!r} follow no geodesic to second order, and noise would get a drift that does not "
            "vanish with the step; define `retract` by the exponential map, or by a retraction of second order"
        )
    if space.is_periodic:
        _check_periodic(FunctionalDescent(functional, mu0.detach(), geometry, space=space))
    return mu0


def _check_geometry(functional: Dynamics, mu0: DiscreteMeasure, geometry: Geometry, space: Space) -> None:
    name = geometry.label
    if space.has_boundary:
        raise ValueError(
            f"geometry: {name} mixes velocities of different atoms, and what is projected at the boundary of {space!r} may lead "
            "uphill then; use Wasserstein(), or Mirror(potential, kernel), which keeps atoms inside"
        )
    if not space.induced_at(mu0.points.detach()):
        raise ValueError(
            f"geometry: {name} adds up vectors at different atoms, which the metric of {space!r} measures differently; use "
            "Wasserstein()"
        )
    share = entropy_share(functional) if geometry.replaces_entropy and isinstance(functional, Functional) else 0.0
    if isinstance(share, Tensor) or share != 0.0:
        raise ValueError(
            f"geometry: {name} integrates the entropy of the functional by parts, which is not known on {space!r}; use "
            "Langevin noise in the geometry of Wasserstein"
        )


@torch.no_grad()
def _check_periodic(descent: FunctionalDescent) -> None:
    """A function of places does not change when atoms go once around."""
    x = descent.like.points
    around = descent.space.around(x)
    odd = (torch.arange(x.shape[-2], device=x.device) % 2 == 0).unsqueeze(-1)
    there = torch.where(odd, around, x)
    velocity, again = descent.residual(x), descent.residual(there)
    zero = x.new_zeros(())
    energy, after = (descent.energy(x), descent.energy(there)) if descent.dynamics.has_energy else (zero, zero)
    tolerance = float(torch.finfo(x.dtype).eps) ** 0.4
    size = velocity.abs().amax() + again.abs().amax()
    moved = bool((velocity - again).abs().amax() > tolerance * size)
    if moved or bool(((energy - after).abs() > tolerance * (energy.abs() + after.abs())).any()):
        raise ValueError(
            f"functional: on {descent.space!r} expected a periodic one, but it changes when atoms go once around, as with a "
            "Euclidean kernel or distance; take Functional.of(lambda mu: F(mu.push_forward(torus.embed))), its target "
            "embedded too"
        )
