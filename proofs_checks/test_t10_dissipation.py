"""T10 Dissipation: dF/dt = -|grad_W F|^2 in L2(mu).

For an l-smooth F explicit Euler gives F(mu_{k+1}) <= F(mu_k) - tau (1 - tau l/2) |grad_W F|^2. For 1/2 MMD^2 with the
Gaussian kernel l = (M_nu + 2 e^{-3/2} M_mu) / s^2, which is sharp.

Verified: the rate for undetermined energies of two atoms in the plane; the Euler inequality from the quadratic upper
bound, with equality for F = l/2 int |x|^2 dmu; the eigenvalues of the kernel's Hessian in dimension 1, 2, 3 and their
extremes; the second variation of 1/2 MMD^2 and the bound of its pair part; sharpness; that no l serves a Riesz
kernel. For adaptive steps: which steps pass Armijo's test, that the parabola through a rejected trial leads to one of at
least (1 - c)/l; that the trial of Barzilai and Borwein lies between the inverse curvatures of a quadratic energy and does
not change where an atom is split; the bound of the L2(mu) norm by the norm in a kernel's space, its sharpness, and which
steps pass in the Stein geometry.
Assumed: smoothness means F((id + v)#mu) <= F(mu) + <grad_W F, v> + l/2 |v|^2; for the trial, that the curvature along the
last step is at most l.
"""

from itertools import pairwise

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T10")

bandwidth = sp.Symbol("s", positive=True)
tau, smoothness, energy, slope_squared = sp.symbols("tau l F G", positive=True)


def mmd_smoothness(bandwidth, mass_mu=1, mass_nu=1):
    """The smoothness constant of 1/2 MMD^2 with the Gaussian kernel exp(-|x - y|^2 / (2 bandwidth^2))."""
    return (mass_nu + 2 * sp.exp(-sp.Rational(3, 2)) * mass_mu) / bandwidth**2


def test_rate_of_dissipation():
    w, x = sp.symbols("w1 w2", positive=True), sp.symbols("x1:5")
    f = sp.Function("f")(*x)
    mass = [w[0], w[0], w[1], w[1]]  # two atoms in the plane
    gradient = [f.diff(s) / m for s, m in zip(x, mass, strict=True)]
    rate = sum(f.diff(s) * -g for s, g in zip(x, gradient, strict=True))
    norm = sum(m * g**2 for m, g in zip(mass, gradient, strict=True))
    assert sp.expand(rate + norm) == 0
    euclidean = sum(f.diff(s) * -f.diff(s) for s in x)  # a velocity without 1/w
    assert sp.expand(euclidean + sum(m * f.diff(s) ** 2 for s, m in zip(x, mass, strict=True))) != 0


def test_euler_step():
    """The displacement is v = -tau grad_W F."""
    upper = energy - tau * slope_squared + smoothness / 2 * tau**2 * slope_squared
    claim = energy - tau * (1 - tau * smoothness / 2) * slope_squared
    assert sp.expand(upper - claim) == 0
    assert sp.expand(upper - (energy - tau * (1 - tau * smoothness) * slope_squared)) != 0


def test_euler_step_is_an_equality_for_a_quadratic_potential():
    w, x = sp.symbols("w1:4", positive=True), sp.symbols("x1:4")

    def potential_energy(points):
        return smoothness / 2 * sum(m * s**2 for m, s in zip(w, points, strict=True))

    norm = sum(m * (smoothness * s) ** 2 for m, s in zip(w, x, strict=True))
    after = potential_energy([s - tau * smoothness * s for s in x])
    assert sp.expand(after - potential_energy(x) + tau * (1 - tau * smoothness / 2) * norm) == 0


def gaussian(*displacement):
    return sp.exp(-sum(z**2 for z in displacement) / (2 * bandwidth**2))


