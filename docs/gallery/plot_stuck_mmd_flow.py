"""
A flow that is stuck, and two cures
===================================

*Why does an MMD flow with a Gaussian kernel get stuck, and what cures it?* The :term:`MMD` says how far a :term:`measure`, a set
of points with weights, is from a target. A :term:`flow` descends it by moving the points, the :term:`atoms <atom>`: they are
drawn to those of the target and repel each other, with a force that depends on the distance as the :term:`kernel` says. A
Gaussian kernel does not reach far. Atoms that are several of its widths, its :term:`bandwidths <bandwidth>`, away from the target
feel next to nothing of it: the energy is high, and its gradient vanishes all the same.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, NoiseInjection
from ddeq.functionals import MMD
from ddeq.kernels import Gaussian, Riesz
from ddeq.viz import bare_axes, plot_energy, plot_measure

# %%
# The force of one target point on one atom is the length of the :term:`Wasserstein gradient`; here it is for kernels of
# bandwidth one. Beyond one bandwidth that of a Gaussian kernel falls, and faster than any power of the distance. Two cures:
#
# - *Injected noise* asks for the velocity at a randomly displaced place, so that an atom feels the target now and then.
#   In the mean over the noise this is the force of a wider and weaker kernel, which is drawn here (T17).
# - *A Riesz kernel*, :math:`-|x - y|`, pulls equally hard from everywhere.

noise, distance = 3.0, torch.linspace(0.02, 8.0, 200)
atoms = ddeq.DiscreteMeasure(torch.stack([distance, torch.zeros_like(distance)], -1).unsqueeze(1))  # a batch of single atoms
point = ddeq.DiscreteMeasure(torch.zeros(1, 2))
kernels = {
    "Gaussian": Gaussian(1.0),
    "Gaussian, injected noise": 1.0 / (1.0 + noise**2) * Gaussian((1.0 + noise**2) ** 0.5),
    "Riesz": Riesz(1.0),
}
colours = {"Gaussian": "#1f3b57", "Gaussian, injected noise": "#d1495b", "Riesz": "#e0a030"}

figure, axis = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
for name, kernel in kernels.items():
    force = MMD(point, kernel).wasserstein_gradient(atoms).norm(dim=-1)
    axis.semilogy(distance, force, color=colours[name], label=name)
axis.set(ylim=(1e-8, 5.0), xlabel="distance in bandwidths", ylabel="force")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

# %%
# Now a cloud, and a ring that is out of reach of most of it. Let the injected noise fall to zero: with a fixed one the
# flow ends at the minimum of the wider kernel. Let the steps of the Riesz flow fall: its energy has a kink where atoms
# meet the target, and with a fixed step they would jump around it for ever.

generator = torch.Generator().manual_seed(4)
angle = torch.linspace(0, 2 * torch.pi, 61)[:-1]
ring = ddeq.DiscreteMeasure(torch.stack([5.0 + 1.4 * angle.cos(), 0.4 + 1.4 * angle.sin()], -1))
start = ddeq.DiscreteMeasure(0.4 * torch.randn(60, 2, generator=generator))
steps = 800
fading = NoiseInjection(lambda k: 5.0 * max(0.0, 1.0 - k / (0.8 * steps)))
falling = Euler(lambda k: 0.5 / (1.0 + k / 100.0))

trajectories = {
    "Gaussian": ddeq.flow(MMD(ring, Gaussian(1.0)), start, stepper=Euler(1.0), steps=steps),
    "Gaussian, injected noise": ddeq.flow(
        MMD(ring, Gaussian(1.0)), start, stepper=Euler(1.0), steps=steps, noise=fading, generator=generator
    ),
    "Riesz": ddeq.flow(MMD(ring, Riesz(1.0)), start, stepper=falling, steps=steps),
}

figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), sharex=True, sharey=True, layout="constrained")
for axis, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
    paths = trajectory.measures.points
    axis.plot(paths[..., 0], paths[..., 1], color="#8796a5", lw=0.4, alpha=0.5, zorder=0)
    plot_measure(ring, axis, color="#9fb3c8", area=1200, label="target")
    plot_measure(start, axis, color="#1f3b57", area=600, label="start")
    plot_measure(trajectory.measure, axis, color="#d1495b", area=1000, label="end")
    axis.set_title(name, fontsize=10)
    bare_axes(axis)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
plt.show()

# %%
# The atoms repel each other. Those that are pushed towards the ring come within its reach and are caught; the others are
# pushed away until they feel nobody any more. For all that the flow can see this is the end: nothing moves. The noise
# brings most of them back, and some are left behind when it has faded.
#
# Energies of different kernels cannot be compared, so let one that sees everything judge all three ends: the
# :term:`energy distance`, which is that of the Riesz kernel.

judge = MMD(ring, Riesz(1.0))
for name, trajectory in trajectories.items():
    print(f"{name:26s} half of the energy distance {judge(start):.3f} -> {judge(trajectory.measure):.4f}")

figure, axis = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
plot_energy({name: trajectories[name] for name in ("Gaussian", "Gaussian, injected noise")}, axis)
plt.show()
