"""Pictures of measures, flows, equilibria and convergence, for the screen and for papers. Needs matplotlib.

Every function draws into the axes that it is given, or into new ones, and returns them. Masses are shown as areas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddeq.flows import Trajectory
from ddeq.measures import DiscreteMeasure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_attention", "plot_convergence", "plot_energy", "plot_measure", "plot_plane", "plot_trajectory"]

INK, ACCENT, TARGET = "#1f3b57", "#d1495b", "#9fb3c8"
"""Colours: of measures, of what the eye should go to, and of targets and inputs."""
AREA = 600.0
"""Area in square points that the masses of a probability measure share."""


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(3.2, 3.2), layout="constrained")
    return ax


def plot_measure(
    mu: DiscreteMeasure, ax: Axes | None = None, *, color: Any = INK, area: float = AREA, bare: bool = True, **options: Any
) -> Axes:
    """A planar measure: a disc for each atom, its area in proportion to the mass; dead atoms are not seen.

    Parameters
    ----------
    mu
        A single measure of dimension 2.
    ax
        Where to draw.
    color
        Colour of the discs, or one value for each atom.
    area
        Area in square points that all atoms share.
    bare
        Hide the frame and the ticks, and keep the scale of both axes equal.
    options
        Passed to ``Axes.scatter``.

    Raises
    ------
    ValueError
        If ``mu`` is a batch or not of dimension 2.
    """
    if mu.batch_shape or mu.dim != 2:
        raise ValueError(f"mu: expected a single measure of dimension 2, got {mu}; take mu[i], or project its points")
    ax = _axes(ax)
    mu = mu.detach().to("cpu")
    x, y = mu.points.unbind(-1)
    share = mu.normalized().weights
    ax.scatter(x, y, s=(area * share).clamp_min(0.0), c=color, linewidths=0, **options)
    if bare:
        bare_axes(ax)
    return ax


def bare_axes(ax: Axes) -> None:
    """Equal scales, no ticks, no frame."""
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def plot_trajectory(trajectory: Trajectory, target: DiscreteMeasure | None = None, *, frames: int = 6) -> Figure:
    """A planar flow in time: ``frames`` snapshots, evenly spaced in the logarithm of the number of the record.

    Parameters
    ----------
    trajectory
        Flow of a single planar measure.
    target
        Shown behind each snapshot.
    frames
        Number of snapshots.
    """
    import matplotlib.pyplot as plt

    last = len(trajectory.energies) - 1
    spaced = torch.logspace(0, 1, frames, dtype=torch.float64)
    records = sorted({round(float(t)) for t in (spaced - 1) / 9 * last})
    figure: Figure
    figure, axes = plt.subplots(
        1, len(records), figsize=(2.1 * len(records), 2.5), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for ax, record in zip(axes[0], records, strict=True):
        if target is not None:
            plot_measure(target, ax, color=TARGET, area=1.4 * AREA)
        plot_measure(trajectory.measures[record], ax, color=ACCENT)
        ax.set_title(f"t = {float(trajectory.times[record].max()):.3g}", fontsize=10)
    return figure


def plot_energy(trajectory: Trajectory, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Energy of a flow against time, on a logarithmic scale where it stays positive."""
    ax = _axes(ax)
    energies = trajectory.energies.detach().reshape(len(trajectory.energies), -1).cpu()
    times = trajectory.times.detach().flatten(1).amax(-1).cpu() if trajectory.times.ndim > 1 else trajectory.times.detach().cpu()
    ax.plot(times, energies, color=INK, label=label)
    if bool((energies > 0).all()):
        ax.set_yscale("log")
    ax.set_xlabel("time")
    ax.set_ylabel("energy")
    return ax


