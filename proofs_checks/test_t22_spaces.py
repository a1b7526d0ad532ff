"""T22 Spaces: flows on manifolds and in convex sets. (Other geometries, and momenta: test_t22_geometries.py.)

M is the inverse metric in surrounding coordinates: the gradient on a space is M times the Euclidean one. A geodesic
x' = M p has the acceleration (DM[x']) p - M grad_x (p.M p / 2). Noise needs retractions with that acceleration; another
one, smaller by delta(v), takes b E delta from the drift. At a stationary point the Hessian of F in any chart is the Riemannian
one, on the sphere P D2f P - (x.grad f) P. Reflected noise keeps the uniform law.

Verified: tangency and rate of gradients for an undetermined energy on the sphere; the decay (1 - tau)^k on the sphere and
the Poincare ball; the acceleration from Christoffel symbols, on the sphere for every p and with M changed off the sphere,
on the ball; the drift of straight noise on the ball in dimensions 1 to 4 and what it does to E dist^2 in dimension 3; the mean on
the sphere; the Hessian in three charts; projected steps, multipliers and their derivatives; kernels of reflected noise.
Assumed: T2, T16; the Fokker-Planck equation.
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T22")

tau, kappa, a = sp.symbols("tau kappa a", positive=True)
x, y, z = sp.symbols("x y z", real=True)


def gradient(f, at):
    return sp.Matrix([f.diff(s) for s in at])


# Gradients


def test_the_gradient_on_the_sphere_is_tangent_and_its_square_is_the_rate():
    at = sp.Matrix(sp.symbols("x1:4", real=True))
    slope = sp.Matrix(sp.symbols("g1:4", real=True))
    velocity = -(sp.eye(3) - at * at.T) * slope

    def vanishes(f):
        return sp.rem(sp.expand(f), at.dot(at) - 1, at[2]).expand() == 0

    assert vanishes(at.dot(velocity))
    assert not vanishes(at.dot(slope))
    assert vanishes(slope.dot(velocity) + velocity.dot(velocity))
    assert not vanishes(slope.dot(velocity) + slope.dot(slope))


# Distances along exponential maps


def decayed(distance, tau, steps):
    """Distance from c after so many Euler steps of the potential dist(., c)^2 / 2, by the exponential map."""
    return (1 - tau) ** steps * distance


def test_distances_decay_exactly_on_the_sphere():
    angle = sp.Symbol("theta", positive=True)
    at = sp.Matrix([sp.sin(angle), 0, sp.cos(angle)])
    tangent = sp.eye(3) - at * at.T
    c = sp.Matrix(sp.symbols("c1:4"))
    slope = gradient(sp.acos(c[2]) ** 2 / 2, c).subs({c[2]: sp.cos(angle)})
    slope = slope.subs(sp.acos(sp.cos(angle)), angle).subs(sp.sqrt(1 - sp.cos(angle) ** 2), sp.sin(angle))
    velocity = sp.simplify(-tangent * slope)
    assert sp.simplify(velocity - angle * sp.Matrix([-sp.cos(angle), 0, sp.sin(angle)])) == sp.zeros(3, 1)
    unit, length = velocity / angle, tau * angle
    by_exponential = sp.cos(length) * at + sp.sin(length) * unit
    assert sp.simplify(by_exponential - sp.Matrix([sp.sin((1 - tau) * angle), 0, sp.cos((1 - tau) * angle)])) == sp.zeros(3, 1)
    normalised = at + tau * velocity
    left = sp.atan2(normalised[0], normalised[2])
    values = {tau: sp.Rational(1, 2), angle: 1}
    assert abs(sp.N(left.subs(values) - decayed(1, sp.Rational(1, 2), 1))) > 0.01  # a step that is normalised afterwards


def test_distances_decay_exactly_on_the_poincare_ball():
    """On a line through c = 0, where s = 2 artanh x is the arc length of the metric 4 dx^2 / (1 - x^2)^2."""
    arc = 2 * sp.atanh(x)
    inverse_metric = (1 - x**2) ** 2 / 4
    velocity = -inverse_metric * (arc**2 / 2).diff(x)
    assert sp.simplify(velocity * arc.diff(x) + arc) == 0
    euclidean = -(arc**2 / 2).diff(x)
    assert sp.simplify(euclidean * arc.diff(x) + arc) != 0


# Geodesics, retractions and noise


def geodesic_acceleration(inverse_metric, at, p):
    """Of the geodesic with velocity M p: (DM[M p]) p - M grad (p.M p / 2)."""
    velocity = inverse_metric * p
    along = sum((inverse_metric.diff(s) * v for s, v in zip(at, velocity, strict=True)), sp.zeros(*inverse_metric.shape))
    return along * p - inverse_metric * gradient((p.T * inverse_metric * p)[0] / 2, at)


def test_the_acceleration_is_that_of_the_christoffel_symbols():
    """For an undetermined metric of the plane: x'' = -Gamma(x', x')."""
    at, p = sp.Matrix([x, y]), sp.Matrix(sp.symbols("p q"))
    e, f = (sp.Function(name, positive=True)(x, y) for name in "ef")
    metric = sp.Matrix([[e, 1], [1, f]])
    inverse = metric.inv()
    v = inverse * p
    christoffel = sp.Matrix(
        [
            sum(
                inverse[i, m] * (metric[m, j].diff(at[k]) + metric[m, k].diff(at[j]) - metric[j, k].diff(at[m])) / 2 * v[j] * v[k]
                for m in range(2)
                for j in range(2)
                for k in range(2)
            )
            for i in range(2)
        ]
    )
    missing = (geodesic_acceleration(inverse, at, p) + christoffel).applyfunc(sp.simplify)
    force = (inverse * gradient((p.T * inverse * p)[0] / 2, at)).applyfunc(sp.simplify)
    assert missing == sp.zeros(2, 1) != force  # without the force the acceleration would be another


@pytest.mark.parametrize("extension", [0, 1])
def test_the_acceleration_on_the_sphere_points_to_the_centre(extension):
    """For every p, its normal part included, and whatever M is off the sphere."""
    at, p = sp.Matrix(sp.symbols("x1:4", real=True)), sp.Matrix(sp.symbols("p1:4", real=True))
    square = at.dot(at)
    inverse = (sp.eye(3) - at * at.T / square**extension) * (1 + extension * (square - 1))
    place = {at[0]: sp.Rational(1, 3), at[1]: sp.Rational(2, 3), at[2]: sp.Rational(2, 3)}
    v, found = (field.subs(place) for field in (inverse * p, geodesic_acceleration(inverse, at, p)))
    assert (found + v.dot(v) * at.subs(place)).expand() == sp.zeros(3, 1)


def ball_acceleration(at, v):
    """Of geodesics of the Poincare ball (curvature -1), in its coordinates."""
    return (2 * v.dot(v) * at - 4 * at.dot(v) * v) / (1 - at.dot(at))


def test_the_acceleration_on_the_ball_is_not_that_of_a_straight_step():
    at, p = sp.Matrix(sp.symbols("x1:4", real=True)), sp.Matrix(sp.symbols("p1:4", real=True))
    inverse = (1 - at.dot(at)) ** 2 / 4 * sp.eye(3)
    found = geodesic_acceleration(inverse, at, p).applyfunc(sp.factor)
    assert (found - ball_acceleration(at, inverse * p)).applyfunc(sp.factor) == sp.zeros(3, 1)
    assert found != sp.zeros(3, 1)  # that of x + v


def first_order_drift(at, dim):
    """What straight noise on the Poincare ball adds to the drift, for b = 1: E of minus the acceleration that it lacks."""
    return (2 - dim) * (1 - at.dot(at)) / 2 * at


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_the_drift_of_straight_noise(dim):
    at = sp.Matrix(sp.symbols(f"x1:{dim + 1}", real=True))
    xi = sp.Matrix(sp.symbols(f"xi1:{dim + 1}", real=True))
    lacking = -ball_acceleration(at, (1 - at.dot(at)) / 2 * xi).expand()
    normal = lacking.applyfunc(lambda f: sum(f.coeff(s, 2) for s in xi))  # E xi_i xi_j
    assert sp.simplify(normal - first_order_drift(at, dim)) == sp.zeros(dim, 1)


def hyperbolic_mean_square(a):
    """E dist(., c)^2 in the hyperbolic space of dimension 3, under exp(-a dist(., c)^2) times its volume."""
    return 1 / (2 * a) + 1 / (a**2 * (1 - sp.exp(-1 / sp.sympify(a))))


def first_order_mean_square(a):
    """The same where noise makes straight steps of the Poincare ball, as they shrink."""
    return 1 / (2 * a) + 1 / (4 * a**2 * (1 - sp.exp(-1 / (4 * sp.sympify(a)))))


def test_a_first_order_retraction_has_another_law():
    """d = 3. In s = dist(., 0) the generator is g'' + (2 coth s - 2 a s + drift) g'; with density rho, (log rho)' is that."""
    s = sp.Symbol("s", positive=True)
    radius = sp.tanh(s / 2)
    drift = first_order_drift(sp.Matrix([x]), 3)[0].subs(x, radius) * (2 * sp.atanh(x)).diff(x).subs(x, radius)
    right, wrong = sp.sinh(s) ** 2 * sp.exp(-a * s**2), sp.sinh(s / 2) ** 2 * sp.exp(-a * s**2)
    plain = 2 * sp.coth(s) - 2 * a * s
    assert sp.simplify((sp.log(right).diff(s) - plain).rewrite(sp.exp)) == 0
    assert sp.simplify((sp.log(wrong).diff(s) - plain - drift).rewrite(sp.exp)) == 0
    # 4 sinh(s)^2 and 4 sinh(s/2)^2 are e^(k s) - 2 + e^(-k s) for k = 2 and 1, and means of e^(k s) by exp(-a s^2) are known.
    k = sp.Symbol("k")
    mass = sp.exp(k**2 / (4 * a))
    for density, rate, mean in ((right, 2, hyperbolic_mean_square(a)), (wrong, 1, first_order_mean_square(a))):
        cosines = (sp.exp(rate * s) - 2 + sp.exp(-rate * s)) / 4 * sp.exp(-a * s**2)
        assert sp.simplify((density - cosines).rewrite(sp.exp)) == 0
        sums = [sum(c * f.subs(k, e) for c, e in ((1, rate), (-2, 0), (1, -rate))) for f in (mass, mass.diff(k, 2))]
        assert sp.simplify(sums[1] / sums[0] - mean) == 0
    assert [round(float(m(2)), 3) for m in (hyperbolic_mean_square, first_order_mean_square)] == [0.885, 0.782]


def sphere_mean(kappa, temperature=1):
    """Mean of x_3 on the sphere S^2 under exp(kappa x_3 / temperature) times the area."""
    ratio = sp.sympify(kappa) / temperature
    return sp.coth(ratio) - 1 / ratio


def test_the_mean_on_the_sphere():
    """Heights are uniform by the area (Archimedes)."""
    weight = sp.exp(kappa * x)
    mean = sp.integrate(x * weight, (x, -1, 1)) / sp.integrate(weight, (x, -1, 1))
    assert sp.simplify((mean - sphere_mean(kappa)).rewrite(sp.exp)) == 0
    on_circle = sp.besseli(1, kappa) / sp.besseli(0, kappa)
    assert abs(sp.N((on_circle - sphere_mean(kappa)).subs(kappa, 5))) > 0.05
    assert round(float(sphere_mean(5)), 3) == 0.8


# Hessians


def sphere_hessian(f, at):
    """P D2f P - (x.grad f) P, at a unit vector x."""
    tangent = sp.eye(len(at)) - sp.Matrix(at) * sp.Matrix(at).T
    return tangent * sp.hessian(f, at) * tangent - sp.Matrix(at).dot(gradient(f, at)) * tangent


def chart_hessian(f, at, chart):
    """Of f at chart(v) in the first two coordinates of v, at v = 0, around the pole (0, 0, 1)."""
    v = sp.symbols("v1:3", real=True)
    point = chart(sp.Matrix([*v, 0]))
    there = f.subs(dict(zip(at, point, strict=True)), simultaneous=True)
    return sp.hessian(there, v).subs(dict.fromkeys(v, 0)).applyfunc(sp.expand)


def charts():
    """Great circles to third order, normalised steps, and normalised steps that bend."""
    pole, bend = sp.Matrix([0, 0, 1]), sp.Matrix([sp.Rational(2, 3), -1, 0])
    return {
        "exponential map": lambda v: (1 - v.dot(v) / 2) * pole + (1 - v.dot(v) / 6) * v,
        "normalised": lambda v: (pole + v) / sp.sqrt(1 + v.dot(v)),
        "bent": lambda v: (pole + v + v.dot(v) * bend) / sp.sqrt((pole + v + v.dot(v) * bend).dot(pole + v + v.dot(v) * bend)),
    }


@pytest.mark.parametrize("name", list(charts()))
@pytest.mark.parametrize("stationary", [True, False])
def test_the_hessian_in_a_chart(name, stationary):
    at = sp.symbols("x1:4", real=True)
    c = sp.symbols("c0:9", real=True)
    linear = [0, 0] if stationary else c[7:9]
    f = (
        c[0] * at[2]
        + c[1] * at[0] ** 2
        + c[2] * at[0] * at[1]
        + c[3] * at[1] ** 2
        + c[4] * at[2] ** 3
        + c[5] * at[0] * at[2] ** 2
    )
    f += linear[0] * at[0] + linear[1] * at[1] - c[5] * at[0] * (at[2] if stationary else 0)
    pole = dict(zip(at, (0, 0, 1), strict=True))
    riemannian = sphere_hessian(f, at).subs(pole)[:2, :2].applyfunc(sp.expand)
    found = chart_hessian(f, at, charts()[name])
    assert (found == riemannian) is (stationary or name != "bent")
    without_curvature = sp.hessian(f, at).subs(pole)[:2, :2]
    assert (found - without_curvature).applyfunc(sp.expand) != sp.zeros(2, 2)


def test_the_derivative_of_an_equilibrium_on_the_sphere():
    """Of the potential -x.c in c: the minimiser is c / |c|."""
    c = sp.Matrix(sp.symbols("c1:4", real=True))
    place = dict(zip(c, (0, 0, 2), strict=True))
    exact = (c / sp.sqrt(c.dot(c))).jacobian(c).subs(place)
    at = sp.symbols("x1:4", real=True)
    potential = -c.dot(sp.Matrix(at))
    tangent = sp.diag(1, 1, 0)
    pole = dict(zip(at, (0, 0, 1), strict=True))
    hessian = sphere_hessian(potential, at).subs(pole).subs(place)
    mixed = gradient(potential, at).jacobian(c)
    assert -hessian.pinv() * tangent * mixed == exact
    without_curvature = tangent * sp.hessian(potential, at) * tangent
    assert without_curvature == sp.zeros(3, 3)  # singular: the derivative would be refused


# Boundaries


def test_projected_steps_go_down():
    """On a half-line, f = l (x - c)^2 / 2: with s = x' - x the fall is at least (1/tau - l/2) s^2."""
    stiffness, c, start, step = sp.symbols("l c x0 s", real=True)
    fall = stiffness * (start - c) ** 2 / 2 - stiffness * (start + step - c) ** 2 / 2
    slope = stiffness * (start - c)
    assert sp.expand(fall + slope * step + stiffness * step**2 / 2) == 0
    inside, at_wall = {step: -tau * slope}, {step: -start}
    assert sp.expand((-slope * step - step**2 / tau).subs(inside)) == 0
    # At the wall x - tau slope < 0, so that -slope s - s^2/tau = (x/tau) (tau slope - x) >= 0.
    assert sp.expand((-slope * step - step**2 / tau).subs(at_wall) - start / tau * (tau * slope - start)) == 0


