"""`Solution`: an equilibrium, of a map or of a flow, with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddeq.held import copied
from ddeq.iteration.status import Status

__all__ = ["Solution", "shown_measures"]

FEW = 3
"""So many measures by name are shown with what they are."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What `fixed_point` or `flows.equilibrium` found, for each sample of the batch."""

    measure: Any
    """The iterate of least residual, or where a flow has ended; gradients flow as the adjoint says. Of several species a dict."""
    residual: Tensor
    r"""``(*batch,)``: relative residual at `measure`, in :math:`L^2(\mu)`. Of a fixed point it is
    :math:`|\Phi(\mu) - \mu| / (|\Phi(\mu)| + \text{atol}/\text{rtol})`, of a flow
    :math:`|\nabla_W F(\mu)| / (|\nabla_W F(\mu_0)| + \text{atol}/\text{rtol})`, unless the `Stop` has a metric of its own. Where
    weights move it is :math:`2 |\sqrt{\Phi(w)} - \sqrt w|`, relative to the root of the mass; of points and weights, the root of
    the sum of both squares."""
    steps: Tensor
    """``(*batch,)``: steps taken until the sample finished."""
    status: Tensor
    """``(*batch,)``: `ddeq.iteration.Status` as whole numbers."""
    evaluations: int
    """Evaluations on the batch: of the map and of derivatives within a solver, or of the gradient and of products with its
    derivative."""
    error_bound: Tensor
    r"""``(*batch,)``: bound or estimate :math:`|\Phi(\mu) - \mu|_{L^2(\mu)} / (1 - L)` of the distance to the fixed point.

    A *bound*, up to rounding, where the map declares an upper bound ``lipschitz`` of its Lipschitz constant in
    :math:`L^2(\mu)`, as `ddeq.nn.ContractiveCell` does: then :math:`L` is that number. Else an *estimate* with the largest
    growth of differences between successive iterates that was seen in the place of :math:`L`: a lower estimate of the
    constant, so the distance may be larger. Infinite where :math:`L \ge 1` or unknown, and without such a declaration
    where the `Stop` has a metric of its own.
    """
    trace: Tensor | None = None
    """``(iterates, *batch)``: residuals on request; NaN once a sample has finished."""
    args: tuple[Any, ...] = ()
    """What the map was solved with, for diagnostics: ``spectral_radius(map, solution.measure, *solution.args)``."""

    used: dict[str, Tensor] = field(default_factory=dict)
    """``(*batch,)`` for each method that the solver has: steps that each sample took with it."""

    @property
    def converged(self) -> Tensor:
        """``(*batch,)``: which samples ended as CONVERGED."""
        return self.status == Status.CONVERGED.value

    def summary(self) -> str:
        """One line: how many samples ended how, and the largest residual."""
        counts = [f"{int((self.status == s.value).sum())} {s.name}" for s in Status if bool((self.status == s.value).any())]
        largest = f"{float(self.residual.max()):.1e}" if self.residual.numel() else "none"
        line = f"{', '.join(counts) or 'no samples'}; largest residual {largest}; {self.evaluations} evaluations"
        steps = [f"{int(n.sum())} of {name}" for name, n in self.used.items()]
        return line if len(steps) < 2 else f"{line}; steps: {', '.join(steps)}"

    def __deepcopy__(self, memo: dict[Any, Any]) -> Solution:
        copy: Solution = copied(self, memo)
        return copy

    def __repr__(self) -> str:
        return f"Solution({shown_measures(self.measure)}; {self.summary()})"


def shown_measures(measure: Any) -> str:
    """How a measure, or some by name, are shown: a few with what they are, many by their names alone."""
    if not isinstance(measure, Mapping) or len(measure) <= FEW:
        return repr(measure)
    names = list(measure)
    return f"{len(names)} measures, {names[0]!r} to {names[-1]!r}"
