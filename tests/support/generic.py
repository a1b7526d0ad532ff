"""Measures without ties or coincidences, and functionals without closed forms: for those that are smooth almost everywhere."""

import torch

from ddeq import DiscreteMeasure, Functional
from ddeq.testing import assert_close


def generic_measure(n, dim=2, batch=(), seed=0, dtype=torch.float64):
    """Random atoms and unequal weights of mass one."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(*batch, n, generator=g, dtype=dtype) + 0.2
    return DiscreteMeasure(torch.randn(*batch, n, dim, generator=g, dtype=dtype), weights / weights.sum(-1, keepdim=True))


class Plain(Functional):
    """A functional without its closed forms: what automatic differentiation of its value gives."""

    def __init__(self, functional):
        super().__init__()
        self.functional = functional

    def forward(self, mu):
        return self.functional(mu)


def assert_gradients_follow_the_value(functional, mu):
    """At atoms, dead and coincident ones too, and elsewhere. (Finite differences would step over kinks.)"""
    elsewhere = 0.7 * mu.points.flip(-1) + 0.31
    for x in (None, elsewhere):
        expected = Plain(functional).wasserstein_gradient(mu, x)
        assert_close(functional.wasserstein_gradient(mu, x), expected, scale=1.0)
