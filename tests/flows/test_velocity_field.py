"""`VelocityField`: dynamics without an energy, with everything else that a flow has."""

import itertools
import math

import pytest
import torch
from landscapes import DOUBLE, cloud, quadratic
from torch import nn

from ddeq import DiscreteMeasure, flow
from ddeq.flows import (
    LBFGS,
    AdaptiveEuler,
    Euler,
    FisherRao,
    Heun,
    Langevin,
    Nesterov,
    NoiseInjection,
    Optimizer,
    Proximal,
    Stein,
    Trajectory,
    Underdamped,
    Varying,
    VelocityField,
    Wasserstein,
)
from ddeq.flows.equilibrium import _check_stationary
from ddeq.functionals import PotentialEnergy
from ddeq.iteration import Status, Stop, Unrolled
from ddeq.spaces import Sphere
from ddeq.testing import assert_close, check_flow
from ddeq.viz import plot_energy


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def towards_mean(mu, x):
    return mu.normalized().mean().unsqueeze(-2) - x


def turning(mu, x):
    return torch.stack([-x[..., 1], x[..., 0]], -1)


SPIRAL = VelocityField(lambda mu, x: turning(mu, x) + 0.3 * towards_mean(mu, x))


class Field(nn.Module):
    """A field that trains."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-1.0, 0.7], [-0.3, -0.5]], dtype=DOUBLE))

    def forward(self, mu, x):
        return x @ self.matrix.mT + 0.2 * towards_mean(mu, x)


def test_energies_are_none_and_the_rest_is_there():
    mu = cloud(5, batch=(2,))
    trajectory = flow(SPIRAL, mu, stepper=Heun(0.1), steps=10, record=5)
    assert trajectory.energies is None
    assert trajectory.dissipation is None
    assert trajectory.measures.points.shape == (3, 2, 5, 2)
    assert (trajectory.status == Status.COMPLETED.value).all()
    assert "records=3" in repr(trajectory)
    assert_close(trajectory.times, torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE))


@pytest.mark.theorem("T14")
@pytest.mark.parametrize(("stepper", "order"), [(Euler, 1), (Heun, 2)])
def test_steppers_have_their_order(stepper, order):
    """Rotation by one radian, in closed form."""
    mu = cloud(4)
    turn = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]], dtype=DOUBLE)
    field = VelocityField(turning)
    errors = [(flow(field, mu, stepper=stepper(1 / n), steps=n).measure.points - mu.points @ turn.mT).norm() for n in (50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


@pytest.mark.theorem("T24")
def test_a_field_in_time_is_taken_in_the_middle_of_the_step():
    """x' = cos(t) x: Heun is of order two in the middle, of order one at the start."""
    mu = cloud(3)
    exact = mu.points * math.exp(math.sin(1.0))

    def error(n, place):
        field = Varying(lambda k, g: VelocityField(lambda mu, x, c=math.cos((k + place) / n): c * x))
        return float((flow(field, mu, stepper=Heun(1 / n), steps=n).measure.points - exact).norm())

    assert math.log2(error(20, 0.5) / error(40, 0.5)) == pytest.approx(2, abs=0.1)
    assert math.log2(error(20, 0.0) / error(40, 0.0)) == pytest.approx(1, abs=0.1)


@pytest.mark.theorem("T1")
def test_it_flows_measures():
    check_flow(SPIRAL, cloud(4, batch=(2,)), steps=5)
    check_flow(SPIRAL, cloud(4, batch=(2,)), steps=5, noise=Langevin(0.1))


@pytest.mark.parametrize(
    "options", [{}, {"stepper": Heun(0.1), "noise": NoiseInjection(0.2)}, {"noise": Langevin(0.2)}], ids=repr
)
def test_it_goes_on_from_a_file(options, tmp_path):
    mu = cloud(5, batch=(2,))
    whole = flow(SPIRAL, mu, steps=9, record=1, generator=seeded(), **options)
    flow(SPIRAL, mu, steps=4, record=1, generator=seeded(), **options).save(tmp_path / "flow.safetensors")
    first = Trajectory.load(tmp_path / "flow.safetensors")
    assert first.energies is None
    both = flow(SPIRAL, first, steps=5, record=1, **options)
    assert torch.equal(both.measures.points, whole.measures.points)
    assert both.energies is both.dissipation is None
    with pytest.raises(ValueError, match=r"^mu0: .* got one without energies"):
        flow(quadratic(), first, steps=1)
    with pytest.raises(ValueError, match=r"^mu0: .* got one with energies"):
        flow(SPIRAL, flow(quadratic(), mu, steps=1), steps=1)


