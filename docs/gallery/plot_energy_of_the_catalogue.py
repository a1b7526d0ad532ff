"""
An energy put together from the catalogue
=========================================

*Can I combine what is there, and train a part of it?* :doc:`The catalogue </theory/t03_catalogue>` of the library is
`ddeq.functionals`. :term:`Energies <energy>` add and scale, and each part is an ``nn.Module``. A cloud is drawn to a target,
kept from crowding by an :term:`entropy`, and pushed out of a region by a :term:`potential` whose place and width are
parameters.
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


# %%
# - `MMD` with a Riesz kernel, half an :term:`energy distance`, draws the atoms to the target.
# - `Entropy` falls as they spread. It takes the density of the atoms from a kernel of the :term:`bandwidth` 0.15 around each.
# - `PotentialEnergy` of the hill is the mean height at which they are, so they slide down its sides.

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
# The derivatives of a sum are sums of those of its parts, each by the formula that the part has for them. On the left most atoms
# come to lie on the ring; in the middle the entropy spreads them to both sides of it; on the right the hill, whose top is in the
# middle of the ring, keeps its inside free. Steps fall, since the energy distance has kinks where atoms meet target points:
# steps of one size would jump around them.

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
# Gradients reach the parameters of the parts: how the force on the atoms (the :term:`Wasserstein gradient` with the sign
# reversed) depends on the hill, for example, which is what bilevel problems differentiate: those that tune an energy for what
# comes out when it is descended. Printed are the derivatives of the sum of squared forces in the place of the top and in the
# logarithm of the width. The latter is negative: a wider hill is less steep where the atoms start, and pushes them less.

force = energies["MMD + 0.02 Entropy + Hill"].wasserstein_gradient(start)
print(torch.autograd.grad(force.square().sum(), list(hill.parameters())))
