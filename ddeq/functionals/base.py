"""`Functional`: energies on measures; from one `forward`, the first variation and the Wasserstein gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packing import Measures, Packing, agreed_outer_weights, batch_shape_of, named_places, packing_of
from ddeq.functionals.smoothness import Smoothness
from ddeq.functionals.variations import (
    added,
    gradient_at_atoms,
    gradient_of_packed,
    multiplied,
    places,
    variation_at,
    variation_at_atoms,
    variation_of_packed,
)
from ddeq.held import changed, store
from ddeq.kernels.base import shown
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import summed

__all__ = ["Functional", "Scaled", "Smoothness", "Sum"]


class Functional(Dynamics):
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
    stackable: bool = False
    """Whether `forward` takes measures stacked along further first dimensions of the batch, too, and gives the numbers of each:
    a flow then evaluates the energies of many records at once."""
    tolerance: float = 0.0
    """Relative error that the solve of an inner problem may leave in the value and its derivatives."""
    couples_batch: bool = False
    """Whether the samples of the last batch dimension are one measure of measures, so that `forward` gives
    ``(*batch[:-1],)``, and gradients and first variations are per unit of outer times inner weight."""
    outer_weights: Tensor | None = None
    """Weights of that measure, one for each sample of the last batch dimension; None: equal ones of mass one."""
    has_energy = True
    remembers = False

    @staticmethod
    def of(
        function: Callable[..., Tensor],
        *,
        smoothness: Smoothness = Smoothness.ALMOST_EVERYWHERE,
        reads_marks: bool = False,
        removable: bool = False,
        couples_batch: bool = False,
        outer_weights: Tensor | None = None,
    ) -> Functional:
        """The functional of a plain function of a measure.

        Parameters
        ----------
        function
            Measures to one number each, ``(*batch,)``, measure consistent (T1) as a `forward` is. An ``nn.Module`` keeps its
            parameters, which train; a plain function that captures them does not make them known. A function of several
            measures has them by name, ``lambda measures: ...``.
        smoothness, reads_marks, removable, couples_batch, outer_weights
            As the attributes of a functional.

        Raises
        ------
        ValueError
            If ``function`` cannot be called, or is a functional already.

        Examples
        --------
        >>> F = Functional.of(lambda mu: 0.5 * mu.mean().square().sum(-1))
        >>> F.wasserstein_gradient(DiscreteMeasure(torch.tensor([[0.0], [2.0]]))).squeeze()
        tensor([1., 1.])
        """
        functional = _OfFunction(function)
        functional.smoothness, functional.reads_marks, functional.removable = smoothness, reads_marks, removable
        functional.couples_batch, functional.outer_weights = couples_batch, outer_weights
        return functional

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "first_variation" in cls.__dict__:
            cls.exact_variation = cls.__dict__.get("exact_variation", False)

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        """The energy of each measure of the batch ``mu``, ``(*batch,)``; of several measures by name, their joint one."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward(mu)`")

    def __call__(self, mu: DiscreteMeasure | Measures) -> Tensor:
        """`forward`, once ``mu`` is known to be a measure or several by name, and its result to be one number for each."""
        batch_shape = batch_shape_of(type(self).__name__, mu, self.couples_batch)
        value: Any = super().__call__(mu)
        if not isinstance(value, Tensor) or value.shape != batch_shape:
            seen = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{type(self).__name__}.forward: expected one number per measure, shape {batch_shape}, got {seen}")
        return summed(value)

    def first_variation(self, mu: Any, x: Any = None) -> Any:
        r"""First variation :math:`\frac{\delta F}{\delta\mu}(x)`, up to a constant unless `exact_variation` is true.

        By default the derivative of the energy in the weights, at ``x`` in those of atoms of mass zero placed there (first
        variations, T2).

        Parameters
        ----------
        mu, x
            The measures, and points ``(*batch, m, d)``; default: the atoms of ``mu``. Of several measures both are dicts, and
            so is the result.

        Raises
        ------
        ValueError
            If ``x`` is given and the functional reads the marks of atoms, which points do not have; or the samples of a batch
            are one measure.
        """
        if isinstance(mu, Mapping):
            at = dict.fromkeys(mu) if x is None else named_places(mu, x)
            return {
                name: self._default_variation(partial(self._of_species, mu, name), mu[name], there) for name, there in at.items()
            }
        if self.couples_batch:
            return variation_of_packed(self, self._packing(mu, x), mu).reshape(mu.weights.shape)
        return self._default_variation(self, mu, x)

    def _default_variation(self, value: Callable[[DiscreteMeasure], Tensor], mu: DiscreteMeasure, x: Tensor | None) -> Tensor:
        if x is None:
            return variation_at_atoms(value, mu)
        x = places(mu, x)
        if self.reads_marks and mu.marks is not None:
            raise ValueError(f"x: {type(self).__name__} reads marks, which points do not have; leave x out for the atoms")
        return variation_at(value, mu, x)

    def _of_species(self, measures: Measures, name: str, mu: DiscreteMeasure) -> Tensor:
        return self({**measures, name: mu})

    def wasserstein_gradient(self, mu: Any, x: Any = None) -> Any:
        r"""Wasserstein gradient :math:`\nabla \frac{\delta F}{\delta\mu}(x)`.

        At the atoms of positive mass this is :math:`\frac1{w_i}\frac{\partial F}{\partial x_i}` (first variations, T2).

        Parameters
        ----------
        mu, x
            As in `first_variation`; atoms of mass zero have gradients too.
        """
        if isinstance(mu, Mapping) and x is not None:
            return {name: self._gradient_at(mu, name, there) for name, there in named_places(mu, x).items()}
        if isinstance(mu, Mapping) or self.couples_batch:
            return gradient_of_packed(self, self._packing(mu, x), mu)
        if x is not None or type(self).first_variation is not Functional.first_variation:
            return gradient(lambda p: self.first_variation(mu, p), places(mu, x))
        return gradient_at_atoms(self, self.first_variation, mu)

    def _gradient_at(self, mu: Measures, name: str, x: Tensor | None) -> Tensor:
        return gradient(lambda p: self.first_variation(mu, {name: p})[name], places(mu[name], x))

    def _packing(self, mu: DiscreteMeasure | Measures, x: object) -> Packing:
        return packing_of(type(self).__name__, mu, x, self.outer_weights)

    def velocity(self, mu: Any, x: Any = None) -> Any:
        return multiplied(-1.0, self.wasserstein_gradient(mu, x))

    def prepare(self, mu: Any, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Functional, Any]:
        return self, None

    def rows(self, keep: Tensor, batch_shape: tuple[int, ...]) -> Functional:
        chosen = super().rows(keep, batch_shape)
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


