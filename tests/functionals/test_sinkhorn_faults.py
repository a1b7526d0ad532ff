"""Inputs on which entropic transport is hard to solve, each with its closed form: the worst cases by name."""

import math
import warnings

import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.functionals import SinkhornDivergence
from ddeq.iteration import AdjointWarning, InnerProblemWarning, Status, Stop
from ddeq.testing import assert_close
from proofs_checks.test_t03_sinkhorn import point_masses, unbalanced_point_masses

DOUBLE = torch.float64


def measure(points, weights=None):
    return DiscreteMeasure(torch.tensor(points, dtype=DOUBLE), None if weights is None else torch.tensor(weights, dtype=DOUBLE))


def cloud(n, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    points, weights = torch.randn(n, dim, generator=g, dtype=DOUBLE), torch.rand(n, generator=g, dtype=DOUBLE)
    return DiscreteMeasure(points, weights / weights.sum())


def derivatives(F, mu):
    """The derivatives of the value in points and weights."""
    x, w = mu.points.clone().requires_grad_(), mu.weights.clone().requires_grad_()
    return torch.autograd.grad(F(DiscreteMeasure(x, w)).sum(), (x, w))


def hessian_product(F, mu, direction):
    x = mu.points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F(mu.with_points(x)).sum(), x, create_graph=True)
    return torch.autograd.grad((gradient * direction).sum(), x)[0]


# --- near the target, where the plan falls apart ---


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("blur", [0.3, 0.1, 0.05, 0.01, 1e-4])
@pytest.mark.parametrize("shift", [1e-3, 1e-6, 0.0])
def test_a_translated_target(blur, shift):
    """The value is half of the squared shift at every blur, and first derivatives need no solve that could fail."""
    x = measure([[0.0], [1.0]])
    F = SinkhornDivergence(x.push_forward(lambda y: y + shift), blur)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, (of_points, _) = F(x), derivatives(F, x)
    assert value.item() == pytest.approx(0.5 * shift**2, rel=1e-8, abs=1e-14)
    assert_close(of_points, torch.full((2, 1), -0.5 * shift, dtype=DOUBLE), scale=1.0, units=100)
    assert_close(F.wasserstein_gradient(x), torch.full((2, 1), -shift, dtype=DOUBLE), scale=1.0, units=100)
    assert F.status.item() == Status.CONVERGED


@pytest.mark.theorem("T7")
def test_second_derivatives_where_the_plan_falls_apart():
    """Two atoms far from each other are two problems of one atom: the Hessian is the identity, in L2 of the measure."""
    x, direction = measure([[0.0], [1.0]]), torch.tensor([[0.3], [-1.1]], dtype=DOUBLE)
    F = SinkhornDivergence(x.push_forward(lambda y: y + 1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdjointWarning)
        assert_close(hessian_product(F, x, direction), 0.5 * direction, rtol=1e-10)


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("gap", [4, 7, 8, 9, 12, 20])
def test_hessian_products_at_gaps_of_a_few_blurs(gap):
    """Two pairs of atoms so many blurs apart, against central differences of the gradient."""
    blur = 0.05
    far = gap * blur
    mu = measure([[0.0], [0.02], [far], [far + 0.03]])
    F = SinkhornDivergence(measure([[0.01], [0.03], [far + 0.02], [far + 0.05]]), blur)
    e, h = torch.tensor([[1.0], [-0.4], [0.7], [0.2]], dtype=DOUBLE), 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdjointWarning)
        product = hessian_product(F, mu, e)
    forces = [F.wasserstein_gradient(mu.with_points(mu.points + s * h * e)) * mu.weights.unsqueeze(-1) for s in (1, -1)]
    assert_close(product, (forces[0] - forces[1]) / (2 * h), rtol=2e-6)


# --- on the target ---


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("reach", [None, 1.0])
@pytest.mark.parametrize("blur", [0.05, 0.5])
def test_a_measure_and_itself(blur, reach):
    mu = cloud(100, 3)
    F = SinkhornDivergence(mu, blur, reach)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, (of_points, of_weights) = F(mu), derivatives(F, mu)
    zero = torch.zeros_like
    assert_close(value, zero(value), scale=1.0)
    assert_close(F.wasserstein_gradient(mu), zero(mu.points), scale=1.0)
    assert_close(of_points, zero(of_points), scale=1.0)
    assert_close(of_weights, of_weights.mean() + zero(of_weights), scale=1.0, units=1e4)
    assert F.status.item() == Status.CONVERGED


@pytest.mark.theorem("T3")
def test_next_to_a_measure_of_many_atoms():
    """The value is half of the squared shift, and its gradient the shift."""
    mu = cloud(100, 3)
    F = SinkhornDivergence(mu.push_forward(lambda y: y + 1e-5))
    # The plan nearly falls apart: errors of the marginals count many times.
    assert_close(F.wasserstein_gradient(mu), torch.full_like(mu.points, -1e-5), scale=1.0, rtol=1e-9)
    assert F(mu).item() == pytest.approx(1.5e-10, abs=1e-13)
    assert F.status.item() == Status.CONVERGED


# --- masses that differ ---


