"""Layers are functions of measures, and the shared primitive of attention is right at mass zero."""

import pytest
import torch
from hypothesis import given
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.nn import (
    MLP,
    AttentionBlock,
    EquilibriumCell,
    FourierEmbedding,
    InducedSetEncoder,
    KeysAndValues,
    MaxPooling,
    MeanPooling,
    MeasureAttention,
    measure_attention,
)
from ddeq.testing import assert_close, check_map
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures


class AttendToItself(nn.Module):
    """Attention of a measure's atoms to the measure, as a map on measures."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, mu):
        return mu.with_points(self.block(mu.points, mu.points, mu.weights))


@pytest.mark.theorem("T1")
@given(mu=measures(dim=4, offsets=(0.0,), scales=(1.0,)))
def test_attention_blocks_are_maps_of_measures(mu):
    torch.manual_seed(0)
    check_map(AttendToItself(AttentionBlock(4, heads=2).double()), mu)


@pytest.mark.theorem("T1")
@given(rho=measures(offsets=(0.0,), scales=(1.0,)))
def test_cells_and_encoders_are_maps_of_measures(rho):
    """The cell in its state, and the equilibrium's map in the input."""
    torch.manual_seed(0)
    encoder, cell = InducedSetEncoder(2, 8, heads=2, inducing=3).double(), EquilibriumCell(8, 2, heads=2).double()
    mu = DiscreteMeasure(
        *(torch.randn(*rho.batch_shape, 4, k, dtype=torch.float64) for k in (8,)),
        marks=torch.randn(*rho.batch_shape, 4, 2, dtype=torch.float64),
    )
    check_map(cell, mu, encoder(rho))
    image = cell(mu, encoder(rho)).points
    for change, same in same_measure(rho).items():
        assert_close(cell(mu, encoder(same)).points, image, change)


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("pool", [MeanPooling(), MaxPooling()])
@given(mu=measures(offsets=(0.0,), scales=(1.0,)))
def test_pooling_depends_on_the_measure_alone(pool, mu):
    for change, same in same_measure(mu).items():
        assert_close(pool(same.points, same), pool(mu.points, mu), change, scale=1.0)


def test_pooling_by_hand():
    mu = DiscreteMeasure(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([3.0, 1.0, 0.0]))
    assert MeanPooling()(mu.points, mu).item() == pytest.approx(1.5)
    assert MaxPooling()(mu.points, mu).item() == 3.0


@pytest.mark.theorem("T2")
def test_attention_has_right_derivatives_in_the_weights_also_at_zero():
    query, key, value = (torch.randn(n, 3, dtype=torch.float64) for n in (2, 4, 4))
    weights = torch.tensor([0.5, 0.0, 0.3, 0.0], dtype=torch.float64)

    def written_out(w):
        masses = w * (query @ key.mT / 3**0.5).exp()
        return masses @ value / masses.sum(-1, keepdim=True)

    actual, expected = (
        torch.autograd.functional.jacobian(f, weights) for f in (lambda w: measure_attention(query, key, value, w), written_out)
    )
    assert_close(actual, expected)
    assert torch.autograd.gradgradcheck(lambda w: measure_attention(query, key, value, w), weights.requires_grad_())


def test_both_ways_of_attention_agree_and_ignore_dead_atoms():
    query, key, value = torch.randn(2, 5), torch.randn(4, 5), torch.randn(4, 5)
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2])
    key[1] = 1e3  # what a dead atom holds must not matter, however large
    fast = measure_attention(query, key, value, weights)
    assert_close(measure_attention(query, key, value, weights.clone().requires_grad_()), fast)
    live = weights > 0
    assert_close(measure_attention(query, key[live], value[live], weights[live]), fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("queries", "atoms", "heads"),
    [((), (), ()), ((2, 4), (2, 4), (2, 1)), ((3,), (), ()), ((), (3,), (3,)), ((0, 4), (0, 4), (0, 1))],
)
@pytest.mark.parametrize("channels", [8, 3])
def test_attention_is_the_same_where_nothing_is_recorded(dtype, queries, atoms, heads, channels):
    query, key = torch.randn(*queries, 5, 8, dtype=dtype), torch.randn(*atoms, 300, 8, dtype=dtype)
    value, weights = torch.randn(*atoms, 300, channels, dtype=dtype), torch.rand(*heads, 300, dtype=dtype)
    weights[..., 3:280] = 0.0  # blocks of a fused kernel without any mass
    weights[..., 290] *= 1e-30
    recorded = measure_attention(query, key, value, weights)
    with torch.no_grad():
        assert_close(measure_attention(query, key, value, weights), recorded)


@pytest.mark.parametrize("grad", [True, False])
def test_attention_to_a_measure_without_mass_is_not_a_number(grad):
    query, key, value = torch.randn(2, 3, 5), torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    weights = torch.tensor([[0.0] * 4, [0.25] * 4])
    with torch.set_grad_enabled(grad):
        missing = measure_attention(query, key, value, weights).isnan()
    assert bool(missing[0].all())
    assert not bool(missing[1].any())


def test_attention_is_softmax_for_equal_weights():
    query, key, value = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4, 2)
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    assert_close(measure_attention(query, key, value, torch.full((4,), 0.25)), expected)


def test_shares_add_up_to_one():
    attention, memory = MeasureAttention(4, heads=2), KeysAndValues(3, 4, heads=2)
    key, value = memory(torch.randn(2, 5, 3))
    weights = torch.rand(2, 5)
    assert attention(torch.randn(2, 6, 4), key, value, weights).shape == (2, 6, 4)
    shares = attention.shares(torch.randn(2, 6, 4), key, weights)
    assert shares.shape == (2, 2, 6, 5)
    assert_close(shares.sum(-1), torch.ones(2, 2, 6))


def test_pointwise_layers():
    assert FourierEmbedding(2, 8)(torch.randn(3, 5, 2)).shape == (3, 5, 8)
    assert [type(m).__name__ for m in MLP(2, 3, 4)] == ["Linear", "GELU", "Linear"]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeasureAttention(5, heads=2), "heads: .*5"),
        (lambda: KeysAndValues(4, heads=3), "heads: "),
        (lambda: InducedSetEncoder(3, 8)(DiscreteMeasure(torch.zeros(4, 2))), "rho: .*dimension 3"),
        (lambda: EquilibriumCell(8, 2)(DiscreteMeasure(torch.zeros(4, 8)), None), "mu: .*marks of dimension 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
