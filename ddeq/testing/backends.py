"""`check_backend`: does a backend of `ddeq.reductions` give the sums and derivatives that it promises?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddeq.kernels import IMQ, Gaussian, Kernel, Laplace, Matern, Polynomial, Riesz
from ddeq.reductions import Backend
from ddeq.reductions.exponential import Exponential
from ddeq.testing.close import assert_close
from ddeq.testing.pair_sums import ExactSum, Pairs, exact_derivatives, exact_gradient, exact_sum, gradients, leaves

__all__ = ["check_backend"]

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Allowed error of a sum, relative to the sum of the absolute values of its terms."""
PLACES = {"at the origin": (0.0, 1.0), "at an offset of 1e4": (1e4, 1.0), "at a scale of 1e-6": (0.0, 1e-6)}
"""Offset and scale of the points."""
REFUSE = "If the backend cannot sum this kernel, `obstacle` must say so"


def check_backend(
    backend: Backend,
    kernels: Sequence[Kernel] | None = None,
    *,
    dim: int | None = None,
    device: torch.device | str = "cpu",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
) -> None:
    """Check that a backend computes the sums, gradients and maxima that `ddeq.reductions.Backend` describes.

    Every sum is compared with its terms, added up in double precision, to 1e-5 (single precision) or 1e-12 (double precision) of
    the sum of their absolute values. Checked are:

    - values and gradients, at the origin, at an offset of 1e4 and at a scale of 1e-6;
    - weights of zero, coincident points, batches, tensors that are not contiguous;
    - maxima over the points that are alive;
    - first and second derivatives in points, weights and parameters of the kernel, if the backend is `differentiable`;
    - the transforms of ``torch.func``, if it declares `transforms`;
    - that arguments are not modified, and that a second call gives the same result;
    - `obstacle`: a kernel for which it names none is summed without an exception.

    Parameters
    ----------
    backend
        What to check.
    kernels
        Kernels to sum; default: one or two of every kind. Those for which the backend names an obstacle are left out.
    dim
        Dimension of the points; default: 2, or the largest one that the backend declares.
    device, dtypes
        Where, and in which precisions.

    Raises
    ------
    AssertionError
        Saying which law is broken, with numbers.

    Examples
    --------
    >>> from ddeq.reductions.dense import Dense
    >>> check_backend(Dense(), [Gaussian(0.7)])
    """
    device = torch.device(device)
    if dim is None:
        dim = 2 if backend.max_dim is None else min(2, backend.max_dim)
    _check_declaration(backend, device)
    tried = [PLACES] * len(kernels) if kernels is not None else []
    if kernels is None:
        kernels = trial_kernels()
        tried = [PLACES] * len(kernels)
        if dim > 1:  # the kernel of `log_integrate_kernel`; far away its exponents, which are coordinates, are rounded
            kernels, tried = [*kernels, Exponential(Gaussian(0.9), dim - 1)], [*tried, dict(list(PLACES.items())[:1])]
    summed = 0
    for kernel, places in zip(kernels, tried, strict=True):
        if _obstacle(backend, device, kernel) is None:
            summed += 1
            for dtype in dtypes:
                _Check(backend, copy.deepcopy(kernel).to(device, dtype), dim, device, dtype).run(places)
    if not summed:
        reasons = {_obstacle(backend, device, kernel) for kernel in kernels}
        raise AssertionError(f"obstacle: the backend {backend.name!r} can sum none of the kernels; it says: {reasons}")


def trial_kernels() -> list[Kernel]:
    """Kernels of every kind: smooth and with a kink, with a trainable parameter, a sum, one that is not radial."""
    return [
        Gaussian(nn.Parameter(torch.tensor(0.7, dtype=torch.float64))),
        Laplace(0.8),
        Riesz(1.0),
        Riesz(1.5),
        Matern(1.5, 0.8),
        IMQ(1.0),
        Gaussian([0.5, 2.0]) + 0.5 * Riesz(1.5),
        Polynomial(2),
    ]


def _check_declaration(backend: Backend, device: torch.device) -> None:
    if not isinstance(backend.name, str) or not backend.name:
        raise AssertionError(f"declaration: `name` is {backend.name!r}, expected a string that is not empty")
    if backend.max_dim is not None and backend.max_dim < 1:
        raise AssertionError(f"declaration: `max_dim` is {backend.max_dim}, expected a positive integer or None")
    _obstacle(backend, device, None)


