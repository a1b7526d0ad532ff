"""Convolutions over measures, and the block made of one: their formula, both ways to it, functions of the measure."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddeq.nn import LocalBlock, LocalConvolution
from ddeq.reductions import local_operators
from ddeq.testing import assert_close, check_map
from ddeq.testing.strategies import measures


class Convolves(nn.Module):
    """A block as a map on measures, from features that say where an atom is."""

    def __init__(self, block, h):
        super().__init__()
        self.features, self.block, self.h = nn.Linear(2, 6), block, h

    def forward(self, mu):
        features = self.features(mu.points - mu.mean().unsqueeze(-2)).tanh()
        return mu.with_points(self.block(features, local_operators(mu.points, mu, self.h)))


@pytest.mark.parametrize("n", [2, 5, 9])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_convolutions_are_their_formula_whichever_way_is_cheaper(n, batch):
    convolution = LocalConvolution(6, 4, 10).double()
    f, operators = torch.randn(*batch, 5, 6).double(), torch.randn(*batch, n, 10, 5).double()
    matrices = convolution.linear.weight.unflatten(1, (10, 6))
    expected = convolution.linear.bias + torch.einsum("oaf, ...iaj, ...jf -> ...io", matrices, operators, f)
    assert_close(convolution(f, operators), expected)
    more = torch.cat([operators, operators, operators], -3)  # the other way, where n was small
    assert_close(convolution(f, more)[..., :n, :], expected)


def test_both_ways_of_convolutions_have_the_same_derivatives():
    convolution = LocalConvolution(3, 4, 2).double()
    f, operators = torch.randn(5, 3).double().requires_grad_(), torch.randn(3, 2, 5).double()
    results = []
    for repeats in (1, 2):
        out = convolution(f, torch.cat([operators] * repeats))[:3]
        results.append(torch.autograd.grad(out.square().sum(), (f, *convolution.parameters())))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)
    assert torch.autograd.gradcheck(convolution, (f, operators.requires_grad_()))


@pytest.mark.theorem("T1")
@pytest.mark.theorem("T19")
@pytest.mark.parametrize("block", [LocalConvolution(6, 4, 6), LocalBlock(6, 6, inner=5)], ids=lambda b: type(b).__name__)
@given(mu=measures(scales=(1.0,)), h=st.sampled_from([0.4, 1.0]))
def test_convolutions_are_maps_of_measures_and_know_no_origin(block, mu, h):
    torch.manual_seed(0)
    map = Convolves(copy.deepcopy(block), h).double()
    check_map(map, mu)
    assert_close(map(mu.with_points(mu.points + 1e4)).points, map(mu).points, rtol=1e-9)
