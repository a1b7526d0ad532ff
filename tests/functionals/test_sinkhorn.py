"""The Sinkhorn divergence: limits, a converged peer, derivatives to second order, statuses."""

import copy
import math
import warnings

import geomloss
import ot
import pytest
import torch
from hypothesis import given, settings

from ddeq import ConvergenceWarning, DiscreteMeasure
from ddeq.functionals import MMD, SinkhornDivergence, pairs
from ddeq.iteration import InnerProblemWarning, Status, Stop
from ddeq.kernels import Kernel
from ddeq.reductions import block_size
from ddeq.testing import assert_close, check_functional
from ddeq.testing.strategies import measures
from proofs_checks.test_t03_sinkhorn import unbalanced_point_masses


def cloud(n, dim=2, seed=0, mass=1.0):
    g = torch.Generator().manual_seed(seed)
    points = torch.rand(n, dim, generator=g, dtype=torch.float64)
    weights = torch.rand(n, generator=g, dtype=torch.float64) + 0.2
    return DiscreteMeasure(points, mass * weights / weights.sum())


DOUBLE = {"dtype": torch.float64}
MU, NU = cloud(7), cloud(6, seed=1).push_forward(lambda x: x + 0.3)


@pytest.mark.theorem("T3")
def test_between_point_masses_it_is_half_of_the_squared_distance():
    a, b = (DiscreteMeasure(torch.tensor([x], dtype=torch.float64)) for x in ([0.0, 0.0], [3.0, 4.0]))
    for blur in (0.05, 1.0, 10.0):
        assert SinkhornDivergence(b, blur=blur)(a).item() == pytest.approx(12.5)


@pytest.mark.theorem("T3")
def test_it_tends_to_the_exact_transport():
    exact = 0.5 * ot.emd2(MU.weights.numpy(), NU.weights.numpy(), ot.dist(MU.points.numpy(), NU.points.numpy()))
    assert SinkhornDivergence(NU, blur=0.005)(MU).item() == pytest.approx(exact, rel=1e-3)


class Product(Kernel):
    def pair(self, x, y):
        return (x * y).sum(-1)


@pytest.mark.theorem("T3")
def test_it_tends_to_half_an_mmd():
    """For a large blur the kernel is minus the cost, that is the scalar product: half of the distance of the means."""
    assert_close(SinkhornDivergence(NU, blur=100.0)(MU), MMD(NU, Product())(MU), rtol=1e-3)
    assert_close(SinkhornDivergence(NU, blur=100.0)(MU), 0.5 * (MU.mean() - NU.mean()).square().sum(), rtol=1e-3)


@pytest.mark.parametrize("reach", [None, 0.5])
@pytest.mark.parametrize("blur", [0.1, 0.5])
def test_against_geomloss_converged(blur, reach):
    peer = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, reach=reach, scaling=0.995, backend="tensorized")
    F = SinkhornDivergence(NU, blur=blur, reach=reach)
    x = MU.points.clone().requires_grad_()
    value = peer(MU.weights, x, NU.weights, NU.points)
    assert_close(F(MU), value.reshape(()), rtol=1e-3)
    # Its gradients with a reach are not those of its values, and a small blur it does not solve to the end.
    if reach is None and blur == 0.5:
        (force,) = torch.autograd.grad(value, x)
        assert_close(F.wasserstein_gradient(MU), force / MU.weights[:, None], rtol=1e-2)


