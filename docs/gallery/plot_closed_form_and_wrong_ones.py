"""
A closed form of your own, and what goes wrong without one
==========================================================

*When is one method not enough, and how would I notice a mistake?* A closed form of the first variation may be faster
than automatic differentiation; it overrides the default, and the same check compares the two. The check also finds
functions of arrays that are no functions of measures.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.functionals import Functional, Smoothness
from ddeq.testing import check_functional


class Moments(Functional):
    r"""Half of the squared distance of mean and second moment from wanted ones; the first variation is written out."""

    smoothness = Smoothness.SMOOTH

    def __init__(self, mean, second):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("second", second)

    def excess(self, mu):
        x, w = mu.points, mu.weights.unsqueeze(-1)
        return (w * x).sum(-2) - self.mean, (w * x).mT @ x - self.second

    def forward(self, mu):
        a, b = self.excess(mu)
        return 0.5 * (a.square().sum(-1) + b.square().sum((-2, -1)))

    def first_variation(self, mu, x=None):
        x = mu.points if x is None else x
        a, b = self.excess(mu)
        return (x * a.unsqueeze(-2)).sum(-1) + ((x @ b) * x).sum(-1)


F = Moments(torch.tensor([1.0, 0.0]).double(), torch.tensor([[2.0, 0.4], [0.4, 0.5]]).double())
check_functional(F)

# %%
# Four wrong ones, each a mistake that is easy to make. The message names the law that is broken.


class UnweightedSum(Functional):
    def forward(self, mu):
        return mu.points.square().sum((-2, -1))


class LivingAtomsOnly(Functional):
    def forward(self, mu):
        return torch.where(mu.weights > 0, mu.weights * mu.points.square().sum(-1), 0.0).sum(-1)


class LogarithmOfWeights(Functional):
    def forward(self, mu):
        return (torch.softmax(mu.points[..., 0] + mu.weights.log(), -1) * mu.points[..., 1]).sum(-1)


class WrongFactor(Moments):
    def first_variation(self, mu, x=None):
        return 2.0 * super().first_variation(mu, x)


for wrong in (UnweightedSum(), LivingAtomsOnly(), LogarithmOfWeights(), WrongFactor(F.mean, F.second)):
    try:
        check_functional(wrong)
    except AssertionError as error:
        print(f"{type(wrong).__name__}: {str(error).split(': got')[0]}\n")

# %%
# The right one as a landscape: its first variation at every point of the plane, for a cloud that is not yet where it
# should be. Atoms go down, along the Wasserstein gradient.

generator = torch.Generator().manual_seed(2)
mu = ddeq.DiscreteMeasure(torch.randn(40, 2, generator=generator).double() * 0.5)
side = torch.linspace(-2.5, 4.0, 80).double()
grid = torch.cartesian_prod(side, side)
landscape = F.first_variation(mu, grid).reshape(80, 80)
force = -F.wasserstein_gradient(mu)
end = ddeq.flow(F, mu, stepper=ddeq.flows.Euler(0.05), steps=200).measure

figure, axis = plt.subplots(figsize=(5, 4.4), layout="constrained")
drawn = axis.contourf(side, side, landscape.T, levels=24, cmap="cividis")
axis.quiver(*mu.points.T, *force.T, color="w", scale=25, width=0.004)
axis.scatter(*mu.points.T, s=12, color="w", edgecolor="0.3", linewidth=0.4, label="start")
axis.scatter(*end.points.T, s=10, color="tab:orange", label="end")
axis.legend(loc="upper left")
axis.set_aspect("equal")
figure.colorbar(drawn, shrink=0.8, label="first variation at the start")
plt.show()
