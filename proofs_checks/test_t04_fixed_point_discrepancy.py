"""T4 Fixed-point discrepancy: the Wasserstein gradient of G(mu) = 1/2 MMD^2(mu, Phi(mu)) with Phi(mu) = (T_mu)#mu.

With f the witness of (mu, Phi(mu)),
grad G(x) = grad f(x) - (dT_mu(x)/dx)^T grad f(T_mu(x)) - int (d/dx dT_mu/dmu(y; x))^T grad f(T_mu(y)) dmu(y).

Verified: the formula against (1/w_i) dG/dx_i (T2) for two atoms of symbolic masses, on the line with an undetermined
kernel of degree 2 and a map nonlinear in the point and in two moments, and in the plane with undetermined matrices;
that each term, and the transpose, is needed; that the frozen gradient vanishes where mu is fixed as a measure only;
the flatness near a Dirac mass.
Assumed: T2; that kernels and maps are limits of polynomial ones.
"""

from itertools import product

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T4")

w = sp.symbols("w1 w2", positive=True)


def half_mmd_squared(kernel, a, p, b, q):
    signed = [*zip(a, p, strict=True), *((-m, s) for m, s in zip(b, q, strict=True))]
    return sum(m * n * kernel(s, t) for (m, s), (n, t) in product(signed, repeat=2)) / 2


@pytest.fixture(scope="module")
def terms_on_the_line():
    """(1/w_1) dG/dx_1, and the three terms at x_1."""
    x, z = sp.symbols("x1 x2"), sp.Symbol("z")
    c = sp.symbols("c11 c12 c22")
    a = sp.symbols("a0:5")
    mass = sp.Symbol("m")  # the moment int (y + y^2) dmu, as a variable of the map

    def kernel(s, t):
        return c[0] * s * t + c[1] * (s * t**2 + s**2 * t) + c[2] * s**2 * t**2

    def transport(y, moment):
        return a[0] + a[1] * y + a[2] * y**2 + a[3] * moment + a[4] * y * moment

    moment = sum(m * (y + y**2) for m, y in zip(w, x, strict=True))
    image = [transport(y, moment) for y in x]
    value = half_mmd_squared(kernel, w, x, w, image)
    witness = sum(m * (kernel(z, s) - kernel(z, t)) for m, s, t in zip(w, x, image, strict=True))
    slope = sp.diff(witness, z)
    frozen = slope.subs(z, x[0])
    at_image = sp.diff(transport(z, mass), z).subs({z: x[0], mass: moment}) * slope.subs(z, image[0])
    # dT_mu/dmu(y; x) = dT/dm(y) (x + x^2), so its derivative in x is dT/dm(y) (1 + 2 x).
    through_measure = sum(
        m * sp.diff(transport(y, mass), mass) * (1 + 2 * x[0]) * slope.subs(z, t) for m, y, t in zip(w, x, image, strict=True)
    )
    return sp.diff(value, x[0]) / w[0], frozen, at_image, through_measure


def test_formula_on_the_line(terms_on_the_line):
    gradient, frozen, at_image, through_measure = terms_on_the_line
    assert sp.expand(gradient - frozen + at_image + through_measure) == 0


def test_every_term_is_needed(terms_on_the_line):
    symbols = sorted(set().union(*(term.free_symbols for term in terms_on_the_line)), key=str)
    numbers = {s: sp.Rational(k + 2, k + 3) for k, s in enumerate(symbols)}
    gradient, frozen, at_image, through_measure = (term.subs(numbers) for term in terms_on_the_line)
    assert gradient == frozen - at_image - through_measure
    assert gradient not in (frozen, frozen - at_image, frozen - through_measure)


