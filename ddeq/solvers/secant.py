"""What Anderson's and Broyden's methods share: a short history of steps, and the next step as a combination of it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.loop import agreed, choose
from ddeq.solvers.problem import FixedPoint

__all__ = ["History", "check_secant_options", "secant_start", "secant_step"]

Kind = Literal["II", "I", "Broyden"]

FALL, PATIENCE = 0.95, 10
"""Where so many evaluations have not brought the residual below that share, twice as many plain steps follow, and so on in
turn: they leave the neighbourhood of a least residual that is no solution, to which extrapolation would always come back."""
FAR, BACK = 4.0, 0.25
"""An iterate that many times farther from the best one than that is from the origin, with no smaller residual, was too far a
leap: the residual is flat, and its differences say little. Instead this share of the way is taken, or so much that it is near."""
RETREATS = 10
"""After so many returns to its best iterate, none of which led to a better one, a sample has diverged if its image is NaN."""


class History(NamedTuple):
    """The last differences, in a ring of ``memory`` places; coordinates of all atoms together."""

    step: int
    z: Tensor
    residual: Tensor
    image: Tensor  # damped: z + beta * residual
    tests: Tensor  # masses times what tests the equations: changes of residuals, or of iterates; (*batch, memory, n * d)
    moves: Tensor  # differences of damped images, which is what the next iterate is made of
    system: Tensor  # the equations of the coefficients, (*batch, memory, memory)
    squares: Tensor  # squared norms of the changes that test, (*batch, memory)
    against: Tensor  # products of the residual with the tests, (*batch, memory)
    used: Tensor  # which places count, (*batch, memory)
    best: Tensor  # iterate of least residual
    drive: Tensor  # its residual
    least: Tensor  # the norm of that, (*batch,)
    retreats: Tensor  # returns to it since it was found, (*batch,)
    mark: Tensor  # the residual when it last fell, (*batch,)
    waited: Tensor  # evaluations since then, (*batch,)


def secant_start(z: Tensor, memory: int) -> History:
    """A history without entries."""
    batch = z.shape[:-2]
    places = z.new_empty(*batch, memory, z.shape[-2] * z.shape[-1])  # read only where written
    nothing = torch.zeros_like(z)
    return History(
        step=0,
        z=z,
        residual=nothing,
        image=z,
        tests=places,
        moves=torch.empty_like(places),
        system=z.new_zeros(*batch, memory, memory),
        squares=z.new_zeros(*batch, memory),
        against=z.new_zeros(*batch, memory),
        used=torch.zeros(*batch, memory, dtype=torch.bool, device=z.device),
        best=z,
        drive=nothing,
        least=z.new_full(batch, torch.inf),
        retreats=z.new_zeros(batch),
        mark=z.new_full(batch, torch.inf),
        waited=z.new_zeros(batch),
    )


def secant_step(
    problem: FixedPoint, z: Tensor, image: Tensor, state: History, kind: Kind, damping: float, ridge: float | None, restart: float
) -> tuple[Tensor, History]:
    """The next iterate, ``z + beta * r`` minus the combination of moves that the equations of ``kind`` give."""
    beta, memory = 1.0 - damping, state.moves.shape[-2]
    r, size = problem.residual(z, image)
    damped = z + beta * r if damping else image
    if damping:
        moved, move = z - state.z, damped - state.image
    else:
        moved, move = problem.changes(z, image, state.z, state.image)
    change = r - state.residual
    test = change if kind == "II" else moved
    good, better = size <= restart * state.least, size < state.least  # both false for NaN
    all_better = agreed(better)
    if not all_better:
        leap = z - state.best
        back = _share_of_leap(problem, leap, state, better)
        good = good & (back == 0.0)
    all_good = agreed(good)
    retreats = torch.zeros_like(size) if all_better else torch.where(better, 0.0, state.retreats)
    if not all_good:  # what may be NaN must not enter the history, not even to be multiplied by zero
        z, r = choose(good, z, state.best), choose(good, r, state.drive)
        damped, retreats = choose(good, damped, z + beta * r), retreats + ~good
        move, change, test = (choose(good, a, torch.zeros_like(a)) for a in (move, change, test))
    fell = size < FALL * state.mark
    waited = torch.where(fell, 0.0, state.waited + 1.0)
    following = state._replace(
        step=state.step + 1,
        z=z,
        residual=r,
        image=damped,
        best=z if all_better else choose(better, z, state.best),
        drive=r if all_better else choose(better, r, state.drive),
        least=size if all_better else torch.where(better, size, state.least),
        retreats=retreats,
        mark=torch.where(fell, size, state.mark),
        waited=waited,
    )
    proposal = damped
    if state.step:
        place, filled = (state.step - 1) % memory, min(state.step, memory)
        row_of, until = (..., place, slice(None)), (..., slice(0, filled), slice(None))
        tests = _put_product(state.tests, row_of, problem.weights.unsqueeze(-1), test)
        moves = _put(state.moves, row_of, move.flatten(-2))
        used = _put(state.used, (..., place), True)
        used = used if all_good else used & good.unsqueeze(-1)
        newest, right = tests[..., place, None, :], _products(r, tests[until])
        # Products with the change of the residual: what those with it have gained, so that the history is read once. What that
        # rounds away, differences of residuals have lost already.
        column = _put(right - state.against[..., :filled], (..., place), _products(change, newest)[..., 0])
        column = column if all_good else choose(good, column, torch.zeros_like(column))
        if kind == "II":
            row, square = column, column[..., place]
        else:
            row, square = _products(newest, moves[until]), _products(test, newest)[..., 0]
            # <s, y> = (<s, m> - <s, s>) / beta. Broyden's matrix has <s_i, s_j> / beta added where i is younger than j.
            row = (row if kind == "Broyden" else row - _products(test, tests[until])) / beta
        system = _put(state.system, (..., place, slice(0, filled)), row)
        system = _put(system, (..., slice(0, filled), place), column)
        squares = _put(state.squares, (..., place), square)
        against = _put(state.against, (..., slice(0, filled)), right)
        following = following._replace(tests=tests, moves=moves, system=system, squares=squares, against=against, used=used)
        first = slice(0, filled)
        allowed = used[..., first]
        if state.step + 1 >= PATIENCE:  # nobody can have waited so long before
            allowed = allowed & (waited % (3 * PATIENCE) < PATIENCE).unsqueeze(-1)
        gamma = _coefficients(kind, system[..., first, first], right, allowed, squares[..., first], ridge)
        combination = (gamma.unsqueeze(-2) @ moves[until]).reshape(z.shape)
        # Where nothing is recorded, its own memory takes the result.
        proposal = damped - combination if torch.is_grad_enabled() else torch.sub(damped, combination, out=combination)
    if not all_good:
        retreat = state.best + (beta * 0.5**retreats)[..., None, None] * state.drive
        retreat = choose(back > 0.0, state.best + back[..., None, None] * leap, retreat)
        lost = ~torch.isfinite(size) & (retreats > RETREATS)
        proposal = choose(good, proposal, choose(lost, torch.full_like(z, torch.nan), retreat))
    return proposal, following


def _products(field: Tensor, rows: Tensor) -> Tensor:
    """Inner products of all coordinates of a field with the rows ``(*batch, k, n * d)``; ``(*batch, k)``."""
    return (field.reshape(*rows.shape[:-2], 1, -1) @ rows.mT).squeeze(-2)


def _share_of_leap(problem: FixedPoint, leap: Tensor, state: History, better: Tensor) -> Tensor:
    """What to take of the way from the best iterate to the last one where that was `FAR`, zero elsewhere; ``(*batch,)``."""
    length, size = problem.norms(leap.detach(), (state.best + state.drive).detach())
    far = (length > FAR * size) & ~better
    return torch.where(far, (FAR * size / length).clamp_max(BACK), 0.0)


def _coefficients(kind: Kind, system: Tensor, right: Tensor, used: Tensor, squares: Tensor, ridge: float | None) -> Tensor:
    """Regularised least-squares coefficients of the used places, zero elsewhere; ``(*batch, filled)``.

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
    else:  # a place that is not used has a row of zeros: one on its diagonal makes its coefficient zero
        scale, diagonal = torch.where(used, columns, torch.inf).rsqrt(), torch.full_like(columns, ridge)
        diagonal.masked_fill_(~used, 1.0)
    normal = normal * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    normal.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    solution: Tensor = torch.linalg.solve_ex(normal, right * scale).result
    return (solution * scale).to(dtype).contiguous()  # products with strided ones are much slower


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


def _put(places: Tensor, index: Any, value: Tensor | bool) -> Tensor:
    """``places`` with ``value`` at ``index``: in place where autograd does not record, which spares a copy of the history."""
    if torch.is_grad_enabled():
        places = places.clone()
    places[index] = value
    return places


def _put_product(places: Tensor, index: Any, a: Tensor, b: Tensor) -> Tensor:
    """`_put` of the product of two tensors ``(*batch, n, d)``, their last two dimensions as one."""
    if torch.is_grad_enabled():
        return _put(places, index, (a * b).flatten(-2))
    torch.mul(a, b, out=places[index].unflatten(-1, b.shape[-2:]))
    return places
