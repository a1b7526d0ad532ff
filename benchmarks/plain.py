"""Published methods as plain PyTorch scripts, as their authors would write them: loops on tensors, without a library.

Each function takes the points (and what the method needs besides), does all of its steps, and returns the points. What does not
change is computed once, and inner problems start from the last solution, as a careful author would do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances as scripts have them: from differences in few dimensions, by matrix products in many."""
    if x.shape[-1] <= 4:
        return (x[:, None] - y[None]).square().sum(-1)
    return (x.square().sum(-1)[:, None] + y.square().sum(-1)[None] - 2.0 * x @ y.T).clamp_min(0.0)


def gaussian_gradient(x: Tensor, y: Tensor, h: float) -> Tensor:
    """Mean over ``y`` of the gradient of a Gaussian kernel in ``x``."""
    k = torch.exp(-squares(x, y) / (2.0 * h * h))
    return (k @ y - x * k.sum(-1, keepdim=True)) / (h * h * len(y))


def mmd_flow(x: Tensor, y: Tensor, h: float, tau: float, steps: int) -> Tensor:
    """Arbel et al. (2019), without noise."""
    for _ in range(steps):
        x = x - tau * (gaussian_gradient(x, x, h) - gaussian_gradient(x, y, h))
    return x


def noisy_mmd_flow(x: Tensor, y: Tensor, h: float, tau: float, steps: int, generator: torch.Generator) -> Tensor:
    """Arbel et al. (2019), with noise injection."""
    for _ in range(steps):
        z = x + torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x - tau * (gaussian_gradient(z, x, h) - gaussian_gradient(z, y, h))
    return x


def energy_distance_flow(x: Tensor, y: Tensor, tau: float, steps: int) -> Tensor:
    """Altekrüger et al. (2023) and Hertrich et al. (2024): MMD with the kernel -|x - y|."""

    def pull(x: Tensor, z: Tensor) -> Tensor:
        d = x[:, None] - z[None]
        r = d.norm(dim=-1, keepdim=True)
        return -(d / r.clamp_min(1e-12)).mean(1)

    for _ in range(steps):
        x = x - tau * (pull(x, x) - pull(x, y))
    return x


def drmmd_flow(x: Tensor, y: Tensor, h: float, regularization: float, tau: float, steps: int) -> Tensor:
    """Chen et al. (2024): the witness by a linear system with the Gram matrix of the target, factorised once."""
    m = len(y)
    kyy = torch.exp(-squares(y, y) / (2.0 * h * h))
    factor = torch.linalg.cholesky(kyy + m * regularization * torch.eye(m, dtype=x.dtype))
    for _ in range(steps):
        kxy = torch.exp(-squares(y, x) / (2.0 * h * h))
        c = torch.cholesky_solve((kxy.mean(1) - kyy.mean(1)).unsqueeze(-1), factor).squeeze(-1)
        k = torch.exp(-squares(x, y) / (2.0 * h * h)) * c
        of_c = (k @ y - x * k.sum(-1, keepdim=True)) / (h * h)
        gradient = gaussian_gradient(x, x, h) - gaussian_gradient(x, y, h) - of_c
        x = x - tau * 2.0 * (1.0 + regularization) / regularization * gradient
    return x


def kale_flow(x: Tensor, y: Tensor, h: float, regularization: float, tau: float, steps: int) -> Tensor:
    """Glaser et al. (2021): the witness by Newton's method in the dual, from the last solution."""
    m = len(y)
    kyy = torch.exp(-squares(y, y) / (2.0 * h * h))
    a = torch.zeros(m, dtype=x.dtype)
    for _ in range(steps):
        kyx = torch.exp(-squares(y, x) / (2.0 * h * h)).mean(1)
        for _ in range(50):
            g = (kyx - kyy @ a) / regularization
            density = g.exp() / m
            residual = a - density
            if residual.abs().max() < 1e-10:
                break
            a = a - torch.linalg.solve(torch.eye(m, dtype=x.dtype) + density[:, None] * kyy / regularization, residual)
        k = torch.exp(-squares(x, y) / (2.0 * h * h)) * a
        of_a = (k @ y - x * k.sum(-1, keepdim=True)) / (h * h)
        x = x - tau * (1.0 + regularization) / regularization * (gaussian_gradient(x, x, h) - of_a)
    return x


