"""T9 Equivariant acceleration: Anderson, Broyden, L-BFGS and GMRES steps commute with permutations, splits and mass-zero atoms.

They do if their coefficients depend on the residuals through L2(mu) inner products only: B_0 a multiple of the
identity and transposes in L2(mu). On cotangents the inner product is sum_i a_i . b_i / w_i over live atoms.

Verified: one Anderson step of memory 2, of type II with ridge and of type I, one GMRES step in a Krylov space of dimension
2 (undetermined residuals), three steps of Broyden's good method and two of L-BFGS (rational residuals) commute with the
three moves for symbolic masses, three of L-BFGS for rational ones; the two loops of L-BFGS are its dense recursion, whose
matrix is self-adjoint, fulfils the secant equation and, where the last pair has positive curvature, is positive definite;
the compact form of Broyden's method gives its steps, with the lower triangle and no other; Anderson on cotangents commutes
with the moves for 1/w_i; unweighted inner products fail for splits and mass-zero atoms; a Gram matrix without ridge is
singular for collinear differences.
Assumed: residuals and Krylov vectors follow the moves, that is, the map and its derivative are measure consistent (T1).
"""

from itertools import pairwise

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T9")

w = sp.symbols("w1 w2", positive=True)
share = sp.Symbol("s", positive=True)
ridge = sp.Symbol("rho", positive=True)
point = sp.Matrix(sp.symbols("x1 x2"))
history = [sp.Matrix(sp.symbols(f"r{k}_1:3")) for k in range(3)]

# Each move as a matrix on the atoms, and the weights after it.
MOVES = {
    "swap": (sp.Matrix([[0, 1], [1, 0]]), (w[1], w[0])),
    "split": (sp.Matrix([[1, 0], [1, 0], [0, 1]]), (share * w[0], (1 - share) * w[0], w[1])),
    "append": (sp.Matrix([[1, 0], [0, 1], [0, 0]]), (w[0], w[1], sp.S.Zero)),
}
every_move = pytest.mark.parametrize("move", MOVES)


def weighted(weights):
    return sp.diag(*weights)


def unweighted(weights):
    return sp.eye(len(weights))


def inner(left, right, metric):
    return sp.expand((left.T * metric * right)[0])


def anderson(x, residuals, metric, ridge):
    """The next point, of memory 2: the newest residual is last, and the earlier steps were Picard steps."""
    newest = residuals[-1]
    differences = [newest - residuals[0], newest - residuals[1]]
    steps = [residuals[0] + residuals[1], residuals[1]]
    gram = sp.Matrix(2, 2, lambda i, j: inner(differences[i], differences[j], metric) + (ridge if i == j else 0))
    right = sp.Matrix([inner(difference, newest, metric) for difference in differences])
    coefficients = gram.adjugate() * right / gram.det()
    return x + newest - sum((c * (s + d) for c, s, d in zip(coefficients, steps, differences, strict=True)), 0 * x)


def type_one(x, residuals, metric):
    """As `anderson`, but it is the steps that the residual is made orthogonal to, and the equations are not symmetric."""
    *earlier, newest = residuals
    differences = [newest - r for r in earlier]
    steps = [sum(earlier[k:], 0 * x) for k in range(len(earlier))]
    system = sp.Matrix(len(steps), len(steps), lambda i, j: inner(steps[i], differences[j], metric))
    right = sp.Matrix([inner(step, newest, metric) for step in steps])
    coefficients = system.adjugate() * right / system.det()
    return x + newest - sum((c * (s + d) for c, s, d in zip(coefficients, steps, differences, strict=True)), 0 * x)


def gmres(x, krylov, metric):
    """From ``x``, with b, A b and maybe A^2 b: the correction in the span of all but the last that leaves the least of b."""
    b, *images = krylov
    gram = sp.Matrix(len(images), len(images), lambda i, j: inner(images[i], images[j], metric))
    coefficients = gram.adjugate() * sp.Matrix([inner(image, b, metric) for image in images]) / gram.det()
    return x + sum((c * vector for c, vector in zip(coefficients, krylov[:-1], strict=True)), 0 * x)


def broyden(x, residuals, metric):
    """Three steps of Broyden's good method for r(x) = 0, the inverse Jacobian starting at minus the identity."""
    inverse = -sp.eye(len(x))
    step = -inverse * residuals[0]
    for before, after in pairwise(residuals):
        change = inverse * (after - before)
        row = step.T * metric * inverse  # the transpose of the step is taken in the metric
        inverse = (inverse + (step - change) * row / (row * (after - before))[0]).applyfunc(sp.cancel)
        x, step = x + step, -inverse * after
    return x + step


