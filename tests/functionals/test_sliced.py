"""What holds for every sliced functional: the laws, derivatives of every kind, memory, and its directions."""

import math

import pytest
import torch
from generic import assert_gradients_follow_the_value
from generic import generic_measure as measure
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.functionals import FixedPointDiscrepancy
from ddeq.functionals import directions as directions_module
from ddeq.functionals.directions import unit_directions
from ddeq.functionals.sliced_mmd import SlicedMMD
from ddeq.functionals.sliced_wasserstein import SlicedWasserstein
from ddeq.testing import assert_close, check_functional
from ddeq.testing.functionals import check_first_variation, check_value
from ddeq.testing.strategies import measures

near = measures(offsets=(0.0,), scales=(1.0,))


def makers():
    nu = measure(6, seed=1)
    made = {f"mmd r={r}": (lambda nu, r=r: SlicedMMD(nu, r, 7)) for r in (1.0, 0.5, 1.5)}
    made |= {f"wasserstein p={p}": (lambda nu, p=p: SlicedWasserstein(nu, p, 7)) for p in (1, 2)}
    return nu, made


TARGET, MAKERS = makers()


@pytest.fixture(params=MAKERS, ids=lambda name: name.replace(" ", "-"))
def make(request):
    return MAKERS[request.param]


# --- laws ---


@pytest.mark.theorem("T2")
def test_the_users_check_passes(make):
    check_functional(make(TARGET))
    check_functional(make(measure(5, dim=1)))
    check_functional(make(measure(5, dim=3, batch=(2,))))
    check_functional(make(measure(5, dtype=torch.float32)))


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
def test_values_and_derivatives_on_nasty_measures(name, data):
    mu, nu = data.draw(measures()), data.draw(measures(batch_shapes=((),)))
    functional = MAKERS[name](nu)
    check_value(functional, mu)
    mu = data.draw(near)
    functional = MAKERS[name](data.draw(measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,))))
    check_first_variation(functional, mu)
    if name != "mmd r=0.5":  # its gradient has no bound where projections nearly coincide, nor has its rounding
        assert_gradients_follow_the_value(functional, mu)


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("name", MAKERS)
@given(mu=measures(dtype=torch.float32, offsets=(0.0, 1e4), scales=(1.0,)))
def test_single_precision_far_away(name, mu):
    nu = measure(4, dtype=torch.float32, seed=3)
    nu = nu.with_points(nu.points + mu.points.flatten(0, -2)[:1])
    value, gradient = (f(mu) for f in (MAKERS[name](nu), MAKERS[name](nu).wasserstein_gradient))
    double = MAKERS[name](nu).double()
    size = (mu.points.amax((-2, -1)) - mu.points.amin((-2, -1)) + 1.0).max()
    assert_close(value, double(mu.to(torch.float64)).float(), scale=size, units=20)
    assert_close(gradient, double.wasserstein_gradient(mu.to(torch.float64)).float(), scale=size, units=20)


@pytest.mark.theorem("T1")
def test_copies_of_an_atom_get_the_very_same_gradient(make):
    """Else rounding would part them, and some energies would then drive them away from each other."""
    mu = measure(37, dim=3, dtype=torch.float32, seed=4)
    for i in range(0, 37, 5):
        mu = mu.split_atom(i, 0.3)
    gradient = make(measure(11, dim=3, dtype=torch.float32)).wasserstein_gradient(mu)
    for copy, i in enumerate(range(0, 37, 5), start=37):
        assert torch.equal(gradient[copy], gradient[i])


def test_each_measure_of_a_batch_gets_what_it_gets_alone(make):
    mu, nu, x = measure(5, batch=(3,)), measure(4, batch=(3,), seed=2), torch.randn(3, 6, 2, dtype=torch.float64)
    together = make(nu)
    for i in range(3):
        alone = make(nu[i])
        assert_close(together(mu)[i], alone(mu[i]))
        assert_close(together.wasserstein_gradient(mu)[i], alone.wasserstein_gradient(mu[i]))
        assert_close(together.first_variation(mu, x)[i], alone.first_variation(mu[i], x[i]), scale=1.0)
        assert_close(make(nu[0]).wasserstein_gradient(mu, x[0])[i], make(nu[0]).wasserstein_gradient(mu[i], x[0]))


def test_inside_function_transforms(make):
    mu = measure(4, batch=(3,))
    functional = make(TARGET)
    assert_close(torch.vmap(functional)(mu), functional(mu))
    assert_close(torch.vmap(functional.wasserstein_gradient)(mu), functional.wasserstein_gradient(mu))
    by_points = torch.func.grad(lambda p: functional(mu.with_points(p)).sum())(mu.points)
    assert_close(by_points, functional.wasserstein_gradient(mu) * mu.weights.unsqueeze(-1))
    hessian = torch.func.hessian(lambda p: functional(mu.with_points(p)).sum())(mu.points)
    twice = torch.autograd.functional.hessian(lambda p: functional(mu.with_points(p)).sum(), mu.points)
    assert_close(hessian, twice, scale=1e-3)


# --- derivatives of every kind ---


def as_functions(make):
    """Value, gradient and first variation as functions of all that they depend on."""

    def build(x, w, y, v):
        return DiscreteMeasure(x, w / w.sum()), make(DiscreteMeasure(y, v / v.sum()))

    def value(x, w, y, v):
        mu, functional = build(x, w, y, v)
        return functional(mu)

    def gradient(x, w, y, v):
        mu, functional = build(x, w, y, v)
        return functional.wasserstein_gradient(mu)

    def first_variation(x, w, y, v):
        mu, functional = build(x, w, y, v)
        f = functional.first_variation(mu, 0.5 * x[:3] + 0.1)
        return f - f[0]

    return value, gradient, first_variation


