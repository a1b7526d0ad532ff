"""The completed measure is the known one plus the equilibrium, wherever that has its atoms and however many."""

import pickle

import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.nn import DDEQ, Completer, EquilibriumCell, GaussianReference, LocalEncoder
from ddeq.testing import assert_close


@pytest.fixture
def completer():
    torch.manual_seed(0)
    encoder = LocalEncoder(2, 8, features=8, inner=4, centres=6, pooled=8)
    return Completer(DDEQ(encoder, EquilibriumCell(8, 3), GaussianReference(8, 3, n=5))).eval()


RHO = DiscreteMeasure(torch.randn(3, 9, 2), torch.rand(3, 9) + 0.1)


@pytest.mark.parametrize("n", [None, 11])
def test_known_atoms_stay_and_missing_ones_are_added(completer, n):
    full = completer(RHO, n)
    assert full.n == 9 + (n or 5)
    assert torch.equal(full.points[:, :9], RHO.points)
    assert torch.equal(full.weights[:, :9], RHO.weights)
    assert bool(completer.solution.converged.all())
    missing = completer.missing(RHO, n)
    assert_close(missing.weights, missing.weights[:, :1].expand(-1, n or 5))
    assert_close(full.mass(), RHO.mass() + missing.mass())


def test_mass_that_is_added_follows_the_mass_that_is_known(completer):
    one, two = completer.missing(RHO), completer.missing(3.0 * RHO)
    assert_close(two.weights, 3.0 * one.weights)
    assert_close(two.points, one.points)


@pytest.mark.theorem("T1")
def test_completion_is_a_function_of_the_measure(completer):
    wanted = completer.missing(RHO)
    for same in (RHO.split_atom(2, 0.3), RHO.pad_atoms(4), RHO.permute_atoms(torch.randperm(9))):
        seen = completer.missing(same)
        assert (seen.points - wanted.points).abs().max() < 1e-3  # solves stop at this residual
        assert (seen.weights - wanted.weights).abs().max() < 1e-3


@pytest.mark.theorem("T6")
def test_more_atoms_sample_the_same_completion(completer):
    """The mean of a function of the completion, with many atoms and with as many again."""
    means = [completer.missing(RHO, n, torch.Generator().manual_seed(n)).mean() for n in (512, 1024)]
    spread = completer.missing(RHO, 1024).covariance().diagonal(dim1=-2, dim2=-1).sqrt().max()
    assert (means[0] - means[1]).abs().max() < 0.3 * spread


def test_every_parameter_learns(completer):
    full = completer.train()(RHO)
    (full.points.square().sum() + full.mass().sum()).backward()
    for name, p in completer.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name


def test_copies_leave_the_solution_behind(completer):
    completer(RHO)
    assert pickle.loads(pickle.dumps(completer)).solution is None


def test_the_dimension_must_be_known():
    model = DDEQ(torch.nn.Identity(), EquilibriumCell(8, 3), GaussianReference(8, 3))
    with pytest.raises(ValueError, match="dim: expected"):
        Completer(model)
    assert Completer(model, dim=3).place[-1].out_features == 3
