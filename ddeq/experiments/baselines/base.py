"""What all baselines share: the check of their input, the features of its atoms, and what training adds to the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.measures import DiscreteMeasure, check_mass, unchecked

__all__ = ["Baseline"]


class Baseline(nn.Module, ABC):
    """A classifier of measures; a new one writes ``scores``.

    Parameters
    ----------
    dim
        Dimension of the points.
    num_classes
        Number of classes.
    use_weights
        Whether an atom's weight, divided by the mean weight of the atoms of its measure's support, is a feature beside its
        coordinates. The network is then not a function of the measure: splitting an atom changes these features.

    Raises
    ------
    ValueError
        If a number is not positive.
    """

    def __init__(self, *, dim: int, num_classes: int, use_weights: bool = False) -> None:
        super().__init__()
        if dim < 1 or num_classes < 1:
            raise ValueError(f"dim, num_classes: expected numbers >= 1, got {dim}, {num_classes}")
        self.dim, self.num_classes, self.use_weights = dim, num_classes, use_weights

    @property
    def in_features(self) -> int:
        """Number of features of an atom."""
        return self.dim + self.use_weights

    def features(self, rho: DiscreteMeasure) -> Float[Tensor, "*batch n c"]:
        """Coordinates of the atoms of ``rho`` and, with ``use_weights``, their relative weights."""
        if not self.use_weights:
            return rho.points
        mean = rho.mass() / rho.support().sum(-1)
        return torch.cat([rho.points, (rho.weights / mean.unsqueeze(-1)).unsqueeze(-1)], -1)

    @abstractmethod
    def scores(self, rho: DiscreteMeasure, generator: torch.Generator | None) -> Float[Tensor, "b classes"]:
        """Logits of a batch ``rho`` with one batch dimension; ``generator`` is that of the dropout."""

    def forward(self, rho: DiscreteMeasure, generator: torch.Generator | None = None) -> Float[Tensor, "*batch classes"]:
        """Logits of each measure.

        Parameters
        ----------
        rho
            The measures.
        generator
            Source of the dropout's randomness; default the global one.

        Raises
        ------
        ValueError
            If the points are not of dimension ``dim``, a measure has mass zero, or a network with batch normalisation is to
            train on a single measure.
        """
        if rho.dim != self.dim:
            raise ValueError(f"rho: expected points of dimension {self.dim}, got {rho.dim}")
        check_mass("rho", rho)
        flat = unchecked(rho.points.reshape(-1, rho.n, rho.dim), rho.weights.reshape(-1, rho.n))
        normalised = any(isinstance(m, nn.BatchNorm1d) for m in self.modules())
        if self.training and normalised and len(flat) < 2:
            raise ValueError("rho: expected at least 2 measures to train with batch normalisation, got 1; or call .eval()")
        return self.scores(flat, generator).view(*rho.batch_shape, self.num_classes)

    def regularizer(self) -> Float[Tensor, ""]:
        """What training adds to the loss after a forward pass: zero, unless the network has a penalty of its own."""
        return torch.zeros(())
