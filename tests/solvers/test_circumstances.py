"""Fixed points where users put them: pytrees, several forwards, copies, processes, checkpoints, low precision, compilers."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import warnings
import weakref
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from maps import TIGHT, affine, mean_field, point
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddeq import DiscreteMeasure, fixed_point
from ddeq.functionals import MMD
from ddeq.iteration import AdjointWarning, DivergedWarning, Status, UnconvergedWarning
from ddeq.nn import DDEQ, Classifier, ContractiveCell, Dropout, EquilibriumCell, InducedSetEncoder, LearnedReference
from ddeq.solvers import (
    Anderson,
    Auto,
    Broyden,
    Implicit,
    NewtonKrylov,
    OneStep,
    ParticleFlow,
    Phantom,
    Picard,
    Stop,
    Unrolled,
    jacobian_penalty,
    spectral_radius,
)
from ddeq.testing import assert_close

ADJOINTS = [Implicit(), OneStep(), Phantom(3), Unrolled(), Unrolled(checkpoint=True)]
STOP = Stop(rtol=1e-6, max_steps=100)


def model(cell=EquilibriumCell, dropout=0.0, **options):
    torch.manual_seed(0)
    encoder = InducedSetEncoder(2, 8, heads=2, inducing=3)
    return DDEQ(encoder, cell(8, 3, heads=2, dropout=dropout), LearnedReference(5, 8, 3), **({"stop": STOP} | options))


def clouds(batch=3):
    g = torch.Generator().manual_seed(5)
    return DiscreteMeasure.from_clouds([torch.randn(4 + i, 2, generator=g) for i in range(batch)])


class Cell(nn.Module):
    def __init__(self, dim=2):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(dim, 8), nn.Linear(8, dim)

    def forward(self, mu, shift):
        return mu.with_points(0.4 * self.outer(torch.tanh(self.inner(mu.points))) + shift)


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters()]


# --- arguments, and what holds them ---

Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_arguments_in_any_tree(adjoint):
    tensors = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.2, 0.1, 0.4)]

    def map(mu, tree, name, numbers):
        (a, b), rest = tree["pair"], tree["rest"]
        assert (name, numbers) == ("name", (1, None))
        return mu.push_forward(lambda z: a * z.sin() + b + rest[0] * rest[1][0])

    a, b, c, d = tensors
    tree = {"pair": Pair(a, b), "rest": [c, (d, "more")]}
    z = fixed_point(map, point(0.0), tree, "name", (1, None), stop=TIGHT, adjoint=adjoint).measure.points
    grads = torch.autograd.grad(z.sum(), tensors)
    assert all(g != 0 for g in grads)
    assert grads[2].item() == pytest.approx((grads[1] * 0.4).item())


def test_parameters_given_from_outside():
    """``functional_call`` on a model: gradients reach the tensors that stand in for its parameters."""
    ddeq, rho = model(), clouds()
    expected = gradients(ddeq, ddeq(rho).measure.points[..., 0].sum())
    others = {k: p.detach().clone().requires_grad_() for k, p in ddeq.named_parameters()}
    z = torch.func.functional_call(ddeq, others, (rho,)).measure.points
    for actual, wanted in zip(torch.autograd.grad(z[..., 0].sum(), list(others.values())), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-4)


@pytest.mark.parametrize("shared", ["module", "parameter"])
def test_shared_parameters_count_twice_and_stay_where_they_are(shared):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(1, 1, bias=False).double()
            self.b = self.a if shared == "module" else nn.Linear(1, 1, bias=False).double()
            self.b.weight = self.a.weight

        def forward(self, mu):
            return mu.with_points(0.25 * (self.a(mu.points) + self.b(mu.points)) + 1)

    tied = Tied()
    weight = tied.a.weight
    with torch.no_grad():
        weight.fill_(1.0)
    z = fixed_point(tied, point(0.0), stop=TIGHT).measure.points
    assert torch.autograd.grad(z.sum(), weight)[0].item() == pytest.approx(2.0)  # z = 1 / (1 - w / 2)
    assert tied.a.weight is weight is tied.b.weight


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_several_forwards_before_one_backward(adjoint):
    ddeq, (first, second) = model(adjoint=adjoint), (clouds(), clouds(2))
    together = gradients(ddeq, sum(ddeq(rho).measure.points[..., 0].sum() for rho in (first, second)))
    apart = [gradients(ddeq, ddeq(rho).measure.points[..., 0].sum()) for rho in (first, second)]
    for t, a, b in zip(together, *apart, strict=True):
        assert_close(t, a + b, rtol=1e-4, scale=1e-2)


def test_parameters_that_changed_before_backward_are_an_error_not_a_wrong_gradient():
    ddeq = model()
    z = ddeq(clouds()).measure.points
    with torch.no_grad():
        ddeq.cell.gain.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("cell", [EquilibriumCell, ContractiveCell])
def test_the_mode_at_backward_does_not_matter(cell):
    """Masks belong to the forward pass: a validation between forward and backward changes nothing."""
    ddeq, rho = model(cell, dropout=0.5), clouds()
    results = []
    for interlude in (False, True):
        ddeq.train()
        loss = ddeq(rho, generator=torch.Generator().manual_seed(0)).measure.points[..., 0].sum()
        if interlude:
            ddeq.eval()
            ddeq(rho)
        results.append(gradients(ddeq, loss))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_randomness_is_drawn_once_and_shared_by_all_evaluations(adjoint):
    """Also by those of the backward pass: the derivative is that of the map with this mask."""
    ddeq, rho = model(dropout=0.5, adjoint=adjoint).double(), clouds().to(torch.float64)
    stop = Stop(rtol=1e-11, atol=1e-13, max_steps=200)
    ddeq.stop = stop

    def value():
        return ddeq(rho, generator=torch.Generator().manual_seed(0)).measure.points[..., 0].sum()

    drawn = torch.get_rng_state()
    (slope,) = torch.autograd.grad(value(), ddeq.cell.layers[0].mlp[0].bias)
    assert torch.equal(torch.get_rng_state(), drawn)
    if isinstance(adjoint, (Implicit, Unrolled)):
        bias, values = ddeq.cell.layers[0].mlp[0].bias, []
        for h in (1e-6, -2e-6):
            with torch.no_grad():
                bias[0] += h
                values.append(value())
        assert slope[0].item() == pytest.approx(((values[0] - values[1]) / 2e-6).item(), rel=1e-4)


# --- copies, files, leaks ---


OPTIONS = [
    *ADJOINTS,
    Picard(0.3),
    Anderson(3, ridge=1e-8),
    ParticleFlow(MMD, target="frozen"),
    ParticleFlow(mark_bandwidth=0.5),
    Stop(rtol=1e-3, metric=MMD),
    Implicit(Picard(), "raise", stop=Stop(rtol=1e-9)),
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_options_can_be_copied_stored_and_compared(options):
    assert copy.deepcopy(options) == options == pickle.loads(pickle.dumps(options))
    with pytest.raises((AttributeError, TypeError)):
        options.steps = 3


@pytest.mark.parametrize("cell", [EquilibriumCell, ContractiveCell])
def test_models_after_a_backward_pass_can_be_copied_and_stored(cell):
    classifier = Classifier(model(cell), 4)
    classifier(clouds()).sum().backward()
    for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        loss = other(clouds()).sum()
        assert torch.equal(loss, classifier(clouds()).sum())
        loss.backward()


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("backward", [False, True])
def test_nothing_is_left_behind(adjoint, backward):
    """What a solve holds is freed with its solution, by counting references alone."""
    cell = Cell()
    freed = []

    def run():
        mu = DiscreteMeasure(torch.zeros(4, 2))
        shift = torch.randn(4, 2).requires_grad_()
        watched = shift * 1.0
        solution = fixed_point(cell, mu, watched, adjoint=adjoint)
        freed.extend(weakref.ref(t) for t in (watched, mu.points, solution.measure.points))
        if backward:
            (g,) = torch.autograd.grad(solution.measure.points.square().sum(), shift, create_graph=True)
            g.sum().backward()

    gc.collect()
    gc.disable()
    try:
        run()
        assert [ref() for ref in freed] == [None, None, None]
    finally:
        gc.enable()


def test_memory_does_not_grow_with_the_number_of_steps():
    """Bytes of all tensors alive during the forward solve and during the solve of the adjoint equation."""
    cell = Cell().double()
    mu, shift = DiscreteMeasure(torch.zeros(64, 2, dtype=torch.float64)), torch.randn(64, 2, dtype=torch.float64)

    class Watching(Picard):
        peak = count = 0

        def step(self, equation, at, state):
            Watching.count += 1
            if Watching.count % 20 == 0:
                alive = {}
                for t in gc.get_objects():
                    if type(t) in (torch.Tensor, nn.Parameter):  # a compiler's stand-ins have no storage
                        alive[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                Watching.peak = max(Watching.peak, sum(alive.values()))
            return super().step(equation, at, state)

    def peaks(steps):
        stop, found = Stop(rtol=1e-300, atol=0.0, max_steps=steps), []
        Watching.peak = Watching.count = 0
        solution = fixed_point(cell, mu, shift, solver=Watching(), stop=stop, adjoint=Implicit(Watching(), stop=stop))
        found.append(Watching.peak)
        Watching.peak = Watching.count = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution.measure.points.sum().backward()
        assert Watching.count >= steps
        return [*found, Watching.peak]

    peaks(40)
    assert peaks(40) == peaks(100)


# --- checkpoints ---


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("adjoint", [Implicit(), Phantom(3)], ids=repr)
def test_checkpoints_around_a_model(use_reentrant, adjoint):
    ddeq, rho = model(dropout=0.3, adjoint=adjoint), clouds()

    def run(points):
        inputs = DiscreteMeasure(points, rho.weights)
        return ddeq(inputs, generator=torch.Generator().manual_seed(1)).measure.points

    points = rho.points.clone().requires_grad_()
    expected = gradients(ddeq, run(points)[..., 0].sum()), points.grad.clone()
    points.grad = None
    actual = gradients(ddeq, checkpoint(run, points, use_reentrant=use_reentrant)[..., 0].sum()), points.grad
    assert_close(actual[1], expected[1], rtol=1e-5)
    for a, e in zip(actual[0], expected[0], strict=True):
        assert_close(a, e, rtol=1e-5, scale=1e-3)


# --- lower precision ---


@pytest.mark.parametrize("cell", [EquilibriumCell, ContractiveCell])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_autocast(cell, adjoint):
    """The map runs in the lower precision, in backward too; iterates, residuals and gradients are in the higher one."""
    ddeq, rho = model(cell, adjoint=adjoint, stop=Stop(rtol=3e-2)), clouds()

    def solve():  # by itself: a DDEQ solves outside of autocast
        start, options = ddeq.reference(rho.batch_shape, rho.points), {"stop": ddeq.stop, "adjoint": adjoint}
        return fixed_point(ddeq.cell, start, ddeq.encoder(rho), in_dims=0, solver=ddeq.solver, **options)

    exact = gradients(ddeq, solve().measure.points[..., 0].sum())
    seen = set()
    linear = next(m for m in ddeq.cell.modules() if isinstance(m, nn.Linear))
    handle = linear.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        solution = solve()
        loss = solution.measure.points[..., 0].sum()
    forward, seen = seen.copy(), seen
    assert forward == {torch.bfloat16}
    assert solution.converged.all()
    for t in (solution.measure.points, solution.residual, solution.error_bound):
        assert t.dtype == torch.float32
    actual = gradients(ddeq, loss)
    assert seen == {torch.bfloat16}
    handle.remove()
    size = torch.cat([e.flatten() for e in exact]).norm()
    error = torch.cat([(a - e).flatten() for a, e in zip(actual, exact, strict=True)]).norm()
    assert error < 0.1 * size


def test_under_autocast_residuals_have_the_digits_of_the_state():
    """A map whose images are exact in the lower precision is solved to the rounding of the higher one."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.5 * torch.eye(2))

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, mu, shift):
            rounded = mu.points - mu.points.to(torch.bfloat16).float()  # what the product in lower precision drops
            return mu.with_points(self.layer(mu.points).float() + 0.5 * rounded + shift)

    mu, shift = DiscreteMeasure(torch.randn(3, 2)), torch.randn(3, 2, requires_grad=True)
    for solver in (Picard(), Anderson()):
        with torch.autocast("cpu", torch.bfloat16):
            solution = fixed_point(Half(), mu, shift, solver=solver, stop=Stop(rtol=1e-6))
        assert solution.converged
        assert_close(solution.measure.points, 2 * shift.detach(), rtol=1e-5)


