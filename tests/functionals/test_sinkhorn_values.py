"""The Sinkhorn divergence against closed forms for Gaussians, a maximised dual, and peers run to convergence."""

import math

import geomloss
import numpy as np
import ot
import pytest
import scipy.optimize
import torch

from ddeq import DiscreteMeasure
from ddeq.functionals import SinkhornDivergence
from ddeq.testing import assert_close

DOUBLE = torch.float64


def cloud(n, dim=2, seed=0, mass=1.0):
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(n, dim, generator=g, dtype=DOUBLE)
    weights = torch.rand(n, generator=g, dtype=DOUBLE) + 0.2
    return DiscreteMeasure(points, mass * weights / weights.sum())


# --- Gaussians, as Gauss-Hermite quadratures ---


def gaussian(mean, covariance, nodes, mass=1.0):
    """The quadrature of a Gaussian: integrals of what is smooth at the distance of its nodes are exact to rounding."""
    x, w = (torch.as_tensor(a, dtype=DOUBLE) for a in np.polynomial.hermite_e.hermegauss(nodes))
    mean, covariance = torch.tensor(mean, dtype=DOUBLE), torch.tensor(covariance, dtype=DOUBLE)
    dim = len(mean)
    points = torch.cartesian_prod(*[x] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[w / w.sum()] * dim).reshape(-1, dim).prod(-1)
    return DiscreteMeasure(points @ torch.linalg.cholesky(covariance).mT + mean, mass * weights)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


def entropic_cost(a, cov_a, b, cov_b, eps):
    """Entropic transport between two Gaussians for half of the squared distance, and the covariance of the coupling.

    Janati, Muzellec, Peyre, Cuturi (2020), theorem 1, whose cost is twice this one.
    """
    eye = np.eye(len(a))
    half = root(cov_a)
    d = root(4 * half @ cov_b @ half + eps**2 * eye)
    means = np.sum((np.array(a) - np.array(b)) ** 2)
    value = means + np.trace(cov_a + cov_b - d) + len(a) * eps * (1 - math.log(2 * eps))
    value = 0.5 * (value + eps * np.linalg.slogdet(d + eps * eye)[1])
    coupling = 0.5 * half @ d @ np.linalg.inv(half) - 0.5 * eps * eye
    return value, coupling


GAUSSIANS = {
    "line": (([0.0], [[1.0]]), ([0.7], [[0.5]])),
    "line, narrow": (([0.0], [[0.4]]), ([-1.0], [[1.5]])),
    "plane": (([0.0, 0.3], [[1.0, 0.3], [0.3, 0.6]]), ([0.5, -0.2], [[0.5, -0.2], [-0.2, 0.9]])),
}


@pytest.mark.theorem("T3")
@pytest.mark.parametrize("pair", GAUSSIANS.values(), ids=GAUSSIANS.keys())
@pytest.mark.parametrize("blur", [0.8, 1.5])
def test_gaussians(pair, blur):
    """Value, gradient and map: the conditional mean of the optimal coupling, which is Gaussian."""
    (a, cov_a), (b, cov_b) = pair
    nodes = 60 if len(a) == 1 else 24
    mu, nu, eps = gaussian(a, cov_a, nodes), gaussian(b, cov_b, nodes), blur**2
    between, coupling = entropic_cost(a, np.array(cov_a), b, np.array(cov_b), eps)
    of_mu, within = entropic_cost(a, np.array(cov_a), a, np.array(cov_a), eps)
    of_nu, _ = entropic_cost(b, np.array(cov_b), b, np.array(cov_b), eps)
    F, x = SinkhornDivergence(nu, blur), torch.randn(5, len(a), dtype=DOUBLE)
    assert F(mu).item() == pytest.approx(between - 0.5 * (of_mu + of_nu), rel=1e-7)

    def image(mean, cross):
        slope = torch.as_tensor(np.linalg.solve(np.array(cov_a), cross), dtype=DOUBLE)
        return torch.tensor(mean, dtype=DOUBLE) + (x - torch.tensor(a, dtype=DOUBLE)) @ slope

    assert_close(F.transport_map(mu, x), image(b, coupling), rtol=1e-6)
    assert_close(F.wasserstein_gradient(mu, x), image(a, within) - image(b, coupling), rtol=1e-6)


