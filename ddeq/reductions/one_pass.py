"""When several sums over the same pairs are found in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from ddeq.autodiff import under_transforms
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import is_sharded
from ddeq.reductions.builtin import DENSE
from ddeq.reductions.dispatch import backend_for
from ddeq.reductions.integrals import integrate_kernel, integrate_kernel_gradient
from ddeq.reductions.pairs import are_summed_by_coordinates, sums_of_values_and_gradients
from ddeq.reductions.settings import rows_per_block

__all__ = ["in_one_pass", "integrate_kernel_with_gradient"]


def integrate_kernel_with_gradient(kernel: Kernel, x: Tensor, mu: DiscreteMeasure, values: Tensor) -> tuple[Tensor, Tensor]:
    r"""The integrals :math:`\int k(x_i, y) f(y) \,\mathrm d\mu(y)` of ``values`` :math:`f`, ``(*batch, m, c)``, and
    :math:`\int \nabla_1 k(x_i, y) \,\mathrm d\mu(y)`; differentiable at every order."""
    held = (*kernel.parameters(), *kernel.buffers())
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, mu.points, mu.weights, values, *held))
    if recorded or x.shape[:-2] != mu.batch_shape or is_sharded(x, mu.points) or not in_one_pass(kernel, x, mu):
        return integrate_kernel(kernel, x, mu, values), integrate_kernel_gradient(kernel, x, mu)
    return sums_of_values_and_gradients(kernel, x, mu.points, mu.weights.unsqueeze(-1) * values, mu.weights)


def in_one_pass(kernel: Kernel, x: Tensor, mu: DiscreteMeasure) -> bool:
    """Whether sums of `ddeq.reductions.pairs`, whose slopes are stored, take the place of those of the backend."""
    if under_transforms() or torch.compiler.is_compiling() or not are_summed_by_coordinates(kernel, x):
        return False
    few = rows_per_block(x, mu.points, 1, cached=True) >= x.shape[-2]
    return few and backend_for(kernel, x, mu.points, mu.weights) is DENSE
