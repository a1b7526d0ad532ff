"""Quasi-Newton steps of limited memory, by inner products of the measure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.resolution import energy_resolution
from ddeq.flows.schedules import over_atoms
from ddeq.flows.steppers import Stepper
from ddeq.flows.symmetries import Place
from ddeq.integers import set_whole
from ddeq.iteration import Iterate, Step

__all__ = ["LBFGS"]

FIRST = 0.1
"""Length of the first trial of a flow, relative to the spread of the atoms."""
CURVED = 1e-8
"""Least cosine between a change of the points and that of the gradient from which curvature is learnt."""
SUFFICIENT = 1e-4
"""Share of the decrease that the slope promises which a step must keep."""
CLOSE = 0.5
"""Relative distance from the minimum of the parabola at which a step that is good enough is not improved."""
EXPLORED = 20
"""How often a step is improved where no curvature along it is known; else once."""
MOST_TRIALS = 40
"""Lengths that are tried in a step; then the energy cannot be lowered along it."""
PATIENCE = 50
"""Steps whose decrease is hidden by rounding, without a gradient that is smaller by a tenth, after which a sample stays."""
FARTHEST = 5.0
"""Longest step on a curved space, root mean square in its metric: beyond, a step says little, and numbers overflow."""
VISIBLE = 1e3
"""A decrease this many times the resolution of the energies is known well enough to fit a parabola."""


class _State(NamedTuple):
    points: Tensor
    """Where the last step started."""
    velocity: Tensor
    step: Tensor
    """The last step, as a field at its start."""
    moves: tuple[Tensor, ...]
    """How the points changed in the last steps, the last one first."""
    changes: tuple[Tensor, ...]
    """How the gradient changed."""
    inverse: Tensor
    """Inverses of the inner products of the two, ``(*batch, memory)``; 0 for steps from which no curvature is learnt."""
    scale: Tensor
    """Inverse curvature, ``(*batch,)``: where nothing else is known, steps are the velocity times this."""
    least: Tensor
    """Least norm of the velocity so far, ``(*batch,)``."""
    lowest: Tensor
    """Least energy so far, ``(*batch,)``."""
    hidden: Tensor
    """Steps since then whose decrease rounding has hidden, ``(*batch,)``."""


class _Found(NamedTuple):
    """What a line search found, ``(*batch,)`` each."""

    length: Tensor
    """Of the step, in units of the direction; 0 where no step lowers the energy."""
    energy: Tensor
    hidden: Tensor
    """Whether rounding hides by how much the energy falls."""


@dataclass(frozen=True)
class LBFGS(Stepper):
    r"""Quasi-Newton steps of limited memory in :math:`L^2(\mu)`; the energy never rises but for rounding.

    From the last changes :math:`s_j` of the points and :math:`y_j` of the Wasserstein gradient an inverse Hessian is built up,

    .. math:: H_{j+1} = \Big(I - \frac{s_j \otimes y_j}{\langle s_j, y_j\rangle}\Big) H_j
              \Big(I - \frac{y_j \otimes s_j}{\langle s_j, y_j\rangle}\Big) + \frac{s_j \otimes s_j}{\langle s_j, y_j\rangle} ,
              \qquad H_0 = \frac{\langle s, y\rangle}{\langle y, y\rangle} I \text{ for the last pair},

    with all products and transposes in :math:`L^2(\mu)`: steps depend on the measure alone (equivariant acceleration, T9). The
    step is :math:`x \leftarrow x + t H v(x)`. The length :math:`t` is 1, unless the parabola through the energies at both ends
    and the slope says that another one is better by far, and is shortened until

    .. math:: F(\mu_{k+1}) \le F(\mu_k) - 10^{-4}\, t\, \langle v, H v\rangle_{L^2(\mu)} .

    So a step takes one gradient, and between one and two energies. Pairs without positive curvature teach nothing; then the
    next step is as long as the last one, or longer if the energies say so. The first step of a flow is found by energies
    alone, from a tenth of the spread of the atoms. Each sample has a matrix and a length of its own.

    Where rounding hides the decrease, which is found out by energies of shaken points, full steps are taken as long as the
    energy does not rise visibly and the norm of the velocity falls by a tenth in 50 of them. A sample along whose velocity no
    step lowers the energy stays; under ``stop`` it ends as STAGNATED.

    Parameters
    ----------
    memory
        Number of pairs kept, two fields each. With as many as there are unknowns, steps are those of BFGS; with fewer,
        ill-conditioned energies take several times as many gradients. Large measures may want fewer, such as 10.

    Raises
    ------
    ValueError
        If ``memory`` is no whole number of at least 1.

    Notes
    -----
    The time of a step is the one in which the flow would lower the energy by as much, to first order:
    :math:`t \langle v, H v\rangle / \langle v, v\rangle`. Autograd records the steps with their lengths and matrices, so
    derivatives are those of what was computed, to rounding.

    References
    ----------
    :cite:t:`nocedal1980updating`; :cite:t:`liu1989limited`; :cite:t:`li2001global`, on leaving out pairs where the energy is not
    convex.
    """

    memory: int = 100

    descends: ClassVar[bool] = True
    in_spaces: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    superlinear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_whole(self, 1, "memory")

    def init(self, equation: FunctionalDescent, at: Iterate) -> _State:
        speed = equation.product(at.z, at.residual, at.residual)
        moving = speed > 0
        speed = torch.where(moving, speed, 1.0).sqrt()
        none, nothing = torch.zeros_like(speed.detach()), torch.zeros_like(at.z.detach())
        return _State(
            points=at.z,
            velocity=at.residual,
            step=nothing,
            moves=(nothing,) * self.memory,
            changes=(nothing,) * self.memory,
            inverse=torch.stack([none] * self.memory, -1),
            scale=torch.where(moving, FIRST * _length(equation, at.z) / speed, 1.0),
            least=none + torch.inf,
            lowest=none + torch.inf,
            hidden=none,
        )

    def step(self, equation: FunctionalDescent, at: Iterate, state: _State) -> Step:
        x, v = at.z, at.residual
        inner = partial(equation.product, x)
        recorded = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad)
        energy = equation.energy(x) if at.energy is None or recorded else at.energy
        lowest = torch.minimum(state.lowest, energy.detach())
        state, curved, way = _learnt(equation, at, state)
        direction = _times_inverse_hessian(equation, x, v, state, min(self.memory, at.step))
        if equation.space.has_boundary:  # what leads out is left off, and may have been what leads down
            direction = equation.space.tangent(x, direction)
            direction = torch.where((inner(v, direction) > 0)[..., None, None], direction, over_atoms(state.scale) * v)
        slope = inner(v, direction)
        downhill = (slope > 0) & torch.isfinite(slope)
        size = inner(direction, direction)
        repeats = ~curved & (way > 0) & (size > 0) & torch.isfinite(size)  # as far as the last step, in the new direction
        trial = torch.where(repeats, (torch.where(repeats, way, 1.0) / torch.where(repeats, size, 1.0)).sqrt(), 1.0)
        slope = torch.where(downhill, slope, 0.0)
        found = _LineSearch(equation, x, v, energy, lowest, _farthest(equation, size))(direction, slope, trial, explores=~curved)
        smaller = at.norm < 0.9 * state.least
        hidden = torch.where(smaller, 0.0, state.hidden + found.hidden)
        moves = (found.length > 0) & (hidden <= PATIENCE)
        length = torch.where(moves, found.length, 0.0)
        speed = inner(v, v)
        taken = torch.where(moves[..., None, None], over_atoms(length) * direction, 0.0)
        return Step(
            torch.where(moves[..., None, None], equation.moved(x, taken), x),
            state._replace(
                points=x,
                velocity=v,
                step=taken,
                least=torch.where(smaller, at.norm, state.least),
                lowest=lowest,
                hidden=hidden,
            ),
            duration=torch.where(moves, length * slope / torch.where(speed > 0, speed, 1.0), 0.0),
            energy=torch.where(moves, found.energy, energy),
        )


def _learnt(equation: FunctionalDescent, at: Iterate, state: _State) -> tuple[_State, Tensor, Tensor]:
    """The state with what the last step has shown, where that was positive curvature, and the squared length of the step."""
    inner, memory = partial(equation.product, at.z), len(state.moves)
    s = equation.travelled(state.points, state.step, at.z)
    known = 0 if equation.space.is_flat else min(memory, at.step)
    velocity = state.velocity
    if known:
        past = torch.stack([velocity, *state.moves[:known], *state.changes[:known]])
        velocity, *carried = equation.carried(state.points, state.step, past)[0]
        moves, changes = (*carried[:known], *state.moves[known:]), (*carried[known:], *state.changes[known:])
        state = state._replace(moves=moves, changes=changes)
    y = velocity - at.residual
    sy, ss, yy = inner(s, y), inner(s, s), inner(y, y)
    curved = (sy > CURVED * ss.detach().sqrt() * yy.detach().sqrt()) & torch.isfinite(1.0 / sy) & torch.isfinite(yy)
    inverse = torch.where(curved, 1.0 / torch.where(curved, sy, 1.0), 0.0)
    learnt = state._replace(
        moves=(s, *state.moves[:-1]),
        changes=(y, *state.changes[:-1]),
        inverse=torch.cat([inverse.unsqueeze(-1), state.inverse[..., :-1]], -1),
        scale=torch.where(curved, sy / torch.where(curved, yy, 1.0), state.scale),
    )
    return learnt, curved, ss


def _times_inverse_hessian(equation: FunctionalDescent, points: Tensor, v: Tensor, state: _State, count: int) -> Tensor:
    """At some points, the inverse Hessian of the last ``count`` pairs times a field, by the recursion of two loops."""
    inner, shares = partial(equation.product, points), []
    for k in range(count):
        share = state.inverse[..., k] * inner(state.moves[k], v)
        v = v - over_atoms(share) * state.changes[k]
        shares.append(share)
    v = over_atoms(state.scale) * v
    for k in reversed(range(count)):
        share = shares[k] - state.inverse[..., k] * inner(state.changes[k], v)
        v = v + over_atoms(share) * state.moves[k]
    return v


@dataclass(frozen=True)
class _LineSearch:
    """Finds lengths of steps by energies alone."""

    equation: FunctionalDescent
    points: Tensor
    velocity: Tensor
    start: Tensor
    """Energy at the points, ``(*batch,)``."""
    lowest: Tensor
    """Least energy so far."""
    longest: Tensor
    """Longest step, ``(*batch,)``."""

    def __call__(self, direction: Tensor, slope: Tensor, trial: Tensor, explores: Tensor) -> _Found:
        """Lengths of steps along ``direction``, ``(*batch,)``; none where the ``slope``, at which energies fall, is zero.

        Parameters
        ----------
        direction
            ``(*batch, n, d)``
        slope
            ``(*batch,)``
        trial
            First lengths to try, ``(*batch,)``.
        explores
            Where nothing is known of the curvature along ``direction``, ``(*batch,)``.
        """
        trial = trial.minimum(self.longest)
        start, first = self.start, trial
        found, energy = torch.zeros_like(slope), start
        searching, hidden = slope > 0, slope < 0
        improvements = torch.where(explores, EXPLORED, 1)
        resolution = 8.0 * torch.finfo(start.dtype).eps * start.detach().abs()
        for number in range(MOST_TRIALS):
            failing = searching & (found == 0)
            if number == 2 and bool(failing.any()):
                seen = torch.maximum(resolution, self._resolution())
                resolution = torch.where(failing, seen, resolution)
                trial = torch.where(failing & (first * slope <= resolution), first, trial)
            reached = self._energy(direction, trial, searching)
            promised = trial * slope
            lower = searching & (reached <= start - SUFFICIENT * promised) & (reached < torch.where(found > 0, energy, torch.inf))
            unseen = (failing | (searching & explores)) & ~lower & (promised <= resolution)
            unseen = unseen & (reached <= self.lowest + resolution)
            parabola = _minimum_of_parabola(reached - start + promised, promised, trial)
            found = torch.where(lower | unseen, trial, found)
            energy = torch.where(lower | unseen, reached, energy)
            hidden = (hidden | unseen) & ~lower
            far = (parabola - trial).abs() > CLOSE * trial
            improvable = (lower & far & (explores | (promised > VISIBLE * resolution))) | (unseen & explores)
            improvable = improvable & (improvements > 0)
            improvements = improvements - improvable.long()
            shortened = searching & (found == 0)
            searching = shortened | improvable
            if not bool(searching.any()):
                break
            parabola = torch.where(unseen, torch.inf, parabola)
            # Where it is concave a well may lie behind.
            longer = torch.where(torch.isfinite(parabola) | unseen, 10.0 * trial, 2.0 * trial)
            most = torch.where(shortened, 0.5 * trial, longer)
            trial = torch.where(searching, parabola.minimum(most).maximum(0.1 * trial).minimum(self.longest), trial)
        return _Found(found, energy, hidden)

    def _energy(self, direction: Tensor, length: Tensor, wanted: Tensor) -> Tensor:
        """The energies after steps of these lengths; what is not finite is infinite, and has no derivative."""
        with torch.no_grad():
            energy = self._after(direction, length)
        finite = torch.isfinite(energy)
        if torch.is_grad_enabled() and (direction.requires_grad or self.points.requires_grad):
            used = finite & wanted
            energy = torch.where(used, self._after(direction, torch.where(used, length, 0.0)), energy)
        return torch.where(finite, energy, torch.inf)

    def _after(self, direction: Tensor, length: Tensor) -> Tensor:
        z = self.equation.moved(self.points, over_atoms(length) * direction)
        return self.equation.energy(self.equation.inner.bounded(z, self.points))

    def _resolution(self) -> Tensor:
        points = self.points.detach()
        place = Place.of(points, self.equation.like.weights.detach(), points)
        return energy_resolution(self.equation, place, self.start.detach(), self.velocity.detach())


def _farthest(equation: FunctionalDescent, square: Tensor) -> Tensor:
    """Longest multiple of a direction whose squared norm is given, ``(*batch,)``."""
    if equation.space.is_flat:
        return torch.full_like(square, torch.inf)
    mass = equation.like.weights.detach().sum(-1)
    return FARTHEST * (mass / torch.where(square > 0, square, 1.0)).sqrt()


def _minimum_of_parabola(excess: Tensor, promised: Tensor, length: Tensor) -> Tensor:
    """Where the parabola with the slope at 0 has its minimum that lies above the tangent by ``excess`` at ``length``."""
    known = (excess > 0) & torch.isfinite(excess)
    share = 0.5 * promised / torch.where(known, excess, 1.0)
    known = known & torch.isfinite(share)
    far = torch.where(excess == torch.inf, torch.zeros_like(length), torch.inf)
    return torch.where(known, length * torch.where(known, share, 1.0), far)


def _length(equation: FunctionalDescent, points: Tensor) -> Tensor:
    """The spread of the atoms times the root of their mass, ``(*batch,)``; of a single place a tenth of its distance from 0."""
    weights = equation.like.weights.unsqueeze(-1)
    mass = weights.sum((-2, -1))
    centre = (weights * points).sum(-2, keepdim=True) / over_atoms(torch.where(mass > 0, mass, 1.0))
    spread, away = equation.inner(points - centre, points - centre), mass * centre.square().sum((-2, -1))
    single = spread <= torch.finfo(points.dtype).eps ** (4 / 3) * away
    square = torch.where(single, torch.where(away > 0, 0.01 * away, mass), spread)
    return torch.where(square > 0, square, 1.0).sqrt()
