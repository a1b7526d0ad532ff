"""A stage on which the measures of a flow are shown one after the other, at the same scales, before the same target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.measures import DiscreteMeasure
from ddeq.viz.density import fitting_bandwidth, smoothed
from ddeq.viz.discs import area_of, box, discs, live_points
from ddeq.viz.measure import check_drawable, draw
from ddeq.viz.style import ACCENT, TARGET, bare_axes, frame_space

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["Scene"]

HALO = 1.4
"""Ratio of the areas of targets and of measures: where a flow has arrived, the target is still seen around it."""


@dataclass(frozen=True)
class Scene:
    """What all pictures of one flow have in common."""

    limits: Float[Tensor, "d 2"]
    mass: float
    """Mass that the discs of full area have: that at the start."""
    target: DiscreteMeasure | None
    area: float | None
    bandwidth: float
    """Of the densities, on a line."""
    view: tuple[float, float]
    up: str

    @classmethod
    def of(
        cls,
        shown: Sequence[DiscreteMeasure],
        target: DiscreteMeasure | None,
        *,
        area: float | None,
        bandwidth: float | None,
        view: tuple[float, float],
        up: str,
    ) -> Scene:
        """The scene in which all of ``shown`` have room; the first one is the start."""
        check_drawable(shown[0], "trajectory.measures")
        background = []
        if target is not None:
            check_drawable(target, "target")
            if target.dim != shown[0].dim:
                raise ValueError(f"target: expected dimension {shown[0].dim} as of the flow, got {target}")
            target = target.detach().to("cpu", torch.float64)
            background = [target]
        if shown[0].dim > 1:
            bandwidth = 0.0
        elif bandwidth is None:
            bandwidth = _common_bandwidth(shown[0], (background or [shown[-1]])[0])
        limits = box(live_points([*shown, *background]))
        limits = limits + 2.0 * bandwidth * torch.tensor([-1.0, 1.0])  # the densities' tails
        return cls(limits, float(shown[0].mass()), target, area, bandwidth, view, up)

    def stage(self, ax: Axes) -> None:
        """Axes with the target, limits and frame."""
        if self.target is not None:
            shown = discs(self.target)
            draw(shown, ax, color=TARGET, area=HALO * area_of(shown, ax, self.area), bandwidth=self.bandwidth)
        if len(self.limits) == 3:
            frame_space(ax, self.limits, self.view, self.up)
            return
        ax.set(**dict(zip(("xlim", "ylim"), self.limits.tolist(), strict=False)))
        if len(self.limits) == 2:
            bare_axes(ax)

    def draw(self, ax: Axes, mu: DiscreteMeasure, area: float) -> list[Artist]:
        """Draw a measure; ``area`` is that of the mass at the start."""
        return draw(discs(mu), ax, color=ACCENT, area=area * float(mu.mass()) / self.mass, bandwidth=self.bandwidth)

    def peak(self, shown: Sequence[DiscreteMeasure]) -> float:
        """The greatest height of the densities on a line."""
        measures = [*shown, *([] if self.target is None else [self.target])]
        return max(float(smoothed(discs(mu), self.bandwidth)[1].max()) for mu in measures)


def _common_bandwidth(start: DiscreteMeasure, end: DiscreteMeasure) -> float:
    """One bandwidth for a whole flow: heights are comparable, and bounded where it ends in a point."""
    a, b = (fitting_bandwidth(discs(mu)) for mu in (start, end))
    return math.sqrt(a * b) or max(a, b)
