"""T24 Varying energies: energies that depend on time, random gradients, fresh and fixed directions.

Verified: the rate of change along a flow, with its derivative in time; the recursion of the mean squared distance under unbiased
noise on a quadratic, its fixed point and that it is attained; the inequality of one step for smooth energies, term by term; that
a gradient over fresh directions is right in the mean on the circle; that measures whose projections on d directions agree need
not agree, with an example for every d > 1; mini-batches of a target, without bias for an MMD and with it for W_2; the order of a
step whose field is frozen at its start or in its middle.
Assumed: convergence of non-negative almost supermartingales (Robbins and Siegmund).
"""

import itertools

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T24")

m, s, tau, t = sp.symbols("m s tau t", positive=True)


def limit_of_mean_square(m, s, tau):
    """Limit of E|Z_k - Z*|^2 for steps tau on an energy m |Z - Z*|^2 / 2, gradients unbiased with variance s^2."""
    return tau * s**2 / (m * (2 - m * tau))


def test_rate_of_change_has_a_part_in_time():
    """One atom of mass w in an energy F(t, x): the Wasserstein gradient is dF/dx / w."""
    w, x = sp.Symbol("w", positive=True), sp.Function("x")(t)
    place = sp.Symbol("x0")
    energy = w * (sp.sin(t) * place**2 + sp.exp(-t) * place**4)
    gradient = sp.diff(energy, place) / w
    along = sp.diff(energy.subs(place, x), t).subs(sp.diff(x, t), -gradient.subs(place, x))
    dissipation = (w * gradient**2).subs(place, x)
    in_time = sp.diff(energy, t).subs(place, x)
    assert sp.simplify(along + dissipation - in_time) == 0
    assert sp.simplify(along + dissipation) != 0  # rejected: without the derivative in time


def test_mean_square_under_unbiased_noise():
    """E|Z - tau (m Z + noise)|^2, the noise with mean zero and variance s^2."""
    z, noise = sp.symbols("z noise")
    square = sp.expand((z - tau * (m * z + noise)) ** 2)
    mean = square.coeff(noise, 0) + square.coeff(noise, 2) * s**2  # the linear term has mean zero
    q = sp.Symbol("q")
    recursion = sp.expand(mean).subs(z**2, q)
    assert sp.simplify(recursion - ((1 - m * tau) ** 2 * q + tau**2 * s**2)) == 0
    (fixed,) = sp.solve(recursion - q, q)
    assert sp.simplify(fixed - limit_of_mean_square(m, s, tau)) == 0
    assert sp.limit(fixed / tau, tau, 0) == s**2 / (2 * m)  # O(tau)
    wrong = tau * s**2 / (2 * m)  # rejected: the limit to first order, taken for the limit
    assert sp.simplify(recursion.subs(q, wrong) - wrong) != 0


def test_biased_noise_moves_the_limit():
    """A gradient with bias b: the mean tends to -b/m, at no step size to the minimum."""
    z, b = sp.symbols("z b")
    (rest,) = sp.solve(z - tau * (m * z + b) - z, z)
    assert rest == -b / m


def test_one_step_of_a_smooth_energy():
    """F(x - tau g) <= F - tau <grad, g> + l tau^2 |g|^2 / 2; in the mean over g = grad + noise."""
    ell, grad, noise, F = sp.symbols("ell grad noise F", real=True)
    bound = sp.expand(F - tau * grad * (grad + noise) + ell * tau**2 * (grad + noise) ** 2 / 2)
    mean = bound.coeff(noise, 0) + bound.coeff(noise, 2) * s**2
    wanted = F - tau * (1 - ell * tau / 2) * grad**2 + ell * tau**2 * s**2 / 2
    assert sp.expand(mean - wanted) == 0
    # The step sizes 1/(k+1): their sum diverges, that of the squares does not; for 1/sqrt(k+1) it does.
    k = sp.Symbol("k", integer=True, positive=True)
    assert sp.summation(1 / k**2, (k, 1, sp.oo)) == sp.pi**2 / 6
    assert sp.Sum(1 / k, (k, 1, sp.oo)).is_convergent() == False  # noqa: E712 SymPy's own false
    assert sp.Sum(1 / sp.sqrt(k) ** 2, (k, 1, sp.oo)).is_convergent() == False  # noqa: E712


