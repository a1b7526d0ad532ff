"""Derivatives through fixed points: exact ones against closed forms and finite differences, the others where they must agree."""

import copy
import warnings

import pytest
import torch
from maps import TIGHT, affine, linear, mean_field, point
from torch import nn

from ddeq import ConvergenceError, ConvergenceWarning, DiscreteMeasure, fixed_point
from ddeq.functionals import MMD
from ddeq.kernels import Gaussian
from ddeq.solvers import Anderson, Implicit, OneStep, Phantom, Picard, Status, Stop, Unrolled
from ddeq.testing import assert_close, check_implicit_gradient


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


def test_tiny_cotangents_are_not_taken_for_zero():
    a = scalar(0.9)
    z = fixed_point(affine, point(0.0), a, 1.0, stop=Stop(rtol=1e-6, max_steps=500)).measure.points.sum()
    assert torch.autograd.grad(1e-9 * z, a)[0].item() == pytest.approx(1e-7, rel=1e-4)


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
    with pytest.warns(ConvergenceWarning, match="1 of 2 fixed points did not converge"):
        solution.measure.points.sum().backward()
    a = torch.tensor([0.5, 10.0], dtype=torch.float64, requires_grad=True)
    for in_dims in (None, 0):
        solution = fixed_point(affine, mu, a, 1.0, in_dims=in_dims, solver=Picard(), adjoint=adjoint)
        with pytest.warns(ConvergenceWarning, match="1 of 2 fixed points diverged"):
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
    with pytest.warns(ConvergenceWarning, match="singular"):
        z.backward()


def test_models_can_be_copied_and_compiled():
    points, weights, marks = marked((2,))
    mu, context = DiscreteMeasure(points, weights, marks), {"shift": torch.zeros(2, 1, 2, dtype=torch.float64)}
    cell = Cell().double()
    other = copy.deepcopy(cell)
    values = [fixed_point(c, mu, context, stop=TIGHT).measure.points.sum() for c in (cell, other)]
    assert values[0] == values[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values[0].backward()
    assert all(p.grad is not None for p in cell.parameters())
    assert all(p.grad is None for p in other.parameters())


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
    with pytest.warns(ConvergenceWarning, match="1 of 3 fixed points diverged"):
        (gradient,) = torch.autograd.grad(solution.measure.points.sum(), gain)
    assert torch.isfinite(gradient)
    assert gradient > 0


@pytest.mark.parametrize("in_dims", [None, 0])
def test_if_all_samples_diverge_gradients_are_zero(in_dims):
    a = torch.tensor([3.0, 10.0], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(2, 1, 1, dtype=torch.float64))
    solution = fixed_point(affine, mu, a, 1.0, in_dims=in_dims, solver=Picard())
    with pytest.warns(ConvergenceWarning, match="2 of 2 fixed points diverged"):
        (gradient,) = torch.autograd.grad(solution.measure.points.sum(), a)
    assert gradient.tolist() == [0.0, 0.0]


def test_divergence_within_a_row_of_a_batch_of_two_dimensions():
    a = torch.tensor([[0.5, 3.0], [0.2, 0.2]], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(2, 2, 1, 1, dtype=torch.float64))
    solution = fixed_point(affine, mu, a, 1.0, in_dims=0, solver=Picard())
    assert solution.status.tolist() == [[Status.CONVERGED, Status.DIVERGED], [Status.CONVERGED, Status.CONVERGED]]
    with pytest.warns(ConvergenceWarning, match="1 of 4"):
        (gradient,) = torch.autograd.grad(solution.measure.points.sum(), a)
    assert gradient.flatten().tolist() == pytest.approx([4.0, 0.0, 1 / 0.64, 1 / 0.64], rel=1e-2)


def test_backward_sees_the_autocast_of_the_forward_pass():
    seen = []
    layer = nn.Linear(2, 2)

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, mu):
            seen.append(torch.is_autocast_enabled("cpu"))
            return mu.with_points(0.1 * self.layer(mu.points).float())

    with torch.autocast("cpu", torch.bfloat16):
        z = fixed_point(Watched(), DiscreteMeasure(torch.ones(3, 2)), stop=Stop(rtol=1e-2)).measure.points
    z.sum().backward()
    assert all(seen)
