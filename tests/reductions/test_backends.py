"""All backends give the same numbers and derivatives, without cancellation, and within a bound on memory."""

import warnings

import pytest
import torch
from hypothesis import given

from ddeq import DiscreteMeasure, reductions
from ddeq.autodiff import recompute
from ddeq.kernels import IMQ, Gaussian, Laplace, Matern, Polynomial, Riesz
from ddeq.kernels.distances import squared_distances
from ddeq.reductions import (
    backend,
    block_size,
    choose,
    integrate_kernel,
    integrate_kernel_gradient,
    integrate_pairs,
    kernel_average,
    log_integrate_kernel,
)
from ddeq.reductions.backends import named
from ddeq.testing import assert_close
from ddeq.testing.strategies import kernels, measures

KEOPS = pytest.mark.xdist_group("keops")  # one process compiles and caches
COMPILED = pytest.mark.xdist_group("compiled")
MARKED = [pytest.param("keops", marks=KEOPS), pytest.param("compiled", marks=COMPILED)]
COMPILED_KERNELS = [
    Gaussian([0.5, 2.0]) + 0.5 * Riesz(1.5),
    *(pytest.param(k, marks=pytest.mark.slow) for k in (Matern(1.5, 0.8), Laplace(0.8), IMQ(1.0), Riesz(1.0), Polynomial(3))),
]
KERNELS = [  # KeOps compiles each of them for a minute
    Gaussian(0.7),
    *(pytest.param(k, marks=pytest.mark.slow) for k in (Riesz(1.0), Laplace(0.8), IMQ(1.0), Riesz(0.5), COMPILED_KERNELS[0])),
]


def value_and_derivatives(kernel, x, mu):
    """The sum, the gradient of a function of it, and a Hessian-vector product."""
    x, y, w = (t.detach().clone().requires_grad_() for t in (x, mu.points, mu.weights))
    total = integrate_kernel(kernel, x, DiscreteMeasure(y, w))
    gradients = torch.autograd.grad(total.square().sum(), (x, y, w), create_graph=True)
    second = torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in gradients), (x, y, w))
    return total, *gradients, *second


def problem(dtype, batch=()):
    x = torch.randn(*batch, 7, 2, dtype=dtype)
    y = torch.cat([torch.randn(*batch, 4, 2, dtype=dtype), x[..., :2, :]], -2)  # two pairs coincide
    return x, DiscreteMeasure(y, torch.rand(*batch, 6, dtype=dtype).masked_fill(torch.arange(6) == 1, 0.0))


def agrees(name, kernel, x, mu):
    with backend("dense"):
        expected = value_and_derivatives(kernel, x, mu)
    with backend(name):
        actual = value_and_derivatives(kernel, x, mu)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, units=1e4)


@KEOPS
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_keops_agrees_with_dense(kernel):
    agrees("keops", kernel, *problem(torch.float64, batch=(2,)))


@COMPILED
@pytest.mark.parametrize("kernel", COMPILED_KERNELS, ids=repr)
def test_compiled_agrees_with_dense(kernel):
    agrees("compiled", kernel, *problem(torch.float64, batch=(2,)))


@pytest.mark.theorem("T12")
@pytest.mark.parametrize("batch", [(), (2,)])
def test_sorted_agrees_with_dense(batch):
    x, mu = problem(torch.float64, batch)
    agrees("sorted", Riesz(1.0), x[..., :1], mu.with_points(mu.points[..., :1]))


@pytest.mark.parametrize("name", ["dense", *MARKED])
def test_gradients_in_one_sum(name):
    """`integrate_kernel_gradient` is the gradient of `integrate_kernel`, and differentiable again."""
    x, mu = problem(torch.float64)
    with backend("dense"):
        p = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(integrate_kernel(KERNELS[0], p, mu).sum(), p, create_graph=True)
        again = torch.autograd.grad(expected.square().sum(), p)
    with backend(name):
        q = x.clone().requires_grad_()
        actual = integrate_kernel_gradient(KERNELS[0], q, mu)
        twice = torch.autograd.grad(actual.square().sum(), q)
    assert_close(actual, expected)
    assert_close(*twice, *again)


