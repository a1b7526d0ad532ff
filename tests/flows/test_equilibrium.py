"""Derivatives of stationary measures: closed forms, finite differences of tight flows, symmetries, and what must be refused."""

import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ddeq import ConvergenceError, ConvergenceWarning, DiscreteMeasure, Functional
from ddeq.flows import AdaptiveEuler, Euler, FunctionalDescent, Geometry, Heun, Nesterov, Proximal, Stein, equilibrium
from ddeq.flows.undirected import EulerOrHeun
from ddeq.functionals import MMD, Entropy, InteractionEnergy, PotentialEnergy, SinkhornDivergence, Wasserstein
from ddeq.iteration import DivergedWarning, NoDescentWarning, Status, Stop, UnconvergedWarning, UntrustedDerivativeWarning
from ddeq.iteration.driver import watched
from ddeq.kernels import Gaussian, Riesz
from ddeq.testing import assert_close, check_stepper

pytestmark = pytest.mark.theorem("T16")

TIGHT = Stop(rtol=1e-11, atol=1e-18, max_steps=20000)


def leaf(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def points(*x, dtype=torch.float64):
    return DiscreteMeasure(torch.tensor(x, dtype=dtype).reshape(len(x), -1))


def cloud(n, d=2, seed=0, batch=(), weights=None):
    x = torch.randn(*batch, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DiscreteMeasure(x, None if weights is None else torch.tensor(weights, dtype=torch.float64))


class With(nn.Module):
    """A function of positions and a tensor that it holds."""

    def __init__(self, function, theta):
        super().__init__()
        self.function = function
        self.register_buffer("theta", theta)

    def forward(self, x):
        return self.function(x, self.theta)


def potential(function, theta):
    return PotentialEnergy(With(function, theta))


def interaction(function, theta):
    return InteractionEnergy(With(function, theta))


def at_distance(theta):
    """Pairs at rest at distance sqrt(theta)."""
    return interaction(lambda z, t: z.square().sum(-1).square() / 4 - t * z.square().sum(-1) / 2, theta)


def spread(mu):
    return mu.covariance().diagonal(dim1=-2, dim2=-1).sum(-1)


def slope(value, tensors, directions):
    grads = torch.autograd.grad(value, tensors, materialize_grads=True)
    return sum((g * v).sum() for g, v in zip(grads, directions, strict=True)).item()


# --- closed forms ---


@pytest.mark.parametrize("stepper", [None, Euler(0.5)], ids=repr)
def test_quadratic_potential(stepper):
    """(z - theta^2)^2 / 2 comes to rest at theta^2: derivatives 2 theta, 2 and 0."""
    theta = leaf(1.5)
    F = potential(lambda x, t: 0.5 * (x - t**2).square().sum(-1), theta)
    solution = equilibrium(F, points(0.0, 3.0), stepper=stepper, stop=TIGHT)
    z = solution.measure.points
    assert solution.converged
    assert z.flatten().tolist() == pytest.approx([2.25, 2.25])
    (first,) = torch.autograd.grad(z.sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(first, theta, create_graph=True)
    (third,) = torch.autograd.grad(second, theta)
    assert [first.item(), second.item(), third.item()] == pytest.approx([6.0, 4.0, 0.0], abs=1e-8)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-3), (torch.float64, 1e-6)], ids=str)
def test_ridge_regression(dtype, rtol):
    """dw/dlambda = -(X^T X / n + lambda)^-1 w, for the coefficients as the place of one atom; with the default options."""
    g = torch.Generator().manual_seed(0)
    X, y = (
        torch.randn(20, 3, generator=g, dtype=torch.float64).to(dtype),
        torch.randn(20, generator=g, dtype=torch.float64).to(dtype),
    )
    penalty = leaf(0.3, dtype)

    def loss(w, penalty):
        return 0.5 * (w @ X.mT - y).square().mean(-1) + 0.5 * penalty * w.square().sum(-1)

    solution = equilibrium(potential(loss, penalty), DiscreteMeasure(torch.zeros(1, 3, dtype=dtype)))
    w = solution.measure.points.squeeze(0)
    hessian = X.mT @ X / 20 + penalty.detach() * torch.eye(3, dtype=dtype)
    assert solution.converged
    assert_close(w, torch.linalg.solve(hessian, X.mT @ y / 20), rtol=rtol)
    direct = -torch.linalg.solve(hessian, w.detach())
    for i in range(3):
        (derivative,) = torch.autograd.grad(w[i], penalty, retain_graph=True)
        assert derivative.dtype == dtype
        assert_close(derivative, direct[i], scale=direct, rtol=rtol)
    # d2w / dlambda2 = 2 (X^T X / n + lambda)^-2 w
    (first,) = torch.autograd.grad(w.sum(), penalty, create_graph=True)
    (second,) = torch.autograd.grad(first, penalty)
    assert_close(second, 2 * torch.linalg.solve(hessian, torch.linalg.solve(hessian, w.detach())).sum(), rtol=10 * rtol)


def test_a_matched_target_moves_its_atoms_along():
    """The minimum of a discrepancy is the target: dZ/dY is the identity, up to the order of the atoms."""
    target = leaf([[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]])
    start = DiscreteMeasure(target.detach() + 0.05 * cloud(3).points)
    z = equilibrium(MMD(DiscreteMeasure(target), Gaussian(1.0)), start, stop=Stop(rtol=1e-9, max_steps=5000)).measure.points
    assert_close(z, target, rtol=1e-6)
    c = cloud(3, seed=1).points
    assert_close(torch.autograd.grad((c * z).sum(), target)[0], c, rtol=1e-5)


# --- finite differences ---

