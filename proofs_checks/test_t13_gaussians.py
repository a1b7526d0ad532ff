"""T13 Gaussians: W_2^2 and the Gaussian-kernel MMD^2 of two Gaussians, and the energy distance on the line.

W_2^2 = |a - b|^2 + tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}).
MMD^2 = I(0, 2A) + I(0, 2B) - 2 I(a - b, A + B), I(m, S) = s^d |S + s^2 I|^{-1/2} exp(-m^T (S + s^2 I)^{-1} m / 2).

Verified: for undetermined 2 x 2 covariances, that the map with matrix T below carries N(a, A) to N(b, B), is
symmetric and has the cost of the formula; the root of a 2 x 2 matrix; I(m, S) by integration on the line, and in the
plane for diagonal S; the mean distance on the line by integration; the stated values.
Assumed: Brenier's theorem (a gradient of a convex function is optimal); independence of the coordinates after a
rotation.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T13")


def trace_of_root(matrix):
    """tr M^{1/2} of a positive 1 x 1 or 2 x 2 matrix, by Cayley and Hamilton."""
    if matrix.rows == 1:
        return sp.sqrt(matrix[0])
    if matrix.rows == 2:
        return sp.sqrt(matrix.trace() + 2 * sp.sqrt(matrix.det()))
    raise ValueError(f"closed form for dimension 1 and 2, seen {matrix.rows}")


def gaussian_w2_squared(mean_a, covariance_a, mean_b, covariance_b):
    """In dimension 1 or 2; means are sequences, covariances nested sequences or matrices."""
    a, b = sp.Matrix(covariance_a), sp.Matrix(covariance_b)
    gap = sp.Matrix(mean_a) - sp.Matrix(mean_b)
    # A B has the eigenvalues of A^{1/2} B A^{1/2}.
    return gap.dot(gap) + a.trace() + b.trace() - 2 * trace_of_root(a * b)


def gaussian_kernel_mean(mean, covariance, bandwidth):
    """I(m, S) = E exp(-|Z|^2 / (2 bandwidth^2)) for Z ~ N(m, S), in any dimension."""
    mean, total = sp.Matrix(mean), sp.Matrix(covariance)
    total += bandwidth**2 * sp.eye(total.rows)
    exponent = -(mean.T * total.inv() * mean)[0] / 2
    return bandwidth**total.rows / sp.sqrt(total.det()) * sp.exp(exponent)


def gaussian_mmd_squared(mean_a, covariance_a, mean_b, covariance_b, bandwidth):
    """MMD^2, not halved, with the kernel exp(-|x - y|^2 / (2 bandwidth^2)), in any dimension."""
    a, b = sp.Matrix(covariance_a), sp.Matrix(covariance_b)
    gap = sp.Matrix(mean_a) - sp.Matrix(mean_b)
    own = gaussian_kernel_mean(0 * gap, 2 * a, bandwidth) + gaussian_kernel_mean(0 * gap, 2 * b, bandwidth)
    return own - 2 * gaussian_kernel_mean(gap, a + b, bandwidth)


def gaussian_mean_distance(mean, variance):
    """E|Z| for Z ~ N(mean, variance)."""
    deviation = sp.sqrt(variance)
    folded = deviation * sp.sqrt(2 / sp.pi) * sp.exp(-(mean**2) / (2 * variance))
    return folded + mean * sp.erf(mean / (deviation * sp.sqrt(2)))


def gaussian_energy_distance(mean_a, variance_a, mean_b, variance_b):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| on the line."""
    own = gaussian_mean_distance(0, 2 * variance_a) + gaussian_mean_distance(0, 2 * variance_b)
    return 2 * gaussian_mean_distance(mean_a - mean_b, variance_a + variance_b) - own


p, q, u, v = sp.symbols("p q u v", positive=True)
x, y = sp.symbols("x y", real=True)
A = sp.Matrix([[p, x], [x, q]])
B = sp.Matrix([[u, y], [y, v]])


def test_root_of_a_two_by_two_matrix():
    """(M + r I) / t with r^2 = det M and t^2 = tr M + 2 r squares to M, and has the trace t."""
    root_of_det = sp.Symbol("r", positive=True)
    square_of_trace = A.trace() + 2 * root_of_det
    gap = (A + root_of_det * sp.eye(2)) ** 2 - square_of_trace * A
    assert gap.applyfunc(lambda e: sp.rem(sp.expand(e), root_of_det**2 - A.det(), root_of_det)) == sp.zeros(2)
    assert sp.expand((A + root_of_det * sp.eye(2)).trace() - square_of_trace) == 0


