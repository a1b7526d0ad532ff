"""The particle flow with its defaults: damped Picard at distinct marks, a flow of measures without, and it converges."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import affine, mean_field, point

from ddeq import DiscreteMeasure, fixed_point
from ddeq.flows import AdaptiveEuler, Euler, Heun, Nesterov, Proximal
from ddeq.functionals import MMD, Wasserstein
from ddeq.iteration import Equation, InnerProduct, iterate
from ddeq.kernels import Gaussian
from ddeq.reductions import backend
from ddeq.solvers import Implicit, OneStep, ParticleFlow, Phantom, Picard, Stop, Unrolled
from ddeq.solvers.bandwidth import Bandwidth, follow
from ddeq.solvers.mean_shift import Pair, mark_numbers, marks_are_distinct
from ddeq.testing import assert_close, check_solver
from ddeq.testing.strategies import measures
from proofs_checks.test_t21_particle_flow import largest_delta

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
both_targets = pytest.mark.parametrize("target", ["frozen", "moving"])
FROZEN = ParticleFlow(target="frozen")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(n, d, *, seed=0, batch=(), dtype=torch.float64, marks=0):
    g = generator(seed)
    points = torch.randn(*batch, n, d, generator=g, dtype=torch.float64).to(dtype)
    drawn = torch.randn(*batch, n, marks, generator=g, dtype=torch.float64).to(dtype) if marks else None
    return DiscreteMeasure(points, marks=drawn)


def contraction(kind, d, rate, *, seed=0, dtype=torch.float64):
    """An affine map of points and their mean whose linear part has norm ``rate`` in L2(mu)."""
    g = generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def scaled(a):
        return a * rate / torch.linalg.matrix_norm(a, 2)

    if kind == "negative":
        matrix = -rate * torch.eye(d, dtype=torch.float64)
    elif kind == "rotation":
        matrix = rate * torch.linalg.qr(normal(d, d))[0]
    elif kind == "diagonal":
        matrix = scaled(torch.diag(normal(d)))
    elif kind == "symmetric":
        a = normal(d, d)
        matrix = scaled(a + a.mT)
    else:
        matrix = scaled(torch.triu(normal(d, d), 1) + 0.1 * normal(d, d))
    of_mean = scaled(normal(d, d)) - matrix if kind == "mean field" else torch.zeros(d, d, dtype=torch.float64)
    matrix, of_mean, shift = (t.to(dtype) for t in (matrix, of_mean, normal(d)))

    def map(mu):
        mean = mu.normalized().mean().unsqueeze(-2)
        return mu.with_points(mu.points @ matrix.mT + mean @ of_mean.mT + shift)

    return map


KINDS = ["negative", "rotation", "diagonal", "symmetric", "non-normal", "mean field"]


def marked(mu):
    """The measure with a mark of its own for each atom."""
    return mu.with_marks(torch.arange(mu.n, dtype=mu.dtype).expand(*mu.batch_shape, -1).unsqueeze(-1))


class TestVelocity:
    @pytest.mark.theorem("T21")
    @given(
        mu=measures(offsets=(0.0, 1e3), scales=(1.0, 1e-3), dead_atoms=False),
        shift=measures(min_atoms=5, batch_shapes=((),), offsets=(0.0,), scales=(1.0, 1e-4, 1e4), dead_atoms=False),
        h=st.sampled_from([1e-3, 1.0, 1e3]),
    )
    def test_at_distinct_marks_it_is_the_residual_for_every_bandwidth(self, mu, shift, h):
        nu = mu.with_points(mu.points + shift.points[: mu.n])
        numbers = mark_numbers(marked(mu).marks)
        assert marks_are_distinct(numbers, mu.weights).all()
        velocity = Pair(mu, nu, (numbers, numbers)).velocity(torch.full(mu.batch_shape, h, dtype=mu.dtype))
        assert_close(velocity, nu.points - mu.points, scale=nu.points.abs().max())

    @pytest.mark.theorem("T21")
    @given(mu=measures(min_atoms=2, offsets=(0.0,), scales=(1.0,), dead_atoms=False), seed=st.integers(0, 9))
    def test_it_is_the_normalised_gradient_of_the_mmd(self, mu, seed):
        """Where the measure is no denser than its image, so that nothing is capped."""
        h = 1.5
        g = generator(seed)
        nu = mu.with_points(0.6 * mu.points + 0.1 * torch.randn(mu.points.shape, generator=g, dtype=mu.dtype))
        kernel = Gaussian(h)
        densities = [-MMD(m, kernel).first_variation(m.with_weights(0.0 * m.weights), mu.points) for m in (mu, nu)]
        force = -MMD(nu, kernel).wasserstein_gradient(mu)
        expected = h**2 / densities[1].unsqueeze(-1) * force
        velocity = Pair(mu, nu, None).velocity(torch.full(mu.batch_shape, h, dtype=mu.dtype))
        uncapped = (densities[0] <= densities[1]).unsqueeze(-1)
        assert_close(torch.where(uncapped, velocity, 0.0), torch.where(uncapped, expected, 0.0), scale=mu.points.abs().max())

    @pytest.mark.theorem("T1")
    @pytest.mark.theorem("T21")
    @given(mu=measures(min_atoms=2, offsets=(0.0,), scales=(1.0,)), data=st.data())
    def test_it_does_not_ask_which_image_is_whose(self, mu, data):
        nu = mu.with_points(torch.tanh(mu.points) + 0.3)
        h = torch.full(mu.batch_shape, 0.5, dtype=mu.dtype)
        atom = data.draw(st.integers(0, mu.n - 1))
        expected, separation = Pair(mu, nu, None).velocity(h), Pair(mu, nu, None).separation()
        order = torch.tensor(data.draw(st.permutations(range(mu.n))))
        for other in (nu.permute_atoms(order), nu.split_atom(atom, 0.3), nu.pad_atoms(2)):
            pair = Pair(mu, other, None)
            alive = mu.support().unsqueeze(-1)
            assert_close(torch.where(alive, pair.velocity(h), 0.0), torch.where(alive, expected, 0.0), scale=1.0)
            assert_close(pair.separation(), separation, scale=1.0)

    @given(mu=measures(min_atoms=2, offsets=(0.0, 1e4), scales=(1.0, 1e-6)))
    def test_the_separation_is_at_most_the_transport_distance(self, mu):
        nu = mu.with_points(mu.points * 0.5 + 0.2)
        distance = (2.0 * Wasserstein(nu)(mu)).sqrt()
        assert (Pair(mu, nu, None).separation() <= distance * (1 + 1e-6) + 1e-7 * mu.points.abs().max()).all()
        assert_close(Pair(mu, mu, None).separation(), torch.zeros(mu.batch_shape, dtype=mu.dtype))

    @both_dtypes
    def test_two_far_atoms_among_a_thousand_overflow_nothing(self, dtype):
        mu = cloud(1000, 2, dtype=dtype)
        points = mu.points.clone()
        points[:2] = 25.0 + 0.01 * points[:2]
        mu = mu.with_points(points)
        nu = mu.with_points(0.5 * mu.points)
        h = torch.tensor(0.3, dtype=dtype)
        assert MMD(nu, Gaussian(0.3)).wasserstein_gradient(mu)[:2].norm() < 1e-2  # the force is lost there
        with backend("dense"):
            assert Pair(mu, nu, None).velocity(h).norm(dim=-1).max() < 36.0
        with backend("dense"):
            solution = fixed_point(affine, mu, 0.5, 1.0, solver=FROZEN)
        assert solution.converged
        assert solution.evaluations < 30

    @pytest.mark.theorem("T21")
    @given(mu=measures(min_atoms=2, offsets=(0.0,), scales=(1.0,), dead_atoms=False), h=st.sampled_from([0.1, 1.0, 10.0]))
    def test_a_mean_shift_within_a_measure_is_bounded(self, mu, h):
        far = mu.with_points(mu.points + 1e3)  # p_mu is larger than the density of the other: the ratio is capped at one
        pair = Pair(mu, far, None)
        velocity = pair.velocity(torch.full(mu.batch_shape, h, dtype=mu.dtype))
        bound = h * (2.0 * (1.0 / mu.weights).log()).sqrt()
        spread = (far.points.unsqueeze(-3) - mu.points.unsqueeze(-2)).norm(dim=-1).amax(-1)
        assert (velocity.norm(dim=-1) <= spread + bound + 1e-6).all()


class TestMarks:
    def test_equal_marks_have_equal_numbers(self):
        marks = torch.tensor([[[1.0, 2.0], [0.0, 5.0], [1.0, 2.0]], [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]])
        numbers = mark_numbers(marks).squeeze(-1)
        assert (numbers.unsqueeze(-1) == numbers.unsqueeze(-2)).tolist() == [
            [[True, False, True], [False, True, False], [True, False, True]],
            torch.eye(3).bool().tolist(),
        ]
        assert mark_numbers(torch.zeros(0, 3, 2)).shape == (0, 3, 1)

    def test_atoms_of_mass_zero_do_not_count(self):
        numbers = torch.tensor([[0.0], [1.0], [1.0]])
        assert not marks_are_distinct(numbers, torch.ones(3))
        assert marks_are_distinct(numbers, torch.tensor([1.0, 1.0, 0.0]))

    @pytest.mark.theorem("T21")
    @given(mu=measures(mark_dim=2, batch_shapes=((), (2,)), offsets=(0.0,), scales=(1.0,)), a=st.sampled_from([0.0, 0.3, 0.8]))
    @settings(max_examples=15)
    def test_frozen_it_is_picard(self, mu, a):
        stop = Stop(rtol=1e-300, atol=0.0, max_steps=5)
        for marks in (marked(mu).marks, torch.cat([mu.marks, marked(mu).marks], -1)):
            ends = [
                fixed_point(mean_field_in_two, mu.with_marks(marks), solver=solver, stop=stop).measure.points
                for solver in (ParticleFlow(stepper=Euler(1.0 - a), target="frozen"), Picard(damping=a))
            ]
            assert_close(*ends, units=4.0)

    def test_split_atoms_are_compared_and_it_is_picard_still(self):
        mu = cloud(5, 2, marks=2).split_atom(1, 0.4).split_atom(3, 0.0)
        stop = Stop(rtol=1e-300, atol=0.0, max_steps=6)
        ends = [fixed_point(mean_field, mu, 0.4, 0.1, solver=s, stop=stop).measure.points for s in (FROZEN, Picard())]
        assert_close(*ends)

    def test_groups_of_equal_marks(self):
        """Each group collapses to the fixed point of its mark."""
        marks = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64).repeat(8).unsqueeze(-1)
        mu = cloud(24, 2, seed=3).with_marks(marks)
        solution = fixed_point(lambda mu: mu.with_points(0.7 * mu.points + mu.marks), mu, solver=FROZEN)
        picard = fixed_point(lambda mu: mu.with_points(0.7 * mu.points + mu.marks), mu, solver=Picard())
        assert solution.converged
        assert solution.evaluations <= 2 * picard.evaluations
        assert_close(solution.measure.points, (marks / 0.3).expand(-1, 2), rtol=1e-3)

    def test_a_kernel_on_marks_is_between_none_and_their_indicator(self):
        mu = cloud(12, 2, marks=1)
        nu, h = mu.with_points(0.5 * mu.points), torch.tensor(0.7, dtype=torch.float64)
        velocities = [
            Pair(mu, nu, (u, u), width).velocity(h)
            for u, width in ((mark_numbers(mu.marks), 0.0), (mu.marks, 1e-4), (mu.marks, 1e4), (mu.marks, math.inf))
        ]
        assert_close(velocities[1], velocities[0])
        assert_close(velocities[2], velocities[3], rtol=1e-6)
        assert (velocities[0] - velocities[3]).abs().max() > 0.1
        for width in (1e-3, 0.3, 3.0, math.inf):
            solver = ParticleFlow(target="frozen", mark_bandwidth=width)
            stop = Stop(metric=Wasserstein, max_steps=200)
            assert fixed_point(affine, mu, 0.5, 1.0, solver=solver, stop=stop).converged


def mean_field_in_two(mu):
    mean = mu.normalized().mean().unsqueeze(-2)
    return mu.with_points(torch.tanh(0.4 * mu.points + 0.2 * mean + mu.marks[..., :1]))


class TestFrozen:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("n", "d", "rate"), [(10, 2, 0.9), (30, 3, 0.7), (10, 8, 0.3)])
    def test_affine_contractions(self, kind, n, d, rate):
        map, mu = contraction(kind, d, rate), cloud(n, d, seed=10)
        picard = fixed_point(map, mu, solver=Picard(), stop=Stop(max_steps=500))
        solution = fixed_point(map, mu, solver=FROZEN, stop=Stop(metric=Wasserstein, max_steps=6 * picard.evaluations + 19))
        assert solution.converged

    @pytest.mark.parametrize("rate", [0.5, 0.9, -0.9])
    def test_on_the_line(self, rate):
        mu, stop = cloud(12, 1, seed=2), Stop(metric=Wasserstein, max_steps=500)
        picard, flow = (fixed_point(affine, mu, rate, 1.0, solver=solver, stop=stop) for solver in (Picard(), FROZEN))
        assert flow.converged
        assert flow.evaluations <= 2 * picard.evaluations + 20

    def test_unequal_masses_and_atoms_of_mass_zero(self):
        weights = torch.rand(20, generator=generator(1), dtype=torch.float64)
        weights[::5] = 0.0
        mu = cloud(20, 2).with_weights(weights / weights.sum())
        solution = fixed_point(contraction("rotation", 2, 0.8), mu, solver=FROZEN)
        assert solution.converged
        alive = mu.support()
        alone = DiscreteMeasure(mu.points[alive], mu.weights[alive])
        assert_close(
            solution.measure.points[alive],
            fixed_point(contraction("rotation", 2, 0.8), alone, solver=FROZEN).measure.points,
            rtol=1e-9,
        )

    def test_a_nonlinear_mean_field_map(self):
        mu = cloud(25, 3, seed=4)
        for solver in (FROZEN, ParticleFlow()):
            solution = fixed_point(mean_field, mu, 0.5, 0.3, solver=solver, stop=Stop(max_steps=300))
            assert solution.converged
            assert_close(solution.measure.points, mean_field(solution.measure, 0.5, 0.3).points, rtol=1e-3)

    @both_dtypes
    def test_each_sample_by_itself(self, dtype):
        mu = cloud(12, 2, batch=(3,), dtype=dtype)
        rates = torch.tensor([0.2, 0.6, -0.85], dtype=dtype)
        together = fixed_point(affine, mu, rates, 1.0, in_dims=(0, None), solver=FROZEN)
        assert together.converged.all()
        assert together.measure.points.dtype == dtype
        for i, rate in enumerate(rates):
            alone = fixed_point(affine, mu[i], rate, 1.0, solver=FROZEN)
            assert alone.steps == together.steps[i]
            assert_close(together.measure.points[i], alone.measure.points, rtol=1e-4 if dtype == torch.float32 else 1e-9)

    @pytest.mark.theorem("T21")
    def test_atoms_that_are_fixed_as_a_measure_only(self):
        """A rotation of three places: a rest point of the flow, and one that attracts."""
        third = 2 * math.pi / 3
        turn = torch.tensor([[math.cos(third), -math.sin(third)], [math.sin(third), math.cos(third)]], dtype=torch.float64)
        map = lambda mu: mu.push_forward(lambda x: x @ turn.mT * (1.5 - 0.5 * x.norm(dim=-1, keepdim=True)))
        places = torch.stack([torch.linalg.matrix_power(turn, k)[:, 0] for k in range(3)])
        mu = DiscreteMeasure(places * torch.tensor([[1.2], [0.9], [1.1]], dtype=torch.float64))
        solution = fixed_point(map, mu, solver=FROZEN, stop=Stop(metric=Wasserstein))
        assert solution.converged
        assert_close(solution.measure.points.norm(dim=-1), torch.ones(3, dtype=torch.float64), rtol=1e-3)
        assert fixed_point(map, mu, solver=FROZEN, stop=Stop(max_steps=20)).residual > 1.0  # atom by atom it never is


@dataclass(frozen=True)
class Wide(ParticleFlow):
    """Begins with a bandwidth that is too large for its atoms to see each other apart."""

    RATIO: ClassVar[float] = 16.0


class TestBandwidth:
    def test_the_ratio_is_halved_where_nothing_falls(self):
        one = torch.ones(2, dtype=torch.float64)
        state = Bandwidth(one, torch.inf * one, 0.0 * one)
        for k in range(11):
            state = follow(state, torch.tensor([1.0, 0.9**k], dtype=torch.float64))
        assert state.ratio.tolist() == [0.5, 1.0]

    @pytest.mark.theorem("T21")
    def test_halving_helps(self, monkeypatch):
        map, mu = contraction("non-normal", 2, 0.8), cloud(10, 2, seed=1)
        stop = Stop(metric=Wasserstein, max_steps=150)
        assert fixed_point(map, mu, solver=Wide(target="frozen"), stop=stop).converged
        monkeypatch.setattr("ddeq.solvers.bandwidth.PATIENCE", 10**9)
        assert not fixed_point(map, mu, solver=Wide(target="frozen"), stop=stop).converged

    @pytest.mark.theorem("T21")
    @pytest.mark.parametrize("kind", KINDS)
    def test_small_ratios_contract_as_the_comparison_matrix_says(self, kind):
        rate, mu = 0.6, cloud(10, 2, seed=5)
        map = contraction(kind, 2, rate, seed=6)
        bound = math.sqrt(2.0 * math.log(mu.n))
        ratio = float(largest_delta(rate)) / (bound * (1 + rate))
        delta = float(largest_delta(rate))
        fixed = torch.linalg.solve(*_fixed_point_of(map, 2))

        def sizes(mu):
            return torch.cdist(mu.points, mu.points).max(), (mu.mean() - fixed).norm()

        for _ in range(6):
            pair = Pair(mu, map(mu), None)
            diameter, error = sizes(mu)
            mu = mu.with_points(mu.points + pair.velocity(ratio * pair.separation()))
            after = sizes(mu)
            assert after[0] <= (rate + 2 * delta) * diameter + 2 * delta * error + 1e-12
            assert after[1] <= (rate + delta) * (diameter + error) + 1e-12

    def test_a_number_or_a_schedule_is_taken_as_it_is(self):
        mu = cloud(15, 2)
        shrinking = ParticleFlow(target="frozen", bandwidth=lambda k: max(1e-6, 2.0 * 0.8**k))
        assert fixed_point(affine, mu, 0.5, 1.0, solver=shrinking).converged
        # A constant one stalls where the cloud is smaller: there the flow is flat in the spread (T4).
        constant = fixed_point(affine, mu, 0.5, 1.0, solver=ParticleFlow(target="frozen", bandwidth=0.05))
        assert 1e-4 < constant.residual < 1e-2


def _fixed_point_of(map, d):
    """The linear equation of the fixed point of a measure with one atom."""
    zero = map(DiscreteMeasure(torch.zeros(1, d, dtype=torch.float64))).points[0]
    columns = [map(DiscreteMeasure(row.unsqueeze(0))).points[0] - zero for row in torch.eye(d, dtype=torch.float64)]
    return torch.eye(d, dtype=torch.float64) - torch.stack(columns, -1), zero


class TestMoving:
    @pytest.mark.theorem("T21")
    @pytest.mark.parametrize("marks", [0, 2])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("rate", [0.0, 0.3, 0.7])
    def test_within_its_rate(self, kind, rate, marks):
        map, mu = contraction(kind, 2, max(rate, 1e-12), seed=1), cloud(10, 2, seed=2, marks=marks)
        driven = (lambda mu: map(mu).with_points(map(mu).points + mu.marks)) if marks else map
        most = 5.0 * math.log(1e4) * ((1 + rate) / (1 - rate)) ** 2
        solution = fixed_point(driven, mu, solver=ParticleFlow(), stop=Stop(max_steps=int(most) // 2))
        assert solution.converged
        assert solution.evaluations <= most

    @pytest.mark.theorem("T21")
    def test_a_map_that_reverses(self):
        solution = fixed_point(
            lambda mu: mu.with_points(-0.9 * mu.points + mu.marks), cloud(10, 2, marks=2), solver=ParticleFlow()
        )
        assert solution.converged
        assert solution.evaluations <= 5  # the safe step is the exact one

    @pytest.mark.theorem("T21")
    def test_long_steps_pay_and_safe_ones_come_back(self, monkeypatch):
        """Beside the bound of safe steps; then with the long ones made far too long, by a thousand."""
        map = contraction("symmetric", 3, 0.9)
        driven = lambda mu: map(mu).with_points(map(mu).points + mu.marks)
        mu = cloud(10, 3, marks=3)
        solution = fixed_point(driven, mu, solver=ParticleFlow(), stop=Stop(max_steps=200))
        assert solution.converged
        picard = fixed_point(driven, mu, solver=Picard(), stop=Stop(max_steps=500))
        assert solution.evaluations < 3 * picard.evaluations
        slow = lambda mu: mu.with_points(0.4 * mu.points + mu.marks)
        monkeypatch.setattr("ddeq.solvers.step_sizes.inner_ratio", lambda a, b: 1e3 * torch.ones_like(a))
        assert fixed_point(slow, mu, solver=ParticleFlow(), stop=Stop(max_steps=200)).converged

    def test_an_expanding_map_too(self):
        """A contraction is not needed, only that I - J is invertible."""
        solution = fixed_point(
            lambda mu: mu.with_points(-2.0 * mu.points + mu.marks), cloud(6, 2, marks=2), solver=ParticleFlow()
        )
        assert solution.converged
        assert_close(solution.measure.points, solution.measure.marks / 3.0, rtol=1e-3)

    def test_evaluations_are_counted(self):
        calls = []

        def map(mu):
            calls.append(1)
            return mean_field(mu, 0.3, 0.1)

        for stepper, per_step in ((Euler(1.0), 2), (Heun(0.5), 4)):
            for marks in (0, 1):
                calls.clear()
                stop = Stop(rtol=1e-300, max_steps=3)
                mu = cloud(4, 1, marks=marks)
                with torch.no_grad():
                    solution = fixed_point(map, mu, solver=ParticleFlow(stepper=stepper), stop=stop)
                assert solution.evaluations == 3 * per_step + 1 == len(calls)


@both_targets
@pytest.mark.parametrize("stepper", [Heun(0.8), Nesterov(0.5)], ids=repr)
def test_other_steppers(target, stepper):
    for mu in (cloud(10, 2), cloud(10, 2, marks=1)):
        solver = ParticleFlow(stepper=stepper, target=target)
        assert fixed_point(affine, mu, 0.5, 1.0, solver=solver, stop=Stop(max_steps=300)).converged


@both_targets
def test_laws_of_solvers(target):
    stop = Stop(rtol=1e-6, max_steps=300 if target == "frozen" else 40)
    check_solver(ParticleFlow(target=target), stop=stop, converges=target == "frozen")


@both_targets
def test_it_does_not_ask_for_an_inner_step_under_no_grad(target):
    with torch.no_grad():
        assert fixed_point(affine, cloud(8, 2), 0.3, 1.0, solver=ParticleFlow(target=target)).converged


class Curved(torch.nn.Module):
    """A contraction with a parameter that is not affine."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, mu):
        mean = mu.normalized().mean().unsqueeze(-2)
        drive = self.shift if mu.marks is None else self.shift + mu.marks
        return mu.with_points(torch.tanh(0.3 * mu.points + 0.1 * mean + drive))


