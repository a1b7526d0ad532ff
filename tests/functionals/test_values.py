"""Functionals against closed forms, peers and finite differences of what their parameters do."""

import copy

import geomloss
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddeq import DiscreteMeasure, Functional
from ddeq.functionals import (
    KALE,
    MMD,
    DrMMD,
    Entropy,
    FixedPointDiscrepancy,
    InteractionEnergy,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedWasserstein,
    Smoothness,
    Wasserstein,
)
from ddeq.kernels import Gaussian, Riesz
from ddeq.testing import assert_close
from ddeq.testing.strategies import kernels, measures


def dirac(*x):
    return DiscreteMeasure(torch.tensor([x], dtype=torch.float64))


def test_mmd_of_point_masses():
    """1/2 (k(x, x) + k(y, y)) - k(x, y)."""
    assert MMD(dirac(3.0, 4.0), Riesz(1.0))(dirac(0.0, 0.0)).item() == pytest.approx(5.0)
    assert MMD(dirac(0.0), Gaussian(2.0))(dirac(2.0)).item() == pytest.approx(1 - 2.718281828459045**-0.5)


@given(mu=measures(max_atoms=4), kernel=kernels())
def test_mmd_is_zero_on_its_target_and_positive_elsewhere(mu, kernel):
    discrepancy = MMD(mu, kernel.double())
    scale = 1e-3 + mu.points.abs().max()
    assert_close(discrepancy(mu), torch.zeros(mu.batch_shape, dtype=mu.dtype), scale=scale)
    assert (discrepancy(mu.push_forward(lambda x: x + 1.0)) > 0).all()


@given(
    mu=measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,)), nu=measures(batch_shapes=((),), offsets=(0.0,), scales=(1.0,))
)
def test_mmd_against_geomloss(mu, nu):
    peer = geomloss.SamplesLoss("energy", backend="tensorized")(mu.weights, mu.points, nu.weights, nu.points)
    assert_close(MMD(nu, Riesz(1.0))(mu), peer.reshape(()), scale=1.0, rtol=2e-4)  # geomloss takes |x| as sqrt(x^2 + 1e-8)


@given(
    mu=measures(dim=1, batch_shapes=((),), offsets=(0.0,), scales=(1.0,)),
    nu=measures(dim=1, batch_shapes=((),), offsets=(0.0,), scales=(1.0,)),
)
@pytest.mark.theorem("T12")
def test_energy_distance_on_the_line_is_twice_cramers(mu, nu):
    x = torch.cat([mu.points, nu.points]).squeeze(-1)
    order = x.argsort()
    difference = torch.cat([mu.weights, -nu.weights])[order].cumsum(0)
    cramer = (difference[:-1].square() * x[order].diff()).sum()
    assert_close(MMD(nu, Riesz(1.0))(mu), cramer, scale=1.0)


@pytest.mark.theorem("T13")
def test_mmd_between_gaussians():
    a, b = (1.0, -1.0), (0.0, 2.0)
    A, B = ([[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3.0]])
    sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0)

    def sample(mean, covariance, n):
        normal = torch.erfinv(2 * sobol.draw(n, dtype=torch.float64) - 1).clamp(-6, 6) * 2**0.5
        root = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
        return DiscreteMeasure(normal @ root.mT + torch.tensor(mean, dtype=torch.float64))

    value = 2 * MMD(sample(b, B, 2000), Gaussian(0.7**0.5))(sample(a, A, 2000))
    assert value.item() == pytest.approx(0.262369153, rel=5e-3)


@pytest.mark.theorem("T3")
def test_potential_energy_is_the_integral():
    mu = DiscreteMeasure(torch.randn(3, 4, 2), torch.rand(3, 4))
    assert_close(PotentialEnergy(lambda x: x[..., 0])(mu), (mu.weights * mu.points[..., 0]).sum(-1))


