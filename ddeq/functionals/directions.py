"""Directions on the unit sphere, and what functionals share that are means over projections on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import recompute, under_transforms
from ddeq.draws import normal
from ddeq.functionals.discrepancy import Discrepancy
from ddeq.held import store
from ddeq.integers import whole
from ddeq.measures import DiscreteMeasure, middle, values_are_known
from ddeq.reductions.placement import sum_over_items
from ddeq.reductions.sorted import in_sum_precision
from ddeq.reductions.sorting import chunks, in_threads, is_plain

__all__ = ["SlicedDiscrepancy", "by_coordinate", "lift", "project", "unit_directions"]

GROUP = 2**21
"""Numbers that projections on a group of directions hold at a time."""
SIDE_BY_SIDE = 4
"""Directions in a group at least, if there are so many threads, each of which sorts along another one."""
GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
SOBOL_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


def unit_directions(n: int, dim: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
    """Unit vectors spread evenly over the sphere of ``R^dim``, in double precision on the CPU: always the same ones.

    On the line the one direction there is; in the plane equally spaced angles, turned so that none lies along an axis; in
    space a Fibonacci spiral on half of the sphere; beyond, scrambled Sobol points through the normal quantile. With a
    ``generator``, independent uniform ones instead.
    """
    if dim == 1:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu")
    if generator is None and dim == 2:
        angles = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5 * (math.sqrt(5) - 1)) * (math.pi / n)
        return torch.stack([angles.cos(), angles.sin()], -1)
    if generator is None and dim == 3:
        number = torch.arange(n, dtype=torch.float64, device="cpu")
        height, angles = (number + 0.5) / n, number * GOLDEN_ANGLE
        radius = (1.0 - height.square()).sqrt()
        return torch.stack([radius * angles.cos(), radius * angles.sin(), height], -1)
    if generator is None and dim <= SOBOL_DIMENSIONS:
        uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(n, dtype=torch.float64)
        drawn = torch.special.ndtri(uniform * (1.0 - 2.0**-30) + 2.0**-31)  # within (0, 1): the points reach 0
    else:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        drawn = normal((n, dim), torch.empty(0, dtype=torch.float64, device="cpu"), generator, torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def project(points: Float[Tensor, "*batch n d"], directions: Float[Tensor, "g d"]) -> Float[Tensor, "g *batch n"]:
    """Coordinates of the points along each direction.

    Added up one after the other: a matrix product may round equal rows differently, and coincident atoms would part.
    """
    if is_plain(points, directions):
        return _project(points, directions)
    shape = (-1, *(1 for _ in points.shape[:-1]))
    terms = (a * b.reshape(shape) for a, b in zip(points.unbind(-1), directions.unbind(-1), strict=True))
    total: Tensor = next(terms)
    for term in terms:
        total = total + term
    return total


def lift(slopes: Float[Tensor, "g *batch n"], directions: Float[Tensor, "g d"]) -> Float[Tensor, "*batch n d"]:
    """Sum of the directions, each times its slope: the transpose of `project`, likewise one after the other."""
    if is_plain(slopes, directions):
        return _lift(slopes, directions)
    terms = (s.unsqueeze(-1) * direction for s, direction in zip(slopes, directions, strict=True))
    total: Tensor = next(terms)
    for term in terms:
        total = total + term
    return total


def _project(points: Tensor, directions: Tensor) -> Tensor:
    """`project` in chunks that stay in the caches, and in threads."""
    columns = [x.reshape(-1).numpy() for x in points.detach().unbind(-1)]
    steps, found = directions.detach().numpy(), np.empty((len(directions), len(columns[0])), columns[0].dtype)
    n = len(columns[0])
    pieces = [(some, part) for part in chunks(n) for some in chunks(len(directions), n)]

    def one(piece: tuple[slice, slice]) -> None:
        some, part = piece
        total = found[some, part]
        np.multiply(columns[0][part], steps[some, :1], out=total)
        for x, step in zip(columns[1:], steps[some, 1:].T, strict=True):
            total += x[part] * step[:, None]

    in_threads(one, pieces, found.size)
    return torch.from_numpy(found).reshape(len(directions), *points.shape[:-1])


def _lift(slopes: Tensor, directions: Tensor) -> Tensor:
    """`lift` in chunks that stay in the caches, and in threads."""
    lines, steps = slopes.detach().reshape(len(slopes), -1).numpy(), directions.detach().numpy()
    found = np.empty((steps.shape[1], lines.shape[1]), lines.dtype)

    def one(part: slice) -> None:
        total = found[:, part]
        np.multiply(lines[0, part], steps[0, :, None], out=total)
        for line, step in zip(lines[1:, part], steps[1:, :, None], strict=True):
            total += line * step

    in_threads(one, chunks(lines.shape[1], steps.shape[1]), lines.size)
    return torch.from_numpy(found).reshape(-1, *slopes.shape[1:]).movedim(0, -1)


class SlicedDiscrepancy(Discrepancy):
    """A discrepancy that is a mean over projections on ``directions``, a buffer ``(n_projections, d)``."""

    directions: Tensor
    remembers = False

    def __init__(
        self,
        target: DiscreteMeasure,
        n_projections: int,
        directions: Tensor | None,
        generator: torch.Generator | None,
        resample: bool,
    ) -> None:
        super().__init__(target)
        self.resample = self.remembers = self.draws = self.varies = resample
        n_projections = whole("n_projections", n_projections)
        if directions is None:
            points = target.points.detach()
            directions = unit_directions(n_projections, target.dim, generator).to(points.device, points.dtype)
        else:
            if generator is not None:
                raise ValueError("generator: expected None where directions are given, which leave nothing to draw")
            if resample:
                raise ValueError(
                    "resample: expected False where directions are given; leave them out, and each step draws its own"
                )
            _check_directions(directions, target.dim)
        store(self, "directions", directions, shared=True)

    def prepare(
        self, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None
    ) -> tuple[SlicedDiscrepancy, Any]:
        if not self.resample:
            return self, None
        if generator is None:
            raise ValueError("generator: expected that of the flow, from which resample=True draws directions, got None")
        drawn = unit_directions(len(self.directions), self.directions.shape[-1], generator).to(self.directions)
        other = self.with_memory(None)
        other.__dict__["_buffers"] = {**self._buffers, "directions": drawn}
        return other, None

    def _target_for(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        nu = super()._target_for(mu)
        if self.directions.shape[-1] != mu.dim:
            raise ValueError(f"mu: expected points of dimension {self.directions.shape[-1]} as of the directions, got {mu.dim}")
        return nu

    def _mean(self, integrand: Callable[..., Tensor], numbers: int, *tensors: Tensor) -> Tensor:
        """Mean over the directions of ``integrand(directions, *tensors)``, which adds up over the few that it is given.

        ``numbers`` is what it holds for each direction. Where there are several groups, nothing is kept for backward but
        ``tensors``: each group is computed again.
        """

        def added(directions: Tensor, *tensors: Tensor) -> Tensor:
            directions = directions.to(tensors[0])
            together = 1 if directions.device.type != "cpu" else min(torch.get_num_threads(), SIDE_BY_SIDE)
            groups = directions.split(max(together, GROUP // max(1, numbers)))
            keep = len(groups) == 1 or under_transforms()
            total = None
            for group in groups:
                more = integrand(group, *tensors) if keep else recompute(lambda *t: (integrand(*t),), group, *tensors)[0]
                add = torch.Tensor.add_ if total is not None and is_plain(total, more) else torch.add
                total = more if total is None else add(total, more)
            assert total is not None  # there is a direction at least
            return total

        return sum_over_items(added, self.directions, *tensors) / len(self.directions)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, n_projections={len(self.directions)}"
        return f"{text}, resample=True" if self.resample else text


def by_coordinate(points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
    """The ``points`` with each coordinate in one piece of memory, as projections read them."""
    return points.mT.contiguous().mT


def around(origin: DiscreteMeasure, points: Tensor) -> Tensor:
    """``points`` relative to the middle of ``origin``, in the precision of sums: far away projections lose digits."""
    return in_sum_precision(points) - in_sum_precision(middle(origin))


def _check_directions(directions: Any, dim: int) -> None:
    if not isinstance(directions, Tensor) or not directions.dtype.is_floating_point:
        seen = directions.dtype if isinstance(directions, Tensor) else type(directions).__name__
        raise ValueError(f"directions: expected a floating-point tensor, got {seen}")
    if directions.ndim != 2 or directions.shape[-1] != dim or not len(directions):
        raise ValueError(f"directions: expected shape (n_projections, {dim}) as of the target, got {tuple(directions.shape)}")
    if values_are_known(directions):
        norms = directions.detach().double().norm(dim=-1)
        worst = norms[(norms - 1.0).nan_to_num(nan=math.inf).abs().argmax()].item()
        if not abs(worst - 1.0) <= 1e-4:
            raise ValueError(f"directions: expected unit vectors, got one of norm {worst:.6g}; divide them by their norms")
