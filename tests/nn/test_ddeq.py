"""DDEQs: equilibria, gradients, randomness that is drawn once, references, what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.iteration import Stop
from ddeq.nn import (
    DDEQ,
    Classifier,
    CollapseWarning,
    Dropout,
    EquilibriumCell,
    GaussianReference,
    InducedSetEncoder,
    LearnedReference,
    effective_support,
)
from ddeq.solvers import Implicit, OneStep, Solution, Unrolled
from ddeq.testing import assert_close, check_solution
from ddeq.testing.samples import same_measure

STOP = Stop(rtol=1e-6, max_steps=100)


def model(reference=None, dropout=0.0, layers=1, **options):
    torch.manual_seed(0)
    reference = LearnedReference(5, 8, 3) if reference is None else reference
    encoder = InducedSetEncoder(2, 8, heads=2, inducing=3, layers=layers)
    cell = EquilibriumCell(8, reference.mark_dim, heads=2, dropout=dropout, layers=layers)
    return DDEQ(encoder, cell, reference, **({"stop": STOP} | options))


def clouds():
    g = torch.Generator().manual_seed(5)
    return DiscreteMeasure.from_clouds([torch.randn(n, 2, generator=g) for n in (4, 7, 5)])


@pytest.mark.parametrize("layers", [1, 2])
def test_the_solution_is_an_equilibrium_of_the_cell(layers):
    ddeq = model(layers=layers)
    solution = ddeq(clouds())
    assert isinstance(solution, Solution)
    assert solution.converged.all()
    check_solution(ddeq.cell, solution, *solution.args, stop=STOP)
    assert (effective_support(solution.measure) > 4).all()


@pytest.mark.theorem("T1")
def test_equilibria_depend_on_the_input_measure_alone():
    ddeq, rho = model(), clouds()
    expected = ddeq(rho).measure.points
    for change, same in same_measure(rho).items():
        assert_close(ddeq(same).measure.points, expected, change, rtol=1e-4)
    for i in range(3):
        assert_close(ddeq(rho[i]).measure.points, expected[i], rtol=1e-4)
        cloud = DiscreteMeasure(rho.points[i][rho.support()[i]])
        assert_close(ddeq(cloud).measure.points, expected[i], rtol=1e-4)


@pytest.mark.parametrize("adjoint", [Implicit(), OneStep(), Unrolled()], ids=repr)
def test_training_and_evaluation_agree_and_gradients_reach_everything(adjoint):
    classifier = Classifier(model(adjoint=adjoint), 4)
    logits = classifier(clouds())
    logits.square().sum().backward()
    missing = [name for name, p in classifier.named_parameters() if p.grad is None]
    assert missing == []
    assert_close(classifier.eval()(clouds()), logits)


def test_implicit_gradients_of_a_model_against_finite_differences():
    ddeq = model(stop=Stop(rtol=1e-12, atol=1e-14, max_steps=300)).double()
    rho = clouds().to(torch.float64)
    parameters = list(ddeq.parameters())
    directions = [torch.randn_like(p) for p in parameters]

    def loss():
        return ddeq(rho).measure.points.square()[..., 0].sum()

    slope = sum((g * v).sum() for g, v in zip(torch.autograd.grad(loss(), parameters), directions, strict=True))
    values = []
    for h in (1e-6, -2e-6):
        with torch.no_grad():
            for p, v in zip(parameters, directions, strict=True):
                p.add_(v, alpha=h)
            values.append(loss())
    assert slope.item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-5)


def test_weights_of_the_input_have_gradients():
    ddeq, rho = model(), clouds()
    weights = rho.weights.clone().requires_grad_()
    ddeq(rho.with_weights(weights)).measure.points.sum().backward()
    assert torch.isfinite(weights.grad).all()
    assert weights.grad.abs().sum() > 0


def test_dropout_is_drawn_once_per_forward_pass():
    ddeq, rho = model(dropout=0.5), clouds()
    a, b, c = (ddeq(rho, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.converged.all()
    assert torch.equal(a.measure.points, b.measure.points)
    assert not torch.allclose(a.measure.points, c.measure.points)
    a.measure.points.sum().backward()
    ddeq.eval()
    assert torch.equal(ddeq(rho).measure.points, ddeq(rho).measure.points)


def test_dropout_masks_are_shared_over_atoms():
    ddeq, rho = model(dropout=0.5), clouds()
    (mask,) = ddeq(rho).args[0].masks.values()
    assert mask.shape == (3, 8)
    assert set(mask.unique().tolist()) <= {0.0, 2.0}


def test_gaussian_references_take_any_number_of_atoms():
    ddeq, rho = model(GaussianReference(8, 3, n=4)), clouds()
    assert ddeq(rho).measure.n == 4
    assert ddeq(rho, n=9).measure.n == 9
    assert torch.equal(ddeq(rho).measure.points, ddeq(rho).measure.points)
    g = torch.Generator().manual_seed(3)
    assert not torch.allclose(ddeq(rho, generator=g).measure.points, ddeq(rho).measure.points)


@pytest.mark.theorem("T5")
def test_a_reference_without_marks_warns_and_collapses():
    with pytest.warns(CollapseWarning, match="marks"):
        ddeq = model(LearnedReference(5, 8, 0))
    assert (effective_support(ddeq(clouds()).measure) < 1.1).all()


def test_classifiers_keep_their_last_solution_and_can_be_copied():
    classifier = Classifier(model(), 4)
    logits = classifier(clouds())
    assert logits.shape == (3, 4)
    assert classifier.solution.converged.shape == (3,)
    for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert other.solution is None
        assert torch.equal(other(clouds()), logits)
    assert classifier(clouds()[0]).shape == (4,)


def test_the_penalty_reaches_cell_and_encoder():
    ddeq = model()
    solution = ddeq(clouds())
    ddeq.penalty(solution, steps=2).sum().backward()
    assert ddeq.cell.gain.grad.abs() > 0
    assert ddeq.encoder.inducing.grad.abs().sum() > 0


class Plain(nn.Module):
    """An encoder that gives no `Context`."""

    def forward(self, rho):
        return rho.mean()


class Shift(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, mu, context):
        return mu.with_points(0.5 * mu.points + context.unsqueeze(-2) + 0.0 * mu.marks)


def test_users_cells_and_encoders():
    ddeq = DDEQ(Plain(), Shift(None), LearnedReference(3, 2, 2))
    rho = clouds()
    assert_close(ddeq(rho).measure.mean(), 2 * rho.mean(), rtol=1e-2)
    ragged = DDEQ(Plain(), Shift(Dropout(2, 0.5)), LearnedReference(3, 2, 2))
    with pytest.raises(ValueError, match="Context"):
        ragged(rho)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DDEQ(Plain(), Shift(nn.Dropout(0.1)), LearnedReference(3, 2, 2)), "cell: .*'layer' is a Dropout"),
        (lambda: DDEQ(Plain(), Shift(nn.BatchNorm1d(2)), LearnedReference(3, 2, 2)), "cell: .*BatchNorm1d"),
        (lambda: model()(clouds(), n=7), "n: .*5 marks"),
        (lambda: model()(clouds().with_weights(torch.zeros(3, 7))), "rho: .*positive total mass"),
        (lambda: LearnedReference(0, 2, 2), "n: expected a whole number >= 1"),
        (lambda: GaussianReference(2, 0), "mark_dim"),
        (lambda: Dropout(3, 1.0), "p: "),
        (lambda: Classifier(model(), 0), "num_classes: "),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, dropout=0.5)


class DrawsNoise(nn.Module):
    def forward(self, mu, context):
        return mu.with_points(nn.functional.dropout(0.5 * mu.points, 0.5, self.training) + context.unsqueeze(-2))


class DrawsAlways(nn.Module):
    def forward(self, mu, context):
        return mu.with_points(nn.functional.dropout(0.5 * mu.points, 0.5, True) + context.unsqueeze(-2))


class DrawsElsewhere(nn.Module):
    """From a generator that PyTorch does not know."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, mu, context):
        noise = torch.randn(mu.points.shape, generator=self.generator, dtype=mu.dtype)
        return mu.with_points(0.5 * mu.points + noise + context.unsqueeze(-2))