def test_it_stops_where_the_velocity_is_small():
    start = cloud(4, batch=(3,))
    start = start.with_points(start.points * torch.tensor([1.0, 10.0, 1e9], dtype=DOUBLE)[:, None, None])
    field = VelocityField(lambda mu, x: -x / (1 + x.square().sum(-1, keepdim=True)).sqrt())
    field.removable = True
    stop = Stop(rtol=1e-2, max_steps=300)
    trajectory = flow(field, start, stepper=Euler(0.1), stop=stop)
    assert trajectory.converged.tolist() == [True, True, False]
    for i in range(3):
        alone = flow(field, start[i], stepper=Euler(0.1), stop=stop)
        assert alone.steps == trajectory.steps[i]
        assert_close(trajectory.measure[i].points, alone.measure.points)


@pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(checkpoint=True)], ids=["recorded", "checkpoint"])
def test_gradients_reach_the_parameters_of_a_module(adjoint):
    field, mu = Field(), cloud(3)

    def loss():
        return flow(VelocityField(field), mu, stepper=Heun(0.2), steps=5, adjoint=adjoint).measure.points.square().sum()

    (gradient,) = torch.autograd.grad(loss(), field.matrix)
    direction, h = torch.randn(2, 2, generator=seeded(), dtype=DOUBLE), 1e-6
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            field.matrix.add_(sign * h * direction)
            ends.append(loss())
            field.matrix.sub_(sign * h * direction)
    assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * h), rtol=1e-7)


def test_tensors_that_a_function_captures():
    strength = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    field = VelocityField(lambda mu, x: -strength * x)
    end = flow(field, cloud(3), stepper=Euler(0.1), steps=2).measure.points  # recorded, so that nothing is lost
    (gradient,) = torch.autograd.grad(end.sum(), strength)
    assert_close(gradient, -0.2 * (1 - 0.1 * strength.detach()) * cloud(3).points.sum())
    with pytest.raises(ValueError, match=r"^functional: tensors of shapes \(\) that require grad enter VelocityField"):
        flow(field, cloud(3), steps=2, adjoint=Unrolled(checkpoint=True))


def test_it_flows_on_a_space():
    """Around the axis of a sphere, by Heun's steps that never leave it; a part that is not tangent is left out."""
    start = DiscreteMeasure(nn.functional.normalize(torch.randn(5, 3, generator=seeded(), dtype=DOUBLE), dim=-1))

    def around(mu, x):
        return torch.stack([-x[..., 1], x[..., 0], torch.zeros_like(x[..., 0])], -1) + 0.7 * x

    for field in (VelocityField(around), Varying(lambda k, g: VelocityField(around))):
        end = flow(field, start, space=Sphere(), stepper=Heun(0.01), steps=100).measure.points
        assert_close(end.norm(dim=-1), torch.ones(5, dtype=DOUBLE))
        assert_close(end[:, 2], start.points[:, 2], rtol=1e-4)
        exact = start.points[:, 0] * math.cos(1) - start.points[:, 1] * math.sin(1)
        assert_close(end[:, 0], exact, rtol=1e-4)
    drifting = Varying(lambda k, g: PotentialEnergy(lambda x: (1 + k) * x[..., 2]))
    trajectory = flow(drifting, start, space=Sphere(), stepper=Euler(0.01), steps=100, noise=Langevin(0.01), generator=seeded())
    assert_close(trajectory.measure.points.norm(dim=-1), torch.ones(5, dtype=DOUBLE))
    assert trajectory.dissipation.shape == trajectory.energies.shape
    with pytest.raises(ValueError, match=r"^stepper: Optimizer does not say that it keeps atoms on a space"):
        flow(PotentialEnergy(lambda x: x[..., 2]), start, space=Sphere(), stepper=Optimizer(torch.optim.Adam))


STEPPERS = [
    Euler(0.1),
    Heun(0.1),
    Nesterov(0.1),
    Optimizer(torch.optim.SGD),
    AdaptiveEuler(0.1),
    LBFGS(),
    Proximal(0.1),
    Underdamped(0.1),
]
NOISES = [None, Langevin(0.1), NoiseInjection(0.1)]


