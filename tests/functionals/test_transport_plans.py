"""Plans, potentials and maps of exact and of entropic transport: what measures they refuse."""

import pytest
import torch
from generic import generic_measure as measure

from ddeq.functionals import SinkhornDivergence, Wasserstein

pytestmark = pytest.mark.unchecked
BOTH = pytest.mark.parametrize("functional", [Wasserstein, SinkhornDivergence])


@BOTH
@pytest.mark.parametrize("method", ["plan", "potentials", "transport_map"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nu: 2.0 * nu, "mu: expected the mass of the target, 1, got 2"),
        (lambda nu: measure(4, dim=3), "dimension 2"),
        (lambda nu: nu.to(torch.float32), "float32"),
    ],
)
def test_measures_that_do_not_fit(functional, method, change, message):
    nu = measure(4)
    with pytest.raises(ValueError, match=message):
        getattr(functional(nu), method)(change(nu))


@BOTH
def test_points_that_do_not_fit(functional):
    with pytest.raises(ValueError, match="x: "):
        functional(measure(4)).transport_map(measure(4), torch.zeros(5, 3, dtype=torch.float64))
