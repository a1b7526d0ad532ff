"""Everything that the library computes, small, as functions of a place: a dtype and a device. Results are trees of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ddeq import DiscreteMeasure, fixed_point, flow
from ddeq.flows import (
    LBFGS,
    AdaptiveEuler,
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
    Stein,
    Underdamped,
    equilibrium,
)
from ddeq.functionals import (
    KALE,
    KSD,
    MMD,
    Chamfer,
    DrMMD,
    Entropy,
    FixedPointDiscrepancy,
    Functional,
    InteractionEnergy,
    InternalEnergy,
    KLDivergence,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedMMD,
    SlicedWasserstein,
    Wasserstein,
)
from ddeq.iteration import Stop
from ddeq.kernels import IMQ, Gaussian, Laplace, Matern, Polynomial, Riesz, median_bandwidth
from ddeq.nn import DDEQ as Model
from ddeq.nn import (
    Classifier,
    Completer,
    ContractiveCell,
    EquilibriumCell,
    GaussianReference,
    InducedSetEncoder,
    LearnedReference,
    LocalEncoder,
    effective_support,
    jacobian_penalty,
    spectral_radius,
)
from ddeq.reductions import nearest_squared_distance
from ddeq.solvers import Anderson, Auto, Broyden, Implicit, NewtonKrylov, OneStep, ParticleFlow, Phantom, Picard, Unrolled
from ddeq.spaces import Box, HalfSpace, Simplex, Sphere


@dataclass(frozen=True)
class Place:
    """Where tensors are, and in what precision; they hold the same numbers in each place."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def put(self, t: Tensor) -> Tensor:
        return t.to(self.dtype).to(self.device)

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        return self.put(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    def cloud(self, n: int = 5, dim: int = 2, batch: tuple[int, ...] = (), seed: int = 0, marks: int = 0) -> DiscreteMeasure:
        """Atoms of different masses, the last of which is zero."""
        masses = torch.rand(*batch, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        masses[..., -1] = 0.0 if n > 1 else 1.0
        return DiscreteMeasure(
            self.normal(*batch, n, dim, seed=seed),
            self.put(masses / masses.sum(-1, keepdim=True)),
            self.normal(*batch, n, marks, seed=seed + 1) if marks else None,
        )


def half_square(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def contraction(mu: DiscreteMeasure) -> DiscreteMeasure:
    return mu.with_points(0.5 * torch.sin(mu.points) + 0.2 * mu.normalized().mean().unsqueeze(-2) + 0.1)


FUNCTIONALS: dict[str, Callable[[Place], Functional]] = {
    "potential": lambda p: PotentialEnergy(half_square),
    "interaction": lambda p: InteractionEnergy(lambda d: (-d.square().sum(-1)).exp() + 0.5 * d.square().sum(-1)),
    "mmd gaussian": lambda p: MMD(p.cloud(4, seed=3), Gaussian(1.0)),
    "mmd several gaussians": lambda p: MMD(p.cloud(4, seed=3), Gaussian([0.5, 2.0])),
    "mmd laplace": lambda p: MMD(p.cloud(4, seed=3), Laplace(1.0)),
    "mmd imq": lambda p: MMD(p.cloud(4, seed=3), IMQ(1.0)),
    "mmd matern": lambda p: MMD(p.cloud(4, seed=3), Matern(1.5, 1.0)),
    "mmd polynomial": lambda p: MMD(p.cloud(4, seed=3), Polynomial(2)),
    "mmd riesz": lambda p: MMD(p.cloud(4, seed=3), Riesz(1.0)),
    "mmd riesz 1.5": lambda p: MMD(p.cloud(4, seed=3), Riesz(1.5)),
    "sliced mmd": lambda p: SlicedMMD(p.cloud(4, seed=3), n_projections=5),
    "sliced mmd 1.5": lambda p: SlicedMMD(p.cloud(4, seed=3), r=1.5, n_projections=3),
    "sliced wasserstein": lambda p: SlicedWasserstein(p.cloud(4, seed=3), n_projections=5),
    "wasserstein": lambda p: Wasserstein(p.cloud(4, seed=3)),
    "entropy": lambda p: Entropy(0.7),
    "porous medium": lambda p: InternalEnergy(lambda rho: rho**2, 0.7),
    "kl": lambda p: KLDivergence(lambda x: -half_square(x), 0.7),
    "sinkhorn": lambda p: SinkhornDivergence(p.cloud(4, seed=3), blur=0.7),
    "sinkhorn with a reach": lambda p: SinkhornDivergence(p.cloud(4, seed=3), blur=0.7, reach=1.0),
    "ksd": lambda p: KSD(lambda x: -x, IMQ(1.0)),
    "kale": lambda p: KALE(p.cloud(4, seed=3), Gaussian(1.0), 0.5),
    "drmmd": lambda p: DrMMD(p.cloud(4, seed=3), Gaussian(1.0), 0.5),
    "chamfer": lambda p: Chamfer(p.cloud(4, seed=3)),
    "fixed point": lambda p: FixedPointDiscrepancy(contraction, lambda nu: MMD(nu, Gaussian(1.0))),
    "sum": lambda p: 0.5 * MMD(p.cloud(4, seed=3), Gaussian(1.0)) + PotentialEnergy(half_square) / 3,
}


def _values(name: str) -> Callable[[Place], Any]:
    def run(p: Place) -> Any:
        F, mu = FUNCTIONALS[name](p), p.cloud(5, batch=(2,))
        points = mu.points.requires_grad_()
        value = F(mu.with_points(points))
        (slope,) = torch.autograd.grad(value.sum(), points)
        if name == "chamfer":  # has no first variation
            return value, slope
        return value, slope, F.first_variation(mu.detach()), F.wasserstein_gradient(mu.detach(), p.normal(2, 3, 2, seed=8))

    return run


def _curvature(name: str) -> Callable[[Place], Any]:
    """Second derivatives in points and weights, where three atoms have the same mass and two the same place."""

    def run(p: Place) -> Any:
        F = FUNCTIONALS[name](p)
        points, weights = p.normal(4, 2, seed=4), p.put(torch.tensor([0.25, 0.25, 0.25, 0.25]))
        points, weights = points.requires_grad_(), weights.requires_grad_()
        mu = p.cloud(4, seed=4).detach().with_points(points).with_weights(weights)
        first = torch.autograd.grad(F(mu), (points, weights), create_graph=True, materialize_grads=True)
        moved = sum((g * p.normal(*g.shape, seed=6)).sum() for g in first)
        if not moved.requires_grad:
            return first
        return first, torch.autograd.grad(moved, (points, weights), materialize_grads=True)

    return run


def _flow(start: Callable[[DiscreteMeasure], DiscreteMeasure] = lambda mu: mu, **options: Any) -> Callable[[Place], Any]:
    """Options of a flow; a function of a place where it needs one."""

    def run(p: Place) -> Any:
        F = MMD(start(p.cloud(4, seed=3)), Gaussian(1.0)) + 0.1 * PotentialEnergy(half_square)
        given = {"steps": 4, "generator": torch.Generator().manual_seed(1)}
        given |= {name: value(p) if isinstance(value, FunctionType) else value for name, value in options.items()}
        t = flow(F, start(p.cloud(5, batch=(2,))), **given)
        return t.measures.points, t.measures.weights, t.energies, t.times, t.dissipation, t.status

    return run


def _positive(mu: DiscreteMeasure) -> DiscreteMeasure:
    return mu.push_forward(lambda x: x.abs() + 0.1)


def _onto_simplex(mu: DiscreteMeasure) -> DiscreteMeasure:
    return mu.push_forward(lambda x: x.softmax(-1))


def _onto_sphere(mu: DiscreteMeasure) -> DiscreteMeasure:
    return mu.push_forward(lambda x: x / x.norm(dim=-1, keepdim=True))


def _equilibrium(*, entropy: bool = False, **options: Any) -> Callable[[Place], Any]:
    def run(p: Place) -> Any:
        target = p.normal(1, 2, seed=3).requires_grad_()
        F = MMD(DiscreteMeasure(target), Gaussian(3.0)) + PotentialEnergy(half_square)
        F = F + 0.05 * Entropy(2.0) if entropy else F
        z = equilibrium(F, p.cloud(3, seed=1), stop=Stop(rtol=1e-3, max_steps=200), **options)
        (slope,) = torch.autograd.grad(z.measure.points.square().sum(), target)
        return z.measure.points, slope

    return run


def _fixed_point(moves: str = "points", rtol: float = 1e-3, **options: Any) -> Callable[[Place], Any]:
    def run(p: Place) -> Any:
        shift = p.normal(2, seed=2).requires_grad_()

        def map(mu: DiscreteMeasure, b: Tensor) -> DiscreteMeasure:
            if moves == "points":
                return contraction(mu).push_forward(lambda x: x + b)
            density = mu.support() * (-half_square(mu.points - b) - 0.5 * mu.weights).exp()
            density = density / density.sum(-1, keepdim=True)
            return mu.with_weights(0.5 * mu.weights + 0.5 * density * mu.mass().unsqueeze(-1))

        stop = Stop(rtol=rtol, max_steps=60)
        z = fixed_point(map, p.cloud(4, batch=(2,)), shift, moves=moves, stop=stop, **options)
        read = z.measure.points if moves == "points" else z.measure.weights
        (slope,) = torch.autograd.grad(read.square().sum(), shift)
        return read, slope, z.converged

    return run


def module(p: Place, build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A module with the same weights in each place."""
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        made = build()
    finally:
        torch.set_default_dtype(default)
    return made.to(p.dtype).to(p.device).eval()


def _model(build: Callable[[], torch.nn.Module], dim: int = 2) -> Callable[[Place], Any]:
    def run(p: Place) -> Any:
        model, rho = module(p, build), p.cloud(7, dim, batch=(2,))
        points = rho.points.requires_grad_()
        found = model(rho.with_points(points))
        found = found.points if isinstance(found, DiscreteMeasure) else found
        (slope,) = torch.autograd.grad(found.square().sum(), points)
        return found, slope

    return run


def _ddeq(reference: Any, cell: Any, encoder: Any = lambda: InducedSetEncoder(2, 8, heads=2, inducing=3)) -> Any:
    return Model(encoder(), cell(), reference(), stop=Stop(rtol=1e-3, max_steps=100))


def _measures(p: Place) -> Any:
    mu, nu = p.cloud(5, batch=(2,), marks=1), p.cloud(3, batch=(2,), seed=1, marks=1)
    both = 2.0 * (mu + nu).split_atom(0, 0.3).pad_atoms(2)
    drawn = both.resample(4, torch.Generator().manual_seed(0))
    x = p.normal(2, 3, 2, seed=5)
    parts = (both, drawn, both.normalized(), both[1], both.permute_atoms(torch.arange(both.n, device=p.device).flip(0)))
    return (
        parts,
        both.mean(),
        both.covariance(),
        both.mass(),
        both.support(),
        median_bandwidth(mu, nu),
        nearest_squared_distance(x, mu),
    )


def _diagnostics(p: Place) -> Any:
    mu, g = p.cloud(4, batch=(2,)), torch.Generator()
    return (
        spectral_radius(contraction, mu, generator=g.manual_seed(0)),
        jacobian_penalty(contraction, mu, generator=g.manual_seed(0)),
        effective_support(mu),
    )


RUNS: dict[str, Callable[[Place], Any]] = {
    "measures": _measures,
    "diagnostics": _diagnostics,
    **{f"values of {name}": _values(name) for name in FUNCTIONALS},
    **{f"curvature of {name}": _curvature(name) for name in FUNCTIONALS},
    "flow euler": _flow(stepper=Euler(0.1)),
    "flow schedule": _flow(stepper=Euler(lambda k: 0.5 / (k + 1))),
    "flow for each sample": _flow(stepper=lambda p: Euler(p.put(torch.tensor([0.1, 0.3])))),
    "flow heun": _flow(stepper=Heun(0.1)),
    "flow nesterov": _flow(stepper=Nesterov(0.1)),
    "flow adaptive": _flow(stepper=AdaptiveEuler()),
    "flow lbfgs": _flow(stepper=LBFGS(3)),
    "flow proximal": _flow(stepper=Proximal(0.5)),
    "flow underdamped": _flow(stepper=Underdamped(0.1)),
    "flow langevin": _flow(stepper=Euler(0.1), noise=Langevin(0.1)),
    "flow injection": _flow(stepper=Euler(0.1), noise=NoiseInjection(0.1)),
    "flow stein": _flow(stepper=Euler(0.1), geometry=Stein()),
    "flow reaction": _flow(stepper=Euler(0.1), reaction=FisherRao(1.0)),
    "flow births": _flow(stepper=Euler(0.1), reaction=FisherRao(20.0, birth_death=True)),
    "flow preconditioned": _flow(geometry=lambda p: Preconditioned(p.put(torch.tensor([[2.0, 0.5], [0.5, 1.0]])))),
    "flow box": _flow(space=Box(-3.0, 3.0), noise=Langevin(0.1)),
    "flow half-space": _flow(space=lambda p: HalfSpace(p.put(torch.tensor([1.0, 0.0])), -9.0), stepper=Heun(0.1)),
    "flow simplex": _flow(space=Simplex(), start=_onto_simplex),
    "flow sphere": _flow(space=Sphere(), start=_onto_sphere, stepper=Nesterov(0.1)),
    "flow mirror": _flow(geometry=Mirror(PositiveEntropy()), start=_positive),
    "flow stopped": _flow(stepper=Nesterov(0.5), stop=Stop(rtol=1e-2, max_steps=60), steps=None),
    "flow by energy": _flow(stepper=Euler(0.3), stop=Stop(rtol=1e-2, max_steps=60, metric="energy"), steps=None),
    "equilibrium": _equilibrium(),
    "equilibrium of an entropy": _equilibrium(entropy=True),
    "equilibrium by adaptive steps": _equilibrium(stepper=AdaptiveEuler()),
    **{
        f"fixed point by {type(solver).__name__}": _fixed_point(solver=solver)
        for solver in (
            Picard(),
            Picard(damping=0.3),
            Anderson(),
            Broyden(),
            NewtonKrylov(),
            Auto(),
        )
    },
    "fixed point by ParticleFlow": _fixed_point(rtol=0.1, solver=ParticleFlow()),
    "fixed point by ParticleFlow of MMD": _fixed_point(rtol=0.3, solver=ParticleFlow(MMD, Euler(1.0))),
    "fixed point by optimal coupling": _fixed_point(solver=Picard(coupling="optimal")),
    **{
        f"fixed point with {type(adjoint).__name__}": _fixed_point(adjoint=adjoint)
        for adjoint in (Implicit(), Phantom(2), OneStep(), Unrolled(20))
    },
    "fixed point of weights": _fixed_point("weights"),
    "classifier": _model(
        lambda: Classifier(_ddeq(lambda: LearnedReference(3, 8, 2), lambda: EquilibriumCell(8, 2, heads=2)), 3, hidden=8)
    ),
    "local encoder": _model(
        lambda: Classifier(
            _ddeq(
                lambda: LearnedReference(3, 8, 2),
                lambda: EquilibriumCell(8, 2, heads=2),
                lambda: LocalEncoder(2, 8, features=8, inner=4, centres=5, pooled=8, heads=2),
            ),
            3,
        )
    ),
    "contractive cell": _model(
        lambda: Classifier(_ddeq(lambda: GaussianReference(8, 2, 3), lambda: ContractiveCell(8, 2, heads=2)), 3)
    ),
    "completer": _model(lambda: Completer(_ddeq(lambda: GaussianReference(8, 2, 3), lambda: EquilibriumCell(8, 2, heads=2)), 2)),
}
