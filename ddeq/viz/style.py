"""What all pictures share: colours, axes by dimension, and frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ACCENT",
    "AREA",
    "FAINT",
    "INK",
    "TARGET",
    "VIEW",
    "axes_for",
    "bare_axes",
    "frame_line",
    "frame_space",
    "line_style",
]

INK, ACCENT, TARGET = "#1f3b57", "#d1495b", "#9fb3c8"
"""Colours: of measures, of what the eye should go to, and of targets and inputs."""
FAINT = "#8796a5"
"""Colour of what stays behind: bare axes, paths."""
LINES = (INK, ACCENT, "#e0a030", "#4f9fc4", "#8a8f98")
"""Colours of curves, told apart by lightness too."""
DASHES = ("-", "--", ":", "-.")
AREA = 600.0
"""Area in square points that the masses of a probability measure share in a small panel of fixed size."""
VIEW = (20.0, -60.0)
"""Elevation and azimuth in degrees from which solids are seen."""
BALL_ZOOM, BOX_ZOOM = 1.75, 0.9
"""Zooms at which the ball in a cube, and the cube with its ticks, fill a panel from all sides."""


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of curve number ``i``; they repeat only together."""
    return {"color": LINES[i % len(LINES)], "linestyle": DASHES[i // len(LINES) % len(DASHES)]}


def axes_for(ax: Axes | None, dim: int = 2) -> Any:  # axes in space have a type of their own
    """The given axes, if they fit a picture of this dimension, or new ones."""
    if ax is None:
        import matplotlib.pyplot as plt

        size = (3.2, 1.4 if dim == 1 else 3.2)
        _, ax = plt.subplots(figsize=size, layout="constrained", subplot_kw={"projection": "3d"} if dim == 3 else None)
    elif (ax.name == "3d") != (dim == 3):
        wanted = "plt.subplots(subplot_kw={'projection': '3d'})" if dim == 3 else "axes without projection='3d'"
        raise ValueError(f"ax: expected axes for a picture of dimension {dim}, got those of projection {ax.name!r}; use {wanted}")
    return ax


def bare_axes(ax: Axes) -> None:
    """Give the axes ``ax`` equal scales, no ticks and no frame: what pictures of planar measures have."""
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def frame_line(ax: Axes, radius: float) -> None:
    """Only an axis on which discs of up to this radius in points lie: heights have no scale that matters."""
    ax.set_yticks([])
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    ax.tick_params(axis="x", color=FAINT, length=radius + 2.0, labelsize=8)


def frame_space(ax: Any, cube: Float[Tensor, "3 2"], view: tuple[float, float], up: str, *, bare: bool = True) -> None:
    """One scale for the three axes of a solid within ``cube``, and the side from which it is seen."""
    ax.view_init(elev=view[0], azim=view[1], vertical_axis=up)
    ax.set(**dict(zip(("xlim", "ylim", "zlim"), cube.tolist(), strict=True)))
    ax.set_box_aspect((1.0, 1.0, 1.0), zoom=BALL_ZOOM if bare else BOX_ZOOM)
    ax.computed_zorder = False  # what is drawn last lies on top, from all sides
    if bare:
        ax.set_axis_off()