BARYCENTRES = {
    "sinkhorn": (lambda nu: SinkhornDivergence(nu, blur=0.3), Euler(1.0), 1e-9),
    "mmd": (lambda nu: MMD(nu, Gaussian(1.0)), Euler(2.0), 1e-12),
    "wasserstein": (Wasserstein, Euler(1.0), 1e-12),
}


@pytest.mark.parametrize("name", list(BARYCENTRES))
def test_barycentres_against_finite_differences(name):
    """In the weights of the targets, their atoms and masses, and the masses of the barycentre itself."""
    discrepancy, stepper, accuracy = BARYCENTRES[name]
    start, c = cloud(3), cloud(3, seed=5).points
    first = [torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0.22, 0.45, 0.33], dtype=torch.float64)]
    first += [cloud(4, seed=1).points, cloud(4, seed=2).points, torch.tensor([0.31, 0.26, 0.24, 0.19], dtype=torch.float64)]
    g = torch.Generator().manual_seed(7)
    directions = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in first]
    for i in (1, 4):  # masses must agree
        directions[i] = directions[i] - directions[i].mean()

    def rest(start, rtol, share, weights, y1, y2, masses):
        F = share[0] * discrepancy(DiscreteMeasure(y1)) + share[1] * discrepancy(DiscreteMeasure(y2, masses))
        stop = Stop(rtol=rtol, atol=1e-18, max_steps=20000)
        solution = equilibrium(F, start.with_weights(weights), stepper=stepper, stop=stop)
        assert solution.converged
        return solution.measure

    tensors = [t.clone().requires_grad_() for t in first]
    end = rest(start, accuracy, *tensors)
    derivative = slope((c * end.points).sum(), tensors, directions)
    h = 2e-5
    with torch.no_grad():  # from the end: the gradient there is of the size of h
        moved = [
            rest(end.detach(), 1e2 * accuracy, *(t + s * h * v for t, v in zip(first, directions, strict=True))) for s in (1, -1)
        ]
        ends = [(c * mu.points).sum().item() for mu in moved]
    assert derivative == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5)


def test_first_and_second_derivatives_in_everything():
    start = points(-0.6, 0.9)

    def rest(weights, target, share, theta):
        F = share * MMD(DiscreteMeasure(target), Gaussian(1.5)) + potential(lambda x, t: ((x - t) ** 4).sum(-1) / 8, theta)
        F = F + potential(lambda x, t: 0.5 * ((1 + t**2) * x.square()).sum(-1), theta) + at_distance(theta)
        return equilibrium(F, start.with_weights(weights), stepper=Euler(0.5), stop=TIGHT).measure.points

    inputs = [leaf([0.4, 0.6]), leaf([[0.8], [-1.1]]), leaf(0.7), leaf(0.6)]
    assert torch.autograd.gradcheck(rest, inputs)
    assert torch.autograd.gradgradcheck(rest, inputs, atol=1e-4)


class Labelled(Functional):
    reads_marks = True

    def forward(self, mu):
        return (mu.weights * 0.5 * (mu.points - mu.marks.sin()).square().sum(-1)).sum(-1)


def test_marks_where_they_are_read():
    marks = leaf([[0.3], [1.0]])
    z = equilibrium(Labelled(), points(0.0, 0.0).with_marks(marks), stop=TIGHT).measure.points
    assert_close(torch.autograd.grad(z.sum(), marks)[0], marks.cos(), rtol=1e-8)


# --- bilevel ---


def test_learning_an_interaction_with_a_given_spread():
    """Newton's method on the spread of the equilibrium, with derivatives of the implicit rule: quadratic convergence."""
    wanted, log_theta = 0.8, leaf(0.0)
    start = cloud(3, weights=[0.2, 0.3, 0.5])
    errors = []
    for _ in range(6):
        F = at_distance(log_theta.exp()) + 0.1 * PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
        error = spread(equilibrium(F, start, stop=Stop(rtol=1e-7, max_steps=5000)).measure) - wanted
        (derivative,) = torch.autograd.grad(error, log_theta)
        log_theta = (log_theta - error / derivative).detach().requires_grad_()
        errors.append(abs(error.item()))
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


# --- symmetries ---


