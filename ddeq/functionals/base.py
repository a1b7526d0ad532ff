"""`Functional`: energies on measures; from one `forward`, the first variation and the Wasserstein gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.packing import Measures, Outer, Packing, Species, check_species
from ddeq.functionals.smoothness import Smoothness
from ddeq.held import changed, store
from ddeq.kernels.base import shown
from ddeq.measures import DiscreteMeasure, unchecked, values_are_known
from ddeq.messages import renamed_attribute, warn
from ddeq.ranks import gathered, summed

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
        function: Callable[[DiscreteMeasure], Tensor],
        *,
        smoothness: Smoothness = Smoothness.ALMOST_EVERYWHERE,
        reads_marks: bool = False,
        removable: bool = False,
    ) -> Functional:
        """The functional of a plain function of a measure.

        Parameters
        ----------
        function
            Measures to one number each, ``(*batch,)``, measure consistent (T1) as a `forward` is. An ``nn.Module`` keeps its
            parameters, which train; a plain function that captures them does not make them known.
        smoothness, reads_marks, removable
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
        return _OfFunction(function, smoothness, reads_marks, removable)

    selectable = renamed_attribute("selectable", "removable", "0.2")
    select = renamed_attribute("select", "rows", "0.2")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "first_variation" in cls.__dict__:
            cls.exact_variation = cls.__dict__.get("exact_variation", False)
        if "selectable" in cls.__dict__:
            text = f"{cls.__name__}.selectable is now {cls.__name__}.removable; the old name goes away in version 0.2"
            warn(DeprecationWarning(text))
            cls.removable = cls.__dict__["selectable"]
            del cls.selectable

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        """The energy of each measure of the batch ``mu``, ``(*batch,)``; of several measures by name, their joint one."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward(mu)`")

    def __call__(self, mu: DiscreteMeasure | Measures) -> Tensor:
        """`forward`, once ``mu`` is known to be a measure or several by name, and its result to be one number for each."""
        if isinstance(mu, Mapping):
            check_species("mu", mu)
            batch_shape = next(iter(mu.values())).batch_shape
        elif isinstance(mu, DiscreteMeasure):
            batch_shape = mu.batch_shape[:-1] if self.couples_batch else mu.batch_shape
        else:
            raise TypeError(f"mu: expected a DiscreteMeasure, got {type(mu).__name__}; use DiscreteMeasure(points)")
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
            places_of = dict.fromkeys(mu) if x is None else x
            return {name: self.of_species(mu, name).first_variation(mu[name], at) for name, at in places_of.items()}
        if self.couples_batch:
            packing = self._packing(mu, x)
            flat = packing.pack(mu)
            return gradient(lambda w: self(packing.unpack(flat.with_weights(w))), flat.weights).reshape(mu.weights.shape)
        if x is None:
            return gradient(lambda w: self(mu.with_weights(w)), mu.weights)
        x = places(mu, x)
        if self.reads_marks and mu.marks is not None:
            raise ValueError(f"x: {type(self).__name__} reads marks, which points do not have; leave x out for the atoms")
        unmarked = mu.with_marks(None)
        return gradient(lambda w: self(unmarked + unchecked(x, w)), x.new_zeros(x.shape[:-1]))

    def wasserstein_gradient(self, mu: Any, x: Any = None) -> Any:
        r"""Wasserstein gradient :math:`\nabla \frac{\delta F}{\delta\mu}(x)`.

        At the atoms of positive mass this is :math:`\frac1{w_i}\frac{\partial F}{\partial x_i}` (first variations, T2).

        Parameters
        ----------
        mu
            The measures.
        x
            Points ``(*batch, m, d)``; default: the atoms of ``mu``, those of mass zero included. Of several measures ``mu`` and
            ``x`` are dicts, and so is the result.
        """
        if isinstance(mu, Mapping) and x is not None:
            return {name: self.of_species(mu, name).wasserstein_gradient(mu[name], at) for name, at in x.items()}
        if isinstance(mu, Mapping) or self.couples_batch:
            packing = self._packing(mu, x)
            flat = packing.pack(mu)
            return packing.unpack_field(_OfPacked(self, packing).wasserstein_gradient(flat))
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

    def of_species(self, measures: Measures, name: str) -> Functional:
        """The functional of the one of several ``measures`` that is called ``name``, while the others are held fixed."""
        return _OfSpecies(self, measures, name)

    def _packing(self, mu: DiscreteMeasure | Measures, x: object) -> Packing:
        if isinstance(mu, Mapping):
            return Species.of(mu)
        if x is not None:
            raise ValueError(f"x: {type(self).__name__} couples the samples of a batch; leave x out for the atoms")
        if not mu.batch_shape:
            raise ValueError(f"mu: {type(self).__name__} couples the samples of a batch, expected one, got a single measure")
        return Outer(mu.batch_shape[-1], mu.n, self.outer_weights)

    def velocity(self, mu: DiscreteMeasure, x: Float[Tensor, "*points m d"] | None = None) -> Float[Tensor, "*batch m d"]:
        gradient: Tensor = self.wasserstein_gradient(mu, x)
        return -gradient

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Functional, Any]:
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


class _OfSpecies(Functional):
    """A functional of several measures as one of one of them."""

    def __init__(self, functional: Functional, measures: Measures, name: str) -> None:
        super().__init__()
        self.functional, self._others, self._name = functional, dict(measures), name
        self.smoothness, self.tolerance, self.reads_marks = functional.smoothness, functional.tolerance, functional.reads_marks
        self.exact_variation = functional.exact_variation

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return self.functional({**self._others, self._name: mu})


class _OfPacked(Functional):
    """A functional of several measures as one of the measure that they are stored in."""

    def __init__(self, functional: Functional, packing: Packing) -> None:
        super().__init__()
        self.functional, self._packing_of = functional, packing

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return self.functional(self._packing_of.unpack(mu))


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
        self.varies = first.varies or second.varies
        _share_outer(self, first, second)
        self._declared: bool | None = None

    @property
    def removable(self) -> bool:  # that of its parts as they are now, unless it was set
        """Whether both parts are, unless it was set."""
        return self.first.removable and self.second.removable if self._declared is None else self._declared

    @removable.setter
    def removable(self, value: bool) -> None:
        self._declared = value

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        return self.first(mu) + self.second(mu)

    def first_variation(self, mu: Any, x: Any = None) -> Any:
        return _added(self.first.first_variation(mu, x), self.second.first_variation(mu, x))

    def wasserstein_gradient(self, mu: Any, x: Any = None) -> Any:
        return _added(self.first.wasserstein_gradient(mu, x), self.second.wasserstein_gradient(mu, x))

    def prepare(self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None) -> tuple[Sum, Any]:
        of_first, of_second = (None, None) if memory is None else memory
        first, of_first = self.first.prepare(mu, of_first, step, generator)
        second, of_second = self.second.prepare(mu, of_second, step, generator)
        return changed(self, first=first, second=second), (of_first, of_second)

    def __repr__(self) -> str:
        return f"{self.first!r} + {self.second!r}"


def _share_outer(whole: Functional, *parts: Functional) -> None:
    """Say of a sum or multiple whether it couples a batch, as all its parts must do alike."""
    couple = {part.couples_batch for part in parts}
    if len(couple) > 1:
        raise ValueError("functional: expected parts that all couple the samples of a batch, or none, got both")
    whole.couples_batch = parts[0].couples_batch
    given = [part.outer_weights for part in parts if part.outer_weights is not None]
    whole.outer_weights = given[0] if given else None


def _added(a: Any, b: Any) -> Any:
    """The sum of two tensors, or of those of each species."""
    return {name: a[name] + b[name] for name in a} if isinstance(a, dict) else a + b


def _times(factor: float | Tensor, a: Any) -> Any:
    """A multiple of a tensor, or of those of each species."""
    return {name: factor * part for name, part in a.items()} if isinstance(a, dict) else factor * a


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
        self.remembers, self.draws, self.varies = functional.remembers, functional.draws, functional.varies
        _share_outer(self, functional)
        self._declared: bool | None = None
        store(self, "factor", factor if isinstance(factor, Tensor) else float(factor))

    @property
    def removable(self) -> bool:
        """Whether the functional is, unless it was set."""
        return self.functional.removable if self._declared is None else self._declared

    @removable.setter
    def removable(self, value: bool) -> None:
        self._declared = value

    def forward(self, mu: Any) -> Float[Tensor, "*batch"]:
        return self._factor(0) * self.functional(mu)

    def first_variation(self, mu: Any, x: Any = None) -> Any:
        return _times(self._factor(1), self.functional.first_variation(mu, x))

    def wasserstein_gradient(self, mu: Any, x: Any = None) -> Any:
        return _times(self._factor(2), self.functional.wasserstein_gradient(mu, x))

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


class _OfFunction(Functional):
    """What `Functional.of` gives."""

    def __init__(
        self, function: Callable[[DiscreteMeasure], Tensor], smoothness: Smoothness, reads_marks: bool, removable: bool
    ) -> None:
        super().__init__()
        if isinstance(function, Functional | type) or not callable(function):
            seen = "a Functional, which is one already" if isinstance(function, Functional) else repr(function)
            raise ValueError(f"function: expected a function from a measure to one number for each of its batch, got {seen}")
        self.function = function
        self.smoothness, self.reads_marks, self.removable = smoothness, reads_marks, removable

    def forward(self, mu: DiscreteMeasure) -> Float[Tensor, "*batch"]:
        return self.function(mu)

    def __repr__(self) -> str:
        return f"Functional.of({getattr(self.function, '__name__', type(self.function).__name__)})"