def hessian_eigenvalues(dim):
    """At distance sqrt(u) * bandwidth, along the first axis, which rotation invariance allows."""
    z, u = sp.symbols(f"z1:{dim + 1}", real=True), sp.Symbol("u", nonnegative=True)
    at = dict.fromkeys(z, 0) | {z[0]: sp.sqrt(u) * bandwidth}
    hessian = sp.hessian(gaussian(*z), z).subs(at)
    assert hessian.is_diagonal()
    return u, [sp.simplify(h) for h in hessian.diagonal()]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_extreme_eigenvalues_of_the_kernel_hessian(dim):
    u, (radial, *tangential) = hessian_eigenvalues(dim)
    stationary = sp.solve(radial.diff(u), u)
    assert stationary == [3]
    candidates = [sp.S.Zero, radial.subs(u, 3), radial.subs(u, 0)]  # the first is the limit at infinity
    assert sp.limit(radial.subs(bandwidth, 1), u, sp.oo) == 0
    top, bottom = candidates[1:]
    assert sp.simplify(top * bandwidth**2 - 2 * sp.exp(-sp.Rational(3, 2))) == 0
    assert sp.simplify(bottom * bandwidth**2) == -1
    for t in tangential:  # increases from -1/s^2 to 0
        assert sp.simplify(t * bandwidth**2 + sp.exp(-u / 2)) == 0


def test_value_of_the_constant():
    assert abs(sp.N(mmd_smoothness(1)) - sp.Float("1.44626")) < 5e-6


def test_second_variation_and_the_bound_of_its_pair_part():
    """Along x_i + t v_i the pair part has the Hessian at differences v_i - v_j, the target part at v_i."""
    w, x, v = sp.symbols("w1:4", positive=True), sp.symbols("x1:4", real=True), sp.symbols("v1:4", real=True)
    t, target, mass = sp.symbols("t y m", real=True)
    path = [s + t * d for s, d in zip(x, v, strict=True)]
    atoms = range(3)
    pair = sum(w[i] * w[j] * gaussian(path[i] - path[j]) for i in atoms for j in atoms) / 2
    cross = mass * sum(w[i] * gaussian(path[i] - target) for i in atoms)
    z = sp.Symbol("z", real=True)
    curvature = gaussian(z).diff(z, 2)
    formula = sum(
        w[i] * w[j] * (v[i] - v[j]) ** 2 * curvature.subs(z, x[i] - x[j]) for i in atoms for j in atoms
    ) / 2 - mass * sum(w[i] * v[i] ** 2 * curvature.subs(z, x[i] - target) for i in atoms)
    assert sp.expand(sp.diff(pair - cross, t, 2).subs(t, 0) - formula) == 0
    # With the Hessian replaced by its largest eigenvalue one is left with at most M_mu |v|^2.
    differences = sum(w[i] * w[j] * (v[i] - v[j]) ** 2 for i in atoms for j in atoms) / 2
    bound = sum(w) * sum(m * d**2 for m, d in zip(w, v, strict=True))
    assert sp.expand(bound - differences - sum(m * d for m, d in zip(w, v, strict=True)) ** 2) == 0


def largest_known_curvature(share):
    """Of 1/2 MMD^2 at (1 - e) delta_{sqrt(3) s} + e delta_0 and delta_0, moving the atom at 0 by a unit of L2."""
    t = sp.Symbol("t", real=True)
    far = sp.sqrt(3) * bandwidth
    place = t / sp.sqrt(share)
    value = share * (1 - share) * gaussian(place - far) - share * gaussian(place)
    return sp.simplify(sp.diff(value, t, 2).subs(t, 0))


def test_the_constant_is_sharp():
    share = sp.Symbol("e", positive=True)
    curvature = largest_known_curvature(share)
    assert sp.simplify(sp.limit(curvature, share, 0) - mmd_smoothness(bandwidth)) == 0
    self_part_only = 2 * sp.exp(-sp.Rational(3, 2)) / bandwidth**2
    assert (sp.limit(curvature, share, 0) - self_part_only).subs(bandwidth, 1) > 0  # a smaller constant is rejected
    half = curvature.subs(share, sp.Rational(1, 2))
    assert (mmd_smoothness(bandwidth) - half).subs(bandwidth, 1) > 0


def riesz_energy_of_diracs(order, h):
    """1/2 MMD^2(delta_h, delta_0) with the kernel -|x - y|^r."""

    def kernel(a, b):
        return -(sp.Abs(a - b) ** order)

    return (kernel(h, h) + kernel(0, 0)) / 2 - kernel(h, 0)


