"""
One posterior, two ways to it
=============================

*Do SVGD and Langevin find the same posterior?* Both minimise the :term:`Kullback-Leibler divergence <KL divergence>` from a
density that is known up to a constant. :term:`Langevin noise` does so for the distribution of a particle: the :term:`entropy`
is in the noise. :term:`Stein variational gradient descent <SVGD>` (SVGD) is deterministic: the entropy is a repulsion between
atoms. In both no density of the atoms is estimated.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, Langevin, Nesterov, Stein
from ddeq.functionals import KLDivergence, PotentialEnergy
from ddeq.viz import bare_axes, plot_measure

# %%
# A banana: the first coordinate is normal, and the second one normal around a parabola, so that all moments are known.

spread, bend, width = 1.2, 0.4, 0.5


def log_density(x):
    across = x[..., 1] - bend * (x[..., 0].square() - spread**2)
    return -0.5 * (x[..., 0] / spread).square() - 0.5 * (across / width).square()


def moments(mu):
    x, y = mu.points.double().unbind(-1)
    values = torch.stack([x, y, x**2, y**2, x * y, x**2 * y])
    return values @ mu.weights.double()


exact = torch.tensor([0.0, 0.0, spread**2, 2 * bend**2 * spread**4 + width**2, 0.0, 2 * bend * spread**4]).double()

# %%
# For Langevin noise the functional is the :term:`potential` alone, as the noise stands for the entropy. For SVGD it is the whole
# divergence; its bandwidth is that of the :term:`blob <blob method>`, which enters the recorded energies and not the flow.

generator = torch.Generator().manual_seed(0)
cloud = 0.5 * torch.randn(5000, 2, generator=generator)
few, many = ddeq.DiscreteMeasure(cloud[:120]), ddeq.DiscreteMeasure(cloud)
potential, divergence = PotentialEnergy(lambda x: -log_density(x)), KLDivergence(log_density, bandwidth=0.2)
svgd = {"geometry": Stein(), "steps": 400, "record": 400}
langevin = {"stepper": Euler(0.01), "steps": 1000, "noise": Langevin(1.0), "generator": generator, "record": 1000}
ends = {
    "SVGD, Euler, 120 atoms": ddeq.flow(divergence, few, stepper=Euler(0.2), **svgd).measure,
    "SVGD, Nesterov, 120 atoms": ddeq.flow(divergence, few, stepper=Nesterov(0.2), **svgd).measure,
    "Langevin, 120 atoms": ddeq.flow(potential, few, **langevin).measure,
    "Langevin, 5000 atoms": ddeq.flow(potential, many, **langevin).measure,
}

# %%
# Yes, with different errors. The moments of SVGD owe nothing to luck. It reaches the tails late, which momentum mends,
# and a kernel as wide as the median distance does not see how atoms lie within it: there they clump. Langevin atoms are
# independent samples: 120 of them are off by what 120 samples are off, and 5000 by less. A bias of the step size stays
# (T14).

table = {"exact": exact} | {name: moments(mu) for name, mu in ends.items()}
print(" " * 26 + "".join(f"{name:>8s}" for name in ("E x", "E y", "E x²", "E y²", "E xy", "E x²y")))
for name, row in table.items():
    print(f"{name:26s}" + "".join(f"{value:8.3f}" for value in row.tolist()))

x, y = torch.linspace(-4.4, 4.4, 200), torch.linspace(-2.9, 5.4, 200)
density = log_density(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharex=True, sharey=True, layout="constrained")
for axis, (name, mu) in zip(axes, list(ends.items())[1:], strict=True):
    axis.contour(x, y, density, levels=[-8, -4.5, -2, -0.5], colors="#9fb3c8", linewidths=1.0, linestyles="solid", zorder=0)
    plot_measure(mu, axis, color="#d1495b" if "SVGD" in name else "#1f3b57")
    axis.set(xlim=(-4.4, 4.4), ylim=(-2.9, 5.4))
    axis.set_title(name, fontsize=10)
    bare_axes(axis)
plt.show()
