"""
Sparse deconvolution by mass that grows and shrinks
===================================================

*How many spikes made this signal, where are they, and how large?* Of a sum of spikes only a blurred and noisy signal is known.
The unknown is a measure, whose mass is unknown too. A flow with ``FisherRao(conserve=False)`` starts from many small
:term:`atoms <atom>`: those near a spike grow and move to it, all others vanish.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, FisherRao

# %%
# The energy is the squared misfit of the blurred measure, plus a small multiple of the mass, which is what the :math:`\ell^1`
# norm is to vectors (the Beurling LASSO). It is written as a function of the measure, and nothing else need be derived.


class Deconvolution(ddeq.Functional):
    def __init__(self, places, signal, width=0.06, penalty=1e-3):
        super().__init__()
        self.register_buffer("places", places)
        self.register_buffer("signal", signal)
        self.width, self.penalty = width, penalty

    def blurred(self, mu):
        bumps = torch.exp(-0.5 * ((self.places.unsqueeze(-1) - mu.points[..., 0]) / self.width) ** 2)
        return (mu.weights * bumps).sum(-1)

    def forward(self, mu):
        return 0.5 * (self.blurred(mu) - self.signal).square().mean() + self.penalty * mu.mass()


generator = torch.Generator().manual_seed(0)
places = torch.linspace(0, 1, 200, dtype=torch.float64)
spikes = ddeq.DiscreteMeasure(
    torch.tensor([[0.2], [0.5], [0.75]], dtype=torch.float64), torch.tensor([1.0, 0.6, 0.8], dtype=torch.float64)
)
clean = Deconvolution(places, torch.zeros_like(places)).blurred(spikes)
signal = clean + 0.03 * torch.randn(200, generator=generator, dtype=torch.float64)
F = Deconvolution(places, signal)

# %%
# Forty atoms on a grid, of a third of the mass. The reaction is fast next to the transport: first the masses find out where the
# spikes are, then the atoms that are left move there. The penalty takes a little of the amplitudes: of a spike alone, the penalty
# divided by the squared norm of its bump, 0.01 here.

start = ddeq.DiscreteMeasure(torch.linspace(0, 1, 40, dtype=torch.float64).unsqueeze(-1), torch.full((40,), 0.02).double())
options = {"stepper": Euler(0.05), "steps": 600, "record": 5}
grown = ddeq.flow(F, start, reaction=FisherRao(300.0, conserve=False), **options)
conserved = ddeq.flow(F, start, reaction=FisherRao(300.0), **options)
moved = ddeq.flow(F, start, **options)

for place, mass in zip(spikes.points[:, 0].tolist(), spikes.weights.tolist(), strict=True):
    end = grown.measure
    near = end.weights * ((end.points[:, 0] - place).abs() < 0.1)
    where = float((near * end.points[:, 0]).sum() / near.sum())
    print(f"spike of {mass:.2f} at {place:.3f}: found {float(near.sum()):.2f} at {where:.3f}")

# %%
# Above the signal and what the measures explain of it, below the spikes (grey) and the mass of the atoms, added up where several
# lie in the same hundredth. With transport alone, and with a reaction that conserves the mass, there is too little of it; with
# growth the mass is found too.

figure, axes = plt.subplots(2, 3, figsize=(10, 4.4), sharex=True, sharey="row", layout="constrained")
runs = {"transport alone": moved, "mass conserved": conserved, "mass grows": grown}
for (above, below), (name, run) in zip(axes.T, runs.items(), strict=True):
    mu = run.measure
    above.plot(places, signal, ".", color="0.75", ms=3)
    above.plot(places, F.blurred(mu), color="#d1495b", lw=1.8)
    above.set_title(name, fontsize=10)
    below.vlines(spikes.points[:, 0], 0, spikes.weights, color="0.8", lw=6)
    columns, masses = torch.unique((100 * mu.points[:, 0]).round().long(), return_inverse=True)
    masses = torch.zeros(len(columns), dtype=torch.float64).index_add(0, masses, mu.weights)
    live = masses > 1e-3
    below.vlines(columns[live] / 100, 0, masses[live], color="#1f3b57", lw=1.2)
    below.plot(columns[live] / 100, masses[live], "o", color="#1f3b57", ms=3)
    below.set(xlabel="place", ylim=(0, 1.15))
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
axes[0, 0].set_ylabel("signal")
axes[1, 0].set_ylabel("mass")
plt.show()

# %%
# The paths of the atoms with growth, as dark as their masses, and the energies of all three. The :term:`first variation` at the
# end is the certificate: it is about zero at the spikes, and not negative anywhere, so that mass at no other place would lower
# the energy.

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
steps = torch.arange(len(grown.times)) * 5 + 1
for atom in range(start.n):
    shade = (grown.measures.weights[:, atom] / 0.3).clamp(0.02, 1.0)
    left.scatter(steps, grown.measures.points[:, atom, 0], c="#1f3b57", alpha=shade.numpy(), s=2, linewidths=0)
left.set(xlabel="step", ylabel="place", xscale="log")
for (name, run), colour in zip(runs.items(), ("0.6", "#e0a030", "#d1495b"), strict=True):
    middle.plot(steps, run.energies, color=colour, label=name)
middle.set(xlabel="step", ylabel="energy", xscale="log", yscale="log")
middle.legend(frameon=False, fontsize=8)
grid = torch.linspace(0, 1, 400, dtype=torch.float64).unsqueeze(-1)
right.plot(grid[:, 0], F.first_variation(grown.measure, grid), color="#1f3b57")
right.axhline(0, color="0.7", lw=0.8)
right.vlines(spikes.points[:, 0], 0, 2e-3, color="0.8", lw=4, zorder=0)
right.set(xlabel="place", ylabel="first variation", ylim=(-5e-4, 4e-3))
for axis in (left, middle, right):
    axis.spines[["top", "right"]].set_visible(False)
plt.show()
