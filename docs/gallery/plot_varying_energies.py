"""
Energies that change in every step
==================================

*What do fresh directions, mini-batches and annealing do to a flow?* A :term:`flow` of :class:`~ddeq.flows.Varying` descends
another :term:`energy` in each step: one that depends on the number of the step, or is drawn from the flow's generator. The
sliced functionals draw their directions anew with ``resample=True``.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import ddeq
from ddeq.flows import Euler, Varying
from ddeq.functionals import MMD, SlicedWasserstein
from ddeq.kernels import Gaussian, Riesz
from ddeq.viz import bare_axes, plot_measure

# %%
# **Fresh directions.** A hundred digits, each a point with :math:`8 \times 8 = 64` coordinates, and 64 directions. Fixed
# ones are as many as the coordinates, and say nothing of how these belong together: the flow lowers their energy to almost
# nothing and stops far from the digits. With as many directions drawn anew in each step, at the same cost, it arrives (varying
# energies, T24).

generator = torch.Generator().manual_seed(0)
images = torch.tensor(load_digits().data, dtype=torch.float32) / 16.0
digits = ddeq.DiscreteMeasure(images[torch.randperm(len(images), generator=generator)[:100]])
noise = ddeq.DiscreteMeasure(0.5 + 0.3 * torch.randn(100, 64, generator=generator))
falling = Euler(lambda k: 40.0 / (1.0 + k / 50.0))
judge = MMD(digits, Riesz(1.0))  # sees everything

flows = {}
for name, resample in (("fixed directions", False), ("fresh directions", True)):
    F = SlicedWasserstein(digits, n_projections=64, resample=resample)
    flows[name] = ddeq.flow(F, noise, stepper=falling, steps=150, record=10, generator=generator)
    end = flows[name].measure
    print(
        f"{name}: own energy {flows[name].energies[-1]:.5f}, half of the energy distance {judge(noise):.2f} -> {judge(end):.4f}"
    )

figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.6), layout="constrained", gridspec_kw={"width_ratios": (1.3, 1, 1, 1)})
for name, colour in (("fixed directions", "#8796a5"), ("fresh directions", "#d1495b")):
    apart = [float(judge(mu)) for mu in flows[name].measures]
    axes[0].semilogy(range(0, 151, 10), apart, color=colour, label=name)
axes[0].set(xlabel="step", ylabel="energy distance, halved")
axes[0].spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=8)
for axis, (name, mu) in zip(axes[1:], {"digits": digits, **{n: t.measure for n, t in flows.items()}}.items(), strict=True):
    tiles = torch.nn.functional.pad(mu.points[:25].reshape(5, 5, 8, 8), (1, 1, 1, 1)).transpose(1, 2).reshape(50, 50)
    axis.imshow(tiles, cmap="Greys", vmin=0.0, vmax=1.0)
    axis.set_title(name, fontsize=10)
    bare_axes(axis)
plt.show()

# %%
# **Mini-batches.** The :term:`MMD` from five atoms of the target, drawn anew in each step: its gradient is right in the mean.
# With a fixed step the flow ends at a mean squared distance from the minimum that is proportional to the step; with steps that
# fall it comes closer and closer. Shown is the norm of the gradient of the whole MMD.

target = ddeq.DiscreteMeasure(torch.randn(400, 2, generator=generator))
whole = MMD(target, Gaussian(1.0))


def batch(step, generator):
    index = torch.randint(target.n, (5,), generator=generator)
    return MMD(ddeq.DiscreteMeasure(target.points[index]), Gaussian(1.0))


start = ddeq.DiscreteMeasure(0.5 * torch.randn(50, 2, generator=generator) + 1.0)
steppers = {"step 1": Euler(1.0), "step 0.1": Euler(0.1), "falling": Euler(lambda k: 1.0 / (1.0 + k / 10.0))}
figure, axis = plt.subplots(figsize=(4.8, 3.0), layout="constrained")
for (name, stepper), colour in zip(steppers.items(), ("#8796a5", "#1f3b57", "#d1495b"), strict=True):
    trajectory = ddeq.flow(Varying(batch), start, stepper=stepper, steps=600, record=10, generator=generator)
    gradients = whole.wasserstein_gradient(trajectory.measures).square().sum(-1).mean(-1).sqrt()
    axis.loglog(range(10, 601, 10), gradients[1:], color=colour, label=name)
axis.set(xlabel="step", ylabel="gradient of the whole MMD")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8)
plt.show()

# %%
# **Annealing.** A Gaussian kernel of bandwidth 0.5 does not reach from this cloud to the ring. One that starts at 8 and narrows
# brings all atoms there, and then finds the shape. Recorded energies are each of its step, and do not compare: judge by one
# that stays.

angle = torch.linspace(0, 2 * torch.pi, 61)[:-1]
ring = ddeq.DiscreteMeasure(torch.stack([5.0 + 1.4 * angle.cos(), 0.4 + 1.4 * angle.sin()], -1))
cloud = ddeq.DiscreteMeasure(0.4 * torch.randn(60, 2, generator=generator))


def width(step):
    return max(0.5, 8.0 * 0.98**step)


ends = {
    "bandwidth 0.5": ddeq.flow(MMD(ring, Gaussian(0.5)), cloud, stepper=Euler(0.3), steps=400),
    "falling from 8 to 0.5": ddeq.flow(
        Varying(lambda step, generator: MMD(ring, Gaussian(width(step)))),
        cloud,
        stepper=Euler(lambda k: 1.2 * width(k) ** 2),  # the longest safe step is 1.38 times the squared bandwidth
        steps=400,
    ),
}
figure, axes = plt.subplots(1, 2, figsize=(8.0, 3.0), sharex=True, sharey=True, layout="constrained")
for axis, (name, trajectory) in zip(axes, ends.items(), strict=True):
    plot_measure(ring, axis, color="#9fb3c8", area=1200, label="target")
    plot_measure(cloud, axis, color="#1f3b57", area=500, label="start")
    plot_measure(trajectory.measure, axis, color="#d1495b", area=900, label="end")
    axis.set_title(f"{name}: half of the energy distance {MMD(ring, Riesz(1.0))(trajectory.measure):.4f}", fontsize=9)
    bare_axes(axis)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
plt.show()
