"""L-BFGS: against the dense recursion and scipy, on the classical functions; what it promises of energies, scales and saddles."""

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from landscapes import DOUBLE, FEW, cloud, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import LBFGS, AdaptiveEuler, FunctionalDescent, Stein, equilibrium
from ddeq.functionals import MMD, InteractionEnergy, PotentialEnergy
from ddeq.iteration import Iterate, Status, Stop, Unrolled
from ddeq.kernels import Gaussian, Riesz
from ddeq.testing import assert_close, check_flow
from ddeq.testing.strategies import measures

NICE = {"offsets": (0.0,), "scales": (1.0,)}
SMALL = 1e-5
"""The largest entry that the gradient may have at the end."""


def rosenbrock(x):
    return 100 * (x[..., 1] - x[..., 0] ** 2) ** 2 + (1 - x[..., 0]) ** 2


def beale(x):
    a, b = x[..., 0], x[..., 1]
    return (1.5 - a * (1 - b)) ** 2 + (2.25 - a * (1 - b**2)) ** 2 + (2.625 - a * (1 - b**3)) ** 2


def trigonometric(x):
    n = x.shape[-1]
    index = torch.arange(1, n + 1, dtype=x.dtype)
    return (n - x.cos().sum(-1, keepdim=True) + index * (1 - x.cos()) - x.sin()).square().sum(-1)


def fletcher_powell(n=70):
    """Sum of squares of trigonometric sums with random coefficients, from near a zero."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(-100, 101, (2, n, n), generator=g).to(DOUBLE)
    zero, away = 3.14 * (2 * torch.rand(2, n, generator=g, dtype=DOUBLE) - 1)
    wanted = a @ zero.sin() + b @ zero.cos()
    return lambda x: (wanted - x.sin() @ a.T - x.cos() @ b.T).square().sum(-1), (zero + 0.1 * away).tolist()


def chain(x):
    """Springs of length 1 in a row that begins at 0."""
    return 0.5 * (torch.cat([torch.zeros_like(x[..., :1]), x], -1).diff(dim=-1) - 1).square().sum(-1)


def chain_between_walls(x):
    ends = torch.zeros_like(x[..., :1]), torch.full_like(x[..., :1], x.shape[-1] + 1.0)
    return 0.5 * (torch.cat([ends[0], x, ends[1]], -1).diff(dim=-1) - 1).square().sum(-1)


CLASSICAL = {
    "Rosenbrock": (rosenbrock, [-1.2, 1.0]),
    "Beale": (beale, [1.0, 1.0]),
    "trigonometric": (trigonometric, [1 / 70] * 70),
    "half a trigonometric": (lambda x: 0.5 * trigonometric(x), [1 / 70] * 70),
    "trigonometric of Fletcher and Powell": fletcher_powell(),
    "a chain of 10": (chain, [0.0] * 10),
    "a chain of 25": (chain, [0.0] * 25),
    "10 between walls": (chain_between_walls, [0.0] * 10),
    "25 between walls": (chain_between_walls, [0.0] * 25),
}


class Counted(PotentialEnergy):
    """Counts its gradients."""

    calls = 0

    def wasserstein_gradient(self, mu, x=None):
        self.calls += 1
        return super().wasserstein_gradient(mu, x)


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("way", ["flow", "equilibrium"])
def test_gradients_beside_those_of_scipy(name, way):
    """Until the largest entry is 1e-5, at most 1.5 times as many as scipy's BFGS takes, from the same start."""
    function, start = CLASSICAL[name]

    def both(x):
        x = torch.tensor(x, requires_grad=True)
        value = function(x)
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    bfgs = scipy.optimize.minimize(both, start, jac=True, method="BFGS", options={"gtol": SMALL})
    F, mu = Counted(function), DiscreteMeasure(torch.tensor([start], dtype=DOUBLE))
    with torch.no_grad():
        stop = Stop(rtol=SMALL / F.wasserstein_gradient(mu).norm().item(), atol=1e-300, max_steps=500)
        F.calls = 0
        if way == "flow":
            end, count = flow(F, mu, LBFGS(), stop=stop, record=500).measure, None
        else:
            solution = equilibrium(F, mu, stop=stop)
            end, count = solution.measure, solution.evaluations
        calls = F.calls
    assert count in (None, calls)
    assert F.wasserstein_gradient(end).abs().max() <= SMALL
    assert F(end) <= bfgs.fun + 1e-8
    # A flow evaluates the dissipation of each of its records, of which there are two here.
    assert calls <= 1.5 * bfgs.nfev + (2 if way == "flow" else 0)


