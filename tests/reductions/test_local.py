"""Localised moments and operators: derivatives of smoothed measures, functions of the measure, right at every derivative."""

import math

import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.reductions import backend, local_moments, local_operators
from ddeq.testing import assert_close, check_map
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures
from proofs_checks.test_t19_local_geometry import gaussian_local_moments

FOREIGN = [  # derivatives are formulas of their own, which take half a minute to compile
    pytest.param("keops", False, marks=[pytest.mark.xdist_group("keops"), pytest.mark.slow]),
    pytest.param("keops", True, marks=[pytest.mark.xdist_group("keops"), pytest.mark.slow]),
    pytest.param("compiled", False, marks=pytest.mark.xdist_group("compiled")),
    pytest.param("compiled", True, marks=[pytest.mark.xdist_group("compiled"), pytest.mark.slow]),
]
bandwidths = st.sampled_from([0.5, 0.8, 2.0])
anywhere = measures(scales=(1.0,))


def smoothed(x, mu, h, f=None):
    """k_h * (f mu) at x, written out."""
    kernel = (-0.5 * (x.unsqueeze(-2) - mu.points.unsqueeze(-3)).square().sum(-1) / h**2).exp()
    masses = mu.normalized().weights * (1.0 if f is None else f)
    return (kernel * masses.unsqueeze(-2)).sum(-1)


