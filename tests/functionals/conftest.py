"""The catalogue that every law is tested on: functionals of measures in the plane, in double precision."""

import pytest
import torch
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.functionals import MMD, FixedPointDiscrepancy, InteractionEnergy, PotentialEnergy
from ddeq.kernels import IMQ, Gaussian, Laplace, Riesz


def contraction(mu):
    """Moves each atom towards a function of itself and of the mean."""
    return mu.with_points(0.5 * torch.sin(mu.points) + 0.2 * mu.normalized().mean().unsqueeze(-2))


class NeuralPotential(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x):
        return self.net(x).squeeze(-1)


def catalogue():
    g = torch.Generator().manual_seed(1)
    points, weights = torch.randn(3, 2, generator=g, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    target = DiscreteMeasure(points, weights)
    torch.manual_seed(0)
    return {
        "potential": PotentialEnergy(lambda x: 0.25 * x.square().sum(-1).square()),
        "neural potential": PotentialEnergy(NeuralPotential()),
        "interaction": InteractionEnergy(lambda d: (-d.square().sum(-1)).exp() + 0.5 * d.square().sum(-1)),
        "mmd gaussian": MMD(target, Gaussian(1.0)),
        "mmd several gaussians": MMD(target, Gaussian([0.5, 2.0])),
        "mmd laplace": MMD(target, Laplace(1.0)),
        "mmd imq": MMD(target, IMQ(1.0)),
        "mmd riesz": MMD(target, Riesz(1.0)),
        "mmd riesz 1.5": MMD(target, Riesz(1.5)),
        "mmd sum of kernels": MMD(target, Gaussian(1.0) + 0.5 * Riesz(1.0)),
        "fixed point": FixedPointDiscrepancy(contraction, lambda nu: MMD(nu, Gaussian(1.0))),
        "sum": MMD(target, Gaussian(1.0)) + 0.3 * PotentialEnergy(lambda x: x.square().sum(-1)),
        "difference": MMD(target) - PotentialEnergy(lambda x: x.square().sum(-1)) / 3,
        "parameter": nn.Parameter(torch.tensor(0.7, dtype=torch.float64)) * MMD(target, Gaussian(1.0)),
    }


CATALOGUE = catalogue()


@pytest.fixture(params=CATALOGUE, ids=lambda name: name.replace(" ", "-"))
def functional(request):
    return CATALOGUE[request.param]
