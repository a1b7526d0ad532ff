"""Heads: what a model makes of its equilibrium measure."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddeq.integers import whole
from ddeq.measures import DiscreteMeasure
from ddeq.nn.ddeq import DDEQ
from ddeq.nn.layers import MLP
from ddeq.nn.pooling import MeanPooling
from ddeq.solvers import Solution

__all__ = ["Classifier", "Completer", "Head"]


class Head(nn.Module):
    """Reads the equilibrium of a `DDEQ`; the last one is kept, so that its convergence can be looked at.

    Parameters
    ----------
    model
        The DDEQ.
    """

    solution: Solution | None
    """The equilibria of the last forward pass, with their residuals and status."""

    def __init__(self, model: DDEQ) -> None:
        super().__init__()
        self.model = model
        self.solution = None

    @property
    def atom_features(self) -> int:
        """Number of features of an atom: its coordinates and its marks."""
        return self.model.reference.dim + self.model.reference.mark_dim

    def solve(
        self, rho: DiscreteMeasure, n: int | None, generator: torch.Generator | None
    ) -> tuple[DiscreteMeasure, Float[Tensor, "*batch n c"]]:
        """The equilibrium measure of each input, and the features of its atoms; ``rho``, ``n``, ``generator`` as in `DDEQ`."""
        self.solution = self.model(rho, n, generator)
        mu = self.solution.measure
        return mu, mu.points if mu.marks is None else torch.cat([mu.points, mu.marks], -1)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files hold the model, not the graph of its last batch.
        return self.__dict__ | {"solution": None}


class Classifier(Head):
    r"""Class scores from the equilibrium of a `DDEQ`: :math:`A \int f(z, u) \,\mathrm d\mu^*(u, z) + b` with an MLP :math:`f`.

    Parameters
    ----------
    model
        The DDEQ.
    num_classes
        Number of classes.
    hidden
        Width of :math:`f`; default the dimension of the equilibrium's points.

    Raises
    ------
    ValueError
        If ``num_classes`` is less than one.

    References
    ----------
    :cite:t:`geuter2025ddeqs`.
    """

    def __init__(self, model: DDEQ, num_classes: int, *, hidden: int | None = None) -> None:
        super().__init__(model)
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least one, got {num_classes}")
        hidden = hidden or model.reference.dim
        self.features = nn.Sequential(MLP(self.atom_features, hidden, hidden), nn.GELU())
        self.pool = MeanPooling()
        self.scores = nn.Linear(hidden, num_classes)

    def forward(
        self, rho: DiscreteMeasure, n: int | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch classes"]:
        """Logits of each measure; ``rho``, ``n`` and ``generator`` as in `DDEQ`."""
        mu, atoms = self.solve(rho, n, generator)
        logits: Tensor = self.scores(self.pool(self.features(atoms), mu))
        return logits


class Completer(Head):
    r"""A completed measure: the known one plus what is missing, which the equilibrium of a `DDEQ` says.

    .. math:: \hat\rho = \rho + \rho(\mathbb R^d) \frac{s}{1 - s}\, f_\# \mu^* , \qquad
              s = \sigma\Big(a \cdot \int g(z, u) \,\mathrm d\mu^*(u, z) + b\Big)

    An `MLP` :math:`f` takes each atom, with its mark, to its place; :math:`s` is the share of the completed measure's mass
    that was missing. The known measure stays as it is. With a `GaussianReference` the equilibrium has any number of atoms,
    and more of them sample the same completion more finely (marks, T6).

    Parameters
    ----------
    model
        The DDEQ.
    dim
        Dimension of the measures; default that of the model's encoder.
    hidden
        Width of :math:`f` and :math:`g`; default the dimension of the equilibrium's points.

    Raises
    ------
    ValueError
        If ``dim`` is not given and the encoder has no attribute ``dim``.

    References
    ----------
    :cite:t:`geuter2025ddeqs`, completion by a DDEQ.
    """

    def __init__(self, model: DDEQ, dim: int | None = None, *, hidden: int | None = None) -> None:
        super().__init__(model)
        dim = getattr(model.encoder, "dim", None) if dim is None else dim
        if dim is None:
            raise ValueError("dim: expected the dimension of the measures, which the encoder does not say either; got None")
        dim = whole("dim", dim)
        hidden = hidden or model.reference.dim
        self.place = MLP(self.atom_features, hidden, hidden, dim)
        self.features = nn.Sequential(nn.Linear(self.atom_features, hidden), nn.GELU())
        self.pool = MeanPooling()
        self.share = nn.Linear(hidden, 1)

    def forward(self, rho: DiscreteMeasure, n: int | None = None, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """The completed measure of each input, its known atoms first.

        Parameters
        ----------
        rho
            What is known of the measures.
        n
            Number of atoms that are added, where the reference allows another than its own.
        generator
            Randomness of the reference and of dropout.
        """
        return rho.with_marks(None) + self.missing(rho, n, generator)

    def missing(self, rho: DiscreteMeasure, n: int | None = None, generator: torch.Generator | None = None) -> DiscreteMeasure:
        """What `forward` adds to ``rho``; ``n`` and ``generator`` as there."""
        mu, atoms = self.solve(rho, n, generator)
        odds = self.share(self.pool(self.features(atoms), mu)).squeeze(-1).exp()  # s / (1 - s)
        weights = mu.normalized().weights * (rho.mass() * odds).unsqueeze(-1)
        return mu.with_marks(None).with_points(self.place(atoms)).with_weights(weights)