@pytest.mark.parametrize("F", [SinkhornDivergence(NU, 0.1), SinkhornDivergence(NU, 0.2, reach=0.5)], ids=repr)
class TestDerivatives:
    """Central differences of the library's own values: h = 1e-5, double precision."""

    h = 1e-5

    def along(self, F, direction, by):
        return (by(MU.points + self.h * direction) - by(MU.points - self.h * direction)) / (2 * self.h)

    @pytest.mark.theorem("T2")
    def test_gradient(self, F):
        d = torch.randn_like(MU.points)
        slope = self.along(F, d, lambda x: F(MU.with_points(x)))
        for gradient in (F.wasserstein_gradient(MU) * MU.weights[:, None], self.by_autograd(F, MU.points)):
            assert_close((gradient * d).sum(), slope, rtol=1e-7)

    @pytest.mark.theorem("T7")
    def test_hessian_vector_products(self, F):
        d, x = torch.randn_like(MU.points), MU.points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F(MU.with_points(x)), x, create_graph=True)
        (product,) = torch.autograd.grad((gradient * d).sum(), x)
        assert_close(product, self.along(F, d, lambda x: self.by_autograd(F, x)), rtol=1e-6)
        force = F.wasserstein_gradient(MU.with_points(x))
        (product,) = torch.autograd.grad((force * d).sum(), x)
        change = self.along(F, d, lambda x: F.wasserstein_gradient(MU.with_points(x)))
        assert_close((product * d).sum(), (change * d).sum(), rtol=1e-6)

    @pytest.mark.theorem("T7")
    def test_mixed_derivatives(self, F):
        """How the first variation answers to weights and to the target's points."""
        w, y = MU.weights.clone().requires_grad_(), NU.points.clone().requires_grad_()
        e = torch.randn_like(w)
        e, d = e - e.mean(), torch.randn_like(y)

        def tilt(w, y):
            G = copy.copy(F).with_target(NU.with_points(y))
            variation = G.first_variation(MU.with_weights(w))
            return (variation * torch.linspace(-1, 1, 7, dtype=w.dtype)).sum()

        of_w, of_y = torch.autograd.grad(tilt(w, y), (w, y))
        w, y, h = w.detach(), y.detach(), 1e-5
        assert_close((of_w * e).sum(), (tilt(w + h * e, y) - tilt(w - h * e, y)) / (2 * h), rtol=1e-6)
        assert_close((of_y * d).sum(), (tilt(w, y + h * d) - tilt(w, y - h * d)) / (2 * h), rtol=1e-6)

    def by_autograd(self, F, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F(MU.with_points(x)), x)[0]


@pytest.mark.theorem("T7")
def test_conjugate_gradients_in_the_place_of_matrices():
    """What large measures get: value, first and second derivatives agree with those by matrices."""

    def results():
        F, x = SinkhornDivergence(NU, 0.2), MU.points.clone().requires_grad_()
        dead = DiscreteMeasure(x, MU.weights * (torch.arange(7) != 2)).normalized()
        value = F(dead)
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        return value, gradient, *torch.autograd.grad(gradient.square().sum(), x), F.first_variation(dead)

    expected = results()
    with block_size(1):
        found = results()
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-8)


@settings(max_examples=10)
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_it_is_positive_and_zero_on_its_target(mu):
    F = SinkhornDivergence(mu, blur=0.5)
    assert_close(F(mu), torch.zeros(mu.batch_shape, dtype=mu.dtype), scale=1.0, units=1e5)
    assert (F(mu.push_forward(lambda x: 1.3 * x + 0.2)) > 0).all()


def test_with_a_reach_masses_may_differ_and_far_mass_is_not_moved():
    far = DiscreteMeasure(torch.tensor([[0.0], [50.0]], dtype=torch.float64))
    near = DiscreteMeasure(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    gradient = SinkhornDivergence(near, blur=0.1, reach=1.0).wasserstein_gradient(far)
    assert gradient[1].abs() < 1e-6
    double = cloud(7, mass=2.0)
    assert SinkhornDivergence(NU, blur=0.1, reach=0.5)(double) > 0
    check_functional(SinkhornDivergence(cloud(4, mass=1.5), blur=0.5, reach=1.0))


@pytest.mark.theorem("T3")
@pytest.mark.parametrize(("w", "v", "blur", "reach"), [(2.0, 3.0, 0.5, 1.0), (0.3, 0.3, 0.2, 2.0), (1.0, 0.1, 1.0, 0.5)])
def test_point_masses_with_a_reach(w, v, blur, reach):
    """Value and first variation against the closed form of the proof."""
    value, f, p = unbalanced_point_masses(w, v, 0.5, blur**2, reach**2)
    mu, nu = (DiscreteMeasure(torch.tensor([[x]], **DOUBLE), torch.tensor([m], **DOUBLE)) for x, m in ((0.0, w), (1.0, v)))
    F = SinkhornDivergence(nu, blur, reach)
    assert F(mu).item() == pytest.approx(float(value), rel=1e-10)
    variation = (reach**2 + blur**2) * (math.exp(-p / reach**2) - math.exp(-f / reach**2))
    assert F.first_variation(mu).item() == pytest.approx(variation, rel=1e-10)


@pytest.mark.theorem("T3")
def test_masses_scale_the_value():
    assert_close(SinkhornDivergence(3.0 * NU, 0.2)(3.0 * MU), 3.0 * SinkhornDivergence(NU, 0.2)(MU), units=1e5)


def test_single_precision():
    F = SinkhornDivergence(NU.to(torch.float32), blur=0.05)
    value, gradient = F(MU.to(torch.float32)), F.wasserstein_gradient(MU.to(torch.float32))
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.float32)
    double = SinkhornDivergence(NU, blur=0.05)
    assert_close(gradient, double.wasserstein_gradient(MU).float(), rtol=1e-5)