@pytest.mark.theorem("T9")
@pytest.mark.parametrize("memory", [1, 2, 5])
def test_steps_are_those_of_the_dense_recursion(memory):
    """BFGS of the last pairs for the fields times the roots of their masses, with matrices, written from the textbook."""
    mu = cloud(4, seed=1).with_weights(torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=DOUBLE))
    F = MMD(cloud(5, seed=2), Gaussian(1.5)) + quadratic(0.3)
    roots = mu.weights.sqrt().repeat_interleave(2)
    path = flow(F, mu, LBFGS(memory), steps=7, record=1).measures.points
    x = [roots * z.flatten() for z in path]
    g = [roots * F.wasserstein_gradient(mu.with_points(z)).flatten() for z in path]
    for k in range(2, 7):
        pairs = [(x[j + 1] - x[j], g[j + 1] - g[j]) for j in range(max(0, k - memory), k)]
        s, y = pairs[-1]
        assert min(s @ y for s, y in pairs) > 0
        inverse = (s @ y) / (y @ y) * torch.eye(8, dtype=DOUBLE)
        for s, y in pairs:
            left = torch.eye(8, dtype=DOUBLE) - torch.outer(s, y) / (s @ y)
            inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
        direction, moved = -inverse @ g[k], x[k + 1] - x[k]
        assert_close(moved / moved.norm(), direction / direction.norm(), rtol=1e-7)


def test_a_quadratic_energy_ends_in_about_as_many_steps_as_it_has_unknowns():
    """As BFGS does with exact line searches; adaptive Euler steps take many more."""
    stiffness = torch.logspace(0, 2, 12, dtype=DOUBLE)
    F = PotentialEnergy(lambda x: 0.5 * (stiffness * x.square()).sum(-1))
    mu = DiscreteMeasure(1.0 / stiffness.unsqueeze(0))
    stop = Stop(rtol=1e-8, atol=1e-300, max_steps=500)
    trajectory, other = (flow(F, mu, stepper, stop=stop) for stepper in (LBFGS(), AdaptiveEuler()))
    assert trajectory.converged
    assert trajectory.steps <= 18
    assert other.steps > 36


@pytest.mark.theorem("T10")
@FEW
@given(mu=measures(**NICE), sharp=st.sampled_from([0.3, 1.0]))
def test_energies_never_rise_but_for_rounding(mu, sharp):
    F = MMD(cloud(4, seed=3, shift=0.7), Gaussian(sharp)) + InteractionEnergy(lambda d: (-d.square().sum(-1)).exp())
    energies = flow(F, mu, LBFGS(), steps=12, record=1).energies
    assert (energies.diff(dim=0) <= 1e-14 * mu.mass().square().clamp_min(1.0)).all()


@pytest.mark.theorem("T9")
@FEW
@given(mu=measures(**NICE))
def test_iterates_depend_on_the_measure_alone(mu):
    """Under permutations, splits and atoms of mass zero, past the first steps, whose matrix is still a multiple of one."""
    check_flow(MMD(cloud(4, seed=3), Gaussian(1.0)) + 0.2 * quadratic(), mu, stepper=LBFGS(), steps=6, units=1e8)


def test_one_gradient_for_each_step():
    F = Counted(rosenbrock)
    with torch.no_grad():
        solution = equilibrium(F, DiscreteMeasure(torch.tensor([[-1.2, 1.0]], dtype=DOUBLE)), finish=False)
    assert solution.converged
    assert F.calls == solution.evaluations == solution.steps.item() + 1