@pytest.mark.theorem("T3")
@pytest.mark.parametrize(
    ("w", "v", "expected"), [(1.0, 4.0, 9.018970987), (2.0, 0.2, 8.428728767)], ids=["1 against 4", "2 against 0.2"]
)
def test_unequal_masses_and_a_reach_much_larger_than_the_blur(w, v, expected):
    """Sinkhorn's iteration alone moves a constant by the factor tau^2 = 1 - 2e-3 in a step."""
    blur, reach, apart = 0.1, 3.0, 0.01
    mu, F = measure([[0.0]], [w]), SinkhornDivergence(measure([[apart]], [v]), blur, reach)
    value, f, p = (float(s) for s in unbalanced_point_masses(w, v, apart**2 / 2, blur**2, reach**2))
    assert F(mu).item() == pytest.approx(expected, rel=1e-9)
    assert F(mu).item() == pytest.approx(value, rel=1e-12)
    variation = (reach**2 + blur**2) * (math.exp(-p / reach**2) - math.exp(-f / reach**2))
    assert F.first_variation(mu).item() == pytest.approx(variation, rel=1e-11)
    # The divergence varies with the cost as the plan's mass; its gradient is per unit of mass.
    assert F.wasserstein_gradient(mu).item() == pytest.approx(-apart * math.exp(-f / reach**2), rel=1e-10)
    assert F.status.item() == Status.CONVERGED


@pytest.mark.theorem("T3")
def test_two_atoms_far_beyond_the_reach():
    """Nothing is transported: both masses are destroyed and created, at reach^2 each."""
    blur, reach = 0.1, 1.0
    mu, F = measure([[0.0]]), SinkhornDivergence(measure([[30.0]]), blur, reach)
    value = float(unbalanced_point_masses(1, 1, 450, blur**2, reach**2)[0])
    assert F(mu).item() == pytest.approx(value, rel=1e-12)
    assert F(mu).item() == pytest.approx(2.0 * reach**2 + blur**2, rel=1e-12)
    assert F.wasserstein_gradient(mu).abs().item() < 1e-90
    assert F.status.item() == Status.CONVERGED
    both = SinkhornDivergence(measure([[0.0], [30.0]]), blur, reach)
    assert_close(both(measure([[0.0], [30.0]])), torch.tensor(0.0, dtype=DOUBLE), scale=1.0)
    assert both.status.item() == Status.CONVERGED


@pytest.mark.parametrize("mass", [1e-3, 1.0, 1e3])
def test_masses_of_all_sizes(mass):
    """Without a reach the value is that of the probabilities times the mass, the gradient the same."""
    mu, nu = cloud(8, 2), cloud(6, 2, seed=1)
    F, G = SinkhornDivergence(nu, 0.2), SinkhornDivergence(mass * nu, 0.2)
    assert_close(G(mass * mu), mass * F(mu))
    assert_close(G.plan(mass * mu), mass * F.plan(mu))
    assert_close(G.wasserstein_gradient(mass * mu), F.wasserstein_gradient(mu))
    assert_close(derivatives(G, mass * mu)[0], mass * derivatives(F, mu)[0])


# --- a blur that is large against the measures or the reach, and a reach that is large against the blur ---


@pytest.mark.parametrize(("blur", "reach"), [(50.0, None), (40.0, 0.02)])
def test_the_value_is_the_same_with_and_without_derivatives(blur, reach):
    mu = cloud(5, 2).to(torch.float32)
    F = SinkhornDivergence(mu.push_forward(lambda y: y + 0.01) if reach is None else 3.0 * mu, blur, reach)
    assert_close(F(mu), F(mu.with_points(mu.points.clone().requires_grad_())), rtol=1e-3)


def test_marginals_where_the_reach_is_small_against_the_blur():
    """To ten times the tolerance for single precision, 1e-6."""
    mu, nu, blur, reach = cloud(5, 2), 3.0 * cloud(4, 2, seed=1), 40.0, 0.02
    F = SinkhornDivergence(nu, blur, reach, stop=Stop(rtol=1e-6))
    optimal = nu.weights * torch.exp(-F.potentials(mu)[1] / reach**2)
    assert F.status.item() == Status.CONVERGED
    assert_close(F.plan(mu).sum(-2), optimal, rtol=1e-5)


def test_a_plan_is_right_or_has_not_converged():
    v, blur, reach = 4.0, 1e-6, 300.0
    mu, F = measure([[0.0]]), SinkhornDivergence(measure([[1.0]], [v]), blur, reach)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InnerProblemWarning)
        found = F.plan(mu).item()
    right = found == pytest.approx(point_masses(1.0, v, 0.5, blur**2, reach**2, exp=math.exp)[0], rel=1e-5)
    assert right or F.status.item() != Status.CONVERGED


def test_second_derivatives_that_are_right_are_not_warned_of():
    x, direction = measure([[0.0], [1.0]]), torch.tensor([[0.3], [-1.1]], dtype=DOUBLE)
    F = SinkhornDivergence(x.push_forward(lambda y: y + 1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(hessian_product(F, x, direction), 0.5 * direction, rtol=1e-10)


# --- where the caller is compiled ---


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the tracer itself asks for it
class TestCompiled:
    """The solve leaves the graph, and the rest of the caller is compiled."""

    F = SinkhornDivergence(measure([[0.3], [1.0]]))
    mu, x = measure([[0.0], [0.0]]), torch.tensor([[0.0], [1.1]], dtype=DOUBLE)

    def value(self, x):
        return 2.0 * self.F(self.mu.with_points(x * 1.0))

    def gradient(self, x):
        return 2.0 * self.F.wasserstein_gradient(self.mu.with_points(x * 1.0))

    @pytest.fixture(autouse=True)
    def _fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("of", ["value", "gradient"])
    def test_value_and_gradient(self, of):
        function = getattr(self, of)
        assert_close(torch.compile(function, backend="eager")(self.x), function(self.x))

    def test_backward(self):
        x = self.x.clone().requires_grad_()
        torch.compile(self.value, backend="aot_eager")(x).backward()
        assert_close(x.grad, self.gradient(self.x) * 0.5)
