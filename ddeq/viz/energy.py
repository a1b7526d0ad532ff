"""Pictures of energies in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.flows import Trajectory
from ddeq.viz.style import axes_for, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_energy"]

Curve = tuple[Float[Tensor, "T samples"], Float[Tensor, "T samples"]]
"""Times and values of each sample."""
DECADE = 10.0
"""Curves that fall by less than this factor are shown on a linear scale."""


def plot_energy(
    trajectory: Trajectory | Mapping[str, Trajectory],
    ax: Axes | None = None,
    *,
    label: str | None = None,
    minimum: float | None = None,
    log: bool | None = None,
    dissipation: bool = False,
) -> Axes:
    """Energies of flows against time: of a batch every sample as a faint line, and the median; of a game those of each species.

    Parameters
    ----------
    trajectory
        A flow, or flows by name, which are told apart by colour and dashes.
    ax
        Where to draw. Default: new axes.
    label
        Name of a single flow, for the legend.
    minimum
        Smallest value of the energy, where it is known: what is left above it is shown.
    log
        Whether the scale is logarithmic. Default: where all values are positive, or above ``minimum``, and some flow's
        values span a factor of ten. Values that have no logarithm are left out.
    dissipation
        Also show the rate at which the energy falls, in a second panel below, which takes its room from ``ax``.

    Returns
    -------
    Axes
        The axes of the energy. Those of the dissipation are the last ones of the figure.

    Raises
    ------
    ValueError
        If there is no flow; if ``label`` is given with flows by name; or if ``dissipation`` is asked for in axes that are
        not part of a grid.
    """
    if isinstance(trajectory, Mapping) and label is not None:
        raise ValueError(f"label: expected None where flows have names, got {label!r}")
    flows = _with_energies(dict(trajectory) if isinstance(trajectory, Mapping) else {label or "": trajectory})
    for name, flow in flows.items():
        if dissipation and flow.dissipation is None:
            raise ValueError(f"dissipation: expected a flow that descends one energy, got {name!r}, which does not; leave it out")
    ax = axes_for(ax)
    below = _panel_below(ax) if dissipation else None
    energies = {name: _by_sample(flow.times, flow.energies - (minimum or 0.0)) for name, flow in flows.items()}
    _draw(ax, energies, _logarithmic(energies, minimum is not None) if log is None else log)
    ax.set_ylabel("energy" if not minimum else "energy above its minimum")
    if any(flows):
        ax.legend(frameon=False, fontsize=8)
    if below is None:
        ax.set_xlabel("time")
    else:
        falls = {name: _by_sample(flow.times, flow.dissipation) for name, flow in flows.items()}
        _draw(below, falls, _logarithmic(falls, True) if log is None else log)
        below.set(xlabel="time", ylabel="dissipation")
        ax.tick_params(labelbottom=False)
    return ax


def _with_energies(flows: dict[str, Trajectory]) -> dict[str, Trajectory]:
    """The flows that have energies to show, those of a game by species."""
    if not flows:
        raise ValueError("trajectory: expected at least one flow, got an empty mapping")
    found: dict[str, Trajectory] = {}
    for name, flow in flows.items():
        if flow.energies is None:
            raise ValueError(f"trajectory: the flow {name!r} has no energies, as that of a velocity field; use plot_trajectory")
        if isinstance(flow.energies, dict):
            found |= {f"{name} {species}".strip(): flow.of_species(species) for species in flow.energies}
        else:
            found[name] = flow
    return found


def _panel_below(ax: Axes) -> Axes:
    """Divide the room of ``ax`` into two panels."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("ax: expected axes of a grid, as from plt.subplots, which can be divided for the dissipation")
    grid = place.subgridspec(2, 1, height_ratios=(3, 2), hspace=0.08)
    ax.set_subplotspec(grid[0])
    return ax.figure.add_subplot(grid[1], sharex=ax)


def _draw(ax: Axes, curves: Mapping[str, Curve], log: bool) -> None:
    if log:
        ax.set_yscale("log", nonpositive="mask")
    for i, (name, (times, values)) in enumerate(curves.items()):
        style: dict[str, Any] = line_style(i)
        samples = values.shape[1]
        if samples > 1:
            ax.plot(times, values, color=style["color"], linewidth=0.6, alpha=min(0.35, 10.0 / samples), zorder=1)
        ax.plot(times.nanquantile(0.5, 1), values.nanquantile(0.5, 1), linewidth=1.6, label=name, zorder=2, **style)
    ax.spines[["top", "right"]].set_visible(False)


def _logarithmic(curves: Mapping[str, Curve], positive: bool) -> bool:
    """Whether some curve varies by a factor that needs a logarithmic scale, and all have one: or their ``positive`` part."""
    found = [values[values.isfinite()] for _, values in curves.values()]
    if positive:
        found = [values[values > 0] for values in found]
    found = [values for values in found if len(values)]
    lowest = min((float(values.min()) for values in found), default=0.0)
    return lowest > 0 and any(float(values.max()) >= DECADE * float(values.min()) for values in found)


def _by_sample(times: Tensor, values: Tensor) -> Curve:
    """Times and values of each sample."""
    values = values.detach().to("cpu", torch.float64).reshape(len(values), -1)
    times = times.detach().to("cpu", torch.float64).reshape(len(times), -1)
    return times.expand_as(values), values