def test_translation_invariance_keeps_the_mean_as_the_flow_does():
    """Two atoms at distance sqrt(theta) about their mean: the first moves at -w_2 / (2 sqrt(theta)), from the left."""
    theta = leaf(1.7)
    mu = DiscreteMeasure(torch.tensor([[-0.3], [0.4]], dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = equilibrium(at_distance(theta), mu, stop=TIGHT).measure.points.flatten()
        grads = [torch.autograd.grad(z[i], theta, retain_graph=True)[0].item() for i in range(2)]
    assert grads == pytest.approx([-0.75 / (2 * 1.7**0.5), 0.25 / (2 * 1.7**0.5)])


def test_rotation_invariance():
    """An invariant loss has its derivative; of another one it is said that the answer is a convention."""
    start = cloud(5, weights=[0.25, 0.35, 0.1, 0.1, 0.2])

    def rest(theta):
        return equilibrium(at_distance(theta), start, stop=Stop(rtol=1e-9, max_steps=5000)).measure

    theta = leaf(1.7)
    mu = rest(theta)
    (first,) = torch.autograd.grad(spread(mu), theta, create_graph=True)
    # All distances scale with sqrt(theta), so the spread is proportional to theta.
    assert first.item() == pytest.approx(spread(mu).item() / 1.7, rel=1e-6)
    assert torch.autograd.grad(first, theta)[0].item() == pytest.approx(0.0, abs=1e-5)
    with pytest.warns(ConvergenceWarning, match="slope along rotations"):
        torch.autograd.grad(rest(theta).points[0, 0], theta)


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_translations_in_any_dimension(dim):
    theta = leaf(0.9)
    mu = equilibrium(at_distance(theta), cloud(3, dim), stop=Stop(rtol=1e-9, max_steps=5000)).measure
    assert torch.autograd.grad(mu.mean().sum(), theta, retain_graph=True)[0].item() == pytest.approx(0.0, abs=1e-8)
    assert torch.autograd.grad(spread(mu), theta)[0].item() == pytest.approx(spread(mu).item() / 0.9, rel=1e-6)


def test_a_symmetry_along_one_axis_only():
    """A well in the first coordinate and an interaction: free along the second axis, where the mean stays."""
    theta = leaf(0.6)
    F = at_distance(leaf(1.0)) + potential(lambda x, t: 0.5 * (x[..., 0] - t).square(), theta)
    mu = equilibrium(F, cloud(3), stop=Stop(rtol=1e-9, max_steps=5000)).measure
    (gradient,) = torch.autograd.grad((mu.mean() * torch.tensor([1.0, 5.0], dtype=torch.float64)).sum(), theta)
    assert gradient.item() == pytest.approx(1.0, rel=1e-6)


def test_in_another_geometry_the_mean_is_not_determined():
    theta = leaf(0.9)
    stein = Stein(Gaussian(1.0))
    mu = equilibrium(
        at_distance(theta), cloud(3), geometry=stein, stepper=Euler(0.3), stop=Stop(rtol=1e-8, max_steps=9000)
    ).measure
    assert torch.autograd.grad(spread(mu), theta, retain_graph=True)[0].item() == pytest.approx(spread(mu).item() / 0.9, rel=1e-5)
    with pytest.warns(ConvergenceWarning, match="translations"):
        torch.autograd.grad(mu.points[0, 0], theta)
    with pytest.raises(ValueError, match=r"geometry: .*entropy"):
        equilibrium(at_distance(theta) + Entropy(0.5), cloud(3), geometry=stein)


def test_equilibria_that_are_not_isolated():
    """A functional of the mean alone: any atoms of that mean are at rest. Losses of the mean have a derivative, others none."""
    theta = leaf(0.7)
    F = interaction(lambda z, t: -0.5 * z.square().sum(-1), theta) + potential(lambda x, t: 0.5 * (x - t).square().sum(-1), theta)
    mu = equilibrium(F, cloud(4), stop=TIGHT).measure
    assert torch.autograd.grad(mu.mean().sum(), theta, retain_graph=True)[0].item() == pytest.approx(2.0)
    with pytest.raises(ConvergenceError, match="no symmetries"):
        torch.autograd.grad(mu.points[0, 0], theta)


# --- what must be refused ---

TRIANGLE = torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], dtype=torch.float64)
POINT = points(0.0)


@pytest.mark.parametrize(
    ("functional", "theta", "start", "reason"),
    [
        # |z - y| at z = y: the formula gives 0 where the truth is 1.
        (lambda t: MMD(DiscreteMeasure(t.reshape(1, 1)), Riesz(1.0)), 2.0, points(1.0), "jumps.*OFF_DIAGONAL"),
        # The same with a regular Hessian from other atoms: the system is consistent, and the answer wrong.
        (lambda t: MMD(DiscreteMeasure(torch.cat([TRIANGLE, t])), Riesz(1.0)), [[0.0, 0.0]], points([0.0, 0.0]), "jumps"),
        (lambda t: potential(lambda x, t: (x - t).abs().sum(-1) + 0.5 * x.square().sum(-1), t), 0.0, POINT, "jumps"),
        # A degenerate minimum, at it and close to it.
        (lambda t: potential(lambda x, t: 0.25 * (x - t).pow(4).sum(-1), t), 0.0, POINT, "flat to second order"),
        (lambda t: potential(lambda x, t: 0.25 * (x - t).pow(4).sum(-1), t), 0.0, points(0.3), "too far from"),
        # z^3 = theta: the derivative is infinite.
        (lambda t: potential(lambda x, t: 0.25 * x.pow(4).sum(-1) - (t * x).sum(-1), t), 0.0, POINT, "flat to second order"),
        (
            lambda t: potential(lambda x, t: 0.25 * x.pow(4).sum(-1) - (t * x).sum(-1), t),
            0.0,
            points(0.3),
            "too far from stationary",
        ),
        # A flow that creeps to infinity, with a gradient as small as one likes.
        (lambda t: potential(lambda x, t: (-t * x).exp().sum(-1), t), 1.0, POINT, "too far from stationary"),
    ],
)
def test_refused(functional, theta, start, reason):
    theta = leaf(theta)
    for loss, on_failure in ((1.0, "raise"), (1e-9, "raise"), (1.0, "warn")):
        solution = equilibrium(functional(theta), start, on_failure=on_failure)
        assert solution.converged
        z = solution.measure.points.sum() * loss
        if on_failure == "raise":
            with pytest.raises(ConvergenceError, match=f"some equilibria .*{reason}.*1 of 1 samples"):
                torch.autograd.grad(z, theta)
        else:
            with pytest.warns(ConvergenceWarning, match=reason):
                (gradient,) = torch.autograd.grad(z, theta)
            assert torch.equal(gradient, torch.zeros_like(theta))


def test_smoothing_the_kink_gives_the_truth():
    theta = leaf(2.0)
    F = potential(lambda x, t: ((x - t).square().sum(-1) + 1e-4).sqrt(), theta)
    z = equilibrium(F, points(1.0), stop=Stop(rtol=1e-10, max_steps=5000)).measure.points.sum()
    assert torch.autograd.grad(z, theta)[0].item() == pytest.approx(1.0)


def test_a_loss_that_does_not_see_the_flat_direction_but_a_force_that_does():
    """z^4/4 - theta z + (y - z)^2/2, whose loss y - z is 0 for every theta: the solution of least norm would say 1/2."""
    theta = leaf(0.0)
    F = potential(lambda x, t: x[..., 0].pow(4) / 4 - t * x[..., 0] + 0.5 * (x[..., 1] - x[..., 0]).square(), theta)
    z = equilibrium(F, points([0.0, 0.0])).measure.points[0]
    with pytest.raises(ConvergenceError, match="pushes the atoms"):
        torch.autograd.grad(z[1] - z[0], theta)


