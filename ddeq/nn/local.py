"""Convolutions over a measure, and the block made of one: local geometry without lists of neighbours."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ddeq.nn.layers import MLP

__all__ = ["LocalBlock", "LocalConvolution"]


class LocalConvolution(nn.Module):
    r"""Convolution of features with learned combinations of derivatives of a Gaussian.

    .. math:: g_i = b + \sum_\alpha A_\alpha \sum_j (P_\alpha)_{ij} f_j

    with the matrices :math:`P_\alpha` of `ddeq.reductions.local_operators` and learned :math:`A_\alpha`. A function of the
    measure (measure consistency, T1), equivariant under translations (local geometry, T19); it goes from the atoms of one
    measure to any points.

    Parameters
    ----------
    features
        Number of features of :math:`f`.
    out
        Number of features of :math:`g`.
    terms
        Number of matrices, ``1 + d + d (d + 1) / 2`` at order two.

    References
    ----------
    :cite:t:`lindeberg2022scale`.
    """

    def __init__(self, features: int, out: int, terms: int) -> None:
        super().__init__()
        self.terms, self.out = terms, out
        self.linear = nn.Linear(terms * features, out)

    def forward(
        self, f: Float[Tensor, "*batch m features"], operators: Float[Tensor, "*batch n terms m"]
    ) -> Float[Tensor, "*batch n out"]:
        """Features :math:`g` at the points of ``operators``, from the features ``f`` of the atoms."""
        n, terms, m = operators.shape[-3:]
        if n < m:  # averages first: there are fewer of them
            averages = operators.flatten(-3, -2) @ f.to(operators.dtype)
            out: Tensor = self.linear(averages.unflatten(-2, (n, terms)).flatten(-2))
            return out
        weight = self.linear.weight.unflatten(1, (terms, -1)).transpose(0, 1).flatten(0, 1)
        values = nn.functional.linear(f, weight).unflatten(-1, (terms, self.out)).transpose(-3, -2).flatten(-3, -2)
        gathered: Tensor = operators.flatten(-2) @ values.to(operators.dtype) + self.linear.bias
        return gathered

    def extra_repr(self) -> str:
        return f"terms={self.terms}"


class LocalBlock(nn.Module):
    """A residual block: a `LocalConvolution`, then an `MLP`, each behind a layer norm over features.

    Parameters
    ----------
    width
        Features.
    terms
        As in `LocalConvolution`.
    inner
        Features inside the convolution.
    hidden
        Width of the MLP; default twice ``width``.
    """

    def __init__(self, width: int, terms: int, *, inner: int = 64, hidden: int | None = None) -> None:
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.convolution = LocalConvolution(width, inner, terms)
        self.linear = nn.Linear(inner, width)
        self.mlp = MLP(width, hidden or 2 * width, width)

    def forward(
        self, f: Float[Tensor, "*batch n width"], operators: Float[Tensor, "*batch n terms n"]
    ) -> Float[Tensor, "*batch n width"]:
        """Features ``f`` of the atoms after they have seen their surroundings, through ``operators`` between them."""
        f = f + self.linear(nn.functional.gelu(self.convolution(self.norm(f), operators)))
        out: Tensor = f + self.mlp(self.norm_mlp(f))
        return out
