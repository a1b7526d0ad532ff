"""PCN sees the support and nothing of how it is stored, has its paper's size, folds its grid, and learns."""

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.experiments.baselines import PCN
from ddeq.functionals import Chamfer
from ddeq.testing import assert_close
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures


def small(dim=2, **options):
    torch.manual_seed(0)
    return PCN(**{"dim": dim, "coarse": 6, "grid": 3, "width": 1 / 16} | options)


def test_it_has_the_size_of_its_paper():
    model = PCN(dim=3)
    assert sum(p.numel() for p in model.parameters()) == 6_861_059
    assert not list(model.state_dict().keys() & {"patch"})
    with torch.no_grad():
        coarse, detailed = model(DiscreteMeasure(torch.randn(5, 3)))
    assert (coarse.n, detailed.n) == (1024, 16_384)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_completions_are_probabilities_of_equal_weights(dim, shape):
    rho = DiscreteMeasure(torch.randn(*shape, 5, dim), torch.rand(*shape, 5) + 0.1)
    for completion, n in zip(small(dim)(rho), (6, 6 * 3 ** (dim - 1)), strict=True):
        assert (completion.batch_shape, completion.n, completion.dim) == (shape, n, dim)
        assert_close(completion.weights, torch.full((*shape, n), 1 / n))


@settings(max_examples=10)
@given(mu=measures(offsets=(0.0,), scales=(1.0,), mark_dim=1))
def test_storage_does_not_matter(mu):
    model = small().double()
    for change, same in same_measure(mu).items():
        for a, b in zip(model(same), model(mu), strict=True):
            assert_close(a.points, b.points, change, scale=1.0)
    for a, b in zip(model(mu.with_weights(mu.weights.square())), model(mu), strict=True):
        assert_close(a.points, b.points, "a function of the support")


def test_each_measure_of_a_batch_gets_what_it_gets_alone():
    clouds = [torch.randn(n, 2, dtype=torch.float64) for n in (4, 9, 1)]
    model = small().double()
    together = model(DiscreteMeasure.from_clouds(clouds))
    for i, x in enumerate(clouds):
        for a, b in zip(together, model(DiscreteMeasure(x)), strict=True):
            assert_close(a.points[i], b.points)


def test_patches_by_hand():
    """The joined layers are those of the joined features, and the grid is a square in space and an interval in the plane."""
    model, rho = small(3, grid=2, scale=0.5).double(), DiscreteMeasure(torch.randn(2, 5, 3, dtype=torch.float64))
    assert model.patch.tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    assert small(2, grid=3, scale=0.5).patch.tolist() == [[-0.5], [0.0], [0.5]]
    assert small(3, grid=1).patch.tolist() == [[0.0, 0.0]]
    x = model.first(rho.points)
    x = torch.cat([x, x.amax(1, keepdim=True).expand_as(x)], -1)
    v = model.second(nn.functional.linear(x, model.joined.weight, model.joined.bias)).amax(1)
    coarse, detailed = model(rho)
    assert_close(coarse.points, model.decoder(v).reshape(2, 6, 3))
    for i, centre in enumerate(coarse.points[1]):
        joined = torch.cat([model.patch, centre.expand(4, 3), v[1].expand(4, -1)], -1)
        patch = centre + model.folding(nn.functional.linear(joined, model.patches.weight, model.patches.bias))
        assert_close(detailed.points[1, 4 * i : 4 * i + 4], patch)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_finite(precision):
    model, rho = small(), DiscreteMeasure.from_clouds([torch.randn(n, 2) for n in (5, 1)])
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        completions = model(rho)
    assert all(completion.dtype == torch.float32 for completion in completions)
    sum(Chamfer(rho)(completion).sum() for completion in completions).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name


def test_it_learns_to_close_circles():
    """Of circles of different sizes a half is known."""
    g = torch.Generator().manual_seed(0)
    angle = torch.arange(24.0) * (2 * torch.pi / 24)
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    whole = DiscreteMeasure(circle * (0.5 + torch.rand(16, 1, 1, generator=g)))
    known = whole.with_weights(whole.weights * (angle < 3.0))
    model, loss_of = small(coarse=8, width=1 / 8, scale=0.3), Chamfer(whole)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        coarse, detailed = model(known)
        loss = (loss_of(coarse) + loss_of(detailed)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        before, coarse, detailed = (float(loss_of(mu).mean()) for mu in (known, *model(known)))
    assert detailed < 0.05 * before
    assert detailed < 0.5 * coarse  # the patches have unfolded


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PCN(dim=4), "dim: expected 2 or 3, got 4"),
        (lambda: PCN(dim=2, coarse=0), "coarse, grid: .*0, 4"),
        (lambda: PCN(dim=2, grid=0), "coarse, grid: .*1024, 0"),
        (lambda: PCN(dim=2, width=0.0), "width, scale: .*0.0"),
        (lambda: PCN(dim=2, scale=-1.0), "width, scale: .*-1.0"),
        (lambda: small()(DiscreteMeasure(torch.zeros(4, 3))), "rho: .*dimension 2, got 3"),
        (lambda: small()(DiscreteMeasure(torch.zeros(4, 2), torch.zeros(4))), "rho: .*positive total mass"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