class _Combination(Functional):
    """What is made of functionals, and has of each what it declares."""

    def __init__(self, *parts: Functional) -> None:
        super().__init__()
        self.smoothness = max(part.smoothness for part in parts)
        self.tolerance = max(part.tolerance for part in parts)
        self.exact_variation = all(part.exact_variation for part in parts)
        self.reads_marks = any(part.reads_marks for part in parts)
        self.stackable = all(part.stackable for part in parts)
        self.remembers, self.draws = any(part.remembers for part in parts), any(part.draws for part in parts)
        self.varies = any(part.varies for part in parts)
        if len({part.couples_batch for part in parts}) > 1:
            raise ValueError("functional: expected parts that all couple the samples of a batch, or none, got both")
        self.couples_batch = parts[0].couples_batch
        self.outer_weights = agreed_outer_weights([part.outer_weights for part in parts])
        self._declared: bool | None = None

    @property
    def removable(self) -> bool:  # that of its parts as they are now, unless it was set
        """Whether all parts are, unless it was set."""
        return (
            all(F.removable for F in self.children() if isinstance(F, Functional)) if self._declared is None else self._declared
        )

    @removable.setter
    def removable(self, value: bool) -> None:
        self._declared = value


class Sum(_Combination):
    """Sum of two functionals, as ``F + G`` makes it; closed forms of its parts are used.

    Parameters
    ----------
    first, second
        The two.
    """

    def __init__(self, first: Functional, second: Functional) -> None:
        super().__init__(first, second)
        self.first, self.second = first, second

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        return self.first(mu) + self.second(mu)

    def first_variation(self, mu: Any, x: Any = None) -> Any:
        return added(self.first.first_variation(mu, x), self.second.first_variation(mu, x))

    def wasserstein_gradient(self, mu: Any, x: Any = None) -> Any:
        return added(self.first.wasserstein_gradient(mu, x), self.second.wasserstein_gradient(mu, x))

    def prepare(self, mu: Any, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Sum, Any]:
        of_first, of_second = (None, None) if memory is None else memory
        first, of_first = self.first.prepare(mu, of_first, step, generator)
        second, of_second = self.second.prepare(mu, of_second, step, generator)
        return changed(self, first=first, second=second), (of_first, of_second)

    def __repr__(self) -> str:
        return f"{self.first!r} + {self.second!r}"


class Scaled(_Combination):
    """Multiple of a functional, as ``c * F`` makes it: ``c`` is a number, or a tensor of shape ``()`` or ``(*batch,)``.

    Parameters
    ----------
    functional
        The functional :math:`F`.
    factor
        The number :math:`c`. An ``nn.Parameter`` trains; another tensor is a buffer and keeps its history.
    """

    def __init__(self, functional: Functional, factor: float | Tensor) -> None:
        super().__init__(functional)
        self.factor: float | Tensor
        self.functional = functional
        store(self, "factor", factor if isinstance(factor, Tensor) else float(factor))

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        return self._factor(0) * self.functional(mu)

    def first_variation(self, mu: Any, x: Any = None) -> Any:
        return multiplied(self._factor(1), self.functional.first_variation(mu, x))

    def wasserstein_gradient(self, mu: Any, x: Any = None) -> Any:
        return multiplied(self._factor(2), self.functional.wasserstein_gradient(mu, x))

    def prepare(self, mu: Any, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Scaled, Any]:
        functional, memory = self.functional.prepare(mu, memory, step, generator)
        return changed(self, functional=functional), memory

    def __repr__(self) -> str:
        inner = f"({self.functional!r})" if isinstance(self.functional, Sum) else repr(self.functional)
        return f"{shown(self.factor)} * {inner}"

    def _factor(self, dims: int) -> float | Tensor:
        """The factor with as many dimensions behind the batch."""
        c = self.factor
        return c[(...,) + (None,) * dims] if isinstance(c, Tensor) else c


class _OfFunction(Functional):
    """What `Functional.of` gives."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        if isinstance(function, Functional | type) or not callable(function):
            seen = "a Functional, which is one already" if isinstance(function, Functional) else repr(function)
            raise ValueError(f"function: expected a function from a measure to one number for each of its batch, got {seen}")
        self.function = function

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        return self.function(mu)

    def __repr__(self) -> str:
        return f"Functional.of({getattr(self.function, '__name__', type(self.function).__name__)})"
