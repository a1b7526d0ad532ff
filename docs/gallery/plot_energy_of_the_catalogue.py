"""
An energy put together from the catalogue
=========================================

*Can I combine what is there, and train a part of it?* Energies add and scale, and each part is an ``nn.Module``. A
cloud is drawn to a target, kept from crowding by an entropy, and pushed out of a region by a potential whose place and
width are parameters.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import ddeq
from ddeq.functionals import MMD, Entropy, PotentialEnergy
from ddeq.kernels import Riesz
from ddeq.viz import plot_measure


class Hill(nn.Module):
    """A round hill: points ``(*batch, n, 2)`` to heights ``(*batch, n)``."""

    def __init__(self):
        super().__init__()
        self.top = nn.Parameter(torch.tensor([0.0, 0.0]))
        self.log_width = nn.Parameter(torch.tensor(-0.7))

    def forward(self, x):
        return (-(x - self.top).square().sum(-1) / (2 * (2 * self.log_width).exp())).exp()


generator = torch.Generator().manual_seed(1)
angle = torch.linspace(0, 2 * torch.pi, 61)[:-1]
ring = ddeq.DiscreteMeasure(torch.stack([1.3 * angle.cos(), angle.sin()], -1))
start = ddeq.DiscreteMeasure(torch.randn(120, 2, generator=generator) * 0.2)
hill = Hill()
energies = {
    "MMD": MMD(ring, Riesz(1.0)),
    "MMD + 0.02 Entropy": MMD(ring, Riesz(1.0)) + 0.02 * Entropy(bandwidth=0.15),
    "MMD + 0.02 Entropy + Hill": MMD(ring, Riesz(1.0)) + 0.02 * Entropy(bandwidth=0.15) + PotentialEnergy(hill),
}
print(energies["MMD + 0.02 Entropy + Hill"])

# %%
# Each sum forwards the closed forms of its parts.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharex=True, sharey=True, layout="constrained")
for axis, (name, F) in zip(axes, energies.items(), strict=True):
    with torch.no_grad():
        end = ddeq.flow(F, start, stepper=ddeq.flows.Euler(lambda k: 0.2 / (1 + k / 100)), steps=250).measure
    plot_measure(ring, axis, color="#9fb3c8", area=1400, label="target")
    plot_measure(end, axis, color="#1f3b57", area=1400, label="atoms")
    axis.set_title(name, fontsize=10)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %%
# Gradients reach the parameters of the parts: how the force on the atoms depends on the hill, for example, which is
# what bilevel problems differentiate.

force = energies["MMD + 0.02 Entropy + Hill"].wasserstein_gradient(start)
print(torch.autograd.grad(force.square().sum(), list(hill.parameters())))
