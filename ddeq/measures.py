"""Discrete measures: points, weights and marks; batches of them; and the operations that make new measures of old.

A measure is what its arrays stand for, not the arrays: permuting the atoms, splitting an atom's mass between copies
and adding atoms of mass zero leave it as it is (measure consistency, T1). Ragged batches are therefore padded with atoms of
mass zero, and no function of this library takes a mask.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import torch
import torch.utils._pytree as pytree
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddeq.draws import place_of
from ddeq.files import read_tensors
from ddeq.integers import whole
from ddeq.ranks import gathered, placed_like, summed, write

__all__ = ["DiscreteMeasure"]

PRECISIONS = (torch.float32, torch.float64)


class DiscreteMeasure:
    r"""A batch of discrete measures :math:`\mu = \sum_i w_i \delta_{x_i}`, optionally with marks.

    Immutable. A pytree, so that it passes through ``torch.func``, ``torch.vmap`` and ``torch.compile``.
    Values are checked here and in `from_clouds` only; measures derived from a checked one check shapes.

    Parameters
    ----------
    points
        Atoms :math:`x_i`, ``(*batch, n, d)``, of float32 or float64, finite.
    weights
        Masses :math:`w_i`, ``(*batch, n)``, non-negative and finite; the total mass need not be one. Default ``1/n``.
    marks
        Labels ``(*batch, n, q)`` that travel with the atoms and that no flow or solver moves (marks, T6).

    Raises
    ------
    ValueError
        For an empty cloud, points or weights that are not finite, negative weights, tensors of other dtypes, or shapes,
        dtypes or devices that do not fit each other. The message names the argument, what was seen and what is wanted.

    Examples
    --------
    >>> mu = DiscreteMeasure(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), weights=torch.tensor([1.0, 3.0]))
    >>> mu.mass(), mu.mean()
    (tensor(4.), tensor([1.5000, 0.0000]))
    >>> mu.split_atom(1, 0.5)
    DiscreteMeasure(n=3, dim=2, dtype=torch.float32, device='cpu')
    """

    __slots__ = ("marks", "points", "weights")

    points: Tensor
    weights: Tensor
    marks: Tensor | None

    def __init__(
        self,
        points: Float[Tensor, "*batch n d"],
        weights: Float[Tensor, "*batch n"] | None = None,
        marks: Float[Tensor, "*batch n q"] | None = None,
    ) -> None:
        _check_tensor("points", points)
        if points.ndim < 2 or 0 in points.shape[-2:]:
            raise ValueError(
                f"points: expected shape (*batch, n, d) with n >= 1 atoms of dimension d >= 1, got {tuple(points.shape)}"
            )
        if weights is None:
            weights = points.new_full(points.shape[:-1], 1.0 / points.shape[-2])
        _check_atoms(points, weights, marks)
        _check_values(points, weights, marks)
        _fill(self, points, weights, marks)

    @classmethod
    def from_clouds(
        cls,
        clouds: Sequence[Float[Tensor, "_ d"]],
        weights: Sequence[Float[Tensor, " _"]] | None = None,
        marks: Sequence[Float[Tensor, "_ q"]] | None = None,
    ) -> DiscreteMeasure:
        """One batch of ragged clouds, padded with atoms of mass zero.

        Parameters
        ----------
        clouds
            Point clouds ``(n_i, d)``; the batch has ``n = max(n_i)`` atoms.
        weights
            Their masses ``(n_i,)``; default ``1/n_i`` in each cloud.
        marks
            Their marks ``(n_i, q)``.

        Raises
        ------
        ValueError
            If there is no cloud, if a cloud is empty, or if dimensions, dtypes or devices differ; the message names
            the position of the cloud.
        """
        for name, given in (("weights", weights), ("marks", marks)):
            if given is not None and len(given) != len(clouds):
                raise ValueError(f"{name}: expected one tensor per cloud ({len(clouds)}), got {len(given)}")
        measures = []
        for i, cloud in enumerate(clouds):
            try:
                if isinstance(cloud, Tensor) and cloud.ndim != 2:
                    raise ValueError(f"points: expected shape (n, d), got {tuple(cloud.shape)}")
                measures.append(cls(cloud, None if weights is None else weights[i], None if marks is None else marks[i]))
            except ValueError as error:
                raise ValueError(f"clouds[{i}]: {error}") from None
        try:
            return cls.stack(measures)
        except ValueError as error:
            raise ValueError(str(error).replace("measures", "clouds", 1)) from None

    @classmethod
    def stack(cls, measures: Sequence[DiscreteMeasure]) -> DiscreteMeasure:
        """Measures of equal batch shape stacked along a new first batch dimension, padded with atoms of mass zero.

        Raises
        ------
        ValueError
            If there is no measure, or if batch shapes, dimensions, marks, dtypes or devices differ.
        """
        if len(measures) == 0:
            raise ValueError("measures: expected at least one, got an empty sequence")
        first = measures[0]
        for i, mu in enumerate(measures):
            if mu.batch_shape != first.batch_shape:
                raise ValueError(f"measures[{i}]: expected batch shape {first.batch_shape} as before, got {mu.batch_shape}")
            _check_compatible(first, mu, f"measures[{i}]")
        n = max(mu.n for mu in measures)
        padded = [mu.pad_atoms(n - mu.n) for mu in measures]
        marks = None if first.marks is None else torch.stack([_present(mu.marks) for mu in padded])
        return unchecked(torch.stack([mu.points for mu in padded]), torch.stack([mu.weights for mu in padded]), marks)

    # --- what it is ---

    @property
    def n(self) -> int:
        """Number of atoms, those of mass zero included."""
        return self.points.shape[-2]

    @property
    def dim(self) -> int:
        """Dimension of the space in which the atoms lie."""
        return self.points.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch: empty for a single measure."""
        return tuple(self.points.shape[:-2])

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of points, weights and marks."""
        return self.points.dtype

    @property
    def device(self) -> torch.device:
        """Device of points, weights and marks."""
        return self.points.device

    def mass(self) -> Float[Tensor, "*batch"]:
        r"""Total mass :math:`\mu(\mathbb R^d) = \sum_i w_i`."""
        return summed(self.weights.sum(-1))

    def mean(self) -> Float[Tensor, "*batch d"]:
        r"""Mean :math:`m = \int x \,\mathrm d\mu / \mu(\mathbb R^d)`; a `ValueError` where the mass is zero."""
        # Relative to what rounding leaves of it: far from the origin the products would lose the digits that matter.
        origin = middle(self)
        return summed(self._probabilities("mean").unsqueeze(-2) @ (self.points - origin) + origin).squeeze(-2)

    def covariance(self) -> Float[Tensor, "*batch d d"]:
        r"""Covariance :math:`\int (x - m)(x - m)^\top \mathrm d\mu / \mu(\mathbb R^d)`; a `ValueError` where the mass is zero."""
        centred = self.points - self.mean().unsqueeze(-2)
        return summed((centred * self._probabilities("covariance").unsqueeze(-1)).mT @ centred)

    def support(self) -> Bool[Tensor, "*batch n"]:
        """Which atoms carry mass: ``weights > 0``."""
        return self.weights > 0

    def __repr__(self) -> str:
        batch = f"batch_shape={self.batch_shape}, " if self.batch_shape else ""
        marks = "" if self.marks is None else f"marks={self.marks.shape[-1]}, "
        return f"DiscreteMeasure({batch}n={self.n}, dim={self.dim}, {marks}dtype={self.dtype}, device='{self.device}')"

    # --- the same measure, stored otherwise ---

    def permute_atoms(self, index: Int[Tensor, "*batch n"]) -> DiscreteMeasure:
        """The atoms in the order ``index``, ``(n,)`` or ``(*batch, n)``: the same measure; a `ValueError` for other shapes."""
        if index.shape[-1:] != (self.n,):
            raise ValueError(f"index: expected a permutation of {self.n} atoms, got shape {tuple(index.shape)}")
        return self._gather(index.expand(*self.batch_shape, self.n))

    def split_atom(self, i: int, fraction: float) -> DiscreteMeasure:
        """Atom ``i`` gives ``fraction`` of its mass to a copy of itself, which comes last: the same measure.

        Raises
        ------
        ValueError
            If ``fraction`` is not between 0 and 1, or there is no atom ``i``.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
        if not -self.n <= i < self.n:
            raise ValueError(f"i: expected the number of one of {self.n} atoms, got {i}")
        i %= self.n
        split = self._gather(
            torch.tensor([*range(self.n), i], dtype=torch.long, device=self.device).expand(*self.batch_shape, self.n + 1)
        )
        share = split.weights.new_ones(self.n + 1)
        share[i], share[-1] = 1.0 - fraction, fraction
        return split.with_weights(split.weights * share)

    def pad_atoms(self, k: int) -> DiscreteMeasure:
        """``k`` more atoms of mass zero, copies of the first atom: the same measure; a `ValueError` if ``k`` is negative."""
        k = whole("k", k, 0, what="number of atoms")
        if k == 0:
            return self

        def pad(t: Tensor) -> Tensor:
            return torch.cat([t, t[..., :1, :].expand(*t.shape[:-2], k, t.shape[-1])], -2)

        weights = torch.cat([self.weights, self.weights.new_zeros(*self.batch_shape, k)], -1)
        return unchecked(pad(self.points), weights, None if self.marks is None else pad(self.marks))

    # --- other measures ---

    def push_forward(self, map: Callable[[Tensor], Tensor]) -> DiscreteMeasure:
        r"""Push-forward :math:`T_\#\mu = \sum_i w_i \delta_{T(x_i)}`; ``map`` takes ``(*batch, n, d)`` to ``(*batch, n, e)``."""
        return self.with_points(map(self.points))

    def with_points(self, points: Float[Tensor, "*batch n e"]) -> DiscreteMeasure:
        """The same weights and marks at other ``points``, ``(*batch, n, e)``; under autocast in the precision of this measure.

        Raises
        ------
        ValueError
            If there is not one point for each atom, or its dtype or device is another.
        """
        if not isinstance(points, Tensor) or points.shape[:-1] != self.weights.shape:
            seen = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(f"points: expected a tensor of shape {(*self.weights.shape, 'd')}, got {seen}")
        if torch.is_autocast_enabled(points.device.type):
            points = points.to(self.dtype)
        _check_atoms(points, self.weights, self.marks)
        return unchecked(points, self.weights, self.marks)

    def with_weights(self, weights: Float[Tensor, "*batch n"]) -> DiscreteMeasure:
        """The same atoms with other ``weights``, ``(*batch, n)``; a `ValueError` if they do not fit the points."""
        _check_atoms(self.points, weights, self.marks)
        return unchecked(self.points, weights, self.marks)

    def with_marks(self, marks: Float[Tensor, "*batch n q"] | None) -> DiscreteMeasure:
        """The same atoms with other ``marks``, ``(*batch, n, q)``, or None; a `ValueError` if they do not fit the points."""
        _check_atoms(self.points, self.weights, marks)
        return unchecked(self.points, self.weights, marks)

    def normalized(self) -> DiscreteMeasure:
        """The probability measure proportional to this one; a `ValueError` where the mass is zero."""
        return self.with_weights(self._probabilities("normalized"))

    def resample(self, n: int, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """``n`` atoms drawn independently in proportion to their mass, of equal weights and the same total mass.

        Not differentiated in which atoms are drawn.

        Parameters
        ----------
        n
            How many atoms to draw, with replacement.
        generator
            Randomness of the draws; default: torch's global one.

        Raises
        ------
        ValueError
            If ``n`` is less than one, or a mass is zero.
        """
        n = whole("n", n, what="number of atoms")
        probabilities = self._probabilities("resample").detach().reshape(-1, self.n)
        drawing = probabilities.to(place_of(generator))
        index = torch.multinomial(drawing, n, replacement=True, generator=generator).to(self.device)
        drawn = self._gather(index.reshape(*self.batch_shape, n))
        return drawn.with_weights((self.mass() / n).unsqueeze(-1).expand(drawn.weights.shape))

    def __add__(self, other: DiscreteMeasure) -> DiscreteMeasure:
        """Sum of measures: the atoms of both. A single measure is added to each measure of a batch."""
        if not isinstance(other, DiscreteMeasure):
            return NotImplemented
        _check_compatible(self, other, "mu + nu")
        try:
            batch = torch.broadcast_shapes(self.batch_shape, other.batch_shape)
        except RuntimeError:
            raise ValueError(f"mu + nu: batch shapes {self.batch_shape} and {other.batch_shape} do not broadcast") from None
        a, b = self.expand(*batch), other.expand(*batch)
        marks = None if a.marks is None else torch.cat([a.marks, _present(b.marks)], -2)
        return unchecked(torch.cat([a.points, b.points], -2), torch.cat([a.weights, b.weights], -1), marks)

    def __mul__(self, factor: SupportsFloat | Float[Tensor, "*batch"]) -> DiscreteMeasure:
        """The mass times a non-negative number, or times one number for each measure of the batch."""
        if isinstance(factor, Tensor):
            if factor.shape not in ((), self.batch_shape):
                raise ValueError(f"c * mu: expected c of shape () or {self.batch_shape}, got {tuple(factor.shape)}")
            if values_are_known(factor) and not bool((factor >= 0).all()):
                raise ValueError(f"c * mu: expected c >= 0 (weights are non-negative), got {_smallest(factor)}")
            return self.with_weights(self.weights * factor.to(self.weights).unsqueeze(-1))
        try:
            c = float(factor)  # numbers of NumPy too
        except TypeError:
            return NotImplemented
        if not (c >= 0 and math.isfinite(c)):
            raise ValueError(f"c * mu: expected a finite c >= 0 (weights are non-negative), got {c}")
        return self.with_weights(self.weights * c)

    __rmul__ = __mul__
    __array_ufunc__ = None  # numbers of NumPy leave the product to us

    # --- batches ---

    def __getitem__(self, index: Any) -> DiscreteMeasure:
        """Measures of the batch: ``index`` is anything that indexes a tensor of shape `batch_shape`."""
        if not self.batch_shape:
            raise IndexError("a single measure has no batch to index; its atoms are mu.points and mu.weights")
        number = torch.arange(math.prod(self.batch_shape), device=self.device).reshape(self.batch_shape)[index]
        number = placed_like(number, self.points)
        return self._map(lambda t, k: t.flatten(0, -k - 1)[number])

    def __iter__(self) -> Iterator[DiscreteMeasure]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("a single measure has no length; its number of atoms is mu.n")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        return True

    def expand(self, *batch_shape: int) -> DiscreteMeasure:
        """The same measures broadcast to ``batch_shape``, without copying."""
        if batch_shape == self.batch_shape:
            return self
        return self._map(lambda t, k: t.expand(*batch_shape, *t.shape[t.ndim - k :]))

    # --- storage ---

    def detach(self) -> DiscreteMeasure:
        """The same measure without its history in autograd."""
        return self._map(lambda t, k: t.detach())

    def to(self, *args: Any, **kwargs: Any) -> DiscreteMeasure:
        """The same measure in another floating-point type or on another device.

        ``args`` and ``kwargs`` as in `torch.Tensor.to`; a `ValueError` for another type than float32 and float64.
        """
        moved = self._map(lambda t, k: t.to(*args, **kwargs))
        _check_tensor("dtype", moved.points)
        return moved

    def pin_memory(self) -> DiscreteMeasure:
        """The same measure in page-locked memory, as in `torch.Tensor.pin_memory`: what a `DataLoader` asks for."""
        return self._map(lambda t, k: t.pin_memory())

    def save(self, path: str | Path) -> None:
        """Write the measure to a safetensors file; one that is spread over ranks is gathered, and written by the first."""
        write(path, {"points": self.points, "weights": self.weights, "marks": self.marks})

    @classmethod
    def load(cls, path: str | Path) -> DiscreteMeasure:
        """Read a measure that `save` wrote, to the CPU; a `ValueError` if the file is broken or holds something else."""
        tensors, _ = read_tensors(path)
        if not {"points", "weights"} <= tensors.keys() <= {"points", "weights", "marks"}:
            raise ValueError(f"path: expected a file with tensors points, weights and maybe marks, got {sorted(tensors)}")
        return cls(**tensors)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a DiscreteMeasure is immutable: use mu.with_{name}(...) to get another one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a DiscreteMeasure is immutable")

    def __deepcopy__(self, memo: dict[Any, Any]) -> DiscreteMeasure:
        # A copy has no history: autograd cannot copy one.
        return self._map(lambda t, k: copy.deepcopy(t, memo) if t.is_leaf else t.detach().clone())

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (self.points, self.weights, self.marks)

    # --- helpers ---

    def _map(self, f: Callable[[Tensor, int], Tensor]) -> DiscreteMeasure:
        """``f(tensor, number of its dimensions behind the batch)`` on each of the tensors."""
        return unchecked(f(self.points, 2), f(self.weights, 1), None if self.marks is None else f(self.marks, 2))

    def _gather(self, index: Tensor) -> DiscreteMeasure:
        """Atoms by number, ``(*batch, m)``."""

        def rows(t: Tensor) -> Tensor:
            return torch.gather(t, -2, index.unsqueeze(-1).expand(*index.shape, t.shape[-1]))

        marks = None if self.marks is None else rows(self.marks)
        return unchecked(rows(self.points), torch.gather(self.weights, -1, index), marks)

    def _probabilities(self, asked: str) -> Tensor:
        mass = self.mass()
        if values_are_known(mass) and not bool((mass > 0).all()):
            raise ValueError(f"weights: `{asked}` needs a positive total mass, got {_smallest(mass)}")
        return self.weights / mass.unsqueeze(-1)


def _fill(mu: DiscreteMeasure, points: Any, weights: Any, marks: Any) -> None:  # transforms fill in placeholders
    object.__setattr__(mu, "points", points)
    object.__setattr__(mu, "weights", weights)
    object.__setattr__(mu, "marks", marks)


def unchecked(points: Any, weights: Any, marks: Any = None) -> DiscreteMeasure:
    """A measure whose parts are known to fit: nothing is checked."""
    mu = object.__new__(DiscreteMeasure)
    _fill(mu, points, weights, marks)
    return mu


def rebuilt(points: Any, weights: Any, marks: Any = None) -> DiscreteMeasure:
    """A measure as it was pickled; a `ValueError` unless its parts fit each other."""
    _check_tensor("points", points)
    if points.ndim < 2 or 0 in points.shape[-2:]:
        raise ValueError(f"points: expected shape (*batch, n, d), got {tuple(points.shape)}")
    _check_atoms(points, weights, marks)
    return unchecked(points, weights, marks)


def middle(mu: DiscreteMeasure) -> Tensor:
    """About the mean, ``(*batch, 1, d)``, to measure places from; without derivatives, and the origin where there is no mass."""
    mass = summed(mu.weights.detach().sum(-1, keepdim=True))
    return summed((mu.weights.detach() / torch.where(mass > 0, mass, 1.0)).unsqueeze(-2) @ mu.points.detach())


def _present(marks: Tensor | None) -> Tensor:
    assert marks is not None
    return marks


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}; use torch.as_tensor(...)")
    if value.dtype not in PRECISIONS:
        why = " (half precision has too few digits for sums over atoms)" if value.dtype.is_floating_point else ""
        raise ValueError(f"{name}: expected float32 or float64, got {value.dtype}{why}; use .float() or .double()")


