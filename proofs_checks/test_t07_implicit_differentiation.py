"""T7 Implicit differentiation: at Z* = Phi(Z*, theta), dL/dtheta = (dPhi/dtheta)^T u with u = J^T u + dL/dZ*.

Here J = dPhi/dZ. The adjoint equation is a fixed-point problem in (u; Z*, theta) itself, so that the same rule gives
the next order. Where Z* is fixed as a measure only, Phi(Z*)_i = Z*_{p(i)}, the equation is (P - J)^T u = dL/dZ*, (P
Z)_i = Z_{p(i)}; with unequal masses P is the coupling divided by the weights.

Verified: the first derivative for two coupled states; the first and second derivative for an undetermined scalar map,
against direct implicit differentiation and a closed form; a 3-cycle against the derivative of the thrice-applied map;
copies of its atoms with unequal masses; that the map followed by the inverse of P is fixed atom by atom and has the same
derivatives; that a missing transpose is rejected by 3-cycles and passes unseen on 2-cycles; that residuals relative to
the solution do not show a singular system, and those relative to the right-hand side do.
Assumed: the implicit function theorem; I - J (P - J) invertible.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T7")

theta, z = sp.symbols("theta z")


def vector_jacobian_product(images, states, parameter, jacobian_shift, cotangent):
    """(dPhi/dtheta)^T u where (jacobian_shift - J)^T u = cotangent."""
    jacobian = sp.Matrix(images).jacobian(states)
    u = (jacobian_shift - jacobian).T.LUsolve(sp.Matrix(cotangent))
    return (sp.Matrix(images).diff(parameter).T * u)[0]


def test_two_coupled_states():
    x, y = sp.symbols("x y")
    images = [theta * y / 2 + 1, theta**2 * x / 3 + theta]
    solution = sp.solve([images[0] - x, images[1] - y], [x, y], dict=True)[0]
    loss = x**2 + 3 * x * y
    direct = sp.diff(loss.subs(solution), theta)
    cotangent = [loss.diff(x), loss.diff(y)]
    implicit = vector_jacobian_product(images, [x, y], theta, sp.eye(2), cotangent).subs(solution)
    assert sp.cancel(implicit - direct) == 0
    jacobian = sp.Matrix(images).jacobian([x, y])
    untransposed = (sp.Matrix(images).diff(theta).T * (sp.eye(2) - jacobian).LUsolve(sp.Matrix(cotangent)))[0]
    assert sp.cancel(untransposed.subs(solution) - direct) != 0
    one_step = (sp.Matrix(images).diff(theta).T * sp.Matrix(cotangent))[0]
    assert sp.cancel(one_step.subs(solution) - direct) != 0


def scalar_derivatives(phi):
    """dz*/dtheta and its derivative by the adjoint rule, applied twice, as expressions in z* and theta."""
    u = sp.Symbol("u")
    adjoint_map = phi.diff(z) * u + 1  # for the loss z
    u_star = sp.solve(adjoint_map - u, u)[0]
    first = phi.diff(theta) * u_star
    # The first derivative is a loss h(z*, u*, theta) of two equilibria: apply the rule to both at once.
    loss = phi.diff(theta) * u
    cotangent = [loss.diff(z), loss.diff(u)]
    second = loss.diff(theta) + vector_jacobian_product([phi, adjoint_map], [z, u], theta, sp.eye(2), cotangent)
    return first, second.subs(u, u_star)


def test_first_and_second_derivative_of_any_scalar_map():
    phi = sp.Function("Phi")(z, theta)
    first, second = scalar_derivatives(phi)
    path = sp.Function("z")(theta)
    identity = path - sp.Function("Phi")(path, theta)
    slope = sp.Symbol("s")
    along = sp.diff(identity, theta).doit().subs(sp.diff(path, theta), slope)
    assert sp.simplify(sp.solve(along.subs(path, z).doit(), slope)[0] - first) == 0
    # The total derivative of the first derivative along the path.
    assert sp.simplify(sp.diff(first, theta) + first * sp.diff(first, z) - second) == 0


def test_the_second_derivative_needs_the_adjoint_equation_to_be_differentiated():
    """Freezing u, as a graph taken at a detached point does, loses a term."""
    phi = sp.tanh(theta * z + sp.Rational(1, 2))
    first, second = scalar_derivatives(phi)
    frozen = sp.Symbol("u")
    loss = phi.diff(theta) * frozen
    wrong = (loss.diff(theta) + loss.diff(z) * first).subs(frozen, 1 / (1 - phi.diff(z)))
    point = {theta: sp.Rational(7, 10), z: sp.nsolve((phi - z).subs(theta, sp.Rational(7, 10)), z, 1)}
    # z = tanh(theta z + 1/2) solved for theta gives the closed form.
    inverse = (sp.atanh(z) - sp.Rational(1, 2)) / z
    wanted_first = 1 / inverse.diff(z)
    wanted_second = -inverse.diff(z, 2) / inverse.diff(z) ** 3
    assert abs(sp.N((first - wanted_first).subs(point))) < 1e-12
    assert abs(sp.N((second - wanted_second).subs(point))) < 1e-12
    assert abs(sp.N((wrong - wanted_second).subs(point))) > 1e-2


def cosine_equilibrium(theta=0):
    """z* = cos(z*) + theta and dz*/dtheta = 1 / (1 + sin(z*))."""
    state = sp.nsolve(sp.cos(z) + theta - z, z, sp.Rational(3, 4))
    return state, 1 / (1 + sp.sin(state))


def test_known_values():
    state, slope = cosine_equilibrium()
    assert abs(state - sp.Float("0.7390851332151607", 17)) < 1e-15
    assert abs(slope - sp.Float("0.597510")) < 5e-7
    first, second = scalar_derivatives(theta * z + 1)
    half = {theta: sp.Rational(1, 2), z: 2}
    assert ((2 * z * first).subs(half), (2 * first**2 + 2 * z * second).subs(half)) == (16, 96)


# Fixed as a measure only: T(z) = theta + 19/6 z - 7/6 z^2 has the 3-cycle 0 -> 1 -> 3 -> 0 at theta = 1.

CYCLE = (sp.S.Zero, sp.S.One, sp.Integer(3))


def transport(point):
    return theta + sp.Rational(19, 6) * point - sp.Rational(7, 6) * point**2


def direct_derivatives(length, step, start):
    """d/dtheta of each atom of a cycle, from the equation that the map applied `length` times fixes its first atom."""
    image, orbit = z, []
    for _ in range(length):
        orbit.append(image)
        image = step(image)
    at = {theta: 1, z: start}
    slope = -(image.diff(theta) / (image.diff(z) - 1)).subs(at)
    return [(s.diff(theta) + s.diff(z) * slope).subs(at) for s in orbit]


def matrices(atoms, weights, coupling, step=transport):
    """P and J at theta = 1 for a map that acts on each atom separately."""
    n = len(atoms)
    p = sp.Matrix(n, n, lambda i, j: coupling[i][j] / weights[i])
    jacobian = sp.diag(*(step(z).diff(z).subs({z: s, theta: 1}) for s in atoms))
    assert p * sp.Matrix(atoms) == sp.Matrix([step(s).subs(theta, 1) for s in atoms])
    return p, jacobian


def gradient(shifted, cotangent):
    """dPhi/dtheta = 1 for each atom, so the gradient is the sum of u."""
    return sum(shifted.T.LUsolve(sp.Matrix(cotangent)))


def test_three_cycles():
    third = sp.Rational(1, 3)
    p, jacobian = matrices(CYCLE, (third,) * 3, [[0, third, 0], [0, 0, third], [third, 0, 0]])
    wanted = direct_derivatives(3, transport, CYCLE[0])
    for cotangent in ([1, 0, 0], [0, 1, 0], [2, -1, 5]):  # losses that tell the atoms apart, too
        direct = sum(c * d for c, d in zip(cotangent, wanted, strict=True))
        assert gradient(p - jacobian, cotangent) == direct
        assert gradient(p.T - jacobian, cotangent) != direct
        assert gradient(sp.eye(3) - jacobian, cotangent) != direct


def test_two_cycles_cannot_see_a_transpose():
    def step(point):
        return theta - point**2

    a, b = (sp.S.Zero, sp.S.One)  # 0 -> 1 -> 0 at theta = 1
    half = sp.Rational(1, 2)
    p, jacobian = matrices((a, b), (half, half), [[0, half], [half, 0]], step)
    wanted = direct_derivatives(2, step, a)
    assert gradient(p - jacobian, [1, 0]) == gradient(p.T - jacobian, [1, 0]) == wanted[0]


def test_unequal_masses_use_the_coupling_divided_by_the_weights():
    """The second atom of the 3-cycle is held as two copies of masses 1/4 and 1/12."""
    third, quarter, twelfth = sp.Rational(1, 3), sp.Rational(1, 4), sp.Rational(1, 12)
    atoms = (CYCLE[0], CYCLE[1], CYCLE[1], CYCLE[2])
    weights = (third, quarter, twelfth, third)
    coupling = [[0, quarter, twelfth, 0], [0, 0, 0, quarter], [0, 0, 0, twelfth], [third, 0, 0, 0]]
    p, jacobian = matrices(atoms, weights, coupling)
    first, second, last = direct_derivatives(3, transport, CYCLE[0])
    for cotangent in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, -3, 4]):
        direct = sum(c * d for c, d in zip(cotangent, (first, second, second, last), strict=True))
        assert gradient(p - jacobian, cotangent) == direct
        assert gradient(sp.Matrix(coupling) - jacobian, cotangent) != direct


def test_the_aligned_map_has_the_same_derivatives():
    """R takes each image to its atom, in shares of the masses: R Phi is fixed atom by atom, and R^T u is the adjoint of Phi."""
    third, quarter, twelfth = sp.Rational(1, 3), sp.Rational(1, 4), sp.Rational(1, 12)
    atoms = sp.Matrix([CYCLE[0], CYCLE[1], CYCLE[1], CYCLE[2]])
    weights = (third, quarter, twelfth, third)
    coupling = sp.Matrix([[0, quarter, twelfth, 0], [0, 0, 0, quarter], [0, 0, 0, twelfth], [third, 0, 0, 0]])
    align = sp.Matrix(4, 4, lambda j, i: coupling[i, j] / weights[j])
    images = sp.Matrix([transport(a).subs(theta, 1) for a in atoms])
    jacobian = sp.diag(*(transport(z).diff(z).subs({z: a, theta: 1}) for a in atoms))
    assert align * images == atoms
    first, second, last = direct_derivatives(3, transport, CYCLE[0])
    for cotangent in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, -3, 4]):
        direct = sum(c * d for c, d in zip(cotangent, (first, second, second, last), strict=True))
        u = (sp.eye(4) - align * jacobian).T.LUsolve(sp.Matrix(cotangent))
        assert sum(align.T * u) == direct
        forth = sp.Matrix(4, 4, lambda i, j: coupling[i, j] / weights[i])  # P in the place of its inverse
        assert sum(forth.T * (sp.eye(4) - forth * jacobian).T.LUsolve(sp.Matrix(cotangent))) != direct
    off = sp.Matrix([0, twelfth, -quarter, 0])  # a displacement without mean on the two copies: R forgets it
    assert align * off == sp.zeros(4, 1)


def test_singular_systems_show_in_the_residual_relative_to_the_right_hand_side():
    """J = 1: u_k = (k + 1) b by Picard's iteration, whose residual is b at every step."""
    b, k = sp.symbols("b k", positive=True)
    u = sp.Symbol("u")
    steps = [b]
    for _ in range(5):
        steps.append(steps[-1] + b)
    assert [sp.expand(s - (i + 1) * b) for i, s in enumerate(steps)] == [0] * 6
    residual = (u + b - u).subs(u, (k + 1) * b)
    assert sp.limit(residual / ((k + 1) * b), k, sp.oo) == 0
    assert sp.simplify(residual / b) == 1
    # Invertible by rounding alone: the equation is solved, by a number that means nothing.
    tiny = sp.Symbol("epsilon", positive=True)
    solved = sp.solve((1 - tiny) * u + b - u, u)[0]
    assert sp.simplify(solved / b) == 1 / tiny
