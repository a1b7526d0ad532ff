"""T11 Slicing: E|<theta, x>|^r = |x|^r / c_{d,r} for theta uniform on the unit sphere of R^d.

Verified: the constant for symbolic dimension d > 1 and order r > 0, from the density of one coordinate; directly on
the circle and on the sphere; its values for r = 1; that the Riesz MMD^2 of two measures is c times the mean of those
of their slices.
Assumed: that density, proportional to (1 - t^2)^((d-3)/2) on [-1, 1] (Archimedes), and rotation invariance.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T11")

d, r = sp.symbols("d r", positive=True)


def moment(order):
    """E|theta_1|^order: a ratio of beta integrals, after the substitution u = t^2."""

    def integral(p):  # int_0^1 t^p (1 - t^2)^((d-3)/2) dt
        return sp.beta((p + 1) / 2, (d - 1) / 2).rewrite(sp.gamma) / 2

    return integral(order) / integral(sp.S.Zero)  # sp.S.Zero: a Python 0 would bring floats into the proof


def slicing_constant(d, r):
    """c_{d,r}: Riesz energies in R^d are this times the mean of those of the slices."""
    half = sp.Rational(1, 2)
    return sp.sqrt(sp.pi) * sp.gamma(half * (d + r)) / (sp.gamma(half * d) * sp.gamma(half * (r + 1)))


def test_the_beta_integral_is_the_moment_of_the_density():
    t = sp.Symbol("t", positive=True)
    for dim, order in ((4, 1), (5, 2), (6, 3)):
        density = (1 - t**2) ** sp.Rational(dim - 3, 2)
        direct = sp.integrate(t**order * density, (t, 0, 1)) / sp.integrate(density, (t, 0, 1))
        assert sp.simplify(direct - moment(sp.Integer(order)).subs(d, dim)) == 0


def test_constant_is_the_inverse_moment():
    assert sp.gammasimp(moment(r) * slicing_constant(d, r)) == 1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_constant_on_the_circle_and_on_the_sphere(order):
    angle = sp.Symbol("phi")
    quarter = (angle, 0, sp.pi / 2)  # by symmetry
    circle = sp.integrate(sp.cos(angle) ** order, quarter) / (sp.pi / 2)
    sphere = sp.integrate(sp.cos(angle) ** order * sp.sin(angle), quarter)
    assert sp.simplify(circle * slicing_constant(2, order)) == 1
    assert sp.simplify(sphere * slicing_constant(3, order)) == 1


def test_known_values():
    values = [sp.simplify(slicing_constant(sp.Integer(n), sp.Integer(1))) for n in (1, 2, 3)]
    assert values == [1, sp.pi / 2, 2]
    assert abs(slicing_constant(10, 1.0) - 3.86563) < 5e-6
    assert sp.gammasimp(slicing_constant(sp.Integer(1), r)) == 1  # nothing to slice on the line


def riesz_mmd_squared(distance, a, b):
    """With the kernel -|x - y|; `distance` maps a difference of points to its length."""
    signed = [*a, *((-m, p) for m, p in b)]
    return -sum(m * n * distance(p - q) for m, p in signed for n, q in signed)


def mean_length_of_slices(difference):
    """1/pi times the integral of |x cos + y sin| over the half turn on which it is x cos + y sin."""
    x, y = difference
    if not (x or y):
        return 0
    start = sp.atan2(y, x) - sp.pi / 2

    def primitive(angle):
        return x * sp.sin(angle) - y * sp.cos(angle)

    return (primitive(start + sp.pi) - primitive(start)) / sp.pi


def test_riesz_energies_are_means_over_slices():
    w = sp.symbols("w1 w2", positive=True)
    a = [(w[0], sp.Matrix([1, 2])), (w[1], sp.Matrix([-3, 1]))]
    b = [(w[0], sp.Matrix([0, -1])), (w[1], sp.Matrix([2, 5]))]
    slices = riesz_mmd_squared(mean_length_of_slices, a, b)
    whole = riesz_mmd_squared(lambda difference: difference.norm(), a, b)
    assert sp.simplify(slicing_constant(2, 1) * slices - whole) == 0
    assert sp.simplify(slices - whole) != 0


def test_a_forgotten_factor_is_rejected():
    assert sp.gammasimp(moment(r) * slicing_constant(d, r) * sp.gamma((r + 1) / 2)) != 1
