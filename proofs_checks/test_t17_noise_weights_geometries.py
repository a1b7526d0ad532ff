"""T17 Noise, weights, other geometries: Wasserstein-Fisher-Rao, births and deaths, Langevin noise, injected noise, the
Stein flow, symmetries.

dw_i/dt = -w_i (dF/dmu(x_i) - m) with m = int dF/dmu dmu / mass conserves the mass and adds -int (dF/dmu - m)^2 dmu to
dF/dt. Noise sqrt(2 b tau) equals b times the entropy, in law. The Stein velocity -int k(x, y) grad_W F(y) dmu(y)
decreases F at the rate of its squared RKHS norm; of c times the entropy it needs no density.

Verified: conservation and rate for an undetermined energy of three atoms of any total mass; positivity of
multiplicative updates, their agreement with Euler's to first order, and a negative weight by Euler's; descent of the
linear part, by a sum of two divergences; the expectation of births and deaths for symbolic weights; the generator
of a noisy step to order tau, and that its Fokker-Planck equation is the flow of potential plus b times entropy; what a
reaction that does not see this entropy does to Gaussians; the mean of a Gaussian kernel at displaced points, its factor
in any dimension, and the bound of a far target's force; the
Stein rate in the plane with undetermined features; the entropy by parts for undetermined densities and kernels, and on
Gaussians; the dissipation as a Stein discrepancy, with undetermined features and in closed form for Gaussians; a
Stein flow in closed form; symmetry of the gradient under a reflection, for a Stein kernel of an undetermined density and for
a mixture, and how little a score sees of the masses of its modes.
Assumed: T2; propagation of chaos for interacting particles; kernels as inner products of features; densities vanish at
infinity.
"""

import pytest
import sympy as sp

from proofs_checks.test_t03_catalogue import gaussian_density, gaussian_mean, stein_kernel

pytestmark = pytest.mark.theorem("T17")

tau, b = sp.symbols("tau b", positive=True)


@pytest.fixture
def three_atoms():
    """Masses, first variation, Wasserstein gradient at the atoms."""
    w, x = sp.symbols("w1:4", positive=True), sp.symbols("x1:4", real=True)
    energy = sp.Function("f")(*w, *x)
    return w, [energy.diff(m) for m in w], [energy.diff(y) / m for m, y in zip(w, x, strict=True)]


def mean(values, w):
    return sum(m * v for m, v in zip(w, values, strict=True)) / sum(w)


def reaction(w, variation, centre):
    return [-m * (v - centre) for m, v in zip(w, variation, strict=True)]


def test_fisher_rao_conserves_the_mass(three_atoms):
    w, variation, _ = three_atoms
    assert sp.simplify(sum(reaction(w, variation, mean(variation, w)))) == 0
    assert sp.simplify(sum(reaction(w, variation, 0))) != 0
    unweighted = sum(variation) / len(w)
    assert sp.simplify(sum(reaction(w, variation, unweighted))) != 0


def test_dissipation_of_wasserstein_fisher_rao(three_atoms):
    w, variation, gradient = three_atoms
    centre = mean(variation, w)
    # dF/dt by the chain rule: dF/dx_i = w_i g_i and dF/dw_i is the first variation.
    rate = sum(m * g * -g for m, g in zip(w, gradient, strict=True))
    rate += sum(v * r for v, r in zip(variation, reaction(w, variation, centre), strict=True))
    transport = sum(m * g**2 for m, g in zip(w, gradient, strict=True))
    growth = sum(m * (v - centre) ** 2 for m, v in zip(w, variation, strict=True))
    assert sp.simplify(rate + transport + growth) == 0
    assert sp.simplify(rate + transport + sum(m * v**2 for m, v in zip(w, variation, strict=True))) != 0


