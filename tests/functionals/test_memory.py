"""Inner problems that remember: `Functional.prepare`, its memory in flows, files and batches."""

import pytest
import torch
from cold import Cold
from safetensors.torch import load_file
from torch import nn

from ddeq import DiscreteMeasure, Functional, flow
from ddeq.flows import (
    LBFGS,
    AdaptiveEuler,
    Euler,
    FisherRao,
    Heun,
    Langevin,
    Nesterov,
    NoiseInjection,
    Proximal,
    Stein,
    Trajectory,
    equilibrium,
)
from ddeq.functionals import KALE, MMD, Cached, DrMMD, PotentialEnergy, SinkhornDivergence
from ddeq.functionals.gram import Gram
from ddeq.iteration import Stop, Unrolled
from ddeq.kernels import Gaussian, Laplace
from ddeq.reductions import block_size, integrate
from ddeq.testing import assert_close, check_functional, check_memory

DOUBLE = torch.float64


def cloud(*shape, seed=0):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


TARGET = DiscreteMeasure(cloud(6, seed=1))
TARGETS = DiscreteMeasure(cloud(3, 6, seed=1))
START = DiscreteMeasure(cloud(3, 5) * torch.tensor([0.1, 0.5, 2.0], dtype=DOUBLE)[:, None, None] + 1.0)


class Robust(Functional):
    """Least integral of a smoothed distance from a point, which is found by iteration: the one of the guide."""

    tolerance = 1e-9
    removable = True

    def forward(self, mu):
        return integrate(self._distance(mu, self._centre(mu, self.memory)), mu)

    def prepare(self, mu, memory, step, generator):
        centre = self._centre(mu, memory)
        return self.with_memory(centre), centre

    def _distance(self, mu, centre):
        return (1.0 + (mu.points - centre.unsqueeze(-2)).square().sum(-1)).sqrt()

    @torch.no_grad()
    def _centre(self, mu, start):
        centre = mu.mean() if start is None else start
        for _ in range(500):
            pull = (mu.weights / self._distance(mu, centre)).unsqueeze(-1)
            before, centre = centre, (pull * mu.points).sum(-2) / pull.sum(-2)
            if (centre - before).abs().max() <= 1e-13 * (1.0 + centre.abs().max()):
                break
        return centre


