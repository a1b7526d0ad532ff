"""`check_flow`: does a flow descend, and does it depend on the measure alone?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ddeq.draws import Draws
from ddeq.flows import Reaction, flow
from ddeq.functionals.dynamics import Dynamics
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.testing.close import assert_close
from ddeq.testing.samples import changed_neighbour, with_dead_atoms

__all__ = ["check_flow"]


def check_flow(functional: Dynamics, mu0: DiscreteMeasure, *, descends: bool = True, units: float = 2e4, **options: Any) -> None:
    """Hold a flow to measure consistency (T1), however a measure is stored it flows the same way, and to dissipation (T10).

    A flow with noise, or with births and deaths, is held to what is left: with the same randomness at the same atoms, a
    permutation of the atoms permutes the flow, and no measure depends on another one of the batch.

    Parameters
    ----------
    functional, mu0
        What flows, and from where.
    descends
        Whether to ask that the energy never rises, which needs small steps; not asked of a flow with noise, or without energy.
    units
        Rounding units of the dtype that are allowed.
    options
        As in `ddeq.flow`, which takes 500 steps if neither ``steps`` nor ``stop`` is among them.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    reaction = options.get("reaction")
    random = functional.draws or options.get("noise") is not None or (isinstance(reaction, Reaction) and reaction.jumps)

    def end(mu: DiscreteMeasure) -> DiscreteMeasure:
        seeded = {"generator": torch.Generator().manual_seed(0)} if random else {}
        found: DiscreteMeasure = flow(functional, mu, **options | seeded).measure
        return found

    with torch.no_grad():
        expected = end(mu0)
        if descends and not random and functional.has_energy:
            _check_descent(flow(functional, mu0, **options).energies)
        order = torch.randperm(mu0.n, generator=torch.Generator().manual_seed(0)).to(mu0.device)
        law = "T1 (measure consistency): permuting the atoms does not permute the flow"
        with _permuted_draws(order):
            permuted = end(mu0.permute_atoms(order))
        _check_same(permuted, expected.permute_atoms(order), law, units)
        neighbour = changed_neighbour(mu0)
        if neighbour is not None:
            law = "T1 (one measure at a time): the flow depends on another measure of the batch"
            _check_same(end(neighbour)[1:], expected[1:], law, units)
        if random:
            return
        law = "T1 (measure consistency): splitting an atom changes the flow"
        _check_same(end(mu0.split_atom(mu0.n // 2, 0.3)), expected.split_atom(mu0.n // 2, 0.3), law, units)
        law = "T1 (measure consistency): adding atoms of mass zero changes the flow"
        padded = end(with_dead_atoms(mu0))
        first = torch.arange(mu0.n, device=mu0.device).expand(mu0.weights.shape)
        _check_same(unchecked(padded.points[..., : mu0.n, :], padded.weights.gather(-1, first)), expected, law, units)


def _check_descent(energies: Tensor) -> None:
    rises = energies.diff(dim=0)
    if bool((rises > 100 * torch.finfo(energies.dtype).eps * energies.abs().max()).any()):
        raise AssertionError(f"T10 (dissipation): a step raises the energy by {float(rises.max()):.3e}; take smaller ones")


def _check_same(mu: DiscreteMeasure, expected: DiscreteMeasure, law: str, units: float) -> None:
    assert_close(mu.points, expected.points, law, units=units)
    assert_close(mu.weights, expected.weights, law, units=units)


@contextmanager
def _permuted_draws(order: Tensor) -> Iterator[None]:
    """Random fields at atoms are permuted as the atoms are."""
    drawn = Draws._drawn

    def permuted(self: Draws, *args: Any) -> Tensor:
        return drawn(self, *args)[..., order, :]

    Draws._drawn = permuted  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Draws._drawn = drawn  # type: ignore[method-assign]
