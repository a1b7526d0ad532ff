"""Solvers on equations of which it is known how many evaluations they take: linear ones, and those of scipy's tests."""

import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddeq import DiscreteMeasure, fixed_point
from ddeq.solvers import Anderson, Auto, Broyden, Implicit, NewtonKrylov, Picard, Status, Stop, Unrolled
from ddeq.testing import assert_close


def solve(f, start, solver, sign=1.0, rtol=1e-8, max_steps=400, in_atoms=False):
    """Zeros of a function of n numbers, as fixed points of z + f(z) or z - f(z): one atom in n dimensions, or n in one."""
    z = torch.as_tensor(start, dtype=torch.float64)
    shape = (-1, 1) if in_atoms else (1, -1)
    map = lambda mu: mu.with_points(mu.points + sign * f(mu.points.flatten()).reshape(shape))
    return fixed_point(map, DiscreteMeasure(z.reshape(shape)), solver=solver, stop=Stop(rtol=rtol, max_steps=max_steps))


def linear(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=g, dtype=torch.float64)
    b = torch.randn(n, generator=g, dtype=torch.float64)
    return a, b


class TestLinear:
    @pytest.mark.theorem("T9")
    @pytest.mark.parametrize("in_atoms", [False, True])
    @pytest.mark.parametrize(("solver", "most"), [(Anderson(memory=50), 30), (Broyden(memory=50), 45)], ids=repr)
    def test_twenty_equations(self, solver, most, in_atoms):
        """In exact arithmetic n + 2 evaluations by Anderson, which is GMRES, and 2 n + 1 by Broyden (Gay's theorem)."""
        for seed in range(5):
            a, b = linear(20, seed)
            solution = solve(lambda z, a=a, b=b: a @ z - b, torch.zeros(20), solver, in_atoms=in_atoms)
            assert solution.converged
            assert solution.evaluations <= most
            assert_close(solution.measure.points.flatten(), torch.linalg.solve(a, b), rtol=1e-5)

    @pytest.mark.parametrize("n", [1, 2, 4, 9])
    def test_of_any_number(self, n):
        for seed in range(5):
            a, b = linear(n, seed)
            for solver, most in (
                (Anderson(memory=n + 2), n + 4),
                (Broyden(memory=2 * n + 2), 2 * n + 6),
                (NewtonKrylov(), n + 5),
            ):
                solution = solve(lambda z, a=a, b=b: a @ z - b, torch.zeros(n), solver)
                assert solution.converged, solver
                assert solution.evaluations <= most, solver

    @settings(max_examples=10)
    @given(seed=st.integers(0, 10_000))
    def test_rotations_in_fourteen_dimensions(self, seed):
        g = torch.Generator().manual_seed(seed)
        skew = torch.randn(14, 14, generator=g, dtype=torch.float64)
        turn, centre = torch.matrix_exp(skew - skew.T), torch.randn(14, generator=g, dtype=torch.float64)
        for solver in (Anderson(memory=30), Broyden(memory=30)):
            solution = solve(lambda z: turn @ (z - centre) + centre - z, torch.zeros(14), solver)
            assert solution.converged
            assert solution.evaluations <= 30

    def test_the_same_beside_samples_that_are_far_from_linear(self):
        """Trials and returns are each sample's own."""
        a, b = linear(6)
        affine = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)

        def map(mu, affine):
            z, k = mu.points, affine[..., None, None]
            return mu.with_points(z + k * (z @ a.T - b) - (1.0 - k) * torch.arctan(z))

        starts = DiscreteMeasure(torch.stack([torch.zeros(1, 6), torch.full((1, 6), 9.0), torch.full((1, 6), -3.0)]).double())
        stop = Stop(rtol=1e-8, max_steps=200)
        for solver in (Anderson(memory=20), Broyden(memory=20), Anderson(memory=20, kind="I")):
            together = fixed_point(map, starts, affine, in_dims=0, solver=solver, stop=stop)
            assert together.converged.all()
            for i in range(3):
                alone = fixed_point(map, starts[i], affine[i], solver=solver, stop=stop)
                assert alone.steps == together.steps[i]
                assert (alone.measure.points - together.measure[i].points).abs().max() < 1e-8


def small_cubic(z):
    return -torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5], dtype=z.dtype) * z - 0.01 * (z @ z) * z