def _obstacle(backend: Backend, device: torch.device, kernel: Kernel | None) -> str | None:
    try:
        first, second = backend.obstacle(device, kernel), backend.obstacle(device, kernel)
    except Exception as error:
        law = f"obstacle: `obstacle` of the backend {backend.name!r} raises for {kernel!r}: {type(error).__name__}: {error}"
        raise AssertionError(f"{law}; expected a reason or None") from error
    if first != second or first == "":
        raise AssertionError(f"obstacle: two calls for {kernel!r} give {first!r} and {second!r}; expected one reason, or None")
    return first


class _Check:
    """The checks of a backend with one kernel and in one precision."""

    def __init__(self, backend: Backend, kernel: Kernel, dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self.backend, self.kernel, self.dim, self.device, self.dtype = backend, kernel, dim, device, dtype
        self.exact = copy.deepcopy(kernel).double()
        self.bound = BOUNDS[dtype] if dtype in BOUNDS else 1e3 * torch.finfo(dtype).eps

    def run(self, places: dict[str, tuple[float, float]]) -> None:
        problem = self.draw()
        self.weights_of_zero(problem)
        for place, (offset, scale) in places.items():
            there = self.draw(offset=offset, scale=scale)
            self.values(there, place)
            self.gradients(there, place)
        self.coincident_points()
        self.batches()
        self.strides(problem)
        self.maxima()
        if self.backend.differentiable:
            for place, (offset, scale) in places.items():
                self.derivatives(self.draw(offset=offset, scale=scale), place, scale)
            self.derivatives(self.draw(batch=(2,)), "in a batch", 1.0)
        if self.backend.transforms:
            try:
                self.transforms()
            except AssertionError:
                raise
            except Exception as error:
                law = f"transforms: the backend declares them, but they raise {type(error).__name__}: {str(error)[:200]}"
                raise AssertionError(f"{law}{self._where()}") from error

    def draw(self, **options: Any) -> Pairs:
        return Pairs.draw(self.dim, self.device, self.dtype, **options)

    # The three operations. Each call is repeated, and its arguments are compared with copies of them.

    def sum_pairs(self, p: Pairs, kernel: Kernel | None = None) -> Tensor:
        kernel = self.kernel if kernel is None else kernel
        call = lambda *t: self.backend.sum_pairs(kernel, *t)  # noqa: E731
        return self._call("sum_pairs", call, (p.x, p.y, p.b), (*p.x.shape[:-1], p.b.shape[-1]))

    def sum_gradients(self, p: Pairs) -> Tensor:
        call = lambda *t: self.backend.sum_gradients(self.kernel, *t)  # noqa: E731
        return self._call("sum_gradients", call, (p.x, p.y, p.b[..., 0]), tuple(p.x.shape))

    def max_pairs(self, x: Tensor, y: Tensor, alive: Tensor) -> Tensor:
        call = lambda *t: self.backend.max_pairs(self.kernel, *t)  # noqa: E731
        return self._call("max_pairs", call, (x, y, alive), tuple(x.shape[:-1]))

    def _call(self, name: str, call: Callable[..., Tensor], args: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        before = [t.detach().clone() for t in args]
        try:
            with torch.no_grad():
                first, second = call(*args), call(*args)
        except Exception as error:
            law = f"obstacle: none is named, but `{name}` raises {type(error).__name__}: {str(error)[:200]}"
            raise AssertionError(f"{law}{self._where()}. {REFUSE}") from error
        for argument, (now, then) in zip(("x", "y", "the third argument"), zip(args, before, strict=True), strict=True):
            if not torch.equal(now, then):
                where = f"{argument} is changed by up to {float((now.double() - then.double()).abs().max()):.3g}"
                raise AssertionError(f"arguments: `{name}` modifies them: {where}{self._where()}")
        if tuple(first.shape) != shape or first.dtype != self.dtype or first.device.type != self.device.type:
            seen, wanted = (tuple(first.shape), first.dtype, first.device.type), (shape, self.dtype, self.device.type)
            raise AssertionError(f"result: `{name}` gives {seen}, expected {wanted}{self._where()}")
        if name != "max_pairs":
            self._close(second, first, f"repetition: a second call of `{name}` gives another result", units=10.0)
        return first

    # The laws.

    def weights_of_zero(self, p: Pairs) -> None:
        near, far = p.y[..., :2, :] + 0.3, p.y[..., :2, :] + 100.0
        longer = Pairs(p.x, torch.cat([p.y, near, far], -2), torch.cat([p.b, torch.zeros_like(p.b[..., :4, :])], -2))
        for name, sums in (("sum_pairs", self.sum_pairs), ("sum_gradients", self.sum_gradients)):
            law = f"weights of zero: points of weight zero change `{name}`"
            self._close(sums(longer), sums(p), law, rtol=self.bound, hint="Are the terms multiplied by the weights?")

    def values(self, p: Pairs, place: str) -> None:
        law = f"values: `sum_pairs` {place} is not sum_j k(x_i, y_j) b_j"
        self._near(self.sum_pairs(p), exact_sum(self.exact, p), law, REFUSE)

    def gradients(self, p: Pairs, place: str) -> None:
        law = f"gradients: `sum_gradients` {place} is not the gradient of `sum_pairs` in x"
        hint = "Is the sign right? Are distances computed from differences?"
        self._near(self.sum_gradients(p), exact_gradient(self.exact, p), law, hint)

    def coincident_points(self) -> None:
        if not self.kernel.is_radial:
            return
        point = self.draw(offset=1.0).x[..., :1, :]
        p = Pairs(point, point.clone(), point.new_ones(1, 1))
        law = "coincident points: the gradient of a function of |x - y| at x = y is not zero"
        self._close(self.sum_gradients(p), torch.zeros_like(point), f"{law}, in `sum_gradients`", units=0.0)
        if self.backend.differentiable:
            x, y = leaves(point, point)
            with torch.enable_grad():
                found = gradients(self.backend.sum_pairs(self.kernel, x, y, p.b).sum(), [x, y])
            for name, g in zip("xy", found, strict=True):
                self._close(g, torch.zeros_like(g), f"{law}, by autograd in {name}", units=0.0)

    def batches(self) -> None:
        for batch in ((3,), (2, 2)):
            p = self.draw(batch=batch)
            for name, sums in (("sum_pairs", self.sum_pairs), ("sum_gradients", self.sum_gradients)):
                whole = sums(p)
                for i in torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)).tolist():
                    at = tuple(i)
                    law = f"batches: entry {at} of `{name}` of a batch of shape {batch} is not the sum of that entry alone"
                    self._close(whole[at], sums(Pairs(p.x[at], p.y[at], p.b[at])), law, rtol=self.bound)
        scaled = self.kernel * torch.tensor([0.5, 2.0, 3.0], dtype=self.dtype, device=self.device)
        if _obstacle(self.backend, self.device, scaled) is None:
            p = self.draw(batch=(3,))
            factors = p.b.new_tensor([0.5, 2.0, 3.0])[:, None, None]
            law = "batches: a kernel with one parameter for each entry of the batch is summed wrongly"
            self._close(self.sum_pairs(p, scaled), factors * self.sum_pairs(p), law, rtol=self.bound)

    def strides(self, p: Pairs) -> None:
        padded = torch.stack([p.y, p.y + 1.0], -2).flatten(-3, -2)[..., ::2, :]
        strided = Pairs(p.x.mT.contiguous().mT, padded, torch.stack([p.b, p.b + 1.0], -1)[..., 0])
        for name, sums in (("sum_pairs", self.sum_pairs), ("sum_gradients", self.sum_gradients)):
            law = f"strides: `{name}` of tensors that are not contiguous differs from that of contiguous ones"
            self._close(sums(strided), sums(p), law, rtol=self.bound)

    def maxima(self) -> None:
        p = self.draw(batch=(2,))
        x, y = p.x.double(), p.y.double()
        values = self.exact.pair(x.unsqueeze(-2), y.unsqueeze(-3)).detach()
        if not bool((values > 0).all()):
            return  # no logarithm
        logarithms = self.exact.log_pair(x.unsqueeze(-2), y.unsqueeze(-3)).detach()
        alive = torch.ones(p.y.shape[:-1], dtype=torch.bool, device=self.device)
        alive.scatter_(-1, logarithms.amax(-2).argmax(-1, keepdim=True), False)  # the largest of all is dead
        expected = logarithms.masked_fill(~alive.unsqueeze(-2), -torch.inf).amax(-1)
        law = "maxima: `max_pairs` is not the largest log k(x_i, y_j) over the points that are alive"
        hint = "Does it count points that are not alive?"
        found, unit = self.max_pairs(p.x, p.y, alive).double(), 1.0 + expected.abs()
        self._close(found / unit, expected / unit, law, scale=1.0, rtol=self.bound, hint=hint)
        largest = self.max_pairs(p.x, p.y, torch.zeros_like(alive)).max()
        if not largest <= 0.5 * torch.finfo(self.dtype).min:
            raise AssertionError(f"maxima: `max_pairs` is {largest:.6g} where no point is alive, expected -inf{self._where()}")

    def derivatives(self, p: Pairs, place: str, distance: float) -> None:
        """Derivatives of ``sum_ik c_ik S_ik`` and Hessian-vector products, against those of the terms.

        ``distance``: a typical distance of the points, to judge second derivatives that are zero.
        """
        own = [t for t in self.kernel.parameters() if t.requires_grad]
        g = torch.Generator().manual_seed(1)
        x, y, b = leaves(p.x, p.y, p.b)
        inputs = [x, y, b, *own]
        directions = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(self.device) for t in inputs]
        cotangent = torch.randn(*p.x.shape[:-1], p.b.shape[-1], generator=g, dtype=torch.float64).to(self.device)
        try:
            with torch.enable_grad():
                total = self.backend.sum_pairs(self.kernel, x, y, b)
                first = gradients((total * cotangent.to(self.dtype)).sum(), inputs, create_graph=True)
                moved = sum((d.to(t.dtype) * t).sum() for t, d in zip(first, directions, strict=True))
                second = gradients(moved, inputs)
        except Exception as error:
            law = f"derivatives: the backend declares `differentiable`, but autograd raises {type(error).__name__}: {error}"
            raise AssertionError(f"{law}{self._where()}") from error
        exact_first, exact_second = exact_derivatives(self.exact, p, cotangent, directions, distance)
        names = ["x", "y", "b", *(f"a parameter of the kernel (number {i})" for i in range(len(own)))]
        for order, found, exact, loss in (("first", first, exact_first, 10.0), ("second", second, exact_second, 100.0)):
            for name, actual, expected in zip(names, found, exact, strict=True):
                law = f"derivatives: the {order} derivative of `sum_pairs` in {name} {place} is wrong"
                size = expected.size.max()
                hint = "Is something detached, or missing from the graph?"
                self._close(actual.double() / size, expected.value / size, law, scale=1.0, rtol=loss * self.bound, hint=hint)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            gradient = self.backend.sum_gradients(self.kernel, x, p.y, p.b[..., 0])
            (product,) = gradients((gradient * directions[0].to(self.dtype)).sum(), [x])
        weights = torch.zeros_like(cotangent)
        weights[..., 0] = 1.0
        flat = [directions[0], *(torch.zeros_like(d) for d in directions[1:])]
        expected = exact_derivatives(self.exact, p, weights, flat, distance)[1][0]
        size = expected.size.max()
        law = f"derivatives: the derivative of `sum_gradients` in x {place} is wrong"
        self._close(product.double() / size, expected.value / size, law, scale=1.0, rtol=100.0 * self.bound)

    def transforms(self) -> None:
        p = self.draw(batch=(3,))
        whole = self.sum_pairs(p)

        def sums(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
            return self.backend.sum_pairs(self.kernel, x, y, b)

        law = "transforms: the backend declares them, but `sum_pairs` under"
        self._close(torch.vmap(sums)(p.x, p.y, p.b), whole, f"{law} torch.vmap is another", rtol=self.bound)
        by_func = torch.func.grad(lambda x: sums(x, p.y, p.b).sum())(p.x)
        leaf = p.x.detach().requires_grad_()
        with torch.enable_grad():
            (by_autograd,) = gradients(sums(leaf, p.y, p.b).sum(), [leaf])
        self._close(by_func, by_autograd, f"{law} torch.func.grad has another derivative", rtol=10.0 * self.bound)
        direction = torch.ones_like(p.x)
        slope = torch.func.jvp(lambda x: sums(x, p.y, p.b).sum(), (p.x,), (direction,))[1]
        size = by_autograd.abs().sum()
        self._close(slope, by_autograd.sum(), f"{law} torch.func.jvp has another derivative", scale=size, rtol=10.0 * self.bound)

    def _near(self, actual: Tensor, expected: ExactSum, law: str, hint: str) -> None:
        """Entry by entry, in units of the sum of absolute terms."""
        size = torch.where(expected.size > 0, expected.size, 1.0)
        law = f"{law}, in units of the sum of absolute terms"
        self._close(actual.double() / size, expected.value / size, law, scale=1.0, rtol=self.bound, hint=hint)

    def _close(self, actual: Tensor, expected: Tensor, law: str, **options: Any) -> None:
        assert_close(actual, expected, f"{law}{self._where()}", **options)

    def _where(self) -> str:
        return f" ({self.backend.name!r}, {self.kernel!r}, {self.dtype})"
