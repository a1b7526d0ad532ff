"""T1 Measure consistency: a functional of arrays is one of measures iff three moves leave it as it is.

The moves: permute the atoms, split an atom's mass between copies, add an atom of mass zero.

Verified: moments, attention, V-statistics and suprema over the support pass the moves for symbolic masses and
undetermined functions; unweighted sums, U-statistics, batch statistics, nearest neighbours and top-k fail; among sums
over atoms and over pairs whose masses enter polynomially, the moves leave the integrals and no other; two arrays of
one measure are joined by moves; maps that follow the moves send coincident atoms to one place.
Assumed: nothing beyond algebra; the undetermined functions are values at distinct points.
"""

from itertools import permutations

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T1")

mass = sp.symbols("w1:4", positive=True)
place = sp.symbols("x1:4", real=True)
query, extra = sp.symbols("q z", real=True)
share = sp.Symbol("s", positive=True)
g, value, logit, kernel = (sp.Function(name) for name in ("g", "v", "l", "k"))


def permute(w, x, order):
    return tuple(w[i] for i in order), tuple(x[i] for i in order)


def split(w, x, atom, fraction):
    """The copy goes to the end."""
    return (*w[:atom], (1 - fraction) * w[atom], *w[atom + 1 :], fraction * w[atom]), (*x, x[atom])


def pad(w, x, point):
    return (*w, sp.S.Zero), (*x, point)


def moved(w, x):
    """The array after each kind of move."""
    yield from (permute(w, x, order) for order in permutations(range(len(w))))
    yield split(w, x, 0, share)
    yield pad(w, x, extra)
    yield pad(w, x, x[0])


def pairs(w, x, summand):
    return sum(a * b * summand(p, r) for a, p in zip(w, x, strict=True) for b, r in zip(w, x, strict=True))


def mean(w, x):
    return sum(a * g(p) for a, p in zip(w, x, strict=True)) / sum(w)


def attention(w, x, at=query):
    scores = [a * sp.exp(logit(at, p)) for a, p in zip(w, x, strict=True)]
    return sum(score * value(p) for score, p in zip(scores, x, strict=True)) / sum(scores)


def v_statistic(w, x):
    return pairs(w, x, kernel)


def supremum_over_the_support(w, x):
    return sp.Max(*{g(p) for a, p in zip(w, x, strict=True) if a != 0})


def unweighted_sum(w, x):
    return sum(g(p) for p in x)


def unweighted_attention(w, x):
    return attention((sp.S.One,) * len(w), x)


def u_statistic(w, x):
    return v_statistic(w, x) - sum(a**2 * kernel(p, p) for a, p in zip(w, x, strict=True))


def batch_variance(w, x):
    centre = sum(x) / len(x)
    return sum((p - centre) ** 2 for p in x) / len(x)


def nearest_neighbour(w, x):
    def distance(i):
        return min(abs(x[i] - point) for j, point in enumerate(x) if j != i)

    return sum(a * distance(i) for i, a in enumerate(w))


def top_two(w, x):
    return sum(sorted(x)[-2:])


def is_consistent(functional, w, x):
    reference = functional(w, x)
    return all(sp.simplify(functional(*array) - reference) == 0 for array in moved(w, x))


@pytest.mark.parametrize("functional", [mean, attention, v_statistic, supremum_over_the_support])
def test_functionals_of_the_measure_pass_the_moves(functional):
    assert is_consistent(functional, mass, place)


@pytest.mark.parametrize("functional", [unweighted_sum, unweighted_attention, u_statistic])
def test_functionals_of_the_array_are_rejected(functional):
    assert not is_consistent(functional, mass, place)


@pytest.mark.parametrize("functional", [batch_variance, nearest_neighbour, top_two])
def test_statistics_of_the_batch_are_rejected(functional):
    w, x = (sp.Rational(1, 2), sp.Rational(1, 3), sp.Rational(1, 6)), (sp.Integer(0), sp.Integer(1), sp.Integer(3))
    assert functional(*split(w, x, 2, sp.Rational(1, 2))) != functional(w, x)


