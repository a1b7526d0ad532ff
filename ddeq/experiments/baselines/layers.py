"""Layers that several baselines share."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.draws import uniform

__all__ = ["Dropout", "normalised_layers"]


def normalised_layers(*widths: int) -> nn.Sequential:
    """Linear layers of the given ``widths``, each with batch normalisation, and ReLU between them.

    The rows are atoms or measures. On the packed atoms of a `Support` no padding enters the statistics; in training they
    depend on all rows of the batch, as in the papers. The caller applies the last ReLU, or a maximum first, with which it
    commutes.
    """
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Dropout(nn.Module):
    """Dropout that draws from a given generator, so that training repeats itself after a restart.

    Parameters
    ----------
    p
        Probability of dropping an entry.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p: expected 0 <= p < 1, got {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"], generator: torch.Generator | None) -> Float[Tensor, "*shape"]:
        if not self.training or self.p == 0.0:
            return x
        keep = uniform(x.shape, x, generator) >= self.p
        return x * keep / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
