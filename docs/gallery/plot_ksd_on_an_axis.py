"""
A flow that cannot leave an axis
================================

*Why does a KSD flow that starts on an axis stay on it?* Two equal :term:`modes <mode>`, and :term:`atoms <atom>` that start
halfway between them: what pulls to the left and what pulls to the right cancel exactly. A :term:`flow` cannot break a symmetry
that its energy and its start share.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import AdaptiveEuler
from ddeq.functionals import KSD
from ddeq.kernels import Gaussian
from ddeq.viz import bare_axes, plot_measure

# %%
# The target is a mixture of two Gaussians. A :term:`kernel Stein discrepancy <KSD>` asks for nothing but the :term:`score`.

modes = torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double()


def log_density(x):
    return torch.logsumexp(-0.5 * (x.unsqueeze(-2) - modes).square().sum(-1), -1)


def score(x):
    towards = modes - x.unsqueeze(-2)
    share = torch.softmax(-0.5 * towards.square().sum(-1), -1)
    return (share.unsqueeze(-1) * towards).sum(-2)


# %%
# Three starts: on the axis; off it by a thousandth; and off by a tenth, with a kernel of twice the :term:`bandwidth`.

generator = torch.Generator().manual_seed(0)
height, across = torch.randn(2, 40, generator=generator).double()
trajectories = {}
for name, off, bandwidth in (
    ("on the axis", 0.0, 0.5),
    ("off by 0.001", 1e-3, 0.5),
    ("off by 0.1, wide kernel", 0.1, 1.0),
):
    start = ddeq.DiscreteMeasure(torch.stack([off * across, height], -1))
    F = KSD(score, Gaussian(bandwidth))
    trajectories[name] = ddeq.flow(F, start, stepper=AdaptiveEuler(0.1), steps=150, record=1)
    push = F.wasserstein_gradient(start)[:, 0].abs().max()
    print(f"{name:24s} largest gradient across the axis, at the start: {push:.1e}")

x, y = torch.linspace(-4.4, 4.4, 160).double(), torch.linspace(-3.0, 3.0, 120).double()
density = log_density(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.7), sharex=True, sharey=True, layout="constrained")
for axis, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
    paths = trajectory.measures.points
    axis.contour(x, y, density, levels=[-4.5, -2, -0.5], colors="#9fb3c8", linewidths=1.0, linestyles="solid", zorder=0)
    axis.plot(paths[..., 0], paths[..., 1], color="#8796a5", lw=0.5, alpha=0.6, zorder=1)
    plot_measure(trajectory.measures[0], axis, color="#1f3b57", area=400)
    plot_measure(trajectory.measure, axis, color="#d1495b", area=800)
    axis.set(xlim=(-4.4, 4.4), ylim=(-3.0, 3.0))
    axis.set_title(name, fontsize=10)
    bare_axes(axis)
plt.show()

# %%
# - *On the axis* the gradient is its own mirror image, so its part across the axis is zero, not small: the flow finds the
#   best measure on the axis and no other (T17). The energy is far from zero,
#   and nothing else tells that something is wrong: the gradient vanishes.
# - *Slightly off*, and with a kernel that is narrower than the distance between the modes, the axis repels: the
#   atoms leave it and find both modes. A start that is not symmetric is enough.
# - *With a wide kernel* the axis attracts, and atoms that start near it come to it. Then the start has to be further away,
#   or the bandwidth smaller. (Its energy is another one; only that it stays high can be compared.)

figure, axis = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
for (name, trajectory), colour in zip(trajectories.items(), ("#1f3b57", "#d1495b", "#e0a030"), strict=True):
    axis.semilogy(trajectory.energies, color=colour, label=name)
axis.set(xlabel="steps", ylabel="energy, half of KSD²")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8)
plt.show()
