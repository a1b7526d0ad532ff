"""What a map is like near a measure."""

import math

import pytest
import torch
from maps import affine, linear, point, random_matrix
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.solvers import effective_support, jacobian_penalty, spectral_radius
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure


def test_spectral_radius_of_rotations_and_random_matrices():
    turn = 0.9 * torch.tensor([[math.cos(1.0), -math.sin(1.0)], [math.sin(1.0), math.cos(1.0)]], dtype=torch.float64)
    assert spectral_radius(lambda mu: mu.push_forward(lambda z: z @ turn.mT), point(1.0, 2.0)).item() == pytest.approx(0.9)
    mu, matrix = DiscreteMeasure(torch.zeros(10, 3, dtype=torch.float64)), random_matrix(0.8, n=30)
    radius = spectral_radius(linear, mu, matrix, torch.zeros(30, dtype=torch.float64), steps=30)
    assert radius.item() == pytest.approx(0.8, rel=1e-6)


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
    mu = DiscreteMeasure(torch.zeros(4, 1))
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
