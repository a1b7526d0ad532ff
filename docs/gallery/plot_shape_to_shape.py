"""
From one shape to another
=========================

*How does a shape become another shape?* That depends on the energy that is descended. Two shapes, and three flows from the one
to the other: of a :term:`Sinkhorn divergence`, of an :term:`MMD` with a :term:`Riesz kernel`, and of the squared
:term:`Wasserstein distance` itself.
"""

import math

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, Proximal
from ddeq.functionals import MMD, SinkhornDivergence, Wasserstein
from ddeq.kernels import Riesz
from ddeq.viz import plot_measure

# %%
# A heart and a star, filled with atoms at random.


def inside(corners, n, generator):
    """Points drawn uniformly inside a polygon."""
    points = torch.empty(0, 2)
    while len(points) < n:
        p = torch.rand(4 * n, 2, generator=generator) * 2.4 - 1.2
        a, b = corners, corners.roll(-1, 0)
        crosses = (a[:, 1] > p[:, None, 1]) != (b[:, 1] > p[:, None, 1])
        at = a[:, 0] + (p[:, None, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
        points = torch.cat([points, p[(crosses & (p[:, None, 0] < at)).sum(-1) % 2 == 1]])
    return points[:n]


t = torch.linspace(0, 2 * math.pi, 201)[:-1]
heart = torch.stack([16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()], -1) / 16
turn = torch.arange(10) * math.pi / 5 + math.pi / 2
star = torch.where(torch.arange(10) % 2 == 0, 1.15, 0.45).unsqueeze(-1) * torch.stack([turn.cos(), turn.sin()], -1)

generator = torch.Generator().manual_seed(0)
n = 150
start = ddeq.DiscreteMeasure(inside(heart, n, generator))
target = ddeq.DiscreteMeasure(inside(star, n, generator) + torch.tensor([2.6, 0.0]))

# %%
# A Sinkhorn divergence is smooth and takes Euler's steps. The exact distance is smooth only between changes of the optimal
# :term:`coupling`; a :term:`proximal (JKO) step <proximal step>` of it is one problem of transport, and may be long. The MMD has
# kinks where atoms meet target points, so its steps have to fall.

trajectories = {
    "Sinkhorn divergence": ddeq.flow(SinkhornDivergence(target, blur=0.2), start, stepper=Euler(0.4), steps=14, record=1),
    "Wasserstein, proximal": ddeq.flow(Wasserstein(target), start, stepper=Proximal(0.4), steps=16, record=1),
    "MMD, Riesz": ddeq.flow(MMD(target, Riesz(1.0)), start, stepper=Euler(lambda k: 0.3 / (1 + k / 80)), steps=300, record=3),
}

# %%
# When about a half, a tenth and a hundredth of the energy is left, and at the end. Every atom keeps its colour. Both
# transports move the whole shape, left parts to left parts. In the MMD flow atoms push each other away while the star
# pulls all of them alike: the heart is blown up, what is in front arrives first, and the last ones come in late.

shares = (1.0, 0.5, 0.1, 0.01, 0.0)
place = (start.points - start.points.amin(0)) / (start.points.amax(0) - start.points.amin(0))
colours = torch.stack([0.95 * place[:, 0], 0.15 + 0.5 * place[:, 1], 0.85 - 0.75 * place[:, 0]], -1).numpy()

figure, axes = plt.subplots(3, 5, figsize=(10.8, 4.2), sharex=True, sharey=True, layout="constrained")
for row, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
    for axis, share in zip(row, shares, strict=True):
        record = int((trajectory.energies / trajectory.energies[0] - share).abs().argmin())
        plot_measure(target, axis, color="#c9d3dd", area=1500)
        plot_measure(trajectory.measures[record], axis, color=colours, area=1100)
        axis.set_title(f"t = {float(trajectory.times[record]):.2g}", fontsize=9, pad=1)
    row[0].text(-0.03, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=9)
plt.show()

# %%
# The paths of every fifth atom: straight for the transports, bent for the MMD, where each atom is pulled by the whole
# target and pushed by all others.

figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.1), sharex=True, sharey=True, layout="constrained")
for axis, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
    paths = trajectory.measures.points[:, ::5]
    plot_measure(target, axis, color="#c9d3dd", area=1500)
    for atom, colour in enumerate(colours[::5]):
        axis.plot(*paths[:, atom].T, color=colour, lw=0.7)
    axis.set_title(name, fontsize=10)
plt.show()
for name, trajectory in trajectories.items():
    print(f"{name:22s} half of the squared Wasserstein distance at the end {float(Wasserstein(target)(trajectory.measure)):.5f}")
