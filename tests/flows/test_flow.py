"""Flows: dissipation, known solutions, measure consistency, per-sample ends, records and files."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import cloud

from ddeq import DiscreteMeasure, flow
from ddeq.flows import LBFGS, AdaptiveEuler, Euler, Heun, Nesterov, Proximal, Trajectory
from ddeq.functionals import MMD, InteractionEnergy, PotentialEnergy
from ddeq.iteration import Status, Stop
from ddeq.kernels import Gaussian, Riesz
from ddeq.testing import assert_close, check_flow
from ddeq.testing.strategies import measures
from proofs_checks.test_t10_dissipation import mmd_smoothness
from proofs_checks.test_t12_one_dimension import dirac_flow_quantile

QUADRATIC = PotentialEnergy(lambda x: 0.5 * x.square().sum(-1))
NICE = {"offsets": (0.0,), "scales": (1.0,)}


@pytest.mark.theorem("T10")
@given(mu=measures(**NICE), nu=measures(batch_shapes=((),), **NICE), share=st.floats(0.05, 0.95))
def test_energy_never_rises_below_the_critical_step(mu, nu, share):
    """Explicit Euler descends for steps up to 2 / l, with the constant of the proof."""
    bandwidth = 0.8
    step = share * 2.0 / float(mmd_smoothness(bandwidth, 1, 1))
    check_flow(MMD(nu, Gaussian(bandwidth)), mu, stepper=Euler(step), steps=8)


@pytest.mark.theorem("T10")
def test_energy_falls_at_the_rate_of_the_squared_gradient():
    mu, F = (
        DiscreteMeasure(torch.randn(6, 2, dtype=torch.float64)),
        MMD(DiscreteMeasure(torch.ones(3, 2, dtype=torch.float64)), Gaussian(1.0)),
    )
    gradient = F.wasserstein_gradient(mu)
    rate = -(mu.weights * gradient.square().sum(-1)).sum()
    step = 1e-6
    energies = flow(F, mu, stepper=Euler(step), steps=1).energies
    assert ((energies[1] - energies[0]) / step).item() == pytest.approx(rate.item(), rel=1e-5)


@pytest.mark.theorem("T12")
def test_energy_distance_flow_between_point_masses():
    """From a point mass at -1 to one at 0 the quantiles move as min(-1 + 2 s t, 0)."""
    n, time, steps = 200, 0.75, 1500
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    start = DiscreteMeasure((-1 + 1e-9 * torch.arange(n, dtype=torch.float64)).unsqueeze(-1))
    F = MMD(DiscreteMeasure(torch.zeros(1, 1, dtype=torch.float64)), Riesz(1.0))
    end = flow(F, start, stepper=Euler(time / steps), steps=steps, record=steps).measure.points.squeeze(-1).sort().values
    expected = torch.tensor([float(dirac_flow_quantile(time, float(s))) for s in levels], dtype=torch.float64)
    assert (end - expected).square().mean().sqrt() < 2e-3


def test_euler_is_of_order_one():
    start, errors = DiscreteMeasure(torch.ones(1, 1, dtype=torch.float64)), []
    for steps in (50, 100, 200):
        end = flow(QUADRATIC, start, stepper=Euler(1.0 / steps), steps=steps).measure.points.item()
        errors.append(abs(end - 2.718281828459045**-1))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2.0, rel=0.05)


@pytest.mark.theorem("T1")
@given(mu=measures(**NICE))
def test_flows_depend_on_the_measure_alone(mu):
    F = InteractionEnergy(lambda d: (-d.square().sum(-1)).exp()) + QUADRATIC
    check_flow(F, mu, stepper=Euler(0.05), steps=3)


def test_each_sample_stops_by_itself_and_stands_still():
    mu = DiscreteMeasure(torch.ones(3, 2, 1, dtype=torch.float64))
    stepper = Euler(torch.tensor([0.5, 0.05, 3.0], dtype=torch.float64))
    stop = Stop(rtol=1e-3, max_steps=60)
    trajectory = flow(QUADRATIC, mu, stepper=stepper, stop=stop)
    assert trajectory.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS, Status.MAX_STEPS]
    assert trajectory.steps.tolist() == [10, 60, 60]
    assert trajectory.measure.points[0, 0, 0].item() == pytest.approx(0.5**10)
    for i in range(2):
        alone = flow(QUADRATIC, mu[i], stepper=Euler(float(stepper.step_size[i])), stop=stop)
        assert_close(trajectory.measure[i].points, alone.measure.points)


def test_nan_ends_a_sample_at_its_last_good_state():
    root = PotentialEnergy(lambda x: x.sqrt().sum(-1))  # pushes to the left, and has no gradient left of 0
    mu = DiscreteMeasure(torch.tensor([[[1.0]], [[-1.0]]]))
    trajectory = flow(root, mu, stepper=Euler(0.4), steps=10)
    assert trajectory.status.tolist() == [Status.DIVERGED, Status.DIVERGED]
    assert torch.isfinite(trajectory.measure.points).all()
    assert trajectory.measure.points[1].item() == -1.0


def test_what_is_recorded():
    mu = DiscreteMeasure(torch.ones(2, 1, 1))
    trajectory = flow(QUADRATIC, mu, stepper=Euler(0.1), steps=7, record=3)
    assert trajectory.times.tolist() == pytest.approx([0.0, 0.3, 0.6, 0.7])
    assert trajectory.measures.points.shape == (4, 2, 1, 1)
    assert trajectory.energies.shape == (4, 2)
    assert_close(trajectory.energies[2], QUADRATIC(trajectory.measures[2]))
    assert flow(QUADRATIC, mu, steps=7, record=[2, 5]).energies.shape == (4, 2)
    assert len(flow(QUADRATIC, mu, steps=30).energies) == 31
    assert len(flow(QUADRATIC, mu, steps=1000).energies) == 101
    assert len(flow(QUADRATIC, mu, steps=0).energies) == 1
    assert flow(QUADRATIC, mu, steps=7).status.tolist() == [Status.COMPLETED] * 2


def test_schedules_and_callbacks():
    reports = []
    trajectory = flow(
        QUADRATIC,
        DiscreteMeasure(torch.ones(1, 1)),
        stepper=Euler(lambda k: 0.5 if k == 0 else 0.1),
        steps=2,
        callback=reports.append,
    )
    assert trajectory.measure.points.item() == pytest.approx(0.5 * 0.9)
    assert trajectory.times.tolist() == pytest.approx([0.0, 0.5, 0.6])
    assert [r.step for r in reports] == [0, 1]


@pytest.mark.parametrize("marks", [None, torch.randn(2, 3, 1)])
def test_files(tmp_path, marks):
    trajectory = flow(QUADRATIC, DiscreteMeasure(torch.randn(2, 3, 2), marks=marks), steps=3)
    trajectory.save(tmp_path / "flow.safetensors")
    loaded = Trajectory.load(tmp_path / "flow.safetensors")
    for name in ("times", "energies", "status", "steps"):
        assert torch.equal(getattr(loaded, name), getattr(trajectory, name))
    assert torch.equal(loaded.measure.points, trajectory.measure.points)


def test_gradients_flow_through_the_steps():
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    points = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def end(strength, points):
        return flow(strength * QUADRATIC, DiscreteMeasure(points), stepper=Euler(0.1), steps=4).measure.points

    assert torch.autograd.gradcheck(end, (strength, points))
    assert not flow(QUADRATIC, DiscreteMeasure(points.detach()), steps=2).measure.points.requires_grad
    with torch.no_grad():
        assert not end(strength, points).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtypes(dtype):
    trajectory = flow(QUADRATIC, DiscreteMeasure(torch.ones(2, 1, dtype=dtype)), steps=3)
    assert trajectory.measure.dtype == trajectory.energies.dtype == trajectory.times.dtype == dtype


MU = DiscreteMeasure(torch.randn(3, 2))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flow(QUADRATIC, MU, steps=3, stop=Stop()), ValueError, "steps, stop"),
        (lambda: flow(QUADRATIC, MU, steps=-1), ValueError, "steps: "),
        (lambda: flow(QUADRATIC, MU, steps=3, stepper=0.1), ValueError, "stepper: .*Euler"),
        (lambda: flow(QUADRATIC, MU, steps=3, geometry="stein"), ValueError, "geometry: "),
        (lambda: flow(QUADRATIC, MU, steps=3, noise=0.1), ValueError, "noise: "),
        (lambda: flow(QUADRATIC, MU, steps=3, record=0), ValueError, "record: "),
        (lambda: flow(QUADRATIC, MU, steps=3, record=[7]), ValueError, "record: "),
        (lambda: flow(lambda mu: mu.mass(), MU, steps=3), ValueError, "functional: "),
        (lambda: flow(QUADRATIC, MU, steps=3, tau=0.1), TypeError, "tau"),
        (lambda: Euler(0.0), ValueError, "step_size: "),
        (lambda: Euler(torch.tensor([0.1, -0.1])), ValueError, "step_size: "),
        (lambda: flow(QUADRATIC, MU, steps=3, stepper=Euler(lambda k: -1.0)), ValueError, "step_size: "),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_flows_have_patience():
    """Leaving a saddle, the gradient grows for a long time before it falls."""
    F = PotentialEnergy(lambda x: 0.25 * (x.square().sum(-1) - 1).square())
    trajectory = flow(
        F, DiscreteMeasure(torch.tensor([[1e-3]], dtype=torch.float64)), stepper=Euler(0.02), stop=Stop(max_steps=5000)
    )
    assert trajectory.status.item() == Status.CONVERGED
    assert trajectory.measure.points.item() == pytest.approx(1.0, abs=1e-3)


def test_times_where_all_samples_end_early():
    blow_up = PotentialEnergy(lambda x: -x.square().square().sum(-1))
    trajectory = flow(blow_up, DiscreteMeasure(torch.tensor([[1.0]])), stepper=Euler(1.0), steps=100, record=50)
    assert trajectory.times.tolist() == [0.0, float(trajectory.steps)]


def test_rare_looks_change_no_record():
    mu = DiscreteMeasure(torch.ones(1, 1))
    often, rarely = (flow(QUADRATIC, mu, stepper=Euler(0.5), stop=Stop(rtol=1e-3, max_steps=50, check_every=k)) for k in (1, 9))
    assert torch.equal(often.times, rarely.times)
    assert torch.equal(often.measures.points, rarely.measures.points)


def test_inference_mode_is_refused_not_ignored():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        flow(QUADRATIC, DiscreteMeasure(torch.ones(1, 1)), steps=2)


@pytest.mark.unchecked
def test_more_bad_input():
    with pytest.raises(ValueError, match="mu0: "):
        flow(QUADRATIC, MU.points, steps=3)
    with pytest.raises(ValueError, match="stop: "):
        flow(QUADRATIC, MU, stop=5)
    with pytest.raises(ValueError, match="record: "):
        flow(QUADRATIC, MU, steps=3, record=1.5)


@pytest.mark.theorem("T1")
def test_an_atom_of_mass_zero_ends_no_flow():
    """Far out on a quartic its steps overshoot to infinity; where the root has no gradient its velocity is NaN."""
    for energy, far in ((lambda x: x.square().square().sum(-1), 1e60), (lambda x: x.sqrt().sum(-1), -1.0)):
        points = torch.tensor([[1.0], [far]], dtype=torch.float64)
        mu = DiscreteMeasure(points, torch.tensor([1.0, 0.0], dtype=torch.float64))
        alone = DiscreteMeasure(points[:1])
        for stepper in (Euler(0.05), Heun(0.05), Nesterov(0.05)):
            trajectory = flow(PotentialEnergy(energy), mu, stepper=stepper, steps=6)
            assert trajectory.status.item() == Status.COMPLETED
            assert_close(
                trajectory.measure.points[:1], flow(PotentialEnergy(energy), alone, stepper=stepper, steps=6).measure.points
            )
            assert torch.isfinite(trajectory.measure.points).all()


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("stepper", [Euler(0.3), Heun(0.3), AdaptiveEuler(0.5), LBFGS(), Proximal(1.0)])
@pytest.mark.parametrize("far", [3.0, -1.0])
def test_an_atom_of_mass_zero_may_be_where_the_energy_is_steep_or_not_defined(stepper, far):
    """Far out steps are too long; left of the origin there is no logarithm."""
    F = PotentialEnergy(lambda x: (0.25 * x**4 - x.log()).sum(-1))
    live = DiscreteMeasure(torch.tensor([[0.9], [1.3]]).double())
    both = live.pad_atoms(1)
    both = both.with_points(torch.cat([live.points, torch.full((1, 1), far).double()]))
    assert torch.equal(F(both), F(live))
    alone, beside = (flow(F, mu, stepper=stepper, steps=15) for mu in (live, both))
    assert_close(beside.measure.points[:2], alone.measure.points, units=1e6)
    assert_close(beside.energies, alone.energies)


def test_five_hundred_steps_where_nothing_else_is_said():
    trajectory = flow(PotentialEnergy(lambda x: x.square().sum(-1)), cloud(3), record=500)
    assert trajectory.steps.item() == 500


def test_copies_of_trajectories_have_no_history():
    scale = torch.ones((), requires_grad=True)
    trajectory = flow(scale * PotentialEnergy(lambda x: x.square().sum(-1)), cloud(3), steps=2)
    assert trajectory.energies.requires_grad
    again = copy.deepcopy(trajectory)
    assert_close(again.energies, trajectory.energies)
    assert not again.energies.requires_grad


def test_a_batch_of_no_samples():
    mu = DiscreteMeasure(torch.zeros(0, 3, 2))
    F = MMD(DiscreteMeasure(torch.zeros(4, 2)))
    assert flow(F, mu, steps=3).measure.batch_shape == (0,)
    assert flow(F, mu, stop=Stop()).status.shape == (0,)
