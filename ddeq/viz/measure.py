"""Pictures of single measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.measures import DiscreteMeasure
from ddeq.viz.density import fitting_bandwidth, smoothed
from ddeq.viz.discs import MANY, Discs, area_of, box, check_single, discs, fitting_alpha, largest_radius
from ddeq.viz.style import INK, VIEW, axes_for, bare_axes, frame_line, frame_space

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["check_drawable", "draw", "plot_measure", "plot_plane", "principal_plane"]


def plot_measure(
    mu: DiscreteMeasure,
    ax: Axes | None = None,
    *,
    color: Any = INK,
    area: float | None = None,
    bandwidth: float | None = None,
    view: tuple[float, float] = VIEW,
    up: str = "z",
    bare: bool = True,
    **options: Any,
) -> Axes:
    """A measure on a line, in the plane or in space: a disc at each place, its area in proportion to the mass.

    The picture is one of the measure and not of its arrays: atoms of mass zero are not seen and take no room, and atoms
    at the same place share one disc. On a line the discs lie under a faint smoothed density; in space, what is far is paler.

    Parameters
    ----------
    mu
        A single measure of dimension 1, 2 or 3.
    ax
        Where to draw; for dimension 3 axes with ``projection="3d"``. Default: new ones.
    color
        Colour of the discs; or a tensor, an array or a list with one value or colour for each atom.
    area
        Area in square points that all discs share. Default: what suits the panel and the number of discs, as does their
        opacity (``alpha``).
    bandwidth
        Of the density above a line. Default: half of Silverman's rule; 0 shows no density.
    view
        Elevation and azimuth in degrees from which a measure in space is seen.
    up
        Axis that points up in space: ``"x"``, ``"y"`` or ``"z"``.
    bare
        Hide frame and ticks (on a line, all but the lower axis), and keep one scale for all axes.
    options
        Passed to ``Axes.scatter``.

    Returns
    -------
    Axes
        The axes; the discs are its first collection.

    Raises
    ------
    ValueError
        If ``mu`` is a batch, is of dimension above 3 or has no mass, or if ``ax`` does not fit its dimension.
    """
    check_drawable(mu)
    ax = axes_for(ax, mu.dim)
    shown = discs(mu)
    area = area_of(shown, ax, area)
    draw(shown, ax, color=color, area=area, bandwidth=bandwidth, **options)
    if mu.dim == 3:
        frame_space(ax, box(_drawn_in_space(ax)), view, up, bare=bare)
    elif mu.dim == 1:
        ax.autoscale(axis="y")  # earlier calls have fixed the limits for their densities
        ax.set_ylim(0.0, ax.get_ylim()[1])
        if bare:
            frame_line(ax, largest_radius(shown, area))
    elif bare:
        bare_axes(ax)
    return ax


def _drawn_in_space(ax: Axes) -> Float[Tensor, "n 3"]:
    """Places of all discs, those of earlier calls too."""
    # matplotlib has no public way to read them.
    places = [torch.as_tensor(np.asarray(c._offsets3d, dtype=float)) for c in ax.collections if hasattr(c, "_offsets3d")]
    return torch.cat(places, 1).T


def check_drawable(mu: DiscreteMeasure, name: str = "mu") -> None:
    """Raise a `ValueError` unless ``mu`` is a single measure that can be drawn as it is."""
    check_single(mu, name)
    if mu.dim > 3:
        raise ValueError(f"{name}: expected dimension 1, 2 or 3, got {mu}; `plot_plane` shows its two principal axes")


def draw(shown: Discs, ax: Any, *, color: Any = INK, area: float, bandwidth: float | None = None, **options: Any) -> list[Artist]:
    """Draw into axes of the right dimension, whose frame and limits are left alone, and return what was drawn."""
    color = _of_discs(color, shown)
    dim = shown.places.shape[1]
    look = {"linewidths": 0, "alpha": fitting_alpha(shown.count, dim), "rasterized": len(shown.places) > MANY, "zorder": 2}
    places = shown.places
    if dim == 1:
        places = torch.cat([places, torch.zeros_like(places)], -1)
        look["clip_on"] = False  # the axis goes through the discs
    # `s` is the square of a diameter.
    drawn: list[Artist] = [ax.scatter(*places.T, s=area * shown.shares, c=color, **look | options)]
    bandwidth = fitting_bandwidth(shown) if dim == 1 and bandwidth is None else bandwidth
    if dim == 1 and bandwidth:
        fill = color if isinstance(color, str) else INK
        drawn.append(ax.fill_between(*smoothed(shown, bandwidth), color=fill, alpha=0.18, linewidth=0, zorder=0))
    return drawn


def _of_discs(color: Any, shown: Discs) -> Any:
    """Colours of the atoms that the discs stand for."""
    if isinstance(color, torch.Tensor):
        color = color.detach().cpu().numpy()
    if isinstance(color, str | tuple) or not hasattr(color, "__len__") or len(color) != shown.n:
        return color
    return [color[i] for i in shown.atoms.tolist()]


def plot_plane(mu: DiscreteMeasure, ax: Axes | None = None, **options: Any) -> Axes:
    """A measure of any dimension in the plane of its two principal axes, with the share of the variance that they hold.

    Parameters
    ----------
    mu
        A single measure of dimension 2 or more.
    ax
        Where to draw. Default: new axes.
    options
        Passed to `plot_measure`.

    Raises
    ------
    ValueError
        If ``mu`` is a batch or lies on a line.
    """
    check_single(mu)
    if mu.dim < 2:
        raise ValueError(f"mu: expected dimension 2 or more, got {mu}; use `plot_measure`")
    plane, share = principal_plane(mu)
    ax = plot_measure(plane, ax, **options)
    ax.set_title(f"principal plane\n({share:.0%} of the variance)", fontsize=9)
    return ax


def principal_plane(mu: DiscreteMeasure) -> tuple[DiscreteMeasure, float]:
    """A measure in the plane of its two principal axes, and the share of the variance that they hold."""
    mu = mu.detach()
    variances, axes = torch.linalg.eigh(mu.covariance())
    plane = mu.with_points((mu.points - mu.mean().unsqueeze(-2)) @ axes[:, -2:].flip(-1))
    return plane, float(variances[-2:].sum() / variances.sum().clamp_min(torch.finfo(mu.dtype).tiny))
