"""Laws of the Sinkhorn divergence over the whole range of its problems: what is right, or says that it is not.

Blurs from 1e-6 to 1e2 diameters, any reach, masses from 1e-3 to 1e3, dead and coincident atoms, clusters, 1 to 300 dimensions.
"""

import math
import warnings
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ddeq import ConvergenceWarning, DiscreteMeasure
from ddeq.functionals import SinkhornDivergence
from ddeq.iteration import InnerProblemWarning, Status
from ddeq.testing import assert_close
from proofs_checks.test_t03_sinkhorn import point_masses

DOUBLE = torch.float64
RTOL = {torch.float64: 1e-12, torch.float32: 1e-6}
UNIT = torch.finfo(DOUBLE).eps


class Problem(NamedTuple):
    """Measures, their divergence, and the diameter of both together."""

    mu: DiscreteMeasure
    nu: DiscreteMeasure
    blur: float
    reach: float | None
    diameter: float

    @property
    def functional(self):
        return SinkhornDivergence(self.nu, self.blur, self.reach)

    @property
    def epsilon(self):
        return self.blur**2

    @property
    def rho(self):
        return math.inf if self.reach is None else self.reach**2

    def largest(self, potential, measure):
        """Size of what potentials are differences of."""
        own = torch.where(measure.support(), potential, 0.0).abs().amax(-1).double()
        return own.clamp_min(0.5 * self.diameter**2).clamp_min(0.0 if self.reach is None else self.rho)

    def rounding(self, potential, measure):
        """Relative error of the plan that the rounding of its potentials makes."""
        return 32 * UNIT * self.largest(potential, measure) / self.epsilon


KINDS = ["apart", "clusters", "duplicates", "grid", "line"]
RELATIONS = ["other", "equal", "same points", "near", "far"]


