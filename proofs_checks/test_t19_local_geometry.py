"""T19 Local geometry: localised means and covariances are derivatives of the logarithm of a smoothed measure.

With k_h(x) = exp(-|x|^2 / (2 h^2)), rho = k_h * mu and mu_{x,h} proportional to k_h(x - .) mu:
E[y] - x = h^2 grad log rho(x), Cov[y] = h^2 I + h^4 Hess log rho(x), and with P_a f = E[((y - x)/h)^a f(y)]
P_0 f = k_h*(f mu) / rho, P_i f = h d_i(k_h*(f mu)) / rho, P_ij f - delta_ij P_0 f = h^2 d_i d_j(k_h*(f mu)) / rho.

Verified: these for symbolic bandwidth and discrete measures of symbolic atoms, masses and values, in dimensions 1, 2 and 3;
for a Gaussian N(m, s^2) on the line, its smoothed density and moments by integration; that splitting an atom changes none of
them and the mean of the nearest atoms; that coarse masses of a partition add up.
Assumed: nothing but differentiation under finite sums; that coordinates of N(m, s^2 I) are independent.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T19")

h = sp.Symbol("h", positive=True)


def kernel(x, y):
    return sp.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * h**2))


class Discrete:
    """Symbolic atoms with masses and values of a function, and the point x at which to look."""

    def __init__(self, dim, atoms):
        self.dim, self.x = dim, sp.symbols(f"x1:{dim + 1}", real=True)
        self.atoms = [
            (sp.Symbol(f"w{j}", positive=True), sp.symbols(f"y{j}_1:{dim + 1}", real=True), sp.Symbol(f"f{j}", real=True))
            for j in range(atoms)
        ]

    def smoothed(self, weigh=lambda f: 1):
        """k_h * (g mu) at x, for the function g that `weigh` makes of f."""
        return sum(w * weigh(f) * kernel(self.x, y) for w, y, f in self.atoms)

    def expectation(self, function):
        """E[function(y, f)] under the localised probability."""
        total = sum(w * kernel(self.x, y) * function(y, f) for w, y, f in self.atoms)
        return total / self.smoothed()

    def shift(self, a):
        return self.expectation(lambda y, f: y[a] - self.x[a])

    def covariance(self, a, b):
        product = self.expectation(lambda y, f: (y[a] - self.x[a]) * (y[b] - self.x[b]))
        return product - self.shift(a) * self.shift(b)

    def operator(self, *coordinates):
        """P_alpha f for the monomial with these coordinates."""
        return self.expectation(lambda y, f: f * sp.prod([(y[a] - self.x[a]) / h for a in coordinates]))

    def derivative_of_field(self, *coordinates):
        """Derivatives of k_h * (f mu) over k_h * mu."""
        field = self.smoothed(lambda f: f)
        return (sp.diff(field, *(self.x[a] for a in coordinates)) if coordinates else field) / self.smoothed()

    def log_hessian(self, a, b):
        return sp.diff(sp.log(self.smoothed()), self.x[a], self.x[b])


def vanishes(expression):
    """Zero as a rational function of the exponentials, which are taken for independent variables."""
    return sp.expand(sp.numer(sp.together(expression))) == 0


MEASURES = [Discrete(1, 3), Discrete(2, 2), Discrete(3, 2)]
IDS = ["line", "plane", "space"]


def pairs(dim):
    return [(a, b) for a in range(dim) for b in range(a, dim)]


@pytest.mark.parametrize("mu", MEASURES, ids=IDS)
def test_shift_is_a_gradient(mu):
    for a in range(mu.dim):
        assert vanishes(mu.shift(a) - h**2 * sp.diff(sp.log(mu.smoothed()), mu.x[a]))


@pytest.mark.parametrize("mu", MEASURES, ids=IDS)
def test_covariance_is_a_hessian(mu):
    for a, b in pairs(mu.dim):
        assert vanishes(mu.covariance(a, b) - h**2 * int(a == b) - h**4 * mu.log_hessian(a, b))


@pytest.mark.parametrize("mu", MEASURES, ids=IDS)
def test_operators_are_derivatives_of_the_smoothed_field(mu):
    assert vanishes(mu.operator() - mu.derivative_of_field())
    for a in range(mu.dim):
        assert vanishes(mu.operator(a) - h * mu.derivative_of_field(a))
    for a, b in pairs(mu.dim):
        assert vanishes(mu.operator(a, b) - int(a == b) * mu.operator() - h**2 * mu.derivative_of_field(a, b))


# --- a Gaussian, with which the tests of the library compare ---


def gaussian_local_moments(x, mean, deviation, bandwidth):
    """Of N(mean, deviation^2 I): log (k_h * mu)(x), the shift in each coordinate, and the variance in each coordinate.

    ``x`` and ``mean`` are sequences; the covariance is the variance times the identity.
    """
    total = bandwidth**2 + deviation**2
    gaps = [a - b for a, b in zip(x, mean, strict=True)]
    log_density = len(gaps) * sp.log(bandwidth**2 / total) / 2 - sum(g**2 for g in gaps) / (2 * total)
    return log_density, [-(bandwidth**2) * g / total for g in gaps], bandwidth**2 * deviation**2 / total


def test_a_gaussian_by_integration():
    """Around the origin, and then by translation."""
    s, x, y = sp.Symbol("s", positive=True), sp.Symbol("x", real=True), sp.Symbol("y", real=True)
    density = sp.exp(-(y**2) / (2 * s**2)) / (s * sp.sqrt(2 * sp.pi))
    moments = [sp.integrate((y - x) ** k * kernel([x], [y]) * density, (y, -sp.oo, sp.oo)) for k in range(3)]
    log_density, (shift,), variance = gaussian_local_moments([x], [0], s, h)
    assert sp.simplify(sp.expand_log(sp.log(moments[0]) - log_density, force=True)) == 0
    assert sp.simplify(moments[1] / moments[0] - shift) == 0
    assert sp.simplify(moments[2] / moments[0] - shift**2 - variance) == 0


def test_a_gaussian_by_derivatives():
    s, x, m = sp.Symbol("s", positive=True), sp.symbols("x1 x2", real=True), sp.symbols("m1 m2", real=True)
    log_density, shift, variance = gaussian_local_moments(x, m, s, h)
    for a in range(2):
        assert sp.simplify(h**2 * sp.diff(log_density, x[a]) - shift[a]) == 0
        for b in range(2):
            hessian = sp.diff(log_density, x[a], x[b])
            assert sp.simplify(int(a == b) * (h**2 - variance) + h**4 * hessian) == 0


# --- functions of the measure ---


def nearest_mean(x, atoms, k):
    """Mean of the k nearest atoms, on the line."""
    nearest = sorted(atoms, key=lambda atom: abs(atom[1][0] - x))[:k]
    return sum(y[0] for _, y, _ in nearest) / sp.Integer(k)


def test_a_split_changes_averages_by_nothing_and_nearest_neighbours():
    mu, s = Discrete(1, 2), sp.Symbol("s", positive=True)
    split = Discrete(1, 2)
    (w, y, f), other = mu.atoms
    split.atoms = [(s * w, y, f), ((1 - s) * w, y, f), other]
    for quantity in (lambda m: m.shift(0), lambda m: m.covariance(0, 0), lambda m: m.operator(0, 0)):
        assert vanishes(quantity(split) - quantity(mu))
    half, zero, one = sp.Rational(1, 2), (sp.Integer(0),), (sp.Integer(1),)
    two, three = [(half, zero, 0), (half, one, 0)], [(half / 2, zero, 0), (half / 2, zero, 0), (half, one, 0)]
    assert (nearest_mean(0, two, 2), nearest_mean(0, three, 2)) == (half, 0)


def test_coarse_masses_add_up():
    mu, centres = Discrete(1, 3), sp.symbols("c1:3", real=True)
    parts = [[kernel([c], y) / sum(kernel([e], y) for e in centres) for w, y, _ in mu.atoms] for c in centres]
    masses = [sum(w * p for (w, _, _), p in zip(mu.atoms, part, strict=True)) for part in parts]
    assert vanishes(sum(masses) - sum(w for w, _, _ in mu.atoms))


@pytest.mark.parametrize("mu", MEASURES[:2], ids=IDS[:2])
def test_wrong_variants_are_rejected(mu):
    """A shift without h^2, a covariance without the identity or with h^2 for h^4, and second derivatives without P_0."""
    assert not vanishes(mu.shift(0) - sp.diff(sp.log(mu.smoothed()), mu.x[0]))
    assert not vanishes(mu.covariance(0, 0) - h**4 * mu.log_hessian(0, 0))
    assert not vanishes(mu.covariance(0, 0) - h**2 - h**2 * mu.log_hessian(0, 0))
    assert not vanishes(mu.operator(0, 0) - h**2 * mu.derivative_of_field(0, 0))
