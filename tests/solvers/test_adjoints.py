"""Derivatives through fixed points: exact ones against closed forms and finite differences, the others where they must agree."""

import math
import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import TIGHT, affine, linear, mean_field, point, random_matrix
from torch import nn

from ddeq import ConvergenceError, ConvergenceWarning, DiscreteMeasure, fixed_point
from ddeq.functionals import MMD
from ddeq.iteration import (
    AdjointWarning,
    DivergedWarning,
    Equation,
    Outcome,
    UnconvergedWarning,
    UnmatchedAtomsWarning,
    iterate,
)
from ddeq.kernels import Gaussian
from ddeq.solvers import (
    Anderson,
    Auto,
    Broyden,
    Implicit,
    NewtonKrylov,
    OneStep,
    Phantom,
    Picard,
    Status,
    Stop,
    Unrolled,
)
from ddeq.solvers.alignment import alignment
from ddeq.solvers.map_equation import MapEquation
from ddeq.testing import assert_close, check_implicit_gradient
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import contractions, measures
from proofs_checks.test_t07_implicit_differentiation import CYCLE, direct_derivatives, transport


@contextmanager
def warns(kind, details):
    """One warning of this class, whose numbers begin like that."""
    with pytest.warns(kind) as caught:
        yield
    found = [w.message for w in caught if type(w.message) is kind]
    assert len(found) == 1
    assert found[0].details().startswith(details)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def marked(batch=(), n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(*batch, n, generator=g, dtype=torch.float64) + 0.1
    points, marks = (torch.randn(*batch, n, 2, generator=g, dtype=torch.float64) for _ in range(2))
    return points, weights, marks


@pytest.mark.theorem("T7")
@pytest.mark.parametrize(
    ("adjoint", "gradient", "second"),
    [
        (Implicit(), (16.0, 8.0), 96.0),
        (Implicit(solver=Picard()), (16.0, 8.0), 96.0),
        (Unrolled(), (16.0, 8.0), 96.0),
        (OneStep(), (8.0, 4.0), None),
        (Phantom(1), (8.0, 4.0), None),
        (Phantom(5), (16 * (1 - 2**-5), 8 * (1 - 2**-5)), None),
    ],
    ids=repr,
)
def test_affine_problem(adjoint, gradient, second):
    """z = a z + b at a = 1/2, b = 1: z = 2; the square has gradient (16, 8) and second derivative 96 in a."""
    a, b = scalar(0.5), scalar(1.0)
    solution = fixed_point(affine, point(0.0), a, b, solver=Picard(), stop=TIGHT, adjoint=adjoint)
    grads = torch.autograd.grad(solution.measure.points.square().sum(), (a, b), create_graph=True)
    assert solution.measure.points.item() == pytest.approx(2.0, abs=1e-10)
    assert [g.item() for g in grads] == pytest.approx(gradient, rel=1e-8)
    if second is not None:
        assert torch.autograd.grad(grads[0], a)[0].item() == pytest.approx(second, rel=1e-7)


@pytest.mark.theorem("T7")
def test_cosine():
    theta = scalar(0.0)
    solution = fixed_point(lambda mu, t: mu.push_forward(lambda z: torch.cos(z) + t), point(0.0), theta, stop=TIGHT)
    assert torch.autograd.grad(solution.measure.points.sum(), theta)[0].item() == pytest.approx(0.597510, abs=1e-6)


@pytest.mark.theorem("T7")
def test_third_derivatives():
    """z = b / (1 - a): the third derivative of z in a is 6 b / (1 - a)^4."""
    a = scalar(0.5)
    value = fixed_point(affine, point(0.0), a, 1.0, stop=TIGHT).measure.points.sum()
    for _ in range(3):
        (value,) = torch.autograd.grad(value, a, create_graph=True)
    assert value.item() == pytest.approx(96.0, rel=1e-7)


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradcheck_in_args_weights_and_marks(batch):
    points, weights, marks = marked(batch)
    shift = 0.1 * torch.randn(2, dtype=torch.float64)

    def equilibrium(weights, marks, weight, shift):
        mu = DiscreteMeasure(points, weights, marks)
        return fixed_point(mean_field, mu, weight, shift, stop=TIGHT).measure.points

    inputs = [t.requires_grad_() for t in (weights, marks, torch.tensor(0.4, dtype=torch.float64), shift)]
    assert torch.autograd.gradcheck(equilibrium, inputs)
    assert torch.autograd.gradgradcheck(equilibrium, inputs, atol=1e-4)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, mu, context):
        mean = mu.normalized().mean().unsqueeze(-2)
        return mu.with_points(0.4 * self.outer(torch.tanh(self.inner(mu.points + mean))) + mu.marks + context["shift"])


