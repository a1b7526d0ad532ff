"""Fixed points of maps on measures that live on a space: they stay there, and derivatives are those along it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddeq import DiscreteMeasure, fixed_point
from ddeq.iteration import Stop, Unrolled
from ddeq.solvers import Anderson, Auto, Broyden, NewtonKrylov, Picard, Solver
from ddeq.spaces import Box, Simplex, Sphere, Torus
from ddeq.testing import assert_close

D = torch.float64
STOP = Stop(rtol=1e-11, atol=1e-13, max_steps=300)
A = torch.tensor([[3.0, 0.4, 0.1], [0.4, 2.0, -0.3], [0.1, -0.3, 1.0]], dtype=D)
SOLVERS = (Picard(), Anderson(), Broyden(), NewtonKrylov(), Auto())


def starts(n: int = 4) -> Tensor:
    """Points not far from the first eigenvector, as Newton's method wants them."""
    noise = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(3), dtype=D)
    return Sphere().project(torch.linalg.eigh(A).eigenvectors[:, -1].abs() + 0.2 * noise)


def power(mu: DiscreteMeasure, matrix: Tensor) -> DiscreteMeasure:
    """A step of the power method, which off the sphere forgets the length of a point."""
    return mu.with_points(Sphere().project(mu.points @ matrix))


def turned(mu: DiscreteMeasure, matrix: Tensor) -> DiscreteMeasure:
    """The same map continued off the sphere so that its derivative along the normal is the identity."""
    length = mu.points.norm(dim=-1, keepdim=True)
    return mu.with_points(length * Sphere().project(mu.points @ matrix))


@pytest.mark.theorem(22)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("map", [power, turned])
def test_the_power_method_finds_the_first_eigenvector_and_its_derivative(solver: Solver, map: object) -> None:
    mu0 = DiscreteMeasure(starts())
    matrix = A.clone().requires_grad_()
    seen: list[float] = []

    def watch(report: object) -> None:
        seen.append(float((report.value.norm(dim=-1) - 1.0).abs().max()))  # type: ignore[attr-defined]

    solution = fixed_point(map, mu0, matrix, space=Sphere(), solver=solver, stop=STOP, callback=watch)
    assert bool(solution.converged.all())
    assert max(seen) < 1e-14
    values, vectors = torch.linalg.eigh(A)
    first = vectors[:, -1] * vectors[:, -1].sum().sign()
    assert_close(solution.measure.points, first.expand(2, 4, 3), rtol=1e-8)
    # d v = (lambda - A)^+ dA v
    u = torch.tensor([0.3, -1.0, 0.5], dtype=D)
    (slope,) = torch.autograd.grad((solution.measure.points[0, 0] * u).sum(), matrix)
    inverse = torch.linalg.pinv(values[-1] * torch.eye(3, dtype=D) - A, rtol=1e-10)
    expected = torch.outer(first, inverse @ u)  # of points @ matrix
    assert_close(slope, expected, rtol=1e-6)


@pytest.mark.theorem(22)
def test_derivatives_agree_with_unrolled_steps() -> None:
    mu0 = DiscreteMeasure(starts(2))
    slopes = []
    for options in ({}, {"adjoint": Unrolled(), "solver": Picard(), "stop": Stop(rtol=1e-12, max_steps=120)}):
        matrix = A.clone().requires_grad_()
        points = fixed_point(power, mu0, matrix, space=Sphere(), **({"stop": STOP} | options)).measure.points
        slopes.append(torch.autograd.grad(points.sin().sum(), matrix)[0])
    assert_close(slopes[0], slopes[1], rtol=1e-6)


def test_iterates_stay_in_a_box_where_extrapolation_leads_out() -> None:
    box = Box(0.0, 1.0)
    mu0 = DiscreteMeasure(torch.full((1, 2), 0.5, dtype=D))
    limit = torch.tensor([1.0, 0.9], dtype=D)
    seen: list[Tensor] = []

    def map(mu: DiscreteMeasure) -> DiscreteMeasure:
        seen.append(mu.points.detach().clone())
        return mu.with_points(box.project(limit + 0.9 * (mu.points - limit) + 0.3 * (mu.points - limit).square()))

    solution = fixed_point(map, mu0, space=box, stop=STOP)
    assert bool(solution.converged.all())
    assert_close(solution.measure.points[0], limit, rtol=1e-8)
    assert all(bool(box.contains(p).all()) for p in seen)
    assert max(float(p.max()) for p in seen) <= 1.0


def test_a_fixed_point_across_the_cut_of_a_torus() -> None:
    torus = Torus(1.0)
    mu0 = DiscreteMeasure(torch.tensor([[0.8], [0.1]], dtype=D))

    def map(mu: DiscreteMeasure) -> DiscreteMeasure:
        x = mu.points
        return mu.with_points(torus.project(x - 0.1 * (2 * torch.pi * (x - 0.99)).sin()))

    for solver in (Picard(), Anderson(), Broyden()):
        solution = fixed_point(map, mu0, space=torus, solver=solver, stop=STOP)
        assert bool(solution.converged.all())
        assert bool(torus.contains(solution.measure.points).all())
        assert_close(solution.measure.points, torch.full((2, 1), 0.99, dtype=D), rtol=1e-8)


def test_points_and_weights_move_together_on_a_space() -> None:
    def map(mu: DiscreteMeasure) -> DiscreteMeasure:
        grown = mu.weights * (1.0 + 0.5 * mu.points[..., 0].detach()) ** 0.5 + 0.1
        return power(mu, A).with_weights(grown / grown.sum(-1, keepdim=True) * mu.mass().unsqueeze(-1))

    solution = fixed_point(map, DiscreteMeasure(starts()), space=Sphere(), moves="both", stop=Stop(rtol=1e-8, max_steps=200))
    assert bool(solution.converged.all())
    assert float((solution.measure.points.norm(dim=-1) - 1.0).abs().max()) < 1e-14


def test_what_is_refused() -> None:
    mu0 = DiscreteMeasure(starts())
    with pytest.raises(ValueError, match=r"map: expected it to keep atoms on Sphere\(\)"):
        fixed_point(lambda mu: mu.with_points(0.5 * mu.points), mu0, space=Sphere())
    with pytest.raises(ValueError, match=r"mu0: expected atoms of positive mass in Simplex\(\)"):
        fixed_point(lambda mu: mu, mu0, space=Simplex())