class Quadratic:
    """``exp(const + linear x - square x^2 / 2)``, which entropic transport between Gaussians on the line keeps."""

    def __init__(self, const=0.0, linear=0.0, square=0.0):
        self.parts = np.array([const, linear, square])

    def integral(self, mass, mean, var):
        """Against ``mass`` times a Gaussian."""
        const, linear, square = self.parts
        p = square + 1 / var
        return mass * math.exp(const + (linear + mean / var) ** 2 / (2 * p) - mean**2 / (2 * var)) / math.sqrt(var * p)

    def transformed(self, tau, eps, mass, mean, var):
        """Of ``e^(g/eps)`` that of ``e^(f/eps)`` for the transform f of g."""
        const, linear, square = self.parts
        p = square + 1 / eps + 1 / var
        rest = math.log(mass) + const - 0.5 * math.log(var * p) - mean**2 / (2 * var)
        shift = linear + mean / var
        parts = rest + shift**2 / (2 * p), shift / (p * eps), 1 / eps - 1 / (p * eps**2)
        return Quadratic(*(-tau * np.array(parts)))

    def power(self, exponent):
        return Quadratic(*(exponent * self.parts))


def mass_of_plan(alpha, beta, eps, rho):
    """Mass of the optimal plan between multiples of Gaussians on the line, and ``f / eps``: a fixed point of three numbers."""
    tau, g = rho / (rho + eps), Quadratic()
    for _ in range(2000):
        f = g.transformed(tau, eps, *beta)
        g = f.transformed(tau, eps, *alpha)
    return f.power(-eps / rho).integral(*alpha), f


@pytest.mark.theorem("T3")
@pytest.mark.parametrize(("blur", "reach"), [(0.8, 1.0), (1.2, 3.0)])
@pytest.mark.parametrize("masses", [(1.0, 1.0), (2.0, 0.3), (0.01, 5.0)])
def test_gaussians_with_a_reach(blur, reach, masses):
    """The optimal value is rho (m_mu + m_nu) + eps m_mu m_nu - (2 rho + eps) m_pi (Janati et al. 2020, theorem 3)."""
    eps, rho, (a, b) = blur**2, reach**2, masses
    alpha, beta = (a, 0.0, 0.8), (b, 0.7, 0.5)

    def cost(one, other):
        return rho * (one[0] + other[0]) + eps * one[0] * other[0] - (2 * rho + eps) * mass_of_plan(one, other, eps, rho)[0]

    expected = cost(alpha, beta) - 0.5 * cost(alpha, alpha) - 0.5 * cost(beta, beta) + 0.5 * eps * (a - b) ** 2
    mu, nu = (gaussian([mean], [[var]], 60, mass) for mass, mean, var in (alpha, beta))
    F = SinkhornDivergence(nu, blur, reach)
    assert F(mu).item() == pytest.approx(expected, rel=1e-7, abs=1e-10)
    mass, between = mass_of_plan(alpha, beta, eps, rho)
    assert F.plan(mu).sum().item() == pytest.approx(mass, rel=1e-8)
    const, linear, square = eps * between.parts
    x = mu.points.squeeze(-1)
    middle = x.abs() < 2
    assert_close(F.potentials(mu)[0][middle], (const + linear * x - 0.5 * square * x**2)[middle], rtol=1e-6)


# --- the dual, maximised by a general method ---