def test_a_symmetry_at_one_value_only():
    """Free to move at theta = 0, where the slightest theta decides where to."""
    theta = leaf(0.0)
    F = at_distance(leaf(1.0)) + theta * PotentialEnergy(lambda x: 0.5 * (x - 1).square().sum(-1))
    mu = equilibrium(F, cloud(3), stop=Stop(rtol=1e-9, max_steps=5000)).measure
    with pytest.raises(ConvergenceError, match="pushes the atoms"):
        torch.autograd.grad(mu.points[:, 0].sum(), theta)


class Rotating(Functional):
    """A wasserstein_gradient that is no gradient."""

    def __init__(self, theta):
        super().__init__()
        self.register_buffer("theta", theta)

    def forward(self, mu):
        return (mu.weights * 0.5 * mu.points.square().sum(-1)).sum(-1)

    def wasserstein_gradient(self, mu, x=None):
        z = mu.points if x is None else x
        return z + self.theta * torch.stack([-z[..., 1], z[..., 0]], -1) - 1


def test_what_is_no_gradient_is_found_out():
    theta = leaf(0.8)
    z = equilibrium(Rotating(theta), points([0.0, 0.0]), stepper=Euler(0.3), stop=TIGHT).measure.points
    with pytest.raises(ConvergenceError, match="not the gradient of the functional"):
        torch.autograd.grad(z[0, 0], theta)


# --- samples of a batch ---


def test_one_sample_does_not_spoil_the_others():
    """Exponents 2 and 4: the second minimum is degenerate, at a parameter that both share."""
    theta, exponents = leaf(0.0), torch.tensor([[2.0], [4.0], [2.0]], dtype=torch.float64)
    shared = potential(lambda x, t: ((x - t).square().sum(-1) + 1e-300) ** (exponents / 2) / exponents, theta)
    mu = DiscreteMeasure(torch.full((3, 1, 1), 0.5, dtype=torch.float64))
    z = equilibrium(shared, mu, on_failure="warn").measure.points
    with pytest.warns(UntrustedDerivativeWarning) as caught:
        assert torch.autograd.grad(z.sum(), theta)[0].item() == pytest.approx(2.0)
    assert (caught[0].message.samples, caught[0].message.total) == ([1], 3)
    z = equilibrium(shared, mu).measure.points
    with pytest.raises(ConvergenceError, match="numbers 1"):
        torch.autograd.grad(z.sum(), theta)
    z = equilibrium(shared, mu).measure.points  # a loss that does not look at the degenerate one
    assert torch.autograd.grad(z[0].sum() + z[2].sum(), theta)[0].item() == pytest.approx(2.0)


def test_a_symmetry_that_one_sample_breaks_by_its_force():
    """Coefficients of a well, one for each sample: 0 is singular in its coefficient, and in nothing else."""
    theta = leaf([0.0, 0.5])
    F = at_distance(leaf(1.0)) + theta * PotentialEnergy(lambda x: 0.5 * (x - 1).square().sum(-1))
    mu = cloud(3, batch=(2,))
    z = equilibrium(F, mu, stop=Stop(rtol=1e-9, max_steps=9000), on_failure="warn").measure
    with pytest.warns(UntrustedDerivativeWarning, match="pushes") as caught:
        (gradient,) = torch.autograd.grad(spread(z).sum(), theta)
    assert (caught[0].message.samples, caught[0].message.total) == ([0], 2)
    alone_theta = leaf(0.5)
    F = at_distance(leaf(1.0)) + alone_theta * PotentialEnergy(lambda x: 0.5 * (x - 1).square().sum(-1))
    alone = equilibrium(F, mu[1], stop=Stop(rtol=1e-9, max_steps=9000)).measure
    assert gradient[0] == 0.0
    assert_close(gradient[1], torch.autograd.grad(spread(alone), alone_theta)[0], rtol=1e-6)


def test_targets_for_each_sample():
    target = cloud(4, seed=1, batch=(3,)).points.requires_grad_()
    mu, c, stop = cloud(3, batch=(3,)), cloud(3, seed=2, batch=(3,)).points, Stop(rtol=1e-9, max_steps=9000)
    solution = equilibrium(MMD(DiscreteMeasure(target), Gaussian(2.0)), mu, stepper=Euler(4.0), stop=stop)
    assert solution.converged.all()
    (together,) = torch.autograd.grad((c * solution.measure.points).sum(), target)
    for i in range(3):
        one = target[i].detach().requires_grad_()
        alone = equilibrium(MMD(DiscreteMeasure(one), Gaussian(2.0)), mu[i], stepper=Euler(4.0), stop=stop)
        assert alone.steps == solution.steps[i]
        assert_close(alone.measure.points, solution.measure.points[i], rtol=1e-8)
        assert_close(torch.autograd.grad((c[i] * alone.measure.points).sum(), one)[0], together[i], rtol=1e-6)


def test_unconverged_samples_are_differentiated_where_they_are():
    theta = leaf(1.0)
    F = potential(lambda x, t: 0.5 * (x - t).square().sum(-1), theta)
    solution = equilibrium(F, points(0.0), stepper=Euler(0.1), stop=Stop(rtol=1e-6, max_steps=5))
    assert solution.status.item() == Status.MAX_STEPS
    with pytest.warns(UnconvergedWarning, match="some flows did not converge") as caught:
        assert torch.autograd.grad(solution.measure.points.sum(), theta)[0].item() == pytest.approx(1.0)
    assert (caught[0].message.failed, caught[0].message.total) == (1, 1)
    with pytest.raises(ConvergenceError, match="not found") as caught:
        equilibrium(F, points(0.0), stepper=Euler(0.1), stop=Stop(rtol=1e-6, max_steps=5), throw=True)
    assert caught.value.solution.steps.item() == 5


