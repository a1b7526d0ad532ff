"""Anderson's acceleration of fixed-point iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddeq.solvers.problem import FixedPoint

__all__ = ["Anderson"]


class History(NamedTuple):
    """The last differences, in a ring of ``memory`` places; coordinates of all atoms together."""

    step: int
    z: Tensor | None
    residual: Tensor | None
    changes: Tensor  # differences of residuals, (*batch, memory, n * d)
    moves: Tensor  # differences of damped images, which is what the next iterate is made of
    gram: Tensor  # inner products of the changes, (*batch, memory, memory)
    used: Tensor  # which places count, (*batch, memory)
    least: Tensor  # least norm of a residual so far, (*batch,)


@dataclass(frozen=True)
class Anderson:
    r"""Anderson's acceleration (type II) in :math:`L^2(\mu)`.

    With residuals :math:`r_k = \Phi(z_k) - z_k` and the differences :math:`\Delta z_j, \Delta r_j` of the last ``memory``
    steps,

    .. math:: z_{k+1} = z_k + \beta r_k - \sum_j \gamma_j (\Delta z_j + \beta \Delta r_j), \qquad
              \gamma = \arg\min \Big|r_k - \sum_j \gamma_j \Delta r_j\Big|_{L^2(\mu)} , \quad \beta = 1 - \text{damping}.

    The coefficients depend on inner products in :math:`L^2(\mu)` only, so the iterates commute with permuting and
    splitting atoms and with atoms of mass zero (T9). Each difference is scaled to norm one before the least-squares
    problem is solved, and ``ridge`` is added to its unit diagonal: the regularisation follows the scale of the residuals
    and vanishes with them. A sample whose residual grows to ``restart`` times its least one forgets its history.

    Parameters
    ----------
    memory
        Number of differences kept, at least one.
    damping
        Share of the plain step that is left out, ``0 <= damping < 1``.
    ridge
        Relative regularisation; default: :math:`10\, \epsilon^{2/3}` for the rounding unit :math:`\epsilon`. Smaller ones let
        rounding decide the coefficients where differences are nearly parallel.
    restart
        Growth of the residual that clears the history.

    Raises
    ------
    ValueError
        If an option is outside its range.

    References
    ----------
    Anderson (1965), Iterative procedures for nonlinear integral equations. Walker and Ni (2011), Anderson acceleration
    for fixed-point iterations.
    """

    memory: int = 10
    damping: float = 0.0
    ridge: float | None = None
    restart: float = 100.0

    def __post_init__(self) -> None:
        if not (isinstance(self.memory, int) and self.memory >= 1):
            raise ValueError(f"memory: expected a whole number >= 1, got {self.memory!r}")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping: expected 0 <= damping < 1, got {self.damping}")
        if self.ridge is not None and not 0.0 <= self.ridge < 1.0:
            raise ValueError(f"ridge: expected 0 <= ridge < 1, got {self.ridge}")
        if not self.restart > 1.0:
            raise ValueError(f"restart: expected a factor > 1, got {self.restart}")

    def init(self, problem: FixedPoint, z: Tensor) -> History:
        batch = z.shape[:-2]
        places = z.new_zeros(*batch, self.memory, z.shape[-2] * z.shape[-1])
        return History(
            step=0,
            z=None,
            residual=None,
            changes=places,
            moves=torch.zeros_like(places),
            gram=z.new_zeros(*batch, self.memory, self.memory),
            used=torch.zeros(*batch, self.memory, dtype=torch.bool, device=z.device),
            least=z.new_full(batch, torch.inf),
        )

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: History) -> tuple[Tensor, History]:
        r, beta = image - z, 1.0 - self.damping
        size = problem.norm(r.detach())
        following = state._replace(step=state.step + 1, z=z, residual=r, least=torch.minimum(size, state.least))
        z_next = z + beta * r
        if state.z is None or state.residual is None:
            return z_next, following
        place, filled = (state.step - 1) % self.memory, min(state.step, self.memory)
        change = r - state.residual
        changes = _write(state.changes, place, change.flatten(-2))
        moves = _write(state.moves, place, (z - state.z + beta * change).flatten(-2))
        used = _write(state.used.unsqueeze(-1), place, torch.ones_like(state.used[..., :1])).squeeze(-1)
        used = used & (size <= self.restart * state.least).unsqueeze(-1)
        # The masses weigh the two columns on the right, so that the long history is only read.
        columns = torch.stack([change, r], -1) * problem.weights[..., None, None]
        products = changes[..., :filled, :] @ columns.flatten(-3, -2)
        row = torch.nn.functional.pad(products[..., 0], (0, self.memory - filled))
        gram = _write(_write(state.gram, place, row).mT, place, row)
        gamma = self._coefficients(gram[..., :filled, :filled], products[..., 1], used[..., :filled])
        correction = (gamma.unsqueeze(-2) @ moves[..., :filled, :]).reshape(z.shape)
        return z_next - correction, following._replace(changes=changes, moves=moves, gram=gram, used=used)

    def _coefficients(self, gram: Tensor, right: Tensor, used: Tensor) -> Tensor:
        """Least-squares coefficients of the used places, zero elsewhere; ``(*batch, filled)``."""
        square = gram.diagonal(dim1=-2, dim2=-1)
        used = used & (square > 0)
        scale = torch.where(used, torch.where(used, square, 1.0).rsqrt(), 0.0)
        ridge = 10.0 * torch.finfo(gram.dtype).eps ** (2 / 3) if self.ridge is None else self.ridge
        # A place that is not used has a row of zeros: one on its diagonal makes its coefficient zero.
        system = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2) + torch.diag_embed(torch.where(used, ridge, 1.0))
        solution, _ = torch.linalg.solve_ex(system.double(), (right * scale).double())
        coefficients: Tensor = solution.to(gram.dtype) * scale
        return coefficients


def _write(rows: Tensor, place: int, row: Tensor) -> Tensor:
    """``row`` in its place among ``rows``: in place where autograd does not record, which spares a copy of the history."""
    if torch.is_grad_enabled():
        return torch.cat([rows[..., :place, :], row.unsqueeze(-2), rows[..., place + 1 :, :]], -2)
    rows[..., place, :] = row
    return rows
