"""What a kernel is: `Kernel`, `RadialKernel`, and their sums and multiples."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddeq.autodiff import graph_leaves
from ddeq.held import Holder, store
from ddeq.kernels.distances import squared_distances
from ddeq.kernels.symbols import Symbolic, logaddexp, shaped_like
from ddeq.measures import values_are_known

__all__ = ["Kernel", "RadialKernel", "ScaledKernel", "SumKernel", "positive"]


class Kernel(Holder):
    r"""A positive definite, or conditionally positive definite, kernel :math:`k(x, y)`.

    A new kernel writes `pair`. Kernels add and scale: ``Gaussian(1.0) + 0.5 * Laplace(0.1)``.
    """

    smooth_on_the_diagonal: bool = True
    """Whether the kernel is twice differentiable at ``x = y``."""
    positive_definite: bool = True
    """Whether it is the kernel of a Hilbert space of functions; if not, it is conditionally positive definite only."""
    is_radial: bool = False
    """Whether it has a `profile`: depends on the squared distance only."""
    runs_on_keops: bool = True
    """Whether KeOps differentiates `pair` rightly."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        changed = {"profile", "unit_profile"} & cls.__dict__.keys()
        if changed and "profile_and_derivative" not in cls.__dict__:  # a closed form that it inherits is of another profile
            cls.profile_and_derivative = Kernel.profile_and_derivative  # type: ignore[method-assign]

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        """``k(x, y)`` along the last dimension: ``(*batch, n, 1, d)`` and ``(*batch, 1, m, d)`` to ``(*batch, n, m)``.

        Written with arithmetic, ``exp``, ``log`` and ``sum(-1)`` it runs on every backend of `ddeq.reductions`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `pair`")

    def profile(self, s: Symbolic) -> Symbolic:
        r"""The kernel as a function of the squared distance :math:`s = |x - y|^2`, where it is radial."""
        raise NotImplementedError(f"{type(self).__name__} is not a function of the distance alone")

    def profile_and_derivative(
        self, s: Float[Tensor, "*batch n m"]
    ) -> tuple[Float[Tensor, "*batch n m"], Float[Tensor, "*batch n m"], float]:
        """The `profile` of a radial kernel, and a tensor and a number whose product is its derivative.

        Override it where a closed form is faster. By automatic differentiation by default. Both tensors are differentiable in
        what the kernel holds, not in ``s``.
        """
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = s.detach().requires_grad_()
            k = self.profile(leaf)
            recorded = recorded and graph_leaves(k) != {leaf}
            (slope,) = torch.autograd.grad(k, leaf, torch.ones_like(k), create_graph=recorded, materialize_grads=True)
        return (k if recorded else k.detach()), slope, 1.0

    def log_pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        """Logarithm of ``pair(x, y)``, of a positive kernel; override it where it is finite although `pair` underflows."""
        return self.pair(x, y).log()

    def forward(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Kernel matrix ``k(x_i, y_j)``. For sums against measures use `ddeq.reductions`, which never stores it."""
        matrix: Tensor = self.pair(x.unsqueeze(-2), y.unsqueeze(-3))
        return matrix

    def log_matrix(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Logarithm of the kernel matrix ``k(x_i, y_j)``, of a positive kernel."""
        matrix: Tensor = self.log_pair(x.unsqueeze(-2), y.unsqueeze(-3))
        return matrix

    def log_integral(self, dim: int) -> float | Tensor:
        r""":math:`\log \int k(x, y) \,\mathrm dy` over :math:`\mathbb R^d`, which makes a density of the kernel.

        Parameters
        ----------
        dim
            The dimension :math:`d`.

        Raises
        ------
        ValueError
            If the kernel is not integrable, or depends on more than the distance.
        """
        raise ValueError(f"kernel: {self!r} is not a density: it has no finite integral that is the same around every point")

    def __add__(self, other: Kernel) -> SumKernel:
        return SumKernel(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> ScaledKernel:
        return ScaledKernel(self, factor) if isinstance(factor, Real | Tensor) else NotImplemented

    __rmul__ = __mul__
    __array_ufunc__ = None  # numbers of NumPy leave the product to us

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class RadialKernel(Kernel):
    """A kernel that depends on the squared distance only. A new one writes `profile`."""

    is_radial = True

    def profile(self, s: Symbolic) -> Symbolic:
        r"""The kernel as a function of the squared distance :math:`s = |x - y|^2`."""
        raise NotImplementedError(f"{type(self).__name__} must define `profile`")

    def log_profile(self, s: Symbolic) -> Symbolic:
        """Logarithm of `profile`, of a positive kernel."""
        return self.profile(s).log()

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self.profile(((x - y) ** 2).sum(-1))

    def log_pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self.log_profile(((x - y) ** 2).sum(-1))

    def forward(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Kernel matrix ``k(x_i, y_j)``. For sums against measures use `ddeq.reductions`, which never stores it."""
        matrix: Tensor = self.profile(squared_distances(x, y))
        return matrix

    def log_matrix(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Logarithm of the kernel matrix ``k(x_i, y_j)``, of a positive kernel."""
        matrix: Tensor = self.log_profile(squared_distances(x, y))
        return matrix


class SumKernel(Kernel):
    """Sum of two kernels, as ``k + l`` makes it.

    Parameters
    ----------
    first, second
        The two.
    """

    def __init__(self, first: Kernel, second: Kernel) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.smooth_on_the_diagonal = first.smooth_on_the_diagonal and second.smooth_on_the_diagonal
        self.positive_definite = first.positive_definite and second.positive_definite
        self.is_radial = first.is_radial and second.is_radial
        self.runs_on_keops = first.runs_on_keops and second.runs_on_keops

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self.first.pair(x, y) + self.second.pair(x, y)

    def profile(self, s: Symbolic) -> Symbolic:
        return self.first.profile(s) + self.second.profile(s)

    def profile_and_derivative(
        self, s: Float[Tensor, "*batch n m"]
    ) -> tuple[Float[Tensor, "*batch n m"], Float[Tensor, "*batch n m"], float]:
        (a, of_a, c), (b, of_b, d) = (k.profile_and_derivative(s) for k in (self.first, self.second))
        return a + b, c * of_a + d * of_b, 1.0

    def log_pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return logaddexp(self.first.log_pair(x, y), self.second.log_pair(x, y))

    def forward(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        total: Tensor = self.first(x, y) + self.second(x, y)
        return total

    def log_matrix(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        return torch.logaddexp(self.first.log_matrix(x, y), self.second.log_matrix(x, y))

    def log_integral(self, dim: int) -> float | Tensor:
        return torch.logaddexp(*(as_double(k.log_integral(dim)) for k in (self.first, self.second)))

    def __repr__(self) -> str:
        return f"{self.first!r} + {self.second!r}"


class ScaledKernel(Kernel):
    """Positive multiple of a kernel, as ``2.0 * k`` makes it.

    Parameters
    ----------
    kernel
        The kernel.
    factor
        A number, or a tensor of shape ``()`` or ``(*batch,)``; an ``nn.Parameter`` trains.

    Raises
    ------
    ValueError
        If the factor is not positive and finite.
    """

    def __init__(self, kernel: Kernel, factor: float | Tensor) -> None:
        super().__init__()
        self.factor: float | Tensor
        self.kernel = kernel
        self.smooth_on_the_diagonal = kernel.smooth_on_the_diagonal
        self.positive_definite = kernel.positive_definite
        self.is_radial = kernel.is_radial
        self.runs_on_keops = kernel.runs_on_keops
        store(self, "factor", positive("factor", factor))

    def pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self._times(self.kernel.pair(x, y))

    def profile(self, s: Symbolic) -> Symbolic:
        return self._times(self.kernel.profile(s))

    def profile_and_derivative(
        self, s: Float[Tensor, "*batch n m"]
    ) -> tuple[Float[Tensor, "*batch n m"], Float[Tensor, "*batch n m"], float]:
        k, slope, c = self.kernel.profile_and_derivative(s)
        if isinstance(self.factor, float):
            return self.factor * k, slope, self.factor * c
        return self._times(k), self._times(slope), c

    def log_pair(self, x: Symbolic, y: Symbolic) -> Symbolic:
        return self._plus_log(self.kernel.log_pair(x, y))

    def forward(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        scaled: Tensor = self._times(self.kernel(x, y))
        return scaled

    def log_matrix(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
        scaled: Tensor = self._plus_log(self.kernel.log_matrix(x, y))
        return scaled

    def log_integral(self, dim: int) -> float | Tensor:
        c = self.factor
        return self.kernel.log_integral(dim) + (c.log() if isinstance(c, Tensor) else math.log(c))

    def _times(self, k: Symbolic) -> Symbolic:
        return k * shaped_like(k, self.factor)

    def _plus_log(self, k: Symbolic) -> Symbolic:
        c = shaped_like(k, self.factor)
        return k + (math.log(c) if isinstance(c, float) else c.log())

    def __repr__(self) -> str:
        inner = f"({self.kernel!r})" if isinstance(self.kernel, SumKernel) else repr(self.kernel)
        return f"{shown(self.factor)} * {inner}"


def positive(name: str, value: float | Tensor) -> float | Tensor:
    """``value``, or a `ValueError` with its ``name`` if it is not positive and finite."""
    if isinstance(value, Tensor):
        if not values_are_known(value):
            return value
        right = 0.0 < value.item() < math.inf if value.numel() == 1 else bool(((value > 0) & torch.isfinite(value)).all())
        if not right:
            raise ValueError(f"{name}: expected positive finite values, got {value.detach().min().item()}")
        return value
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")
    return float(value)


def as_double(value: float | Tensor) -> Tensor:
    """A number as a tensor in double precision."""
    return value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def shown(value: float | Tensor) -> str:
    """A number as it is, a tensor by its value if it is one number, else by its shape."""
    if not isinstance(value, Tensor):
        return f"{value:g}"
    return f"{value.item():g}" if value.ndim == 0 and values_are_known(value) else f"tensor{tuple(value.shape)}"
