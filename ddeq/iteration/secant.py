"""What Anderson's and Broyden's methods share: a short history of steps, and the next step as a combination of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.equation import Equation
from ddeq.iteration.iterate import Iterate, Step
from ddeq.iteration.recent import Recent
from ddeq.iteration.samples import agreed, choose
from ddeq.iteration.status import Status

__all__ = ["History", "check_secant_options", "secant_start", "secant_step"]

Kind = Literal["II", "I", "Broyden"]

FALL, PATIENCE = 0.95, 10
"""Where so many evaluations have not brought the residual below that share, twice as many plain steps follow, and so on in
turn: they leave the neighbourhood of a least residual that is no solution, to which extrapolation would always come back."""
LEAP, BACK = 4.0, 0.25
"""An iterate that many times farther from the best one than that is from the origin, with no smaller residual, was too long a
step: the residual is flat, and its differences say little. Instead this share of the way is taken, or a smaller one."""
RETURNS = 10
"""After so many returns to its best iterate, none of which led to a better one, a sample has diverged if its residual is NaN."""


class History(NamedTuple):
    """The last differences, oldest first; coordinates of all atoms together."""

    step: int
    follows: bool
    """Whether all samples went on from the iterate itself, and none from its best one."""
    z: Tensor
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
    returns: Tensor  # to the best iterate since it was found, (*batch,)
    fallen: Tensor  # the norm of the residual when it last fell, (*batch,)
    waited: Tensor  # evaluations since then, (*batch,)


def secant_start(at: Iterate) -> History:
    """A history without entries."""
    norm = at.norm
    size = at.z.shape[norm.ndim :].numel()
    infinite, none = torch.full_like(norm, torch.inf), norm.new_zeros(*norm.shape, 0)
    nothing = torch.zeros_like(at.z)
    return History(
        step=0,
        follows=True,
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
        returns=torch.zeros_like(norm),
        fallen=infinite,
        waited=torch.zeros_like(norm),
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
    damped = z + beta * r if damping else at.image
    better = size < state.least  # false for NaN
    all_better = agreed(better)
    good, back = size <= restart * state.least, None
    if not all_better:
        leap = z - state.best
        back = _share_of_leap(equation, leap, state, better)
        good = good & (back == 0.0)
    all_good = agreed(good)
    if state.follows and not damping and at.changes is not None:
        moved, move, change = at.changes
    else:
        moved, move, change = z - state.z, damped - state.image, r - state.residual
    test = change if kind == "II" else moved
    returns = torch.zeros_like(size) if all_better else torch.where(better, 0.0, state.returns)
    if not all_good:  # what may be NaN must not enter the history, not even to be multiplied by zero
        z, r = choose(good, z, state.best), choose(good, r, state.best_residual)
        damped, returns = choose(good, damped, z + beta * r), returns + ~good
        move, change, test = (choose(good, a, torch.zeros_like(a)) for a in (move, change, test))
    fell = size < FALL * state.fallen
    waited = torch.where(fell, 0.0, state.waited + 1.0)
    following = state._replace(
        step=state.step + 1,
        follows=all_good,
        z=z,
        residual=r,
        image=damped,
        best=z if all_better else choose(better, z, state.best),
        best_residual=r if all_better else choose(better, r, state.best_residual),
        least=size if all_better else torch.where(better, size, state.least),
        returns=returns,
        fallen=torch.where(fell, size, state.fallen),
        waited=waited,
    )
    proposal, status = damped, None
    if state.step:
        following = _extended(equation, following, move, change, test, good, all_good, kind, memory, beta)
        allowed = following.used
        if state.step + 1 >= PATIENCE:  # no sample can have waited so long before
            allowed = allowed & (waited % (3 * PATIENCE) < PATIENCE).unsqueeze(-1)
        gamma = _coefficients(kind, following.system, following.against, allowed, following.squares, ridge)
        combination = (gamma.unsqueeze(-2) @ following.moves.rows).reshape(z.shape)
        # Where nothing is recorded, its own memory takes the result.
        proposal = damped - combination if torch.is_grad_enabled() else torch.sub(damped, combination, out=combination)
    if not all_good:
        retreat = state.best + _over(beta * 0.5**returns, z) * state.best_residual
        if back is not None:
            retreat = choose(back > 0.0, state.best + _over(back, z) * leap, retreat)
        proposal = choose(good, proposal, retreat)
        diverged = ~good & ~torch.isfinite(size) & (returns > RETURNS)
        status = torch.where(diverged, Status.DIVERGED.value, -1)
    return Step(proposal, following, status=status, to_image=all_good and not damping and not state.step)


def _extended(
    equation: Equation,
    state: History,
    move: Tensor,
    change: Tensor,
    test: Tensor,
    good: Tensor,
    all_good: bool,
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
    # Products with the change of the residual: what those with it have gained, so that the history is read once. What that
    # rounds away, differences of residuals have lost already.
    own = _products(change, newest)
    column = torch.cat([right[..., :-1] - state.against[..., kept], own], -1)
    column = column if all_good else choose(good, column, torch.zeros_like(column))
    below, squares = column, state.squares
    if kind != "II":
        row = _products(newest, moves.rows)
        # <s, y> = (<s, m> - <s, s>) / beta. Broyden's matrix has <s_i, s_j> / beta added where i is younger than j.
        row = (row if kind == "Broyden" else row - _products(test, tests.rows)) / beta
        below = torch.cat([row[..., :-1], column[..., -1:]], -1)  # the corner is that of the column
        squares = torch.cat([state.squares[..., kept], _products(test, newest)], -1)
    above = torch.cat([state.system[..., kept, kept], column[..., :-1, None]], -1)
    used = good.unsqueeze(-1) if not all_good else torch.ones_like(good).unsqueeze(-1)
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


@torch.no_grad()
def _share_of_leap(equation: Equation, leap: Tensor, state: History, better: Tensor) -> Tensor:
    """What to take of the way from the best iterate to the last one where that was a `LEAP`, zero elsewhere; ``(*batch,)``."""
    length, size = equation.inner.norms(leap.detach(), (state.best + state.best_residual).detach())
    far = (length > LEAP * size) & ~better
    return torch.where(far, (LEAP * size / torch.where(far, length, 1.0)).clamp_max(BACK), 0.0)


def _coefficients(kind: Kind, system: Tensor, right: Tensor, used: Tensor, squares: Tensor, ridge: float | None) -> Tensor:
    """Regularised least-squares coefficients of the used entries, zero elsewhere; ``(*batch, k)``.

    Each unknown is scaled such that its column has norm one, and ``ridge`` is added to the unit diagonal of the normal
    equations, which are solved in double precision.
    """
    dtype = system.dtype
    if ridge is None:
        ridge = (100.0 if dtype == torch.float64 else 10.0) * torch.finfo(dtype).eps ** (2 / 3)
    system, right = system.double(), right.double()
    if kind == "II":
        normal, columns = system, system.diagonal(dim1=-2, dim2=-1)
    else:
        used = used & (squares > 0)
        scale = torch.where(used, squares.double(), torch.inf).rsqrt()
        system = system * scale.unsqueeze(-1) * used.unsqueeze(-2)
        normal, right = system.mT @ system, (system.mT @ (right * scale).unsqueeze(-1)).squeeze(-1)
        columns = normal.diagonal(dim1=-2, dim2=-1)
    used = used & (columns > 0)
    if agreed(used):
        scale, diagonal = columns.rsqrt(), ridge
    else:  # an entry that is not used has a row of zeros: one on its diagonal makes its coefficient zero
        scale, diagonal = torch.where(used, columns, torch.inf).rsqrt(), torch.full_like(columns, ridge)
        diagonal.masked_fill_(~used, 1.0)
    normal = normal * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    normal.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    solution: Tensor = torch.linalg.solve_ex(normal, right * scale).result
    return (solution * scale).to(dtype).contiguous()  # products with strided ones are much slower


def _over(number: Tensor, field: Tensor) -> Tensor:
    """A number for each sample, to multiply fields with."""
    return number.reshape(*number.shape, *(1,) * (field.ndim - number.ndim))


def check_secant_options(memory: int, damping: float, ridge: float | None, restart: float) -> None:
    """Raise a `ValueError` that names the option that is outside its range."""
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(f"memory: expected a whole number >= 1, got {memory!r}")
    if not 0.0 <= damping < 1.0:
        raise ValueError(f"damping: expected 0 <= damping < 1, got {damping}")
    if ridge is not None and not 0.0 <= ridge < 1.0:
        raise ValueError(f"ridge: expected 0 <= ridge < 1, got {ridge}")
    if not restart > 1.0:
        raise ValueError(f"restart: expected a factor > 1, got {restart}")
