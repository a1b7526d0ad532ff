"""
Systems of several measures, and games
======================================

*How do several populations flow together, each with its own number of atoms and its own dimension, under one energy or each
against the others?* :func:`ddeq.flow`, :func:`ddeq.flows.equilibrium` and :func:`ddeq.fixed_point` take measures by name. One
:term:`functional` of all of them is a joint energy; a dict of functionals is a :term:`game`, in which each :term:`species`
descends its own (systems, T23). Here are five of them.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import ddeq
from ddeq.flows import AdaptiveEuler, Euler, Heun, equilibrium
from ddeq.functionals import Functional
from ddeq.iteration import Stop
from ddeq.viz import bare_axes

generator = torch.Generator().manual_seed(0)


def normal(n, dim, scale=1.0, shift=0.0):
    return ddeq.DiscreteMeasure(scale * torch.randn(n, dim, generator=generator, dtype=torch.float64) + shift)


def meet(mu, nu, profile):
    """The integral of a function of the squared distance over both measures."""
    squared = (mu.points.unsqueeze(-2) - nu.points.unsqueeze(-3)).square().sum(-1)
    return (mu.weights.unsqueeze(-1) * nu.weights.unsqueeze(-2) * profile(squared)).sum((-2, -1))


# %%
# **Predators and prey.** Prey stay together, keep a distance from each other, and fear predators; predators want to be near the
# prey, and out of each other's way. There is no energy that both would lower: as the predators' own energy falls that of the
# prey rises, against their will. A trajectory of a game records the energies of all species.


def prey_want(m):
    crowd = meet(m["prey"], m["prey"], lambda s: 0.25 * s + 1.2 * torch.exp(-s / 0.5))
    return crowd + 1.5 * meet(m["prey"], m["predators"], lambda s: torch.exp(-s))


def predators_want(m):
    apart = meet(m["predators"], m["predators"], lambda s: 0.4 * torch.exp(-s / 0.5))
    return apart - 3.0 * meet(m["predators"], m["prey"], lambda s: torch.exp(-s / 2.0))


animals = {"prey": normal(80, 2, 0.8), "predators": normal(3, 2, 0.3, torch.tensor([2.0, 0.5], dtype=torch.float64))}
game = {"prey": Functional.of(prey_want), "predators": Functional.of(predators_want)}
with torch.no_grad():
    hunt = ddeq.flow(game, animals, stepper=Heun(0.1), steps=300, record=2)

figure, axes = plt.subplots(1, 4, figsize=(11.0, 2.8), layout="constrained")
for axis, index in zip(axes, (0, 20, 150), strict=False):
    prey, predators = (hunt.measures[name].points[index] for name in animals)
    path = hunt.measures["predators"].points[max(0, index - 30) : index + 1]
    axis.scatter(prey[:, 0], prey[:, 1], s=8, color="#1f3b57")
    axis.plot(path[..., 0], path[..., 1], color="#d1495b", lw=0.8, alpha=0.6)
    axis.scatter(predators[:, 0], predators[:, 1], s=50, marker="*", color="#d1495b")
    axis.set_title(f"time {hunt.times[index]:.0f}", fontsize=10)
    axis.set(xlim=(-3, 3.4), ylim=(-3, 3))
    bare_axes(axis)
for (name, energy), colour in zip(hunt.energies.items(), ("#1f3b57", "#d1495b"), strict=True):
    axes[-1].plot(hunt.times, energy, color=colour, label=name)
axes[-1].set(xlabel="time", title="own energies")
axes[-1].spines[["top", "right"]].set_visible(False)
axes[-1].legend(frameon=False, fontsize=8)
plt.show()

# %%
# **Cross-diffusion.** Two species spread out from where they are many, and from where the others are: the energy is
# :math:`\frac12\int (\rho^2 + \eta^2) + b\int\rho\eta` with densities smoothed by a kernel, in a bowl that holds them together.
# It is a joint energy, and falls in every step. Below :math:`b = 1` both species mix; above it they segregate
# (:cite:t:`shigesada1979spatial`).


def overlap(mu, nu):
    return meet(mu, nu, lambda s: torch.exp(-s / (2 * 0.3**2)))


def spreading(b):
    def energy(m):
        bowl = sum((mu.weights * mu.points.square().sum(-1)).sum(-1) for mu in m.values())
        return 0.08 * bowl + 0.5 * (overlap(m["a"], m["a"]) + overlap(m["b"], m["b"])) + b * overlap(m["a"], m["b"])

    return Functional.of(energy)


both = {"a": normal(70, 2, 0.5), "b": normal(50, 2, 0.5)}
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.0), layout="constrained")
with torch.no_grad():
    for axis, b in zip(axes, (0.0, 0.8, 3.0), strict=True):
        spread = ddeq.flow(spreading(b), both, stepper=AdaptiveEuler(), steps=250)
        assert (spread.energies.diff() <= 0).all()
        end = spread.measure
        shared = overlap(end["a"], end["b"]) / (overlap(end["a"], end["a"]) * overlap(end["b"], end["b"])).sqrt()
        for name, colour in (("a", "#1f3b57"), ("b", "#e0a030")):
            axis.scatter(end[name].points[:, 0], end[name].points[:, 1], s=10, color=colour)
        axis.set_title(f"b = {b:g}: overlap {shared:.2f}", fontsize=10)
        bare_axes(axis)
plt.show()

# %%
# **A game that cannot converge.** One player chooses :math:`x` and wants :math:`xy` small, the other chooses :math:`y` and wants
# it large. The flow turns around the :term:`equilibrium` at 0, and a step of Euler's method of length :math:`\tau` multiplies
# the distance by :math:`\sqrt{1 + \tau^2}`: at any length it spirals out. :func:`~ddeq.flows.equilibrium` says MAX_STEPS, and
# not that it has found something. With :math:`\frac m2(x^2 - y^2)` added, steps below :math:`2m/(1 + m^2)` converge.


def saddle(m):
    def payoff(measures):
        x, y = (mu.points[..., 0, 0] for mu in measures.values())
        return x * y + 0.5 * m * (x.square() - y.square())

    return {"x": Functional.of(payoff), "y": Functional.of(lambda measures: -payoff(measures))}


start = {name: ddeq.DiscreteMeasure(torch.tensor([[0.7]], dtype=torch.float64)) for name in "xy"}
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.2), layout="constrained", sharex=True, sharey=True)
for axis, (m, tau) in zip(axes, ((0.0, 0.2), (0.4, 0.2), (0.4, 0.75)), strict=True):
    with torch.no_grad():
        path = ddeq.flow(saddle(m), start, stepper=Euler(tau), steps=14 if tau > 0.5 else 40, record=1).measures
    x, y = (path[name].points.flatten() for name in "xy")
    radius = x.hypot(y)
    growth = (radius[1] / radius[0]).item()
    axis.plot(x, y, ".-", color="#1f3b57", lw=0.8, ms=4)
    axis.plot(0, 0, "x", color="#d1495b")
    axis.set_title(f"m = {m:g}, step {tau:g}: radius × {growth:.3f}", fontsize=10)
    axis.set_aspect("equal")
    print(f"m = {m:g}, step {tau:g}: {growth:.6f} per step, by the theorem {(1 - 2 * tau * m + tau**2 * (1 + m**2)) ** 0.5:.6f}")
plt.show()
for m in (0.0, 0.4):
    print(f"equilibrium at m = {m:g}:", equilibrium(saddle(m), start, stop=Stop(rtol=1e-8, max_steps=200)).summary())

# %%
# **A hypergradient of a min-max game.** Twelve particles in the plane play against eight on the line, with a parameter
# :math:`\theta` in what is at stake. At the equilibrium no particle has anything to gain. The equilibrium is a function of
# :math:`\theta`, and implicit differentiation gives its derivative (T7), by a linear system that is not symmetric; finite
# differences confirm it.


class Duel(nn.Module):
    def __init__(self, theta, sign):
        super().__init__()
        self.register_buffer("theta", theta)
        self.sign = sign

    def forward(self, m):
        x, y = m["x"], m["y"]
        game = torch.sin(2.0 * x.points[..., None, 0] + self.theta * y.points[..., None, :, 0])
        payoff = (x.weights.unsqueeze(-1) * y.weights.unsqueeze(-2) * game).sum((-2, -1))
        cost = (x.weights * (1.5 * x.points.square().sum(-1) + self.theta * x.points[..., 1])).sum(-1)
        return self.sign * (payoff + cost - (y.weights * (y.points[..., 0] - 1.0).square()).sum(-1))


players = {"x": normal(12, 2), "y": normal(8, 1)}


def outcome(theta):
    game = {"x": Functional.of(Duel(theta, 1.0)), "y": Functional.of(Duel(theta, -1.0))}
    solution = equilibrium(game, players, stop=Stop(rtol=1e-12, max_steps=2000))
    x, y = solution.measure["x"].mean(), solution.measure["y"].mean()
    return x[0] * x[1] + y[0].square()


theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
(gradient,) = torch.autograd.grad(outcome(theta), theta)
with torch.no_grad():
    h = 1e-3
    values = {k: outcome(theta + k * h) for k in (-2, -1, 1, 2)}
numeric = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)
print(f"implicit {gradient:.12f}, finite differences {numeric:.12f}, difference {abs(gradient - numeric):.1e}")

# %%
# **A mean-field game.** A crowd starts at time 0; each person chooses a path, pays :math:`\frac12\dot x^2` for moving and
# :math:`\frac q2|x - \kappa m(t)|^2` for being away from :math:`\kappa` times the mean of the crowd, and the more so at the end.
# In a Nash equilibrium no one would take another path while the others keep theirs (:cite:t:`lasry2007mean`). The times are the
# species, the marks of an atom say where it started, and the map takes a crowd to its best responses, found by a linear system.
# Its :term:`fixed point` is the equilibrium. In continuous time Riccati's equation has it in closed form.

q, kappa, horizon = 4.0, torch.tensor(0.8, dtype=torch.float64), 1.0
g = q**0.5  # the cost at the end, of the same form


def best_responses(crowd, kappa):
    steps = len(crowd)
    dt = horizon / steps
    means = torch.stack([mu.mean()[0] for mu in crowd.values()])
    costs = torch.full((steps,), q * dt, dtype=torch.float64)
    costs[-1] = g
    bend = torch.diag(torch.full((steps,), 2.0 / dt, dtype=torch.float64))
    bend = bend - torch.diag(torch.full((steps - 1,), 1.0 / dt, dtype=torch.float64), 1)
    bend = bend - torch.diag(torch.full((steps - 1,), 1.0 / dt, dtype=torch.float64), -1)
    bend[-1, -1] = 1.0 / dt
    first = torch.zeros(steps, dtype=torch.float64)
    first[0] = 1.0 / dt
    moved = {}
    for k, (name, mu) in enumerate(crowd.items()):
        answer = torch.linalg.inv(bend + torch.diag(costs))[k]
        moved[name] = mu.with_points(mu.marks * (answer @ first) + answer @ (costs * kappa * means))
    return moved


def mean_field_game(steps, kappa):
    begin = normal(30, 1, 0.4, 1.0).points
    crowd = {f"time {k + 1}": ddeq.DiscreteMeasure(begin, marks=begin) for k in range(steps)}
    return begin, ddeq.fixed_point(best_responses, crowd, kappa, stop=Stop(rtol=1e-12, max_steps=200))


def riccati(begin, times, kappa):
    """Deviations from the mean decay by their own equation, the mean by another."""
    r, end, left = (q * (1 - kappa)) ** 0.5, g * (1 - kappa), horizon - times
    mean = (
        begin.mean()
        * (r * torch.cosh(r * left) + end * torch.sinh(r * left))
        / (r * torch.cosh(r * horizon) + end * torch.sinh(r * horizon))
    )
    return mean + (begin - begin.mean()) * torch.exp(-(q**0.5) * times)


for steps in (10, 20, 40):
    begin, solution = mean_field_game(steps, kappa)
    times = torch.arange(1, steps + 1, dtype=torch.float64) * horizon / steps
    paths = torch.cat([mu.points for mu in solution.measure.values()], -1)
    error = (paths - riccati(begin, times, kappa)).abs().max()
    print(f"{steps} times, {solution.summary()}: largest error of a path {error:.4f}")

figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
axis.plot(torch.cat([torch.zeros(1), times]), torch.cat([begin, paths], -1).mT, color="#9fb3c8", lw=0.8)
fine = torch.linspace(0, 1, 100, dtype=torch.float64)
axis.plot(
    torch.cat([torch.zeros(1), times]), torch.cat([begin, paths], -1).mean(0), color="#1f3b57", label="mean of the crowd", lw=2
)
axis.plot(
    fine, riccati(begin, fine, kappa).mean(0), color="#d1495b", lw=2, ls="--", label="mean, by Riccati's equation", zorder=3
)
axis.set(xlabel="time", ylabel="place")
axis.spines[["top", "right"]].set_visible(False)
axis.legend(frameon=False, fontsize=9)
plt.show()