@pytest.mark.theorem("T3")
def test_quadratic_interaction_is_the_variance():
    mu = DiscreteMeasure(torch.randn(5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64)).normalized()
    energy = InteractionEnergy(lambda d: d.square().sum(-1))
    assert_close(energy(mu), mu.covariance().trace())
    assert_close(energy.wasserstein_gradient(mu), 2 * (mu.points - mu.mean()))


@pytest.mark.theorem("T3")
def test_mmd_gradient_against_pairwise_distances_of_pot():
    """Energy distance: the gradient is a mean of unit vectors; POT gives the pairwise distances."""
    mu, nu = DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64)), DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64))

    def pull(x, other):
        distance = torch.from_numpy(ot.dist(x.numpy(), other.points.numpy(), metric="euclidean"))
        unit = (x[:, None] - other.points[None]) / distance.clamp_min(1e-300)[..., None]
        return (unit * other.weights[:, None]).sum(1)

    assert_close(MMD(nu).wasserstein_gradient(mu), pull(mu.points, nu) - pull(mu.points, mu))


@pytest.mark.theorem("T4")
def test_fixed_point_discrepancy_gradient_has_all_terms():
    """T = a x + b m on the line, with the Gaussian kernel: the three terms of T4 written out."""
    a, b = 0.4, 0.3
    mu = DiscreteMeasure(torch.randn(4, 1, dtype=torch.float64), torch.rand(4, dtype=torch.float64)).normalized()

    def map(mu):
        return mu.with_points(a * mu.points + b * mu.normalized().mean().unsqueeze(-2))

    image = map(mu)
    witness = MMD(image, Gaussian(1.0))
    at_atoms = witness.wasserstein_gradient(mu)
    at_images = witness.wasserstein_gradient(mu, image.points)
    expected = at_atoms - a * at_images - b * (mu.weights[:, None] * at_images).sum(0)
    actual = FixedPointDiscrepancy(map, lambda nu: MMD(nu, Gaussian(1.0))).wasserstein_gradient(mu)
    assert_close(actual, expected)


@pytest.mark.theorem("T4")
def test_fixed_as_a_measure_but_not_pointwise():
    mu = DiscreteMeasure(torch.tensor([[-1.0], [1.0]]))
    assert FixedPointDiscrepancy(lambda m: m.push_forward(torch.neg), MMD)(mu).item() == 0.0


def test_discrepancies_may_be_classes_functions_or_instances():
    mu, elsewhere = dirac(1.0), dirac(7.0)
    for discrepancy in (MMD, lambda nu: MMD(nu, Riesz(1.0)), MMD(elsewhere, Riesz(1.0))):
        value = FixedPointDiscrepancy(lambda m: m.push_forward(torch.zeros_like), discrepancy)(mu)
        assert value.item() == pytest.approx(1.0)


DISCREPANCIES = {
    "mmd": lambda nu: MMD(nu, Gaussian(1.0)),
    "sinkhorn": lambda nu: SinkhornDivergence(nu, blur=0.5),
    "kale": lambda nu: KALE(nu, Gaussian(1.0), 0.3),
    "drmmd": lambda nu: DrMMD(nu, Gaussian(1.0), 0.3),
    "sliced": lambda nu: SlicedWasserstein(nu, n_projections=7),
    "wasserstein": Wasserstein,
}


@pytest.mark.theorem("T4")
@pytest.mark.parametrize("as_instance", [False, True])
@pytest.mark.parametrize("name", DISCREPANCIES)
def test_fixed_point_discrepancy_with_any_discrepancy(name, as_instance):
    """Gradients include how the target moves: against differences of the value."""
    g = torch.Generator().manual_seed(4)
    mu = DiscreteMeasure(torch.randn(4, 2, generator=g).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()).normalized()
    make = DISCREPANCIES[name]

    def map(mu):
        return mu.with_points(0.4 * torch.sin(mu.points) + 0.3 * mu.normalized().mean().unsqueeze(-2))

    F = FixedPointDiscrepancy(map, make(mu) if as_instance else make)
    d, h = torch.randn(4, 2, generator=g).double(), 1e-6
    slope = (F(mu.with_points(mu.points + h * d)) - F(mu.with_points(mu.points - h * d))) / (2 * h)
    assert_close((mu.weights[:, None] * F.wasserstein_gradient(mu) * d).sum(), slope, scale=1e-2, rtol=1e-6)