@pytest.mark.theorem("T7")
def test_gradients_of_modules_with_arguments_in_a_tree():
    points, weights, marks = marked((2,))
    cell = Cell().double()
    context = {"shift": torch.randn(2, 1, 2, dtype=torch.float64), "name": "unused", "more": (None, 3)}
    check_implicit_gradient(cell, DiscreteMeasure(points, weights, marks), context)


def test_shared_history_of_arguments_and_parameters_is_counted_once():
    """An argument that was made from a parameter which the map also uses."""
    cell = nn.Linear(1, 1, bias=False).double()

    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = cell

        def forward(self, mu, b):
            return mu.with_points(0.5 * self.linear(mu.points) + b)

    with torch.no_grad():
        cell.weight.fill_(0.8)
    z = fixed_point(Map(), point(0.0), 3 * cell.weight.squeeze(), stop=TIGHT).measure.points.sum()
    grads = torch.autograd.grad(z, cell.weight, create_graph=True)
    # z = 3 w / (1 - w / 2): dz/dw = 3 / (1 - w/2)^2, d2z/dw2 = 3 / (1 - w/2)^3
    assert grads[0].item() == pytest.approx(3 / 0.6**2)
    assert torch.autograd.grad(grads[0].sum(), cell.weight)[0].item() == pytest.approx(3 / 0.6**3)


def test_several_forwards_before_one_backward():
    a = scalar(0.5)
    solutions = [fixed_point(affine, point(0.0), a, b, stop=TIGHT).measure.points.sum() for b in (1.0, 2.0)]
    assert torch.autograd.grad(sum(solutions), a)[0].item() == pytest.approx(4.0 + 8.0)


@pytest.mark.theorem("T9")
def test_adjoints_depend_on_the_measure_alone():
    points, weights, marks = marked()
    mu = DiscreteMeasure(points, weights, marks)
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def gradient(mu):
        end = fixed_point(mean_field, mu, 0.4, shift, stop=TIGHT).measure
        return torch.autograd.grad((end.weights * end.points.square().sum(-1)).sum(), shift)[0]

    for same in (mu.pad_atoms(2), mu.split_atom(1, 0.25), mu.permute_atoms(torch.arange(4).flip(0))):
        assert_close(gradient(same), gradient(mu), rtol=1e-9)


def test_a_loss_may_look_at_atoms_of_mass_zero():
    points, weights, marks = marked()
    weights[1] = 0.0
    shift = torch.zeros(2, dtype=torch.float64)
    # Picard, because the other solvers stop when the atoms of positive mass have converged.
    check_implicit_gradient(mean_field, DiscreteMeasure(points, weights, marks), 0.4, shift, solver=Picard())


@pytest.mark.parametrize(("dtype", "small"), [(torch.float64, 1e-9), (torch.float32, 1e-9), (torch.float32, 1e-25)])
def test_tiny_cotangents_are_not_taken_for_zero(dtype, small):
    """Gradients of confident classifiers are of that size, and their squares are zero."""
    a = torch.tensor(0.9, dtype=dtype, requires_grad=True)
    z = fixed_point(affine, point(0.0, dtype=dtype), a, 1.0, stop=Stop(rtol=1e-5, max_steps=500)).measure.points.sum()
    assert torch.autograd.grad(small * z, a)[0].item() == pytest.approx(100 * small, rel=1e-3, abs=0.0)


@pytest.mark.parametrize("adjoint", [Implicit(), OneStep(), Phantom(3)], ids=repr)
def test_tensors_that_enter_unseen_are_an_error(adjoint):
    hidden = scalar(0.5)
    with pytest.raises(ValueError, match=r"map: .*\(\).*args"):
        fixed_point(lambda mu: affine(mu, hidden, 1.0), point(0.0), adjoint=adjoint)
    layer = nn.Linear(1, 1).double()
    with pytest.raises(ValueError, match=r"nn\.Module"):
        fixed_point(lambda mu: mu.push_forward(layer), point(0.0), adjoint=adjoint)
    derived = (2 * hidden).exp()
    with pytest.raises(ValueError, match="map: "):
        fixed_point(lambda mu: affine(mu, derived, 1.0), point(0.0), adjoint=adjoint)
    with torch.no_grad():
        assert fixed_point(lambda mu: affine(mu, hidden, 1.0), point(0.0), adjoint=adjoint).converged


