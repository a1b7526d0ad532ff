"""The backend of matrix products: as exact as differences wherever the points are, at every order of derivative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddeq import DiscreteMeasure
from ddeq.kernels import IMQ, Gaussian, Laplace, Matern, Polynomial, Riesz
from ddeq.kernels.products import MANY, MOST, SAFE, Products, by_products
from ddeq.reductions import backend, block_size, choose, integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.backends import named
from ddeq.testing import assert_close, check_backend
from ddeq.testing.pair_sums import Pairs, exact_gradient, exact_sum

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}
CPU = torch.device("cpu")
PRODUCTS = named("products")


def kernels(scale):
    """With a kink and without, none of which underflows at the distances of the clouds below."""
    return [Gaussian(8.0 * scale), Laplace(8.0 * scale), Matern(1.5, 8.0 * scale), IMQ(scale), Riesz(1.0), Riesz(0.5)]


@st.composite
def clouds(draw):
    """Two clouds, or one and itself, in clusters whose distance is up to 1e4 times their size, with equal points, far away."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    scale = draw(st.sampled_from([1.0, 1e-6]))
    spread = draw(st.sampled_from([0.0, 1.0, 1e2, 1e4])) if scale == 1.0 else 0.0
    offset = draw(st.sampled_from([0.0, 1e4])) if scale == 1.0 else 0.0
    dim, n = draw(st.sampled_from([5, 24])), draw(st.sampled_from([9, 40]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10)))
    centres = spread * torch.randn(3, dim, generator=g, dtype=torch.float64)
    x, y = (scale * torch.randn(n, dim, generator=g, dtype=torch.float64) + centres[torch.arange(n) % 3] for _ in range(2))
    y[:2] = x[:2]
    y[2] = x[2] + 1e-3 * scale
    x, y = (x + offset).to(dtype), (y + offset).to(dtype)
    return x, x if draw(st.booleans()) else y, torch.randn(n, 2, generator=g, dtype=torch.float64).to(dtype), scale


@pytest.mark.theorem("T18")
@settings(deadline=None, max_examples=40)
@given(cloud=clouds(), which=st.integers(0, 5), block=st.sampled_from([2**24, 300]))
def test_sums_are_as_exact_as_from_differences(cloud, which, block):
    x, y, b, scale = cloud
    kernel = kernels(scale)[which]
    p = Pairs(x, y, b)
    with block_size(block):
        found = PRODUCTS.sum_pairs(kernel, x, y, b), PRODUCTS.sum_gradients(kernel, x, y, b[:, 0])
    for actual, exact in zip(found, (exact_sum(kernel, p), exact_gradient(kernel, p)), strict=True):
        size = torch.where(exact.size > 0, exact.size, 1.0)
        assert_close(actual.double() / size, exact.value / size, scale=1.0, rtol=BOUNDS[x.dtype])


@pytest.mark.theorem("T18")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1.0, 10.0, 1e3, 1e6])
def test_rounding_of_squared_distances(dtype, ratio):
    """Within 5 C gamma_(d+3), the bound of the statement, for pairs on both sides of the threshold."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 20, generator=g, dtype=torch.float64) / ratio + torch.randn(2, 20, generator=g).double().repeat(30, 1)
    x = x.to(dtype)
    y = x.flip(0).clone()
    expected = (x.double().unsqueeze(1) - y.double()).square().sum(-1)
    error = (by_products(x, y).double() - expected).abs()
    unit = 0.5 * torch.finfo(dtype).eps
    assert (error <= 5 * SAFE[dtype] * 23 * unit * expected).all()
    assert (by_products(x, x).diagonal() == 0).all()


def test_the_plain_formula_is_rejected():
    """Without the centre and without the exceptions the distances of points far away are lost."""
    x = torch.randn(20, 20, generator=torch.Generator().manual_seed(0)) + 1e4
    s = x.square().sum(-1)
    plain = s[:, None] + s - 2 * x @ x.mT
    expected = (x.double().unsqueeze(1) - x.double()).square().sum(-1)
    assert (plain.double() - expected).abs().max() > 0.1 * expected.max()
    assert_close(by_products(x, x).double(), expected, rtol=1e-6)


@pytest.mark.parametrize("dim", [2, 24])
def test_check_backend(dim):
    check_backend(
        PRODUCTS, [Gaussian(0.7 * dim**0.5), Gaussian([2.0, 5.0]) + 0.5 * Riesz(1.5), Riesz(1.0), Laplace(2.0)], dim=dim
    )


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16, 40])
def test_check_backend_with_all_kernels(dim):
    check_backend(PRODUCTS, dim=dim)


def clustered(n, dtype=torch.float64, batch=()):
    """Clusters far apart: some pairs are close relative to their norms."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(*batch, n, 24, generator=g, dtype=torch.float64)
    return (x + 100.0 * (torch.arange(n) % 9 == 0).double()[:, None] + 1e3).to(dtype)


