"""What every solver must do on maps with and without fixed points, and what each alone can do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maps import EXTRAPOLATING, SOLVERS, TIGHT, affine, linear, mean_field, point, random_matrix

from ddeq import DiscreteMeasure, fixed_point
from ddeq.flows import Euler
from ddeq.functionals import MMD, SinkhornDivergence, Wasserstein
from ddeq.kernels import Gaussian
from ddeq.solvers import Anderson, Auto, Broyden, NewtonKrylov, ParticleFlow, Picard, Status, Stop
from ddeq.testing import assert_close, check_solution
from ddeq.testing.strategies import measures

each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
extrapolating = pytest.mark.parametrize("solver", EXTRAPOLATING, ids=repr)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def tolerance(dtype, **options):
    return Stop(rtol=1e-5 if dtype == torch.float32 else 1e-10, atol=1e-12, **{"max_steps": 1000, "patience": 1000} | options)


def pointwise(f):
    return lambda mu: mu.push_forward(f)


def turn(angle, dtype=torch.float64):
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=dtype)


class TestKnownFixedPoints:
    @each_solver
    @both_dtypes
    def test_affine_maps(self, solver, dtype):
        n = 24
        b = torch.linspace(-1, 1, n, dtype=torch.float64)
        for radius, symmetric in ((0.5, False), (0.9, False), (0.99, True)):
            a = random_matrix(radius, n, symmetric=symmetric)
            start = DiscreteMeasure(torch.zeros(6, 4, dtype=dtype))
            stop = tolerance(dtype, max_steps=3000, patience=3000)
            solution = fixed_point(linear, start, a.to(dtype), b.to(dtype), solver=solver, stop=stop)
            assert solution.converged
            exact = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - a, b).reshape(6, 4)
            assert_close(solution.measure.points, exact.to(dtype), rtol=300 * stop.rtol)

    @extrapolating
    @both_dtypes
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_expanding_affine_maps(self, solver, dtype, symmetric):
        a, b = random_matrix(1.01, 24, symmetric=symmetric), torch.linspace(-1, 1, 24, dtype=torch.float64)
        start = DiscreteMeasure(torch.zeros(6, 4, dtype=dtype))
        solution = fixed_point(linear, start, a.to(dtype), b.to(dtype), solver=solver, stop=tolerance(dtype))
        assert solution.converged
        check_solution(linear, solution, a.to(dtype), b.to(dtype), stop=tolerance(dtype))
        assert not fixed_point(linear, start, a.to(dtype), b.to(dtype), solver=Picard(), stop=tolerance(dtype)).converged

    @extrapolating
    @both_dtypes
    @given(angle=st.floats(0.3, 6.0), mu=measures(min_atoms=2, offsets=(0.0,), scales=(1.0,), batch_shapes=((),)))
    def test_rotations_about_a_point(self, solver, dtype, angle, mu):
        centre, matrix, start = torch.tensor([0.5, -0.3], dtype=dtype), turn(angle, dtype), mu.to(dtype)
        solution = fixed_point(
            pointwise(lambda x: (x - centre) @ matrix.mT + centre), start, solver=solver, stop=tolerance(dtype)
        )
        assert solution.converged
        live = solution.measure.points[start.support()]
        assert_close(live, centre.expand_as(live), rtol=1e4 * torch.finfo(dtype).eps / angle if dtype == torch.float32 else 1e-8)

    @each_solver
    def test_nonlinear_maps(self, solver):
        if isinstance(solver, Picard):
            return  # they do not contract
        maps = {
            "exp(-3 z)": (lambda z: torch.exp(-3 * z), 0.0, 0.3499699),
            "a logistic map in chaos": (lambda z: 3.9 * z * (1 - z), 0.3, 1 - 1 / 3.9),
            "a kink": (lambda z: 1 - 0.9 * z.relu(), 3.0, 1 / 1.9),
        }
        for name, (f, start, end) in maps.items():
            solution = fixed_point(pointwise(f), point(start), solver=solver, stop=TIGHT)
            assert solution.converged, name
            found = solution.measure.points.item()
            assert found == pytest.approx(end, abs=1e-6) or (name.startswith("a logistic") and abs(found) < 1e-10), name

    @extrapolating
    @both_dtypes
    def test_from_where_the_residual_is_flat(self, solver, dtype):
        """Secants through two nearly equal residuals lead far away; the way back leads to the solution."""
        flat = {
            "z - arctan z": lambda z: z - torch.arctan(z),
            "z - 3 arctan z": lambda z: z - 3.0 * torch.arctan(z),
            "z - tanh z": lambda z: z - torch.tanh(z),
        }
        starts = DiscreteMeasure(torch.tensor([9.0, -9.0, 7.0], dtype=dtype).reshape(-1, 1, 1))
        stop = Stop(rtol=1e-5 if dtype == torch.float32 else 1e-10, atol=1e-6, max_steps=300)
        for name, f in flat.items():
            solution = fixed_point(pointwise(f), starts, solver=solver, stop=stop)
            assert solution.converged.all(), name
            assert (solution.measure.points.abs() < 1e-4).all(), name


WITHOUT = {
    "z + 1": lambda x: x + 1,
    "z^2 + 1": lambda x: x.square() + 1,
    "exp": torch.exp,
    "z + 1 + sin(z) / 10": lambda x: x + 1 + 0.1 * torch.sin(x),
    "half, and on": lambda x: torch.cat([x[..., :1] / 2, x[..., 1:] + 0.3], -1),
    "a screw": lambda x: torch.cat([(x[..., :2] - 0.5) @ turn(2.0, x.dtype).mT + 0.5, x[..., 2:] + 1], -1),
}


@each_solver
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-3), (torch.float64, 1e-2), (torch.float64, 1e-8)], ids=str)
def test_maps_without_a_fixed_point_never_converge(solver, dtype, rtol):
    """Far enough away the residual of a translation is small next to the points: no solver may jump there."""
    g = torch.Generator().manual_seed(0)
    mu = DiscreteMeasure(torch.randn(5, 3, generator=g, dtype=torch.float64).to(dtype))
    for name, f in WITHOUT.items():
        solution = fixed_point(pointwise(f), mu, solver=solver, stop=Stop(rtol=rtol, max_steps=40))
        assert not solution.converged, name
        assert torch.isfinite(solution.measure.points).all(), name


@pytest.mark.parametrize("solver", [Anderson(), Anderson(kind="I"), Broyden()], ids=repr)
def test_acceleration_costs_no_evaluations(solver):
    """At most 1.2 times those of Picard's iteration and two, where that converges; and far fewer where that is slow."""
    w = random_matrix(0.9, 30, seed=3)
    maps = [
        mean_field,
        lambda mu, *_: mu.push_forward(torch.cos),
        lambda mu, *_: mu.push_forward(lambda z: 1 / (1 + z.square())),
        lambda mu, *_: mu.push_forward(lambda z: 2 + (1 + z.square()).log() / 2),
        lambda mu, *_: mu.with_points(torch.tanh(mu.points.flatten(-2) @ w.mT + 1).reshape(mu.points.shape)),
        lambda mu, *_: mu.with_points(torch.relu(0.8 * mu.points.flatten(-2) @ w.mT + 1).reshape(mu.points.shape)),
        lambda mu, *_: mu.with_points(mu.points.mean(-2, keepdim=True).expand_as(mu.points) / 2 + 1),
    ]
    g = torch.Generator().manual_seed(0)
    mu = DiscreteMeasure(torch.randn(10, 3, generator=g, dtype=torch.float64))
    for rtol in (1e-3, 1e-10):
        stop = Stop(rtol=rtol, atol=1e-12, max_steps=500)
        for f in maps:
            plain, fast = (fixed_point(f, mu, 0.5, 0.1, solver=s, stop=stop) for s in (Picard(), solver))
            assert plain.converged
            assert fast.converged
            assert fast.evaluations <= 1.2 * plain.evaluations + 2


