"""Potentials of entropic transport by geomloss: single precision, from coarse to fine; a start for large problems."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ddeq.functionals.entropic import EntropicTransport
from ddeq.functionals.pairs import stores_all
from ddeq.measures import DiscreteMeasure
from ddeq.untraced import is_installed

__all__ = ["Start", "check_start", "potential_by_geomloss", "takes_geomloss"]

Start = Literal["auto", "cells", "geomloss"]
SCALING = 0.7
"""Factor by which geomloss lowers the blur: larger ones cost more than the Newton step that they save."""
LARGEST_DIM = 3
"""Above this dimension geomloss has no coarse-to-fine scheme."""


def check_start(start: object) -> Start:
    """The option, once it is known to be one; a `ValueError` else."""
    if start not in get_args(Start):
        raise ValueError(f"start: expected one of {', '.join(map(repr, get_args(Start)))}, got {start!r}")
    return start  # type: ignore[return-value]


def takes_geomloss(start: Start, mu: DiscreteMeasure, nu: DiscreteMeasure) -> bool:
    """Whether geomloss finds the start: where asked for, or for measures so large that no matrix of their pairs is stored."""
    if start != "auto":
        return start == "geomloss"
    large = not mu.batch_shape and not stores_all(mu, nu) and mu.dim <= LARGEST_DIM
    return large and is_installed("pykeops")


@torch.no_grad()
def potential_by_geomloss(transport: EntropicTransport, mu: DiscreteMeasure, nu: DiscreteMeasure) -> Tensor:
    """The potential at the atoms of ``nu``, ``(*batch, m)``, with an error of some hundredths of epsilon."""
    from geomloss import SamplesLoss

    single = torch.float32
    around = nu.mean().unsqueeze(-2)  # single precision far from the origin would keep no digits
    x, y = ((m.points - around).to(single) for m in (mu, nu))
    multiscale = not mu.batch_shape and mu.dim <= LARGEST_DIM
    loss = SamplesLoss(
        "sinkhorn",
        p=2,
        blur=transport.blur,
        reach=transport.reach,
        scaling=SCALING,
        debias=False,
        potentials=True,
        backend="multiscale" if multiscale else "tensorized" if stores_all(mu, nu) else "online",
    )
    given = [t.flatten(0, len(mu.batch_shape) - 1) if mu.batch_shape else t for t in (mu.weights.to(single), x)]
    target = [t.flatten(0, len(mu.batch_shape) - 1) if mu.batch_shape else t for t in (nu.weights.to(single), y)]
    _, g = loss(*given, *target)
    return torch.nan_to_num(g.reshape(nu.weights.shape).to(nu.dtype))