def coefficients_left_by(conditions, variables, unknowns):
    """Solve for the coefficients that make every condition vanish identically in the variables."""
    equations = [c for condition in conditions for c in sp.Poly(sp.expand(condition), *variables).coeffs()]
    return sp.solve(equations, unknowns, dict=True)[0]


def test_a_sum_over_atoms_must_be_linear_in_the_masses():
    unknowns = sp.symbols("a0:6")
    w = mass[0]

    def phi(a):
        return sum(c * a**k for k, c in enumerate(unknowns))

    solution = coefficients_left_by([phi(share * w) + phi((1 - share) * w) - phi(w), phi(sp.S.Zero)], (share, w), unknowns)
    assert sp.expand(phi(w).subs(solution)) == unknowns[1] * w


def test_a_sum_over_pairs_must_be_the_double_integral_and_a_diagonal_integral():
    """Ansatz: sum_ij phi(w_i, w_j) k(x_i, x_j) + sum_i psi(w_i) k(x_i, x_i) with undetermined polynomials phi, psi."""
    off, on = sp.symbols("a0:9"), sp.symbols("b0:4")
    k_pp, k_pr, k_rp, k_rr = sp.symbols("k_pp k_pr k_rp k_rr")
    at = {(0, 0): k_pp, (0, 1): k_pr, (1, 0): k_rp, (1, 1): k_rr}

    def phi(a, b):
        return sum(c * a ** (k // 3) * b ** (k % 3) for k, c in enumerate(off))

    def psi(a):
        return sum(c * a**k for k, c in enumerate(on))

    def total(w, x):
        atoms = list(zip(w, x, strict=True))
        return sum(phi(a, b) * at[p, r] for a, p in atoms for b, r in atoms) + sum(psi(a) * at[p, p] for a, p in atoms)

    w, x = mass[:2], (0, 1)
    conditions = [total(*split(w, x, 0, share)) - total(w, x), total(*pad(w, x, 1)) - total(w, x)]
    solution = coefficients_left_by(conditions, (share, *w, *at.values()), (*off, *on))
    assert sp.expand(phi(*w).subs(solution)) == off[4] * w[0] * w[1]
    assert sp.expand(psi(w[0]).subs(solution)) == on[1] * w[0]


def test_two_arrays_of_one_measure_are_joined_by_moves():
    """Merging copies and dropping mass-zero atoms gives a normal form; split, padding and permutation undo this."""
    a, b, c = mass
    p, r = place[:2]
    array = ((a, sp.S.Zero, b, c), (p, extra, r, p))
    normal = ((a + c, b), (p, r))
    w, x = permute(*pad(*split(*normal, 0, c / (a + c)), extra), (0, 3, 1, 2))
    assert (tuple(map(sp.simplify, w)), x) == array


def follows_the_moves(array_map):
    """Copies go where the original goes, and nothing else changes."""
    w, x = mass[:2], place[:2]
    image = array_map(w, x)
    swapped = array_map(*permute(w, x, (1, 0)))
    cut = array_map(*split(w, x, 0, share))
    padded = array_map(*pad(w, x, extra))
    seen = (*swapped, *cut, *padded[:2])
    wanted = (image[1], image[0], image[0], image[1], image[0], image[0], image[1])
    return all(sp.simplify(left - right) == 0 for left, right in zip(seen, wanted, strict=True))


def test_attention_over_the_measure_is_a_push_forward():
    assert follows_the_moves(lambda w, x: [p + attention(w, x, at=p) for p in x])


def test_maps_that_read_the_mass_of_an_atom_or_the_number_of_atoms_are_rejected():
    assert not follows_the_moves(lambda w, x: [p / 2 + a for a, p in zip(w, x, strict=True)])
    assert not follows_the_moves(lambda w, x: [p + sum(x) / len(x) for p in x])


def test_following_the_moves_is_not_necessary_for_a_map_of_measures():
    """Exchanging two equal atoms is the identity on measures, but no rule for single atoms."""
    w, x = (sp.Rational(1, 2),) * 2, place[:2]
    exchanged = (x[1], x[0])
    assert sp.simplify(mean(w, exchanged) - mean(w, x)) == 0
    assert exchanged != x