@each_solver
def test_every_evaluation_is_counted(solver):
    calls = []

    def watched(mu):
        calls.append(mu)
        return mean_field(mu, 0.7, 0.3)

    g = torch.Generator().manual_seed(1)
    for check_every in (1, 7):
        calls.clear()
        stop = Stop(rtol=1e-9, check_every=check_every)
        solution = fixed_point(watched, DiscreteMeasure(torch.randn(3, 4, 2, generator=g).double()), solver=solver, stop=stop)
        assert solution.converged.all()
        assert solution.evaluations == len(calls)
        assert torch.equal(sum(solution.used.values()), solution.steps)


@each_solver
def test_a_batch_of_all_fates(solver):
    """Easy, hard, expanding, without a fixed point, NaN at once, NaN later: each gets what it gets alone."""
    kinds = torch.arange(6)

    def step(mu, kind):
        z, k = mu.points, kind[..., None, None]
        other = (
            0.1 * z + 1,
            0.95 * torch.sin(z) + 0.5,
            10 * z - 3,
            z + 1,
            z * torch.nan,
            torch.where(z > 2, torch.nan, 1.5 * z + 0.1),
        )
        return mu.with_points(sum(torch.where(k == i, f, 0.0) for i, f in enumerate(other)))

    g = torch.Generator().manual_seed(0)
    mu = DiscreteMeasure(torch.rand(6, 3, 2, generator=g, dtype=torch.float64))
    stop = Stop(rtol=1e-7, atol=1e-12, max_steps=60)
    for in_dims in (None, 0):
        together = fixed_point(step, mu, kinds, in_dims=in_dims, solver=solver, stop=stop)
        assert together.converged[:2].all()
        assert not together.converged[3:5].any()
        assert together.status[4] == Status.DIVERGED
        assert torch.isfinite(together.measure.points).all()
        for i in range(6):
            alone = fixed_point(step, mu[i], kinds[i], solver=solver, stop=stop)
            assert (together.status[i], together.steps[i]) == (alone.status, alone.steps)
            assert_close(together.measure[i].points, alone.measure.points, rtol=1e-7)
            assert all(together.used[name][i] == alone.used[name] for name in alone.used)