def test_multiplicative_updates_keep_weights_positive():
    w, v = sp.symbols("w1 w2", positive=True), sp.symbols("p1 p2", real=True)
    centre = mean(v, w)
    grown = [m * sp.exp(-tau * (p - centre)) for m, p in zip(w, v, strict=True)]
    updated = [sum(w) * m / sum(grown) for m in grown]
    assert all(m.is_positive for m in updated)
    assert sp.simplify(sum(updated) - sum(w)) == 0
    for m, r in zip(updated, reaction(w, v, centre), strict=True):
        assert sp.simplify(m.diff(tau).subs(tau, 0) - r) == 0
    euler = [m + tau * r for m, r in zip(w, reaction(w, v, centre), strict=True)]
    values = {w[0]: sp.Rational(1, 2), w[1]: sp.Rational(1, 2), v[0]: 4, v[1]: 0, tau: 1}
    assert euler[0].subs(values) < 0 < updated[0].subs(values)


def test_multiplicative_updates_need_a_normalisation():
    """By Jensen's inequality the mass grows at second order in tau."""
    w, v = sp.symbols("w1 w2", positive=True), sp.symbols("p1 p2", real=True)
    grown = sum(m * sp.exp(-tau * (p - mean(v, w))) for m, p in zip(w, v, strict=True))
    second = sp.simplify(grown.diff(tau, 2).subs(tau, 0))
    assert sp.simplify(second - w[0] * w[1] * (v[0] - v[1]) ** 2 / sum(w)) == 0


def generator(noise_square):
    """d/dtau at 0 of E g(x - tau V' + sqrt(noise_square tau) xi), g expanded to fourth order."""
    slope, xi, root = sp.symbols("p xi r")
    derivatives = sp.symbols("g0:5")
    displacement = -(root**2) * slope + sp.sqrt(noise_square) * root * xi
    expansion = sp.expand(sum(d * displacement**k / sp.factorial(k) for k, d in enumerate(derivatives)))
    normal_moments = {0: 1, 2: 1, 4: 3, 6: 15, 8: 105}
    expected = sum(c * normal_moments.get(k, 0) for (k,), c in sp.Poly(expansion, xi).terms())
    return sp.expand(expected).coeff(root, 2), slope, derivatives


def test_generator_of_a_noisy_step():
    rate, slope, g = generator(2 * b)
    assert sp.expand(rate - (b * g[2] - slope * g[1])) == 0
    rate, slope, g = generator(b)
    assert sp.expand(rate - (b * g[2] - slope * g[1])) != 0


def test_noise_is_the_flow_of_the_entropy():
    """d rho/dt = (rho V')' + b rho'' (the adjoint of the generator) equals (rho (V + b log rho)')'."""
    x = sp.Symbol("x", real=True)
    rho, potential, g = (sp.Function(name)(x) for name in ("rho", "V", "g"))
    fokker_planck = sp.diff(rho * potential.diff(x), x) + b * rho.diff(x, 2)
    flow = sp.diff(rho * sp.diff(potential + b * sp.log(rho), x), x)
    assert sp.simplify(fokker_planck - flow) == 0
    # int rho L g = int (L* rho) g: the difference is a derivative.
    on_test_function = rho * (b * g.diff(x, 2) - potential.diff(x) * g.diff(x))
    boundary = b * (rho * g.diff(x) - rho.diff(x) * g) - rho * potential.diff(x) * g
    assert sp.simplify(on_test_function - fokker_planck * g - boundary.diff(x)) == 0


def test_noise_and_entropy_together_count_twice():
    """Stationary variance of a quadratic potential: b/l by either, 2b/l by both."""
    stiffness, variance = sp.symbols("l v", positive=True)
    noise = 2 * b  # added to dv/dt = -2 l v by independent increments
    entropy = 2 * (b / variance) * variance  # added by the velocity -b grad log rho = b (x - m)/v
    alone = sp.solve(-2 * stiffness * variance + noise, variance)[0]
    both = sp.solve(-2 * stiffness * variance + noise + entropy, variance)[0]
    assert (alone, both) == (b / stiffness, 2 * b / stiffness)


