"""T14 Flows with known solutions: Ornstein-Uhlenbeck (OU), heat, and the unadjusted Langevin algorithm (ULA).

OU (potential l|x|^2/2 plus entropy): mean e^{-lt} m0, variance e^{-2lt} v0 + (1 - e^{-2lt})/l in each coordinate;
heat flow: variance v0 + 2t; stationary variance of ULA with step h: 2/(l (2 - l h)) for h < 2/l.

Verified: that Gaussians with these moments solve the Fokker-Planck equation, in dimension 1 and 2; that the moments
solve their ordinary differential equations; the fixed point of the variance recursion, its stability for h < 2/l, and
its limit.
Assumed: the Wasserstein gradient flow of potential plus entropy is the Fokker-Planck equation (Jordan, Kinderlehrer,
Otto).
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T14")

t, start_variance, stiffness, step = sp.symbols("t v0 l h", positive=True)
start_mean = sp.Symbol("m0", real=True)


def ou_mean(t, start_mean, stiffness):
    return sp.exp(-stiffness * t) * start_mean


def ou_variance(t, start_variance, stiffness):
    decay = sp.exp(-2 * stiffness * t)
    return decay * start_variance + (1 - decay) / stiffness


def heat_variance(t, start_variance):
    return start_variance + 2 * t


def ula_stationary_variance(stiffness, step_size):
    return 2 / (stiffness * (2 - stiffness * step_size))


def gaussian_density(x, mean, variance):
    return sp.exp(-((x - mean) ** 2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)


def fokker_planck_gap(means, variance, stiffness, points):
    """(d/dt - div(x l .) - Laplacian) of a Gaussian density, divided by it."""
    density = sp.prod([gaussian_density(x, m, variance) for x, m in zip(points, means, strict=True)])
    drift = sum(sp.diff(stiffness * x * density, x) for x in points)
    diffusion = sum(sp.diff(density, x, 2) for x in points)
    return sp.simplify((sp.diff(density, t) - drift - diffusion) / density)


@pytest.mark.parametrize("dim", [1, 2])
def test_ornstein_uhlenbeck_solves_its_equation(dim):
    points = sp.symbols(f"x1:{dim + 1}", real=True)
    means = [ou_mean(t, m, stiffness) for m in sp.symbols(f"m1:{dim + 1}", real=True)]
    assert fokker_planck_gap(means, ou_variance(t, start_variance, stiffness), stiffness, points) == 0


@pytest.mark.parametrize("dim", [1, 2])
def test_heat_flow_solves_its_equation(dim):
    points = sp.symbols(f"x1:{dim + 1}", real=True)
    means = sp.symbols(f"m1:{dim + 1}", real=True)
    assert fokker_planck_gap(means, heat_variance(t, start_variance), 0, points) == 0
    assert fokker_planck_gap(means, start_variance + t, 0, points) != 0


def test_wrong_rates_are_rejected():
    """Once the decay of the variance as for the mean; once noise sqrt(dt) instead of sqrt(2 dt)."""
    x = sp.Symbol("x", real=True)
    mean = ou_mean(t, start_mean, stiffness)
    decay = sp.exp(-stiffness * t)
    half_noise = ou_variance(t, start_variance, stiffness) - (1 - decay**2) / (2 * stiffness)
    for variance in (decay * start_variance + (1 - decay) / stiffness, half_noise):
        assert fokker_planck_gap([mean], variance, stiffness, [x]) != 0


def test_moments_are_the_solutions_of_their_equations():
    """dm/dt = -l m and dv/dt = -2 l v + 2, solved by SymPy."""
    m, v = sp.Function("m"), sp.Function("v")
    mean = sp.dsolve(m(t).diff(t) + stiffness * m(t), m(t), ics={m(0): start_mean}).rhs
    variance = sp.dsolve(v(t).diff(t) + 2 * stiffness * v(t) - 2, v(t), ics={v(0): start_variance}).rhs
    assert sp.simplify(mean - ou_mean(t, start_mean, stiffness)) == 0
    assert sp.simplify(variance - ou_variance(t, start_variance, stiffness)) == 0
    assert sp.limit(ou_variance(t, start_variance, stiffness), stiffness, 0) == heat_variance(t, start_variance)


def test_stationary_variance_of_ula():
    """x+ = x - h l x + sqrt(2 h) xi multiplies the variance by (1 - h l)^2 and adds 2 h."""
    variance = sp.Symbol("v")
    stationary = sp.solve((1 - step * stiffness) ** 2 * variance + 2 * step - variance, variance)[0]
    assert sp.simplify(stationary - ula_stationary_variance(stiffness, step)) == 0
    half_noise = sp.solve((1 - step * stiffness) ** 2 * variance + step - variance, variance)[0]
    assert sp.simplify(half_noise - ula_stationary_variance(stiffness, step)) != 0
    assert sp.limit(ula_stationary_variance(stiffness, step), step, 0) == 1 / stiffness


def test_ula_is_stable_below_two_over_the_stiffness_only():
    factor = (1 - step * stiffness) ** 2
    assert sp.factor(1 - factor) == sp.factor(step * stiffness * (2 - step * stiffness))
    assert sp.solve(sp.Eq(factor, 1), step) == [2 / stiffness]
    assert (factor.subs(step, 1 / stiffness), factor.subs(step, 3 / stiffness)) == (0, 4)
