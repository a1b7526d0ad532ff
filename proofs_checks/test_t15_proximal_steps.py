"""T15 Proximal steps minimise F(nu) + W_2^2(mu, nu) / (2 tau).

Quadratic potential l|x|^2/2: every atom goes to x / (1 + tau l).
Entropy, from a Gaussian of standard deviation s: s+ = (s + sqrt(s^2 + 4 tau)) / 2.
Both, the KL divergence to N(0, 1/l): s+ = (s + sqrt(s^2 + 4 tau (1 + l tau))) / (2 (1 + l tau)), mean m / (1 + tau l).
Atoms that are coupled to themselves move by the distance W_2 at a minimiser, for equal weights.

Verified: all three as minimisers in a family, with convexity; that the Gaussian minimisers fulfil the Euler-Lagrange
equation among all measures; agreement with the flows of T14 to first order in tau; the stated value; that the target is
fixed for every step; the coupling of minimisers for two atoms and for an atom that is split, with a local minimiser and
one of unequal weights where it is not optimal; the step of the Stein geometry for a quadratic energy of three atoms:
optimality, descent, and its first order in tau.
Assumed: the Euler-Lagrange equation grad dF/dmu + (x - T(x))/tau = 0 is sufficient, F + W_2^2/(2 tau) being convex
along generalised geodesics (Ambrosio, Gigli, Savare); an optimal coupling of equal weights is a permutation (Birkhoff).
"""

from itertools import permutations

import pytest
import sympy as sp

from proofs_checks.test_t14_known_flows import ou_mean, ou_variance

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


# KL divergence to a Gaussian


def jko_kl_mean(mean, tau, stiffness):
    return proximal_quadratic(mean, tau, stiffness)


def jko_kl_standard_deviation(s, tau, stiffness):
    """After a step of the KL divergence to N(0, 1/stiffness) from standard deviation s."""
    return (s + sp.sqrt(s**2 + 4 * tau * (1 + stiffness * tau))) / (2 * (1 + stiffness * tau))


def kl_objective(mean, deviation, start_mean, start, tau, stiffness):
    """KL divergence of N(mean, deviation^2) to N(0, 1/stiffness) up to a constant, plus W_2^2 to the start over 2 tau."""
    kl = stiffness * (mean**2 + deviation**2) / 2 - sp.log(deviation)
    return kl + ((mean - start_mean) ** 2 + (deviation - start) ** 2) / (2 * tau)


def test_kl_to_a_gaussian():
    mean, start_mean = sp.symbols("m m0", real=True)
    deviation = sp.Symbol("sigma")
    objective = kl_objective(mean, deviation, start_mean, s, tau, stiffness)
    assert sp.simplify(sp.solve(objective.diff(mean), mean)[0] - jko_kl_mean(start_mean, tau, stiffness)) == 0
    roots = sp.solve(objective.diff(deviation), deviation)
    assert sp.simplify(sp.prod(roots) + tau / (1 + tau * stiffness)) == 0  # so that exactly one is positive
    positive = [root for root in roots if root.subs({s: 1, tau: 1, stiffness: 1}) > 0]
    assert [sp.simplify(root - jko_kl_standard_deviation(s, tau, stiffness)) for root in positive] == [0]
    convex = kl_objective(mean, sigma, start_mean, s, tau, stiffness)
    hessian = sp.hessian(convex, (mean, sigma))
    assert hessian.is_diagonal()
    assert all(entry.is_positive for entry in hessian.diagonal())


def test_kl_reduces_to_entropy_and_potential():
    assert sp.simplify(jko_kl_standard_deviation(s, tau, 0) - jko_entropy_standard_deviation(s, tau)) == 0
    # In units in which the potential dominates, s = c r with c large, the entropy is not seen.
    large, r = sp.symbols("c r", positive=True)
    scaled = jko_kl_standard_deviation(large * r, tau, stiffness) / large
    assert sp.simplify(sp.limit(scaled, large, sp.oo) - proximal_quadratic(r, tau, stiffness)) == 0


def test_kl_minimises_among_all_measures():
    """grad (l x^2/2 + log rho) + (x - T(x)) / tau = 0, also with means."""
    start_mean = sp.Symbol("m0", real=True)
    after, mean = jko_kl_standard_deviation(s, tau, stiffness), jko_kl_mean(start_mean, tau, stiffness)
    first_variation = stiffness * x**2 / 2 - (x - mean) ** 2 / (2 * after**2)
    back = start_mean + s / after * (x - mean)
    assert sp.simplify(first_variation.diff(x) + (x - back) / tau) == 0
    wrong = (s + sp.sqrt(s**2 + 4 * tau)) / (2 * (1 + stiffness * tau))  # one after the other
    other = stiffness * x**2 / 2 - (x - mean) ** 2 / (2 * wrong**2)
    assert sp.simplify(other.diff(x) + (x - start_mean - s / wrong * (x - mean)) / tau) != 0


