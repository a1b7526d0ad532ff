"""
Mass that has to change its mode
================================

*What does it take to move mass between modes?* :term:`Atoms <atom>` go downhill. If the target has two :term:`modes <mode>` and
too many atoms have started near one of them, the others are out of their reach. A :term:`reaction` moves mass instead of atoms:
the Fisher-Rao part of a :term:`flow` lets atoms grow where the :term:`first variation` is small and shrink where it is large.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, FisherRao, NoiseInjection
from ddeq.functionals import MMD
from ddeq.kernels import Gaussian
from ddeq.viz import plot_energy, plot_measure

# %%
# Two crescents that share the mass equally, and a start with a tenth of its atoms at the right one.

generator = torch.Generator().manual_seed(3)
angle = torch.linspace(0.15, torch.pi - 0.15, 40)
upper = torch.stack([angle.cos() - 2.0, angle.sin()], -1)
lower = torch.stack([angle.cos() + 2.0, 0.4 - angle.sin()], -1)
target = ddeq.DiscreteMeasure(torch.cat([upper, lower]))
cloud = 0.35 * torch.randn(60, 2, generator=generator)
start = ddeq.DiscreteMeasure(torch.cat([cloud[:54] - torch.tensor([2.0, 0.0]), cloud[54:] + torch.tensor([2.0, 0.0])]))

F = MMD(target, Gaussian(0.6))
options = {"stepper": Euler(0.4), "steps": 250, "record": 5, "generator": generator}
fading = NoiseInjection(lambda k: 0.2 * max(0.0, 1.0 - k / 180))
births = FisherRao(5.0, birth_death=True)
trajectories = {
    "transport alone": ddeq.flow(F, start, **options),
    "weights": ddeq.flow(F, start, reaction=FisherRao(5.0), **options),
    "births and deaths": ddeq.flow(F, start, reaction=births, **options),
    "births, deaths, noise": ddeq.flow(F, start, reaction=births, noise=fading, **options),
}

# %%
# Areas are masses, and atoms at the same place share one disc.
#
# - *Transport alone* has no use for the surplus on the left: the atoms push each other away, some of them out of the
#   picture. Few find the other crescent.
# - *Weights*: the atoms on the left shrink and those on the right grow. The mass is right, but there are still only six
#   places on the right, however heavy they are.
# - *Births and deaths*: all weights stay equal, and atoms :term:`jump <births and deaths>` to where mass is wanted. A newborn
#   atom has the place of another one, the same velocity, and so the same place for ever: again a few places, with several atoms
#   each.
# - *A little injected noise* that fades lets newborn atoms part, and the six places become a crescent.


def share_on_the_right(mu):
    return (mu.weights * (mu.points[..., 0] > 0)).sum(-1)


figure, axes = plt.subplots(1, 5, figsize=(10.4, 1.9), sharex=True, sharey=True, layout="constrained")
shown = {"start": start} | {name: trajectory.measure for name, trajectory in trajectories.items()}
for axis, (name, mu) in zip(axes, shown.items(), strict=True):
    plot_measure(target, axis, color="#9fb3c8", area=800)
    plot_measure(mu, axis, color="#d1495b", area=900, alpha=0.8)
    axis.set(xlim=(-3.6, 3.6), ylim=(-2.0, 2.0))
    axis.set_title(f"{name}\n{float(share_on_the_right(mu)):.0%} on the right", fontsize=9)
plt.show()

# %%
# The share of the mass on the right in time, and the energy. Births and deaths are random, so the energy may rise.

figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.8), layout="constrained")
for trajectory, colour in zip(trajectories.values(), ("#1f3b57", "#d1495b", "#e0a030", "#4f9fc4"), strict=True):
    left.plot(trajectory.times, share_on_the_right(trajectory.measures), color=colour)
left.axhline(0.5, color="0.7", lw=0.8, zorder=0)
left.set(xlabel="time", ylabel="share of the mass on the right", ylim=(0, 0.6))
left.spines[["top", "right"]].set_visible(False)
plot_energy(trajectories, right)
right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
plt.show()
