"""
A layer of your own, held to the law
====================================

*Is my layer a function of the cloud, or of how the cloud is stored?* An :term:`atom` of :term:`mass` one half, and two atoms of
mass one quarter at the same place, are the same :term:`measure`. A network on measures has to
:term:`treat them alike <measure consistency>` (T1); if it does not, its results change with duplicates, with padding and with
the number of samples. ``check_map`` says so.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import ddeq
from ddeq.functionals import InteractionEnergy
from ddeq.testing import check_functional, check_map
from ddeq.viz import plot_measure

# %%
# A layer that cleans noisy clouds, as one would write it at first: each atom goes to the mean of its nearest neighbours.
# And two that are in many networks: centring, and batch normalisation over atoms.


class NearestNeighbours(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, mu):
        distances = torch.cdist(mu.points, mu.points)
        near = distances.topk(min(self.k, mu.n), largest=False).indices
        chosen = torch.zeros_like(distances).scatter(-1, near, 1.0)  # (*batch, n, n), ones at the neighbours
        return mu.with_points(chosen @ mu.points / chosen.sum(-1, keepdim=True))


norm = nn.BatchNorm1d(2, dtype=torch.float64)
wrong = {
    "nearest neighbours": NearestNeighbours(k=3),
    "centring": lambda mu: mu.push_forward(lambda x: x - x.mean(-2, keepdim=True)),
    "batch normalisation": lambda mu: mu.push_forward(lambda x: norm(x.flatten(0, -2)).reshape(x.shape)),
}
for name, layer in wrong.items():
    try:
        check_map(layer)
    except AssertionError as error:
        law, numbers = str(error).split(": got")
        print(f"{name}: {law}; {numbers.split('; ')[1]}\n")

# %%
# The check splits an atom, and the :term:`images <image>` of the others move. The right layers weigh each atom with its mass. A
# smooth :term:`kernel` takes the place of the list of neighbours: ties, ranks and counts are properties of arrays. (The
# library's own layers for local geometry, ``ddeq.nn.LocalEncoder``, are made in this way.)


class Neighbourhood(nn.Module):
    def __init__(self, bandwidth):
        super().__init__()
        self.bandwidth = bandwidth

    def forward(self, mu):
        kernel = (-0.5 * (torch.cdist(mu.points, mu.points) / self.bandwidth).square()).exp()
        shares = mu.weights.unsqueeze(-2) * kernel
        return mu.with_points(shares @ mu.points / shares.sum(-1, keepdim=True))


def standardised(mu):
    """Centring and normalisation in one, of each measure by itself."""
    variance = mu.covariance().diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return mu.push_forward(lambda x: (x - mu.mean().unsqueeze(-2)) / (variance + 1e-5).sqrt())


check_map(Neighbourhood(0.5))
check_map(standardised)

# %%
# What goes wrong looks like this. A noisy spiral, and the same measure with three of its atoms stored as twelve copies each.
# It looks the same, because it is the same. Pale discs are the images of the first, dark and red ones on top those of the
# second: nearest neighbours are now mostly copies, so that all that is near a copied atom is drawn to it.

generator = torch.Generator().manual_seed(1)
angle = math.pi * (0.6 + 3.0 * torch.linspace(0, 1, 160).sqrt())
spiral = 0.1 * angle.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
mu = ddeq.DiscreteMeasure(spiral + 0.05 * torch.randn(160, 2, generator=generator))
copied = [45, 90, 132]
stored_otherwise = mu
for atom in copied:
    for left in range(12, 1, -1):
        stored_otherwise = stored_otherwise.split_atom(atom, 1.0 / left)

figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.7), sharex=True, sharey=True, layout="constrained")
plot_measure(stored_otherwise, axes[0], color="#1f3b57", area=3000)
axes[0].scatter(*mu.points[copied].T, s=110, facecolor="none", edgecolor="#e0a030", linewidth=1.6, label="twelve copies")
axes[0].legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(-0.12, -0.06))
axes[0].set_title("one measure, stored in two ways", fontsize=10)
for axis, layer in zip(axes[1:], (NearestNeighbours(k=12), Neighbourhood(0.15)), strict=True):
    before, after = layer(mu), layer(stored_otherwise)
    after = mu.with_points(after.points[: mu.n])  # the copies come last
    moved = (after.points - before.points).norm(dim=-1) > 1e-4
    name = type(layer).__name__
    plot_measure(before, axis, color="#9fb3c8", area=3000, label="image")
    plot_measure(after, axis, color=["#d1495b" if m else "#1f3b57" for m in moved], area=1500)
    for ends in torch.stack([before.points, after.points], 1)[moved]:
        axis.plot(*ends.T, color="#d1495b", lw=1.0)
    axis.set_title(f"{name}: {int(moved.sum())} of {mu.n} images move", fontsize=10)
plt.show()

# %%
# Loss functions are checked in the same way. The mean distance to the nearest neighbour, which is to keep points apart,
# is one of arrays: an atom that is stored twice has a neighbour at distance zero. A repulsion between all pairs of atoms,
# each weighed with both masses, passes.


class KeepApart(ddeq.Functional):
    def forward(self, mu):
        distances = torch.cdist(mu.points, mu.points) + 1e3 * torch.eye(mu.n, dtype=mu.dtype)
        return -(mu.weights * distances.amin(-1)).sum(-1)


try:
    check_functional(KeepApart())
except AssertionError as error:
    print(error)

check_functional(InteractionEnergy(lambda difference: (-difference.square().sum(-1)).exp()))
