"""`Varying` energies and fresh directions: one energy per step, drawn from the flow's generator, equal after a break."""

import math

import pytest
import torch
from landscapes import DOUBLE, cloud, quadratic
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
    Proximal,
    Stein,
    Trajectory,
    Varying,
    VelocityField,
    equilibrium,
)
from ddeq.flows.equilibrium import _check_stationary
from ddeq.functionals import (
    MMD,
    Entropy,
    FixedPointDiscrepancy,
    PotentialEnergy,
    SinkhornDivergence,
    SlicedMMD,
    SlicedWasserstein,
)
from ddeq.iteration import Status, Stop, Unrolled
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close, check_flow, check_functional
from proofs_checks.test_t24_varying_energies import limit_of_mean_square

MANY = cloud(40, seed=7)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def batches(step, generator):
    """The MMD from eight atoms of a target, drawn anew."""
    index = torch.randint(MANY.n, (8,), generator=generator)
    return MMD(DiscreteMeasure(MANY.points[index]), Gaussian(1.0)) + 0.1 * quadratic()


def annealed(step, generator):
    return (1.0 + 1.0 / (1 + step)) * quadratic()


def features(step, generator):
    """Half the squared distance of random Fourier features."""
    frequencies = torch.randn(2, 16, generator=generator, dtype=DOUBLE)

    def embed(mu):
        waves = torch.einsum("...nd,df->...nf", mu.points, frequencies)
        return torch.einsum("...n,...nf->...f", mu.weights, torch.cat([waves.cos(), waves.sin()], -1))

    return Functional.of(lambda mu: 0.5 * (embed(mu) - embed(MANY)).square().mean(-1))


VARYING = {
    "batches": Varying(batches),
    "annealed": Varying(annealed),
    "features": Varying(features),
    "sinkhorn": Varying(lambda k, g: SinkhornDivergence(DiscreteMeasure(MANY.points[:3]), 1.0 + 1.0 / (1 + k))),
    "slices": SlicedMMD(MANY, n_projections=4, resample=True),
    "sliced transport": SlicedWasserstein(MANY, n_projections=4, resample=True) + 0.1 * quadratic(),
}


def plainly(F, mu, steps, generator, step_size=0.1):
    """What anyone would write."""
    energies = []
    for step in range(steps + 1):
        prepared = F.prepare(mu, None, step, generator)[0]
        energies.append(prepared(mu))
        points, mu = mu.points, mu.with_points(mu.points - step_size * prepared.wasserstein_gradient(mu))
    return mu.with_points(points), torch.stack(energies)


@pytest.mark.theorem("T24")
@pytest.mark.parametrize("F", VARYING.values(), ids=VARYING)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_each_step_is_that_of_its_energy(F, batch):
    mu = cloud(5, batch=batch)
    trajectory = flow(F, mu, steps=6, record=1, generator=seeded())
    end, energies = plainly(F, mu, 6, seeded())
    assert_close(trajectory.measure.points, end.points)
    assert_close(trajectory.energies, energies)
    rare = flow(F, mu, steps=6, record=[4], generator=seeded())
    assert_close(rare.energies, energies[[0, 4, 6]])
    other = flow(F, mu, steps=6, generator=seeded(2)).measure.points
    assert torch.equal(other, trajectory.measure.points) == (F in (VARYING["annealed"], VARYING["sinkhorn"]))


OPTIONS = {
    "euler": {},
    "heun": {"stepper": Heun(0.1)},
    "nesterov": {"stepper": Nesterov(0.1)},
    "adam": {"stepper": Optimizer(torch.optim.Adam, lr=0.05)},
    "adaptive": {"stepper": AdaptiveEuler()},
    "proximal": {"stepper": Proximal(0.2)},
    "stein": {"geometry": Stein()},
    "langevin": {"noise": Langevin(0.1)},
    "injection": {"noise": NoiseInjection(0.1)},
    "reaction": {"reaction": FisherRao(1.0)},
    "births": {"reaction": FisherRao(5.0, birth_death=True)},
    "stop": {"stop": Stop(rtol=0.3, max_steps=9)},
    "checkpoint": {"adjoint": Unrolled(checkpoint=True)},
}


@pytest.mark.parametrize(
    ("kind", "name"), [*(("batches", name) for name in OPTIONS), ("slices", "euler"), ("sliced transport", "stop")]
)
def test_a_flow_goes_on_to_the_last_bit(kind, name, tmp_path):
    """Killed after four steps and read from its file, without a generator: the numbers go on too."""
    F = VARYING[kind]
    mu, options = cloud(5, batch=(3,)), {"steps": 9} | OPTIONS[name]
    if "stop" in options:
        del options["steps"]
    short = {"stop": Stop(rtol=0.3, max_steps=4)} if "stop" in options else {"steps": 4}
    whole = flow(F, mu, record=1, generator=seeded(), **options)
    flow(F, mu, record=1, generator=seeded(), **options | short).save(tmp_path / "flow.safetensors")
    more = {"stop": Stop(rtol=0.3, max_steps=5)} if "stop" in options else {"steps": 5}
    both = flow(F, Trajectory.load(tmp_path / "flow.safetensors"), record=1, **options | more)
    assert torch.equal(both.measure.points, whole.measure.points)
    assert torch.equal(both.measure.weights, whole.measure.weights)
    if "stop" not in options:
        assert torch.equal(both.measures.points, whole.measures.points)
        assert torch.equal(both.energies, whole.energies)
        assert torch.equal(both.dissipation, whole.dissipation)


