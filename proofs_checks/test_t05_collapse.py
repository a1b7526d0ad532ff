"""T5 Collapse: the fixed point of a contraction mu -> (T_mu)#mu is a Dirac mass.

With n atoms: for equal weights it is enough that the map commutes with permutations; for unequal ones it must be
measure consistent too.

Verified: which affine particle maps commute with permutations, and that the fixed point of all of these has
coincident atoms (n = 2, 3, 4); which affine maps with polynomial dependence on the masses are measure consistent, and
that their fixed points collapse for symbolic weights; the counterexample x_i/2 + w_i; that a nonlinear mean-field map
shrinks every distance; that a rotation, which does not contract, keeps its atoms apart.
Assumed: Banach's theorem; completeness of the space of measures with finite second moment under W_2.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T5")


def fixed_point(matrix, offset):
    unknowns = sp.Matrix(sp.symbols(f"z0:{matrix.rows}"))
    return unknowns.subs(sp.solve(matrix * unknowns + offset - unknowns, [*unknowns]))


def cyclic_and_transposition(n):
    """Two permutations that generate all."""
    identity = sp.eye(n)
    cycle = sp.Matrix.vstack(*(identity.row((i + 1) % n) for i in range(n)))
    swap = identity.copy()
    swap.row_swap(0, 1)
    return cycle, swap


@pytest.mark.parametrize("n", [2, 3, 4])
def test_equivariant_affine_maps_collapse(n):
    entries, shifts = sp.symbols(f"a0:{n * n}"), sp.symbols(f"b0:{n}")
    matrix, offset = sp.Matrix(n, n, entries), sp.Matrix(shifts)
    conditions = [c for p in cyclic_and_transposition(n) for c in (*(p * matrix - matrix * p), *(p * offset - offset))]
    solution = sp.solve(conditions, [*entries, *shifts], dict=True)[0]
    matrix, offset = matrix.subs(solution), offset.subs(solution)
    assert len(matrix.free_symbols) == 2  # multiples of the identity and of the mean
    point = fixed_point(matrix, offset)
    assert set(point) == {point[0]}


def test_an_affine_map_that_is_not_equivariant_keeps_its_atoms_apart():
    point = fixed_point(sp.eye(2) / 2, sp.Matrix([1, 2]))
    assert point[0] != point[1]


def test_measure_consistent_affine_maps_collapse_with_unequal_weights():
    """Ansatz: x_i -> p(w_i) x_i + sum_j q(w_i, w_j) x_j + r(w_i) with undetermined polynomials p, q, r."""
    unknowns = sp.symbols("p0:3 q0:9 r0:3")
    share = sp.Symbol("s")
    w, x = sp.symbols("w1 w2", positive=True), sp.symbols("x1 x2")

    def image(a, points, i):
        own = sum(c * a[i] ** k for k, c in enumerate(unknowns[:3])) * points[i]
        others = sum(
            c * a[i] ** (k // 3) * b ** (k % 3) * y for b, y in zip(a, points, strict=True) for k, c in enumerate(unknowns[3:12])
        )
        return own + others + sum(c * a[i] ** k for k, c in enumerate(unknowns[12:]))

    before = [image(w, x, i) for i in range(2)]
    cut = ((share * w[0], (1 - share) * w[0], w[1]), (x[0], x[0], x[1]))
    after = [image(*cut, i) for i in range(3)]
    conditions = [after[0] - before[0], after[1] - before[0], after[2] - before[1]]
    equations = [c for e in conditions for c in sp.Poly(sp.expand(e), share, *w, *x).coeffs()]
    solution = sp.solve(equations, unknowns, dict=True)[0]
    consistent = [sp.expand(b.subs(solution)) for b in before]
    a, b, c = unknowns[0], unknowns[4], unknowns[12]
    assert consistent == [sp.expand(a * y + b * (w[0] * x[0] + w[1] * x[1]) + c) for y in x]
    point = sp.solve([image - y for image, y in zip(consistent, x, strict=True)], x, dict=True)[0]
    assert sp.cancel(point[x[0]] - point[x[1]]) == 0


def test_with_unequal_weights_equivariance_does_not_suffice():
    """x_i/2 + w_i commutes with permutations and contracts by 1/2 in every norm, yet its fixed point is 2 w_i."""
    n = 3
    w, x = sp.Matrix(sp.symbols("w1:4", positive=True)), sp.Matrix(sp.symbols("x1:4"))

    def particle_map(a, points):
        return points / 2 + a

    for p in cyclic_and_transposition(n):
        assert p * particle_map(w, x) == particle_map(p * w, p * x)
    assert particle_map(w, x).jacobian(x) == sp.eye(n) / 2
    point = fixed_point(sp.eye(n) / 2, w)
    assert point == 2 * w
    assert sp.simplify(point[0] - point[1]) != 0
    halves = particle_map(sp.Matrix([w[0] / 2, w[0] / 2]), sp.Matrix([x[0], x[0]]))
    assert halves[0] != particle_map(w, x)[0]  # not a map of measures: a split atom goes elsewhere


def test_with_equal_weights_the_same_map_collapses():
    point = fixed_point(sp.eye(3) / 2, sp.ones(3, 1) / 3)
    assert set(point) == {sp.Rational(2, 3)}


def test_nonlinear_mean_field_maps_shrink_every_distance():
    """x_i -> (sin(x_i) + cos(int y dmu)) / 3: two atoms see the same mean, so their distance obeys a contraction."""
    second, mean = sp.symbols("x2 m", real=True)

    def transport(y):
        return (sp.sin(y) + sp.cos(mean)) / 3

    gap = sp.Symbol("delta", positive=True)
    ratio = sp.simplify((transport(second + gap) - transport(second)) / gap)
    assert mean not in ratio.free_symbols
    half_angle = sp.sin(gap / 2) * 2 / gap  # sin a - sin b = 2 sin((a-b)/2) cos((a+b)/2)
    assert sp.simplify(ratio - half_angle * sp.cos(second + gap / 2) / 3) == 0
    assert sp.limit(half_angle, gap, 0) == 1  # and below 1 elsewhere: the distance shrinks by 1/3 or more


def test_without_contraction_there_is_no_collapse():
    """The rotation of three atoms by a third of a turn fixes their measure, which is not a Dirac mass."""
    angle = 2 * sp.pi / 3
    rotation = sp.Matrix([[sp.cos(angle), -sp.sin(angle)], [sp.sin(angle), sp.cos(angle)]])
    points = [rotation**k * sp.Matrix([1, 0]) for k in range(3)]
    assert {tuple(rotation * p) for p in points} == {tuple(p) for p in points}
    assert rotation.T * rotation == sp.eye(2)
