"""The catalogue that every law is tested on: functionals of measures in the plane, in double precision.

`Chamfer` is not in it, since it has no first variation (T2): `test_chamfer.py` holds it to the laws that remain.
"""

import pytest
import torch
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.functionals import (
    KALE,
    KSD,
    MMD,
    DrMMD,
    Entropy,
    FixedPointDiscrepancy,
    InteractionEnergy,
    InternalEnergy,
    KLDivergence,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedMMD,
    SlicedWasserstein,
    Wasserstein,
)
from ddeq.kernels import IMQ, Gaussian, Laplace, Matern, Polynomial, Riesz


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
        "mmd matern": MMD(target, Matern(1.5, 1.0)),
        "mmd polynomial": MMD(target, Polynomial(2)),
        "mmd riesz": MMD(target, Riesz(1.0)),
        "mmd riesz 1.5": MMD(target, Riesz(1.5)),
        "mmd sum of kernels": MMD(target, Gaussian(1.0) + 0.5 * Riesz(1.0)),
        "sliced mmd": SlicedMMD(target, n_projections=5),
        "sliced mmd 1.5": SlicedMMD(target, r=1.5, n_projections=3),
        "sliced wasserstein": SlicedWasserstein(target, 2, n_projections=5),
        "sliced wasserstein 1": SlicedWasserstein(target, 1, n_projections=5),
        "wasserstein": Wasserstein(target),
        "entropy": Entropy(0.7),
        "entropy laplace": Entropy(0.7, kernel=Laplace),
        "porous medium": InternalEnergy(lambda rho: rho**2, 0.7, kernel=lambda h: Matern(2.5, h)),
        "kl": KLDivergence(lambda x: -0.5 * x.square().sum(-1), 0.7),
        "sinkhorn": SinkhornDivergence(target, blur=0.7),
        "sinkhorn with a reach": SinkhornDivergence(target, blur=0.7, reach=1.0),
        "ksd": KSD(lambda x: -x, IMQ(1.0)),
        "kale": KALE(target, Gaussian(1.0), 0.5),
        "drmmd": DrMMD(target, Gaussian(1.0), 0.5),
        "fixed point": FixedPointDiscrepancy(contraction, lambda nu: MMD(nu, Gaussian(1.0))),
        "sum": MMD(target, Gaussian(1.0)) + 0.3 * PotentialEnergy(lambda x: x.square().sum(-1)),
        "difference": MMD(target) - PotentialEnergy(lambda x: x.square().sum(-1)) / 3,
        "parameter": nn.Parameter(torch.tensor(0.7, dtype=torch.float64)) * MMD(target, Gaussian(1.0)),
    }


CATALOGUE = catalogue()


ITERATIVE = {"sinkhorn", "sinkhorn with a reach"}
"""Held to every law by `make test-slow`, and to those of its own file always."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in ITERATIVE else []) for name in CATALOGUE],
    ids=lambda name: name.replace(" ", "-"),
)
def functional(request):
    return CATALOGUE[request.param]
