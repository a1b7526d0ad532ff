"""How a failed solve is reported: one class of warnings for each cause, and one exception."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = [
    "AdjointWarning",
    "ConvergenceError",
    "ConvergenceWarning",
    "DivergedWarning",
    "InnerProblemWarning",
    "NoDescentWarning",
    "SingularAdjointWarning",
    "SymmetryWarning",
    "UnconvergedWarning",
    "UnmatchedAtomsWarning",
    "UntrustedDerivativeWarning",
]


class ConvergenceWarning(UserWarning):
    """A solve did not converge, or a derivative cannot be trusted; the base class of one class for each cause.

    The text says what happened and what may help. It holds no numbers, so that Python shows it once for each line of code; the
    numbers are attributes.

    Parameters
    ----------
    message
        The text.
    failed
        Which samples the warning is about, ``(*batch,)``.
    residual
        Their residuals, ``(*batch,)``, of which the largest is kept.
    wanted
        The tolerance.
    """

    def __init__(
        self, message: str, *, failed: Tensor | None = None, residual: Tensor | float = float("nan"), wanted: float = float("nan")
    ) -> None:
        super().__init__(message)
        self.samples: list[int] = [] if failed is None else failed.detach().flatten().nonzero().flatten().tolist()
        """Numbers of the samples in the flattened batch."""
        self.failed: int = len(self.samples)
        """How many samples the warning is about."""
        self.total: int = 0 if failed is None else failed.numel()
        """How many samples there are."""
        if isinstance(residual, Tensor):
            residual = float(residual[failed].max()) if self.failed else 0.0
        self.residual: float = residual
        """The largest residual of these samples; NaN if there is none to tell."""
        self.wanted: float = wanted
        """The tolerance; NaN if there is none."""

    def details(self) -> str:
        """The numbers in words."""
        which = f"{self.failed} of {self.total} samples" if self.total else ""
        if self.total > 1:
            which += f" (numbers {', '.join(map(str, self.samples[:8]))}{', ...' * (self.failed > 8)})"
        residual = f"largest residual {self.residual:.1e}" if self.residual == self.residual else ""
        wanted = f"wanted {self.wanted:.1e}" if self.wanted == self.wanted else ""
        return ", ".join(part for part in (which, residual, wanted) if part)


class UnconvergedWarning(ConvergenceWarning):
    """Samples did not converge; their derivatives are taken where they ended."""


class DivergedWarning(ConvergenceWarning):
    """Samples diverged; their derivatives are zero."""


class UnmatchedAtomsWarning(ConvergenceWarning):
    """A measure equals its image in the metric of the stop, but its atoms are far from theirs: derivatives are inexact."""


class AdjointWarning(ConvergenceWarning):
    """The linear equations of a derivative were not solved to the tolerance."""


class SingularAdjointWarning(AdjointWarning):
    """The linear equations of a derivative are singular to the tolerance."""


class UntrustedDerivativeWarning(AdjointWarning):
    """A stationary measure has no derivative that can be trusted; it is set to zero."""


class SymmetryWarning(ConvergenceWarning):
    """A loss depends on what the symmetries of a functional leave open."""


class InnerProblemWarning(ConvergenceWarning):
    """An inner problem of a functional or of a step was not solved to its tolerance."""


class NoDescentWarning(ConvergenceWarning):
    """The velocity of a flow leads uphill, as in a game: methods that lower the energy would leave its equilibria."""


class ConvergenceError(RuntimeError):
    """A solve did not converge and the caller wanted an exception: ``message``; ``solution`` is what was found, or None."""

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution
