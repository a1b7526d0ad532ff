"""T16 Equilibria of flows: where g(Z, theta) = grad_W F_theta(Z) = 0, dZ*/dtheta = -H^+ dg/dtheta with H = dg/dZ.

The weights are positive. H is self-adjoint in L2(mu) (W H is symmetric), and H^+ = W^{-1/2} (W^{1/2} H W^{-1/2})^+
W^{1/2}. Directions in which F is symmetric for every theta are in the kernel of H, and the solution of minimal norm
is then a derivative of an equilibrium.

Verified: symmetry of W H for an undetermined energy of two atoms in the plane; the derivative for a regular
equilibrium against the explicit solution; H^+ against its four defining identities in L2(mu); a translation-invariant
energy, whose minimal solution keeps the mean of mu; orthogonality of dg/dtheta to the translations; a Riesz minimiser
on a target atom, where H = 0 gives 0 but the truth is 1; the same with a regular H, by atoms around.
Verified of what the library asks before it answers: gradients are orthogonal to rigid motions everywhere if and only if
these are symmetries; a loss and a force in the range of H determine the answer, and a force outside of it makes the
solution of least norm wrong; a polynomial in H applied to the right-hand side, less its part along the residual, is
H^+ of it; where Newton's method goes from near a degenerate minimum, H is at most half of what it was.
Verified of games: where the mobility is indefinite the flow comes to rest at a saddle of F, away from which every step that
lowers F leads; its derivative is -H^-1 dg/dtheta all the same; the force and its image show that the mobility is indefinite.
Assumed: the implicit function theorem on the complement of the kernel.
"""

from itertools import pairwise

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T16")

theta = sp.Symbol("theta", positive=True)


def wasserstein_gradient(energy, points, mass):
    return sp.Matrix([energy.diff(x) / m for x, m in zip(points, mass, strict=True)])


def l2_pseudo_inverse(matrix, mass):
    root = sp.diag(*(sp.sqrt(m) for m in mass))
    return (root.inv() * (root * matrix * root.inv()).pinv() * root).applyfunc(sp.simplify)


def is_zero(matrix):
    return all(sp.simplify(entry) == 0 for entry in matrix)


def test_the_hessian_is_self_adjoint_in_l2():
    w, x = sp.symbols("w1 w2", positive=True), sp.symbols("x1:5")
    mass = (w[0], w[0], w[1], w[1])
    hessian = wasserstein_gradient(sp.Function("f")(*x), x, mass).jacobian(x)
    scaled = sp.diag(*mass) * hessian
    assert is_zero(scaled - scaled.T)
    assert not is_zero(hessian - hessian.T)


def test_regular_equilibrium():
    """Potential (x - theta^2)^2/2, interaction theta (x - y)^2/2 and a force on the second atom: solved explicitly."""
    w, x = sp.symbols("w1 w2", positive=True), sp.symbols("x1 x2")
    potential = sum(m * (y - theta**2) ** 2 / 2 for m, y in zip(w, x, strict=True))
    energy = potential + theta * w[0] * w[1] * (x[0] - x[1]) ** 2 / 2 + w[1] * theta * x[1]
    g = wasserstein_gradient(energy, x, w)
    solution = sp.solve(list(g), x, dict=True)[0]
    direct = sp.Matrix([sp.diff(solution[y], theta) for y in x])
    implicit = (-g.jacobian(x).inv() * g.diff(theta)).subs(solution)
    assert is_zero(implicit - direct)
    transposed = (-g.jacobian(x).T.inv() * g.diff(theta)).subs(solution)
    assert not is_zero(transposed - direct)


MASS = (sp.Rational(1, 4), sp.Rational(3, 4))


def translation_invariant():
    """Interaction W(z) = z^4/4 - theta z^2/2 of two atoms: at rest at distance sqrt(theta), anywhere."""
    x = sp.symbols("x1 x2", real=True)
    z = x[0] - x[1]
    g = wasserstein_gradient(MASS[0] * MASS[1] * (z**4 / 4 - theta * z**2 / 2), x, MASS)
    rest = {x[0]: x[1] + sp.sqrt(theta)}
    return g.subs(rest).applyfunc(sp.simplify), g.jacobian(x).subs(rest), g.diff(theta).subs(rest)


def test_pseudo_inverse_of_l2():
    """The four identities of Moore and Penrose, with adjoints in L2(mu)."""
    _, hessian, _ = translation_invariant()
    inverse = l2_pseudo_inverse(hessian, MASS)
    weights = sp.diag(*MASS)
    assert is_zero(hessian * inverse * hessian - hessian)
    assert is_zero(inverse * hessian * inverse - inverse)
    for projection in (weights * hessian * inverse, weights * inverse * hessian):
        assert is_zero(projection - projection.T)
    unweighted = hessian.pinv()
    assert not is_zero(weights * unweighted * hessian - (weights * unweighted * hessian).T)


def test_a_symmetric_energy_is_differentiated_by_the_minimal_solution():
    """The flow keeps the mean of mu, so its equilibria are at mean + (w_2, -w_1) sqrt(theta)."""
    gradient, hessian, force = translation_invariant()
    assert is_zero(gradient)
    assert is_zero(hessian * sp.ones(2, 1))  # translations are in the kernel
    assert sp.simplify(sum(m * f for m, f in zip(MASS, force, strict=True))) == 0  # and the force is orthogonal to them
    direct = sp.diff(sp.sqrt(theta), theta) * sp.Matrix([MASS[1], -MASS[0]])
    assert is_zero(-l2_pseudo_inverse(hessian, MASS) * force - direct)
    assert not is_zero(-hessian.pinv() * force - direct)  # keeps the unweighted mean


def test_other_solutions_differ_by_a_symmetry_only():
    """A loss that shares the symmetry has one derivative; another loss depends on the solution chosen."""
    _, hessian, force = translation_invariant()
    minimal = -l2_pseudo_inverse(hessian, MASS) * force
    shifted = minimal + sp.Symbol("c") * sp.ones(2, 1)
    assert is_zero(hessian * shifted + force)
    distance, first = sp.Matrix([[1, -1]]), sp.Matrix([[1, 0]])
    assert is_zero(distance * (shifted - minimal))
    assert not is_zero(first * (shifted - minimal))


def test_a_riesz_minimiser_on_a_target_atom_must_be_refused():
    """1/2 MMD^2(delta_z, delta_y) = |z - y|: by the convention H = 0 and dg/dy = 0, but z* = y."""
    z, y, width = sp.symbols("z y delta", real=True)
    for side in (-1, 0, 1):  # the gradient is a sign, and 0 at the atom
        g = sp.Matrix([sp.diff(side * (z - y), z)])
        hessian, force = g.jacobian([z]), g.diff(y)
        assert -l2_pseudo_inverse(hessian, (sp.S.One,)) * force == sp.zeros(1)
    # Any smoothing gives 1, whatever its width.
    g = sp.diff(sp.sqrt((z - y) ** 2 + width**2), z)
    assert sp.simplify((-g.diff(y) / g.diff(z)).subs(z, y)) == 1


def test_the_same_in_a_consistent_system():
    """|z - y| and three distances to the corners of a triangle about y: H is regular there, the formula gives 0, not 1."""
    z, y, width = (
        sp.Matrix(sp.symbols("z1 z2", real=True)),
        sp.Matrix(sp.symbols("y1 y2", real=True)),
        sp.Symbol("d", positive=True),
    )
    corners = [sp.Matrix([1, 0]), sp.Matrix([-1, sp.sqrt(3)]) / 2, sp.Matrix([-1, -sp.sqrt(3)]) / 2]
    origin = dict.fromkeys([*z, *y], 0)
    around = sum(sp.sqrt((z - c).dot(z - c)) for c in corners)
    g = sp.Matrix([around]).jacobian(z).T
    hessian = g.jacobian(z).subs(origin).applyfunc(sp.simplify)
    assert is_zero(g.subs(origin))
    assert hessian == sp.eye(2) * sp.Rational(3, 2)  # regular: nothing in the linear system says that something is wrong
    smooth = sp.Matrix([around + sp.sqrt((z - y).dot(z - y) + width**2)]).jacobian(z).T
    stiff, push = (smooth.jacobian(v).subs(origin).applyfunc(sp.simplify) for v in (z, y))
    assert (-stiff.inv() * push).applyfunc(lambda entry: sp.limit(entry, width, 0)) == sp.eye(2)


