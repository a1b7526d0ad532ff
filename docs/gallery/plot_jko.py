"""
Long steps: the JKO scheme
==========================

*How long may a step of a flow be?* An explicit Euler step follows the gradient where it starts, and overshoots if the step is
too long for the steepest direction. A :term:`proximal step`, named after Jordan, Kinderlehrer and Otto (JKO), goes to the
:term:`measure` that is best when its energy and the way to it are both counted. It may be as long as one likes.
"""

import math

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, Proximal
from ddeq.functionals import Entropy, KLDivergence, PotentialEnergy
from ddeq.iteration import Status, Stop
from ddeq.viz import bare_axes, plot_measure

# %%
# A step of length ``t`` from a measure minimises the energy plus the squared :term:`transport distance <Wasserstein distance>`
# (the least mean squared way that the mass can go) divided by ``2 t``. Where the answer is known (T15):
#
# - for the :term:`potential` ``l |x|² / 2`` each atom is divided by ``1 + t l``; Euler multiplies it by ``1 - t l``, which grows
#   beyond all bounds for ``t l > 2``;
# - for the :term:`entropy`, which spreads mass like heat does, a Gaussian stays one, and its standard deviation ``s`` becomes
#   ``(s + sqrt(s² + 4 t)) / 2``. Euler adds ``t / s``.
#
# Discs are steps of the library. The entropy is that of the measure smoothed by a little kernel, so that atoms have a
# density; the discs lie below the line by its bias and by what 200 atoms can show of a Gaussian.

inner = Stop(rtol=1e-3, max_steps=2000)
quadratic = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
atom = ddeq.DiscreteMeasure(torch.ones(1, 1).double())
rank = (torch.arange(200).double() + 0.5) / 200
gaussian = ddeq.DiscreteMeasure(math.sqrt(2.0) * torch.erfinv(2.0 * rank - 1.0).unsqueeze(-1))


def one_step(F, mu, stepper):
    return ddeq.flow(F, mu, stepper=stepper, steps=1).measure


def deviation(mu):
    return mu.covariance().squeeze().sqrt()


times, line, s = torch.tensor([0.1, 0.3, 0.7, 1.2, 1.8, 2.5]).double(), torch.linspace(0.0, 2.7, 100), deviation(gaussian)
place = {
    stepper: torch.stack([one_step(quadratic, atom, stepper(float(t))).points.squeeze() for t in times])
    for stepper in (Euler, Proximal)
}
spread = torch.stack([deviation(one_step(Entropy(0.2), gaussian, Proximal(float(t), inner=inner))) for t in times])
exact = (s + (s**2 + 4 * times).sqrt()) / 2
print(f"potential: largest relative error {float((place[Proximal] * (1 + times) - 1).abs().max()):.0e}")
print(f"entropy:   largest relative error {float((spread / exact - 1).abs().max()):.1%}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), layout="constrained")
left.plot(line, 1 - line, color="#1f3b57", lw=1.2)
left.plot(times, place[Euler], "o", ms=5, color="#1f3b57", label="Euler")
left.plot(line, 1 / (1 + line), color="#d1495b", lw=1.2)
left.plot(times, place[Proximal], "o", ms=5, color="#d1495b", label="Proximal")
left.plot(line, (-line).exp(), color="#8796a5", lw=1.2, ls="--", label="the flow itself")
left.axhspan(-1.9, -1.0, color="0.94", zorder=0)
left.text(0.05, -1.45, "grows from step to step", fontsize=8, color="0.4", va="center")
left.set(xlabel="length of the step, times l", ylabel="place after one step from 1", ylim=(-1.9, 1.1))
right.plot(line, s + line / s, color="#1f3b57", lw=1.2, label="Euler")
right.plot(line, (s + (s**2 + 4 * line).sqrt()) / 2, color="#d1495b", lw=1.2)
right.plot(times, spread, "o", ms=5, color="#d1495b", label="Proximal")
right.plot(line, (s**2 + 2 * line).sqrt(), color="#8796a5", lw=1.2, ls="--", label="the flow itself")
right.set(xlabel="length of the step", ylabel="standard deviation after one step")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
plt.show()

# %%
# Now both at once, and no formula: the :term:`Kullback-Leibler divergence <KL divergence>` (potential and entropy together) to a
# density along a bent valley. Its walls allow Euler steps of about 0.01; steps of 0.03 blow up. Ten proximal steps of 0.5 go as
# far in time as 500 of Euler's. The first one falls into the valley, the others spread the cloud along it.

across, bend, width = 1.2, 0.4, 0.25


def log_density(x):
    height = x[..., 1] - bend * (x[..., 0].square() - across**2)
    return -0.5 * (x[..., 0] / across).square() - 0.5 * (height / width).square()


generator = torch.Generator().manual_seed(0)
start = ddeq.DiscreteMeasure(0.25 * torch.randn(100, 2, generator=generator) + torch.tensor([-2.0, 3.0]))
F = KLDivergence(log_density, bandwidth=0.2)
loose = Stop(rtol=1e-2, max_steps=1000)
flows = {
    "Euler, 0.01": ddeq.flow(F, start, stepper=Euler(0.01), steps=500),
    "Euler, 0.03": ddeq.flow(F, start, stepper=Euler(0.03), steps=200, record=1),
    "Proximal, 0.5": ddeq.flow(F, start, stepper=Proximal(0.5, inner=loose), steps=10, record=1),
}
for name, flow in flows.items():
    status, energy = Status(int(flow.status)).name, float(flow.energies[-1])
    print(f"{name:14s} {int(flow.steps):4d} steps, {status}, energy at the end {energy:.3g}")

x, y = torch.linspace(-4.0, 4.0, 200), torch.linspace(-1.6, 5.4, 200)
density = log_density(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
figure, axes = plt.subplots(1, 4, figsize=(10.4, 2.3), sharex=True, sharey=True, layout="constrained")
jko = flows["Proximal, 0.5"].measures
shown = {"start": start, "Proximal, 1 step of 0.5": jko[1], "Proximal, 10 steps": jko[10]}
shown["Euler, 500 steps of 0.01"] = flows["Euler, 0.01"].measure
for axis, (name, mu) in zip(axes, shown.items(), strict=True):
    axis.contour(x, y, density, levels=[-8, -4.5, -2, -0.5], colors="#9fb3c8", linewidths=1.0, linestyles="solid", zorder=0)
    plot_measure(mu, axis, color="#d1495b" if "Proximal" in name else "#1f3b57")
    axis.set_title(name, fontsize=10)
    bare_axes(axis)
plt.show()

# %%
# A proximal step is a problem of minimisation of its own, so it costs many gradients; ``inner`` says how well it is solved.
# It pays where the energy is stiff, and where an energy must never rise. The path in time is followed to first order only,
# as the dashed lines show: long steps come late. :doc:`Steppers side by side <plot_which_stepper>` counts gradients.
