"""T10 Dissipation: dF/dt = -|grad_W F|^2 in L2(mu).

For an l-smooth F explicit Euler gives F(mu_{k+1}) <= F(mu_k) - tau (1 - tau l/2) |grad_W F|^2. For 1/2 MMD^2 with the
Gaussian kernel l = (M_nu + 2 e^{-3/2} M_mu) / s^2, which is sharp.

Verified: the rate for undetermined energies of two atoms in the plane; the Euler inequality from the quadratic upper
bound, with equality for F = l/2 int |x|^2 dmu; the eigenvalues of the kernel's Hessian in dimension 1, 2, 3 and their
extremes; the second variation of 1/2 MMD^2 and the bound of its pair part; sharpness; that no l serves a Riesz
kernel.
Assumed: smoothness means F((id + v)#mu) <= F(mu) + <grad_W F, v> + l/2 |v|^2.
"""

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
