"""T12 One dimension: MMD^2 with k = -|x - y| is 2 int (F_mu - F_nu)^2 dx, twice the Cramer distance.

In quantile functions 1/2 MMD^2 flows by dQ/dt = 2 (s - R_nu(Q)), R_nu the distribution function of nu. From
delta_{-1} to delta_0 the flow is Q_t(s) = min(-1 + 2 s t, 0).

Verified: the first identity for undetermined distribution functions, through |x - y| as an integral of indicators,
and directly for three atoms; the velocity from the derivative in the points of sorted atoms of symbolic masses; the
flow between Dirac masses with its energy; the zero convention at coincident atoms, of mu and of nu; that proximal steps
are exact there, by their optimality conditions; the law that Euler's steps leave as it is around the target, with its
distance and its energy.
Assumed: Fubini's theorem; masses one; that quantile functions which fulfil the optimality conditions level by level
and increase are the minimisers (the energy is convex in them).
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T12")

s, t = sp.symbols("s t", positive=True)


def energy_distance(a, b):
    """MMD^2 with k = -|x - y| of two lists of (mass, point)."""
    signed = [*a, *((-m, p) for m, p in b)]
    return -sum(m * n * sp.Abs(p - q) for m, p in signed for n, q in signed)


def dirac_flow_quantile(t, s):
    """The flow of 1/2 MMD^2 from delta_{-1} to delta_0 at time t and level s."""
    return sp.Min(-1 + 2 * s * t, 0)


def test_twice_the_cramer_distance():
    """|x - y| = int 1[x <= z < y] + 1[y <= z < x] dz, so E|X - Y| = int F (1 - G) + G (1 - F) dz."""
    f, g = sp.symbols("F G")

    def mean_distance(p, q):
        return p * (1 - q) + q * (1 - p)

    integrand = 2 * mean_distance(f, g) - mean_distance(f, f) - mean_distance(g, g)
    assert sp.expand(integrand - 2 * (f - g) ** 2) == 0
    assert sp.expand(integrand - (f - g) ** 2) != 0


def test_twice_the_cramer_distance_of_three_atoms():
    w, first, second = sp.symbols("w a b", positive=True)  # atoms at -a and b, target at 0
    mass = (w, 1 - w)
    direct = energy_distance([(mass[0], -first), (mass[1], second)], [(1, 0)])
    squares = first * mass[0] ** 2 + second * (mass[0] - 1) ** 2
    assert sp.expand(direct.subs(sp.Abs(first + second), first + second) - 2 * squares) == 0


def test_velocity_of_sorted_atoms():
    """-(1/w_i) d/dx_i of 1/2 MMD^2 is 2 (s_i - R_nu(x_i)), s_i the middle of the atom's levels."""
    w, x, y = sp.symbols("w1:3", positive=True), sp.symbols("x1:4", real=True), sp.symbols("y1:3", real=True)
    order = (x[0], y[0], x[1], x[2], y[1])
    mass = (w[0], w[1], 1 - w[0] - w[1])
    share = sp.Symbol("v", positive=True)
    signed = [*zip(mass, x, strict=True), (-share, y[0]), (share - 1, y[1])]

    def distance(p, q):
        return (p - q) * sp.sign(order.index(p) - order.index(q))

    value = -sum(m * n * distance(p, q) for m, p in signed for n, q in signed) / 2
    levels = (mass[0] / 2, mass[0] + mass[1] / 2, 1 - mass[2] / 2)
    for i, below in enumerate((0, share, share)):
        velocity = -value.diff(x[i]) / mass[i]
        assert sp.cancel(velocity - 2 * (levels[i] - below)) == 0
        assert sp.cancel(velocity + 2 * (levels[i] - below)) != 0


