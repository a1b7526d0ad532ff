"""Flows as moving pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddeq.flows import Trajectory
from ddeq.measures import DiscreteMeasure
from ddeq.viz.discs import area_of, discs, largest_radius
from ddeq.viz.records import Spacing, moments, records_of
from ddeq.viz.scene import Scene
from ddeq.viz.style import VIEW, frame_line

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = ["animate"]

ENOUGH = 1000.0
"""Megabytes that a page may hold: matplotlib would silently leave out frames beyond 20."""


def animate(
    trajectory: Trajectory,
    path: str | Path | None = None,
    target: DiscreteMeasure | None = None,
    *,
    frames: int = 60,
    fps: int = 20,
    sample: int | tuple[int, ...] | None = None,
    spacing: Spacing = "log",
    area: float | None = None,
    bandwidth: float | None = None,
    view: tuple[float, float] = VIEW,
    up: str = "z",
    turn: float = 0.0,
    dpi: float = 120.0,
) -> FuncAnimation:
    """A flow as a moving picture, on a line, in the plane or in space: a GIF, a page with a player, or in a notebook.

    Parameters
    ----------
    trajectory
        Flow of measures of dimension 1, 2 or 3. Between its records atoms move, and masses change, at constant speed.
    path
        Where to write: ``.gif``, or ``.html`` for a page that holds all frames and a player. Default: nothing is written.
    target
        Shown behind the flow.
    frames
        Number of frames.
    fps
        Frames per second.
    sample
        Which sample of a batch is shown: an index into the batch shape.
    spacing
        ``"log"``: frames are spaced evenly in the logarithm of one plus nine times the share of the time, so that the
        start, where most happens, is slower; ``"time"``: evenly.
    area
        Area in square points that all discs share at the start; they grow with the mass of the measure. Default: what
        suits the picture and the number of discs.
    bandwidth
        Of the density on a line, the same in all frames; 0 shows none. Default: one that suits start and target.
    view
        Elevation and azimuth in degrees from which measures in space are seen at the start.
    up
        Axis that points up in space.
    turn
        Degrees by which the view in space turns from the first frame to the last.
    dpi
        Pixels per inch; a picture has 3.2 inches.

    Returns
    -------
    FuncAnimation
        Matplotlib's animation. Shown in a notebook if it is the last value of a cell.

    Raises
    ------
    ValueError
        If ``path`` has another suffix, if the trajectory is one of a batch and no ``sample`` is chosen, if the dimension
        is above 3 or differs from that of the target, or if ``frames``, ``sample`` or ``spacing`` is not what it should be.
    """
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation

    suffix = None if path is None else _known_suffix(path)
    records = records_of(trajectory, sample)
    times = moments(records, frames, spacing)
    shown = [records.at(time) for time in times]
    scene = Scene.of(shown, target, area=area, bandwidth=bandwidth, view=view, up=up)
    figure, ax = _stage(scene, shown, dpi)
    size = area_of(discs(shown[0]), ax, area)
    clock = figure.text(0.04, 0.97, "", fontsize=10, va="top")
    digits = max(0, 2 - math.floor(math.log10(times[-1]))) if times[-1] > 0 else 0
    drawn: list[Artist] = []

    def show(frame: int) -> list[Artist]:
        while drawn:
            drawn.pop().remove()
        drawn.extend(scene.draw(ax, shown[frame], size))
        clock.set_text(f"t = {times[frame]:.{digits}f}")
        if turn and len(scene.limits) == 3:
            ax.view_init(elev=view[0], azim=view[1] + turn * frame / max(frames - 1, 1), vertical_axis=up)
        return drawn

    def player() -> str:
        plt.close(figure)  # a notebook would show its last frame beside the player
        return _page(animation, fps)

    animation = FuncAnimation(figure, show, frames=frames, init_func=list, interval=round(1000 / fps))
    animation._repr_html_ = player  # type: ignore[method-assign]  # by default it shows nothing in a notebook
    if path is not None:
        _write(animation, Path(path), suffix, fps)
        plt.close(figure)
    return animation


def _known_suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".html"):
        raise ValueError(f"path: expected a name that ends in .gif or .html, got {str(path)!r}")
    return suffix


def _stage(scene: Scene, shown: list[DiscreteMeasure], dpi: float) -> tuple[Figure, Any]:
    """A figure whose layout is the same in all frames."""
    import matplotlib.pyplot as plt

    dim = len(scene.limits)
    figure = plt.figure(figsize=(3.2, 1.8 if dim == 1 else 3.2), dpi=dpi)
    place = (0.04, 0.2, 0.92, 0.64) if dim == 1 else (0.0, 0.0, 1.0, 0.93)
    ax = figure.add_axes(place, projection="3d" if dim == 3 else None)
    scene.stage(ax)
    if dim == 1:
        start = discs(shown[0])
        frame_line(ax, largest_radius(start, area_of(start, ax, scene.area)))
        ax.set_ylim(0.0, 1.05 * scene.peak(shown) if scene.bandwidth > 0 else 1.0)
    return figure, ax


def _write(animation: Any, path: Path, suffix: str | None, fps: int) -> None:
    from matplotlib.animation import PillowWriter

    if suffix == ".gif":
        animation.save(path, writer=PillowWriter(fps=fps))
    else:
        path.write_text(f"<!DOCTYPE html>\n<meta charset='utf-8'>\n<title>{path.stem}</title>\n{_page(animation, fps)}")


def _page(animation: Any, fps: int) -> str:
    import matplotlib as mpl

    with mpl.rc_context({"animation.embed_limit": ENOUGH}):
        page: str = animation.to_jshtml(fps=fps)
    return page
