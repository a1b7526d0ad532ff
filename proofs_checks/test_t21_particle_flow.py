"""T21 The particle flow: its normalised force as a difference of mean shifts, its bandwidth rule, and its moving target.

Verified: h^2 / p_nu times minus the Wasserstein gradient of 1/2 MMD_K^2(., nu) is the mean shift towards nu minus
p_mu / p_nu times the one within mu, for two atoms of symbolic masses and an undetermined kernel on marks; that it is y - x where
different marks are not compared; its limit for large bandwidths; the identity behind the bound of a mean shift; the comparison
matrix of the bandwidth rule and when its spectral radius is less than one; the linearised step of the moving target, with the
adjoint in L2(mu).
Assumed: T2; that a Kullback-Leibler divergence is not negative; that a non-negative matrix of spectral radius less than one
contracts what it bounds.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T21")

h = sp.Symbol("h", positive=True)
w = sp.symbols("w1 w2", positive=True)
x = sp.symbols("x1 x2", real=True)
y = sp.symbols("y1 y2", real=True)
c = sp.Symbol("c", positive=True)  # k_U between the two marks; one for equal ones
MARKS = ((sp.S.One, c), (c, sp.S.One))


def gaussian(s, t):
    return sp.exp(-((s - t) ** 2) / (2 * h**2))


def half_mmd_squared(points):
    """1/2 MMD_K^2 between the atoms and their images, with the masses and marks of both."""
    signed = [(m, i, s) for i, (m, s) in enumerate(zip(w, points, strict=True))]
    signed += [(-m, i, t) for i, (m, t) in enumerate(zip(w, y, strict=True))]
    return sum(m * n * MARKS[i][j] * gaussian(s, t) for m, i, s in signed for n, j, t in signed) / 2


def density(i, at, points):
    return sum(m * MARKS[i][j] * gaussian(at, t) for j, (m, t) in enumerate(zip(w, points, strict=True)))


def mean_shift(i, at, points):
    terms = [m * MARKS[i][j] * gaussian(at, t) * (t - at) for j, (m, t) in enumerate(zip(w, points, strict=True))]
    return sum(terms) / density(i, at, points)


def velocity(i=0):
    return mean_shift(i, x[i], y) - density(i, x[i], x) / density(i, x[i], y) * mean_shift(i, x[i], x)


def force(i=0):
    """Minus the Wasserstein gradient at an atom, (1 / w_i) dF/dx_i."""
    return -sp.diff(half_mmd_squared(x), x[i]) / w[i]


def test_the_normalised_force_is_a_difference_of_mean_shifts():
    assert sp.simplify(h**2 / density(0, x[0], y) * force() - velocity()) == 0


def test_divided_by_the_density_of_the_measure_it_is_not():
    """At distinct marks that would be the residual times the kernel, which vanishes far from the image."""
    wrong = (h**2 / density(0, x[0], x) * force()).subs(c, 0)
    assert sp.simplify(wrong / (y[0] - x[0]) - gaussian(x[0], y[0])) == 0


def test_at_distinct_marks_it_is_the_residual_for_every_bandwidth():
    assert sp.simplify(velocity().subs(c, 0)) == y[0] - x[0]
    assert sp.simplify(velocity(1).subs(c, 0)) == y[1] - x[1]


def test_large_bandwidths_see_the_means():
    unmarked = velocity().subs(c, 1)
    expected = (w[0] * (y[0] - x[0]) + w[1] * (y[1] - x[1])) / (w[0] + w[1])
    assert sp.simplify(sp.limit(unmarked, h, sp.oo) - expected) == 0


def test_rest_where_only_the_measures_agree():
    swapped = {y[0]: x[1], y[1]: x[0]}
    unmarked = velocity().subs(c, 1).subs({w[0]: sp.Rational(1, 2), w[1]: sp.Rational(1, 2)})
    assert sp.simplify(unmarked.subs(swapped, simultaneous=True)) == 0


def test_mean_square_of_a_mean_shift():
    """With q_j = w_j k_j / p: sum q_j |x_j - x|^2 / (2 h^2) = -log p - KL(q | w)."""
    squares = sp.symbols("s1 s2", positive=True)
    kernel = [sp.exp(-s / (2 * h**2)) for s in squares]
    p = sum(m * k for m, k in zip(w, kernel, strict=True))
    q = [m * k / p for m, k in zip(w, kernel, strict=True)]
    divergence = sum(a * sp.log(a / m) for a, m in zip(q, w, strict=True))
    left = sum(a * s for a, s in zip(q, squares, strict=True)) / (2 * h**2)
    gap = sp.expand_log(left + sp.log(p) + divergence, force=True)
    assert sp.simplify(gap) == 0


L, delta, r = sp.symbols("L delta lambda", positive=True)
COMPARISON = sp.Matrix([[L + 2 * delta, 2 * delta], [L + delta, L + delta]])
"""How diameter and error of the mean, one step later, are bounded by themselves; delta = c Lambda (1 + L)."""


def largest_delta(rate):
    """The bandwidths for which the comparison matrix contracts: delta < (1 - L)^2 / (3 - L)."""
    return (1 - rate) ** 2 / (3 - rate)


def test_the_comparison_matrix_contracts_below_a_threshold():
    polynomial = sp.expand((r * sp.eye(2) - COMPARISON).det())
    assert sp.expand(polynomial - (r**2 - (2 * L + 3 * delta) * r + L * (L + delta))) == 0
    # It has non-negative entries: its spectral radius is its larger root, one where the polynomial vanishes at one.
    at_one = sp.expand(polynomial.subs(r, 1))
    assert sp.expand(at_one - ((1 - L) ** 2 - delta * (3 - L))) == 0
    assert sp.simplify(sp.solve(at_one, delta)[0] - largest_delta(L)) == 0
    for rate in (sp.Rational(3, 10), sp.Rational(9, 10)):
        for share, contracts in ((sp.Rational(99, 100), True), (sp.Rational(101, 100), False)):
            matrix = COMPARISON.subs({L: rate, delta: share * largest_delta(rate)})
            assert (max(abs(complex(v)) for v in matrix.eigenvals()) < 1) is contracts


def moving_step(step):
    """For Phi(z) = J z and the adjoint J* in L2(mu): the direction (I - J*) (Phi(z) - z), the gradient of half the squared
    residual in L2(mu), the derivative of a step, J and J*."""
    j = sp.Matrix(2, 2, sp.symbols("j0:4", real=True))
    z = sp.Matrix(x)
    weights = sp.diag(*w)
    adjoint = weights.inv() * j.T * weights
    residual = j * z - z
    direction = residual - adjoint * residual
    energy = (residual.T * weights * residual)[0] / 2
    gradient = weights.inv() * sp.Matrix([sp.diff(energy, s) for s in z])
    return direction, gradient, (z + step * direction).jacobian(z), j, adjoint


def test_the_moving_direction_is_the_gradient_of_half_the_squared_residual():
    direction, gradient, derivative, j, adjoint = moving_step(sp.Symbol("t"))
    assert (direction + gradient).applyfunc(sp.expand) == sp.zeros(2, 1)
    identity = sp.eye(2)
    expected = identity - sp.Symbol("t") * (identity - adjoint) * (identity - j)
    assert (derivative - expected).applyfunc(sp.expand) == sp.zeros(2, 2)


def test_a_transpose_without_the_masses_is_rejected():
    _, gradient, _, j, _ = moving_step(sp.S.One)
    residual = j * sp.Matrix(x) - sp.Matrix(x)
    assert (residual - j.T * residual + gradient).applyfunc(sp.expand) != sp.zeros(2, 1)


def test_a_full_step_diverges_where_the_map_reverses_and_a_safe_one_does_not():
    gain = sp.Rational(9, 10)
    full = 1 - (1 + gain) ** 2
    assert full < -1
    assert 1 - (1 + gain) ** 2 / (1 + gain) ** 2 == 0
    # The slowest component under the safe step, at J = L.
    slow = 1 - (1 - L) ** 2 / (1 + L) ** 2
    assert sp.factor(slow) == 4 * L / (1 + L) ** 2