def test_flow_between_dirac_masses():
    path = -1 + 2 * s * t  # until it arrives at 0, where R_nu jumps from 0 to 1
    assert (path.subs(t, 0), sp.diff(path, t)) == (-1, 2 * (s - 0))
    arrival = sp.solve(path, t)[0]
    assert arrival == 1 / (2 * s)
    assert [dirac_flow_quantile(time, sp.Rational(1, 2)) for time in (0, sp.Rational(1, 2), 1, 2)] == [
        -1,
        sp.Rational(-1, 2),
        0,
        0,
    ]


def test_energy_of_the_flow_between_dirac_masses():
    """1/2 MMD^2 = int F^2 over [-1, 0) with F(z) = (1 + z)/(2t) capped at 1; its rate is -int |dQ/dt|^2 ds (T10)."""
    z = sp.Symbol("z", real=True)
    time = sp.Symbol("t", positive=True)
    early = sp.integrate(((1 + z) / (2 * time)) ** 2, (z, -1, -1 + 2 * time)) + (1 - 2 * time)  # for t <= 1/2
    late = sp.integrate(((1 + z) / (2 * time)) ** 2, (z, -1, 0))
    moving = sp.integrate((2 * s) ** 2, (s, 0, 1)), sp.integrate((2 * s) ** 2, (s, 0, 1 / (2 * time)))
    assert sp.simplify(early.diff(time) + moving[0]) == 0
    assert sp.simplify(late.diff(time) + moving[1]) == 0


def test_coincident_atoms_never_separate_under_the_zero_convention():
    """With sign(0) = 0 all atoms at -1 have velocity 1, but the flow has 2 s."""
    half = sp.Rational(1, 2)
    gradients = [half * sp.sign(0) + half * sp.sign(0) for _ in range(2)]
    towards_target = [-sp.sign(-1 - 0)] * 2
    velocities = [v - g for v, g in zip(towards_target, gradients, strict=True)]
    assert velocities == [1, 1]
    apart = [v + g for v, g in zip(towards_target, (-half, half), strict=True)]
    assert apart == [2 * sp.Rational(1, 4), 2 * sp.Rational(3, 4)]


# Steps of time


def proximal_quantile(q, s, tau):
    """A proximal step of 1/2 MMD^2 to delta_0 at level s, from the quantile q: soft thresholding."""
    pushed = q + tau * (2 * s - 1)
    return sp.Max(pushed - tau, 0) + sp.Min(pushed + tau, 0)


def level_objective(y, q, level, tau):
    """What a level adds to 1/2 MMD^2 + W_2^2/(2 tau): E|X| - E|X - X'|/2 = int |Q| - (2s - 1) Q ds for sorted Q."""
    return sp.Abs(y) - (2 * level - 1) * y + (y - q) ** 2 / (2 * tau)


def test_the_energy_is_a_sum_over_levels():
    """int |Q| - (2s - 1) Q ds for three sorted atoms of symbolic masses."""
    w, gaps = sp.symbols("w1:3", positive=True), sp.symbols("g1:3", positive=True)
    first = sp.Symbol("x1", positive=True)  # all to the right of 0; |Q| is linear on either side
    mass, x = (*w, 1 - sum(w)), (first, first + gaps[0], first + sum(gaps))
    value = energy_distance(list(zip(mass, x, strict=True)), [(1, 0)]) / 2
    edges = [sum(mass[:i]) for i in range(4)]
    levels = sum(sp.integrate(q - (2 * s - 1) * q, (s, edges[i], edges[i + 1])) for i, q in enumerate(x))
    assert sp.expand(value - levels) == 0