@pytest.mark.parametrize("dim", [1, 2])
def test_stein_flow_dissipates_its_squared_norm(dim):
    """With k(x_i, x_j) = phi_i . phi_j the field int k(., y) grad F dmu has coordinates sum_j w_j g_j phi_j."""
    n, features = 3, 2
    w = sp.symbols(f"w1:{n + 1}", positive=True)
    g = sp.Matrix(n, dim, sp.symbols(f"g0:{n * dim}"))
    phi = sp.Matrix(n, features, sp.symbols(f"phi0:{n * features}"))
    weights, kernel = sp.diag(*w), phi * phi.T
    velocity = -kernel * weights * g
    rate = ((weights * g).T * velocity).trace()  # sum_i dF/dx_i . v_i
    coordinates = phi.T * weights * g
    norm = sum(c**2 for c in coordinates)
    assert sp.expand(rate + norm) == 0
    unweighted = -((weights * g).T * kernel * g).trace()
    assert sp.expand(unweighted + norm) != 0


# Stein flows of an entropy

share = sp.Symbol("c", positive=True)  # of the entropy in F = G + c int rho log rho


def test_the_entropy_by_parts():
    """-int k(x, y) grad log rho(y) rho(y) dy = int grad_y k(x, y) rho(y) dy: the difference is a derivative."""
    at, y = sp.symbols("x y", real=True)
    rho, k = sp.Function("rho")(y), sp.Function("k")(at, y)
    by_gradient, by_parts = -k * sp.log(rho).diff(y) * rho, k.diff(y) * rho
    assert sp.simplify(by_gradient - by_parts + (k * rho).diff(y)) == 0
    assert sp.simplify(by_gradient - k.diff(at) * rho + (k * rho).diff(y)) != 0  # the gradient in the other argument


def test_the_entropy_by_parts_on_a_gaussian():
    variance, bandwidth, at, y = sp.symbols("v s x y", positive=True)
    rho, k = gaussian_density(y, variance), sp.exp(-((at - y) ** 2) / (2 * bandwidth**2))
    by_gradient = sp.integrate(sp.expand(-k * sp.log(rho).diff(y) * rho), (y, -sp.oo, sp.oo))
    by_parts = sp.integrate(sp.expand(k.diff(y) * rho), (y, -sp.oo, sp.oo))
    assert sp.simplify(by_gradient - by_parts) == 0
    assert sp.simplify(by_parts / at).subs({variance: 1, bandwidth: 1, at: 1}) > 0  # it drives atoms apart


@pytest.mark.parametrize("dim", [1, 2])
def test_dissipation_is_a_stein_discrepancy(dim):
    """|int -k(., y) g(y) + c grad_y k(., y) dmu(y)|^2 = c^2 iint k_pi dmu dmu with the scores -g/c, for two features."""
    n, features = 2, 2
    w = sp.symbols(f"w1:{n + 1}", positive=True)
    points = [sp.symbols(f"x{i}_1:{dim + 1}") for i in range(n)]
    g = [sp.symbols(f"g{i}_1:{dim + 1}") for i in range(n)]

    def phi(p):
        return [sp.Function(f"phi{j}")(*p) for j in range(features)]

    def kernel(*z):
        return sum(a * b for a, b in zip(phi(z[:dim]), phi(z[dim:]), strict=True))

    norm = 0
    for j in range(features):
        for axis in range(dim):
            parts = [m * (-phi(p)[j] * h[axis] + share * phi(p)[j].diff(p[axis])) for m, p, h in zip(w, points, g, strict=True)]
            norm += sum(parts) ** 2

    p, q = sp.symbols(f"p1:{dim + 1}"), sp.symbols(f"q1:{dim + 1}")

    def stein(i, j, scale):
        """The Stein kernel of T3 with the scores a and b of an undetermined density, put in after differentiation."""
        a, b = sp.symbols(f"a1:{dim + 1}"), sp.symbols(f"b1:{dim + 1}")

        def density(*z):
            return sp.exp(sum(t * r for t, r in zip(a if z == p else b, z, strict=True)))

        form = stein_kernel(kernel, density, p, q)
        scores = {t: -h / scale for t, h in zip((*a, *b), (*g[i], *g[j]), strict=True)}
        places = dict(zip((*p, *q), (*points[i], *points[j]), strict=True))
        return sp.simplify(form).subs(scores).subs(places).doit()

    def double_integral(scale):
        return sum(w[i] * w[j] * stein(i, j, scale) for i in range(n) for j in range(n))

    assert sp.expand(norm - share**2 * double_integral(share)) == 0
    assert sp.expand(norm - double_integral(share)) != 0


