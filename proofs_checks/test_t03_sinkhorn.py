"""T3 The Sinkhorn divergence with a reach, and the equations of its potentials.

Verified: the first variation at the atom, by the divergence between two point masses in closed form; its limit for marginals that
are held; the divergence by the masses of the three plans; the gradient of the reduced dual, its best constant and the gradient in
a point, for two atoms each at potentials that solve nothing; the derivatives of both equations of potentials there, that they
are symmetric, and what they do to constants.
Assumed: nothing else; the general case is the envelope theorem of the page.
"""

import pytest
import sympy as sp

eps, rho, w, v, c = sp.symbols("epsilon rho w v c", positive=True)


def unbalanced_point_masses(w, v, c, eps, rho):
    """Sinkhorn divergence with a reach between w delta_x and v delta_y at cost c, and the potentials f, p at x."""
    tau = rho / (rho + eps)
    f, g = sp.symbols("f g")
    solved = sp.solve([f + tau * (eps * sp.log(v) + g - c), g + tau * (eps * sp.log(w) + f - c)], [f, g])
    p, q = (-tau * eps * sp.log(mass) / (1 + tau) for mass in (w, v))

    def between(f, g, a, b, cost):
        dual = -rho * a * (sp.exp(-f / rho) - 1) - rho * b * (sp.exp(-g / rho) - 1)
        return dual - eps * a * b * (sp.exp((f + g - cost) / eps) - 1)

    value = between(solved[f], solved[g], w, v, c) - between(p, p, w, w, 0) / 2 - between(q, q, v, v, 0) / 2
    return value + eps * (w - v) ** 2 / 2, solved[f], p


def point_masses(w, v, c, eps, rho, exp=sp.exp):
    """Masses of the optimal plans between w delta_x and v delta_y at cost c, and of each of the two and itself."""

    def mass(a, b, cost):
        return (a * b) ** ((eps + rho) / (eps + 2 * rho)) * exp(-cost / (eps + 2 * rho))

    return mass(w, v, c), mass(w, w, 0), mass(v, v, 0)


PLACES = [{w: 2, v: 3, c: 1, eps: sp.Rational(1, 2), rho: 3}, {w: sp.Rational(1, 3), v: 1, c: 2, eps: 1, rho: 1}]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_divergence_by_the_masses_of_three_plans(place):
    """(rho + epsilon/2)(m_mumu + m_nunu - 2 m_munu), with the term epsilon/2 (w - v)^2; without that term it is not."""
    value, f, _ = unbalanced_point_masses(w, v, c, eps, rho)
    between, of_mu, of_nu = point_masses(w, v, c, eps, rho)
    assert abs(sp.N((w * sp.exp(-f / rho) - between).subs(place), 40)) < 1e-35
    stated = (rho + eps / 2) * (of_mu + of_nu - 2 * between)
    assert abs(sp.N((value - stated).subs(place), 40)) < 1e-35
    assert abs(sp.N((value - eps * (w - v) ** 2 / 2 - stated).subs(place), 40)) > 1e-3
    # The envelope theorem: in the cost the value varies as the mass of the plan.
    assert abs(sp.N((sp.diff(value, c) - between).subs(place), 40)) < 1e-35


def test_sinkhorn_with_a_reach():
    """(rho + epsilon)(e^(-p/rho) - e^(-f/rho)) is the derivative in the mass; with the factor rho it is not."""
    value, f, p = unbalanced_point_masses(w, v, c, eps, rho)
    difference = sp.exp(-p / rho) - sp.exp(-f / rho)
    for place in PLACES:
        slope = sp.diff(value, w).subs(place)
        assert abs(sp.N(slope - ((rho + eps) * difference).subs(place), 40)) < 1e-35
        assert abs(sp.N(slope - (rho * difference).subs(place), 40)) > 1e-3
    assert sp.limit(((rho + eps) * difference).subs({w: 1, v: 1, c: 2, eps: 1}), rho, sp.oo) == 1  # c/2


# Two atoms each, on the line, and potentials g that solve nothing.
x, y, g = (sp.symbols(f"{name}:2", real=True) for name in "xyg")
a, b = sp.symbols("a:2", positive=True), sp.symbols("b:2", positive=True)
TAU = rho / (rho + eps)
SOMEWHERE = {eps: sp.Rational(1, 2), rho: sp.Rational(3, 2)} | dict(
    zip([*x, *y, *g, *a, *b], [0, 1, sp.Rational(1, 2), 2, sp.Rational(1, 3), -1, 1, 2, 3, sp.Rational(1, 4)], strict=True)
)


def transform(potential, points, masses, at):
    return (
        -TAU
        * eps
        * sp.log(sum(m * sp.exp((z - (at - p) ** 2 / 2) / eps) for z, p, m in zip(potential, points, masses, strict=True)))
    )


def plan(f, g, of=(x, a), to=(y, b)):
    return sp.Matrix(2, 2, lambda i, j: of[1][i] * to[1][j] * sp.exp((f[i] + g[j] - (of[0][i] - to[0][j]) ** 2 / 2) / eps))


def size(expression):
    """Largest entry, somewhere."""
    numbers = sp.Matrix([expression]) if not isinstance(expression, sp.MatrixBase) else expression
    return max(abs(sp.N(entry, 30)) for entry in numbers.subs(SOMEWHERE))


