"""Systems that researchers write, each against what is known of it."""

from itertools import pairwise

import pytest
import torch
from landscapes import DOUBLE, cloud

from ddeq import DiscreteMeasure, Functional, fixed_point, flow
from ddeq.flows import AdaptiveEuler, Euler, Heun, Optimizer
from ddeq.functionals import MMD, Wasserstein
from ddeq.iteration import Status, Stop
from ddeq.kernels import Riesz
from ddeq.testing import assert_close
from ddeq.viz import plot_energy, plot_trajectory

pytestmark = pytest.mark.theorem("T23")


def meet(mu, nu, profile):
    """The integral of a function of the squared distance over both measures."""
    squared = (mu.points.unsqueeze(-2) - nu.points.unsqueeze(-3)).square().sum(-1)
    return (mu.weights.unsqueeze(-1) * nu.weights.unsqueeze(-2) * profile(squared)).sum((-2, -1))


def test_predators_come_near_and_prey_flee():
    """The predators' energy falls and that of the prey rises, which no joint energy allows."""
    game = {
        "prey": Functional.of(
            lambda m: meet(m["prey"], m["prey"], lambda s: 0.25 * s) + meet(m["prey"], m["hunt"], lambda s: torch.exp(-s))
        ),
        "hunt": Functional.of(lambda m: -3.0 * meet(m["hunt"], m["prey"], lambda s: torch.exp(-s / 4.0))),
    }
    start = {"prey": cloud(12, 2, scale=0.3), "hunt": cloud(2, 2, seed=1, scale=0.3, shift=2.0)}
    hunt = flow(game, start, stepper=Heun(0.1), steps=40, record=4)
    assert hunt.energies["hunt"][-1] < hunt.energies["hunt"][0] - 0.5
    assert hunt.energies["prey"][-1] > hunt.energies["prey"][0]


def test_cross_diffusion_mixes_below_and_segregates_above_the_threshold():
    def overlap(mu, nu):
        return meet(mu, nu, lambda s: torch.exp(-s / (2 * 0.4**2)))

    def spreading(b):
        def energy(m):
            bowl = sum((mu.weights * mu.points.square().sum(-1)).sum(-1) for mu in m.values())
            return 0.1 * bowl + 0.5 * (overlap(m["a"], m["a"]) + overlap(m["b"], m["b"])) + b * overlap(m["a"], m["b"])

        return Functional.of(energy)

    start = {"a": cloud(12, 1, scale=0.5), "b": cloud(9, 1, seed=1, scale=0.5)}
    shared = []
    for b in (0.0, 4.0):
        found = flow(spreading(b), start, stepper=AdaptiveEuler(), steps=60, record=1)
        assert (found.energies.diff() <= 0).all()
        m = found.measure
        shared.append(overlap(m["a"], m["b"]) / (overlap(m["a"], m["a"]) * overlap(m["b"], m["b"])).sqrt())
    assert shared[0] > 0.95
    assert shared[1] < 0.5


# A linear-quadratic mean-field game: x' = v costs v^2 / 2 + q (x - kappa m)^2 / 2, and sqrt(q) (x - kappa m)^2 / 2 at the end.
Q, HORIZON = 4.0, 1.0


def best_responses(crowd, kappa):
    steps = len(crowd)
    dt = HORIZON / steps
    means = torch.stack([mu.mean()[0] for mu in crowd.values()])
    costs = torch.full((steps,), Q * dt, dtype=DOUBLE)
    costs[-1] = Q**0.5
    side = torch.full((steps - 1,), -1.0 / dt, dtype=DOUBLE)
    bend = torch.diag(torch.full((steps,), 2.0 / dt, dtype=DOUBLE)) + torch.diag(side, 1) + torch.diag(side, -1)
    bend[-1, -1] = 1.0 / dt
    first = torch.zeros(steps, dtype=DOUBLE)
    first[0] = 1.0 / dt
    answers = torch.linalg.inv(bend + torch.diag(costs))
    return {
        name: mu.with_points(mu.marks * (answers[k] @ first) + answers[k] @ (costs * kappa * means))
        for k, (name, mu) in enumerate(crowd.items())
    }


