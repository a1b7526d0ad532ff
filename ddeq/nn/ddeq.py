"""`DDEQ`: a network whose output is the equilibrium measure of a cell in the context of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ddeq.autodiff import without_autocast
from ddeq.iteration import Stop
from ddeq.measures import DiscreteMeasure, check_mass
from ddeq.messages import warn
from ddeq.nn.dropout import draw_masks
from ddeq.nn.reference import Reference
from ddeq.solvers import Adjoint, Anderson, Implicit, Solution, Solver, fixed_point, jacobian_penalty

__all__ = ["DDEQ", "CollapseWarning"]

NOT_OF_ONE_MEASURE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU)
"""Layers that are not functions of one measure: they draw anew in each evaluation, or look at the rest of the batch."""


WITH_DROPOUT = (nn.MultiheadAttention, nn.RNNBase)


class CollapseWarning(UserWarning):
    """Atoms without marks end in one point where the cell contracts (T5)."""


class DDEQ(nn.Module):
    r"""Distributional deep equilibrium model: :math:`\mu^* = \Phi_\theta(\mu^*, \rho)` for an input measure :math:`\rho`.

    ``context = encoder(rho)`` runs once per input, in half precision under autocast; only ``cell(mu, context)`` runs inside
    the solve, in the precision of ``rho``: half of it has not the digits that an equilibrium needs. Training and
    evaluation return the same equilibrium for the same input, but for `ddeq.nn.Dropout`.

    Parameters
    ----------
    encoder
        Module from a `DiscreteMeasure` to a context: any pytree of tensors, each with the batch first.
    cell
        Module from a measure and a context to a measure of the same atoms at other points. It may have a method
        ``prepare(mu, context)`` for what depends on weights, marks and the context alone: it is called once, and what it
        gives, tensors with the batch first, is the context of the solve.
    reference
        Where the state starts and which marks its atoms bear.
    solver, stop, adjoint
        As in `ddeq.fixed_point`. The default tolerance suits single precision.

    Raises
    ------
    ValueError
        If the cell holds a layer that is random in each evaluation or depends on other samples: use `ddeq.nn.Dropout`
        and ``nn.LayerNorm``.

    Warns
    -----
    CollapseWarning
        If the atoms of the reference bear no marks.

    References
    ----------
    :cite:t:`geuter2025ddeqs`; :cite:t:`bai2019deep`, on deep equilibrium models.
    """

    def __init__(
        self,
        encoder: nn.Module,
        cell: nn.Module,
        reference: Reference,
        *,
        solver: Solver = Anderson(),
        stop: Stop = Stop(rtol=1e-3, max_steps=50),
        adjoint: Adjoint = Implicit(),
    ) -> None:
        super().__init__()
        for name, layer in cell.named_modules():
            if (isinstance(layer, NOT_OF_ONE_MEASURE) and getattr(layer, "p", 1.0) > 0) or (
                isinstance(layer, WITH_DROPOUT) and layer.dropout > 0
            ):
                raise ValueError(
                    f"cell: its layer {name!r} is a {type(layer).__name__}, which is no function of one measure; use "
                    "ddeq.nn.Dropout (one mask for all atoms and evaluations) or nn.LayerNorm"
                )
        if reference.mark_dim == 0:
            text = (
                "the reference has no marks: where the cell contracts, all atoms of the equilibrium lie in one point. "
                "Give the reference and the cell a mark_dim, or watch ddeq.nn.effective_support"
            )
            warn(CollapseWarning(text))
        self.encoder, self.cell, self.reference = encoder, cell, reference
        self.solver, self.stop, self.adjoint = solver, stop, adjoint

    def forward(self, rho: DiscreteMeasure, n: int | None = None, generator: torch.Generator | None = None) -> Solution:
        """The equilibrium for each input measure.

        Parameters
        ----------
        rho
            Input measures, each of positive mass.
        n
            Number of atoms of the state, where the reference allows another than its own.
        generator
            Randomness of the reference and of dropout.

        Raises
        ------
        ValueError
            If ``rho`` is no measure or has mass zero, or the cell draws random numbers in each evaluation (those of a generator
            of its own are noticed where they keep a solve from its tolerance).
        """
        if not isinstance(rho, DiscreteMeasure):
            raise ValueError(f"rho: expected a DiscreteMeasure, got {type(rho).__name__}")
        check_mass("rho", rho)
        context = _in_precision(self.encoder(rho), rho.dtype)
        if self.training:
            context = _with_masks(self.cell, context, rho, generator)
        start = self.reference(rho.batch_shape, rho.points, n, generator)
        prepare: Callable[..., Any] | None = getattr(self.cell, "prepare", None)
        in_dims = 0 if rho.batch_shape else None
        drawn = _random_states(rho.device)
        with without_autocast(rho.device):  # half precision has not the digits that an equilibrium needs
            context = context if prepare is None else prepare(start, context)
            solution = fixed_point(
                self.cell, start, context, in_dims=in_dims, solver=self.solver, stop=self.stop, adjoint=self.adjoint
            )
        drew = any(not torch.equal(*states) for states in zip(drawn, _random_states(rho.device), strict=True))
        if drew or (not bool(solution.converged.all()) and self._varies(solution)):
            raise ValueError(
                "cell: it draws random numbers in each evaluation, so that there is no equilibrium; use ddeq.nn.Dropout"
            )
        return solution

    @torch.no_grad()
    def _varies(self, solution: Solution) -> bool:
        """Whether the cell gives two images of one measure that differ by what the tolerance would notice."""
        with without_autocast(solution.measure.device):
            a, b = (self.cell(solution.measure.detach(), *solution.args).points.flatten(-2) for _ in range(2))
        return bool(((a - b).norm(dim=-1) > 0.1 * self.stop.rtol * a.norm(dim=-1)).any())

    def penalty(self, solution: Solution, *, samples: int | None = None, **options: Any) -> Tensor:
        """`ddeq.nn.jacobian_penalty` of the cell at a solution that `forward` gave, ``(*batch,)``.

        Parameters
        ----------
        solution
            The solution.
        samples
            Look at so many samples only, the first ones along the first dimension of the batch; None for all of them.
        options
            As there.
        """
        measure, args = solution.measure, solution.args
        if samples is not None:
            measure, args = tree_map_only(Tensor, lambda t: t[:samples], (measure, args))
        with without_autocast(measure.device):
            return jacobian_penalty(self.cell, measure, *args, **options)


def _random_states(device: torch.device) -> list[Tensor]:
    """Of PyTorch's own generators, which random layers use."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _in_precision(context: Any, dtype: torch.dtype) -> Any:
    """Floating point tensors of a context as the solve wants them, where the encoder ran in half precision."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, context)


def _with_masks(cell: nn.Module, context: Any, rho: DiscreteMeasure, generator: torch.Generator | None) -> Any:
    masks = draw_masks(cell, rho.batch_shape, rho.points, generator)
    if not masks:
        return context
    replace: Callable[..., Any] | None = getattr(context, "_replace", None)
    if replace is None or not hasattr(context, "masks"):
        raise ValueError(f"encoder: a cell with Dropout needs a ddeq.nn.Context, which carries its masks; got {type(context)}")
    return replace(masks=masks)
