"""What a map is like near a measure."""

import math

import pytest
import torch
from hypothesis import given
from maps import TIGHT, affine, linear, mean_field, point, random_matrix
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.solvers import Picard, Stop, effective_support, fixed_point, jacobian_penalty, spectral_radius
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import contractions, measures


def test_spectral_radius_of_rotations_and_random_matrices():
    turn = 0.9 * torch.tensor([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]], dtype=torch.float64)
    assert spectral_radius(lambda mu: mu.push_forward(lambda z: z @ turn.mT), point(1.0, 2.0)).item() == pytest.approx(0.9)
    mu, matrix = DiscreteMeasure(torch.randn(10, 3, dtype=torch.float64)), random_matrix(0.8, n=30)
    radius = spectral_radius(linear, mu, matrix, torch.zeros(30, dtype=torch.float64), steps=30)
    assert radius.item() == pytest.approx(0.8, rel=1e-6)


def test_spectral_radius_of_nothing_and_of_nilpotent_maps():
    mu = DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64))
    assert spectral_radius(lambda mu: mu.with_points(torch.ones_like(mu.points)), mu) == 0.0
    shift = torch.diag(torch.ones(5, dtype=torch.float64), 1)
    assert spectral_radius(linear, mu, shift, torch.zeros(6, dtype=torch.float64)).item() < 1e-2
    assert jacobian_penalty(lambda mu: mu.with_points(torch.ones_like(mu.points)), mu, steps=2) == 0.0


def test_a_sample_that_is_not_finite_leaves_the_others_alone():
    mu = DiscreteMeasure(torch.randn(2, 3, 2))
    a = torch.tensor([0.5, torch.nan])
    assert_close(spectral_radius(affine, mu, a, 0.0)[0], torch.tensor(0.5), rtol=1e-5)
    assert spectral_radius(affine, mu, a, 0.0)[1].isnan()


def test_complex_pairs_at_few_steps_and_in_single_precision():
    turn = lambda angle: torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = torch.block_diag(0.9 * turn(1.0), 0.5 * turn(2.0), 0.3 * torch.eye(26))
    mu = DiscreteMeasure(torch.randn(10, 3))
    for steps, rel in ((6, 0.05), (20, 1e-4)):
        radius = spectral_radius(linear, mu, matrix, torch.zeros(30), steps=steps)
        assert radius.item() == pytest.approx(0.9, rel=rel)


def dense_radius(map, mu, *args):
    """Of displacements of the places of positive mass."""
    live = mu.support()

    def image(z):
        return map(mu.with_points(mu.points.masked_scatter(live.unsqueeze(-1), z)), *args).points[live]

    matrix = torch.autograd.functional.jacobian(image, mu.points[live]).flatten(2).flatten(0, 1)
    return torch.linalg.eigvals(matrix).abs().max()


@pytest.mark.theorem("T1")
@given(map=contractions(), mu=measures(mark_dim=2, batch_shapes=((),), offsets=(0.0,), scales=(1.0,)))
def test_the_spectral_radius_is_a_function_of_the_measure(map, mu):
    matrix, shift = 0.9 * torch.eye(2, dtype=mu.dtype), torch.zeros(2, dtype=mu.dtype)
    mu = DiscreteMeasure(mu.points, mu.weights, torch.randn(mu.n, 2, dtype=mu.dtype))  # coincident atoms are told apart
    expected = spectral_radius(map, mu, matrix, shift, steps=40)
    assert_close(expected, dense_radius(map, mu, matrix, shift), rtol=1e-5)
    for change, same in same_measure(mu).items():
        assert_close(spectral_radius(map, same, matrix, shift, steps=40), expected, change, rtol=1e-5)


@pytest.mark.theorem("T1")
def test_penalties_are_those_of_the_measure():
    mu = DiscreteMeasure(torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))

    def squeeze(mu):  # all directions alike, whatever is drawn
        return mu.with_points(0.3 * mu.points + 0.5 * mu.normalized().mean().unsqueeze(-2))

    for same in same_measure(mu).values():
        largest = jacobian_penalty(squeeze, same, steps=200)
        assert_close(largest, torch.tensor(0.64, dtype=torch.float64), rtol=1e-6)


