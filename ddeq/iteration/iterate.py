"""`Iterate` and `Step`: what a method reads, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ddeq.draws import Draws

__all__ = ["Iterate", "Step"]


@dataclass(frozen=True, slots=True)
class Iterate:
    """What a method may read, for each sample of a batch that is still in the computation."""

    z: Tensor
    """The iterate, ``(*batch, ...)``."""
    residual: Tensor
    """The residual there: a field, which points to the solution."""
    norm: Tensor
    """Norm of the residual, ``(*batch,)``."""
    size: Tensor
    """What the norm is divided by to give the relative residual, ``(*batch,)``."""
    step: int
    """Number of the step."""
    draw: Draws | None = None
    """Random numbers, where the solve was given a generator."""
    previous: Iterate | None = None
    """The iterate before, whose own `previous` is None."""
    energy: Tensor | None = None
    """The energy at ``z``, ``(*batch,)``, if the last step has found it."""
    known_image: Tensor | None = None
    """``z + residual``, where the equation has computed it."""
    changes: tuple[Tensor, Tensor, Tensor] | None = None
    """``z``, ``z + residual`` and ``residual`` minus those of `previous`, where the equation has computed them."""
    most: int | None = None
    """Most steps that the stop allows, for a method that keeps to as many evaluations; None where it is not known."""
    made: Any = None
    """What the equation has made on the way to the residual: `Equation.evaluated`."""
    to_image: bool = False
    """Whether the step from here was to ``z + residual``, for all samples."""

    @property
    def image(self) -> Tensor:
        """``z + residual``: of a fixed point, the image of ``z``."""
        return self.z + self.residual if self.known_image is None else self.known_image

    def without_previous(self, to_image: bool) -> Iterate:
        """The iterate as the `previous` of the next one."""
        return Iterate(self.z, self.residual, self.norm, self.size, self.step, None, None, self.energy, to_image=to_image)

    def rows(self, keep: Tensor) -> Iterate:
        """That of the samples ``keep``."""
        return replace(
            self,
            z=self.z[keep],
            residual=self.residual[keep],
            norm=self.norm[keep],
            size=self.size[keep],
            draw=None if self.draw is None else self.draw.rows(keep),
            previous=None if self.previous is None else self.previous.rows(keep),
            energy=None if self.energy is None else self.energy[keep],
            known_image=None,
            changes=None,
            made=None,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of a `Method` gives."""

    z: Tensor
    """The next iterate, ``(*batch, ...)``."""
    state: Any
    """What the method remembers: a pytree whose tensors are ``(*batch, ...)``, or None."""
    evaluations: int = 0
    """Evaluations of the residual, on the batch, that the step has made besides the one it was given."""
    duration: float | Tensor | None = None
    """Time that the step took, one number or ``(*batch,)``; None where there is no time."""
    energy: Tensor | None = None
    """The energy at ``z``, ``(*batch,)``, where the step has found it."""
    status: Tensor | None = None
    """``(*batch,)``: the `Status` of samples that the method ends here, and -1 for the others; None: it ends none."""
    note: Tensor | None = None
    """``(*batch, k)``: what `Method.parts` counts."""
    to_image: bool = False
    """Whether ``z`` is the last iterate plus its residual, for all samples."""
