"""Reactions: masses that grow and shrink while atoms move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddeq.flows.descent import FunctionalDescent
from ddeq.flows.schedules import Schedule, check_schedule, over_atoms
from ddeq.functionals.base import Functional
from ddeq.iteration.declared import Declared
from ddeq.measures import DiscreteMeasure
from ddeq.reductions import integrate

__all__ = ["FisherRao", "Reaction", "jump"]


class Reaction(Declared, ABC):
    """A frozen set of options that moves mass between the atoms.

    To write one: a frozen dataclass with `react` and `dissipation`. `ddeq.testing.check_reaction` holds a reaction to what the
    library relies on.
    """

    functional: Functional | None = None
    """The energy whose first variation moves the masses; None: that of the flow."""

    @property
    def jumps(self) -> bool:
        """Whether weights stay, and atoms jump at random such that the expected measure has the weights that `react` gives."""
        return False

    @property
    def conserves(self) -> bool:
        """Whether the mass stays; if not, the energy must have an `exact_variation <ddeq.Functional.exact_variation>`."""
        return True

    @abstractmethod
    def react(self, equation: FunctionalDescent, mu: DiscreteMeasure, duration: float | Tensor, step: int) -> Tensor:
        """The weights of ``mu`` after the reaction, ``(*batch, n)``: non-negative, and zero where they were.

        Parameters
        ----------
        equation
            The flow that the reaction is part of.
        mu
            The measures, after their atoms have moved.
        duration
            The time that the step took.
        step
            Number of the step, at which a schedule of the rate is evaluated.
        """

    @abstractmethod
    def dissipation(self, equation: FunctionalDescent, mu: DiscreteMeasure, step: int) -> Tensor:
        """Rate at which the energy falls by the reaction, ``(*batch,)``; ``equation``, ``mu`` and ``step`` as in `react`."""

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> Reaction:
        """The reaction of the entries ``keep`` of a batch of shape ``batch_shape``."""
        return self

    def energy(self, equation: FunctionalDescent) -> Functional:
        """The functional whose first variation moves the masses."""
        return equation.functional if self.functional is None else self.functional


@dataclass(frozen=True)
class FisherRao(Reaction):
    r"""The Fisher-Rao reaction: mass moves from atoms where the first variation is large to those where it is small.

    .. math:: \dot w_i = -r\, w_i \Big(\frac{\delta F}{\delta\mu}(x_i) - m\Big), \qquad
              m = \int \frac{\delta F}{\delta\mu} \,\mathrm d\mu \,/\, \mu(\mathbb R^d) ,

    or :math:`m = 0` if ``conserve`` is false: then mass grows where the first variation is negative and shrinks where it is
    positive.

    With the `Wasserstein` geometry this is the Wasserstein-Fisher-Rao flow, which can bring mass to places that atoms cannot
    reach downhill (noise, weights, other geometries, T17). Weights are updated multiplicatively,
    :math:`w_i' = w_i\, e^{-r \tau \frac{\delta F}{\delta\mu}(x_i)}` in a step of length :math:`\tau`, and normalised if the
    mass is conserved: no weight becomes negative; an atom of mass zero stays one. In a step the atoms move first; the flow is
    then of order one in the step size, whatever the stepper.

    Parameters
    ----------
    rate
        :math:`r \ge 0`: a number, one for each sample, or a function of the number of the step.
    birth_death
        Weights stay, and atoms die and are born instead: each jumps with probability :math:`(1 - w_i'/w_i)_+` to an atom
        :math:`j` drawn in proportion to :math:`(w_j' - w_j)_+`, where :math:`w'` are the weights that the reaction gives. In
        expectation the measure is then the one with weights :math:`w'`, and no two weights come apart. Copies lie where
        their parents do, and only noise parts them.
    functional
        The energy whose first variation moves the masses; default that of the flow. With `Langevin` noise it must be given: the
        energy of the flow plus the entropy that the noise stands for.
    conserve
        Whether the mass is conserved. If not, the constant of the first variation decides how fast mass grows, so the energy
        must have an `exact_variation <ddeq.Functional.exact_variation>`: `PotentialEnergy`, `MMD` with a positive definite
        kernel, `KALE`, `SinkhornDivergence` with a ``reach``, every functional that is written as a ``forward`` ...; and not
        those that normalise masses.

    Raises
    ------
    ValueError
        If a rate is negative or not finite, ``functional`` is something else, or births and deaths are not to conserve the mass,
        which they do. In a flow, if mass is to grow by a first variation that is known up to a constant only.

    References
    ----------
    :cite:t:`chizat2018interpolating`; :cite:t:`lu2019accelerating`, births and deaths; :cite:t:`chizat2022sparse`,
    growth.
    """

    rate: Schedule = 1.0
    birth_death: bool = False
    functional: Functional | None = None
    conserve: bool = True

    def __post_init__(self) -> None:
        check_schedule("rate", self.rate, zero=True)
        for name, given in (("birth_death", self.birth_death), ("conserve", self.conserve)):
            if not isinstance(given, bool):
                raise ValueError(f"{name}: expected True or False, got {given!r}")
        if self.birth_death and not self.conserve:
            raise ValueError("conserve: births and deaths keep all weights, and so the mass; leave out one of the two")
        if not isinstance(self.functional, Functional | None):
            raise ValueError(f"functional: expected a ddeq.Functional or None, got {self.functional!r}")

    @property
    def jumps(self) -> bool:
        return self.birth_death

    @property
    def conserves(self) -> bool:
        return self.conserve

    def react(self, equation: FunctionalDescent, mu: DiscreteMeasure, duration: float | Tensor, step: int) -> Tensor:
        rate = equation.number("rate", self.rate, step, zero=True)
        live, w = mu.support(), mu.weights
        variation = self.energy(equation).first_variation(mu)
        if not self.conserve:
            exponent = torch.where(live, -over_atoms(rate * duration, 1) * variation, 0.0)
            return torch.where(live, w * exponent.exp(), 0.0)
        least = torch.where(live, variation, torch.inf).amin(-1, keepdim=True)
        exponent = torch.where(live, least - variation, 0.0)  # at most zero: no exponential overflows
        grown = w * (over_atoms(rate * duration, 1) * exponent).exp()
        return grown * (mu.mass().unsqueeze(-1) / grown.sum(-1, keepdim=True))

    def dissipation(self, equation: FunctionalDescent, mu: DiscreteMeasure, step: int) -> Tensor:
        r"""Rate :math:`r \int (\delta F/\delta\mu - m)^2 \,\mathrm d\mu` at which the energy falls, ``(*batch,)``.

        Without conservation :math:`m = 0`.

        ``equation``, ``mu`` and ``step`` as in `react`.
        """
        variation = torch.where(mu.support(), self.energy(equation).first_variation(mu), 0.0)
        if self.conserve:
            variation = variation - (integrate(variation, mu) / mu.mass()).unsqueeze(-1)
        return equation.number("rate", self.rate, step, zero=True) * integrate(variation.square(), mu)

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> FisherRao:
        return self if self.functional is None else replace(self, functional=self.functional.rows(keep, batch_shape))


def jump(mu: DiscreteMeasure, weights: Tensor, draw: Callable[[], Tensor]) -> DiscreteMeasure:
    r"""Atoms of ``mu`` that die and are born again elsewhere, such that the expected measure has ``weights``.

    The maximal coupling of the two sets of weights: an atom stays with probability :math:`\min(1, w_i'/w_i)`.
    """
    order = _by_place(mu.points)
    sorted_excess = (weights - mu.weights).clamp_min(0).gather(-1, order)
    cumulative = sorted_excess.cumsum(-1)
    stay, chosen = draw().unbind(-1)
    keeps = stay * mu.weights <= weights
    place = torch.searchsorted(cumulative, chosen.contiguous() * cumulative[..., -1:], right=True).clamp_max(mu.n - 1)
    partner = order.gather(-1, place)
    index = torch.where(keeps, torch.arange(mu.n, device=mu.device), partner)
    return mu.permute_atoms(index).with_weights(mu.weights)


def _by_place(points: Tensor) -> Tensor:
    """The order of the atoms by their coordinates: one of the measure, not of the array."""
    order = torch.arange(points.shape[-2], device=points.device).expand(points.shape[:-1])
    for coordinate in reversed(range(points.shape[-1])):
        keys = points[..., coordinate].gather(-1, order)
        order = order.gather(-1, keys.argsort(dim=-1, stable=True))
    return order
