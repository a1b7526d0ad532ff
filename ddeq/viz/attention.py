"""Pictures of the attention that atoms pay to an input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from ddeq.measures import DiscreteMeasure
from ddeq.viz.discs import discs
from ddeq.viz.measure import plot_measure, plot_plane, principal_plane
from ddeq.viz.style import ACCENT, AREA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_attention"]


def plot_attention(
    rho: DiscreteMeasure, shares: Float[Tensor, "heads n m"], *, equilibrium: DiscreteMeasure | None = None
) -> Figure:
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
            plot_measure(atoms, ax, color=density[head, i], cmap=colors, norm=scale, area=0.45 * AREA, alpha=1.0)
            panels.append(ax)
            if head == 0:
                ax.set_title(str(i + 1), fontsize=9, pad=4)
            if i == 0:
                ax.set_ylabel(f"head {head + 1}", fontsize=9)
    figure.colorbar(ScalarMappable(scale, colors), ax=panels, label="attention / mass", extend="max", aspect=30, pad=0.03)
    if equilibrium is not None:
        ax = figure.add_subplot(grid[:, :wide])
        plot_plane(equilibrium, ax, area=3 * AREA, alpha=1.0, clip_on=False)
        ax.margins(0.2)
        shown = discs(principal_plane(equilibrium)[0])
        for i, place in zip(shown.atoms.tolist(), shown.places.tolist(), strict=True):
            ax.annotate(str(i + 1), place, color="white", fontsize=8, ha="center", va="center")
    return figure
