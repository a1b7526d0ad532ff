"""T3 The catalogue: value and first variation of each functional; the Wasserstein gradient is its gradient (T2).

Verified: each first variation as the derivative in the mass of a probe, for two atoms, symbolic masses and
undetermined potentials and kernels; the optimal transport potential and barycentric map in one dimension where a mass
splits, at all masses, and the maximum over potentials where cumulative weights are tied; the slice of two atoms; the Sinkhorn
divergence; the zero mean of the Stein kernel, and its form for a radial kernel; KALE and DrMMD in a finite-dimensional
feature space with their limits, their second form as the least penalty of a density, and the two solves with a regularised
kernel matrix and the distance from the fitted measure by its equation; the bias of the blob on Gaussians.
Assumed: Kantorovich's and the entropic duality; that kernels are limits of finite-dimensional feature maps.
"""

from itertools import pairwise

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T3")

w = sp.symbols("w1 w2", positive=True)
v = sp.symbols("v1 v2", positive=True)
x, y = sp.symbols("x1 x2", real=True), sp.symbols("y1 y2", real=True)
probe = sp.Symbol("z", real=True)
epsilon, regularization, bandwidth = sp.symbols("epsilon lambda h", positive=True)


def even_function(name):
    return lambda a, b: sp.Function(name)((a - b) ** 2)


def first_variation(functional, at=probe):
    return sp.diff(functional((*w, epsilon), (*x, at)), epsilon).subs(epsilon, 0)


def integrate(function, weights, points):
    return sum(a * function(p) for a, p in zip(weights, points, strict=True))


def pair_energy(kernel, weights=w, points=x):
    return integrate(lambda p: integrate(lambda q: kernel(p, q), weights, points), weights, points) / 2


# Potential, interaction, MMD, entropy


def test_potential():
    potential = sp.Function("V")
    assert first_variation(lambda a, p: integrate(potential, a, p)) == potential(probe)


def test_interaction():
    energy = even_function("W")
    wanted = integrate(lambda q: energy(probe, q), w, x)
    assert sp.expand(first_variation(lambda a, p: pair_energy(energy, a, p)) - wanted) == 0


def half_mmd_squared(kernel, a, p):
    cross = integrate(lambda s: integrate(lambda t: kernel(s, t), v, y), a, p)
    return pair_energy(kernel, a, p) - cross + pair_energy(kernel, v, y)


def test_mmd_has_the_witness_as_first_variation():
    kernel = even_function("k")
    witness = integrate(lambda q: kernel(probe, q), w, x) - integrate(lambda q: kernel(probe, q), v, y)
    assert sp.expand(first_variation(lambda a, p: half_mmd_squared(kernel, a, p)) - witness) == 0


def test_a_forgotten_half_is_rejected():
    kernel = even_function("k")
    witness = integrate(lambda q: kernel(probe, q), w, x) - integrate(lambda q: kernel(probe, q), v, y)
    assert sp.expand(first_variation(lambda a, p: 2 * half_mmd_squared(kernel, a, p)) - witness) != 0


def test_blob_entropy_has_two_terms():
    kernel = even_function("k")

    def density(s, a=w, p=x):
        return integrate(lambda t: kernel(s, t), a, p)

    variation = first_variation(lambda a, p: integrate(lambda s: sp.log(density(s, a, p)), a, p))
    outer, inner = sp.log(density(probe)), integrate(lambda s: kernel(probe, s) / density(s), w, x)
    assert sp.expand(variation - outer - inner) == 0
    assert sp.expand(variation - outer) != 0


def blob_entropy_of_gaussian(variance, bandwidth, dim=1):
    """int log(k_h * mu) dmu for mu = N(m, variance I) and k_h the density of N(0, bandwidth^2 I)."""
    total = variance + bandwidth**2
    return -dim * (sp.log(2 * sp.pi * total) + variance / total) / 2


