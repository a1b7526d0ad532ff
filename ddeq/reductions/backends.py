"""`Backend`, the abstract class of the code that sums over pairs of atoms, and the registry of backends."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ddeq.kernels import Kernel
from ddeq.reductions.settings import declare

__all__ = ["Backend", "named", "register", "register_lazily"]


class Backend(ABC):
    r"""Code that sums a kernel over pairs of points.

    A subclass gives itself a `name`, writes the four abstract methods and, where the defaults do not describe it, declares
    what it can do in the class attributes. Once `register` has been given an instance, ``with backend(name):`` uses it.
    `ddeq.testing.check_backend` tests it.

    The sums are differentiable by autograd, at every order, in the points, the weights and the tensors of the kernel, unless
    `differentiable` is False. The gradient of a function of :math:`|x - y|` at :math:`x = y` is zero. Distances are as exact
    as from differences of points: :math:`|x|^2 - 2 x \cdot y + |y|^2` alone cancels far from the origin. What a backward pass
    needs it keeps from the forward pass, settings such as `block_size` included. Arguments are never modified.
    """

    name: ClassVar[str] = ""
    """The name that `ddeq.reductions.backend` takes."""
    max_dim: ClassVar[int | None] = None
    """Largest dimension of the points; None if there is no bound."""
    differentiable: ClassVar[bool] = True
    """Whether autograd differentiates its sums at every order. If not, the dense backend runs where a graph is recorded."""
    transforms: ClassVar[bool] = False
    """Whether its sums run under the transforms of ``torch.func`` and under forward-mode differentiation."""
    specialised: ClassVar[bool] = False
    """Whether it is made for a few kernels. Other sums then run as with ``"auto"``, without a warning."""

    @abstractmethod
    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        """Why the backend cannot sum ``kernel`` on ``device``; None if it can.

        A kernel for which there is no obstacle is summed, and correctly. The text is part of a warning: for the same reason
        it is the same text, without the values of parameters.

        Parameters
        ----------
        device
            Where the points are.
        kernel
            The kernel; None stands for one that every backend can sum.
        """

    @abstractmethod
    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        r"""Sums :math:`\sum_j k(x_i, y_j)\, b_j`.

        Parameters
        ----------
        kernel
            The kernel :math:`k`.
        x, y
            Points ``(*batch, n, d)`` and ``(*batch, m, d)``.
        b
            Weights ``(*batch, m, c)`` of any sign: ``c`` sums are computed at once.
        """

    @abstractmethod
    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"]:
        r"""Sums :math:`\sum_j \nabla_1 k(x_i, y_j)\, b_j`: the gradient of `sum_pairs` in ``x``.

        Parameters
        ----------
        kernel, x, y
            As in `sum_pairs`.
        b
            Weights ``(*batch, m)`` of any sign.
        """

    @abstractmethod
    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        r"""Maxima :math:`\max_j \log k(x_i, y_j)` over the points of ``y`` that are ``alive``, without derivatives.

        Where no point is alive, the result is minus infinity, or as small as the dtype allows.

        Parameters
        ----------
        kernel
            A positive kernel :math:`k`.
        x, y
            Points ``(*batch, n, d)`` and ``(*batch, m, d)``.
        alive
            Mask ``(*batch, m)`` of the points of ``y`` that count.
        """

    def energy_of_difference(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        a: Float[Tensor, "*batch n"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch"] | None:
        r"""Energy :math:`\tfrac12 \iint k \,\mathrm d(\mu - \nu)^2` of weights ``a`` at ``x`` less weights ``b`` at ``y``.

        For a backend that has it at less than the cost of sums over pairs, which are taken where this is None.

        Parameters
        ----------
        kernel
            The kernel :math:`k`.
        x, a
            Points ``(*batch, n, d)`` and weights ``(*batch, n)`` of :math:`\mu`.
        y, b
            Points ``(*batch, m, d)`` and weights ``(*batch, m)`` of :math:`\nu`.
        """
        return None

    def gradients_of_difference(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        a: Float[Tensor, "*batch n"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"] | None:
        r"""Integrals :math:`\int \nabla_1 k(x_i, \cdot) \,\mathrm d(\mu - \nu)` at the points ``x`` of :math:`\mu` itself.

        For a backend that has them at less than the cost of `sum_gradients`, which is taken where this is None.

        Parameters
        ----------
        kernel, x, a, y, b
            As in `energy_of_difference`.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


_lock = threading.RLock()
_made: dict[str, Backend] = {}
_factories: dict[str, Callable[[], Backend]] = {}


def register(backend: Backend, *, replace: bool = False) -> None:
    """Make a backend available to ``ddeq.reductions.backend`` by its name.

    Parameters
    ----------
    backend
        An instance of a subclass of `Backend`.
    replace
        Whether it may take the place of a registered backend of the same name, as when a cell of a notebook runs again.

    Raises
    ------
    TypeError
        If it is no `Backend`, or has no name.
    ValueError
        If a backend of this name is registered already and ``replace`` is False, or the name is ``"auto"``.
    """
    _check_type(backend)
    with _lock:
        _check_free(backend.name, replace)
        _made[backend.name] = backend
        declare(backend.name)


def register_lazily(name: str, factory: Callable[[], Backend]) -> None:
    """Like `register`, for a backend that ``factory`` makes, and whose libraries it imports, at first use.

    Raises
    ------
    ValueError
        As `register`.
    """
    with _lock:
        _check_free(name, False)
        _factories[name] = factory
        declare(name)


def named(name: str) -> Backend:
    """The registered backend of this ``name``."""
    found = _made.get(name)
    if found is None:
        with _lock:  # one instance, whichever thread asks first
            found = _made.get(name) or _made.setdefault(name, _factories[name]())
    return found


def _check_type(backend: object) -> None:
    if not isinstance(backend, Backend):
        hint = "; pass an instance, not the class" if isinstance(backend, type) else ""
        raise TypeError(f"backend: expected an instance of ddeq.reductions.Backend, got {backend!r}{hint}")
    if not backend.name:
        raise TypeError(f"backend: {type(backend).__name__} has no `name`; set it in the class")


def _check_free(name: str, replace: bool) -> None:
    if name == "auto":
        raise ValueError("backend: the name 'auto' stands for the choice by size and device; give the backend another name")
    if not replace and (name in _made or name in _factories):
        raise ValueError(f"backend: one named {name!r} is registered already; give it another name, or pass replace=True")
