"""First variations and Wasserstein gradients of a value by automatic differentiation, and where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddeq.autodiff import gradient
from ddeq.functionals.packing import Packing
from ddeq.measures import DiscreteMeasure, unchecked, values_are_known
from ddeq.ranks import gathered

__all__ = [
    "added",
    "gradient_at_atoms",
    "gradient_of_packed",
    "multiplied",
    "places",
    "variation_at",
    "variation_at_atoms",
    "variation_of_packed",
]

Value = Callable[[DiscreteMeasure], Tensor]
"""A number for each measure."""


def variation_at_atoms(value: Value, mu: DiscreteMeasure) -> Tensor:
    """The derivative in the weights, ``(*batch, n)``."""
    return gradient(lambda w: value(mu.with_weights(w)), mu.weights)


def variation_at(value: Value, mu: DiscreteMeasure, x: Tensor) -> Tensor:
    """The derivative in the weights of atoms of mass zero at ``x``, ``(*batch, m)``; of a value that reads no marks."""
    unmarked = mu.with_marks(None)
    return gradient(lambda w: value(unmarked + unchecked(x, w)), x.new_zeros(x.shape[:-1]))


def gradient_at_atoms(value: Value, variation: Value, mu: DiscreteMeasure) -> Tensor:
    r""":math:`\frac1{w_i}\frac{\partial F}{\partial x_i}`, and at atoms of mass zero the gradient of the ``variation`` there,
    ``(*batch, n, d)``."""
    dead = ~mu.support()
    force = gradient(lambda p: value(mu.with_points(p)), mu.points)
    at_atoms = force / torch.where(dead, 1.0, mu.weights).unsqueeze(-1)
    if values_are_known(dead) and not bool(gathered(dead.any())):
        return at_atoms

    def of_dead_atoms(points: Tensor) -> Tensor:  # only its own first variation sees where a dead atom lies
        return torch.where(dead, variation(mu.with_points(points)), 0.0)

    return torch.where(dead.unsqueeze(-1), gradient(of_dead_atoms, mu.points), at_atoms)


def variation_of_packed(value: Any, packing: Packing, mu: Any) -> Tensor:
    """The derivative in the weights of the measure in which several are stored."""
    return variation_at_atoms(lambda flat: value(packing.unpack(flat)), packing.pack(mu))


def gradient_of_packed(value: Any, packing: Packing, mu: Any) -> Any:
    """The gradients at the atoms of several measures that are stored as one."""

    def of_flat(flat: DiscreteMeasure) -> Tensor:
        found: Tensor = value(packing.unpack(flat))
        return found

    return packing.unpack_field(gradient_at_atoms(of_flat, lambda flat: variation_at_atoms(of_flat, flat), packing.pack(mu)))


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


def added(a: Any, b: Any) -> Any:
    """The sum of two tensors, or of those of each species."""
    return {name: a[name] + b[name] for name in a} if isinstance(a, dict) else a + b


def multiplied(factor: float | Tensor, a: Any) -> Any:
    """A multiple of a tensor, or of those of each species."""
    return {name: factor * part for name, part in a.items()} if isinstance(a, dict) else factor * a
