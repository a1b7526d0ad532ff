"""Heads: what a model makes of its equilibrium measure."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.measures import DiscreteMeasure
from ddeq.nn.ddeq import DDEQ
from ddeq.nn.layers import MLP
from ddeq.nn.pooling import MeanPooling
from ddeq.solvers import Solution

__all__ = ["Classifier"]


class Classifier(nn.Module):
    r"""Class scores from the equilibrium of a `DDEQ`: :math:`A \int f(z, u) \,\mathrm d\mu^*(u, z) + b` with an MLP :math:`f`.

    Parameters
    ----------
    model
        The DDEQ.
    num_classes
        Number of classes.
    hidden
        Width of :math:`f`; default the dimension of the equilibrium's points.
    """

    solution: Solution | None
    """The equilibria of the last forward pass, with their residuals and status."""

    def __init__(self, model: DDEQ, num_classes: int, *, hidden: int | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least one, got {num_classes}")
        dim, mark_dim = model.reference.dim, model.reference.mark_dim
        self.model = model
        self.features = nn.Sequential(MLP(dim + mark_dim, hidden or dim, hidden or dim), nn.GELU())
        self.pool = MeanPooling()
        self.scores = nn.Linear(hidden or dim, num_classes)
        self.solution = None

    def forward(
        self, rho: DiscreteMeasure, n: int | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch classes"]:
        """Logits of each measure; arguments as in `DDEQ`."""
        self.solution = self.model(rho, n, generator)
        mu = self.solution.measure
        atoms = mu.points if mu.marks is None else torch.cat([mu.points, mu.marks], -1)
        logits: Tensor = self.scores(self.pool(self.features(atoms), mu))
        return logits

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files hold the model, not the graph of its last batch.
        return self.__dict__ | {"solution": None}
