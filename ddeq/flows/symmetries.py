"""Rigid motions that leave a functional as it is, found from its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Place", "Symmetries", "find_symmetries", "generic_field"]

LARGEST_DIMENSION = 6
"""Up to here rotations are looked for, and single directions of translation; beyond, all translations together."""


@dataclass(frozen=True)
class Place:
    """Where the atoms of measures are, and what is long there."""

    points: Tensor
    """``(*batch, n, d)``"""
    weights: Tensor
    """``(*batch, n)``; 0 for atoms that do not count."""
    centre: Tensor
    """``(*batch, 1, d)``"""
    length: Tensor
    """``(*batch, 1, 1)``"""

    @classmethod
    def of(cls, points: Tensor, weights: Tensor, start: Tensor) -> Place:
        """The place of atoms that have come from ``start``: lengths are the spread, or the way if that was longer."""
        mass = weights.sum(-1)[..., None, None]
        share = weights.unsqueeze(-1) / torch.where(mass > 0, mass, 1.0)
        centre = (share * points).sum(-2, keepdim=True)

        def size(field: Tensor) -> Tensor:
            return (share * field.square()).sum((-2, -1), keepdim=True).sqrt()

        length = torch.maximum(size(points - centre), size(torch.where(weights.unsqueeze(-1) > 0, points - start, 0.0)))
        away = centre.norm(dim=-1, keepdim=True)
        small = length <= torch.finfo(points.dtype).eps ** (2 / 3) * away
        length = torch.where(small, torch.where(away > 0, 0.1 * away, 1.0), length)
        return cls(points, weights, centre, length)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of fields in L2(mu), ``(*batch, 1, 1)``."""
        return (self.weights.unsqueeze(-1) * a * b).sum((-2, -1), keepdim=True)

    def norm(self, a: Tensor) -> Tensor:
        """The norm of L2(mu), ``(*batch, 1, 1)``."""
        return self.inner(a, a).clamp_min(0.0).sqrt()

    @property
    def unit(self) -> Tensor:
        """The points relative to the centre, in units of the length."""
        return (self.points - self.centre) / self.length


def generic_field(place: Place, seed: int) -> Tensor:
    """A field of numbers in [-1, 1] without any structure, ``(*batch, n, d)``: always the same function of the place.

    Atoms that coincide have the same vector, so what is found with it is a property of the measure (measure consistency, T1),
    and of each alone.
    """
    d = place.points.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu") * (20.0 / d**0.5)
    phase = torch.randn(d, generator=generator, dtype=torch.float64, device="cpu") * 3.0
    waves, phase = waves.to(place.points), phase.to(place.points)
    total = phase
    for coordinate, wave in zip(place.unit.unbind(-1), waves, strict=True):  # a matrix product may round equal rows differently
        total = total + coordinate.unsqueeze(-1) * wave
    return total.sin()


@dataclass(frozen=True)
class Symmetries:
    r"""The fields :math:`\xi(x) = a + A(x - c)`, with :math:`A` antisymmetric, along which a functional does not change."""

    place: Place
    projector: Tensor
    """From moments to coefficients, ``(*batch, G, G)`` for ``G`` generators: translations first, then rotations."""
    of_translations: Tensor
    """The same for those that are translations."""
    stiffness: Tensor
    """How fast the gradient changes with the points around, ``(*batch, 1, 1)``."""

    def part(self, field: Tensor, translations: bool = False) -> Tensor:
        """Orthogonal projection of a field to the symmetries, or to the translations among them."""
        projector = self.of_translations if translations else self.projector
        moments = _moments(self.place, field, projector.shape[-1])
        return _field(self.place, (projector.to(field) @ moments.unsqueeze(-1)).squeeze(-1))

    def without(self, field: Tensor) -> Tensor:
        """A field less its part along the symmetries."""
        return field - self.part(field)


