"""Deep Sets: permutation-equivariant layers, and a pooling."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.experiments.baselines.base import Baseline
from ddeq.experiments.baselines.layers import Dropout
from ddeq.measures import DiscreteMeasure
from ddeq.nn import MaxPooling, MeanPooling

__all__ = ["DeepSets"]


class DeepSets(Baseline):
    r"""Layers :math:`x_i \mapsto \tanh(\Gamma (x_i - \operatorname{pool}_j x_j) + \beta)`, a pooling, a layer, logits.

    The network of the paper for ModelNet40: three equivariant layers of 256 features, a layer of 256 on the pooled features,
    tanh everywhere, dropout before and after that layer. With mean pooling it is a function of the measure (measure
    consistency, T1), with max pooling a function of its support; either way without ``use_weights``.

    Parameters
    ----------
    dim, num_classes, use_weights
        As in `Baseline`.
    width, layers
        Features, and number of equivariant layers.
    pooling
        ``"max"`` over the support as in the paper, or ``"mean"`` under the measure.
    dropout
        Probability of dropping a feature of the measure.

    Raises
    ------
    ValueError
        If ``pooling`` is neither, or a number is not positive.

    References
    ----------
    :cite:t:`zaheer2017deep`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        use_weights: bool = False,
        width: int = 256,
        layers: int = 3,
        pooling: Literal["max", "mean"] = "max",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(dim=dim, num_classes=num_classes, use_weights=use_weights)
        if width < 1 or layers < 1:
            raise ValueError(f"width, layers: expected numbers >= 1, got {width}, {layers}")
        if pooling not in ("max", "mean"):
            raise ValueError(f"pooling: expected 'max' or 'mean', got {pooling!r}")
        self.pool = MaxPooling() if pooling == "max" else MeanPooling()
        self.atoms = nn.ModuleList(nn.Linear(width if i else self.in_features, width) for i in range(layers))
        self.measure = nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes)
        self.dropout = Dropout(dropout)

    def scores(self, rho: DiscreteMeasure, generator: torch.Generator | None) -> Float[Tensor, "b classes"]:
        x = self.features(rho)
        for layer in self.atoms:
            x = torch.tanh(layer(x - self.pool(x, rho).unsqueeze(-2)))
        hidden = torch.tanh(self.measure(self.dropout(self.pool(x, rho), generator)))
        logits: Tensor = self.logits(self.dropout(hidden, generator))
        return logits
