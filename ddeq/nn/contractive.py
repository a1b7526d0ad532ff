"""An equilibrium cell that is a contraction by construction, and says by how much."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.autodiff import without_autocast
from ddeq.measures import DiscreteMeasure
from ddeq.nn.attention import MeasureAttention
from ddeq.nn.context import Context
from ddeq.nn.dropout import Dropout
from ddeq.nn.layers import MLP

__all__ = ["ContractiveCell", "interaction", "norm_bound"]

SQUARINGS = 4
SHIFT = 2.0
"""Where the activation is centred: its slope at zero is 0.88, so that several layers together still pass signals on."""
SHARPEST = 30.0
"""Largest sharpness of an interaction; much more would underflow single precision."""


def norm_bound(matrix: Float[Tensor, "m k"], squarings: int = SQUARINGS) -> Float[Tensor, ""]:
    r"""Upper bound of the largest singular value of a matrix, smooth in its entries.

    .. math:: \sigma_1 \le \big(\operatorname{tr} (A^\top A)^{2^k}\big)^{1 / 2^{k+1}}
              \le r^{1 / 2^{k+1}} \sigma_1 , \quad r = \operatorname{rank} A ,

    by ``squarings`` :math:`= k` squarings of the Gram matrix: with four of them at most 17 % too large for a rank of 128, and
    exact for a rank of one. Unlike power iterations it is never too small, and unlike a singular value it has derivatives of
    every order where singular values coincide.

    Parameters
    ----------
    matrix
        The matrix :math:`A`.
    squarings
        The number :math:`k`.

    References
    ----------
    :cite:t:`delattre2023efficient`.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    with without_autocast(matrix.device):
        gram = matrix.mT @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.mT
        logarithm = matrix.new_zeros(())
        for k in range(squarings + 1):
            gram = gram @ gram if k else gram
            size = gram.diagonal().sum().clamp_min(tiny)
            logarithm = logarithm + size.log() / 2**k
            gram = gram / size  # of trace one, so that no power is out of range
        return (0.5 * logarithm).exp() * (1.0 + 64.0 * torch.finfo(matrix.dtype).eps)  # for the rounding of all this


def interaction(
    logits: Float[Tensor, "*#batch n n"], values: Float[Tensor, "*#batch n c"], weights: Float[Tensor, "*#batch n"]
) -> Float[Tensor, "*#batch n c"]:
    r"""Each atom gathers the values of all, by a symmetric kernel that is normalised on both sides.

    .. math:: (K v)_i = \sum_j w_j \frac{k_{ij}}{\sqrt{d_i d_j}}\, v_j , \qquad k_{ij} = e^{\ell_{ij}} , \quad
              d_i = \sum_j w_j k_{ij} .

    A linear operator of norm one on :math:`L^2(\mu)` (error bounds, T8). Softmax attention, which is normalised on one side,
    has no such bound: where all attend to one atom of mass :math:`w`, its norm is :math:`w^{-1/2}`.

    Parameters
    ----------
    logits
        Symmetric :math:`\ell`: who sees whom. No function of ``values``, or the norm says nothing.
    values
        What is gathered.
    weights
        Masses of the atoms; the total mass does not matter.

    References
    ----------
    :cite:t:`chung1997spectral`, on operators that are normalised on both sides.
    """
    return _shares(logits, weights) @ values


def _shares(logits: Tensor, weights: Tensor) -> Tensor:
    """The matrix of `interaction`."""
    w = weights.unsqueeze(-2)
    kernel = (logits - logits.detach().amax((-2, -1), keepdim=True)).exp()
    root = (w * kernel).sum(-1).clamp_min(torch.finfo(kernel.dtype).tiny).rsqrt()
    shares: Tensor = root.unsqueeze(-1) * kernel * (root.unsqueeze(-2) * w)
    return shares


class Prepared(NamedTuple):
    """What a `ContractiveCell` computes once for a solve: nothing of it depends on where the atoms are."""

    biases: tuple[Tensor, ...]
    """Of each layer, ``(*batch, n, width)``."""
    shares: tuple[Tensor, ...]
    """Matrices of the interactions of each layer, ``(*batch, heads, n, n)``."""
    offset: Tensor
    """What is added at the end, ``(*batch, n, width)``."""
    scales: Tensor
    """Factors of the matrices of each layer, ``(*batch, layers, 3)``."""