def compact_broyden(x, residuals, metric, later=lambda i, j: i > j):
    """The last of the same steps without any matrix: coefficients as in Anderson's, with a triangle of the steps' products."""
    differences = [after - before for before, after in pairwise(residuals)]
    steps = []
    for k in range(len(residuals)):
        system = sp.Matrix(
            k, k, lambda i, j: inner(steps[i], differences[j], metric) + (inner(steps[i], steps[j], metric) if later(i, j) else 0)
        )
        right = sp.Matrix([inner(step, residuals[k], metric) for step in steps])
        coefficients = system.adjugate() * right / system.det() if k else []
        corrections = (c * (s + d) for c, s, d in zip(coefficients, steps, differences[:k], strict=True))
        steps.append((residuals[k] - sum(corrections, 0 * x)).applyfunc(sp.cancel))
    return x + sum(steps, 0 * x)


def two_loops(field, pairs, metric):
    """The inverse Hessian of the pairs (s, y), oldest first, times a field."""
    shares = []
    for s, y in reversed(pairs):
        share = sp.cancel(inner(s, field, metric) / inner(s, y, metric))
        field = (field - share * y).applyfunc(sp.cancel)
        shares.append(share)
    s, y = pairs[-1]
    field = (inner(s, y, metric) / inner(y, y, metric) * field).applyfunc(sp.cancel)
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        field = (field + (share - inner(y, field, metric) / inner(s, y, metric)) * s).applyfunc(sp.cancel)
    return field


def inverse_hessian(pairs, metric, order=lambda pairs: pairs):
    """The same as a matrix, by the update of Broyden, Fletcher, Goldfarb and Shanno; transposes are taken in the metric."""
    one = sp.eye(metric.shape[0])
    s, y = pairs[-1]
    inverse = inner(s, y, metric) / inner(y, y, metric) * one
    for s, y in order(pairs):
        curvature = inner(s, y, metric)
        left, right = one - s * y.T * metric / curvature, one - y * s.T * metric / curvature
        inverse = (left * inverse * right + s * s.T * metric / curvature).applyfunc(sp.cancel)
    return inverse


def pairs_of(residuals, metric):
    """Steps of length one, the first along the residual, and the changes of the gradient, which is minus the residual."""
    pairs, step = [], residuals[0]
    for before, after in pairwise(residuals):
        pairs.append((step, before - after))
        step = two_loops(after, pairs, metric).applyfunc(sp.cancel)
    return pairs, step


def lbfgs(x, residuals, metric):
    """As many steps of L-BFGS as there are residuals."""
    pairs, step = pairs_of(residuals, metric)
    return x + sum((s for s, _ in pairs), 0 * x) + step


def carried(move, vector, label):
    """The vector after the move; a mass-zero atom may have any value."""
    lift, weights = MOVES[move]
    free = sp.Matrix([sp.Symbol(f"z_{label}") if mass == 0 else 0 for mass in weights])
    return lift * vector + free


def is_zero(expression):
    """One set of numbers refutes an identity much faster than algebra does."""
    symbols = sorted(expression.free_symbols, key=str)
    values = {s: sp.Rational(k + 1, k + 3) for k, s in enumerate(symbols)}
    return expression.subs(values) == 0 and sp.cancel(expression) == 0


def commutes(step, move, metric, residuals):
    lift, weights = MOVES[move]
    plain = lift * step(point, residuals, metric(w))
    moved = step(carried(move, point, "x"), [carried(move, r, k) for k, r in enumerate(residuals)], metric(weights))
    return all(is_zero(moved[i] - plain[i]) for i, mass in enumerate(weights) if mass != 0)


def with_ridge(x, residuals, metric):
    return anderson(x, residuals, metric, ridge)


numbers = [sp.Matrix(r) for r in ([3, -2], [sp.Rational(1, 2), 1], [-1, sp.Rational(1, 3)])]


@every_move
@pytest.mark.parametrize(
    ("step", "residuals"),
    [(with_ridge, history), (type_one, history), (gmres, history), (broyden, numbers), (lbfgs, numbers[:2])],
)
def test_weighted_steps_commute_with_every_move(step, residuals, move):
    """The rational functions of Broyden and L-BFGS are too large for undetermined residuals; masses are symbols in both."""
    assert commutes(step, move, weighted, residuals)


@pytest.mark.parametrize(("step", "memory"), [(with_ridge, 2), (type_one, 1), (gmres, 1), (broyden, 2), (lbfgs, 1)])
def test_unweighted_steps_commute_with_permutations_only(step, memory):
    """With as many unknowns as coordinates the equations of type I and GMRES are solved exactly, in any inner product."""
    assert [move for move in MOVES if commutes(step, move, unweighted, numbers[: memory + 1])] == ["swap"]