F_OF_G = [transform(g, y, b, at) for at in x]
PLAN = plan(F_OF_G, g)
ROWS, COLUMNS = [sum(PLAN[i, :]) for i in range(2)], [sum(PLAN[:, j]) for j in range(2)]


def reduced_dual(g, with_plan=True):
    """The dual value of g and its transform, up to a constant."""
    decay = sum(-rho * m * (sp.exp(-z / rho) - 1) for z, m in [*zip(F_OF_G, a, strict=True), *zip(g, b, strict=True)])
    return decay - (eps * sum(m * sp.exp(-z / rho) for z, m in zip(F_OF_G, a, strict=True)) if with_plan else 0)


def test_the_rows_of_the_plan_are_right_for_every_potential():
    assert size(sp.Matrix([r - m * sp.exp(-z / rho) for r, z, m in zip(ROWS, F_OF_G, a, strict=True)])) < 1e-25


def test_gradient_of_the_reduced_dual():
    """What is missing in the columns, which the solution makes zero; without the mass of the plan it is something else."""

    def wrong_by(with_plan):
        return size(
            sp.Matrix([sp.diff(reduced_dual(g, with_plan), g[j]) - b[j] * sp.exp(-g[j] / rho) + COLUMNS[j] for j in (0, 1)])
        )

    assert wrong_by(True) < 1e-25
    assert wrong_by(False) > 1e-3


def test_best_constant_of_a_potential():
    """k = rho/(1 + tau) (log int e^(-g/rho) dnu - log int e^(-f/rho) dmu); without the 1 + tau it is another."""
    k = sp.Symbol("k", real=True)
    moved = reduced_dual(g).subs({z: z + k for z in g}, simultaneous=True)
    integrals = [sum(m * sp.exp(-z / rho) for z, m in zip(z_, m_, strict=True)) for z_, m_ in ((g, b), (F_OF_G, a))]
    best = rho * (sp.log(integrals[0]) - sp.log(integrals[1]))
    assert size(sp.diff(moved, k).subs(k, best / (1 + TAU))) < 1e-25
    assert size(sp.diff(moved, k).subs(k, best)) > 1e-3


def test_gradient_in_a_point():
    """With the potential held, a derivative in x_i is a_i e^(-f/rho) (x_i - T(x_i)), of the potential tau (x - T); not x - T."""
    images = [sum(PLAN[i, j] * y[j] for j in range(2)) / ROWS[i] for i in range(2)]
    of_value = [sp.diff(reduced_dual(g), x[i]) - a[i] * sp.exp(-F_OF_G[i] / rho) * (x[i] - images[i]) for i in range(2)]
    assert size(sp.Matrix(of_value)) < 1e-25
    assert size(sp.Matrix([sp.diff(F_OF_G[i], x[i]) - TAU * (x[i] - images[i]) for i in range(2)])) < 1e-25
    assert size(sp.Matrix([sp.diff(F_OF_G[i], x[i]) - (x[i] - images[i]) for i in range(2)])) > 1e-3


def jacobian_between():
    image = [transform(F_OF_G, x, a, at) for at in y]
    return sp.Matrix(2, 2, lambda j, k: sp.diff(g[j] - image[j], g[k]))


def test_derivative_of_entropic_potentials_is_symmetric():
    """diag(c) d(g - T_mu T_nu g)/dg = diag(c) - tau^2 pi^T diag(r)^-1 pi for two atoms each, at any g; with tau it is another."""

    def stated(factor):
        return sp.diag(*COLUMNS) - factor * PLAN.T * sp.diag(*(1 / r for r in ROWS)) * PLAN

    found = sp.diag(*COLUMNS) * jacobian_between()
    assert size(found - stated(TAU**2)) < 1e-25
    assert size(found - stated(TAU)) > 1e-3


def test_constants_are_eigenvectors():
    """With the eigenvalue 1 - tau^2, which is small where marginals are nearly held; 1 - tau it is not."""
    one = sp.ones(2, 1)
    assert size(jacobian_between() * one - (1 - TAU**2) * one) < 1e-25
    assert size(jacobian_between() * one - (1 - TAU) * one) > 1e-3


def test_derivative_of_the_potential_of_a_measure_and_itself():
    """J = 1 + tau P with the rows of P summing to one, self-adjoint in the masses c = b e^((g - f/tau)/epsilon), not in b."""
    image = [transform(g, y, b, at) for at in y]
    jacobian = sp.Matrix(2, 2, lambda j, k: sp.diff(g[j] - image[j], g[k]))
    rows = plan([z / TAU for z in image], g, of=(y, [1, 1]))
    assert size(rows * sp.ones(2, 1) - sp.ones(2, 1)) < 1e-25
    assert size(jacobian - sp.eye(2) - TAU * rows) < 1e-25
    masses = sp.diag(*(m * sp.exp((z - t / TAU) / eps) for m, z, t in zip(b, g, image, strict=True)))
    assert size(masses * jacobian - (masses * jacobian).T) < 1e-25
    assert size(sp.diag(*b) * jacobian - (sp.diag(*b) * jacobian).T) > 1e-3