def test_hidden_randomness_is_found():
    with pytest.raises(ValueError, match="MultiheadAttention"):
        DDEQ(Plain(), Attends(), LearnedReference(3, 2, 2))
    ddeq = DDEQ(Plain(), DrawsNoise(), LearnedReference(3, 2, 2))
    with pytest.raises(ValueError, match="random"):
        ddeq(clouds())
    assert ddeq.eval()(clouds()).converged.all()
    for noise in (DrawsAlways(), DrawsElsewhere()):
        ddeq = DDEQ(Plain(), noise, LearnedReference(3, 2, 2))
        for mode in (True, False):
            with pytest.raises(ValueError, match="random"):
                ddeq.train(mode)(clouds())


def test_layers_that_drop_nothing_are_welcome():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Dropout(0.0), nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0)])

    DDEQ(Plain(), Drops(), LearnedReference(3, 2, 2))


def test_a_cell_with_dropout_may_serve_two_models():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, mu, context):
            return self.inner(mu, context)

    ddeq, rho = model(dropout=0.5), clouds()
    other = DDEQ(ddeq.encoder, Wrapped(ddeq.cell), ddeq.reference, stop=STOP)
    gradients = []
    for interlude in (False, True):
        ddeq.zero_grad()
        solution = ddeq(rho, generator=torch.Generator().manual_seed(0))
        if interlude:
            other(rho, generator=torch.Generator().manual_seed(1))
        solution.measure.points[..., 0].sum().backward()
        gradients.append(ddeq.cell.gain.grad.clone())
    assert_close(*gradients, rtol=1e-4)


@pytest.mark.unchecked
def test_dropout_without_masks_is_an_error():
    with pytest.raises(RuntimeError, match="no mask"):
        Dropout(3, 0.5)(torch.zeros(2, 3), None)
    assert Dropout(3, 0.5).eval()(torch.zeros(2, 3), None).shape == (2, 3)
