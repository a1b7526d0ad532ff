"""T25 Moving weights: fixed points of maps that change the weights of a measure.

With z_i = 2 sqrt(w_i / w0_i) the metric sum dw_i^2 / w_i is sum w0_i dz_i^2, flat, and w = m w0 z^2 / sum(w0 z^2) has the mass m
for every z. The equation 2 sqrt(Phi(w(z)) / w0) - z = 0 has the derivatives and the convergence rates of w = Phi(w).

Verified: the metric for three atoms, which logarithms do not give; mass, signs and zeros of w(z) for all real z, and that a mean
of two iterates loses mass without the normalisation; that a split atom has one z and the same inner products, which an
unweighted inner product does not; that the residual is the metric's to first order; for a chain of two states and symbolic
rates, that the derivative of the equation has the eigenvalue of the chain and one for the radial direction, -1, where
without the normalisation it is singular; and that the implicit rule gives the derivative of the stationary law in closed form;
that a weight which dies out by a factor f does so by sqrt(f) in z, and without limit in logarithms.
Assumed: T7, T9.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T25")

W0 = sp.symbols("a1:4", positive=True)


def weights_at(z, start):
    """The weights of the mass of the start at z."""
    grown = [a * s**2 for a, s in zip(start, z, strict=True)]
    return [sum(start) * g / sum(grown) for g in grown]


def coordinates(weights, start):
    return [2 * sp.sqrt(w / a) for w, a in zip(weights, start, strict=True)]


def inner(u, v, start):
    return sum(a * x * y for a, x, y in zip(start, u, v, strict=True))


def test_the_metric_is_flat_in_these_coordinates():
    w, dw = sp.symbols("w1:4", positive=True), sp.symbols("d1:4", real=True)
    metric = sum(d**2 / m for d, m in zip(dw, w, strict=True))
    dz = [sp.diff(z, m) * d for z, m, d in zip(coordinates(w, W0), w, dw, strict=True)]
    assert sp.simplify(inner(dz, dz, W0) - metric) == 0
    logarithms = [d / m for d, m in zip(dw, w, strict=True)]
    assert sp.simplify(inner(logarithms, logarithms, W0) - metric) != 0  # but where w = w0


def test_weights_have_their_mass_and_sign_at_every_iterate():
    z = sp.symbols("z1:4", real=True, nonzero=True)
    w = weights_at(z, W0)
    assert sp.simplify(sum(w) - sum(W0)) == 0
    assert all(m.is_nonnegative for m in w)
    assert weights_at(z, (*W0[:2], 0))[2] == 0
    c = sp.Symbol("c", positive=True)
    assert all(sp.simplify(m - n) == 0 for m, n in zip(weights_at([c * s for s in z], W0), w, strict=True))
    back = weights_at(coordinates(w, W0), W0)
    assert all(sp.simplify(m - n) == 0 for m, n in zip(back, w, strict=True))


def test_averaged_iterates_lose_mass_unless_it_is_normalised():
    """The chord between two points of a sphere lies within it."""
    p, q = sp.symbols("p q", positive=True)
    start = (sp.S.Half, sp.S.Half)
    z, y = coordinates((p, 1 - p), start), coordinates((q, 1 - q), start)
    middle = [(s + t) / 2 for s, t in zip(z, y, strict=True)]
    mass = sum(a * s**2 / 4 for a, s in zip(start, middle, strict=True))
    lost = inner([s - t for s, t in zip(z, y, strict=True)], [s - t for s, t in zip(z, y, strict=True)], start) / 16
    assert sp.simplify(mass + lost - 1) == 0
    assert mass.subs({p: sp.Rational(1, 10), q: sp.Rational(9, 10)}) < 1
    assert sp.simplify(sum(weights_at(middle, start)) - 1) == 0


def test_a_split_atom_has_one_coordinate():
    """Copies of an atom have weights f w and (1 - f) w, at the start and later: one z, and inner products as before."""
    f, w = sp.symbols("f w", positive=True)
    a = W0[0]
    copies = coordinates((f * w, (1 - f) * w), (f * a, (1 - f) * a))
    (one,) = coordinates((w,), (a,))
    assert all(sp.simplify(s - one) == 0 for s in copies)
    assert sp.simplify(inner(copies, copies, (f * a, (1 - f) * a)) - inner([one], [one], [a])) == 0
    assert sp.simplify(inner(copies, copies, (1, 1)) - inner([one], [one], [1])) != 0
    roots = [sp.sqrt(f * w), sp.sqrt((1 - f) * w)]  # roots of weights are no field: copies differ
    assert sp.simplify(roots[0] - roots[1]) != 0


def test_the_residual_is_that_of_the_metric_to_first_order():
    w, d, t = sp.symbols("w d t", positive=True)
    a = W0[0]
    (z,), (y,) = coordinates((w,), (a,)), coordinates((w + t * d,), (a,))
    assert sp.simplify(sp.series(a * (y - z) ** 2, t, 0, 3).removeO() - t**2 * d**2 / w) == 0


@pytest.fixture
def chain():
    """Two states that are left at the rates p and q: the map of the weights, its fixed point, p and q."""
    p, q = sp.symbols("p q", positive=True)

    def step(w):
        return [(1 - p) * w[0] + q * w[1], p * w[0] + (1 - q) * w[1]]

    return step, (q / (p + q), p / (p + q)), p, q


def jacobian(step, fixed, start, weights):
    z = sp.symbols("z1 z2", positive=True)
    image = coordinates(step(weights(z, start)), start)
    at = dict(zip(z, coordinates(fixed, start), strict=True))
    return sp.simplify(sp.Matrix(2, 2, lambda i, j: image[i].diff(z[j]).subs(at)))


def test_the_equation_has_the_rate_of_the_map_and_is_not_singular(chain):
    step, fixed, p, q = chain
    assert [sp.simplify(a - b) for a, b in zip(step(fixed), fixed, strict=True)] == [0, 0]
    start = (sp.Rational(1, 3), sp.Rational(2, 3))
    derivative = jacobian(step, fixed, start, weights_at)
    assert sp.simplify(derivative.trace() - (1 - p - q)) == 0  # the second eigenvalue of the chain ...
    assert sp.simplify(derivative.det()) == 0  # ... and zero, for the radial direction
    plain = jacobian(step, fixed, start, lambda z, start: [a * s**2 / 4 for a, s in zip(start, z, strict=True)])
    assert sp.simplify((sp.eye(2) - plain).det()) == 0  # without the normalisation a multiple of z solves the equation too


def test_the_implicit_rule_gives_the_derivative_of_the_stationary_law(chain):
    step, fixed, p, _ = chain
    start = (sp.Rational(1, 3), sp.Rational(2, 3))
    w, z = sp.symbols("w1 w2", positive=True), sp.symbols("z1 z2", positive=True)
    forced = sp.Matrix([image.diff(p) for image in coordinates(step(w), start)]).subs(dict(zip(w, fixed, strict=True)))
    change = (sp.eye(2) - jacobian(step, fixed, start, weights_at)).LUsolve(forced)
    law, at = weights_at(z, start)[0], dict(zip(z, coordinates(fixed, start), strict=True))

    def error(change):
        found = sum(law.diff(s).subs(at) * d for s, d in zip(z, change, strict=True))
        return sp.simplify(sp.factor(sp.simplify(found - fixed[0].diff(p)), deep=True))

    assert error(change) == 0
    assert error(forced) != 0  # one step of the map only


def test_weights_that_die_out():
    """w' = f w at an atom: z' = sqrt(f) z, a line through 0; the logarithm moves by log f for ever."""
    w, f = sp.symbols("w f", positive=True)
    a = W0[0]
    (z,), (y,) = coordinates((w,), (a,)), coordinates((f * w,), (a,))
    assert sp.simplify(y - sp.sqrt(f) * z) == 0
    assert sp.limit(y - z, w, 0) == 0
    assert sp.simplify(sp.expand_log(sp.log(f * w) - sp.log(w)) - sp.log(f)) == 0
