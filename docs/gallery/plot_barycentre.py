"""
A barycentre, and its derivative
================================

*Can a mean of shapes be trained?* A :term:`barycentre` is the mean of several :term:`measures <measure>`: the measure whose
weighted squared :term:`transport distances <Wasserstein distance>` (the least mean squared ways that mass has to go) to all of
them add up to least. It is found by descent, and still has a derivative in all that enters the energy, without a record of the
steps of the descent.
"""

import math

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, equilibrium
from ddeq.functionals import Wasserstein
from ddeq.viz import bare_axes, plot_measure

# %%
# Three outlines, each as sixty :term:`atoms <atom>` of equal mass, and the energy of a mean. Its flow takes steps of length one:
# each atom goes to the weighted mean of the three places where its mass would go, until nothing changes.


def outline(corners):
    """Atoms at equal distances along a closed line."""
    corners = torch.tensor(corners).double()
    sides = corners.roll(-1, 0) - corners
    ends = sides.norm(dim=-1).cumsum(0)
    at = torch.arange(60).double() / 60 * ends[-1]
    side = torch.searchsorted(ends, at, right=True)
    share = 1.0 - (ends[side] - at) / sides[side].norm(dim=-1)
    return ddeq.DiscreteMeasure(corners[side] + share.unsqueeze(-1) * sides[side])


def around(radii):
    """Corners at these distances from the centre."""
    turn = [math.pi / 2 + 2 * math.pi * k / len(radii) for k in range(len(radii))]
    return [[r * math.cos(t), r * math.sin(t)] for r, t in zip(radii, turn, strict=True)]


cross = [[0.3, 0.3], [0.3, 1], [-0.3, 1], [-0.3, 0.3], [-1, 0.3], [-1, -0.3], [-0.3, -0.3], [-0.3, -1], [0.3, -1], [0.3, -0.3]]
cross += [[1, -0.3], [1, 0.3]]
shapes = [outline(around([1.0] * 60)), outline(around([1.25, 0.45] * 5)), outline(cross)]
generator = torch.Generator().manual_seed(0)
start = outline(around([0.7] * 60))  # and a little noise: symmetric shapes have several best ways to move the mass
start = start.with_points(start.points + 0.02 * torch.randn(60, 2, generator=generator).double())


def barycentre(shares, shapes=shapes):
    a, b, c = (share * Wasserstein(shape) for share, shape in zip(shares, shapes, strict=True))
    return equilibrium(a + b + c, start, stepper=Euler(1.0))


# %%
# Someone has mixed the three with shares that we do not know, and has jittered the result. Which shares were it? They
# are the softmax of three parameters, the loss is the transport distance between their barycentre and what was seen,
# and Adam does the rest.

secret = torch.tensor([0.15, 0.25, 0.6]).double()
mixed = barycentre(secret).measure
seen = mixed.with_points(mixed.points + 0.03 * torch.randn(60, 2, generator=generator).double())
loss = Wasserstein(seen)

logits = torch.zeros(3).double().requires_grad_()
optimizer, path = torch.optim.Adam([logits], lr=0.1, betas=(0.6, 0.99)), []
for _ in range(50):
    shares = logits.softmax(0)
    found = barycentre(shares)
    path.append(shares.detach())
    optimizer.zero_grad()
    loss(found.measure).backward()
    optimizer.step()
print("secret shares ", [f"{share:.3f}" for share in secret.tolist()])
print("learned shares", [f"{share:.3f}" for share in path[-1].tolist()], f"after {len(path)} steps")

# %%
# All means of the three, each at the place of its shares in the triangle; the way of the learned shares, from equal ones;
# and what was fitted.

places = torch.tensor([[0.0, math.sqrt(3.0)], [-1.0, 0.0], [1.0, 0.0]]).double()
figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4.6), layout="constrained", width_ratios=(1.5, 1.0))
for i in range(5):
    for j in range(5 - i):
        shares = torch.tensor([i, j, 4 - i - j]).double() / 4
        mu = barycentre(shares).measure
        corner = max(i, j, 4 - i - j) == 4
        plot_measure(mu.with_points(0.15 * mu.points + shares @ places), left, color="#1f3b57" if corner else "#9fb3c8", area=260)
way = torch.stack(path) @ places
left.plot(*way.T, color="#d1495b", lw=2.0)
left.plot(*way[-1], "o", ms=6, color="#d1495b", label="learned")
left.plot(*(secret @ places), "o", ms=11, mfc="none", mew=1.6, color="#e0a030", label="secret")
left.legend(frameon=False, fontsize=9, loc="upper left")
bare_axes(left)
plot_measure(seen, right, color="#e0a030", area=1200, label="seen")
plot_measure(found.measure.detach(), right, color="#d1495b", area=1200, label="learned barycentre")
right.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
plt.show()

# %%
# Is the gradient right? The :term:`implicit function theorem <implicit differentiation>` gives it from one linear equation at
# the end (T16). Finite differences solve for the barycentre again, twice for each number. The derivative reaches the targets as
# well: here the shares' three parameters and the place of the cross's third atom.


def objective(logits, atom):
    points = shapes[2].points.index_put((torch.tensor([2]),), atom)
    return loss(barycentre(logits.softmax(0), [*shapes[:2], shapes[2].with_points(points)]).measure)


at = (torch.tensor([0.3, -0.2, 0.1]).double().requires_grad_(), shapes[2].points[2].clone().requires_grad_())
gradients = torch.cat(torch.autograd.grad(objective(*at), at))
numbers, differences = torch.cat(at).detach(), []
for unit in torch.eye(5).double():
    ahead, behind = (numbers + sign * 1e-4 * unit for sign in (1, -1))
    differences.append((objective(ahead[:3], ahead[3:]) - objective(behind[:3], behind[3:])) / 2e-4)
for name, row in (("implicit", gradients), ("differences", torch.stack(differences))):
    print(f"{name:12s}" + "".join(f"{value:12.7f}" for value in row.tolist()))

# %%
# They agree to the last digit shown. Exact transport is smooth only as long as it moves the same atoms to the same places; the
# derivative is that of these :term:`couplings <coupling>`. With ``SinkhornDivergence`` in the place of ``Wasserstein`` the
# energy is smooth throughout, at a higher price
# (:doc:`Sinkhorn divergence or energy distance <plot_sinkhorn_and_energy_distance>`).