def simplex_minimiser(stiffness, centre):
    """Of sum a_k (x_k - c_k)^2 / 2 where sum x_k = 1, by a Lagrange multiplier; for minimisers inside of the simplex."""
    inverse = [1 / sp.sympify(s) for s in stiffness]
    multiplier = (sum(centre) - 1) / sum(inverse)
    return [c - multiplier * s for c, s in zip(centre, inverse, strict=True)]


def test_constrained_minimisers_and_their_derivatives():
    stiffness, centre = sp.symbols("a1:4", positive=True), sp.symbols("c1:4", real=True)
    found = sp.Matrix(simplex_minimiser(stiffness, centre))
    assert sp.simplify(sum(found)) == 1
    slopes = [s * (f - c) for s, f, c in zip(stiffness, found, centre, strict=True)]
    assert all(sp.simplify(slopes[0] - s) == 0 for s in slopes)  # the same in all coordinates: normal to the plane
    values = dict(zip(stiffness, (1, 2, 4), strict=True))
    within = sp.eye(3) - sp.ones(3, 3) / 3
    hessian = sp.diag(*stiffness).subs(values)
    derivative = -(within * hessian * within).pinv() * within * (-hessian)
    assert derivative == found.jacobian(centre).subs(values)
    assert -hessian.inv() * (-hessian) != derivative  # without the constraint


