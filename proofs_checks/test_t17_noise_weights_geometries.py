"""T17 Noise, weights, other geometries: Wasserstein-Fisher-Rao, Langevin noise, the Stein flow.

dw_i/dt = -w_i (dF/dmu(x_i) - m) with m = int dF/dmu dmu / mass conserves the mass and adds -int (dF/dmu - m)^2 dmu to
dF/dt. Noise sqrt(2 b tau) equals b times the entropy, in law. The Stein velocity -int k(x, y) grad_W F(y) dmu(y)
decreases F at the rate of its squared RKHS norm.

Verified: conservation and rate for an undetermined energy of three atoms of any total mass; positivity of
multiplicative updates, their agreement with Euler's to first order, and a negative weight by Euler's; the generator
of a noisy step to order tau, and that its Fokker-Planck equation is the flow of potential plus b times entropy; the
Stein rate in the plane with undetermined features.
Assumed: T2; propagation of chaos for interacting particles; kernels as inner products of features.
"""

import pytest
import sympy as sp

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
