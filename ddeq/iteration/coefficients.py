"""The coefficients of a secant method's combination, from small linear equations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ddeq.iteration.samples import agreed

__all__ = ["Kind", "coefficients"]

Kind = Literal["II", "I", "Broyden"]

DEPENDENT, POWER = 3.0, 4
"""A difference of which the newer ones leave a share of the square below that, times the rounding unit to the power of two
thirds, counts less and less: what it says besides is old or rounding. Its penalty changes continuously, as derivatives of
steps need, and has none itself: where it matters they would be rounding."""


def coefficients(kind: Kind, system: Tensor, right: Tensor, used: Tensor, squares: Tensor, ridge: float | None) -> Tensor:
    r"""The :math:`\gamma` with :math:`M\gamma = b`, of the entries that are used, and zero elsewhere; ``(*batch, k)``.

    Solved in double precision; of types I and II by least squares, see `Anderson`.

    Parameters
    ----------
    kind
        Of the system: symmetric (II), any (I), that of Broyden's matrix.
    system, right
        :math:`M`, ``(*batch, k, k)``, and :math:`b`, ``(*batch, k)``; oldest entries first.
    used
        Which entries count, ``(*batch, k)``.
    squares
        Squared norms of what tests the equations, ``(*batch, k)``; not read for type II.
    ridge
        Relative regularisation, or None for the default.
    """
    dtype, unit = system.dtype, torch.finfo(system.dtype).eps ** (2 / 3)
    system, right = system.double(), right.double()
    if kind != "II":
        used = used & (squares > 0)
        scale = torch.where(used, squares.double(), torch.inf).rsqrt()
        system, right = system * scale.unsqueeze(-1), right * scale
        if kind == "Broyden":
            return (_solved(system * scale.unsqueeze(-2), right, used) * scale).to(dtype)
        system = system * used.unsqueeze(-2)
        system, right = system.mT @ system, (system.mT @ right.unsqueeze(-1)).squeeze(-1)
    columns = system.diagonal(dim1=-2, dim2=-1)
    used = used & (columns > 0)
    scale = torch.where(used, columns, torch.inf).rsqrt()
    system, right = system * scale.unsqueeze(-1) * scale.unsqueeze(-2), right * scale
    ridge = (100.0 if dtype == torch.float64 else 10.0) * unit if ridge is None else ridge
    return (_least_squares(system, right, used, ridge, DEPENDENT * unit) * scale).to(dtype)


def _solved(system: Tensor, right: Tensor, used: Tensor) -> Tensor:
    """The solution among the entries that are used; zero where there is none."""
    if not agreed(used):
        system = torch.where(used.unsqueeze(-1) & used.unsqueeze(-2), system, 0.0)
        system.diagonal(dim1=-2, dim2=-1).masked_fill_(~used, 1.0)
        right = torch.where(used, right, 0.0)
    found: Tensor = torch.linalg.solve_ex(system, right).result
    return torch.where(torch.isfinite(found).all(-1, keepdim=True), found, 0.0).contiguous()


def _least_squares(normal: Tensor, right: Tensor, used: Tensor, ridge: float, dependent: float) -> Tensor:
    """The solution of normal equations whose diagonal is one, without entries that depend on newer ones."""
    latest_first = normal.flip(-1, -2)
    latest_first.diagonal(dim1=-2, dim2=-1).add_(0.01 * dependent)
    if not agreed(used):
        latest_first.diagonal(dim1=-2, dim2=-1).masked_fill_(~used.flip(-1), 1.0)
    left: Tensor = torch.linalg.cholesky_ex(latest_first.detach()).L.diagonal(dim1=-2, dim2=-1).flip(-1).square()
    known = left > 0  # false for NaN: where rounding has made the matrix indefinite the factor ends
    penalty = ridge + (dependent / torch.where(known, left, 1.0)).clamp_max(1.0) ** POWER
    if not agreed(used):  # an entry that is not used has a row of zeros, and one on its diagonal
        normal = torch.where(used.unsqueeze(-1) & used.unsqueeze(-2), normal, 0.0)
        right, penalty = torch.where(used, right, 0.0), torch.where(used, penalty, 1.0)
    normal.diagonal(dim1=-2, dim2=-1).add_(penalty)
    found: Tensor = torch.linalg.solve_ex(normal, right).result
    return found.contiguous()  # products with strided ones are much slower