def test_samples_end_with_the_energy_of_their_last_step():
    start = cloud(4, batch=(3,))
    start = start.with_points(start.points * torch.tensor([0.05, 1.0, 5.0], dtype=DOUBLE)[:, None, None])
    F = Varying(lambda k, g: PotentialEnergy(lambda x, c=1.0 + k: 0.5 * c * x.square().sum(-1) + c))
    options = {"stepper": Euler(lambda k: 0.3 / (1 + k)), "stop": Stop(rtol=0.2, atol=0.1, max_steps=12), "record": 5}
    together = flow(F, start, **options)
    assert len(set(together.steps.tolist())) == 3
    for i in range(3):
        alone = flow(F, start[i], **options)
        assert_close(together.measure[i].points, alone.measure.points)
        assert_close(together.energies[-1, i], alone.energies[-1])
        assert_close(together.dissipation[-1, i], alone.dissipation[-1])
        assert together.steps[i] == alone.steps


@pytest.mark.theorem("T24")
def test_dissipation_is_the_part_of_the_flow():
    """dF_t/dt is minus the dissipation plus the derivative in time."""
    tau, mu = 1e-4, cloud(5)
    F = Varying(lambda k, g: (1.0 + math.sin(tau * k)) * quadratic())
    trajectory = flow(F, mu, stepper=Euler(tau), steps=2, record=1)
    rate = (trajectory.energies[2] - trajectory.energies[0]) / (2 * tau)
    in_time = math.cos(tau) * quadratic()(trajectory.measures[1])
    assert_close(rate, in_time - trajectory.dissipation[1], rtol=1e-6)


@pytest.mark.theorem("T24")
def test_constant_steps_end_at_a_known_distance():
    """F_k = m |x - y_k|^2 / 2 with y_k of variance s^2: the mean squared distance tends to tau m s^2 / (2 - tau m)."""
    m, s, tau, n = 2.0, 0.7, 0.2, 20000

    def towards(step, generator):
        y = s * torch.randn(n, 1, generator=generator, dtype=DOUBLE)
        return PotentialEnergy(lambda x: 0.5 * m * (x - y).square().sum(-1))

    end = flow(Varying(towards), cloud(n, 1), stepper=Euler(tau), steps=40, record=40, generator=seeded()).measure
    wanted = float(limit_of_mean_square(m, m * s, tau))
    assert_close(end.points.square().mean(), torch.tensor(wanted, dtype=DOUBLE), rtol=0.05)


@pytest.mark.theorem("T24")
def test_steps_that_fall_lead_to_the_mean():
    """Mini-batches of the target: the end is near that of the whole target; with a fixed step it is not."""
    F, mu = MMD(MANY, Gaussian(1.0)) + 0.1 * quadratic(), cloud(5)
    ends = [
        flow(Varying(batches), mu, stepper=Euler(step), steps=300, record=300, generator=seeded()).measure
        for step in (1.0, lambda k: 1.0 / (1 + k / 10))
    ]
    fixed, falling = (F.wasserstein_gradient(end).square().sum(-1).mean().sqrt() for end in ends)
    assert falling < 0.5 * fixed


@pytest.mark.theorem("T24")
def test_few_directions_leave_much_undone():
    """As many fixed directions as dimensions: the flow lowers their energy, and stays away from a target on a line."""
    g = torch.Generator().manual_seed(0)
    start = DiscreteMeasure(torch.randn(30, 8, generator=g, dtype=DOUBLE))
    target = DiscreteMeasure(torch.randn(30, 1, generator=g, dtype=DOUBLE).expand(30, 8))
    options = {"stepper": Euler(lambda k: 4.0 / (1 + k / 20)), "steps": 200, "record": 200, "generator": seeded()}
    fixed, fresh = (SlicedWasserstein(target, n_projections=8, resample=r) for r in (False, True))
    stuck, free = (flow(F, start, **options).measure for F in (fixed, fresh))
    judge = SlicedWasserstein(target, n_projections=500)
    assert fixed(stuck) < 0.05 * judge(stuck)
    assert judge(free) < 0.1 * judge(stuck)


class Place(nn.Module):
    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([0.5, -1.0], dtype=DOUBLE))

    def forward(self, x):
        return 0.5 * (x - self.at).square().sum(-1)


@pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled(checkpoint=True)], ids=["recorded", "checkpoint"])
def test_gradients_reach_what_the_energies_are_made_of(adjoint):
    place, rate = Place(), torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    F = Varying(lambda step, generator: rate**step * PotentialEnergy(place))
    end = flow(F, cloud(3), steps=3, adjoint=adjoint).measure.points
    gradients = torch.autograd.grad(end.square().sum(), [place.at, rate])

    x, at, r = cloud(3).points, place.at.detach().clone().requires_grad_(), rate.detach().clone().requires_grad_()
    for step in range(3):
        x = x - 0.1 * r**step * (x - at)
    for a, b in zip(gradients, torch.autograd.grad(x.square().sum(), [at, r]), strict=True):
        assert_close(a, b)


