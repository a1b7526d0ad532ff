"""The sorted backend: the kernel ``-|x - y|`` in dimension one, by sorting in O(N log N), with all derivatives.

Between neighbours in sorted order a sum of distances changes by their gap times the mass on one side. Only gaps and masses are
added up, never products of coordinates, so that nothing cancels far from the origin or between close points.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ddeq.autodiff import forward_levels
from ddeq.kernels import Kernel, Riesz
from ddeq.reductions.backends import Backend
from ddeq.reductions.sorting import arrange, ascending, ascending_with_ties, is_plain, members, put_back, runs
from ddeq.reductions.steps import energy_of_steps, signs_of_steps, steps_of_rows

__all__ = ["Sorted", "first_in_place", "in_sum_precision", "self_energy", "sum_distances", "sum_signs"]


FEW_TIES = 1 / 16
"""Share of the points up to which those that coincide are looked at by themselves."""


class Sorted(Backend):
    """Sums of the kernel ``Riesz(1.0)``, ``-|x - y|``, by sorting the points (MMD in one dimension, T12)."""

    name = "sorted"
    max_dim = 1
    specialised = True

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        return None if isinstance(kernel, Riesz) and kernel.r == 1.0 else "sorting sums Riesz(1.0) only"

    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n 1"],
        y: Float[Tensor, "*batch m 1"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        z, masses = _together(x, y, b)
        return sum_distances(z, masses)[..., : x.shape[-2]].mT.to(x.dtype)

    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n 1"],
        y: Float[Tensor, "*batch m 1"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n 1"]:
        z, masses = _together(x, y, b.unsqueeze(-1))
        return -sum_signs(z, masses, first=x.shape[-2]).mT.to(x.dtype)

    def energy_of_difference(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n 1"],
        a: Float[Tensor, "*batch n"],
        y: Float[Tensor, "*batch m 1"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch"]:
        return self_energy(*_difference(x, a, y, b)).squeeze(-1).to(x.dtype)

    def gradients_of_difference(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n 1"],
        a: Float[Tensor, "*batch n"],
        y: Float[Tensor, "*batch m 1"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n 1"]:
        return -sum_signs(*_difference(x, a, y, b), first=x.shape[-2]).mT.to(x.dtype)

    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n 1"],
        y: Float[Tensor, "*batch m 1"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        raise ValueError(f"kernel: expected a positive kernel, which has a logarithm, got {kernel!r}")


def _together(x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All points together, ``(*batch, n + m)``, and their masses, zero for those of ``x``, ``(*batch, c, n + m)``."""
    z = torch.cat([in_sum_precision(x), in_sum_precision(y)], -2).squeeze(-1)
    return z, torch.cat([z.new_zeros(*b.shape[:-2], x.shape[-2], b.shape[-1]), in_sum_precision(b)], -2).mT