def interval_minimiser(centre, low, high):
    """Of (x - c)^2 / 2 on an interval."""
    return sp.Min(sp.Max(centre, low), high)


def test_strict_complementarity():
    """min (x - c)^2 / 2 on x >= 0: the derivative in c is 0 on the face, 1 inside, and does not exist in between."""
    c, h = sp.Symbol("c", real=True), sp.Symbol("h", positive=True)
    found = interval_minimiser(c, 0, sp.oo)
    assert (found.subs(c, -2).diff(c), found.subs(c, -h), found.subs(c, h)) == (0, 0, h)
    one_sided = [sp.limit((found.subs(c, sign * h) - found.subs(c, 0)) / (sign * h), h, 0) for sign in (-1, 1)]
    assert one_sided == [0, 1]


def test_reflected_noise_in_a_half_line_keeps_the_uniform_law():
    """The kernel q(y - x) + q(y + x) is symmetric, and its integral over starts x > 0 is one."""
    q = sp.exp(-(z**2) / (2 * tau)) / sp.sqrt(2 * sp.pi * tau)
    kernel = q.subs(z, y - x) + q.subs(z, y + x)
    assert sp.simplify(kernel - kernel.subs({x: y, y: x}, simultaneous=True)) == 0
    start, end = sp.symbols("s e", positive=True)
    mass = sp.integrate(kernel.subs({x: start, y: end}), (start, 0, sp.oo))
    assert sp.simplify(mass) == 1
    stopped = sp.integrate(q.subs(z, end - start), (start, 0, sp.oo))  # steps over the wall end on it instead
    assert sp.simplify(stopped) != 1