class Counting(Robust):
    """Says when it was prepared."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare(self, mu, memory, step, generator):
        assert not torch.is_grad_enabled() or not mu.points.requires_grad
        self.calls.append((step, memory is None, generator is None))
        return super().prepare(mu, memory, step, generator)


class Drawing(Functional):
    """Projections on directions that are drawn anew in every step."""

    draws = True

    def forward(self, mu):
        direction = torch.ones(2, dtype=mu.dtype) if self.memory is None else self.memory[0, 0]
        return integrate((mu.points @ direction).square(), mu)

    def prepare(self, mu, memory, step, generator):
        direction = torch.randn(2, generator=generator, dtype=mu.dtype)
        drawn = direction.expand(*mu.batch_shape, 1, 2).clone()
        return self.with_memory(drawn), drawn


def divergences():
    torch.manual_seed(0)
    number = torch.tensor([0.3, 0.5, 1.0], dtype=DOUBLE)
    return {
        "kale": KALE(TARGET, Gaussian(1.0), 0.1),
        "drmmd": DrMMD(TARGET, Gaussian(1.0), 0.1),
        "kale, a target for each": KALE(TARGETS, Gaussian(1.0), 0.1),
        "drmmd, a target for each": DrMMD(TARGETS, Gaussian(1.0), 0.1),
        "kale, numbers for each": KALE(TARGET, Gaussian(number), number),
        "drmmd, numbers for each": DrMMD(TARGET, Gaussian(number), number),
        "drmmd, a kernel with a kink": DrMMD(TARGETS, Laplace(1.0), 0.1),
        "drmmd, bandwidths for each": DrMMD(TARGET, Gaussian(number), 0.1),
        "kale, learned": KALE(TARGET, Gaussian(nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))), nn.Parameter(number[0])),
        "drmmd, learned": DrMMD(TARGET, Gaussian(nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))), nn.Parameter(number[0])),
        "kale, higher dimension": KALE(
            DiscreteMeasure(torch.cat([cloud(3, 6, seed=1), cloud(3, 6, seed=2)], -1)), Gaussian(1.0), 0.1
        ),
        "sum": 0.5 * KALE(TARGET, Gaussian(1.0), 0.1) + DrMMD(TARGET, Gaussian(2.0), 0.1) + MMD(TARGET),
        "sinkhorn": SinkhornDivergence(TARGET, 0.5),
        "sinkhorn, a target for each": SinkhornDivergence(TARGETS, 0.5),
        "sinkhorn with a reach": SinkhornDivergence(1.7 * TARGET, 0.5, reach=1.0),
        "one's own": Robust(),
    }


def test_results_of_the_catalogue_do_not_depend_on_what_is_remembered(functional):
    if functional.remembers:
        check_memory(functional)


@pytest.mark.parametrize("name", divergences())
def test_results_do_not_depend_on_what_is_remembered(name):
    F = divergences()[name]
    dim = 4 if "dimension" in name else 2
    mu = DiscreteMeasure(torch.randn(3, 5, dim, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))
    check_memory(F, [mu, mu.pad_atoms(2)], units=1e5)


def test_single_precision():
    check_memory(KALE(TARGET.to(torch.float32), Gaussian(1.0), 0.5))


def test_the_check_of_functionals_finds_what_is_wrong_with_a_memory():
    class Stale(Robust):
        def _centre(self, mu, start):
            return super()._centre(mu, None) if start is None else start

    class Shared(Robust):
        def prepare(self, mu, memory, step, generator):
            return self, torch.zeros(7)

    class Growing(Robust):
        def prepare(self, mu, memory, step, generator):
            return self, ((), memory) if memory is None else (memory,)

    class InPlace(Robust):
        def prepare(self, mu, memory, step, generator):
            centre = self._centre(mu, None)
            return self, centre if memory is None else memory.add_(1.0)

    class Recorded(Robust):
        def prepare(self, mu, memory, step, generator):
            return self, torch.zeros(mu.batch_shape, requires_grad=True)

    check_functional(Robust())
    wrong = {Stale: "is not that without", Shared: "batch shape", Growing: "structure", InPlace: "in place", Recorded: "detach"}
    for kind, message in wrong.items():
        with pytest.raises(AssertionError, match=message):
            check_functional(kind())


@pytest.mark.parametrize(
    "options",
    [
        {"stepper": Euler(0.1)},
        {"stepper": Heun(0.1), "geometry": Stein()},
        {"stepper": Nesterov(0.1)},
        {"stepper": AdaptiveEuler()},
        {"stepper": LBFGS()},
        {"stepper": Proximal(0.2)},
        {"stepper": Euler(0.1), "reaction": FisherRao(1.0)},
        {"stepper": Euler(0.1), "noise": NoiseInjection(0.1)},
        {"stepper": Euler(0.1), "noise": Langevin(0.1)},
    ],
    ids=lambda options: ", ".join(type(part).__name__ for part in options.values()),
)
@pytest.mark.parametrize("name", ["kale", "drmmd, a target for each", "one's own"])
def test_flows_are_those_without_a_memory(name, options):
    F = divergences()[name]

    def end(functional):
        return flow(functional, START, steps=5, generator=torch.Generator().manual_seed(0), **options)

    found, expected = end(F), end(Cold(F))
    assert_close(found.measure.points, expected.measure.points, rtol=1e-7)
    assert_close(found.energies, expected.energies, rtol=1e-7)


def test_it_is_prepared_once_per_step_and_never_where_nothing_is_remembered(monkeypatch):
    F = Counting()
    flow(F + MMD(TARGET), START, Heun(0.1), steps=3)
    assert F.calls == [(0, True, True), (1, False, True), (2, False, True), (3, False, True)]
    F.calls.clear()
    flow(2.0 * F, START, AdaptiveEuler(), steps=2, noise=None)
    assert [step for step, *_ in F.calls] == [0, 1, 2]
    F.calls.clear()
    assert equilibrium(F, DiscreteMeasure(START.points[0]), stop=Stop(rtol=1e-2, max_steps=50)).converged
    assert [step for step, *_ in F.calls] == list(range(len(F.calls)))

    def prepare(*args):
        raise AssertionError("a functional without a memory was prepared")

    monkeypatch.setattr(Functional, "prepare", prepare)
    flow(MMD(TARGET) + PotentialEnergy(lambda x: x.square().sum(-1)), START, steps=2)


@pytest.mark.parametrize("name", ["kale", "drmmd", "sum", "one's own"])
def test_kill_and_resume_gives_the_same_path(name, tmp_path):
    F = divergences()[name]
    whole = flow(F, START, Euler(0.1), steps=6, record=6)
    flow(F, START, Euler(0.1), steps=4, record=6).save(tmp_path / "half.safetensors")
    rest = flow(F, Trajectory.load(tmp_path / "half.safetensors"), Euler(0.1), steps=2, record=6)
    again = flow(F, flow(F, START, Euler(0.1), steps=4, record=6), Euler(0.1), steps=2, record=6)
    assert torch.equal(rest.measure.points, whole.measure.points)
    assert torch.equal(again.measure.points, whole.measure.points)


def test_what_can_be_computed_again_is_not_saved(tmp_path):
    flow(divergences()["drmmd, a target for each"], START, steps=2).save(tmp_path / "a")
    saved = {name: t for name, t in load_file(tmp_path / "a").items() if name.startswith("of_functional.")}
    assert {tuple(t.shape) for t in saved.values()} == {(3, TARGET.n)}


def test_another_functional_goes_on_without_the_memory():
    first = flow(divergences()["kale"], START, steps=2, record=2)
    found = flow(divergences()["sum"], first, steps=2, record=2).measure.points
    expected = flow(divergences()["sum"], first.measure, steps=2, record=2).measure.points
    assert_close(found, expected)

    class Number(Robust):
        def prepare(self, mu, memory, step, generator):
            return self, mu.mass()

    one = flow(Number(), START[0], steps=1)  # whose memory is a single number
    assert_close(flow(MMD(TARGET), one, steps=1).measure.points, flow(MMD(TARGET), one.measure, steps=1).measure.points)
    assert flow(Robust(), one, steps=1).remains.of_functional[0].shape == (2,)


@pytest.mark.parametrize("name", ["kale", "drmmd, a target for each", "kale, numbers for each", "sum", "one's own"])
def test_samples_that_have_finished_leave_with_their_memory(name):
    F, stop = divergences()[name], Stop(rtol=0.3, max_steps=200)
    found = flow(F, START, Euler(0.1), stop=stop, record=1000)
    assert len(set(found.steps.tolist())) > 1
    for i in range(3):
        alone = flow(F.rows(torch.tensor([i]), (3,)), START[i : i + 1], Euler(0.1), stop=stop, record=1000)
        assert alone.steps == found.steps[i]
        assert_close(alone.measure.points[0], found.measure.points[i])
    # A flow that goes on finds the memories of the samples that had been removed.
    further = flow(F, found, Euler(0.1), steps=3, record=1000).measure
    assert_close(further.points, flow(Cold(F), found.measure, Euler(0.1), steps=3, record=1000).measure.points, rtol=1e-8)


@pytest.mark.parametrize("name", ["kale", "drmmd, a target for each"])
def test_samples_leave_where_kernel_matrices_are_not_stored(name):
    F, stop = divergences()[name], Stop(rtol=0.3, max_steps=50)
    with block_size(30):
        found = flow(F, START, Euler(0.1), stop=stop, record=1000)
    assert len(set(found.steps.tolist())) > 1
    assert_close(found.measure.points, flow(F, START, Euler(0.1), stop=stop, record=1000).measure.points, rtol=1e-7)


def test_directions_drawn_anew_come_from_the_generator_of_the_flow(tmp_path):
    def run(steps, start=START, generator=None):
        return flow(Drawing(), start, Euler(0.1), steps=steps, record=100, generator=generator)

    whole = run(6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(run(6, generator=torch.Generator().manual_seed(3)).measure.points, whole.measure.points)
    assert not torch.equal(run(6, generator=torch.Generator().manual_seed(4)).measure.points, whole.measure.points)
    run(4, generator=torch.Generator().manual_seed(3)).save(tmp_path / "half")
    rest = run(2, Trajectory.load(tmp_path / "half"))
    assert torch.equal(rest.measure.points, whole.measure.points)
    check_memory(Drawing())


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", ["kale", "drmmd", "kale, learned", "drmmd, learned", "one's own"])
def test_derivatives_through_flows_are_those_without_a_memory(name, checkpoint):
    def slopes(cold):
        F, points = divergences()[name], START.points.clone().requires_grad_()
        held = list(F.parameters())
        end = flow(
            Cold(F) if cold else F, START.with_points(points), Euler(0.1), steps=3, adjoint=Unrolled(checkpoint=checkpoint)
        ).measure
        return torch.autograd.grad(end.points.square().sum(), [points, *held])

    for found, expected in zip(slopes(False), slopes(True), strict=True):
        assert_close(found, expected, rtol=1e-8)


def test_targets_get_their_derivatives():
    def slope(cold):
        points = TARGET.points.clone().requires_grad_()
        F = KALE(DiscreteMeasure(points), Gaussian(1.0), 0.1)
        end = flow(Cold(F) if cold else F, START, Euler(0.1), steps=3).measure
        return torch.autograd.grad(end.points.square().sum(), points)[0]

    assert_close(slope(False), slope(True), rtol=1e-8)


def test_derivatives_of_equilibria_are_those_without_a_memory():
    def slope(cold):
        points = TARGET.points.clone().requires_grad_()
        F = KALE(DiscreteMeasure(points), Gaussian(1.5), 1.0) + PotentialEnergy(lambda x: 0.1 * x.square().sum(-1))
        end = equilibrium(Cold(F) if cold else F, DiscreteMeasure(cloud(2, 3, seed=4)), stop=Stop(rtol=1e-9)).measure
        return torch.autograd.grad(end.points.square().sum(), points)[0]

    assert_close(slope(False), slope(True), rtol=1e-6)


@pytest.mark.parametrize("divergence", [KALE, DrMMD])
def test_what_belongs_to_the_target_is_computed_once_per_flow(divergence, monkeypatch):
    count = []
    of = Gram.of

    def counting(*args):
        count.append(1)
        return of(*args)

    monkeypatch.setattr(Gram, "of", counting)
    flow(divergence(TARGET, Gaussian(1.0), 0.1), START, AdaptiveEuler(), steps=5)
    assert len(count) == 1
    count.clear()
    flow(divergence(TARGET, Gaussian(nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))), 0.1), START, Euler(0.1), steps=5)
    assert len(count) > 5


def test_a_prepare_that_gives_something_else_is_an_error():
    class Forgetful(Robust):
        def prepare(self, mu, memory, step, generator):
            return self

    class Mixed(Robust):
        def prepare(self, mu, memory, step, generator):
            return self, torch.zeros(7)

    with pytest.raises(ValueError, match=r"Forgetful\.prepare: expected a Functional and a memory"):
        flow(Forgetful(), START, steps=1)
    with pytest.raises(ValueError, match=r"Mixed\.prepare: .*batch shape \(3,\).*Cached"):
        flow(Mixed(), START, steps=1)


def test_values_that_are_kept_but_not_saved_are_of_ones_own_kind_too(tmp_path):
    class Table(Cached):
        def __init__(self, values):
            self.values = values

        def rows(self, keep):
            return Table(self.values[keep])

    class WithTable(Robust):
        made = 0

        def prepare(self, mu, memory, step, generator):
            if memory is None:
                WithTable.made += 1
                memory = {"table": Table(mu.points.clone()), "count": 0, "share": 0.5, "centre": mu.mean()}
            assert memory["table"].values.shape == mu.points.shape
            centre = self._centre(mu, memory["centre"])
            return self.with_memory(centre), {**memory, "count": memory["count"] + 1, "centre": centre}

    F = WithTable()
    check_memory(F)
    WithTable.made = 0
    flow(F, START, Euler(0.1), stop=Stop(rtol=0.3, max_steps=100)).save(tmp_path / "a")
    assert WithTable.made == 1
    saved = Trajectory.load(tmp_path / "a").remains.of_functional
    assert sorted(t.shape for t in saved if t is not None) == [(), (), (3, 2)]
    assert flow(F, Trajectory.load(tmp_path / "a"), Euler(0.1), steps=1).remains.of_functional[1] > 1
