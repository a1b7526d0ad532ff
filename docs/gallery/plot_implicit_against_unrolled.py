"""
Implicit against unrolled gradients
===================================

*Must autograd record the whole solve for a gradient of a fixed point?* It can, and keeps every step of it in memory. At the
solution the equation that it solves says as much: :term:`one linear equation <adjoint equation>` gives the same gradient,
however many steps it took to get there. Two cheaper ways give something else.
"""

import timeit
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn

import ddeq
from ddeq.functionals import MMD
from ddeq.iteration import Stop
from ddeq.solvers import Implicit, OneStep, Phantom, Picard, Unrolled, spectral_radius

# %%
# A map on measures in eight dimensions. It turns the atoms and moves them by their mean and by their :term:`marks <mark>`,
# numbers that travel with an atom and never move; ``growth`` says how strongly. The loss compares the :term:`fixed point` with a
# target by an :term:`MMD`, a distance of measures from a kernel.


class Cell(nn.Module):
    def __init__(self, growth, width=8):
        super().__init__()
        torch.manual_seed(1)  # they differ by their growth alone
        self.turn, self.mean = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.mark = nn.Linear(2, width)
        nn.init.orthogonal_(self.turn.weight, growth)
        nn.init.orthogonal_(self.mean.weight, 0.2 * growth)

    def forward(self, mu):
        h = self.turn(mu.points) + self.mean(mu.mean()).unsqueeze(-2) + self.mark(mu.marks)
        return mu.with_points(torch.sin(h))


torch.manual_seed(0)
start = ddeq.DiscreteMeasure(torch.randn(256, 8).double(), marks=0.3 * torch.randn(256, 2).double())
target = MMD(ddeq.DiscreteMeasure(torch.randn(64, 8).double()))


def gradient(cell, stop, adjoint):
    """The gradient in all parameters, and how many megabytes autograd keeps for it when backward begins."""
    kept = {}

    def look(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        loss = target(ddeq.fixed_point(cell, start, solver=Picard(), stop=stop, adjoint=adjoint).measure)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(cell.parameters()))]), sum(kept.values()) / 1e6


# %%
# The map at a :term:`spectral radius` (the size of the largest eigenvalue of its derivative) just below one, solved by `Picard`,
# which applies it again and again, to tolerances that it meets after 10 to 320 steps. `Implicit` solves its linear equation to
# the same tolerance. ``Unrolled(checkpoint=True)`` keeps the iterates only and evaluates the map again on the way back.

exact = Stop(rtol=1e-12, atol=0.0, max_steps=1000)
cell, steps = Cell(1.0).double(), (10, 20, 40, 80, 160, 320)
truth, _ = gradient(cell, exact, Implicit())
trace = ddeq.fixed_point(cell, start, solver=Picard(), stop=exact, trace=True).trace
ways = {
    "Implicit": (Implicit(), "#1f3b57", "-"),
    "Unrolled": (Unrolled(), "#d1495b", "-"),
    "Unrolled, checkpoint": (Unrolled(checkpoint=True), "#e0a030", "--"),
}

figure, axes = plt.subplots(1, 3, figsize=(10.4, 3.4), layout="constrained")
for name, (adjoint, colour, dashes) in ways.items():
    errors, megabytes, milliseconds = [], [], []
    for k in steps:
        stop = Stop(rtol=1.001 * float(trace[k]), atol=0.0, max_steps=1000)
        found, kept = gradient(cell, stop, adjoint)
        milliseconds.append(1e3 * min(timeit.repeat(partial(gradient, cell, stop, adjoint), number=1, repeat=3)))
        errors.append(float((found - truth).norm() / truth.norm()))
        megabytes.append(kept)
    for axis, values in zip(axes, (errors, megabytes, milliseconds), strict=True):
        axis.loglog(steps, values, color=colour, ls=dashes, marker="o", ms=3.5, lw=1.5, label=name)
    print(f"{name:22s}{megabytes[0]:.2f} MB for 10 steps, {megabytes[-1]:.2f} MB for 320, where the error is {errors[-1]:.0e}")
for axis, title in zip(axes, ("relative error of the gradient", "kept for backward, MB", "time, ms"), strict=True):
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("steps of the solve")
    axis.tick_params(axis="y", which="minor", labelleft=False)
    axis.spines[["top", "right"]].set_visible(False)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
plt.show()

# %%
# They agree on the gradient as far as the tolerance goes (T7), and take much the
# same time. What unrolling keeps grows with the steps. What the implicit way keeps does not: nearly all of it is the loss's
# own.
#
# `OneStep` and `Phantom` do not solve the linear equation. Its solution is a series with a term for each application of the map,
# and they take the first term, or the first few. How much is missing depends on how well the map
# :term:`contracts <contraction>`.

figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.2), layout="constrained")
applications = range(1, 21)
for growth, colour in zip((0.5, 0.8, 1.0), ("#9fb3c8", "#1f3b57", "#d1495b"), strict=True):
    cell, angles, lengths = Cell(growth).double(), [], []
    truth, _ = gradient(cell, exact, Implicit())
    for k in applications:
        found, _ = gradient(cell, exact, OneStep() if k == 1 else Phantom(k))
        u, v = found / found.norm(), truth / truth.norm()
        angles.append(float(torch.rad2deg(2 * torch.atan2((u - v).norm(), (u + v).norm()))))
        lengths.append(float(found.norm() / truth.norm()))
    radius = float(spectral_radius(cell, ddeq.fixed_point(cell, start, stop=exact).measure))
    for axis, values in zip(axes, (angles, lengths), strict=True):
        axis.plot(applications, values, color=colour, marker="o", ms=3.5, lw=1.5, label=f"spectral radius {radius:.2f}")
    for name, k in (("OneStep()", 0), ("Phantom(5)", 4)):
        print(f"spectral radius {radius:.2f}: {name} is {angles[k]:.0f} degrees off, its length {lengths[k]:.2f} of the true one")
axes[0].set_ylabel("degrees from the true gradient")
axes[1].set_ylabel("length, of the true one")
for axis in axes:
    axis.set(xlabel="applications of the map", xticks=(1, 5, 10, 15, 20), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %%
# All of them point downhill, so training goes on with any of them, and in the early days of it nobody may notice. As the map
# comes to contract less, what they leave out becomes most of the gradient. `Phantom` is a fair price where a penalty holds
# the map to contract; where a gradient has to be right, as in an inverse problem, take `Implicit`, the default.