def test_the_start_does_not_matter_unless_unrolled():
    start = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"mu0: .*Unrolled"):
        fixed_point(affine, DiscreteMeasure(start), 0.5, 1.0)
    solution = fixed_point(affine, DiscreteMeasure(start), 0.5, 1.0, solver=Picard(), adjoint=Unrolled(3))
    assert torch.autograd.grad(solution.measure.points.sum(), start)[0].item() == pytest.approx(0.5**3)
    assert solution.steps.item() == 3


@pytest.mark.parametrize("adjoint", [Implicit(), OneStep(), Phantom(2), Unrolled()], ids=repr)
def test_the_value_is_the_same_with_and_without_gradients(adjoint):
    points, weights, marks = marked((2,))
    mu, shift = DiscreteMeasure(points, weights, marks), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    stop = Stop(rtol=1e-3)
    with_gradients = fixed_point(mean_field, mu, 0.4, shift, stop=stop, adjoint=adjoint).measure.points
    with torch.no_grad():
        without = fixed_point(mean_field, mu, 0.4, shift, stop=stop, adjoint=adjoint).measure.points
    assert_close(with_gradients, without)
    assert with_gradients.requires_grad
    assert not without.requires_grad


def test_unconverged_samples_warn_and_diverged_ones_get_zero():
    a = torch.tensor([0.5, 0.99], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(2, 1, 1, dtype=torch.float64))
    adjoint = Implicit(stop=Stop(rtol=1e-8, max_steps=100))
    solution = fixed_point(affine, mu, a, 1.0, solver=Picard(), stop=Stop(rtol=1e-8, max_steps=30), adjoint=adjoint)
    with warns(UnconvergedWarning, "1 of 2"):
        solution.measure.points.sum().backward()
    a = torch.tensor([0.5, 10.0], dtype=torch.float64, requires_grad=True)
    for in_dims in (None, 0):
        solution = fixed_point(affine, mu, a, 1.0, in_dims=in_dims, solver=Picard(), adjoint=adjoint)
        with warns(DivergedWarning, "1 of 2"):
            (gradient,) = torch.autograd.grad(solution.measure.points.sum(), a)
        assert gradient[1] == 0.0
        assert gradient[0].item() == pytest.approx(4.0, rel=1e-3)


def test_nan_of_one_sample_does_not_reach_the_gradient_of_the_others():
    b = torch.tensor([1.0, torch.nan], dtype=torch.float64, requires_grad=True)
    a = scalar(0.5)
    mu = DiscreteMeasure(torch.ones(2, 1, 1, dtype=torch.float64))
    solution = fixed_point(affine, mu, a, b, in_dims=(None, 0), stop=TIGHT)
    assert solution.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    with pytest.warns(ConvergenceWarning, match="diverged"):
        grads = torch.autograd.grad(solution.measure.points.sum(), (a, b))
    assert grads[0].item() == pytest.approx(4.0)
    assert grads[1].tolist() == pytest.approx([2.0, 0.0])


def test_a_failed_adjoint_says_so():
    a = scalar(0.99)
    failing = Stop(rtol=1e-12, max_steps=3)
    for on_failure, context in (("warn", pytest.warns), ("raise", pytest.raises)):
        adjoint = Implicit(solver=Picard(), stop=failing, on_failure=on_failure)
        z = fixed_point(affine, point(0.0), a, 1.0, stop=TIGHT, adjoint=adjoint).measure.points.sum()
        kind = ConvergenceWarning if on_failure == "warn" else ConvergenceError
        with context(kind, match="adjoint equations were not solved"):
            z.backward()


def test_a_singular_adjoint_says_so():
    """z -> z + theta (1 - z)^3 has J = 1 at its fixed point."""
    theta = scalar(0.1)
    z = fixed_point(lambda mu, t: mu.push_forward(lambda z: z + t * (1 - z) ** 3), point(1.0), theta).measure.points.sum()
    z = z + 0 * theta
    with warns(AdjointWarning, "1 of 1"):
        z.backward()


