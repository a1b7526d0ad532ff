"""T15 Proximal steps minimise F(nu) + W_2^2(mu, nu) / (2 tau).

Quadratic potential l|x|^2/2: every atom goes to x / (1 + tau l).
Entropy, from a Gaussian of standard deviation s: s+ = (s + sqrt(s^2 + 4 tau)) / 2.

Verified: both as the minimiser in a family, with convexity; that the Gaussian minimiser fulfils the Euler-Lagrange
equation among all measures; agreement with the flows of T14 to first order in tau; the stated value.
Assumed: the Euler-Lagrange equation grad dF/dmu + (x - T(x))/tau = 0 is sufficient, F + W_2^2/(2 tau) being convex
along generalised geodesics (Ambrosio, Gigli, Savare).
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T15")

s, tau, stiffness, sigma = sp.symbols("s tau l sigma", positive=True)
x, y = sp.symbols("x y", real=True)


def proximal_quadratic(x, tau, stiffness):
    return x / (1 + tau * stiffness)


def jko_entropy_standard_deviation(s, tau):
    return (s + sp.sqrt(s**2 + 4 * tau)) / 2


def entropy_objective(deviation):
    """Entropy of N(m, deviation^2) up to a constant, plus W_2^2 to N(m, s^2) over 2 tau."""
    return -sp.log(deviation) + (deviation - s) ** 2 / (2 * tau)


def test_quadratic_potential():
    objective = stiffness * y**2 / 2 + (x - y) ** 2 / (2 * tau)
    assert sp.simplify(sp.solve(objective.diff(y), y)[0] - proximal_quadratic(x, tau, stiffness)) == 0
    assert objective.diff(y, 2).is_positive


def test_entropy_of_gaussians():
    deviation = sp.Symbol("sigma")
    roots = sp.solve(entropy_objective(deviation).diff(deviation), deviation)
    assert sp.expand(sp.prod(roots)) == -tau  # so that exactly one is positive
    positive = [root for root in roots if root.subs({s: 1, tau: 1}) > 0]
    assert [sp.expand(root - jko_entropy_standard_deviation(s, tau)) for root in positive] == [0]
    assert entropy_objective(sigma).diff(sigma, 2).is_positive


def test_a_forgotten_half_is_rejected():
    """F + W_2^2 / tau has another minimiser."""
    other = -sp.log(sigma) + (sigma - s) ** 2 / tau
    assert sp.simplify(other.diff(sigma).subs(sigma, jko_entropy_standard_deviation(s, tau))) != 0
    objective = stiffness * y**2 / 2 + (x - y) ** 2 / tau
    assert sp.simplify(sp.solve(objective.diff(y), y)[0] - proximal_quadratic(x, tau, stiffness)) != 0


def test_the_gaussian_is_the_minimiser_among_all_measures():
    """grad log rho + (x - T(x)) / tau = 0 for rho = N(m, s+^2) and T its optimal map back to N(m, s^2)."""
    mean = sp.Symbol("m", real=True)
    after = jko_entropy_standard_deviation(s, tau)
    log_density = -((x - mean) ** 2) / (2 * after**2)
    back = mean + s / after * (x - mean)
    assert sp.simplify(log_density.diff(x) + (x - back) / tau) == 0


def test_first_order_in_tau_is_the_flow():
    """Heat flow has d deviation/dt = 1/deviation, as the variance grows by 2t; the quadratic potential dx/dt = -l x."""
    assert sp.simplify(jko_entropy_standard_deviation(s, tau).diff(tau).subs(tau, 0) - 1 / s) == 0
    assert sp.simplify(proximal_quadratic(x, tau, stiffness).diff(tau).subs(tau, 0) + stiffness * x) == 0
    explicit = s + tau / s
    assert sp.simplify(jko_entropy_standard_deviation(s, tau) - explicit) != 0


def test_stated_value():
    assert abs(jko_entropy_standard_deviation(1, 0.1) - 1.0916079783) < 1e-10
