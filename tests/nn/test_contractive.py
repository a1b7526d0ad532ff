"""The cell that contracts by construction: its certificate, its uniqueness, its bound, and its place in a DDEQ."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddeq import DiscreteMeasure, fixed_point
from ddeq.iteration import Stop
from ddeq.nn import (
    DDEQ,
    Classifier,
    CollapseWarning,
    Context,
    ContractiveCell,
    Dropout,
    GaussianReference,
    InducedSetEncoder,
    LearnedReference,
    effective_support,
    interaction,
    measure_attention,
    norm_bound,
    spectral_radius,
)
from ddeq.solvers import Anderson, OneStep, Picard, Unrolled
from ddeq.testing import assert_close, check_implicit_gradient, check_map
from ddeq.testing.samples import same_measure
from ddeq.testing.strategies import measures

TIGHT = Stop(rtol=1e-12, atol=1e-14, max_steps=2000)


def random_cell(seed=0, size=1.0, layers=1, width=4, mark_dim=2, **options):
    """With parameters ``size`` times as large as at the start, gain and shares too."""
    torch.manual_seed(seed)
    cell = ContractiveCell(width, mark_dim, heads=2, layers=layers, **options).double()
    with torch.no_grad():
        for p in cell.parameters():
            p.copy_(size * (p + 0.3 * torch.randn_like(p)))
    return cell


def random_context(batch=(), layers=1, seed=0, size=1.0):
    g = torch.Generator().manual_seed(seed)
    keys, values = (
        tuple(size * torch.randn(*batch, 2, 5, 2, generator=g, dtype=torch.float64) for _ in range(layers)) for _ in range(2)
    )
    return Context(keys, values, torch.rand(*batch, 5, generator=g, dtype=torch.float64) + 0.1, {})


def operator_norm(map, mu, *args):
    """Of the derivative, on the L2(mu) of the atoms of positive mass."""
    live = mu.support()
    root = mu.weights[live].sqrt().repeat_interleave(mu.dim)

    def image(z):
        return map(mu.with_points(mu.points.masked_scatter(live.unsqueeze(-1), z)), *args).points[live]

    matrix = torch.autograd.functional.jacobian(image, mu.points[live]).flatten(2).flatten(0, 1)
    return torch.linalg.matrix_norm(root[:, None] * matrix / root, 2)


cells = st.builds(
    random_cell,
    st.integers(0, 10**6),
    st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    st.integers(1, 3),
    contraction=st.sampled_from([0.5, 0.9, 0.99]),
)
states = measures(dim=4, mark_dim=2, batch_shapes=((),), offsets=(0.0, 1e4), scales=(1.0, 1e-6, 30.0))


@pytest.mark.theorem("T8")
@given(cell=cells, mu=states, data=st.data())
def test_no_distance_grows_by_more_than_the_certificate(cell, mu, data):
    """Between states of any size and distance, at unequal masses, with coincident and dead atoms."""
    context = random_context(layers=len(cell.layers), size=data.draw(st.sampled_from([1.0, 100.0])))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    size = data.draw(st.sampled_from([1e-3, 1.0, 1e3]))
    other = mu.with_points(mu.points + size * torch.randn(mu.points.shape, generator=g, dtype=mu.dtype))

    def distance(a, b):
        return (mu.weights * (a.points - b.points).square().sum(-1)).sum().sqrt()

    with torch.no_grad():
        ratio = distance(cell(mu, context), cell(other, context)) / distance(mu, other)
    assert 0.0 < cell.certificate <= cell.contraction < 1.0
    rounding = 1e-13 * (mu.points.abs().max() + 1e3) / size
    assert ratio <= cell.certificate + rounding


@pytest.mark.theorem("T8")
@pytest.mark.theorem("T6")
@given(cell=cells, mu=measures(dim=4, mark_dim=2, batch_shapes=((),), offsets=(0.0,), scales=(1.0,), normalized=False))
def test_the_worst_direction_grows_by_no_more_than_the_certificate(cell, mu):
    """The operator norm of the derivative in L2(mu), which holds how the map depends on the measure: sharper than samples."""
    context = random_context(layers=len(cell.layers))
    assert operator_norm(cell, mu, context) <= cell.certificate * (1 + 1e-12)


@pytest.mark.theorem("T8")
def test_the_certificate_is_not_far_from_the_truth():
    """Where activations are in their linear range and matrices are orthogonal it is attained, but for the norm bound."""
    cell = random_cell(layers=1)
    with torch.no_grad():
        cell.layers[0].share.fill_(-50.0)
        cell.layers[0].matrices.copy_(torch.eye(4).expand(3, 4, 4))
        cell.layers[0].mlp[-1].bias.fill_(100.0)
    mu = DiscreteMeasure(torch.randn(3, 4, dtype=torch.float64), marks=torch.randn(3, 2, dtype=torch.float64))
    norm = operator_norm(cell, mu, random_context()).item()
    assert 4 ** (-1 / 32) * cell.certificate == pytest.approx(norm, rel=1e-9)  # four equal singular values


@pytest.mark.theorem("T8")
@given(mu=measures(mark_dim=3, batch_shapes=((),), normalized=False), sharpness=st.sampled_from([0.0, 1.0, 30.0]))
def test_interactions_have_norm_one_in_the_space_of_the_measure(mu, sharpness):
    who = torch.nn.functional.normalize(mu.marks + 0.01, dim=-1)
    weights = mu.weights[mu.support()]
    who = who[mu.support()]
    matrix = interaction(sharpness * who @ who.mT, torch.eye(len(weights), dtype=mu.dtype), weights)
    root = weights.sqrt()
    assert_close(torch.linalg.matrix_norm(root[:, None] * matrix / root, 2), torch.ones((), dtype=mu.dtype), rtol=1e-10)


@pytest.mark.theorem("T8")
def test_softmax_attention_has_no_such_bound():
    """All attend to the first atom, which has little mass."""
    weights = torch.tensor([0.01, 0.495, 0.495], dtype=torch.float64)
    query, key = torch.ones(3, 1, dtype=torch.float64), torch.tensor([[50.0], [0.0], [0.0]], dtype=torch.float64)
    matrix = measure_attention(query, key, torch.eye(3, dtype=torch.float64), weights)
    root = weights.sqrt()
    assert torch.linalg.matrix_norm(root[:, None] * matrix / root, 2).item() == pytest.approx(10.0, rel=1e-6)


@pytest.mark.theorem("T8")
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    rank=st.integers(0, 9),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_norm_bounds_are_bounds_and_tight(rows, columns, rank, scale, dtype):
    a = scale * torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, columns, dtype=torch.float64)
    exact, bound = torch.linalg.matrix_norm(a, 2), norm_bound(a.to(dtype)).double()
    rounding = 100 * torch.finfo(dtype).eps
    assert bound >= exact * (1 - rounding)
    assert bound <= exact * max(1, min(rows, columns, rank)) ** (1 / 32) * (1 + rounding) + 1e-15


def test_norm_bounds_have_derivatives_where_singular_values_coincide():
    matrix = torch.eye(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm_bound, matrix)
    assert torch.autograd.gradgradcheck(norm_bound, matrix)
    assert_close(norm_bound(torch.eye(128)), torch.tensor(128 ** (1 / 32)), rtol=1e-5)


@pytest.mark.theorem("T1")
@settings(max_examples=10)
@given(mu=measures(dim=4, mark_dim=2, offsets=(0.0,), scales=(1.0,)))
def test_the_cell_is_a_map_of_measures(mu):
    check_map(random_cell(layers=2), [mu], random_context(mu.batch_shape, layers=2))


@pytest.mark.theorem("T8")
@settings(max_examples=10)
@given(cell=cells, data=st.data())
def test_the_error_bound_of_a_certified_cell_is_one(cell, data):
    """From any start, after any number of steps, by any solver."""
    context = random_context((3,), layers=len(cell.layers))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    draw = lambda k: torch.randn(3, 5, k, generator=g, dtype=torch.float64)
    mu = DiscreteMeasure(100 * draw(4), draw(1).square().squeeze(-1), draw(2))
    with torch.no_grad():
        exact = fixed_point(cell, mu, context, in_dims=0, stop=TIGHT, solver=Picard()).measure.points
        solver = data.draw(st.sampled_from([Picard(), Picard(0.3), Anderson(), Anderson(2)]))
        steps = data.draw(st.integers(0, 6))
        solution = fixed_point(cell, mu, context, in_dims=0, solver=solver, stop=Stop(rtol=1e-9, max_steps=steps))
    distance = (mu.weights * (solution.measure.points - exact).square().sum(-1)).sum(-1).sqrt()
    assert (distance <= solution.error_bound * (1 + 1e-9) + 1e-9).all()
    assert torch.isfinite(solution.error_bound).all()


STOP = Stop(rtol=1e-6, max_steps=200)


def model(reference=None, layers=2, dropout=0.0, **options):
    torch.manual_seed(0)
    reference = LearnedReference(5, 8, 3) if reference is None else reference
    cell = ContractiveCell(8, reference.mark_dim, heads=2, layers=layers, dropout=dropout)
    return DDEQ(InducedSetEncoder(2, 8, heads=2, inducing=3, layers=layers), cell, reference, **({"stop": STOP} | options))


def clouds():
    g = torch.Generator().manual_seed(5)
    return DiscreteMeasure.from_clouds([torch.randn(n, 2, generator=g) for n in (4, 7, 5)])


@pytest.mark.theorem("T8")
def test_random_starts_lead_to_one_equilibrium():
    """For every parameter there is, so also for those that training reaches."""
    ddeq, rho = model(solver=Picard()), clouds()
    with torch.no_grad():
        for p in ddeq.parameters():
            p.mul_(3.0)
        solution = ddeq(rho)
        assert (spectral_radius(ddeq.cell, solution.measure, *solution.args) <= ddeq.cell.certificate + 1e-5).all()
        for seed in range(20):
            start = 10 * torch.randn(solution.measure.points.shape, generator=torch.Generator().manual_seed(seed))
            other = fixed_point(ddeq.cell, solution.measure.with_points(start), *solution.args, in_dims=0, stop=STOP)
            assert other.converged.all()
            gap = (other.measure.points - solution.measure.points).square().sum(-1).mean(-1).sqrt()
            assert (gap <= solution.error_bound + other.error_bound + 1e-5).all()


@pytest.mark.parametrize("adjoint", [None, OneStep(), Unrolled()], ids=repr)
def test_it_takes_the_place_of_an_equilibrium_cell(adjoint):
    classifier = Classifier(model(**({} if adjoint is None else {"adjoint": adjoint})), 4)
    logits = classifier(clouds())
    logits.square().sum().backward()
    assert [name for name, p in classifier.named_parameters() if p.grad is None] == []
    assert classifier.solution.converged.all()
    assert (effective_support(classifier.solution.measure) > 4).all()
    assert_close(classifier.eval()(clouds()), logits)
    assert torch.equal(copy.deepcopy(classifier)(clouds()), classifier(clouds()))
    alone = classifier(clouds()[1])
    assert_close(alone, classifier(clouds())[1], rtol=1e-4)


def test_what_is_prepared_is_what_is_computed_without():
    ddeq, rho = model(), clouds()
    solution, context = ddeq(rho), ddeq.encoder(rho)
    (prepared,) = solution.args
    assert_close(ddeq.cell(solution.measure, prepared).points, ddeq.cell(solution.measure, context).points, rtol=1e-5)
    assert all(t.shape[0] == 3 for t in torch.utils._pytree.tree_leaves(prepared))
    assert ddeq.cell.attention_shares(solution.measure, context).shape == (3, 2, 5, 7)


@pytest.mark.theorem("T7")
def test_derivatives_of_a_contractive_cell():
    cell, context = random_cell(layers=2), random_context(layers=2)
    g = torch.Generator().manual_seed(0)
    mu = DiscreteMeasure(*(torch.randn(3, k, generator=g, dtype=torch.float64) for k in (4,)))
    mu = mu.with_marks(torch.randn(3, 2, generator=g, dtype=torch.float64))
    check_implicit_gradient(cell, mu, context)
    check_implicit_gradient(cell, mu, cell.prepare(mu, context))


@pytest.mark.theorem("T6")
def test_another_number_of_atoms():
    ddeq = model(GaussianReference(8, 3, n=4))
    assert ddeq(clouds(), n=9).measure.n == 9


@pytest.mark.theorem("T5")
def test_without_marks_it_collapses():
    with pytest.warns(CollapseWarning):
        ddeq = model(LearnedReference(5, 8, 0))
    assert (effective_support(ddeq(clouds()).measure) < 1.1).all()


def test_dropout_keeps_the_certificate():
    ddeq, rho = model(dropout=0.5), clouds()
    assert any(isinstance(m, Dropout) for m in ddeq.cell.modules())
    a, b = (ddeq(rho, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.allclose(a.measure.points, b.measure.points)
    assert ddeq.cell.certificate == model(dropout=0.0).cell.certificate
    assert torch.isfinite(a.error_bound).all()


@pytest.mark.theorem("T1")
def test_equilibria_depend_on_the_input_measure_alone():
    ddeq, rho = model(), clouds()
    expected = ddeq(rho).measure.points
    for change, same in same_measure(rho).items():
        assert_close(ddeq(same).measure.points, expected, change, rtol=1e-4)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ContractiveCell(8, 2, contraction=1.0), "contraction: .*1.0"),
        (lambda: ContractiveCell(8, 2, heads=3), "heads: "),
        (lambda: ContractiveCell(8, 2)(DiscreteMeasure(torch.zeros(4, 8)), None), "mu: .*marks of dimension 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
