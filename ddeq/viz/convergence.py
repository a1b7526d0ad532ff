"""Pictures of residuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from ddeq.viz.style import axes_for, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_convergence"]


def plot_convergence(
    traces: Mapping[str, Float[Tensor, "_ ..."]], ax: Axes | None = None, *, tolerance: float | None = None
) -> Axes:
    """Residuals against evaluations of the map, one line for each solver.

    Parameters
    ----------
    traces
        By name of the solver, ``(evaluations, *batch)``; of a batch the largest residual is shown.
    ax
        Where to draw. Default: new axes.
    tolerance
        Shown as a line.
    """
    ax = axes_for(ax)
    for i, (name, trace) in enumerate(traces.items()):
        residual = trace.detach().flatten(1).nan_to_num(0.0).amax(-1) if trace.ndim > 1 else trace.detach()
        ax.plot(range(1, len(residual) + 1), residual.cpu(), marker="o", markersize=3, linewidth=1.4, label=name, **line_style(i))
    if tolerance is not None:
        ax.axhline(tolerance, color="0.6", linewidth=1, linestyle="--")
        ax.text(0.02, tolerance, "tolerance", transform=ax.get_yaxis_transform(), color="0.45", fontsize=8, va="bottom")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("steps + 1")
    ax.set_ylabel("relative residual")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return ax
