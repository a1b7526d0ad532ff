"""Steppers: their orders, what they promise of the energy, and that they see the measure alone."""

import math

import pytest
import torch
from hypothesis import given
from landscapes import FEW, cloud, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import LBFGS, AdaptiveEuler, Euler, Heun, Nesterov, Proximal, Stein
from ddeq.functionals import KALE, MMD, InteractionEnergy, PotentialEnergy, SinkhornDivergence, SlicedMMD
from ddeq.iteration import Status, Stop
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close, check_flow
from ddeq.testing.strategies import measures

NICE = {"offsets": (0.0,), "scales": (1.0,)}
TARGET = cloud(4, seed=3, shift=0.7)
ENERGIES = {
    "potential": PotentialEnergy(lambda x: 0.25 * x.square().sum(-1).square() - 0.5 * x.square().sum(-1)),
    "interaction": InteractionEnergy(lambda d: (-d.square().sum(-1)).exp() + 0.1 * d.square().sum(-1)),
    "mmd": MMD(TARGET, Gaussian(1.0)),
    "mmd riesz": MMD(TARGET),
    "sliced mmd": SlicedMMD(TARGET, n_projections=4),
    "sum": MMD(TARGET, Gaussian(0.7)) + 0.3 * quadratic(),
}


@pytest.mark.theorem("T10")
@pytest.mark.parametrize(("stepper", "order"), [(Euler, 1), (Heun, 2), (Proximal, 1)], ids=lambda p: getattr(p, "__name__", p))
@pytest.mark.parametrize("geometry", [None, Stein(Gaussian(1.0))], ids=["wasserstein", "stein"])
def test_order(stepper, order, geometry):
    """The slope of the error in the step size, on a flow of interacting atoms in the plane."""
    F = MMD(TARGET, Gaussian(1.0)) + 0.5 * quadratic()
    start, time = cloud(3, seed=4), 0.8
    options = {} if geometry is None else {"geometry": geometry}

    def end(stepper, steps):
        return flow(F, start, stepper=stepper(time / steps), steps=steps, record=steps, **options).measure.points

    with torch.no_grad():
        exact = end(Heun, 200)
        errors = [(end(stepper, steps) - exact).norm().item() for steps in (8, 16, 32)]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.15)


@pytest.mark.theorem("T10")
@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("rule", ["barzilai_borwein", "armijo"])
@FEW
@given(mu=measures(**NICE))
def test_adaptive_steps_never_raise_the_energy(name, rule, mu):
    """As computed, to the last bit: no tolerance. From a first step that is much too long."""
    energies = flow(ENERGIES[name], mu, stepper=AdaptiveEuler(100.0, rule=rule), steps=6, record=1).energies
    assert (energies.diff(dim=0) <= 0).all()


@pytest.mark.theorem("T10")
def test_a_step_that_is_too_long_raises_the_energy_of_euler():
    energies = flow(ENERGIES["potential"], cloud(4), stepper=Euler(2.0), steps=3, record=1).energies
    assert (energies.diff() > 0).any()


@pytest.mark.theorem("T10")
@pytest.mark.parametrize("stepper", [AdaptiveEuler(), LBFGS(), Proximal(0.5), Euler(0.1)], ids=repr)
@pytest.mark.parametrize(
    "functional", [SinkhornDivergence(TARGET, blur=0.5), KALE(TARGET, Gaussian(1.0), 0.5)], ids=["sinkhorn", "kale"]
)
def test_energies_with_inner_problems_fall(functional, stepper):
    energies = flow(functional, cloud(4), stepper=stepper, steps=5, record=1).energies
    assert (energies.diff() <= 1e-12).all()


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("stepper", [Heun(0.1), Nesterov(0.1), AdaptiveEuler(0.3), LBFGS(), Proximal(0.3)], ids=repr)
@FEW
@given(mu=measures(**NICE))
def test_steppers_see_the_measure_alone(stepper, mu):
    F = MMD(TARGET, Gaussian(1.0)) + 0.2 * quadratic()
    check_flow(F, mu, stepper=stepper, steps=3, descends=stepper.descends, units=1e8 if stepper.descends else 2e4)