@each_solver
def test_a_start_that_is_a_solution_costs_one_evaluation(solver):
    mu = DiscreteMeasure(torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(2)).double())
    stop = Stop(rtol=1e-6)
    first = fixed_point(mean_field, mu, 0.5, 0.1, solver=solver, stop=stop)
    again = fixed_point(mean_field, first.measure.detach(), 0.5, 0.1, solver=solver, stop=stop)
    assert again.evaluations == 1
    assert torch.equal(again.measure.points, first.measure.points)
    near = fixed_point(mean_field, first.measure.detach(), 0.5, 0.1001, solver=solver, stop=stop)
    assert near.evaluations < first.evaluations


class Cube(torch.autograd.Function):
    """x^3 / 8, without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 / 8

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x.square() * g / 8


class TestNewtonKrylov:
    def test_quadratic_convergence(self):
        solution = fixed_point(pointwise(torch.cos), point(0.0), solver=NewtonKrylov(), stop=TIGHT, trace=True)
        errors = solution.trace.log10()
        assert errors[-1] < 1.7 * errors[-2]

    def test_without_forward_mode(self):
        mu = DiscreteMeasure(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3))
        cubes = [pointwise(lambda x, f=f: f(x) + 0.3 * x.mean(-2, keepdim=True) + 0.2) for f in (Cube.apply, lambda x: x**3 / 8)]
        without, with_ = (fixed_point(f, mu, solver=NewtonKrylov(), stop=TIGHT) for f in cubes)
        assert without.converged
        assert_close(without.measure.points, with_.measure.points)
        assert torch.equal(without.steps, with_.steps)
        assert without.evaluations > with_.evaluations  # a preparation for each linear equation

    @pytest.mark.parametrize("memory", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
    def test_steps_of_a_sample_do_not_depend_on_the_batch(self, memory):
        """Samples that need few products, in a batch with others that need restarts; each builds on its own earlier ones."""
        g = torch.Generator().manual_seed(0)
        matrices = torch.stack([s * torch.randn(8, 8, generator=g, dtype=torch.float64) / 8**0.5 for s in (0.02, 0.5, 1.0, 2.0)])
        start = DiscreteMeasure(torch.zeros(4, 1, 8, dtype=torch.float64))

        def map(mu, w):
            return mu.with_points(torch.tanh(mu.points @ w.mT + 0.5) + 0.1 * mu.points)

        solver, stop = NewtonKrylov(memory=memory), Stop(rtol=1e-10, max_steps=200)
        for in_dims in (None, 0):
            together = fixed_point(map, start, matrices, in_dims=in_dims, solver=solver, stop=stop, trace=True)
            for i in range(4):
                alone = fixed_point(map, start[i], matrices[i], solver=solver, stop=stop, trace=True)
                assert (alone.status, alone.steps) == (together.status[i], together.steps[i])
                first = min(6, len(alone.trace))
                assert_close(together.trace[:first, i], alone.trace[:first], rtol=1e-6)

    def test_backtracking(self):
        """Newton's full steps on arctan run away from 3; shortened ones arrive."""
        solution = fixed_point(
            pointwise(lambda z: z - torch.arctan(z)), point(3.0), solver=NewtonKrylov(), stop=TIGHT, trace=True
        )
        assert solution.converged
        assert abs(solution.measure.points.item()) < 1e-10
        assert (solution.trace[1:] > solution.trace[:-1]).any()  # there was something to shorten

    def test_autograd_cannot_record_it(self):
        from ddeq.solvers import Unrolled

        with pytest.raises(ValueError, match=r"solver: .*Implicit"):
            fixed_point(pointwise(torch.cos), point(0.0), solver=NewtonKrylov(), adjoint=Unrolled())


