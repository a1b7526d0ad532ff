"""Draws the picture of the landing page: a flow, a fixed point, and an equilibrium that a shipped network finds.

python docs/pictures/landing.py --data FOLDER    # with the clouds of MNIST
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import ddeq
from ddeq.data import RemoveDiscs, generator_for, load_mnist_pc
from ddeq.flows import Euler, equilibrium
from ddeq.functionals import SinkhornDivergence, Wasserstein
from ddeq.nn import load_pretrained, pretrained_preprocessing
from ddeq.viz import bare_axes, plot_measure

DARK, RED, PALE = "#1f3b57", "#d1495b", "#c9d3dd"


def inside(corners: Tensor, spacing: float = 0.1) -> Tensor:
    """The points of a triangular grid that lie inside a polygon."""
    across = torch.arange(-1.25, 1.25, spacing)
    rows = [torch.stack([across + (k % 2) * spacing / 2, y.expand_as(across)], -1) for k, y in enumerate(across * 3**0.5 / 2)]
    p, a, b = torch.cat(rows), corners, corners.roll(-1, 0)
    crosses = (a[:, 1] > p[:, None, 1]) != (b[:, 1] > p[:, None, 1])
    at = a[:, 0] + (p[:, None, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return p[(crosses & (p[:, None, 0] < at)).sum(-1) % 2 == 1]


def polygon(radii: list[float], turn: float = math.pi / 2) -> Tensor:
    """Corners at these distances from the centre."""
    angle = torch.arange(len(radii)) * 2 * math.pi / len(radii) + turn
    return torch.tensor(radii).unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def heart() -> Tensor:
    t = torch.linspace(0, 2 * math.pi, 201)[:-1]
    return torch.stack([16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()], -1) / 16


STAR = polygon([1.15, 0.45] * 5)


def a_flow(axis: plt.Axes) -> None:
    start = ddeq.DiscreteMeasure(inside(heart()))
    target = ddeq.DiscreteMeasure(inside(STAR) + torch.tensor([3.4, 0.0]))
    trajectory = ddeq.flow(SinkhornDivergence(target, blur=0.1), start, stepper=Euler(0.4), steps=16, record=1)
    place = (start.points - start.points.amin(0)) / (start.points.amax(0) - start.points.amin(0))
    colours = torch.stack([0.95 * place[:, 0], 0.15 + 0.5 * place[:, 1], 0.85 - 0.75 * place[:, 0]], -1).numpy()
    paths = trajectory.measures.points
    for atom, colour in enumerate(colours[::5]):
        axis.plot(*paths[:, 5 * atom].T, color=colour, lw=0.6, alpha=0.5)
    for measure in (start, trajectory.measure):
        plot_measure(measure, axis, color=colours, area=900)
    axis.set_title("A flow descends an energy")


def a_fixed_point(axis: plt.Axes) -> None:
    ends = [ddeq.DiscreteMeasure(inside(shape).double()) for shape in (heart(), STAR)]
    half = 0.5 * Wasserstein(ends[0]) + 0.5 * Wasserstein(ends[1])
    middle = equilibrium(half, ends[0], stepper=Euler(1.0)).measure
    for measure, at, colour in ((ends[0], 0.0, PALE), (middle, 2.4, DARK), (ends[1], 4.8, PALE)):
        plot_measure(measure.with_points(measure.points + torch.tensor([at, 0.0])), axis, color=colour, area=900)
    axis.set_title("A mean of shapes is a fixed point")


def an_equilibrium(axis: plt.Axes, folder: str) -> None:
    completer, digits = load_pretrained("mnist_pc_completion"), load_mnist_pc(folder, "validation")
    places = [next(i for i in range(100) if digits[i][1] == label) for label in (3, 6, 8)]
    batch, _ = digits.batch(places)
    known, hidden = RemoveDiscs(radius=0.35)(pretrained_preprocessing("mnist_pc_completion")(batch), generator_for(0))
    with torch.no_grad():
        missing = completer.missing(known)
    for i in range(len(places)):
        for measure, colour, order in ((hidden, PALE, 1), (known, DARK, 2), (missing, RED, 3)):
            one = measure[i]
            shifted = one.with_points(one.points + torch.tensor([2.0 * i, 0.0]))
            plot_measure(shifted, axis, color=colour, area=700 * float(one.mass()), zorder=order)
    axis.set_title("A network answers with an equilibrium")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="file or folder of MNIST's clouds")
    options = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(11.0, 1.8), layout="constrained", width_ratios=[5.8, 7.2, 6.2])
    a_flow(axes[0])
    a_fixed_point(axes[1])
    an_equilibrium(axes[2], options.data)
    for axis in axes:
        bare_axes(axis)
        axis.title.set_size(12)
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
