"""T16 Equilibria of flows: where g(Z, theta) = grad_W F_theta(Z) = 0, dZ*/dtheta = -H^+ dg/dtheta with H = dg/dZ.

The weights are positive. H is self-adjoint in L2(mu) (W H is symmetric), and H^+ = W^{-1/2} (W^{1/2} H W^{-1/2})^+
W^{1/2}. Directions in which F is symmetric for every theta are in the kernel of H, and the solution of minimal norm
is then a derivative of an equilibrium.

Verified: symmetry of W H for an undetermined energy of two atoms in the plane; the derivative for a regular
equilibrium against the explicit solution; H^+ against its four defining identities in L2(mu); a translation-invariant
energy, whose minimal solution keeps the mean of mu; orthogonality of dg/dtheta to the translations; a Riesz minimiser
on a target atom, where H = 0 gives 0 but the truth is 1.
Assumed: the implicit function theorem on the complement of the kernel.
"""

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
