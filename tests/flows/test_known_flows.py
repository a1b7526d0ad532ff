"""Flows whose solutions are known in closed form, to the accuracy that their order predicts; and what symmetry holds fast."""

import math

import pytest
import torch
from landscapes import DOUBLE, cloud, deviation, normal_quantiles, quadratic

from ddeq import DiscreteMeasure, flow
from ddeq.flows import AdaptiveEuler, Euler, Heun
from ddeq.functionals import KSD, MMD, Entropy, KLDivergence, PotentialEnergy, SinkhornDivergence, SlicedMMD, Wasserstein
from ddeq.kernels import Gaussian, Riesz
from ddeq.testing import assert_close
from proofs_checks.test_t12_one_dimension import dirac_flow_quantile
from proofs_checks.test_t14_known_flows import heat_variance, ou_mean, ou_variance


@pytest.mark.theorem("T12")
@pytest.mark.parametrize(("stepper", "order"), [(Euler, 1), (Heun, 1)], ids=["euler", "heun"])
def test_energy_distance_between_point_masses(stepper, order):
    """The kink at the target makes every explicit stepper one of order one: atoms that have arrived jump about it."""
    n, time = 64, 0.75
    levels = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    exact = torch.tensor([float(dirac_flow_quantile(time, float(s))) for s in levels], dtype=DOUBLE)
    start = DiscreteMeasure((-1 + 1e-9 * torch.arange(n, dtype=DOUBLE)).unsqueeze(-1))
    F = MMD(DiscreteMeasure(torch.zeros(1, 1, dtype=DOUBLE)), Riesz(1.0))
    errors = []
    for steps in (50, 200):
        end = flow(F, start, stepper=stepper(time / steps), steps=steps, record=steps).measure.points.squeeze(-1).sort().values
        errors.append((end - exact).square().mean().sqrt().item())
        assert errors[-1] < 2 * time / steps
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.35)


@pytest.mark.theorem("T12")
def test_energy_distance_between_two_measures_on_the_line():
    """dQ/dt = 2 (s - R(Q)) for a target with distribution function R, by quadrature."""
    target = DiscreteMeasure(torch.tensor([[0.0], [1.0], [4.0]], dtype=DOUBLE), torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE))
    n, time, steps = 40, 1.0, 2000
    q = torch.linspace(2.0, 3.0, n, dtype=DOUBLE)
    s = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    end = flow(
        MMD(target), DiscreteMeasure(q.unsqueeze(-1)), stepper=Euler(time / steps), steps=steps, record=steps
    ).measure.points
    for _ in range(steps):
        below = (target.weights * (target.points.squeeze(-1) < q.unsqueeze(-1))).sum(-1)
        q = q + 2 * time / steps * (s - below)
    assert_close(end.squeeze(-1), q, rtol=2e-3)


@pytest.mark.theorem("T14")
def test_heat_flow_of_the_blob():
    """Variance v0 + 2 t; the blob smooths the density by its bandwidth, an error of first order in its square."""
    errors = []
    for bandwidth in (0.4, 0.2):
        end = flow(Entropy(bandwidth), normal_quantiles(300), stepper=Heun(0.02), steps=10, record=10).measure
        errors.append(abs(deviation(end) ** 2 - float(heat_variance(0.2, 1.0))))
    assert errors[1] < 0.02
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.theorem("T14")
def test_ornstein_uhlenbeck_of_the_blob():
    stiffness, bandwidth, time = 1.5, 0.15, 0.4
    F = KLDivergence(lambda x: -0.5 * stiffness * x.square().sum(-1), bandwidth)
    start = normal_quantiles(250, 0.6).push_forward(lambda x: x + 1.0)
    end = flow(F, start, stepper=Heun(0.02), steps=20, record=20).measure
    assert end.mean().item() == pytest.approx(float(ou_mean(time, 1.0, stiffness)), rel=1e-4)
    assert deviation(end) ** 2 == pytest.approx(float(ou_variance(time, 0.36, stiffness)), rel=0.03)


@pytest.mark.theorem("T14")
@pytest.mark.parametrize(("stepper", "order"), [(Euler, 1), (Heun, 2)], ids=["euler", "heun"])
def test_order_on_a_quadratic(stepper, order):
    start, exact, errors = cloud(3), math.exp(-1.5), []
    for steps in (20, 40):
        end = flow(quadratic(1.5), start, stepper=stepper(1.0 / steps), steps=steps).measure
        errors.append((end.points / start.points - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.theorem("T17")
def test_a_flow_from_an_axis_of_symmetry_stays_on_it():
    """Of a discrepancy from a density with two modes, one on each side: the half-way line is no place to start from."""
    mode = torch.tensor([2.0, 0.0], dtype=DOUBLE)
    log_density = PotentialEnergy(
        lambda x: torch.logaddexp(-0.5 * (x - mode).square().sum(-1), -0.5 * (x + mode).square().sum(-1))
    )
    F = KSD(lambda x: log_density.wasserstein_gradient(DiscreteMeasure(x)), Gaussian(1.0))
    axis = cloud(20).push_forward(lambda x: x * torch.tensor([0.0, 1.0], dtype=DOUBLE))
    options = {"stepper": AdaptiveEuler(), "steps": 200, "record": 200}
    stuck, free = flow(F, axis, **options), flow(F, cloud(20, scale=2.0), **options)
    assert (stuck.measure.points[:, 0] == 0).all()
    assert stuck.dissipation[-1] < 1e-4 * stuck.dissipation[0]  # it has come to rest there
    assert free.measure.points[:, 0].min() < -1.5
    assert free.measure.points[:, 0].max() > 1.5
    assert free.energies[-1] < 0.2 * stuck.energies[-1]


@pytest.mark.parametrize("flat", [SinkhornDivergence, Wasserstein, SlicedMMD], ids=lambda c: c.__name__)
def test_one_shape_becomes_another(flat):
    angles = torch.linspace(0, 2 * math.pi, 41, dtype=DOUBLE)[:-1]
    ring = DiscreteMeasure(torch.stack([angles.cos(), angles.sin()], -1))
    square = (
        cloud(1)
        .resample(40, torch.Generator().manual_seed(0))
        .with_points(
            2 * torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
            + torch.tensor([1.0, 0.0], dtype=DOUBLE)
        )
    )
    stepper, steps = (Euler(lambda k: 2.0 * 0.97**k), 100) if flat is SlicedMMD else (Euler(0.7), 6)
    end = flow(flat(square), ring, stepper=stepper, steps=steps, record=steps).measure
    assert Wasserstein(square)(end) < 0.02 * Wasserstein(square)(ring)
