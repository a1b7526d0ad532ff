"""Trajectories: what they hold, files, and flows that go on."""

import pytest
import torch
from landscapes import DOUBLE, cloud, quadratic

from ddeq import Functional, flow
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
)
from ddeq.functionals import MMD, PotentialEnergy
from ddeq.iteration import Status, Stop
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close

F = MMD(cloud(4, seed=3), Gaussian(1.0))
SCHEDULE = Euler(lambda k: 0.5 / (k + 1))
FLOWS = {
    "euler": {"stepper": Euler(0.1)},
    "schedule": {"stepper": SCHEDULE},
    "for each sample": {"stepper": Euler(torch.tensor([0.1, 0.3], dtype=DOUBLE))},
    "heun in the geometry of stein": {"stepper": Heun(0.1), "geometry": Stein()},
    "nesterov": {"stepper": Nesterov(0.1)},
    "adaptive": {"stepper": AdaptiveEuler()},
    "lbfgs": {"stepper": LBFGS(3)},
    "proximal": {"stepper": Proximal(0.5)},
    "langevin": {"stepper": Euler(0.1), "noise": Langevin(lambda k: 1.0 / (k + 1))},
    "injection": {"stepper": Nesterov(0.1), "noise": NoiseInjection(0.2)},
    "reaction": {"stepper": Heun(0.1), "reaction": FisherRao(2.0)},
    "births": {"stepper": Euler(0.1), "reaction": FisherRao(20.0, birth_death=True)},
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "from a file"])
def test_a_flow_goes_on_as_if_it_had_not_stopped(name, stored, tmp_path):
    """To the last bit: schedules, momentum, step sizes and random numbers go on too."""
    mu, options = cloud(5, batch=(2,)), FLOWS[name]
    whole = flow(F, mu, steps=9, record=1, generator=torch.Generator().manual_seed(1), **options)
    first = flow(F, mu, steps=4, record=1, generator=torch.Generator().manual_seed(1), **options)
    if stored:
        first.save(tmp_path / "flow.safetensors")
        first = Trajectory.load(tmp_path / "flow.safetensors")
    for field in ("points", "weights"):
        assert torch.equal(getattr(first.measure, field), getattr(whole.measures[4], field))
    both = flow(F, first, steps=5, record=1, **options)
    for field in ("points", "weights"):
        assert torch.equal(getattr(both.measures, field), getattr(whole.measures, field))
    for field in ("energies", "dissipation", "status", "steps"):
        assert_close(getattr(both, field).double(), getattr(whole, field).double())
    assert_close(both.times, whole.times)


@pytest.mark.parametrize("kind", ["steps", "stop"])
def test_a_stop_goes_on_with_the_scale_that_it_had(kind):
    F, stop = MMD(cloud(4, seed=3), Gaussian(1.0)) + quadratic(), Stop(rtol=1e-3, max_steps=100)
    whole = flow(F, cloud(5), stepper=Heun(0.3), stop=stop)
    first = flow(F, cloud(5), stepper=Heun(0.3), stop=Stop(rtol=1e-3, max_steps=10))
    assert first.status.item() == Status.MAX_STEPS
    both = flow(F, first, stepper=Heun(0.3), stop=stop)
    assert both.converged
    assert torch.equal(both.measure.points, whole.measure.points)
    assert both.steps == whole.steps
    again = flow(F, both, stepper=Heun(0.3), **({"stop": stop} if kind == "stop" else {"steps": 0}))
    assert torch.equal(again.measure.points, whole.measure.points)
    assert len(again.energies) == len(both.energies)


def test_samples_that_had_left_go_on_from_where_they_ended():
    start = cloud(3, batch=(3,)).push_forward(lambda x: x * torch.tensor([0.3, 1.0, 3.0], dtype=DOUBLE)[:, None, None])
    G = MMD(cloud(3, batch=(3,)), Gaussian(3.0))
    first = flow(G, start, stepper=Nesterov(1.0), stop=Stop(rtol=0.2, max_steps=30))
    assert len(set(first.steps.tolist())) > 1
    both = flow(G, first, stepper=Nesterov(1.0), stop=Stop(rtol=1e-2, max_steps=300))
    assert both.converged.all()
    assert (both.steps > first.steps).any()


