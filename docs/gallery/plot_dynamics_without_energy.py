"""
Dynamics without an energy
==========================

*How does one follow dynamics that descend nothing: an optimiser made of a swarm, a chase, a learned flow?* A
:class:`~ddeq.flows.VelocityField` gives each :term:`atom` a velocity that may depend on the whole :term:`measure`, and
:func:`ddeq.flow` follows it. It is recorded, saved and seeded as any :term:`flow`; its energies are None. Here are three.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import ddeq
from ddeq.flows import Euler, Heun, Varying, VelocityField
from ddeq.viz import bare_axes

# %%
# **A swarm that minimises.** In consensus-based optimisation atoms drift towards a weighted mean, whose weights
# :math:`e^{-\alpha f}` prefer those where :math:`f` is small, and are shaken by noise that is as large as their way there. No
# gradient of :math:`f` is taken. The noise is drawn once per step from the flow's generator: that makes the field
# :class:`~ddeq.flows.Varying`. Rastrigin's function in ten dimensions has a minimum at about every point with whole
# coordinates, and is least at 0.

generator = torch.Generator().manual_seed(0)
dim, tau = 10, 0.1


def rastrigin(x):
    return (x.square() - 10.0 * (2.0 * torch.pi * x).cos() + 10.0).sum(-1)


def consensus(step, generator):
    kick = 3.3 * torch.randn(400, dim, generator=generator, dtype=torch.float64) / math.sqrt(tau)

    def velocity(mu, x):
        share = torch.softmax(mu.weights.log() - 30.0 * rastrigin(mu.points), -1)
        away = x - (share.unsqueeze(-1) * mu.points).sum(-2, keepdim=True)
        return (kick - 1.0) * away

    return VelocityField(velocity)


box = ddeq.DiscreteMeasure(4.0 * torch.rand(400, dim, generator=generator, dtype=torch.float64) - 1.5)  # 0 is not its middle
swarm = ddeq.flow(Varying(consensus), box, stepper=Euler(tau), steps=500, generator=generator)
values = rastrigin(swarm.measures.points)
best = swarm.measure.points[values[-1].argmin()]
print(
    f"least value at the start {values[0].min():.1f}, at the end {values[-1].min():.4f}, at a distance {best.norm():.3f} from 0"
)

figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.2), layout="constrained")
left.semilogy(swarm.times, values.min(-1).values, color="#1f3b57", label="least")
left.semilogy(swarm.times, values.median(-1).values, color="#e0a030", label="median")
left.set(xlabel="time", ylabel="Rastrigin's function")
left.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False)
grid = torch.linspace(-2, 3, 200, dtype=torch.float64)
plane = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
right.contourf(grid, grid, rastrigin(plane), levels=12, cmap="Greys", alpha=0.5)
for index, colour in ((0, "#9fb3c8"), (20, "#e0a030"), (-1, "#d1495b")):
    points = swarm.measures.points[index]
    right.scatter(points[:, 0], points[:, 1], s=6, color=colour, label=f"time {swarm.times[index]:.0f}")
right.set(xlim=(-2, 3), ylim=(-2, 3), xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
right.legend(fontsize=8, loc="upper right", framealpha=0.9)
plt.show()

# %%
# **A chase.** Prey keep a distance from each other, stay together, and flee from a predator, who runs to those that are close
# (the model of Chen and Kolokolnikov, 2014). A mark says who is who: it travels with the atom, and nothing moves it. Sums are
# integrals over the measure, so that a prey of twice the mass counts as two. Prey get away from a slow predator, make a ring
# around a faster one, with which both come to rest, and are chased for ever by one that is faster still.


def chase(speed):
    def velocity(mu, x):
        hunts = mu.marks
        prey = mu.weights.unsqueeze(-1) * (1.0 - hunts)
        prey = prey / prey.sum(-2, keepdim=True)
        apart = x.unsqueeze(-2) - mu.points.unsqueeze(-3)
        squared = apart.square().sum(-1, keepdim=True)
        crowd = (prey.unsqueeze(-3) * (apart / (squared + 1e-6) - apart)).sum(-2)
        flee = 0.2 * (hunts.unsqueeze(-3) * apart / (squared + 1e-6)).sum(-2)
        run = -speed * (prey.unsqueeze(-3) * apart / (squared + 1e-3) ** 1.5).sum(-2)
        return torch.where(hunts > 0, run, crowd + flee)

    return VelocityField(velocity)


points = torch.randn(121, 2, generator=generator, dtype=torch.float64)
points[0] = torch.tensor([0.9, 0.0])
marks = torch.zeros(121, 1, dtype=torch.float64)
marks[0] = 1.0
animals = ddeq.DiscreteMeasure(points, marks=marks)
with torch.no_grad():
    hunts = {speed: ddeq.flow(chase(speed), animals, stepper=Heun(0.03), steps=600, record=5) for speed in (0.2, 0.4, 1.5)}

figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.4), layout="constrained")
for axis, (speed, hunt) in zip(axes, hunts.items(), strict=True):
    path = hunt.measures.points[-60:, 0]
    axis.plot(path[:, 0], path[:, 1], color="#d1495b", lw=0.8, alpha=0.6)
    axis.scatter(hunt.measure.points[1:, 0], hunt.measure.points[1:, 1], s=7, color="#1f3b57", label="prey")
    axis.scatter(*hunt.measure.points[0], s=60, marker="*", color="#d1495b", label="predator, and its last way")
    axis.set_title(f"speed {speed}", fontsize=10)
    bare_axes(axis)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
plt.show()

# %%
# **A learned flow.** Flow matching trains a field :math:`v(x, t)` to carry noise to data: at :math:`x_t = (1 - t) z + t y`, noise
# :math:`z` and data :math:`y` drawn independently, it is regressed on :math:`y - z`. Its dynamics start at noise and end, at
# time one, at the data. A field that depends on time is Varying; taken in the middle of each step, Heun's method is of order two
# (varying energies, T24).


def moons(n):
    angle = torch.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1.0 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.8 * torch.stack([x, y], -1) + 0.1 * torch.randn(n, 2, generator=generator)


with torch.random.fork_rng():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
    )
steps = 2000
optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps)
for _ in range(steps):
    data, noise, time = moons(256), torch.randn(256, 2, generator=generator), torch.rand(256, 1, generator=generator)
    loss = (network(torch.cat([(1 - time) * noise + time * data, time], -1)) - (data - noise)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def learned(number):
    def at(step, generator):
        time = (step + 0.5) / number
        return VelocityField(lambda mu, x: network(torch.cat([x, torch.full_like(x[..., :1], time)], -1)))

    return Varying(at)


noise = ddeq.DiscreteMeasure(torch.randn(1000, 2, generator=generator))
with torch.no_grad():
    flowed = ddeq.flow(learned(40), noise, stepper=Heun(1 / 40), steps=40, record=1)

figure, axes = plt.subplots(1, 4, figsize=(9.0, 2.5), sharex=True, sharey=True, layout="constrained")
for axis, index in zip(axes, (0, 20, 32, 40), strict=True):
    points = flowed.measures.points[index]
    axis.scatter(points[:, 0], points[:, 1], s=2, color="#1f3b57")
    axis.set(xlim=(-3.2, 3.2), ylim=(-2.6, 2.6))
    axis.set_title(f"time {flowed.times[index]:.1f}", fontsize=10)
    bare_axes(axis)
plt.show()

# %%
# How far is the end from new data, compared with two draws of data from each other? And does the :term:`energy distance` see it?

distance = ddeq.functionals.MMD(ddeq.DiscreteMeasure(moons(1000)), ddeq.functionals.kernels.Riesz(1.0))
for name, measure in (("noise", noise), ("end of the flow", flowed.measure), ("other data", ddeq.DiscreteMeasure(moons(1000)))):
    print(f"half of the energy distance from data: {name:16s} {distance(measure):.4f}")
print("energies of these flows:", swarm.energies, hunts[1.5].energies, flowed.energies)
