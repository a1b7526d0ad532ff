"""T22 Spaces, second part: preconditioners, mirror maps, momenta.

A diffusion with the drift -C grad V + b div C and noise 2 b C keeps exp(-V/b). For C = (D2 phi)^-1 it is the mirror-Langevin
diffusion, whose image grad phi(X) has no drift but -grad V. The density of the image has the score
(D2 phi)^-1 grad (log pi - log det D2 phi). Diffusions of the three entropies are squares and heights of Brownian
motions. BAOAB keeps the variance b / l of positions in l x^2 / 2.

Verified: the invariant laws with and without div C; the Riemannian diffusion of the metric C^-1 and its potential; Ito's formula
for the image; rates of mirror flows; the score of the image on the half-line, the determinant on the simplex; drift and
noise of squares in the plane, heights on the sphere and squares on the complex sphere; means of kicks; BAOAB's stationary
covariance.
Assumed: Ito's formula and the Fokker-Planck equation.
"""

import pytest
import sympy as sp

from proofs_checks.test_t22_spaces import gradient

pytestmark = pytest.mark.theorem("T22")

tau, b = sp.symbols("tau b", positive=True)
x, y, z = sp.symbols("x y z", real=True)


def divergence(matrix, at):
    """Sum over the columns of the derivatives of each row."""
    return sp.Matrix([sum(matrix[i, j].diff(s) for j, s in enumerate(at)) for i in range(len(at))])


# Preconditioners and mirror maps


def probability_current(density, potential, matrix, at, *, with_divergence=True):
    """rho (-C grad V + b div C) - b div(C rho): zero at a law that stays."""
    drift = -matrix * gradient(potential, at)
    if with_divergence:
        drift = drift + b * divergence(matrix, at)
    return density * drift - b * divergence(matrix * density, at)


def test_the_drift_by_div_c_keeps_the_law():
    at = (x, y)
    potential = sp.Function("V")(*at)
    entries = [sp.Function(name)(*at) for name in ("c", "d", "e")]
    matrix = sp.Matrix([[entries[0], entries[1]], [entries[1], entries[2]]])
    density = sp.exp(-potential / b)
    assert sp.simplify(probability_current(density, potential, matrix, at)) == sp.zeros(2, 1)
    assert sp.simplify(probability_current(density, potential, matrix, at, with_divergence=False)) != sp.zeros(2, 1)


def test_without_div_c_the_law_is_divided_by_c():
    potential, c = sp.Function("V")(x), sp.Function("C", positive=True)(x)
    density = sp.exp(-potential / b) / c
    current = probability_current(density, potential, sp.Matrix([[c]]), (x,), with_divergence=False)
    assert sp.simplify(current) == sp.zeros(1, 1)


def test_the_riemannian_diffusion_has_another_potential():
    """Generator b Laplace-Beltrami - C grad U of the metric C^-1 is that of C and V, if U = V - b/2 log det C."""
    at = (x, y)
    potential, g = sp.Function("V")(*at), sp.Function("g")(*at)
    c = sp.diag(*(sp.Function(name, positive=True)(*at) for name in ("c", "d")))
    volume = sp.sqrt(1 / c.det())
    laplace = sum((volume * entry).diff(s) for entry, s in zip(c * gradient(g, at), at, strict=True)) / volume

    def riemannian(u):
        return b * laplace - (c * gradient(u, at)).dot(gradient(g, at))

    ours = b * sum((c[i, i] * g.diff(s)).diff(s) for i, s in enumerate(at)) - (c * gradient(potential, at)).dot(gradient(g, at))
    assert sp.simplify((riemannian(potential - b * sp.log(c.det()) / 2) - ours).expand().doit()) == 0
    assert sp.simplify((riemannian(potential) - ours).expand().doit()) != 0


def image_drift(phi, at, *, with_divergence=True):
    """By Ito's formula, of Y = grad phi(X) for dX = b div C dt + sqrt(2 b C) dW with C = (D2 phi)^-1."""
    hessian = sp.hessian(phi, at)
    c = hessian.inv()
    drift = b * divergence(c, at) if with_divergence else sp.zeros(len(at), 1)
    second = [b * sum(phi.diff(s, at[j], at[k]) * c[j, k] for j in range(len(at)) for k in range(len(at))) for s in at]
    return hessian * drift + sp.Matrix(second)


def test_the_image_of_a_mirror_langevin_diffusion_has_no_drift_of_its_own():
    phi = sp.Function("phi")(x, y)
    assert sp.simplify(image_drift(phi, (x, y))) == sp.zeros(2, 1)
    assert sp.simplify(image_drift(phi, (x, y), with_divergence=False)) != sp.zeros(2, 1)