@pytest.mark.theorem("T10")
def test_the_energy_that_is_lost_is_the_dissipation_over_time():
    """The trapezoidal rule on the records of a flow of order two."""
    trajectory = flow(F, cloud(6, batch=(2,)), stepper=Heun(0.05), steps=60, record=1)
    rates = 0.5 * (trajectory.dissipation[1:] + trajectory.dissipation[:-1])
    lost = (rates * trajectory.times.diff()[:, None]).sum(0)
    assert_close(trajectory.energies[0] - trajectory.energies[-1], lost, rtol=1e-3)
    gradient = F.wasserstein_gradient(trajectory.measures[7])
    assert_close(trajectory.dissipation[7], gradient.square().sum(-1).mean(-1))
    assert_close(trajectory.dissipation[-1], F.wasserstein_gradient(trajectory.measure).square().sum(-1).mean(-1))


def test_records_of_chosen_steps():
    trajectory = flow(F, cloud(3), steps=10, record=[0, 3, 4])
    assert trajectory.times.tolist() == pytest.approx([0.0, 0.3, 0.4, 1.0])
    on = flow(F, trajectory, steps=10, record=[12])
    assert on.times.tolist() == pytest.approx([0.0, 0.3, 0.4, 1.0, 1.2, 2.0])
    every = flow(F, flow(F, cloud(3), steps=10, record=4), steps=10, record=4)
    assert every.times.tolist() == pytest.approx([0.0, 0.4, 0.8, 1.0, 1.2, 1.6, 2.0])


def test_time_stands_still_with_a_sample():
    steps = torch.tensor([0.5, 0.1], dtype=DOUBLE)
    trajectory = flow(quadratic(), cloud(2, batch=(2,)), stepper=Euler(steps), stop=Stop(rtol=1e-2, max_steps=100), record=1)
    assert trajectory.times[-1].tolist() == pytest.approx((steps * trajectory.steps).tolist())


def test_the_last_good_state_is_one_with_a_velocity():
    """The root has no gradient left of zero: the flow ends at the last point that has one."""
    root = PotentialEnergy(lambda x: x.sqrt().sum(-1))
    mu = cloud(1, 1, batch=(2,)).with_points(torch.tensor([[[1.0]], [[4.0]]], dtype=DOUBLE))
    trajectory = flow(root, mu, stepper=Euler(0.4), steps=8, record=1)
    assert trajectory.status.tolist() == [Status.DIVERGED, Status.COMPLETED]
    assert (trajectory.measure.points > 0).all()
    assert torch.isfinite(trajectory.energies[-1]).all()
    assert torch.isfinite(trajectory.dissipation[-1]).all()


def test_a_trajectory_says_how_it_ended():
    assert "2 COMPLETED" in repr(flow(F, cloud(3, batch=(2,)), steps=1))


@pytest.mark.unchecked
def test_bad_input(tmp_path):
    trajectory = flow(F, cloud(3), stepper=Nesterov(0.1), steps=2)
    with pytest.raises(ValueError, match=r"stepper: .*trajectory"):
        flow(F, trajectory, stepper=Proximal(0.1), steps=2)
    with pytest.raises(ValueError, match="record: "):
        flow(F, trajectory, stepper=Nesterov(0.1), steps=2, record=[1])
    cloud(3).save(tmp_path / "measure.safetensors")
    with pytest.raises(ValueError, match="path: "):
        Trajectory.load(tmp_path / "measure.safetensors")


@pytest.mark.unchecked
def test_files_of_several_species_are_read_and_checked(tmp_path):
    from safetensors.torch import load_file, save_file

    file, joint = tmp_path / "flow.safetensors", {"a": cloud(3), "b": cloud(2, seed=1)}
    F = {"a": Functional.of(lambda m: m["a"].points.square().sum((-1, -2))), "b": Functional.of(lambda m: m["b"].mass())}
    flow(F, joint, steps=3).save(file)
    again = Trajectory.load(file, "cpu").to(torch.device("cpu"))
    assert set(again.measures) == {"a", "b"}
    for name, value in {"weights.a": torch.zeros(3), "energies.b": torch.zeros(2), "marks.a": torch.zeros(1)}.items():
        save_file(load_file(file) | {name: value}, tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match="holds no trajectory: "):
            Trajectory.load(tmp_path / "wrong.safetensors")