def test_kl_is_the_ornstein_uhlenbeck_flow_to_first_order_with_its_target_fixed():
    time, start_mean = sp.Symbol("t", positive=True), sp.Symbol("m0", real=True)
    deviation = sp.sqrt(ou_variance(time, s**2, stiffness))
    step = jko_kl_standard_deviation(s, tau, stiffness)
    assert sp.simplify(step.diff(tau).subs(tau, 0) - deviation.diff(time).subs(time, 0)) == 0
    mean = ou_mean(time, start_mean, stiffness)
    assert sp.simplify(jko_kl_mean(start_mean, tau, stiffness).diff(tau).subs(tau, 0) - mean.diff(time).subs(time, 0)) == 0
    assert sp.simplify(step.diff(tau, 2).subs(tau, 0) - deviation.diff(time, 2).subs(time, 0)) != 0  # of order one
    target = 1 / sp.sqrt(stiffness)
    slope = kl_objective(0, sigma, 0, target, tau, stiffness).diff(sigma)
    assert sp.simplify(slope.subs(sigma, target)) == 0  # for every tau


# The coupling of an atom with itself


def movement(w, x, y):
    return sum(m * (b - a) ** 2 for m, a, b in zip(w, x, y, strict=True))


def transport(w, x, y, copies):
    """W_2^2 for weights that are multiples of 1/copies, by all permutations of equal atoms."""
    start, end = ([p for m, p in zip(w, points, strict=True) for _ in range(int(m * copies))] for points in (x, y))
    return min(sum((b - a) ** 2 for a, b in zip(start, order, strict=True)) for order in permutations(end)) / sp.Integer(copies)


def test_at_a_minimiser_the_coupling_cannot_be_improved():
    """F is the same for permuted points: G(y_swapped) - G(y) is the gain of the other coupling, so it is not negative."""
    a, b, c, d = sp.symbols("x1 x2 y1 y2", real=True)
    half, energy = (sp.S.Half, sp.S.Half), sp.Function("f")(c + d, c * d)  # of symmetric polynomials: invariant
    objective = energy + movement(half, (a, b), (c, d)) / (2 * tau)
    swapped = objective.subs({c: d, d: c}, simultaneous=True)
    gain = (movement(half, (a, b), (d, c)) - movement(half, (a, b), (c, d))) / (2 * tau)
    assert sp.expand(swapped - objective - gain) == 0
    assert sp.expand(gain - (b - a) * (d - c) / (2 * tau)) == 0  # so a minimiser on the line is sorted as the start is
    unequal = sp.symbols("w1 w2", positive=True)
    weighted = sp.Function("f")(unequal[0] * c + unequal[1] * d) + movement(unequal, (a, b), (c, d)) / (2 * tau)
    assert sp.simplify(weighted.subs({c: d, d: c}, simultaneous=True) - weighted - gain) != 0  # F is not invariant there


def attraction(w, x, y, target, curvature, copies):
    """C/2 W_2^2(., target) + |y - x|^2 / (2 tau)."""
    weights, points = target
    end = [p for m, p in zip(w, y, strict=True) for _ in range(int(m * copies))]
    goal = [p for m, p in zip(weights, points, strict=True) for _ in range(int(m * copies))]
    near = min(sum((b - a) ** 2 for a, b in zip(end, order, strict=True)) for order in permutations(goal)) / sp.Integer(copies)
    return curvature * near / 2 + movement(w, x, y) / (2 * tau)


def test_a_local_minimiser_with_another_coupling():
    """From atoms 0 and 1 towards the same two: they may also cross, if C tau > 1, each to the place of the other."""
    curvature = sp.Symbol("C", positive=True)
    half, x = (sp.S.Half, sp.S.Half), (0, 1)
    c, d = sp.symbols("y1 y2", real=True)
    crossed = curvature * movement(half, (1, 0), (c, d)) / 2 + movement(half, x, (c, d)) / (2 * tau)  # near (1, 0)
    local = sp.solve([crossed.diff(c), crossed.diff(d)], [c, d])
    assert sp.simplify(local[c] - curvature * tau / (1 + curvature * tau)) == 0
    assert sp.simplify(local[c] - local[d] - (curvature * tau - 1) / (1 + curvature * tau)) == 0  # crossed indeed
    assert sp.hessian(crossed, (c, d)).is_positive_definite
    values = {curvature: 3, tau: 1}
    y = [local[c].subs(values), local[d].subs(values)]
    goal = (half, (sp.S.Zero, sp.S.One))
    assert attraction(half, x, y, goal, 3, 2).subs(tau, 1) == crossed.subs(local).subs(values)
    assert transport(half, x, y, 2) < movement(half, x, y)
    assert attraction(half, x, y, goal, 3, 2).subs(tau, 1) > 0 == attraction(half, x, x, goal, 3, 2).subs(tau, 1)