def test_large_problems_against_the_exact_solution():
    matrix = 0.9 * torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0]
    shift = torch.randn(40, dtype=torch.float64, requires_grad=True)
    start = DiscreteMeasure(torch.zeros(20, 2, dtype=torch.float64))
    z = fixed_point(linear, start, matrix, shift, solver=Anderson(20), stop=TIGHT).measure.points
    (gradient,) = torch.autograd.grad(z.square().sum(), shift)
    inverse = torch.linalg.inv(torch.eye(40, dtype=torch.float64) - matrix)
    assert_close(gradient, 2 * inverse.mT @ inverse @ shift, rtol=1e-7)


def test_maps_built_on_gradients_of_functionals_with_parameters():
    """The map makes leaves of its own for its derivatives: these are no strangers."""

    def descent(mu, target):
        return mu.with_points(mu.points - 0.5 * MMD(DiscreteMeasure(target), Gaussian(2.0)).wasserstein_gradient(mu))

    mu = DiscreteMeasure(torch.zeros(1, 1, dtype=torch.float64))
    target = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    solution = fixed_point(descent, mu, target, stop=TIGHT)
    assert solution.measure.points.item() == pytest.approx(0.3)
    assert torch.autograd.grad(solution.measure.points.sum(), target)[0].item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("adjoint", [Implicit(), OneStep(), Phantom(2)], ids=repr)
def test_every_adjoint_leaves_diverged_samples_out(adjoint):
    gain = scalar(0.5)
    a = torch.tensor([0.5, 10.0, 1.0], dtype=torch.float64)
    mu = DiscreteMeasure(torch.ones(3, 1, 1, dtype=torch.float64))

    def map(mu, gain, a):
        return mu.with_points(gain * mu.points * (2 - a).sqrt()[..., None, None] + 1)

    solution = fixed_point(map, mu, gain, a, in_dims=(None, 0), adjoint=adjoint)
    assert solution.status[1] == Status.DIVERGED
    with warns(DivergedWarning, "1 of 3"):
        (gradient,) = torch.autograd.grad(solution.measure.points.sum(), gain)
    assert torch.isfinite(gradient)
    assert gradient > 0


@pytest.mark.parametrize("in_dims", [None, 0])
def test_if_all_samples_diverge_gradients_are_zero(in_dims):
    a = torch.tensor([3.0, 10.0], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(2, 1, 1, dtype=torch.float64))
    solution = fixed_point(affine, mu, a, 1.0, in_dims=in_dims, solver=Picard())
    with warns(DivergedWarning, "2 of 2"):
        (gradient,) = torch.autograd.grad(solution.measure.points.sum(), a)
    assert gradient.tolist() == [0.0, 0.0]


def test_divergence_within_a_row_of_a_batch_of_two_dimensions():
    a = torch.tensor([[0.5, 3.0], [0.2, 0.2]], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(2, 2, 1, 1, dtype=torch.float64))
    solution = fixed_point(affine, mu, a, 1.0, in_dims=0, solver=Picard())
    assert solution.status.tolist() == [[Status.CONVERGED, Status.DIVERGED], [Status.CONVERGED, Status.CONVERGED]]
    with warns(DivergedWarning, "1 of 4"):
        (gradient,) = torch.autograd.grad(solution.measure.points.sum(), a)
    assert gradient.flatten().tolist() == pytest.approx([4.0, 0.0, 1 / 0.64, 1 / 0.64], rel=1e-2)


# --- random nonlinear maps ---

ADJOINT_SOLVERS = [Picard(), Picard(0.2), Anderson(), Anderson(3), Broyden(), NewtonKrylov(), Auto()]


