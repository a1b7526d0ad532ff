"""Attention over a measure: averages in which each atom counts with its mass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.autodiff import under_transforms

__all__ = ["KeysAndValues", "MeasureAttention", "measure_attention"]

LARGEST_EXPONENT = 80.0
"""Logits of atoms of mass zero count up to this much above those of the others; exp of more overflows single precision."""


def measure_attention(
    query: Float[Tensor, "*#batch n k"],
    key: Float[Tensor, "*#batch m k"],
    value: Float[Tensor, "*#batch m c"],
    weights: Float[Tensor, "*#batch m"],
) -> Float[Tensor, "*#batch n c"]:
    r"""Softmax attention over the measure :math:`\sum_j w_j \delta_{(k_j, v_j)}`.

    .. math:: \frac{\sum_j w_j e^{\ell_{ij}} v_j}{\sum_j w_j e^{\ell_{ij}}}, \qquad \ell_{ij} = q_i \cdot k_j / \sqrt{k} .

    Derivatives in the weights are right also at mass zero, where a bias of :math:`\log w_j` would give NaN (first variations,
    T2).

    Parameters
    ----------
    query, key, value
        Features of those who ask and of the atoms of the measure.
    weights
        Masses of the atoms; each measure must have positive mass, else the result is NaN.

    References
    ----------
    :cite:t:`vaswani2017attention`; :cite:t:`castin2024smooth`, as a map of measures.
    """
    if torch.is_grad_enabled() or under_transforms():
        return _averages(query, key, weights) @ value
    # Nothing is to be differentiated, as in the steps of a solve: the fused kernel, which has no second derivatives.
    bias = weights.to(query.dtype).log().unsqueeze(-2)
    bias = bias - bias.amax(-1, keepdim=True)  # NaN without any mass, where the kernel would give zeros
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _averages(query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """The shares :math:`w_j e^{\\ell_{ij}} / \\sum`, ``(*batch, n, m)``."""
    logits = query @ key.mT * key.shape[-1] ** -0.5
    w = weights.unsqueeze(-2)
    if not (weights.requires_grad or torch._C._are_functorch_transforms_active()):
        biased: Tensor = torch.softmax(logits + w.log(), -1)
        return biased
    dead = w == 0
    top = logits.detach().masked_fill(dead, -torch.inf).amax(-1, keepdim=True)
    # An atom of mass zero may have any logit: it must not push the others out of range, nor overflow itself.
    shifted = logits - top
    masses = w * torch.where(dead, shifted.clamp_max(LARGEST_EXPONENT), shifted).exp()
    shares: Tensor = masses / masses.sum(-1, keepdim=True)
    return shares


class KeysAndValues(nn.Module):
    """Projects the atoms that are attended to, apart from `MeasureAttention`, so that it is done once for many queries.

    Parameters
    ----------
    features
        Features of the atoms.
    width
        Features of the attention; default the same.
    heads
        Number of heads; divides ``width``.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``.
    """

    def __init__(self, features: int, width: int | None = None, heads: int = 4) -> None:
        super().__init__()
        width = width or features
        self.heads = _divisor(heads, width)
        self.linear = nn.Linear(features, 2 * width)

    def forward(self, memory: Float[Tensor, "*batch m c"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the atoms with features ``memory``, ``(*batch, heads, m, width / heads)`` each."""
        key, value = self.linear(memory).chunk(2, -1)
        return _split(key, self.heads).contiguous(), _split(value, self.heads).contiguous()


class MeasureAttention(nn.Module):
    """Multi-head `measure_attention` of learned queries to keys and values that `KeysAndValues` made.

    Parameters
    ----------
    width
        Features of those who ask and of the result.
    heads
        Number of heads; divides ``width``.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = _divisor(heads, width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "*batch n width"],
        key: Float[Tensor, "*batch heads m k"],
        value: Float[Tensor, "*batch heads m k"],
        weights: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n width"]:
        """What each row of ``x`` gathers from the measure.

        Parameters
        ----------
        x
            Features of those who ask.
        key, value
            Of the atoms, as `KeysAndValues` gives them.
        weights
            Masses of the atoms.
        """
        gathered = measure_attention(_split(self.query(x), self.heads), key, value, weights.unsqueeze(-2))
        out: Tensor = self.out(gathered.transpose(-2, -3).flatten(-2))
        return out

    def shares(
        self, x: Float[Tensor, "*batch n width"], key: Float[Tensor, "*batch heads m k"], weights: Float[Tensor, "*batch m"]
    ) -> Float[Tensor, "*batch heads n m"]:
        """How much each row of ``x`` attends to each atom of this ``key`` and of these ``weights``; its shares add up to one."""
        return _averages(_split(self.query(x), self.heads), key, weights.unsqueeze(-2))


def _split(t: Tensor, heads: int) -> Tensor:
    separate: Tensor = t.unflatten(-1, (heads, -1))
    return separate.transpose(-2, -3)


def _divisor(heads: int, width: int) -> int:
    if heads < 1 or width % heads:
        raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
    return heads
