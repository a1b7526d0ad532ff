"""T14 Flows with known solutions: Ornstein-Uhlenbeck (OU), heat, the unadjusted Langevin algorithm (ULA), and their steps.

OU (potential l|x|^2/2 plus entropy): mean e^{-lt} m0, variance e^{-2lt} v0 + (1 - e^{-2lt})/l in each coordinate;
heat flow: variance v0 + 2t; stationary variance of ULA with step h: 2/(l (2 - l h)) for h < 2/l. Euler's steps are of
order one, Heun's of order two, transport and then reaction of order one.

Verified: that Gaussians with these moments solve the Fokker-Planck equation, in dimension 1 and 2; that the moments
solve their ordinary differential equations; the fixed point of the variance recursion, its stability for h < 2/l, and
its limit; the recursion after any number of steps; the variance of the mean and of the variance of n atoms, for n = 2 to 4
and any start; local errors of Euler's and Heun's steps for an undetermined velocity on the line and in the plane, and global
ones for an exponential decay; a weight of an atom that moves and reacts, in closed form, after transport and reaction
in turn.
Assumed: the Wasserstein gradient flow of potential plus entropy is the Fokker-Planck equation (Jordan, Kinderlehrer,
Otto); that local errors of order p + 1 add up to a global one of order p where the velocity is Lipschitz (Gronwall).
"""

import pytest
import sympy as sp

pytestmark = pytest.mark.theorem("T14")

t, start_variance, stiffness, step = sp.symbols("t v0 l h", positive=True)
start_mean = sp.Symbol("m0", real=True)


def ou_mean(t, start_mean, stiffness):
    return sp.exp(-stiffness * t) * start_mean


def ou_variance(t, start_variance, stiffness):
    decay = sp.exp(-2 * stiffness * t)
    return decay * start_variance + (1 - decay) / stiffness


def heat_variance(t, start_variance):
    return start_variance + 2 * t


def ula_stationary_variance(stiffness, step_size):
    return 2 / (stiffness * (2 - stiffness * step_size))