def test_autocast_leaves_no_casts_without_gradients_behind():
    """Casts of parameters are cached: one that was made in the solve must not be found by who needs its gradient."""
    ddeq, rho = model(stop=Stop(rtol=3e-2)), clouds()
    with torch.autocast("cpu", torch.bfloat16):
        solution = ddeq(rho)
        image = ddeq.cell(solution.measure.detach(), *solution.args).points
        penalty = ddeq.penalty(solution).sum()
    for value in (image.sum(), penalty):
        ddeq.zero_grad()
        value.backward(retain_graph=True)
        assert ddeq.cell.layers[0].cross.query.weight.grad.abs().sum() > 0


def test_diagnostics_under_autocast():
    ddeq, rho = model(stop=Stop(rtol=3e-2)), clouds()
    solution = ddeq(rho)
    g = lambda: torch.Generator().manual_seed(0)
    exact = spectral_radius(ddeq.cell, solution.measure, *solution.args, generator=g())
    with torch.autocast("cpu", torch.bfloat16):
        low = spectral_radius(ddeq.cell, solution.measure, *solution.args, generator=g())
        assert jacobian_penalty(ddeq.cell, solution.measure, *solution.args).dtype == torch.float32
    assert_close(low, exact, rtol=5e-2)


def test_single_precision_maps_of_double_states_are_refused_without_autocast():
    mu = DiscreteMeasure(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="float"):
        fixed_point(lambda mu: mu.with_points(mu.points.to(torch.bfloat16)), mu)


