"""Entropic transport that remembers: flows that start each solve from the last one end where cold ones do."""

import pytest
import torch
from cold import Cold

from ddeq import DiscreteMeasure, flow
from ddeq.flows import AdaptiveEuler, Euler, Heun, NoiseInjection, Trajectory, equilibrium
from ddeq.functionals import MMD, SinkhornDivergence, sinkhorn_solver
from ddeq.iteration import Status, Stop, Unrolled
from ddeq.testing import assert_close

DOUBLE = torch.float64


def cloud(*shape, seed=0):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


TARGET = DiscreteMeasure(cloud(6, seed=1))
START = DiscreteMeasure(cloud(3, 5) * torch.tensor([0.1, 0.5, 2.0], dtype=DOUBLE)[:, None, None] + 1.0)
FUNCTIONALS = {
    "balanced": SinkhornDivergence(TARGET, 0.3),
    "a small blur": SinkhornDivergence(TARGET, 0.01),
    "a target for each": SinkhornDivergence(DiscreteMeasure(cloud(3, 6, seed=1)), 0.3),
    "with a reach": SinkhornDivergence(1.7 * TARGET, 0.3, reach=1.0),
    "sum": 0.5 * SinkhornDivergence(TARGET, 0.3) + MMD(TARGET),
}
named = pytest.mark.parametrize("name", FUNCTIONALS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"stepper": Euler(0.2)}) for name in FUNCTIONALS),
        ("with a reach", {"stepper": Heun(0.2)}),
        ("balanced", {"stepper": AdaptiveEuler()}),
        ("balanced", {"stepper": Euler(0.2), "noise": NoiseInjection(0.1)}),
    ],
    ids=str,
)
def test_flows_are_those_without_a_memory(name, options):
    def end(functional):
        return flow(functional, START, steps=4, generator=torch.Generator().manual_seed(0), **options)

    found, expected = end(FUNCTIONALS[name]), end(Cold(FUNCTIONALS[name]))
    assert_close(found.measure.points, expected.measure.points, rtol=1e-8)
    assert_close(found.energies, expected.energies, rtol=1e-8)


@named
def test_a_saved_flow_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    F = FUNCTIONALS[name]
    whole = flow(F, START, Euler(0.2), steps=4, record=4)
    half = flow(F, START, Euler(0.2), steps=2, record=4)
    half.save(tmp_path / "half.safetensors")
    for start in (half, Trajectory.load(tmp_path / "half.safetensors")):
        assert torch.equal(flow(F, start, Euler(0.2), steps=2, record=4).measure.points, whole.measure.points)


@named
def test_all_derivatives_of_a_prepared_functional_are_the_cold_ones(name):
    """At the measure where it was prepared and at others, in points and masses, to second order."""
    F = FUNCTIONALS[name]
    warm, _ = F.prepare(START, None, 0, None)
    for mu in (START, START.with_points(START.points + 0.05 * cloud(3, 5, seed=7))):
        results = []
        for functional in (F, warm):
            x, w = mu.points.clone().requires_grad_(), mu.weights.clone().requires_grad_()
            m = DiscreteMeasure(x, w)
            first = torch.autograd.grad(functional(m).sum(), (x, w), create_graph=True)
            second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, w))
            results.append((functional(mu), functional.wasserstein_gradient(mu), functional.first_variation(mu), *first, *second))
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, scale=1.0, rtol=1e-7)


def test_samples_that_have_finished_leave_with_their_memory():
    F, stop = FUNCTIONALS["a target for each"], Stop(rtol=0.02, max_steps=200)
    found = flow(F, START, Euler(0.2), stop=stop, record=1000)
    assert len(set(found.steps.tolist())) > 1
    for i in range(3):
        alone = flow(F.rows(torch.tensor([i]), (3,)), START[i : i + 1], Euler(0.2), stop=stop, record=1000)
        assert alone.steps == found.steps[i]
        assert_close(alone.measure.points[0], found.measure.points[i], rtol=1e-9)


def test_derivatives_through_a_flow():
    def slopes(cold):
        start, target = START.points.clone().requires_grad_(), TARGET.points.clone().requires_grad_()
        F = SinkhornDivergence(DiscreteMeasure(target), 0.3)
        end = flow(Cold(F) if cold else F, START.with_points(start), Euler(0.2), steps=3, adjoint=Unrolled()).measure
        return torch.autograd.grad(end.points.square().sum(), (start, target))

    for found, expected in zip(slopes(False), slopes(True), strict=True):
        assert_close(found, expected, rtol=1e-8)


def test_an_equilibrium():
    F, mu, stop = SinkhornDivergence(TARGET, 0.5), DiscreteMeasure(START.points[0]), Stop(rtol=1e-2, max_steps=100)
    found, expected = (equilibrium(G, mu, stop=stop).measure.points for G in (F, Cold(F)))
    assert_close(found, expected, rtol=1e-7)


def test_fewer_steps_of_the_solver(monkeypatch):
    """A flow whose solves start from the last ones takes less than half of the steps of one whose solves are cold."""
    steps = []
    solve = sinkhorn_solver.iterate

    def counting(*args, **options):
        outcome = solve(*args, **options)
        steps.append(int(outcome.steps.max()))
        return outcome

    monkeypatch.setattr(sinkhorn_solver, "iterate", counting)

    def total(functional):
        steps.clear()
        flow(functional, START, Euler(0.05), steps=5)
        return sum(steps)

    F = SinkhornDivergence(TARGET, 0.1)
    assert total(F) < 0.5 * total(Cold(F))


@pytest.mark.filterwarnings("ignore::ddeq.iteration.InnerProblemWarning")
def test_a_solve_that_failed_is_told_for_as_long_as_its_solution_is_used():
    """The transport of the target to itself is solved once, here not to the end; the others end in one step."""
    target = DiscreteMeasure(torch.tensor([[0.0], [0.05], [0.1]], dtype=torch.float64))
    mu = DiscreteMeasure(torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True))
    F, memory = SinkhornDivergence(target, 0.05, stop=Stop(rtol=1e-12, max_steps=1)), None
    for step in range(3):
        prepared, memory = F.prepare(mu.detach(), memory, step, None)
        assert F.status.item() == Status.MAX_STEPS
        for measure in (mu.detach(), mu):  # without derivatives and with them
            prepared.wasserstein_gradient(measure)
            assert prepared.status.item() == Status.MAX_STEPS
