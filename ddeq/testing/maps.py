"""`check_map`: is a map of arrays one of measures?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.samples import HINTS, changed_neighbour, trial_measures, with_dead_atoms

__all__ = ["check_map"]

MOVED: dict[str, tuple[str, ...]] = {"points": ("points",), "weights": ("weights",), "both": ("points", "weights")}


def check_map(
    map: Callable[..., DiscreteMeasure],
    measures: DiscreteMeasure | Sequence[DiscreteMeasure] | None = None,
    *args: Any,
    dim: int = 2,
    mark_dim: int = 0,
    moves: Literal["points", "weights", "both"] = "points",
    units: float = 2e3,
) -> None:
    """Hold ``map(mu, *args)`` to measure consistency (T1): the image of each measure depends on it alone.

    Checked: marks, number of atoms, mass, and weights or points that do not move stay; no weight is negative; two evaluations
    agree; permuting the atoms permutes the image, copies of an atom go to one place and share what its mass becomes, atoms of
    mass zero change nothing; no measure depends on another of the batch.

    Parameters
    ----------
    map
        A function or module.
    measures
        Measures to try; default: small ones of dimension ``dim`` with marks of dimension ``mark_dim``.
    args
        What the map takes besides.
    dim, mark_dim
        Dimensions of the points and of the marks of the default measures: those that the map is made for.
    moves
        What the map moves, as in `ddeq.fixed_point`.
    units
        Rounding units of the dtype that are allowed.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    ValueError
        If the map takes no measures of the default dimensions; the message says which ``dim=`` to give.
    """
    if measures is None:
        measures = trial_measures(dim, mark_dim=mark_dim, like=map)
        _check_width(map, args, dim, mark_dim)
    for mu in [measures] if isinstance(measures, DiscreteMeasure) else measures:
        with torch.no_grad():
            _check(map, mu, args, MOVED[moves], units)


def _check_width(map: Callable[..., DiscreteMeasure], args: tuple[Any, ...], dim: int, mark_dim: int) -> None:
    """Raise a `ValueError` that says which ``dim=`` to give, where the map takes points or marks of another dimension."""
    try:
        with torch.no_grad():
            map(trial_measures(dim, mark_dim=mark_dim, like=map)[0], *args)
    except Exception as error:
        sizes = _sizes(map)
        tried = [(d, mark_dim) for d in sizes] + [(d, k) for d in (dim, *sizes) for k in (0, *sizes)]
        found = next(((d, k) for d, k in tried if (d, k) != (dim, mark_dim) and _takes(map, d, k, args)), None)
        if found is None and not isinstance(error, RuntimeError | ValueError | IndexError):
            raise
        remedy = "the dimensions that it is made for, or measures"
        if found is not None:
            remedy = f"dim={found[0]}" + (f", mark_dim={found[1]}" if found[1] != mark_dim else "")
        raise ValueError(
            f"dim, mark_dim: the map fails at the default measures, of dimension {dim} with marks of dimension {mark_dim}; "
            f"give {remedy}. It says: {error}"
        ) from error


def _sizes(map: object) -> list[int]:
    """Sizes of the parameters of a module, among which are the dimensions that it takes."""
    return sorted({size for p in map.parameters() for size in p.shape}) if isinstance(map, nn.Module) else []


def _takes(map: Callable[..., DiscreteMeasure], dim: int, mark_dim: int, args: tuple[Any, ...]) -> bool:
    """Whether the map takes points and marks of these dimensions, and gives as many coordinates."""
    mu = trial_measures(dim, mark_dim=mark_dim, like=map)[0]
    try:
        with torch.no_grad():
            return map(mu, *args).points.shape == mu.points.shape
    except Exception:  # noqa: BLE001 whatever a map of the user's raises
        return False


def _check(
    map: Callable[..., DiscreteMeasure], mu: DiscreteMeasure, args: tuple[Any, ...], moved: tuple[str, ...], units: float
) -> None:
    image = map(mu, *args)
    if not isinstance(image, DiscreteMeasure):
        raise AssertionError(f"the map gives a {type(image).__name__}; expected a DiscreteMeasure")
    if image.points.shape[:-1] != mu.points.shape[:-1]:
        raise AssertionError(f"the map changes the number of atoms: {tuple(mu.points.shape)} to {tuple(image.points.shape)}")
    for name in [n for n in ("points", "weights", "marks") if n not in moved]:
        before, after = getattr(mu, name), getattr(image, name)
        if before is not after and (None in (before, after) or not torch.equal(before, after)):
            raise AssertionError(f"the map changes the {name} of its argument: {before} to {after}")
    for name in moved:
        if not bool(torch.isfinite(getattr(image, name)).all()):
            raise AssertionError(f"the image is not finite: {name} {getattr(image, name)} of {mu}")
    if "weights" in moved:
        if bool((image.weights < 0).any()):
            raise AssertionError(f"non-negative weights: the map gives one of {float(image.weights.min()):.3e}")
        assert_close(
            image.mass(), mu.mass(), "mass: the map changes it", units=units, hint="For mass one end it with normalized()."
        )
    law = "randomness: two evaluations of the map differ; draw once per forward pass (ddeq.nn.Dropout)"
    again = map(mu, *args)
    for name in moved:
        assert_close(getattr(again, name), getattr(image, name), law, units=0.0)
    order = torch.randperm(mu.n, generator=torch.Generator().manual_seed(0)).to(mu.device)
    atom = mu.n // 2
    for change, breach, same, expected in (
        ("permuting the atoms", "does not permute their images", mu.permute_atoms(order), image.permute_atoms(order)),
        ("splitting an atom", "moves the images", mu.split_atom(atom, 0.3), image.split_atom(atom, 0.3)),
        ("adding atoms of mass zero", "moves the images", with_dead_atoms(mu), image),
    ):
        actual = map(same, *args)
        law = f"T1 (measure consistency): {change} {breach}"
        if "points" in moved:
            assert_close(actual.points[..., : expected.n, :], expected.points, law, units=units, hint=HINTS[change])
        if "weights" in moved:
            assert_close(actual.weights[..., : expected.n], expected.weights, law, units=units, hint=HINTS[change])
    neighbour = changed_neighbour(mu)
    if neighbour is not None:
        law, actual = "T1 (one measure at a time): the image depends on another measure of the batch", map(neighbour, *args)
        for name in moved:
            after, before = getattr(actual, name)[1:], getattr(image, name)[1:]
            assert_close(after, before, law, units=units, hint=HINTS["another measure"])
