"""`VelocityField`: dynamics that descend no energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ddeq.functionals.dynamics import Dynamics
from ddeq.functionals.variations import places

__all__ = ["VelocityField"]


class VelocityField(Dynamics):
    r"""Dynamics :math:`\dot x_i = v(\mu)(x_i)` that need not descend an energy; a flow of it has none.

    In ``ddeq.flow(VelocityField(v), mu0)`` energies and dissipation are None. `Euler` and `Heun` follow it, with `Langevin` noise
    or `NoiseInjection`; what needs an energy is an error: steppers made for descent, `Stein`, reactions, ``metric="energy"`` and
    `equilibrium`. Under ``stop`` a sample has converged when its velocity is small.

    Parameters
    ----------
    function
        :math:`v`: a measure and points ``(*batch, m, d)`` to their velocities ``(*batch, m, d)``; of several measures, dicts of
        these. It depends on the measure alone
        (measure consistency, T1), so sums over its atoms have their weights. An ``nn.Module`` trains: gradients reach its
        parameters.

    Raises
    ------
    ValueError
        If ``function`` cannot be called, or its result has another shape or dtype than the points.

    Notes
    -----
    A field that depends on time is `Varying`: ``Varying(lambda step, generator: VelocityField(...))``.

    Examples
    --------
    >>> import torch
    >>> from ddeq import DiscreteMeasure, flow
    >>> from ddeq.flows import Heun
    >>> turn = VelocityField(lambda mu, x: torch.stack([-x[..., 1], x[..., 0]], -1))  # no energy falls along a circle
    >>> start = DiscreteMeasure(torch.tensor([[1.0, 0.0]]))
    >>> quarter = flow(turn, start, stepper=Heun(torch.pi / 200), steps=100)
    >>> quarter.measure.points.abs().round(decimals=3), quarter.energies
    (tensor([[0., 1.]]), None)
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        if isinstance(function, Dynamics | type) or not callable(function):
            raise ValueError(f"function: expected a function of a measure and points, v(mu, x), got {function!r}")
        self.function = function

    def velocity(self, mu: Any, x: Any = None) -> Any:
        if isinstance(mu, Mapping):
            points = {name: places(nu, None if x is None else x[name]) for name, nu in mu.items()}
            found = self.function(mu, points)
            if not isinstance(found, Mapping) or found.keys() != mu.keys():
                seen = list(found) if isinstance(found, Mapping) else type(found).__name__
                raise ValueError(f"function: expected velocities by the names {list(mu)}, got {seen}")
            return {name: self._checked(found[name], points[name]) for name in mu}
        x = places(mu, x)
        return self._checked(self.function(mu, x), x)

    @staticmethod
    def _checked(v: object, x: Tensor) -> Tensor:
        if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
            seen = f"shape {tuple(v.shape)}, {v.dtype}" if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"function: expected velocities as the points, shape {tuple(x.shape)}, {x.dtype}, got {seen}")
        return v

    def forward(self, mu: Any, x: Any = None) -> Any:
        """The `velocity` at ``x`` while the measure is ``mu``."""
        return self.velocity(mu, x)

    def __repr__(self) -> str:
        return f"VelocityField({getattr(self.function, '__name__', type(self.function).__name__)})"
