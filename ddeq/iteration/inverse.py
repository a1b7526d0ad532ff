"""`Inverse`: an approximate inverse of a derivative, from products that were taken with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.iteration.iterate import Iterate

__all__ = ["Inverse"]

SEEN = 0.1
"""Share of the square of an older direction that must lie outside of the newer ones for it to be kept."""


class Inverse(NamedTuple):
    r"""The approximate inverse :math:`M u = u + \sum_i (p_i - q_i) \langle q_i, u\rangle` of a derivative :math:`A`.

    The :math:`q_i` are orthonormal in the inner product, and :math:`A p_i = q_i` where products were taken: there :math:`M` is
    the inverse, and elsewhere the identity. Products with :math:`A M` correct it (a block update of Broyden's second method), so
    that a derivative near one that was seen takes few of them. It depends on inner products alone (equivariant acceleration, T9).
    """

    inputs: Tensor
    """The :math:`p_i`, all coordinates of a field in a row, ``(*batch, m, size)``; zero where a sample has fewer."""
    outputs: Tensor
    """The :math:`q_i`, likewise."""

    @classmethod
    def identity(cls, at: Iterate) -> Inverse:
        """That of a derivative of which nothing was seen."""
        none = at.z.new_zeros(*at.norm.shape, 0, at.z.shape[at.norm.ndim :].numel())
        return cls(none, none)

    def of(self, u: Tensor, metric: Tensor) -> Tensor:
        """:math:`M u`, of fields ``(*batch, ...)``; ``metric`` are the weights of the inner product, ``(*batch, size)``."""
        if not self.inputs.shape[-2]:
            return u
        return self._of_rows(u.reshape(metric.shape).unsqueeze(-2), metric).reshape(u.shape)

    def where(self, kept: Tensor) -> Inverse:
        """The identity for samples that are not ``kept``, ``(*batch,)``."""
        return Inverse(*(torch.where(kept[..., None, None], rows, 0.0) for rows in self))

    def updated(self, inputs: Tensor, outputs: Tensor, where: Tensor, metric: Tensor, most: int) -> Inverse:
        """With pairs :math:`A M v = q` of a newer derivative, of the samples ``where``.

        Parameters
        ----------
        inputs, outputs
            :math:`v` and :math:`q`, ``(*batch, k, size)``; the :math:`q` orthonormal, or zero.
        where
            ``(*batch,)``.
        metric
            As in `of`.
        most
            How many pairs are kept.
        """
        inputs, (p, q) = self._of_rows(inputs, metric), self
        if q.shape[-2]:
            common = (metric.unsqueeze(-2) * q) @ outputs.mT
            gram = torch.diag_embed((q != 0).any(-1).to(q)) - common @ common.mT
            share, turn = torch.linalg.eigh(gram)  # what the newer directions leave of the older ones
            root = torch.where(share > SEEN, share, 0.0).sqrt().unsqueeze(-1)
            over = torch.where(root > 0, 1.0 / torch.where(root > 0, root, 1.0), 0.0)
            rest = over * (turn.mT @ (q - common @ outputs))
            known = torch.where(root > 0, rest + root * (turn.mT @ (p - q)), 0.0)
            inputs, outputs = (torch.cat([a, b.flip(-2)], -2) for a, b in ((inputs, known), (outputs, rest)))
        # Rows of zeros, of samples that have fewer than others, come last: what is left out is each sample's own affair.
        order = (outputs != 0).any(-1).to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :most].unsqueeze(-1)
        inputs, outputs = (rows.take_along_dim(order, -2) for rows in (inputs, outputs))
        count, chosen = max(outputs.shape[-2], q.shape[-2]), where[..., None, None]
        old_and_new = ((p, inputs), (q, outputs))
        padded = ([torch.nn.functional.pad(t, (0, 0, 0, count - t.shape[-2])) for t in pair] for pair in old_and_new)
        return Inverse(*(torch.where(chosen, new, old) for old, new in padded))

    def _of_rows(self, rows: Tensor, metric: Tensor) -> Tensor:
        return rows + ((metric.unsqueeze(-2) * rows) @ self.outputs.mT) @ (self.inputs - self.outputs)