def svgd(x: Tensor, score: object, tau: float, steps: int, *, autograd: bool = False) -> Tensor:
    """Liu and Wang (2016), with the median of the distances as bandwidth; ``autograd``: ``score`` is a log density."""
    for _ in range(steps):
        if autograd:
            z = x.detach().requires_grad_()
            with torch.enable_grad():
                (s,) = torch.autograd.grad(score(z).sum(), z)  # type: ignore[operator]
        else:
            s = score(x)  # type: ignore[operator]
        h2 = torch.pdist(x).median().square()
        k = torch.exp(-squares(x, x) / (2.0 * h2))
        x = x + tau * (k @ s + (x * k.sum(-1, keepdim=True) - k @ x) / h2) / len(x)
    return x


def ksd_descent(x: Tensor, score: object, h: float, tau: float, steps: int) -> Tensor:
    """Korba et al. (2021): gradient descent of the squared kernel Stein discrepancy, by autograd."""
    n, d = x.shape
    for _ in range(steps):
        z = x.detach().requires_grad_()
        with torch.enable_grad():
            s = score(z)  # type: ignore[operator]
            d2 = squares(z, z)
            k = torch.exp(-d2 / (2.0 * h * h))
            cross = ((s[:, None] - s[None]) * (z[:, None] - z[None])).sum(-1)
            stein = k * (s @ s.T + cross / (h * h) + d / (h * h) - d2 / h**4)
            (g,) = torch.autograd.grad(0.5 * stein.sum() / n**2, z)
        x = x - tau * n * g
    return x


def sliced_wasserstein_flow(x: Tensor, y: Tensor, directions: Tensor, tau: float, steps: int) -> Tensor:
    """Bonneel et al. (2015): half the squared sliced distance, between as many points."""
    target = (y @ directions.T).sort(0).values
    for _ in range(steps):
        p = x @ directions.T
        order = p.argsort(0)
        moves = torch.empty_like(p).scatter_(0, order, p.gather(0, order) - target)
        x = x - tau * moves @ directions / len(directions)
    return x


def sliced_mmd_flow(x: Tensor, y: Tensor, directions: Tensor, tau: float, steps: int) -> Tensor:
    """Hertrich et al. (2024): energy distances of projections by one sort of all points."""
    n, m = len(x), len(y)
    of_y = y @ directions.T
    mass = torch.cat([torch.full((n,), 1.0 / n, dtype=x.dtype), torch.full((m,), -1.0 / m, dtype=x.dtype)])
    for _ in range(steps):
        order = torch.cat([x @ directions.T, of_y]).argsort(0)
        sorted_mass = mass[order]
        below = sorted_mass.cumsum(0) - 0.5 * sorted_mass  # an atom is on neither side of itself
        slopes = torch.empty_like(below).scatter_(0, order, -2.0 * below)[:n]
        x = x - tau * slopes @ directions / len(directions)
    return x


def sinkhorn_flow(x: Tensor, y: Tensor, eps: float, tau: float, steps: int, rtol: float) -> Tensor:
    """Feydy et al. (2019): the Sinkhorn divergence, by iterations in the logarithm from the last potentials."""
    log_n, log_m = -math.log(len(x)), -math.log(len(y))
    f, g = torch.zeros(len(x), dtype=x.dtype), torch.zeros(len(y), dtype=x.dtype)
    own = torch.zeros_like(f)
    for _ in range(steps):
        cost, cost_xx = squares(x, y) / 2.0, squares(x, x) / 2.0
        for _ in range(1000):
            g = -eps * torch.logsumexp((f[:, None] - cost) / eps + log_n, 0)
            before, f = f, -eps * torch.logsumexp((g[None] - cost) / eps + log_m, 1)
            if (f - before).abs().max() <= rtol * cost.max():
                break
        for _ in range(1000):
            before, own = own, 0.5 * (own - eps * torch.logsumexp((own[None] - cost_xx) / eps + log_n, 1))
            if (own - before).abs().max() <= rtol * cost.max():
                break
        plan = torch.softmax((g[None] - cost) / eps, 1)
        plan_xx = torch.softmax((own[None] - cost_xx) / eps, 1)
        x = x - tau * ((x - plan @ y) - (x - plan_xx @ x))
    return x


def fisher_rao_flow(x: Tensor, w: Tensor, y: Tensor, h: float, tau: float, steps: int) -> tuple[Tensor, Tensor]:
    """Rotskoff et al. (2019) and Gladin et al. (2024): an MMD flow whose masses react, too."""
    for _ in range(steps):
        d_xx, d_xy = x[:, None] - x[None], x[:, None] - y[None]
        k_xx = torch.exp(-d_xx.square().sum(-1) / (2.0 * h * h))
        k_xy = torch.exp(-d_xy.square().sum(-1) / (2.0 * h * h))
        gradient = -((k_xx * w)[..., None] * d_xx).sum(1) / (h * h) + (k_xy[..., None] * d_xy).mean(1) / (h * h)
        x = x - tau * gradient
        k_xx = torch.exp(-(x[:, None] - x[None]).square().sum(-1) / (2.0 * h * h))
        k_xy = torch.exp(-(x[:, None] - y[None]).square().sum(-1) / (2.0 * h * h))
        variation = k_xx @ w - k_xy.mean(1)
        w = w * torch.exp(-tau * (variation - w @ variation))
        w = w / w.sum()
    return x, w


