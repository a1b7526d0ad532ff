"""
Collapse, and marks that prevent it
===================================

*Why do all atoms of my equilibrium end in one place?* Because nothing tells them apart. A map on :term:`measures <measure>`
moves each :term:`atom` by a rule that depends on its place and on the measure as a whole, and on nothing else. If it is a
:term:`contraction`, atoms that are apart come closer in every step, for ever. :term:`Marks <mark>`, numbers that an atom bears
and that never move, are the remedy.
"""

import warnings

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.iteration import Stop
from ddeq.nn import (
    DDEQ,
    EquilibriumCell,
    GaussianReference,
    InducedSetEncoder,
    LearnedReference,
    effective_support,
    measure_attention,
)
from ddeq.viz import plot_measure

# %%
# The map: each atom looks at a heart, from where it is and from where the atoms are on average, and goes a part of the way
# to the mean of what it sees. What it sees are the points of the heart, weighed by a softmax of scalar products:
# attention. The mark, if there is one, is a direction in which the atom looks besides. All points of the heart are within
# a distance of two from each other, which makes this a contraction with a factor of at most
# 0.6 + 0.4 (0.3 + 0.5) / √2 ≈ 0.83.

t = torch.linspace(0, 2 * torch.pi, 161)[:-1].double()
outline = [16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()]
heart = ddeq.DiscreteMeasure(torch.stack(outline, -1) / 16)


def look(mu, heart, mean=None):
    mean = mu.mean() if mean is None else mean
    query = 0.3 * mu.points + 0.5 * mean.unsqueeze(-2) + torch.tensor([0.3, 0.4])
    query = query if mu.marks is None else query + 8.0 * mu.marks
    seen = measure_attention(query, heart.points, heart.points, heart.weights)
    return mu.with_points(0.6 * mu.points + 0.4 * seen)


# %%
# The start is drawn by a `GaussianReference`: any number of atoms at random places, with random marks. Once we take the marks
# away, once we leave them. `effective_support` counts the atoms that are apart from each other: between one, all in one
# place, and their number.

reference = GaussianReference(dim=2, mark_dim=2)
start = reference((), heart.points, n=60)
stop = Stop(rtol=1e-10, max_steps=200)

figure, axes = plt.subplots(2, 5, figsize=(10.4, 4.5), sharex=True, sharey=True, layout="constrained")
for row, (name, mu0) in zip(axes, {"no marks": start.with_marks(None), "marks": start}.items(), strict=True):
    iterates = [mu0]
    for _ in range(15):
        iterates.append(look(iterates[-1], heart))
    shown = {f"after {k} steps": iterates[k] for k in (2, 5, 15)}
    end = ddeq.fixed_point(look, mu0, heart, stop=stop).measure
    for axis, (when, mu) in zip(row, {"start": mu0, **shown, "fixed point": end}.items(), strict=True):
        plot_measure(heart, axis, color="#9fb3c8", area=500)
        plot_measure(mu, axis, color="#d1495b", area=1100)
        axis.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
        axis.set_title(f"{when}\neffective support {float(effective_support(mu)):.1f}", fontsize=9)
    row[0].text(-0.03, 0.5, name, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=10)
plt.show()

# %%
# Without marks this had to happen (T5): any permutation of a :term:`fixed <fixed point>` configuration of equal atoms is fixed
# too, a contraction has a single one, so all atoms are at the same place. It makes no difference how good the network inside of
# the map is. The library says so when such a model is made, and counts:

rho = ddeq.DiscreteMeasure(heart.points.float())
torch.manual_seed(0)
encoder = InducedSetEncoder(2, 32)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    bare = DDEQ(encoder, EquilibriumCell(32, mark_dim=0), LearnedReference(60, 32, mark_dim=0))
print(f"{said[0].category.__name__}: {said[0].message}\n")
marked = DDEQ(encoder, EquilibriumCell(32, mark_dim=8), GaussianReference(32, mark_dim=8, n=60))
with torch.no_grad():
    print(f"effective support of 60 atoms: {float(effective_support(bare(rho).measure)):.1f} without marks")
    for n in (60, 240):
        print(f"effective support of {n} atoms: {float(effective_support(marked(rho, n=n).measure)):.1f} with marks")

# %%
# Independent marks have another virtue. Where an atom ends depends on its own mark and on means over the others, so the atoms
# sample one :term:`equilibrium`, which has infinitely many: their number may be changed after the fact, training included. An
# atom of a sample of n is not quite where it would be among infinitely many. Its root mean square distance from there falls like
# the inverse root of n (T6). Here, over 40 draws each:

generator = torch.Generator().manual_seed(0)
limit = ddeq.fixed_point(look, reference((), heart.points, n=200_000, generator=generator), heart, stop=stop).measure.mean()
sizes, errors, shown = (5, 20, 80, 320, 1280), [], {}
for n in sizes:
    draws = [reference((), heart.points, n=n, generator=generator) for _ in range(40)]
    mu0 = ddeq.DiscreteMeasure.stack(draws)
    ours = ddeq.fixed_point(look, mu0, heart, stop=stop).measure
    among_all = ddeq.fixed_point(look, mu0, heart, limit, stop=stop).measure
    errors.append(float((ours.points - among_all.points).square().sum(-1).mean().sqrt()))
    shown[n] = ours[0]

figure = plt.figure(figsize=(10.4, 2.8), layout="constrained")
*panels, axis = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.35))
for panel, n in zip(panels, (20, 80, 1280), strict=True):
    plot_measure(heart, panel, color="#9fb3c8", area=500)
    plot_measure(shown[n], panel, color="#d1495b")
    panel.set_title(f"{n} atoms", fontsize=10)
axis.loglog(sizes, errors, marker="o", ms=4, color="#d1495b", label="error")
axis.loglog(
    sizes, [errors[0] * (sizes[0] / n) ** 0.5 for n in sizes], color="#1f3b57", ls="--", lw=1.2, label="inverse root of n"
)
axis.set(xlabel="number n of atoms", ylabel="root mean square distance")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8)
plt.show()
