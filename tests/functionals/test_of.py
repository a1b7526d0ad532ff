"""`Functional.of`: plain functions of measures as functionals."""

import pytest
import torch
from torch import nn

from ddeq import DiscreteMeasure, Functional, flow
from ddeq.flows import equilibrium
from ddeq.functionals import MMD, Smoothness
from ddeq.testing import assert_close, check_functional

DOUBLE = torch.float64
MU = DiscreteMeasure(torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))


class Well(nn.Module):
    """Half the squared distance of the mean from a place that trains, plus a spread."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.tensor([1.0, -0.5], dtype=DOUBLE))

    def forward(self, mu):
        return 0.5 * (mu.normalized().weights.unsqueeze(-1) * (mu.points - self.place).square()).sum((-2, -1))


def test_a_function_is_a_functional():
    F = Functional.of(lambda mu: 0.5 * (mu.weights * mu.points.square().sum(-1)).sum(-1), smoothness=Smoothness.SMOOTH)
    check_functional(F)
    assert_close(F.wasserstein_gradient(MU), MU.points)
    assert_close((F + 0.5 * F)(MU), 1.5 * F(MU))
    assert "Functional.of(<lambda>)" in repr(F)
    with pytest.raises(ValueError, match=r"forward: expected one number per measure, shape \(\), got shape \(5,\)"):
        Functional.of(lambda mu: mu.weights)(MU)


def test_a_module_keeps_its_parameters():
    well = Well()
    F = Functional.of(well, smoothness=Smoothness.SMOOTH, removable=True)
    assert list(F.parameters()) == [well.place]
    assert F.removable
    rest = equilibrium(F, MU).measure.points
    (gradient,) = torch.autograd.grad(rest[0].sum(), well.place)
    assert_close(gradient, torch.ones(2, dtype=DOUBLE))
    with torch.no_grad():
        assert flow(F, MU, steps=100).energies[-1] < 0.01 * F(MU)


@pytest.mark.parametrize("wrong", [MMD(MU), MMD])
def test_what_is_no_function_of_measures(wrong):
    with pytest.raises(ValueError, match=r"^function: "):
        Functional.of(wrong)
