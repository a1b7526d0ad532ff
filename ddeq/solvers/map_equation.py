r"""`MapEquation`: fixed points of a map on measures as an equation, :math:`\Phi(z) - z = 0`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ddeq.autodiff import OpenModule, forward_autocast, recompute, without_autocast
from ddeq.functionals.wasserstein import Wasserstein
from ddeq.integers import is_whole
from ddeq.iteration import Equation, InnerProduct, Iterate, Sizes, Status, Stop
from ddeq.iteration.samples import Measured, agreed
from ddeq.measures import DiscreteMeasure, middle, unchecked, values_are_known
from ddeq.solvers.alignment import alignment
from ddeq.solvers.metric import relative_discrepancy
from ddeq.spaces.euclidean import Euclidean
from ddeq.spaces.space import Space

__all__ = ["Map", "MapEquation", "check_kind"]

Map = Callable[..., DiscreteMeasure]


class MapEquation(Equation):
    r"""The points :math:`z` of a measure with :math:`z = \Phi(z)`, for the map :math:`\mu \mapsto` ``map(mu, *args)``.

    `tensors` are what the fixed point may depend on: weights and marks of ``mu``, the tensors in ``args``, and the parameters
    of ``map`` where it is a module (and those of its buffers that require grad). The autocast that holds at construction
    holds in each evaluation of the map, whenever it happens; images are in the precision of ``mu``.

    Parameters
    ----------
    map, args
        The map, and what it takes besides the measure.
    mu
        The measure whose weights and marks are kept.
    in_dims, space
        As in `ddeq.fixed_point`.

    Raises
    ------
    ValueError
        If ``in_dims`` does not fit ``args``. In an evaluation, if the map does not give a measure with the same number of atoms,
        dimension, dtype, device, weights and marks.
    """

    name = "fixed points"
    remedy = "take more steps, another solver or a more stable map"
    how_to_remove = "declare in_dims, so that they take no part in backward where the map is NaN"

    keeps: ClassVar[tuple[str, ...]] = ("weights", "marks")
    """What the map leaves as it is."""
    judges: ClassVar[bool] = False
    """Whether `judged` measures the residual without a metric of the stop too, and not its norm divided by its size."""

    def __init__(
        self,
        map: Map,
        mu: DiscreteMeasure,
        args: tuple[Any, ...] = (),
        in_dims: Any = None,
        *,
        space: Space = Euclidean(),
    ) -> None:
        leaves, self._spec = pytree.tree_flatten(args)
        self.map, self.mu, self._leaves = map, mu, leaves
        self.space, self.constrained = space, space != Euclidean()
        self._dims = None if in_dims is None else _flat_dims(in_dims, leaves, self._spec, mu)
        self._args: tuple[Any, ...] = args
        self._module = OpenModule(map) if isinstance(map, nn.Module) else None
        self.removable = self._dims is not None and bool(mu.batch_shape)
        self.inner = self._inner()
        self._autocast = forward_autocast(mu.device)
        self._matching: Tensor | None = None
        self.tensors = self._depends_on()

    def residual(self, z: Tensor, *tensors: Tensor) -> Tensor:
        if self.recomputes and not tensors:
            return recompute(lambda z, *t: (self.residual(z, *t),), z, *self.tensors)[0]
        if tensors:
            mu, args, own = self._with(z, tensors)
        else:
            mu, args, own = self.measure(z), self._args, []
        if self.constrained:  # so that off the space, where the map means nothing, its derivative is zero
            mu = mu.with_points(self.space.project(mu.points))
        with self._autocast():
            image = self._module(own, mu, *args) if own and self._module is not None else self.map(mu, *args)
        check_kind(mu, image, self.keeps)
        if self.constrained:
            _check_on_space(self.space, mu, image)
        return self._change(z, image, tensors[0] if tensors else self.mu.weights)

    def sizes(self, z: Tensor, residual: Tensor, previous: Iterate | None) -> Sizes:
        image = z + residual
        if previous is None:
            norm, size, start = self.inner.norms(residual, image, z)
            return Sizes(norm, size, start + size, torch.zeros_like(norm), image)
        if previous.to_image:  # the changes are residuals
            norm, size = self.inner.norms(residual, image)
            return Sizes(norm, size, previous.size + size, _ratio(norm, previous.norm), image)
        moved, change = z - previous.z.detach(), residual - previous.residual.detach()
        grown = moved + change
        norm, size, start, before, after = self.inner.norms(residual, image, z, moved, grown)
        return Sizes(norm, size, start + size, _ratio(after, before), image, (moved, grown, change))

    def start(self) -> Tensor:
        """The iterate that is the measure of the equation."""
        return self.inner.bounded(self.mu.points, middle(self.mu))

    def measure(self, z: Tensor) -> DiscreteMeasure:
        """The measure with its atoms at ``z``."""
        return self.mu.with_points(z)

    def admitted(self, z: Tensor) -> Tensor:
        return self.space.near(z, self.space.project(z)) if self.constrained else z

    def judged(self, at: Iterate, stop: Stop) -> Measured:
        """The residual of the iterate ``at`` by the discrepancy of ``stop`` between the measure and its image."""
        mu, image = self.measure(at.z.detach()), self.measure((at.z + at.residual).detach())
        relative, size = relative_discrepancy(stop.metric, mu, image, stop.atol / stop.rtol)
        return Measured(relative, at.norm, None, size)

    def image(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        r""":math:`\Phi(\mu)`, with atoms of mass zero that run away left where they are."""
        return mu.with_points(mu.points + self.inner.bounded(self.residual(mu.points), 0.0))

    def coupled(self, z: Tensor, residual: Tensor) -> Tensor:
        """The ``residual`` at ``z`` with each atom's image taken from the optimal coupling of the measure with its image.

        The Wasserstein gradient is the atom minus that. Atoms of mass zero follow the map, and so do samples that are not finite.
        """
        finite = torch.isfinite(residual).flatten(-2).all(-1)[..., None, None]
        mu, nu = self.measure(z).detach(), self.measure(torch.where(finite, z + residual, z)).detach()
        coupled = -Wasserstein(nu).wasserstein_gradient(mu)
        return torch.where(finite & mu.support().unsqueeze(-1), coupled, residual)

    def matched(self, z: Tensor, status: Tensor, tolerance: float) -> tuple[MapEquation, Tensor]:
        """The equation with images matched to the atoms ``z``, unless they are within the ``tolerance`` already, and how far
        apart they are then; ``status`` is that of each sample."""
        with torch.no_grad():
            z, usable = z.detach(), status != Status.DIVERGED.value
            image = z + self.residual(z)
            size = self.inner.norm(z)

            def mismatch(image: Tensor) -> Tensor:
                return torch.where(usable, self.inner.norm(image - z) / torch.where(size > 0, size, 1.0), 0.0)

            before = mismatch(image)
            if bool((before <= tolerance).all()):
                return self, before
            there = usable[..., None, None]
            matrix = alignment(torch.where(there, z, 0.0), torch.where(there, image, 0.0), self.mu.weights.detach())
        other = copy.copy(self)
        other._matching = matrix
        return other, mismatch(matrix @ image)

    def rows(self, keep: Tensor) -> MapEquation:
        assert self._dims is not None
        chosen = copy.copy(self)
        chosen.mu, chosen.inner = self.mu[keep], self.inner.rows(keep)
        chosen._leaves = [
            leaf if dim is None or not isinstance(leaf, Tensor) else leaf.index_select(dim, keep)
            for leaf, dim in zip(self._leaves, self._dims, strict=True)
        ]
        chosen._args = pytree.tree_unflatten(chosen._leaves, self._spec)
        chosen._matching = None if self._matching is None else self._matching[keep]
        chosen.tensors = chosen._depends_on()
        return chosen

    def unseen(self, shapes: str) -> str:
        return (
            f"map: tensors of shapes {shapes} that require grad enter the map from outside, where their gradient "
            "would be lost. Pass them through `args`, make the map an nn.Module that holds them as parameters (pass the "
            "module itself, not a function around it), or detach them; the adjoint Unrolled() differentiates everything"
        )

    def _inner(self) -> InnerProduct:
        return InnerProduct.of(self.mu.points, self.mu.weights)

    def _change(self, z: Tensor, image: DiscreteMeasure, weights: Tensor) -> Tensor:
        """The residual at ``z``, from the ``image`` of its measure; ``weights`` are those of the start."""
        points = self.space.near(z, image.points)
        if self._matching is not None:
            with without_autocast(z.device):
                points = self._matching @ points
        return points - z

    def _given(self) -> list[Tensor]:
        """Tensors of the start on which the solution depends, its weights first."""
        return [self.mu.weights] + ([] if self.mu.marks is None else [self.mu.marks])

    def _made(self, z: Tensor, rest: list[Tensor]) -> DiscreteMeasure:
        """The measure at ``z``, with tensors taken from ``rest`` in the place of those that `_given` gives."""
        weights = rest.pop(0)
        return unchecked(z, weights, None if self.mu.marks is None else rest.pop(0))

    def _depends_on(self) -> tuple[Tensor, ...]:
        own = [] if self._module is None else self._module.tensors
        return (*self._given(), *(t for t in self._leaves if isinstance(t, Tensor)), *own)

    def _with(self, z: Tensor, tensors: Sequence[Tensor]) -> tuple[DiscreteMeasure, tuple[Any, ...], list[Tensor]]:
        """The measure, the arguments and the tensors of the module with others in the place of `tensors`."""
        rest = list(tensors)
        mu = self._made(z, rest)
        leaves = [rest.pop(0) if isinstance(t, Tensor) else t for t in self._leaves]
        return mu, pytree.tree_unflatten(leaves, self._spec), rest


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    """``after / before``, and zero where ``before`` is."""
    known = before > 0
    return after / before if agreed(known) else torch.where(known, after / torch.where(known, before, 1.0), 0.0)


def _check_on_space(space: Space, mu: DiscreteMeasure, image: DiscreteMeasure) -> None:
    """Raise a `ValueError` unless the atoms of positive mass of the image of ``mu`` lie on the space."""
    if torch._C._are_functorch_transforms_active() or not values_are_known(image.points):
        return
    points = image.points.detach()
    known = image.support() & torch.isfinite(points).all(-1)
    off = known & ~space.contains(torch.where(known.unsqueeze(-1), points, mu.points.detach()))
    if bool(off.any()):
        seen = [round(c, 6) for c in points[off][0].tolist()[:8]]
        raise ValueError(f"map: expected it to keep atoms on {space!r}, got one at {seen}; end it with space.project(points)")


def check_kind(mu: DiscreteMeasure, image: Any, keeps: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless ``image`` is a measure of the same kind as ``mu`` that ``keeps`` what is named."""
    if not isinstance(image, DiscreteMeasure):
        raise ValueError(f"map: expected it to return a DiscreteMeasure, got {type(image).__name__}; use {_make(keeps)}")
    if image.points.shape != mu.points.shape:
        raise ValueError(
            f"map: expected it to keep the number of atoms and their dimension, {tuple(mu.points.shape)}, "
            f"got {tuple(image.points.shape)}"
        )
    if (image.dtype, image.device) != (mu.dtype, mu.device):
        raise ValueError(
            f"map: expected it to keep {mu.dtype} on {mu.device}, got {image.dtype} on {image.device}; "
            "convert the map or the measure with .to(...)"
        )
    for name in keeps:
        before, after = getattr(mu, name), getattr(image, name)
        if before is not after and not _equal(before, after):
            raise ValueError(f"map: expected it to keep the {name} of its argument; use {_make(keeps)}(...)")


