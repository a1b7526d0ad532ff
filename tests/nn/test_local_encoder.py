"""The encoder of local geometry: a function of the measure, its derivatives, its place in a DDEQ, and what it tells cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.iteration import Stop
from ddeq.nn import DDEQ, Classifier, Context, ContractiveCell, EquilibriumCell, LearnedReference, LocalEncoder
from ddeq.testing import assert_close, check_map
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures

CELLS = [EquilibriumCell, ContractiveCell]
LEVELS = [{"centres": None, "coarse": (), "fine": (0.4, 0.4, 0.8)}, {"centres": 3}, {"centres": 9, "fine": (0.4,)}]
inputs = measures(offsets=(0.0,), scales=(1.0,))


def encoder(seed=0, **options):
    torch.manual_seed(seed)
    return LocalEncoder(2, 8, **({"features": 6, "inner": 5, "heads": 2, "pooled": 7, "octaves": 2} | options))


def cell_of(kind, mark_dim=2):
    torch.manual_seed(1)
    return kind(8, mark_dim, heads=2)


def states(rho, mark_dim=2):
    g = torch.Generator().manual_seed(2)
    points, marks = (torch.randn(*rho.batch_shape, 4, k, generator=g, dtype=torch.float64).to(rho.dtype) for k in (8, 2))
    return DiscreteMeasure(points, marks=marks if mark_dim else None)


def clouds():
    g = torch.Generator().manual_seed(5)
    return DiscreteMeasure.from_clouds([torch.randn(n, 2, generator=g) for n in (4, 13, 9)])


def classifier(kind=EquilibriumCell, rtol=1e-5, **options):
    model = DDEQ(encoder(**options), cell_of(kind), LearnedReference(5, 8, 2), stop=Stop(rtol=rtol, max_steps=200))
    return Classifier(model, 3)


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("options", LEVELS, ids=["atoms", "few centres", "many centres"])
@given(rho=inputs)
def test_encoders_are_functions_of_the_measure(options, rho):
    """Tokens at the atoms are a measure: they are compared by what a cell makes of them."""
    model, cell = encoder(**options).double(), cell_of(EquilibriumCell).double()
    with torch.no_grad():
        context, mu = model(rho), states(rho)
        for change, same in same_measure(rho).items():
            other = model(same)
            for name in ("shift", "gain"):
                assert_close(getattr(other, name), getattr(context, name), f"{change}: {name}")
            assert_close(cell(mu, other).points, cell(mu, context).points, change)


@pytest.mark.theorem("T19")
@pytest.mark.parametrize("options", LEVELS, ids=["atoms", "few centres", "many centres"])
@given(rho=inputs, far=st.sampled_from([-3.5, 1e4]))
def test_encoders_know_where_the_input_is_by_the_features_of_places_alone(options, rho, far):
    model = encoder(**options).double()
    moved = rho.with_points(rho.points + far)
    places = [m for name, m in model.named_modules() if name in ("place", "centre_place")]
    with torch.no_grad():
        if far == -3.5:
            assert not torch.allclose(model(moved).shift, model(rho).shift)
        for place in places:
            place.linear.weight.zero_()
        for a, b in zip(model(moved)[:2], model(rho)[:2], strict=True):
            assert_close(a[0], b[0], rtol=1e-9)
        assert_close(model(moved).shift, model(rho).shift, rtol=1e-9)


@pytest.mark.theorem("T19")
def test_more_centres_than_atoms_change_nothing():
    """The largest of the three clouds has 13 atoms."""
    few, many, cell = encoder(centres=13), encoder(centres=40), cell_of(EquilibriumCell)
    rho = clouds()
    assert_close(many(rho).shift, few(rho).shift)
    assert_close(cell(states(rho), many(rho)).points, cell(states(rho), few(rho)).points)


@pytest.mark.parametrize("options", LEVELS, ids=["atoms", "few centres", "many centres"])
@pytest.mark.parametrize("kind", CELLS)
def test_any_batch(options, kind):
    model = classifier(kind, **options)
    rho = DiscreteMeasure(torch.randn(2, 3, 6, 2), torch.rand(2, 3, 6))
    with torch.no_grad():
        logits = model(rho)
        assert logits.shape == (2, 3, 3)
        assert_close(model(rho[1, 2]), logits[1, 2], rtol=1e-3)
        assert_close(model.model.encoder(rho[0, 1]).gain, model.model.encoder(rho).gain[0, 1], units=1e4)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_step_of_training(kind, dropout):
    model = classifier(kind, fine=(0.4,), centres=5)
    model.model.cell = kind(8, 2, heads=2, dropout=dropout)
    optimizer, rho, labels = torch.optim.AdamW(model.parameters(), 1e-2), clouds(), torch.tensor([0, 1, 2])
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(rho, generator=torch.Generator().manual_seed(3)), labels)
        loss = loss + 0.1 * model.model.penalty(model.solution, steps=2).mean()
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        losses.append(loss.item())
    assert model.solution.converged.all()
    assert losses[-1] < losses[0]


@pytest.mark.theorem("T2")
@pytest.mark.parametrize("options", LEVELS, ids=["atoms", "few centres", "many centres"])
def test_derivatives_in_the_input_also_at_mass_zero(options):
    """Against finite differences in points and masses of the support; finite in weights that are zero."""
    model, rho = encoder(**options).double(), clouds()[0].to(torch.float64)
    points, weights = rho.points.requires_grad_(), rho.weights.requires_grad_()
    live = rho.support().double()

    def shift(points, weights):
        return model(rho.with_points(points).with_weights(weights)).shift

    first = shift(points, weights)[..., 0]  # the sum of all is zero: they are normalised
    (of_weights,) = torch.autograd.grad(first.sum(), weights)
    assert torch.isfinite(of_weights).all()
    assert of_weights[live == 0].any()
    assert torch.autograd.gradcheck(lambda x, w: shift(x, w * live), (points, weights))


@pytest.mark.parametrize("kind", CELLS)
def test_encoders_run_in_half_and_equilibria_are_solved_in_full(kind):
    model, rho = classifier(kind, fine=(0.4,), centres=5), clouds()
    full = model.model.encoder(rho)
    penalty = lambda: model.model.penalty(model.solution, steps=2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.model.encoder(rho)
        logits, growth = model(rho), penalty()
        loss = logits.float().square().sum() + growth.sum()
    solution = model.solution
    assert_close(growth, penalty())
    assert half.keys[0].dtype == torch.bfloat16
    for a, b in (
        (half.keys[0], full.keys[0]),
        (half.values[0], full.values[0]),
        (half.shift, full.shift),
        (half.gain, full.gain),
    ):
        assert_close(a.float(), b, rtol=0.05)
    assert solution.measure.dtype == torch.float32
    assert solution.converged.all()
    assert (solution.residual <= 1e-5).all()
    assert_close(solution.measure.points, model.model(rho).measure.points, rtol=0.05)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def context(**options):
    g = torch.Generator().manual_seed(4)
    key, value = (torch.randn(3, 2, 6, 4, generator=g).double() for _ in range(2))
    return Context((key,), (value,), torch.rand(3, 6, generator=g).double(), {}, **options)


def test_contexts_modulate_marks():
    marks, shift, gain = torch.randn(3, 4, 8).double(), torch.randn(3, 8).double(), torch.randn(3, 8).double()
    assert context().modulated(marks) is marks
    assert_close(context(shift=shift).modulated(marks), marks + shift[:, None])
    assert_close(context(gain=gain).modulated(marks), marks * (1 + gain[:, None]))
    assert_close(context(shift=shift, gain=gain).modulated(marks), marks * (1 + gain[:, None]) + shift[:, None])


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("mark_dim", [0, 2])
def test_cells_hear_shift_and_gain_with_and_without_marks(kind, mark_dim):
    cell, shift = cell_of(kind, mark_dim).double(), torch.randn(3, 8).double()
    if mark_dim == 0 and kind is ContractiveCell:
        nn.init.normal_(cell.common)
    mu = states(DiscreteMeasure(torch.zeros(3, 1, 2).double()), mark_dim)
    plain, zero = cell(mu, context()).points, torch.zeros_like(shift)
    assert_close(cell(mu, context(shift=zero, gain=zero)).points, plain)
    check_map(
        cell, mu[0], Context(*[[t[0] for t in pair] for pair in context()[:2]], context().weights[0], {}, shift[0], shift[0])
    )
    assert not torch.allclose(cell(mu, context(shift=shift)).points, plain)
    heard = not torch.allclose(cell(mu, context(gain=shift)).points, plain)
    assert heard == (mark_dim > 0 or kind is ContractiveCell)  # there is nothing to multiply in the other


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder(centres=None), "coarse: .*without centres"),
        (lambda: encoder(pooling=()), "pooling: "),
        (lambda: encoder(moments=()), "moments: "),
        (lambda: encoder(fine=(0.1, -0.2)), "fine: .*-0.2"),
        (lambda: encoder(coarse=(0.0,)), "coarse: .*0.0"),
        (lambda: encoder(centres=0), "centres: "),
        (lambda: encoder(heads=3), "heads: "),
        (lambda: encoder()(DiscreteMeasure(torch.zeros(4, 3))), "rho: .*dimension 2"),
        (lambda: encoder()(DiscreteMeasure(torch.zeros(4, 2), torch.zeros(4))), "weights: .*positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
