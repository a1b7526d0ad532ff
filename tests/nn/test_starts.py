"""A trained model from many random starts: where the status says CONVERGED, its predictions agree."""

import pytest
import torch
from torch import nn

from ddeq import fixed_point
from ddeq.data import load_digits
from ddeq.nn import DDEQ, Classifier, ContractiveCell, EquilibriumCell, InducedSetEncoder, LearnedReference
from ddeq.solvers import Stop

STARTS = 20


def two_digits(split):
    data = load_digits(split)
    return data.subset((data.labels < 2).nonzero().squeeze(-1))


@pytest.mark.theorem("T8")
@pytest.mark.parametrize(("cell", "penalty"), [(EquilibriumCell, 1.0), (ContractiveCell, 0.0)])
def test_predictions_of_a_trained_model_do_not_depend_on_the_start(cell, penalty):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    encoder = InducedSetEncoder(2, 16, heads=2, inducing=4)
    model = Classifier(DDEQ(encoder, cell(16, 4, heads=2), LearnedReference(5, 16, 4)), 2)
    optimizer, data = torch.optim.Adam(model.parameters(), 3e-3), two_digits("train")
    losses = []
    for _ in range(100):
        rho, labels = data.batch(torch.randint(len(data), (24,), generator=g))
        loss = nn.functional.cross_entropy(model(rho, generator=g), labels)
        losses.append(loss.item())
        if penalty:
            loss = loss + penalty * model.model.penalty(model.solution, steps=2, target=0.5, generator=g).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # else one step may undo what was learned
        optimizer.step()
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])  # it has learned something

    test = two_digits("test")
    rho, _ = test.batch(range(32))
    ddeq = model.eval().model
    with torch.no_grad():
        solution = ddeq(rho)
        probabilities, converged = [], []
        for _ in range(STARTS):
            start = solution.measure.with_points(3 * torch.randn(solution.measure.points.shape, generator=g))
            again = fixed_point(ddeq.cell, start, *solution.args, in_dims=0, stop=Stop(rtol=1e-5, max_steps=200))
            atoms = torch.cat([again.measure.points, again.measure.marks], -1)
            probabilities.append(model.scores(model.pool(model.features(atoms), again.measure)).softmax(-1))
            converged.append(again.converged)
    p, among = torch.stack(probabilities), torch.stack(converged).unsqueeze(-1)
    spread = torch.where(among, p, -torch.inf).amax(0) - torch.where(among, p, torch.inf).amin(0)
    assert among.float().mean() > 0.9
    assert spread.max().item() < 1e-3, f"largest spread {spread.max().item():.1e} over {STARTS} starts"
    if cell is ContractiveCell:
        assert among.all()
