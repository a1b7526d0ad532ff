"""Baselines see the atoms of positive mass and nothing of how they are stored; each has its paper's size, and learns."""

import copy
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.experiments.baselines import BASELINES, DeepSets, PointNet, PointTransformer, SetTransformer
from ddeq.experiments.baselines.neighbours import nearest
from ddeq.experiments.baselines.support import Support
from ddeq.nn.coarsening import canonical_order, farthest_points
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure, with_dead_atoms
from ddeq.testing.strategies import measures

SMALL = {
    "pointnet": {"width": 1 / 8},
    "deep_sets": {"width": 32},
    "set_transformer": {"width": 16, "heads": 2, "inducing": 4},
    "point_transformer": {"widths": (8, 16), "k": 4},
}
NORMALISED = {"pointnet", "point_transformer"}
every_baseline = pytest.mark.parametrize("name", BASELINES)


def small(name, num_classes=3, **options):
    torch.manual_seed(0)
    return BASELINES[name](dim=2, num_classes=num_classes, **SMALL[name], **options)


def ragged(sizes, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    clouds, weights = zip(
        *[(torch.randn(n, 2, generator=g, dtype=dtype), torch.rand(n, generator=g, dtype=dtype) + 0.2) for n in sizes],
        strict=True,
    )
    return DiscreteMeasure.from_clouds(clouds, weights)


@every_baseline
def test_logits_for_every_batch_shape(name):
    model = small(name).eval()
    for shape in [(), (2,), (2, 3)]:
        assert model(DiscreteMeasure(torch.randn(*shape, 5, 2))).shape == (*shape, 3)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("pointnet", 3.4e6, 3.6e6),
        ("deep_sets", 0.2e6, 0.22e6),
        ("set_transformer", 0.6e6, 0.8e6),
        ("point_transformer", 0.7e6, 0.9e6),
    ],
)
def test_number_of_parameters(name, least, most):
    model = BASELINES[name](dim=3, num_classes=40)
    assert least < sum(p.numel() for p in model.parameters()) < most


@every_baseline
@pytest.mark.parametrize("use_weights", [False, True])
@settings(max_examples=10)
@given(mu=measures(dim=2, offsets=(0.0,), scales=(1.0,)))
def test_storage_does_not_matter(name, use_weights, mu):
    """Splitting an atom changes its weights and its neighbourhoods, which some networks look at (T1 does not hold)."""
    model = small(name, use_weights=use_weights).double().eval()
    logits = model(mu)
    for change, same in same_measure(mu).items():
        if change == "splitting an atom" and (use_weights or name == "point_transformer"):
            continue
        assert_close(model(same), logits, change, scale=1.0)


@pytest.mark.theorem("T1")
@given(mu=measures(dim=2, offsets=(0.0,), scales=(1.0,)))
def test_deep_sets_with_mean_pooling_is_a_function_of_the_measure(mu):
    model = small("deep_sets", pooling="mean").double().eval()
    for change, same in same_measure(mu).items():
        assert_close(model(same), model(mu), change, scale=1.0)


@every_baseline
def test_storage_does_not_matter_in_training(name):
    model, rho = small(name).double(), ragged([9, 4, 1, 12])

    def logits(mu):
        return copy.deepcopy(model)(mu, torch.Generator().manual_seed(1))

    for change, same in same_measure(rho).items():
        if change != "splitting an atom" or name not in NORMALISED:
            assert_close(logits(same), logits(rho), change, scale=1.0)


def test_a_grid_is_full_of_ties_and_its_order_does_not_matter():
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).expand(2, 25, 2)
    mu = DiscreteMeasure(grid / 5, torch.rand(2, 25) + 0.1)
    model = small("point_transformer", use_weights=True).eval()
    for seed in range(5):
        other = with_dead_atoms(mu.permute_atoms(torch.randperm(25, generator=torch.Generator().manual_seed(seed))))
        assert_close(model(other), model(mu), units=1e2)


@every_baseline
def test_weights_are_seen_when_asked_for(name):
    mu = ragged([6, 6])
    other = mu.with_weights(mu.weights.flip(-1))
    for use_weights in (False, True):
        model = small(name, use_weights=use_weights).double().eval()
        sees = not torch.equal(model(mu), model(other))
        assert sees == (use_weights or name == "set_transformer")
        if use_weights:
            assert_close(model(3.0 * mu), model(mu), "the mass does not matter")


@every_baseline
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_finite(name, precision):
    model, rho = small(name), ragged([9, 4, 1, 12], torch.float32)
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        loss = model(rho).float().logsumexp(-1).sum() + model.regularizer()
    loss.backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert bool(torch.isfinite(p.grad).all()), parameter
    copy.deepcopy(model)  # as averages of weights do