@st.composite
def problems(draw, dtypes=(DOUBLE, torch.float32), relations=tuple(RELATIONS), alive=False):
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    batch, dim = draw(st.sampled_from([(), (2,), (2, 2)])), draw(st.sampled_from([1, 2, 3, 10, 300]))
    n, m = (draw(st.sampled_from([1, 2, 3, 5, 12])) for _ in range(2))
    kind, relation = draw(st.sampled_from(KINDS)), draw(st.sampled_from(list(relations)))

    def power(low, high):
        return 10.0 ** draw(st.floats(low, high))

    def points(k):
        x = torch.randn(*batch, k, dim, generator=g, dtype=DOUBLE)
        if kind == "line":
            return x[..., :1] * x[..., :1, :]
        index = torch.randint(max(1, k // 2), (k,), generator=g)
        of_kind = {"clusters": lambda: x[..., index, :] + spread * x, "duplicates": lambda: x[..., index, :], "grid": x.round}
        return of_kind.get(kind, lambda: x)()

    def weights(k):
        w, how = torch.rand(*batch, k, generator=g, dtype=DOUBLE), draw(st.sampled_from(["even", "uneven", "skewed", "dead"]))
        w = {"even": torch.ones_like(w), "uneven": w + 0.1, "skewed": 10.0 ** (-8.0 * w), "dead": w}[how]
        if how == "dead" and not alive:
            w = torch.where(w < 0.4, 0.0, w)
            w[..., 0] = 0.5
        return w / w.sum(-1, keepdim=True)

    spread = power(-5, 0)
    x, w = points(n), weights(n)
    y, v = (points(m), weights(m)) if relation == "other" else (x, weights(n) if relation == "same points" else w)
    y = y + power(-9, 0 if relation == "near" else 2) if relation in ("near", "far") else y
    scale = draw(st.sampled_from([1.0, 1e-3, 1e3]))
    x, y = scale * x, scale * y
    both = torch.cat([x, y], -2)
    diameter = (both.amax(-2) - both.amin(-2)).norm(dim=-1).max().item() or scale
    blur = diameter * power(-6, 2)
    reach = draw(st.sampled_from([None, diameter * power(-3, 3)]))
    mass = draw(st.sampled_from([1.0, power(-3, 3)]))
    other = mass if reach is None else draw(st.sampled_from([mass, power(-3, 3)]))
    if reach is not None and reach < 0.2 * diameter:  # the potential at a dead atom may be too large for a number
        w, v = w.clamp_min(1e-9), v.clamp_min(1e-9)
        w, v = w / w.sum(-1, keepdim=True), v / v.sum(-1, keepdim=True)
    dtype = draw(st.sampled_from(list(dtypes)))
    mu, nu = DiscreteMeasure(x.to(dtype), (mass * w).to(dtype)), DiscreteMeasure(y.to(dtype), (other * v).to(dtype))
    return Problem(mu, nu, blur, reach, diameter)


def quietly(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return function()


@pytest.mark.theorem("T3")
@given(problem=problems(), seed=st.integers(0, 100))
def test_all_results_are_finite_and_failures_are_told(problem, seed):
    """Nothing raises but warnings of convergence; a status other than CONVERGED is warned of."""
    mu, nu, F = problem.mu, problem.nu, problem.functional
    x, w, y, v = inputs = [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights)]
    moving = SinkhornDivergence(nu.with_points(y).with_weights(v), problem.blur, problem.reach)
    e = torch.randn(mu.points.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(mu.dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", ConvergenceWarning)
        results = [F(mu), F.first_variation(mu), F.wasserstein_gradient(mu), F.plan(mu), *F.potentials(mu), F.transport_map(mu)]
        status = F.status
        value = moving(mu.with_points(x).with_weights(w)).sum()
        first = torch.autograd.grad(value, inputs, create_graph=True)
        results += [*first, *torch.autograd.grad((first[0] * e).sum(), inputs, retain_graph=True)]
        results += torch.autograd.grad((first[1] * e[..., 0]).sum(), inputs)
        force = moving.wasserstein_gradient(mu.with_points(x).with_weights(w))
        results += torch.autograd.grad((force * e).sum(), inputs)
    assert all(t.isfinite().all() for t in results)
    assert {t.dtype for t in results} == {mu.dtype}
    told = any(isinstance(w.message, InnerProblemWarning) for w in caught)
    assert told == bool((status != Status.CONVERGED).any())


def errors(problem, plan, f, g):
    """Of both marginals, in L2 of the measures, relative to what they should be, by sample: (*batch,)."""

    def error(sums, potential, measure):
        w = measure.weights
        moved = (w > 0) & (sums > 1e-280)  # nothing is transported from what is far beyond the reach
        logarithm = torch.where(moved, sums / torch.where(w > 0, w, 1.0), 1.0).log()
        if problem.reach is None:
            logarithm = logarithm - (sums.sum(-1) / w.sum(-1)).log().unsqueeze(-1)
        else:
            logarithm = logarithm + potential / problem.rho
        return ((w * torch.where(moved, logarithm, 0.0).square()).sum(-1) / w.sum(-1)).sqrt()

    return error(plan.sum(-1), f, problem.mu), error(plan.sum(-2), g, problem.nu)


@pytest.mark.theorem("T3")
@given(problem=problems(dtypes=(DOUBLE,)))
def test_where_a_solve_has_converged_the_plan_is_optimal(problem):
    """Its marginals are the measures or, with a reach, the measures times e^(-f/rho)."""
    F = problem.functional
    plan, (f, g) = quietly(lambda: (F.plan(problem.mu), F.potentials(problem.mu)))
    assert (plan >= 0).all()
    rounding = torch.maximum(problem.rounding(f, problem.mu), problem.rounding(g, problem.nu))
    # Potentials have a relative error in units of epsilon, of which e^(-f/rho) makes more if rho is smaller.
    allowed = (10 * RTOL[DOUBLE] + 10 * rounding) * (1 + problem.epsilon / problem.rho)
    judged = (F.status == Status.CONVERGED) & (rounding < 1e-6)
    for error in errors(problem, plan, f, g):
        assert (error <= allowed)[judged].all()


@pytest.mark.theorem("T3")
@given(problem=problems())
def test_it_is_not_negative(problem):
    F, mu, nu = problem.functional, problem.mu, problem.nu
    x = mu.points.clone().requires_grad_()
    value = quietly(lambda: F(mu.with_points(x))).detach().double()
    mass = torch.maximum(mu.mass(), nu.mass()).double()
    f, g = quietly(lambda: F.potentials(mu))
    terms = mass * torch.maximum(problem.largest(f, mu), problem.largest(g, nu)) + problem.epsilon * (mass + mass**2)
    assert (value >= -(1e3 * UNIT + (1e-6 if mu.dtype == torch.float32 else 1e-11)) * terms).all()


@pytest.mark.theorem("T2")
@given(problem=problems(dtypes=(DOUBLE,), alive=True))
def test_the_gradient_is_that_of_the_value(problem):
    F, mu = problem.functional, problem.mu
    x = mu.points.clone().requires_grad_()
    (slope,) = quietly(lambda: torch.autograd.grad(F(mu.with_points(x)).sum(), x))
    force = quietly(lambda: F.wasserstein_gradient(mu))
    f, g = quietly(lambda: F.potentials(mu))
    rounding = torch.maximum(problem.rounding(f, mu), problem.rounding(g, problem.nu))
    size = mu.weights * torch.maximum(force.norm(dim=-1), torch.tensor(problem.diameter).double())
    allowed = (1e-9 + rounding) * (size.sum(-1) + problem.nu.mass() * problem.diameter)
    difference = (slope - mu.weights.unsqueeze(-1) * force).norm(dim=-1).amax(-1)
    assert (difference <= allowed)[rounding < 1e-6].all()


@pytest.mark.theorem("T3")
@given(
    exponents=st.tuples(st.floats(-6, 2), st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3)),
    dim=st.sampled_from([1, 3, 300]),
    distance=st.sampled_from([0.0, 1e-4, 1.0, 1e3]),
)
@example(exponents=(-1.0, 0.477, 0.0, 0.602), dim=1, distance=0.01)
@example(exponents=(2.0, -3.0, 0.0, 3.0), dim=1, distance=1.0)
@example(exponents=(-6.0, 3.0, -3.0, 3.0), dim=1, distance=1.0)
def test_point_masses_over_the_whole_range(exponents, dim, distance):
    """The closed form, converged or not: the value is stationary in the potentials, and so keeps its digits."""
    blur, reach, w, v = (10.0**e for e in exponents)
    x = torch.zeros(1, dim, dtype=DOUBLE)
    y = x + distance * torch.eye(1, dim, dtype=DOUBLE)
    mu, nu = (DiscreteMeasure(p, torch.tensor([m], dtype=DOUBLE)) for p, m in ((x.requires_grad_(), w), (y, v)))
    value = quietly(lambda: SinkhornDivergence(nu, blur, reach)(mu))
    masses = point_masses(w, v, 0.5 * distance**2, blur**2, reach**2, exp=math.exp)
    expected = (reach**2 + 0.5 * blur**2) * (masses[1] + masses[2] - 2 * masses[0])
    terms = (reach**2 + 0.5 * blur**2) * (masses[1] + masses[2]) + blur**2 * (w + v) ** 2
    assert value.item() == pytest.approx(expected, abs=1e-10 * terms)


@pytest.mark.theorem("T1")
@given(problem=problems(dtypes=(DOUBLE,)))
def test_each_sample_gets_what_it_gets_alone(problem):
    assume(problem.mu.batch_shape)
    at = (0,) * len(problem.mu.batch_shape)
    mu, nu = (DiscreteMeasure(m.points[at], m.weights[at]) for m in (problem.mu, problem.nu))
    alone, together = problem._replace(mu=mu, nu=nu), problem.functional
    F = alone.functional
    plans = quietly(lambda: (F.plan(mu), together.plan(problem.mu)[at]))
    if F.status == Status.CONVERGED == together.status[at]:
        f, g = F.potentials(mu)
        rounding = torch.maximum(alone.rounding(f, mu), alone.rounding(g, nu))
        if rounding < 1e-6:
            assert_close(quietly(lambda: together(problem.mu)[at]), F(mu), scale=terms_of(alone, f, g), rtol=1e-10)
            assert_close(plans[1], plans[0], rtol=1e-3)  # the plan may nearly fall apart


def terms_of(problem, f, g):
    mass = torch.maximum(problem.mu.mass(), problem.nu.mass())
    largest = torch.maximum(problem.largest(f, problem.mu), problem.largest(g, problem.nu))
    return mass * largest + problem.epsilon * (mass + mass**2)


@pytest.mark.theorem("T3")
@given(problem=problems(dtypes=(DOUBLE,)), step=st.floats(-6, -1))
def test_what_is_remembered_changes_nothing(problem, step):
    """Prepared at one measure and evaluated at the next: the value is the cold one."""
    mu, F = problem.mu, problem.functional
    moved = mu.with_points(mu.points + 10.0**step * problem.diameter * torch.sin(7.0 * mu.points / problem.diameter))

    def remembering():
        G, memory = F.prepare(mu, None, 0, None)
        return G, F.prepare(moved, memory, 1, None)[0]

    first, second = quietly(remembering)
    f, g = quietly(lambda: F.potentials(mu))
    for functional, at in ((first, mu), (first, moved), (second, moved)):
        x = at.points.clone().requires_grad_()
        cold, warm = quietly(lambda: (F(at.with_points(x)), functional(at.with_points(x))))  # noqa: B023
        assert_close(warm, cold, scale=terms_of(problem, f, g).max(), rtol=1e-10)