def test_mirror_flows_descend():
    """d/dt grad phi(x) = -grad F is dx/dt = -(D2 phi)^-1 grad F; F falls by the square in the metric D2 phi."""
    slope = sp.Matrix(sp.symbols("g1:3"))
    hessian = sp.hessian(sp.Function("phi")(x, y), (x, y))
    velocity = -hessian.inv() * slope
    assert sp.simplify(hessian * velocity + slope) == sp.zeros(2, 1)
    assert sp.simplify(slope.dot(velocity) + (velocity.T * hessian * velocity)[0]) == 0


def dirichlet_mean(alpha):
    return [sp.sympify(k) / sum(alpha) for k in alpha]


def test_the_score_in_the_image_takes_the_determinant():
    """x = e^y: Gamma(k) has the density exp(k y - e^y) in y, whose score is (D2 phi)^-1 (grad log pi - grad log det)."""
    k, at = sp.symbols("k x", positive=True)
    phi = at * sp.log(at) - at
    log_density, log_determinant = (k - 1) * sp.log(at) - at, sp.log(phi.diff(at, 2))
    in_image = (k * z - sp.exp(z)).diff(z).subs(z, sp.log(at))
    assert sp.simplify((log_density - log_determinant).diff(at) / phi.diff(at, 2) - in_image) == 0
    wrong = sp.simplify(log_density.diff(at) / phi.diff(at, 2))
    assert sp.simplify(wrong - ((k - 1) * z - sp.exp(z)).diff(z).subs(z, sp.log(at))) == 0  # the score of Gamma(k - 1)


def test_the_determinant_on_the_simplex():
    """In the first coordinates D2 phi = diag(1/x_k) + 1/x_d has the determinant prod 1/x_k, over all coordinates."""
    for dim in (2, 3, 4):
        first = sp.symbols(f"x1:{dim}", positive=True)
        last = 1 - sum(first)
        phi = sum(s * sp.log(s) for s in (*first, last))
        assert sp.simplify(sp.hessian(phi, first).det() * sp.prod(first) * last) == 1
        # Its inverse is that of the code, x (f - x.f), in these coordinates.
        c = sp.diag(*first) - sp.Matrix(first) * sp.Matrix(first).T
        assert sp.simplify(c * sp.hessian(phi, first)) == sp.eye(dim - 1)


def squares(radial, rate):
    """Drift and squared noise of x = radial(z) for a Brownian motion z of that rate, by the generator rate/2 Laplace."""
    at = sp.symbols("z1:3", real=True)
    f = radial(*at)
    return rate / 2 * sum(f.diff(s, 2) for s in at), rate * sum(f.diff(s) ** 2 for s in at)


def kick_coefficients(matrix, at):
    """Drift b div C and squared noise 2 b C of a diffusion without potential."""
    return b * divergence(matrix, at), 2 * b * matrix


def test_squared_distances_in_the_plane_are_the_diffusion_of_the_positive_entropy():
    drift, noise = kick_coefficients(sp.Matrix([[x]]), (x,))
    found = squares(lambda p, q: p**2 + q**2, b / 2)
    assert sp.expand(found[0] - drift[0]) == 0
    assert sp.expand(found[1] - noise[0].subs(x, sum(s**2 for s in sp.symbols("z1:3", real=True)))) == 0
    on_line = squares(lambda p, q: p**2, b / 2)
    assert sp.expand(on_line[0] - drift[0]) != 0  # a square on the line has half of the drift


def on_sphere(f, g, at):
    """Laplace-Beltrami of f, and the inner product of the gradients of f and g, on the unit sphere; f, g polynomials."""
    n, radius = len(at), sp.Matrix(at)
    tangent = sp.eye(n) - radius * radius.T
    slope, hessian = gradient(f, at), sp.hessian(f, at)
    laplace = (tangent * hessian).trace() - (n - 1) * radius.dot(slope)
    return sp.expand(laplace), sp.expand((slope.T * tangent * gradient(g, at))[0])


def test_heights_on_the_sphere_are_the_diffusion_of_the_box_entropy():
    """Archimedes: x = (1 - h) / 2 in the unit interval, for a Brownian motion of the rate 2 b."""
    at = sp.symbols("z1:4", real=True)
    place = (1 - at[2]) / 2
    drift, noise = kick_coefficients(sp.Matrix([[x * (1 - x)]]), (x,))
    laplace, square = on_sphere(place, place, at)
    assert sp.expand(b * laplace - drift[0].subs(x, place)) == 0
    assert sp.expand(2 * b * square - noise[0].subs(x, place)) == 0
    circle = sp.symbols("z1:3", real=True)
    place = (1 - circle[1]) / 2
    assert sp.expand(b * on_sphere(place, place, circle)[0] - drift[0].subs(x, place)) != 0  # no Archimedes there


