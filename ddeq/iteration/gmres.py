"""GMRES: linear equations whose operator is known by its products only and is not self-adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.integers import whole
from ddeq.iteration.krylov import LinearSolution

__all__ = ["KrylovSolution", "gmres"]


@dataclass(frozen=True)
class KrylovSolution(LinearSolution):
    """What `gmres` gives, and what it has seen of the operator in its last Krylov space."""

    inputs: Tensor
    """``(*batch, k, size)``, with ``A inputs[i] = outputs[i]``; zero where a sample has fewer."""
    outputs: Tensor
    """Likewise, orthonormal in the inner product."""


def gmres(
    operator: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    weights: Tensor | None = None,
    dims: int = 1,
    rtol: float | Tensor = 1e-8,
    max_steps: int = 500,
    restart: int = 30,
    most: Tensor | None = None,
) -> KrylovSolution:
    r"""Solve :math:`A x = b`, minimising :math:`|b - A x|` over Krylov spaces in an inner product.

    Samples stop each by itself. With the inner product of :math:`L^2(\mu)` and an operator that is measure consistent the
    iterates depend on the measure alone (equivariant acceleration, T9). Of the basis only ``restart`` vectors are kept.

    Parameters
    ----------
    operator
        :math:`A`, linear, on tensors ``(*batch, ...)``.
    b
        Right-hand side ``(*batch, ...)``.
    weights
        The inner product is :math:`\langle a, c\rangle = \sum_i \omega_i a_i c_i`, for weights :math:`\omega` that broadcast
        with ``b``. Entries of weight zero follow the others and must not influence them. Default 1.
    dims
        How many of the last dimensions make one unknown; those before are the batch.
    rtol
        Relative residual at which a sample stops; a number, or one for each sample ``(*batch,)``.
    max_steps
        Most products. Each restart takes one more, for the residual as it is; it counts as well.
    restart
        Size of the Krylov spaces.
    most
        Most products of each sample, ``(*batch,)``, where that is fewer.

    Raises
    ------
    ValueError
        If ``max_steps`` or ``restart`` is not a whole number of at least one.

    References
    ----------
    :cite:t:`saad1986gmres`.
    """
    max_steps, restart = whole("max_steps", max_steps), whole("restart", restart)
    batch = b.shape[: b.ndim - dims]
    flat = b.reshape(*batch, -1)
    metric = torch.ones_like(flat) if weights is None else weights.expand(b.shape).reshape(flat.shape).to(flat)
    # Squares of small numbers would be zero.
    size = torch.where(metric > 0, flat, 0.0).abs().amax(-1)
    size = torch.where(size > 0, size, 1.0)
    right = flat / size.unsqueeze(-1)

    def norm(a: Tensor) -> Tensor:
        return (metric * a * a).sum(-1).sqrt()

    def product(a: Tensor) -> Tensor:
        return operator(a.reshape(b.shape)).reshape(flat.shape)

    start = norm(right)
    bound = start * rtol
    x, r, left = torch.zeros_like(right), right, start
    steps = torch.zeros_like(start, dtype=torch.long)
    running = left > bound  # false for NaN
    most = torch.full_like(steps, max_steps) if most is None else most
    running = running & (steps < most)
    inputs = outputs = right.new_zeros(*batch, 0, right.shape[-1])
    taken, scale = 0, torch.zeros_like(start)
    while taken < max_steps and bool(running.any()):
        if taken:
            renewed = right - product(x)
            taken, steps = taken + 1, steps + running
            r = torch.where(running.unsqueeze(-1), renewed, r)
            left = torch.where(running, norm(r), left)
            running = running & (left > bound) & (steps < most)
        cycle = _Arnoldi(product, metric, r, left, running, scale, min(restart, max_steps - taken))
        while cycle.k < cycle.size and bool(cycle.running.any()):
            steps = steps + cycle.running
            cycle.extend(bound, steps < most)
        new_inputs, new_outputs = cycle.pairs()
        inputs, outputs = _replaced(inputs, new_inputs, running), _replaced(outputs, new_outputs, running)
        taken, scale = taken + cycle.k, cycle.scale
        progress = running & (cycle.left < left)
        x = torch.where(progress.unsqueeze(-1), x + cycle.solution(), x)
        left = torch.where(progress, cycle.left, left)
        running = progress & (left > bound) & (steps < most)  # where nothing was gained, the rest is out of reach
    residual = torch.where(start > 0, left / torch.where(start > 0, start, 1.0), 0.0)
    return KrylovSolution((x * size.unsqueeze(-1)).reshape(b.shape), residual, steps, left <= bound, inputs, outputs)


class _Arnoldi:
    """A growing Krylov space for each sample, and the least residual in it by rotations of its Hessenberg matrix."""

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        metric: Tensor,
        r: Tensor,
        norm: Tensor,
        running: Tensor,
        scale: Tensor,
        size: int,
    ) -> None:
        batch, n = r.shape[:-1], r.shape[-1]
        self._product, self._metric, self.size, self.k = product, metric, size, 0
        self.running, self.left, self.scale, self._start = running, norm, scale, norm
        self._basis = r.new_zeros(*batch, size + 1, n)
        self._basis[..., 0, :] = torch.where(running.unsqueeze(-1), r, 0.0) / torch.where(running, norm, 1.0).unsqueeze(-1)
        self._rotations = torch.eye(size + 1, dtype=r.dtype, device=r.device).repeat(*batch, 1, 1)
        self._triangle = r.new_zeros(*batch, size, size)
        self._used = r.new_zeros(*batch, size, dtype=torch.bool)

    def extend(self, bound: Tensor, allowed: Tensor) -> None:
        """One more product, and no more for samples that are not allowed any."""
        k, running = self.k, self.running
        basis = self._basis[..., : k + 1, :]
        w = torch.where(running.unsqueeze(-1), self._product(basis[..., k, :]), 0.0)
        before = (self._metric * w * w).sum(-1).sqrt()
        column = w.new_zeros(*w.shape[:-1], self.size + 1)
        for _ in range(2):  # the second pass removes what rounding left of the first
            h = (basis @ (self._metric * w).unsqueeze(-1)).squeeze(-1)
            w = w - (h.unsqueeze(-2) @ basis).squeeze(-2)
            column[..., : k + 1] += h
        length = (self._metric * w * w).sum(-1).sqrt()
        epsilon = torch.finfo(w.dtype).eps
        # The space is invariant: what remains is rounding, and must not count as a new direction.
        ended = ~(length > 10.0 * epsilon * before)
        column[..., k + 1] = torch.where(ended, 0.0, length)
        self._basis[..., k + 1, :] = torch.where(ended, 0.0, 1.0 / torch.where(ended, 1.0, length)).unsqueeze(-1) * w
        turned = (self._rotations @ column.unsqueeze(-1)).squeeze(-1)
        a, c = turned[..., k], turned[..., k + 1]
        rho = torch.hypot(a, c)
        # A column that is nearly zero, or that the others nearly span, would ask for a step of any length.
        self.scale = torch.where(running, torch.maximum(self.scale, torch.linalg.vector_norm(column, dim=-1)), self.scale)
        independent = rho > epsilon ** (2 / 3) * self.scale
        used = running & independent & torch.isfinite(rho)
        cos, sin = (torch.where(used, t / torch.where(used, rho, 1.0), one) for t, one in ((a, 1.0), (c, 0.0)))
        upper, lower = self._rotations[..., k, :].clone(), self._rotations[..., k + 1, :].clone()
        self._rotations[..., k, :] = cos.unsqueeze(-1) * upper + sin.unsqueeze(-1) * lower
        self._rotations[..., k + 1, :] = cos.unsqueeze(-1) * lower - sin.unsqueeze(-1) * upper
        turned[..., k] = rho
        self._triangle[..., :k, k] = torch.where(used.unsqueeze(-1), turned[..., :k], 0.0)
        self._triangle[..., k, k] = torch.where(used, rho, 1.0)
        self._used[..., k] = used
        self.left = torch.where(used, self._start * self._rotations[..., k + 1, 0].abs(), self.left)
        self.running = used & ~ended & (self.left > bound) & allowed
        self.k += 1

    def solution(self) -> Tensor:
        """The combination of the basis with the least residual."""
        k = self.k
        right = torch.where(self._used[..., :k], self._start.unsqueeze(-1) * self._rotations[..., :k, 0], 0.0)
        y: Tensor = torch.linalg.solve_triangular(self._regular_triangle(), right.unsqueeze(-1), upper=True)
        return (y.mT @ self._basis[..., :k, :]).squeeze(-2)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """`KrylovSolution.inputs` and `KrylovSolution.outputs`."""
        k = self.k
        used = self._used[..., :k].unsqueeze(-1)
        inputs = torch.linalg.solve_triangular(self._regular_triangle().mT, self._basis[..., :k, :], upper=False)
        outputs = self._rotations[..., :k, : k + 1] @ self._basis[..., : k + 1, :]
        return torch.where(used, inputs, 0.0), torch.where(used, outputs, 0.0)

    def _regular_triangle(self) -> Tensor:
        """The triangle of the Hessenberg matrix. Places that a sample did not reach are empty: one on their diagonal."""
        triangle = self._triangle[..., : self.k, : self.k]
        return triangle + torch.diag_embed((triangle.diagonal(dim1=-2, dim2=-1) == 0).to(triangle.dtype))


def _replaced(old: Tensor, new: Tensor, where: Tensor) -> Tensor:
    """The ``new`` rows of the samples ``where``, and the ``old`` ones of the others; as many for all."""
    count = max(old.shape[-2], new.shape[-2])
    old, new = (torch.nn.functional.pad(rows, (0, 0, 0, count - rows.shape[-2])) for rows in (old, new))
    return torch.where(where[..., None, None], new, old)
