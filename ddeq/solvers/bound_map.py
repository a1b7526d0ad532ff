"""A map on measures with every tensor that may require grad laid open, so that derivatives in all of them are possible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ddeq.autodiff import OpenModule, autocast_now, recompute, strangers, without_autocast
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["BoundMap"]

Map = Callable[..., DiscreteMeasure]


class BoundMap:
    """``map(mu, *args)`` as a function of the points of ``mu``.

    `tensors` holds what else it may depend on: weights and marks of ``mu``, the tensors in ``args``, and the parameters
    of ``map`` where it is a module (and those of its buffers that require grad). The autocast that holds when a map is
    bound holds in each of its evaluations, whenever they happen; images are in the precision of ``mu``.
    """

    def __init__(self, map: Map, mu: DiscreteMeasure, args: tuple[Any, ...], in_dims: Any) -> None:
        leaves, self._spec = pytree.tree_flatten(args)
        self.map, self.mu, self._leaves = map, mu, leaves
        self._dims = None if in_dims is None else _flat_dims(in_dims, leaves, self._spec, mu)
        self._module = OpenModule(map) if isinstance(map, nn.Module) else None
        own = [] if self._module is None else self._module.tensors
        given = [mu.weights] + ([] if mu.marks is None else [mu.marks])
        self.tensors: list[Tensor] = given + [t for t in leaves if isinstance(t, Tensor)] + own
        self._autocast = autocast_now(mu.device)
        self._alignment: Tensor | None = None
        self.recomputes = False

    @property
    def removable(self) -> bool:
        """Whether it is known how to leave samples out."""
        return self._dims is not None and bool(self.mu.batch_shape)

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments as a tuple."""
        args: tuple[Any, ...] = pytree.tree_unflatten(self._leaves, self._spec)
        return args

    def image(self, z: Tensor, compare: bool = False) -> Tensor:
        """The points of the image of the measure with atoms at ``z``; ``compare``: also check its weights and marks."""
        if self.recomputes and not compare:
            return recompute(lambda z, *tensors: (self.image_of(z, *tensors),), z, *self.tensors)[0]
        mu = self.mu.with_points(z)
        with self._autocast():
            image = self.map(mu, *self.args)
        return self._checked(mu, image, compare)

    def image_of(self, z: Tensor, *tensors: Tensor, compare: bool = False) -> Tensor:
        """The same as a function of all tensors, in the order of `tensors`."""
        rest = list(tensors)
        weights, marks = rest.pop(0), None if self.mu.marks is None else rest.pop(0)
        leaves = [rest.pop(0) if isinstance(t, Tensor) else t for t in self._leaves]
        mu, args = unchecked(z, weights, marks), pytree.tree_unflatten(leaves, self._spec)
        with self._autocast():
            image = self.map(mu, *args) if self._module is None else self._module(rest, mu, *args)
        return self._checked(mu, image, compare)

    def watched_image(self, z: Tensor) -> Tensor:
        """`image` with the check of weights and marks, and a look for tensors that require grad and entered unseen.

        Raises
        ------
        ValueError
            If a tensor that requires grad takes part and is none of `tensors`.
        """
        image, unseen = strangers(lambda *t: self.image_of(z.detach(), *t, compare=True), *self.tensors)
        if unseen:
            shapes = ", ".join(str(tuple(t.shape)) for t in unseen)
            raise ValueError(
                f"map: tensors of shapes {shapes} that require grad enter the map from outside, where their gradient "
                "would be lost. Pass them through `args`, make the map an nn.Module that holds them as parameters (pass the "
                "module itself, not a function around it), or detach them; the adjoint Unrolled() differentiates everything"
            )
        return self.image(z) if self.recomputes else image

    def aligned(self, alignment: Tensor) -> BoundMap:
        """The map followed by a matrix ``(*batch, n, n)`` that takes each image to the atom with which it belongs."""
        other = copy.copy(self)
        other._alignment = alignment
        return other

    def recomputed(self) -> BoundMap:
        """The same map that keeps nothing of an evaluation but its inputs and computes it again in backward."""
        other = copy.copy(self)
        other.recomputes = True
        return other

    def select(self, keep: Tensor) -> BoundMap:
        """The map of the entries ``keep`` of the first batch dimension; differentiable."""
        assert self._dims is not None
        chosen = [
            leaf if dim is None or not isinstance(leaf, Tensor) else leaf.index_select(dim, keep)
            for leaf, dim in zip(self._leaves, self._dims, strict=True)
        ]
        selected = copy.copy(self)
        selected.mu, selected._leaves = self.mu[keep], chosen
        selected._alignment = None if self._alignment is None else self._alignment[keep]
        own = [] if self._module is None else self._module.tensors
        given = [selected.mu.weights] + ([] if selected.mu.marks is None else [selected.mu.marks])
        selected.tensors = given + [t for t in chosen if isinstance(t, Tensor)] + own
        return selected

    def _checked(self, mu: DiscreteMeasure, image: Any, compare: bool) -> Tensor:
        if not isinstance(image, DiscreteMeasure):
            raise ValueError(f"map: expected it to return a DiscreteMeasure, got {type(image).__name__}; use mu.with_points")
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
        if compare:
            for name in ("weights", "marks"):
                before, after = getattr(mu, name), getattr(image, name)
                if before is not after and not (None not in (before, after) and torch.equal(before, after)):
                    raise ValueError(f"map: expected it to keep the {name} of its argument; use mu.with_points(...)")
        if self._alignment is None:
            return image.points
        with without_autocast(mu.device):
            return self._alignment @ image.points


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
        if not (isinstance(dim, int) and -leaf.ndim <= dim < leaf.ndim and leaf.shape[dim] == rows):
            raise ValueError(
                f"in_dims: expected a dimension of size {rows} (the batch of mu0), got {dim!r} for an argument of shape "
                f"{tuple(leaf.shape)}"
            )
    return dims