@pytest.mark.parametrize("stepper", [Heun(0.2), Nesterov(0.1), AdaptiveEuler(), LBFGS(), Proximal(3.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steppers_converge_in_both_dtypes(stepper, dtype):
    F = MMD(TARGET.to(dtype), Gaussian(1.0)) + quadratic()
    mu = cloud(5, batch=(3,)).to(dtype)
    # Its line search takes no step that raises the energy, whose rounding in single precision hides what is left to gain.
    rtol = 1e-3 if isinstance(stepper, Proximal) and dtype == torch.float32 else 1e-4
    trajectory = flow(F, mu, stepper=stepper, stop=Stop(rtol=rtol, max_steps=500))
    assert trajectory.status.tolist() == [Status.CONVERGED] * 3
    assert trajectory.measure.dtype == dtype
    assert (F.wasserstein_gradient(trajectory.measure).norm() < 10 * rtol).all()


def test_a_sample_flows_as_it_would_alone():
    """Also where the others have left the computation."""
    targets = cloud(4, seed=5, batch=(3,))
    start = cloud(3, seed=6, batch=(3,), scale=2.0)
    for stepper in (Euler(2.0), Heun(2.0), Nesterov(2.0), AdaptiveEuler(), LBFGS(), Proximal(4.0)):
        stop = Stop(rtol=0.1, max_steps=60)
        together = flow(MMD(targets, Gaussian(2.0)), start, stepper=stepper, stop=stop)
        assert len(set(together.steps.tolist())) > 1
        for i in range(3):
            alone = flow(MMD(targets[i], Gaussian(2.0)), start[i], stepper=stepper, stop=stop)
            assert alone.steps == together.steps[i]
            assert alone.status == together.status[i]
            assert_close(together.measure[i].points, alone.measure.points, f"{stepper}", units=1e6)


def test_finished_samples_leave_the_computation():
    """The functional sees fewer and fewer measures, where it is known to be removable."""
    sizes = []

    class Watched(MMD):
        def wasserstein_gradient(self, mu, x=None):
            sizes.append(mu.batch_shape)
            return super().wasserstein_gradient(mu, x)

    start = cloud(3, batch=(4,)).push_forward(lambda x: x * torch.tensor([0.1, 1.0, 2.0, 4.0], dtype=x.dtype)[:, None, None])
    F = Watched(cloud(3, batch=(4,)), Gaussian(3.0))
    steps = torch.tensor([1.0, 1.5, 2.0, 2.5], dtype=torch.float64)
    left = flow(F, start, stepper=Euler(steps), stop=Stop(rtol=0.1, max_steps=200))
    assert sizes[0] == (4,)
    assert sizes[-1][0] < 4
    sizes.clear()
    F.removable = False
    frozen = flow(F, start, stepper=Euler(steps), stop=Stop(rtol=0.1, max_steps=200))
    assert set(sizes) == {(4,)}
    assert torch.equal(left.steps, frozen.steps)
    assert torch.equal(left.times, frozen.times)
    assert_close(left.measure.points, frozen.measure.points)
    assert_close(left.dissipation, frozen.dissipation)


def test_barzilai_borwein_takes_far_fewer_steps_on_a_stiff_energy():
    stiff = PotentialEnergy(lambda x: 0.5 * (x.square() * torch.tensor([1.0, 300.0], dtype=x.dtype)).sum(-1))
    mu, stop = cloud(5), Stop(rtol=1e-6, max_steps=20_000)
    steps = {
        rule: int(flow(stiff, mu, stepper=AdaptiveEuler(rule=rule), stop=stop).steps) for rule in ("barzilai_borwein", "armijo")
    }
    fixed = int(flow(stiff, mu, stepper=Euler(1.0 / 300.0), stop=stop).steps)
    assert steps["barzilai_borwein"] < 0.3 * steps["armijo"]
    assert steps["barzilai_borwein"] < 0.05 * fixed


def test_momentum_is_faster_and_restarts():
    """Nesterov needs the square root of the condition number; without restarts energies oscillate for long."""
    stiff = PotentialEnergy(lambda x: 0.5 * (x.square() * torch.tensor([1.0, 300.0], dtype=x.dtype)).sum(-1))
    mu, stop = cloud(5), Stop(rtol=1e-6, max_steps=20_000)
    tau = 1.0 / 300.0
    plain, restarted, free = (
        int(flow(stiff, mu, stepper=stepper, stop=stop).steps)
        for stepper in (Euler(tau), Nesterov(tau), Nesterov(tau, restart=False))
    )
    assert restarted < 0.2 * plain
    assert restarted < 0.5 * free


def test_the_time_of_momentum_is_the_root_of_the_step():
    trajectory = flow(quadratic(), cloud(2), stepper=Nesterov(0.04), steps=3)
    assert trajectory.times.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_adaptive_steps_say_so_when_the_energy_cannot_be_lowered():
    """At the tip of a cone the gradient does not vanish, and no step descends."""
    cone = PotentialEnergy(lambda x: x.square().sum(-1).clamp_min(1e-300).sqrt())
    mu = DiscreteMeasure(torch.tensor([[1e-150, 0.0]], dtype=torch.float64))
    trajectory = flow(cone, mu, stepper=AdaptiveEuler(), stop=Stop(rtol=1e-6, max_steps=50))
    assert trajectory.status.item() in (Status.STAGNATED, Status.CONVERGED)
    riesz = flow(MMD(TARGET), cloud(4), stepper=AdaptiveEuler(), stop=Stop(rtol=1e-9, max_steps=3000))
    assert riesz.status.item() == Status.STAGNATED


def test_stopping_by_the_energy():
    trajectory = flow(
        quadratic(), cloud(3), stepper=Euler(0.1), stop=Stop(rtol=1e-3, atol=0.0, metric="energy", max_steps=500), record=1
    )
    before, last = trajectory.energies[-2:].tolist()
    assert trajectory.status.item() == Status.MAX_STEPS  # of a quadratic the relative decrease is the same for ever
    assert (before - last) / last == pytest.approx(1 / 0.81 - 1)
    stop = Stop(rtol=1e-3, metric="energy", max_steps=500)
    raised = flow(quadratic() + PotentialEnergy(lambda x: x[..., 0] * 0 + 1.0), cloud(3), stepper=Euler(0.1), stop=stop, record=1)
    assert raised.status.item() == Status.CONVERGED
    decrease = -raised.energies.diff()
    assert (decrease[:-1] > 1e-3 * raised.energies[1:-1]).all()
    assert decrease[-1] <= 1e-3 * raised.energies[-1] + 1e-8


@pytest.mark.parametrize("stepper", [Heun(0.2), Nesterov(0.2), LBFGS(), AdaptiveEuler(0.2)], ids=repr)
def test_gradients_flow_through_the_steps(stepper):
    """Against finite differences, where step sizes are given; adaptive ones are constants."""
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    points = cloud(3).points.requires_grad_()

    def end(strength, points):
        return flow(
            strength * quadratic() + MMD(TARGET, Gaussian(1.0)), DiscreteMeasure(points), stepper=stepper, steps=3
        ).measure.points

    if isinstance(stepper, AdaptiveEuler):
        grads = torch.autograd.grad(end(strength, points).sum(), (strength, points))
        assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in grads)
    else:
        assert torch.autograd.gradcheck(end, (strength, points))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Heun(-1.0), "step_size"),
        (lambda: Nesterov(0.0), "step_size"),
        (lambda: Euler(True), "step_size"),
        (lambda: Euler("fast"), "step_size"),
        (lambda: AdaptiveEuler(lambda k: 1.0), "step_size"),
        (lambda: AdaptiveEuler(rule="wolfe"), "rule"),
        (lambda: Proximal(0.1, inner=1e-6), "inner"),
        (lambda: Proximal(0.1, inner=Stop(metric="energy")), "inner"),
        (lambda: flow(quadratic(), cloud(2, batch=(3,)), stepper=Euler(torch.ones(2)), steps=1), r"step_size: .*\(3,\)"),
        (lambda: flow(quadratic(), cloud(2), stop=Stop(metric="residual")), "metric"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