def test_the_compact_form_is_broydens_method():
    exact = broyden(point, numbers, weighted(w))
    assert all(is_zero(gap) for gap in compact_broyden(point, numbers, weighted(w)) - exact)
    for wrong in (lambda i, j: i < j, lambda i, j: False):  # the other triangle; none, which is Anderson's type I
        assert not all(is_zero(gap) for gap in compact_broyden(point, numbers, weighted(w), wrong) - exact)


MASSES = dict(zip((*w, share), (sp.Rational(1, 3), sp.Rational(2, 5), sp.Rational(3, 7)), strict=True))


def test_two_pairs_commute_with_every_move_too():
    plain = lbfgs(point, numbers, weighted(w).subs(MASSES))
    for lift, weights in MOVES.values():
        moved = lbfgs(lift * point, [lift * r for r in numbers], weighted(weights).subs(MASSES))
        assert all(is_zero(moved[i] - (lift * plain)[i]) for i, mass in enumerate(weights) if mass != 0)


def test_the_two_loops_are_the_dense_recursion():
    metric = weighted(w).subs(MASSES)
    pairs, step = pairs_of(numbers, metric)
    exact = inverse_hessian(pairs, metric) * numbers[-1]
    assert all(is_zero(gap) for gap in step - exact)
    wrong = inverse_hessian(pairs, metric, order=lambda pairs: pairs[::-1]) * numbers[-1]
    assert not all(is_zero(gap) for gap in step - wrong)
    plain = inverse_hessian(pairs, unweighted(w)) * numbers[-1]
    assert not all(is_zero(gap) for gap in step - plain)


def test_the_matrix_is_self_adjoint_and_knows_the_last_pair():
    metric = weighted(w).subs(MASSES)
    pairs, _ = pairs_of(numbers, metric)
    inverse = inverse_hessian(pairs, metric)
    s, y = pairs[-1]
    assert all(is_zero(entry) for entry in metric * inverse - (metric * inverse).T)
    assert all(is_zero(gap) for gap in inverse * y - s)
    assert not all(is_zero(gap) for gap in inverse * pairs[0][1] - pairs[0][0])


def test_steps_lead_downhill_where_the_pair_has_positive_curvature():
    """For one pair and any residual: <r, H r> is a sum of squares, times <s, y> in one term and over it in the other."""
    metric = weighted(w)
    s, y, r = (sp.Matrix(sp.symbols(f"{name}1:3")) for name in "syr")
    value = inner(r, inverse_hessian([(s, y)], metric) * r, metric)
    curvature = inner(s, y, metric)
    rest = r - inner(s, r, metric) / curvature * y
    squares = curvature / inner(y, y, metric) * inner(rest, rest, metric) + inner(s, r, metric) ** 2 / curvature
    assert is_zero(sp.together(value - squares))


def test_the_reason_is_that_a_move_is_an_isometry():
    for lift, weights in MOVES.values():
        assert (lift.T * weighted(weights) * lift - weighted(w)).applyfunc(sp.expand) == sp.zeros(2)
    lift, _ = MOVES["split"]
    assert lift.T * lift != sp.eye(2)


def test_cotangents_need_the_inverse_weights():
    """The cotangent of a copy is its share of the original's: a_i = w_i (gradient at x_i)."""
    lift, weights = MOVES["split"]
    carry = weighted(weights) * lift * weighted(w).inv()
    assert carry * sp.Matrix([1, 0]) == sp.Matrix([share, 1 - share, 0])

    def is_isometry(metric):
        return (carry.T * metric(weights) * carry - metric(w)).applyfunc(sp.cancel) == sp.zeros(2)

    assert is_isometry(lambda a: weighted(a).inv())
    assert not is_isometry(weighted)
    assert not is_isometry(unweighted)
    plain = with_ridge(point, history, weighted(w).inv())
    lifted = with_ridge(carry * point, [carry * r for r in history], weighted(weights).inv())
    assert all(sp.cancel(gap) == 0 for gap in lifted - carry * plain)


def test_without_ridge_collinear_differences_make_the_gram_matrix_singular():
    """Near a fixed point residuals shrink along the slowest direction: r_k = rate^k v."""
    rate, vector = sp.Symbol("q", positive=True), sp.Matrix(sp.symbols("v1 v2"))
    shrinking = [rate**k * vector for k in range(3)]
    differences = [shrinking[2] - r for r in shrinking[:2]]
    gram = sp.Matrix(2, 2, lambda i, j: inner(differences[i], differences[j], weighted(w)))
    assert sp.expand(gram.det()) == 0
    assert sp.expand((gram + ridge * sp.eye(2)).det()) != 0