@pytest.mark.theorem("T7")
@settings(max_examples=4)
@given(map=contractions(), mu=measures(mark_dim=2, max_atoms=3, offsets=(0.0,), scales=(1.0,)), data=st.data())
def test_first_and_second_derivatives_of_random_maps(map, mu, data):
    """In weights (those of atoms of mass zero, too), marks and arguments, for a loss that tells the atoms apart."""
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    matrix, shift = 0.4 * torch.randn(2, 2, generator=g, dtype=mu.dtype), torch.randn(2, generator=g, dtype=mu.dtype)
    tell_apart = torch.randn(mu.points.shape, generator=g, dtype=mu.dtype)
    adjoint = Implicit(data.draw(st.sampled_from([None, Picard()])), on_failure="raise")

    def loss(weights, marks, matrix, shift):
        mu0 = DiscreteMeasure(mu.points, weights.abs(), marks)  # differences step to the other side of mass zero
        z = fixed_point(map, mu0, matrix, shift, stop=TIGHT, solver=Picard(), adjoint=adjoint).measure.points
        return (z.square() * tell_apart).sum((-2, -1))

    weights = torch.where(mu.weights > 0, mu.weights, 1e-3)
    inputs = [t.detach().clone().requires_grad_() for t in (weights, mu.marks, matrix, shift)]
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("solver", ADJOINT_SOLVERS, ids=lambda s: type(s).__name__)
def test_every_solver_of_the_adjoint_gives_the_same_derivatives(solver):
    points, weights, marks = marked((2,))
    shift = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)

    def derivatives(adjoint):
        mu = DiscreteMeasure(points, weights, marks)
        z = fixed_point(mean_field, mu, 0.4, shift, solver=Picard(), stop=TIGHT, adjoint=adjoint).measure.points
        (first,) = torch.autograd.grad(z.pow(3).sum(), shift, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), shift)[0]

    for actual, expected in zip(derivatives(Implicit(solver)), derivatives(Unrolled()), strict=True):
        assert_close(actual, expected, rtol=1e-8)


# --- where adjoints agree and where they do not ---


@pytest.mark.theorem("T7")
def test_truncated_series_approach_the_exact_derivative_at_the_rate_of_the_map():
    """Errors of Phantom(K) fall like the spectral radius to the power K, those of Unrolled with the error of the solve."""
    radius, n = 0.6, 12
    matrix, stop = random_matrix(radius, n, symmetric=True), Stop(rtol=1e-13, atol=1e-15, max_steps=300)
    shift = torch.randn(n, dtype=torch.float64, requires_grad=True)
    start = DiscreteMeasure(torch.zeros(n // 2, 2, dtype=torch.float64))

    def gradient(adjoint, stop=stop):
        z = fixed_point(linear, start, matrix, shift, solver=Picard(), stop=stop, adjoint=adjoint).measure.points
        return torch.autograd.grad(z.square().sum(), shift)[0]

    exact = gradient(Implicit())
    assert_close(gradient(Unrolled()), exact, rtol=1e-10)
    assert_close(gradient(Unrolled(checkpoint=True)), exact, rtol=1e-10)
    assert_close(gradient(Phantom(60)), exact, rtol=1e-10)
    errors = [float((gradient(Phantom(k)) - exact).norm() / exact.norm()) for k in (1, 11, 21)]
    assert errors[0] > 0.1
    assert errors[1] / errors[0] == pytest.approx(radius**10, rel=1.0)
    assert errors[2] / errors[1] == pytest.approx(radius**10, rel=0.1)
    assert_close(gradient(OneStep()), gradient(Phantom(1)))
    # One step drops (I - J)^-T, no more and no less.
    inverse = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - matrix)
    assert_close(inverse.mT @ gradient(OneStep()), exact, rtol=1e-9)
    # Far from the fixed point the derivative of what was computed is not that of the fixed point.
    few = [float((gradient(Unrolled(k)) - exact).norm() / exact.norm()) for k in (2, 22)]
    assert few[0] > 0.1 > 1e-3 > few[1]


# --- fixed as a measure only ---


def cubic_cycle(mu, theta):
    """0 -> 1 -> 3 -> 0 at theta = 1."""
    return mu.push_forward(lambda z: theta + 19 / 6 * z - 7 / 6 * z.square())


def tied(mu, theta, adjoint, rtol=1e-9):
    """What a solve that a metric has stopped at ``mu`` would return."""
    equation = MapEquation(cubic_cycle, mu, (theta,))

    def run(equation: Equation, stop: Stop, *, watch: bool = False) -> Outcome:
        found = iterate(equation, Stop(max_steps=0), z=mu.points, method=Picard(), watch=watch)
        return replace(found, status=torch.tensor(Status.CONVERGED.value))

    return adjoint.solve(equation, run, Stop(rtol=rtol, metric=MMD)).value


ATOMS = torch.tensor([[float(z)] for z in CYCLE], dtype=torch.float64)
SLOPES = torch.tensor([float(s) for s in direct_derivatives(3, transport, CYCLE[0])], dtype=torch.float64)


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("loss", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, -1, 5]], ids=str)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]], ids=str)
def test_three_cycles(loss, order):
    """Two-cycles would not tell a matrix from its transpose; the loss tells the atoms apart."""
    theta, loss = scalar(1.0), torch.tensor(loss, dtype=torch.float64)[order]
    z = tied(DiscreteMeasure(ATOMS[order]), theta, Implicit())
    assert torch.autograd.grad((z[:, 0] * loss).sum(), theta)[0].item() == pytest.approx((SLOPES[order] @ loss).item())