def badly_scaled(z):
    """Powell's."""
    a = 1e4
    return torch.stack([a * z[0] * z[1] - 1.0, torch.exp(-z[0]) + torch.exp(-z[1]) - (1.0 + 1.0 / a)])


def pipes(z):
    """Flows through four parallel pipes, whose pressures agree and which add up to four."""
    pressure = 0.5 * z.square()
    return torch.cat([pressure[1:] - pressure[:1], (z.sum() - 4.0)[None]])


def wavy(z):
    matrix = torch.tensor([[-4.256, 14.7], [0.8394989, 0.59964207]], dtype=z.dtype)
    x, y = z
    return -torch.linalg.solve(matrix, torch.stack([(x + 3.0) * (y**5 - 7.0) + 18.0, torch.sin(y * torch.exp(x) - 1.0)]))


SCIPY = {
    "F": (small_cubic, [1.0] * 5),
    "F4": (badly_scaled, [-1.0, -2.0]),
    "F5": (pipes, [2.0, 0.0, 2.0, 0.0]),
    "F6": (wavy, [-0.5, 1.4]),
}


def counted_by_scipy(f, start, method):
    calls = []

    def counting(z):
        calls.append(z)
        return f(torch.as_tensor(z)).numpy()

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = scipy.optimize.root(counting, np.array(start), method=method, options={"maxiter": 500})
    return len(calls) if found.success else np.inf


class TestOfScipy:
    @pytest.mark.parametrize("name", ["F", "F5", "F6"])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_secant_methods(self, name, sign):
        f, start = SCIPY[name]
        for solver in (Anderson(), Anderson(memory=50), Broyden(), Broyden(memory=50), Auto()):
            solution = solve(f, start, solver, sign)
            assert solution.converged, solver
            assert solution.evaluations <= 26, solver

    def test_powell_badly_scaled(self):
        f, start = SCIPY["F4"]
        for solver in (Anderson(), Anderson(memory=50), Broyden(), Broyden(memory=50), Auto()):
            solution = solve(f, start, solver)
            assert solution.converged, solver
            assert solution.evaluations <= counted_by_scipy(f, start, "broyden1"), solver

    @pytest.mark.parametrize("name", list(SCIPY))
    def test_newton_krylov(self, name):
        """No more than scipy's, which stops at a looser tolerance."""
        f, start = SCIPY[name]
        solution = solve(f, start, NewtonKrylov(), rtol=1e-6)
        wanted = counted_by_scipy(f, start, "krylov")
        assert (solution.evaluations if solution.converged else np.inf) <= wanted

    def test_where_the_first_image_is_infinite(self):
        f, start = SCIPY["F4"]
        assert not torch.isfinite(f(torch.tensor(start).double() - f(torch.tensor(start).double()))).all()
        assert solve(f, start, Anderson(), sign=-1.0).converged


FLAT = [  # (a, start, evaluations that they took before trials)
    (1.0, 9.0, {"Anderson": 59, "Broyden": 14}),
    (3.0, 9.0, {"Anderson": 33, "Broyden": 11}),
    (10.0, 9.0, {"Anderson": 22, "Broyden": 8}),
]


@pytest.mark.parametrize(("slope", "start", "most"), FLAT)
def test_where_extrapolation_is_a_loss(slope, start, most):
    for solver in (Anderson(), Broyden()):
        solution = solve(lambda z: -slope * torch.arctan(z), [start], solver)
        assert solution.converged
        assert solution.evaluations <= most[type(solver).__name__]


