"""T9 Linear equations: after how many evaluations Anderson's and Broyden's methods end, and the inverse that Newton's keeps.

Verified in rational numbers, for A z = b of two and three unknowns and weights of the inner product that differ: Anderson's
method of type II with enough memory has the residual zero after n + 2 evaluations, Broyden's after at most 2 n + 1; an older
difference that newer ones span changes no step of Anderson's method; along a line the residual is affine, so that the trial of
a long step is passed wherever it lies, and for a square it is not; with orthonormal q_i the operator
M u = u + sum_i (p_i - q_i) <q_i, u> has M q_i = p_i and is the identity on their complement, and its update by newer pairs
holds these exactly and leaves the rest as it was; all of it commutes with a split of an atom.
Assumed: nothing.
"""

from itertools import pairwise

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T9")

Q = sp.Rational
SYSTEMS = {
    2: (sp.Matrix([[3, 1], [-2, 1]]), sp.Matrix([1, 2]), sp.diag(Q(1, 3), Q(2, 3))),
    3: (sp.Matrix([[2, 1, 0], [-1, 3, 1], [1, -2, -1]]), sp.Matrix([1, -1, 2]), sp.diag(Q(1, 2), Q(1, 3), Q(1, 6))),
}
every_size = pytest.mark.parametrize("n", SYSTEMS)


def residuals_of_anderson(matrix, right, metric, steps):
    z, r = [sp.zeros(len(right), 1)], [-right]
    for _ in range(steps):
        moves, changes = ([b - a for a, b in pairwise(x)] for x in (z, r))
        proposal = z[-1] + r[-1]
        if changes:
            y = sp.Matrix.hstack(*changes)
            gamma = (y.T * metric * y).inv() * (y.T * metric * r[-1])
            proposal -= sp.Matrix.hstack(*moves) * gamma + y * gamma
        z.append(proposal)
        r.append(matrix * proposal - right)
        if r[-1].is_zero_matrix:
            break
    return r


def residuals_of_broyden(matrix, right, metric, steps):
    z, inverse = sp.zeros(len(right), 1), -sp.eye(len(right))
    r = [-right]
    for _ in range(steps):
        step = -inverse * r[-1]
        z = z + step
        r.append(matrix * z - right)
        if r[-1].is_zero_matrix:
            break
        change = r[-1] - r[-2]
        row = step.T * metric * inverse
        inverse = inverse + (step - inverse * change) * row / (row * change)[0]
    return r


@every_size
def test_anderson_ends_after_two_more_evaluations_than_unknowns(n):
    r = residuals_of_anderson(*SYSTEMS[n], steps=n + 1)
    assert r[-1].is_zero_matrix
    assert len(r) == n + 2


@every_size
def test_broyden_ends_after_twice_as_many_evaluations_as_unknowns_and_one(n):
    r = residuals_of_broyden(*SYSTEMS[n], steps=2 * n)
    assert r[-1].is_zero_matrix
    assert n + 2 < len(r) <= 2 * n + 1


@every_size
def test_iterates_before_the_last_may_be_far(n):
    """So that a rule that sends back what has no smaller residual would break these counts."""
    for method in (residuals_of_anderson, residuals_of_broyden):
        matrix, right, metric = SYSTEMS[n]
        sizes = [(x.T * metric * x)[0] for x in method(10 * matrix, right, metric, 2 * n)]
        assert max(sizes) > sizes[0]
        assert sizes[-1] == 0


def test_an_older_difference_that_newer_ones_span_changes_nothing():
    """Of all combinations with the least residual any gives the same next iterate where the equation is linear."""
    matrix, right, metric = SYSTEMS[2]
    z = sp.Matrix([1, 1])
    moves = [sp.Matrix([1, 0]), sp.Matrix([1, 1]), sp.Matrix([3, 2])]  # the first one is the oldest
    r, free = matrix * z - right, sp.Symbol("t")
    y = sp.Matrix.hstack(*(matrix * m for m in moves))
    newest = y[:, 1:]
    gamma = sp.Matrix([free, *((newest.T * metric * newest).inv() * (newest.T * metric * (r - free * y[:, 0])))])
    following = z + r - sp.Matrix.hstack(*moves) * gamma - y * gamma
    assert sp.simplify(following.diff(free)).is_zero_matrix


def test_along_a_line_an_affine_residual_is_between_its_ends():
    s = sp.Symbol("s")
    a, b, x, y = sp.symbols("a b x y")

    def miss(f):
        return sp.expand(f(x + s * (y - x)) - (1 - s) * f(x) - s * f(y))

    assert miss(lambda z: a * z + b) == 0
    assert sp.simplify(miss(lambda z: z**2) + s * (1 - s) * (x - y) ** 2) == 0


def test_the_inverse_of_what_was_seen():
    """M u = u + sum (p - q) <q, u>, and its update where the derivative is another."""
    root = sp.diag(Q(2, 3), Q(2, 3), Q(1, 3))
    metric, matrix = root**2, SYSTEMS[3][0]
    rotation = sp.Matrix([[2, -2, 1], [1, 2, 2], [2, 1, -2]]) / 3
    q = [root.inv() * rotation.col(i) for i in range(3)]
    assert sp.Matrix(3, 3, lambda i, j: (q[i].T * metric * q[j])[0]) == sp.eye(3)

    def operator(*pairs):
        return sp.eye(3) + sum(((p - v) * v.T * metric for p, v in pairs), sp.zeros(3, 3))

    old = operator((matrix.inv() * q[0], q[0]), (matrix.inv() * q[1], q[1]))
    assert old * q[0] == matrix.inv() * q[0]
    assert old * q[1] == matrix.inv() * q[1]
    assert old * q[2] == q[2]
    newer, fresh, rest = matrix + sp.eye(3), (3 * q[0] + 4 * q[2]) / 5, (4 * q[0] - 3 * q[2]) / 5
    updated = operator((newer.inv() * fresh, fresh), (old * rest, rest), (old * q[1], q[1]))
    assert updated * fresh == newer.inv() * fresh
    assert updated * rest == old * rest
    assert updated * q[1] == old * q[1]
    # What an older direction leaves of the newer ones: the eigenvalues of the Gram matrix of the rest.
    common = sp.Matrix([(v.T * metric * fresh)[0] for v in q[:2]])
    assert sorted((sp.eye(2) - common * common.T).eigenvals()) == [1 - (common.T * common)[0], 1]