def crowd(steps):
    begin = cloud(5, 1, scale=0.4, shift=1.0).points
    return begin, {f"time {k + 1}": DiscreteMeasure(begin, marks=begin) for k in range(steps)}


def riccati(begin, times, kappa):
    """P' = P^2 - q for deviations from the mean, stationary; P' = P^2 - q (1 - kappa) for the mean: in closed form."""
    r, end, left = (Q * (1 - kappa)) ** 0.5, Q**0.5 * (1 - kappa), HORIZON - times
    at_start = r * torch.cosh(r * HORIZON) + end * torch.sinh(r * HORIZON)
    mean = begin.mean() * (r * torch.cosh(r * left) + end * torch.sinh(r * left)) / at_start
    return mean + (begin - begin.mean()) * torch.exp(-(Q**0.5) * times)


def test_a_mean_field_game_agrees_with_its_riccati_solution():
    """To first order in the steps of time; and the derivative of the mean at the end in kappa."""
    kappa = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    exact_end = riccati(crowd(1)[0], torch.tensor([HORIZON], dtype=DOUBLE), kappa).mean()
    (exact,) = torch.autograd.grad(exact_end, kappa)
    errors, slopes = [], []
    for steps in (10, 20, 40):
        begin, start = crowd(steps)
        solution = fixed_point(best_responses, start, kappa, stop=Stop(rtol=1e-12))
        assert solution.converged
        times = torch.arange(1, steps + 1, dtype=DOUBLE) * HORIZON / steps
        paths = torch.cat([mu.points for mu in solution.measure.values()], -1)
        errors.append((paths - riccati(begin, times, kappa)).abs().max().item())
        (slope,) = torch.autograd.grad(solution.measure[f"time {steps}"].mean().sum(), kappa)
        slopes.append(abs(slope - exact).item())
    for numbers in (errors, slopes):
        assert numbers[-1] < 0.05
        assert all(1.6 < a / b < 2.6 for a, b in pairwise(numbers))


def test_coupled_barycentres_of_translates():
    """u = a + l (b - a) / (1 + 2 l) is where the first of two translates of a shape comes to rest."""
    shape, a, b, strength = cloud(6).points, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5
    to_a, to_b = (Wasserstein(DiscreteMeasure(shape + t.double())) for t in (a, b))

    def energy(m):
        return to_a(m["a"]) + to_b(m["b"]) + strength * Wasserstein(m["b"])(m["a"])

    start = {"a": cloud(6, seed=1), "b": cloud(6, seed=2)}
    found = flow(Functional.of(energy), start, stepper=Euler(0.4), steps=60).measure
    middle = (a + strength * (b - a) / (1 + 2 * strength)).double()
    assert Wasserstein(DiscreteMeasure(shape + middle))(found["a"]) < 1e-10


def test_five_coupled_marginals_find_the_one_that_was_not_seen():
    names, shift = [f"time {k}" for k in range(5)], torch.tensor([4.0, 1.0], dtype=DOUBLE)

    def seen(k, seed):
        return cloud(15, seed=seed, scale=0.2, shift=shift * k / 4)

    fits = {name: MMD(seen(k, k), Riesz(1.0)) for k, name in enumerate(names) if k != 2}

    def energy(m):
        moved = sum(Wasserstein(m[b])(m[a]) for a, b in pairwise(names))
        return sum(fit(m[name]) for name, fit in fits.items()) + 0.1 * moved

    start = {name: cloud(10, seed=10 + k, scale=0.5, shift=1.0) for k, name in enumerate(names)}
    found = flow(Functional.of(energy), start, stepper=Euler(lambda k: 1.0 / (1.0 + k / 20)), steps=60)
    assert found.energies[-1] < 0.2 * found.energies[0]
    assert (found.measure["time 2"].mean() - shift / 2).norm() < 0.2


def cross(mu, nu):
    """Mean distances between the clouds of two batches, ``(k, l)``."""
    apart = (mu.points[:, None, :, None] - nu.points[None, :, None]).square().sum(-1).clamp_min(1e-16).sqrt()
    return torch.einsum("kn,klnm,lm->kl", mu.weights, apart, nu.weights)