def _difference(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All points together, ``(*batch, n + m)``, and the weights of ``x`` less those of ``y``, ``(*batch, 1, n + m)``."""
    z = torch.cat([in_sum_precision(x), in_sum_precision(y)], -2).squeeze(-1)
    return z, torch.cat([in_sum_precision(a), -in_sum_precision(b)], -1).unsqueeze(-2)


def sum_distances(
    z: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch c n"], order: Int[Tensor, "*batch n"] | None = None
) -> Float[Tensor, "*batch c n"]:
    r"""Sums of negative distances :math:`S_i = -\sum_j |z_i - z_j|\, b_j` between points with masses of any sign.

    Parameters
    ----------
    z
        Points ``(*batch, n)``, in the precision in which sums are to be taken (`in_sum_precision`).
    b
        Masses ``(*batch, c, n)``, ``c`` for each point.
    order
        Indices that sort the points, if they are known.
    """
    if forward_levels() > 1:
        gaps = _gaps(z)
        return -(b.unsqueeze(-2) * gaps.unsqueeze(-3)).sum(-1)
    order = ascending(z) if order is None else order
    sums: Tensor = _Distances.apply(z, b, order)  # type: ignore[no-untyped-call]
    return sums


def self_energy(z: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch c n"]) -> Float[Tensor, "*batch c"]:
    r"""Energy :math:`-\frac12 \sum_{ij} |z_i - z_j|\, b_i b_j` of masses of any sign, with one sort.

    It equals :math:`\int B (B - M) \,\mathrm dz` with the mass :math:`B(z)` to the left of :math:`z` and the total mass
    :math:`M` (MMD in one dimension, T12). This form has full relative precision where the energy is small.
    The arguments are those of `sum_distances`.
    """
    if forward_levels() > 1:
        return -0.5 * (b.unsqueeze(-1) * b.unsqueeze(-2) * _gaps(z).unsqueeze(-3)).sum((-2, -1))
    found = energy_of_steps(z, b) if is_plain(z, b) else None
    if found is not None:
        return found.unsqueeze(-1)
    energy: Tensor = _SelfEnergy.apply(z, b, ascending(z))  # type: ignore[no-untyped-call]
    return energy


def sum_signs(
    z: Float[Tensor, "*batch n"],
    b: Float[Tensor, "*batch c n"],
    order: Int[Tensor, "*batch n"] | None = None,
    first: int | None = None,
) -> Float[Tensor, "*batch c m"]:
    r"""Sums of signs :math:`A_i = \sum_j \operatorname{sign}(z_i - z_j)\, b_j`, where :math:`\operatorname{sign}(0) = 0`.

    The arguments are those of `sum_distances`, and how many of the points to give the sums of, the ``first`` ones (default:
    all). :math:`-A_i` is the gradient of its kernel sum. Constant in ``z``.
    """
    z = z.detach()
    order, ties = ascending_with_ties(z) if order is None else (order, None)
    back = order.unsqueeze(-2)
    # Mass strictly to the left plus mass weakly to the left minus all mass: coincident atoms contribute 0 to each other.
    if ties is None or len(ties) > FEW_TIES * z.numel():
        masses = arrange(b, back)
        upto = masses.cumsum(-1)
        left, right = (t.unsqueeze(-2).expand(b.shape) for t in _places(arrange(z, order)))
        return put_back((upto - masses).gather(-1, left) + upto.gather(-1, right) - upto[..., -1:], back, first)
    steps = steps_of_rows(z, b) if is_plain(b) else None
    if steps is not None:
        signs = signs_of_steps(order, steps, z.shape[-1] if first is None else first).unsqueeze(-2)
    else:
        masses = arrange(b, back)
        upto = masses.cumsum(-1)
        signs = put_back(2.0 * upto - masses - upto[..., -1:], back, first)
    if len(ties):
        _share(signs, b, order, ties)
    return signs


def _share(signs: Tensor, b: Tensor, order: Tensor, ties: Tensor) -> None:
    """Gives the points of each run of ``ties``, so far taken to be apart and in the order of their indices, one sum of signs."""
    places, run = members(*runs(ties))
    *batch, k = torch.unravel_index(places, order.shape)
    index = order[(*batch, k)]
    masses = b.mT[(*batch, index)]
    upto = masses.cumsum(0)
    ends = torch.cat([run.diff() > 0, torch.ones_like(run[:1], dtype=torch.bool)])
    whole = torch.cat([torch.zeros_like(upto[:1]), upto[ends]])  # the mass of all runs before each
    more = whole[run + 1] + whole[run] - 2.0 * upto + masses  # what is after it in its run, less what is before
    kept = index < signs.shape[-1]
    where, more, run = tuple(t[kept] for t in (*batch, index)), more[kept], run[kept]
    begins = torch.cat([torch.ones_like(run[:1], dtype=torch.bool), run.diff() > 0])
    common = (signs.mT[where] + more)[begins]
    signs.mT[where] = common[begins.cumsum(0) - 1]


def _gaps(z: Tensor) -> Tensor:
    """All distances ``(*batch, n, n)``, for derivatives that the functions below do not implement."""
    differences = z.unsqueeze(-1) - z.unsqueeze(-2)
    return differences * differences.detach().sign()


def in_sum_precision(t: Tensor) -> Tensor:
    """``t`` in double precision if the device supports it: cumulative sums of many terms lose digits in single precision."""
    return t if t.device.type == "mps" else t.double()


class _OnTheLine(torch.autograd.Function):
    """A function of points, masses and the indices that sort the points. Batch dimensions come first."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @classmethod
    def vmap(cls, info: Any, dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        batched = [t.expand(size, *t.shape) if k is None else t.movedim(k, 0) for t, k in zip(inputs, dims, strict=True)]
        result: Tensor = cls.apply(*batched)  # type: ignore[no-untyped-call]
        return result, 0


class _Distances(_OnTheLine):
    """`sum_distances`. Its derivatives are again sums of distances and of signs, by the same sort."""

    @staticmethod
    def forward(z: Tensor, b: Tensor, order: Tensor) -> Tensor:
        gaps = arrange(z, order).diff().unsqueeze(-2)
        back = order.unsqueeze(-2)
        b = arrange(b, back)
        sums = torch.zeros_like(b)
        sums[..., 1:] -= (gaps * b.cumsum(-1)[..., :-1]).cumsum(-1)
        gaps, b = gaps.flip(-1), b.flip(-1)
        sums[..., :-1] -= (gaps * b.cumsum(-1)[..., :-1]).cumsum(-1).flip(-1)
        return put_back(sums, back)

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, b, order = ctx.saved_tensors
        in_points = in_masses = None
        if ctx.needs_input_grad[0]:
            in_points = -(s * sum_signs(z, b, order) + b * sum_signs(z, s, order)).sum(-2)
        if ctx.needs_input_grad[1]:
            in_masses = sum_distances(z, s, order)
        return in_points, in_masses, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        z, b, order = ctx.saved_tensors
        change = torch.zeros_like(b)
        if dz is not None:
            moved = dz.unsqueeze(-2)
            change = sum_signs(z, moved * b, order) - moved * sum_signs(z, b, order)
        return change if db is None else change + sum_distances(z, db, order)


class _SelfEnergy(_OnTheLine):
    """`self_energy`."""

    @staticmethod
    def forward(z: Tensor, b: Tensor, order: Tensor) -> Tensor:
        left = arrange(b, order.unsqueeze(-2)).cumsum(-1)
        gaps = arrange(z, order).diff().unsqueeze(-2)
        return ((left[..., :-1] - left[..., -1:]).mul_(left[..., :-1]).mul_(gaps)).sum(-1)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        z, b, order = ctx.saved_tensors
        e = e.unsqueeze(-1)
        in_points = -(e * b * sum_signs(z, b, order)).sum(-2) if ctx.needs_input_grad[0] else None
        in_masses = e * sum_distances(z, b, order) if ctx.needs_input_grad[1] else None
        return in_points, in_masses, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        z, b, order = ctx.saved_tensors
        change = torch.zeros_like(b)
        if dz is not None:
            change = -b * sum_signs(z, b, order) * dz.unsqueeze(-2)
        if db is not None:
            change = change + sum_distances(z, b, order) * db
        return change.sum(-1)


def first_in_place(z: Float[Tensor, "*batch n"]) -> Int[Tensor, "*batch n"]:
    """For each of the sorted points, the index of the first one that coincides with it."""
    index = torch.arange(z.shape[-1], device=z.device).expand(z.shape)
    border = torch.ones_like(z[..., :1], dtype=torch.bool)
    return torch.where(torch.cat([border, z.diff() > 0], -1), index, 0).cummax(-1).values


def _places(z: Tensor) -> tuple[Tensor, Tensor]:
    """For each sorted point, the indices of the first and of the last point that coincide with it."""
    last = z.shape[-1] - 1 - first_in_place(-z.flip(-1)).flip(-1)
    return first_in_place(z), last