@pytest.mark.parametrize("name", ["dense", *MARKED])
@pytest.mark.parametrize("offset", [0.0, pytest.param(1e4, marks=pytest.mark.slow)])
def test_logarithms_neither_overflow_nor_underflow(name, offset):
    """Exponents of hundreds, an atom of mass zero among the nearest, and derivatives in its weight."""
    x = torch.tensor([[0.0], [30.0], [-50.0]], dtype=torch.float64) + offset
    y = torch.tensor([[1.0], [-2.0], [-50.0]], dtype=torch.float64) + offset
    g = torch.tensor([700.0, -300.0, 5.0], dtype=torch.float64)
    w = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64)

    def value(y, w, g):
        return log_integrate_kernel(Gaussian(1.0), x, DiscreteMeasure(y, w), g)

    terms = g - 0.5 * (x - y.mT) ** 2
    expected = torch.logsumexp(terms[:, :2] + w[:2].log(), -1)
    with backend(name):
        assert_close(value(y, w, g), expected)
        ofw = torch.autograd.functional.jacobian(lambda w: value(y, w, g), w)
    assert_close(ofw[:2, :2], (terms - expected[:, None]).exp()[:2, :2])
    assert torch.isfinite(ofw).all()


@pytest.mark.parametrize("name", ["dense", *MARKED])
@pytest.mark.parametrize("offset", [0.0, pytest.param(1e4, marks=pytest.mark.slow)])
def test_averages_neither_overflow_nor_underflow(name, offset):
    """Against sums of the terms; far from all atoms the average is that of the nearest one."""
    x = torch.tensor([[0.0], [60.0], [-1.3]], dtype=torch.float64) + offset
    y = torch.tensor([[1.0], [-2.0], [59.0]], dtype=torch.float64) + offset
    w = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64)
    values = torch.tensor([[1.0, 2.0], [3.0, -4.0], [torch.pi, 7.0]], dtype=torch.float64)
    terms = -0.5 * (x - y.mT) ** 2 + torch.where(w > 0, w.log(), -torch.inf)

    def average(y, w):
        return kernel_average(Gaussian(1.0), x, DiscreteMeasure(y, w), values)

    with backend(name):
        log_density, means = average(y, w)
        slopes = [torch.autograd.functional.jacobian(lambda *a, i=i: average(*a)[i], (y, w)) for i in (0, 1)]
    assert_close(log_density, torch.logsumexp(terms, -1))
    assert_close(means, terms.softmax(-1) @ values)
    assert_close(means[1], values[0])
    assert all(torch.isfinite(t).all() for pair in slopes for t in pair)
    step = torch.tensor([[0.0], [1e-6], [0.0]], dtype=torch.float64)
    for i in (0, 1):
        difference = (average(y + step, w)[i] - average(y - step, w)[i]) / 2e-6
        assert_close(slopes[i][0][..., 1, 0], difference, rtol=1e-5)


def test_logarithm_of_nothing_is_minus_infinity():
    mu = DiscreteMeasure(torch.zeros(2, 1), torch.zeros(2))
    assert (log_integrate_kernel(Gaussian(1.0), torch.zeros(1, 1), mu) == -torch.inf).all()


def test_clusters_far_apart_do_not_cancel():
    """Two clusters of size one, 1e6 apart: what counts within a cluster is not lost in the distance from the mean."""
    g = torch.Generator().manual_seed(5)
    cluster = torch.randn(150, 3, generator=g, dtype=torch.float64)
    x = torch.cat([cluster, cluster.flip(0) + 1e6])
    mu = DiscreteMeasure(torch.cat([cluster + 0.1, cluster + 1e6]))
    s = (x.unsqueeze(-2) - mu.points).square().sum(-1, keepdim=True)
    expected = -((-0.5 * s).exp() * (x.unsqueeze(-2) - mu.points)).mean(-2)
    for block in (2**24, 10**5):
        with backend("dense"), block_size(block):
            assert_close(integrate_kernel_gradient(Gaussian(1.0), x, mu), expected)
            p = x.clone().requires_grad_()
            assert_close(integrate_kernel_gradient(Gaussian(1.0), p, mu), expected)


