"""`check_stepper`: does a stepper of flows keep to what the library relies on?"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ddeq.flows import FisherRao, FunctionalDescent, Stepper, flow
from ddeq.functionals import PotentialEnergy
from ddeq.functionals.base import Functional
from ddeq.iteration import Equation, Iterate, Outcome, Stop, iterate
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.methods import Moment, check_batches, check_pure
from ddeq.testing.problems import Bowl, trial_batch
from ddeq.testing.purity import check_consistency, check_declarations, check_precision, in_dtype, quiet, stated

__all__ = ["check_stepper"]

STIFFNESS = 1e4
"""Of the energy on which steppers that promise descent are tried: steps of 0.1 are then a thousand times too long."""


def check_stepper(
    stepper: Stepper,
    functional: Functional | None = None,
    mu0: DiscreteMeasure | None = None,
    *,
    stop: Stop = Stop(rtol=0.1, max_steps=200),
    exact: bool = True,
    rtol: float = 1e-6,
) -> None:
    """Hold a stepper to what `ddeq.flow` relies on.

    The laws: declared capabilities are of the right type and true; ``init`` and ``step`` are pure, and their state has an entry
    for each sample; each sample of a batch gets what it gets alone, whether finished ones leave the computation or not; float32
    and float64 stay what they are, whatever torch's default; a flow is one of measures (measure consistency, T1); the energy is
    lower after some steps, and is what a step says that it is. A stepper that ``descends`` never raises the energy, not by a step
    that is a thousand times too long either (dissipation, T10). One without momentum leaves atoms whose velocity is zero. One
    that is ``explicit`` follows the velocity that it is given. A flow that goes on from its trajectory takes the path that it
    would have taken without a break. Autograd records the steps of one that is ``differentiable``.

    Parameters
    ----------
    stepper
        What to check, with a step size that is right for the functional.
    functional, mu0
        A smooth energy, and a batch in double precision to flow from; default: a bowl whose gradient has derivatives of about
        one, and three measures.
    stop
        When a sample of the batch has finished.
    exact
        Whether derivatives of the steps are exact, and not with something held constant; else only that they are finite.
    rtol
        Allowed relative difference where two ways of computing differ by rounding.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    of_steppers = ("descends", "explicit", "has_momentum", "needs_gradients", "superlinear")
    of_methods = ("removable", "differentiable", "recovers", "ends_when_still")
    check_declarations(stepper, Stepper, "Stepper", of_steppers + of_methods)
    if stepper.has_momentum and stepper.ends_when_still:
        raise AssertionError("typed capabilities: a stepper with momentum may move again, and declares ends_when_still")
    mu0 = trial_batch() if mu0 is None else mu0.detach()
    if functional is None:  # of samples that come to rest at different times
        functional = torch.tensor([1.5, 0.8, 0.4], dtype=mu0.dtype) * Bowl() if mu0.batch_shape == (3,) else Bowl()
    equation = FunctionalDescent(functional, mu0)

    def run(of: Equation, stop: Stop) -> Outcome:
        assert isinstance(of, FunctionalDescent)
        return iterate(of, stop, z=of.like.points, method=stepper, patient=True, best=False)

    def few_steps(mu: DiscreteMeasure) -> Tensor:
        found: Tensor = flow(in_dtype(functional, mu.dtype), mu, stepper, steps=4, record=4).measure.points
        return found

    with torch.no_grad(), quiet():
        moments = check_pure(stepper, equation, mu0.points, steps=5)
        _check_energies(moments)
        if equation.removable:
            check_batches(run, stepper, moments, equation, stop, few=4, rtol=rtol)
        check_consistency(few_steps, mu0, "the flow", rtol=rtol)
        check_precision(few_steps, mu0, "a flow")
        if not _holds_samples(stepper):
            _check_shapes(stepper, rtol)
        _check_going_on(stepper, functional, mu0, rtol)
        _check_reaction(stepper, functional, mu0)
        _check_stillness(stepper, mu0, moments)
        if stepper.explicit:
            _check_follows(stepper, moments[-1])
        if stepper.descends:
            _check_descent(stepper, mu0)
    if stepper.differentiable:
        with quiet():
            _check_recorded(stepper, functional, mu0, exact, rtol)