class TestAuto:
    def used(self, f, *args, **options):
        solution = fixed_point(f, point(0.3), *args, solver=Auto(**options), stop=Stop(rtol=1e-10, max_steps=200))
        return {name: int(n) for name, n in solution.used.items()}, solution

    def test_picard_where_it_contracts(self):
        used, solution = self.used(affine, 0.2, 1.0)
        assert used == {"Picard": int(solution.steps), "Anderson": 0, "NewtonKrylov": 0}

    def test_anderson_where_it_does_not(self):
        used, solution = self.used(affine, -0.95, 1.0)
        assert solution.converged
        assert used["Anderson"] > 0 == used["NewtonKrylov"]
        assert "of Anderson" in solution.summary()

    def test_newton_where_residuals_stop_falling(self):
        rough = pointwise(lambda z: z - torch.arctan(z) - 0.3 * torch.sin(3 * z))
        start = DiscreteMeasure(torch.tensor([[9.0]], dtype=torch.float64))
        solution = fixed_point(rough, start, solver=Auto(patience=1), stop=Stop(rtol=1e-10, max_steps=200))
        assert solution.converged
        assert solution.used["NewtonKrylov"] > 0

    def test_each_sample_for_itself(self):
        mu, a = DiscreteMeasure(torch.ones(3, 2, 2)), torch.tensor([0.1, 0.9, -0.99])
        solution = fixed_point(affine, mu, a, 1.0, in_dims=(0, None), solver=Auto(), stop=Stop(rtol=1e-5))
        assert solution.converged.all()
        assert solution.used["Anderson"].tolist()[0] == 0
        assert (solution.used["Anderson"][1:] > 0).all()


class TestMetric:
    CYCLE = staticmethod(
        lambda mu: mu.push_forward(lambda x: x @ turn(2 * math.pi / 3, x.dtype).mT * (1.5 - 0.5 * x.norm(dim=-1, keepdim=True)))
    )

    @pytest.mark.theorem("T4")
    @both_dtypes
    @pytest.mark.parametrize(
        "metric",
        [MMD, lambda nu: MMD(nu, Gaussian(1.0)), Wasserstein, SinkhornDivergence],
        ids=["mmd", "gaussian", "wasserstein", "sinkhorn"],
    )
    def test_fixed_as_a_measure(self, metric, dtype):
        mu = DiscreteMeasure(torch.tensor([[-1.0], [1.0]], dtype=dtype))
        solution = fixed_point(pointwise(torch.neg), mu, solver=Picard(), stop=Stop(metric=metric))
        assert solution.converged
        assert solution.evaluations == 1
        assert solution.residual.abs() < 1e-6
        assert fixed_point(pointwise(torch.neg), mu, solver=Picard()).residual == pytest.approx(2.0, rel=1e-3)

    @given(mu=measures(offsets=(0.0,), scales=(1.0,)), mass=st.sampled_from([0.1, 1.0, 3.0]))
    def test_with_transport_it_is_at_most_the_index_coupled_residual(self, mu, mass):
        mu, stop = mass * mu, Stop(rtol=1e-9, max_steps=0)
        by_index, by_measure = (
            fixed_point(mean_field, mu, 0.5, 0.3, stop=s).residual
            for s in (stop, Stop(rtol=1e-9, max_steps=0, metric=Wasserstein))
        )
        assert (by_measure <= by_index * (1 + 1e-6) + 1e-9).all()

    def test_one_atom_has_one_coupling(self):
        stops = [Stop(max_steps=0, metric=m) for m in (None, Wasserstein)]
        a, b = (fixed_point(affine, point(1.0, 2.0), 0.5, 3.0, stop=s).residual for s in stops)
        assert_close(a, b)

    @pytest.mark.theorem("T4")
    @both_dtypes
    def test_averaging_along_the_optimal_coupling(self, dtype):
        """Atoms take each other's places: averaging each with its own image mixes them up, along the coupling it does not."""
        start = DiscreteMeasure(torch.tensor([[1.3, 0.2], [-0.6, 0.7], [-0.3, -1.0]], dtype=dtype)).pad_atoms(1)
        stop = Stop(rtol=1e-6, max_steps=200, metric=Wasserstein)
        solution = fixed_point(self.CYCLE, start, solver=Picard(0.5, coupling="optimal"), stop=stop)
        assert solution.converged
        x = solution.measure.points[:3]
        assert_close(x.norm(dim=-1), torch.ones(3, dtype=dtype), rtol=1e-4)
        assert_close(torch.cdist(x, x).sum(), torch.tensor(6 * 3**0.5, dtype=dtype), rtol=1e-3)
        mixed = fixed_point(self.CYCLE, start, solver=Picard(0.5), stop=stop)
        assert mixed.measure.points.norm(dim=-1).max() < 1e-3
        heavy = fixed_point(self.CYCLE, 3.0 * start, solver=Picard(0.5, coupling="optimal"), stop=stop)
        assert_close(heavy.measure.points[:3], x, rtol=1e-4)  # the map does not see the mass

    @given(mu=measures(min_atoms=2, offsets=(0.0,), scales=(1.0,)))
    def test_coupled_steps_keep_coincident_atoms_together(self, mu):
        split = mu.split_atom(0, 0.3)
        stop = Stop(rtol=1e-9, max_steps=2, metric=Wasserstein)
        end = fixed_point(mean_field, split, 0.5, 0.3, solver=Picard(0.3, coupling="optimal"), stop=stop).measure.points
        assert_close(end[..., -1, :], end[..., 0, :], scale=1.0)

    def test_what_is_no_discrepancy(self):
        for metric in ("energy", 3.0, torch.cdist):
            with pytest.raises(ValueError, match=r"stop: .*metric"):
                fixed_point(affine, point(1.0), 0.5, 1.0, stop=Stop(metric=metric))