def test_proximal_steps_between_dirac_masses_are_exact():
    """Optimal: 0 lies in sign(y) - (2s - 1) + (y - q)/tau, sign(0) = [-1, 1]. Hence Q_k(s) = min(-1 + 2 s k tau, 0)."""
    y, q, level = sp.symbols("y q s", real=True)
    tau = sp.Symbol("tau", positive=True)
    for side in (-1, 1):  # the stationary points left and right of 0
        smooth = level_objective(y, q, level, tau).subs(sp.Abs(y), side * y)
        assert sp.expand(sp.solve(smooth.diff(y), y)[0] - (q + tau * (2 * level - 1) - side * tau)) == 0
    grid = [sp.Rational(k, 7) for k in range(-10, 11)]
    for level, tau in ((sp.Rational(1, 5), sp.Rational(1, 2)), (sp.Rational(2, 3), sp.Rational(1, 3)), (sp.Rational(9, 10), 2)):
        place = sp.Integer(-1)
        for k in range(1, 9):
            after = proximal_quantile(place, level, tau)
            least = level_objective(after, place, level, tau)
            assert all(level_objective(y, place, level, tau) >= least for y in grid)
            assert after == dirac_flow_quantile(k * tau, level)
            place = after
    explicit = -1 + 2 * sp.Rational(9, 10) * 2  # jumps over the target
    assert explicit != proximal_quantile(-1, sp.Rational(9, 10), 2)


def euler_around_the_target(level, tau):
    """Where an Euler step to delta_0 takes the level of the uniform law on [-tau, tau]."""
    place = (2 * level - 1) * tau
    return [place + 2 * level * tau, place + 2 * (level - 1) * tau]  # from the left and from the right of the target


def test_eulers_steps_leave_a_uniform_law_around_the_target():
    """In units of tau the step is the doubling map u -> 2u + 1 for u < 0, 2u - 1 for u > 0."""
    level, tau, u = sp.symbols("s tau u", positive=True)
    images = [sp.expand(e.subs(level, (u + 1) / 2) / tau) for e in euler_around_the_target(level, tau)]
    assert images == [2 * u + 1, 2 * u - 1]
    # Of [-1, 0] and of [0, 1] each covers [-1, 1] at half the density: together the law is the same.
    assert [images[0].subs(u, end) for end in (-1, 0)] == [images[1].subs(u, end) for end in (0, 1)] == [-1, 1]
    assert sum(sp.Rational(1, 2) / image.diff(u) for image in images) == sp.Rational(1, 2)
    longer = [sp.expand(2 * image - u) for image in images]  # steps of twice the length: another law
    assert sum(sp.Rational(1, 2) / image.diff(u) for image in longer) != sp.Rational(1, 2)


def stationary_euler_error(step_size):
    """Distance W_2 to delta_0 of what Euler's steps of this length end at, and 1/2 MMD^2."""
    return step_size / sp.sqrt(3), step_size / 6


def test_error_of_eulers_steps():
    tau, z = sp.symbols("tau z", positive=True)
    distance, energy = stationary_euler_error(tau)
    assert sp.simplify(sp.integrate((2 * s - 1) ** 2 * tau**2, (s, 0, 1)) - distance**2) == 0
    distribution = (z + tau) / (2 * tau)
    cramer = sp.integrate(distribution**2, (z, -tau, 0)) + sp.integrate((1 - distribution) ** 2, (z, 0, tau))
    assert sp.simplify(cramer - energy) == 0  # 1/2 MMD^2 is the integral of the square


def test_an_atom_on_an_atom_of_the_target_sees_the_mean_of_both_sides():
    """sign(0) = 0 makes R_nu at an atom the mean of its limits; a tie of mu makes s the middle of the levels of all copies."""
    share, mass = sp.symbols("v w", positive=True)
    limits = (0, share)  # of R_nu at the first atom of nu, the others to its right
    towards = share * sp.sign(0) - (1 - share)  # the derivative of int |x - y| dnu there, 2 R_nu - 1 elsewhere
    assert sp.expand(towards - (2 * sum(limits) / 2 - 1)) == 0
    repulsion = mass / 2 * sp.sign(0) - (1 - mass)  # the velocity by a copy at the same place and atoms to the right
    middle = mass / 2  # of the levels [0, w] of both copies
    assert sp.expand(repulsion - (2 * middle - 1)) == 0
