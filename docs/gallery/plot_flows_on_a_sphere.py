"""
Riemannian gradient flows and Langevin sampling on the sphere
=============================================================

*How do atoms flow on a sphere?* With ``space=Sphere()`` a :term:`flow` follows the tangent part of the gradient along great
circles, and :term:`Langevin noise` is tangent too. No atom leaves the sphere, and the law that is sampled is known.
"""

import math

import matplotlib.pyplot as plt
import torch

import ddeq
from ddeq.flows import Euler, Langevin, equilibrium
from ddeq.functionals import InteractionEnergy, PotentialEnergy
from ddeq.iteration import Stop
from ddeq.spaces import Sphere

sphere = Sphere()


def uniform(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return ddeq.DiscreteMeasure(sphere.project(torch.randn(n, 3, generator=generator, dtype=torch.float64)))


# %%
# **Sampling.** The :term:`potential` ``V(x) = -5 x₃`` pulls to the north pole. With noise of temperature one, atoms become draws
# from the density proportional to ``exp(5 x₃)`` on the sphere: a von Mises-Fisher distribution of concentration 5. The mean of
# its height is ``coth(5) - 1/5`` (spaces, T22). The step size adds a bias of about half of it, here 0.001.

kappa = 5.0
pull = PotentialEnergy(lambda x: -kappa * x[..., 2])
generator = torch.Generator().manual_seed(1)
noise = {"noise": Langevin(1.0), "generator": generator}
langevin = ddeq.flow(pull, uniform(6000, 0), Euler(0.002), 600, space=sphere, record=600, **noise)
heights = langevin.measures.points[..., 2]
exact = 1 / math.tanh(kappa) - 1 / kappa
error = float(heights[-1].std()) / math.sqrt(heights.shape[-1])
print(f"mean height {heights[-1].mean():.4f} +- {error:.4f}, exact {exact:.4f}")
print(f"largest distance from the sphere {(langevin.measure.points.norm(dim=-1) - 1).abs().max():.1e}")

# %%
# **Points that repel each other.** Without noise, ``n`` charges on a sphere (Riesz energy ``1 / |x - y|``, Thomson's problem)
# come to rest where they are as far from each other as they can be. For 4, 6 and 12 charges that is a tetrahedron, an
# octahedron and an icosahedron, whose energies are known. An :term:`equilibrium` on the sphere is found by L-BFGS and Newton's
# method with the Riemannian Hessian. Where several minima exist, the best of a few starts is taken: they are the samples of one
# batch.


def coulomb(r):
    square = r.square().sum(-1)
    apart = square > 0  # an atom does not repel itself
    return torch.where(apart, torch.where(apart, square, 1.0).rsqrt(), 0.0)


repulsion = InteractionEnergy(coulomb)
known = {4: 3.674234614, 6: 9.985281374, 12: 49.165253058}
shapes = {}
for n, least in known.items():
    starts = uniform(4 * n, n)
    starts = ddeq.DiscreteMeasure(starts.points.reshape(4, n, 3))
    found = equilibrium(repulsion, starts, space=sphere, stop=Stop(rtol=1e-10, max_steps=1000))
    energies = n**2 * repulsion(found.measure)  # atoms have the mass 1 / n
    best = int(energies.argmin())
    shapes[n] = found.measure.points[best]
    print(f"{n:3d} charges: energy {energies[best]:.9f}, known {least:.9f}, in {int(found.steps[best])} steps")

# %%
# Left: draws, with the circle at the mean height. Right: twelve charges, joined to their five nearest: an icosahedron.


def globe(axis):
    """The unit sphere with a few circles, without axes."""
    t = torch.linspace(0, 2 * math.pi, 100)
    for angle in torch.linspace(0, math.pi, 7)[:-1]:
        axis.plot(t.sin() * angle.cos(), t.sin() * angle.sin(), t.cos(), color="#c9d3dd", lw=0.5)
    for height in (-0.75, -0.4, 0.0, 0.4, 0.75):
        r = math.sqrt(1 - height**2)
        axis.plot(r * t.cos(), r * t.sin(), 0 * t + height, color="#c9d3dd", lw=0.5)
    axis.set_box_aspect((1, 1, 1), zoom=1.35)
    axis.set_axis_off()
    axis.view_init(elev=24, azim=-55)
    axis.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))


figure = plt.figure(figsize=(9.0, 4.8))
left, right = (figure.add_subplot(1, 2, i, projection="3d", computed_zorder=False) for i in (1, 2))
for axis in (left, right):
    globe(axis)
toward = torch.tensor([math.cos(math.radians(-55)), math.sin(math.radians(-55)), math.tan(math.radians(24))]).double()
draws = langevin.measure.points[:2000]
for behind in (True, False):
    some = draws[((draws @ toward) < 0) == behind]
    left.scatter(*some.T, s=7, color="#1f3b57", alpha=0.15 if behind else 0.6, lw=0)
circle, r = torch.linspace(0, 2 * math.pi, 200), math.sqrt(1 - exact**2)
left.plot(r * circle.cos(), r * circle.sin(), 0 * circle + exact, color="#d1495b", lw=1.6)
left.set_title("von Mises-Fisher, κ = 5: 2,000 of 6,000 draws", fontsize=10, y=1.0)

atoms = shapes[12]
edges = torch.cdist(atoms, atoms).topk(6, largest=False).indices[:, 1:]
for i, neighbours in enumerate(edges.tolist()):
    for j in neighbours:
        if i < j:
            ends = atoms[[i, j]]
            front = bool((ends @ toward).mean() > 0)
            right.plot(*ends.T, color="#1f3b57", lw=1.6 if front else 0.8, alpha=0.9 if front else 0.3)
front = (atoms @ toward) > 0
right.scatter(*atoms[~front].T, s=30, color="#e8a9b2", depthshade=False)
right.scatter(*atoms[front].T, s=60, color="#d1495b", depthshade=False)
right.set_title("twelve charges at rest: an icosahedron", fontsize=10, y=1.0)
figure.subplots_adjust(left=0, right=1, bottom=0, top=0.92, wspace=0)
plt.show()