def test_derivatives_by_finite_differences(make):
    """In points and weights of both measures, first and second."""
    mu, nu = measure(4, seed=5), measure(5, seed=6)
    inputs = [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights)]
    value, gradient, first_variation = as_functions(make)
    for function in (value, gradient, first_variation):
        assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


def test_directions_one_by_one_give_the_same_derivatives(make, monkeypatch):
    """Groups of directions are computed again in backward, at every order."""
    mu, nu = measure(4, seed=5), measure(5, seed=6)
    results = []
    for group in (1, 2**21):
        monkeypatch.setattr(directions_module, "GROUP", group)
        inputs = [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights)]
        for function in as_functions(make):
            value = function(*inputs)
            first = torch.autograd.grad(value.square().sum(), inputs, create_graph=True, materialize_grads=True)
            second = torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), inputs, materialize_grads=True)
            results += [value, *first, *second]
    half = len(results) // 2
    for one_by_one, together in zip(results[:half], results[half:], strict=True):
        assert_close(one_by_one, together, scale=1.0)  # terms of size one that may cancel


def test_gradients_reach_directions(make):
    functional, theta = make(TARGET), torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mu, kind = measure(4), type(functional)

    def value(theta):
        return kind(TARGET, directions=theta / theta.norm(dim=-1, keepdim=True))(mu)

    assert torch.autograd.gradcheck(value, theta)
    learned = kind(TARGET, directions=torch.nn.Parameter(theta.detach()))
    assert [name for name, _ in learned.named_parameters()] == ["directions"]


def test_memory_does_not_grow_with_the_number_of_directions(make, monkeypatch):
    monkeypatch.setattr(directions_module, "GROUP", 1)
    functional, mu = make(measure(50)), measure(40, seed=2)
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    sizes = []
    for n in (4, 32):
        functional.directions = unit_directions(n, 2)
        points = mu.points.clone().requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            value = functional(mu.with_points(points))
        sizes.append(sum(kept.values()))
        assert torch.isfinite(torch.autograd.grad(value, points)[0]).all()
    assert sizes[1] < sizes[0] + 32 * 100


def test_as_the_discrepancy_of_a_fixed_point(make):
    """The target then moves with the measure, in points and in weights."""
    mu = measure(4, batch=(2,), seed=8)

    def shrink(m):
        return m.with_points(0.5 * m.points + 0.2 * m.normalized().mean().unsqueeze(-2))

    check_functional(FixedPointDiscrepancy(shrink, make(measure(3))), mu)


# --- directions ---


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 50])
def test_directions_are_unit_vectors_and_always_the_same(dim):
    theta = unit_directions(16, dim)
    assert theta.shape == (1 if dim == 1 else 16, dim)
    assert_close(theta.norm(dim=-1), torch.ones(len(theta), dtype=torch.float64), units=10)
    assert torch.equal(theta, unit_directions(16, dim))
    g = torch.Generator().manual_seed(0)
    assert dim == 1 or not torch.equal(unit_directions(16, dim, g), unit_directions(16, dim, g))


def test_directions_in_the_plane_avoid_the_axes():
    for n in range(1, 65):
        assert unit_directions(n, 2).abs().min() > 1e-3


def test_directions_follow_to_and_are_saved(make):
    functional = make(TARGET)
    assert "directions" in functional.state_dict()
    assert functional.directions.dtype == torch.float64
    assert functional.float().directions.dtype == torch.float32
    functional.double()


def test_the_seed_of_the_world_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SlicedMMD(measure(3, dim=5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda nu: SlicedMMD(nu, 2.0), "r: expected a number strictly between 0 and 2, got 2.0"),
        (lambda nu: SlicedWasserstein(nu, 3), "p: expected 1 or 2, got 3"),
        (lambda nu: SlicedMMD(nu, 1.0, 0), "n_projections: "),
        (lambda nu: SlicedWasserstein(nu, 2, 1.5), "n_projections: "),
        (lambda nu: SlicedMMD(nu, directions=[[1.0, 0.0]]), "directions: expected a floating-point tensor, got list"),
        (lambda nu: SlicedMMD(nu, directions=torch.ones(3, 2, dtype=torch.int64)), "directions: .*int64"),
        (lambda nu: SlicedMMD(nu, directions=torch.ones(2)), r"directions: expected shape \(n_projections, 2\)"),
        (lambda nu: SlicedWasserstein(nu, directions=torch.eye(3)), r"directions: .*\(3, 3\)"),
        (lambda nu: SlicedWasserstein(nu, directions=2 * torch.eye(2)), "directions: expected unit vectors, got one of norm 2"),
        (lambda nu: SlicedMMD(nu, directions=torch.full((1, 2), math.nan)), "directions: expected unit vectors"),
        (lambda nu: SlicedMMD(nu, directions=torch.eye(2), generator=torch.Generator()), "generator: "),
        (lambda nu: SlicedMMD(nu.points), "target: "),
        (lambda nu: SlicedWasserstein(nu)(2.0 * nu), "mu: expected the mass of the target, 1, got 2"),
        (lambda nu: SlicedWasserstein(nu)(0.0 * nu), "mu: expected measures of positive total mass"),
        (lambda nu: SlicedMMD(nu)(measure(3, dim=3)), "dimension 2"),
        (lambda nu: SlicedMMD(nu).with_target(measure(3, dim=3))(measure(3, dim=3)), "of the directions"),
        (lambda nu: SlicedMMD(nu)(nu.to(torch.float32)), "float32"),
        (lambda nu: SlicedWasserstein(nu).wasserstein_gradient(nu, torch.zeros(5, 3).double()), "x: "),
        (lambda nu: SlicedMMD(nu).first_variation(nu, torch.zeros(5, 2)), "x: "),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(measure(4))
