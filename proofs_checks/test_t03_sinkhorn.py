"""T3 The Sinkhorn divergence with a reach, and the equations of its potentials.

Verified: the first variation at the atom, by the divergence between two point masses in closed form; its limit for marginals that
are held; the derivative of the equation of potentials, for two atoms each at a point that solves nothing.
Assumed: nothing else; the general case is the envelope theorem of the page.
"""

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


def test_sinkhorn_with_a_reach():
    """(rho + epsilon)(e^(-p/rho) - e^(-f/rho)) is the derivative in the mass; with the factor rho it is not."""
    value, f, p = unbalanced_point_masses(w, v, c, eps, rho)
    difference = sp.exp(-p / rho) - sp.exp(-f / rho)
    places = [{w: 2, v: 3, c: 1, eps: sp.Rational(1, 2), rho: 3}, {w: sp.Rational(1, 3), v: 1, c: 2, eps: 1, rho: 1}]
    for place in places:
        slope = sp.diff(value, w).subs(place)
        assert abs(sp.N(slope - ((rho + eps) * difference).subs(place), 40)) < 1e-35
        assert abs(sp.N(slope - (rho * difference).subs(place), 40)) > 1e-3
    assert sp.limit(((rho + eps) * difference).subs({w: 1, v: 1, c: 2, eps: 1}), rho, sp.oo) == 1  # c/2


def test_derivative_of_entropic_potentials_is_symmetric():
    """diag(c) d(g - T_mu T_nu g)/dg = diag(c) - tau^2 pi^T diag(r)^-1 pi for two atoms each, at any g; with tau it is another."""
    kernel = sp.Matrix(2, 2, sp.symbols("k:4", positive=True))  # e^(-c/eps)
    a, b = sp.symbols("a:2", positive=True), sp.symbols("b:2", positive=True)
    g = sp.symbols("g:2", real=True)
    tau = sp.Symbol("tau", positive=True)
    f = [-tau * sp.log(sum(b[j] * kernel[i, j] * sp.exp(g[j]) for j in range(2))) for i in range(2)]
    image = [-tau * sp.log(sum(a[i] * kernel[i, j] * sp.exp(f[i]) for i in range(2))) for j in range(2)]
    plan = sp.Matrix(2, 2, lambda i, j: a[i] * b[j] * kernel[i, j] * sp.exp(f[i] + g[j]))
    rows, columns = [sum(plan[i, :]) for i in range(2)], [sum(plan[:, j]) for j in range(2)]
    jacobian = sp.Matrix(2, 2, lambda j, k: columns[j] * sp.diff(g[j] - image[j], g[k]))

    def stated(factor):
        return sp.diag(*columns) - factor * plan.T * sp.diag(*(1 / r for r in rows)) * plan

    values = dict(
        zip([*kernel, *a, *b, *g, tau], [2, 1, 3, 5, 1, 2, 3, 1, sp.Rational(1, 3), -1, sp.Rational(3, 4)], strict=True)
    )
    assert (jacobian - stated(tau**2)).subs(values).evalf(30).norm() < 1e-25
    assert (jacobian - stated(tau)).subs(values).evalf(30).norm() > 1e-3