class TestParticleFlow:
    def test_bandwidths_follow_their_schedule(self):
        seen = []

        def discrepancy(nu, h):
            seen.append(h)
            return MMD(nu, Gaussian(h))

        solver = ParticleFlow(discrepancy, Euler(0.5), "frozen", bandwidth=lambda k: 2.0 * 0.5**k)
        fixed_point(affine, point(1.0, 2.0), 0.5, 1.0, solver=solver, stop=Stop(max_steps=3))
        assert seen == [2.0, 1.0, 0.5]

    def test_a_schedule_reaches_further_than_its_last_bandwidth(self):
        far = point(8.0)
        results = []
        shrinking = lambda k: max(0.5, 8.0 * 0.95**k)
        for bandwidth in (0.5, shrinking):
            solver = ParticleFlow(
                lambda nu, h: MMD(nu, Gaussian(h)), Euler(lambda k: 0.5 * shrinking(k) ** 2), "frozen", bandwidth=bandwidth
            )
            results.append(
                fixed_point(affine, far, 0.1, 0.0, solver=solver, stop=Stop(rtol=1e-2, max_steps=150)).measure.points.item()
            )
        assert results[0] > 7.9
        assert abs(results[1]) < 2.0

    @pytest.mark.parametrize("discrepancy", [Wasserstein, lambda nu: SinkhornDivergence(nu, blur=0.5)], ids=["W", "Sinkhorn"])
    def test_any_discrepancy(self, discrepancy):
        mu = DiscreteMeasure(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double())
        solver = ParticleFlow(discrepancy, Euler(1.0), "frozen")
        solution = fixed_point(affine, mu, 0.2, 1.0, solver=solver, stop=Stop(rtol=0.1, max_steps=20, metric=Wasserstein))
        assert solution.converged
        assert_close(solution.measure.mean(), torch.full((2,), 1.25, dtype=torch.float64), rtol=0.2)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Anderson(kind="III"), "kind"),
        (lambda: Anderson(damping=1.0), "damping"),
        (lambda: Broyden(0), "memory"),
        (lambda: Broyden(True), "memory"),
        (lambda: Broyden(restart=1.0), "restart"),
        (lambda: NewtonKrylov(memory=0), "memory"),
        (lambda: NewtonKrylov(products=2.5), "products"),
        (lambda: Auto(contraction=1.5), "contraction"),
        (lambda: Auto(patience=0), "patience"),
        (lambda: Auto(anderson=Picard()), "anderson"),
        (lambda: Auto(newton=NewtonKrylov), "newton"),
        (lambda: Picard(coupling="random"), "coupling"),
        (lambda: ParticleFlow(3), "discrepancy"),
        (lambda: ParticleFlow(bandwidth=-1.0), "bandwidth"),
        (lambda: fixed_point(affine, fixed_point(affine, point(1.0), 0.5, 1.0), 0.5, 1.0), r"mu0: .*solution\.measure\.detach"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", [Anderson, Auto, Broyden, NewtonKrylov, ParticleFlow, Picard])
def test_unknown_options_are_errors(kind):
    with pytest.raises(TypeError, match="beta"):
        kind(beta=0.5)