def test_with_unequal_weights_a_minimiser_may_have_another_coupling():
    """Masses 1/3 at 0 and 2/3 at 1, towards 2/3 at 0 and 1/3 at 1: whole atoms have to cross, but W_2 moves one third."""
    third = sp.Rational(1, 3)
    w, x, y = (third, 2 * third), (sp.S.Zero, sp.S.One), (sp.S.One, sp.S.Zero)
    goal = (w[::-1], x)
    objective = [attraction(w, x, z, goal, 12, 3).subs(tau, 1) for z in (y, x)]
    assert objective[0] < objective[1]
    grid = [sp.Rational(k, 6) for k in range(-3, 10)]
    least = min((attraction(w, x, z, goal, 12, 3).subs(tau, 1), z) for z in [(p, q) for p in grid for q in grid])
    assert least[1][0] > least[1][1]
    assert transport(w, x, least[1], 3) < movement(w, x, least[1])
    # Split into three equal atoms the same step is cheaper, and there the argument of permutations holds.
    equal, copies = (third,) * 3, (sp.S.Zero, sp.S.One, sp.S.One)
    split = (sp.S.Zero, sp.S.Zero, sp.S.One)
    assert attraction(equal, copies, split, goal, 12, 3).subs(tau, 1) < least[0]
    assert transport(equal, copies, split, 3) == movement(equal, copies, split)


# Other geometries


@pytest.fixture
def stein_step():
    """Minimise F(x + C a) + <a, C a> / (2 tau) for F = <x, x>_{l}/2, C_ij = k_ij w_j of two features: C has a kernel."""
    w = sp.diag(sp.Rational(1, 2), sp.Rational(1, 3), sp.Rational(1, 6))
    phi = sp.Matrix([[1, 0], [1, 1], [2, 1]])
    c = phi * phi.T * w
    start, a = sp.Matrix([1, -2, 3]), sp.Matrix(sp.symbols("a1:4", real=True))

    def energy(points):
        return stiffness / 2 * (points.T * w * points)[0]

    def objective(force):
        return energy(start + c * force) + (force.T * w * c * force)[0] / (2 * tau)

    return w, phi, c, start, a, energy, objective


def test_the_proximal_step_of_the_stein_geometry(stein_step):
    w, phi, c, start, a, energy, objective = stein_step
    unknown = sp.Matrix(sp.symbols("b1:4"))
    implicit = sp.solve(list(unknown + tau * stiffness * (start + c * unknown)), list(unknown))  # a = -tau grad F(x + C a)
    force = sp.simplify(unknown.subs(implicit))
    gradient = sp.Matrix([objective(a).diff(s) for s in a]).subs(dict(zip(a, force, strict=True)))
    assert sp.simplify(gradient) == sp.zeros(3, 1)
    explicit = -tau * stiffness * start
    assert sp.simplify(sp.Matrix([objective(a).diff(s) for s in a]).subs(dict(zip(a, explicit, strict=True)))) != sp.zeros(3, 1)
    # <a, C a> is the squared norm of the displacement in the kernel's space, not that in L2(mu).
    coordinates = phi.T * w * force
    norm = sp.simplify((force.T * w * c * force)[0])
    assert sp.simplify(norm - sum(s**2 for s in coordinates)) == 0
    displacement = c * force
    assert sp.simplify(norm - (displacement.T * w * displacement)[0]) != 0
    # F(x+) + norm / (2 tau) <= F(x); for this convex F there is more, norm / tau and the curvature along the step.
    curved = stiffness / 2 * (displacement.T * w * displacement)[0]
    assert sp.simplify(energy(start) - energy(start + displacement) - norm / tau - curved) == 0
    velocity = -c * stiffness * start  # of the Stein flow
    assert sp.simplify(displacement.diff(tau).subs(tau, 0) - velocity) == sp.zeros(3, 1)
