"""Systems of several measures, games, and measures of measures, in flows and equilibria."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscapes import DOUBLE, cloud
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
    Optimizer,
    Preconditioned,
    Proximal,
    Stein,
    Trajectory,
    Varying,
    VelocityField,
    Wasserstein,
    equilibrium,
)
from ddeq.flows.noise import Noise
from ddeq.functionals import MMD, PotentialEnergy
from ddeq.iteration import ConvergenceError, Status, Stop, Unrolled
from ddeq.kernels import Gaussian
from ddeq.spaces import Box, Euclidean, Sphere
from ddeq.testing import assert_close
from ddeq.testing.strategies import permutations

A, B = MMD(cloud(4, seed=3), Gaussian(1.0)), PotentialEnergy(lambda x: 0.25 * x.square().sum(-1).square())
START = {"a": cloud(5, 2, seed=1), "b": cloud(3, 1, seed=2)}


def apart(a, b):
    """Independent parts, whose joint energy is a sum."""
    return Functional.of(lambda m: a(m["a"]) + b(m["b"]), removable=True)


def mean(mu):
    return mu.normalized().mean()[..., :1]


def pull(m):
    """Both means attract each other."""
    return 0.5 * (mean(m["a"]) - mean(m["b"])).square().sum(-1)


JOINT = apart(A, B) + Functional.of(pull, removable=True)


def moment(mu):
    return 0.5 * (mu.weights * mu.points.square().sum(-1)).sum(-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def atom(x):
    return DiscreteMeasure(torch.tensor([[float(x)]], dtype=DOUBLE))


def bilinear(strength=0.0):
    """min over x, max over y of x y + strength (x^2 - y^2) / 2."""

    def f(m):
        x, y = mean(m["x"])[..., 0], mean(m["y"])[..., 0]
        return x * y + strength * (moment(m["x"]) - moment(m["y"]))

    return {"x": Functional.of(f), "y": Functional.of(lambda m: -f(m))}


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("stepper", [Euler(0.2), Heun(0.2), Euler(lambda k: 0.2 / (1 + k))])
def test_independent_parts_flow_as_they_do_alone(stepper):
    both = flow(apart(A, B), START, stepper=stepper, steps=8, record=1)
    for name, F in (("a", A), ("b", B)):
        alone = flow(F, START[name], stepper=stepper, steps=8, record=1)
        assert_close(both.measures[name].points, alone.measures.points)
        assert torch.equal(both.measures[name].weights, alone.measures.weights)
    energies = [flow(F, START[s], stepper=stepper, steps=8, record=1).energies for s, F in (("a", A), ("b", B))]
    assert_close(both.energies, energies[0] + energies[1])
    assert_close(both.times, alone.times)


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("stepper", [AdaptiveEuler(), LBFGS(), Proximal(0.5)], ids=lambda s: type(s).__name__)
def test_joint_energies_never_rise(stepper):
    trajectory = flow(JOINT, START, stepper=stepper, steps=5, record=1)
    assert (trajectory.energies.diff() <= 1e-15).all()
    assert trajectory.energies[-1] < 0.8 * trajectory.energies[0]
    assert trajectory.energies.shape == trajectory.dissipation.shape == (6,)


@pytest.mark.theorem("T23")
def test_a_joint_energy_falls_at_the_rate_of_the_squared_norms():
    trajectory = flow(JOINT, START, stepper=Heun(1e-4), steps=2, record=1)
    gradient = JOINT.wasserstein_gradient(trajectory.measures)
    squared = sum((mu.weights.unsqueeze(-1) * gradient[s] ** 2).sum((-2, -1)) for s, mu in trajectory.measures.items())
    assert_close(trajectory.dissipation, squared)
    assert_close((trajectory.energies[0] - trajectory.energies[2]) / 2e-4, squared[1], rtol=1e-7)


def test_each_species_has_its_own_parts():
    """A dict of steppers, geometries, noises, reactions and spaces does to each species what these do to it alone."""
    F, steps = apart(A, B), {"steps": 5, "record": 1}
    found = flow(F, START, stepper={"a": Euler(0.1), "b": Heun(0.3)}, **steps).measure
    assert_close(found["a"].points, flow(A, START["a"], stepper=Euler(0.1), **steps).measure.points)
    assert_close(found["b"].points, flow(B, START["b"], stepper=Heun(0.3), **steps).measure.points)

    found = flow(F, START, geometry={"a": Stein(Gaussian(1.0)), "b": Wasserstein()}, **steps).measure
    assert_close(found["a"].points, flow(A, START["a"], geometry=Stein(Gaussian(1.0)), **steps).measure.points)
    assert_close(found["b"].points, flow(B, START["b"], **steps).measure.points)

    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
    found = flow(F, START, geometry={"a": Preconditioned(matrix), "b": Wasserstein()}, **steps).measure
    assert_close(found["a"].points, flow(A, START["a"], geometry=Preconditioned(matrix), **steps).measure.points)

    found = flow(F, START, reaction={"a": FisherRao(2.0), "b": None}, **steps).measure
    assert_close(found["a"].weights, flow(A, START["a"], reaction=FisherRao(2.0), **steps).measure.weights)
    assert torch.equal(found["b"].weights, START["b"].weights)
    both = flow(F, START, reaction=FisherRao(2.0), **steps).measure
    assert_close(both["a"].weights, found["a"].weights)
    assert_close(both["b"].weights.sum(), torch.tensor(1.0, dtype=DOUBLE))

    on_sphere = {**START, "a": START["a"].push_forward(lambda x: x / x.norm(dim=-1, keepdim=True))}
    found = flow(F, on_sphere, space={"a": Sphere(), "b": Euclidean()}, **steps).measure
    assert_close(found["a"].points, flow(A, on_sphere["a"], space=Sphere(), **steps).measure.points)
    assert_close(found["b"].points, flow(B, START["b"], **steps).measure.points)
    in_box = flow(F, START, space={"a": Euclidean(), "b": Box(-3.0, 3.0)}, stepper=AdaptiveEuler(), **steps)
    assert (in_box.energies.diff() <= 0).all()


def test_noise_of_one_species_leaves_the_others_alone():
    F = apart(A, B)
    noisy = flow(F, START, noise={"a": Langevin(0.1), "b": None}, steps=5, generator=seeded())
    plain = flow(F, START, steps=5)
    assert torch.equal(noisy.measure["b"].points, plain.measure["b"].points)
    assert (noisy.measure["a"].points - plain.measure["a"].points).abs().min() > 0
    again = flow(F, START, noise={"a": Langevin(0.1), "b": None}, steps=5, generator=seeded())
    assert torch.equal(noisy.measure["a"].points, again.measure["a"].points)
    one = flow(F, START, noise=Langevin(0.1), steps=5, generator=seeded())
    each = flow(F, START, noise={"a": Langevin(0.1), "b": Langevin(0.1)}, steps=5, generator=seeded())
    for name in START:
        assert torch.equal(one.measure[name].points, each.measure[name].points)
    still = flow(F, START, noise={"a": NoiseInjection(0.0), "b": Langevin(0.0)}, steps=5)
    assert_close(still.measure["a"].points, plain.measure["a"].points)


def test_langevin_noise_has_the_temperature_of_its_species():
    many = {"a": DiscreteMeasure(torch.zeros(4000, 2)), "b": DiscreteMeasure(torch.zeros(4000, 1))}
    F = Functional.of(lambda m: moment(m["a"]) + moment(m["b"]))
    found = flow(F, many, noise={"a": Langevin(0.5), "b": Langevin(2.0)}, steps=60, generator=seeded(1)).measure
    factor = 1 / (1 - 0.1 / 2)  # that of the unadjusted algorithm, T14
    assert_close(found["a"].points.var(0), torch.full((2,), 0.5 * factor), rtol=0.06)
    assert_close(found["b"].points.var(0), torch.full((1,), 2.0 * factor), rtol=0.06)
    assert abs(torch.corrcoef(torch.cat([found["a"].points, found["b"].points], -1).mT) - torch.eye(3)).max() < 0.06


@dataclass(frozen=True)
class Unit(Noise):
    """Kicks of length one in directions at random: of an atom, and not of its coordinates."""

    def kick(self, equation, draw, duration, step):
        xi = draw()
        return xi / xi.norm(dim=-1, keepdim=True)


def test_noises_of_ones_own_see_the_atoms_of_a_species():
    still = VelocityField(lambda m, x: {name: torch.zeros_like(p) for name, p in x.items()})
    found = flow(still, START, noise=Unit(), steps=1).measure
    for name, mu in START.items():
        moved = (found[name].points - mu.points).norm(dim=-1)
        assert_close(moved, torch.ones_like(moved))


def test_reactions_with_a_functional_of_all_measures():
    """With noise, which stands for an entropy, masses go by the whole energy that they are given."""
    found = flow(JOINT, START, noise=Langevin(0.0), reaction=FisherRao(2.0, functional=JOINT), steps=4, generator=seeded())
    plain = flow(JOINT, START, reaction=FisherRao(2.0), steps=4)
    assert_close(found.measure["a"].weights, plain.measure["a"].weights)
    variation = JOINT.first_variation(START)["a"]
    one = flow(JOINT, START, stepper=Euler(0.1), reaction=FisherRao(2.0), steps=1).measure["a"].weights
    at = flow(JOINT, START, stepper=Euler(0.1), steps=1).measure
    variation = JOINT.first_variation(at)["a"]
    wanted = torch.softmax(START["a"].weights.log() - 0.2 * variation, -1)
    assert_close(one, wanted)


RESUMED = {
    "euler": (JOINT, {"stepper": Euler(0.1)}),
    "adaptive": (JOINT, {"stepper": AdaptiveEuler()}),
    "lbfgs": (JOINT, {"stepper": LBFGS(3)}),
    "nesterov": (JOINT, {"stepper": Nesterov(0.1)}),
    "adam": (JOINT, {"stepper": Optimizer(torch.optim.Adam, lr=0.05)}),
    "each its own": (JOINT, {"stepper": {"a": Euler(0.1), "b": Heun(0.1)}, "noise": {"a": None, "b": Langevin(0.1)}}),
    "reaction": (JOINT, {"stepper": Euler(0.1), "reaction": FisherRao(2.0)}),
    "game": ({"a": JOINT, "b": apart(A, B)}, {"stepper": Heun(0.1)}),
    "varying game": ({"a": JOINT, "b": Varying(lambda k, g: (1 + torch.rand((), generator=g).item()) * JOINT)}, {}),
    "velocities": (
        VelocityField(lambda m, x: {s: -p + mean(m["a"]).unsqueeze(-2) for s, p in x.items()}),
        {"stepper": Heun(0.1)},
    ),
    "varying": (Varying(lambda k, g: apart(A, B) + torch.rand((), generator=g).item() * Functional.of(pull)), {}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_system_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    F, options = RESUMED[name]
    marked = {"a": START["a"].with_marks(torch.ones(5, 1, dtype=DOUBLE)), "b": START["b"]}
    start = {s: DiscreteMeasure.stack([mu, mu.with_points(1.5 * mu.points)]) for s, mu in marked.items()}
    whole = flow(F, start, steps=9, record=1, generator=seeded(1), **options)
    first = flow(F, start, steps=4, record=1, generator=seeded(1), **options)
    first.save(tmp_path / "flow.safetensors")
    read = Trajectory.load(tmp_path / "flow.safetensors")
    assert torch.equal(read.measure["a"].marks, start["a"].marks)
    assert read.measure["b"].marks is None
    both = flow(F, read, steps=5, record=1, **options)
    for species in start:
        assert torch.equal(both.measures[species].points, whole.measures[species].points)
        assert torch.equal(both.measures[species].weights, whole.measures[species].weights)
    for a, b in ((both, whole),):
        energies = [e if isinstance(e, dict) else {"": e} for e in (a.energies, b.energies)]
        assert energies[0].keys() == energies[1].keys()
        for species, e in energies[0].items():
            assert (e is None) is (energies[1][species] is None)
            assert e is None or torch.equal(e, energies[1][species])
    assert_close(both.times, whole.times)


def test_trajectories_of_systems():
    trajectory = flow(JOINT, START, steps=10, record=5)
    assert trajectory.measures["a"].points.shape == (3, 5, 2)
    assert trajectory.measures["b"].points.shape == (3, 3, 1)
    assert list(trajectory.measure) == ["a", "b"]
    assert "'b'" in repr(trajectory)
    game = flow({"b": JOINT, "a": apart(A, B)}, START, steps=10, record=5)
    assert list(game.measure) == ["a", "b"]
    assert {name: e.shape for name, e in game.energies.items()} == {"a": (3,), "b": (3,)}
    assert_close(game.energies["b"][-1], JOINT(game.measure))
    assert game.dissipation is None
    assert flow(RESUMED["velocities"][0], START, steps=3).energies is None


def test_callbacks_see_points_by_name():
    seen = []
    flow(JOINT, START, steps=2, reaction=FisherRao(1.0), callback=lambda report: seen.append(report.value))
    assert {name: x.shape for name, x in seen[0].items()} == {"a": (5, 2), "b": (3, 1)}
    assert torch.equal(seen[0]["a"], START["a"].points)
    coupled = []
    flow(SPREAD, cloud(4, batch=(3,)), steps=2, callback=lambda report: coupled.append(report.value.shape))
    assert coupled[0] == (3, 4, 2)


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("stepper", [Euler(0.2), AdaptiveEuler(), LBFGS()], ids=lambda s: type(s).__name__)
@settings(max_examples=4)
@given(st.data())
def test_each_species_is_measure_consistent(stepper, data):
    order, i = data.draw(permutations(5)), data.draw(st.integers(0, 4))
    plain = flow(JOINT, START, stepper=stepper, steps=3).measure
    permuted = flow(JOINT, {**START, "a": START["a"].permute_atoms(order)}, stepper=stepper, steps=3).measure
    assert_close(permuted["a"].points, plain["a"].points[order], rtol=1e-9)
    assert_close(permuted["b"].points, plain["b"].points, rtol=1e-9)
    split = flow(JOINT, {**START, "a": START["a"].split_atom(i, 0.3).pad_atoms(1)}, stepper=stepper, steps=3).measure
    assert_close(split["a"].points[:5], plain["a"].points, rtol=1e-9)
    assert_close(split["a"].points[5], plain["a"].points[i], rtol=1e-9)
    assert_close(split["b"].points, plain["b"].points, rtol=1e-9)


def test_samples_of_a_system_flow_as_alone_and_leave_when_they_have_finished():
    quick = Functional.of(lambda m: moment(m["a"]) + 3.0 * moment(m["b"]).square() + pull(m), removable=True)
    scales = torch.tensor([0.1, 1.0, 3.0], dtype=DOUBLE)[:, None, None]
    start = {s: DiscreteMeasure(mu.points * scales) for s, mu in START.items()}
    stop = Stop(rtol=1e-2, atol=1e-3, max_steps=200)
    together = flow(quick, start, stepper=Heun(0.1), stop=stop)
    assert together.converged.all()
    assert len(set(together.steps.tolist())) > 1
    for k in range(3):
        alone = flow(quick, {s: mu[k] for s, mu in start.items()}, stepper=Heun(0.1), stop=stop)
        assert alone.steps == together.steps[k]
        for s in start:
            assert_close(together.measure[s].points[k], alone.measure[s].points)


def test_derivatives_through_the_flow_of_a_system():
    class Pull(nn.Module):
        def __init__(self, strength):
            super().__init__()
            self.register_buffer("strength", strength)

        def forward(self, m):
            return self.strength * pull(m).square() + moment(m["a"]) + moment(m["b"])

    def end(strength, points, **options):
        start = {"a": START["a"].with_points(points), "b": START["b"]}
        found = flow(Functional.of(Pull(strength)), start, stepper=Heun(0.2), steps=3, **options).measure
        return torch.cat([mu.points.flatten() for mu in found.values()])

    strength = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    points = START["a"].points.clone().requires_grad_()
    assert torch.autograd.gradcheck(end, (strength, points))
    plain = torch.autograd.grad(end(strength, points).square().sum(), (strength, points))
    again = torch.autograd.grad(end(strength, points, adjoint=Unrolled(checkpoint=True)).square().sum(), (strength, points))
    for a, b in zip(plain, again, strict=True):
        assert_close(a, b)


@pytest.mark.theorem("T23")
@pytest.mark.parametrize(("stepper", "growth"), [(Euler, lambda t: 1 + t**2), (Heun, lambda t: 1 + t**4 / 4)])
def test_steps_on_x_times_y_grow_as_they_should(stepper, growth):
    tau, start = 0.3, {"x": atom(1.0), "y": atom(0.5)}
    trajectory = flow(bilinear(), start, stepper=stepper(tau), steps=20, record=1)
    squared = trajectory.measures["x"].points.squeeze() ** 2 + trajectory.measures["y"].points.squeeze() ** 2
    assert_close(squared, 1.25 * growth(tau) ** torch.arange(21, dtype=DOUBLE))
    stopped = flow(bilinear(), start, stepper=stepper(tau), stop=Stop(rtol=1e-6, max_steps=50))
    assert stopped.status.item() == Status.MAX_STEPS
    assert not stopped.converged


@pytest.mark.theorem("T23")
def test_monotone_games_converge_below_the_step_of_the_theorem():
    """Strength m and L^2 = m^2 + 1: the radius contracts by sqrt(1 - 2 tau m + tau^2 L^2), and not from 2 m / L^2 on."""
    m, start = 0.3, {"x": atom(1.0), "y": atom(0.5)}
    for tau in (0.2, 0.5, 2 * m / (1 + m**2), 0.7):
        trajectory = flow(bilinear(m), start, stepper=Euler(tau), steps=10, record=1)
        squared = trajectory.measures["x"].points.squeeze() ** 2 + trajectory.measures["y"].points.squeeze() ** 2
        assert_close(squared, 1.25 * (1 - 2 * tau * m + tau**2 * (m**2 + 1)) ** torch.arange(11, dtype=DOUBLE))
    assert squared[-1] > squared[0]
    best = flow(bilinear(m), start, stepper=Euler(m / (1 + m**2)), stop=Stop(rtol=1e-3, max_steps=1000))
    assert best.converged


@pytest.mark.theorem("T23")
def test_equilibria_of_games_have_an_honest_status():
    start = {"x": atom(1.0), "y": atom(0.5)}
    found = equilibrium(bilinear(), start, stop=Stop(rtol=1e-6, max_steps=40))
    assert found.status.item() == Status.MAX_STEPS
    with pytest.raises(ConvergenceError):
        equilibrium(bilinear(), start, stop=Stop(rtol=1e-6, max_steps=20), throw=True)
    for options in ({}, {"finish": False}, {"stepper": Euler(0.5)}):
        found = equilibrium(bilinear(0.8), start, **options)
        assert found.converged
        assert found.measure["x"].points.abs().max() < 1e-5


class Duel(nn.Module):
    """Particles against particles: a saddle that depends on theta, nonlinearly and unlike for both sides."""

    def __init__(self, theta, sign):
        super().__init__()
        self.register_buffer("theta", theta)
        self.sign = sign

    def forward(self, m):
        x, y = m["x"], m["y"]
        meet = torch.sin(x.points[..., :1] + self.theta * y.points[..., None, :, 0])
        payoff = (x.weights.unsqueeze(-1) * y.weights.unsqueeze(-2) * meet).sum((-2, -1))
        own = moment(x) + 0.1 * (x.weights * (x.points**4).sum(-1)).sum(-1) - 0.8 * moment(y)
        tilt = (x.weights * (self.theta * x.points[..., -1] + 0.3 * x.points[..., 0])).sum(-1)
        return self.sign * (payoff + own + tilt + (y.weights * y.points[..., 0]).sum(-1) * self.theta**2)


def duel(theta):
    return {"x": Functional.of(Duel(theta, 1.0)), "y": Functional.of(Duel(theta, -1.0))}


@pytest.mark.theorem("T23")
def test_the_hypergradient_of_a_game_agrees_with_finite_differences():
    start = {"x": cloud(3, 2, seed=4), "y": cloud(2, 1, seed=5)}
    tight = Stop(rtol=1e-13, max_steps=2000)

    def loss(theta):
        found = equilibrium(duel(theta), start, stop=tight)
        assert found.converged
        x, y = found.measure["x"], found.measure["y"]
        return (x.weights * x.points[..., 0] * x.points[..., 1]).sum() + moment(y) + mean(y).squeeze() ** 3

    theta = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    with torch.no_grad():
        h = 1e-3
        values = {k: loss(theta + k * h) for k in (-2, -1, 1, 2)}
        numeric = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)
    assert abs(numeric) > 0.01
    assert abs(gradient - numeric) < 1e-8 * max(1.0, abs(numeric))


@pytest.mark.theorem("T23")
def test_the_equilibrium_of_a_joint_energy_and_its_derivative():
    """Two quadratic wells whose means attract each other: in closed form."""

    class Wells(nn.Module):
        def __init__(self, strength):
            super().__init__()
            self.register_buffer("strength", strength)

        def forward(self, m):
            b = m["b"].with_points(m["b"].points - 1.0)
            return moment(m["a"]) + moment(b) + self.strength * pull(m)

    strength = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    found = equilibrium(Functional.of(Wells(strength)), START, stop=Stop(rtol=1e-12))
    assert found.converged
    a = strength / (1 + 2 * strength)  # a + s (a - b) = 0, b - 1 + s (b - a) = 0
    assert_close(found.measure["a"].points[:, 0], a.detach().expand(5), rtol=1e-9)
    (gradient,) = torch.autograd.grad(mean(found.measure["a"]).sum(), strength)
    (exact,) = torch.autograd.grad(a, strength)
    assert_close(gradient, exact, rtol=1e-9)


def spread(mu, a):
    """Half the mean squared distance of the measures' features from those of all, plus a moment of each, squared."""
    feature = (mu.weights.unsqueeze(-1) * torch.sin(mu.points)).sum(-2)
    middle = (a.unsqueeze(-1) * feature).sum(-2, keepdim=True)
    return 0.5 * (a * (feature - middle).square().sum(-1)).sum(-1) + (a * moment(mu).square()).sum(-1)


