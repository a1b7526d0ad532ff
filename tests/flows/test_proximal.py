"""Proximal steps against closed forms (T15)."""

import pytest
import torch
from landscapes import DOUBLE, cloud, deviation, normal_quantiles, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import Proximal, Stein
from ddeq.functionals import MMD, Entropy, KLDivergence, PotentialEnergy, Wasserstein
from ddeq.iteration import InnerProblemWarning, Stop
from ddeq.kernels import Gaussian
from ddeq.testing import assert_close
from proofs_checks.test_t15_proximal_steps import jko_entropy_standard_deviation, proximal_quadratic

TARGET = cloud(5, seed=3, shift=0.7)


@pytest.mark.theorem("T15")
@pytest.mark.parametrize("tau", [0.1, 1.0, 100.0])
def test_quadratic_potential(tau):
    """However long the step."""
    mu = cloud(6, batch=(2,))
    end = flow(quadratic(3.0), mu, stepper=Proximal(tau), steps=1).measure
    factor = float(proximal_quadratic(1, tau, 3))
    assert_close(end.points, factor * mu.points, rtol=1e-5)


@pytest.mark.theorem("T15")
@pytest.mark.parametrize("start", [0.7, 1.0])
def test_entropy_of_a_gaussian(start):
    """The blob smooths the density with bandwidth h, so it sees the deviation sqrt(s^2 + h^2): an error of order h^2."""
    mu, tau = normal_quantiles(300, start), 0.1
    exact = float(jko_entropy_standard_deviation(start, tau))
    errors = []
    for bandwidth in (0.4, 0.2):
        end = flow(Entropy(bandwidth), mu, stepper=Proximal(tau, inner=Stop(rtol=1e-4, max_steps=300)), steps=1).measure
        errors.append(abs(deviation(end) - exact))
    assert errors[-1] < 4e-3
    if start == 1.0:
        assert exact == pytest.approx(1.0916079783)


@pytest.mark.theorem("T15")
def test_divergence_from_a_gaussian():
    """Steps of KL(. | N(0, 1/l)) from a narrow Gaussian reach the variance of the target, up to the bias of the blob."""
    stiffness, tau, bandwidth = 2.0, 0.2, 0.15
    F = KLDivergence(lambda x: -0.5 * stiffness * x.square().sum(-1), bandwidth)
    trajectory = flow(
        F, normal_quantiles(200, 0.4), stepper=Proximal(tau, inner=Stop(rtol=1e-3, max_steps=300)), steps=6, record=1
    )
    expected = 0.4
    for mu in list(trajectory.measures)[1:]:
        # minimise l s^2 / 2 - log s + (s - s0)^2 / (2 tau) over s
        expected = (expected + (expected**2 + 4 * tau * (1 + tau * stiffness)) ** 0.5) / (2 * (1 + tau * stiffness))
        assert deviation(mu) == pytest.approx(expected, rel=0.02)


@pytest.mark.theorem("T15")
@pytest.mark.parametrize("mass", [1.0, 2.5])
def test_the_movement_is_the_wasserstein_distance(mass):
    """Atoms stay coupled to themselves, and at the minimiser this is the optimal coupling; of the mass as it is."""
    mu = mass * cloud(12, scale=2.0)
    end = flow(MMD(TARGET, Gaussian(1.5)), mu, stepper=Proximal(2.0), steps=1).measure
    movement = 0.5 * (mu.weights * (end.points - mu.points).square().sum(-1)).sum()
    assert_close(movement, Wasserstein(mu)(end), rtol=1e-10)


@pytest.mark.theorem("T15")
@pytest.mark.parametrize("geometry", ["wasserstein", "stein"])
def test_first_order_condition(geometry):
    """In the geometry of Stein the movement is C a with a = -tau grad F at the new atoms."""
    kernel, tau, mu = Gaussian(1.0), 0.7, cloud(5, batch=(2,))
    F = MMD(TARGET, Gaussian(1.0)) + 0.5 * quadratic()
    options = {"geometry": Stein(kernel)} if geometry == "stein" else {}
    end = flow(F, mu, stepper=Proximal(tau, inner=Stop(rtol=1e-9, max_steps=500)), steps=1, **options).measure
    force = -tau * F.wasserstein_gradient(end)
    if geometry == "stein":
        force = kernel(mu.points, mu.points) @ (mu.weights.unsqueeze(-1) * force)
    assert_close(end.points - mu.points, force, rtol=1e-7)