@pytest.mark.parametrize("varies", [False, True], ids=["fixed", "varying"])
def test_combinations(varies):
    """Euler and Heun with any noise make sense; every other combination is an error that says why."""
    mu = cloud(4, batch=(2,))
    field = Varying(lambda k, g: SPIRAL) if varies else SPIRAL
    for stepper, geometry, noise, reaction, metric in itertools.product(
        STEPPERS, [Wasserstein(), Stein()], NOISES, [None, FisherRao(1.0)], [None, "energy"]
    ):
        options = {"stepper": stepper, "geometry": geometry, "noise": noise, "reaction": reaction}
        options["stop"] = Stop(rtol=1e-9, max_steps=2, metric=metric)
        if isinstance(stepper, Euler | Heun) and isinstance(geometry, Wasserstein) and reaction is None and metric is None:
            trajectory = flow(field, mu, generator=seeded(), **options)
            assert torch.isfinite(trajectory.measure.points).all()
            assert trajectory.energies is None
        else:
            with pytest.raises(ValueError, match=r"^(stepper|geometry|reaction|stop): .*; "):
                flow(field, mu, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: flow(SPIRAL, cloud(3), stepper=AdaptiveEuler()),
            "^stepper: AdaptiveEuler chooses its steps by energies, and .* has none",
        ),
        (lambda: flow(SPIRAL, cloud(3), stepper=Nesterov()), "^stepper: Nesterov takes another way .*; use Euler or Heun"),
        (lambda: flow(SPIRAL, cloud(3), geometry=Stein()), "^geometry: Stein .* has none"),
        (lambda: flow(SPIRAL, cloud(3), reaction=FisherRao()), "^reaction: FisherRao .* has none"),
        (lambda: flow(SPIRAL, cloud(3), stop=Stop(metric="energy")), "^stop: .* has none"),
        (lambda: _check_stationary(SPIRAL), "^functional: .* has no energy, .*fixed_point"),
        (lambda: VelocityField(quadratic()), "^function: "),
        (
            lambda: flow(VelocityField(lambda mu, x: x.sum(-1)), cloud(3)),
            r"^function: expected velocities .*\(3, 2\).* got shape \(3,\)",
        ),
        (
            lambda: flow(VelocityField(lambda mu, x: x.float()), cloud(3)),
            "^function: expected velocities .*float64, got .*float32",
        ),
        (lambda: plot_energy(flow(SPIRAL, cloud(3), steps=1)), "^trajectory: .*no energies"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def rastrigin(x):
    return (x.square() - 10.0 * (2.0 * torch.pi * x).cos() + 10.0).sum(-1)


def consensus(n, dim, drift=1.0, noise=3.3, sharpness=30.0, step_size=0.1):
    """Consensus-based optimisation: atoms drift to a mean that prefers low values, with noise as large as the way there."""

    def at(step, generator):
        kick = noise * torch.randn(n, dim, generator=generator, dtype=DOUBLE) / step_size**0.5

        def velocity(mu, x):
            share = torch.softmax(mu.weights.log() - sharpness * rastrigin(mu.points), -1)
            away = x - (share.unsqueeze(-1) * mu.points).sum(-2, keepdim=True)
            return (kick - drift) * away

        return VelocityField(velocity)

    return Varying(at)


def test_consensus_finds_the_global_minimum_of_rastrigins_function():
    """Ten dimensions, thousands of local minima in the box, one at 0 with the value 0."""
    for seed in range(3):
        g = seeded(seed)
        start = DiscreteMeasure(-2.0 + 6.0 * torch.rand(400, 10, generator=g, dtype=DOUBLE))
        end = flow(consensus(400, 10), start, stepper=Euler(0.1), steps=500, record=500, generator=g).measure.points
        best = end[rastrigin(end).argmin()]
        assert best.abs().max() < 0.1  # the next minima lie at a distance of about 1
        assert rastrigin(start.points).min() > 20.0


def swarm(mu, x):
    """Prey (mark 0) keep a distance from each other and flee from the predator (mark 1), who chases the nearest."""
    hunts = mu.marks
    prey = mu.weights.unsqueeze(-1) * (1.0 - hunts)
    prey = prey / prey.sum(-2, keepdim=True)
    apart = x.unsqueeze(-2) - mu.points.unsqueeze(-3)
    near = apart / (apart.square().sum(-1, keepdim=True) + 1e-6)
    crowd = (prey.unsqueeze(-3) * (near - apart)).sum(-2)
    flee = 0.4 * (hunts.unsqueeze(-3) * near).sum(-2)
    chase = -1.2 * (prey.unsqueeze(-3) * apart / (apart.square().sum(-1, keepdim=True) + 1e-2) ** 1.5).sum(-2)
    return torch.where(hunts > 0, chase, crowd + flee)


def test_a_predator_opens_a_hole_in_its_prey():
    """In the model of Chen and Kolokolnikov (2014) prey fill a ring around a predator that rests."""
    g = seeded()
    points = torch.randn(81, 2, generator=g, dtype=DOUBLE)
    marks = torch.zeros(81, 1, dtype=DOUBLE)
    points[0], marks[0] = 0.0, 1.0
    trajectory = flow(VelocityField(swarm), DiscreteMeasure(points, marks=marks), stepper=Heun(0.02), steps=400, record=400)
    end = trajectory.measure.points
    away = (end[1:] - end[:1]).norm(dim=-1)
    assert away.min() > 0.3  # at the start it is in their midst
    assert (points[1:] - points[:1]).norm(dim=-1).min() < 0.3
    assert trajectory.measure.marks is not None
    assert torch.isfinite(end).all()
