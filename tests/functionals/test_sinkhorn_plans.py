"""Plans, potentials and maps of entropic transport: their laws, and derivatives by finite differences."""

import pytest
import torch
from generic import generic_measure as measure
from hypothesis import given, settings
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.functionals import SinkhornDivergence
from ddeq.testing import assert_close
from ddeq.testing.strategies import measures

DOUBLE = torch.float64
near = measures(offsets=(0.0,), scales=(1.0,))
single = measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,))
factors = st.sampled_from([0.25, 1.0, 3.0])
blurs = st.sampled_from([0.3, 1.0])
REACHES = [None, 1.5]


def costs(mu, nu):
    return 0.5 * (mu.points.unsqueeze(-2) - nu.points.unsqueeze(-3)).square().sum(-1)


# --- laws ---


@pytest.mark.theorem("T3")
@given(mu=near, nu=single, c=factors, blur=blurs)
def test_a_plan_has_both_marginals(mu, nu, c, blur):
    mu, nu = c * mu, c * nu
    plan = SinkhornDivergence(nu, blur).plan(mu)
    assert plan.shape == (*mu.batch_shape, mu.n, nu.n)
    assert (plan >= 0).all()
    assert_close(plan.sum(-1), mu.weights, rtol=1e-10)
    assert_close(plan.sum(-2), nu.weights.expand(*mu.batch_shape, -1), rtol=1e-10)


@pytest.mark.theorem("T3")
@given(mu=near, nu=single, a=factors, b=factors, blur=blurs)
def test_with_a_reach_its_marginals_are_optimal(mu, nu, a, b, blur):
    mu, nu, reach = a * mu, b * nu, 1.5
    F = SinkhornDivergence(nu, blur, reach)
    plan, (f, g) = F.plan(mu), F.potentials(mu)
    assert_close(plan.sum(-1), mu.weights * torch.exp(-f / reach**2), rtol=1e-10)
    assert_close(plan.sum(-2), nu.weights * torch.exp(-g / reach**2), rtol=1e-10)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("reach", REACHES)
@settings(max_examples=10)
@given(mu=near, nu=single, c=factors, blur=blurs)
def test_the_plan_is_that_of_the_potentials(reach, mu, nu, c, blur):
    """Without a reach of probabilities, with it of the masses as they are; the means of the potentials agree without it."""
    F = SinkhornDivergence(c * nu, blur, reach)
    f, g = F.potentials(c * mu)
    scale = c if reach is None else c * c
    density = torch.exp((f.unsqueeze(-1) + g.unsqueeze(-2) - costs(mu, nu)) / blur**2)
    assert_close(F.plan(c * mu), scale * mu.weights.unsqueeze(-1) * nu.weights.unsqueeze(-2) * density, rtol=1e-9)
    if reach is None:
        assert_close((mu.weights * f).sum(-1), (nu.weights * g).sum(-1), scale=16.0)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("reach", REACHES)
@settings(max_examples=10)
@given(mu=near, nu=single, blur=blurs)
def test_the_map_is_an_average_and_the_gradient_of_the_potential(reach, mu, nu, blur):
    """At atoms what the rows of the plan average; anywhere x minus the slope of f, divided by tau with a reach."""
    F = SinkhornDivergence(nu, blur, reach)
    plan, x = F.plan(mu), 0.7 * mu.points.flip(-1) + 0.31
    live = mu.support().unsqueeze(-1)
    averages = plan @ nu.points / torch.where(live, plan.sum(-1, keepdim=True), 1.0)
    assert_close(torch.where(live, F.transport_map(mu), 0.0), averages, scale=1.0, rtol=1e-9)
    x.requires_grad_()
    extended = mu + DiscreteMeasure(x, torch.zeros_like(x[..., 0]))
    f = F.potentials(extended)[0][..., mu.n :]
    (slope,) = torch.autograd.grad(f.sum(), x)
    tau = 1.0 if reach is None else reach**2 / (reach**2 + blur**2)
    assert_close(F.transport_map(mu, x.detach()), x - slope / tau, scale=1.0, rtol=1e-9)


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("reach", REACHES)
def test_the_gradient_is_made_of_two_maps(reach):
    """That of the divergence is e^(-f/rho)(x - T(x)) minus the same within the measure."""
    mu, nu = measure(6), measure(5, seed=1)
    of_target, of_itself = (SinkhornDivergence(m, 0.5, reach) for m in (nu, mu))
    parts = []
    for F in (of_target, of_itself):
        density = 1.0 if reach is None else torch.exp(-F.potentials(mu)[0] / reach**2).unsqueeze(-1)
        parts.append(density * (mu.points - F.transport_map(mu)))
    assert_close(of_target.wasserstein_gradient(mu), parts[0] - parts[1], scale=1.0)


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("reach", REACHES)
def test_they_are_those_of_the_measure(reach):
    """An atom that is split has the mass of its parts, one of mass zero none, and permuted atoms permuted rows."""
    mu, nu = measure(5), measure(4, seed=1)
    F = SinkhornDivergence(nu, 0.4, reach)
    plan, (f, g), images = F.plan(mu), F.potentials(mu), F.transport_map(mu)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(F.plan(mu.permute_atoms(order)), plan[order], rtol=1e-10)
    assert_close(F.transport_map(mu.permute_atoms(order)), images[order], rtol=1e-10)
    split = mu.split_atom(2, 0.3)
    shares = (split.weights[[2, 5]] / mu.weights[2]).unsqueeze(-1)
    expected = torch.cat([plan[:2], shares[:1] * plan[2:3], plan[3:], shares[1:] * plan[2:3]])
    assert_close(F.plan(split), expected, rtol=1e-10)
    for ours, theirs in zip(F.potentials(split), (torch.cat([f, f[2:3]]), g), strict=True):
        assert_close(ours, theirs, rtol=1e-10)
    padded = SinkhornDivergence(nu.pad_atoms(2), 0.4, reach).plan(mu.pad_atoms(1))
    assert_close(padded, torch.nn.functional.pad(plan, (0, 2, 0, 1)), rtol=1e-10)