def test_gradients_far_from_the_origin():
    shift = 1e4
    moved = SinkhornDivergence(NU.push_forward(lambda y: y + shift), 0.1)
    gradient = moved.wasserstein_gradient(MU.push_forward(lambda x: x + shift))
    assert_close(gradient, SinkhornDivergence(NU, 0.1).wasserstein_gradient(MU), rtol=1e-8)


def test_a_solve_that_is_not_given_enough_steps_says_so():
    diameter = torch.cat([MU.points, NU.points]).std().item()
    F = SinkhornDivergence(NU, blur=1e-7 * diameter, stop=Stop(rtol=1e-12, max_steps=1))
    with pytest.warns(InnerProblemWarning, match=r"Sinkhorn: .* did not reach") as caught:
        F(MU)
    assert (caught[0].message.failed, caught[0].message.wanted) == (1, 1e-12)
    assert caught[0].message.residual > 1e-12
    assert F.status.item() in (Status.MAX_STEPS, Status.STAGNATED)
    F = SinkhornDivergence(NU, blur=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F(MU)
    assert F.status.item() == Status.CONVERGED


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SinkhornDivergence(NU, blur=0.0), ValueError, "blur: "),
        (lambda: SinkhornDivergence(NU, reach=-1.0), ValueError, "reach: "),
        (lambda: SinkhornDivergence(NU)(2.0 * MU), ValueError, "mass of the target"),
        (lambda: SinkhornDivergence(NU)(cloud(3, dim=3)), ValueError, "dimension 2"),
        (lambda: SinkhornDivergence(NU, reach=1.0)(0.0 * MU), ValueError, "positive total mass"),
        (lambda: torch.vmap(SinkhornDivergence(NU))(DiscreteMeasure.stack([MU, MU])), RuntimeError, "batched already"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("size", [1e2, 1e5])
def test_neither_other_samples_nor_atoms_of_mass_zero_loosen_a_solve(size):
    gradient = SinkhornDivergence(NU).wasserstein_gradient(MU)
    away = MU.pad_atoms(1)
    away = away.with_points(torch.cat([MU.points, MU.points.new_full((1, 2), size)]))
    assert_close(SinkhornDivergence(NU).wasserstein_gradient(away)[: MU.n], gradient, rtol=1e-11)
    mu, nu = (DiscreteMeasure(torch.stack([m.points, size * m.points]), m.weights.expand(2, m.n)) for m in (MU, NU))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the large one
        assert_close(SinkhornDivergence(nu).wasserstein_gradient(mu)[0], gradient, rtol=1e-11)


@pytest.mark.parametrize("reach", [None, 0.5])
def test_every_start_leads_to_the_same_solution(reach):
    """Also in a batch, far from the origin, where geomloss alone would keep no digits in single precision."""
    far = 1e3
    mu, nu = (cloud(60, seed=seed).push_forward(lambda x, by=by: x + far + by) for seed, by in ((2, 0.0), (3, 0.5)))
    batch = DiscreteMeasure.stack([mu, mu.push_forward(lambda x: x + 0.2)])
    for measure in (mu, batch):
        values = [SinkhornDivergence(nu, reach=reach, start=start)(measure) for start in ("cells", "geomloss", "auto")]
        assert_close(values[1], values[0], rtol=1e-9)
        assert_close(values[2], values[0], rtol=1e-9)


def test_blocks_of_pairs_that_count_give_what_all_pairs_give(monkeypatch):
    mu, nu = (cloud(300, seed=seed).push_forward(lambda x, by=by: x + by) for seed, by in ((4, 0.0), (5, 0.4)))

    def results():
        x = mu.points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(SinkhornDivergence(nu, 0.05)(mu.with_points(x)), x, create_graph=True)
        (product,) = torch.autograd.grad(gradient.square().sum(), x)
        return gradient, product, SinkhornDivergence(nu, 0.05).wasserstein_gradient(mu)

    expected = results()
    monkeypatch.setattr(pairs, "BLOCKS_FROM", 0)
    for found, of_all in zip(results(), expected, strict=True):
        assert_close(found, of_all, rtol=1e-8)


def test_large_measures_in_single_precision():
    """Sums over blocks and exponentials in single precision, cells in the linear solves: to the default tolerance."""
    mu, nu = (cloud(1200, seed=seed).push_forward(lambda x, by=by: x + by) for seed, by in ((6, 0.0), (7, 0.4)))
    exact = SinkhornDivergence(nu).wasserstein_gradient(mu)
    F = SinkhornDivergence(nu.to(torch.float32))
    assert_close(F.wasserstein_gradient(mu.to(torch.float32)).double(), exact, rtol=1e-4)
    assert F.status.item() == Status.CONVERGED