def test_fresh_directions_are_right_in_the_mean():
    """On the circle, one atom each: the mean over directions of the gradient is that of the mean energy; of a root it is not."""
    a, x, y = sp.symbols("a x y", positive=True)
    seen = x * sp.cos(a) + y * sp.sin(a)
    turn = (a, 0, 2 * sp.pi)
    energy = seen**2 / 2

    def mean(f):
        return sp.integrate(sp.expand(f), turn) / (2 * sp.pi)

    assert sp.simplify(mean(sp.diff(energy, x)) - sp.diff(mean(energy), x)) == 0
    assert sp.simplify(mean(energy) - (x**2 + y**2) / 4) == 0
    # Rejected: the root of a sum over two fresh directions, |(seen_1, seen_2)|, has another mean than the root of the mean.
    root_of_mean = sp.sqrt(mean(energy)).subs({x: 1, y: 0})
    mean_of_root = sp.integrate(sp.Abs(sp.cos(a)) / sp.sqrt(2), (a, 0, 2 * sp.pi)) / (2 * sp.pi)
    assert sp.simplify(mean_of_root - root_of_mean) != 0


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_as_many_directions_as_dimensions_do_not_determine_a_measure(dim):
    """Two atoms on the diagonal, and all corners of the cube: the same projections on all axes, other covariances."""
    diagonal = [(-1,) * dim, (1,) * dim]
    corners = list(itertools.product((-1, 1), repeat=dim))

    def projected(points, direction):
        values = [sum(u * v for u, v in zip(point, direction, strict=True)) for point in points]
        return {v: sp.Rational(values.count(v), len(values)) for v in values}

    axes = [tuple(int(i == j) for j in range(dim)) for i in range(dim)]
    assert all(projected(diagonal, axis) == projected(corners, axis) for axis in axes)
    oblique = tuple(int(j < 2) for j in range(dim))
    assert projected(diagonal, oblique) != projected(corners, oblique)  # one more direction tells them apart


def test_couplings_of_coordinates_stay_at_energy_zero():
    """For linearly independent directions each choice of permutations gives atoms with these projections: (n!)^(d-1) measures."""
    directions = sp.Matrix([[1, 2], [3, 1]])
    target = sp.Matrix([[0, 1, 5], [2, 7, 3]])  # three atoms as columns
    seen = directions * target
    found = set()
    for order in itertools.permutations(range(3)):
        wanted = sp.Matrix([seen.row(0), seen.row(1)[:, list(order)]])
        atoms = directions.LUsolve(wanted)
        assert all(sorted((directions * atoms).row(i)) == sorted(seen.row(i)) for i in range(2))
        found.add(frozenset(tuple(atoms.col(j)) for j in range(3)))
    assert len(found) == sp.factorial(3)


def test_mini_batches_of_a_target():
    """Batches of one of two target atoms: an MMD's gradient is linear in the target, that of W_2^2/2 is not."""
    x, a, b = sp.symbols("x a b", real=True)
    kernel = sp.Lambda((x, a), sp.exp(-((x - a) ** 2) / 2))
    witness = (kernel(x, a) + kernel(x, b)) / 2
    mean = (sp.diff(kernel(x, a), x) + sp.diff(kernel(x, b), x)) / 2
    assert sp.simplify(mean - sp.diff(witness, x)) == 0
    # Two atoms at the target's atoms 0 and 1 are its minimum; batches of one pull both to 0 or both to 1, to 1/2 in the mean.
    at, target = [sp.Integer(0), sp.Integer(1)], [sp.Integer(0), sp.Integer(1)]
    whole = [p - q for p, q in zip(at, target, strict=True)]
    in_the_mean = [p - sum(target) / 2 for p in at]
    assert whole == [0, 0]
    assert in_the_mean == [-sp.Rational(1, 2), sp.Rational(1, 2)]  # rejected: that mini-batches of W_2 are unbiased


def test_a_field_frozen_in_the_middle_of_the_step():
    """x' = a(t) x: the error of one exact step of the frozen field is O(tau^3) in the middle, O(tau^2) at the start."""
    a0, a1, a2 = sp.symbols("a0 a1 a2")
    rate = sp.Lambda(t, a0 + a1 * t + a2 * t**2)
    exact = sp.exp(sp.integrate(rate(t), (t, 0, tau)))

    def order(frozen):
        error = sp.series(exact - frozen, tau, 0, 4).removeO()
        return min(power for power in range(1, 4) if sp.simplify(error.coeff(tau, power)) != 0)

    def heun(r):
        return 1 + tau * r + tau**2 * r**2 / 2

    assert order(sp.exp(tau * rate(tau / 2))) == 3
    assert order(heun(rate(tau / 2))) == 3
    assert order(heun(rate(0))) == 2  # rejected: at the start Heun's step is of order one