class ContractiveCell(nn.Module):
    r"""A map on marked measures, given the context of an input, that is a contraction on :math:`L^2(\mu)` by construction.

    .. math:: h_0 = z , \quad h_{l+1} = \phi\big((1 - s_l) A_l h_l + s_l B_l K_l C_l h_l + b_l\big) , \quad
              \Phi(z) = c\, h_L + b_L

    with matrices of norm at most one, a share :math:`0 < s_l < 1`, the `interaction` :math:`K_l` of the atoms by their marks
    (multi-head), the activation :math:`\phi(x) = \log(1 + e^{x + 2}) - \log(1 + e^2)` of slopes in :math:`(0, 1)`, and biases
    :math:`b` that depend on the marks and, by attention and an `MLP`, on the context. Each layer is non-expansive, so
    :math:`\Phi` has the Lipschitz constant :math:`c` at fixed weights and marks, its dependence on the measure included
    (error bounds, T8): there is one fixed point, Picard's iteration converges to it at the rate :math:`c` from any start, and
    ``error_bound`` of a solution is a bound.

    All of the network that sees the context is outside of the loop, so that an evaluation costs three products with matrices
    and one interaction for each layer.

    Parameters
    ----------
    width
        Dimension of the points.
    mark_dim
        Dimension of the marks; 0 for none, and then all atoms end in one place (collapse, T5).
    heads
        Heads of attention and interaction; divides ``width``.
    layers
        Number of layers, as many as the encoder prepares for.
    hidden
        Width of the MLPs; default twice ``width``.
    dropout
        Probability of `Dropout` in front of each MLP.
    contraction
        The certificate never exceeds this number, ``0 < contraction < 1``.

    Raises
    ------
    ValueError
        If ``contraction`` is not in that range, or ``heads`` does not divide ``width``.

    References
    ----------
    :cite:t:`revay2020lipschitz`; :cite:t:`winston2020monotone`.
    """

    def __init__(
        self,
        width: int,
        mark_dim: int,
        *,
        heads: int = 4,
        layers: int = 1,
        hidden: int | None = None,
        dropout: float = 0.0,
        contraction: float = 0.9,
    ) -> None:
        super().__init__()
        if not 0.0 < contraction < 1.0:
            raise ValueError(f"contraction: expected a number between 0 and 1, got {contraction}")
        self.width, self.mark_dim, self.contraction = width, mark_dim, contraction
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.mark = nn.Linear(mark_dim, width) if mark_dim else None
        self.common = nn.Parameter(torch.zeros(width)) if not mark_dim else None
        self.layers = nn.ModuleList(ContractiveLayer(width, heads, hidden or 2 * width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    @property
    def certificate(self) -> float:
        r"""An upper bound of the Lipschitz constant in :math:`L^2(\mu)`, as the parameters are now; less than one.

        True of the map in exact arithmetic; rounding adds its unit to distances, as it does to any.
        """
        gain = float(self.gain.detach().double())
        return self.contraction / (1.0 + math.exp(-gain)) if gain > -700.0 else self.contraction * math.exp(gain)

    @property
    def lipschitz(self) -> float:
        """The `certificate`, where `ddeq.fixed_point` looks for it."""
        return self.certificate

    def prepare(self, mu: DiscreteMeasure, context: Context) -> Prepared:
        """What depends on weights and marks of ``mu`` and on the ``context`` alone: `DDEQ` calls this once for each solve.

        Raises
        ------
        ValueError
            If points or marks of ``mu`` have another dimension than the cell.
        """
        marks = 0 if mu.marks is None else mu.marks.shape[-1]
        if (mu.dim, marks) != (self.width, self.mark_dim):
            raise ValueError(
                f"mu: expected points of dimension {self.width} and marks of dimension {self.mark_dim}, got {mu.dim} and {marks}"
            )
        features = self._features(mu, context)
        biases, shares, scales = [], [], []
        for layer, key, value in zip(self.layers, context.keys, context.values, strict=True):
            assert isinstance(layer, ContractiveLayer)
            shares.append(layer.shares(features, mu.weights))
            features = layer.bias(features, key, value, context)
            biases.append(features)
            scales.append(layer.scales())
        factors = torch.stack(scales).expand(*mu.batch_shape, -1, -1)
        return Prepared(tuple(biases), tuple(shares), self.norm(features), factors)

    def forward(self, mu: DiscreteMeasure, context: Context | Prepared) -> DiscreteMeasure:
        """The image of ``mu``; ``context`` as the encoder gives it, or what `prepare` made of it for these weights and marks."""
        prepared = context if isinstance(context, Prepared) else self.prepare(mu, context)
        h = mu.points
        for i, (layer, bias, shares) in enumerate(zip(self.layers, prepared.biases, prepared.shares, strict=True)):
            h = layer(h, bias, shares, prepared.scales[..., i, :])
        return mu.with_points(self.contraction * self.gain.sigmoid() * h + prepared.offset)

    def attention_shares(self, mu: DiscreteMeasure, context: Context) -> Float[Tensor, "*batch heads n m"]:
        """How much each atom of ``mu`` attends to each atom of the input of ``context``, in each head of the first layer."""
        layer = self.layers[0]
        assert isinstance(layer, ContractiveLayer)
        return layer.cross.shares(layer.norm_cross(self._features(mu, context)), context.keys[0], context.weights)

    def _features(self, mu: DiscreteMeasure, context: Context) -> Tensor:
        if self.mark is not None:
            return context.modulated(self.mark(mu.marks))
        assert self.common is not None
        return context.modulated(self.common.expand(*mu.weights.shape, -1))


class ContractiveLayer(nn.Module):
    r"""A non-expansive map of the state, driven by biases that know marks and context."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_cross, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.cross = MeasureAttention(width, heads)
        self.dropout = Dropout(width, dropout)
        self.mlp = MLP(width, hidden, width)
        self.heads = heads
        self.who = nn.Linear(width, width)
        self.sharpness = nn.Parameter(torch.zeros(heads))
        self.share = nn.Parameter(torch.tensor(-1.0))
        self.matrices = nn.Parameter(torch.randn(3, width, width) * width**-0.5)

    def bias(self, features: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """What marks and context say, ``(*batch, n, width)``."""
        asked = features + self.cross(self.norm_cross(features), key, value, context.weights)
        told: Tensor = asked + self.mlp(self.dropout(self.norm_mlp(asked), context))
        return told

    def shares(self, features: Tensor, weights: Tensor) -> Tensor:
        """Who sees whom, ``(*batch, heads, n, n)``: cosines of projected marks, times a sharpness for each head."""
        who = nn.functional.normalize(self.who(features).unflatten(-1, (self.heads, -1)).transpose(-2, -3), dim=-1)
        sharpness = nn.functional.softplus(self.sharpness).clamp_max(SHARPEST)[:, None, None]
        return _shares(sharpness * (who @ who.mT), weights.unsqueeze(-2))

    def scales(self) -> Tensor:
        """Factors that give the matrices norms of at most ``1 - share``, ``share`` and one."""
        tiny = torch.finfo(self.matrices.dtype).tiny
        own, out, into = (1.0 / norm_bound(m).clamp_min(tiny**0.5) for m in self.matrices)
        share = self.share.sigmoid()
        return torch.stack([(1.0 - share) * own, share * out, into])

    def forward(self, h: Tensor, bias: Tensor, shares: Tensor, scales: Tensor) -> Tensor:
        own, out, into = (s[..., None, None] for s in scales.unbind(-1))
        a, b, c = self.matrices.unbind()
        values = (into * (h @ c.mT)).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        gathered = (shares @ values).transpose(-2, -3).flatten(-2)
        inner = own * (h @ a.mT) + out * (gathered @ b.mT) + bias
        softened: Tensor = nn.functional.softplus(inner + SHIFT) - math.log1p(math.exp(SHIFT))
        return softened
