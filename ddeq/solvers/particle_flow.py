"""The paper's solver: descend the discrepancy between a measure and its image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import check_schedule, number_at
from ddeq.flows.steppers import Euler, Stepper
from ddeq.functionals.base import Functional
from ddeq.functionals.discrepancy import DiscrepancyLike, against
from ddeq.functionals.fixed_point import FixedPointDiscrepancy
from ddeq.functionals.mmd import MMD
from ddeq.iteration import Equation, Iterate, Solver, Step
from ddeq.measures import DiscreteMeasure
from ddeq.solvers.map_equation import MapEquation

__all__ = ["ParticleFlow"]


class _State(NamedTuple):
    step: int
    stepper: Any


@dataclass(frozen=True)
class ParticleFlow(Solver):
    r"""Wasserstein gradient flow of the discrepancy :math:`G(\mu) = D(\mu, \Phi(\mu))` between a measure and its image.

    Parameters
    ----------
    discrepancy
        Function from a target to a functional, such as ``MMD`` or ``lambda nu: MMD(nu, Gaussian(1.0))``, or a discrepancy.
        With a ``bandwidth`` it is a function of both: ``lambda nu, h: MMD(nu, Gaussian(h))``.
    stepper
        How the flow steps, such as ``Euler(step_size=1.0)``.
    target
        ``"moving"`` descends :math:`G`, through the derivative of the map (T4), at one more evaluation per step;
        ``"frozen"`` takes the image as a fixed target in each step and needs no derivative of the map.
    bandwidth
        A number, or a schedule: function of the number of the step, such as ``lambda k: max(0.1, 2 * 0.95**k)``. Large
        bandwidths see how far atoms have to go, small ones see them apart.

    Raises
    ------
    ValueError
        If an option is not one of these.

    Notes
    -----
    Slow next to `Picard` or `Anderson`: it needs hundreds of steps where they need ten, and with a smooth kernel it is
    flat near point masses. With the Riesz kernel the steps must shrink, ``Euler(lambda k: 10 * 0.95**k)``: its force does
    not fade at the minimum. Here for comparison with the paper, and for maps that are fixed as measures only.
    It compares points and not marks: atoms of a marked measure may end in each other's places, a residual that is not small
    where the discrepancy is.

    References
    ----------
    :cite:t:`geuter2025ddeqs`.
    """

    discrepancy: DiscrepancyLike | Callable[[DiscreteMeasure, float], Functional] = MMD
    stepper: Stepper = Euler(1.0)
    target: Literal["moving", "frozen"] = "moving"
    bandwidth: float | Callable[[int], float] | None = None

    removable: ClassVar[bool] = False  # discrepancy and stepper may hold something for each sample
    needs_measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.target not in ("moving", "frozen"):
            raise ValueError(f"target: expected 'moving' or 'frozen', got {self.target!r}")
        if not isinstance(self.stepper, Stepper):
            raise ValueError(f"stepper: expected a stepper such as Euler(step_size=1.0), got {self.stepper!r}")
        if not callable(self.discrepancy):
            raise ValueError(f"discrepancy: expected a discrepancy such as MMD, got {self.discrepancy!r}")
        if self.bandwidth is not None:
            check_schedule("bandwidth", self.bandwidth)

    def init(self, equation: Equation, at: Iterate) -> _State:
        moving = replace(self, target="moving")  # which evaluates nothing yet
        return _State(0, self.stepper.init(moving._descent(equation, at, 0)[0], at))

    def step(self, equation: Equation, at: Iterate, state: _State) -> Step:
        descent, calls = self._descent(equation, at, state.step)
        here = Iterate(at.z, descent.residual(at.z), at.norm, at.size, state.step)
        moved = self.stepper.step(descent, here, state.stepper)
        return Step(moved.z, _State(state.step + 1, moved.state), evaluations=len(calls))

    def _descent(self, equation: Equation, at: Iterate, step: int) -> tuple[FunctionalDescent, list[DiscreteMeasure]]:
        """What a step descends: the discrepancy from the image, which moves with the measure or is held fixed.

        Also the measures at which the map is evaluated in it, a list that grows.
        """
        if not isinstance(equation, MapEquation):
            raise ValueError("solver: this problem is not one on measures; take Picard, Anderson or another point solver")
        calls: list[DiscreteMeasure] = []

        def image(mu: DiscreteMeasure) -> DiscreteMeasure:
            calls.append(mu)
            return equation.image(mu)

        discrepancy = self._discrepancy(step)
        if self.target == "moving":
            functional: Functional = FixedPointDiscrepancy(image, discrepancy)
        else:
            functional = against(discrepancy, equation.measure(at.z + at.residual))
        return FunctionalDescent(functional, equation.measure(at.z)), calls

    def _discrepancy(self, step: int) -> DiscrepancyLike:
        """The discrepancy at a step: with the bandwidth that it has then."""
        if self.bandwidth is None:
            return cast(DiscrepancyLike, self.discrepancy)
        bandwidth = number_at("bandwidth", self.bandwidth, step, batch_shape=())
        return cast(DiscrepancyLike, partial(_at, cast(Any, self.discrepancy), bandwidth))


def _at(
    discrepancy: Callable[[DiscreteMeasure, float | Tensor], Functional], bandwidth: float | Tensor, nu: DiscreteMeasure
) -> Functional:
    return discrepancy(nu, bandwidth)
