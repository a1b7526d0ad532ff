"""`Dynamics`: what a flow follows, of which an energy is one kind."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.held import Holder, changed, select
from ddeq.measures import DiscreteMeasure

__all__ = ["Dynamics"]

Own = TypeVar("Own", bound="Dynamics")


class Dynamics(Holder):
    r"""What a flow follows: a velocity for every atom, which depends on the measure.

    A `ddeq.Functional` is one, :math:`v = -\nabla_W F(\mu)`, and has an energy; a `ddeq.flows.VelocityField` has none. The class
    attributes say what a flow can rely on. To write one: `velocity`, and `prepare` where something is to be done once per step.
    """

    has_energy: bool = False
    """Whether the velocity is that of the descent of an energy: whether it, or what `prepare` gives, is a `ddeq.Functional`."""
    varies: bool = False
    """Whether `prepare` gives another energy, or another velocity field, in each step, so that values of two steps do not
    compare; true of a class that `draws`. A `prepare` that only finds the same values faster does not vary."""
    removable: bool = False
    """Whether `rows` finds all that it holds for each measure of a batch: targets, and numbers of the catalogue. Functions may
    hold anything; where they hold nothing for single measures, set this to True, and samples that have finished can leave a flow.
    """
    remembers: bool = False
    """Whether `prepare` does something; true of a class that defines it."""
    draws: bool = False
    """Whether `prepare` draws random numbers, for which a flow then has a generator."""
    is_force: bool = False
    """Whether the velocity is minus a Euclidean gradient, of which a space makes one in its metric."""
    memory: Any = None
    """What `with_memory` gave it for a step; None elsewhere."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "prepare" in cls.__dict__ and "remembers" not in cls.__dict__:
            cls.remembers = True
        if cls.__dict__.get("draws") is True and "varies" not in cls.__dict__:
            cls.varies = True

    def velocity(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m d"]:
        """The velocity at the points ``x`` (default: the atoms) while the measure is ``mu``."""
        raise NotImplementedError(f"{type(self).__name__} must define `velocity(mu, x)`")

    def keys(self, mu: DiscreteMeasure) -> Tensor | None:
        """Numbers ``(*batch, n, q)`` that agree where atoms are at the same place; None: their points do."""
        return None

    def energies(self, mu: DiscreteMeasure) -> Any:
        """What a trajectory records as energies where there is no energy that falls; default: None."""
        return None

    @property
    def example(self) -> Dynamics:
        """One of the kind that `prepare` gives, by which a flow judges what goes together; by default this one itself."""
        return self

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Dynamics, Any]:
        """What a flow follows in one step, and what it hands to this method in the next one.

        Flows and `ddeq.flows.equilibrium` call it once per step, without derivatives, at the measure where the step begins. By
        default there is nothing to prepare. A functional with an inner problem starts it from the solution of the last step,
        or computes once what depends on its target alone. With its results equal to those without a memory, to the
        tolerance of the inner problem, derivatives included, nothing depends on how often it is called.

        Parameters
        ----------
        mu
            The measures, detached.
        memory
            What the last call returned; None at the first step. A pytree of the same structure and shapes in each step: its
            tensors are ``(*batch, ...)`` and detached, so that samples can be left out; numbers; `Cached` values. A
            trajectory saves tensors and numbers.
        step
            Number of the step.
        generator
            Where to draw random numbers from, of one that `draws`; None where the flow draws nothing.

        Returns
        -------
        Dynamics
            What takes the place of this one in the step: velocities, energies, line searches. Of a functional, a functional.
            `with_memory` makes it.
        memory
            For the next call.
        """
        return self, None

    def with_memory(self: Own, memory: Any) -> Own:
        """The same one, its parameters and targets shared, which has ``memory`` in `memory`; `rows` restricts that too."""
        return changed(self, memory=memory)

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> Dynamics:
        """That of some measures of a batch: its targets and its numbers for each measure are those of them.

        Parameters
        ----------
        keep
            Which entries of the first batch dimension.
        batch_shape
            Shape of the batch so far.

        Raises
        ------
        ValueError
            If it is not `removable`.
        """
        if not self.removable:
            raise ValueError(f"{self!r} may hold something for each measure that is not known; set its `removable` if not")
        chosen = select(self, keep, batch_shape)
        assert isinstance(chosen, Dynamics)
        return chosen
