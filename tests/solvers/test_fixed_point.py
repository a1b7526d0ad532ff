"""Solves: known fixed points, a status for every sample, independence of the batch, bad input."""

import copy
import math

import pytest
import torch
from hypothesis import given
from maps import SOLVERS, TIGHT, affine, linear, mean_field, point, random_matrix
from torch import nn

from ddeq import ConvergenceError, DiscreteMeasure, fixed_point
from ddeq.flows import Euler
from ddeq.functionals import MMD
from ddeq.kernels import Gaussian
from ddeq.solvers import Anderson, Implicit, ParticleFlow, Picard, Status, Stop, Unrolled
from ddeq.testing import assert_close, check_map, check_solution
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@each_solver
def test_known_fixed_points(solver):
    solution = fixed_point(affine, point(0.0), 0.5, 1.0, solver=solver, stop=TIGHT)
    assert solution.measure.points.item() == pytest.approx(2.0, abs=1e-11)
    solution = fixed_point(lambda mu: mu.push_forward(torch.cos), point(0.0), solver=solver, stop=TIGHT)
    assert solution.measure.points.item() == pytest.approx(0.7390851332151607, abs=1e-11)
    swap = torch.tensor([[0.0, 0.25], [0.25, 0.0]], dtype=torch.float64)
    start = DiscreteMeasure(torch.zeros(2, 1, dtype=torch.float64))
    solution = fixed_point(linear, start, swap, torch.tensor([1.0, 2.0], dtype=torch.float64), solver=solver, stop=TIGHT)
    assert solution.measure.points.flatten().tolist() == pytest.approx([1.6, 2.4])


@each_solver
@both_dtypes
def test_solutions_are_what_they_say(solver, dtype):
    mu = DiscreteMeasure(torch.randn(3, 5, 2, dtype=dtype), torch.rand(3, 5, dtype=dtype), torch.randn(3, 5, 2, dtype=dtype))
    stop = Stop(rtol=1e-5, max_steps=200)
    solution = fixed_point(mean_field, mu, 0.5, 0.1, solver=solver, stop=stop)
    assert solution.converged.all()
    assert solution.measure.dtype == dtype
    check_solution(mean_field, solution, 0.5, 0.1, stop=stop)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("radius", "factor"), [(0.5, 1.0), (0.9, 1.5), (0.99, 5.0)])
def test_anderson_needs_fewer_evaluations_than_picard(radius, factor, symmetric):
    problem = (random_matrix(radius, symmetric=symmetric), torch.randn(200, dtype=torch.float64))
    start = DiscreteMeasure(torch.zeros(20, 10, dtype=torch.float64))
    stop = Stop(rtol=1e-10, atol=1e-12, max_steps=3000)
    picard, anderson = (fixed_point(linear, start, *problem, solver=s, stop=stop) for s in (Picard(), Anderson()))
    assert picard.converged
    assert anderson.converged
    assert anderson.evaluations * factor <= picard.evaluations
    exact = torch.linalg.solve(torch.eye(200, dtype=torch.float64) - problem[0], problem[1]).reshape(20, 10)
    assert_close(anderson.measure.points, exact, rtol=1e-7)


