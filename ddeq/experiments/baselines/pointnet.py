"""PointNet: features of each atom on its own, and their maximum."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from ddeq.experiments.baselines.base import Baseline
from ddeq.experiments.baselines.layers import Dropout, normalised_layers
from ddeq.experiments.baselines.support import Support
from ddeq.measures import DiscreteMeasure

__all__ = ["PointNet"]


class Alignment(nn.Module):
    """The T-Net: a square matrix for each measure, the identity at the start, that its atoms are multiplied with.

    Parameters
    ----------
    features
        Features of an atom that the network reads.
    size
        Size of the matrix.
    widths
        Widths of the layers on atoms, then of those on the measure.
    """

    def __init__(self, features: int, size: int, *widths: int) -> None:
        super().__init__()
        self.size = size
        self.atoms = normalised_layers(features, *widths[:3])
        self.measure = normalised_layers(*widths[2:])
        self.matrix = nn.Linear(widths[-1], size * size)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(size).flatten())

    def forward(self, x: Float[Tensor, "total c"], support: Support) -> Float[Tensor, "b size size"]:
        pooled = relu(support.maximum(self.atoms(x)))
        matrix: Tensor = self.matrix(relu(self.measure(pooled)))
        return matrix.view(-1, self.size, self.size)


class PointNet(Baseline):
    r"""Aligned coordinates, an MLP 64, 64 on each atom, aligned features, an MLP 64, 128, 1024, the maximum, 512, 256, logits.

    Every layer but the last has batch normalisation and ReLU; dropout comes before the last one. A function of the support
    of the measure, without ``use_weights``. In training its batch normalisation depends on the other measures of the batch.

    Parameters
    ----------
    dim, num_classes, use_weights
        As in `Baseline`; of the features of an atom, the alignment changes the coordinates only.
    width
        Factor on the widths of all hidden layers.
    dropout
        Probability of dropping one of the 256 features.
    orthogonality
        Weight of the penalty on the alignment of features.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    :cite:t:`qi2017pointnet`.
    """

    alignment: Tensor | None
    """The alignment of features in the last forward pass."""

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        use_weights: bool = False,
        width: float = 1.0,
        dropout: float = 0.3,
        orthogonality: float = 1e-3,
    ) -> None:
        super().__init__(dim=dim, num_classes=num_classes, use_weights=use_weights)
        if not width > 0:
            raise ValueError(f"width: expected a positive factor, got {width}")
        c64, c128, c256, c512, c1024 = (max(1, round(width * c)) for c in (64, 128, 256, 512, 1024))
        self.align_points = Alignment(self.in_features, dim, c64, c128, c1024, c512, c256)
        self.first = normalised_layers(self.in_features, c64, c64)
        self.align_features = Alignment(c64, c64, c64, c128, c1024, c512, c256)
        self.second = normalised_layers(c64, c64, c128, c1024)
        self.measure = normalised_layers(c1024, c512, c256)
        self.dropout = Dropout(dropout)
        self.logits = nn.Linear(c256, num_classes)
        self.orthogonality = orthogonality
        self.alignment = None

    def scores(self, rho: DiscreteMeasure, generator: torch.Generator | None) -> Float[Tensor, "b classes"]:
        support, atoms = Support(rho.support()), self.features(rho)
        turned = rho.points @ self.align_points(support.pack(atoms), support)
        x = relu(self.first(support.pack(torch.cat([turned, atoms[..., self.dim :]], -1))))
        self.alignment = self.align_features(x, support)
        x = support.pack(support.unpack(x) @ self.alignment)
        pooled = relu(support.maximum(self.second(x)))
        logits: Tensor = self.logits(self.dropout(relu(self.measure(pooled)), generator))
        return logits

    def regularizer(self) -> Float[Tensor, ""]:
        r"""Mean of :math:`|I - A A^\top|_F^2` over the alignments :math:`A` of the last forward pass, times its weight.

        Raises
        ------
        RuntimeError
            If there was no forward pass.
        """
        if self.alignment is None:
            raise RuntimeError("regularizer: expected a forward pass before it, got none")
        a = self.alignment
        gap = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) - a @ a.mT
        return self.orthogonality * gap.square().sum((-2, -1)).mean()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files hold the model, not the graph of its last batch.
        return self.__dict__ | {"alignment": None}