def test_marks_are_seen_by_the_map_and_have_no_first_variation_elsewhere():
    mu = DiscreteMeasure(torch.randn(3, 1), torch.tensor([0.5, 0.5, 0.0]), torch.randn(3, 1))
    F = FixedPointDiscrepancy(lambda m: m.with_points(0.5 * m.points + m.marks), MMD)
    assert F.first_variation(mu).shape == (3,)
    assert F.wasserstein_gradient(mu).shape == (3, 1)
    with pytest.raises(ValueError, match="marks"):
        F.first_variation(mu, torch.zeros(1, 1))


def test_gradients_reach_targets_kernels_and_coefficients():
    points = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    bandwidth, factor = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 1.5))
    mu = DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64))

    def force(points, bandwidth, factor):
        return (factor * MMD(DiscreteMeasure(points), Gaussian(bandwidth))).wasserstein_gradient(mu)

    assert torch.autograd.gradcheck(force, (points, bandwidth, factor))
    assert torch.autograd.gradgradcheck(force, (points, bandwidth, factor))
    F = factor * MMD(DiscreteMeasure(points.detach()), Gaussian(bandwidth))
    assert {id(p) for p in F.parameters()} == {id(bandwidth), id(factor)}


def test_modules_follow_to_and_keep_state():
    F = 0.5 * MMD(DiscreteMeasure(torch.randn(3, 2)), Gaussian(torch.tensor(1.0)))
    assert F.double()(DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64))).dtype == torch.float64
    assert "functional._target.points" in F.state_dict()
    assert "MMD" in repr(F)


def test_a_batch_of_targets_and_one_for_all():
    mu, nu = DiscreteMeasure(torch.randn(3, 4, 2)), DiscreteMeasure(torch.randn(3, 5, 2))
    batched = MMD(nu)(mu)
    for i in range(3):
        assert_close(batched[i], MMD(nu[i])(mu[i]))
    assert_close(MMD(nu[0])(mu)[1], MMD(nu[0])(mu[1]))


def test_sums_begin_with_zero():
    target, mu = (DiscreteMeasure(torch.randn(4, 2, dtype=torch.float64)) for _ in range(2))
    terms = [0.5 * MMD(target), PotentialEnergy(lambda x: x.square().sum(-1))]
    assert_close(sum(terms)(mu), terms[0](mu) + terms[1](mu))
    with pytest.raises(TypeError):
        1.0 + terms[0]


def test_smoothness_of_sums():
    nu = dirac(0.0, 0.0)
    smooth, rough = MMD(nu, Gaussian(1.0)), MMD(nu, Riesz(1.0))
    assert (smooth.smoothness, rough.smoothness) == (Smoothness.SMOOTH, Smoothness.OFF_DIAGONAL)
    assert (smooth + 2 * rough).smoothness is Smoothness.OFF_DIAGONAL


def test_per_sample_coefficients():
    mu = DiscreteMeasure(torch.randn(3, 4, 2))
    F, c = PotentialEnergy(lambda x: x.square().sum(-1)), torch.tensor([1.0, 2.0, 3.0])
    assert_close((c * F)(mu), c * F(mu))
    assert_close((c * F).wasserstein_gradient(mu), 2 * c[:, None, None] * mu.points)