def test_each_measure_of_a_batch_gets_what_it_gets_alone():
    mu, nu, x = measure(5, batch=(3, 2)), measure(4, batch=(3, 2), seed=2), torch.randn(3, 2, 6, 2, dtype=DOUBLE)
    together = SinkhornDivergence(nu, 0.4)
    for i in (0, 2):
        alone, m = SinkhornDivergence(nu[i, 1], 0.4), mu[i, 1]
        assert_close(together.plan(mu)[i, 1], alone.plan(m), rtol=1e-10)
        assert_close(together.transport_map(mu, x)[i, 1], alone.transport_map(m, x[i, 1]), rtol=1e-10)
        for a, b in zip(together.potentials(mu), alone.potentials(m), strict=True):
            assert_close(a[i, 1], b, rtol=1e-10)


def test_single_precision_and_far_from_the_origin():
    mu, nu = measure(5), measure(4, seed=1)
    expected = SinkhornDivergence(nu, 0.4)
    F, m = SinkhornDivergence(nu.to(torch.float32), 0.4), mu.to(torch.float32)
    results = [F.plan(m), *F.potentials(m), F.transport_map(m)]
    for found, right in zip(results, [expected.plan(mu), *expected.potentials(mu), expected.transport_map(mu)], strict=True):
        assert_close(found, right.float(), rtol=1e-5)
    away = SinkhornDivergence(nu.push_forward(lambda y: y + 1e4), 0.4)
    assert_close(away.transport_map(mu.push_forward(lambda x: x + 1e4)) - 1e4, expected.transport_map(mu), rtol=1e-9)


# --- derivatives ---


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("reach", REACHES)
def test_derivatives_by_finite_differences(reach):
    mu, nu = measure(4), 2.5 * measure(3, seed=10)
    inputs = [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights)]

    def results(x, w, y, v):
        m = DiscreteMeasure(x, w if reach is not None else w * (v.sum() / w.sum()))
        F = SinkhornDivergence(DiscreteMeasure(y, v), 0.7, reach)
        return F.plan(m), *F.potentials(m), F.transport_map(m), F.transport_map(m, x + 0.3)

    assert torch.autograd.gradcheck(results, inputs, fast_mode=True)


@pytest.mark.theorem("T7")
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("blur", [0.15, 0.6])
def test_derivatives_in_the_mass_of_a_dead_atom(reach, blur):
    """The slope in a mass that is zero, differentiated in points and masses: what an equilibrium in the weights needs."""
    mu, dead = measure(5).pad_atoms(1), 5
    points = mu.points.clone()
    points[dead] = torch.tensor([0.3, -0.4], dtype=DOUBLE)
    F, h = SinkhornDivergence(measure(4, seed=1), blur, reach), 1e-5

    def slope(x, w):
        return torch.autograd.grad(F(DiscreteMeasure(x, w)), w, create_graph=True)[0][dead]

    x, w = points.requires_grad_(), mu.weights.clone().requires_grad_()
    of_x, of_w = torch.autograd.grad(slope(x, w), (x, w))
    g = torch.Generator().manual_seed(0)
    for inputs, found in ((0, of_x), (1, of_w)):
        e = torch.randn(found.shape, generator=g, dtype=DOUBLE)
        if inputs:
            e[dead] = 0.0  # masses below zero do not exist
            e -= e.mean() * (e != 0)
        ends = []
        for sign in (1.0, -1.0):
            moved = [t.detach().clone() for t in (x, w)]
            moved[inputs] += sign * h * e
            ends.append(slope(moved[0], moved[1].requires_grad_()).detach())
        assert_close((found * e).sum(), (ends[0] - ends[1]) / (2 * h), scale=1e-2, rtol=1e-6)
    more = mu.weights.clone()
    more[dead] = h
    more = more.requires_grad_()
    assert_close(of_w[dead], (slope(x.detach(), more) - slope(x.detach(), w)).detach() / h, rtol=1e-3)
