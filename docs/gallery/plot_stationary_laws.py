"""
Stationary laws on a grid: weights as unknowns
==============================================

*Does a crowd in a double well choose a side?* Each particle feels a potential with two wells, noise of temperature :math:`T`, and
an attraction to the mean of all others (a McKean-Vlasov equation). Its stationary law is a fixed point of

.. math:: \\mu \\mapsto \\frac1Z \\exp\\Big({-\\frac1T}\\Big(V(x) + \\frac k2 \\int |x - y|^2 \\,\\mathrm d\\mu(y)\\Big)\\Big) .

On a grid the places stay and only the weights are unknown: ``ddeq.fixed_point(..., moves="weights")``.
"""

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.solvers import Anderson, Picard, Stop

grid = torch.linspace(-3, 3, 241, dtype=torch.float64).unsqueeze(-1)


def gibbs(mu, temperature, attraction=1.0):
    x = mu.points[..., 0]
    second = (mu.weights * x.square()).sum(-1, keepdim=True)
    pull = 0.5 * attraction * (x.square() - 2 * x * mu.mean() + second)
    energy = x**4 / 4 - x.square() / 2 + pull
    return mu.with_weights(torch.softmax(-energy / temperature.unsqueeze(-1), -1))


# %%
# A batch of 60 temperatures, all at once, from a start that leans to the right. Samples that have converged leave the batch.

temperatures = torch.linspace(0.08, 0.6, 60, dtype=torch.float64)
start = ddeq.DiscreteMeasure(grid, torch.softmax(2.0 * grid[:, 0], -1)).expand(60)
stop = Stop(rtol=1e-9, atol=1e-11, max_steps=2000)
solutions = {
    name: ddeq.fixed_point(gibbs, start, temperatures, in_dims=0, moves="weights", solver=solver, stop=stop)
    for name, solver in (("Picard", Picard()), ("Anderson", Anderson()))
}
law = solutions["Anderson"].measure
for name, solution in solutions.items():
    print(f"{name:9}{solution.summary()}")

# %%
# Below a critical temperature, about 0.46, the crowd stays on one side, and the mirror image is a second solution. Above, the law
# is symmetric. Near the critical temperature plain iteration hardly contracts, and Anderson's steps, in the coordinates
# :math:`2\sqrt{w_i/w^0_i}` in which no weight can become negative, are the cheaper by far.

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.0), layout="constrained")
colours = plt.get_cmap("viridis")(torch.linspace(0.1, 0.9, 5).numpy())
for k, colour in zip((0, 15, 30, 42, 59), colours, strict=True):
    left.plot(grid[:, 0], law.weights[k] / 0.025, color=colour, label=f"T = {float(temperatures[k]):.2f}")
left.set(xlabel="place", ylabel="density", xlim=(-2, 2.5))
left.legend(frameon=False, fontsize=8)
middle.plot(temperatures, law.mean()[:, 0], color="#1f3b57")
middle.plot(temperatures, -law.mean()[:, 0], color="#1f3b57", ls=":")
middle.set(xlabel="temperature", ylabel="mean")
for (name, solution), colour in zip(solutions.items(), ("#e0a030", "#d1495b"), strict=True):
    right.semilogy(temperatures, solution.steps, color=colour, label=name)
right.set(xlabel="temperature", ylabel="steps")
right.legend(frameon=False, fontsize=8)
for axis in (left, middle, right):
    axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The solution is a differentiable function of the temperature. The implicit derivative of the mean (line) against differences
# between neighbouring temperatures (dots): it has no bound where the two sides meet.

warm = temperatures.clone().requires_grad_()
mean = ddeq.fixed_point(gibbs, law.detach(), warm, in_dims=0, moves="weights", stop=stop).measure.mean()[:, 0]
below = temperatures < 0.44
(slope,) = torch.autograd.grad(mean[below].sum(), warm)
difference = mean.detach().diff() / temperatures.diff()

figure, axis = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
between = 0.5 * (temperatures[1:] + temperatures[:-1])
axis.plot(temperatures[below], slope[below], color="#1f3b57", label="implicit")
axis.plot(between[below[1:]], difference[below[1:]], ".", color="#d1495b", label="differences")
axis.set(xlabel="temperature", ylabel="slope of the mean")
axis.legend(frameon=False, fontsize=8)
axis.spines[["top", "right"]].set_visible(False)
plt.show()