def gaussian_ksd_squared(variance, bandwidth, dim=1):
    """Of N(0, variance I) from N(0, I) with the kernel exp(-|x - y|^2/(2 bandwidth^2)): also the rate at which KL falls.

    It is twice `ddeq.functionals.KSD`.
    """
    spread = bandwidth**2 + 2 * variance
    return dim * (variance - 1) ** 2 * (bandwidth**2 / spread) ** sp.Rational(dim, 2) / spread


def pair_mean(polynomial, x, y, variance, bandwidth):
    """E of polynomial * exp(-(x - y)^2/(2 s^2)) for independent N(0, variance): sum and difference are independent."""
    a, d = sp.symbols("mean_place difference")
    narrower = 1 / (1 / (2 * variance) + 1 / bandwidth**2)  # the variance of the difference, tilted by the kernel
    total = 0
    for (k, m), coefficient in sp.Poly(sp.expand(polynomial.subs({x: a + d / 2, y: a - d / 2}, simultaneous=True)), a, d).terms():
        if k % 2 == m % 2 == 0:
            total += coefficient * gaussian_mean(a**k, a, variance / 2) * gaussian_mean(d**m, d, narrower)
    return total * sp.sqrt(narrower / (2 * variance))


def test_stein_flow_of_a_gaussian_lowers_kl_at_the_rate_of_ksd():
    x, y = sp.symbols("x y", real=True)
    variance, bandwidth = sp.symbols("v s", positive=True)
    kernel = sp.exp(-((x - y) ** 2) / (2 * bandwidth**2))
    # The rate is iint k(x, y) g(x) g(y) dmu dmu, g the gradient of the first variation.
    gradient = sp.simplify((x**2 / 2 + sp.log(gaussian_density(x, variance))).diff(x))
    rate = pair_mean(sp.expand(gradient * gradient.subs(x, y)), x, y, variance, bandwidth)
    stein = stein_kernel(lambda *z: kernel.subs({x: z[0], y: z[1]}, simultaneous=True), lambda p: sp.exp(-(p**2) / 2), (x,), (y,))
    ksd = pair_mean(sp.expand(sp.simplify(stein / kernel)), x, y, variance, bandwidth)
    assert sp.simplify(rate - ksd) == 0
    assert sp.simplify(rate - gaussian_ksd_squared(variance, bandwidth)) == 0
    # In more dimensions x . y has equal terms, and each further coordinate gives the mean of its kernel.
    other = pair_mean(sp.S.One, x, y, variance, bandwidth)
    assert sp.simplify(2 * rate * other - gaussian_ksd_squared(variance, bandwidth, 2)) == 0
    assert sp.simplify(3 * rate * other**2 - gaussian_ksd_squared(variance, bandwidth, 3)) == 0


def stein_linear_variance(t, start_variance):
    """Of the Stein flow of KL to N(0, I) with the kernel 1 + x . y, from mean 0 and a variance in each principal axis."""
    return start_variance / (start_variance + (1 - start_variance) * sp.exp(-2 * t))


def test_a_stein_flow_in_closed_form():
    """The velocity depends on the first two moments only, so that any number of atoms follows the formula exactly."""
    w, at = sp.symbols("w1:3", positive=True), sp.Matrix(sp.symbols("z1:3", real=True))
    x = [sp.Matrix(sp.symbols(f"x{i}_1:3", real=True)) for i in range(3)]
    pairs = list(zip((*w, 1 - sum(w)), x, strict=True))
    zero = sp.zeros(2, 1)
    velocity = sum((m * (at - (1 + at.dot(p)) * p) for m, p in pairs), zero)  # grad_y k - k grad V
    mean_place, second = sum((m * p for m, p in pairs), zero), sum((m * p * p.T for m, p in pairs), sp.zeros(2, 2))
    assert sp.expand(velocity - (at - second * at - mean_place)) == zero
    t, start = sp.symbols("t v0", positive=True)
    v = stein_linear_variance(t, start)
    assert sp.simplify(v.diff(t) - 2 * v * (1 - v)) == 0  # of the second moment, where the mean is 0
    assert sp.simplify(v.subs(t, 0) - start) == 0
    langevin = 1 + (start - 1) * sp.exp(-2 * t)  # the flow of the same energy in the geometry of Wasserstein
    assert sp.simplify(langevin.diff(t) - 2 * langevin * (1 - langevin)) != 0


