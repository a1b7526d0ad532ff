"""`check_reaction`: does a reaction move mass between atoms, and downhill?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddeq.flows import Euler, FunctionalDescent, Reaction, flow
from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.problems import Bowl, far_dead_atom, trial_batch
from ddeq.testing.purity import assert_unchanged, check_declarations, check_precision, copied, in_dtype, same_numbers, stated
from ddeq.testing.samples import HINTS, changed_neighbour, same_measure

__all__ = ["check_reaction"]

DURATION = 0.2


def check_reaction(
    reaction: Reaction,
    functional: Functional | None = None,
    mu0: DiscreteMeasure | None = None,
    *,
    conserves: bool | None = None,
    steps: int = 2,
    rtol: float = 1e-8,
) -> None:
    """Hold a reaction to what `ddeq.flow` relies on.

    The laws: weights stay non-negative and finite, and zero where they are zero; the mass stays if the reaction ``conserves`` it;
    nothing happens in no time; in a short time the energy falls at the rate that ``dissipation`` gives, which is not negative
    (reactions, T17); weights go with their atoms, however the measure is stored (measure consistency, T1), and depend on no other
    measure of the batch; ``rows`` is the reaction of those samples; float32 and float64 stay what they are.

    Parameters
    ----------
    reaction
        What to check.
    functional, mu0
        A smooth energy with removable samples, and a batch in double precision; default: a bowl and three measures.
    conserves
        Whether the mass stays; default: what the reaction declares. If not, mass may grow beyond all bounds.
    steps
        Numbers of the steps that are looked at: so many from 0.
    rtol
        Allowed relative difference where two ways of computing differ by rounding.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    check_declarations(reaction, Reaction, "Reaction", ("jumps", "conserves"))
    conserves = reaction.conserves if conserves is None else conserves
    functional = Bowl() if functional is None else functional
    mu0 = trial_batch() if mu0 is None else mu0.detach()
    with torch.no_grad():
        for step in range(steps):
            _check_weights(reaction, functional, mu0, conserves, step, rtol)
            _check_storage(reaction, functional, mu0, step, rtol)
            _check_dissipation(reaction, functional, mu0, step)
        _check_flow(reaction, functional, mu0, conserves)


def _react(
    reaction: Reaction, functional: Functional, mu: DiscreteMeasure, step: int, duration: float | Tensor = DURATION
) -> Tensor:
    return reaction.react(FunctionalDescent(functional, mu), mu, duration, step)


def _check_weights(
    reaction: Reaction, functional: Functional, mu: DiscreteMeasure, conserves: bool, step: int, rtol: float
) -> None:
    equation = FunctionalDescent(functional, mu)
    before = copied(equation=equation, mu=mu, reaction=reaction)
    with stated("react"):
        weights = reaction.react(equation, mu, DURATION, step)
        again = reaction.react(equation, mu, DURATION, step)
    assert_unchanged("purity: `react` changes what it was given", before, equation=equation, mu=mu, reaction=reaction)
    if not same_numbers(weights, again):
        raise AssertionError("purity: `react` gives other weights when it is called again; it may remember nothing")
    if (weights.shape, weights.dtype) != (mu.weights.shape, mu.dtype):
        raise AssertionError(f"react: expected weights {tuple(mu.weights.shape)}, {mu.dtype}; got {tuple(weights.shape)}")
    for name, duration in (("a short", DURATION), ("a very long", 1e4)):
        after = _react(reaction, functional, mu, step, duration)
        fine = torch.isfinite(after) if conserves else ~after.isnan()
        if not bool(((after >= 0) & fine).all()):
            raise AssertionError(
                f"non-negative weights: after {name} time, {duration:g}, the least one is {float(after.min()):.3e}; an "
                "exponential update keeps them positive, an explicit Euler step does not"
            )
        dead = after[~mu.support()]
        if bool((dead != 0).any()):
            raise AssertionError(f"atoms of mass zero: one has the mass {float(dead.max()):.3e} after {name} time")
        if conserves:
            assert_close(after.sum(-1), mu.mass(), f"mass: after {name} time it is another; conserves=False", rtol=rtol)
    still = _react(reaction, functional, mu, step, 0.0)
    assert_close(still, mu.weights, "no time: a reaction of duration 0 changes the weights", rtol=rtol)
    each = torch.full(mu.batch_shape, DURATION, dtype=mu.dtype, device=mu.device)
    law = "react: weights are others where each sample has its duration"
    with stated(law):
        assert_close(_react(reaction, functional, mu, step, each), weights, law, rtol=rtol)


