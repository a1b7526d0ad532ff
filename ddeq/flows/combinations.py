"""Which steppers, geometries, noises and reactions make sense together; the others are errors that say why."""

from __future__ import annotations

from ddeq.flows.geometries import Geometry
from ddeq.flows.noise import Noise
from ddeq.flows.placement import check_on_space
from ddeq.flows.reaction import Reaction
from ddeq.flows.steppers import Stepper
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.entropy import entropy_share
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure
from ddeq.spaces.space import Space

__all__ = ["check_combination"]


def check_combination(
    functional: Dynamics,
    mu0: DiscreteMeasure,
    stepper: Stepper,
    geometry: Geometry,
    noise: Noise | None,
    reaction: Reaction | None,
    space: Space,
    stop: Stop | None = None,
) -> DiscreteMeasure:
    """The start, with atoms of mass zero on the space; or a `ValueError` that says why the parts of a flow make no sense
    together, and what to do."""
    stepper_name = stepper.label
    by_energy = stop is not None and stop.metric == "energy"
    if functional.varies and (stepper.needs_gradients or by_energy):
        what = "stop: the energies" if by_energy else f"stepper: {stepper_name} learns the curvature from the gradients"
        raise ValueError(
            f"{what} of two steps do not compare, as {functional!r} is another energy in each step; use "
            + ("the metric None" if by_energy else "Euler, Optimizer or AdaptiveEuler")
        )
    if not functional.has_energy:
        _check_without_energy(functional, stepper, geometry, reaction, by_energy)
    functional = functional.example
    if stepper.needs_gradients and not geometry.is_gradient:
        raise ValueError(
            f"geometry: {stepper_name} learns the curvature from gradients, and velocities are these in the geometry of "
            f"Wasserstein, not in {geometry.label}; use AdaptiveEuler"
        )
    mu0 = check_on_space(functional, mu0, stepper, geometry, noise, space)
    if stepper.adds_entropy:
        _check_entropic_noise(f"stepper: {stepper_name} ", functional, geometry, reaction)
        if noise is not None:
            raise ValueError(f"noise: {stepper_name} has noise of its own; leave {noise.label} out")
    if noise is not None:
        name = f"noise: {noise.label} "
        if stepper.descends and stepper.explicit:
            raise ValueError(name + f"may raise the energy, by which {stepper_name} chooses its steps; use Euler or Heun")
        if noise.stands_for_entropy:
            if stepper.has_momentum:
                raise ValueError(
                    name + f"adds no entropy to steps with momentum; instead of {stepper_name} use Euler or Heun, or the stepper "
                    "Underdamped, which has noise of its own"
                )
            _check_entropic_noise(name, functional, geometry, reaction)
        elif not stepper.explicit:
            raise ValueError(
                name + f"displaces the points at which velocities are taken, and {stepper_name} follows none; use Euler or Heun"
            )
    if reaction is not None and not reaction.conserves:
        energy = functional if reaction.functional is None else reaction.functional
        if not (isinstance(energy, Functional) and energy.exact_variation):
            raise ValueError(
                f"reaction: mass is to grow and shrink by the first variation of {energy!r}, which is known up to a constant "
                "only, as where masses are normalised or must be equal. Conserve the mass, FisherRao(rate), or take an energy of "
                "measures of any mass: MMD with a positive definite kernel, SinkhornDivergence(target, reach=...), KALE, ...; a "
                "functional with a first variation of its own that is exact declares exact_variation = True"
            )
    if reaction is not None and reaction.jumps:
        if stepper.descends or stepper.has_momentum:
            why = "promises that the energy never rises" if stepper.descends else "remembers how each atom moved"
            raise ValueError(f"reaction: with birth_death atoms jump, and {stepper_name} {why}; use Euler or Heun")
        if mu0.marks is not None:
            raise ValueError("reaction: with birth_death atoms jump to others, whose marks they do not bear; take weights")
    return mu0


def _check_without_energy(
    functional: Dynamics, stepper: Stepper, geometry: Geometry, reaction: Reaction | None, by_energy: bool
) -> None:
    """A velocity field is followed in its own time, and nothing is descended."""
    why = ""
    if stepper.needs_energy or stepper.descends:
        does = "chooses its steps by energies" if stepper.descends else "takes another way than the velocity, made for an energy"
        why = f"stepper: {stepper.label} {does}; use Euler or Heun"
    elif not geometry.is_wasserstein:
        why = f"geometry: {geometry.label} turns the gradient of an energy into a velocity; leave it out"
    elif reaction is not None:
        why = f"reaction: {reaction.label} moves mass by the first variation of an energy; leave it out"
    elif by_energy:
        why = "stop: the metric 'energy' watches an energy; use the metric None, the norm of the velocity"
    if why:
        before, remedy = why.split("; ")
        raise ValueError(f"{before}, and {functional!r} has none; {remedy}")


def _check_entropic_noise(name: str, functional: Dynamics, geometry: Geometry, reaction: Reaction | None) -> None:
    if not geometry.is_gradient:
        raise ValueError(
            name
            + f"adds an entropy in the geometries of Wasserstein, Preconditioned and Mirror, whose diffusion is known, not in "
            f"{geometry.label}: add it to the functional, KLDivergence(log_density, bandwidth), of which Stein "
            f"estimates no "
            "density; a matrix or a function that multiplies gradients is Preconditioned(...)"
        )
    share = entropy_share(functional) if isinstance(functional, Functional) else 0.0
    if not (isinstance(share, float) and share == 0.0):
        raise ValueError(
            name + "stands for the entropy, which is a part of the functional already, and would count twice: leave out "
            "the noise, or the entropy, e.g. PotentialEnergy(V) instead of KLDivergence"
        )
    if reaction is not None and reaction.functional is None:
        raise ValueError(
            name + "stands for an entropy that the reaction does not see: give it the whole energy, e.g. "
            "FisherRao(rate, functional=KLDivergence(log_density, bandwidth))"
        )
