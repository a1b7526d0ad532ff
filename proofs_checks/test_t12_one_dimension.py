"""T12 One dimension: MMD^2 with k = -|x - y| is 2 int (F_mu - F_nu)^2 dx, twice the Cramer distance.

In quantile functions 1/2 MMD^2 flows by dQ/dt = 2 (s - R_nu(Q)), R_nu the distribution function of nu. From
delta_{-1} to delta_0 the flow is Q_t(s) = min(-1 + 2 s t, 0).

Verified: the first identity for undetermined distribution functions, through |x - y| as an integral of indicators,
and directly for three atoms; the velocity from the derivative in the points of sorted atoms of symbolic masses; the
flow between Dirac masses with its energy; the zero convention at coincident atoms.
Assumed: Fubini's theorem; masses one.
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
