"""The paper's solver: descend the discrepancy between a measure and its image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import check_schedule, number_at
from ddeq.flows.steppers import Euler, Stepper
from ddeq.functionals.base import Functional
from ddeq.functionals.discrepancy import DiscrepancyLike, against
from ddeq.functionals.fixed_point import FixedPointDiscrepancy
from ddeq.iteration import Equation, Iterate, Solver, Step
from ddeq.measures import DiscreteMeasure
from ddeq.solvers.bandwidth import Bandwidth, follow
from ddeq.solvers.drift import Drift
from ddeq.solvers.mean_shift import mark_numbers, marks_are_distinct
from ddeq.solvers.step_sizes import Moving, step_size

__all__ = ["ParticleFlow"]


class _State(NamedTuple):
    step: int
    stepper: Any
    marks: Tensor | None = None
    """Marks as the kernel compares them, ``(*batch, n, q)``."""
    distinct: bool = False
    """Whether no two atoms of any sample interact, because their marks differ."""
    long: Tensor | None = None
    """Samples of which this holds, ``(*batch,)``, if the stepper takes long steps well."""
    rule: Bandwidth | None = None
    moving: Moving | None = None


@dataclass(frozen=True)
class ParticleFlow(Solver):
    r"""Flow of a measure down its discrepancy from its image, :math:`G(\mu) = D(\mu, \Phi(\mu))`.

    By default :math:`D = \tfrac12 \mathrm{MMD}_K^2` on marks times points, with a kernel that compares atoms of equal marks alone
    and a Gaussian one between points, whose bandwidth :math:`h` is half the distance between the measure and its image. Its force
    is divided by the kernel density of the image (particle flow, T21): with the densities :math:`p_\mu, p_\nu` of the measure
    and its image :math:`\nu = \Phi(\mu)` and the local means :math:`M_\mu, M_\nu`, the velocity of an atom is

    .. math:: v_i = \big(M_\nu(x_i) - x_i\big)
              - \min\Big(1, \frac{p_\mu(x_i)}{p_\nu(x_i)}\Big) \big(M_\mu(x_i) - x_i\big) .

    At distinct marks this is :math:`\Phi(\mu)_i - x_i`: with ``target="frozen"`` and ``Euler(1 - a)`` the solver is
    ``Picard(damping=a)``. Between atoms of equal marks, and without marks, it depends on the two measures alone and not on which
    atom goes where; solve these with ``Stop(metric=Wasserstein)``.

    Parameters
    ----------
    discrepancy
        None for the default; or a discrepancy whose Wasserstein gradient is followed as it is: a function from a target to a
        functional, such as ``MMD`` or ``lambda nu: MMD(nu, Gaussian(1.0))``, or an instance. With a ``bandwidth`` it is a
        function of both: ``lambda nu, h: MMD(nu, Gaussian(h))``.
    stepper
        How the flow steps, such as ``Euler(step_size=1.0)``. For the default discrepancy, one that follows the velocity that it
        is given: ``Euler``, ``Heun``, ``Nesterov``.
    target
        ``"moving"`` descends :math:`G`, through the derivative of the map (fixed-point discrepancy, T4), at one more evaluation
        per step; ``"frozen"`` takes the image as a fixed target in each step and needs no derivative of the map.
    bandwidth
        A number, or a schedule: function of the number of the step, such as ``lambda k: max(0.1, 2 * 0.95**k)``. Large
        bandwidths see how far atoms have to go, small ones see them apart. None: that of the discrepancy.
    mark_bandwidth
        Bandwidth of the kernel on marks of the default discrepancy: 0, only atoms of equal marks are compared; infinite, marks do
        not count; else a Gaussian kernel.

    Raises
    ------
    ValueError
        If an option is not one of these, or does not go together with another.

    Notes
    -----
    *Moving target.* The direction :math:`v - J^* v'`, with the derivative :math:`J` of the map and the velocity :math:`-v'` of
    the image towards the measure, is multiplied by :math:`(1 + \ell)^{-2}`, :math:`\ell` the largest :math:`|J^* v'| / |v'|` that
    was seen: a full step would diverge where the map reverses. The error falls by about :math:`1 - ((1 - L)/(1 + L))^2` per step
    for an :math:`L`-contraction, where the frozen target gives about :math:`L`. At distinct marks most steps are longer, of the
    size of Barzilai and Borwein, and safe where these do not lower the residual.

    *Bandwidth.* The distance is the root-mean-square one to the nearest atoms, at most :math:`W_2`. Its multiple, one half, is
    halved for a sample whose distance does not fall. Atoms of mass zero follow the map.

    *As in the paper*: ``ParticleFlow(MMD, Euler(5.0))``, which follows the gradient as it is. It needs hundreds of steps where
    `Picard` needs ten. With the Riesz kernel of ``MMD`` steps must shrink, ``Euler(lambda k: 10 * 0.95**k)``, since its force
    does not fade at the minimum; a smooth kernel is flat near point masses. An explicit discrepancy compares points and not
    marks, unless it says otherwise: atoms may end in each other's places, a residual that is not small where the discrepancy is.

    References
    ----------
    :cite:t:`geuter2025ddeqs`; :cite:t:`comaniciu2002mean`, the mean shift; :cite:t:`barzilai1988two`, the long
    steps of a moving target.

    Examples
    --------
    >>> import torch
    >>> from ddeq.solvers import fixed_point
    >>> mu = DiscreteMeasure(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    >>> solution = fixed_point(lambda mu: mu.push_forward(lambda z: 0.5 * z + 1.0), mu, solver=ParticleFlow(target="frozen"))
    >>> solution.measure.mean().round(decimals=2)
    tensor([2., 2.])
    """

    discrepancy: DiscrepancyLike | Callable[[DiscreteMeasure, float], Functional] | None = None
    stepper: Stepper = Euler(1.0)
    target: Literal["moving", "frozen"] = "moving"
    bandwidth: float | Callable[[int], float] | None = None
    mark_bandwidth: float = 0.0

    removable: ClassVar[bool] = False  # discrepancy and stepper may hold something for each sample
    needs_measures: ClassVar[bool] = True

    RATIO: ClassVar[float] = 0.5
    """The bandwidth in units of the distance between the measure and its image."""

    def __post_init__(self) -> None:
        if self.target not in ("moving", "frozen"):
            raise ValueError(f"target: expected 'moving' or 'frozen', got {self.target!r}")
        if not isinstance(self.stepper, Stepper):
            raise ValueError(f"stepper: expected a stepper such as Euler(step_size=1.0), got {self.stepper!r}")
        if self.discrepancy is not None and not callable(self.discrepancy):
            raise ValueError(f"discrepancy: expected None or a discrepancy such as MMD, got {self.discrepancy!r}")
        if self.bandwidth is not None:
            check_schedule("bandwidth", self.bandwidth)
        given: Any = self.mark_bandwidth
        if isinstance(given, bool) or not isinstance(given, Real) or not float(given) >= 0:
            raise ValueError(f"mark_bandwidth: expected a number >= 0, got {given!r}")
        if self.discrepancy is not None and given != 0:
            raise ValueError("mark_bandwidth: belongs to the default discrepancy; leave one of the two out")
        if self.discrepancy is None and (self.stepper.descends or not self.stepper.explicit):
            raise ValueError(
                f"stepper: expected Euler, Heun or another one that follows any velocity, got {self.stepper!r}; with an explicit "
                "discrepancy, such as MMD, every stepper goes"
            )

    def init(self, equation: Equation, at: Iterate) -> _State:
        if self.discrepancy is not None:
            moving = replace(self, target="moving")  # which evaluates nothing yet
            return _State(0, self.stepper.init(moving._descent(equation, at, 0)[0], at))
        mu, marks, distinct = equation.measure(at.z), None, torch.zeros_like(at.norm, dtype=torch.bool)
        if mu.marks is not None and not math.isinf(self.mark_bandwidth):
            marks = mark_numbers(mu.marks) if self.mark_bandwidth == 0.0 else mu.marks
            if self.mark_bandwidth == 0.0:
                distinct = marks_are_distinct(marks, mu.weights)
        rule = Bandwidth.start(at.norm, self.RATIO)
        moved = Moving.start(at.z, at.norm) if self.target == "moving" else None
        state = _State(0, None, marks, bool(distinct.all()), distinct & (not self.stepper.has_momentum), rule, moved)
        return state._replace(stepper=self.stepper.init(self._drift(equation, at, state)[0], at))

    def step(self, equation: Equation, at: Iterate, state: _State) -> Step:
        if self.discrepancy is None:
            return self._normalised_step(equation, at, state)
        descent, calls = self._descent(equation, at, state.step)
        here = Iterate(at.z, descent.residual(at.z), at.norm, at.size, state.step)
        moved = self.stepper.step(descent, here, state.stepper)
        return Step(moved.z, _State(state.step + 1, moved.state), evaluations=len(calls))

    def _normalised_step(self, equation: Equation, at: Iterate, state: _State) -> Step:
        """A step of the default discrepancy."""
        drift, rule = self._drift(equation, at, state)
        direction, velocity, gain = drift.direction(at.z)
        moving, z = state.moving, at.z
        if moving is not None:
            assert gain is not None
            assert state.long is not None
            size, moving = step_size(moving, z, direction, gain, velocity, drift.inner, state.long)
            drift, z, direction = drift.times(size), moving.z, moving.direction
        here = Iterate(z, drift.scaled(direction), at.norm, at.size, state.step)
        moved = self.stepper.step(drift, here, state.stepper)
        state = state._replace(step=state.step + 1, stepper=moved.state, rule=rule, moving=moving)
        return Step(moved.z, state, evaluations=drift.evaluations)

    def _drift(self, equation: Equation, at: Iterate, state: _State) -> tuple[Drift, Bandwidth]:
        """The velocity of the default discrepancy in a step, and what the bandwidth rule then remembers."""
        rule = state.rule
        assert rule is not None
        moving = self.target == "moving"
        drift = Drift(equation, at, state.marks, self.mark_bandwidth, None, moving)
        if state.distinct:
            return drift, rule
        if self.bandwidth is not None:
            given = number_at("bandwidth", self.bandwidth, state.step, batch_shape=())
            h = torch.ones_like(at.norm) * given
        else:
            pair = drift.pair(at.z, at.image)
            separation = pair.separation()
            rule = follow(rule, separation.detach())
            h = torch.maximum(rule.ratio * separation, torch.finfo(at.z.dtype).eps * pair.extent[..., 0, 0])
        return Drift(equation, at, state.marks, self.mark_bandwidth, h, moving), rule

    def _descent(self, equation: Equation, at: Iterate, step: int) -> tuple[FunctionalDescent, list[DiscreteMeasure]]:
        """What a step descends: the discrepancy from the image, which moves with the measure or is held fixed.

        Also the measures at which the map is evaluated in it, a list that grows.
        """
        mu, calls = equation.measure(at.z), []

        def image(mu: DiscreteMeasure) -> DiscreteMeasure:
            calls.append(mu)
            return equation.image(mu)

        discrepancy = self._discrepancy(step)
        if self.target == "moving":
            functional: Functional = FixedPointDiscrepancy(image, discrepancy)
        else:
            functional = against(discrepancy, equation.measure(at.z + at.residual))
        return FunctionalDescent(functional, mu), calls

    def _discrepancy(self, step: int) -> DiscrepancyLike:
        """The explicit discrepancy at a step: with the bandwidth that it has then."""
        if self.bandwidth is None:
            return cast(DiscrepancyLike, self.discrepancy)
        bandwidth = number_at("bandwidth", self.bandwidth, step, batch_shape=())
        return cast(DiscrepancyLike, partial(_at, cast(Any, self.discrepancy), bandwidth))


def _at(
    discrepancy: Callable[[DiscreteMeasure, float | Tensor], Functional], bandwidth: float | Tensor, nu: DiscreteMeasure
) -> Functional:
    return discrepancy(nu, bandwidth)
