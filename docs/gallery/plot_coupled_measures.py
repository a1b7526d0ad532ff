"""
Coupled barycentres, trajectories in time, and labelled data sets
=================================================================

*How does one flow several measures that hold on to each other, or a measure whose atoms are measures?* A joint energy of
measures by name couples :term:`barycentres <barycentre>`, or the marginals of a process in time; a functional that `couples its
batch <ddeq.Functional.couples_batch>` takes the last :term:`batch` dimension as one :term:`measure of measures`, as a data set
with labels is one: a cloud for each class (systems, T23).
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import AdaptiveEuler, Euler
from ddeq.functionals import MMD, Functional, Wasserstein
from ddeq.kernels import Riesz
from ddeq.viz import bare_axes

generator = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def randn(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# %%
# **Coupled barycentres.** Two groups have three clouds each. A barycentre of each group minimises half the mean squared
# :term:`Wasserstein distance` from the clouds of its group, and both are drawn to each other by :math:`\frac\lambda2 W_2^2`. At
# :math:`\lambda = 0` they are what they are alone, at a large one they are about the barycentre of all six.


def ring(n, radius, shift):
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    return ddeq.DiscreteMeasure(radius * torch.stack([angle.cos(), angle.sin()], -1) + torch.tensor(shift))


def square(n, radius, shift):
    side = torch.linspace(-1, 1, n // 4 + 1, dtype=torch.float64)[:-1]
    one = torch.ones_like(side)
    edges = [(side, -one), (one, side), (-side, one), (-one, -side)]
    return ddeq.DiscreteMeasure(radius * torch.cat([torch.stack(e, -1) for e in edges]) + torch.tensor(shift))


groups = {
    "rings": [ring(40, r, [-1.6, y]) for r, y in ((0.6, -0.3), (0.9, 0.0), (1.2, 0.3))],
    "squares": [square(40, r, [1.6, y]) for r, y in ((0.5, 0.2), (0.7, 0.0), (0.9, -0.2))],
}


def coupled(strength):
    own = {name: [Wasserstein(cloud) for cloud in clouds] for name, clouds in groups.items()}

    def energy(m):
        apart = sum(W(m[name]) / 3 for name, distances in own.items() for W in distances)
        return apart + (strength * Wasserstein(m["squares"])(m["rings"]) if strength else 0.0)

    return Functional.of(energy)


begin = {name: ddeq.DiscreteMeasure(0.3 * randn(40, 2)) for name in groups}
colours = {"rings": "#1f3b57", "squares": "#d1495b"}
figure, axes = plt.subplots(1, 3, figsize=(9.0, 2.8), layout="constrained", sharex=True, sharey=True)
for axis, strength in zip(axes, (0.0, 0.5, 8.0), strict=True):
    with torch.no_grad():
        found = ddeq.flow(coupled(strength), begin, stepper=Euler(1.0 / (1.0 + 2.0 * strength)), steps=15).measure
    for name, clouds in groups.items():
        for cloud in clouds:
            axis.scatter(*cloud.points.mT, s=2, color="#c9ced6")
        axis.scatter(*found[name].points.mT, s=9, color=colours[name])
    axis.set_title(f"λ = {strength:g}", fontsize=10)
    bare_axes(axis)
plt.show()

# %%
# **Trajectory inference.** Cells are seen at four of five times, others each time, for seeing them destroys them. Which way did
# they take, and what was between? Five marginals minimise the distances from what was seen, and what it takes to go from each to
# the next, :math:`\frac{1}{2\Delta t}\sum_k W_2^2(\mu_k, \mu_{k+1})` (without the noise of :cite:t:`chizat2022trajectory`). The
# third time was not seen. The optimal couplings of neighbours then say who went where.

times = torch.linspace(0, 1, 5, dtype=torch.float64)


def cells(n, time):
    """A population that branches."""
    side = torch.where(rand(n) < 0.5, 1.0, -1.0).to(torch.float64)
    return torch.stack([4.0 * time + 0.15 * randn(n), side * 1.2 * time**1.5 + 0.15 * randn(n)], -1)


seen = {f"time {k}": ddeq.DiscreteMeasure(cells(60, t)) for k, t in enumerate(times) if k != 2}
names = [f"time {k}" for k in range(5)]
fits = {name: MMD(cloud, Riesz(1.0)) for name, cloud in seen.items()}


def likely(m):
    moved = sum(Wasserstein(m[b])(m[a]) for a, b in pairwise(names)) / 0.25
    return sum(fit(m[name]) for name, fit in fits.items()) + 0.02 * moved


anywhere = {name: ddeq.DiscreteMeasure(torch.tensor([2.0, 0.0]) + 0.6 * randn(40, 2)) for name in names}
with torch.no_grad():
    inferred = ddeq.flow(Functional.of(likely), anywhere, stepper=Euler(lambda step: 3.0 / (5.0 + step / 10.0)), steps=120)
end = inferred.measure
unseen = MMD(ddeq.DiscreteMeasure(cells(400, times[2])), Riesz(1.0))
print(f"the third time, which was not seen: half an energy distance of {unseen(end['time 2']):.3f} from new cells at that time;")
print(f"of the second and the fourth time it is {unseen(end['time 1']):.3f} and {unseen(end['time 3']):.3f}")

figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.0), layout="constrained", sharex=True, sharey=True)
shades = plt.get_cmap("viridis")(torch.linspace(0.0, 0.85, 5))
for k, name in enumerate(names):
    if name in seen:
        axes[0].scatter(*seen[name].points.mT, s=8, color=shades[k])
    axes[1].scatter(*end[name].points.mT, s=12, color=shades[k], label=name, zorder=2)
for a, b in pairwise(names):
    plan = Wasserstein(end[b]).plan(end[a])
    for i, j in (plan > 0.5 * plan.max()).nonzero():
        axes[1].plot(*torch.stack([end[a].points[i], end[b].points[j]], -1), color="#b8bfc9", lw=0.7, zorder=1)
axes[0].set_title("seen", fontsize=10)
axes[1].set_title("inferred, with the optimal couplings", fontsize=10)
axes[1].legend(frameon=False, fontsize=8)
for axis in axes:
    bare_axes(axis)
plt.show()

# %%
# **Wasserstein over Wasserstein.** A labelled data set is a measure of measures: a cloud for each class, with the share of the
# class as its :term:`outer weight`. Between two clouds there is the :term:`energy distance` :math:`D`;
# :math:`-\sqrt{\varepsilon^2 + D^2}` is then a kernel on clouds, and its MMD a distance between data sets. Its flow moves points
# so that whole clouds go where clouds are wanted (:cite:t:`bonet2025flowing`): nobody says which class becomes which. The target
# has three rings, the first as frequent as the other two together. Of the four clouds at the start, with a quarter of the mass
# each, two must meet on it.


def cross(mu, nu):
    """Mean distances between the clouds of two batches, ``(k, l)``."""
    apart = (mu.points[:, None, :, None] - nu.points[None, :, None]).square().sum(-1).clamp_min(1e-16).sqrt()
    return torch.einsum("kn,klnm,lm->kl", mu.weights, apart, nu.weights)


def to_data_set(target, target_weights, weights):
    def between(mu, nu):
        own = [torch.diagonal(cross(m, m)) for m in (mu, nu)]
        squared = 2.0 * cross(mu, nu) - own[0][:, None] - own[1][None, :]
        return -(1e-2 + squared.clamp_min(0.0)).sqrt()

    def half_mmd(mu):
        def total(a, gram, b):
            return torch.einsum("k,kl,l->", a, gram, b)

        cross_term = total(weights, between(mu, target), target_weights)
        return 0.5 * total(weights, between(mu, mu), weights) - cross_term + 0.5 * total_of_target

    total_of_target = torch.einsum("k,kl,l->", target_weights, between(target, target), target_weights)
    return Functional.of(half_mmd, couples_batch=True, outer_weights=weights)


rings = ddeq.DiscreteMeasure.stack([ring(40, 0.7, shift) for shift in ([-1.6, 0.0], [1.0, 1.2], [1.0, -1.2])])
shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
quarter = torch.full((4,), 0.25, dtype=torch.float64)
middles = torch.tensor([[-0.6, 0.5], [-0.4, -0.6], [0.4, 0.3], [0.5, -0.5]], dtype=torch.float64)
clouds = ddeq.DiscreteMeasure(middles[:, None] + 0.25 * randn(4, 30, 2))
with torch.no_grad():
    data = ddeq.flow(to_data_set(rings, shares, quarter), clouds, stepper=AdaptiveEuler(), steps=80)
print(f"MMD of data sets, halved and squared: {data.energies[0]:.4f} at the start, {data.energies[-1]:.5f} at the end")

figure, axes = plt.subplots(1, 4, figsize=(11.0, 2.9), layout="constrained", sharex=True, sharey=True)
for axis, index in zip(axes, (0, 5, 20, 80), strict=True):
    for target in rings.points:
        axis.scatter(*target.mT, s=3, color="#c9ced6")
    for cloud, colour in zip(data.measures.points[index], ("#1f3b57", "#e0a030", "#d1495b", "#3a7d44"), strict=True):
        axis.scatter(*cloud.mT, s=9, color=colour)
    axis.set_title(f"after {index} steps", fontsize=10)
    bare_axes(axis)
plt.show()
