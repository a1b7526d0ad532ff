"""`fixed_point(moves="weights")` and `moves="both"`: weights as unknowns, which stay non-negative and keep their mass."""

import math

import ot
import pytest
import torch
from hypothesis import given, settings

from ddeq import DiscreteMeasure, fixed_point
from ddeq.functionals import MMD
from ddeq.kernels import Gaussian
from ddeq.solvers import (
    Anderson,
    Auto,
    Broyden,
    Implicit,
    NewtonKrylov,
    OneStep,
    ParticleFlow,
    Phantom,
    Picard,
    Status,
    Stop,
    Unrolled,
)
from ddeq.testing import assert_close, check_map
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures

DOUBLE = torch.float64
TIGHT = Stop(rtol=1e-12, atol=1e-14, max_steps=400)
SOLVERS = [Picard(), Picard(damping=0.3), Anderson(), Broyden(), NewtonKrylov(), Auto()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
FEW = settings(max_examples=max(5, settings.default.max_examples // 5))


def line(n, weights=None, batch=()):
    points = torch.arange(n, dtype=DOUBLE).unsqueeze(-1).expand(*batch, n, 1)
    return DiscreteMeasure(points, weights)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def transitions(*shape, seed=0):
    p = random(*shape, seed=seed) ** 3 + 0.01
    return p / p.sum(-1, keepdim=True)


def chain(mu, transition):
    """One step of a Markov chain on the atoms."""
    return mu.with_weights((mu.weights.unsqueeze(-2) @ transition).squeeze(-2))


def stationary_law(transition):
    values, vectors = torch.linalg.eig(transition.mT)
    law = vectors[:, values.real.argmax()].real
    return law / law.sum()


def replicator(mu, shift=0.0):
    """Weights grow with their payoff against all others; a function of the measure alone."""
    x = mu.points
    payoffs = 1.2 + torch.cos(0.7 * (x[..., :, None, 0] - x[..., None, :, 0]) + shift) + 0.2 * x[..., 0].sin().unsqueeze(-1)
    fitness = (payoffs * mu.normalized().weights.unsqueeze(-2)).sum(-1)
    grown = mu.weights * fitness
    return mu.with_weights(mu.mass().unsqueeze(-1) * grown / grown.sum(-1, keepdim=True))


def drifting(mu, shift=0.0):
    """Both move, as functions of the measure alone."""
    mean = mu.normalized().mean().unsqueeze(-2)
    return replicator(mu, shift).with_points(torch.tanh(0.5 * mu.points + 0.3 * mean + 0.1))


def selection(mu, pull, slope):
    """Moves both: atoms towards their marks and the mean, weights by a Gibbs density of places, marks giving the reference."""
    x = torch.tanh(0.5 * mu.points + 0.3 * mu.normalized().mean().unsqueeze(-2) + pull * mu.marks)
    energy = slope * (mu.points - mu.normalized().mean().unsqueeze(-2)).square().sum(-1)
    grown = mu.marks[..., 0].exp() * mu.support() * torch.exp(-energy)
    return mu.with_points(x).with_weights(mu.mass().unsqueeze(-1) * grown / grown.sum(-1, keepdim=True))


def marked(*batch):
    w = random(*batch, 5, seed=1) + 0.1
    return DiscreteMeasure(random(*batch, 5, 2, seed=2), w, random(*batch, 5, 2, seed=3))


@pytest.mark.theorem("T25")
@each_solver
def test_stationary_law_of_a_markov_chain(solver):
    p = transitions(6, 6)
    start = line(6, 2.5 * random(6, seed=1) / random(6, seed=1).sum())
    solution = fixed_point(chain, start, p, moves="weights", solver=solver, stop=TIGHT)
    assert solution.converged
    assert_close(solution.measure.weights, 2.5 * stationary_law(p), rtol=1e-10)
    assert torch.equal(solution.measure.points, start.points)


@pytest.mark.theorem("T25", "T7")
def test_derivatives_in_the_transition_matrix():
    """Against the eigenvector's finite differences, to 1e-6, in directions that keep rows summing to one."""
    p, g = transitions(5, 5), random(5, seed=4)
    direction = random(5, 5, seed=5) - 0.5
    direction = direction - direction.mean(-1, keepdim=True)
    h = 1e-4
    difference = (g * (stationary_law(p + h * direction) - stationary_law(p - h * direction))).sum() / (2 * h)

    def derivative(adjoint):
        q = p.clone().requires_grad_()
        law = fixed_point(chain, line(5), q, moves="weights", adjoint=adjoint, stop=TIGHT).measure.weights
        (gradient,) = torch.autograd.grad((g * law).sum(), q)
        return (gradient * direction).sum()

    for adjoint in (Implicit(), Unrolled(), Unrolled(checkpoint=True), Phantom(60)):
        assert_close(derivative(adjoint), difference, rtol=1e-6)
    assert (derivative(OneStep()) - difference).abs() > 1e-2 * difference.abs()


@pytest.mark.theorem("T25", "T7")
@pytest.mark.parametrize("solver", [Anderson(), NewtonKrylov()], ids=repr)
def test_derivatives_of_both_orders(solver):
    logits = (random(3, 3, seed=6) - 0.5).requires_grad_()
    stop = Stop(rtol=1e-13, atol=1e-15, max_steps=300)

    def law(logits):
        return fixed_point(chain, line(3), logits.softmax(-1), moves="weights", solver=solver, stop=stop).measure.weights

    assert torch.autograd.gradcheck(law, (logits,))
    assert torch.autograd.gradgradcheck(law, (logits,))


def test_a_batch_is_its_samples_and_finished_ones_leave():
    sizes = []

    def watched(mu, p):
        sizes.append(len(mu.weights))
        return chain(mu, p)

    mixing = torch.tensor([1.0, 0.5, 0.1, 0.02], dtype=DOUBLE)[:, None, None]
    p = mixing * transitions(4, 5, 5) + (1 - mixing) * torch.eye(5, dtype=DOUBLE)
    start = line(5, batch=(4,))
    options = {"moves": "weights", "solver": Picard(), "stop": Stop(rtol=1e-8, max_steps=2000)}
    together = fixed_point(watched, start, p, in_dims=0, **options)
    assert together.converged.all()
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert together.steps.diff().min() > 0
    for k in range(4):
        alone = fixed_point(chain, start[k], p[k], **options)
        assert alone.steps == together.steps[k]
        assert_close(together.measure.weights[k], alone.measure.weights)


@pytest.mark.theorem("T25")
def test_mckean_vlasov_on_a_grid():
    """Confinement and attraction, both quadratic: the stationary law is normal with the variance T / (a + k)."""
    a, k, temperature = 0.7, torch.tensor(0.9, dtype=DOUBLE, requires_grad=True), 0.5
    x = torch.linspace(-5, 5, 201, dtype=DOUBLE).unsqueeze(-1)

    def gibbs(mu, k):
        mean = mu.mean()
        second = (mu.weights * mu.points[..., 0].square()).sum(-1)
        attraction = 0.5 * k * (mu.points[..., 0].square() - 2 * mu.points[..., 0] * mean + second)
        return mu.with_weights(torch.softmax(-(0.5 * a * mu.points[..., 0].square() + attraction) / temperature, -1))

    tilted = DiscreteMeasure(x, torch.softmax(0.8 * x[:, 0], 0))
    law = fixed_point(gibbs, tilted, k, moves="weights", stop=TIGHT).measure
    variance = law.covariance().squeeze()
    assert law.mean().abs() < 1e-10
    assert_close(variance, temperature / (a + k), rtol=1e-9)
    (slope,) = torch.autograd.grad(variance, k)
    assert_close(slope, -temperature / (a + k) ** 2, rtol=1e-8)


@pytest.mark.theorem("T25")
@each_solver
def test_replicator_dynamics(solver):
    """Hawks and doves in the proportion of the payoffs, and a strategy that all others beat, which dies out."""
    v, c = 2.0, 5.0
    payoffs = 3.0 + torch.tensor([[(v - c) / 2, v, v], [0.0, v / 2, v], [-1.0, -1.0, -1.0]], dtype=DOUBLE)

    def step(mu):
        grown = mu.weights * (mu.weights.unsqueeze(-2) @ payoffs.mT).squeeze(-2)
        return mu.with_weights(grown / grown.sum(-1, keepdim=True))

    solution = fixed_point(step, line(3), moves="weights", solver=solver, stop=TIGHT)
    assert solution.converged
    assert_close(solution.measure.weights, torch.tensor([v / c, 1 - v / c, 0.0], dtype=DOUBLE), rtol=1e-9)
    assert (solution.measure.weights >= 0).all()


@pytest.mark.theorem("T25")
def test_sinkhorn_scalings():
    """Scalings are known up to a factor: those of mass one. The plan is that of POT."""
    n, m, epsilon = 7, 9, 0.3
    a, b = random(n, seed=1) + 0.1, random(m, seed=2) + 0.1
    a, b = a / a.sum(), b / b.sum()
    x, y = random(n, 2, seed=3), random(m, 2, seed=4)
    kernel = torch.exp(-0.5 * torch.cdist(x, y).square() / epsilon)

    def scaling(mu, kernel):
        return mu.with_weights(a / (kernel @ (b / (kernel.mT @ mu.weights)))).normalized()

    stop = Stop(rtol=1e-13, atol=1e-15, max_steps=400)
    u = fixed_point(scaling, DiscreteMeasure(x), kernel, moves="weights", stop=stop).measure.weights
    plan = u.unsqueeze(-1) * kernel * (b / (kernel.mT @ u))
    expected = ot.sinkhorn(a.numpy(), b.numpy(), (-epsilon * kernel.log()).numpy(), epsilon, stopThr=1e-14, numItermax=10000)
    assert_close(plan, torch.as_tensor(expected), rtol=1e-8, scale=1e-3)


@pytest.mark.theorem("T25", "T1", "T9")
@each_solver
@pytest.mark.parametrize("moves", ["weights", "both"])
@FEW
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_iterates_depend_on_the_measure_alone(solver, moves, mu):
    """Few steps, so that it is the iterates that are compared and not the common limit."""
    map = replicator if moves == "weights" else drifting
    options = {"moves": moves, "solver": solver, "stop": Stop(rtol=1e-12, max_steps=3)}
    expected = fixed_point(map, mu, **options).measure
    assert (expected.weights >= 0).all()
    assert_close(expected.mass(), mu.mass())
    assert torch.equal(expected.weights == 0, mu.weights == 0)
    flipped = torch.arange(mu.n).flip(0)
    permuted = fixed_point(map, mu.permute_atoms(flipped), **options).measure
    assert_close(permuted.weights, expected.permute_atoms(flipped).weights, rtol=1e-6)
    for name, same in same_measure(mu).items():
        if name == "permuting the atoms":
            continue
        actual = fixed_point(map, same, **options).measure
        n, after = actual.n if "splitting" in name else mu.n, same_measure(expected)[name]
        assert_close(actual.weights[..., :n], after.weights[..., :n], name, rtol=1e-6)
        assert_close(actual.points[..., :n, :], after.points[..., :n, :], name, rtol=1e-6, scale=1.0)


@pytest.mark.theorem("T25")
@each_solver
def test_points_and_weights_move(solver):
    mu = marked(3)
    solution = fixed_point(selection, mu, 0.4, 0.7, moves="both", solver=solver, stop=TIGHT)
    assert solution.converged.all()
    image = selection(solution.measure, 0.4, 0.7)
    assert_close(solution.measure.points, image.points, rtol=1e-9)
    assert_close(solution.measure.weights, image.weights, rtol=1e-9)
    assert_close(solution.measure.mass(), mu.mass())
    alone = fixed_point(selection, mu[1], 0.4, 0.7, moves="both", solver=solver, stop=TIGHT)
    assert alone.steps == solution.steps[1]
    assert_close(alone.measure.weights, solution.measure.weights[1], rtol=1e-9)


@pytest.mark.theorem("T25", "T7")
def test_derivatives_where_both_move():
    mu = marked()
    mu = DiscreteMeasure(mu.points[:3], mu.weights[:3], mu.marks[:3])
    inputs = [torch.tensor(0.4, dtype=DOUBLE), torch.tensor(0.7, dtype=DOUBLE), mu.marks]
    inputs = [t.clone().requires_grad_() for t in inputs]

    def end(pull, slope, marks, adjoint=Implicit()):
        start = mu.with_marks(marks)
        nu = fixed_point(selection, start, pull, slope, moves="both", adjoint=adjoint, stop=TIGHT).measure
        return torch.cat([nu.points.flatten(), nu.weights])

    assert torch.autograd.gradcheck(end, inputs)
    g = random(9, seed=7)
    by_implicit = torch.autograd.grad((g * end(*inputs)).sum(), inputs)
    for adjoint in (Unrolled(), Unrolled(checkpoint=True), Phantom(80)):
        for one, other in zip(by_implicit, torch.autograd.grad((g * end(*inputs, adjoint)).sum(), inputs), strict=True):
            assert_close(one, other, rtol=1e-6)


@pytest.mark.theorem("T25")
def test_the_squared_relative_residuals_add_up():
    mu = marked(2)
    solution = fixed_point(selection, mu, 0.4, 0.7, moves="both", solver=Picard(), stop=Stop(rtol=1e-9, atol=1e-9, max_steps=2))
    end, image = solution.measure, selection(solution.measure, 0.4, 0.7)
    change = (end.weights * (image.points - end.points).square().sum(-1)).sum(-1)
    of_points = change.sqrt() / ((end.weights * image.points.square().sum(-1)).sum(-1).sqrt() + 1.0)
    turned = 4 * (image.weights.sqrt() - end.weights.sqrt()).square().sum(-1)
    of_weights = turned.sqrt() / (mu.mass().sqrt() + 1.0)
    assert_close(solution.residual, torch.hypot(of_points, of_weights))
    by_weights = fixed_point(chain, line(4), transitions(4, 4), moves="weights", stop=Stop(max_steps=3), solver=Picard())
    w = by_weights.measure.weights
    after = chain(by_weights.measure, transitions(4, 4)).weights
    metric = ((after - w).square() / w).sum().sqrt() / (1.0 + 1e-4)
    assert_close(by_weights.residual, metric, rtol=0.05)


def test_gradients_reach_what_does_not_move_and_the_start_only_if_unrolled():
    points = line(4).points.clone().requires_grad_()

    def crowding(mu):
        x = mu.points[..., 0]
        return mu.with_weights(torch.softmax(x.sin() - 0.3 * x * mu.mean(), -1))

    def law(points):
        return fixed_point(crowding, DiscreteMeasure(points), moves="weights", stop=TIGHT).measure.weights

    assert torch.autograd.gradcheck(law, (points,))
    weights = (random(4) + 0.1).requires_grad_()

    def early(weights, checkpoint=False):
        start, adjoint = line(4).with_weights(weights), Unrolled(2, checkpoint=checkpoint)
        return fixed_point(chain, start, transitions(4, 4), moves="weights", adjoint=adjoint).measure.weights

    assert torch.autograd.gradcheck(early, (weights,))
    assert torch.autograd.gradcheck(lambda w: early(w, True), (weights,))


@pytest.mark.theorem("T1")
def test_maps_that_move_weights_are_checked():
    check_map(replicator, moves="weights")
    check_map(drifting, moves="both")
    with pytest.raises(AssertionError, match=r"T1 .*splitting an atom"):  # its reference is one of stored atoms
        check_map(selection, None, 0.4, 0.7, mark_dim=2, moves="both")
    with pytest.raises(AssertionError, match=r"T1 .*splitting an atom"):
        check_map(lambda mu: mu.with_weights(torch.ones_like(mu.weights) * mu.mass().unsqueeze(-1) / mu.n), moves="weights")
    with pytest.raises(AssertionError, match="mass: the map changes it"):
        check_map(lambda mu: mu.with_weights(0.5 * mu.weights), moves="weights")
    with pytest.raises(AssertionError, match="the map changes the points"):
        check_map(lambda mu: mu.with_points(0.5 * mu.points), moves="weights")


def test_a_warm_start_passes_at_once_and_a_metric_may_judge():
    p = transitions(5, 5)
    first = fixed_point(chain, line(5), p, moves="weights", stop=TIGHT)
    again = fixed_point(chain, first.measure, p, moves="weights", stop=Stop(rtol=1e-8))
    assert again.evaluations == 1
    assert again.converged
    stop = Stop(rtol=1e-6, metric=lambda nu: MMD(nu, Gaussian(1.0)))
    by_metric = fixed_point(chain, line(5), p, moves="weights", stop=stop)
    assert by_metric.converged
    assert_close(by_metric.measure.weights, stationary_law(p), rtol=1e-4)
    both = fixed_point(selection, marked(2), 0.4, 0.7, moves="both", stop=stop)
    assert both.converged.all()


def test_weights_of_zero_stay_zero_and_mass_that_is_taken_away_entirely_too():
    w = torch.tensor([0.4, 0.0, 0.6], dtype=DOUBLE)
    assert fixed_point(replicator, line(3, w), moves="weights").measure.weights[1] == 0
    transient = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.7, 0.0], [0.5, 0.5, 0.0]], dtype=DOUBLE, requires_grad=True)
    law = fixed_point(chain, line(3), transient, moves="weights", stop=TIGHT).measure.weights
    assert_close(law, torch.tensor([0.375, 0.625, 0.0], dtype=DOUBLE), rtol=1e-9)
    (gradient,) = torch.autograd.grad(law[0], transient)
    assert torch.isfinite(gradient).all()