@every_baseline
def test_dropout_draws_from_the_generator(name):
    model, rho = small(name), ragged([6, 5, 7], torch.float32)
    before = torch.get_rng_state()
    first, again, other = (model(rho, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_keeps_the_mean():
    model = DeepSets(dim=1, num_classes=1, dropout=0.3)
    kept = model.dropout(torch.ones(100_000), torch.Generator().manual_seed(0))
    assert float((kept == 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.01)


def test_padding_does_not_enter_batch_statistics():
    model, rho = small("pointnet").double(), with_dead_atoms(ragged([9, 4, 1, 12]))
    linear, norm = model.align_points.atoms[:2]
    expected = nn.BatchNorm1d(norm.num_features).double()
    expected(linear(rho.points[rho.support()]))
    model(rho)
    assert_close(norm.running_mean, expected.running_mean)
    assert_close(norm.running_var, expected.running_var)


def test_support_by_hand():
    inside = torch.tensor([[True, False, True], [False, True, False]])
    x = torch.tensor([[[1.0], [9.0], [3.0]], [[9.0], [-2.0], [9.0]]])
    support = Support(inside)
    rows = support.pack(x)
    assert rows.flatten().tolist() == [1.0, 3.0, -2.0]
    assert_close(support.unpack(rows), torch.where(inside.unsqueeze(-1), x, 0.0))
    assert support.maximum(rows).flatten().tolist() == [3.0, -2.0]
    assert support.average(rows).flatten().tolist() == [2.0, -2.0]


def test_neighbours_by_hand():
    points = torch.tensor([[[2.0], [7.0], [0.0], [10.0], [1.0]]])
    inside = torch.tensor([[True, False, True, True, True]])
    assert canonical_order(points, inside).tolist() == [[2, 4, 0, 3, 1]]
    assert farthest_points(points, inside, 3).tolist() == [[0, 3, 2]]
    p = torch.tensor([[0.0], [1.0], [5.0], [3.0]])
    assert nearest(torch.tensor([[0.9], [4.0]]), p, [1, 1], [3, 1], 2).tolist() == [[1, 0], [3, -1]]


def test_alignments_are_held_to_be_orthogonal():
    model, rho = PointNet(dim=2, num_classes=3, width=1 / 8, orthogonality=0.5).eval(), ragged([6, 5], torch.float32)
    with pytest.raises(RuntimeError, match="regularizer: expected a forward pass"):
        model.regularizer()
    model(rho)
    assert model.regularizer().item() == 0.0  # the identity at the start
    with torch.no_grad():
        model.align_features.matrix.bias.mul_(2.0)  # A = 2 I of size 8
    model(rho)
    assert model.regularizer().item() == pytest.approx(0.5 * 8 * 9)


@every_baseline
def test_each_learns_a_few_clouds(name):
    """Circles, segments and pairs of spots, of 6 to 12 atoms."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(63) % 3
    clouds = []
    for label in labels.tolist():
        t, turn = torch.rand(6 + int(torch.randint(7, (), generator=g)), generator=g), 2 * math.pi * torch.rand((), generator=g)
        along = torch.stack([turn.cos(), turn.sin()])
        circle = torch.stack([(2 * math.pi * t).cos(), (2 * math.pi * t).sin()], -1)
        cloud = (circle, (2 * t - 1).outer(along), (2.0 * (t > 0.5) - 1).outer(along))[label]
        clouds.append(cloud + 0.05 * torch.randn(cloud.shape, generator=g))
    rho = DiscreteMeasure.from_clouds(clouds)
    model = small(name, dropout=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        loss = nn.functional.cross_entropy(model(rho, g), labels) + model.regularizer()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((model.eval()(rho).argmax(-1) == labels).float().mean()) > 0.95


def test_point_transformer_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(ImportError, match=r"ddeq\[baselines\]"):
        PointTransformer(dim=3, num_classes=2)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeepSets(dim=0, num_classes=2), "dim, num_classes: .*0, 2"),
        (lambda: DeepSets(dim=3, num_classes=2, pooling="sum"), "pooling: .*'sum'"),
        (lambda: DeepSets(dim=3, num_classes=2, layers=0), "width, layers: .*0"),
        (lambda: DeepSets(dim=3, num_classes=2, dropout=1.0), "p: .*1.0"),
        (lambda: PointNet(dim=3, num_classes=2, width=0.0), "width: .*0.0"),
        (lambda: SetTransformer(dim=3, num_classes=2, inducing=0), "width, inducing, blocks: .*0"),
        (lambda: PointTransformer(dim=3, num_classes=2, widths=()), "widths, k, ratio: "),
        (lambda: small("deep_sets")(DiscreteMeasure(torch.zeros(1, 4, 3))), "rho: .*dimension 2, got 3"),
        (lambda: small("deep_sets")(DiscreteMeasure(torch.zeros(1, 4, 2), torch.zeros(1, 4))), "rho: .*positive total mass"),
        (lambda: small("pointnet")(DiscreteMeasure(torch.zeros(1, 4, 2))), "rho: .*at least 2 measures"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
