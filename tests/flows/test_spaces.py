"""Flows, noise and equilibria on spaces, against closed forms."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import ddeq
from ddeq import DiscreteMeasure, Functional
from ddeq.flows import (
    LBFGS,
    AdaptiveEuler,
    BoxEntropy,
    Euler,
    FisherRao,
    Heun,
    Langevin,
    Mirror,
    Nesterov,
    NoiseInjection,
    PositiveEntropy,
    Preconditioned,
    Proximal,
    SimplexEntropy,
    Stein,
    Stepper,
    Trajectory,
    Underdamped,
    equilibrium,
    flow,
)
from ddeq.functionals import MMD, InteractionEnergy, KLDivergence, PotentialEnergy, Smoothness
from ddeq.iteration import Status, Stop
from ddeq.kernels import IMQ, Gaussian
from ddeq.spaces import Box, Euclidean, HalfSpace, Manifold, Product, Simplex, Space, Sphere, Torus
from ddeq.testing import assert_close

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import geoopt

D = torch.float64
pytestmark = pytest.mark.theorem("T22")
STEPPERS: tuple[Stepper, ...] = (Euler(0.2), Heun(0.2), Nesterov(0.1), AdaptiveEuler(), LBFGS(memory=10), Proximal(0.3))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def named(part: Any) -> str:
    return type(part).__name__


class HalfSquaredDistance(Functional):
    """Half the mean squared distance from a point of a space."""

    smoothness = Smoothness.SMOOTH

    def __init__(self, space: Space, centre: Tensor) -> None:
        super().__init__()
        self.space, self.centre = space, centre

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        distance = self.space.distance(mu.points, self.centre.expand_as(mu.points))
        return (mu.weights * 0.5 * distance.square()).sum(-1)


class Quadratic(Functional):
    """A potential and a repulsion, with parameters."""

    smoothness = Smoothness.SMOOTH
    removable = True

    def __init__(self, matrix: Tensor, slope: Tensor, repulsion: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("slope", slope)
        self.repulsion = repulsion

    def forward(self, mu: DiscreteMeasure) -> Tensor:
        x, w = mu.points, mu.weights
        potential = (w * (0.5 * ((x @ self.matrix) * x).sum(-1) - (x * self.slope).sum(-1))).sum(-1)
        kernel = torch.exp(-(x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1))
        return potential + self.repulsion * (w.unsqueeze(-1) * w.unsqueeze(-2) * kernel).sum((-1, -2))


def spd(*shape: int, seed: int = 0) -> Tensor:
    a = normal(*shape, 3, 3, seed=seed)
    return (a @ a.mT + 0.3 * torch.eye(3, dtype=D)).reshape(*shape, 9)


CURVED = {
    "sphere": (Sphere(), Sphere().project(normal(5, 3)), Sphere().project(torch.ones(3, dtype=D)), 1e-14),
    "Poincare": (Manifold(geoopt.PoincareBall()), 0.3 * normal(5, 3), torch.tensor([0.1, -0.2, 0.3], dtype=D), 1e-12),
    "SPD": (Manifold(geoopt.SymmetricPositiveDefinite(), (3, 3)), spd(5), spd(seed=1), 1e-12),
}


@pytest.mark.parametrize("name", CURVED)
def test_distances_decay_geometrically(name: str) -> None:
    space, start, centre, tolerance = CURVED[name]
    trajectory = flow(HalfSquaredDistance(space, centre), DiscreteMeasure(start), Euler(0.3), 25, space=space, record=1)
    distance = space.distance(trajectory.measures.points, centre.expand_as(trajectory.measures.points))
    expected = 0.7 ** torch.arange(26, dtype=D).unsqueeze(-1) * distance[0]
    assert float((distance - expected).abs().max()) < tolerance * (1.0 + float(distance[0].max()))


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_every_stepper_descends_and_stays_on_the_space(name: str, stepper: Stepper) -> None:
    space, start, centre, _ = CURVED[name]
    F = HalfSquaredDistance(space, centre)
    trajectory = flow(F, DiscreteMeasure(start), stepper, 15, space=space, record=1)
    assert bool(space.contains(trajectory.measures.points).all())
    energies = trajectory.energies
    assert float(energies[-1]) < 0.1 * float(energies[0])
    if stepper.descends:
        assert bool((energies[1:] <= energies[:-1] + 1e-14).all())
    assert_close(trajectory.dissipation[0], 2.0 * energies[0], rtol=1e-7)  # |grad|^2 = distance^2


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_a_flow_in_a_box_that_no_bound_touches_is_the_free_one(stepper: Stepper) -> None:
    mu, F = DiscreteMeasure(normal(2, 5, 2)), Quadratic(torch.eye(2, dtype=D), torch.ones(2, dtype=D))
    free = flow(F, mu, stepper, 8)
    boxed = flow(F, mu, stepper, 8, space=Box(-50.0, 50.0))
    assert_close(boxed.measure.points, free.measure.points, rtol=1e-6 if isinstance(stepper, Proximal) else 1e-11)


BOUNDED = {
    "box": (Box(-0.2, 0.4), torch.tensor([0.5, -0.7, 0.2], dtype=D)),
    "half-space": (HalfSpace(torch.tensor([1.0, 1.0, -1.0], dtype=D), 0.2), torch.tensor([0.5, -0.7, 1.2], dtype=D)),
    "simplex": (Simplex(), torch.tensor([0.5, -1.7, 1.2], dtype=D)),
    "product": (Product((Sphere(), 2), (Box(-0.2, 0.3), 1)), torch.tensor([0.5, -0.7, 1.2], dtype=D)),
    "sphere": (Sphere(), torch.tensor([0.5, -0.7, 1.2], dtype=D)),
}
MATRIX = torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=D))
PRECISE = Stop(rtol=1e-10, atol=1e-13, max_steps=3000)


@pytest.mark.parametrize("name", BOUNDED)
def test_constrained_equilibria_and_their_derivatives(name: str) -> None:
    space, slope = BOUNDED[name]
    start = DiscreteMeasure(space.project(0.5 * normal(3, 3, seed=2)))
    direction = normal(3, 3, seed=4)
    given = slope.clone().requires_grad_()
    solution = equilibrium(Quadratic(MATRIX, given, 0.05), start, space=space, stop=PRECISE)
    assert bool(solution.converged.all())
    x = solution.measure.points
    assert bool(space.contains(x.detach()).all())
    # The force is a multiplier: no vector into the space has a positive product with it.
    force = -Quadratic(MATRIX, slope, 0.05).wasserstein_gradient(solution.measure.detach())
    assert float(space.tangent(x.detach(), force).abs().max()) < 1e-8
    (found,) = torch.autograd.grad((x * direction).sum(), given)
    h, warm = 1e-5, solution.measure.detach()
    differences = []
    with torch.no_grad():
        for e in torch.eye(3, dtype=D):
            ends = [
                equilibrium(Quadratic(MATRIX, slope + s * e, 0.05), warm, space=space, stop=PRECISE).measure.points
                for s in (h, -h)
            ]
            differences.append(((ends[0] - ends[1]) * direction).sum() / (2.0 * h))
    assert_close(found, torch.stack(differences), rtol=1e-5, scale=0.1)


def test_a_linear_energy_on_the_sphere_against_its_lagrange_multiplier() -> None:
    """Of -<a, x> the minimiser is a/|a|; the gradient of its loss is P u/|a|, to second order too."""
    a = torch.tensor([0.4, -1.0, 0.7], dtype=D, requires_grad=True)
    F = Quadratic(torch.zeros(3, 3, dtype=D), a, 0.0)
    start = DiscreteMeasure(Sphere().project(torch.tensor([[1.0, 0.2, 0.3]], dtype=D)))
    x = equilibrium(F, start, space=Sphere(), stop=PRECISE).measure.points[0]
    assert_close(x, a / a.norm(), rtol=1e-9)
    u = torch.tensor([0.3, 0.5, -0.2], dtype=D)
    (slope,) = torch.autograd.grad(x @ u, a, create_graph=True)
    exact = (a / a.norm()) @ u
    (expected,) = torch.autograd.grad(exact, a, create_graph=True)
    assert_close(slope, expected, rtol=1e-7)
    v = torch.tensor([1.0, -0.4, 0.6], dtype=D)
    assert_close(torch.autograd.grad(slope @ v, a)[0], torch.autograd.grad(expected @ v, a)[0], rtol=1e-6)


def test_equilibria_on_manifolds_of_matrices_have_derivatives() -> None:
    cases = (
        (Manifold(geoopt.PoincareBall()), 0.2 * normal(3, 3), torch.tensor([0.1, 0.2, -0.1], dtype=D)),
        (Manifold(geoopt.SymmetricPositiveDefinite(), (2, 2)), spd22(), torch.tensor([1.0, 0.2, 0.2, 2.0], dtype=D)),
        (Manifold(geoopt.EuclideanStiefel(), (2, 2)), torch.linalg.qr(normal(3, 2, 2)).Q.reshape(3, 4), normal(4, seed=7)),
    )
    for space, start, slope in cases:
        matrix = torch.diag(torch.arange(1.0, 1.0 + len(slope), dtype=D))
        if isinstance(space.manifold, geoopt.SymmetricPositiveDefinite):
            matrix = torch.eye(4, dtype=D)
        given = slope.clone().requires_grad_()
        solution = equilibrium(Quadratic(matrix, given), DiscreteMeasure(start), space=space, stop=PRECISE)
        assert bool(solution.converged.all())
        (found,) = torch.autograd.grad(solution.measure.points.sin().sum(), given)
        h, step = 1e-5, torch.ones_like(slope)
        with torch.no_grad():
            ends = [
                equilibrium(Quadratic(matrix, slope + s * step), solution.measure.detach(), space=space, stop=PRECISE)
                for s in (h, -h)
            ]
        difference = (ends[0].measure.points.sin() - ends[1].measure.points.sin()).sum() / (2.0 * h)
        assert_close(found.sum(), difference, rtol=1e-5, scale=0.1)


def spd22() -> Tensor:
    a = normal(3, 2, 2)
    return (a @ a.mT + 0.3 * torch.eye(2, dtype=D)).reshape(3, 4)


@pytest.mark.parametrize(("n", "energy"), [(4, 3.674234614), (6, 9.985281374), (12, 49.165253058)])
def test_riesz_energies_on_the_sphere(n: int, energy: float) -> None:
    def inverse(z: Tensor) -> Tensor:
        r = z.norm(dim=-1)
        return torch.where(r > 0, 1.0 / torch.where(r > 0, r, 1.0), 0.0)

    start = DiscreteMeasure(Sphere().project(normal(n, 3, seed=1)))
    solution = equilibrium(InteractionEnergy(inverse), start, space=Sphere())
    assert bool(solution.converged.all())
    assert abs(float((1.0 / torch.pdist(solution.measure.points)).sum()) - energy) < 1e-7


@pytest.mark.parametrize("sampler", ["Langevin", "Underdamped"])
def test_von_mises_fisher(sampler: str) -> None:
    kappa, n = 5.0, 2000
    V = PotentialEnergy(lambda x: -kappa * x[..., 2])
    start = DiscreteMeasure(Sphere().project(normal(n, 3) + torch.tensor([0.0, 0.0, 1.0], dtype=D)))
    options: dict[str, Any] = {"space": Sphere(), "generator": torch.Generator().manual_seed(0), "record": 20}
    if sampler == "Langevin":
        trajectory = flow(V, start, Euler(0.01), 200, noise=Langevin(1.0), **options)
    else:
        trajectory = flow(V, start, Underdamped(0.1), 200, **options)
    heights = trajectory.measures.points[4:, :, 2]
    assert abs(float(heights.mean()) - (1.0 / torch.tanh(torch.tensor(kappa)).item() - 1.0 / kappa)) < 0.012
    assert bool(Sphere().contains(trajectory.measures.points).all())


def test_langevin_on_the_poincare_ball() -> None:
    """E dist^2 = .885 for exp(-2 dist^2) in dimension 3, where a retraction of first order gives .79."""
    space = Manifold(geoopt.PoincareBall())
    V = PotentialEnergy(lambda x: 2.0 * space.manifold.dist0(x).square())
    g = torch.Generator().manual_seed(0)
    start = DiscreteMeasure(space.manifold.expmap0(0.35 * normal(3000, 3)))
    trajectory = flow(V, start, Euler(0.02), 120, space=space, noise=Langevin(1.0), generator=g, record=20)
    points = trajectory.measures.points[2:]
    assert abs(float(space.distance(points, torch.zeros_like(points)).square().mean()) - 0.885) < 0.03

    class FirstOrder(Manifold):
        def retract(self, x: Tensor, v: Tensor) -> Tensor:
            return self._flat(self.manifold.retr(x, v), x)

    with pytest.raises(ValueError, match="follow no geodesic to second order"):
        flow(V, start, Euler(0.02), 2, space=FirstOrder(geoopt.PoincareBall()), noise=Langevin(1.0))


@pytest.mark.parametrize("name", ["box", "simplex"])
def test_reflected_noise_keeps_the_uniform_law(name: str) -> None:
    space: Space = Box() if name == "box" else Simplex()
    g = torch.Generator().manual_seed(1)
    uniform = torch.rand(20000, 3, generator=g, dtype=D)
    if name == "simplex":
        uniform = -uniform.log()
        uniform = uniform / uniform.sum(-1, keepdim=True)
    still = PotentialEnergy(lambda x: 0.0 * x.sum(-1))
    end = flow(still, DiscreteMeasure(uniform), Euler(0.02), 30, space=space, noise=Langevin(1.0), generator=g, record=30)
    points = end.measure.points
    assert bool(space.contains(points).all())
    mean, variance = (0.5, 1.0 / 12.0) if name == "box" else (1.0 / 3.0, 1.0 / 18.0)
    assert float((points.mean(0) - mean).abs().max()) < 0.008
    assert float((points.var(0) / variance - 1.0).abs().max()) < 0.03


def test_reflected_langevin_in_a_half_space_has_the_cut_law() -> None:
    """Of exp(-|x|^2/2) where x >= 0: half a normal law."""
    space = HalfSpace(torch.tensor([1.0, 0.0], dtype=D))
    V, g = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1)), torch.Generator().manual_seed(2)
    start = DiscreteMeasure(normal(8000, 2).abs())
    end = flow(V, start, Euler(0.01), 300, space=space, noise=Langevin(1.0), generator=g, record=50)
    x = end.measures.points[2:, :, 0]
    assert float(x.min()) >= 0.0
    assert abs(float(x.mean()) - (2.0 / torch.pi) ** 0.5) < 0.02
    assert abs(float(x.square().mean()) - 1.0) < 0.03


@pytest.mark.parametrize("kind", ["matrix", "diagonal", "wrong"])
def test_preconditioned_langevin_has_the_law_without_the_matrix(kind: str) -> None:
    """For C = 1 + x^2 the law is normal; without the drift div C it would be exp(-V)/C."""

    def matrix(x: Tensor) -> Tensor:
        return torch.eye(2, dtype=x.dtype) + 0.5 * x.unsqueeze(-1) * x.unsqueeze(-2)

    V, g = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1)), torch.Generator().manual_seed(3)
    C = matrix if kind == "matrix" else lambda x: 1.0 + x.square()
    if kind == "wrong":  # a matrix whose derivatives are hidden
        C = lambda x: (1.0 + x.square()).detach()
    geometry = Preconditioned(C)
    end = flow(
        V, DiscreteMeasure(normal(3000, 2)), Euler(0.01), 250, geometry=geometry, noise=Langevin(1.0), generator=g, record=25
    )
    second = end.measures.points[4:].square().mean()
    if kind == "wrong":
        assert float(second) < 0.75
    else:
        assert abs(float(second) - 1.0) < 0.05


def test_mirrored_svgd_of_a_dirichlet_posterior() -> None:
    alpha = torch.tensor([2.0, 3.0, 5.0], dtype=D)
    F = KLDivergence(lambda x: ((alpha - 1.0) * x.log()).sum(-1), bandwidth=0.1)
    start = DiscreteMeasure(normal(60, 3).softmax(-1))
    end = flow(F, start, Euler(0.5), 600, geometry=Mirror(SimplexEntropy(), kernel=IMQ(1.0)), record=600).measure.points
    assert_close(end.sum(-1), torch.ones(60, dtype=D))
    assert_close(end.mean(0), alpha / 10.0, rtol=2e-3)
    assert_close(end.var(0), alpha * (10.0 - alpha) / 1100.0, rtol=5e-2)


MIRRORS = {
    "simplex": (SimplexEntropy(), torch.tensor([2.0, 3.0, 5.0], dtype=D)),
    "box": (BoxEntropy(), torch.tensor([2.0, 3.0], dtype=D)),
    "positive": (PositiveEntropy(), torch.tensor([2.0, 3.0], dtype=D)),
}


@pytest.mark.parametrize("name", MIRRORS)
def test_mirror_langevin_has_its_law(name: str) -> None:
    """Dirichlet, beta and gamma laws."""
    potential, alpha = MIRRORS[name]
    energies = {
        "simplex": lambda x: -((alpha - 1.0) * x.log()).sum(-1),
        "box": lambda x: -((alpha - 1.0) * x.log() + 2.0 * (1.0 - x).log()).sum(-1),
        "positive": lambda x: -((alpha - 1.0) * x.log() - x).sum(-1),
    }
    means = {"simplex": alpha / 10.0, "box": alpha / (alpha + 3.0), "positive": alpha}
    start = normal(3000, len(alpha), seed=5)
    start = {"simplex": start.softmax(-1), "box": start.sigmoid(), "positive": (0.5 * start).exp() * alpha}[name]
    geometry, g = Mirror(potential), torch.Generator().manual_seed(0)
    V = PotentialEnergy(energies[name])
    end = flow(V, DiscreteMeasure(start), Euler(0.01), 300, geometry=geometry, noise=Langevin(1.0), generator=g, record=25)
    points = end.measures.points[4:]
    assert bool(potential.contains(points).all())
    assert_close(points.mean((0, 1)), means[name], rtol=0.03)


@pytest.mark.parametrize("stepper", STEPPERS, ids=named)
def test_mirror_and_preconditioned_descents(stepper: Stepper) -> None:
    """Of the mean distance from a point inside; a constant preconditioner makes a stiff quadratic easy."""
    scale = torch.tensor([1.0, 100.0], dtype=D)
    V = PotentialEnergy(lambda x: 0.5 * (scale * x.square()).sum(-1))
    mu = DiscreteMeasure(normal(6, 2))
    end = flow(V, mu, stepper, 25, geometry=Preconditioned(1.0 / scale))
    plain = flow(PotentialEnergy(lambda x: 0.5 * x.square().sum(-1)), DiscreteMeasure(mu.points * scale.sqrt()), stepper, 25)
    assert_close(end.measure.points * scale.sqrt(), plain.measure.points, rtol=1e-5, scale=1.0)
    target = torch.tensor([0.2, 0.3, 0.5], dtype=D)
    F = PotentialEnergy(lambda x: 0.5 * (x - target).square().sum(-1))
    start = DiscreteMeasure(normal(6, 3).softmax(-1))
    end = flow(F, start, stepper, 40, geometry=Mirror(SimplexEntropy()), record=1)
    assert_close(end.measures.points.sum(-1), torch.ones_like(end.measures.weights))
    assert float(end.energies[-1]) < 0.15 * float(end.energies[0])


def test_euler_in_a_mirror_geometry_is_mirror_descent() -> None:
    target = torch.tensor([0.2, 0.3, 0.5], dtype=D)
    F = PotentialEnergy(lambda x: 0.5 * (x - target).square().sum(-1))
    x = normal(4, 3).softmax(-1)
    for potential in (SimplexEntropy(), BoxEntropy(), PositiveEntropy(), lambda z: (z * z.log()).sum(-1)):
        end = flow(F, DiscreteMeasure(x), Euler(0.5), 3, geometry=Mirror(potential)).measure.points
        y = x
        for _ in range(3):
            if isinstance(potential, SimplexEntropy):
                y = (y.log() - 0.5 * (y - target)).softmax(-1)
            elif isinstance(potential, BoxEntropy):
                y = (y.logit() - 0.5 * (y - target)).sigmoid()
            else:
                y = y * torch.exp(-0.5 * (y - target))
        assert_close(end, y, rtol=1e-9)


def test_underdamped_dynamics_have_the_exact_variance_of_a_quadratic() -> None:
    V, g = PotentialEnergy(lambda x: 2.0 * x.square().sum(-1)), torch.Generator().manual_seed(0)
    start = DiscreteMeasure(0.7 * normal(4000, 2))
    end = flow(V, start, Underdamped(0.6, friction=1.0, temperature=2.0), 120, generator=g, record=10)
    assert abs(float(end.measures.points[4:].square().mean()) - 0.5) < 0.015  # b/l, far from the limit of small steps
    still = flow(V, start, Underdamped(0.1, temperature=0.0), 300, generator=g).measure
    assert float(still.points.abs().max()) < 1e-4


def test_a_stopped_and_resumed_flow_is_the_same(tmp_path: Any) -> None:
    F = MMD(DiscreteMeasure(Sphere().project(normal(2, 6, 3, seed=1))), Gaussian(0.7))
    mu = DiscreteMeasure(Sphere().project(normal(2, 5, 3)))
    for stepper, noise in ((Underdamped(0.1), None), (Nesterov(0.1), None), (LBFGS(memory=5), None), (Euler(0.1), Langevin(0.1))):
        whole, half = (
            flow(F, mu, stepper, steps, space=Sphere(), noise=noise, generator=torch.Generator().manual_seed(1))
            for steps in (8, 4)
        )
        half.save(tmp_path / "half")
        # With a generator of its own, whose state is saved.
        rest = flow(F, Trajectory.load(tmp_path / "half"), stepper, 4, space=Sphere(), noise=noise)
        assert_close(rest.measure.points, whole.measure.points, units=0.0)


def test_samples_and_reactions_and_injected_noise_on_a_space() -> None:
    F = MMD(DiscreteMeasure(Sphere().project(normal(3, 6, 3, seed=1))), Gaussian(0.7))
    mu = DiscreteMeasure(Sphere().project(normal(3, 5, 3)))
    stop = Stop(rtol=1e-3, max_steps=400)
    together = flow(F, mu, AdaptiveEuler(), space=Sphere(), stop=stop)
    assert together.status.eq(Status.CONVERGED).all()
    alone = flow(F.rows(torch.tensor([1]), (3,)), mu[1:2], AdaptiveEuler(), space=Sphere(), stop=stop)
    assert_close(together.measure.points[1:2], alone.measure.points, rtol=1e-9)
    for options in ({"reaction": FisherRao(1.0)}, {"noise": NoiseInjection(0.3)}, {"geometry": Stein(Gaussian(1.0))}):
        trajectory = flow(F, mu, Euler(0.5), 30, space=Sphere(), generator=torch.Generator().manual_seed(0), **options)
        assert bool(Sphere().contains(trajectory.measures.points).all())
        assert bool((trajectory.energies[-1] < trajectory.energies[0]).all())
        assert bool((trajectory.dissipation >= 0).all())


def test_autograd_records_flows_on_spaces() -> None:
    slope = torch.tensor([0.4, -1.0, 0.7], dtype=D, requires_grad=True)
    start = Sphere().project(normal(2, 3))

    def end(slope: Tensor) -> Tensor:
        F = Quadratic(torch.zeros(3, 3, dtype=D), slope)
        return flow(F, DiscreteMeasure(start), Euler(0.3), 4, space=Sphere()).measure.points.flatten()

    assert torch.autograd.gradcheck(end, slope)


def test_a_torus_wants_periodic_functionals() -> None:
    torus, mu = Torus(1.0), DiscreteMeasure(torch.rand(6, 2, generator=torch.Generator().manual_seed(0), dtype=D))
    target = DiscreteMeasure(torch.tensor([[0.95, 0.05], [0.05, 0.95]], dtype=D))
    with pytest.raises(ValueError, match="periodic"):
        flow(MMD(target, Gaussian(0.3)), mu, Euler(0.1), 2, space=torus)
    F = MMD(target.push_forward(torus.embed), Gaussian(0.1))
    periodic = Functional.of(lambda mu: F(mu.push_forward(torus.embed)))
    trajectory = flow(periodic, mu, AdaptiveEuler(), 200, space=torus)
    assert bool(torus.contains(trajectory.measures.points).all())
    assert float(trajectory.energies[-1]) < 0.1 * float(trajectory.energies[0])


@pytest.mark.unchecked
def test_what_makes_no_sense_is_refused() -> None:
    mu = DiscreteMeasure(Sphere().project(normal(5, 3)))
    inside = DiscreteMeasure(mu.points.abs() / mu.points.abs().sum(-1, keepdim=True))
    V = PotentialEnergy(lambda x: x.square().sum(-1))

    class Plain(Euler):
        in_spaces = False

    cases: tuple[tuple[str, DiscreteMeasure, dict[str, Any]], ...] = (
        ("mu0: expected atoms of positive mass", DiscreteMeasure(2.0 * mu.points), {"space": Sphere()}),
        ("Mirror says itself how points move", inside, {"space": Simplex(), "geometry": Mirror(SimplexEntropy())}),
        ("in_spaces = True", mu, {"space": Sphere(), "stepper": Plain(0.1)}),
        ("Stein mixes velocities", inside, {"space": Simplex(), "geometry": Stein(Gaussian(1.0))}),
        ("adds up vectors", DiscreteMeasure(0.3 * mu.points), {"space": Manifold(geoopt.PoincareBall()), "geometry": Stein()}),
        ("not reflected at a boundary", inside, {"space": Simplex(), "stepper": Underdamped(0.1)}),
        ("noise of its own", mu, {"stepper": Underdamped(0.1), "noise": Langevin(1.0)}),
        ("or the stepper Underdamped", mu, {"stepper": Nesterov(0.1), "noise": Langevin(1.0)}),
        ("inside of the set", mu, {"geometry": Mirror(PositiveEntropy())}),
        ("space: expected a ddeq.spaces.Space", mu, {"space": "sphere"}),
    )
    for text, start, options in cases:
        with pytest.raises(ValueError, match=text):
            flow(V, start, steps=2, **({"stepper": Euler(0.1)} | options))
    F = KLDivergence(lambda x: -x.square().sum(-1), 0.3)
    with pytest.raises(ValueError, match="by parts"):
        flow(F, mu, Euler(0.1), 2, space=Sphere(), geometry=Stein(Gaussian(1.0)))


def test_euclidean_space_is_the_default() -> None:
    mu, F = DiscreteMeasure(normal(5, 2)), MMD(DiscreteMeasure(normal(4, 2, seed=1)), Gaussian(1.0))
    assert_close(flow(F, mu, steps=5, space=Euclidean()).measure.points, flow(F, mu, steps=5).measure.points, units=0.0)
    assert ddeq.spaces.Euclidean() == Euclidean()
