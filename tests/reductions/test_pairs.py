"""Sums over pairs one coordinate at a time: in blocks, in one pass, and from stored slopes."""

import pytest
import torch

from ddeq import DiscreteMeasure
from ddeq.autodiff import gradient
from ddeq.kernels import Gaussian, Laplace, Polynomial, Riesz
from ddeq.reductions import backend, integrate_kernel, integrate_kernel_gradient, pairs
from ddeq.reductions.one_pass import in_one_pass
from ddeq.reductions.pairs import Slopes, gradient_sums, sums_and_gradients
from ddeq.testing import assert_close

KERNELS = [Gaussian(0.7), Gaussian([0.5, 2.0]), 2 * Gaussian(0.7) + Laplace(1.0), Riesz(1.5)]


def cloud(batch, n, dim, seed=0):
    return torch.randn(*batch, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("near", [1, 20, 2**17])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_sums_are_those_of_the_derivatives(kernel, dim, near, monkeypatch):
    monkeypatch.setattr(pairs, "NEAR", near)
    for batch in ((), (2,)):
        x, y, b = cloud(batch, 7, dim), cloud(batch, 5, dim, seed=1), cloud(batch, 5, 1, seed=2).squeeze(-1)
        x[..., 0, :] = y[..., 0, :]  # derivatives at distance zero
        a = cloud(batch, 7, 1, seed=3).squeeze(-1)
        sums = (kernel(x, y) @ b.unsqueeze(-1)).squeeze(-1)
        slopes = gradient(lambda p, y=y, b=b: (kernel(p, y) @ b.unsqueeze(-1)).squeeze(-1), x)
        found, found_slopes = sums_and_gradients(kernel, x, y, b)
        over_x, stored = Slopes.of(kernel, x, y, a)
        assert_close(found, sums)
        assert_close(over_x, (a.unsqueeze(-2) @ kernel(x, y)).squeeze(-2))
        for way in (found_slopes, gradient_sums(kernel, x, y, b), stored.gradients(b)):
            assert_close(way, slopes)
    keep = torch.tensor([1])
    assert_close(stored.rows(keep).gradients(b[keep]), slopes[keep])


def test_a_kernel_that_requires_grad_is_left_to_autograd():
    bandwidth = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x, mu = cloud((), 7, 2), DiscreteMeasure(cloud((), 5, 2, seed=1))
    assert gradient_sums(Gaussian(bandwidth), x, mu.points, mu.weights) is None
    assert integrate_kernel_gradient(Gaussian(bandwidth), x, mu).requires_grad


def test_where_sums_are_made_in_one_pass():
    x, mu = cloud((), 7, 2), DiscreteMeasure(cloud((), 5, 2, seed=1))
    assert in_one_pass(Gaussian(1.0), x, mu)
    assert not in_one_pass(Polynomial(2), x, mu)  # no function of the distance
    assert not in_one_pass(Gaussian(1.0), cloud((), 7, 4), DiscreteMeasure(cloud((), 5, 4)))
    with backend("compiled"):
        assert not in_one_pass(Gaussian(1.0), x, mu)
    assert torch.func.vmap(lambda p: integrate_kernel(Gaussian(1.0), p, mu))(x.unsqueeze(0)).shape == (1, 7)