class Wrong(Functional):
    def forward(self, mu):
        return mu.weights


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda mu: MMD(dirac(0.0, 0.0, 0.0))(mu), ValueError, "dimension 3"),
        (lambda mu: MMD(dirac(0.0, 0.0).to(torch.float32))(mu), ValueError, "float32"),
        (lambda mu: MMD(DiscreteMeasure(torch.zeros(4, 1, 2, dtype=torch.float64)))(mu), ValueError, "batch"),
        (lambda mu: MMD(mu.points), ValueError, "target"),
        (lambda mu: MMD(mu)(mu.points), TypeError, "DiscreteMeasure"),
        (lambda mu: PotentialEnergy(lambda x: x)(mu), ValueError, "potential: "),
        (lambda mu: InteractionEnergy(lambda d: d)(mu), ValueError, "function: "),
        (lambda mu: Wrong()(mu), ValueError, "one number per measure"),
        (lambda mu: FixedPointDiscrepancy(lambda m: m, 3.0)(mu), ValueError, "discrepancy: "),
        (lambda mu: FixedPointDiscrepancy(lambda m: m, lambda nu: 3.0)(mu), ValueError, "discrepancy: "),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make(DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64)))


@given(c=st.floats(-3, 3, width=16))
def test_multiples_are_multiples(c):
    mu = DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64))
    F = PotentialEnergy(lambda x: x.square().sum(-1))
    assert_close((c * F)(mu), c * F(mu), scale=1.0)


def test_single_points_serve_every_measure_of_a_batch(functional):
    mu, x = DiscreteMeasure(torch.randn(3, 4, 2, dtype=torch.float64)), torch.randn(5, 2, dtype=torch.float64)
    for derivative in (functional.first_variation, functional.wasserstein_gradient):
        together = derivative(mu, x)
        for i in range(3):
            assert_close(together[i], derivative(mu[i], x), scale=1e-3)


@pytest.mark.unchecked
def test_places_that_do_not_fit(functional):
    mu = DiscreteMeasure(torch.randn(3, 4, 2, dtype=torch.float64))
    for x in (torch.zeros(5, 3).double(), torch.zeros(2, 5, 2).double(), torch.zeros(5, 2)):
        with pytest.raises(ValueError, match="x: "):
            functional.first_variation(mu, x)


def test_copies_of_modules_with_tensors_have_no_history():
    c, mu = torch.ones((), requires_grad=True), dirac(0.3, 0.4)
    for F in (c.exp() * Entropy(0.5), MMD(dirac(1.0, 0.0), Gaussian(c.exp()))):
        again = copy.deepcopy(F)
        assert_close(again(mu), F(mu))
        assert not again(mu).requires_grad


def test_the_entropy_of_nothing_is_zero():
    assert Entropy(0.5)(DiscreteMeasure(torch.zeros(2, 1), torch.zeros(2))).item() == 0.0


def test_copies_have_no_history():
    points = torch.randn(3, 2, requires_grad=True)
    F = MMD(DiscreteMeasure(2 * points))
    mu = DiscreteMeasure(torch.randn(4, 2))
    assert_close(copy.deepcopy(F)(mu), F(mu))
    assert not copy.deepcopy(DiscreteMeasure(2 * points)).points.requires_grad


def test_sums_are_removable_where_their_parts_are():
    target = DiscreteMeasure(torch.zeros(2, 1, 1))
    known, unknown = MMD(target), PotentialEnergy(lambda x: x.sum(-1))
    total = 2.0 * known + unknown
    assert known.removable
    assert not total.removable
    with pytest.raises(ValueError, match="removable"):
        total.rows(torch.tensor([0]), (2,))
    unknown.removable = True  # set on a part, later
    assert total.removable
    total.removable = False
    assert not total.removable
    chosen = (torch.tensor([1.0, 5.0]) * known).rows(torch.tensor([1]), (2,))
    mu = DiscreteMeasure(torch.ones(1, 1, 1))
    assert torch.equal(chosen(mu), 5.0 * MMD(target[1:])(mu))