# --- compilers ---


tracing = pytest.mark.filterwarnings("ignore:The .grad attribute")  # the tracer itself asks for it


@tracing
@pytest.mark.unchecked
@pytest.mark.parametrize("adjoint", [Implicit(), OneStep(), Unrolled()], ids=repr)
def test_maps_may_be_traced(adjoint):
    """By the tracer alone, without code generation: one graph, made once for all evaluations of a kind."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    cell, mu = Cell(), DiscreteMeasure(torch.zeros(4, 2))
    shift = torch.randn(4, 2, requires_grad=True)
    expected = fixed_point(cell, mu, shift, stop=STOP, adjoint=adjoint)
    wanted = gradients(cell, expected.measure.points.square().sum())
    traced = torch.compile(cell, fullgraph=True, backend=counter)
    solution = fixed_point(traced, mu, shift, stop=STOP, adjoint=adjoint)
    assert_close(solution.measure.points, expected.measure.points, rtol=1e-5)
    for a, e in zip(gradients(cell, solution.measure.points.square().sum()), wanted, strict=True):
        assert_close(a, e, rtol=1e-4)
    frames = counter.frame_count
    assert frames <= 4
    fixed_point(traced, mu, shift, stop=STOP, adjoint=adjoint).measure.points.sum().backward()
    assert counter.frame_count == frames


@tracing
@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.parametrize("cell", [EquilibriumCell, ContractiveCell])
def test_cells_may_be_compiled(cell):
    torch._dynamo.reset()
    ddeq, rho = model(cell), clouds()
    expected = ddeq(rho)
    wanted = gradients(ddeq, expected.measure.points[..., 0].sum())
    fast = copy.copy(ddeq)
    fast._modules = ddeq._modules | {"cell": torch.compile(ddeq.cell, fullgraph=True)}
    solution = fast(rho)
    assert_close(solution.measure.points, expected.measure.points, rtol=1e-4)
    assert solution.error_bound.shape == (3,)
    for a, e in zip(gradients(ddeq, solution.measure.points[..., 0].sum()), wanted, strict=True):
        assert_close(a, e, rtol=1e-3, scale=1e-2)
    larger = clouds(32)  # now sizes become symbols, and buffers would be given away
    wanted = gradients(ddeq, ddeq(larger).measure.points[..., 0].sum())
    for a, e in zip(gradients(ddeq, fast(larger).measure.points[..., 0].sum()), wanted, strict=True):
        assert_close(a, e, rtol=1e-3, scale=1e-1)


# --- several processes ---


WORKER = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, "tests/solvers"); sys.path.insert(0, "tests/support")
from test_circumstances import clouds, gradients, model
from ddeq.nn import ContractiveCell, EquilibriumCell
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for cell in (EquilibriumCell, ContractiveCell):
    alone = model(cell)
    rho = clouds(4)
    loss = lambda net, part: net(part).measure.points[..., 0].mean()
    wanted = gradients(alone, loss(alone, rho))
    shared = DistributedDataParallel(model(cell))
    mine = slice(2 * rank, 2 * rank + 2)
    for _ in range(2):  # the second pass meets the buckets that the first one made
        actual = gradients(shared, loss(shared, rho[mine]))
    for a, w in zip(actual, wanted, strict=True):
        assert torch.allclose(a, w, rtol=1e-3, atol=1e-5), (a, w)
dist.destroy_process_group()
print("agreed")
"""