# --- what is asked before an answer is given ---


def slope_along(energy, points, mass, motion):
    """<g, xi> in L2(mu) for a field xi of the places."""
    g = wasserstein_gradient(energy, [c for point in points for c in point], [m for m in mass for _ in points[0]])
    fields = [c for point in points for c in motion(sp.Matrix(point))]
    masses = [m for m in mass for _ in points[0]]
    return sp.simplify(sum(m * a * b for m, a, b in zip(masses, g, fields, strict=True)))


def test_symmetries_are_where_gradients_are_orthogonal_to_them():
    """An undetermined function of the distance of two atoms in the plane; a potential breaks what it does not share."""
    w, points = sp.symbols("w1 w2", positive=True), (sp.symbols("x1 x2", real=True), sp.symbols("y1 y2", real=True))
    a, b, turn, c, e = sp.symbols("a b r c e", real=True)
    difference = sp.Matrix(points[0]) - sp.Matrix(points[1])
    pair = sp.Function("W")(difference.dot(difference))

    def motion(x):
        return sp.Matrix([a - turn * (x[1] - e), b + turn * (x[0] - c)])

    assert slope_along(w[0] * w[1] * pair, points, w, motion) == 0
    well = sum(m * point[0] ** 2 for m, point in zip(w, points, strict=True))
    broken = slope_along(w[0] * w[1] * pair + well, points, w, motion)
    assert broken != 0
    assert sp.simplify(broken.subs({a: 0, turn: 0})) == 0  # shifts along the second axis are left
    # At one configuration alone, the minimum, any motion passes: H xi = 0 is not enough.
    z, t = sp.symbols("z t", real=True)
    quartic = wasserstein_gradient((z - t) ** 4, [z], [1])
    assert quartic.subs(z, t) == sp.zeros(1)
    assert quartic.jacobian([z]).subs(z, t) == sp.zeros(1)
    assert quartic != sp.zeros(1)


def test_a_loss_and_a_force_in_the_range_determine_the_answer():
    """H = V diag(s, 0) V^T: all solutions of H dZ + f = 0 have the same <c, dZ> if c is in the range too."""
    s, angle, f, c, free, elsewhere = sp.symbols("s phi f c k m", real=True)
    across, along = sp.Matrix([sp.cos(angle), sp.sin(angle)]), sp.Matrix([-sp.sin(angle), sp.cos(angle)])
    hessian = s * across * across.T
    solutions = -f / s * across + free * along
    assert is_zero(hessian * solutions + f * across)
    assert sp.diff(sp.simplify((c * across).dot(solutions)), free) == 0
    assert sp.diff(sp.simplify((c * across + elsewhere * along).dot(solutions)), free) != 0  # another loss depends on the choice


def test_a_force_outside_of_the_range_makes_the_least_norm_wrong():
    """z^4/4 - theta z + (y - z)^2/2 is at rest at y = z = theta^(1/3): the loss y - z never changes; least norm says 1/2."""
    z, y, t = sp.symbols("z y t", real=True)
    g = wasserstein_gradient(z**4 / 4 - t * z + (y - z) ** 2 / 2, [z, y], [1, 1])
    rest = {z: 0, y: 0, t: 0}
    hessian, force = g.jacobian([z, y]).subs(rest), g.diff(t).subs(rest)
    loss, kernel = sp.Matrix([[-1, 1]]), sp.Matrix([1, 1])
    assert is_zero(hessian * kernel)
    assert is_zero(loss * kernel)  # the adjoint equation has a solution
    root = sp.Symbol("root", positive=True)
    assert is_zero(g.subs({t: root**3, z: root, y: root}))
    assert (loss * -hessian.pinv() * force)[0] == -sp.Rational(1, 2)
    assert kernel.dot(force) != 0  # which is what tells it