@pytest.mark.parametrize("energy", [2.0**-40, 1.0, 2.0**40])
@pytest.mark.parametrize("length", [2.0**-20, 1.0, 2.0**20])
def test_units_do_not_matter(energy, length):
    """Of energies and of lengths: the same steps, in these units."""
    mu = cloud(4, shift=0.3)
    plain = flow(PotentialEnergy(rosenbrock), mu, LBFGS(), steps=8, record=8).measure.points
    scaled = PotentialEnergy(lambda x: energy * rosenbrock(x / length))
    assert_close(flow(scaled, mu.with_points(length * mu.points), LBFGS(), steps=8, record=8).measure.points, length * plain)


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_the_first_step_is_found_by_energies(far):
    """A step of another method would be 1e6 times too long or too short; one gradient each here."""
    F = PotentialEnergy(lambda x: 0.5e12 * (x - far).square().sum(-1))
    mu = cloud(3, shift=far)
    assert flow(F, mu, LBFGS(), stop=Stop(rtol=1e-4, max_steps=3)).converged


@pytest.mark.parametrize(
    "kernel",
    [Gaussian(1.0), pytest.param(Gaussian(2.0), marks=pytest.mark.slow), Riesz(1.5)],
    ids=["short", "long", "rough"],
)
def test_single_precision_where_energies_tell_nothing(kernel):
    """A hundredth of the gradient from which no decrease is seen any more: adaptive Euler steps stagnate before."""
    F, mu = MMD(cloud(30, seed=1).to(torch.float32), kernel), cloud(20).to(torch.float32)
    with torch.no_grad():
        solution = equilibrium(F, mu, finish=False, stop=Stop(rtol=1e-4, max_steps=1500))
        other = equilibrium(F, mu, stepper=AdaptiveEuler(), finish=False, stop=Stop(rtol=1e-4, max_steps=1500))
    assert solution.converged
    assert not other.converged
    assert F(solution.measure) <= F(other.measure) * 1.01


@pytest.mark.slow
def test_kinks_end_it():
    """The gradient does not vanish: it says so, at a lower energy than adaptive Euler steps."""
    F, mu, stop = MMD(cloud(10, seed=1), Riesz(1.0)), cloud(6), Stop(rtol=1e-6, max_steps=3000)
    ended, other = (flow(F, mu, stepper, stop=stop) for stepper in (LBFGS(), AdaptiveEuler()))
    assert ended.status.item() == Status.STAGNATED
    assert ended.energies[-1] <= other.energies[-1] + 1e-12


@pytest.mark.theorem("T16")
def test_saddles_are_left():
    """Random quadratic saddles with a quartic wall, turned, from starts 1e-4 off the way into the saddle."""
    for seed in range(15):
        g = torch.Generator().manual_seed(seed)
        d = 2 + seed % 4
        turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=DOUBLE))[0]
        curvature = 10 ** (2 * torch.rand(d, generator=g, dtype=DOUBLE) - 1)
        curvature[0] *= -1
        A = turn @ torch.diag(curvature) @ turn.T
        F = PotentialEnergy(lambda x, A=A: 0.5 * ((x @ A) * x).sum(-1) + 0.25 * x.square().sum(-1).square())
        z = torch.randn(d, generator=g, dtype=DOUBLE)
        z[0] = 1e-4
        with torch.no_grad():
            solution = equilibrium(F, DiscreteMeasure((turn @ z).unsqueeze(0)), stop=Stop(rtol=1e-6, max_steps=500))
        x = solution.measure.points[0]
        hessian = A + x.square().sum() * torch.eye(d, dtype=DOUBLE) + 2 * torch.outer(x, x)
        assert solution.converged
        assert torch.linalg.eigvalsh(hessian)[0] > 0


def test_negative_curvature_is_not_learnt():
    """Down a concave slope each step is longer than the last, and always downhill."""
    F = PotentialEnergy(lambda x: x.cos().sum(-1))
    mu = DiscreteMeasure(torch.tensor([[1e-6]], dtype=DOUBLE))
    trajectory = flow(F, mu, LBFGS(), stop=Stop(rtol=1e-3, atol=1e-12, max_steps=40), record=1)
    assert trajectory.converged
    assert trajectory.measure.points.item() == pytest.approx(torch.pi, abs=1e-6)