def gaussian_density(point, variance):
    return sp.exp(-(point**2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)


def gaussian_mean(polynomial, s, variance):
    """E of an even polynomial under N(0, variance), by the moments (2k - 1)!! variance^k."""
    terms = sp.Poly(polynomial, s).terms()
    return sum(c * sp.factorial2(k - 1) * variance ** (k // 2) for (k,), c in terms)


def test_blob_entropy_of_a_gaussian():
    variance, t, s = sp.symbols("sigma t s", positive=True)
    blurred = sp.integrate(gaussian_density(s, variance) * gaussian_density(probe - s, t), (s, -sp.oo, sp.oo))
    assert sp.simplify(blurred / gaussian_density(probe, variance + t)) == 1
    log_density = sp.expand_log(sp.log(gaussian_density(s, variance + t)), force=True)
    value = gaussian_mean(log_density, s, variance)
    assert sp.simplify(sp.expand_log(value - blob_entropy_of_gaussian(variance, sp.sqrt(t)), force=True)) == 0


def test_bias_of_the_blob():
    """It is -h^4/8 int (Laplacian rho)^2 / rho; the best Gaussian for KL to N(0, 1) has variance 1 - h^4 + O(h^6)."""
    variance, s = sp.symbols("sigma s", positive=True)
    blob = blob_entropy_of_gaussian(variance, bandwidth)
    bias = sp.series(blob, bandwidth, 0, 6).removeO() - blob_entropy_of_gaussian(variance, 0)
    rho = gaussian_density(s, variance)
    curvature = gaussian_mean(sp.simplify(rho.diff(s, 2) / rho) ** 2, s, variance)
    assert sp.simplify(bias + bandwidth**4 * curvature / 8) == 0
    stationary = sp.numer(sp.together(sp.diff(blob + variance / 2, variance)))
    assert sp.series(stationary.subs(variance, 1 - bandwidth**4), bandwidth, 0, 6).removeO() == 0


# Optimal transport in one dimension


def monotone_plan(a, p, b, q):
    """North-west corner rule for sorted points and rational masses: {(i, j): mass}."""
    plan, i, j, left, right = {}, 0, 0, a[0], b[0]
    while True:
        plan[i, j] = min(left, right)
        left, right = left - plan[i, j], right - plan[i, j]
        if left == 0:
            i, left = i + 1, a[i + 1] if i + 1 < len(a) else 0
        if right == 0:
            j, right = j + 1, b[j + 1] if j + 1 < len(b) else 0
        if i == len(a) or j == len(b):
            return plan


def cost(p, q):
    return (p - q) ** 2 / 2


def half_w2_squared(a, p, b, q):
    order = sorted((i for i in range(len(p)) if a[i] > 0), key=lambda i: p[i])
    a, p = [a[i] for i in order], [p[i] for i in order]
    return sum(m * cost(p[i], q[j]) for (i, j), m in monotone_plan(a, p, b, q).items())


def slope_towards(point, a, p, b, q):
    """One-sided derivative towards a Dirac mass; the cost is linear in a small enough step."""
    step = sp.Rational(1, 10**4)
    mixed = half_w2_squared([(1 - step) * m for m in a] + [step], [*p, point], b, q)
    return (mixed - half_w2_squared(a, p, b, q)) / step


PROBES = [sp.Rational(k, 3) for k in range(-7, 20)]
SPLIT = (
    (sp.Rational(3, 5), sp.Rational(2, 5)),
    (sp.S.Zero, sp.Integer(3)),
    (sp.Rational(1, 4), sp.Rational(3, 4)),
    (sp.S.One, sp.Integer(4)),
)


def c_transform(point, psi, q):
    return min(cost(point, r) - s for r, s in zip(q, psi, strict=True))


def test_kantorovich_potential_where_a_mass_splits():
    a, p, _, q = SPLIT
    phi, psi = sp.symbols("phi1 phi2"), sp.symbols("psi1 psi2")
    tight = [phi[i] + psi[j] - cost(p[i], q[j]) for i, j in monotone_plan(*SPLIT)]
    dual = sp.solve([*tight, psi[0]], [*phi, *psi])
    psi = [dual[s] for s in psi]
    average = sum(m * c_transform(r, psi, q) for m, r in zip(a, p, strict=True))
    assert all(slope_towards(z, *SPLIT) == c_transform(z, psi, q) - average for z in PROBES)
    nearest = [min(cost(z, r) for r in q) for z in PROBES]
    assert [slope_towards(z, *SPLIT) for z in PROBES] != nearest


def test_the_gradient_at_a_split_atom_is_the_barycentric_one():
    a, _, _, q = SPLIT
    plan = monotone_plan(*SPLIT)
    value = sum(m * cost(x[i], q[j]) for (i, j), m in plan.items())
    for i in range(2):
        barycentre = sum(m * q[j] for (k, j), m in plan.items() if k == i) / a[i]
        assert sp.expand(value.diff(x[i]) / a[i] - (x[i] - barycentre)) == 0
    gradients_of_the_branches = {x[0] - q[j] for (i, j) in plan if i == 0}
    assert len(gradients_of_the_branches) == 2  # the kink
    assert sp.expand(value.diff(x[0]) / a[0]) not in gradients_of_the_branches


@pytest.mark.parametrize("mass", [sp.Rational(1, 2), sp.Integer(3)])
def test_masses_are_transported_as_they_are(mass):
    """The value M_nu f(w / M_mu) at M_mu = M_nu: a probe changes it by the same potential at all masses."""
    a, p, b, q = SPLIT
    step = sp.Rational(1, 10**4)

    def value(weights, points, target):
        total = sum(weights)
        return target * half_w2_squared([m / total for m in weights], points, b, q)

    heavy = [mass * m for m in a]
    share = mass / (mass + step)  # of the first mass in the sum: what is linear is the change in the probabilities
    for z in PROBES:
        change = (value([*heavy, step], [*p, z], mass) - value(heavy, p, mass)) / (step * share)
        assert change == slope_towards(z, *SPLIT)
        divided = (value([*heavy, step], [*p, z], 1) - value(heavy, p, 1)) / (step * share)
        assert divided == slope_towards(z, *SPLIT) / mass
    moved = sum(mass * m * cost(x[i], q[j]) for (i, j), m in monotone_plan(*SPLIT).items())
    plain = sum(m * cost(x[i], q[j]) for (i, j), m in monotone_plan(*SPLIT).items())
    assert all(sp.expand(moved.diff(x[i]) / (mass * a[i]) - plain.diff(x[i]) / a[i]) == 0 for i in range(2))


def test_coincident_atoms_share_an_average():
    """Which copy goes where is arbitrary; the average of T over the copies is T of the merged atom."""
    a, p, b, q = SPLIT
    copies = monotone_plan((sp.Rational(1, 4), sp.Rational(7, 20), a[1]), (p[0], p[0], p[1]), b, q)
    merged = monotone_plan(*SPLIT)
    targets = [sum(m * q[j] for (i, j), m in copies.items() if i == k) for k in range(2)]
    assert sum(targets) == sum(m * q[j] for (i, j), m in merged.items() if i == 0)
    assert targets[0] / copies[0, 0] != sum(targets) / a[0]


def test_with_tied_weights_the_slope_is_the_maximum_over_the_potentials():
    half = (sp.Rational(1, 2),) * 2
    p, q = (sp.S.Zero, sp.Integer(3)), (sp.S.One, sp.Integer(4))
    # Optimal duals: psi = (0, s), tight on the diagonal; s runs between the bounds that feasibility sets.
    ends = (cost(p[1], q[1]) - cost(p[1], q[0]), cost(p[0], q[1]) - cost(p[0], q[0]))
    assert ends[0] < ends[1]

    def centred(z, s):
        return c_transform(z, (0, s), q) - sum(half[i] * c_transform(p[i], (0, s), q) for i in range(2))

    def largest(z):
        """The c-transform is concave in s: its maximum is at an end or where two branches meet."""
        crossing = cost(z, q[1]) - cost(z, q[0])
        return max(centred(z, s) for s in (*ends, min(max(crossing, ends[0]), ends[1])))

    slopes = [slope_towards(z, half, p, half, q) for z in PROBES]
    assert slopes == [largest(z) for z in PROBES]
    assert all([centred(z, s) for z in PROBES] != slopes for s in ends)


def test_sliced_wasserstein_of_two_atoms_in_the_plane():
    a, b, angle = sp.Matrix(sp.symbols("a1 a2")), sp.Matrix(sp.symbols("b1 b2")), sp.Symbol("theta")
    theta = sp.Matrix([sp.cos(angle), sp.sin(angle)])

    def mean(f):
        return sp.integrate(sp.expand(f), (angle, 0, 2 * sp.pi)) / (2 * sp.pi)

    value = mean((theta.dot(a) - theta.dot(b)) ** 2 / 2)
    gradient = [mean((theta.dot(a) - theta.dot(b)) * t) for t in theta]
    assert [sp.expand(value.diff(s) - g) for s, g in zip(a, gradient, strict=True)] == [0, 0]


# Sinkhorn divergence


def entropic_dual(f, g, a, b, costs):
    penalty = sum(m * n * (sp.exp((f[i] + g[j] - costs[i, j]) / epsilon) - 1) for i, m in enumerate(a) for j, n in enumerate(b))
    return sum(m * s for m, s in zip(a, f, strict=True)) + sum(n * t for n, t in zip(b, g, strict=True)) - epsilon * penalty


def derivative_of_entropic_cost(both, row_sum=1):
    """Derivative towards a Dirac mass, less that of the potentials' formula; `both` moves the second marginal as well.

    The potentials are undetermined functions of the step t; costs are chosen such that at t = 0 they are optimal.
    """
    t, p = sp.symbols("t p", positive=True)
    a = (w[0], 1 - w[0])
    b = a if both else (v[0], 1 - v[0])
    f = [sp.Function(f"f{i}")(t) for i in range(3)]
    g = [sp.Function(f"g{j}")(t) for j in range(3 if both else 2)]
    scaled = [p, (1 - b[0] * p) / b[1], (1 - a[0] * p) / a[1], (1 - b[0] * (1 - a[0] * p) / a[1]) / b[1]]
    probed = [p, (row_sum - b[0] * p) / b[1]]  # sums to one iff f is extended by the softmin formula
    plan = {(i, j): scaled[2 * i + j] for i in range(2) for j in range(2)}
    plan |= {(2, j): probed[j] for j in range(2)}
    if both:
        plan |= {(j, 2): probed[j] for j in range(2)} | {(2, 2): sp.S.One}
    costs = {(i, j): (f[i] + g[j]).subs(t, 0) - epsilon * sp.log(r) for (i, j), r in plan.items()}

    def towards(m):
        return (*((1 - t) * s for s in m), t)

    value = entropic_dual(f, g, towards(a), towards(b) if both else b, costs)
    slope = sp.diff(value, t).subs(t, 0).doit()
    variation = f[2] - sum(m * s for m, s in zip(a, f[:2], strict=True))
    if both:
        variation += g[2] - sum(m * s for m, s in zip(a, g[:2], strict=True))
    return sp.simplify(slope - variation.subs(t, 0))


def test_sinkhorn_divergence_varies_by_the_difference_of_potentials():
    """OT(mu, nu) varies by f_{mu,nu}, and OT(mu, mu) / 2 by (f + g) / 2 = f_{mu,mu}, up to constants."""
    assert derivative_of_entropic_cost(both=False) == 0
    assert derivative_of_entropic_cost(both=True) == 0


def test_another_extension_of_the_potential_is_rejected():
    assert derivative_of_entropic_cost(both=False, row_sum=2) != 0


# Kernel Stein discrepancy, KALE, DrMMD


def stein_kernel(kernel, density, p, q):
    score_p, score_q = ([sp.diff(density(*s), c) / density(*s) for c in s] for s in (p, q))
    k = kernel(*p, *q)
    return sum(
        a * b * k + a * k.diff(t) + b * k.diff(s) + k.diff(s, t) for a, b, s, t in zip(score_p, score_q, p, q, strict=True)
    )


@pytest.mark.parametrize("dim", [1, 2])
def test_the_stein_kernel_has_mean_zero_under_the_target(dim):
    """k_pi(x, y) pi(y) is a divergence in y; without its last term it is not."""
    kernel, density = sp.Function("k"), sp.Function("pi")
    p, q = sp.symbols(f"x1:{dim + 1}"), sp.symbols(f"y1:{dim + 1}")
    k = kernel(*p, *q)
    flux = [density(*q) * (density(*p).diff(s) / density(*p) * k + k.diff(s)) for s in p]
    divergence = sum(sp.diff(part, t) for part, t in zip(flux, q, strict=True))
    assert sp.simplify(stein_kernel(kernel, density, p, q) * density(*q) - divergence) == 0
    cross = sum(k.diff(s, t) for s, t in zip(p, q, strict=True))
    assert sp.simplify((stein_kernel(kernel, density, p, q) - cross) * density(*q) - divergence) != 0


@pytest.mark.parametrize("dim", [1, 2])
def test_the_stein_kernel_of_a_radial_kernel(dim):
    """a.b phi + 2 phi' (b - a).(x - y) - 2 d phi' - 4 s phi'' in s = |x - y|^2, with the scores a at x and b at y."""
    p, q = sp.symbols(f"x1:{dim + 1}"), sp.symbols(f"y1:{dim + 1}")
    t, density = sp.Symbol("t"), sp.Function("pi")
    square = sum((a - b) ** 2 for a, b in zip(p, q, strict=True))
    profile = [sp.Function("phi")(t).diff(t, k).subs(t, square) for k in range(3)]
    score_p, score_q = ([sp.diff(density(*s), c) / density(*s) for c in s] for s in (p, q))
    mixed = sum((b - a) * (s - r) for a, b, s, r in zip(score_p, score_q, p, q, strict=True))
    same = sum(a * b for a, b in zip(score_p, score_q, strict=True))

    def form(last):
        return same * profile[0] + 2 * (mixed - dim) * profile[1] + last * square * profile[2]

    stein = stein_kernel(lambda *z: sp.Function("phi")(sum((z[i] - z[dim + i]) ** 2 for i in range(dim))), density, p, q)
    assert sp.expand(stein.doit() - form(-4).doit()) == 0
    assert sp.expand(stein.doit() - form(4).doit()) != 0


def test_the_stein_kernel_of_a_normal_distribution_has_mean_zero():
    a, b, s = sp.symbols("a b s", real=True)

    def mean(density):
        """Of the Stein kernel of a density under exp(-b^2/2), up to a factor."""
        stein = stein_kernel(lambda p, q: sp.exp(-((p - q) ** 2) / 2), density, (a,), (b,))
        polynomial = sp.expand(sp.simplify(stein * sp.exp((a - b) ** 2 / 2)))
        # The weight exp(-(a - b)^2/2 - b^2/2) is a normal one in b, with mean a/2 and variance 1/2.
        terms = sp.Poly(sp.expand(polynomial.subs(b, a / 2 + s)), s).terms()
        return sp.expand(sum(c * gaussian_mean(s**k, s, sp.Rational(1, 2)) for (k,), c in terms if k % 2 == 0))

    assert mean(lambda p: sp.exp(-(p**2) / 2)) == 0
    assert mean(lambda p: sp.exp(-(p**2))) != 0


def test_ksd_is_an_interaction_with_the_stein_kernel():
    stein = sp.Function("s")

    def kernel(p, q):  # symmetric
        return stein(*sorted((p, q), key=str))

    wanted = integrate(lambda q: kernel(probe, q), w, x)
    assert sp.expand(first_variation(lambda a, p: pair_energy(kernel, a, p)) - wanted) == 0


feature_x, feature_y = sp.symbols("phi1 phi2", real=True), sp.symbols("psi1 psi2", real=True)


def kale_objective(coefficient, a, features):
    means = sum(m * coefficient * s for m, s in zip(a, features, strict=True))
    b = (v[0], 1 - v[0])
    moment = sum(n * sp.exp(coefficient * s) for n, s in zip(b, feature_y, strict=True))
    return 1 + means - moment - regularization * coefficient**2 / 2


def test_kale_varies_by_its_maximiser():
    feature, coefficient = sp.Symbol("phi", real=True), sp.Function("c")(epsilon)
    value = (1 + regularization) * kale_objective(coefficient, (*w, epsilon), (*feature_x, feature))
    slope = sp.diff(value, epsilon).subs(epsilon, 0).doit()
    free = sp.Symbol("c", real=True)
    optimality = sp.diff(kale_objective(free, w, feature_x), free)
    drift = sp.Subs(sp.diff(coefficient, epsilon), epsilon, 0)
    remainder = slope.subs(drift, 0).subs(coefficient.subs(epsilon, 0), free) - (1 + regularization) * free * feature
    multiplier = sp.expand(slope).coeff(drift).subs(coefficient.subs(epsilon, 0), free)
    assert sp.expand(remainder) == 0
    assert sp.expand(multiplier - (1 + regularization) * optimality) == 0  # vanishes at the maximum


def test_kale_tends_to_half_of_mmd_squared():
    """For probability measures, with 1/lambda as the small parameter."""
    small, c1, c2 = sp.symbols("t c1 c2")
    a = (w[0], 1 - w[0])
    coefficient = c1 * small + c2 * small**2
    objective = kale_objective(coefficient, a, feature_x).subs(regularization, 1 / small)
    value = sp.expand(sp.series(sp.expand(objective), small, 0, 2).removeO())
    order_one = value.coeff(small, 1)
    best = sp.solve(sp.diff(order_one, c1), c1)[0]
    gap = sum(m * s for m, s in zip(a, feature_x, strict=True)) - sum(
        n * s for n, s in zip((v[0], 1 - v[0]), feature_y, strict=True)
    )
    limit = sp.simplify(value.coeff(small, 0) + order_one.subs(c1, best))  # (1 + lambda) * value as lambda grows
    assert sp.expand(limit - gap**2 / 2) == 0
    assert sp.expand(limit - gap**2) != 0


def test_drmmd_and_its_limit():
    points = [sp.Matrix(sp.symbols(f"p{i}_1:3", real=True)) for i in range(2)]
    targets = [sp.Matrix(sp.symbols(f"q{i}_1:3", real=True)) for i in range(2)]
    feature = sp.Matrix(sp.symbols("r1:3", real=True))
    second_moment = sum((n * q * q.T for n, q in zip(v, targets, strict=True)), sp.zeros(2))
    inverse = (second_moment + regularization * sp.eye(2)).inv()
    gap = sum((m * p for m, p in zip(w, points, strict=True)), sp.zeros(2, 1))
    gap -= sum((n * q for n, q in zip(v, targets, strict=True)), sp.zeros(2, 1))
    value = (1 + regularization) * ((gap + epsilon * feature).T * inverse * (gap + epsilon * feature))[0]
    variation = 2 * (1 + regularization) * (feature.T * inverse * gap)[0]
    assert sp.simplify(sp.diff(value, epsilon).subs(epsilon, 0) - variation) == 0
    numbers = {s: sp.Rational(k + 1, 7) for k, s in enumerate(sorted(value.free_symbols - {regularization, epsilon}, key=str))}
    limit = sp.limit(value.subs(epsilon, 0).subs(numbers), regularization, sp.oo)
    assert limit == gap.dot(gap).subs(numbers)
    assert limit != gap.dot(gap).subs(numbers) / 2


# KALE and DrMMD as penalties of a density rho of the fitted measure: u = h at the atoms of the target, rho = phi^*'(u)


def fitted(density, rest):
    """For one feature: u at the target's atoms, and the mean of mu, when mu less the fitted measure has the mean `rest`."""
    u = [s * rest / regularization for s in feature_y]
    return u, rest + sum(n * density(t) * s for n, t, s in zip(v, u, feature_y, strict=True))


def least_penalty(penalty, u, rest):
    return sum(n * penalty(t) for n, t in zip(v, u, strict=True)) + rest**2 / (2 * regularization)


def test_kale_is_the_least_penalty_of_a_density():
    rest = sp.Symbol("r", real=True)
    u, mean = fitted(sp.exp, rest)
    h = rest / regularization
    value = 1 + h * mean - sum(n * sp.exp(t) for n, t in zip(v, u, strict=True)) - regularization * h**2 / 2
    penalty = least_penalty(lambda t: t * sp.exp(t) - sp.exp(t) + 1, u, rest)
    assert sp.expand(value - penalty - (1 - sum(v))) == 0
    assert sp.expand(value - penalty) != 0  # the target's mass counts


def test_drmmd_is_the_least_penalty_of_a_density():
    rest = sp.Symbol("r", real=True)
    u, mean = fitted(lambda t: 1 + t, rest)
    gap = mean - sum(n * s for n, s in zip(v, feature_y, strict=True))
    value = gap**2 / (sum(n * s**2 for n, s in zip(v, feature_y, strict=True)) + regularization)
    penalty = least_penalty(lambda t: t**2 / 2, u, rest)
    assert sp.simplify(value - 2 * penalty) == 0
    assert sp.simplify(value - penalty) != 0


@pytest.mark.parametrize(("penalty", "density"), [(lambda t: t * sp.exp(t) - sp.exp(t) + 1, sp.exp), (lambda t: t**2 / 2, None)])
def test_the_penalty_is_stationary_in_u_at_the_solution(penalty, density):
    """d/du_j of v_j phi(rho(u_j)) + |m_mu - m_fitted|^2 / (2 lambda) is v_j rho'(u_j) times the defect over lambda."""
    density = density or (lambda t: 1 + t)
    u, mean = sp.symbols("u1 u2", real=True), sp.Symbol("m", real=True)
    rest = mean - sum(n * density(t) * s for n, t, s in zip(v, u, feature_y, strict=True))
    value = sum(n * penalty(t) for n, t in zip(v, u, strict=True)) + rest**2 / (2 * regularization)
    for n, t, s in zip(v, u, feature_y, strict=True):
        defect = regularization * t - s * rest
        assert sp.simplify(value.diff(t) - n * density(t).diff(t) * defect / regularization) == 0


def test_solves_with_a_regularised_kernel_matrix():
    """(lambda + K D)^-1 and (lambda + D K)^-1 by one symmetric solve, where one of the entries of D is zero."""
    a, b, c, d, e, f = sp.symbols("k1:7", real=True)
    kernel, root = sp.Matrix([[a, b, c], [b, d, e], [c, e, f]]), sp.diag(*sp.symbols("r1 r2", positive=True), 0)
    identity = sp.eye(3)
    inner = root * (regularization * identity + root * kernel * root).inv() * root
    for matrix, inverse, wrong in (
        (kernel * root**2, identity - kernel * inner, identity - inner * kernel),
        (root**2 * kernel, identity - inner * kernel, identity - kernel * inner),
    ):
        regularised = regularization * identity + matrix
        assert (regularised * inverse / regularization - identity).applyfunc(sp.simplify) == sp.zeros(3)
        assert (regularised * wrong / regularization - identity).applyfunc(sp.simplify) != sp.zeros(3)


def test_the_distance_from_the_fitted_measure_by_the_equation_of_its_density():
    """With lambda u + K m = K_yx w for the masses m = v rho(u), MMD^2 = w K_xx w - (K_yx w + lambda u) m."""
    masses, fitted = sp.Matrix(w), sp.Matrix(sp.symbols("m1 m2", real=True))
    a, b, c, d, e, f = sp.symbols("k1:7", real=True)
    of_mu, of_nu = sp.Matrix([[a, b], [b, c]]), sp.Matrix([[d, e], [e, f]])
    between = sp.Matrix(2, 2, sp.symbols("c1:5", real=True))
    right = between * masses
    u = (right - of_nu * fitted) / regularization
    distance = (masses.T * of_mu * masses - 2 * right.T * fitted + fitted.T * of_nu * fitted)[0]

    def by_equation(sign):
        return (masses.T * of_mu * masses - (right + sign * regularization * u).T * fitted)[0]

    assert sp.expand(distance - by_equation(1)) == 0
    assert sp.expand(distance - by_equation(-1)) != 0


def test_monotone_plans_have_the_right_marginals():
    a, _, b, _ = SPLIT
    plan = monotone_plan(*SPLIT)
    assert [sum(m for (i, _), m in plan.items() if i == k) for k in range(2)] == list(a)
    assert [sum(m for (_, j), m in plan.items() if j == k) for k in range(2)] == list(b)
    assert all(first[1] <= second[1] for first, second in pairwise(sorted(plan)))