def jet(function, x):
    """Value, gradient and upper half of the Hessian of a function of each point, one after the other."""
    x = x.clone().requires_grad_()
    value = function(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    upper = [torch.autograd.grad(first[..., a].sum(), x, retain_graph=True)[0][..., a:] for a in range(x.shape[-1])]
    return value.unsqueeze(-1).detach(), first.detach(), torch.cat(upper, -1)


def upper_identity(dim):
    return torch.eye(dim, dtype=torch.float64)[tuple(torch.triu_indices(dim, dim))]


def looked_at(mu):
    """The atoms, and points between and beside them."""
    return torch.cat([mu.points, mu.points.roll(1, -2) / 2 + mu.points / 2, mu.points + 0.375], -2)


@pytest.mark.theorem("T19")
@pytest.mark.parametrize("dim", [1, 2, 3])
@given(data=st.data(), h=bandwidths)
def test_moments_are_the_jet_of_the_smoothed_log_density(dim, data, h):
    mu = data.draw(measures(dim=dim, scales=(1.0,), normalized=False))
    x = looked_at(mu)
    value, first, second = jet(lambda x: smoothed(x, mu, h).log(), x)
    assert_close(local_moments(x, mu, [h]), torch.cat([value, h * first, upper_identity(dim) + h**2 * second], -1), scale=100.0)


@pytest.mark.theorem("T19")
@given(mu=anywhere, h=bandwidths)
def test_operators_give_derivatives_of_the_smoothed_field(mu, h):
    x, f = looked_at(mu), mu.points[..., 0].sub(mu.mean()[..., :1]).cos()
    averages = (local_operators(x, mu, h) @ f[..., None, :, None]).squeeze(-1)
    value, first, second = jet(lambda x: smoothed(x, mu, h, f), x)
    field = torch.cat([value, h * first, h**2 * second + value * upper_identity(2)], -1)
    assert_close(averages, field / smoothed(x, mu, h).unsqueeze(-1), scale=100.0)


@pytest.mark.theorem("T19")
@pytest.mark.parametrize("dim", [1, 2])
def test_moments_of_a_gaussian(dim):
    """A fine grid with the masses of N(m, s^2): sums of smooth functions on it are integrals to rounding."""
    mean, s, h = [0.3, -0.2][:dim], 0.8, 0.5
    line = torch.arange(-60, 61, dtype=torch.float64) / 10
    points = torch.cartesian_prod(*[line] * dim).reshape(-1, dim) + torch.tensor(mean)
    mu = DiscreteMeasure(points, (-((points - torch.tensor(mean)) ** 2).sum(-1) / (2 * s**2)).exp())
    x = torch.tensor([[0.0, 0.0], [1.3, -0.7], [-2.0, 1.0]], dtype=torch.float64)[:, :dim]
    with backend("dense"):
        actual = local_moments(x, mu, [h])
    for row, place in zip(actual, x.tolist(), strict=True):
        log_density, shift, variance = gaussian_local_moments(
            *(map(sp.Float, place), map(sp.Float, mean)), sp.Float(s), sp.Float(h)
        )
        expected = [log_density, *(t / h for t in shift)]
        tail = float(variance) / h**2 * upper_identity(dim)
        assert_close(row, torch.cat([torch.tensor([float(t) for t in expected], dtype=torch.float64), tail]), rtol=1e-7)


@pytest.mark.theorem("T1")
@given(mu=anywhere, h=bandwidths)
def test_moments_and_operators_are_functions_of_the_measure(mu, h):
    check_map(lambda nu: nu.with_points(1.0 + local_moments(nu.points, nu, [h, 1.0])), mu)  # all are 0 around a single atom
    x = looked_at(mu)

    def integrals(nu):
        f = (nu.points - mu.mean().unsqueeze(-2)).cos()
        return local_operators(x, nu, h) @ f.unsqueeze(-3)

    for change, same in same_measure(mu).items():
        assert_close(integrals(same), integrals(mu), change)
        assert_close(local_moments(x, same, [h]), local_moments(x, mu, [h]), change, scale=100.0)


@pytest.mark.theorem("T19")
@given(mu=measures(offsets=(0.0,), scales=(1.0,)), h=bandwidths, far=st.sampled_from([1.0 / 3.0, -1e4 / 3.0, 1e4]))
def test_translations_change_nothing(mu, h, far):
    """But for the rounding of the points themselves."""
    x, moved = looked_at(mu), mu.with_points(mu.points + far)
    assert_close(local_moments(x + far, moved, [h]), local_moments(x, mu, [h]), rtol=1e-10)
    assert_close(local_operators(x + far, moved, h), local_operators(x, mu, h), rtol=1e-10)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_operators_are_their_formula_recorded_or_not(order):
    x, mu = torch.randn(2, 4, 3, dtype=torch.float64), DiscreteMeasure(torch.randn(2, 5, 3).double(), torch.rand(2, 5).double())
    t = (mu.points.unsqueeze(-3) - x.unsqueeze(-2)) / 0.7
    average = (-0.5 * t.square().sum(-1)).exp() * mu.weights.unsqueeze(-2)
    average = average / average.sum(-1, keepdim=True)
    monomials = [torch.ones_like(average), *t.unbind(-1), *(t[..., a] * t[..., b] for a in range(3) for b in range(a, 3))]
    expected = torch.stack([average * m for m in monomials[: (1, 4, 10)[order]]], -2)
    assert_close(local_operators(x, mu, 0.7, order=order), expected)
    assert_close(local_operators(x.requires_grad_(), mu, 0.7, order=order), expected)


@pytest.mark.parametrize(("name", "derivatives"), FOREIGN)
def test_backends_agree(name, derivatives):
    mu = DiscreteMeasure(torch.randn(2, 6, 2).double(), torch.rand(2, 6).double().masked_fill(torch.arange(6) == 1, 0.0))
    results = []
    for backend_name in ("dense", name):
        x, y, w = (t.clone().requires_grad_(derivatives) for t in (looked_at(mu), mu.points, mu.weights))
        with backend(backend_name):
            moments = local_moments(x, DiscreteMeasure(y, w), [0.5, 1.0])
            gradients = torch.autograd.grad(moments.square().sum(), (x, y, w)) if derivatives else ()
        results.append((moments, *gradients))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, units=1e4)


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("function", [lambda x, mu: local_moments(x, mu, [0.7, 1.5]), lambda x, mu: local_operators(x, mu, 0.7)])
def test_derivatives_also_at_mass_zero(function):
    mu = DiscreteMeasure(torch.randn(4, 2).double(), torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64))
    x = torch.randn(2, 2).double()

    def of(x, y, w):
        return function(x, mu.with_points(y).with_weights(w))

    inputs = tuple(t.requires_grad_() for t in (x, mu.points.clone(), mu.weights.clone()))
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


