"""
Steppers side by side
=====================

*Which stepper when?* A step costs its :term:`gradients <Wasserstein gradient>`, so :term:`steppers <stepper>` are compared at
the same number of them: on an :term:`energy` that is smooth and stiff, on one with kinks, and where the path in time is wanted.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import AdaptiveEuler, Euler, Heun, Nesterov, Proximal
from ddeq.functionals import MMD, PotentialEnergy
from ddeq.iteration import Stop
from ddeq.kernels import Gaussian, Riesz


class Counted(ddeq.Functional):
    """Another functional, whose gradients are counted."""

    def __init__(self, functional):
        super().__init__()
        self.functional, self.gradients = functional, 0

    def forward(self, mu):
        return self.functional(mu)

    def wasserstein_gradient(self, mu, x=None):
        self.gradients += 1
        return self.functional.wasserstein_gradient(mu, x)


def gradients_and_energies(F, start, stepper, steps):
    """How many gradients led to some of the steps, and the energies there."""
    F, seen = Counted(F), []
    some = sorted({min(round(1.1**k), steps - 1) for k in range(80)})
    # When a step is looked at the gradient there is known already, and led nowhere yet.
    flow = ddeq.flow(F, start, stepper=stepper, steps=steps, record=some, callback=lambda report: seen.append(F.gradients - 1))
    return [seen[step] for step in some], flow.energies[1:-1]


colours = {"Euler": "#1f3b57", "Heun": "#8a8f98", "Nesterov": "#4f9fc4", "AdaptiveEuler": "#d1495b", "Proximal": "#e0a030"}


def compare(axis, F, start, steppers, budget):
    for stepper in steppers:
        name = type(stepper).__name__
        steps = {Heun: budget // 2, Proximal: 5}.get(type(stepper), budget)
        falling = callable(stepper.step_size)
        look = {"ls": "--" if falling else "-", "marker": "o" if name == "Proximal" else None, "ms": 3, "lw": 1.4}
        gradients, energies = gradients_and_energies(F, start, stepper, steps)
        axis.loglog(gradients, energies, color=colours[name], label=name + ", falling steps" * falling, **look)
    axis.set(xlabel="gradients", ylabel="energy", xlim=(0.9, budget))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


generator = torch.Generator().manual_seed(0)
start = ddeq.DiscreteMeasure(torch.randn(20, 2, generator=generator).double())
target = ddeq.DiscreteMeasure(torch.randn(20, 2, generator=generator).double() + 2.0)

# %%
# *Smooth and stiff*: a valley in ten dimensions, the walls a hundred times as steep as the floor. Steps of one size are held
# down by the walls. `Nesterov` gathers momentum. `AdaptiveEuler` finds its steps itself, nobody has to know the walls; it also
# computes an energy or two for each gradient. `Proximal` :term:`steps <proximal step>` are as long as one likes, and each is a
# problem of its own.
#
# *Kinks*: an :term:`MMD` with a :term:`Riesz kernel`. `AdaptiveEuler` is by far the fastest at first. It ends where atoms sit on
# target points, from where no common step of all atoms lowers the energy. Steps of one size go on until they jump around the
# target. Steps that fall to zero get both right.

steepness = torch.logspace(0, 2, 10).double()
valley = PotentialEnergy(lambda x: 0.5 * (steepness * x.square()).sum(-1))
cloud = ddeq.DiscreteMeasure(torch.randn(20, 10, generator=generator).double())
kinks = MMD(target, Riesz(1.0))

figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
proximal = Proximal(1.0, inner=Stop(rtol=1e-3, max_steps=200))
compare(axes[0], valley, cloud, [Euler(0.015), Heun(0.015), Nesterov(0.01), AdaptiveEuler(), proximal], budget=200)
falling = Euler(lambda k: 0.8 * (1 - k / 400))
compare(axes[1], kinks, start, [Euler(0.4), falling, Nesterov(0.1), AdaptiveEuler()], budget=400)
axes[0].set(title="smooth and stiff", ylim=(1e-10, 1e3))
axes[1].set(title="with kinks")
plt.show()

# %%
# *Where the path in time is wanted* the order counts. The error at time 4 of a flow that never feels anything stiff:

F, time = MMD(target, Gaussian(1.5)), 4.0
exact = ddeq.flow(F, start, stepper=Heun(time / 100), steps=100, record=100).measure.points

figure, axis = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
for stepper in (Euler, Heun, Proximal):
    gradients, errors = [], []
    for steps in (4, 8, 16, 32):
        counted = Counted(F)
        end = ddeq.flow(counted, start, stepper=stepper(time / steps), steps=steps, record=steps).measure
        gradients.append(counted.gradients)
        errors.append((end.points - exact).square().sum(-1).mean().sqrt())
    axis.loglog(gradients, errors, marker="o", ms=3, lw=1.4, color=colours[stepper.__name__], label=stepper.__name__)
axis.set(xlabel="gradients", ylabel="error of the atoms, root mean square")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=8)
plt.show()