@COMPILED
@pytest.mark.parametrize("kernel", [Gaussian(8.0) + 0.5 * Riesz(1.0), Polynomial(2, scale=0.01)], ids=repr)
def test_sums_in_high_dimension(kernel):
    """Above a few coordinates compiled sums are blocks of compiled distances and matrix products."""
    x, y = torch.randn(7, 40, dtype=torch.float64), torch.randn(6, 40, dtype=torch.float64)
    mu = DiscreteMeasure(torch.cat([y, x[:2]]), torch.rand(8, dtype=torch.float64))
    agrees("compiled", kernel, x, mu)
    with backend("dense"):
        p = x.clone().requires_grad_()
        expected = torch.autograd.grad(integrate_kernel(kernel, p, mu).sum(), p)[0]
    for name in ("dense", "compiled"):
        with backend(name), block_size(10**6):
            assert_close(integrate_kernel_gradient(kernel, x, mu), expected)


@pytest.mark.parametrize("dim", [1, 3, 40])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_of_many_points_are_as_exact_as_differences(dim, offset):
    """The path without an N x M x d array: value, both derivatives and a Hessian-vector product, in both precisions."""
    g = torch.Generator().manual_seed(3)
    x, y = ((torch.randn(1, n, dim, generator=g) * 2**-6 + offset).double() for n in (250, 230))
    y = torch.cat([x[:, :20], y], 1)
    c = torch.randn(1, 250, 250, generator=g).double()

    def derivatives(distances, x, y, c):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        s = distances(x, y)
        first = torch.autograd.grad((c * (s + 1).log()).sum(), (x, y), create_graph=True)
        return s, *first, *torch.autograd.grad(sum((f * f.detach()).sum() for f in first), (x, y))

    expected = derivatives(lambda x, y: (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1), x, y, c)
    for dtype in (torch.float64, torch.float32):
        actual = derivatives(squared_distances, x.to(dtype), y.to(dtype), c.to(dtype))
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b.to(dtype))


@KEOPS
def test_keops_in_single_precision_and_without_a_batch():
    x, mu = problem(torch.float32)
    with backend("keops"):
        actual = integrate_kernel(Gaussian(0.7), x, mu)
    assert_close(actual, integrate_kernel(Gaussian(0.7), x, mu))