@pytest.mark.parametrize("removable", [True, False])
def test_diverged_samples_get_zero_and_disturb_no_other(removable):
    """A factor that is NaN, where it is known how to leave it out; else one that is too large for the step."""
    theta, share = leaf(1.0), leaf([1.0, torch.nan if removable else -1e3])
    confined = potential(lambda x, t: 0.5 * (x - t).square().sum(-1) + 0.25 * x.pow(4).sum(-1), theta)
    confined.removable = removable
    solution = equilibrium(share * confined, cloud(3, batch=(2,)), stepper=Euler(0.1), stop=Stop(rtol=1e-8, max_steps=9000))
    assert solution.status.tolist() == [Status.CONVERGED, Status.DIVERGED]
    with pytest.warns(DivergedWarning, match="some flows diverged") as caught:
        grads = torch.autograd.grad(solution.measure.points.sum(), (theta, share))
    assert (caught[0].message.samples, caught[0].message.total) == ([1], 2)
    z = solution.measure.points[0].detach()
    assert grads[0].item() == pytest.approx((1 / (1 + 3 * z**2)).sum().item())
    assert grads[1].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


# --- a function of measures ---


def energy_and_derivatives(mu):
    """Of an energy without symmetries, with a kernel that is not smooth on the diagonal; a loss, two gradients, one Hessian."""
    target, theta = cloud(2, seed=3).points.requires_grad_(), leaf(0.3)
    F = MMD(DiscreteMeasure(target), Riesz(1.5)) + potential(lambda x, t: t * x.square().sum(-1), theta) + at_distance(theta)
    end = equilibrium(F, mu, stepper=Euler(0.1), stop=Stop(rtol=1e-9, max_steps=9000)).measure
    value = (end.weights * end.points.sin().sum(-1)).sum()
    first = torch.autograd.grad(value, (target, theta), create_graph=True)
    return [value, *first, torch.autograd.grad(first[0].sum() + first[1], theta)[0]]


@pytest.mark.theorem("T1")
def test_results_depend_on_the_measure_alone():
    """Values and derivatives, under permutations, splits and atoms of mass zero."""
    mu = cloud(3, weights=[0.2, 0.5, 0.3])
    expected = energy_and_derivatives(mu)
    same = mu.permute_atoms(torch.tensor([2, 0, 1])), mu.split_atom(1, 0.25), mu.split_atom(0, 1.0), mu.pad_atoms(2)
    for other in same:
        for a, b in zip(energy_and_derivatives(other), expected, strict=True):
            assert_close(a, b, rtol=1e-6)


