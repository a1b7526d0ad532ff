"""What Anderson's and Broyden's methods share: a short history of steps, and the next step as a combination of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.coefficients import Kind, coefficients
from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.recent import Recent
from ddeq.iteration.samples import agreed, choose
from ddeq.iteration.status import Status

__all__ = ["History", "check_secant_options", "secant_start", "secant_step"]

FALL, PATIENCE, PLAIN = 0.95, 10, 20
"""Where `PATIENCE` evaluations, or two more than the memory, have not brought the residual below that share, `PLAIN` plain steps
from the best iterate follow, and so on in turn: they leave the neighbourhood of a least residual that is no solution, to which
extrapolation would always come back. On a linear equation the residual may not fall before there are as many differences as
unknowns."""
FAR, TRIAL = 4.0, 0.25
"""A step to no smaller residual that leads this many times farther from the best iterate than that is from the origin is tried
first to this share of its length, or a smaller one: the residual may be flat there, and its differences say little."""
AFFINE = 0.1
"""The whole step counts after all if the residual at the trial is that of an affine function, to this share of its change: on
linear equations steps are long before the last one."""
LOST = 10.0
"""Where that many rounding units of the size are more than the least residual so far, a smaller one means nothing: far enough
away every residual is zero to rounding."""
RETURNS = 2000
"""A sample whose residual is NaN has diverged when its `History.returns` are more."""


class History(NamedTuple):
    """The last differences, oldest first; coordinates of all atoms together."""

    step: int
    follows: bool
    """Whether all samples went on from the last iterate."""
    tries: bool
    """Whether some sample may be at a trial."""
    z: Tensor  # what the last step started from
    residual: Tensor
    image: Tensor  # damped: z + beta * residual
    tests: Recent  # masses times what tests the equations: changes of residuals, or of iterates
    moves: Recent  # differences of damped images, which is what the next iterate is made of
    system: Tensor  # the equations of the coefficients, (*batch, k, k)
    squares: Tensor  # squared norms of the changes that test, (*batch, k); of type II they are the diagonal of the system
    against: Tensor  # products of the residual with the tests, (*batch, k)
    used: Tensor  # which of them count, (*batch, k)
    best: Tensor  # iterate of least residual
    best_residual: Tensor
    least: Tensor  # the norm of that, (*batch,)
    returns: Tensor  # to the best iterate since it was found, each twice the last and one where residuals are NaN; (*batch,)
    fallen: Tensor  # the norm of the residual when it last fell, (*batch,)
    waited: Tensor  # evaluations since then, (*batch,)
    trial: Tensor  # share of a long step that is being tried, zero where none is, (*batch,)
    next: Tensor  # where the sample goes on if the long step counts
    affine: Tensor  # length of the longest step along which the residual was affine; -1 where it was not along one; (*batch,)


class _Verdict(NamedTuple):
    """How each sample goes on, ``(*batch,)`` each: from the iterate, from the end of the step that was tried, or else from its
    best iterate."""

    goes_on: Tensor
    resumes: Tensor
    trial: Tensor  # share of the step to the iterate that is tried first, or zero
    leap: Tensor  # that step, from the best iterate; a field


def secant_start(at: Iterate) -> History:
    """A history without entries."""
    norm = at.norm
    size = at.z.shape[norm.ndim :].numel()
    infinite, none, zero = torch.full_like(norm, torch.inf), norm.new_zeros(*norm.shape, 0), torch.zeros_like(norm)
    nothing = torch.zeros_like(at.z)
    return History(
        step=0,
        follows=True,
        tries=False,
        z=at.z,
        residual=nothing,
        image=at.z,
        tests=Recent.empty(norm, size),
        moves=Recent.empty(norm, size),
        system=norm.new_zeros(*norm.shape, 0, 0),
        squares=none,
        against=none,
        used=none > 0,
        best=at.z,
        best_residual=nothing,
        least=infinite,
        returns=zero,
        fallen=infinite,
        waited=zero,
        trial=zero,
        next=at.z,
        affine=zero,
    )


def secant_step(
    equation: Equation,
    at: Iterate,
    state: History,
    kind: Kind,
    *,
    memory: int,
    damping: float,
    ridge: float | None,
    restart: float,
) -> Step:
    """The next iterate, ``z + beta * r`` minus the combination of moves that the equations of ``kind`` give."""
    beta, z, r, size = 1.0 - damping, at.z, at.residual, at.norm
    better = (size < state.least) & (LOST * torch.finfo(size.dtype).eps * at.size < state.least)  # false for NaN
    fell = size < FALL * state.fallen
    waited = torch.where(fell, 0.0, state.waited + 1.0)
    patience, plain = max(PATIENCE, memory + 2), None
    if state.step + 1 >= patience:  # no sample can have waited so long before
        plain = waited % (patience + PLAIN) - patience  # plain steps so far, if not negative
    verdict = None
    if state.tries or not agreed(better):
        tried = state.tries  # then products in the history may be those of another residual
        state, verdict = _judged(equation, at, state, better, restart, beta)
        goes_on = verdict.goes_on & (verdict.trial == 0.0)
        if not tried and agreed(goes_on if plain is None else goes_on & (plain != 0.0)):
            verdict = None
    if state.follows and not damping and at.changes is not None:
        moved, move, change = at.changes
        damped = at.image
    else:
        damped = z + beta * r if damping else at.image
        moved, move, change = z - state.z, damped - state.image, r - state.residual
    test = change if kind == "II" else moved
    following = state._replace(
        step=state.step + 1,
        follows=verdict is None,
        tries=False,
        z=z,
        residual=r,
        image=damped,
        best=choose(better, z, state.best),
        best_residual=choose(better, r, state.best_residual),
        least=torch.where(better, size, state.least),
        returns=torch.where(better, 0.0, state.returns),
        fallen=torch.where(fell, size, state.fallen),
        waited=waited,
    )
    seen = None  # samples with a new difference; None: all
    if verdict is not None:
        seen = verdict.goes_on
        from_here = seen
        if plain is not None:
            from_here = seen & (plain != 0.0)
            verdict = verdict._replace(trial=torch.where(from_here, verdict.trial, 0.0))
        following = _started(following, state, from_here, verdict.resumes, beta)
        # What may be NaN must not enter the history, not even to be multiplied by zero.
        move, change, test = (choose(seen, a, torch.zeros_like(a)) for a in (move, change, test))
    proposal, status = following.image, None
    if state.step:
        following = _extended(equation, following, move, change, test, seen, kind, memory, beta)
        allowed = following.used if plain is None else following.used & (plain < 0.0).unsqueeze(-1)
        gamma = coefficients(kind, following.system, following.against, allowed, following.squares, ridge)
        combination = (gamma.unsqueeze(-2) @ following.moves.rows).reshape(z.shape)
        # Where nothing is recorded, its own memory takes the result.
        out = None if torch.is_grad_enabled() else combination
        proposal = torch.sub(following.image, combination, out=out)
    if verdict is not None:
        proposal, following, status = _directed(proposal, following, state, verdict, size, beta)
    return Step(proposal, following, status=status, to_image=verdict is None and not damping and not state.step)


def _judged(
    equation: Equation, at: Iterate, state: History, better: Tensor, restart: float, beta: float
) -> tuple[History, _Verdict]:
    """How samples go on that have no smaller residual or are at a trial; and the history, once trials have been judged."""
    resumes, failed = torch.zeros_like(better), torch.zeros_like(better)
    if state.tries:
        state, resumes, failed = _after_trial(equation, at.residual, state, restart, beta)
    leap, size = at.z - state.best, at.norm
    length, distance, image = equation.inner.norms(leap, state.best, state.best + state.best_residual)
    scale = torch.maximum(image, 0.25 * distance)
    finite, exploded, known = torch.isfinite(size), ~(size <= restart * state.least), length <= FAR**2 * state.affine
    suspect = ((length > FAR * scale) | (exploded & (state.affine >= 0.0))) & finite & ~known & ~better
    goes_on = (suspect | ~exploded | (finite & known)) & (better | ~failed) & ~resumes
    share = (FAR * scale / torch.where(suspect, length, 1.0)).clamp_max(TRIAL)
    return state, _Verdict(goes_on, resumes, torch.where(suspect & goes_on, share, 0.0), leap)


def _after_trial(
    equation: Equation, residual: Tensor, state: History, restart: float, beta: float
) -> tuple[History, Tensor, Tensor]:
    """Which samples resume after a trial with this ``residual``, ``(*batch,)``; for which the long step was an explosion and
    nothing else; and the history, without the long steps that do not count."""
    tried, best = state.trial > 0.0, state.best_residual
    with torch.no_grad():
        expected = best + _over(state.trial, best) * (state.residual - best)
        miss, change, length, end = equation.inner.norms(
            residual - expected, residual - best, state.z - state.best, state.residual
        )
    resumes = tried & (miss < AFFINE * change)  # where the residual has not changed at all, it is flat
    failed = tried & ~resumes
    affine = torch.where(resumes, torch.maximum(length, state.affine), torch.where(failed, -1.0, state.affine))
    state = state._replace(affine=affine, trial=torch.zeros_like(affine))
    if not agreed(~failed):
        used = torch.cat([state.used[..., :-1], state.used[..., -1:] & ~failed.unsqueeze(-1)], -1)
        state = _started(state._replace(used=used), state, ~failed, torch.zeros_like(failed), beta)
    return state, resumes, failed & (end > restart * state.least)


def _started(following: History, state: History, from_here: Tensor, resumes: Tensor, beta: float) -> History:
    """``following`` where samples go on ``from_here``, ``state`` where they resume, and from their best iterates elsewhere."""
    best = (following.best, following.best_residual, following.best + beta * following.best_residual)
    here = (following.z, following.residual, following.image)
    last = (state.z, state.residual, state.image)
    z, residual, image = (choose(from_here, a, choose(resumes, b, c)) for a, b, c in zip(here, last, best, strict=True))
    return following._replace(z=z, residual=residual, image=image, follows=False)


def _directed(
    proposal: Tensor, following: History, state: History, verdict: _Verdict, size: Tensor, beta: float
) -> tuple[Tensor, History, Tensor]:
    """The step of each sample by its verdict: the ``proposal``, a trial of the step before it, the proposal from before a trial,
    or a part of the plain step from the best iterate; and which samples have diverged."""
    back = ~(verdict.goes_on | verdict.resumes)
    finite = torch.isfinite(size)
    returns = torch.where(back, torch.where(finite, following.returns + 1.0, 2.0 * following.returns + 1.0), following.returns)
    shorter = following.best + _over(beta * 0.5**returns, proposal) * following.best_residual
    proposal = choose(back, shorter, choose(verdict.resumes, state.next, proposal))
    status = torch.where(back & ~finite & (returns > RETURNS), Status.DIVERGED.value, -1)
    following = following._replace(returns=returns, trial=verdict.trial, tries=not agreed(verdict.trial == 0.0), next=proposal)
    partly = state.best + _over(verdict.trial, proposal) * verdict.leap
    return choose(verdict.trial > 0.0, partly, proposal), following, status


def _extended(
    equation: Equation,
    state: History,
    move: Tensor,
    change: Tensor,
    test: Tensor,
    seen: Tensor | None,
    kind: Kind,
    memory: int,
    beta: float,
) -> History:
    """The history with the differences of the last step, and without the oldest ones where there are too many."""
    weights, dims = equation.inner.field_weights, equation.inner.dims
    kept = slice(max(0, state.used.shape[-1] + 1 - memory), None)

    def weighted(place: Tensor | None) -> Tensor:
        if place is None:
            return (weights * test).flatten(-dims)
        torch.mul(test, weights, out=place.unflatten(-1, test.shape[-dims:]) if dims > 1 else place)
        return place

    tests = state.tests.appended(weighted, memory)
    moves = state.moves.appended(lambda place: move.flatten(-dims), memory)
    newest, right = tests.rows[..., -1:, :], _products(state.residual, tests.rows)
    if seen is None:
        # Products with the change of the residual: what those with it have gained, so that the history is read once. What that
        # rounds away, differences of residuals have lost already.
        column = torch.cat([right[..., :-1] - state.against[..., kept], _products(change, newest)], -1)
        used = torch.ones_like(right[..., :1], dtype=torch.bool)
    else:
        column, used = _products(change, tests.rows), seen.unsqueeze(-1)
    below, squares = column, state.squares
    if kind != "II":
        row = _products(newest, moves.rows)
        # <s, y> = (<s, m> - <s, s>) / beta. Broyden's matrix has <s_i, s_j> / beta added where i is younger than j.
        row = (row if kind == "Broyden" else row - _products(test, tests.rows)) / beta
        below = torch.cat([row[..., :-1], column[..., -1:]], -1)  # the corner is that of the column
        squares = torch.cat([state.squares[..., kept], _products(test, newest)], -1)
    above = torch.cat([state.system[..., kept, kept], column[..., :-1, None]], -1)
    return state._replace(
        tests=tests,
        moves=moves,
        system=torch.cat([above, below.unsqueeze(-2)], -2),
        squares=squares,
        against=right,
        used=torch.cat([state.used[..., kept], used], -1),
    )


def _products(field: Tensor, rows: Tensor) -> Tensor:
    """Inner products of all coordinates of a field with the rows ``(*batch, k, size)``; ``(*batch, k)``."""
    return (field.reshape(*rows.shape[:-2], 1, -1) @ rows.mT).squeeze(-2)


def _over(number: Tensor, field: Tensor) -> Tensor:
    """A number for each sample, to multiply fields with."""
    return number.reshape(*number.shape, *(1,) * (field.ndim - number.ndim))


def check_secant_options(damping: float, ridge: float | None, restart: float) -> None:
    """Raise a `ValueError` that names the option that is outside its range."""
    if not 0.0 <= damping < 1.0:
        raise ValueError(f"damping: expected 0 <= damping < 1, got {damping}")
    if ridge is not None and not 0.0 <= ridge < 1.0:
        raise ValueError(f"ridge: expected 0 <= ridge < 1, got {ridge}")
    if not restart > 1.0:
        raise ValueError(f"restart: expected a factor > 1, got {restart}")