def plot_convergence(traces: Mapping[str, Tensor], ax: Axes | None = None, *, tolerance: float | None = None) -> Axes:
    """Residuals against evaluations of the map, one line for each solver.

    Parameters
    ----------
    traces
        By name of the solver, ``(evaluations, *batch)``; of a batch the largest residual is shown.
    ax
        Where to draw.
    tolerance
        Shown as a line.
    """
    ax = _axes(ax)
    for name, trace in traces.items():
        residual = trace.detach().flatten(1).nan_to_num(0.0).amax(-1) if trace.ndim > 1 else trace.detach()
        ax.plot(range(1, len(residual) + 1), residual.cpu(), marker="o", markersize=3, linewidth=1.4, label=name)
    if tolerance is not None:
        ax.axhline(tolerance, color="0.6", linewidth=1, linestyle="--")
        ax.text(0.02, tolerance, "tolerance", transform=ax.get_yaxis_transform(), color="0.45", fontsize=8, va="bottom")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("steps + 1")
    ax.set_ylabel("relative residual")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return ax


def plot_plane(mu: DiscreteMeasure, ax: Axes | None = None, **options: Any) -> Axes:
    """A measure of any dimension in the plane of its two principal axes, with the share of the variance that they hold."""
    mu = mu.detach()
    variances, axes = torch.linalg.eigh(mu.covariance())
    plane = mu.with_points((mu.points - mu.mean().unsqueeze(-2)) @ axes[:, -2:].flip(-1))
    ax = plot_measure(plane, ax, **options)
    share = float(variances[-2:].sum() / variances.sum().clamp_min(torch.finfo(mu.dtype).tiny))
    ax.set_title(f"plane of the two principal axes\n({share:.0%} of the variance)", fontsize=9)
    return ax


def plot_attention(rho: DiscreteMeasure, shares: Tensor, *, equilibrium: DiscreteMeasure | None = None) -> Figure:
    """How the atoms of an equilibrium attend to a planar input: a column for each atom, a row for each head.

    The colour of a pixel is its share of the attention divided by its share of the mass: grey where less than its mass.

    Parameters
    ----------
    rho
        The input: a single planar measure with ``m`` atoms.
    shares
        Attention ``(heads, n, m)`` of the ``n`` atoms of the equilibrium; each row adds up to one.
    equilibrium
        Shown beside the panels in the plane of its principal axes, its atoms numbered like the columns.
    """
    import matplotlib.pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colors = LinearSegmentedColormap.from_list("attention", ["#dde4ea", "#f2b5a7", ACCENT, "#7a1126"])
    scale = Normalize(0.0, 4.0)
    heads, n, _ = shares.shape
    wide = heads if equilibrium is not None else 0
    figure: Figure = plt.figure(figsize=(0.95 * (n + wide) + 0.6, heads + 0.8), layout="constrained")
    grid = figure.add_gridspec(heads, n + wide, hspace=0.12)
    live = rho.support()
    atoms = DiscreteMeasure(rho.points[live].detach(), rho.weights[live].detach())
    density = shares.detach()[..., live] / atoms.normalized().weights
    panels = []
    for head in range(heads):
        for i in range(n):
            ax = figure.add_subplot(grid[head, wide + i])
            plot_measure(atoms, ax, color=density[head, i].cpu(), cmap=colors, norm=scale, area=0.45 * AREA)
            panels.append(ax)
            if head == 0:
                ax.set_title(str(i + 1), fontsize=9, pad=4)
            if i == 0:
                ax.set_ylabel(f"head {head + 1}", fontsize=9)
    figure.colorbar(ScalarMappable(scale, colors), ax=panels, label="attention / mass", extend="max", aspect=30, pad=0.01)
    if equilibrium is not None:
        ax = figure.add_subplot(grid[:, :wide])
        plot_plane(equilibrium, ax, area=3 * AREA, clip_on=False)
        ax.margins(0.12)
        for i, place in enumerate(torch.as_tensor(ax.collections[0].get_offsets()).tolist()):
            ax.annotate(str(i + 1), place, color="white", fontsize=8, ha="center", va="center")
    return figure