def test_the_transport_map_and_its_cost():
    """T = A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2} = (B + r A^{-1}) / t, r^2 = det(AB) and t^2 = tr(AB) + 2 r."""
    r, t = sp.symbols("r t", positive=True)
    square = (A * B).trace() + 2 * r
    scaled = B + r * A.inv()  # t T: symmetric and positive

    def reduced(matrix):
        numerators = (matrix * A.det()).applyfunc(lambda e: sp.expand(sp.cancel(e)))
        return numerators.applyfunc(lambda e: sp.rem(e, r**2 - A.det() * B.det(), r))

    assert reduced(scaled * A * scaled - square * B) == sp.zeros(2)  # T A T = B: N(a, A) goes to N(b, B)
    assert scaled == scaled.T
    # The cost E|X - T X|^2 is tr(A + B - 2 T A), and tr(T A) = t: the root's trace.
    assert sp.expand(sp.cancel((scaled * A).trace() - square)) == 0
    cost = A.trace() + B.trace() - 2 * square / t
    formula = gaussian_w2_squared((0, 0), A, (0, 0), B)
    assert sp.simplify(formula - cost.subs(t, sp.sqrt(square)).subs(r, sp.sqrt((A * B).det()))) == 0


def test_the_product_of_roots_is_rejected():
    """tr(A^{1/2} B^{1/2}) is right for commuting matrices only."""
    a, b = sp.Matrix([[2, 1], [1, 2]]), sp.Matrix([[1, 0], [0, 9]])

    def root(matrix):
        return (matrix + sp.sqrt(matrix.det()) * sp.eye(2)) / trace_of_root(matrix)

    assert abs(sp.N((root(a) * root(b)).trace() - trace_of_root(a * b))) > 1e-2
    commuting = sp.diag(4, 9)
    assert sp.simplify((root(commuting) * root(b)).trace() - trace_of_root(commuting * b)) == 0


def gaussian_density(point, mean, variance):
    return sp.exp(-((point - mean) ** 2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)


def test_mean_of_the_gaussian_kernel():
    z, m = sp.symbols("z m", real=True)
    variance, bandwidth = sp.symbols("S s", positive=True)
    kernel = sp.exp(-(z**2) / (2 * bandwidth**2))
    direct = sp.integrate(kernel * gaussian_density(z, m, variance), (z, -sp.oo, sp.oo))
    line = gaussian_kernel_mean([m], [[variance]], bandwidth)
    assert sp.simplify(direct / line) == 1
    assert sp.simplify(direct / (line / bandwidth)) != 1  # without the factor s^d
    other = sp.Symbol("n", real=True)
    plane = gaussian_kernel_mean([m, other], sp.diag(variance, 2 * variance), bandwidth)
    product = line * line.subs({m: other, variance: 2 * variance}, simultaneous=True)
    assert sp.simplify(plane / product) == 1


def test_mean_distance_on_the_line():
    z, m = sp.symbols("z m", positive=True)
    variance = sp.Symbol("S", positive=True)
    right = sp.integrate(z * gaussian_density(z, m, variance), (z, 0, sp.oo))
    left = sp.integrate(z * gaussian_density(z, -m, variance), (z, 0, sp.oo))
    gap = (right + left - gaussian_mean_distance(m, variance)).rewrite(sp.erf)
    assert sp.simplify(sp.expand(gap)) == 0


def test_stated_values():
    a, b = ((1, -1), [[2, 0.5], [0.5, 1]]), ((0, 2), [[1, -0.3], [-0.3, 3]])
    assert abs(gaussian_w2_squared(*a, *b) - 10.929311855) < 1e-9
    assert abs(sp.N(gaussian_mmd_squared(*a, *b, sp.sqrt(0.7))) - 0.262369153) < 1e-9
    assert abs(sp.N(gaussian_energy_distance(0, 1, 1.5, 0.25)) - 1.493664500) < 1e-9


def test_half_and_whole_are_told_apart():
    """On the line between equal variances W_2 is the distance of the means."""
    mean, variance = sp.symbols("m S", positive=True)
    value = gaussian_w2_squared([mean], [[variance]], [0], [[variance]])
    assert sp.simplify(value - mean**2) == 0
    assert sp.simplify(value - mean**2 / 2) != 0