def test_atoms_of_mass_zero_have_no_derivative_and_influence_no_other():
    theta = leaf(1.5)
    F = potential(lambda x, t: 0.5 * (x - t).square().sum(-1), theta)
    mu = DiscreteMeasure(torch.tensor([[0.0], [5.0]], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    z = equilibrium(F, mu, stop=TIGHT).measure.points
    grads = [torch.autograd.grad(z[i].sum(), theta, retain_graph=True)[0].item() for i in range(2)]
    assert grads == pytest.approx([1.0, 0.0])
    # Their weights have one: an atom there would attract the others.
    weights = leaf([1.0, 0.0])
    F = InteractionEnergy(lambda d: 0.5 * d.square().sum(-1)) + PotentialEnergy(lambda x: 0.5 * (x - 1).square().sum(-1))
    z = equilibrium(F, DiscreteMeasure(mu.points, weights), stepper=Euler(0.1), stop=Stop(rtol=1e-9, max_steps=500))
    far = z.measure.points.detach()[1].item()
    (gradient,) = torch.autograd.grad(z.measure.points[0].sum(), weights)
    assert gradient[1].item() == pytest.approx(far - 1.0, abs=1e-6)


# --- Newton's method at the end ---


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str)
def test_an_ill_conditioned_energy(dtype):
    """A condition of 1e4, past a saddle: a flow alone takes more than 2000 steps in double precision."""
    F, mu = MMD(cloud(30, seed=1).to(dtype), Gaussian(1.0)), cloud(20).to(dtype)
    stop = Stop(rtol=1e-6 if dtype == torch.float64 else 1e-4, atol=1e-18, max_steps=150)
    with torch.no_grad():
        flowed, solution = (equilibrium(F, mu, stepper=AdaptiveEuler(), finish=finish, stop=stop) for finish in (False, True))
    assert not flowed.converged
    assert flowed.evaluations == flowed.steps + 1
    assert solution.converged
    assert solution.steps < 100
    assert F(solution.measure) < F(flowed.measure)
    force = F.wasserstein_gradient(solution.measure).norm() / F.wasserstein_gradient(mu).norm()
    assert solution.residual.item() == pytest.approx(force.item(), rel=1e-2)


def test_gradients_that_energies_cannot_tell():
    """Steps of a flow that must lower the energy end at a residual of about 1e-8."""
    F, mu, stop = MMD(cloud(8, seed=1), Gaussian(2.0)), cloud(5), Stop(rtol=1e-12, atol=1e-18, max_steps=150)
    assert equilibrium(F, mu, stepper=AdaptiveEuler(), stop=stop).converged
    assert not equilibrium(F, mu, stepper=AdaptiveEuler(), stop=stop, finish=False).converged
    assert equilibrium(F, mu, stop=stop).converged


def test_energies_never_rise():
    F, mu, energies = MMD(cloud(12, seed=1), Gaussian(1.0)), cloud(8), []
    stop = Stop(rtol=1e-10, max_steps=500)
    solution = equilibrium(F, mu, stop=stop, trace=True, callback=lambda r: energies.append(F(mu.with_points(r.value)).item()))
    assert solution.converged
    assert len(energies) == len(solution.trace) == solution.steps + 1
    assert max(b - a for a, b in itertools.pairwise(energies)) < 1e-15


@pytest.mark.parametrize("rtol", [1e-2, 1e-8])
@pytest.mark.parametrize("off", [1e-1, 1e-4])
def test_saddles_and_maxima_are_left(rtol, off):
    """A step of Newton's method would end in them."""
    saddle = PotentialEnergy(lambda x: 0.5 * x[..., 0].square() - 0.5 * x[..., 1].square() + 0.25 * x[..., 1].pow(4))
    stop = Stop(rtol=rtol * off, max_steps=3000)
    z = equilibrium(saddle, points([1.0, off]), stepper=Euler(0.1), stop=stop).measure.points.flatten()
    assert z.tolist() == pytest.approx([0.0, 1.0], abs=0.1)
    z = equilibrium(PotentialEnergy(lambda x: x.cos().sum(-1)), points(off), stepper=Euler(0.1), stop=stop).measure.points
    assert z.item() == pytest.approx(torch.pi, abs=0.1)


def test_each_sample_has_the_result_that_it_has_alone():
    """One starts near rest, one is ill-conditioned, one diverges; with targets of their own."""
    target, mu = cloud(8, seed=1, batch=(4,)).points, cloud(5, batch=(4,))
    target[1, :5], target[1, 5:] = mu.points[1], mu.points[1, :3]
    factor = torch.tensor([1.0, 1.0, torch.nan, 1.0], dtype=torch.float64)
    widths = torch.tensor([1.0, 1.0, 1.0, 3.0], dtype=torch.float64)[:, None, None]
    stop = Stop(rtol=1e-8, max_steps=500)
    for removable in (True, False):
        F = factor * MMD(DiscreteMeasure(target / widths), Gaussian(1.0))
        F.removable = removable
        for stepper in (AdaptiveEuler(), None):
            solution = equilibrium(F, mu.with_points(mu.points / widths), stepper=stepper, stop=stop)
            assert solution.status.tolist()[2] == Status.DIVERGED
            for i in (0, 1, 3):
                one = MMD(DiscreteMeasure(target[i] / widths[i]), Gaussian(1.0))
                alone = equilibrium(one, mu[i].with_points(mu.points[i] / widths[i]), stepper=stepper, stop=stop)
                assert alone.converged
                # L-BFGS enlarges how sums round in a batch: the last sample has a nearly singular Hessian, and a step to spare.
                assert abs(alone.steps - solution.steps[i]) <= (stepper is None)
                assert_close(solution.measure.points[i], alone.measure.points, rtol=1e-6 if stepper else 1e-5)


class Counting(PotentialEnergy):
    calls = 0

    def wasserstein_gradient(self, mu, x=None):
        Counting.calls += 1
        return super().wasserstein_gradient(mu, x)


def test_evaluations_are_all_gradients_and_products():
    F = Counting(lambda x: 0.5 * (x - 1).square().sum(-1))
    with torch.no_grad():
        solution = equilibrium(F, points(0.0), stepper=Euler(0.15), stop=Stop(rtol=1e-10, max_steps=100))
    assert solution.converged
    assert solution.steps.item() == 21  # a quadratic energy: one step of Newton's method, of one product
    assert solution.evaluations == Counting.calls + 1


@pytest.mark.parametrize("stepper", [Nesterov(0.1), Heun(0.1), Proximal(1.0)], ids=lambda s: type(s).__name__)
def test_every_stepper_is_finished(stepper):
    theta = leaf(1.7)
    solution = equilibrium(at_distance(theta), cloud(4), stepper=stepper, stop=Stop(rtol=1e-11, atol=1e-18, max_steps=500))
    assert solution.converged
    value = spread(solution.measure)
    assert torch.autograd.grad(value, theta)[0].item() == pytest.approx(value.item() / 1.7, rel=1e-6)


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def test_what_cannot_be_differentiated_twice_is_left_to_the_flow():
    stop = Stop(rtol=1e-6, max_steps=300)
    with torch.no_grad():
        for F in (PotentialEnergy(lambda x: OnlyOnce.apply(x).sum(-1)), Wasserstein(cloud(3, seed=1))):
            left, flowed = (equilibrium(F, cloud(3), stepper=Euler(0.1), stop=stop, finish=finish) for finish in (True, False))
            assert left.converged
            assert torch.equal(left.measure.points, flowed.measure.points)
            assert flowed.evaluations <= left.evaluations <= flowed.evaluations + 30


def test_a_kinked_energy_is_no_worse():
    """Atoms come to rest on those of the target, where the Hessian says nothing."""
    F, mu, stop = MMD(cloud(10, seed=1), Riesz(1.0)), cloud(6), Stop(rtol=1e-6, max_steps=150)
    finished, flowed = (equilibrium(F, mu, stop=stop, finish=finish) for finish in (True, False))
    assert F(finished.measure) <= F(flowed.measure) + 1e-12
    assert finished.evaluations < 2 * flowed.evaluations + 200


# --- velocities that lead uphill ---


@dataclass(frozen=True)
class ByMatrix(Geometry):
    """Velocities are minus gradients times a matrix, or one for each sample."""

    matrix: torch.Tensor

    def mobility(self, mu):
        return lambda force: force @ self.matrix.mT


GAME = ByMatrix(torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64))
"""The first coordinate descends, the second one climbs."""
GAMES = {
    "quadratic": lambda x, t: 0.5 * x[..., 0].square() - 0.5 * x[..., 1].square() + x[..., 0] * x[..., 1] - t * x[..., 0],
    "cosh": lambda x, t: x[..., 0].cosh() - x[..., 1].cosh() + 2 * x[..., 0] * x[..., 1] - t * x[..., 1],
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("stepper", [Euler(0.1), Heun(0.1)], ids=repr)
def test_games_are_left_to_the_flow(name, stepper):
    """Newton's method, which lowers the energy, ran to 1e153. The saddle where they rest has its derivative all the same."""
    theta, mu = leaf(0.3), points([1.0, 2.0])
    with pytest.warns(NoDescentWarning, match="leads uphill, as in a game") as caught:
        solution = equilibrium(potential(GAMES[name], theta), mu, stepper=stepper, geometry=GAME, stop=TIGHT)
    assert (caught[0].message.failed, caught[0].message.total) == (1, 1)
    assert solution.converged
    z = solution.measure.points[0]
    with torch.no_grad():
        assert torch.equal(
            equilibrium(
                potential(GAMES[name], theta), mu, stepper=stepper, geometry=GAME, stop=TIGHT, finish=False
            ).measure.points[0],
            z,
        )
    f = torch.func.hessian(lambda x: GAMES[name](x, 0.3))(z.detach())
    pushed = torch.func.jacfwd(lambda t: torch.func.grad(lambda x: GAMES[name](x, t))(z.detach()))(
        torch.tensor(0.3, dtype=torch.float64)
    )
    wanted = -torch.linalg.solve(f, pushed)
    for i in range(2):
        assert_close(torch.autograd.grad(z[i], theta, retain_graph=True)[0], wanted[i], scale=wanted, rtol=1e-6)


def test_a_stepper_that_goes_by_energies_is_told_so():
    """Adaptive Euler steps are stuck at once: status and warning say so."""
    F = potential(GAMES["cosh"], torch.tensor(0.3, dtype=torch.float64))
    with pytest.warns(NoDescentWarning, match="does not go by energies, Euler or Heun"):
        solution = equilibrium(F, points([1.0, 2.0]), stepper=AdaptiveEuler(), geometry=GAME)
    assert solution.status.item() == Status.STAGNATED
    assert solution.measure.points.abs().max() < 10


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_by_default_games_are_flowed_to_their_end(name, size):
    """In units of any size: the length of the steps is found."""

    def energy(x, t):
        return GAMES[name](x, t) * size

    with pytest.warns(NoDescentWarning, match="leads uphill"):
        solution = equilibrium(potential(energy, torch.tensor(0.3, dtype=torch.float64)), points([1.0, 2.0]), geometry=GAME)
    assert solution.converged
    assert solution.steps < 200
    z = solution.measure.points[0]
    slope = torch.func.grad(lambda x: energy(x, 0.3))
    assert slope(z).norm() <= 1e-5 * slope(torch.tensor([1.0, 2.0], dtype=torch.float64)).norm()


def test_by_default_each_sample_goes_its_own_way():
    """Samples whose energy falls take adaptive steps beside games, the same as alone."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    tilt = signs.unsqueeze(-2)
    F = PotentialEnergy(lambda x: (tilt * (x - 0.5).cosh()).sum(-1) + 0.3 * x.prod(-1))
    mu = DiscreteMeasure(torch.tensor([[[2.0, 1.0]], [[1.0, 2.0]]], dtype=torch.float64))
    stop = Stop(rtol=1e-8, max_steps=500)
    with pytest.warns(NoDescentWarning) as caught:
        together = equilibrium(F, mu, geometry=ByMatrix(torch.diag_embed(signs)), stop=stop, finish=True)
    assert caught[0].message.samples == [1]
    assert together.converged.all()
    for i in range(2):
        sign = signs[i]
        alone_F = PotentialEnergy(lambda x, s=sign: (s * (x - 0.5).cosh()).sum(-1) + 0.3 * x.prod(-1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoDescentWarning)
            alone = equilibrium(alone_F, mu[i], geometry=ByMatrix(torch.diag_embed(sign)), stop=stop)
        assert alone.steps == together.steps[i]
        assert_close(alone.measure.points, together.measure.points[i])


def test_the_default_stepper_of_other_geometries_passes_the_users_check():
    check_stepper(EulerOrHeun(), exact=False)


def test_heuns_steps_of_half_the_inverse_lipschitz_constant_contract():
    """Eigenvalues w = -tau lambda with |w| <= 1/2 and real part at most -1/128: |1 + w + w^2/2| < 1."""
    x, y = torch.meshgrid(torch.linspace(-0.5, -1 / 128, 400), torch.linspace(-0.5, 0.5, 401), indexing="ij")
    w = torch.complex(x.double(), y.double())
    inside = w.abs() <= 0.5
    assert ((1 + w + w**2 / 2).abs()[inside] < 1.0).all()


def test_samples_that_descend_are_finished_beside_those_that_do_not():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    geometry = ByMatrix(torch.diag_embed(signs))
    tilt = signs.unsqueeze(-2)
    F = PotentialEnergy(lambda x: 0.5 * (tilt * torch.tensor([1.0, 4.0], dtype=torch.float64) * (x - 0.5).square()).sum(-1))
    mu = DiscreteMeasure(torch.full((2, 1, 2), 2.0, dtype=torch.float64))
    with pytest.warns(NoDescentWarning) as caught:
        solution = equilibrium(F, mu, stepper=Euler(0.1), geometry=geometry, stop=Stop(rtol=1e-8, max_steps=500))
    assert caught[0].message.samples == [1]
    assert solution.converged.all()
    assert_close(solution.measure.points, torch.full_like(mu.points, 0.5), rtol=1e-6)
    assert solution.steps[0] < 25
    assert solution.steps[1] > 100


@pytest.mark.parametrize(
    "matrix",
    [[[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.9], [-0.9, 1.0]], [[1.0, 0.0], [0.0, 1e-3]]],
    ids=["positive", "turning", "stiff"],
)
def test_geometries_that_descend_are_finished(matrix):
    """A turn beside a descent is one: the velocity leads downhill."""
    geometry = ByMatrix(torch.tensor(matrix, dtype=torch.float64))
    F = PotentialEnergy(lambda x: 0.5 * (x - 1).square().sum(-1) + 0.25 * x.pow(4).sum(-1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = equilibrium(F, points([3.0, 2.0]), stepper=Euler(0.02), geometry=geometry, stop=Stop(rtol=1e-9, max_steps=400))
    assert solution.converged
    assert F.wasserstein_gradient(solution.measure).norm() < 1e-5


def test_a_turn_alone_is_no_descent():
    geometry = ByMatrix(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    F = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    with pytest.warns(NoDescentWarning):
        solution = equilibrium(F, points([1.0, 0.0]), stepper=Heun(0.1), geometry=geometry, stop=Stop(rtol=1e-9, max_steps=300))
    assert solution.status.item() == Status.MAX_STEPS
    assert solution.measure.points.norm() == pytest.approx(1.0, abs=1e-2)


# --- what it says and takes ---


def test_the_solution_says_how_it_was_found():
    reports = []
    F = potential(lambda x, t: 0.5 * (x - t).square().sum(-1), leaf(1.0))
    mu = DiscreteMeasure(torch.tensor([[[0.0]], [[1.0]]], dtype=torch.float64))
    stop = Stop(rtol=1e-3, max_steps=50)
    solution = equilibrium(F, mu, stepper=Euler(0.5), stop=stop, trace=True, callback=reports.append)
    assert solution.steps.tolist() == [10, 0]
    assert solution.evaluations == 11
    assert solution.trace.shape == (11, 2)
    assert solution.trace[:, 0].tolist() == pytest.approx([0.5**k for k in range(11)], rel=1e-4)
    assert torch.isnan(solution.trace[1:, 1]).all()
    assert_close(solution.residual[0], solution.trace[-1, 0])
    assert torch.isinf(solution.error_bound).all()
    assert len(reports) == 11
    with torch.no_grad():
        plain = equilibrium(F, mu, stepper=Euler(0.5), stop=stop)
    assert plain.trace is None
    assert not plain.measure.points.requires_grad
    assert torch.equal(plain.measure.points, solution.measure.points)


def test_several_backward_passes_and_several_solutions():
    theta = leaf(1.5)
    zs = [
        equilibrium(potential(lambda x, t: 0.5 * (x - t).square().sum(-1), theta), points(0.0)).measure.points for _ in range(2)
    ]
    sum(z.sum() for z in zs).backward(retain_graph=True)
    zs[0].sum().backward()
    assert theta.grad.item() == pytest.approx(3.0)


def test_tensors_that_enter_unseen_are_an_error():
    hidden = leaf(1.0)
    F = PotentialEnergy(lambda x: 0.5 * (x - hidden).square().sum(-1))
    with pytest.raises(ValueError, match=r"functional: tensors of shapes \(\) .*module"):
        equilibrium(F, points(0.0))
    with torch.no_grad():
        assert equilibrium(F, points(0.0)).converged
    descent = FunctionalDescent(0.5 * F, points(0.0))
    with pytest.raises(ValueError, match="functional: "):
        watched(descent, descent.like.points)


def test_the_velocity_is_a_function_of_all_its_tensors():
    target, share = cloud(3, seed=1).points.requires_grad_(), leaf(0.4)
    nu = DiscreteMeasure(target)
    F = share * MMD(nu, Gaussian(1.0)) + MMD(nu, Gaussian(2.0))  # two functionals hold the same tensor
    mu = cloud(2, seed=2)
    descent = FunctionalDescent(F, mu)
    assert {id(t) for t in descent.tensors} >= {id(target), id(share), id(mu.weights)}
    other = [t.detach() * 1.1 for t in descent.tensors]
    values = dict(zip(map(id, descent.tensors), other, strict=True))
    moved = DiscreteMeasure(values[id(target)])
    expected = values[id(share)] * MMD(moved, Gaussian(1.0)) + MMD(moved, Gaussian(2.0))
    reweighted = mu.with_weights(values[id(mu.weights)])
    assert_close(descent.residual(mu.points, *other), -expected.wasserstein_gradient(reweighted))
    assert_close(watched(descent, mu.points), -F.wasserstein_gradient(mu))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda F, mu: equilibrium(F, mu.with_points(mu.points.clone().requires_grad_())), ValueError, "mu0: its points"),
        (lambda F, mu: equilibrium(F, mu.points), ValueError, "mu0: "),
        (lambda F, mu: equilibrium(lambda mu: mu.mass(), mu), ValueError, "functional: "),
        (lambda F, mu: equilibrium(F, mu, stepper=0.1), ValueError, "stepper: "),
        (lambda F, mu: equilibrium(F, mu, stop=5), ValueError, "stop: "),
        (lambda F, mu: equilibrium(F, mu, geometry="stein"), ValueError, "geometry: "),
        (lambda F, mu: equilibrium(F, mu, finish=1), ValueError, "finish: "),
        (lambda F, mu: equilibrium(F, mu, on_failure="ignore"), ValueError, "on_failure: "),
        (lambda F, mu: equilibrium(F, mu, 0.1), TypeError, "positional"),
        (lambda F, mu: equilibrium(F, mu, tau=0.1), TypeError, "tau"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(PotentialEnergy(lambda x: 0.5 * x.square().sum(-1)), points(1.0))


def test_transforms_are_refused():
    F = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
    with pytest.raises(RuntimeError, match="batched"):
        torch.vmap(lambda x: equilibrium(F, DiscreteMeasure(x)).measure.points)(torch.ones(2, 3, 1))
