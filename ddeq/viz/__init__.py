"""Pictures of measures, flows, equilibria and convergence, for the screen and for papers. Needs matplotlib.

Every function draws into the axes that it is given, or into new ones, and returns them; what fills a figure returns the
figure. Masses are shown as areas: atoms of mass zero are not seen, and atoms at the same place share one disc.
"""

from ddeq.viz.animation import animate
from ddeq.viz.attention import plot_attention
from ddeq.viz.convergence import plot_convergence
from ddeq.viz.energy import plot_energy
from ddeq.viz.measure import plot_measure, plot_plane
from ddeq.viz.style import bare_axes
from ddeq.viz.trajectory import plot_trajectory

__all__ = [
    "animate",
    "bare_axes",
    "plot_attention",
    "plot_convergence",
    "plot_energy",
    "plot_measure",
    "plot_plane",
    "plot_trajectory",
]