def test_an_overflow_is_no_step():
    """Where a trial overflows, the step is shortened; where the gradient does, the sample has diverged, alone."""
    F = PotentialEnergy(lambda x: (30 * x).exp().sum(-1) - x.sum(-1))
    mu = DiscreteMeasure(torch.tensor([[[10.0]], [[0.1]]], dtype=DOUBLE))
    trajectory = flow(F, mu, LBFGS(), stop=Stop(rtol=1e-130, atol=1e-300, max_steps=60))
    alone = flow(F, mu[1], LBFGS(), stop=Stop(rtol=1e-130, atol=1e-300, max_steps=60))
    assert torch.isfinite(trajectory.measure.points).all()
    assert_close(trajectory.measure[1].points, alone.measure.points)
    F = torch.tensor([torch.nan, 1.0], dtype=DOUBLE) * quadratic()
    ended = flow(F, cloud(3, batch=(2,)), LBFGS(), stop=Stop(rtol=1e-6, max_steps=20))
    assert ended.status.tolist() == [Status.DIVERGED, Status.CONVERGED]


# --- derivatives ---


class Confined(torch.nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.register_buffer("strength", strength)

    def forward(self, x):
        return self.strength * (x.square().sum(-1) + 0.3 * (x - 0.4).pow(4).sum(-1))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_derivatives_of_the_steps_against_finite_differences(steps, checkpoint):
    """Lengths and matrices count too: in the start, the masses, a target and a coefficient."""
    start, target = cloud(3).points, cloud(4, seed=2).points
    inputs = [start, torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE), target, torch.tensor(0.7, dtype=DOUBLE)]

    def end(start, weights, target, strength):
        F = MMD(DiscreteMeasure(target), Gaussian(1.0)) + PotentialEnergy(Confined(strength))
        mu = DiscreteMeasure(start, weights)
        return flow(F, mu, LBFGS(), steps=steps, record=steps, adjoint=Unrolled(checkpoint=checkpoint)).measure.points

    assert torch.autograd.gradcheck(end, [t.clone().requires_grad_() for t in inputs], atol=1e-5, rtol=1e-4)


def test_unrolled_and_implicit_derivatives_agree_at_the_end():
    strength, target = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True), cloud(4, seed=2).points.requires_grad_()
    stop = Stop(rtol=1e-11, atol=1e-300, max_steps=500)

    def F():
        return MMD(DiscreteMeasure(target), Gaussian(1.0)) + PotentialEnergy(Confined(strength))

    found = []
    for end in (flow(F(), cloud(3), LBFGS(), stop=stop).measure, equilibrium(F(), cloud(3), stop=stop).measure):
        found.append(torch.autograd.grad(end.points.sin().sum(), (strength, target)))
    for unrolled, implicit in zip(*found, strict=True):
        assert_close(unrolled, implicit, rtol=1e-5)


def test_implicit_derivatives_of_the_default_against_finite_differences():
    inputs = [cloud(4, seed=2).points, torch.tensor(0.7, dtype=DOUBLE)]

    def rest(target, strength):
        F = MMD(DiscreteMeasure(target), Gaussian(1.0)) + PotentialEnergy(Confined(strength))
        return equilibrium(F, cloud(3), stop=Stop(rtol=1e-12, atol=1e-300, max_steps=500)).measure.points

    assert torch.autograd.gradcheck(rest, [t.clone().requires_grad_() for t in inputs], atol=1e-6)


# --- what it is given ---


def test_a_step_leaves_the_velocity_of_a_resting_atom():
    descent = FunctionalDescent(quadratic(0.0), cloud(3))
    nothing = torch.zeros_like(descent.like.points)
    at = Iterate(descent.like.points, nothing, torch.tensor(0.0, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE), 0)
    stepper = LBFGS(2)
    assert torch.equal(stepper.step(descent, at, stepper.init(descent, at)).z, at.z)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LBFGS(0), "memory: expected a whole number >= 1, got 0"),
        (lambda: LBFGS(2.5), "memory: "),
        (lambda: LBFGS(True), "memory: "),
        (lambda: flow(quadratic(), cloud(2), LBFGS(), geometry=Stein()), "geometry: LBFGS learns the curvature from gradients"),
        (lambda: equilibrium(quadratic(), cloud(2), stepper=LBFGS(), geometry=Stein()), "geometry: LBFGS"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
