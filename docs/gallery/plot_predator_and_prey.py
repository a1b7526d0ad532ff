"""
Several measures at once: predator and prey, and a particle min-max game
========================================================================

*How do several measures flow together?* A :term:`flow` takes measures by name. With one functional for each it is a game: each
measure descends its own functional, which reads them all, and no energy falls. Where a game comes to rest is an equilibrium that
can be differentiated.
"""

import matplotlib.pyplot as plt
import torch

from ddeq import DiscreteMeasure, Functional, flow
from ddeq.flows import Euler, Heun, equilibrium
from ddeq.iteration import Stop

D = torch.float64
g = torch.Generator().manual_seed(0)

# %%
# **Predator and prey.** Prey keeps together at a distance and flees predators nearby; predators are drawn to the prey.


def mean_of_pairs(a, b, f):
    """The mean of ``f`` of the distances between the atoms of two measures."""
    r = (a.points.unsqueeze(-2) - b.points.unsqueeze(-3)).square().sum(-1)
    return (a.weights.unsqueeze(-1) * b.weights.unsqueeze(-2) * f(r)).sum((-1, -2))


class Prey(Functional):
    def forward(self, measures):
        prey, predator = measures["prey"], measures["predator"]
        together = mean_of_pairs(prey, prey, lambda r: 0.25 * r - 0.25 * (r + 0.01).log())
        return together + 2.0 * mean_of_pairs(prey, predator, lambda r: torch.exp(-r / 0.5))


class Predator(Functional):
    def forward(self, measures):
        return mean_of_pairs(measures["predator"], measures["prey"], lambda r: 0.15 * r)


start = {
    "prey": DiscreteMeasure(torch.randn(60, 2, generator=g, dtype=D)),
    "predator": DiscreteMeasure(0.2 * torch.randn(3, 2, generator=g, dtype=D) + torch.tensor([3.0, 0.5], dtype=D)),
}
chase = flow({"prey": Prey(), "predator": Predator()}, start, stepper=Heun(0.05), steps=200, record=10)
print({name: round(energies[-1].item(), 3) for name, energies in chase.energies.items()})

# %%
# **A min-max game.** Particles x minimise and particles y maximise a payoff that is strongly convex in x and strongly concave
# in y. Euler's steps converge to the equilibrium. Without convexity, for the payoff ``x y``, they spiral outwards by
# ``sqrt(1 + tau**2)`` in each step (systems, T23).


class Payoff(Functional):
    def __init__(self, sign, convexity):
        super().__init__()
        self.sign = sign
        self.register_buffer("convexity", convexity)

    def forward(self, measures):
        x, y = measures["x"], measures["y"]
        coupling = x.mean().squeeze(-1) * y.mean().squeeze(-1)
        own = (x.weights * x.points.squeeze(-1) ** 2).sum(-1) - (y.weights * (y.points.squeeze(-1) - 0.5) ** 2).sum(-1)
        return self.sign * (coupling + 0.5 * self.convexity * own)


one = {"x": DiscreteMeasure(torch.ones(1, 1, dtype=D)), "y": DiscreteMeasure(torch.ones(1, 1, dtype=D))}
paths = {}
for convexity in (0.0, 0.4):
    game = {"x": Payoff(1.0, torch.tensor(convexity, dtype=D)), "y": Payoff(-1.0, torch.tensor(convexity, dtype=D))}
    paths[convexity] = flow(game, one, stepper=Euler(0.1), steps=120, record=1)

# %%
# The equilibrium is a function of the convexity; its derivative is implicit, and agrees with that of the formula
# ``x = -c / (2 (1 + c**2))``.

c = torch.tensor(0.4, dtype=D, requires_grad=True)
solution = equilibrium({"x": Payoff(1.0, c), "y": Payoff(-1.0, c)}, one, stop=Stop(rtol=1e-10, max_steps=1000))
(slope,) = torch.autograd.grad(solution.measure["x"].points.sum(), c)
exact = torch.tensor(0.4, dtype=D, requires_grad=True)
(expected,) = torch.autograd.grad(-0.5 * exact / (1.0 + exact**2), exact)
print(f"x = {solution.measure['x'].points.item():.6f}, slope {slope.item():.8f}, by the formula {expected.item():.8f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
prey, predator = (chase.measures[name].points for name in ("prey", "predator"))
axes[0].plot(prey[:, ::4, 0], prey[:, ::4, 1], color="tab:blue", alpha=0.35, linewidth=0.8)
axes[0].plot(predator[..., 0], predator[..., 1], color="tab:red", linewidth=1.2)
axes[0].scatter(*start["prey"].points.T, s=12, facecolors="none", edgecolors="tab:blue", label="prey, start")
axes[0].scatter(*prey[-1].T, s=14, color="tab:blue", label="prey, end")
axes[0].scatter(*predator[-1].T, s=45, color="tab:red", marker="^", label="predators, end")
axes[0].set_title("Predators drive the prey before them")
axes[0].set_aspect("equal")
axes[0].legend(frameon=False, fontsize=8, loc="lower right")
for (convexity, path), color in zip(paths.items(), ("tab:orange", "tab:green"), strict=True):
    x, y = (path.measures[name].points.flatten() for name in ("x", "y"))
    label = "payoff x y: no convergence" if convexity == 0.0 else f"with convexity {convexity}"
    axes[1].plot(x, y, color=color, linewidth=1.2, label=label)
axes[1].plot(1.0, 1.0, "k.", label="start")
axes[1].plot(*(solution.measure[name].points.item() for name in ("x", "y")), "k*", markersize=10, label="equilibrium")
axes[1].set_xlabel("x, which minimises")
axes[1].set_ylabel("y, which maximises")
axes[1].set_title("Euler's steps of two games")
axes[1].set_aspect("equal")
axes[1].legend(fontsize=8, loc="lower left", framealpha=1.0)
figure.tight_layout()
