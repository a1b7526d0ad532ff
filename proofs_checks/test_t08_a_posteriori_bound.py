"""T8 A posteriori bound: Lip(Phi) <= L < 1 in a metric d gives d(mu, mu*) <= d(mu, Phi(mu)) / (1 - L) in it.

Verified: the bound from the triangle inequality, eliminated by SymPy; its sharpness on the line for z -> L z; an
affine map of the plane in the norm in which it contracts; that the residual alone, L/(1 - L) times it, and another
norm are no bounds.
Assumed: the triangle inequality and Banach's theorem.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T8")

error, residual, lipschitz = sp.symbols("e r L", nonnegative=True)


def a_posteriori_bound(residual, lipschitz):
    return residual / (1 - lipschitz)


def test_the_triangle_inequality_gives_the_bound():
    """From e <= r + d(Phi(mu), Phi(mu*)) <= r + L e, as the positive factor 1/(1 - L) keeps the order."""
    worst = sp.solve(sp.Eq(error, residual + lipschitz * error), error)[0]
    assert sp.simplify(worst - a_posteriori_bound(residual, lipschitz)) == 0
    slack = residual + lipschitz * error - error
    assert sp.simplify(slack / (1 - lipschitz) - (a_posteriori_bound(residual, lipschitz) - error)) == 0


def test_it_is_sharp_on_the_line():
    start, offset = sp.symbols("z b", real=True)
    image = lipschitz * start + offset
    fixed = offset / (1 - lipschitz)
    assert sp.simplify((start - fixed) - a_posteriori_bound(start - image, lipschitz)) == 0


def test_smaller_factors_are_rejected():
    """For z -> L z the error is r/(1 - L); r alone and L r/(1 - L), which bounds the next iterate, are less."""
    exact = a_posteriori_bound(residual, lipschitz)
    for too_small in (residual, lipschitz * exact):
        gap = sp.factor(exact - too_small)
        assert gap.subs({residual: 1, lipschitz: sp.Rational(1, 2)}) > 0
    next_error = lipschitz * exact
    assert sp.simplify(next_error - lipschitz * residual / (1 - lipschitz)) == 0


def test_the_metric_must_be_the_one_of_the_contraction():
    """A = [[0, K], [0, 0]] contracts by L in e_1^2 + (K/L)^2 e_2^2 for every K, not in the Euclidean norm."""
    steep = sp.Symbol("K", positive=True)
    matrix = sp.Matrix([[0, steep], [0, 0]])
    factor = sp.Rational(1, 2)

    def norm(vector, scale):
        return sp.sqrt(vector[0] ** 2 + (scale * vector[1]) ** 2)

    e = sp.Matrix(sp.symbols("e1 e2", real=True))
    scale = steep / factor
    assert sp.expand((factor * norm(e, scale)) ** 2 - norm(matrix * e, scale) ** 2 - (factor * e[0]) ** 2) == 0
    bad = sp.Matrix([steep, 1])  # its residual is (0, 1)
    left = bad - matrix * bad
    assert left == sp.Matrix([0, 1])
    euclidean = norm(bad, 1) - a_posteriori_bound(norm(left, 1), factor)
    assert euclidean.subs(steep, 10) > 0
    same = a_posteriori_bound(norm(left, scale), factor) - norm(bad, scale)
    assert sp.limit(same / steep, steep, sp.oo) > 0
    assert all(same.subs(steep, k) > 0 for k in (sp.Rational(1, 10), 1, 10, 1000))