def gaussian_density(x, mean, variance):
    return sp.exp(-((x - mean) ** 2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)


def fokker_planck_gap(means, variance, stiffness, points):
    """(d/dt - div(x l .) - Laplacian) of a Gaussian density, divided by it."""
    density = sp.prod([gaussian_density(x, m, variance) for x, m in zip(points, means, strict=True)])
    drift = sum(sp.diff(stiffness * x * density, x) for x in points)
    diffusion = sum(sp.diff(density, x, 2) for x in points)
    return sp.simplify((sp.diff(density, t) - drift - diffusion) / density)


@pytest.mark.parametrize("dim", [1, 2])
def test_ornstein_uhlenbeck_solves_its_equation(dim):
    points = sp.symbols(f"x1:{dim + 1}", real=True)
    means = [ou_mean(t, m, stiffness) for m in sp.symbols(f"m1:{dim + 1}", real=True)]
    assert fokker_planck_gap(means, ou_variance(t, start_variance, stiffness), stiffness, points) == 0


@pytest.mark.parametrize("dim", [1, 2])
def test_heat_flow_solves_its_equation(dim):
    points = sp.symbols(f"x1:{dim + 1}", real=True)
    means = sp.symbols(f"m1:{dim + 1}", real=True)
    assert fokker_planck_gap(means, heat_variance(t, start_variance), 0, points) == 0
    assert fokker_planck_gap(means, start_variance + t, 0, points) != 0


def test_wrong_rates_are_rejected():
    """Once the decay of the variance as for the mean; once noise sqrt(dt) instead of sqrt(2 dt)."""
    x = sp.Symbol("x", real=True)
    mean = ou_mean(t, start_mean, stiffness)
    decay = sp.exp(-stiffness * t)
    half_noise = ou_variance(t, start_variance, stiffness) - (1 - decay**2) / (2 * stiffness)
    for variance in (decay * start_variance + (1 - decay) / stiffness, half_noise):
        assert fokker_planck_gap([mean], variance, stiffness, [x]) != 0


def test_moments_are_the_solutions_of_their_equations():
    """dm/dt = -l m and dv/dt = -2 l v + 2, solved by SymPy."""
    m, v = sp.Function("m"), sp.Function("v")
    mean = sp.dsolve(m(t).diff(t) + stiffness * m(t), m(t), ics={m(0): start_mean}).rhs
    variance = sp.dsolve(v(t).diff(t) + 2 * stiffness * v(t) - 2, v(t), ics={v(0): start_variance}).rhs
    assert sp.simplify(mean - ou_mean(t, start_mean, stiffness)) == 0
    assert sp.simplify(variance - ou_variance(t, start_variance, stiffness)) == 0
    assert sp.limit(ou_variance(t, start_variance, stiffness), stiffness, 0) == heat_variance(t, start_variance)


def test_stationary_variance_of_ula():
    """x+ = x - h l x + sqrt(2 h) xi multiplies the variance by (1 - h l)^2 and adds 2 h."""
    variance = sp.Symbol("v")
    stationary = sp.solve((1 - step * stiffness) ** 2 * variance + 2 * step - variance, variance)[0]
    assert sp.simplify(stationary - ula_stationary_variance(stiffness, step)) == 0
    half_noise = sp.solve((1 - step * stiffness) ** 2 * variance + step - variance, variance)[0]
    assert sp.simplify(half_noise - ula_stationary_variance(stiffness, step)) != 0
    assert sp.limit(ula_stationary_variance(stiffness, step), step, 0) == 1 / stiffness


def test_ula_is_stable_below_two_over_the_stiffness_only():
    factor = (1 - step * stiffness) ** 2
    assert sp.factor(1 - factor) == sp.factor(step * stiffness * (2 - step * stiffness))
    assert sp.solve(sp.Eq(factor, 1), step) == [2 / stiffness]
    assert (factor.subs(step, 1 / stiffness), factor.subs(step, 3 / stiffness)) == (0, 4)


# Langevin steps with n atoms


def drift_factor(stepper, stiffness, step_size):
    """By what a step of length h multiplies points in the potential l|x|^2/2."""
    z = stiffness * step_size
    return {"Euler": 1 - z, "Heun": 1 - z + z**2 / 2, "Proximal": 1 / (1 + z), "exact": sp.exp(-z)}[stepper]


def noisy_variance(steps, start_variance, decay, noise):
    """After so many steps that multiply the variance by `decay` and add `noise`."""
    return decay**steps * start_variance + noise * (1 - decay**steps) / (1 - decay)


def langevin_variance(steps, start_variance, stiffness, step_size, stepper="Euler"):
    """Variance after so many steps in the potential l|x|^2/2, each followed by noise sqrt(2 h) xi."""
    return noisy_variance(steps, start_variance, drift_factor(stepper, stiffness, step_size) ** 2, 2 * step_size)


def langevin_mean(steps, start_mean, stiffness, step_size, stepper="Euler"):
    return drift_factor(stepper, stiffness, step_size) ** steps * start_mean


def empirical_mean_deviation(noise_variance, n):
    """Standard deviation of the mean of n atoms, each displaced by a normal variable of this variance."""
    return sp.sqrt(sp.sympify(noise_variance) / n)


def empirical_variance_mean(noise_variance, n, start_variance=0):
    """Mean of the variance (mean square minus squared mean) of n atoms, of this variance before they were displaced."""
    return start_variance + noise_variance * (n - 1) / sp.sympify(n)


def empirical_variance_deviation(noise_variance, n, start_variance=0):
    """Standard deviation of that variance."""
    return sp.sqrt(2 * noise_variance**2 * (n - 1) / sp.sympify(n) ** 2 + 4 * noise_variance * start_variance / sp.sympify(n))


def test_variance_after_any_number_of_langevin_steps():
    k, v = sp.Symbol("k", integer=True, nonnegative=True), sp.Symbol("v")
    decay, noise = sp.symbols("q b", positive=True)
    after = noisy_variance(k, start_variance, decay, noise)
    assert sp.simplify(after.subs(k, k + 1) - decay * after - noise) == 0
    assert after.subs(k, 0) == start_variance
    stationary = sp.solve(decay * v + noise - v, v)[0]
    assert sp.simplify(after.subs(start_variance, stationary) - stationary) == 0


def test_bias_of_langevin_steps_to_first_order():
    """Relative to 1/l: l h/2 for Euler's, l h for an exact drift and for Heun's, 3 l h/2 for proximal ones."""
    decay = {name: drift_factor(name, stiffness, step) ** 2 for name in ("Euler", "Heun", "exact", "Proximal")}
    bias = {name: sp.series(2 * step / (1 - q) * stiffness, step, 0, 2).removeO() - 1 for name, q in decay.items()}
    shares = {name: sp.expand(b / (stiffness * step)) for name, b in bias.items()}
    assert shares == {"Euler": sp.Rational(1, 2), "Heun": 1, "exact": 1, "Proximal": sp.Rational(3, 2)}
    euler = 2 * step / (1 - decay["Euler"])
    assert sp.simplify(euler - ula_stationary_variance(stiffness, step)) == 0


def normal_mean(polynomial, variables, variance):
    """E of a polynomial in independent normal variables of mean zero."""
    total = sp.S.Zero
    for powers, coefficient in sp.Poly(sp.expand(polynomial), *variables).terms():
        if all(k % 2 == 0 for k in powers):
            total += coefficient * sp.prod([sp.factorial2(k - 1) * variance ** (k // 2) for k in powers])
    return sp.expand(total)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_moments_of_n_atoms(n):
    """Atoms a_i (their mean is 0 and their variance v0) displaced by independent normal variables of variance v."""
    v = sp.Symbol("v", positive=True)
    xi, free = sp.symbols(f"xi1:{n + 1}"), sp.symbols(f"a1:{n}")
    a = (*free, -sum(free))
    start = sum(s**2 for s in a) / n
    points = [s + e for s, e in zip(a, xi, strict=True)]
    mean = sum(points) / n
    variance = sum(p**2 for p in points) / n - mean**2
    assert sp.expand(normal_mean(mean**2, xi, v) - empirical_mean_deviation(v, n) ** 2) == 0
    assert sp.expand(normal_mean(variance, xi, v) - empirical_variance_mean(v, n, start)) == 0
    spread = normal_mean(variance**2, xi, v) - normal_mean(variance, xi, v) ** 2
    assert sp.expand(spread - empirical_variance_deviation(v, n, start) ** 2) == 0
    assert sp.expand(spread - (2 * v**2 / n + 4 * v * start / n)) != 0  # n instead of n - 1


# Orders


def euler_step(velocity, x, tau):
    return [s + tau * v for s, v in zip(x, velocity(*x), strict=True)]


def heun_step(velocity, x, tau, weight=sp.S.Half):
    first = velocity(*x)
    second = velocity(*euler_step(velocity, x, tau))
    return [s + tau * ((1 - weight) * a + weight * b) for s, a, b in zip(x, first, second, strict=True)]


def local_error(method, dim, order):
    """Coefficients of tau^0, ..., tau^order of a step minus the flow of dx/dt = v(x), v undetermined."""
    x, tau = sp.symbols(f"x1:{dim + 1}"), sp.Symbol("tau")

    def velocity(*at):
        return [sp.Function(f"v{i}")(*at) for i in range(dim)]

    def along(f):  # d/dt of a function of x on the flow
        return sum(v * f.diff(s) for v, s in zip(velocity(*x), x, strict=True))

    stepped = method(velocity, x, tau)
    errors = []
    derivative = list(x)
    for k in range(order + 1):
        taylor = [sp.diff(s, tau, k).subs(tau, 0).doit() / sp.factorial(k) for s in stepped]
        errors.append([sp.expand(t - d / sp.factorial(k)) for t, d in zip(taylor, derivative, strict=True)])
        derivative = [along(d) for d in derivative]
    return errors


@pytest.mark.parametrize("dim", [1, 2])
def test_local_errors_of_euler_and_heun(dim):
    zero = [0] * dim
    x = sp.symbols(f"x1:{dim + 1}")
    v = [sp.Function(f"v{i}")(*x) for i in range(dim)]
    euler, heun = local_error(euler_step, dim, 2), local_error(heun_step, dim, 3)
    assert euler[:2] == [zero] * 2
    acceleration = [sum(b * a.diff(s) for b, s in zip(v, x, strict=True)) for a in v]
    assert all(sp.expand(e + a / 2) == 0 for e, a in zip(euler[2], acceleration, strict=True))
    assert heun[:3] == [zero] * 3
    assert heun[3] != zero
    other = local_error(lambda *step: heun_step(*step, weight=sp.Rational(1, 3)), dim, 2)
    assert other[:2] == [zero] * 2
    assert other[2] != zero


def test_local_error_of_heun_on_the_line():
    """v (v v'' - 2 v'^2) tau^3 / 12."""
    x = sp.Symbol("x1")
    v = sp.Function("v0")(x)
    wanted = v * (v * v.diff(x, 2) - 2 * v.diff(x) ** 2) / 12
    assert sp.expand(local_error(heun_step, 1, 3)[3][0] - wanted) == 0


def test_global_orders_on_an_exponential_decay():
    """dx/dt = -l x until T = k tau: relative errors -l^2 T tau/2 and l^3 T tau^2/6, from the logarithm of k factors."""
    tau, horizon = sp.symbols("tau T", positive=True)

    def relative_error(stepper, order):
        z = sp.Symbol("z")
        log_factor = sp.log(drift_factor(stepper, 1, z))
        exponent = sp.series(log_factor + z, z, 0, order + 2).removeO().subs(z, stiffness * tau) * horizon / tau
        return sp.series(sp.exp(sp.expand(exponent)) - 1, tau, 0, order + 1).removeO()

    assert sp.expand(relative_error("Euler", 1) + stiffness**2 * horizon * tau / 2) == 0
    assert sp.expand(relative_error("Heun", 2) - stiffness**3 * horizon * tau**2 / 6) == 0
    assert sp.expand(relative_error("Proximal", 1) - stiffness**2 * horizon * tau / 2) == 0


def reacting_log_ratio(t, place, stiffness):
    """log w_1/w_2 at time t of the Wasserstein-Fisher-Rao flow of int l|x|^2/2 dmu from equal weights at `place` and 0."""
    return -(place**2) * (1 - sp.exp(-2 * stiffness * t)) / 4


def split_log_ratio(steps, place, stiffness, step_size, stepper="Heun"):
    """The same after so many steps of transport and then a multiplicative reaction."""
    decay = drift_factor(stepper, stiffness, step_size) ** 2
    return -step_size * stiffness * place**2 / 2 * noisy_variance(steps, 0, decay, decay)


def test_a_weight_that_moves_and_reacts():
    """d/dt log w_1/w_2 = -(V(x_1) - V(x_2)), and the step adds -tau times that at the end of the transport."""
    k, place = sp.Symbol("k", integer=True, positive=True), sp.Symbol("a", positive=True)
    potential = stiffness * (sp.exp(-stiffness * t) * place) ** 2 / 2
    exact = reacting_log_ratio(t, place, stiffness)
    assert sp.simplify(exact.diff(t) + potential) == 0
    assert exact.subs(t, 0) == 0
    decay = sp.Symbol("q", positive=True)
    after = noisy_variance(k, 0, decay, decay)  # of q + q^2 + ... + q^k: the squared places at the ends of the transports
    assert sp.simplify(after - after.subs(k, k - 1) - decay**k) == 0


def test_transport_then_reaction_is_of_order_one():
    """Even if the transport is exact: tau/2 (V(x(0)) - V(x(T))) is missing. Half a reaction on both sides would mend it."""
    tau, horizon, place = sp.symbols("tau T a", positive=True)
    exact = reacting_log_ratio(horizon, place, stiffness)
    split = split_log_ratio(horizon / tau, place, stiffness, tau, "exact")
    error = sp.series(sp.simplify(split - exact), tau, 0, 3).removeO()
    missing = stiffness * place**2 / 2 * (1 - sp.exp(-2 * stiffness * horizon)) / 2
    assert sp.simplify(error.coeff(tau, 0)) == 0
    assert sp.simplify(error.coeff(tau, 1) - missing) == 0
    symmetric = split - tau * missing  # the trapezoidal rule instead of the one at the right end
    assert sp.simplify(sp.series(sp.simplify(symmetric - exact), tau, 0, 2).removeO()) == 0
    values = {stiffness: 1, place: 2, horizon: 1}
    heun = [split_log_ratio(n, 2, 1, sp.Rational(1, n)) - exact.subs(values) for n in (64, 128)]
    assert abs(sp.N(heun[0] / heun[1]) - 2) < 0.02  # and not 4