@pytest.mark.theorem("T7")
def test_three_cycles_of_unequal_masses_and_dead_atoms():
    """Copies that share a place, in shares that no permutation respects; also with an atom of mass zero."""
    points = ATOMS[[0, 1, 1, 2, 2, 0]]
    weights = torch.tensor([1 / 3, 1 / 4, 1 / 12, 1 / 6, 1 / 6, 0.0], dtype=torch.float64)
    theta, loss = scalar(1.0), torch.tensor([2.0, -1.0, 0.5, 3.0, 1.0, 0.0], dtype=torch.float64)
    z = tied(DiscreteMeasure(points, weights), theta, Implicit())
    slope = torch.autograd.grad((z[:, 0] * loss).sum(), theta)[0]
    assert slope.item() == pytest.approx((SLOPES[[0, 1, 1, 2, 2, 0]] @ loss).item())


@pytest.mark.theorem("T7")
def test_second_derivatives_on_three_cycles():
    """Against the atom of the thrice-applied map, found by Newton's method and differentiated by unrolling it."""
    theta = scalar(1.0)
    z = tied(DiscreteMeasure(ATOMS), theta, Implicit())
    first = [torch.autograd.grad(z[i, 0], theta, create_graph=True)[0] for i in range(3)]
    second = [torch.autograd.grad(f, theta, retain_graph=True)[0].item() for f in first]

    def atom(start, theta):
        def image(z):
            return theta + 19 / 6 * z - 7 / 6 * z**2

        for _ in range(8):  # the slope of the thrice-applied map changes along the way, which Newton's method forgets
            a, b, c = start, image(start), image(image(start))
            slope = math.prod(19 / 6 - 7 / 3 * x for x in (a, b, c))
            start = start - (image(c) - start) / (slope - 1)
        return start

    h = 1e-4
    for i in range(3):
        low, middle, high = (atom(ATOMS[i].item(), 1.0 + t) for t in (-h, 0.0, h))
        assert second[i] == pytest.approx((high - 2 * middle + low) / h**2, rel=1e-4)


@pytest.mark.theorem("T7")
def test_adjoints_that_are_biased_are_aligned_too():
    theta = scalar(1.0)
    one = tied(DiscreteMeasure(ATOMS), theta, OneStep())
    assert_close(one, ATOMS)
    assert torch.autograd.grad(one[:, 0] @ torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), theta)[0].item() == 7.0


def logistic(mu, rate):
    """At the rate 3.83 almost every point is led to a 3-cycle."""
    return mu.push_forward(lambda z: rate * z * (1 - z))


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("copies", [1, 2])
def test_a_solve_that_ends_at_a_measure_that_is_fixed_as_a_measure_only(copies):
    """Picard's atoms go round for ever; the metric sees that their measure stands still, and its derivatives are right."""
    start = torch.tensor([[0.156], [0.505], [0.957]], dtype=torch.float64).repeat_interleave(copies, 0)
    weights = torch.tensor([0.2, 0.1333333333333333], dtype=torch.float64).repeat(3) if copies == 2 else None
    mu, stop = DiscreteMeasure(start, weights), Stop(rtol=1e-6, max_steps=300, metric=MMD)
    rate = scalar(3.83)
    round_and_round = fixed_point(logistic, mu, rate.detach(), solver=Picard(), stop=Stop(rtol=1e-3, max_steps=300))
    assert not round_and_round.converged

    def moment(rate, adjoint=Implicit(on_failure="raise")):
        solution = fixed_point(logistic, mu, rate, solver=Picard(), stop=stop, adjoint=adjoint)
        assert solution.converged
        mu_star = solution.measure
        return (mu_star.weights * mu_star.points.squeeze(-1).pow(3)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (slope,) = torch.autograd.grad(moment(rate), rate, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, rate)
    h = 1e-4
    low, middle, high = (moment(scalar(3.83 + t)).item() for t in (-h, 0.0, h))
    assert slope.item() == pytest.approx((high - low) / (2 * h), rel=1e-3)
    assert curvature.item() == pytest.approx((high - 2 * middle + low) / h**2, rel=1e-2)
    # A long series through the aligned map agrees; one that lets the atoms go round would not.
    (series,) = torch.autograd.grad(moment(rate, Phantom(120)), rate)
    assert series.item() == pytest.approx(slope.item(), rel=1e-5)


def test_alignment_finds_who_went_where():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    order = torch.stack([torch.randperm(5, generator=g) for _ in range(2)])
    image = z.gather(1, order.unsqueeze(-1).expand_as(z))
    for weights in (torch.full((2, 5), 0.2, dtype=torch.float64), torch.rand(2, 1, generator=g).double().expand(2, 5)):
        assert torch.equal(alignment(z, image, weights) @ image, z)
    mu = DiscreteMeasure(z[0], torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0], dtype=torch.float64))
    for same in same_measure(mu).values():
        matrix = alignment(same.points, same.points, same.weights)
        assert_close(matrix @ same.points, same.points)
        assert_close(matrix.sum(-1), torch.ones(same.n, dtype=torch.float64))