def _check_atoms(points: Tensor, weights: Tensor, marks: Tensor | None) -> None:
    """Shapes, dtypes and devices of the three parts fit each other."""
    parts = {"points": points, "weights": weights} | ({} if marks is None else {"marks": marks})
    for name, part in parts.items():
        _check_tensor(name, part)
        if (part.dtype, part.device) != (points.dtype, points.device):
            raise ValueError(
                f"{name}: expected {points.dtype} on {points.device} as of points, got {part.dtype} on {part.device}"
            )
        shape = part.shape if name == "weights" else part.shape[:-1]
        if shape != points.shape[:-1] or part.ndim < 1:
            wanted = tuple(points.shape[:-1]) + (() if name == "weights" else ("q",))
            raise ValueError(f"{name}: expected shape {wanted} for points {tuple(points.shape)}, got {tuple(part.shape)}")


def _check_values(points: Tensor, weights: Tensor, marks: Tensor | None) -> None:
    parts = {"points": points, "weights": weights} | ({} if marks is None else {"marks": marks})
    for name, part in parts.items():
        if values_are_known(part) and not bool(gathered(torch.isfinite(part).all())):
            bad = int(gathered((~torch.isfinite(part)).sum()))
            raise ValueError(f"{name}: expected finite values, got {bad} that are NaN or infinite")
    if values_are_known(weights) and bool(gathered((weights < 0).any())):
        raise ValueError(f"weights: expected non-negative values, got {_smallest(weights)}")