def test_the_residual_takes_the_kernel_out_of_the_solution():
    """x = (p0 + p1 H) b with A x + r = b for r in the kernel: x - <x, r>/<r, r> r is the solution of least norm."""
    s, b1, b2, b3 = sp.symbols("s b1 b2 b3", positive=True)
    matrix, b = sp.diag(s, -2 * s, 0), sp.Matrix([b1, b2, b3])
    p0, p1 = sp.symbols("p0 p1")
    x = (p0 * sp.eye(3) + p1 * matrix) * b
    r = b - matrix * x
    least = sp.solve([r[0], r[1]], [p0, p1], dict=True)[0]
    x, r = x.subs(least), r.subs(least)
    assert is_zero(matrix * r)
    assert is_zero(x - x.dot(r) / r.dot(r) * r - matrix.pinv() * b)
    assert not is_zero(x - matrix.pinv() * b)


def test_newton_tells_a_degenerate_minimum_from_a_regular_one():
    """From z near a zero of z^p, Newton's step -z/p leaves ((p - 1)/p)^(p - 1) of the slope: a half or less, for p >= 2."""
    z, a, s = sp.symbols("z a s", positive=True)

    def left(g):
        return sp.simplify(g.diff(z).subs(z, z - g / g.diff(z)) / g.diff(z))

    shares = [left(z**p) for p in range(1, 7)]
    assert shares[:2] == [1, sp.Rational(1, 2)]
    assert all(later < sooner for sooner, later in pairwise(shares))
    p = sp.Symbol("p", positive=True)
    assert sp.limit(((p - 1) / p) ** (p - 1), p, sp.oo) == sp.exp(-1)
    assert left(sp.exp(-z)) == sp.exp(-1)  # a flow that creeps to infinity
    assert sp.limit(left(s * z + a * z**2), z, 0) == 1  # a regular zero: nothing changes
    assert sp.series(left(s * z + a * z**2), z, 0, 2).removeO() == 1 - 2 * a * z / s


def test_a_game_rests_at_a_saddle():
    """a x^2/2 - b y^2/2 + c x y - theta x, descended in x and climbed in y: the flow contracts, the energy has a saddle."""
    a, b, x, y = sp.symbols("a b x y", positive=True)
    c = sp.Symbol("c", real=True)
    energy = a * x**2 / 2 - b * y**2 / 2 + c * x * y - theta * x
    g = wasserstein_gradient(energy, (x, y), (1, 1))
    hessian, mobility = g.jacobian((x, y)), sp.diag(1, -1)
    flow = -mobility * hessian
    assert flow.trace() == -a - b  # negative, and the determinant positive: both eigenvalues have negative real parts
    assert sp.expand(flow.det() - (a * b + c**2)) == 0
    assert sp.expand(hessian.det() + a * b + c**2) == 0  # negative: one eigenvalue of each sign
    rest = sp.solve(list(g), (x, y), dict=True)[0]
    direct = sp.Matrix([sp.diff(rest[z], theta) for z in (x, y)])
    assert is_zero(-hessian.inv() * g.diff(theta) - direct)
    descent = -hessian  # of the energy: it grows along the direction of negative curvature
    assert sp.expand(descent.det()) == sp.expand(hessian.det())


def test_a_force_and_its_image_show_an_indefinite_mobility():
    """For C = diag(1, -1) and a force with parts in both: the form a, C a on their span takes negative values."""
    p, q = sp.symbols("p q", positive=True)
    mobility = sp.diag(1, -1)
    force = sp.Matrix([p, q])
    fields = [force, mobility * force]
    products = sp.Matrix(2, 2, lambda i, j: (fields[i].T * mobility * fields[j])[0])
    assert sp.factor(products.det()) == -4 * p**2 * q**2  # of a semidefinite form it is not negative
    alone = (force.T * mobility * force)[0]
    assert alone.subs({p: 2, q: 1}) > 0  # the slope along the flow need not show it