@KEOPS
def test_keops_with_a_learned_bandwidth():
    x, mu = problem(torch.float64, batch=(2,))
    for bandwidth in (torch.tensor(0.7), torch.tensor([0.5, 1.5])):
        h = bandwidth.double().requires_grad_()
        results = []
        for name in ("dense", "keops"):
            with backend(name):
                value = integrate_kernel(Gaussian(h), x, mu)
            results.append((value, *torch.autograd.grad(value.sum(), h)))
        for a, b in zip(*results, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_blocks_agree_with_the_whole(kernel):
    x, mu = problem(torch.float64, batch=(2,))
    with backend("dense"):
        expected = value_and_derivatives(kernel, x, mu)
        with block_size(60):
            actual = value_and_derivatives(kernel, x, mu)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


def test_blocks_of_a_function_with_parameters():
    x, mu = problem(torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    results = []
    for size in (20, 2**24):
        with block_size(size):
            value = integrate_pairs(lambda d: (-scale * d.square().sum(-1)).exp(), x, mu)
        results.append((value, *torch.autograd.grad(value.sum(), scale)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_blocks_bound_the_memory_of_backward():
    """Tensors that autograd keeps are those of the inputs, not of the pairs."""
    x, mu = torch.randn(200, 2, requires_grad=True), DiscreteMeasure(torch.randn(300, 2))
    kept = []
    with (
        backend("dense"),
        block_size(6000),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        integrate_kernel(Gaussian(1.0), x, mu).sum().backward()
    assert max(kept) <= 6000


@given(mu=measures(offsets=(0.0, 1e4), scales=(1.0, 1e-6)), kernel=kernels())
def test_no_cancellation_far_from_the_origin(mu, kernel):
    """Points that are exact in single precision give what double precision gives."""
    single = mu.to(torch.float32)
    kernel = kernel.double()
    expected = integrate_kernel(kernel, single.points.double(), single.to(torch.float64))
    scale = float(expected.abs().max())
    assert_close(integrate_kernel(kernel.float(), single.points, single).double(), expected, scale=scale, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_derivatives_at_coincident_points_are_finite(kernel):
    x = torch.zeros(3, 2, dtype=torch.float64)
    for result in value_and_derivatives(kernel, x, DiscreteMeasure(x)):
        assert torch.isfinite(result).all()
    results = value_and_derivatives(kernel, x, DiscreteMeasure(x))
    assert not results[1].any()


def test_recompute_is_right_at_every_order():
    def f(x, y):
        return (torch.sin(x) * y, (x * y.exp()).sum(-1))

    x, y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    again = lambda x, y: recompute(f, x, y)
    assert torch.autograd.gradcheck(again, (x, y))
    assert torch.autograd.gradgradcheck(again, (x, y))


def test_the_choice_is_told():
    cpu = torch.device("cpu")
    assert choose(10, 10, cpu).name == "dense"
    assert "below the" in choose(10, 10, cpu).reason
    assert choose(10**5, 10**5, cpu, dim=1, kernel=Riesz(1.0)).name == "sorted"
    with backend("dense"):
        assert choose(10**5, 10**5, cpu) == ("dense", "asked for")
    with backend("keops"), pytest.warns(reductions.BackendWarning, match="Matern"):
        assert choose(10, 10, cpu, kernel=Matern(1.5, 1.0)).name == "dense"


def test_settings_are_restored():
    with backend("dense"), block_size(10):
        pass
    assert choose(10, 10, torch.device("cpu")).reason != "asked for"


def test_without_keops_there_is_a_message_and_a_slower_path(monkeypatch):
    monkeypatch.setattr(type(named("keops")), "obstacle", lambda *_: "no compiler")
    monkeypatch.setattr(type(named("compiled")), "obstacle", lambda *_: "none for torch either")
    x, mu = problem(torch.float64)
    with backend("keops"), pytest.warns(reductions.BackendWarning, match="no compiler"):
        value = integrate_kernel(Gaussian(1.0), x, mu)
    assert_close(value, integrate_kernel(Gaussian(1.0), x, mu))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(10**5, 10**5, torch.device("cpu")) == ("dense", "none for torch either; no compiler")


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: backend("fast"), "name: .*dense, keops"),
        (lambda: block_size(0), "numbers: "),
        (lambda: integrate_kernel(Gaussian(1.0), torch.zeros(2, 3), DiscreteMeasure(torch.zeros(2, 2))), "dimension 2"),
        (lambda: integrate_kernel(Gaussian(1.0), torch.zeros(2, 2), DiscreteMeasure(torch.zeros(2, 2).double())), "float64"),
        (lambda: integrate_kernel(Gaussian(1.0), torch.zeros(2, 2), DiscreteMeasure(torch.zeros(3, 2, 2))), "batch"),
        (lambda: reductions.integrate(torch.zeros(3), DiscreteMeasure(torch.zeros(2, 2))), "values: "),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_blocks_with_learned_kernels_bound_the_memory_of_backward():
    kernel = Gaussian(torch.nn.Parameter(torch.tensor(1.0)))
    x, mu = torch.randn(200, 2, requires_grad=True), DiscreteMeasure(torch.randn(300, 2))
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with backend("dense"), block_size(6000), hooks:
        value = integrate_kernel(kernel, x, mu).sum()
        gradients = torch.autograd.grad(value, (x, kernel.bandwidth_0))
    assert max(kept) <= 6000
    with backend("dense"):
        expected = torch.autograd.grad(integrate_kernel(kernel, x, mu).sum(), (x, kernel.bandwidth_0))
    for a, b in zip(gradients, expected, strict=True):
        assert_close(a, b, units=1e4)
