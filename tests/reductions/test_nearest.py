"""Distances to the support: against a loop, at ties, and with every way of computing them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.reductions import block_size, nearest_squared_distance
from ddeq.reductions import nearest as module
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures


def by_hand(x, mu):
    """A loop over points and over atoms of positive mass."""
    if mu.batch_shape:
        return torch.stack([by_hand(a, m) for a, m in zip(x, mu, strict=True)])
    atoms = mu.points[mu.support()]
    return torch.stack([min((point - atom).square().sum() for atom in atoms) for point in x])


def ways():
    """The nearest atoms kept, distances computed again, and blocks of one row each."""
    return pytest.mark.parametrize(("ties", "block"), [(4, 2**24), (0, 2**24), (4, 1), (0, 1)])


@pytest.mark.theorem("T1")
@ways()
@given(data=st.data())
def test_against_a_loop_however_it_is_computed(ties, block, data):
    mu = data.draw(measures(batch_shapes=((), (2,))))
    nu = data.draw(measures(batch_shapes=(mu.batch_shape,)))
    x, size = mu.points, torch.cat([mu.points, nu.points], -2)
    scale = (size.amax() - size.amin()).square()
    with pytest.MonkeyPatch.context() as patch, block_size(block):
        patch.setattr(module, "TIES", ties)
        assert_close(nearest_squared_distance(x, nu), by_hand(x, nu), scale=scale)
        for change, same in same_measure(nu).items():
            assert_close(nearest_squared_distance(x, same), nearest_squared_distance(x, nu), change, scale=scale)


@ways()
def test_derivatives_of_first_and_second_order(ties, block, monkeypatch):
    monkeypatch.setattr(module, "TIES", ties)
    x, y = (torch.randn(2, n, 2, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    weights = torch.rand(2, 5, dtype=torch.float64).masked_fill(torch.arange(5) == 1, 0.0)

    def distances(x, y):
        return nearest_squared_distance(x, DiscreteMeasure(y, weights))

    with block_size(block):
        assert torch.autograd.gradcheck(distances, (x, y))
        assert torch.autograd.gradgradcheck(distances, (x, y))


@pytest.mark.theorem("T1")
@ways()
def test_nearest_atoms_share_derivatives_by_mass(ties, block, monkeypatch):
    """At 0 lies an atom that was split, at 4 another one: both are at distance 2 from the point."""
    monkeypatch.setattr(module, "TIES", ties)
    x, y = torch.tensor([[2.0]], requires_grad=True), torch.tensor([[0.0], [4.0], [0.0], [2.0]], requires_grad=True)
    with block_size(block):
        value = nearest_squared_distance(x, DiscreteMeasure(y, torch.tensor([0.2, 0.4, 0.2, 0.0])))
    of_x, of_y = torch.autograd.grad(value.sum(), (x, y))
    assert value.tolist() == pytest.approx([4.0])
    assert_close(of_x, torch.zeros(1, 1), scale=1.0)  # 4 from the left, -4 from the right, as much mass on both sides
    assert_close(of_y.flatten(), torch.tensor([-1.0, 2.0, -1.0, 0.0]))


@pytest.mark.unchecked
def test_inside_function_transforms():
    x, mu = torch.randn(3, 4, 2), DiscreteMeasure(torch.randn(3, 5, 2))
    expected = nearest_squared_distance(x, mu)
    assert_close(torch.vmap(nearest_squared_distance)(x, mu), expected)
    leaf, direction = x.clone().requires_grad_(), torch.randn(3, 4, 2)
    (gradient,) = torch.autograd.grad(nearest_squared_distance(leaf, mu).sum(), leaf)
    assert_close(torch.func.grad(lambda x: nearest_squared_distance(x, mu).sum())(x), gradient)
    _, change = torch.func.jvp(lambda x: nearest_squared_distance(x, mu), (x,), (direction,))
    assert_close(change, (gradient * direction).sum(-1))


def test_no_pair_is_kept_and_no_number_gives_no_number(monkeypatch):
    """Pairs above the bound are not even listed; what is not a number has no nearest atom at distance zero."""
    x, mu = torch.zeros(50, 2), DiscreteMeasure(torch.zeros(60, 2))
    assert module._nearest_pairs(x, mu.points, mu.weights, 10) is None
    x = torch.randn(50, 2, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        nearest_squared_distance(x, DiscreteMeasure(torch.randn(60, 2)))
    assert max(kept) <= 120
    for ties in (0, 4):
        monkeypatch.setattr(module, "TIES", ties)
        assert nearest_squared_distance(torch.tensor([[torch.nan], [1.0]]), mu.with_points(mu.points[:, :1]))[0].isnan()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("x", "mu", "message"),
    [
        (torch.zeros(3, 2), DiscreteMeasure(torch.zeros(4, 2), torch.zeros(4)), "mu: .*positive total mass"),
        (torch.zeros(3, 1), DiscreteMeasure(torch.zeros(4, 2)), "x: .*dimension 2"),
        (torch.zeros(3, 2), DiscreteMeasure(torch.zeros(5, 4, 2)), "x: .*batch"),
    ],
)
def test_bad_input(x, mu, message):
    with pytest.raises(ValueError, match=message):
        nearest_squared_distance(x, mu)