def _make(keeps: tuple[str, ...]) -> str:
    """What makes a measure of the same kind."""
    moved = [f"with_{name}" for name in ("points", "weights") if name not in keeps]
    return "mu." + "(...).".join(moved)


def _equal(before: Tensor | None, after: Tensor | None) -> bool:
    if before is None or after is None:
        return before is after
    # Dual numbers and traced tensors have no values to compare.
    known = not torch._C._are_functorch_transforms_active()
    return before.shape == after.shape and (not known or torch.equal(before, after))


def _flat_dims(in_dims: Any, leaves: Sequence[Any], spec: Any, mu: DiscreteMeasure) -> list[int | None]:
    """One dimension for each leaf, from a prefix of the tree as in `torch.vmap`."""
    dims = pytree._broadcast_to_and_flatten(in_dims, spec)
    if dims is None:
        raise ValueError(f"in_dims: expected an int, None, or a structure that is a prefix of args, got {in_dims!r}")
    rows = mu.batch_shape[0] if mu.batch_shape else None
    for leaf, dim in zip(leaves, dims, strict=True):
        if dim is None or not isinstance(leaf, Tensor):
            continue
        if rows is None:
            raise ValueError("in_dims: mu0 is a single measure, so no argument can carry a batch; leave in_dims out")
        if not (is_whole(dim) and -leaf.ndim <= dim < leaf.ndim and leaf.shape[dim] == rows):
            raise ValueError(
                f"in_dims: expected a dimension of size {rows} (the batch of mu0), got {dim!r} for an argument of shape "
                f"{tuple(leaf.shape)}"
            )
    return dims