def to_data_set(target, shares, weights):
    """Half the squared MMD between data sets; the kernel on clouds is minus a root of the energy distance."""

    def between(mu, nu):
        own = [torch.diagonal(cross(m, m)) for m in (mu, nu)]
        squared = 2.0 * cross(mu, nu) - own[0][:, None] - own[1][None, :]
        return -(1e-2 + squared.clamp_min(0.0)).sqrt()

    constant = 0.5 * shares @ between(target, target) @ shares
    return Functional.of(
        lambda mu: 0.5 * weights @ between(mu, mu) @ weights - weights @ between(mu, target) @ shares + constant,
        couples_batch=True,
        outer_weights=weights,
    )


def test_a_labelled_data_set_flows_to_three_rings():
    """Of four clouds with a quarter of the mass each two meet on the ring that has half of it."""
    angle = 2 * torch.pi * torch.arange(12, dtype=DOUBLE) / 12
    places = torch.tensor([[-1.6, 0.0], [1.0, 1.2], [1.0, -1.2]], dtype=DOUBLE)
    rings = DiscreteMeasure(places[:, None] + 0.7 * torch.stack([angle.cos(), angle.sin()], -1))
    shares, quarter = torch.tensor([0.5, 0.25, 0.25], dtype=DOUBLE), torch.full((4,), 0.25, dtype=DOUBLE)
    middles = torch.tensor([[-0.6, 0.5], [-0.4, -0.6], [0.4, 0.3], [0.5, -0.5]], dtype=DOUBLE)
    start = DiscreteMeasure(middles[:, None] + 0.25 * cloud(10, batch=(4,)).points)
    F = to_data_set(rings, shares, quarter)
    assert abs(to_data_set(rings, shares, shares)(rings)) < 1e-12
    found = flow(F, start, stepper=AdaptiveEuler(), steps=40, record=1)
    assert found.status.item() == Status.COMPLETED
    assert (found.energies.diff() <= 0).all()
    assert found.energies[-1] < 0.05 * found.energies[0]
    nearest = (found.measure.mean()[:, None] - places).norm(dim=-1)
    assert sorted(nearest.argmin(-1).tolist()) == [0, 0, 1, 2]
    assert nearest.amin(-1).max() < 0.3


def test_labelled_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    classes = [torch.tensor(digits.data[digits.target == k][:8], dtype=DOUBLE) / 16.0 for k in range(3)]
    target, shares = DiscreteMeasure(torch.stack(classes)), torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)
    start = DiscreteMeasure(target.points.mean((0, 1)) + 0.3 * cloud(6, 64, batch=(3,)).points)
    F = to_data_set(target, shares, shares)
    found = flow(F, start, stepper=AdaptiveEuler(), steps=40)
    assert found.energies[-1] < 0.5 * found.energies[0]
    adam = flow(F, start, stepper=Optimizer(torch.optim.Adam, lr=0.05), steps=30)
    assert adam.energies[-1] < adam.energies[0]


def test_pictures_of_systems():
    start = {"a": cloud(5, 2), "b": cloud(4, 2, seed=1)}

    def pull(m):
        return meet(m["a"], m["b"], lambda s: 0.5 * s)

    joint = flow(Functional.of(pull), start, steps=5, record=1)
    game = flow({"a": Functional.of(pull), "b": Functional.of(lambda m: -pull(m))}, start, steps=5, record=1)
    plot_energy(joint, dissipation=True)
    legend = plot_energy({"joint": joint, "game": game}).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["joint", "game a", "game b"]
    with pytest.raises(ValueError, match=r"trajectory: expected the flow of one measure, got .*of_species\('a'\)"):
        plot_trajectory(game)
    with pytest.raises(ValueError, match="dissipation: expected a flow that descends one energy"):
        plot_energy(game, dissipation=True)
    with pytest.raises(ValueError, match="name: expected one of the measures of a system, got 'c'"):
        game.of_species("c")
    part = game.of_species("b")
    assert_close(part.energies, game.energies["b"])
    plot_trajectory(part)
