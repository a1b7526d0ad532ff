"""`check_backend` accepts the library's backends, and a wrong one fails with the name of the law that it breaks."""

import pytest
import torch

from ddeq.autodiff import gradient
from ddeq.kernels import Gaussian, Kernel, Laplace, Polynomial, Riesz
from ddeq.reductions import Backend
from ddeq.reductions.backends import named
from ddeq.testing.backends import check_backend

KEOPS = pytest.mark.xdist_group("keops")  # one process compiles and caches
COMPILED = pytest.mark.xdist_group("compiled")


def trained(bandwidth=0.7):
    return Gaussian(torch.nn.Parameter(torch.tensor(bandwidth, dtype=torch.float64)))


@pytest.mark.parametrize("name", ["dense", "sorted"])
def test_the_backends_that_need_no_compiler(name):
    check_backend(named(name))


@pytest.mark.parametrize(
    "name", [pytest.param("keops", marks=[KEOPS, pytest.mark.slow]), pytest.param("compiled", marks=[COMPILED, pytest.mark.slow])]
)
def test_compiled_backends_with_one_kernel(name):
    check_backend(named(name), [trained()], dtypes=[torch.float64])


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("keops", marks=KEOPS), pytest.param("compiled", marks=COMPILED)])
def test_compiled_backends_with_other_kernels(name):
    kernels = [Gaussian([0.5, 2.0]) + 0.5 * Riesz(1.5), Polynomial(2)]
    check_backend(named(name), kernels, dtypes=[torch.float64])
    check_backend(named(name), [trained()], dtypes=[torch.float32])


@pytest.mark.slow
@COMPILED
def test_the_compiled_backend_in_high_dimension():
    check_backend(named("compiled"), [trained(8.0), Laplace(8.0), Polynomial(2, scale=0.01)], dim=40)


class Rows(Backend):
    """A right one: the kernel matrix, two rows at a time."""

    name = "rows"
    transforms = True

    def obstacle(self, device, kernel):
        return None

    def sum_pairs(self, kernel, x, y, b):
        return torch.cat([self.matrix(kernel, rows, y) @ b for rows in x.split(2, -2)], -2)

    def sum_gradients(self, kernel, x, y, b):
        return gradient(lambda p: Rows.sum_pairs(self, kernel, p, y, b.unsqueeze(-1)), x)

    @torch.no_grad()
    def max_pairs(self, kernel, x, y, alive):
        dead = ~alive.unsqueeze(-2)
        blocks = [kernel.log_matrix(rows, y).masked_fill(dead, -torch.inf).amax(-1) for rows in x.split(2, -2)]
        return torch.cat(blocks, -1)

    def matrix(self, kernel, x, y):
        return kernel(x, y)


class ChangesItsArguments(Rows):
    def sum_pairs(self, kernel, x, y, b):
        centre = y.mean(-2, keepdim=True)
        return super().sum_pairs(kernel, x - centre, y.sub_(centre), b)


class WrongSign(Rows):
    def sum_gradients(self, kernel, x, y, b):
        return -super().sum_gradients(kernel, x, y, b)


class ForgetsTheWeights(Rows):
    def sum_pairs(self, kernel, x, y, b):
        return super().sum_pairs(kernel, x, y, torch.ones_like(b))


class ForgetsTheBatch(Rows):
    def sum_pairs(self, kernel, x, y, b):
        first = (0,) * (x.ndim - 2)
        return super().sum_pairs(kernel, x[first], y[first], b[first]).expand(*x.shape[:-1], -1)


class ByProducts(Rows):
    def matrix(self, kernel, x, y):
        squares = x.square().sum(-1, keepdim=True) - 2 * x @ y.mT + y.square().sum(-1).unsqueeze(-2)
        return kernel.profile(squares.clamp_min(0.0))


class CountsDeadPoints(Rows):
    def max_pairs(self, kernel, x, y, alive):
        return super().max_pairs(kernel, x, y, torch.ones_like(alive))


class ZeroWhereNoneIsAlive(Rows):
    def max_pairs(self, kernel, x, y, alive):
        return super().max_pairs(kernel, x, y, alive).nan_to_num(neginf=0.0)


class RaisesForSomeKernels(Rows):
    def matrix(self, kernel, x, y):
        if not kernel.is_radial:
            raise NotImplementedError("radial kernels only")
        return kernel(x, y)


class WrongForSomeKernels(Rows):
    def matrix(self, kernel, x, y):
        return kernel(x, y) if kernel.smooth_on_the_diagonal else Gaussian(1.0)(x, y)


class RaisesInObstacle(Rows):
    def obstacle(self, device, kernel):
        return f"no sum of {kernel.bandwidths}" if kernel.is_radial else None


class SumsNothing(Rows):
    def obstacle(self, device, kernel):
        return "it is Monday"