# Weights


def test_births_and_deaths_have_the_right_expectation():
    """Two atoms lose the masses a, b and two gain p, q with p + q = a + b; the other atom stays as it is."""
    a, b_, p = sp.symbols("a b p", positive=True)
    q = a + b_ - p
    kept, grown = sp.symbols("u1 u2", positive=True), sp.symbols("u3:5", positive=True)  # the smaller of both weights
    still = sp.Symbol("u5", positive=True)
    before = (kept[0] + a, kept[1] + b_, *grown, still)
    after = (*kept, grown[0] + p, grown[1] + q, still)
    assert sp.expand(sum(before) - sum(after)) == 0
    loss = (a, b_, 0, 0, 0)  # (w - w')_+
    gain = (0, 0, p, q, 0)

    def expected(target):
        """Atom i moves its whole mass w_i, with probability (w_i - w'_i)_+ / w_i, to j in proportion to `target`."""
        leaves = [lost / m for lost, m in zip(loss, before, strict=True)]
        arriving = sum(m * r for m, r in zip(before, leaves, strict=True))
        return [m * (1 - r) + arriving * t / sum(target) for m, r, t in zip(before, leaves, target, strict=True)]

    assert [sp.simplify(e - m) for e, m in zip(expected(gain), after, strict=True)] == [0] * 5
    assert [sp.simplify(e - m) for e, m in zip(expected(after), after, strict=True)] != [0] * 5


def multiplicative(w, f, tau):
    """The Fisher-Rao step."""
    grown = [m * sp.exp(-tau * v) for m, v in zip(w, f, strict=True)]
    return [sum(w) * m / sum(grown) for m in grown]


def test_the_linear_part_falls_in_a_fisher_rao_step():
    """tau (sum w f - sum w' f) = sum (w' - w) log(w'/w) >= 0, each term being positive unless w'_i = w_i."""
    w, f = sp.symbols("w1:4", positive=True), sp.symbols("f1:4", real=True)
    after = multiplicative(w, f, tau)
    assert sp.simplify(sum(after) - sum(w)) == 0
    log_ratios = [-tau * v + sp.log(sum(w)) - sp.log(sum(m * sp.exp(-tau * g) for m, g in zip(w, f, strict=True))) for v in f]
    for m, new, ratio in zip(w, after, log_ratios, strict=True):
        assert sp.simplify(new - m * sp.exp(ratio)) == 0
    fall = tau * sum((m - new) * v for m, new, v in zip(w, after, f, strict=True))
    divergences = sum((new - m) * r for m, new, r in zip(w, after, log_ratios, strict=True))
    assert sp.simplify(fall - divergences) == 0
    # Chebyshev's inequality is the same: pairs of differences of opposite signs.
    growth = [sp.exp(-tau * v) for v in f]
    pairs = sum(w[i] * w[j] * (f[i] - f[j]) * (growth[i] - growth[j]) for i in range(3) for j in range(i)) / sum(
        m * g for m, g in zip(w, growth, strict=True)
    )
    assert sp.simplify(fall / tau + pairs) == 0
    gap, u = sp.symbols("g u", positive=True)
    assert sp.simplify(1 - sp.exp(-gap) - sp.integrate(sp.exp(-u), (u, 0, gap))) == 0  # the exponential is monotone
    assert sp.exp(-u).is_positive


def test_the_fisher_rao_step_is_exact_for_a_linear_functional():
    """Where the first variation f does not depend on the weights: d/dtau of the step is the reaction, for all tau."""
    w, f = sp.symbols("w1:4", positive=True), sp.symbols("f1:4", real=True)
    after = multiplicative(w, f, tau)
    for m, r in zip(after, reaction(after, f, mean(f, after)), strict=True):
        assert sp.simplify(m.diff(tau) - r) == 0