class TestFalseConvergence:
    def test_a_translation_never_converges(self):
        """Next to iterates that only grow, the residual becomes small."""
        mu = DiscreteMeasure(torch.zeros(1, 1, dtype=torch.float64))
        for solver in (Picard(), Picard(0.5), Anderson(), Broyden(), NewtonKrylov(), Auto()):
            solution = fixed_point(
                lambda mu: mu.push_forward(lambda z: z - 1), mu, solver=solver, stop=Stop(1e-2, max_steps=1000)
            )
            assert not solution.converged, solver

    @pytest.mark.parametrize("metric", [None, "Wasserstein"])
    def test_with_a_metric_too(self, metric):
        from ddeq.functionals import Wasserstein

        mu = DiscreteMeasure(torch.zeros(2, 1, dtype=torch.float64))
        stop = Stop(1e-1, max_steps=30, metric=None if metric is None else Wasserstein)
        solution = fixed_point(lambda mu: mu.push_forward(lambda z: z - 1), mu, solver=Picard(), stop=stop)
        assert solution.status == Status.MAX_STEPS
        assert solution.residual < 1e-1

    def test_a_residual_that_came_down_by_half_has_converged_far_from_the_start(self):
        mu = DiscreteMeasure(torch.zeros(1, 1, dtype=torch.float64))
        solution = fixed_point(lambda mu: mu.push_forward(lambda z: 0.5 * z + 1e6), mu, solver=Picard(), stop=Stop(rtol=1e-3))
        assert solution.converged
        assert_close(solution.measure.points, torch.full((1, 1), 2e6, dtype=torch.float64), rtol=2e-3)

    def test_a_start_near_the_solution_passes_at_once(self):
        mu = DiscreteMeasure(torch.full((1, 1), 2.0001, dtype=torch.float64))
        solution = fixed_point(lambda mu: mu.push_forward(lambda z: 0.5 * z + 1), mu, solver=Picard(), stop=Stop(rtol=1e-3))
        assert solution.converged
        assert solution.evaluations == 1


class TestAutoIsBounded:
    @pytest.mark.parametrize("max_steps", [0, 1, 35, 60, 100, 300])
    @pytest.mark.parametrize("power", [2, 3])
    def test_where_fixed_points_are_weakly_isolated(self, power, max_steps):
        calls = []

        def f(z):
            calls.append(z)
            return -(z**power)

        solution = solve(f, torch.linspace(0.5, 2.0, 30), Auto(), rtol=1e-10, max_steps=max_steps)
        assert solution.evaluations <= max_steps + 1
        assert len(calls) <= max_steps + 1
        if not solution.converged:
            assert solution.status == Status.MAX_STEPS

    def test_each_sample_by_itself(self):
        starts = DiscreteMeasure(torch.tensor([9.0, -7.0, 5.0], dtype=torch.float64).reshape(3, 1, 1))
        map = lambda mu: mu.push_forward(lambda z: z - torch.arctan(z) - 0.3 * torch.sin(3 * z))
        for max_steps in (10, 16, 80):
            stop = Stop(rtol=1e-10, max_steps=max_steps)
            together = fixed_point(map, starts, solver=Auto(patience=3), stop=stop)
            for i in range(3):
                alone = fixed_point(map, starts[i], solver=Auto(patience=3), stop=stop)
                assert (alone.status, alone.steps) == (together.status[i], together.steps[i])
                assert alone.evaluations <= max_steps + 1
        assert together.used["NewtonKrylov"][1] > 0


@pytest.mark.parametrize("solver", [Anderson(memory=20), Broyden(memory=20), NewtonKrylov(), Auto()], ids=repr)
def test_implicit_gradients_of_systems_that_do_not_contract(solver):
    a, b = linear(5)
    mu = DiscreteMeasure(torch.zeros(1, 5, dtype=torch.float64))

    def end(a, b):
        map = lambda mu, a, b: mu.with_points(mu.points + mu.points @ a.T - b)
        return fixed_point(map, mu, a, b, solver=solver, stop=Stop(rtol=1e-12, max_steps=200), adjoint=Implicit()).measure.points

    assert torch.autograd.gradcheck(end, (a.requires_grad_(), b.requires_grad_()), atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps"), [(Anderson(memory=20), 5), (Broyden(memory=20), 5), (Anderson(kind="I"), 3)], ids=repr
)
def test_unrolled_gradients_of_trials(solver, steps):
    """Steps that are tried, resumed or given up are differentiated as they were taken (those of type I become singular)."""
    mu = DiscreteMeasure(torch.tensor([[9.0], [2.0]], dtype=torch.float64))

    def end(slope):
        map = lambda mu, s: mu.push_forward(lambda z: z - s * torch.arctan(z) + 0.1 * mu.mean())
        stop = Stop(rtol=1e-14, max_steps=steps)
        return fixed_point(map, mu, slope, solver=solver, stop=stop, adjoint=Unrolled()).measure.points

    assert torch.autograd.gradcheck(end, torch.tensor(1.3, dtype=torch.float64, requires_grad=True), atol=1e-5)
