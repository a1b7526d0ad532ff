"""
A closed form of your own, and what goes wrong without one
==========================================================

*When is one method not enough, and how would I notice a mistake?* A :term:`functional` gives a :term:`measure`, points with
weights, a number; its :term:`first variation` says how the number changes when a little mass is added at a place. A formula for
that, a closed form, may be faster than automatic differentiation; it overrides the default, and the same check compares the two.
The check also finds functions of arrays that are no functions of measures.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.functionals import Functional, Smoothness
from ddeq.testing import check_functional

# %%
# The example wants atoms :math:`x_i` of masses :math:`w_i` to have a given mean :math:`m` and second moment :math:`S`. With the
# excesses :math:`a = \sum_i w_i x_i - m` and :math:`b = \sum_i w_i x_i x_i^\top - S` its value is
# :math:`\frac12 |a|^2 + \frac12 |b|^2`, half the sum of all their squared entries. A little mass :math:`\varepsilon` more at
# :math:`x` adds :math:`\varepsilon x` to :math:`a` and :math:`\varepsilon x x^\top` to :math:`b`, and so
# :math:`\varepsilon (a \cdot x + x^\top b x)` to the value. What is in the brackets is the first variation; without ``x`` it is
# asked for at the atoms. ``smoothness`` says where there are second derivatives: everywhere.


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
# Four wrong ones, each a mistake that is easy to make. The message names the law that is broken, by the number of its
# :term:`statement` in the theory. A *probe* is an atom of mass zero, put at a place to ask for the first variation there: it is
# the derivative in the weight of the probe.
#
# - ``UnweightedSum`` forgets the masses: an atom that is stored as two halves counts twice.
# - ``LivingAtomsOnly`` has the right value, but skips probes: its derivative in their weights is zero.
# - ``LogarithmOfWeights``, a softmax weighted by mass, has the right value too, but the logarithm of a probe's weight is
#   infinite.
# - ``WrongFactor`` has a closed form that is twice too large.


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
# The right one as a landscape: the colour is its first variation at every point of the plane, for a cloud that is not yet where
# it should be. Atoms go down, against the :term:`Wasserstein gradient`, as the arrows show; a :term:`flow` takes many such
# steps. The landscape changes as they go, and is flat once the moments are right: so they do not all run into the dark corner.

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