def test_training_in_two_processes(tmp_path):
    """Gradients of a model under DistributedDataParallel are those of the whole batch."""
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], cwd=root, env=env, stdout=-1, stderr=-1, text=True)
        for rank in (0, 1)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert out.split()[-1:] == ["agreed"], err[-2000:]


def test_a_batch_in_which_all_ends_happen():
    """Converged, slow and diverged samples together, differentiated twice."""
    a = torch.tensor([0.5, 0.999, 3.0], dtype=torch.float64, requires_grad=True)
    mu = DiscreteMeasure(torch.ones(3, 1, 1, dtype=torch.float64))
    adjoint = Implicit(Picard(), stop=Stop(rtol=1e-10, max_steps=30))
    solution = fixed_point(affine, mu, a, 1.0, in_dims=0, solver=Picard(), stop=Stop(rtol=1e-10, max_steps=40), adjoint=adjoint)
    assert solution.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED]

    def derivatives():
        (first,) = torch.autograd.grad(solution.measure.points.sum(), a, create_graph=True)
        return first, torch.autograd.grad(first.sum(), a)[0]

    with pytest.warns() as caught:
        first, second = derivatives()
    kinds = {type(w.message): w.message for w in caught}
    assert {UnconvergedWarning, DivergedWarning} < kinds.keys()
    assert any(issubclass(kind, AdjointWarning) for kind in kinds)
    assert all(kinds[kind].details().startswith("1 of 3 samples") for kind in (UnconvergedWarning, DivergedWarning))
    assert first[0].item() == pytest.approx(4.0)
    assert second[0].item() == pytest.approx(16.0)
    assert first[2] == second[2] == 0.0


