"""
A million points
================

*Can an energy between a million points and a million others be descended on a laptop?* An :term:`energy distance` adds up the
distances of all pairs, here 10¹² of each kind. On a line sorting does the same in ``N log N``, and an energy distance anywhere
is a mean of those of its shadows on lines (T11).
"""

import math
import time
from itertools import accumulate

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import PowerNorm
from torch.profiler import ProfilerActivity, profile

import ddeq
from ddeq.functionals import MMD, SlicedMMD
from ddeq.viz import bare_axes

# %%
# The :term:`target` is where a chaotic map sends a million random points (Peter de Jong's attractor); the start is a round
# cloud.

generator = torch.Generator().manual_seed(0)


def attractor(n):
    x, y = torch.rand(2, n, generator=generator)
    for _ in range(30):
        x, y = (1.4 * y).sin() - (2.3 * x).cos(), (2.4 * x).sin() - (2.1 * y).cos()
    return torch.stack([x, y], -1)


N = 1_000_000
target = ddeq.DiscreteMeasure(attractor(N))
start = ddeq.DiscreteMeasure(0.7 * torch.randn(N, 2, generator=generator) - 0.3)

# %%
# *Is it the same energy?* On ten thousand points the exact sum over pairs can still be had. Eight lines are enough for
# three digits of the value, as ``SlicedMMD`` spreads them evenly over the half circle.


def first(mu, n):
    return ddeq.DiscreteMeasure(mu.points[:n])


mu, nu = first(start, 10_000), first(target, 10_000)
print(f"all pairs {float(MMD(nu)(mu)):.5f}, 8 lines {float(SlicedMMD(nu, n_projections=8)(mu)):.5f}")

# %%
# *How do time and memory grow?* Value and :term:`Wasserstein gradient` (the force on each :term:`atom`) for more and more
# points. Memory is the most that tensors hold at once besides the clouds. From a hundred thousand points on lines are taken a
# few at a time, so that memory grows less than the clouds do.


def cost(n):
    """Seconds, and megabytes, of value and gradient."""
    mu, F = first(start, n), SlicedMMD(first(target, n), n_projections=8)
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        F(mu)
        F.wasserstein_gradient(mu)
    seconds = time.perf_counter() - begin
    changes = sorted((event.time_range.start, event.self_cpu_memory_usage) for event in run.events())
    return seconds, max(accumulate(change for _, change in changes)) / 1e6


def exponent(sizes, values):
    x, y = torch.tensor(sizes).double().log(), torch.tensor(values).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


sizes = [10_000, 30_000, 100_000, 300_000, 1_000_000]
cost(1000)  # the first call of anything is slow
seconds, megabytes = zip(*(cost(n) for n in sizes), strict=True)
for n, s, m in zip(sizes, seconds, megabytes, strict=True):
    print(f"{n:9,d} points {s:6.2f} seconds {m:5.0f} MB")
print(f"grows like N^{exponent(sizes, seconds):.2f} in time and N^{exponent(sizes, megabytes):.2f} in memory")

figure, axes = plt.subplots(1, 2, figsize=(7.6, 2.8), layout="constrained")
for axis, values, name in zip(axes, (seconds, megabytes), ("seconds", "megabytes"), strict=True):
    line = torch.tensor(sizes) / sizes[-1] * values[-1]
    axis.loglog(sizes, line, color="#9fb3c8", lw=1, ls="--", label="proportional to N")
    axis.loglog(sizes, values, color="#1f3b57", marker="o", ms=4, label="8 lines")
    axis.set(xlabel="points in each cloud", ylabel=name)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %%
# *A descent.* With a few lines that stay the same the cloud would take on the shadows on just these. So each step takes two
# other ones, at right angles and turned by the golden section of a quarter turn, much as stochastic gradient descent
# takes another batch. Steps fall to zero.

steps, mu, seen = 20, start, {"start": start}
for k in range(steps):
    angle = math.pi / 2 * torch.tensor([0.618 * k, 0.618 * k + 1.0])
    F = SlicedMMD(target, directions=torch.stack([angle.cos(), angle.sin()], -1))
    mu = mu.with_points(mu.points - 2.0 * (1.0 - k / steps) * F.wasserstein_gradient(mu))
    if k + 1 in (4, steps):
        seen[f"{k + 1} steps"] = mu

judge = SlicedMMD(target, n_projections=4)
for name, nu in seen.items():
    print(f"{name:9s} energy {float(judge(nu)):.5f}")

figure, axes = plt.subplots(1, 4, figsize=(10.4, 2.9), sharex=True, sharey=True, layout="constrained")
for axis, (name, nu) in zip(axes, (seen | {"target": target}).items(), strict=True):
    axis.hist2d(*nu.points.T.numpy(), bins=300, range=[[-2.2, 2.2], [-2.2, 2.2]], cmap="cividis", norm=PowerNorm(0.4, vmax=200))
    axis.set_title(name, fontsize=10)
    bare_axes(axis)
plt.show()

# %%
# Most of the energy is gone, and what is left is fine detail, where an energy distance pulls least. More steps draw it out.
# Where sums over pairs are affordable, up to some ten thousand points, `MMD` is exact, and free of the threads that lines
# leave behind.
