"""`Optimizer`: the optimisers of PyTorch as steppers, on the path of the plain loop."""

import dataclasses

import pytest
import torch
from landscapes import DOUBLE, cloud, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import LBFGS, Euler, FisherRao, Langevin, Nesterov, Optimizer, Stein, Trajectory, equilibrium
from ddeq.functionals import MMD
from ddeq.iteration import Status, Stop, Unrolled
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close, check_stepper
from ddeq.testing.problems import trial_batch

adam, sgd = torch.optim.Adam, torch.optim.SGD
OPTIMISERS = {
    "adam": (adam, {"betas": (0.8, 0.99)}),
    "amsgrad": (adam, {"amsgrad": True, "weight_decay": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "sgd": (sgd, {}),
    "momentum": (sgd, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (sgd, {"momentum": 0.9, "nesterov": True}),
    "nadam": (torch.optim.NAdam, {}),
    "rprop": (torch.optim.Rprop, {}),
    "asgd": (torch.optim.ASGD, {}),
}
F = MMD(cloud(6, seed=3), Gaussian(1.0)) + 0.3 * quadratic()


def plain_loop(functional, mu, optimiser, rate, steps, **options):
    """What anyone would write."""
    p = torch.nn.Parameter(mu.points.clone())
    optimizer = optimiser([p], lr=rate(0), **options)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step)
        p.grad = functional.wasserstein_gradient(mu.with_points(p.detach()))
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize(("optimiser", "options"), OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_on_the_path_of_the_plain_loop(optimiser, options, batch):
    mu = cloud(5, batch=batch)
    for lr in (0.05, lambda k: 0.1 / (1 + k)):
        end = flow(F, mu, stepper=Optimizer(optimiser, lr=lr, **options), steps=12).measure.points
        rate = lr if callable(lr) else lambda k, lr=lr: lr
        assert_close(end, plain_loop(F, mu, optimiser, rate, 12, **options), "the loop", units=100)


SHORT = Stop(rtol=0.5, max_steps=60)


@pytest.mark.parametrize("name", ["adam", "adagrad", "rmsprop", "momentum"])
def test_optimisers_are_steppers(name):
    optimiser, options = OPTIMISERS[name]
    check_stepper(Optimizer(optimiser, lr=0.05, **options), stop=SHORT)


def test_a_rate_for_each_sample_is_a_stepper():
    rates = torch.tensor([0.1, 0.05, 0.02], dtype=DOUBLE)
    check_stepper(Optimizer(adam, lr=rates), stop=SHORT)
    mu = trial_batch()
    end = flow(quadratic(), mu, stepper=Optimizer(adam, lr=rates), steps=5).measure
    for i in range(3):
        alone = flow(quadratic(), mu[i], stepper=Optimizer(adam, lr=float(rates[i])), steps=5).measure
        assert_close(end[i].points, alone.points)


@pytest.mark.theorem("T10")
def test_plain_descent_is_euler():
    mu = cloud(5, batch=(2,))
    a, b = (flow(F, mu, stepper=s, steps=9, record=1) for s in (Optimizer(sgd, lr=0.3), Euler(0.3)))
    assert_close(a.measures.points, b.measures.points)
    assert_close(a.times, b.times)


@pytest.mark.theorem("T1")
def test_the_scale_does_not_depend_on_the_number_of_atoms():
    """Each atom split into eight: with raw gradients SGD would make steps that are an eighth as long."""
    mu = cloud(5)
    split = DiscreteMeasure(mu.points.repeat(8, 1))
    for stepper in (Optimizer(sgd, lr=0.3, momentum=0.5), Optimizer(torch.optim.Adagrad, lr=0.1)):
        a, b = (flow(F, nu, stepper=stepper, steps=9).measure.points for nu in (mu, split))
        assert_close(b[:5], a, "split atoms", units=1000)


def test_a_flow_goes_on_from_a_file_when_samples_have_finished(tmp_path):
    """Samples whose steps are counted differently have different bias corrections."""
    options = {"stepper": Optimizer(adam, lr=0.05)}
    start = cloud(4, batch=(3,))
    start = start.with_points(start.points * torch.tensor([0.5, 1.0, 30.0], dtype=DOUBLE)[:, None, None])
    functional = quadratic()
    functional.removable = True
    first = flow(functional, start, stop=Stop(rtol=0.7, max_steps=12), **options)
    assert len(set(first.steps.tolist())) > 1
    first.save(tmp_path / "flow.safetensors")
    after = flow(functional, Trajectory.load(tmp_path / "flow.safetensors"), steps=5, **options)
    assert_close(after.measure.points, flow(functional, first, steps=5, **options).measure.points)
    whole = flow(functional, start[2], stop=Stop(rtol=1e-9, max_steps=17), **options)
    if first.status[2] == Status.MAX_STEPS:  # not finished: as if there had been no break
        assert_close(after.measure.points[2], whole.measure.points)


def test_learning_rates_that_fall_reach_the_minimum():
    with torch.no_grad():
        end = flow(quadratic(), cloud(5), stepper=Optimizer(adam, lr=lambda k: 0.3 / (1 + k / 20)), steps=800)
    assert end.energies[-1] < 1e-6 * end.energies[0]
    with torch.no_grad():
        rest = equilibrium(quadratic(), cloud(5), stepper=Optimizer(adam, lr=0.1), stop=Stop(rtol=1e-4, max_steps=2000))
    assert bool(rest.converged.all())


def test_other_geometries_and_reactions():
    mu = cloud(5)
    for options in ({"geometry": Stein()}, {"reaction": FisherRao(1.0)}):
        trajectory = flow(F, mu, stepper=Optimizer(adam, lr=0.05), steps=20, **options)
        assert trajectory.energies[-1] < trajectory.energies[0]
    for options in ({"noise": Langevin(0.1)}, {"reaction": FisherRao(1.0, birth_death=True)}):
        with pytest.raises(ValueError, match=r"^(noise|reaction): .*Optimizer"):
            flow(F, mu, stepper=Optimizer(adam), steps=1, **options)


def test_autograd_cannot_record_it():
    mu = cloud(3)
    strength = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    for F_, start in ((strength * quadratic(), mu), (quadratic(), mu.with_points(mu.points.clone().requires_grad_()))):
        for options in ({}, {"adjoint": Unrolled(checkpoint=True)}, {"reaction": FisherRao(1.0)}):
            with pytest.raises(ValueError, match=r"^stepper: autograd cannot record the steps of Optimizer; .*no_grad"):
                flow(F_, start, stepper=Optimizer(adam), steps=2, **options)
        with torch.no_grad():
            flow(F_, start, stepper=Optimizer(adam), steps=2)
    rest = equilibrium(strength * quadratic(), mu, stepper=Optimizer(adam, lr=0.1))  # differentiated implicitly
    assert rest.measure.points.requires_grad


class Mixing(torch.optim.SGD):
    """Normalises the gradient by its largest entry, over all atoms."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad / p.grad.abs().max()
        super().step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Optimizer(torch.optim.LBFGS), r"^optimizer: LBFGS asks for a closure .* ddeq\.flows\.LBFGS\(\)"),
        (lambda: Optimizer(torch.optim.Adafactor), "^optimizer: "),
        (lambda: Optimizer(Mixing), "^optimizer: the step of Mixing .* how the measure is stored"),
        (lambda: Optimizer(torch.optim.SparseAdam), "^optimizer: SparseAdam .* makes no step"),
        (lambda: Optimizer(adam, momentum=0.9), "^optimizer: Adam .*momentum"),
        (lambda: Optimizer(adam, betas=(2.0, 0.9)), "^optimizer: Adam .*beta"),
        (lambda: Optimizer(adam, lr=-1.0), "^lr: "),
        (lambda: flow(F, cloud(3), stepper=Optimizer(adam, lr=lambda k: 0.0), steps=1), "^lr: "),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_is_a_set_of_options():
    a, b = Optimizer(adam, lr=0.1, betas=[0.5, 0.9]), Optimizer(adam, lr=0.1, betas=(0.5, 0.9))
    assert a == b
    assert hash(a) == hash(b)
    assert dataclasses.replace(a, lr=0.2) == Optimizer(adam, lr=0.2, betas=(0.5, 0.9))
    assert a != Nesterov()
    assert LBFGS() != a
