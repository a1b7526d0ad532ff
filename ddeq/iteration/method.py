"""`Method`: what solvers, steppers and flows are, and what they read and give in a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.draws import Draws
from ddeq.iteration.declared import Declared
from ddeq.iteration.equation import Equation
from ddeq.iteration.inner import InnerProduct

__all__ = ["Iterate", "Method", "Solver", "Step", "check_state", "restored", "state_tensors"]

E = TypeVar("E", bound=Equation)


@dataclass(frozen=True, slots=True)
class Iterate:
    """What a method may read, for each sample of a batch that is still in the computation."""

    z: Tensor
    """The iterate, ``(*batch, ...)``."""
    residual: Tensor
    """The residual there: a field, which points to the solution."""
    norm: Tensor
    """Norm of the residual, ``(*batch,)``."""
    size: Tensor
    """What the norm is divided by to give the relative residual, ``(*batch,)``."""
    step: int
    """Number of the step."""
    draw: Draws | None = None
    """Random numbers, where the solve was given a generator."""
    previous: Iterate | None = None
    """The iterate before, whose own `previous` is None."""
    energy: Tensor | None = None
    """The energy at ``z``, ``(*batch,)``, if the last step has found it."""
    known_image: Tensor | None = None
    """``z + residual``, where the equation has computed it."""
    changes: tuple[Tensor, Tensor, Tensor] | None = None
    """``z``, ``z + residual`` and ``residual`` minus those of `previous`, where the equation has computed them."""
    to_image: bool = False
    """Whether the step from here was to ``z + residual``, for all samples."""

    @property
    def image(self) -> Tensor:
        """``z + residual``: of a fixed point, the image of ``z``."""
        return self.z + self.residual if self.known_image is None else self.known_image

    def without_previous(self, to_image: bool) -> Iterate:
        """The iterate as the `previous` of the next one."""
        return Iterate(self.z, self.residual, self.norm, self.size, self.step, None, None, self.energy, None, None, to_image)

    def rows(self, keep: Tensor) -> Iterate:
        """That of the samples ``keep``."""
        return replace(
            self,
            z=self.z[keep],
            residual=self.residual[keep],
            norm=self.norm[keep],
            size=self.size[keep],
            draw=None if self.draw is None else self.draw.rows(keep),
            previous=None if self.previous is None else self.previous.rows(keep),
            energy=None if self.energy is None else self.energy[keep],
            known_image=None,
            changes=None,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of a `Method` gives."""

    z: Tensor
    """The next iterate, ``(*batch, ...)``."""
    state: Any
    """What the method remembers: a pytree whose tensors are ``(*batch, ...)``, or None."""
    evaluations: int = 0
    """Evaluations of the residual, on the batch, that the step has made besides the one it was given."""
    duration: float | Tensor | None = None
    """Time that the step took, one number or ``(*batch,)``; None where there is no time."""
    energy: Tensor | None = None
    """The energy at ``z``, ``(*batch,)``, where the step has found it."""
    status: Tensor | None = None
    """``(*batch,)``: the `Status` of samples that the method ends here, and -1 for the others; None: it ends none."""
    note: Tensor | None = None
    """``(*batch, k)``: what `Method.parts` counts."""
    to_image: bool = False
    """Whether ``z`` is the last iterate plus its residual, for all samples."""


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
    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the methods that it consists of; `Step.note` counts the steps of each."""

    @property
    def ends_when_still(self) -> bool:
        """Whether a sample that a step does not move has stagnated, because no later step would move it either."""
        return False

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


def check_state(method: Method[Any], state: Any, batch_shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless every tensor of a method's state has one entry for each sample."""
    for t in pytree.tree_leaves(state):
        if isinstance(t, Tensor) and tuple(t.shape[: len(batch_shape)]) != batch_shape:
            raise ValueError(
                f"{type(method).__name__}: expected all tensors of its state to begin with the batch shape {batch_shape}, got "
                f"one of shape {tuple(t.shape)}; give each sample its own entry, or keep a Python number"
            )


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