def gap_in_the_plane(transpose, a, b):
    """T_mu(x) = A x + B int y dmu with undetermined matrices and k(x, y) = x.y + (x.y)^2; the other atom is fixed."""
    first, other, z = sp.Matrix(sp.symbols("x1 x2")), sp.Matrix([2, -1]), sp.Matrix(sp.symbols("z1 z2"))
    mass = (sp.Rational(1, 3), sp.Rational(2, 3))
    x = (first, other)

    def kernel(s, t):
        return s.dot(t) + s.dot(t) ** 2

    mean = mass[0] * first + mass[1] * other
    image = [a * y + b * mean for y in x]
    value = half_mmd_squared(kernel, mass, x, mass, image)
    witness = sum(m * (kernel(z, s) - kernel(z, t)) for m, s, t in zip(mass, x, image, strict=True))
    slope = sp.Matrix([sp.diff(witness, s) for s in z])

    def at(point):
        return slope.subs(dict(zip(z, point, strict=True)), simultaneous=True)

    average = mass[0] * at(image[0]) + mass[1] * at(image[1])
    formula = at(first) - transpose(a) * at(image[0]) - transpose(b) * average
    gradient = sp.Matrix([sp.diff(value, s) for s in first]) / mass[0]
    return (gradient - formula).applyfunc(sp.expand)


def test_formula_in_the_plane():
    a, b = sp.Matrix(2, 2, sp.symbols("a0:4")), sp.Matrix(2, 2, sp.symbols("b0:4"))
    assert gap_in_the_plane(sp.transpose, a, b) == sp.zeros(2, 1)


def test_a_forgotten_transpose_is_rejected():
    a, b = sp.Matrix([[1, 2], [0, 3]]), sp.Matrix([[2, -1], [1, 1]])
    assert gap_in_the_plane(sp.transpose, a, b) == sp.zeros(2, 1)
    assert gap_in_the_plane(lambda matrix: matrix, a, b) != sp.zeros(2, 1)


def test_the_frozen_gradient_vanishes_where_only_the_measure_is_fixed():
    """T(x) = -x on {-1, 1}: no descent, while a Picard step moves both atoms by 2."""
    kernel, z = sp.Function("k"), sp.Symbol("z")
    half = sp.Rational(1, 2)
    x, image = (-1, 1), (1, -1)
    assert sum(half * (kernel(z, s) - kernel(z, t)) for s, t in zip(x, image, strict=True)) == 0
    assert [t - s for s, t in zip(x, image, strict=True)] == [2, -2]


def test_a_smooth_kernel_is_flat_in_the_spread():
    """Atoms at distance `spread` on both sides of the fixed point 0 of T(x) = r x, Gaussian kernel of bandwidth one."""
    spread, z = sp.symbols("spread z", positive=True)
    r = sp.Symbol("r", real=True)
    half = (sp.Rational(1, 2),) * 2

    def kernel(s, t):
        return sp.exp(-((s - t) ** 2) / 2)

    x, image = (spread, -spread), (r * spread, -r * spread)
    value = sp.series(half_mmd_squared(kernel, half, x, half, image), spread, 0, 5).removeO()
    constant = sp.cancel(value / spread**4)
    assert constant.free_symbols == {r}
    assert constant.subs(r, sp.Rational(1, 2)) > 0
    witness = sum((kernel(z, s) - kernel(z, t)) / 2 for s, t in zip(x, image, strict=True))
    velocity = -sp.series(sp.diff(witness, z).subs(z, spread), spread, 0, 4).removeO()
    rate = sp.factor(sp.cancel(velocity / spread**3))
    assert rate.free_symbols == {r}
    assert rate.subs(r, sp.Rational(1, 2)) < 0
    # d spread/dt = -c spread^3 is solved by (spread_0^-2 + 2 c t)^(-1/2): algebraic, not exponential, decay.
    t, c, start = sp.symbols("t c s0", positive=True)
    path = (start**-2 + 2 * c * t) ** sp.Rational(-1, 2)
    assert sp.simplify(path.diff(t) + c * path**3) == 0
    assert sp.limit(path * sp.sqrt(t), t, sp.oo) == 1 / sp.sqrt(2 * c)