def test_the_frobenius_penalty_estimates_the_norm():
    matrix = torch.randn(6, 6, dtype=torch.float64)
    mu = DiscreteMeasure(torch.zeros(4000, 3, 2, dtype=torch.float64))
    maps = lambda mu: mu.with_points((mu.points.flatten(-2) @ matrix.mT).reshape(mu.points.shape))
    mu = mu.with_points(torch.randn(4000, 3, 2, dtype=torch.float64))
    estimate = jacobian_penalty(maps, mu, kind="frobenius").mean()
    # The mean of a quotient of quadratic forms in a direction uniform on the sphere.
    assert estimate.item() == pytest.approx(matrix.square().sum().item() / 6, rel=0.05)


@pytest.mark.parametrize("kind", ["largest", "frobenius"])
def test_penalties_have_right_derivatives(kind):
    mu = DiscreteMeasure(torch.randn(2, 3, 2, dtype=torch.float64), marks=torch.randn(2, 3, 2, dtype=torch.float64))
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)

    def penalty(weight, shift):  # without turns: how the direction turns has no derivative
        g = torch.Generator().manual_seed(0)
        return jacobian_penalty(mean_field, mu, weight, shift, kind=kind, steps=0, target=0.1, generator=g)

    assert torch.autograd.gradcheck(penalty, (weight, shift))


@pytest.mark.theorem("T8")
def test_a_declared_lipschitz_constant_makes_the_error_bound_a_bound():
    """The largest growth that was seen is less than the constant where the start misses the worst direction."""

    class Squeeze(nn.Module):
        lipschitz = 0.9

        def forward(self, mu):
            return mu.with_points(mu.points * torch.tensor([0.1, 0.9], dtype=torch.float64))

    tilted = DiscreteMeasure(torch.tensor([[1.0, 1e-3]], dtype=torch.float64))
    stop = Stop(rtol=1e-2, atol=1e-1, max_steps=1)
    solution = fixed_point(Squeeze(), tilted, solver=Picard(), stop=stop)
    distance = solution.measure.points.norm().item()
    assert distance <= solution.error_bound.item()
    assert solution.error_bound.item() == pytest.approx(solution.measure.points.mul(torch.tensor([0.9, 0.1])).norm().item() / 0.1)
    estimate = fixed_point(lambda mu: Squeeze()(mu), tilted, solver=Picard(), stop=stop).error_bound
    assert estimate.item() < distance
    Squeeze.lipschitz = 1.0
    assert fixed_point(Squeeze(), tilted, stop=TIGHT).error_bound == math.inf


def test_spectral_radius_of_each_sample():
    mu, a = DiscreteMeasure(torch.zeros(3, 2, 2)), torch.tensor([0.1, 0.5, 2.0])
    assert_close(spectral_radius(affine, mu, a, 1.0), a, rtol=1e-5)


def test_penalties():
    mu, a = DiscreteMeasure(torch.zeros(3, 2, 2)), nn.Parameter(torch.tensor([0.1, 0.5, 2.0]))
    assert_close(jacobian_penalty(affine, mu, a, 0.0, kind="frobenius"), a.square(), rtol=1e-5)
    largest = jacobian_penalty(affine, mu, a, 0.0, target=0.3)
    assert_close(largest, torch.tensor([0.0, 0.2, 1.7]).square(), rtol=1e-4)
    largest.sum().backward()
    assert_close(a.grad, torch.tensor([0.0, 0.4, 3.4]), rtol=1e-4)


@pytest.mark.unchecked
def test_unknown_penalties():
    with pytest.raises(ValueError, match="kind"):
        jacobian_penalty(affine, point(0.0), 1.0, 0.0, kind="smallest")


def test_the_penalty_turns_to_the_largest_direction():
    matrix = torch.diag(torch.tensor([0.9, 0.1, 0.1, 0.1]))
    mu = DiscreteMeasure(torch.randn(4, 1))
    few, many = (jacobian_penalty(linear, mu, matrix, torch.zeros(4), steps=s).sqrt().item() for s in (0, 8))
    assert many == pytest.approx(0.9, rel=1e-4)
    assert few < many


@pytest.mark.theorem("T5")
def test_effective_support_counts_places_not_atoms():
    mu = DiscreteMeasure(torch.tensor([[0.0], [1.0], [2.0], [2.0]]), torch.tensor([0.25, 0.25, 0.25, 0.25]))
    assert effective_support(mu).item() == pytest.approx(1 / (2 / 16 + 1 / 4))
    assert effective_support(DiscreteMeasure(torch.ones(7, 2))).item() == pytest.approx(1.0)
    assert effective_support(DiscreteMeasure(torch.randn(7, 2))).item() == pytest.approx(7.0)
    for same in same_measure(mu).values():
        assert_close(effective_support(same), effective_support(mu))
