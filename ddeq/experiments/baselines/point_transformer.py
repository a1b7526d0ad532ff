"""Point Transformer: attention to the nearest atoms, on fewer and fewer atoms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import relu

from ddeq.experiments.baselines.base import Baseline
from ddeq.experiments.baselines.layers import Dropout, normalised_layers
from ddeq.experiments.baselines.neighbours import nearest
from ddeq.experiments.baselines.support import Support
from ddeq.measures import DiscreteMeasure
from ddeq.nn.coarsening import canonical_order, farthest_points

__all__ = ["PointTransformer"]


class PointTransformer(Baseline):
    r"""Stages of vector attention to the ``k`` nearest atoms; between them, each ``ratio``-th atom stays.

    Those that stay are chosen by farthest-point sampling and take the maximum of the features of their ``k`` nearest atoms.
    The average of the last features, in which all atoms count the same, goes through an MLP to logits. The attention is
    PyTorch Geometric's ``PointTransformerConv``,

    .. math:: y_i = \sum_{j \in N(i)} \operatorname{softmax}_j(\gamma(\varphi(x_i) - \psi(x_j) + \delta_{ij}))
              \odot (\alpha(x_j) + \delta_{ij}), \qquad \delta_{ij} = \theta(p_i - p_j) .

    A function of the list of atoms of positive mass, in any order: splitting an atom changes its neighbourhoods. In training
    its batch normalisation depends on the other measures of the batch.

    Parameters
    ----------
    dim, num_classes, use_weights
        As in `Baseline`.
    widths
        Features in each stage; the paper's are (32, 64, 128, 256, 512).
    k
        Number of neighbours, the atom itself among them; all atoms of a smaller measure.
    ratio
        How many times fewer atoms the next stage has.
    dropout
        Probability of dropping a feature of the measure.

    Raises
    ------
    ValueError
        If a number is not positive, or there is no stage.
    ImportError
        If PyTorch Geometric is not installed.

    References
    ----------
    :cite:t:`zhao2021point`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        use_weights: bool = False,
        widths: Sequence[int] = (32, 64, 128, 256),
        k: int = 16,
        ratio: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(dim=dim, num_classes=num_classes, use_weights=use_weights)
        if not widths or min(*widths, k, ratio) < 1:
            raise ValueError(f"widths, k, ratio: expected numbers >= 1, got {tuple(widths)}, {k}, {ratio}")
        self.k, self.ratio = k, ratio
        self.embed = normalised_layers(self.in_features, widths[0], widths[0])
        self.attend = nn.ModuleList(NeighbourAttention(dim, width) for width in widths)
        self.down = nn.ModuleList(normalised_layers(a, b) for a, b in itertools.pairwise(widths))
        self.measure = normalised_layers(widths[-1], widths[-1])
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(widths[-1], num_classes)

    def scores(self, rho: DiscreteMeasure, generator: torch.Generator | None) -> Float[Tensor, "b classes"]:
        features, inside = self.features(rho), rho.support()
        order = canonical_order(features, inside)
        features, inside = _rows(features, order), inside.gather(1, order)
        points, support = features[..., : self.dim], Support(inside)
        p = support.pack(points)
        x = relu(self.embed(support.pack(features)))
        sizes = support.sizes.tolist()
        x = self.attend[0](x, p, nearest(p, p, sizes, sizes, self.k))
        for down, attend in zip(self.down, self.attend[1:], strict=True):
            fewer = -(-support.sizes // self.ratio)
            count = int(fewer.max())
            points = _rows(points, farthest_points(points, support.inside, count))
            support = Support(torch.arange(count, device=points.device) < fewer.unsqueeze(-1))
            q, fewer_sizes = support.pack(points), support.sizes.tolist()
            near = nearest(q, p, fewer_sizes, sizes, self.k)
            near = torch.where(near < 0, near[:, :1], near)  # the nearest again: no maximum notices
            x = relu(down(x)[near].amax(1))
            p, sizes = q, fewer_sizes
            x = attend(x, p, nearest(p, p, sizes, sizes, self.k))
        hidden = relu(self.measure(support.average(x)))
        logits: Tensor = self.logits(self.dropout(hidden, generator))
        return logits


class NeighbourAttention(nn.Module):
    """The paper's residual block: linear, attention to neighbours, linear, each with batch normalisation."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.before, self.after = normalised_layers(width, width), normalised_layers(width, width)
        self.norm = nn.BatchNorm1d(width)
        theta, gamma = (nn.Sequential(nn.Linear(a, width), nn.ReLU(), nn.Linear(width, width)) for a in (dim, width))
        self.attention = _layer_class()(width, width, theta, gamma, add_self_loops=False)

    def forward(
        self, x: Float[Tensor, "total c"], points: Float[Tensor, "total d"], near: Int[Tensor, "total k"]
    ) -> Float[Tensor, "total c"]:
        target = torch.arange(len(x), device=x.device).unsqueeze(-1).expand_as(near)
        edges = torch.stack([near, target])[:, near >= 0]
        attended = self.attention(relu(self.before(x)), points, edges)
        return relu(x + self.after(relu(self.norm(attended))))


def _layer_class() -> Any:
    try:
        from torch_geometric.nn import PointTransformerConv
    except ImportError:
        raise ImportError("PointTransformer needs PyTorch Geometric: pip install 'ddeq[baselines]'") from None
    return PointTransformerConv


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