def maximal_dual(mu, nu, eps, rho):
    """The dual value of entropic transport in both potentials; marginals are held exactly if rho is infinite."""
    w, v = mu.weights.numpy(), nu.weights.numpy()
    cost = 0.5 * torch.cdist(mu.points, nu.points).square().numpy()
    n = len(w)

    def terms(z):
        f, g = z[:n], z[n:]
        plan = w[:, None] * v * np.exp((f[:, None] + g - cost) / eps)
        if math.isinf(rho):
            value, slopes, curvature = w @ f + v @ g, (w, v), np.zeros_like(z)
        else:
            value = rho * (w @ (1 - np.exp(-f / rho)) + v @ (1 - np.exp(-g / rho)))
            slopes = w * np.exp(-f / rho), v * np.exp(-g / rho)
            curvature = np.concatenate(slopes) / rho
        gradient = np.concatenate([slopes[0] - plan.sum(1), slopes[1] - plan.sum(0)])
        blocks = np.block([[np.diag(plan.sum(1)), plan], [plan.T, np.diag(plan.sum(0))]])
        return eps * (plan.sum() - w.sum() * v.sum()) - value, -gradient, blocks / eps + np.diag(curvature)

    found = scipy.optimize.minimize(
        lambda z: terms(z)[0],
        np.zeros(n + len(v)),
        jac=lambda z: terms(z)[1],
        hess=lambda z: terms(z)[2],
        method="trust-exact",
        options={"gtol": 1e-11, "maxiter": 5000},
    )
    assert np.abs(found.jac).max() < 1e-8
    return -found.fun


@pytest.mark.theorem("T3")
@pytest.mark.parametrize(
    ("blur", "reach", "a", "b"),
    [(0.5, 1.0, 1.0, 1.0), (0.5, 1.0, 2.0, 0.3), (0.7, 3.0, 0.2, 4.0), (1.0, 0.5, 1.0, 3.0), (0.5, None, 1.0, 1.0)],
)
def test_against_the_dual_maximised_by_a_general_method(blur, reach, a, b):
    mu, nu = cloud(4, mass=a), cloud(5, seed=1, mass=b)
    eps, rho = blur**2, math.inf if reach is None else reach**2
    between, of_mu, of_nu = (maximal_dual(*pair, eps, rho) for pair in ((mu, nu), (mu, mu), (nu, nu)))
    expected = between - 0.5 * (of_mu + of_nu) + 0.5 * eps * (a - b) ** 2
    assert SinkhornDivergence(nu, blur, reach)(mu).item() == pytest.approx(expected, rel=1e-8)


# --- peers ---


@pytest.mark.parametrize("reach", [None, 0.8])
@pytest.mark.parametrize("blur", [0.3, 1.0])
def test_plans_and_potentials_of_pot(blur, reach):
    """Its iteration in the log domain; its potentials are those of the plan's density in the counting measure."""
    mu, nu, eps = cloud(9), cloud(7, seed=1, mass=1.0 if reach is None else 1.7), blur**2
    w, v, cost = mu.weights, nu.weights, 0.5 * torch.cdist(mu.points, nu.points).square()
    options = {"numItermax": 100_000, "stopThr": 1e-15, "log": True}
    arrays = w.numpy(), v.numpy(), cost.numpy()
    if reach is None:
        plan, log = ot.sinkhorn(*arrays, eps, method="sinkhorn_log", **options)
        logarithms = log["log_u"], log["log_v"]
    else:
        plan, log = ot.unbalanced.sinkhorn_unbalanced(*arrays, eps, reach**2, method="sinkhorn", reg_type="kl", **options)
        logarithms = log["logu"] + np.log(arrays[0]), log["logv"] + np.log(arrays[1])
    F = SinkhornDivergence(nu, blur, reach)
    assert_close(F.plan(mu), torch.as_tensor(plan), rtol=1e-7)
    f, g = F.potentials(mu)
    for ours, theirs, weights in ((f, logarithms[0], w), (g, logarithms[1], v)):
        theirs = eps * (torch.as_tensor(theirs) - weights.log())
        if reach is None:
            ours, theirs = ours - ours[0], theirs - theirs[0]
        assert_close(ours, theirs, rtol=1e-6)


def test_potentials_of_geomloss():
    """Those that it returns have the potentials of the measures themselves taken off: the first variation."""
    mu, nu, blur = cloud(9), cloud(7, seed=1), 0.5
    peer = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.999, potentials=True, backend="tensorized")
    theirs, _ = peer(mu.weights, mu.points, nu.weights, nu.points)
    theirs, ours = theirs.reshape(-1), SinkhornDivergence(nu, blur).first_variation(mu)
    assert_close(ours - ours[0], theirs - theirs[0], rtol=2e-3)