def test_tensors_that_enter_later_steps_unseen():
    strength = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    F = Varying(lambda k, g: PotentialEnergy(lambda x: (strength if k == 2 else 1.0) * x.square().sum(-1)))
    with pytest.raises(ValueError, match=r"^functional: tensors of shapes \(\) that require grad enter"):
        flow(F, cloud(3), steps=4, adjoint=Unrolled(checkpoint=True))
    assert flow(F, cloud(3), steps=4).measure.points.requires_grad


@pytest.mark.theorem("T1")
@pytest.mark.parametrize("name", ["batches", "slices"])
def test_flows_are_those_of_measures(name):
    check_flow(VARYING[name], cloud(4, batch=(2,)), steps=5)
    if name == "slices":
        check_functional(VARYING[name])


def test_fresh_directions():
    F = SlicedMMD(MANY, n_projections=4, resample=True)
    drawn, memory = F.prepare(cloud(3), None, 0, seeded())
    assert memory is None
    assert drawn.directions.shape == (4, 2)
    assert not torch.equal(drawn.directions, F.directions)
    assert torch.equal(F.directions, SlicedMMD(MANY, n_projections=4).directions)
    assert "resample=True" in repr(F)
    both = 0.5 * F + quadratic()
    assert both.varies
    assert both.draws
    mu, g = cloud(3), seeded()
    mean = torch.stack([F.prepare(mu, None, 0, g)[0].wasserstein_gradient(mu) for _ in range(200)]).mean(0)
    assert_close(mean, SlicedMMD(MANY, n_projections=500).wasserstein_gradient(mu), rtol=0.1, scale=1.0)


def test_a_callback_must_not_change_the_functional():
    place, mu = Place(), cloud(3)
    scaled = 0.5 * quadratic()
    cases = {
        "factor": (scaled, lambda r: setattr(scaled, "factor", 0.5 * scaled.factor)),
        "at": (PotentialEnergy(place), lambda r: place.at.mul_(0.9)),
        "potential": (PotentialEnergy(place), None),
    }
    for name, (F, change) in cases.items():
        change = change or (lambda r, F=F: setattr(F, "potential", Place()))
        with torch.no_grad(), pytest.raises(ValueError, match=rf"^callback: .* changed .*{name}.* a step late; .*Varying"):
            flow(F, mu, steps=3, callback=change)
    with pytest.raises(ValueError, match=r"^callback: "):
        equilibrium(scaled, mu, callback=cases["factor"][1])
    seen = []
    with torch.no_grad():
        flow(PotentialEnergy(place), mu, steps=3, callback=lambda r: seen.append(scaled(mu)))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Varying(quadratic()), "^function: expected one of step and generator"),
        (lambda: Varying(lambda k, g: 3.0), "^function: expected a ddeq.Functional or a VelocityField at step 0"),
        (lambda: Varying(lambda k, g: VARYING["slices"]), "that does not vary"),
        (
            lambda: flow(Varying(lambda k, g: quadratic() if k < 2 else VelocityField(lambda mu, x: -x)), cloud(3), steps=4),
            "^function: expected what it gives at step 0",
        ),
        (lambda: Varying(annealed).velocity(cloud(3)), r"at\(step, generator\)"),
        (lambda: flow(Varying(annealed), cloud(3), stepper=LBFGS(), steps=2), "^stepper: LBFGS .*; use Euler"),
        (lambda: flow(VARYING["slices"], cloud(3), stepper=LBFGS(), steps=2), "^stepper: LBFGS .*; use Euler"),
        (
            lambda: flow(Varying(annealed), cloud(3), stop=Stop(metric="energy")),
            "^stop: .* do not compare.*; use the metric None",
        ),
        (lambda: flow(Varying(lambda k, g: Entropy(0.5)), cloud(3), noise=Langevin(), steps=2), "count twice"),
        (lambda: _check_stationary(Varying(annealed)), "^functional: .* another energy in each step"),
        (lambda: equilibrium(VARYING["slices"], cloud(3)), "^functional: .* another energy in each step"),
        (lambda: SlicedMMD(MANY, directions=torch.eye(2, dtype=DOUBLE), resample=True), "^resample: "),
        (lambda: FixedPointDiscrepancy(lambda mu: mu, VARYING["slices"])(cloud(3)), "^discrepancy: .*resample"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_diverged_samples_have_their_last_good_energy():
    F = Varying(lambda k, g: PotentialEnergy(lambda x: -(1.0 + k) * x.square().sum(-1) ** 4))
    with torch.no_grad():
        trajectory = flow(F, cloud(3, batch=(2,)) * 1.0, stepper=Euler(1.0), steps=30)
    assert (trajectory.status == Status.DIVERGED.value).all()
    assert torch.isfinite(trajectory.measure.points).all()
    assert torch.isfinite(trajectory.energies[0]).all()
