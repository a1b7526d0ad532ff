"""
Mirrored SVGD and mirror-Langevin on the simplex
================================================

*How does one sample probabilities?* A posterior of probability vectors lives on a simplex, and its density may be singular at the
boundary, where steps of ordinary :term:`SVGD` or :term:`Langevin <Langevin noise>` lead out. In the geometry ``Mirror`` atoms
move in the image of a :term:`mirror map`, here logarithms of the probabilities: there is no boundary there.
"""

import math

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, Langevin, Mirror, Nesterov, SimplexEntropy
from ddeq.functionals import KLDivergence, PotentialEnergy
from ddeq.kernels import IMQ
from ddeq.viz import bare_axes

# %%
# Seven answers were counted: one "no", two "maybe", four "yes". With a uniform prior the posterior of the three probabilities is
# Dirichlet(2, 3, 5), whose means and variances are known.

alpha = torch.tensor([1.0, 2.0, 4.0]).double() + 1.0
total = alpha.sum()
exact_mean = alpha / total
exact_deviation = (exact_mean * (1 - exact_mean) / (total + 1)).sqrt()


def log_density(x):
    return ((alpha - 1.0) * x.log()).sum(-1)


# %%
# All atoms start near the middle. *Mirror-Langevin* takes the :term:`potential` alone, as the noise stands for the
# :term:`entropy`; *mirrored SVGD* takes the whole :term:`KL divergence`, whose entropy becomes a repulsion between atoms
# through a kernel on the image. In the image the density has the determinant of the mirror map in it, which the geometry takes
# into account (spaces, T22).

generator = torch.Generator().manual_seed(0)
start = (0.2 * torch.randn(6000, 3, generator=generator).double()).softmax(-1)
few, many = ddeq.DiscreteMeasure(start[:150]), ddeq.DiscreteMeasure(start)
svgd = ddeq.flow(
    KLDivergence(log_density, bandwidth=0.1), few, Nesterov(0.3), 300, Mirror(SimplexEntropy(), IMQ(1.0)), record=300
).measure
langevin = ddeq.flow(
    PotentialEnergy(lambda x: -log_density(x)),
    many,
    Euler(0.003),
    300,
    Mirror(SimplexEntropy()),
    Langevin(1.0),
    record=300,
    generator=generator,
).measure

# %%
# Both find means and standard deviations: SVGD with 150 atoms and without luck, Langevin up to what 6,000 samples show and a
# bias of the step size. Every atom is inside of the simplex, to the last digit.

print(f"{'':24s}" + "".join(f"{name:>9s}" for name in ("mean", "", "", "deviation", "", "")))
rows = {"exact": (exact_mean, exact_deviation)}
for name, mu in (("mirrored SVGD, 150", svgd), ("mirror-Langevin, 6000", langevin)):
    rows[name] = mu.mean(), mu.covariance().diagonal().sqrt()
for name, (mean, deviation) in rows.items():
    print(f"{name:24s}" + "".join(f"{value:9.4f}" for value in (*mean.tolist(), *deviation.tolist())))
print(f"smallest probability: {svgd.points.min():.1e}, {langevin.points.min():.1e}")

# %%
# A ternary plot: each corner is the certainty of one answer. Lines are levels of the density, crosses the exact means.

corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]]).double()
u, v = torch.meshgrid(torch.linspace(0, 1, 200), torch.linspace(0, 1, 200), indexing="ij")
inside = u + v < 1
grid = torch.stack([u, v, 1 - u - v], -1).double()
level = torch.where(inside, log_density(grid.clamp_min(1e-12)).exp(), torch.nan)
place = grid @ corners
figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.0), layout="constrained")
for axis, (name, points, colour, size) in zip(
    axes,
    (
        ("mirrored SVGD, 150 atoms", svgd.points, "#d1495b", 14),
        ("mirror-Langevin, 1,000 of 6,000 atoms", langevin.points[:1000], "#1f3b57", 5),
    ),
    strict=True,
):
    axis.contour(place[..., 0], place[..., 1], level, levels=8, colors="#9fb3c8", linewidths=0.9, zorder=0)
    axis.plot(*corners[[0, 1, 2, 0]].T, color="#5b6b7a", lw=1.0)
    axis.scatter(*(points @ corners).T, s=size, color=colour, alpha=0.8, lw=0)
    axis.scatter(*(exact_mean @ corners), marker="x", s=70, color="black", lw=1.8, zorder=3)
    labels = zip(corners, ("no", "maybe", "yes"), ((-6, -4), (6, -4), (0, 5)), ("right", "left", "center"), strict=True)
    for corner, label, shift, side in labels:
        axis.annotate(label, corner, shift, textcoords="offset points", ha=side, fontsize=9)
    axis.set_title(name, fontsize=10, pad=8)
    bare_axes(axis)
    axis.set(xlim=(-0.12, 1.18), ylim=(-0.05, 0.93))
    axis.set_aspect("equal", adjustable="box")
plt.show()