def _check_energies(moments: list[Moment]) -> None:
    """The energy after all steps is lower, and what the steps say; durations are times."""
    first, last = moments[0], moments[-1]
    before, after = first.equation.energy(first.at.z), last.equation.energy(last.step.z)
    rounding = 1e2 * torch.finfo(before.dtype).eps * before.abs()
    if bool((after > before + rounding).any()):
        raise AssertionError(
            f"direction: {len(moments)} steps take the energy from {before.tolist()} to {after.tolist()}; the velocity points "
            "downhill, at.z + step_size * at.residual"
        )
    for number, moment in enumerate(moments):
        step, wanted = moment.step, moment.equation.energy(moment.step.z)
        if step.energy is not None:
            assert_close(step.energy, wanted, f"energy: step {number} says one that is not that of its points")
        if step.duration is None:
            raise AssertionError(f"duration: step {number} does not say how much time it took; Step(z, state, duration=...)")
        time = torch.as_tensor(step.duration)
        if not bool(((time >= 0) & torch.isfinite(time)).all()):
            raise AssertionError(f"duration: step {number} takes the time {time.tolist()}; expected numbers >= 0")


def _holds_samples(stepper: Any) -> bool:
    """Whether an option has a number for each sample, of this batch and no other."""
    options = [getattr(stepper, field.name) for field in fields(stepper)]
    return any(isinstance(option, Tensor) and option.ndim > 0 for option in options)


def _check_shapes(stepper: Stepper, rtol: float) -> None:
    """The same flow of a single measure, and in batches of other shapes."""
    mu = trial_batch()
    expected = flow(Bowl(), mu, stepper, steps=3, record=3).measure.points[0]
    for shape, other in (((), mu[0]), ((3, 1), mu[:, None]), ((1, 3), mu[None])):
        law = f"batches: a flow in a batch of shape {shape}"
        with stated(law):
            points = flow(Bowl(), other, stepper, steps=3, record=3).measure.points
        assert_close(points.flatten(0, -3)[0] if shape else points, expected, f"{law} takes another path", rtol=rtol)


def _check_going_on(stepper: Stepper, functional: Functional, mu0: DiscreteMeasure, rtol: float) -> None:
    """A flow that goes on from its trajectory takes the path that it would have taken: the state is in tensors."""
    law = "going on: a flow that goes on from its trajectory takes another path than one without a break"
    with stated(law):
        whole = flow(functional, mu0, stepper, steps=6, record=6).measure
        first = flow(functional, mu0, stepper, steps=3, record=3)
        second = flow(functional, first, stepper, steps=3, record=3).measure
    hint = "What a step remembers must be tensors in its state; the number of the step is at.step."
    assert_close(second.points, whole.points, law, rtol=rtol, hint=hint)


def _check_reaction(stepper: Stepper, functional: Functional, mu0: DiscreteMeasure) -> None:
    """A flow in which weights move too: it is finite, and descends if the stepper does."""
    with stated("a flow with the reaction FisherRao()"):
        trajectory = flow(functional, mu0, stepper, steps=4, reaction=FisherRao(), record=1)
    energies = trajectory.energies
    if not bool(torch.isfinite(energies).all()):
        raise AssertionError(f"a flow with the reaction FisherRao(): energies {energies.flatten().tolist()[:6]} are not finite")
    rise = float(energies.diff(dim=0).max())
    if stepper.descends and rise > 1e2 * torch.finfo(energies.dtype).eps * float(energies.abs().max()):
        raise AssertionError(f"dissipation (T10): in a flow with the reaction FisherRao() a step raises the energy by {rise:.3e}")