def mean_field_network(x: Tensor, data: Tensor, labels: Tensor, tau: float, steps: int) -> Tensor:
    """Mei et al. (2018), Chizat and Bach (2018): a two-layer network as a measure of neurons (weight, bias, output)."""
    d, n = data.shape[1], len(x)
    for _ in range(steps):
        a, b, c = x[:, :d], x[:, d], x[:, d + 1]
        hidden = torch.tanh(data @ a.T + b)
        error = (hidden @ c / n - labels) / len(data)
        back = (1.0 - hidden.square()) * error[:, None] * c
        x = x - tau * torch.cat([back.T @ data, back.sum(0)[:, None], (hidden.T @ error)[:, None]], 1)
    return x


def jko_flow(x: Tensor, y: Tensor, h: float, tau: float, steps: int) -> Tensor:
    """Jordan, Kinderlehrer and Otto (1998) on particles: each step by gradient descent of F + |x - x_0|^2 / (2 tau)."""
    for _ in range(steps):
        start, size = x, 0.5 * tau
        for _ in range(200):
            gradient = gaussian_gradient(x, x, h) - gaussian_gradient(x, y, h) + (x - start) / tau
            x = x - size * gradient
            if gradient.square().mean() <= 1e-10 * max(1.0, (x - start).square().mean().item() / tau**2):
                break
    return x


def w2_barycentre(x: Tensor, clouds: list[Tensor], steps: int) -> Tensor:
    """Cuturi and Doucet (2014): free support, each step to the mean of the images under optimal plans (POT)."""
    import ot

    n = len(x)
    a = torch.full((n,), 1.0 / n, dtype=torch.float64).numpy()
    for _ in range(steps):
        total = torch.zeros_like(x)
        for y in clouds:
            b = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64).numpy()
            plan = torch.from_numpy(ot.emd(a, b, squares(x, y).double().numpy())).to(x)
            total += n * plan @ y
        x = total / len(clouds)
    return x


def k_means(x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Lloyd (1982), which descends the distance of Wasserstein from ``y`` to measures on the centres."""
    for _ in range(steps):
        nearest = squares(y, x).argmin(1)
        sums = torch.zeros_like(x).index_add_(0, nearest, y)
        counts = torch.bincount(nearest, minlength=len(x)).to(x)
        x = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1.0)[:, None], x)
    return x


def deep_equilibrium(x: Tensor, inputs: Tensor, weight: Tensor, memory: int, rtol: float, most: int) -> Tensor:
    """Bai et al. (2019) on sets: attention of points to inputs, by Anderson's method as in the tutorial of the authors."""
    n, d = x.shape
    size = memory
    xs, fs = torch.zeros(size, n * d, dtype=x.dtype), torch.zeros(size, n * d, dtype=x.dtype)

    def cell(z: Tensor) -> Tensor:
        z = z.reshape(n, d)
        attended = torch.softmax(z @ inputs.T / math.sqrt(d), -1) @ inputs
        return torch.tanh(0.5 * z @ weight + attended).reshape(-1)

    xs[0], fs[0] = x.reshape(-1), cell(x)
    xs[1], fs[1] = fs[0], cell(fs[0])
    h = torch.zeros(size + 1, size + 1, dtype=x.dtype)
    h[0, 1:] = h[1:, 0] = 1.0
    right = torch.zeros(size + 1, 1, dtype=x.dtype)
    right[0] = 1.0
    for k in range(2, most):
        used = min(k, size)
        g = fs[:used] - xs[:used]
        h[1 : used + 1, 1 : used + 1] = g @ g.T + 1e-10 * torch.eye(used, dtype=x.dtype)
        alpha = torch.linalg.solve(h[: used + 1, : used + 1], right[: used + 1])[1 : used + 1, 0]
        xs[k % size] = alpha @ fs[:used]
        fs[k % size] = cell(xs[k % size])
        if (fs[k % size] - xs[k % size]).norm() <= rtol * fs[k % size].norm():
            break
    return fs[k % size].reshape(n, d)