@pytest.mark.parametrize("order", [sp.Rational(1, 2), 1, sp.Rational(3, 2)])
def test_no_constant_serves_a_riesz_kernel(order):
    """The energy exceeds every l h^2/2 near 0, where the gradient is 0 by symmetry; it would not for r = 2."""
    h = sp.Symbol("h", positive=True)
    assert sp.limit(riesz_energy_of_diracs(order, h) / h**2, h, 0) == sp.oo
    assert sp.limit(riesz_energy_of_diracs(2, h) / h**2, h, 0) == 1


# Adaptive steps

share, trial, excess = sp.symbols("c t e", positive=True)  # `share` of the decrease that the slope promises


def longest_safe_step(smoothness, share=0, bound=1):
    """The longest step that passes F(after) <= F - share tau |v|^2_{L2(mu)} for every l-smooth F (a geometry's `bound`: below).

    It is negative where no step need pass.
    """
    return 2 * (1 - share * bound) / (smoothness * bound)


def smooth_rise(step, slope=slope_squared):
    """The most that an l-smooth energy changes in an Euler step."""
    return -step * (1 - step * smoothness / 2) * slope


def test_short_steps_pass_the_test_of_armijo():
    margin = sp.expand((-share * tau * slope_squared - smooth_rise(tau)) / (tau * slope_squared))
    assert sp.simplify(margin - smoothness / 2 * (longest_safe_step(smoothness, share) - tau)) == 0
    assert margin.subs(tau, 2 / smoothness) == -share  # equality in the Euler step is possible: 2/l itself is rejected


def test_the_parabola_leads_to_a_step_that_is_long_enough():
    """Through F(0), the slope there and F(trial): its minimum is at least 1/l; half of a rejected trial exceeds (1 - c)/l."""
    x, a, b = sp.symbols("x a b")
    reached = energy - trial * slope_squared + excess
    parabola = energy + a * x + b * x**2
    fit = sp.solve([parabola.diff(x).subs(x, 0) + slope_squared, parabola.subs(x, trial) - reached], [a, b], dict=True)[0]
    minimum = sp.solve(parabola.subs(fit).diff(x), x)[0]
    assert sp.simplify(minimum - trial * (trial * slope_squared / (2 * excess))) == 0  # as the code shortens
    most = smooth_rise(trial) + trial * slope_squared  # of the excess, as F is l-smooth
    assert sp.simplify(minimum.subs(excess, most) - 1 / smoothness) == 0
    assert minimum.diff(excess).is_negative
    rejected = trial - longest_safe_step(smoothness, share)  # positive
    assert sp.simplify(trial / 2 - (1 - share) / smoothness - rejected / 2) == 0


def test_squared_gradients_can_be_summed():
    """c tau_k G_k <= F_k - F_{k+1}: with tau_k >= t the sum of G_k is at most (F_0 - F_n) / (c t)."""
    energies = sp.symbols("F0:5")
    bound = sum((a - b) / (share * trial) for a, b in pairwise(energies))
    assert sp.simplify(bound - (energies[0] - energies[-1]) / (share * trial)) == 0


def inner(w, a, b):
    return sum(m * s * t for m, s, t in zip(w, a, b, strict=True))


def barzilai_borwein(w, change, gradient_change):
    return inner(w, change, change) / inner(w, change, gradient_change)


def test_the_trial_of_barzilai_and_borwein_is_an_inverse_curvature():
    """Modes u_k that are orthonormal in L2(mu), curvatures l_0 < l_0 + a < l_0 + a + b, and a change sum_k c_k u_k."""
    w, c = sp.symbols("w1:4", positive=True), sp.symbols("c1:4", real=True)
    least, a, b = sp.symbols("l0 a b", positive=True)
    curvatures = (least, least + a, least + a + b)
    orthogonal = sp.Matrix([[1, 2, 2], [2, 1, -2], [2, -2, 1]]) / 3
    modes = sp.diag(*(1 / sp.sqrt(m) for m in w)) * orthogonal
    hessian = modes * sp.diag(*curvatures) * modes.T * sp.diag(*w)
    assert sp.simplify(sp.diag(*w) * hessian - (sp.diag(*w) * hessian).T) == sp.zeros(3)
    change = modes * sp.Matrix(c)
    parts = sp.simplify(inner(w, change, change)), sp.simplify(inner(w, change, hessian * change))
    assert sp.expand(parts[0] - sum(s**2 for s in c)) == 0
    above = sp.expand(curvatures[-1] * parts[0] - parts[1])
    below = sp.expand(parts[1] - curvatures[0] * parts[0])
    assert sp.expand(above - ((a + b) * c[0] ** 2 + b * c[1] ** 2)) == 0
    assert sp.expand(below - (a * c[1] ** 2 + (a + b) * c[2] ** 2)) == 0
    # With another inner product it may be longer than any inverse curvature.
    values = dict(zip((*w, least, a, b), (sp.Rational(1, 16), sp.Rational(1, 4), 1, 1, 1, 8), strict=True))
    other = modes * sp.Matrix([-2, 3, -1])
    assert barzilai_borwein((1, 1, 1), other, hessian * other).subs(values) == sp.Rational(7, 2)  # and 1 / l0 = 1


