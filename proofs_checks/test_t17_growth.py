"""T17 Growth: the Fisher-Rao reaction without conservation of the mass.

dw_i/dt = -w_i f_i, f = dF/dmu with its constant, adds -int f^2 dmu to dF/dt. An energy of the probabilities w / sum(w) alone
has int f dmu = 0, so its mass stays to first order.

Verified: the rate for an undetermined energy of three atoms; that a constant added to f spoils it, and lets mass grow without
end where the energy does not change at all; the mean of f for an undetermined energy of the probabilities; the multiplicative
step, which is the flow of a linear energy, and under which the linear part falls term by term; the closed form for one atom
and a quadratic energy, which is a logistic curve, and the bias of a penalty on the mass.
Assumed: T2.
"""

import pytest
import sympy as sp

from proofs_checks.test_t17_noise_weights_geometries import mean, reaction

pytestmark = pytest.mark.theorem("T17")

tau, t = sp.symbols("tau t", positive=True)
W, X = sp.symbols("w1:4", positive=True), sp.symbols("x1:4", real=True)


def growth(w, variation):
    """The reaction without conservation."""
    return reaction(w, variation, 0)


def test_the_energy_falls_at_the_integral_of_the_square():
    energy = sp.Function("f")(*W, *X)
    variation, gradient = [energy.diff(m) for m in W], [energy.diff(y) / m for m, y in zip(W, X, strict=True)]

    def rate(of_reaction):
        by_transport = sum(m * g * -g for m, g in zip(W, gradient, strict=True))
        by_reaction = sum(v * r for v, r in zip(variation, growth(W, of_reaction), strict=True))
        return by_transport + by_reaction

    squares = sum(m * (g**2 + v**2) for m, g, v in zip(W, gradient, variation, strict=True))
    assert sp.simplify(rate(variation) + squares) == 0
    centre = mean(variation, W)
    centred = sum(m * (g**2 + (v - centre) ** 2) for m, g, v in zip(W, gradient, variation, strict=True))
    assert sp.simplify(rate(variation) + centred) != 0  # that is the rate with conservation


def test_a_wrong_constant_is_rejected():
    """With f + c the energy changes at -int f^2 - c int f, which has either sign; without f, mass grows and nothing falls."""
    c = sp.Symbol("c", real=True)
    f = sp.symbols("f1:4", real=True)
    rate = sum(v * r for v, r in zip(f, growth(W, [v + c for v in f]), strict=True))
    squares, integral = sum(m * v**2 for m, v in zip(W, f, strict=True)), sum(m * v for m, v in zip(W, f, strict=True))
    assert sp.expand(rate + squares + c * integral) == 0
    values = dict.fromkeys(W, 1) | dict.fromkeys(f, 1)
    assert rate.subs(values).subs(c, -2) > 0  # uphill
    assert sp.expand(sum(growth(W, [c] * 3)) + c * sum(W)) == 0  # the mass is multiplied by exp(-c t)


def test_an_energy_of_probabilities_moves_no_mass_in_total():
    total = sum(W)
    energy = sp.Function("f")(*[m / total for m in W])
    integral = sum(m * energy.diff(m) for m in W).doit()
    assert sp.simplify(integral) == 0
    assert sp.simplify(sum(m * (energy * total).diff(m) for m in W).doit()) != 0  # twice the mass, twice the value


def test_the_step_without_normalisation():
    f = sp.symbols("f1:4", real=True)
    after = [m * sp.exp(-tau * v) for m, v in zip(W, f, strict=True)]
    assert all(m.is_positive for m in after)
    for m, r in zip(after, growth(after, f), strict=True):  # for a linear energy it is the flow
        assert sp.simplify(m.diff(tau) - r) == 0
    # tau sum (w - w') f = sum (w' - w) log(w' / w): no term is negative.
    logarithms = [-tau * v for v in f]
    assert all(sp.simplify(m * sp.exp(ell) - new) == 0 for m, ell, new in zip(W, logarithms, after, strict=True))
    fall = tau * sum((m - new) * v for m, new, v in zip(W, after, f, strict=True))
    assert sp.expand(fall - sum((new - m) * ell for m, new, ell in zip(W, after, logarithms, strict=True))) == 0
    explicit = W[0] * (1 - tau * f[0])
    assert explicit.subs({tau: 2, f[0]: 1}).is_negative  # Euler's step of the weights


def growing_mass(wanted, start, rate, time):
    """Mass of one atom that stays, for F = (w - a)^2/2 + lambda w, with ``wanted`` = a - lambda: a logistic curve."""
    return wanted * start / (start + (wanted - start) * sp.exp(-rate * wanted * time))


def test_one_atom_grows_along_a_logistic_curve():
    a, penalty, w0, r, w = sp.symbols("a lambda w0 r w", positive=True)
    variation = sp.diff((w - a) ** 2 / 2 + penalty * w, w)
    curve = growing_mass(a - penalty, w0, r, t)
    assert sp.simplify(curve.diff(t) + r * curve * variation.subs(w, curve)) == 0
    assert sp.simplify(curve.subs(t, 0) - w0) == 0
    # The penalty on the mass takes lambda from the amplitude.
    assert sp.solve(variation, w) == [a - penalty]
    wrong = growing_mass(a, w0, r, t)
    assert sp.simplify(wrong.diff(t) + r * wrong * variation.subs(w, wrong)) != 0
