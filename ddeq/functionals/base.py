"""`Functional`: energies on measures; from one `forward`, the first variation and the Wasserstein gradient."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.functionals.smoothness import Smoothness
from ddeq.held import Holder, changed, select, store
from ddeq.kernels.base import shown
from ddeq.measures import DiscreteMeasure, unchecked, values_are_known
from ddeq.messages import renamed_attribute, warn
from ddeq.ranks import gathered, summed

__all__ = ["Functional", "Scaled", "Smoothness", "Sum"]


Own = TypeVar("Own", bound="Functional")


class Functional(Holder):
    r"""An energy :math:`F(\mu)` on measures.

    A new functional writes `forward` alone, as a function of points and weights that is measure consistent (measure
    consistency, T1). `first_variation` and `wasserstein_gradient` then follow by automatic differentiation (first variations,
    T2), and are differentiable again. Closed forms may override `first_variation` where they are faster; the Wasserstein
    gradient follows it. Functionals add, subtract and scale: ``F + 0.1 * G``.

    Called with something that is no measure, it raises a `TypeError`; a `ValueError` where ``forward`` does not give one number
    for each measure.

    References
    ----------
    :cite:t:`santambrogio2015optimal`, chapter 7, on first variations.

    Examples
    --------
    >>> class Spread(Functional):
    ...     def forward(self, mu):
    ...         return 0.5 * mu.mass() * mu.covariance().diagonal(dim1=-2, dim2=-1).sum(-1)
    >>> mu = DiscreteMeasure(torch.tensor([[0.0], [2.0]]))
    >>> Spread()(mu), Spread().wasserstein_gradient(mu).squeeze()
    (tensor(0.5000), tensor([-1.,  1.]))
    """

    smoothness: Smoothness = Smoothness.ALMOST_EVERYWHERE
    exact_variation: bool = True
    """Whether the constant of `first_variation` is right too, so that mass can grow by it. Who overrides that declares it."""
    reads_marks: bool = False
    """Whether the value depends on the marks of the atoms; then there is no first variation at points without marks."""
    tolerance: float = 0.0
    """Relative error that the solve of an inner problem may leave in the value and its derivatives."""
    removable: bool = False
    """Whether `rows` finds all that it holds for each measure of a batch: targets, and numbers of the catalogue. Functions may
    hold anything; where they hold nothing for single measures, set this to True, and samples that have finished can leave."""

    remembers: bool = False
    """Whether `prepare` does something; true of a class that defines it."""
    draws: bool = False
    """Whether `prepare` draws random numbers, for which a flow then has a generator."""
    memory: Any = None
    """What `with_memory` gave this functional for a step; None elsewhere."""

    selectable = renamed_attribute("selectable", "removable", "0.2")
    select = renamed_attribute("select", "rows", "0.2")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "prepare" in cls.__dict__ and "remembers" not in cls.__dict__:
            cls.remembers = True
        if "first_variation" in cls.__dict__:
            cls.exact_variation = cls.__dict__.get("exact_variation", False)
        if "selectable" in cls.__dict__:
            text = f"{cls.__name__}.selectable is now {cls.__name__}.removable; the old name goes away in version 0.2"
            warn(DeprecationWarning(text))
            cls.removable = cls.__dict__["selectable"]
            del cls.selectable

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        """The energy of each measure of the batch ``mu``, ``(*batch,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward(mu)`")

    def __call__(self, mu: DiscreteMeasure) -> Tensor:
        """`forward`, once ``mu`` is known to be a measure, and its result to be one number for each."""
        if not isinstance(mu, DiscreteMeasure):
            raise TypeError(f"mu: expected a DiscreteMeasure, got {type(mu).__name__}; use DiscreteMeasure(points)")
        value: Any = super().__call__(mu)
        if not isinstance(value, Tensor) or value.shape != mu.batch_shape:
            seen = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{type(self).__name__}.forward: expected one number per measure, shape {mu.batch_shape}, got {seen}"
            )
        return summed(value)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        r"""First variation :math:`\frac{\delta F}{\delta\mu}(x)`, up to a constant unless `exact_variation` is true.

        By default the derivative of the energy in the weights, at ``x`` in those of atoms of mass zero placed there (first
        variations, T2).

        Parameters
        ----------
        mu, x
            The measures, and points ``(*batch, m, d)``; default: the atoms of ``mu``.

        Raises
        ------
        ValueError
            If ``x`` is given and the functional reads the marks of atoms, which points do not have.
        """
        if x is None:
            return gradient(lambda w: self(mu.with_weights(w)), mu.weights)
        x = places(mu, x)
        if self.reads_marks and mu.marks is not None:
            raise ValueError(f"x: {type(self).__name__} reads marks, which points do not have; leave x out for the atoms")
        unmarked = mu.with_marks(None)
        return gradient(lambda w: self(unmarked + unchecked(x, w)), x.new_zeros(x.shape[:-1]))

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        r"""Wasserstein gradient :math:`\nabla \frac{\delta F}{\delta\mu}(x)`.

        At the atoms of positive mass this is :math:`\frac1{w_i}\frac{\partial F}{\partial x_i}` (first variations, T2).

        Parameters
        ----------
        mu
            The measures.
        x
            Points ``(*batch, m, d)``; default: the atoms of ``mu``, those of mass zero included.
        """
        if x is not None or type(self).first_variation is not Functional.first_variation:
            return gradient(lambda p: self.first_variation(mu, p), places(mu, x))
        dead = ~mu.support()
        force = gradient(lambda p: self(mu.with_points(p)), mu.points)
        at_atoms = force / torch.where(dead, 1.0, mu.weights).unsqueeze(-1)
        if values_are_known(dead) and not bool(gathered(dead.any())):
            return at_atoms

        def of_dead_atoms(points: Tensor) -> Tensor:  # only its own first variation sees where a dead atom lies
            return torch.where(dead, self.first_variation(mu.with_points(points)), 0.0)

        return torch.where(dead.unsqueeze(-1), gradient(of_dead_atoms, mu.points), at_atoms)

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Functional, Any]:
        """The functional that a flow uses in one step, and what it hands to this method in the next one.

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
            Where to draw random numbers from, of a functional that `draws`; None where the flow draws nothing.

        Returns
        -------
        Functional
            What takes the place of this functional in the step: velocities, energies, line searches. `with_memory` makes it.
        memory
            For the next call.
        """
        return self, None

    def with_memory(self: Own, memory: Any) -> Own:
        """The same functional, its parameters and targets shared, which has ``memory`` in `memory`; `rows` restricts that too."""
        return changed(self, memory=memory)

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> Functional:
        """The functional of some measures of a batch: its targets and its numbers for each measure are those of them.

        Parameters
        ----------
        keep
            Which entries of the first batch dimension.
        batch_shape
            Shape of the batch so far.

        Raises
        ------
        ValueError
            If the functional is not `removable`.
        """
        if not self.removable:
            raise ValueError(f"{self!r} may hold something for each measure that is not known; set its `removable` if not")
        chosen = select(self, keep, batch_shape)
        assert isinstance(chosen, Functional)
        return chosen

    def __repr__(self) -> str:
        kernel = getattr(self, "kernel", None)
        parts = [self.extra_repr(), f"kernel={kernel!r}" if kernel is not None else ""]
        return f"{type(self).__name__}({', '.join(part for part in parts if part)})"

    def __add__(self, other: Functional) -> Sum:
        return Sum(self, other) if isinstance(other, Functional) else NotImplemented

    def __radd__(self, other: float) -> Functional:
        return self if other == 0 else NotImplemented  # where `sum` begins

    def __mul__(self, factor: float | Tensor) -> Scaled:
        return Scaled(self, factor) if isinstance(factor, Real | Tensor) else NotImplemented

    __rmul__ = __mul__
    __array_ufunc__ = None  # numbers of NumPy leave the product to us

    def __truediv__(self, divisor: float | Tensor) -> Scaled:
        return self * (1.0 / divisor)

    def __neg__(self) -> Scaled:
        return self * -1.0

    def __sub__(self, other: Functional) -> Sum:
        return self + -other if isinstance(other, Functional) else NotImplemented


def places(mu: DiscreteMeasure, x: Tensor | None) -> Tensor:
    """Where a first variation is wanted: the atoms, or ``x`` in the batch shape of ``mu`` once they are known to fit.

    Raises
    ------
    ValueError
        If ``x`` differs from ``mu`` in dimension, dtype or device, or in batch shape and is not a single set of points.
    """
    if x is None:
        return mu.points
    if x.ndim < 2 or x.shape[-1] != mu.dim or x.shape[:-2] not in ((), mu.batch_shape):
        raise ValueError(f"x: expected points {(*mu.batch_shape, 'm', mu.dim)} as of the measure, got shape {tuple(x.shape)}")
    if (x.dtype, x.device) != (mu.dtype, mu.device):
        raise ValueError(f"x: expected {mu.dtype} on {mu.device} as of the measure, got {x.dtype} on {x.device}")
    return x.expand(*mu.batch_shape, *x.shape[-2:])


class Sum(Functional):
    """Sum of two functionals, as ``F + G`` makes it; closed forms of its parts are used.

    Parameters
    ----------
    first, second
        The two.
    """

    def __init__(self, first: Functional, second: Functional) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.smoothness = max(first.smoothness, second.smoothness)
        self.reads_marks = first.reads_marks or second.reads_marks
        self.exact_variation = first.exact_variation and second.exact_variation
        self.tolerance = max(first.tolerance, second.tolerance)
        self.remembers, self.draws = first.remembers or second.remembers, first.draws or second.draws
        self._declared: bool | None = None

    @property
    def removable(self) -> bool:  # that of its parts as they are now, unless it was set
        """Whether both parts are, unless it was set."""
        return self.first.removable and self.second.removable if self._declared is None else self._declared

    @removable.setter
    def removable(self, value: bool) -> None:
        self._declared = value

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return self.first(mu) + self.second(mu)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        return self.first.first_variation(mu, x) + self.second.first_variation(mu, x)

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        return self.first.wasserstein_gradient(mu, x) + self.second.wasserstein_gradient(mu, x)

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Sum, Any]:
        of_first, of_second = (None, None) if memory is None else memory
        first, of_first = self.first.prepare(mu, of_first, step, generator)
        second, of_second = self.second.prepare(mu, of_second, step, generator)
        return changed(self, first=first, second=second), (of_first, of_second)

    def __repr__(self) -> str:
        return f"{self.first!r} + {self.second!r}"


class Scaled(Functional):
    """Multiple of a functional, as ``c * F`` makes it: ``c`` is a number, or a tensor of shape ``()`` or ``(*batch,)``.

    Parameters
    ----------
    functional
        The functional :math:`F`.
    factor
        The number :math:`c`. An ``nn.Parameter`` trains; another tensor is a buffer and keeps its history.
    """

    def __init__(self, functional: Functional, factor: float | Tensor) -> None:
        super().__init__()
        self.factor: float | Tensor
        self.functional = functional
        self.smoothness, self.reads_marks = functional.smoothness, functional.reads_marks
        self.exact_variation, self.tolerance = functional.exact_variation, functional.tolerance
        self.remembers, self.draws = functional.remembers, functional.draws
        self._declared: bool | None = None
        store(self, "factor", factor if isinstance(factor, Tensor) else float(factor))

    @property
    def removable(self) -> bool:
        """Whether the functional is, unless it was set."""
        return self.functional.removable if self._declared is None else self._declared

    @removable.setter
    def removable(self, value: bool) -> None:
        self._declared = value

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return self._factor(0) * self.functional(mu)

    def first_variation(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m"]:
        return self._factor(1) * self.functional.first_variation(mu, x)

    def wasserstein_gradient(
        self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None
    ) -> Float[Tensor, "*batch m d"]:
        return self._factor(2) * self.functional.wasserstein_gradient(mu, x)

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Scaled, Any]:
        functional, memory = self.functional.prepare(mu, memory, step, generator)
        return changed(self, functional=functional), memory

    def __repr__(self) -> str:
        inner = f"({self.functional!r})" if isinstance(self.functional, Sum) else repr(self.functional)
        return f"{shown(self.factor)} * {inner}"

    def _factor(self, dims: int) -> float | Tensor:
        """The factor with as many dimensions behind the batch."""
        c = self.factor
        return c[(...,) + (None,) * dims] if isinstance(c, Tensor) else c