@pytest.mark.parametrize("dim", [2, 3])
def test_squares_on_the_complex_sphere_are_the_diffusion_of_the_simplex_entropy(dim):
    """x_k = |z_k|^2 in C^d, for a Brownian motion of the rate b / 2: drift b (1 - d x_k), noise 2 b (x_k d_kl - x_k x_l)."""
    at = sp.symbols(f"z1:{2 * dim + 1}", real=True)
    places = [at[2 * k] ** 2 + at[2 * k + 1] ** 2 for k in range(dim)]
    first = sp.symbols(f"x1:{dim}", positive=True)
    drift, noise = kick_coefficients(sp.diag(*first) - sp.Matrix(first) * sp.Matrix(first).T, first)
    there = dict(zip(first, places, strict=False))
    for i in range(dim - 1):
        laplace, _ = on_sphere(places[i], places[i], at)
        assert sp.expand(b / 4 * laplace - drift[i].subs(there)) == 0
        for j in range(dim - 1):
            _, square = on_sphere(places[i], places[j], at)
            assert sp.expand(b / 2 * square - noise[i, j].subs(there)) == 0
    real = [s**2 for s in at[:dim]]
    assert sp.expand(b / 4 * on_sphere(real[0], real[0], at[:dim])[0] - (b - b * dim * real[0])) != 0


def test_kicks_have_the_right_mean_and_noise():
    """By one normal number m of variance v = 2 b tau for each coordinate; squares of the others are replaced by their means."""
    m, v, at, height = sp.symbols("m v x h", positive=True)

    def mean(f):
        f = sp.Poly(sp.expand(f), m)
        return sum(c * {0: 1, 2: v, 4: 3 * v**2}.get(k, 0) for (k,), c in f.terms())

    kicked = (sp.sqrt(at) + m / 2) ** 2 + v / 4
    assert sp.expand(mean(kicked) - at - v / 2) == 0  # drift b, in the time v / 2 b
    assert sp.expand(mean((kicked - at) ** 2)).coeff(v) == at  # noise 2 b x
    assert sp.expand(mean(kicked - v / 4) - at - v / 2) != 0
    # Heights turn by (m, the other one) on the unit sphere: cos of the angle and sin / angle to second order.
    turned = (1 - (m**2 + v) / 2) * height - sp.sqrt(1 - height**2) * m
    assert sp.expand(mean(turned) - height + v * height) == 0  # half of the rate 2 b, times 2 for the sphere
    assert sp.expand(mean((turned - height) ** 2)).coeff(v) == sp.expand(1 - height**2)


# Underdamped Langevin dynamics


def momentum_variance(stiffness, temperature, tau):
    """Stationary variance of momenta after a step of BAOAB in the potential l x^2 / 2; that of positions is b / l."""
    return temperature * (1 - stiffness * tau**2 / 4)


def stationary(order, stiffness, kept):
    """Covariance of (x, p) that a splitting keeps; letters as in BAOAB, those that come twice take half of the time."""
    length = {letter: tau / order.count(letter) for letter in order}
    share = kept if order.count("O") == 1 else sp.sqrt(kept)
    maps = {
        "A": sp.Matrix([[1, length.get("A", 0)], [0, 1]]),
        "B": sp.Matrix([[1, 0], [-stiffness * length.get("B", 0), 1]]),
        "O": sp.diag(1, share),
    }
    v, c, w = sp.symbols("v c w")
    covariance = sp.Matrix([[v, c], [c, w]])
    after = covariance
    for letter in order:
        after = maps[letter] * after * maps[letter].T
        if letter == "O":
            after = after + sp.diag(0, b * (1 - share**2))
    return sp.solve(list((after - covariance).expand()), [v, c, w], dict=True)[0], (v, c, w)


def test_positions_have_the_right_variance_at_every_step_length():
    stiffness, kept = sp.symbols("l eta", positive=True)
    found, (v, c, w) = stationary("BAOAB", stiffness, kept)
    assert sp.simplify(found[v] - b / stiffness) == 0
    assert sp.simplify(found[c]) == 0
    assert sp.simplify(found[w] - momentum_variance(stiffness, b, tau)) == 0
    other, (v, _, _) = stationary("OBABO", stiffness, kept)
    assert sp.simplify(other[v] - b / stiffness) != 0