def find_symmetries(gradient: Callable[[Tensor], Tensor], place: Place, tolerance: float) -> Symmetries:
    r"""The rigid motions under which a functional does not change, for each measure of a batch.

    These are the solutions :math:`(a, A)` of :math:`\langle g(Z'), a + A(Z' - c)\rangle_{L^2(\mu)} = 0` at every configuration
    :math:`Z'`: the null space of as many generic ones as there are unknowns, and two more.

    Parameters
    ----------
    gradient
        Wasserstein gradient at given points.
    place
        Where the atoms are.
    tolerance
        Relative size at which a slope is zero.
    """
    d = place.points.shape[-1]
    detailed = d <= LARGEST_DIMENSION
    generators = d * (d + 1) // 2 if detailed else d
    here = gradient(place.points)
    rows, stiffness = [], []
    for k in range(generators + 2 if detailed else 3):
        step = (0.1, 0.3)[k % 2] * place.length * generic_field(place, k)
        g = gradient(place.points + step)
        moved = Place(place.points + step, place.weights, place.centre, place.length)
        size = place.norm(g)[..., 0]
        moments = _moments(moved, g, generators)
        rows.append(torch.where(size > 0, moments / torch.where(size > 0, size, 1.0), moments))
        stiffness.append(place.norm(g - here) / place.norm(step))
    mass = place.weights.sum(-1)[..., None, None].sqrt().double()
    slopes = torch.stack(rows, -2).double() / torch.where(mass > 0, mass, 1.0)
    bad = ~torch.isfinite(slopes).all(-1)
    usable = (bad.sum(-1) <= 2)[..., None, None]
    slopes = torch.where(bad.unsqueeze(-1), 0.0, slopes)
    if detailed:
        symmetric, shifts = _null_space(slopes, tolerance), _null_space(slopes[..., :d], tolerance)
        shifts = torch.nn.functional.pad(shifts, (0, generators - d, 0, generators - d))
    else:
        none = (slopes.abs().amax((-2, -1), keepdim=True) <= tolerance).double()
        symmetric = shifts = none * torch.eye(d, dtype=torch.float64, device=slopes.device)
    basis = torch.eye(generators, dtype=place.points.dtype, device=place.points.device)
    columns = [_moments(place, _field(place, e.expand(*place.points.shape[:-2], -1)), generators) for e in basis]
    gram = torch.stack(columns, -1).double()
    projectors = []
    # What a turn moves by less is rounding of the points: atoms that have met.
    least = torch.finfo(place.points.dtype).eps ** (2 / 3) * mass.square().squeeze((-1, -2))
    for null in (symmetric, shifts):
        inside = torch.linalg.pinv(null.mT @ gram @ null, hermitian=True, atol=least, rtol=torch.zeros_like(least))
        projectors.append(torch.where(usable, null @ inside @ null.mT, 0.0))
    return Symmetries(place, projectors[0], projectors[1], torch.stack(stiffness).nanmedian(0).values.nan_to_num(nan=0.0))


def _null_space(rows: Tensor, tolerance: float) -> Tensor:
    """Right singular vectors as columns ``(*batch, G, G)``, those of the null space as they are and the others zero."""
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    null: Tensor = right.mT * (values <= tolerance).unsqueeze(-2)
    return null


def _moments(place: Place, field: Tensor, generators: int) -> Tensor:
    """Inner products of a field with the generators, ``(*batch, G)``."""
    weighted = place.weights.unsqueeze(-1) * field
    shift = weighted.sum(-2)
    d = shift.shape[-1]
    if generators == d:
        return shift
    a, b = torch.triu_indices(d, d, 1, device=field.device)
    turn = weighted.mT @ place.unit
    return torch.cat([shift, turn[..., a, b] - turn[..., b, a]], -1)


def _field(place: Place, coefficients: Tensor) -> Tensor:
    """The combination of the generators with these coefficients, ``(*batch, n, d)``."""
    d = place.points.shape[-1]
    shift = coefficients[..., None, :d].expand_as(place.points)
    if coefficients.shape[-1] == d:
        return shift
    a, b = torch.triu_indices(d, d, 1, device=coefficients.device)
    turn = coefficients.new_zeros(*coefficients.shape[:-1], d, d)
    turn[..., a, b], turn[..., b, a] = coefficients[..., d:], -coefficients[..., d:]
    return shift + place.unit @ turn.mT