def test_atoms_that_stay_where_they_are_need_no_alignment(monkeypatch):
    """The assignment costs the cube of the number of atoms."""
    monkeypatch.setattr("ddeq.solvers.map_equation.alignment", None)
    points, weights, marks = marked((2,))
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    mu, stop = DiscreteMeasure(points, weights, marks), Stop(rtol=1e-6, metric=MMD)
    z = fixed_point(mean_field, mu, 0.4, shift, stop=stop).measure.points
    exact = fixed_point(mean_field, mu, 0.4, shift, stop=TIGHT).measure.points
    assert_close(*(torch.autograd.grad(t.sum(), shift)[0] for t in (z, exact)), rtol=1e-4)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("option", "value"), [("solver", "anderson"), ("solver", Anderson), ("stop", 1e-3), ("on_failure", "ignore")]
)
def test_options_of_the_adjoint_are_checked_when_it_is_made(option, value):
    with pytest.raises(ValueError, match=f"{option}: "):
        Implicit(**{option: value})


def test_atoms_that_only_the_metric_calls_equal_are_reported():
    theta = scalar(1.0)
    z = tied(DiscreteMeasure(ATOMS + torch.tensor([[0.01], [0.0], [0.0]], dtype=torch.float64)), theta, Implicit(), rtol=1e-4)
    with warns(UnmatchedAtomsWarning, "1 of 1"):
        z.sum().backward()


# --- singular equations ---


def turn(mu, angle):
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    return mu.push_forward(lambda z: z @ rotation.mT)


def to_the_circle(mu, radius):
    return mu.push_forward(lambda z: radius * z / z.norm(dim=-1, keepdim=True))


def halfway(mu, b):
    """The identity on the first coordinate."""
    return mu.push_forward(lambda z: torch.stack([z[..., 0], 0.5 * z[..., 1] + b], -1))


