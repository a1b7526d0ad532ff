"""Measures on which checks try a user's work when the user gives none."""

from __future__ import annotations

import torch
from torch import nn

from ddeq.functionals.base import Functional
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["HINTS", "changed_neighbour", "same_measure", "trial_measures", "trial_measures_for", "with_dead_atoms"]

HINTS = {
    "permuting the atoms": "Does the order in which atoms are stored enter?",
    "splitting an atom": "Is there a sum or a mean without the weights, a norm over atoms, a top-k, k nearest neighbours, a sum "
    "over pairs without the diagonal, a logarithm of a weight?",
    "adding atoms of mass zero": "Do atoms without mass count: in a maximum, a mean, a normalisation, a softmax?",
    "a little mass": "Is there a supremum, or a `where` by weights? (first_variation=False is for functionals that have none.)",
    "another measure": "Is there a BatchNorm, or a reduction over the batch, such as sum() where sum(-1) is meant?",
}
"""What to look for where storing a measure in another way, or with another one, changes a result."""


def trial_measures(
    dim: int, *, like: object = None, batch_shape: tuple[int, ...] = (2,), mark_dim: int = 0, seed: int = 0
) -> list[DiscreteMeasure]:
    """Generic weights; an atom of mass zero and two coincident ones; a single atom; more atoms than a neighbourhood has.

    On the device and in the precision of the first tensor of a module ``like`` that has one; else on the CPU, in double.
    """
    g, dtype, device = torch.Generator().manual_seed(seed), torch.float64, torch.device("cpu")
    if isinstance(like, nn.Module):
        held = [t for t in (*like.parameters(), *like.buffers()) if t.is_floating_point()]
        dtype, device = (held[0].dtype, held[0].device) if held else (dtype, device)

    def draw(n: int) -> DiscreteMeasure:
        points = torch.randn(*batch_shape, n, dim, generator=g, dtype=dtype)
        weights = torch.rand(*batch_shape, n, generator=g, dtype=dtype) + 0.2
        marks = torch.randn(*batch_shape, n, mark_dim, generator=g, dtype=dtype) if mark_dim else None
        return DiscreteMeasure(points, weights / weights.sum(-1, keepdim=True), marks).to(device)

    generic = draw(4)
    return [generic, with_dead_atoms(draw(3)).split_atom(1, 0.3), draw(1), draw(12)]


def trial_measures_for(functional: object, dim: int | None = None) -> list[DiscreteMeasure]:
    """`trial_measures` that a functional takes: of the dimension, default 2, and the batch of its target, where it has one.

    Raises
    ------
    AssertionError
        If it is no functional.
    """
    if not isinstance(functional, Functional):
        raise AssertionError(f"functional: expected a ddeq.Functional, got {type(functional).__name__}; subclass Functional")
    own = functional.target if isinstance(functional, Discrepancy) else None
    batch_shape = own.batch_shape if own is not None and own.batch_shape else (2,)
    return trial_measures(dim or (2 if own is None else own.dim), batch_shape=batch_shape, like=functional)


def same_measure(mu: DiscreteMeasure, seed: int = 0) -> dict[str, DiscreteMeasure]:
    """The same measure stored in other ways, each with the name of what was done (measure consistency, T1)."""
    order = torch.randperm(mu.n, generator=torch.Generator().manual_seed(seed))
    return {
        "permuting the atoms": mu.permute_atoms(order.to(mu.device)),
        "splitting an atom": mu.split_atom(mu.n // 2, 0.3),
        "adding atoms of mass zero": with_dead_atoms(mu),
    }


def with_dead_atoms(mu: DiscreteMeasure) -> DiscreteMeasure:
    """The same measure with three more atoms of mass zero, last: a copy of the first one, and two outside of the support.

    Those outside catch what copies do not: suprema, batch statistics and neighbours among all stored atoms.
    """
    padded = mu.pad_atoms(3)
    size = mu.points.detach().amax((-2, -1)) - mu.points.detach().amin((-2, -1)) + 1.0
    away = torch.zeros_like(padded.weights)
    away[..., -2], away[..., -1] = size, -size
    marks = None if padded.marks is None else padded.marks + away.unsqueeze(-1)
    return unchecked(padded.points + away.unsqueeze(-1), padded.weights, marks)


def changed_neighbour(mu: DiscreteMeasure) -> DiscreteMeasure | None:
    """The batch with another first entry, or None where there is no second one."""
    if not mu.batch_shape or mu.batch_shape[0] < 2:
        return None
    points = mu.points.clone()
    points[0] = 1.7 * points[0] + 0.3
    return mu.with_points(points)
