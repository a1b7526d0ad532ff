"""Picard's iteration: apply the map again and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddeq.solvers.problem import FixedPoint

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard:
    r"""Damped fixed-point iteration, :math:`z_{k+1} = (1 - a) \Phi(z_k) + a z_k`.

    Converges at rate :math:`a + (1 - a) L` if the map is an :math:`L`-contraction (T8); cycles on rotations, where
    `Anderson` does not.

    Parameters
    ----------
    damping
        The share :math:`0 \le a < 1` of the old iterate.

    Raises
    ------
    ValueError
        If ``damping`` is not in that range.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping: expected 0 <= damping < 1, got {self.damping}")

    def init(self, problem: FixedPoint, z: Tensor) -> None:
        return None

    def step(self, problem: FixedPoint, z: Tensor, image: Tensor, state: None) -> tuple[Tensor, None]:
        return torch.lerp(image, z, self.damping) if self.damping else image, state