def test_rotations_defeat_picard_and_not_anderson():
    angle = torch.tensor(2.0, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    start, centre = point(1.0, 0.0), torch.tensor([0.5, 0.5], dtype=torch.float64)

    def rotation(mu):
        return mu.push_forward(lambda x: (x - centre) @ turn.mT + centre)

    picard, anderson = (fixed_point(rotation, start, solver=s, stop=TIGHT) for s in (Picard(), Anderson()))
    assert Status(picard.status.item()) in (Status.MAX_STEPS, Status.STAGNATED)
    assert anderson.converged
    assert_close(anderson.measure.points[0], centre)


@both_dtypes
def test_divergence_is_seen(dtype):
    solution = fixed_point(affine, point(1.0, dtype=dtype), 10.0, 0.0, solver=Picard())
    assert solution.status.item() == Status.DIVERGED
    assert torch.isfinite(solution.measure.points).all()
    assert solution.evaluations < 15


@each_solver
def test_a_map_without_fixed_point_never_converges(solver):
    solution = fixed_point(lambda mu: mu.push_forward(lambda z: z.square() + 1), point(0.3), solver=solver)
    assert not solution.converged


@pytest.mark.theorem("T4")
def test_fixed_as_a_measure_only_is_not_converged():
    mu = DiscreteMeasure(torch.tensor([[-1.0], [1.0]]))
    solution = fixed_point(lambda mu: mu.push_forward(torch.neg), mu, solver=Picard())
    assert solution.residual.item() == pytest.approx(2.0, rel=1e-3)
    assert not solution.converged


def test_a_map_that_returns_nan_keeps_the_best_iterate():
    def breaks(mu):
        z = 0.5 * mu.points
        return mu.with_points(torch.where(z < 0.2, torch.nan, z))

    solution = fixed_point(breaks, point(1.0), solver=Picard())
    assert solution.status.item() == Status.DIVERGED
    assert solution.measure.points.item() in (1.0, 0.5, 0.25)
    at_once = fixed_point(lambda mu: mu.push_forward(lambda z: z * torch.nan), point(1.0))
    assert at_once.status.item() == Status.DIVERGED
    assert at_once.measure.points.item() == 1.0


MIXED = {"a": torch.tensor([0.1, 0.95, 10.0, 0.5, 0.0]), "b": torch.tensor([1.0, 1.0, 1.0, torch.nan, 3.0])}


@each_solver
@pytest.mark.parametrize("in_dims", [None, 0])
def test_a_samples_result_is_the_one_it_gets_alone(solver, in_dims):
    a, b = MIXED["a"].double(), MIXED["b"].double()
    mu = DiscreteMeasure(torch.ones(5, 3, 2, dtype=torch.float64))
    stop = Stop(rtol=1e-8, atol=1e-12, max_steps=60)
    together = fixed_point(affine, mu, a, b, in_dims=in_dims, solver=solver, stop=stop)
    for i in range(5):
        alone = fixed_point(affine, mu[i], a[i], b[i], solver=solver, stop=stop)
        assert together.status[i] == alone.status
        assert together.steps[i] == alone.steps
        assert_close(together.measure[i].points, alone.measure.points, rtol=1e-9)


def test_finished_samples_leave_the_computation():
    sizes = []

    def watched(mu, a):
        sizes.append(mu.batch_shape[0])
        return affine(mu, a, 1.0)

    mu, a = DiscreteMeasure(torch.ones(4, 2, 1)), torch.tensor([0.0, 0.1, 0.5, 0.9])
    solution = fixed_point(watched, mu, a, in_dims=0, solver=Picard(), stop=Stop(rtol=1e-3))
    assert solution.converged.all()
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert len(sizes) == solution.evaluations
    assert_close(solution.measure.points[:, 0, 0], 1 / (1 - a), rtol=1e-1)


@pytest.mark.theorem("T9")
@each_solver
@given(mu=measures(mark_dim=2, offsets=(0.0,), scales=(1.0,)))
def test_iterates_depend_on_the_measure_alone(solver, mu):
    """Few steps, so that it is the iterates that are compared and not the common limit.

    Nearly parallel differences multiply rounding, by up to one over the ridge; unweighted inner products would differ by 0.1.
    """
    stop = Stop(rtol=1e-12, max_steps=4)
    expected = fixed_point(mean_field, mu, 0.5, 0.1, solver=solver, stop=stop)
    changed = {"permuting the atoms": expected.measure.permute_atoms(torch.arange(mu.n).flip(0))}
    start = {"permuting the atoms": mu.permute_atoms(torch.arange(mu.n).flip(0))}
    for name, same in same_measure(mu).items():
        if name != "permuting the atoms":
            start[name], changed[name] = same, same_measure(expected.measure)[name]
    for name in start:
        actual = fixed_point(mean_field, start[name], 0.5, 0.1, solver=solver, stop=stop)
        n = changed[name].n if "splitting" in name or "permuting" in name else mu.n
        assert_close(actual.measure.points[..., :n, :], changed[name].points[..., :n, :], name, scale=1.0, rtol=1e-6)
        assert torch.equal(actual.steps, expected.steps)


@pytest.mark.theorem("T5")
def test_without_marks_a_contraction_collapses_and_with_marks_it_does_not():
    mu = DiscreteMeasure(torch.randn(6, 2, dtype=torch.float64))
    check_map(mean_field, [mu], 0.5, 0.3)
    spread = lambda solution: solution.measure.covariance().trace().sqrt().item()
    assert spread(fixed_point(mean_field, mu, 0.5, 0.3, stop=TIGHT)) < 1e-9
    marked = mu.with_marks(torch.randn(6, 2, dtype=torch.float64))
    assert spread(fixed_point(mean_field, marked, 0.5, 0.3, stop=TIGHT)) > 0.1


@pytest.mark.theorem("T6")
def test_the_equilibrium_settles_as_marks_are_drawn():
    g = torch.Generator().manual_seed(0)

    def mean_with(n):
        marks = torch.randn(50, n, 1, generator=g, dtype=torch.float64)
        mu = DiscreteMeasure(torch.zeros(50, n, 1, dtype=torch.float64), marks=marks)
        return fixed_point(mean_field, mu, 0.5, 0.3, stop=TIGHT).measure.mean()

    limit = mean_with(20000).mean()
    errors = [(mean_with(n) - limit).square().mean().sqrt().item() for n in (16, 256)]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.4)  # n^(-1/2)


