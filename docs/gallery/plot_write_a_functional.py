"""
A new energy in one method
==========================

*How much of a functional do I have to write?* Its value, as a function of points and weights. (A :term:`functional` gives a
:term:`measure`, a set of points with weights, a number, as a loss does.) Here the points, called :term:`atoms <atom>`, are to
spread evenly over all directions from the origin, at distance one from it.

A direction is an angle :math:`a`. The Fourier coefficient of order :math:`k` of the directions is the mean of :math:`e^{ika}`
over the atoms, weighted by mass. It is zero where the directions are spread evenly, and of absolute value one where they agree.
So the value that is to be made small is the sum of the squares of the first six, plus ``ring``, the mean squared difference
between the atoms' distances from the origin and one. In the code a point is a complex number ``z``, ``unit`` holds the
:math:`e^{ika}`, and the ``1e-12`` keeps the root differentiable at the origin. Dimensions of ``mu.points`` before the last two
are those of a batch.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.testing import check_functional
from ddeq.viz import plot_energy, plot_measure


class EvenDirections(ddeq.Functional):
    """Sum of the squared Fourier coefficients 1 to 6 of the angles, plus a ring."""

    def forward(self, mu):
        z = torch.complex(mu.points[..., 0], mu.points[..., 1])
        radius = (z.real**2 + z.imag**2 + 1e-12).sqrt()
        order = torch.arange(1, 7, device=z.device).unsqueeze(-1)
        unit = (z / radius).unsqueeze(-2) ** order  # (*batch, 6, n)
        coefficients = (mu.weights.unsqueeze(-2) * unit).sum(-1)
        ring = (mu.weights * (radius - 1.0) ** 2).sum(-1)
        return coefficients.abs().square().sum(-1) + ring


# %%
# The value weighs every atom with its mass and looks at nothing else, so it is a function of the measure: it does not see in
# which order atoms are stored, whether one is stored as two halves, or whether padding was added. `check_functional` holds it to
# that. It also compares with finite differences what the library derives from ``forward``: the :term:`first variation`, which
# says how the value changes when a little mass is added at a place, and the :term:`Wasserstein gradient`, which says which way
# an atom there would have to move for the value to rise fastest. It is silent here: all is well. Otherwise it raises an error
# that names the mistake.

F = EvenDirections()
check_functional(F)

# %%
# That is all that a :term:`flow` needs: gradient descent on the atoms, each against its Wasserstein gradient. Thirty atoms of
# unequal mass start in one corner; every second step is recorded. On the left, their paths; on the right, the value, called
# energy, against time, which is the number of steps times their size. It ends at zero, but for rounding.

generator = torch.Generator().manual_seed(0)
start = ddeq.DiscreteMeasure(
    0.25 * torch.randn(30, 2, generator=generator) + torch.tensor([0.8, 0.5]), torch.rand(30, generator=generator) + 0.1
).normalized()
trajectory = ddeq.flow(F, start, stepper=ddeq.flows.Euler(0.02), steps=800, record=2)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
paths = trajectory.measures.points
left.plot(paths[..., 0], paths[..., 1], color="0.8", lw=0.7, zorder=0)
plot_measure(start, left, color="#e0a030", area=1500, label="start")
plot_measure(trajectory.measure, left, color="#1f3b57", area=1500, label="end")
left.legend(frameon=False, loc="center", fontsize=9)
left.set_title("areas are masses", fontsize=10)
plot_energy(trajectory, right)
plt.show()

# %%
# The masses are unequal, so even directions do not mean equal angles between neighbours: heavy atoms get more room. At new
# points the first variation tells where one more atom would raise or lower the energy. The eight places here go around the
# circle in steps of 45 degrees, from the right upwards. At the start an atom more would raise the energy only at the second one,
# which is in the crowd; at all others it would lower it.

probe = torch.linspace(0, 2 * torch.pi, 9)[:-1]
places = torch.stack([probe.cos(), probe.sin()], -1)
print(F.first_variation(start, places))
