"""`InnerProduct`: how fields on the atoms of a measure are measured; atoms of mass zero and shards are handled here alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddeq.ranks import all_true, gathered, is_sharded, placed_like, summed

__all__ = ["InnerProduct"]

DIVERGENCE = 1e8
"""An iterate this many times larger than the first one has diverged; it would take long to become infinite."""


@dataclass(frozen=True)
class InnerProduct:
    r"""The inner product of :math:`L^2(\mu)`, :math:`\langle a, b\rangle = \sum_i w_i\, a_i \cdot b_i`, or its dual.

    What a method computes from inner products depends on the measure alone (equivariant acceleration, T9). Cotangents carry the
    masses of their atoms; their inner product, the `dual`, divides by them.
    """

    weights: Tensor
    """``(*batch, n)``: the masses, or their inverses."""
    dims: int = 2
    """Dimensions of a field behind the batch: 2 for vectors ``(*batch, n, d)`` at the atoms, 1 for numbers ``(*batch, n)``."""
    limit: Tensor | None = None
    """Largest coordinate that atoms of mass zero may have, ``(*batch, 1, 1)``; None if there are no such atoms.

    They move as an atom of small mass would, and must not end what the others do (measure consistency, T1)."""

    @classmethod
    def of(cls, points: Tensor, weights: Tensor, *, always: bool = False) -> InnerProduct:
        """That of a measure with ``points`` and ``weights``; ``always``: also provide for atoms that lose their mass later."""
        live = (weights > 0).unsqueeze(-1)
        if not always and all_true(live):
            return cls(weights)
        size = gathered(torch.where(live, points.detach().abs(), 0.0).amax((-2, -1), keepdim=True))
        return cls(weights, limit=placed_like(DIVERGENCE * size.clamp_min(1.0), points))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch."""
        return tuple(self.weights.shape[:-1])

    @property
    def field_weights(self) -> Tensor:
        """The weights in a shape that broadcasts with fields."""
        return self.weights.unsqueeze(-1) if self.dims == 2 else self.weights

    @property
    def dual(self) -> InnerProduct:
        """The inner product of cotangents; no derivatives in the weights.

        Atoms of mass zero count as average ones: their cotangents vanish unless the loss depends on them, and then their
        equations must hold too.
        """
        weights = self.weights.detach()
        mean = weights.mean(-1, keepdim=True)
        return replace(self, weights=1.0 / torch.where(weights > 0, weights, torch.where(mean > 0, mean, 1.0)), limit=None)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\langle a, b\rangle`, ``(*batch,)``, whatever the fields are at atoms of mass zero."""
        return self.of_products((a * b).sum(-1) if self.dims == 2 else a * b)

    def of_products(self, products: Tensor) -> Tensor:
        """The integral of a number at each atom, ``(*batch,)``, whatever it is at atoms of mass zero."""
        if self.limit is not None:  # zero times what overflows is NaN
            products = torch.where(self.weights > 0, products, 0.0)
        return summed((self.weights * products).sum(-1))

    def norm(self, a: Tensor) -> Tensor:
        """The norm of a field, ``(*batch,)``; no derivatives."""
        return self.norms(a)[0]

    @torch.no_grad()
    def norms(self, *fields: Tensor) -> tuple[Tensor, ...]:
        """The norms of several fields, each in one pass over its numbers; no derivatives."""
        lengths = torch.stack([torch.linalg.vector_norm(f, dim=-1) if self.dims == 2 else f for f in fields])
        if self.limit is not None:
            lengths = torch.where(self.weights > 0, lengths, 0.0)
        return summed((self.weights * lengths.square()).sum(-1)).sqrt().unbind(0)

    def bounded(self, field: Tensor, otherwise: Tensor | float) -> Tensor:
        """``field``, and ``otherwise`` at atoms of mass zero where it is NaN or beyond the `limit`."""
        if self.limit is None:
            return field
        fine = (field.detach().abs() <= self.limit).all(-1, keepdim=True) | (self.weights > 0).unsqueeze(-1)
        return torch.where(fine, field, otherwise)

    def per_sample(self, number: Tensor) -> Tensor:
        """One number for each sample, ``()`` or ``(*batch,)``, as all ranks have it where fields are spread over ranks."""
        return placed_like(number, self.weights)

    @property
    def is_sharded(self) -> bool:
        """Whether fields are spread over ranks."""
        return is_sharded(self.weights)

    @staticmethod
    def everywhere(t: Tensor) -> Tensor:
        """A number for each sample as a plain tensor, which every rank has."""
        return gathered(t)

    def like_field(self, t: Tensor) -> Tensor:
        """A tensor that all ranks have, spread over them as fields are, or as a number for each sample is."""
        return placed_like(t, self.weights, atoms=t.ndim == len(self.batch_shape) + self.dims)

    def rows(self, keep: Tensor) -> InnerProduct:
        """That of the samples ``keep``."""
        return replace(self, weights=self.weights[keep], limit=None if self.limit is None else self.limit[keep])
