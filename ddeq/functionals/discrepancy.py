"""What functionals that compare a measure with a target share."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ddeq.functionals.base import Functional
from ddeq.held import HeldMeasure, changed
from ddeq.measures import DiscreteMeasure
from ddeq.ranks import check_not_sharded

__all__ = ["Discrepancy", "DiscrepancyLike", "against"]


class Discrepancy(Functional):
    """A functional that compares measures with a ``target``: one for all, or one for each measure of the batch.

    The target is held as buffers; gradients reach it. A ``target`` that is no measure is a `ValueError`.
    """

    shardable: ClassVar[bool] = True
    """Whether its measures may be spread over ranks (`ddeq.reductions.shard`)."""

    def __init__(self, target: DiscreteMeasure) -> None:
        super().__init__()
        if not isinstance(target, DiscreteMeasure):
            raise ValueError(f"target: expected a DiscreteMeasure, got {type(target).__name__}")
        self._target = HeldMeasure(target)

    @property
    def target(self) -> DiscreteMeasure:
        """The measure with which others are compared."""
        held = self._modules["_target"]
        assert isinstance(held, HeldMeasure)
        return held.measure

    def with_target(self, target: DiscreteMeasure) -> Discrepancy:
        """The same discrepancy, settings and parameters shared, from another ``target``."""
        return changed(self, _target=HeldMeasure(target))

    def _target_for(self, mu: DiscreteMeasure) -> DiscreteMeasure:
        """The target in the batch shape of ``mu``, once they are known to fit."""
        target = self.target
        if not self.shardable:
            check_not_sharded("mu", mu.points, mu.weights, target.points)
        if mu.dim != target.dim:
            raise ValueError(f"mu: expected points of dimension {target.dim} as of the target, got {mu.dim}")
        if (mu.dtype, mu.device) != (target.dtype, target.device):
            raise ValueError(
                f"mu: expected {target.dtype} on {target.device} as of the target, got {mu.dtype} on {mu.device}; "
                "use .to(...) on the measure or the functional"
            )
        try:
            return target.expand(*mu.batch_shape)
        except RuntimeError:
            raise ValueError(f"mu: batch {mu.batch_shape} does not fit targets of batch {target.batch_shape}") from None

    def extra_repr(self) -> str:
        return f"target={self.target}"


DiscrepancyLike = Callable[[DiscreteMeasure], Functional] | Discrepancy
"""A function from a target to a functional, such as the class ``MMD`` or ``lambda nu: MMD(nu, Gaussian(1.0))``, or an
instance of a discrepancy, whose own target does not matter then."""


def against(discrepancy: DiscrepancyLike, target: DiscreteMeasure) -> Functional:
    """The functional that measures the discrepancy from ``target``.

    Raises
    ------
    ValueError
        If ``discrepancy`` is neither a `Discrepancy` nor a function from a measure to a functional.
    """
    if isinstance(discrepancy, Discrepancy):
        return _fixed(discrepancy.with_target(target))
    functional = discrepancy(target) if callable(discrepancy) and not isinstance(discrepancy, Functional) else None
    if not isinstance(functional, Functional):
        raise ValueError(
            "discrepancy: expected a Discrepancy such as MMD(target, kernel) or a function from a target to a Functional "
            f"such as `lambda nu: MMD(nu, kernel)`, got {discrepancy!r}"
        )
    return _fixed(functional)


def _fixed(functional: Functional) -> Functional:
    """The functional, once it is known not to be another one in each step: its target moves within steps."""
    if functional.varies:
        raise ValueError(f"discrepancy: expected one that is the same in each step, got {functional!r}; leave out resample=True")
    return functional