@pytest.mark.theorem("T8")
@given(start=measures(dim=1, offsets=(0.0,), scales=(1.0,), batch_shapes=((),), dead_atoms=False))
def test_the_error_bound_holds_for_affine_contractions(start):
    solution = fixed_point(affine, start, 0.8, 1.0, solver=Picard(), stop=Stop(rtol=1e-3))
    distance = (start.weights * (solution.measure.points.squeeze(-1) - 5.0).square()).sum().sqrt()
    if solution.steps > 0:
        assert distance <= solution.error_bound * (1 + 1e-9)


@pytest.mark.parametrize("target", ["moving", "frozen"])
def test_particle_flow_descends_to_the_fixed_point(target):
    mu = DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64), marks=torch.randn(4, 2, dtype=torch.float64))
    solver = ParticleFlow(lambda nu: MMD(nu, Gaussian(0.5)), Euler(0.5), target=target)
    exact = fixed_point(mean_field, mu, 0.3, 0.1, stop=TIGHT)
    solution = fixed_point(mean_field, mu, 0.3, 0.1, solver=solver, stop=Stop(rtol=1e-2, max_steps=2000), trace=True)
    assert MMD(exact.measure)(solution.measure) < 0.1 * MMD(exact.measure)(mu)
    per_step = 2 if target == "moving" else 1
    assert solution.evaluations == per_step * int(solution.steps) + 1


def test_trace_callback_and_throw():
    residuals = []
    stop = Stop(rtol=1e-10, max_steps=5)
    with pytest.raises(ConvergenceError, match="MAX_STEPS") as caught:
        fixed_point(affine, point(0.0), 0.5, 1.0, solver=Picard(), stop=stop, trace=True, throw=True, callback=residuals.append)
    solution = caught.value.solution
    assert len(solution.trace) == 6 == len(residuals)
    assert_close(torch.stack([r.residual for r in residuals]), solution.trace)
    assert fixed_point(affine, point(0.0), 0.5, 1.0).trace is None


def test_zero_and_two_steps():
    at_start = fixed_point(affine, point(0.0), 0.5, 1.0, solver=Picard(), stop=Stop(max_steps=0))
    assert (at_start.measure.points.item(), at_start.evaluations) == (0.0, 1)
    later = fixed_point(affine, point(0.0), 0.5, 1.0, solver=Picard(), stop=Stop(max_steps=2))
    assert (later.measure.points.item(), later.evaluations, later.steps.item()) == (1.5, 3, 2)


def test_a_singular_history_does_no_harm():
    """All atoms of the image coincide after one step: differences become parallel, then zero."""
    mu = DiscreteMeasure(torch.randn(5, 3))
    solution = fixed_point(lambda mu: mu.with_points(torch.ones_like(mu.points)), mu, stop=Stop(rtol=1e-6))
    assert solution.converged
    slow = fixed_point(affine, mu, 0.999, 0.0, stop=Stop(rtol=1e-6, max_steps=30))
    assert torch.isfinite(slow.measure.points).all()


