"""Fixed points of maps on several measures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import DOUBLE, FEW, cloud
from maps import TIGHT
from torch import nn

from ddeq import DiscreteMeasure, fixed_point
from ddeq.iteration import Status, Stop
from ddeq.solvers import Anderson, Broyden, Implicit, NewtonKrylov, OneStep, ParticleFlow, Phantom, Picard, Unrolled
from ddeq.spaces import Euclidean, Sphere
from ddeq.testing import assert_close
from ddeq.testing.strategies import permutations

START = {
    "a": DiscreteMeasure(cloud(4, 2, seed=1).points, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)),
    "b": cloud(3, 1, seed=2),
}


def mean(mu):
    return mu.normalized().mean()


def mixed(m, strength, shift):
    """A contraction: each species sees itself, its marks and the mean of the other, which is of another dimension."""
    a, b = m["a"], m["b"]
    own = 0.0 if a.marks is None else a.marks
    to_a = torch.tanh(0.4 * a.points + strength * mean(b).unsqueeze(-2) + shift.unsqueeze(-2) + own)
    to_b = 0.5 * torch.sin(b.points) + strength * mean(a).sum(-1)[..., None, None].square() + 0.3
    return {"a": a.with_points(to_a), "b": b.with_points(to_b)}


STRENGTH = torch.tensor(0.3, dtype=DOUBLE)
SHIFT = torch.tensor([0.2, -0.4], dtype=DOUBLE)


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("solver", [Picard(), Picard(0.3), Anderson(), Broyden(), NewtonKrylov()], ids=repr)
def test_every_point_solver_finds_it(solver):
    solution = fixed_point(mixed, START, STRENGTH, SHIFT, solver=solver, stop=TIGHT)
    assert solution.converged
    assert list(solution.measure) == ["a", "b"]
    image = mixed(solution.measure, STRENGTH, SHIFT)
    for name, mu in solution.measure.items():
        assert_close(mu.points, image[name].points, rtol=1e-11)
        assert torch.equal(mu.weights, START[name].weights)
    again = fixed_point(mixed, solution.measure, STRENGTH, SHIFT, stop=Stop(rtol=1e-9))
    assert again.steps == 0


@pytest.mark.theorem("T23")
def test_the_residual_is_that_of_all_points():
    solution = fixed_point(mixed, START, STRENGTH, SHIFT, stop=Stop(max_steps=0))
    image = mixed(START, STRENGTH, SHIFT)

    def norm(points):
        return sum((mu.weights.unsqueeze(-1) * points[s].square()).sum() for s, mu in START.items()).sqrt()

    away = norm({s: image[s].points - START[s].points for s in START})
    stop = Stop()
    assert_close(solution.residual, away / (norm({s: image[s].points for s in START}) + stop.atol / stop.rtol))


@pytest.mark.theorem("T23")
def test_independent_maps_have_the_fixed_points_that_they_have_alone():
    def to_a(mu):
        return mu.with_points(torch.cos(0.7 * mu.points))

    def to_b(mu):
        return mu.with_points(0.5 * mu.points + 1.0)

    both = fixed_point(lambda m: {"a": to_a(m["a"]), "b": to_b(m["b"])}, START, solver=Picard(), stop=Stop(max_steps=7))
    for name, map in (("a", to_a), ("b", to_b)):
        alone = fixed_point(map, START[name], solver=Picard(), stop=Stop(max_steps=7))
        assert_close(both.measure[name].points, alone.measure.points)


@pytest.mark.theorem("T23")
@FEW
@given(st.data())
def test_each_species_is_measure_consistent(data):
    order, i = data.draw(permutations(4)), data.draw(st.integers(0, 3))
    stop = Stop(max_steps=4)
    plain = fixed_point(mixed, START, STRENGTH, SHIFT, stop=stop).measure
    a = START["a"]
    permuted = fixed_point(mixed, {**START, "a": a.permute_atoms(order)}, STRENGTH, SHIFT, stop=stop).measure
    assert_close(permuted["a"].points, plain["a"].points[order], rtol=1e-9)
    split = fixed_point(mixed, {**START, "a": a.split_atom(i, 0.3).pad_atoms(1)}, STRENGTH, SHIFT, stop=stop).measure
    assert_close(split["a"].points[:4], plain["a"].points, rtol=1e-9)
    assert_close(split["a"].points[4], plain["a"].points[i], rtol=1e-9)
    assert_close(split["b"].points, plain["b"].points, rtol=1e-9)


def test_samples_of_a_batch_have_the_solutions_that_they_have_alone():
    shifts = torch.stack([SHIFT, 3.0 * SHIFT, torch.zeros(2, dtype=DOUBLE)])
    start = {s: DiscreteMeasure.stack([mu] * 3) for s, mu in START.items()}
    together = fixed_point(mixed, start, STRENGTH, shifts, in_dims=(None, 0), stop=TIGHT)
    assert together.converged.all()
    for k in range(3):
        alone = fixed_point(mixed, START, STRENGTH, shifts[k], stop=TIGHT)
        for s in START:
            assert_close(together.measure[s].points[k], alone.measure[s].points, rtol=1e-9)


def loss(measure):
    a, b = measure["a"], measure["b"]
    return (a.weights * a.points.prod(-1)).sum() + (b.weights * b.points[..., 0] ** 3).sum()


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("adjoint", [Implicit(), Unrolled()], ids=repr)
def test_derivatives_agree_with_finite_differences(adjoint):
    """In arguments, weights and marks."""
    marks = 0.1 * cloud(4, 2, seed=3).points

    def value(strength, shift, logits, marks):
        start = {"a": START["a"].with_weights(torch.softmax(logits, -1)).with_marks(marks), "b": START["b"]}
        solution = fixed_point(mixed, start, strength, shift, adjoint=adjoint, stop=TIGHT)
        assert solution.converged
        return loss(solution.measure)

    inputs = [t.clone().requires_grad_() for t in (STRENGTH, SHIFT, START["a"].weights.log(), marks)]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-5, atol=1e-8, fast_mode=True)


def test_modules_train():
    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.strength = nn.Parameter(STRENGTH.clone())

        def forward(self, m):
            return mixed(m, self.strength, SHIFT)

    module = Coupled()
    loss(fixed_point(module, START, stop=TIGHT).measure).backward()
    strength = STRENGTH.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(fixed_point(mixed, START, strength, SHIFT, stop=TIGHT).measure), strength)
    assert_close(module.strength.grad, gradient)
    for adjoint in (Phantom(40), OneStep()):
        (rough,) = torch.autograd.grad(
            loss(fixed_point(mixed, START, strength, SHIFT, adjoint=adjoint, stop=TIGHT).measure), strength
        )
        assert rough * gradient > 0


def test_spaces_by_name():
    def towards(m, pole):
        a, b = m["a"], m["b"]
        x = 0.3 * a.points + pole + 0.1 * mean(b)
        return {"a": a.with_points(x / x.norm(dim=-1, keepdim=True)), "b": b.with_points(0.5 * b.points + mean(a)[..., :1])}

    on_sphere = {**START, "a": START["a"].push_forward(lambda x: x / x.norm(dim=-1, keepdim=True))}
    pole = torch.tensor([1.0, 0.5], dtype=DOUBLE, requires_grad=True)
    solution = fixed_point(towards, on_sphere, pole, space={"a": Sphere(), "b": Euclidean()}, stop=TIGHT)
    assert solution.converged
    assert_close(solution.measure["a"].points.norm(dim=-1), torch.ones(4, dtype=DOUBLE))
    assert torch.autograd.gradcheck(
        lambda pole: loss(fixed_point(towards, on_sphere, pole, space={"a": Sphere(), "b": Euclidean()}, stop=TIGHT).measure),
        pole,
        eps=1e-5,
        atol=1e-7,
        fast_mode=True,
    )


def test_maps_that_do_not_contract_say_so():
    growing = fixed_point(
        lambda m: {s: mu.with_points(2.0 * mu.points) for s, mu in m.items()}, START, solver=Picard(), stop=Stop(max_steps=30)
    )
    assert growing.status.item() in (Status.MAX_STEPS, Status.DIVERGED)
    assert not growing.converged


def keep(m):
    return dict(m)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fixed_point(lambda m: {"a": m["a"]}, START),
            r"map: expected it to .* by the names .*, got \['a'\]",
        ),
        (
            lambda: fixed_point(lambda m: m["a"], START),
            "map: expected it to .* by the names .*, got Disc",
        ),
        (lambda: fixed_point(lambda m: {"a": m["b"], "b": m["a"]}, START), "map: expected .* for 'a'"),
        (lambda: fixed_point(lambda m: {**m, "a": 2.0}, START), "map: expected .* for 'a'"),
        (lambda: fixed_point(lambda m: {**m, "b": 2.0 * m["b"]}, START), "map: .*weights.* for 'b'"),
        (lambda: fixed_point(keep, START, moves="weights"), "moves: of several measures points move, got 'weights'"),
        (lambda: fixed_point(keep, START, solver=ParticleFlow()), "solver: ParticleFlow solves for one measure"),
        (lambda: fixed_point(keep, START, solver=Picard(coupling="optimal")), "solver: Picard solves for one measure"),
        (lambda: fixed_point(keep, START, stop=Stop(metric="mmd")), "stop: expected the metric None|metric: expected"),
        (
            lambda: fixed_point(keep, START, space={"a": Sphere()}),
            "space: expected one for all, or one for each",
        ),
        (lambda: fixed_point(lambda mu: mu, START["a"], space={"a": Sphere()}), "space: expected one space for one measure"),
        (lambda: fixed_point(keep, {}), "mu0: expected measures by name"),
        (lambda: fixed_point(keep, {**START, "b": cloud(3, 1, batch=(2,))}), "mu0: expected species that share batch shape"),
        (lambda: fixed_point(3.0, START), "map: expected a function of measures by name, got float"),
        (
            lambda: fixed_point(keep, {"a": START["a"].with_points(START["a"].points.clone().requires_grad_())}),
            "mu0: its points require grad",
        ),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()