def _check_compatible(mu: DiscreteMeasure, nu: DiscreteMeasure, name: str) -> None:
    """Atoms of both measures can stand in one."""
    if mu.dim != nu.dim:
        raise ValueError(f"{name}: expected atoms of dimension {mu.dim}, got {nu.dim}")
    if (mu.dtype, mu.device) != (nu.dtype, nu.device):
        raise ValueError(f"{name}: expected {mu.dtype} on {mu.device}, got {nu.dtype} on {nu.device}; use .to(...)")
    q, r = (None if m.marks is None else m.marks.shape[-1] for m in (mu, nu))
    if q != r:
        raise ValueError(f"{name}: expected marks of dimension {q}, got {r}; use .with_marks(...)")


def values_are_known(t: Tensor) -> bool:
    """Whether ``t`` holds numbers that a check may read: not while compiling, under `vmap`, or on the meta device."""
    if torch.compiler.is_compiling() or t.device.type == "meta":
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            return False
        t = functorch.get_unwrapped(t)
    return True


def _smallest(t: Tensor) -> float:
    return float(gathered(t.detach().min()))


def check_mass(name: str, mu: DiscreteMeasure) -> None:
    """Raise a `ValueError` unless every measure of the batch has positive mass, where its values are known."""
    mass = mu.mass()
    if values_are_known(mass) and not bool((mass > 0).all()):
        raise ValueError(f"{name}: expected measures of positive total mass, got {_smallest(mass)}")


def _flatten(mu: DiscreteMeasure) -> tuple[list[Any], bool]:
    return [mu.points, mu.weights] + ([] if mu.marks is None else [mu.marks]), mu.marks is not None


def _flatten_with_keys(mu: DiscreteMeasure) -> tuple[list[tuple[Any, Any]], bool]:
    tensors, marked = _flatten(mu)
    names = ("points", "weights", "marks")
    return [(pytree.GetAttrKey(name), t) for name, t in zip(names, tensors, strict=False)], marked


def _unflatten(tensors: Any, marked: bool) -> DiscreteMeasure:
    points, weights, *marks = tensors
    return unchecked(points, weights, marks[0] if marked else None)


pytree.register_pytree_node(
    DiscreteMeasure,
    _flatten,
    _unflatten,
    serialized_type_name="ddeq.DiscreteMeasure",
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([rebuilt])  # torch.load takes measures: it checks shapes and runs nothing
