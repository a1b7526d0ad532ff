"""Which steppers, geometries, noises and reactions make sense together; the others are errors that say why."""

from __future__ import annotations

from ddeq.flows.geometries import Geometry
from ddeq.flows.noise import Noise
from ddeq.flows.reaction import Reaction
from ddeq.flows.steppers import Stepper
from ddeq.functionals.base import Functional
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.entropy import split_entropy
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure

__all__ = ["check_combination"]


def check_combination(
    functional: Dynamics,
    mu0: DiscreteMeasure,
    stepper: Stepper,
    geometry: Geometry,
    noise: Noise | None,
    reaction: Reaction | None,
    stop: Stop | None = None,
) -> None:
    """Raise a `ValueError` that says why, and what to do, unless the parts of a flow make sense together."""
    stepper_name = type(stepper).__name__
    by_energy = stop is not None and stop.metric == "energy"
    if functional.varies and (stepper.needs_gradients or by_energy):
        what = "stop: the energies" if by_energy else f"stepper: {stepper_name} learns the curvature from the gradients"
        raise ValueError(
            f"{what} of two steps do not compare, as {functional!r} is another energy in each step; use "
            + ("the metric None" if by_energy else "Euler, Optimizer or AdaptiveEuler")
        )
    if not functional.has_energy:
        _check_without_energy(functional, stepper, geometry, reaction, by_energy)
    if stepper.needs_gradients and not geometry.is_wasserstein:
        raise ValueError(
            f"geometry: {stepper_name} learns the curvature from gradients, and velocities are these in the geometry of "
            f"Wasserstein, not in {type(geometry).__name__}; use AdaptiveEuler"
        )
    if noise is not None:
        name = f"noise: {type(noise).__name__} "
        if stepper.descends and stepper.explicit:
            raise ValueError(name + f"may raise the energy, by which {stepper_name} chooses its steps; use Euler or Heun")
        if noise.stands_for_entropy:
            _check_entropic_noise(name, functional.example, stepper, geometry, reaction)
        elif not stepper.explicit:
            raise ValueError(
                name + f"displaces the points at which velocities are taken, and {stepper_name} follows none; use Euler or Heun"
            )
    if reaction is not None and reaction.jumps:
        if stepper.descends or stepper.has_momentum:
            why = "promises that the energy never rises" if stepper.descends else "remembers how each atom moved"
            raise ValueError(f"reaction: with birth_death atoms jump, and {stepper_name} {why}; use Euler or Heun")
        if mu0.marks is not None:
            raise ValueError("reaction: with birth_death atoms jump to others, whose marks they do not bear; take weights")


def _check_without_energy(
    functional: Dynamics, stepper: Stepper, geometry: Geometry, reaction: Reaction | None, by_energy: bool
) -> None:
    """A velocity field is followed in its own time, and nothing is descended."""
    why = ""
    if stepper.needs_energy or stepper.descends:
        name = type(stepper).__name__
        does = (
            "chooses its steps by energies"
            if stepper.descends
            else "takes another way than the velocity, made for the descent of an energy"
        )
        why = f"stepper: {name} {does}; use Euler or Heun"
    elif not geometry.is_wasserstein:
        why = f"geometry: {type(geometry).__name__} turns the gradient of an energy into a velocity; leave it out"
    elif reaction is not None:
        why = f"reaction: {type(reaction).__name__} moves mass by the first variation of an energy; leave it out"
    elif by_energy:
        why = "stop: the metric 'energy' watches an energy; use the metric None, the norm of the velocity"
    if why:
        before, remedy = why.split("; ")
        raise ValueError(f"{before}, and {functional!r} has none; {remedy}")


def _check_entropic_noise(
    name: str, functional: Dynamics, stepper: Stepper, geometry: Geometry, reaction: Reaction | None
) -> None:
    if stepper.has_momentum:
        raise ValueError(name + f"adds no entropy to steps with momentum; use Euler or Heun instead of {type(stepper).__name__}")
    if not geometry.is_wasserstein:
        raise ValueError(
            name + f"adds an entropy in the geometry of Wasserstein, not in {type(geometry).__name__}: there add it to the "
            "functional, KLDivergence(log_density, bandwidth), of which Stein estimates no density"
        )
    share = split_entropy(functional)[1] if isinstance(functional, Functional) else 0.0
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