def _check_storage(reaction: Reaction, functional: Functional, mu: DiscreteMeasure, step: int, rtol: float) -> None:
    """However the measure is stored, and whatever others there are in the batch."""
    weights = _react(reaction, functional, mu, step)
    after = mu.with_weights(weights)
    rate = reaction.dissipation(FunctionalDescent(functional, mu), mu, step)
    expected = {k: nu.weights for k, nu in same_measure(after).items()}
    ways = same_measure(mu) | {"adding an atom of mass zero far away, at 1e30,": far_dead_atom(mu)}
    expected |= {"adding an atom of mass zero far away, at 1e30,": far_dead_atom(after).weights}
    for change, same in ways.items():
        law, hint = f"measure consistency (T1): {change} changes", HINTS.get(change, HINTS["adding atoms of mass zero"])
        with stated(f"{law} the reaction"):
            assert_close(_react(reaction, functional, same, step), expected[change], f"{law} the weights", rtol=rtol, hint=hint)
            other = reaction.dissipation(FunctionalDescent(functional, same), same, step)
            assert_close(other, rate, f"{law} the dissipation", rtol=rtol, scale=1e-3, hint=hint)
    neighbour = changed_neighbour(mu)
    if neighbour is None:
        return
    law = "one measure at a time: the weights depend on another measure of the batch"
    actual = _react(reaction, functional, neighbour, step)[1:]
    assert_close(actual, weights[1:], law, rtol=rtol, hint=HINTS["another measure"])
    equation = FunctionalDescent(functional, mu)
    if not equation.removable or not (reaction.functional is None or reaction.functional.removable):
        return
    keep = torch.arange(mu.batch_shape[0], device=mu.device)[1:]
    law = "rows: the reaction of some samples is not that of them in the whole batch"
    with stated(law):
        left, of = reaction.rows(keep, mu.batch_shape), equation.rows(keep)
        assert_close(left.react(of, mu[keep], DURATION, step), weights[keep], law, rtol=rtol)
        assert_close(left.dissipation(of, mu[keep], step), rate[keep], f"{law} (dissipation)", rtol=rtol)


def _check_dissipation(reaction: Reaction, functional: Functional, mu: DiscreteMeasure, step: int) -> None:
    """The rate at which the energy falls in a short time."""
    equation = FunctionalDescent(functional, mu)
    with stated("dissipation"):
        rate, energy = reaction.dissipation(equation, mu, step), reaction.energy(equation)
    if rate.shape != mu.batch_shape:
        raise AssertionError(f"dissipation: expected one number for each measure, {mu.batch_shape}, got {tuple(rate.shape)}")
    if bool((rate < 0).any()):
        raise AssertionError(f"dissipation (T17): it is negative, {rate.tolist()}; the reaction would raise the energy")
    h = 1e-4
    values = [energy(mu.with_weights(_react(reaction, functional, mu, step, t))) for t in (0.0, h, 2 * h)]
    slope = (4.0 * values[1] - 3.0 * values[0] - values[2]) / (2 * h)
    law = "dissipation (T17): it is not the rate at which the energy falls in a short time"
    scale = 1e-2 * (1.0 + energy.first_variation(mu)[mu.support()].abs().max().square())
    assert_close(rate, -slope, law, rtol=1e-4, scale=scale, hint="Is the sign right, and the mean subtracted?")


def _check_flow(reaction: Reaction, functional: Functional, mu0: DiscreteMeasure, conserves: bool) -> None:
    """A flow with the reaction: the mass, no negative weight, both dtypes."""

    def end(mu: DiscreteMeasure) -> DiscreteMeasure:
        own: Any = reaction
        if own.functional is not None:
            own = replace(own, functional=in_dtype(own.functional, mu.dtype))
        generator = torch.Generator().manual_seed(0) if reaction.jumps else None
        energy = in_dtype(functional, mu.dtype)
        end: DiscreteMeasure = flow(energy, mu, Euler(0.05), steps=4, reaction=own, record=4, generator=generator).measure
        return end

    with stated("a flow with the reaction"):
        last = end(mu0)
    if bool((last.weights < 0).any()):
        raise AssertionError(f"non-negative weights: a flow ends with one of {float(last.weights.min()):.3e}")
    if conserves:
        assert_close(last.mass(), mu0.mass(), "mass: it changes along a flow", rtol=1e-8)
    check_precision(end, mu0, "a flow with the reaction")
