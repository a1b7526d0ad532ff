"""What the tests of divergences that a kernel regularises share."""

import torch
from torch import nn

from ddeq import DiscreteMeasure
from ddeq.kernels import Gaussian
from ddeq.reductions import block_size
from ddeq.testing import assert_close

BATCHES = [(), (3,)]


def dirac(*x):
    return DiscreteMeasure(torch.tensor([x], dtype=torch.float64))


def measure(n, batch=(), seed=0):
    """A measure of mass one in the plane."""
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(*batch, n, 2, generator=g, dtype=torch.float64)
    weights = torch.rand(*batch, n, generator=g, dtype=torch.float64) + 0.2
    return DiscreteMeasure(points, weights).normalized()


def check_everything_that_enters(divergence):
    """First and second derivatives in both measures, the bandwidth and the regularisation; Hessian-vector products."""
    mu, nu = measure(2, seed=0), measure(3, seed=1)
    numbers = [torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.2)]
    tensors = [t.clone().requires_grad_() for t in (mu.points, mu.weights, nu.points, nu.weights, *numbers)]

    def functional(y, v, bandwidth, regularization):
        return divergence(DiscreteMeasure(y, v), Gaussian(bandwidth), regularization)

    def value(x, w, *others):
        return functional(*others)(DiscreteMeasure(x, w))

    def force(x, w, *others):
        return functional(*others).wasserstein_gradient(DiscreteMeasure(x, w))

    assert torch.autograd.gradcheck(value, tensors)
    assert torch.autograd.gradgradcheck(value, tensors)
    assert torch.autograd.gradcheck(force, tensors)
    assert torch.autograd.gradgradcheck(force, tensors)

    directions = [torch.randn(t.shape, generator=torch.Generator().manual_seed(3), dtype=t.dtype) for t in tensors]
    slopes = torch.autograd.grad(value(*tensors), tensors, create_graph=True)
    product = torch.autograd.grad(sum((s * d).sum() for s, d in zip(slopes, directions, strict=True)), tensors)

    def slopes_at(t):
        moved = [(x + t * d).detach().requires_grad_() for x, d in zip(tensors, directions, strict=True)]
        return torch.autograd.grad(value(*moved), moved)

    # Richardson's extrapolation of central differences.
    wide, narrow = ([(a - b) / (2 * h) for a, b in zip(slopes_at(h), slopes_at(-h), strict=True)] for h in (2e-3, 1e-3))
    for p, a, b in zip(product, narrow, wide, strict=True):
        assert_close(p, (4 * a - b) / 3, rtol=1e-6)

    F = divergence(nu, Gaussian(nn.Parameter(numbers[0])), nn.Parameter(numbers[1]))
    F(mu).backward()
    assert all(p.grad is not None and p.grad != 0 for p in F.parameters())
    for p, expected in zip(F.parameters(), (slopes[5], slopes[4]), strict=True):
        assert_close(p.grad, expected)


def check_large_problems(divergence):
    """Where the kernel matrix may not be stored, conjugate gradients give the same numbers and derivatives."""
    nu, mu = measure(9, batch=(2,), seed=1).pad_atoms(1), measure(5, batch=(2,), seed=2)
    bandwidth = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    F = divergence(nu, Gaussian(bandwidth), 0.05)

    def results():
        points = mu.points.clone().requires_grad_()
        value = F(mu.with_points(points))
        slopes = torch.autograd.grad(value.sum(), (points, bandwidth), create_graph=True)
        seconds = torch.autograd.grad(sum(s.square().sum() for s in slopes), (points, bandwidth))
        return value, *slopes, *seconds, F.wasserstein_gradient(mu)

    stored = results()
    with block_size(50):
        not_stored = results()
    for a, b in zip(not_stored, stored, strict=True):
        assert_close(a, b, rtol=1e-9)