def of_outer(weights):
    weights = torch.tensor(weights, dtype=DOUBLE)
    return Functional.of(lambda mu: spread(mu, weights), couples_batch=True, outer_weights=weights)


SPREAD = of_outer([0.5, 0.2, 0.3])


@pytest.mark.theorem("T23")
@pytest.mark.parametrize("stepper", [Euler(0.2), AdaptiveEuler(), LBFGS()], ids=lambda s: type(s).__name__)
def test_measures_of_measures_flow_consistently_at_both_levels(stepper):
    mu = cloud(4, batch=(3,), seed=6)
    plain = flow(SPREAD, mu, stepper=stepper, steps=6, record=1)
    assert plain.energies.shape == (7,)
    assert plain.status.shape == ()
    assert (plain.energies.diff() <= 1e-15).all()
    gradient = SPREAD.wasserstein_gradient(mu)
    weights = SPREAD.outer_weights[:, None, None] * mu.weights.unsqueeze(-1)
    assert_close(plain.dissipation[0], (weights * gradient.square()).sum())
    inner = flow(SPREAD, mu.split_atom(0, 0.3), stepper=stepper, steps=6)
    assert_close(inner.measure.points[:, :4], plain.measure.points, rtol=1e-9)
    twice = mu[torch.tensor([0, 1, 2, 0, 1])]
    outer = flow(of_outer([0.4, 0.2, 0.3, 0.1, 0.0]), twice, stepper=stepper, steps=6)
    assert_close(outer.measure.points[:4], plain.measure.points[[0, 1, 2, 0]], rtol=1e-9)
    assert torch.equal(outer.measure.points[4], twice.points[4])  # a measure that does not count stays
    assert torch.equal(outer.measure.weights, twice.weights)