def test_gradients_without_a_batch_dimension_and_with_two():
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    points, marks = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64)[..., :2]
    mu = DiscreteMeasure(points, marks=marks)
    results = []
    for part in (mu, mu[0, 1]):
        z = fixed_point(mean_field, part, 0.4, shift, stop=TIGHT).measure.points
        z = z[0, 1] if z.ndim == 4 else z
        results.append(torch.autograd.grad(z.square().sum(), shift)[0])
    assert_close(*results, rtol=1e-9)


@pytest.mark.unchecked
def test_stochastic_layers_in_cells_are_refused():
    assert isinstance(model(dropout=0.1).cell.layers[0].dropout, Dropout)
    with pytest.raises(ValueError, match="Dropout"):
        DDEQ(InducedSetEncoder(2, 8), nn.Sequential(nn.Dropout(0.1)), LearnedReference(3, 8, 2))


SOLVERS = [Picard(), Anderson(), Broyden(), Auto(), NewtonKrylov(), ParticleFlow(), ParticleFlow(target="frozen")]


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [10.0, 1e30])
def test_an_atom_of_mass_zero_that_runs_away_ends_no_solve(solver, dtype, far):
    rate = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    live = DiscreteMeasure(torch.tensor([[0.5], [-0.3]], dtype=dtype), torch.tensor([0.5, 0.5], dtype=dtype))
    both = live.pad_atoms(1)
    both = both.with_points(torch.cat([live.points, torch.full((1, 1), far, dtype=dtype)]))

    def cubic(mu, rate):
        return mu.push_forward(lambda x: rate * x - 0.1 * x**3 + 0.1)

    alone, beside = (fixed_point(cubic, mu, rate, solver=solver) for mu in (live, both))
    assert alone.status.item() == beside.status.item() != Status.DIVERGED
    assert_close(beside.measure.points[:2], alone.measure.points, units=1e3)
    slopes = [torch.autograd.grad(s.measure.points[0, 0], rate)[0] for s in (alone, beside)]
    assert slopes[0].isfinite()
    assert_close(slopes[1], slopes[0], rtol=1e-4)


def test_a_solve_of_no_samples_says_so():
    solution = fixed_point(affine, DiscreteMeasure(torch.zeros(0, 3, 2)), 0.5, 1.0)
    assert solution.evaluations == 1
    assert "no samples" in repr(solution)


def test_copies_of_results_have_no_history():
    shift = torch.ones((), requires_grad=True)
    solution = fixed_point(lambda mu, b: mu.push_forward(lambda z: 0.5 * z + b), point(0.0), shift.exp())
    again = copy.deepcopy(solution)
    assert_close(again.measure.points, solution.measure.points)
    assert not again.measure.points.requires_grad
    assert not again.args[0].requires_grad
