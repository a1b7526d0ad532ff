"""
Completing a shape
==================

*Can an equilibrium say what is hidden of a shape?* A closed curve with two, three or four lobes lies partly behind a wall. A
small :term:`DDEQ`, a network whose output is a fixed point of a map on measures, sees the part in front of it and places atoms
where it expects the rest.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.functionals import MMD
from ddeq.iteration import Stop
from ddeq.nn import DDEQ, Completer, ContractiveCell, GaussianReference, InducedSetEncoder
from ddeq.solvers import Phantom
from ddeq.viz import bare_axes, plot_measure

# %%
# The shapes are drawn anew for every step of training, so none is seen twice. What is hidden keeps its atoms and loses
# their mass: an atom of mass zero is not there for anything in the library.


def shapes(count, generator, n=48):
    angle = torch.linspace(0, 2 * torch.pi, n + 1)[:-1]
    lobes = torch.randint(2, 5, (count, 1), generator=generator)
    size, depth, turn = torch.rand(3, count, 1, generator=generator)
    radius = (0.65 + 0.15 * size) * (1 + (0.25 + 0.15 * depth) * torch.cos(lobes * (angle + 2 * torch.pi * turn)))
    return ddeq.DiscreteMeasure(radius.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1))


def hide(whole, generator):
    """The part of each shape to the left of a wall, and the part behind it: between 25 and 45 per cent of the atoms."""
    x = whole.points[..., 0]
    first = (whole.n * (0.55 + 0.2 * torch.rand(len(x), 1, generator=generator))).long()
    hidden = x >= x.sort(-1).values.gather(-1, first)
    return whole.with_weights(whole.weights * ~hidden), whole.with_weights(whole.weights * hidden)


# %%
# The :term:`encoder` looks at the known part once. The :term:`cell` is the map whose fixed point is sought; this one is a
# :term:`contraction` by construction (T8), so that there is one and it is found in a few steps. Every atom of the state bears a
# :term:`mark`, a random number that never moves: without marks all atoms would end in the same place (T5). A curve has one
# dimension, and one number for each atom is what it takes to spread them over it. The `Completer` puts each atom at its place,
# and says how much mass is missing.

torch.manual_seed(0)
encoder, cell = InducedSetEncoder(2, 48), ContractiveCell(48, mark_dim=1)
model = DDEQ(encoder, cell, GaussianReference(48, mark_dim=1, n=24), stop=Stop(rtol=1e-2, max_steps=20), adjoint=Phantom(2))
completer = Completer(model)

# %%
# The loss compares the completed measure with the whole one by half an :term:`energy distance`, an MMD (a distance of measures
# from a kernel). Nobody tells which atom belongs where. New marks are drawn in every step.

steps, generator = 1000, torch.Generator().manual_seed(0)
optimizer = torch.optim.AdamW(completer.parameters(), lr=8e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps, pct_start=0.1)
for _ in range(steps):
    whole = shapes(24, generator)
    known, _ = hide(whole, generator)
    loss = MMD(whole)(completer(known, generator=generator).normalized()).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(completer.parameters(), 1.0)
    optimizer.step()
    schedule.step()

# %%
# Shapes that it has not seen, with the 24 atoms of the training and with twice as many. The marks are independent draws,
# so another number of them samples the same completion (T6): more atoms, no other network.

completer.eval()
model.stop = Stop(rtol=1e-4, max_steps=50)
generator = torch.Generator().manual_seed(1)
whole = shapes(200, generator)
known, hidden = hide(whole, generator)
numbers = (24, 48)
with torch.no_grad():
    added = {n: completer.missing(known, n=n) for n in numbers}

figure, axes = plt.subplots(3, 7, figsize=(10.4, 4.9), sharex=True, sharey=True, layout="constrained")
for sample, column in enumerate(axes.T):
    for axis in column:
        plot_measure(known[sample], axis, color="#1f3b57", area=700 * float(known[sample].mass()), label="known")
    for axis, n in zip(column[1:], numbers, strict=True):
        plot_measure(hidden[sample], axis, color="#9fb3c8", area=700 * float(hidden[sample].mass()), label="hidden", zorder=1)
        mu = added[n][sample]
        plot_measure(mu, axis, color="#d1495b", area=700 * float(mu.mass()), label="completed")
for axis, name in zip(axes[:, 0], ("what it sees", *(f"{n} atoms" for n in numbers)), strict=True):
    axis.text(-0.05, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    bare_axes(axis)
figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
plt.show()

# %%
# Lobes are recognised by what is left of them. At the ends of the curves a few atoms stand apart: those with the smallest
# and the largest marks, which training has hardly ever drawn.
#
# How far from the whole, over 200 shapes, and how well it knows how much is missing:

judge = MMD(whole)
with ddeq.reductions.backend("dense"):  # three values are not worth a compilation
    print(f"half of the energy distance to the whole: known part alone {float(judge(known.normalized()).mean()):.4f}")
    for n in numbers:
        distance = float(judge((known + added[n]).normalized()).mean())
        error = float((added[n].mass() - hidden.mass()).abs().mean())
        print(f"    completed with {n} atoms {distance:.4f}, error of the missing share of the mass {error:.3f}")
print(completer.solution.summary())

# %%
# :doc:`Completing shapes </guide/completing_shapes>` goes on: other removals, larger models, evaluation.