@pytest.mark.theorem("T15")
def test_each_step_pays_for_its_movement():
    """F(mu+) + |mu+ - mu|^2 / (2 tau) <= F(mu), for steps much longer than any explicit one."""
    F, tau = MMD(TARGET, Gaussian(0.5)) + quadratic(50.0), 10.0
    trajectory = flow(F, cloud(8), stepper=Proximal(tau), steps=5, record=1)
    moved = trajectory.measures.points.diff(dim=0).square().sum(-1).mean(-1)
    assert (trajectory.energies.diff() + moved / (2 * tau) <= 1e-12).all()


def test_an_inner_problem_that_is_not_solved_says_so():
    with pytest.warns(InnerProblemWarning, match="inner problems of some samples") as caught:
        flow(quadratic(), cloud(3), stepper=Proximal(1.0, inner=Stop(rtol=1e-12, max_steps=0)), steps=1)
    assert (caught[0].message.failed, caught[0].message.total) == (1, 1)


def test_step_sizes_for_each_sample():
    mu = cloud(3, batch=(2,))
    tau = torch.tensor([0.5, 2.0], dtype=torch.float64)
    end = flow(quadratic(), mu, stepper=Proximal(tau), steps=1)
    assert_close(end.measure.points, mu.points / (1 + tau)[:, None, None], rtol=1e-5)
    assert end.times[-1].tolist() == [0.5, 2.0]


@pytest.mark.theorem("T15")
def test_derivatives_of_a_step():
    """By the implicit rule, in the start, the weights, the step size and a target, to second order."""

    def end(points, weights, tau, target):
        F = MMD(DiscreteMeasure(target), Gaussian(1.0)) + 0.5 * quadratic()
        mu = DiscreteMeasure(points, weights)
        stepper = Proximal(tau, inner=Stop(rtol=1e-11, max_steps=500))
        return flow(F, mu, stepper=stepper, steps=2).measure.points

    inputs = (
        cloud(3).points,
        torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE),
        torch.tensor(0.7, dtype=DOUBLE),
        cloud(2, seed=5).points,
    )
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(end, inputs, atol=1e-5)
    assert torch.autograd.gradgradcheck(
        lambda p, t: end(p, inputs[1].detach(), inputs[2].detach(), t), (inputs[0], inputs[3]), atol=1e-4
    )


def test_atoms_of_mass_zero_do_not_disturb_derivatives():
    points = cloud(3).points.requires_grad_()
    mu = DiscreteMeasure(points)
    F = MMD(TARGET, Gaussian(1.0)) + 0.5 * quadratic()

    def slope(mu):
        end = flow(F, mu, stepper=Proximal(0.7, inner=Stop(rtol=1e-11, max_steps=500)), steps=2).measure
        (g,) = torch.autograd.grad((end.weights * end.points.square().sum(-1)).sum(), points)
        return g

    assert_close(slope(mu.pad_atoms(2)), slope(mu), rtol=1e-6)


def test_what_cannot_be_differentiated_is_refused():
    hidden = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    F = PotentialEnergy(lambda x: hidden * x.square().sum(-1))
    with pytest.raises(ValueError, match="enter"):
        flow(F, cloud(3), stepper=Proximal(0.1), steps=1)
    with torch.no_grad():
        flow(F, cloud(3), stepper=Proximal(0.1), steps=1)
    mu = DiscreteMeasure(cloud(3).points.requires_grad_())
    with pytest.raises(ValueError, match="no_grad"):
        flow(quadratic(), mu, stepper=Proximal(0.1), geometry=Stein(), steps=1)