def _check_stillness(stepper: Stepper, mu0: DiscreteMeasure, moments: list[Moment]) -> None:
    """After some steps, one where the energy is flat: without momentum atoms stay where they are."""
    if stepper.has_momentum and not stepper.ends_when_still:
        return
    moment = moments[-1]
    flat = FunctionalDescent(PotentialEnergy(lambda x: 0.0 * x.sum(-1)), mu0)
    nothing, zero = torch.zeros_like(moment.at.z), torch.zeros_like(moment.at.norm)
    still = Iterate(moment.at.z, nothing, zero, moment.at.size, moment.at.step)
    law = f"has_momentum: {type(stepper).__name__} says that atoms rest where the velocity is zero"
    with stated(law):
        moved = (stepper.step(flat, still, moment.state).z - still.z).abs().max()
    if moved > 0:
        raise AssertionError(f"{law}, and its step moves them by {float(moved):.3e}; declare has_momentum = True")


def _check_follows(stepper: Stepper, moment: Moment) -> None:
    """Another velocity leads to another step."""
    g = torch.Generator().manual_seed(4)
    noise = torch.randn(moment.at.z.shape, generator=g, dtype=moment.at.z.dtype).to(moment.at.z.device)
    size = moment.at.residual.abs().max().clamp_min(1e-3)
    with stated("explicit: a step along another velocity"):
        other = stepper.step(moment.equation, replace(moment.at, residual=moment.at.residual + 0.3 * size * noise), moment.state)
    if torch.equal(other.z, moment.step.z):
        raise AssertionError(
            f"explicit: {type(stepper).__name__} says that it follows at.residual, and another one leads to the same "
            "points; NoiseInjection would do nothing. Declare explicit = False"
        )


def _check_descent(stepper: Stepper, mu0: DiscreteMeasure) -> None:
    """No step raises the energy, neither on a gentle functional nor on a stiff one."""
    for stiffness in (1.0, STIFFNESS):
        functional = Bowl(stiffness)
        law = f"dissipation (T10): {type(stepper).__name__} says that it descends"
        with stated(law):
            energies = flow(functional, mu0, stepper, steps=8, record=1).energies
        rise = energies.diff(dim=0).amax(0)
        if bool((rise > 1e2 * torch.finfo(energies.dtype).eps * energies.abs().amax(0)).any()):
            raise AssertionError(
                f"{law}, and a step raises the energy by {float(rise.max()):.3e}, from {float(energies[0].max()):.3e}, "
                f"where the stiffness is {stiffness:g}"
            )
        if not bool(torch.isfinite(energies).all()):
            raise AssertionError(f"{law}, and the energy is not finite where the stiffness is {stiffness:g}")


def _check_recorded(stepper: Stepper, functional: Functional, mu0: DiscreteMeasure, exact: bool, rtol: float) -> None:
    """Derivatives of a short flow in its start against finite differences."""
    g = torch.Generator().manual_seed(1)
    live = mu0.support().unsqueeze(-1)
    direction, weights = (torch.randn(mu0.points.shape, generator=g, dtype=mu0.dtype).to(mu0.device) * live for _ in range(2))

    def loss(points: Tensor) -> Tensor:
        trajectory = flow(functional, mu0.with_points(points), stepper, steps=3, record=3)
        found: Tensor = (trajectory.measure.points * weights).sum()
        return found

    law = "differentiable: derivatives of three steps that autograd recorded"
    points = mu0.points.clone().requires_grad_()
    with torch.enable_grad(), stated(law):
        value = loss(points)
        if not value.requires_grad:
            raise AssertionError(f"{law}: the result does not depend on the start; is something detached?")
        (gradient,) = torch.autograd.grad(value, points)
    if not bool(torch.isfinite(gradient).all()):
        raise AssertionError(f"{law}: not finite")
    if exact:
        h = 1e-5
        with torch.no_grad():
            difference = (loss(mu0.points + h * direction) - loss(mu0.points - h * direction)) / (2 * h)
        assert_close((gradient * direction).sum(), difference, f"{law} and finite differences", rtol=max(1e-4, rtol), scale=0.1)