def langevin_fisher_rao_variance(stiffness, temperature, rate):
    """Stationary variance of l|x|^2/2 with noise and a reaction that does not see the entropy; l v (2 + r v) = 2 b."""
    return (sp.sqrt(1 + 2 * temperature * rate / sp.sympify(stiffness)) - 1) / rate


def test_a_reaction_must_see_the_entropy_of_the_noise():
    stiffness, rate, v = sp.symbols("l r v", positive=True)
    y = sp.Symbol("y")

    def change_of_variance(first_variation):
        """By -rate rho (f - m), for N(0, v): minus the covariance of y^2 and f."""
        f = sp.expand(first_variation)
        return -rate * (gaussian_mean(f * y**2, y, v) - v * gaussian_mean(f, y, v))

    transport = -2 * stiffness * v + 2 * b
    blind = transport + change_of_variance(stiffness * y**2 / 2)
    seeing = transport + change_of_variance(stiffness * y**2 / 2 - b * y**2 / (2 * v))  # log rho, up to a constant
    assert sp.solve(seeing, v) == [b / stiffness]
    wrong = langevin_fisher_rao_variance(stiffness, b, rate)
    assert sp.simplify(blind.subs(v, wrong)) == 0
    assert sp.simplify(wrong - b / stiffness) != 0
    assert sp.limit(wrong, rate, 0) == b / stiffness
    assert sp.limit(wrong, rate, sp.oo) == 0  # the minimiser of the potential


def test_the_target_is_stationary_only_if_the_reaction_sees_the_entropy():
    """At rho = exp(-V/b) the transport vanishes; V is not constant, V + b log rho is."""
    x = sp.Symbol("x", real=True)
    potential = sp.Function("V")(x)
    log_density = -potential / b
    assert sp.simplify(sp.diff(potential + b * log_density, x)) == 0
    assert sp.diff(potential, x) != 0


# Injected noise


def injected_bandwidth(bandwidth, noise):
    return sp.sqrt(sp.sympify(bandwidth) ** 2 + noise**2)


def injected_factor(bandwidth, noise, dim=1):
    """E k(x + noise xi, y) is this factor times the Gaussian kernel of `injected_bandwidth`."""
    return (sp.sympify(bandwidth) ** 2 / (sp.sympify(bandwidth) ** 2 + noise**2)) ** sp.Rational(dim, 2)


def far_force_bound(distance, bandwidth, mass=1):
    """Of the Gaussian kernel's force on an atom at least so far from all of a target, at least one bandwidth."""
    return mass * distance / sp.sympify(bandwidth) ** 2 * sp.exp(-(sp.sympify(distance) ** 2) / (2 * sp.sympify(bandwidth) ** 2))


def test_injected_noise_widens_the_kernel():
    z, u = sp.symbols("z u", real=True)
    bandwidth, noise = sp.symbols("s beta", positive=True)
    wide, factor = injected_bandwidth(bandwidth, noise), injected_factor(bandwidth, noise)
    exponent = -((z + u) ** 2) / (2 * bandwidth**2) - u**2 / (2 * noise**2)
    variance = (bandwidth * noise / wide) ** 2
    square = -((u + z * noise**2 / wide**2) ** 2) / (2 * variance) - z**2 / (2 * wide**2)
    assert sp.simplify(exponent - square) == 0
    # What is left to integrate is a normal density in u, times the constant of the noise.
    assert (
        sp.simplify(gaussian_density(u, noise**2) * sp.exp(u**2 / (2 * noise**2)) / gaussian_density(0, variance) - factor) == 0
    )
    assert factor != 1
    # In dimension d both the kernel and the noise are products over coordinates.
    assert sp.simplify(injected_factor(bandwidth, noise, 3) - factor**3) == 0