class Noisy(Rows):
    def sum_pairs(self, kernel, x, y, b):
        total = super().sum_pairs(kernel, x, y, b)
        return total + 1e-2 * torch.randn_like(total)


class WrongDtype(Rows):
    def sum_pairs(self, kernel, x, y, b):
        return super().sum_pairs(kernel, x, y, b).double()


class AssumesContiguousTensors(Rows):
    def sum_pairs(self, kernel, x, y, b):
        return super().sum_pairs(kernel, x, y.as_strided(y.shape, torch.empty(y.shape).stride()), b)


class Detaches(Rows):
    def sum_pairs(self, kernel, x, y, b):
        return super().sum_pairs(kernel, x, y.detach(), b)


class FirstDerivativesOnly(Rows):
    def sum_pairs(self, kernel, x, y, b):
        return _Once.apply(kernel, x, y, b)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, x, y, b):
        ctx.kernel = kernel
        ctx.save_for_backward(x, y, b)
        return kernel(x, y) @ b

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, c):
        tensors = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            x, y, b = tensors
            return None, *torch.autograd.grad(ctx.kernel(x, y) @ b, tensors, c)


class DetachedGradients(Rows):
    def sum_gradients(self, kernel, x, y, b):
        return super().sum_gradients(kernel, x, y, b).detach()


class NoTransforms(Rows):
    def sum_pairs(self, kernel, x, y, b):
        if not (x.requires_grad or y.requires_grad or b.requires_grad):
            x.numpy()
        return super().sum_pairs(kernel, x, y, b)


class PushesAtCoincidence(Rows):
    def sum_gradients(self, kernel, x, y, b):
        alone = x.shape[-2] == y.shape[-2] == 1
        return super().sum_gradients(kernel, x, y, b) + (1e-3 if alone else 0.0)


class NoName(Rows):
    name = ""


WRONG = [
    (ChangesItsArguments, "arguments: `sum_pairs` modifies them: y is changed by up to"),
    (WrongSign, "gradients: `sum_gradients` at the origin is not the gradient"),
    (ForgetsTheWeights, "weights of zero: points of weight zero change `sum_pairs`"),
    (ForgetsTheBatch, r"batches: entry \(1,\) of `sum_pairs`"),
    (ByProducts, "values: `sum_pairs` at an offset of 1e4"),
    (CountsDeadPoints, "maxima: .* not the largest .* Does it count points that are not alive?"),
    (ZeroWhereNoneIsAlive, "maxima: `max_pairs` is 0 where no point is alive"),
    (RaisesForSomeKernels, r"obstacle: none is named, but `sum_pairs` raises NotImplementedError.*Polynomial"),
    (WrongForSomeKernels, r"values: .*Laplace.*`obstacle` must say so"),
    (RaisesInObstacle, "obstacle: `obstacle` of the backend 'rows' raises for None: AttributeError"),
    (SumsNothing, "obstacle: the backend 'rows' can sum none of the kernels; it says: {'it is Monday'}"),
    (Noisy, "repetition: a second call of `sum_pairs`"),
    (WrongDtype, "result: `sum_pairs` gives .*float64.*expected .*float32"),
    (AssumesContiguousTensors, "strides: `sum_pairs` of tensors that are not contiguous"),
    (Detaches, "derivatives: the first derivative of `sum_pairs` in y"),
    (FirstDerivativesOnly, "derivatives: the first derivative of `sum_pairs` in a parameter of the kernel"),
    (DetachedGradients, "derivatives: the derivative of `sum_gradients` in x"),
    (NoTransforms, "transforms: the backend declares them, but they raise"),
    (PushesAtCoincidence, "coincident points: the gradient of a function of"),
    (NoName, "declaration: `name` is ''"),
]


def test_a_right_one_passes():
    check_backend(Rows())


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[wrong.__name__ for wrong, _ in WRONG])
def test_wrong_ones_fail_with_the_name_of_the_law(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_backend(wrong())


def test_a_second_derivative_that_is_missing():
    with pytest.raises(AssertionError, match="derivatives: the second derivative of `sum_pairs` in x"):
        check_backend(FirstDerivativesOnly(), [Laplace(0.8)])


def test_what_is_not_declared_is_not_asked_for():
    class Plain(Detaches):
        differentiable = False
        transforms = False

    check_backend(Plain())

    class OnTheLine(Rows):
        max_dim = 1

        def matrix(self, kernel, x, y):
            assert x.shape[-1] == 1
            return kernel(x, y)

    check_backend(OnTheLine())


def test_kernels_of_ones_own():
    class Cosine(Kernel):
        def pair(self, x, y):
            return 2.0 + (x - y).sum(-1).cos()

    check_backend(named("dense"), [Cosine(), 0.5 * Cosine() + Riesz(1.0)], dim=3)
    with pytest.raises(AssertionError, match="obstacle: the backend 'sorted' can sum none"):
        check_backend(named("sorted"), [Cosine()])
