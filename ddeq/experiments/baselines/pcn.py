"""PCN, the point completion network: a feature of the whole cloud, a coarse cloud, and a small grid folded around each point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ddeq.measures import DiscreteMeasure, check_mass, unchecked
from ddeq.nn import MaxPooling

__all__ = ["PCN"]


class JointLinear(nn.Linear):
    """A linear layer on features that are joined, without joining them: features that atoms share are multiplied once.

    Parameters
    ----------
    sizes
        Numbers of the features.
    out_features
        Number of features of the result.
    """

    def __init__(self, *sizes: int, out_features: int) -> None:
        super().__init__(sum(sizes), out_features)
        self.sizes = sizes

    def forward(self, *parts: Tensor) -> Tensor:
        first, *others = self.weight.split(self.sizes, -1)
        total: Tensor = linear(parts[0], first, self.bias)
        for part, weight in zip(parts[1:], others, strict=True):
            total = total + linear(part, weight)
        return total


class PCN(nn.Module):
    r"""Two PointNet layers to a feature :math:`v`, an MLP to a coarse cloud, and a patch folded around each of its points.

    .. math:: f_i = \operatorname{MLP}_{128, 256}(x_i), \qquad
              v = \max_i \operatorname{MLP}_{512, 1024}(f_i, \max_j f_j), \qquad
              (q_k)_k = \operatorname{MLP}_{1024, 1024}(v), \qquad
              q_k + \operatorname{MLP}_{512, 512}(p, q_k, v) \;\text{ for } p \text{ in a grid.}

    Maxima are over the support: a function of the support of the measure alone. Without normalisation, as published. At the
    paper's sizes, in space, there are 6 861 059 parameters and 16 384 points in the detailed cloud. The paper's loss is that of
    the coarse cloud and that of the detailed one, the latter times a factor that grows in training.

    Parameters
    ----------
    dim
        Dimension of the points, 2 or 3. The paper's patch parametrises a surface in space: a square grid. In the plane a shape is
        bounded by a curve, and the patch is a grid on an interval.
    coarse
        Number of points of the coarse cloud.
    grid
        Number of points along a side of the patch: the detailed cloud has ``coarse * grid ** (dim - 1)``.
    width
        Factor on the widths of all hidden layers.
    scale
        Half the side of the patch, before it is folded.

    Raises
    ------
    ValueError
        If ``dim`` is neither 2 nor 3, or a number is not positive.

    References
    ----------
    :cite:t:`yuan2018pcn`.
    """

    patch: Tensor
    """The grid, ``(grid ** (dim - 1), dim - 1)``."""

    def __init__(self, *, dim: int, coarse: int = 1024, grid: int = 4, width: float = 1.0, scale: float = 0.05) -> None:
        super().__init__()
        if dim not in (2, 3):
            raise ValueError(f"dim: expected 2 or 3, got {dim}")
        if coarse < 1 or grid < 1:
            raise ValueError(f"coarse, grid: expected numbers >= 1, got {coarse}, {grid}")
        if not 0 < width < math.inf or not 0 < scale < math.inf:
            raise ValueError(f"width, scale: expected positive numbers, got {width}, {scale}")
        c128, c256, c512, c1024 = (max(1, round(width * c)) for c in (128, 256, 512, 1024))
        self.dim = dim
        self.first = nn.Sequential(nn.Linear(dim, c128), nn.ReLU(), nn.Linear(c128, c256))
        self.joined = JointLinear(c256, c256, out_features=c512)
        self.second = nn.Sequential(nn.ReLU(), nn.Linear(c512, c1024))
        self.pool = MaxPooling()
        self.decoder = nn.Sequential(
            nn.Linear(c1024, c1024), nn.ReLU(), nn.Linear(c1024, c1024), nn.ReLU(), nn.Linear(c1024, coarse * dim)
        )
        self.patches = JointLinear(dim - 1, dim, c1024, out_features=c512)
        self.folding = nn.Sequential(nn.ReLU(), nn.Linear(c512, c512), nn.ReLU(), nn.Linear(c512, dim))
        line = torch.linspace(-scale, scale, grid) if grid > 1 else torch.zeros(1)
        self.register_buffer("patch", torch.cartesian_prod(*[line] * (dim - 1)).reshape(-1, dim - 1), persistent=False)

    def forward(self, rho: DiscreteMeasure, generator: torch.Generator | None = None) -> tuple[DiscreteMeasure, DiscreteMeasure]:
        """The coarse and the detailed completion of each measure: probabilities of equal weights.

        Parameters
        ----------
        rho
            What is known of the measures.
        generator
            Not used, since nothing is drawn; other completing networks take one.

        Raises
        ------
        ValueError
            If the points are not of dimension ``dim``, or a measure has mass zero.
        """
        if rho.dim != self.dim:
            raise ValueError(f"rho: expected points of dimension {self.dim}, got {rho.dim}")
        check_mass("rho", rho)
        features = self.first(rho.points)
        shared = self.pool(features, rho).unsqueeze(-2)
        feature = self.pool(self.second(self.joined(features, shared)), rho)
        coarse = self.decoder(feature).unflatten(-1, (-1, self.dim))
        centres = coarse.unsqueeze(-2)
        detailed = centres + self.folding(self.patches(self.patch, centres, feature[..., None, None, :]))
        return _uniform(coarse, rho), _uniform(detailed.flatten(-3, -2), rho)


def _uniform(points: Tensor, like: DiscreteMeasure) -> DiscreteMeasure:
    """Probabilities of equal weights in the precision of ``like``."""
    return unchecked(points.to(like.dtype), like.weights.new_full(points.shape[:-1], 1.0 / points.shape[-2]))