def test_single_precision_and_masses_of_any_size():
    p = transitions(5, 5)
    for mass in (1e-6, 1.0, 1e6):
        start = mass * line(5)
        solution = fixed_point(chain, start.to(torch.float32), p.float(), moves="weights", stop=Stop(rtol=1e-5, atol=1e-12))
        assert solution.status == Status.CONVERGED
        assert_close(solution.measure.weights / mass, stationary_law(p).float(), rtol=1e-4)


def test_a_map_that_leads_to_what_is_not_finite_diverges():
    def broken(mu):
        return mu.with_weights(mu.weights * math.nan)

    assert fixed_point(broken, line(3), moves="weights").status == Status.DIVERGED


SPECKS = line(3, torch.tensor([0.4, 0.0, 0.6], dtype=DOUBLE))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_point(chain, line(3), transitions(3, 3), moves="mass"), "moves: expected 'points', 'weights' or 'both'"),
        (lambda: fixed_point(chain, line(3), transitions(3, 3)), "map: expected it to keep the weights.*with_points"),
        (
            lambda: fixed_point(lambda mu: mu.with_points(2 * mu.points), line(3), moves="weights"),
            "map: expected it to keep the points .*with_weights",
        ),
        (
            lambda: fixed_point(lambda mu: mu.with_weights(0.9 * mu.weights), line(3), moves="weights"),
            r"map: expected it to keep the mass of its argument, 1, got 0.9; .*normalized\(\)",
        ),
        (
            lambda: fixed_point(lambda mu: mu.with_weights(mu.weights - 0.5 * mu.points[:, 0] + 0.5), line(3), moves="both"),
            "map: expected weights that are not negative",
        ),
        (lambda: fixed_point(chain, SPECKS, transitions(3, 3), moves="weights"), "map: it gives mass to atoms whose weight"),
        (
            lambda: fixed_point(lambda mu: mu.with_marks(2 * mu.marks), marked(), moves="both"),
            r"map: expected it to keep the marks .*with_points\(\.\.\.\)\.with_weights",
        ),
        (
            lambda: fixed_point(chain, line(3), transitions(3, 3), moves="weights", solver=ParticleFlow()),
            "solver: ParticleFlow.*moves points",
        ),
        (
            lambda: fixed_point(selection, marked(), 0.1, 0.1, moves="both", solver=Picard(coupling="optimal")),
            "solver: Picard.*moves points",
        ),
        (
            lambda: fixed_point(chain, line(3, random(3).requires_grad_()), transitions(3, 3), moves="weights"),
            "mu0: its weights require grad.*Unrolled",
        ),
        (
            lambda: fixed_point(selection, marked().with_points(random(5, 2).requires_grad_()), 0.1, 0.1, moves="both"),
            "mu0: its points require grad.*Unrolled",
        ),
    ],
)
def test_what_makes_no_sense_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
