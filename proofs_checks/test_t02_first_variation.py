"""T2 First variation from a mass-zero atom: dF/dmu(y) = d/de f(w + [e], x + [y]) at e = 0+.

At an atom it is df/dw_i, and the Wasserstein gradient is (1/w_i) df/dx_i = grad_y dF/dmu(y) at y = x_i.

Verified: both, for F = Q(int g dmu, iint h dmu dmu) with undetermined polynomials g, h, Q and two atoms of symbolic
masses in the plane; the centred first variation of a functional that normalises; that a gradient without 1/w, or of a
functional of the array, is rejected; that continuity of the first variation in the measure is needed; three
functionals without one.
Assumed: smooth functionals are limits of polynomial ones; the general proof is in the docs.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T2")

mass = sp.symbols("w1 w2", positive=True)
first, second, probe = sp.symbols("x1 x2", real=True), sp.symbols("y1 y2", real=True), sp.symbols("z1 z2", real=True)
points = (first, second)
epsilon = sp.Symbol("epsilon", positive=True)


def first_variation(functional, w, x, y):
    return sp.diff(functional((*w, epsilon), (*x, y)), epsilon).subs(epsilon, 0)


def g(x):
    a = sp.symbols("a0:6")
    return a[0] + a[1] * x[0] + a[2] * x[1] + a[3] * x[0] ** 2 + a[4] * x[0] * x[1] + a[5] * x[1] ** 3


def h(x, y):
    """Not symmetric: the claim does not need it."""
    b = sp.symbols("b0:5")
    return (
        b[0] * x[0] * y[1] + b[1] * x[1] ** 2 * y[0] + b[2] * x[0] * x[1] * y[1] ** 2 + b[3] * y[0] + b[4] * x[0] ** 2 * y[0] ** 2
    )


def smooth_functional(w, x):
    atoms = list(zip(w, x, strict=True))
    single = sum(a * g(p) for a, p in atoms)
    double = sum(a * b * h(p, q) for a, p in atoms for b, q in atoms)
    c = sp.symbols("c0:4")
    return c[0] * single + c[1] * double + c[2] * single**2 + c[3] * single * double


def array_functional(w, x):
    return sum(a**2 * g(p) for a, p in zip(w, x, strict=True))


def difference_of_gradients(functional, scale):
    """scale * df/dx_1 - grad_y dF/dmu(y) at y = x_1."""
    moved = [scale * sp.diff(functional(mass, points), coordinate) for coordinate in first]
    variation = first_variation(functional, mass, points, probe)
    probed = [sp.diff(variation, z).subs(dict(zip(probe, first, strict=True))) for z in probe]
    return [sp.expand(a - b) for a, b in zip(moved, probed, strict=True)]


def test_at_an_atom_the_first_variation_is_the_derivative_in_its_weight():
    at_atom = first_variation(smooth_functional, mass, points, first)
    assert sp.expand(at_atom - sp.diff(smooth_functional(mass, points), mass[0])) == 0


def test_the_wasserstein_gradient_is_the_derivative_in_the_point_divided_by_the_mass():
    assert difference_of_gradients(smooth_functional, 1 / mass[0]) == [0, 0]


def test_without_the_division_it_is_rejected():
    assert all(difference_of_gradients(smooth_functional, 1))


def test_functionals_of_the_array_are_rejected():
    assert all(difference_of_gradients(array_functional, 1 / mass[0]))
    at_atom = first_variation(array_functional, mass, points, first)
    assert sp.expand(at_atom - sp.diff(array_functional(mass, points), mass[0])) != 0


def test_normalising_centres_the_first_variation_and_divides_it_by_the_mass():
    """At mass one this is a change by a constant, and no gradient changes."""
    total = sum(mass)
    normalised = tuple(a / total for a in mass)

    def of_the_normalised(w, x):
        return smooth_functional(tuple(a / sum(w) for a in w), x)

    variation = first_variation(of_the_normalised, mass, points, probe)
    plain = first_variation(smooth_functional, normalised, points, probe)
    average = sum(a * plain.subs(dict(zip(probe, p, strict=True))) for a, p in zip(normalised, points, strict=True))
    assert sp.expand(sp.cancel(variation * total - plain + average)) == 0
    assert sp.simplify((variation - plain).diff(probe[0]).subs(mass[1], 1 - mass[0])) == 0


def test_the_first_variation_must_be_continuous_in_the_measure_too():
    """F = m^3 v / (m^4 + v^2), m = int x dmu, v = int x^2 dmu: at delta_0 all probes see 0, a moved atom sees 1/2."""

    def functional(w, x):
        m = sum(a * p for a, p in zip(w, x, strict=True))
        v = sum(a * p**2 for a, p in zip(w, x, strict=True))
        return m**3 * v / (m**4 + v**2)

    y, shift = sp.symbols("y eta", positive=True)
    probed = sp.limit(functional((1, epsilon), (0, y)) / epsilon, epsilon, 0)
    moved = sp.limit(functional((1,), (shift,)) / shift, shift, 0)
    assert (probed, moved) == (0, sp.Rational(1, 2))


def test_functionals_without_a_first_variation():
    """Cell masses with w log w: slope -oo. A supremum: a jump. A norm at 0: slopes that do not add up."""
    assert sp.limit(epsilon * sp.log(epsilon) / epsilon, epsilon, 0) == -sp.oo

    def supremum(w, x):
        return max(p for a, p in zip(w, x, strict=True) if a != 0)

    assert sp.limit((supremum((1, epsilon), (1, 2)) - supremum((1, 0), (1, 2))) / epsilon, epsilon, 0) == sp.oo
    k_pp, k_pq, k_qq = sp.symbols("k_pp k_pq k_qq", positive=True)
    slope_p, slope_q = (sp.limit(sp.sqrt(epsilon**2 * k) / epsilon, epsilon, 0) for k in (k_pp, k_qq))
    slope_both = sp.limit(sp.sqrt(epsilon**2 * (k_pp + 2 * k_pq + k_qq)) / epsilon, epsilon, 0)
    assert sp.simplify(slope_both - slope_p - slope_q) != 0