def test_the_trial_does_not_change_where_an_atom_is_split():
    w, part = sp.symbols("w1 w2", positive=True), sp.Symbol("p", positive=True)
    s, y = sp.symbols("s1 s2", real=True), sp.symbols("y1 y2", real=True)
    split = (part * w[0], (1 - part) * w[0], w[1])
    s_split, y_split = (s[0], *s), (y[0], *y)
    assert sp.simplify(barzilai_borwein(split, s_split, y_split) - barzilai_borwein(w, s, y)) == 0
    unweighted = barzilai_borwein((1, 1, 1), s_split, y_split) - barzilai_borwein((1, 1), s, y)
    assert sp.simplify(unweighted) != 0


def stein_norm_bound(largest, mass=1):
    """|v|^2_{L2(mu)} <= sup_x k(x, x) mu(R^d) |v|_H^2 for a field v in the space of the kernel k."""
    return largest * mass


def test_the_norm_in_the_space_of_a_kernel_bounds_the_one_in_l2():
    """|v(x)|^2 = <v, phi(x)>^2 <= |v|^2 |phi(x)|^2: the gap is Lagrange's sum of squares, for two features."""
    c, phi = sp.symbols("c1 c2", real=True), sp.Matrix(3, 2, sp.symbols("phi1:7", real=True))
    w = sp.symbols("w1:4", positive=True)
    values = [c[0] * phi[i, 0] + c[1] * phi[i, 1] for i in range(3)]
    norm = c[0] ** 2 + c[1] ** 2
    gap = sum(m * (phi[i, 0] ** 2 + phi[i, 1] ** 2) for i, m in enumerate(w)) * norm - inner(w, values, values)
    squares = sum(m * (c[0] * phi[i, 1] - c[1] * phi[i, 0]) ** 2 for i, m in enumerate(w))
    assert sp.expand(gap - squares) == 0
    # One atom: the field is a multiple of k(., x), of squared norm k(x, x) times the square of the multiple.
    mass, diagonal, multiple = sp.symbols("m k a", positive=True)
    assert sp.simplify(mass * (multiple * diagonal) ** 2 - stein_norm_bound(diagonal, mass) * multiple**2 * diagonal) == 0
    assert sp.simplify(mass * (multiple * diagonal) ** 2 - stein_norm_bound(diagonal) * multiple**2 * diagonal) != 0


def test_steps_that_pass_in_the_stein_geometry():
    """The slope is the squared norm in the kernel's space, but c tau |v|^2_{L2(mu)} is asked for."""
    bound = sp.Symbol("kappa", positive=True)
    slope = slope_squared / bound  # at least, where slope_squared = |v|^2_{L2(mu)}
    rise = -tau * slope + smoothness / 2 * tau**2 * slope_squared
    margin = sp.expand((-share * tau * slope_squared - rise) / tau)
    assert sp.simplify(sp.solve(margin, tau)[0] - longest_safe_step(smoothness, share, bound)) == 0
    assert longest_safe_step(smoothness, share, 1 / share) == 0
    # One atom with the potential l x^2/2: equality, so that no step passes once kappa = k(x, x) m reaches 1/c.
    mass, diagonal, x = sp.symbols("m k x", positive=True)
    velocity = -diagonal * mass * smoothness * x
    change = mass * smoothness / 2 * ((x + tau * velocity) ** 2 - x**2)
    asked = -share * tau * mass * velocity**2
    passes = sp.expand(sp.simplify((asked - change) / (tau * mass * velocity**2)))
    assert sp.simplify(passes - (1 / (diagonal * mass) - share - tau * smoothness / 2)) == 0
