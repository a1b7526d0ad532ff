"""`Equation`: what every solve of the library is about, and products with its derivative."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddeq.autodiff import check_recordable, forward_mode_is_missing
from ddeq.draws import Draws
from ddeq.iteration.failures import ConvergenceWarning
from ddeq.iteration.inner import InnerProduct
from ddeq.iteration.iterate import Iterate
from ddeq.measures import DiscreteMeasure

__all__ = ["Descent", "Equation", "Linear", "LinearAnswer", "LinearSolver", "Sizes"]

Own = TypeVar("Own", bound="Equation")


class Sizes(NamedTuple):
    """How large things are at an iterate, ``(*batch,)`` each; no derivatives."""

    norm: Tensor
    """Norm of the residual."""
    size: Tensor | None = None
    """What the residual is compared with; None: with its norm at the start."""
    extent: Tensor | None = None
    """Size used to detect divergence; None: an iterate may be as large as it likes, while its residual is finite."""
    growth: Tensor | None = None
    """Factor by which the last step would grow if it were repeated by plain iteration; None: unknown."""
    image: Tensor | None = None
    """``z + residual``, where it was computed on the way."""
    changes: tuple[Tensor, Tensor, Tensor] | None = None
    """`Iterate.changes`, likewise."""


class Equation(ABC):
    r"""An equation :math:`g(z, \theta) = 0`, for every sample of a batch by itself.

    A new kind of problem subclasses this. It sets `inner` and, where derivatives are wanted, `tensors`, and defines `residual`;
    everything else has a default.
    """

    name: ClassVar[str] = "solution"
    """What a solution is called in messages."""
    remedy: ClassVar[str] = "take more steps or another solver"
    """What may help where a solve does not converge, for messages."""
    how_to_remove: ClassVar[str] = "define `removable` and `rows`, so that they take no part in backward"
    """How samples can be left out, for messages."""

    tensors: tuple[Tensor, ...] = ()
    r"""All that the solution depends on differentiably: :math:`\theta`."""
    inner: InnerProduct
    """Inner product of fields, of which the residual is one."""
    removable: bool = False
    """Whether `rows` is defined, so that samples can leave the computation when they have finished."""
    shardable: bool = False
    """Whether its measures may be spread over ranks (`ddeq.reductions.shard`)."""
    varies: bool = False
    """Whether `prepared` gives another equation in each step."""
    keeps_nonfinite: bool = False
    """Whether an iterate that is not finite stays so whatever finite step is added to it: no projection makes it finite."""
    recomputes: bool = False
    """Whether `residual` keeps its inputs alone for backward, and is evaluated again there."""

    @abstractmethod
    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        r""":math:`g(z, \theta)`, which points to the solution: :math:`\Phi(z) - z`, :math:`-\nabla_W F`, :math:`b - Az`.

        Parameters
        ----------
        z
            The iterate, ``(*batch, ...)``.
        tensors
            Other tensors in the place of `tensors`, in their order; none: those of the equation.
        """

    def evaluated(self, z: Tensor) -> tuple[Tensor, Any]:
        """The `residual` at ``z``, and what was made on the way that a method for this equation can use (`Iterate.made`)."""
        return self.residual(z), None

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        """How large the ``residual`` at ``z`` is, and what it is compared with; ``previous`` is the iterate before, or None."""
        return Sizes(self.inner.norm(residual))

    def linearize(self, z: Tensor, *, forward_mode: bool = True) -> Linear:
        """Products with the derivative of the residual at ``z`` and its transpose; ``forward_mode`` as in `Linear`."""
        return Linear(self.residual, z, forward_mode=forward_mode)

    def linear_solver(self, z: Tensor, status: Tensor) -> LinearSolver | None:
        """A solver for linear equations with the derivative at the solution ``z``, where the equation knows a good one.

        None leaves them to a general method. ``status`` tells how each sample ended.
        """
        return None

    def rows(self: Own, keep: Tensor) -> Own:
        """The equation of the entries ``keep`` of the first batch dimension; a `ValueError` unless `removable`."""
        raise ValueError(f"{type(self).__name__} does not say how to leave samples out: define `rows(keep)`")

    def prepared(self: Own, z: Tensor, memory: Any, step: int, draw: Draws | None) -> tuple[Own, Any]:
        """The equation that is used in one step, from ``z``, and what is handed to this method in the next one.

        For inner problems that start from the solution of the step before; no derivatives. By default the equation itself.

        Parameters
        ----------
        z
            The iterate, ``(*batch, ...)``.
        memory
            What the last call returned, for the samples that are left; None at the first one. A pytree as in
            `ddeq.Functional.prepare`.
        step
            Number of the step.
        draw
            Random numbers, where the solve was given a generator.
        """
        return self, memory

    def recomputed(self: Own) -> Own:
        """The same equation, which keeps nothing of an evaluation but its inputs and evaluates again in backward."""
        other = copy.copy(self)
        other.recomputes = True
        return other

    def measure(self, z: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``z``; a `ValueError` where ``z`` are not points of a measure."""
        raise ValueError("solver: this problem is not one on measures; take Picard, Anderson or another point solver")

    def image(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        """The image of a `measure` under the map whose fixed point is wanted; a `ValueError` where there is none."""
        raise ValueError("solver: this problem has no map on measures; take Picard, Anderson or another point solver")

    def coupled(self, z: Tensor, residual: Tensor) -> Tensor:
        """The ``residual`` at ``z`` with optimally coupled images; a `ValueError` where ``z`` are not points of a measure."""
        raise ValueError("solver: this equation is not one on measures; use coupling='index'")

    def matched(self: Own, z: Tensor, status: Tensor, tolerance: float) -> tuple[Own, Tensor | None]:
        """The equation with images matched to atoms where ``z`` solves it as a measure only, and the mismatch that is left.

        Asked for where the stop has a metric of its own. ``status`` is that of each sample, ``tolerance`` the relative mismatch
        that needs no matching.
        """
        return self, None

    def admitted(self, z: Tensor) -> Tensor:
        """The nearest iterate that the equation admits, for a proposal ``z`` of a method; default: ``z`` itself."""
        return z

    def unseen(self, shapes: str) -> str:
        """The message about tensors of these ``shapes`` that require grad and are not among `tensors`."""
        return f"tensors of shapes {shapes} that require grad enter {type(self).__name__} and are not among its `tensors`"


class Descent(Equation):
    """An equation whose residual is the velocity of a flow; it has an energy too."""

    @abstractmethod
    def energy(self, z: Tensor) -> Tensor:
        """The energy at ``z``, ``(*batch,)``."""

    def slope(self, z: Tensor, velocity: Tensor) -> Tensor:
        """Rate at which the energy falls at ``z`` along the ``velocity`` there, ``(*batch,)``."""
        return self.product(z, velocity, velocity)

    # Where iterates live on a curved space or in one with a boundary, these differ from their defaults.

    def product(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of fields ``a`` and ``b`` at ``z``, ``(*batch,)``."""
        return self.inner(a, b)

    def moved(self, z: Tensor, step: Tensor) -> Tensor:
        """Where a ``step`` leads from ``z``."""
        return z + step

    def travelled(self, z: Tensor, step: Tensor, there: Tensor) -> Tensor:
        """The step that led from ``z`` to ``there = moved(z, step)``, as a field there."""
        return there - z

    def carried(self, z: Tensor, step: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
        """The ``fields`` at ``z``, ``(..., *batch, n, d)``, carried along a ``step`` to where it leads."""
        return fields

    def returned(self, z: Tensor, step: Tensor, there: Tensor, field: Tensor) -> Tensor:
        """A ``field`` at ``there = moved(z, step)``, carried back to ``z``."""
        return field


class Linear:
    r"""The derivative :math:`J = \partial g/\partial z` of a residual at ``z``, as products; no derivatives of these.

    Parameters
    ----------
    residual
        The function of ``z``.
    z
        Where.
    forward_mode
        Whether to try forward-mode differentiation, one evaluation for each product. Where an operation lacks it, two
        reverse ones do, with one evaluation in all.
    """

    def __init__(self, residual: Callable[[Tensor], Tensor], z: Tensor, *, forward_mode: bool = True) -> None:
        check_recordable("a product with a derivative")
        self._residual, self._z = residual, z.detach()
        self.forward_mode = forward_mode
        """Whether no operation is known to lack forward-mode derivatives."""
        self.evaluations = 0
        """Evaluations so far, a product counting as one."""
        self._graph: tuple[Tensor, Tensor] | None = None
        self._double: tuple[Tensor, Tensor] | None = None

    def product(self, v: Tensor) -> Tensor:
        r""":math:`J v`."""
        self.evaluations += 1
        if self.forward_mode:
            try:
                pushed: Tensor = torch.func.jvp(self._residual, (self._z,), (v,))[1]
                return pushed
            except (RuntimeError, NotImplementedError) as error:
                if not forward_mode_is_missing(error):
                    raise
                self.forward_mode = False
        if self._double is None:
            z, value = self._recorded()
            u = torch.zeros_like(value, requires_grad=True)
            with torch.enable_grad():
                self._double = self._pull(value, z, u, create_graph=True), u
        pulled, u = self._double
        return self._pull(pulled, u, v)

    def transposed(self, u: Tensor) -> Tensor:
        r""":math:`J^\top u`, of a cotangent."""
        self.evaluations += 1
        z, value = self._recorded()
        return self._pull(value, z, u)

    def _recorded(self) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            self.evaluations += 1
            with torch.enable_grad():
                z = self._z.requires_grad_()
                self._graph = z, self._residual(z)
        return self._graph

    @staticmethod
    def _pull(value: Tensor, z: Tensor, u: Tensor, create_graph: bool = False) -> Tensor:
        if not value.requires_grad:
            return torch.zeros_like(z)
        (product,) = torch.autograd.grad(value, z, u, retain_graph=True, create_graph=create_graph, materialize_grads=True)
        return product


class LinearAnswer(NamedTuple):
    """What a `LinearSolver` gives."""

    x: Tensor
    """The solution, of the shape of the right-hand side."""
    failures: tuple[ConvergenceWarning, ...] = ()
    """What makes a derivative wrong: the adjoint warns of them, or raises them as an error, as its user wants."""
    notices: tuple[ConvergenceWarning, ...] = ()
    """What the user should know besides."""


class LinearSolver(ABC):
    """Solves linear equations with the derivative of an equation at a solution, which it knows."""

    @abstractmethod
    def solve(self, operator: Callable[[Tensor], Tensor], b: Tensor, dual: bool) -> LinearAnswer:
        """An ``x`` with ``A x + b = 0``.

        Parameters
        ----------
        operator
            Products with ``A``: the derivative or, if ``dual``, its transpose.
        b
            ``(*batch, ...)``.
        dual
            Whether ``x`` is a cotangent or, as ``z`` is, a field.
        """
