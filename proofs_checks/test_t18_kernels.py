"""T18 Kernels: derivatives of Matérn profiles, integrals of kernels over R^d, rounding of distances by matrix products.

Verified: the rules g_1' = -g_0/2 and g_2' = -g_1/6 in u = t^2 and the Hessians at coincident points that follow; the
integrals for symbolic dimension d, from their radial integrals.
For distances by matrix products: that they do not depend on the centre; the bounds of the terms; the constants that are left.
Assumed: the error of a sum whose terms pass through k roundings, at most gamma_k times the sum of their absolute values;
polar coordinates, that is the area S_d = 2 pi^(d/2) / Gamma(d/2) of the unit sphere.
"""

import sympy as sp

t, d, beta = sp.symbols("t d beta", positive=True)

PROFILES = (sp.exp(-t), (1 + t) * sp.exp(-t), (1 + t + t**2 / 3) * sp.exp(-t))


def derivative_in_the_square(profile):
    """d/du for u = t^2."""
    return sp.simplify(sp.diff(profile, t) / (2 * t))


def sphere(d):
    return 2 * sp.pi ** (d / 2) / sp.gamma(d / 2)


def radial_integral(profile):
    """int_0^oo t^(d-1) profile(t) dt for a polynomial times exp(-t), by int t^(d-1+k) e^-t = Gamma(d + k)."""
    polynomial = sp.Poly(sp.simplify(profile * sp.exp(t)), t)
    return sum(c * sp.gamma(d + k) for (k,), c in polynomial.terms())


def matern_integral(order):
    """At bandwidth one: t = sqrt(2 nu) r with nu = order + 1/2."""
    return sphere(d) * radial_integral(PROFILES[order]) * (2 * order + 1) ** (-d / 2)


def imq_integral():
    """int (1 + r^2)^-beta over R^d: with v = r^2, half a beta integral int v^(d/2-1) (1+v)^-beta dv = B(d/2, beta - d/2)."""
    return sphere(d) * sp.beta(d / 2, beta - d / 2).rewrite(sp.gamma) / 2


def test_derivatives_are_profiles_of_lower_order():
    assert sp.simplify(derivative_in_the_square(PROFILES[1]) + PROFILES[0] / 2) == 0
    assert sp.simplify(derivative_in_the_square(PROFILES[2]) + PROFILES[1] / 6) == 0


def test_the_moments_of_the_exponential():
    for k in range(4):
        n = sp.Symbol("n", positive=True)
        assert sp.simplify(sp.integrate(t ** (n - 1 + k) * sp.exp(-t), (t, 0, sp.oo)) - sp.gamma(n + k)) == 0


def test_hessians_at_coincident_points():
    """2 phi'(0) with phi(s) = g(2 nu s) at bandwidth one."""
    slopes = [sp.limit(derivative_in_the_square(p), t, 0) for p in PROFILES]
    assert [2 * 3 * slopes[1], 2 * 5 * slopes[2]] == [-3, -sp.Rational(5, 3)]
    assert slopes[0] == -sp.oo


def test_integrals_of_matern_kernels():
    for order, coefficients in ((0, [1]), (1, [1, 1]), (2, [1, 1, sp.Rational(1, 3)])):
        stated = sphere(d) * sum(c * sp.gamma(d + k) for k, c in enumerate(coefficients)) * (2 * order + 1) ** (-d / 2)
        assert sp.simplify(matern_integral(order) - stated) == 0
    assert [sp.simplify(matern_integral(0).subs(d, n)) for n in (1, 2, 3)] == [2, 2 * sp.pi, 8 * sp.pi]


def test_integral_of_the_inverse_multiquadric():
    assert sp.gammasimp(imq_integral() / (sp.pi ** (d / 2) * sp.gamma(beta - d / 2) / sp.gamma(beta))) == 1
    r = sp.Symbol("r", real=True)
    assert sp.integrate((1 + r**2) ** -2, (r, -sp.oo, sp.oo)) == imq_integral().subs({d: 1, beta: 2}).simplify()


def test_integral_of_the_gaussian():
    r = sp.Symbol("r", positive=True)
    for n in (1, 2, 3, 4):
        radial = sp.integrate(r ** (n - 1) * sp.exp(-(r**2) / 2), (r, 0, sp.oo))
        assert sp.simplify(sphere(sp.Integer(n)) * radial - (2 * sp.pi) ** sp.Rational(n, 2)) == 0


def test_wrong_variants_are_rejected():
    """A coefficient 1/2 in the place of 1/3, and a derivative without the factor 1/2."""
    wrong = (1 + t + t**2 / 2) * sp.exp(-t)
    assert sp.simplify(derivative_in_the_square(wrong) + PROFILES[1] / 6) != 0
    assert sp.simplify(derivative_in_the_square(PROFILES[1]) + PROFILES[0]) != 0


def expanded(x, y):
    """|x|^2 + |y|^2 - 2 x.y"""
    return x.dot(x) + y.dot(y) - 2 * x.dot(y)


def condition(x, y):
    """The factor between the sum of the absolute terms and the squared distance."""
    return (sum(a**2 + b**2 + 2 * abs(a * b) for a, b in zip(x, y, strict=True))) / expanded(x, y)


def test_any_centre_gives_the_same_distance():
    x, y, c = (sp.Matrix(sp.symbols(f"{name}1:4", real=True)) for name in "xyc")
    assert sp.expand(expanded(x - c, y - c) - (x - y).dot(x - y)) == 0


def test_absolute_terms_are_at_most_twice_the_norms():
    """So is (|x| + |y|)^2: the difference is a square."""
    p, q = sp.symbols("p q", nonnegative=True)
    assert sp.factor(2 * (p**2 + q**2) - (p**2 + q**2 + 2 * p * q)) == (p - q) ** 2


def test_constants_of_the_bound():
    """With gamma >= 4 u and C >= 1: 2 C gamma + 4 sqrt(C) u <= 3 C gamma, which is at most 3/8; and 3 / (1 - 3/8) < 5."""
    u, root, more = sp.symbols("u root more", nonnegative=True)
    gamma, c = 4 * u + more, (1 + root) ** 2
    slack = sp.expand(3 * c * gamma - 2 * c * gamma - 4 * (1 + root) * u)
    assert all(coefficient >= 0 for coefficient in sp.Poly(slack, u, root, more).coeffs())
    assert 3 / (1 - sp.Rational(3, 8)) < 5


def test_without_a_centre_there_is_no_bound():
    """Two points at a fixed distance, far away: the condition grows without bound, and with a centre it does not."""
    t = sp.Symbol("t", positive=True)
    x, y = sp.Matrix([t + 1, t]), sp.Matrix([t, t + 1])
    assert sp.limit(condition(x, y), t, sp.oo) == sp.oo
    centre = (x + y) / 2
    assert sp.simplify(condition(x - centre, y - centre)) == 1


def test_with_a_centre_close_pairs_have_no_bound():
    """Hence the exceptions."""
    t = sp.Symbol("t", positive=True)
    assert sp.limit(condition(sp.Matrix([1, t]), sp.Matrix([1, -t])), t, 0) == sp.oo
