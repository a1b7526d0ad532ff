"""A functional with every tensor that may require grad laid open, so that derivatives of what it defines in all are possible."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddeq.autodiff import OpenModule, strangers
from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure, unchecked

__all__ = ["BoundFunctional"]


class BoundFunctional:
    """The Wasserstein gradient of ``functional`` at the atoms, as a function of where they lie.

    `tensors` holds what else it may depend on: the weights and marks of ``mu``, the parameters of the functional, and those
    of its buffers that require grad, such as targets and coefficients.

    Parameters
    ----------
    functional
        The energy.
    mu
        Measures whose weights and marks the atoms have.
    keep
        The entries of the first batch dimension that are wanted; of the others the gradient is zero, and does not depend on
        anything. The functional must be `selectable <ddeq.Functional.selectable>`.
    """

    def __init__(self, functional: Functional, mu: DiscreteMeasure, keep: Tensor | None = None) -> None:
        self.functional, self.mu, self.keep = functional, mu, keep
        self._gradient = OpenModule(_Gradient(functional))
        given = [mu.weights] + ([] if mu.marks is None else [mu.marks])
        self.tensors: list[Tensor] = given + self._gradient.tensors

    def gradient_of(self, points: Tensor, *tensors: Tensor) -> Tensor:
        """The gradient ``(*batch, n, d)`` as a function of all tensors, in the order of `tensors`."""
        weights, *rest = tensors
        marks = None if self.mu.marks is None else rest.pop(0)
        value: Tensor = self._gradient(rest, unchecked(points, weights, marks), self.keep)
        return value

    def watch(self, points: Tensor) -> Tensor:
        """The gradient, detached, after a look for tensors that require grad and entered unseen.

        Raises
        ------
        ValueError
            If a tensor that requires grad takes part and is none of `tensors`.
        """
        points = points.detach()
        value, unseen = strangers(lambda *t: self.gradient_of(points, *t), *self.tensors)
        if unseen:
            shapes = ", ".join(str(tuple(t.shape)) for t in unseen)
            raise ValueError(
                f"functional: tensors of shapes {shapes} that require grad enter {self.functional!r} from outside, where their "
                "gradient would be lost. Let an nn.Module hold them, as parameters or buffers: a potential that is a module "
                "instead of a function, coefficient * F, a target; or detach them"
            )
        return value


class _Gradient(nn.Module):
    """The one method of a functional that is wanted, as a `forward`: ``functional_call`` reaches nothing else."""

    def __init__(self, functional: Functional) -> None:
        super().__init__()
        self.functional = functional

    def forward(self, mu: DiscreteMeasure, keep: Tensor | None) -> Tensor:
        if keep is None:
            return self.functional.wasserstein_gradient(mu)
        chosen = self.functional.select(keep, mu.batch_shape).wasserstein_gradient(mu[keep])
        return torch.zeros_like(mu.points).index_copy(0, keep, chosen)