def test_reflected_noise_in_an_interval_keeps_the_uniform_law():
    """Images 2k + y and 2k - y; here for steps uniform on [-h, h] with h < 1, of which three matter."""
    h = sp.Rational(1, 3)

    def q(step):
        return sp.Piecewise((1 / (2 * h), sp.And(step >= -h, step <= h)), (0, True))

    for end in (sp.Rational(1, 100), sp.Rational(1, 10), sp.Rational(1, 2), sp.Rational(9, 10)):
        images = [end, -end, 2 - end]
        reflected = sum(sp.integrate(q(image - z), (z, 0, 1)) for image in images)
        stopped = sp.integrate(q(end - z), (z, 0, 1))
        assert reflected == 1
        assert (stopped == 1) == bool(h <= end <= 1 - h)


def test_a_reflected_path_keeps_volumes_and_can_be_walked_back():
    """(x, v) to (S (x + v), S v) for the reflection S at a plane: determinant one in size, and the way back by -S v."""
    normal = sp.Matrix(sp.symbols("n1:4", real=True))
    reflection = sp.eye(3) - 2 * normal * normal.T / normal.dot(normal)
    start, move = sp.Matrix(sp.symbols("x1:4")), sp.Matrix(sp.symbols("v1:4"))
    end, left = reflection * (start + move), reflection * move
    assert sp.simplify(left.dot(left) - move.dot(move)) == 0
    assert sp.simplify(sp.Matrix([*end, *left]).jacobian([*start, *move]).det() ** 2) == 1
    assert sp.simplify(reflection * (end - left) - start) == sp.zeros(3, 1)
    assert sp.simplify((sp.eye(3) - normal * normal.T / normal.dot(normal)).det()) == 0  # what leaves is projected