@both_targets
@pytest.mark.parametrize("marks", [0, 2], ids=["unmarked", "marked"])
@pytest.mark.parametrize(
    ("adjoint", "rtol"), [(Implicit(), 1e-6), (Phantom(40), 1e-6), (Unrolled(), 1e-6), (OneStep(), None)], ids=lambda a: repr(a)
)
def test_gradients_against_finite_differences(target, marks, adjoint, rtol):
    """OneStep is the derivative of one application at the solution, and is held to differences of that."""
    mu, map = cloud(6, 2, marks=marks), Curved()
    stop = Stop(rtol=1e-11, atol=1e-14, max_steps=300, patience=300)
    solver = ParticleFlow(target=target)

    def solved(**options):
        return fixed_point(map, mu, solver=solver, stop=stop, **options).measure

    loss = lambda mu: (mu.points**2).sum() + mu.points[0, 0]
    (slope,) = torch.autograd.grad(loss(solved(adjoint=adjoint)), map.shift)
    with torch.no_grad():
        end = solved()
        for i in range(2):
            values = []
            for step in (1e-5, -1e-5):
                map.shift[i] += step
                values.append(loss(map(end) if isinstance(adjoint, OneStep) else solved()))
                map.shift[i] -= step
            difference = (values[0] - values[1]) / 2e-5
            assert slope[i].item() == pytest.approx(difference.item(), rel=rtol or 1e-6)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mark_bandwidth": -1.0}, "mark_bandwidth"),
        ({"mark_bandwidth": math.nan}, "mark_bandwidth"),
        ({"mark_bandwidth": True}, "mark_bandwidth"),
        ({"discrepancy": MMD, "mark_bandwidth": 1.0}, "mark_bandwidth"),
        ({"stepper": AdaptiveEuler()}, "stepper"),
        ({"stepper": Proximal(0.1)}, "stepper"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ParticleFlow(**options)


@both_targets
@pytest.mark.parametrize("discrepancy", [None, MMD])
def test_a_problem_that_is_not_one_on_measures(target, discrepancy):
    class Scalar(Equation):
        inner = InnerProduct(torch.ones(1, dtype=torch.float64))

        def residual(self, z, *tensors):
            return 1.0 - 2.0 * z

    start = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="not one on measures"):
        iterate(Scalar(), Stop(), z=start, method=ParticleFlow(discrepancy, target=target))


def test_one_atom():
    assert fixed_point(affine, point(3.0), 0.5, 1.0, solver=FROZEN).converged
    assert fixed_point(affine, point(2.0), 0.5, 1.0, solver=FROZEN).evaluations == 1