def test_the_force_of_a_far_target_is_exponentially_small_and_noise_is_the_cure():
    r, bandwidth, noise = sp.symbols("r s beta", positive=True)
    force = -sp.exp(-(r**2) / (2 * bandwidth**2)).diff(r)
    assert sp.simplify(force - far_force_bound(r, bandwidth)) == 0
    slope = sp.simplify(force.diff(r) * bandwidth**4 / sp.exp(-(r**2) / (2 * bandwidth**2)))
    assert sp.expand(slope - (bandwidth**2 - r**2)) == 0  # it falls from one bandwidth on
    wide = injected_bandwidth(bandwidth, noise)
    injected = injected_factor(bandwidth, noise, 2) * far_force_bound(r, wide)
    gain = sp.simplify(sp.log(injected / force).diff(r) / r)
    assert sp.simplify(gain - noise**2 / (bandwidth**2 * wide**2)) == 0  # the ratio grows as exp of half of this times r^2
    values = {r: 10, bandwidth: 1, noise: 5}
    assert force.subs(values) < sp.Rational(1, 10**20)
    assert injected.subs(values) > sp.Rational(1, 1000)


# Symmetries


def reflected(p):
    return (-p[0], *p[1:])


def test_the_gradient_commutes_with_a_reflection():
    """f(-x_1, y) = f(x_1, y), a first variation at a measure that is its own mirror image: no normal part on the axis."""
    a, c = sp.symbols("a c", real=True)
    even, any_function = sp.Function("f")(a**2, c), sp.Function("f")(a, c)
    gradient = [even.diff(s) for s in (a, c)]
    mirrored = [g.subs(a, -a).doit() for g in gradient]
    assert [sp.simplify(m - g) for m, g in zip(mirrored, reflected(gradient), strict=True)] == [0, 0]
    assert gradient[0].subs(a, 0).doit() == 0
    assert any_function.diff(a).subs(a, 0).doit() != 0


def mixture(p, right, place=1):
    """Two normal modes at (-place, 0) and (place, 0), of the masses 1 - right and right, up to a factor."""
    return sum(m * sp.exp(-((p[0] - c) ** 2 + p[1] ** 2) / 2) for m, c in ((1 - right, -place), (right, place)))


def normal_force(density, p, q):
    """d/dp_1 of the Stein kernel with the Gaussian kernel, both points on the axis p_1 = 0."""
    kernel = stein_kernel(lambda *z: sp.exp(-((z[0] - z[2]) ** 2 + (z[1] - z[3]) ** 2) / 2), density, p, q)
    return kernel.diff(p[0]).doit().subs({p[0]: 0, q[0]: 0}).doit()


def test_atoms_on_an_axis_of_symmetry_stay_there_in_a_descent_of_ksd():
    p, q = sp.symbols("p1 p2", real=True), sp.symbols("q1 q2", real=True)
    even = sp.Function("pi")
    assert sp.simplify(normal_force(lambda a, c: even(a**2, c), p, q)) == 0
    half = sp.S.Half
    assert sp.simplify(normal_force(lambda *z: mixture(z, half), p, q)) == 0
    uneven = normal_force(lambda *z: mixture(z, sp.Rational(1, 3)), p, q)
    assert abs(sp.N(uneven.subs({p[1]: half, q[1]: 0}))) > 0.01
    # The axis through both modes is one of symmetry whatever their masses.
    swapped = normal_force(lambda c, a: mixture((a, c), sp.Rational(1, 3)), p, q)
    assert sp.simplify(swapped) == 0


def test_a_score_hardly_sees_the_masses_of_its_modes():
    """The score of the mixture is that of one mode plus a term of size 2 a (1 - p)/p exp(-2 a x): all that p does."""
    x = sp.Symbol("x", real=True)
    right, place = sp.symbols("p a", positive=True)
    density = (1 - right) * sp.exp(-((x + place) ** 2) / 2) + right * sp.exp(-((x - place) ** 2) / 2)
    odds = (1 - right) / right * sp.exp(-2 * place * x)
    score = sp.simplify(density.diff(x) / density)
    assert sp.simplify(score - (-(x - place) - 2 * place * odds / (1 + odds))) == 0
    ratio = sp.Symbol("o", positive=True)
    assert (ratio - ratio / (1 + ratio)).simplify().is_positive  # hence the bound 2 a odds
