"""T18 Kernels: derivatives of Matérn profiles, and integrals of kernels over R^d.

Verified: the rules g_1' = -g_0/2 and g_2' = -g_1/6 in u = t^2 and the Hessians at coincident points that follow; the
integrals for symbolic dimension d, from their radial integrals.
Assumed: polar coordinates, that is the area S_d = 2 pi^(d/2) / Gamma(d/2) of the unit sphere.
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
