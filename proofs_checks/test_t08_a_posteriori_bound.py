"""T8 A posteriori bound: Lip(Phi) <= L < 1 in a metric d gives d(mu, mu*) <= d(mu, Phi(mu)) / (1 - L) in it.

Verified: the bound from the triangle inequality, eliminated by SymPy; its sharpness on the line for z -> L z; an
affine map of the plane in the norm in which it contracts; that the residual alone, L/(1 - L) times it, and another
norm are no bounds. Of the cell with a certificate: that a kernel normalised on both sides is an operator with spectrum in
[-1, 1] on L2(mu), for symbolic masses, kernels and fields (n = 2, 3), and fixes sqrt(d); that kernels normalised on one
side, or without masses, exceed one; convex combinations; slopes of the activation; that the squarings of the Gram matrix
give a Schatten norm, which is a bound, and that powers of a vector give none.
Assumed: the triangle inequality and Banach's theorem; that the norm of a self-adjoint operator is its spectral radius.
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


# The cell with a certificate.


def masses_and_kernel(n):
    """Symbols for masses w, roots r of the degrees and a symmetric kernel whose degrees are r^2; a field v."""
    w, r = sp.symbols(f"w0:{n}", positive=True), sp.symbols(f"r0:{n}", positive=True)
    k = [[sp.Symbol(f"k{min(i, j)}{max(i, j)}", positive=True) for j in range(n)] for i in range(n)]
    for i in range(n):  # the diagonal is what makes the degree right
        k[i][i] = (r[i] ** 2 - sum(w[j] * k[i][j] for j in range(n) if j != i)) / w[i]
    return w, r, k, sp.symbols(f"v0:{n}", real=True)


def interact(w, r, k, v):
    """(K v)_i = sum_j w_j k_ij v_j / (r_i r_j), with r^2 the degrees."""
    n = len(w)
    return [sum(w[j] * k[i][j] * v[j] / (r[i] * r[j]) for j in range(n)) for i in range(n)]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_interactions_have_their_spectrum_between_minus_one_and_one(n, sign):
    w, r, k, v = masses_and_kernel(n)
    image = interact(w, r, k, v)
    form = sum(w[i] * v[i] * (v[i] - sign * image[i]) for i in range(n))
    squares = sum(w[i] * w[j] * k[i][j] * (v[i] / r[i] - sign * v[j] / r[j]) ** 2 for i in range(n) for j in range(n)) / 2
    assert sp.simplify(form - squares) == 0
    u = sp.symbols(f"u0:{n}", real=True)
    inner = sum(w[i] * (u[i] * image[i] - v[i] * interact(w, r, k, u)[i]) for i in range(n))
    assert sp.simplify(inner) == 0  # self-adjoint, so that the spectrum bounds the norm


def test_the_norm_one_is_attained():
    w, r, k, _ = masses_and_kernel(3)
    assert [sp.simplify(a - b) for a, b in zip(interact(w, r, k, r), r, strict=True)] == [0, 0, 0]


def norm_squared_of_mean(field, image, w):
    return sum(m * x**2 for m, x in zip(w, image, strict=True)) / sum(m * x**2 for m, x in zip(w, field, strict=True))


def test_one_sided_normalisation_and_missing_masses_are_rejected():
    """Softmax attention of all to the first atom; and two atoms that average without their masses."""
    w = sp.symbols("w", positive=True)
    masses = (w, 1 - w)
    assert norm_squared_of_mean((1, 0), (1, 1), masses) == 1 / w
    half = sp.Rational(1, 2)
    unweighted = sp.simplify(norm_squared_of_mean((1, 0), (half, half), masses))
    assert unweighted.subs(w, sp.Rational(1, 5)) > 1
    assert unweighted.subs(w, sp.Rational(1, 4)) == 1
    weighted = sp.simplify(norm_squared_of_mean((1, 0), (w, w), masses))
    assert weighted == w


def test_layers_are_convex_combinations_of_non_expansive_maps():
    s, a, b = sp.symbols("s a b", real=True)  # coordinates of the two images of a difference
    spare = (1 - s) * a**2 + s * b**2 - ((1 - s) * a + s * b) ** 2
    assert sp.expand(spare - s * (1 - s) * (a - b) ** 2) == 0


def test_slopes_of_the_activation():
    x = sp.Symbol("x", real=True)
    slope = sp.diff(sp.log(1 + sp.exp(x + 2)) - sp.log(1 + sp.exp(2)), x)
    assert sp.simplify(1 - slope - 1 / (1 + sp.exp(x + 2))) == 0  # both parts of one are positive
    assert sp.simplify(slope - sp.exp(x + 2) / (1 + sp.exp(x + 2))) == 0
    assert abs(sp.N(slope.subs(x, 0)) - 0.88) < 1e-2


def test_squarings_of_the_gram_matrix_give_a_bound():
    """As the library does it: divided by the trace after each squaring, logarithms of the traces added up."""
    a, b = sp.symbols("a b", positive=True)  # squares of the singular values
    gram, product = [a, b], sp.S.One
    for k in range(4):
        gram = [g**2 for g in gram] if k else gram
        size = sum(gram)
        product = product * size ** sp.Rational(1, 2**k)
        gram = [g / size for g in gram]
    power = 2**3
    for values in ({a: 1, b: 1}, {a: 4, b: 1}, {a: 1, b: sp.Rational(1, 9)}):
        exact = (a**power + b**power) ** sp.Rational(1, power)
        assert abs(sp.N((product - exact).subs(values), 30)) < 1e-25
        assert sp.N(product.subs(values)) > max(values.values())
        assert sp.N(product.subs(values)) <= 2 ** (1 / power) * max(values.values()) + 1e-12
    # One step of a power iteration is no bound: it depends on where it starts.
    vector = sp.Matrix([1, 1])
    estimate = (sp.diag(a, b) * vector).norm() / vector.norm()
    assert estimate.subs({a: 4, b: 1}) < 4
