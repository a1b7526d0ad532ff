"""T23 Systems: joint energies, games, several measures packed as one, and measures of measures.

Verified: the rate at which a joint energy falls along the flow of two species of other dimensions and weights; that inner
products and gradients of the packed measure are those of the species, with the weight of an atom at each of its coordinates and
with no other; the rate of each energy of a game; that its linearisation is self-adjoint for one energy, and implicit
differentiation at an equilibrium where it is not; the contraction of Euler's step under strong monotonicity, and a field that
attains it; growth and decay of the radius on x y for three steppers; gradients and first
variations per unit of outer times inner weight.
Assumed: Banach's fixed point theorem; a field on a vector space whose derivative is self-adjoint is a gradient (Poincare).
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T23")

tau, m, b = sp.symbols("tau m b", positive=True)
v, w1, w2 = sp.symbols("v w1 w2", positive=True)
# Species A: one atom of mass v in the plane. Species B: two atoms of masses w1, w2 on the line.
p, q, y1, y2 = POINTS = sp.symbols("p q y1 y2", real=True)
MASSES = (v, v, w1, w2)
"""Of the packed atoms: each coordinate has the mass of its atom."""


def joint():
    """A potential of each species, and an interaction: integrals over both."""
    own = v * (p**4 + p * q) + w1 * sp.cos(y1) + w2 * sp.cos(y2)
    return own + v * w1 * sp.exp(p * y1) + v * w2 * sp.exp(p * y2) + w1 * w2 * (y1 - y2) ** 2 * q * v


def inner(a, b, masses=MASSES):
    return sum(w * s * t for w, s, t in zip(masses, a, b, strict=True))


def gradient(energy, masses=MASSES):
    """The Wasserstein gradient of the packed measure: derivatives by unit mass."""
    return [sp.diff(energy, x) / w for x, w in zip(POINTS, masses, strict=True)]


def rate(energy, velocity):
    """dF/dt where the points move at that velocity."""
    return sum(sp.diff(energy, x) * s for x, s in zip(POINTS, velocity, strict=True))


def test_a_joint_energy_falls_by_the_sum_of_the_squared_norms():
    F = joint()
    of_a = [sp.diff(F, p) / v, sp.diff(F, q) / v]
    of_b = [sp.diff(F, y1) / w1, sp.diff(F, y2) / w2]
    dissipation = v * (of_a[0] ** 2 + of_a[1] ** 2) + w1 * of_b[0] ** 2 + w2 * of_b[1] ** 2
    falls = rate(F, [-g for g in of_a + of_b])
    assert sp.expand(falls + dissipation) == 0
    assert sp.expand(falls + sum(g**2 for g in of_a + of_b)) != 0  # rejected: without weights


def test_packing_keeps_gradients_and_inner_products():
    F = joint()
    of_species = [sp.diff(F, p) / v, sp.diff(F, q) / v, sp.diff(F, y1) / w1, sp.diff(F, y2) / w2]
    packed = gradient(F)
    assert all(sp.simplify(s - t) == 0 for s, t in zip(packed, of_species, strict=True))
    assert sp.simplify(rate(F, [-g for g in packed]) + inner(packed, packed)) == 0
    shared = (v / 2, v / 2, w1, w2)  # rejected: an atom's mass shared by its coordinates, so that the packed mass is the mass
    other = gradient(F, shared)
    assert sp.simplify(other[0] - 2 * of_species[0]) == 0  # species in the plane would move twice as fast
    assert sp.simplify(inner(other, other, shared) - inner(of_species, of_species)) != 0


def test_splitting_an_atom_of_a_species_splits_its_packed_atoms():
    """Copies of an atom of A with shares f and 1 - f: at one place they have its gradient, and inner products add up."""
    f = sp.Symbol("f", positive=True)
    p1, q1, p2, q2 = sp.symbols("p1 q1 p2 q2", real=True)
    F = joint().subs(v, 1)
    per_mass = F - w1 * sp.cos(y1) - w2 * sp.cos(y2)
    split = f * v * per_mass.subs({p: p1, q: q1}) + (1 - f) * v * per_mass.subs({p: p2, q: q2})
    together = {p1: p, p2: p, q1: q, q2: q}
    whole = [sp.diff(v * per_mass, x) / v for x in (p, q)]
    first = [(sp.diff(split, x) / (f * v)).subs(together) for x in (p1, q1)]
    second = [(sp.diff(split, x) / ((1 - f) * v)).subs(together) for x in (p2, q2)]
    for part in (first, second):
        assert all(sp.simplify(s - t) == 0 for s, t in zip(part, whole, strict=True))
    added = sum(f * v * g**2 for g in first) + sum((1 - f) * v * g**2 for g in second)
    assert sp.simplify(added - v * sum(g**2 for g in whole)) == 0


def test_energies_of_a_game():
    """A descends F, B descends G: the rate of F has a part that the moves of B make."""
    F = joint()
    G = v * w1 * sp.sin(p * y1) + v * w2 * q * y2**2
    of_a, of_b = gradient(F)[:2], gradient(G)[2:]
    velocity = [-g for g in of_a + of_b]
    own = v * (of_a[0] ** 2 + of_a[1] ** 2)
    cross = w1 * gradient(F)[2] * of_b[0] + w2 * gradient(F)[3] * of_b[1]
    assert sp.simplify(rate(F, velocity) + own + cross) == 0
    at = {p: 1, q: 0, y1: 1, y2: 0, v: 1, w1: 1, w2: 1}
    assert sp.simplify((rate(F, velocity) + own).subs(at)) != 0  # rejected: that each falls by its own squared norm


def test_linearisations_are_self_adjoint_for_one_energy_alone():
    """<J a, b> = <a, J b> in L2 of all species: the matrix of masses times derivatives is symmetric."""

    def weighted(field):
        return sp.Matrix(4, 4, lambda i, j: MASSES[i] * sp.diff(field[i], POINTS[j]))

    of_energy = weighted(gradient(joint()))
    assert sp.simplify(of_energy - of_energy.T) == sp.zeros(4, 4)
    against = -joint()  # a game of two players who want the opposite
    of_game = weighted(gradient(joint())[:2] + gradient(against)[2:])
    assert sp.simplify(of_game - of_game.T) != sp.zeros(4, 4)


def test_derivative_of_an_equilibrium_is_that_of_implicit_differentiation():
    """F = x^2/2 + 2 x y - theta x, G = y^2/2 - x y - theta^2 y: the equilibrium in closed form."""
    x, y, theta = sp.symbols("x y theta")
    F, G = x**2 / 2 + 2 * x * y - theta * x, y**2 / 2 - x * y - theta**2 * y
    field = sp.Matrix([sp.diff(F, x), sp.diff(G, y)])
    found = sp.solve(list(field), [x, y])
    exact = sp.Matrix([sp.diff(found[x], theta), sp.diff(found[y], theta)])
    J, change = field.jacobian([x, y]), field.diff(theta)
    assert sp.simplify(exact + J.inv() * change) == sp.zeros(2, 1)
    symmetric = (J + J.T) / 2  # rejected: the rule for a self-adjoint linearisation
    assert sp.simplify(exact + symmetric.inv() * change) != sp.zeros(2, 1)
    assert sp.simplify(exact + J.T.inv() * change) != sp.zeros(2, 1)  # rejected: the transpose


def test_euler_under_strong_monotonicity():
    """The square of a step in terms of the products, and a field in which both bounds are equalities."""
    x, y = sp.symbols("x y", real=True)
    field = sp.Matrix([m * x + b * y, m * y - b * x])
    z = sp.Matrix([x, y])
    L = sp.sqrt(m**2 + b**2)
    assert sp.simplify(field.dot(z) - m * z.dot(z)) == 0
    assert sp.simplify(field.dot(field) - L**2 * z.dot(z)) == 0
    after = z - tau * field
    factor = sp.simplify(after.dot(after) / z.dot(z))
    assert sp.simplify(factor - (1 - 2 * tau * m + tau**2 * L**2)) == 0
    assert sp.simplify(factor.subs(tau, 2 * m / L**2) - 1) == 0  # the bound is sharp
    best = sp.solve(sp.diff(factor, tau), tau)
    assert [sp.simplify(t - m / L**2) for t in best] == [0]
    assert sp.simplify(factor.subs(tau, best[0]) - (1 - m**2 / L**2)) == 0
    wrong = factor.subs(tau, 1 / L)  # rejected: steps below 2 / L, as for an energy
    assert sp.simplify(wrong - (2 - 2 * m / L)) == 0
    assert wrong.subs({m: 1, b: 3}) > 1


def test_radius_on_x_times_y():
    """x descends and y ascends: u = x + i y has du/dt = i u, as the derivatives of x y say."""
    x, y = sp.symbols("x y", real=True)
    f = x * y
    u, velocity = x + sp.I * y, -sp.diff(f, x) + sp.I * sp.diff(f, y)
    assert sp.expand(velocity - sp.I * u) == 0

    def grows(factor):
        return sp.simplify(sp.expand(factor * sp.conjugate(factor)))

    euler = 1 + sp.I * tau
    predicted = u + tau * velocity
    heun = sp.simplify((u + tau / 2 * (velocity + sp.I * predicted)) / u)
    assert grows(euler) == 1 + tau**2
    assert sp.simplify(grows(heun) - (1 + tau**4 / 4)) == 0
    assert sp.simplify(grows(1 / (1 - sp.I * tau)) - 1 / (1 + tau**2)) == 0
    assert grows(sp.exp(sp.I * tau)) == 1  # the flow itself
    one_after_the_other = sp.Matrix([[1, -tau], [tau, 1 - tau**2]])  # rejected as a model of steps that all take at once:
    assert one_after_the_other.det() == 1  # if y sees the new x, areas are kept, and the radius does not grow


def test_measures_of_measures():
    """P of two measures of two atoms each: F = sum_kl a_k a_l K(mu_k, mu_l)/2 + sum_k a_k V(mu_k), with nonlinear K and V."""
    a = sp.symbols("a0 a1", positive=True)
    w = [sp.symbols(f"w{k}0 w{k}1", positive=True) for k in range(2)]
    x = [sp.symbols(f"x{k}0 x{k}1", real=True) for k in range(2)]

    def integral(f, weights, points):
        return sum(s * f(t) for s, t in zip(weights, points, strict=True))

    def value(mu):
        return integral(sp.cos, *mu) ** 2

    def kernel(mu, nu):
        return integral(lambda t: t**2, *mu) * integral(lambda t: t**2, *nu) + (integral(sp.sin, *mu) * integral(sp.sin, *nu))

    measures = list(zip(w, x, strict=True))
    F = sum(a[k] * value(measures[k]) for k in range(2)) + sum(
        a[k] * a[j] * kernel(measures[k], measures[j]) / 2 for k in range(2) for j in range(2)
    )
    # The first variation in P, as a functional of a measure that is none of those in P.
    u, z = sp.symbols("u0 u1", positive=True), sp.symbols("z0 z1", real=True)
    other = (u, z)
    variation = value(other) + sum(a[j] * kernel(other, measures[j]) for j in range(2))
    for k in range(2):
        there = {**dict(zip(u, w[k], strict=True)), **dict(zip(z, x[k], strict=True))}
        for i in range(2):
            gradient = (sp.diff(variation, z[i]) / u[i]).subs(there)
            assert sp.expand(sp.diff(F, x[k][i]) / (a[k] * w[k][i]) - gradient) == 0
            assert sp.expand(sp.diff(F, x[k][i]) / w[k][i] - gradient) != 0  # rejected: per unit of inner weight alone
            inner_variation = sp.diff(variation, u[i]).subs(there)
            assert sp.expand(sp.diff(F, w[k][i]) / a[k] - inner_variation) == 0
    velocities = {(k, i): -sp.diff(F, x[k][i]) / (a[k] * w[k][i]) for k in range(2) for i in range(2)}
    falls = sum(sp.diff(F, x[k][i]) * s for (k, i), s in velocities.items())
    assert sp.expand(falls + sum(a[k] * w[k][i] * s**2 for (k, i), s in velocities.items())) == 0
