"""`check_flow`: does a flow descend, and is it one of measures?"""

from __future__ import annotations

from typing import Any

import torch

from ddeq.flows import flow
from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.samples import changed_neighbour, with_dead_atoms

__all__ = ["check_flow"]


def check_flow(
    functional: Functional, mu0: DiscreteMeasure, *, descends: bool = True, units: float = 2e4, **options: Any
) -> None:
    """Hold a noiseless flow to T1 and T10: the same measure flows the same way however stored, and energy never rises.

    Parameters
    ----------
    functional, mu0
        What flows, and from where.
    descends
        Whether to ask that the energy never rises, which needs small steps.
    units
        Rounding units of the dtype that are allowed.
    options
        As in `ddeq.flow`; ``steps`` or ``stop`` among them.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    with torch.no_grad():
        trajectory = flow(functional, mu0, **options)
        end = trajectory.measure
        if descends:
            rises = trajectory.energies.diff(dim=0)
            size = trajectory.energies.abs().max()
            if bool((rises > 100 * torch.finfo(mu0.dtype).eps * size).any()):
                raise AssertionError(
                    f"T10 (dissipation): a step raises the energy by {float(rises.max()):.3e}; take smaller ones"
                )
        order = torch.randperm(mu0.n, generator=torch.Generator().manual_seed(0)).to(mu0.device)
        law = "T1 (measure consistency): permuting the atoms does not permute the flow"
        permuted = flow(functional, mu0.permute_atoms(order), **options).measure
        assert_close(permuted.points, end.permute_atoms(order).points, law, units=units)
        law = "T1 (measure consistency): splitting an atom changes the flow"
        split = flow(functional, mu0.split_atom(mu0.n // 2, 0.3), **options).measure
        assert_close(split.points, end.split_atom(mu0.n // 2, 0.3).points, law, units=units)
        law = "T1 (measure consistency): adding atoms of mass zero changes the flow"
        padded = flow(functional, with_dead_atoms(mu0), **options).measure
        assert_close(padded.points[..., : mu0.n, :], end.points, law, units=units)
        neighbour = changed_neighbour(mu0)
        if neighbour is not None:
            law = "T1 (one measure at a time): the flow depends on another measure of the batch"
            assert_close(flow(functional, neighbour, **options).measure.points[1:], end.points[1:], law, units=units)