@pytest.mark.parametrize("kernel", [Riesz(1.0), Gaussian([2.0, 9.0]) + 0.5 * Laplace(3.0)], ids=repr)
@pytest.mark.parametrize("same", [False, True])
def test_derivatives_of_many_points(kernel, same):
    """First and second derivatives where distances are not stored differences."""
    x, y = clustered(50), clustered(60)[10:]
    results = []
    for name in ("dense", "products"):
        p, q, w = x.clone().requires_grad_(), y.clone().requires_grad_(), torch.linspace(0, 1, 50).double().requires_grad_()
        with backend(name), block_size(1500):
            total = integrate_kernel(kernel, p, DiscreteMeasure(p if same else q, w))
            slope = integrate_kernel_gradient(kernel, p, DiscreteMeasure(q, w))
        inputs = (p, w) if same else (p, q, w)
        first = torch.autograd.grad(total.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((f * f.detach().cos()).sum() for f in first), inputs)
        results.append([total, *first, *second, slope, *torch.autograd.grad(slope.square().sum(), (p, q, w))])
    for a, b in zip(*results, strict=True):
        assert_close(b, a, rtol=1e-10)


def test_every_way_is_taken():
    """No exceptions, some, products in double precision, all by differences."""
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    tight = 1e-2 * x + 10.0 * (torch.arange(40) % 2)[:, None]
    one = x[:1].expand(40, 24) + 1e6 * (torch.arange(40) < 5)[:, None]
    few = torch.cat([x, x[:2] + 1e-3])
    shares = []
    for points in (x, few, tight, one):
        block = Products(points, points.clone()).block(0, len(points), 0)
        shares.append((block.level, 0 if block.near is None else len(block.near.row) / block.squares.numel()))
    (plain, _), (some, share), (double, _), (by_differences, _) = shares
    assert plain.x.dtype == some.x.dtype == torch.float32
    assert 0 < share < MANY < MOST
    assert double.x.dtype == torch.float64
    assert by_differences is None


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_bandwidths_of_a_batch(batch):
    x, y = clustered(20, batch=batch), clustered(31, batch=batch)[..., 8:, :]
    h = torch.linspace(3, 8, 6, dtype=torch.float64)[: 3 * len(batch)][: torch.Size(batch).numel()].reshape(batch)
    mu = DiscreteMeasure(y)
    for size in (2**24, 500):
        with block_size(size):
            for sums in (integrate_kernel, integrate_kernel_gradient):
                found = []
                for name in ("dense", "products"):
                    with backend(name):
                        found.append(sums(Gaussian(h), x, mu))
                assert_close(found[1], found[0], rtol=1e-11)


def test_a_trainable_bandwidth():
    x, mu = clustered(40), DiscreteMeasure(clustered(50))
    results = []
    for name in ("dense", "products"):
        h = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
        with backend(name):
            value, slope = integrate_kernel(Gaussian(h), x, mu), integrate_kernel_gradient(Gaussian(h), x, mu)
        results.append([*torch.autograd.grad(value.sum(), h), *torch.autograd.grad(slope.square().sum(), h)])
    for a, b in zip(*results, strict=True):
        assert_close(b, a, rtol=1e-10)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("setting", ["medium", "autocast"])
def test_settings_of_matrix_products_change_nothing(setting, recorded):
    """Neither what PyTorch allows products to lose nor half precision of the caller."""
    x, mu = clustered(60, torch.float32), DiscreteMeasure(clustered(70, torch.float32))

    def sums():
        p = x.clone().requires_grad_(recorded)
        return [p, integrate_kernel(Gaussian(6.0), p, mu), integrate_kernel_gradient(Gaussian(6.0), p, mu)]

    before = torch.get_float32_matmul_precision()
    with backend("products"):
        expected = sums()
        try:
            torch.set_float32_matmul_precision("medium" if setting == "medium" else before)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "autocast"):
                found = sums()
        finally:
            torch.set_float32_matmul_precision(before)
    for results in (found, expected) if recorded else ():
        results += torch.autograd.grad(results[1].sum() + results[2].sum(), results[0])
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-5)


@pytest.mark.unchecked
@pytest.mark.parametrize(("n", "m", "batch"), [(0, 4, ()), (4, 0, ()), (4, 4, (0,)), (0, 0, (2,))])
def test_empty(n, m, batch):
    x, y, b = torch.zeros(*batch, n, 20), torch.zeros(*batch, m, 20), torch.zeros(*batch, m)
    assert PRODUCTS.sum_pairs(Gaussian(1.0), x, y, b.unsqueeze(-1)).shape == (*batch, n, 1)
    assert not PRODUCTS.sum_gradients(Gaussian(1.0), x, y, b).any()


def test_points_that_are_infinite_leave_the_others_alone():
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    y = torch.cat([x[:10], torch.full((1, 20), torch.inf)])
    b = torch.ones(11, 1)
    assert_close(PRODUCTS.sum_pairs(Gaussian(4.0), x, y, b), PRODUCTS.sum_pairs(Gaussian(4.0), x, y[:10], b[:10]))


def test_auto_takes_products_in_many_dimensions():
    assert choose(200, 200, CPU, dim=64, kernel=Gaussian(1.0)).name == "products"
    assert choose(200, 200, CPU, dim=3, kernel=Gaussian(1.0)).name != "products"
    assert choose(10, 10, CPU, dim=64, kernel=Gaussian(1.0)).name == "dense"
    with backend("products"):
        assert choose(200, 200, CPU, dim=64, kernel=Polynomial(2)).name == "dense"
        assert choose(10, 10, CPU, dim=2, kernel=Riesz(1.0)).name == "products"