@pytest.mark.theorem("T2")
def test_the_first_variation_of_the_log_density():
    """k_h(x - y_j) / (k_h * mu)(x) - 1 / mass in the weight of an atom, be it zero."""
    mu = DiscreteMeasure(torch.randn(4, 2).double(), torch.tensor([0.5, 0.0, 0.9, 0.2], dtype=torch.float64))
    x = torch.randn(3, 2).double()
    actual = torch.autograd.functional.jacobian(lambda w: local_moments(x, mu.with_weights(w), [0.7])[..., 0], mu.weights)
    share = (-0.5 * torch.cdist(x, mu.points).square() / 0.49).exp() / (mu.mass() * smoothed(x, mu, 0.7).unsqueeze(-1))
    assert_close(actual, share - 1.0 / mu.mass())


@pytest.mark.parametrize("distance", [9.0, 9.5, 13.0, 13.1, 15.0, 1e6])
def test_far_from_every_atom_there_are_no_averages_and_finite_derivatives(distance):
    """In single precision, where the kernel underflows."""
    x, y, w = (t.requires_grad_() for t in (torch.tensor([[0.1 * distance, 0.0]]), torch.zeros(2, 2), torch.ones(2)))
    moments, operators = local_moments(x, DiscreteMeasure(y, w), [0.1]), local_operators(x, DiscreteMeasure(y, w), 0.1)
    if distance > 9.3:
        assert_close(moments[0, 1:], torch.zeros(5))
        assert not operators.round(decimals=10).any()
    loss = (1e4 * moments).square().sum() + (1e4 * operators).square().sum()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (x, y, w)))


def test_batches_and_transforms():
    x, mu = torch.randn(2, 3, 4, 2).double(), DiscreteMeasure(torch.randn(2, 3, 5, 2).double())
    for function in (lambda x, mu: local_moments(x, mu, [0.5, 1.0]), lambda x, mu: local_operators(x, mu, 0.5)):
        whole = function(x, mu)
        assert_close(whole[1, 2], function(x[1, 2], mu[1, 2]))
        assert_close(function(x, mu[0, 1])[1, 0], function(x[1, 0], mu[0, 1]))
        of_points = lambda y: function(x[0, 0], DiscreteMeasure(y))  # noqa: B023
        assert_close(torch.vmap(of_points)(mu.points[0]), torch.stack([of_points(y) for y in mu.points[0]]))
        assert_close(torch.func.jacfwd(of_points)(mu.points[0, 0]), torch.func.jacrev(of_points)(mu.points[0, 0]))


def test_autocast_stores_operators_in_half_and_leaves_moments():
    x, mu = torch.randn(4, 2) + 100.0, DiscreteMeasure(torch.randn(5, 2) + 100.0)
    moments, operators = local_moments(x, mu, [0.5]), local_operators(x, mu, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(local_moments(x, mu, [0.5]), moments, units=1e4)
        assert torch.equal(local_operators(x, mu, 0.5), operators.bfloat16())
        assert torch.equal(local_operators(x.requires_grad_(), mu, 0.5), operators.bfloat16())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, mu: local_moments(x, mu, []), "bandwidths: "),
        (lambda x, mu: local_moments(x, mu, [1.0, math.nan]), "bandwidths: "),
        (lambda x, mu: local_moments(x, mu.with_weights(torch.zeros(4)), [1.0]), "weights: .*positive"),
        (lambda x, mu: local_moments(x.double(), mu, [1.0]), "x: .*float32"),
        (lambda x, mu: local_operators(x, mu, 0.0), "bandwidth: .*0.0"),
        (lambda x, mu: local_operators(x, mu, 1.0, order=3), "order: .*3"),
        (lambda x, mu: local_operators(x[:, :1], mu, 1.0), "x: .*dimension 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 2), DiscreteMeasure(torch.zeros(4, 2)))
