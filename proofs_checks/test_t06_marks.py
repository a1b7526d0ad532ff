"""T6 Marks: atoms with marks u ~ nu that never move have the equilibrium S*#nu, in general not a Dirac mass.

Phi(S)(u) = T(u, S(u), (id, S)#nu) has one fixed point if it is an L-contraction on L2(nu); with n sampled marks the
fixed point is O(n^{-1/2} / (1 - L)) away if T reads the measure through Lipschitz functions of means.

Verified: the contraction constant Lip_S + Lip_mu from the pointwise one; for T = a s + b int s dmu + c u + e int u
dmu the fixed points for n = 2, 3, 4 marks and for nu, their mean square distance for n = 2, 3, 5 (the bound's order
n^{-1/2}/(1 - L) is attained), and a collapse without marks; that an unweighted sum does not transfer to another n;
that a supremum has another rate.
Assumed: Banach's theorem; W_2((id, S)#nu, (id, S')#nu) <= |S - S'| in L2(nu), by the coupling that keeps the marks.
"""

from itertools import product

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T6")

a, b, c, e, mark, average, variance = sp.symbols("a b c e u m sigma2", real=True)


def equilibrium(u, mean):
    """The fixed point S*(u) for marks of the given mean."""
    alpha, beta = sp.symbols("alpha beta")
    state = alpha * u + beta
    gap = a * state + b * (alpha * mean + beta) + c * u + e * mean - state
    solution = sp.solve(sp.Poly(gap, u).coeffs(), [alpha, beta], dict=True)[0]
    return state.subs(solution)


def sampled_equilibrium(marks, reduce=lambda values: sum(values) / len(values)):
    """Fixed points of x_i = a x_i + b reduce(x) + c u_i + e reduce(u)."""
    x = sp.symbols(f"x0:{len(marks)}")
    equations = [a * s + b * reduce(x) + c * u + e * reduce(marks) - s for s, u in zip(x, marks, strict=True)]
    solution = sp.solve(equations, x, dict=True)[0]
    return [solution[s] for s in x]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_sampled_fixed_point_is_the_same_function_of_the_marks(n):
    marks = sp.symbols(f"u0:{n}")
    state = equilibrium(mark, sum(marks) / n)
    for point, u in zip(sampled_equilibrium(marks), marks, strict=True):
        assert sp.cancel(point - state.subs(mark, u)) == 0


def test_with_marks_it_is_not_a_dirac_mass_and_without_them_it_is():
    assert sp.cancel(equilibrium(mark, average).diff(mark) - c / (1 - a)) == 0
    assert equilibrium(mark, average).diff(mark).subs(c, 0) == 0


def test_the_contraction_constant_is_the_sum_of_both():
    """Pointwise at most p d_i + q D, with D the root mean square of the d_i, is at most (p + q) D in mean square."""
    p, q = sp.symbols("p q", nonnegative=True)
    d = sp.symbols("d0:3", nonnegative=True)
    mean, square = sum(d) / 3, sum(s**2 for s in d) / 3
    root = sp.Symbol("D", nonnegative=True)
    image_square = sum((p * s + q * root) ** 2 for s in d) / 3
    spare = (p + q) ** 2 * square - image_square - 2 * p * q * (square - root * mean)
    assert sp.rem(spare, root**2 - square, root) == 0  # the slack is 2 p q (D^2 - D mean) >= 0, as mean <= D:
    assert sp.expand(square - mean**2 - sum((s - t) ** 2 for s, t in product(d, repeat=2)) / 18) == 0


def expectation(expression, marks):
    """Of a polynomial of degree 2 in independent marks of mean m and variance sigma2."""
    moments = {(1, 1): average**2}
    total = 0
    for powers, coefficient in sp.Poly(sp.expand(expression), *marks).terms():
        degrees = tuple(sorted(k for k in powers if k))
        total += coefficient * moments.get(degrees, {(): 1, (1,): average, (2,): average**2 + variance}.get(degrees))
    return sp.expand(total)


def mean_square_distance(n):
    """E |S*_n - S*|^2 in L2(nu_n)."""
    marks = sp.symbols(f"u0:{n}")
    gap = equilibrium(mark, sum(marks) / n) - equilibrium(mark, average)
    gap = sp.factor(gap)  # the same for all atoms: only the mean enters
    assert mark not in gap.free_symbols
    return sp.cancel(expectation(gap**2, marks))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_distance_to_the_limit(n):
    """|S*_n - S*| = |Phi_n(S*) - Phi(S*)| / (1 - L) here, with L = a + b: the bound is attained."""
    drift = b * c / (1 - a) + e  # of Phi_n(S*) - Phi(S*), per unit of the mean mark
    wanted = drift**2 * variance / n / (1 - a - b) ** 2
    assert sp.cancel(mean_square_distance(n) - wanted) == 0
    assert sp.cancel(mean_square_distance(n) - wanted * (1 - a - b) ** 2) != 0
    assert sp.cancel(mean_square_distance(n) - wanted / n) != 0


def test_unweighted_sums_do_not_transfer_to_another_number_of_atoms():
    few, many = (sampled_equilibrium((mark,) * n, reduce=sum)[0] for n in (2, 4))
    assert sp.cancel(few - many) != 0
    few, many = (sampled_equilibrium((mark,) * n)[0] for n in (2, 4))
    assert sp.cancel(few - many) == 0


def expected_gap_of_the_supremum(n, dim):
    """E min_i |u_i|_inf for n uniform marks on [0, 1]^dim: how far sup (1 - |u|_inf) is from its limit."""
    return sp.gamma(n + 1) * sp.gamma(1 + sp.S.One / dim) / sp.gamma(n + 1 + sp.S.One / dim)


def test_suprema_have_the_rate_n_to_the_minus_one_over_the_dimension():
    """Faster than n^{-1/2} on the line, slower from dimension 3 on."""
    n, t = sp.Float(10**6), sp.Symbol("t", positive=True)
    for dim in (1, 2, 3, 4):
        for count in (1, 2, 3):
            assert sp.integrate((1 - t**dim) ** count, (t, 0, 1)) == sp.simplify(expected_gap_of_the_supremum(count, dim))
        ratio = sp.loggamma(n + 1) - sp.loggamma(n + 1 + sp.S.One / dim) + sp.log(n) / dim
        assert abs(sp.N(ratio)) < 1e-5
