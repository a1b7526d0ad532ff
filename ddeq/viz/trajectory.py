"""Pictures of flows in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.flows import Trajectory
from ddeq.measures import DiscreteMeasure
from ddeq.viz.discs import MANY, area_of, discs, fitting_alpha, merged
from ddeq.viz.records import STRETCH, Records, Spacing, check_spacing, moments, records_of
from ddeq.viz.scene import Scene
from ddeq.viz.style import ACCENT, FAINT, TARGET, VIEW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_trajectory"]

PANEL = 2.1
"""Width of a snapshot in inches."""
WIDTH = 9.0
"""Width in points of the path of an atom that has all the mass."""
CROWD = 5.0
"""Paths cover each other as much as so many times more discs."""


def plot_trajectory(
    trajectory: Trajectory,
    target: DiscreteMeasure | None = None,
    *,
    frames: int = 6,
    sample: int | tuple[int, ...] | None = None,
    spacing: Spacing | None = None,
    paths: bool = False,
    area: float | None = None,
    view: tuple[float, float] = VIEW,
    up: str = "z",
) -> Figure:
    """A flow in time: snapshots in the plane or in space; on a line the paths of the atoms against time.

    Parameters
    ----------
    trajectory
        Flow of measures of dimension 1, 2 or 3.
    target
        Shown behind each snapshot; on a line at the right edge.
    frames
        Number of snapshots; there are fewer where there are fewer records.
    sample
        Which sample of a batch is shown: an index into the batch shape.
    spacing
        ``"log"``: moments, or the axis of time, are spaced evenly in the logarithm of one plus nine times the share of the
        time, so that the start, where most happens, has more room; ``"time"``: evenly. Default: ``"log"`` for snapshots,
        ``"time"`` for paths on a line.
    paths
        Also show, in the plane or in space, the paths of the atoms up to each snapshot.
    area
        Area in square points that all discs share at the start; they grow with the mass of the measure. Default: what
        suits the panels and the number of discs.
    view
        Elevation and azimuth in degrees from which measures in space are seen.
    up
        Axis that points up in space.

    Returns
    -------
    Figure
        One panel for each snapshot, with the same limits; on a line one panel, each path as wide as the atom is heavy.

    Raises
    ------
    ValueError
        If the trajectory is one of a batch and no ``sample`` is chosen, if the dimension is above 3 or differs from that
        of the target, or if ``frames``, ``sample`` or ``spacing`` is not what it should be.
    """
    records = records_of(trajectory, sample)
    scene = Scene.of(list(records.measures), target, area=area, bandwidth=0.0, view=view, up=up)
    if records.measures.dim == 1:
        return _paths_on_line(records, scene, spacing or "time")
    chosen = sorted({records.nearest(time) for time in moments(records, frames, spacing or "log")})
    return _snapshots(records, chosen, scene, paths)


def _snapshots(records: Records, chosen: list[int], scene: Scene, paths: bool) -> Figure:
    import matplotlib.pyplot as plt

    solid = records.measures.dim == 3
    sides = (scene.limits[:, 1] - scene.limits[:, 0]).tolist()
    height = PANEL if solid else PANEL * min(max(sides[1] / sides[0], 0.4), 2.0)
    figure: Figure = plt.figure(figsize=(PANEL * len(chosen), height + 0.35), layout="constrained")
    start = discs(records.measures[0])
    first: Axes | None = None
    for number, record in enumerate(chosen, 1):
        shared = {"projection": "3d"} if solid else {"sharex": first, "sharey": first}
        ax = figure.add_subplot(1, len(chosen), number, **shared)
        first = first or ax
        scene.stage(ax)
        size = area_of(start, ax, scene.area)
        if paths:
            _paths_until(ax, records, record)
        scene.draw(ax, records.measures[record], size)
        ax.set_title(f"t = {float(records.times[record]):.3g}", fontsize=10, pad=2)
    return figure


def _paths_until(ax: Axes, records: Records, last: int) -> None:
    """The ways of the atoms in the plane or in space, up to a record."""
    points = records.measures.points[: last + 1].transpose(0, 1)
    lines, shares, _ = merged(points.flatten(1), records.shares[: last + 1].mT)
    lines = lines.unflatten(1, points.shape[1:])[shares.amax(1) > 0]
    _add_lines(ax, lines, color=FAINT, linewidths=0.5, alpha=fitting_alpha(CROWD * len(lines)))


def _paths_on_line(records: Records, scene: Scene, spacing: Spacing) -> Figure:
    import matplotlib.pyplot as plt

    check_spacing(spacing)
    figure: Figure
    figure, ax = plt.subplots(figsize=(4.2, 3.0), layout="constrained")
    places, shares, _ = merged(records.measures.points[..., 0].mT, records.shares.mT)
    lines, shares = _pieces(torch.stack([records.times.expand_as(places), places], -1), shares)
    count = discs(records.measures[0]).count
    widths = WIDTH * count**0.5 * shares
    _add_lines(ax, lines, color=ACCENT, linewidths=widths, alpha=fitting_alpha(CROWD * count))
    _frame_time(ax, float(records.times[0]), float(records.times[-1]), spacing)
    ax.set(ylim=scene.limits[0].tolist(), xlabel="time", ylabel="position")
    if scene.target is not None:
        _target_at_edge(ax, scene.target, scene.area)
    return figure


def _pieces(
    lines: Float[Tensor, "k T 2"], shares: Float[Tensor, "k T"]
) -> tuple[Float[Tensor, "pieces length 2"], Float[Tensor, " pieces"]]:
    """Lines that carry mass with their shares: whole ones, or cut between records where masses change."""
    if bool((shares == shares[:, :1]).all()):
        shares = shares[:, 0]
    else:
        lines = torch.stack([lines[:, :-1], lines[:, 1:]], -2).flatten(0, 1)
        shares = ((shares[:, :-1] + shares[:, 1:]) / 2).flatten()
    return lines[shares > 0], shares[shares > 0]


def _add_lines(ax: Axes, lines: Float[Tensor, "k T d"], **look: Any) -> None:
    from matplotlib.collections import LineCollection
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    kind = Line3DCollection if lines.shape[-1] == 3 else LineCollection
    ax.add_collection(kind(list(lines.numpy()), rasterized=len(lines) > MANY, zorder=1, **look))


def _frame_time(ax: Axes, start: float, end: float, spacing: Spacing) -> None:
    if end > start:
        if spacing == "log":
            ax.set_xscale("function", functions=_stretch(start, end))
        ax.set_xlim(start, end)
    ax.spines[["top", "right"]].set_visible(False)


def _stretch(start: float, end: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Time to place on a logarithmic axis, and back."""
    import numpy as np

    def place(time: Any) -> Any:
        return np.log1p(STRETCH * np.maximum(np.asarray(time) - start, 0.0) / (end - start))

    def time(place: Any) -> Any:
        return start + np.expm1(place) * (end - start) / STRETCH

    return place, time


def _target_at_edge(ax: Axes, target: DiscreteMeasure, area: float | None) -> None:
    shown = discs(target)
    look: dict[str, Any] = {"color": TARGET, "linewidths": 0, "alpha": fitting_alpha(shown.count), "clip_on": False}
    edge = shown.places.new_full((len(shown.places),), 1.04)
    ax.scatter(edge, shown.places[:, 0], s=area_of(shown, ax, area) * shown.shares, transform=ax.get_yaxis_transform(), **look)
    ax.text(1.04, 1.02, "target", transform=ax.transAxes, color="0.45", fontsize=8, ha="center", va="bottom")