PATIENT = Stop(rtol=2e-2, max_steps=120, patience=120)


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("solver", [Anderson(), Picard(), Broyden(), NewtonKrylov(), Auto()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("map", "parameter"),
    [(turn, 2 * math.pi), (turn, 2 * math.pi + 1e-7), (to_the_circle, math.sqrt(5.0)), (halfway, 1.0)],
    ids=["whole turn", "nearly a whole turn", "circle of fixed points", "identity on a subspace"],
)
def test_singular_systems_are_flagged(map, parameter, solver):
    """With Picard the solution grows without end: relative to it the residual is small in the end, and proves nothing."""
    for on_failure, context in (("warn", pytest.warns(ConvergenceWarning)), ("raise", pytest.raises(ConvergenceError))):
        theta = scalar(parameter)
        adjoint = Implicit(solver, on_failure, stop=PATIENT)
        solution = fixed_point(map, point(1.0, 2.0), theta, adjoint=adjoint)
        assert solution.converged
        with context as caught:
            solution.measure.points[0, 0].backward()
        assert "singular" in str(caught[0].message if on_failure == "warn" else caught.value)


@pytest.mark.theorem("T7")
def test_what_the_loss_does_not_see_is_not_singular():
    """On a circle of fixed points the radius has a derivative, though no fixed point is isolated."""
    radius = scalar(1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = fixed_point(to_the_circle, point(1.0, 2.0), radius).measure.points
        (gradient,) = torch.autograd.grad(z.square().sum(), radius)
    assert gradient.item() == pytest.approx(3.0)


def test_one_singular_sample_does_not_hide_behind_the_others():
    a = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(3, 1, 1, dtype=torch.float64))
    solution = fixed_point(affine, mu, a, 1.0 - a.detach())  # one is fixed for all
    assert solution.converged.all()
    with warns(AdjointWarning, "1 of 3 samples (numbers 1), largest residual 1.0e+00, wanted 1.0e-04"):
        solution.measure.points.sum().backward()


def test_the_adjoint_reports_how_it_went():
    reports = []
    a = torch.tensor([0.5, 0.9], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.zeros(2, 1, 1, dtype=torch.float64))
    adjoint = Implicit(Picard(), stop=Stop(rtol=1e-6, max_steps=500), report=reports.append)
    z = fixed_point(affine, mu, a, 1.0, stop=TIGHT, adjoint=adjoint).measure.points
    (gradient,) = torch.autograd.grad(z.sum(), a, create_graph=True)
    assert len(reports) == 1
    assert (reports[0].residual <= 1e-6).all()
    # Powers of a, relative to the right-hand side: the least k with a^(k+1) <= 1e-6.
    assert reports[0].steps.tolist() == [math.ceil(math.log(1e-6) / math.log(x)) - 1 for x in (0.5, 0.9)]
    assert reports[0].products == reports[0].steps.max() + 1
    assert_close(reports[0].growth, 1 / (1 - a), rtol=1e-4)
    torch.autograd.grad(gradient.sum(), a)
    assert len(reports) > 1


# --- memory ---


def saved_bytes(run):
    """What autograd keeps for backward: each storage once."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = run()
    return value, sum(size for size, _ in kept.values())


class Wide(nn.Module):
    """Its intermediate results are 40 times as large as its state."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(2, 80), nn.Linear(80, 2)

    def forward(self, mu):
        return mu.with_points(0.5 * self.outer(torch.tanh(self.inner(mu.points))) + mu.marks)


def test_what_is_kept_for_backward():
    """The same with every number of steps, but for Unrolled; and checkpoints keep states instead of intermediate results."""
    cell = Wide().double()
    mu = DiscreteMeasure(torch.zeros(50, 2, dtype=torch.float64), marks=torch.randn(50, 2, dtype=torch.float64))

    def kept(adjoint, steps):
        stop = Stop(rtol=1e-300, atol=0.0, max_steps=steps)
        solve = lambda: fixed_point(cell, mu, solver=Picard(), stop=stop, adjoint=adjoint).measure.points
        return saved_bytes(solve)[1]

    implicit, unrolled, checkpoints = (
        [kept(a, k) for k in (10, 40)] for a in (Implicit(), Unrolled(), Unrolled(checkpoint=True))
    )
    assert implicit[0] == implicit[1]
    assert unrolled[1] > 3 * unrolled[0]
    assert checkpoints[1] - checkpoints[0] < 0.25 * (unrolled[1] - unrolled[0])


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("solver", [Picard(), Anderson(3)], ids=repr)
def test_checkpoints_change_no_derivative(solver):
    cell = Wide().double()
    marks = torch.randn(4, 2, dtype=torch.float64)
    results = []
    for checkpoint in (False, True):
        start = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
        mu, stop = DiscreteMeasure(start, marks=marks.clone().requires_grad_()), Stop(max_steps=6, rtol=1e-12)
        z = fixed_point(cell, mu, solver=solver, stop=stop, adjoint=Unrolled(checkpoint=checkpoint)).measure.points
        inputs = [start, mu.marks, *cell.parameters()]
        first = torch.autograd.grad(z.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([z, *first, *second])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=1e-9)


def test_checkpoints_need_what_the_map_captures_laid_open():
    hidden = scalar(0.5)
    plain = fixed_point(lambda mu: affine(mu, hidden, 1.0), point(0.0), adjoint=Unrolled())
    assert plain.measure.points.requires_grad
    with pytest.raises(ValueError, match=r"map: .*args"):
        fixed_point(lambda mu: affine(mu, hidden, 1.0), point(0.0), adjoint=Unrolled(checkpoint=True))