def test_measures_of_measures_in_batches_and_equilibria(tmp_path):
    mu = cloud(4, batch=(2, 3), seed=6)
    both = flow(SPREAD, mu, stepper=AdaptiveEuler(), steps=5)
    for k in range(2):
        assert_close(both.measure.points[k], flow(SPREAD, mu[k], stepper=AdaptiveEuler(), steps=5).measure.points)
    assert both.status.shape == (2,)
    both.save(tmp_path / "flow.safetensors")
    on = flow(SPREAD, Trajectory.load(tmp_path / "flow.safetensors"), stepper=AdaptiveEuler(), steps=5)
    whole = flow(SPREAD, mu, stepper=AdaptiveEuler(), steps=10)
    assert torch.equal(on.measure.points, whole.measure.points)
    found = equilibrium(SPREAD + 0.5 * of_outer([0.5, 0.2, 0.3]), mu)
    assert found.converged.shape == (2,)
    assert found.measure.points.shape == mu.points.shape


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow({"a": A}, START), r"functional: expected one for each of \['a', 'b'\], got \['a'\]"),
        (lambda: flow({"a": A, "b": 3.0}, START), "functional: expected a ddeq.Functional, .* for 'b', got 3.0"),
        (lambda: flow({"a": A}, START["a"]), "mu0: expected measures by name for functionals by name"),
        (lambda: flow(lambda m: 0.0, START), "functional: expected a functional of measures by name.*Functional.of"),
        (lambda: flow(JOINT, {**START, "b": cloud(3, 1, batch=(2,))}), "mu0: expected species that share batch shape"),
        (lambda: flow(JOINT, START, stepper={"a": Euler()}), r"stepper: expected one for all, or one for each of \['a', 'b'\]"),
        (lambda: flow(JOINT, START, stepper={"a": Euler(), "b": LBFGS()}), "stepper: LBFGS for 'b' alone would go by an energy"),
        (lambda: flow(JOINT, START, noise={"a": Langevin()}), "noise: expected one for all, or one for each"),
        (lambda: flow(JOINT, START, noise={"a": Langevin(), "b": 1.0}), "noise: expected a ddeq.flows.Noise, or None, for 'b'"),
        (lambda: flow(JOINT, START, space={"a": Sphere(), "b": None}), "space: expected a ddeq.spaces.Space .* for 'b'"),
        (lambda: flow(JOINT, START, space={"a": Sphere(), "b": Euclidean()}), r"mu0\['a'\]: "),
        (lambda: flow(JOINT, START, geometry={"a": Stein(), "c": Stein()}), "geometry: expected one for all"),
        (lambda: flow(JOINT, START, reaction=FisherRao(birth_death=True)), "reaction: in a system weights move"),
        (
            lambda: flow(JOINT, START, reaction={"a": FisherRao(functional=JOINT), "b": FisherRao()}),
            "reaction: expected the same functional, of all measures",
        ),
        (lambda: flow({"a": JOINT, "b": JOINT}, START, stepper=AdaptiveEuler()), "stepper: AdaptiveEuler .* use Euler or Heun"),
        (
            lambda: flow({"a": JOINT, "b": JOINT}, START, reaction=FisherRao()),
            "reaction: FisherRao moves mass",
        ),
        (
            lambda: flow({"a": JOINT, "b": JOINT}, START, stop=Stop(metric="energy")),
            "stop: the metric 'energy' watches",
        ),
        (lambda: equilibrium({"a": JOINT, "b": JOINT}, START, stop=Stop(metric="energy")), "stop: "),
        (lambda: flow(SPREAD, cloud(4)), "mu0: .* couples the samples of a batch, expected one, got a single measure"),
        (lambda: flow(SPREAD, START), "functional: .* couples the samples of one batch, got measures by name"),
        (lambda: flow(SPREAD, cloud(4, batch=(2,))), "outer_weights: expected 2 non-negative numbers"),
        (lambda: flow(of_outer([0.5, -0.2, 0.3]), cloud(4, batch=(3,))), "outer_weights: expected 3 non-negative numbers"),
        (
            lambda: flow(SPREAD, cloud(4, batch=(3,)), reaction=FisherRao()),
            "reaction: masses of a measure of",
        ),
        (lambda: flow(SPREAD, cloud(4, batch=(3,)), geometry=Stein()), "geometry: a measure of measures flows in the geometry"),
        (lambda: flow(SPREAD, cloud(4, batch=(3,)), stepper={"a": Euler()}), "stepper: expected one for all measures of a batch"),
        (lambda: SPREAD + of_outer([0.2, 0.5, 0.3]), "functional: expected parts with the same outer_weights"),
        (lambda: flow(JOINT, flow({"a": JOINT, "b": JOINT}, START, steps=1)), "mu0: .* got one with those of each species"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()