def test_solutions_can_be_copied_and_shown():
    solution = fixed_point(affine, point(0.0), 0.5, 1.0)
    assert "1 CONVERGED" in repr(solution)
    assert copy.deepcopy(solution).measure.points.item() == solution.measure.points.item()
    assert math.isfinite(solution.error_bound.item())


MU = DiscreteMeasure(torch.randn(2, 3, 2))
IDENTITY = lambda mu, *args: mu


class Doubles(nn.Module):
    def forward(self, mu):
        return mu.to(torch.float64)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fixed_point(lambda mu: mu.split_atom(0, 0.5), MU), ValueError, "map: .*number of atoms"),
        (lambda: fixed_point(Doubles(), MU), ValueError, "map: .*float32.*float64"),
        (lambda: fixed_point(lambda mu: mu.points, MU), ValueError, "map: .*DiscreteMeasure"),
        (lambda: fixed_point(lambda mu: 2 * mu, MU), ValueError, "map: .*weights"),
        (lambda: fixed_point(lambda mu: mu.with_marks(mu.points), MU), ValueError, "map: .*marks"),
        (lambda: fixed_point(IDENTITY, MU.points), ValueError, "mu0: "),
        (lambda: fixed_point(3, MU), ValueError, "map: "),
        (lambda: fixed_point(IDENTITY, MU, solver="anderson"), ValueError, "solver: "),
        (lambda: fixed_point(IDENTITY, MU, solver=Anderson), ValueError, "solver: "),
        (lambda: fixed_point(IDENTITY, MU, adjoint="implicit"), ValueError, "adjoint: "),
        (lambda: fixed_point(IDENTITY, MU, stop=1e-3), ValueError, "stop: "),
        (lambda: fixed_point(IDENTITY, MU, tolerance=1e-3), TypeError, "tolerance"),
        (lambda: fixed_point(IDENTITY, MU, torch.zeros(3), in_dims=0), ValueError, "in_dims: .*size 2"),
        (lambda: fixed_point(IDENTITY, MU[0], torch.zeros(3), in_dims=0), ValueError, "in_dims: .*single"),
        (lambda: Picard(1.0), ValueError, "damping"),
        (lambda: Anderson(0), ValueError, "memory"),
        (lambda: Anderson(ridge=-1.0), ValueError, "ridge"),
        (lambda: Anderson(restart=0.5), ValueError, "restart"),
        (lambda: ParticleFlow(target="still"), ValueError, "target"),
        (lambda: ParticleFlow(stepper=0.1), ValueError, "stepper"),
        (lambda: Implicit(on_failure="ignore"), ValueError, "on_failure"),
        (lambda: Unrolled(-1), ValueError, "steps"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_error_bounds_are_infinite_where_nothing_contracts():
    solution = fixed_point(lambda mu: mu.push_forward(torch.neg), DiscreteMeasure(torch.randn(3, 2)), solver=Picard(0.5))
    assert solution.converged
    assert solution.error_bound == torch.inf


def test_no_mass_is_an_error_not_a_solution():
    with pytest.raises(ValueError, match=r"mu0: .*positive total mass"):
        fixed_point(IDENTITY, MU.with_weights(torch.zeros(2, 3)))


def test_inside_function_transforms_there_is_one_clear_error():
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.vmap(lambda mu: fixed_point(IDENTITY, mu).measure)(MU)


def test_patience_is_an_option():
    slow = fixed_point(
        lambda mu: mu.push_forward(lambda x: x + 0.01 * (x - x**3)),
        point(1e-4),
        solver=Picard(),
        stop=Stop(max_steps=3000, patience=3000),
    )
    assert slow.converged
    assert slow.measure.points.item() == pytest.approx(1.0, abs=1e-1)


def test_particle_flow_with_one_step_size_for_each_sample():
    solver = ParticleFlow(MMD, Euler(torch.tensor([0.1, 0.2])))
    mu, a = DiscreteMeasure(torch.randn(2, 3, 2)), torch.tensor([0.0, 0.5])
    assert fixed_point(affine, mu, a, 1.0, in_dims=(0, None), solver=solver, stop=Stop(max_steps=5)).measure.n == 3
