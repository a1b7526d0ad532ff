"""`Method`: what solvers, steppers and flows are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.draws import Draws
from ddeq.iteration.declared import Declared
from ddeq.iteration.equation import Equation
from ddeq.iteration.inner import InnerProduct
from ddeq.iteration.iterate import Iterate, Step

__all__ = ["Method", "Solver", "restored", "state_tensors"]

E = TypeVar("E", bound=Equation)


class Method(Declared, ABC, Generic[E]):
    """A frozen set of options with pure ``init`` and ``step``: they leave what they are given unchanged.

    Stopping, batches, removal of finished samples and gradients are the driver's business. What a method can do is declared by
    the class attributes below.
    """

    recovers: ClassVar[bool] = False
    """Whether it goes on from an iterate that is not finite or far too large, as a method that extrapolates may have to."""
    removable: ClassVar[bool] = True
    """Whether its options hold nothing for single samples, so that finished ones can leave the computation."""
    differentiable: ClassVar[bool] = True
    """Whether autograd can record its steps."""
    unwatched: ClassVar[bool] = False
    """Whether its steps may go unwatched where nothing is to converge: they read the iterate, the residual and the state alone,
    end no sample, and what is not finite makes all later iterates so."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the methods that it consists of; `Step.note` counts the steps of each."""

    @property
    def ends_when_still(self) -> bool:
        """Whether a sample that a step does not move has stagnated, because no later step would move it either."""
        return False

    def unrecorded(self) -> str:
        """The message where autograd would record the steps of a method that is not `differentiable`."""
        return f"solver: autograd cannot record the steps of {type(self).__name__}; use adjoint=Implicit(), or another solver"

    @abstractmethod
    def init(self, equation: E, at: Iterate) -> Any:
        """The state before the first step, at the start: a pytree whose tensors are ``(*batch, ...)``, or None.

        Parameters
        ----------
        equation
            The `Equation` to solve.
        at
            The start, and its residual.
        """

    @abstractmethod
    def step(self, equation: E, at: Iterate, state: Any) -> Step:
        """The next iterate and state.

        Parameters
        ----------
        equation
            The `Equation` to solve: residuals elsewhere, products with the derivative, the inner product.
        at
            The iterate, and its residual.
        state
            What `init` or the last step gave.
        """

    def perturbed(self, equation: E, z: Tensor, step: int, draw: Draws | None) -> E:
        """The equation whose residual step number ``step`` from ``z`` asks for, with random numbers ``draw``; by default the
        ``equation`` itself."""
        return equation


class Solver(Method[Equation]):
    r"""A method for :math:`g(z) = 0` that sees iterates, residuals and an inner product: for fixed points and adjoint equations.

    To write one: a frozen dataclass with `init` and `step`. With the residual :math:`r = \Phi(z) - z` in ``at.residual``, plain
    iteration is ``Step(at.image, None)``. Inner products and norms come from ``equation.inner``: then the iterates
    depend on the measure alone. `ddeq.testing.check_solver` holds a solver to what the library relies on.
    """

    needs_measures: ClassVar[bool] = False
    """Whether it solves equations on measures only, and not, for example, adjoint equations."""


def state_tensors(state: Any) -> tuple[Tensor, ...]:
    """The tensors of a method's state, detached."""
    return tuple(t.detach() for t in pytree.tree_leaves(state) if isinstance(t, Tensor))


def restored(state: Any, tensors: tuple[Tensor, ...], inner: InnerProduct) -> Any:
    """A fresh state with the ``tensors`` of an earlier one; as it is if there are none.

    Raises
    ------
    ValueError
        If they are not of the same number and shapes: another method left them.
    """
    leaves, spec = pytree.tree_flatten(state)
    own = [t for t in leaves if isinstance(t, Tensor)]
    if not tensors:
        return state
    shapes = [[tuple(t.shape) for t in some] for some in (own, tensors)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"stepper: expected the one that the trajectory was made with, whose state has shapes {shapes[1]}, got {shapes[0]}"
        )
    given = iter(tensors)
    return pytree.tree_unflatten(
        [inner.like_field(next(given).to(t.device)) if isinstance(t, Tensor) else t for t in leaves], spec
    )
