"""
Sinkhorn divergence or energy distance
======================================

*Which loss between two clouds should I take, a Sinkhorn divergence or an energy distance?* A cloud is a :term:`measure` here,
points with weights. Both losses vanish only where the clouds agree, and both say for each atom where to go. One asks where all
the mass has to be moved, the other one adds up attractions and repulsions of pairs. They differ in what an atom sees, in what a
parameter does, and in what they cost.
"""

import time

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler
from ddeq.functionals import MMD, SinkhornDivergence, Wasserstein
from ddeq.kernels import Riesz
from ddeq.viz import bare_axes, plot_measure

# %%
# - :term:`Energy distance <energy distance>`: the points, called :term:`atoms <atom>`, are drawn to all points of the target and
#   pushed away by each other, both with a force that does not depend on the distance. It is an :term:`MMD`, a distance of
#   measures that comes from a :term:`kernel`, here the Riesz kernel ``-|x - y|``.
# - :term:`Sinkhorn divergence`: half of the squared :term:`transport distance <Wasserstein distance>` (the least mean squared way
#   that mass has to go), except that mass may be smeared over a length, the :term:`blur`.
#
# A cloud beside two rings, the forces on its atoms (minus the :term:`Wasserstein gradient` of the loss), and where they are after
# a :term:`flow`, which takes steps along the forces.

generator = torch.Generator().manual_seed(0)
angle = torch.linspace(0, 2 * torch.pi, 51)[:-1]
ring = torch.stack([angle.cos(), angle.sin()], -1)
target = ddeq.DiscreteMeasure(torch.cat([0.7 * ring, 0.25 * ring]) + torch.tensor([2.2, 0.0]))
start = ddeq.DiscreteMeasure(0.35 * torch.randn(100, 2, generator=generator))

blurs = {0.1: "#d1495b", 0.5: "#e0a030", 2.0: "#4f9fc4"}
energies = {"energy distance": MMD(target, Riesz(1.0))}
energies |= {f"Sinkhorn, blur {blur}": SinkhornDivergence(target, blur=blur) for blur in blurs}
colours = dict(zip(energies, ("#1f3b57", *blurs.values()), strict=True))

figure, axes = plt.subplots(2, 4, figsize=(10.6, 4.4), sharex=True, sharey=True, layout="constrained")
ends, some = {}, slice(None, None, 3)
for (top, bottom), (name, F) in zip(axes.T, energies.items(), strict=True):
    force = -F.wasserstein_gradient(start)
    stepper, steps = (Euler(0.5), 12) if "Sinkhorn" in name else (Euler(lambda k: 0.3 / (1 + k / 60)), 300)
    ends[name] = ddeq.flow(F, start, stepper=stepper, steps=steps).measure
    for axis in (top, bottom):
        plot_measure(target, axis, color="#9fb3c8", area=900)
    plot_measure(start, top, color="#1f3b57", area=900)
    top.quiver(*start.points[some].T, *force[some].T, color=colours[name], angles="xy", scale_units="xy", scale=1, width=0.005)
    plot_measure(ends[name], bottom, color=colours[name], area=1200)
    top.set_title(name, fontsize=10)
    bottom.set(xlim=(-1.1, 3.2), ylim=(-1.5, 1.5))
    bare_axes(bottom)
plt.show()
judge = Wasserstein(target)
for name, mu in ends.items():
    print(f"{name:18s} half of the squared transport distance {float(judge(start)):.3f} -> {float(judge(mu)):.5f}")

# %%
# The exact transport distance judges all ends. With little blur each atom has a place of its own at the target, and 12 steps
# are enough. A blur as large as the cloud no longer tells which ring an atom belongs to, and a larger one only where the cloud as
# a whole should go: ``blur`` is the length below which shape is hardly seen. In the energy distance there is nothing to choose.
# It sees all lengths; but atoms that were pushed away are still on their way after 300 steps
# (:doc:`From one shape to another <plot_shape_to_shape>` shows such paths).
#
# *What does it cost?* A Sinkhorn divergence solves three transport problems (between the clouds, and of each with itself), the
# harder the smaller the blur. An energy distance is one sum over pairs, tens to hundreds of times as fast, and beyond ten
# thousand atoms :doc:`sorting <plot_million_points>` takes its place.
#
# *What do outliers do?* Let one atom of a hundred go astray. Transport has to bring it back, at the square of the way once
# that is longer than the blur. The energy distance grows like the way itself.


def cloud(n, shift=0.0):
    return ddeq.DiscreteMeasure(torch.randn(n, 2, generator=generator) + shift)


def seconds(F, mu):
    begin = time.perf_counter()
    F.wasserstein_gradient(mu)
    return time.perf_counter() - begin


distances, sizes = torch.logspace(0, 2, 15), (25, 50, 100, 200)
centre = target.mean()
stray = torch.stack([torch.cat([target.points[:-1], (centre + torch.tensor([0.0, d])).unsqueeze(0)]) for d in distances])

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), layout="constrained")
for (name, F), colour in zip(energies.items(), colours.values(), strict=True):
    costs = []
    for n in sizes:
        mu, nu = cloud(n), cloud(n, 0.5)
        G = SinkhornDivergence(nu, blur=F.blur) if "Sinkhorn" in name else MMD(nu, Riesz(1.0))
        costs.append(min(seconds(G, mu) for _ in range(2)))  # at first something may have to be loaded or compiled
    print(f"{name:18s} seconds for a gradient of {n} atoms {costs[-1]:.4f}")
    left.loglog(sizes, costs, marker="o", ms=3, color=colour)
    right.loglog(distances, F(ddeq.DiscreteMeasure(stray)), color=colour, label=name)
left.set_xticks(sizes, sizes)
left.minorticks_off()
left.set(xlabel="atoms in each cloud", ylabel="seconds for a gradient")
right.set(xlabel="how far one atom of a hundred is astray", ylabel="value")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
right.legend(frameon=False, fontsize=8)
plt.show()

# %%
# So: a Sinkhorn divergence for some hundred atoms that are to keep their order and arrive in few steps, with a blur of about
# the detail that counts; an energy distance for many atoms, for data with outliers, or where no length is known.
