"""Products with the Jacobian of a map at a point, by forward mode or, where that is missing, by two reverse ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["by_forward_mode", "by_reverse_mode"]

Image = Callable[[Tensor], Tensor]


def by_forward_mode(image: Image, z: Tensor) -> Image:
    r"""The products :math:`v \mapsto \partial\Phi(z)\,v`, each with one evaluation of the map on dual numbers."""
    return lambda v: torch.func.jvp(image, (z,), (v,))[1]


def by_reverse_mode(image: Image, z: Tensor) -> Image:
    r"""The same from one evaluation for all: the derivative of :math:`u \mapsto \partial\Phi(z)^\top u` in direction
    :math:`v`."""
    with torch.enable_grad():
        y = z.detach().requires_grad_()
        value = image(y)
        if not value.requires_grad:
            return torch.zeros_like
        u = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, y, u, create_graph=True, materialize_grads=True)

    def product(v: Tensor) -> Tensor:
        if not pulled.requires_grad:
            return torch.zeros_like(v)
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True, materialize_grads=True)
        return pushed

    return product
