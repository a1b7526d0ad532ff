"""Between the tensors of all ranks and each rank's own: PyTorch's DTensors, differentiable any number of times.

Importing this takes a second, which only those pay who spread measures over ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate

from ddeq.ranks import is_sharded

__all__ = ["local", "united"]


def local(given: Tensor, mesh: DeviceMesh, place: Placement, dual: Placement) -> Tensor:
    """A rank's own tensor of a ``given`` one, in the ``place`` wanted; what a rank says of its derivative is in ``dual``.

    ``dual`` is the place itself for a shard; for a tensor that all ranks have, ``Partial`` where they use it for different rows,
    and ``Replicate`` where all do the same with it. A plain tensor is the same on all ranks, and so is its derivative. PyTorch's
    own ``to_local`` is differentiable once.
    """
    own: Tensor = _Local.apply(given, mesh, place, dual)  # type: ignore[no-untyped-call]
    return own


def united(own: Tensor, mesh: DeviceMesh, given: Placement, home: Placement, place: Placement | None = None) -> Tensor:
    """The tensor of all ranks' ``own`` ones, which lie as ``given`` says, brought to ``home``: the transpose of `local`.

    ``place``: where its derivative is used; by default as ``given``, and whole where ranks have terms of a sum.
    """
    joined: Tensor = _United.apply(own, mesh, given, home, place)  # type: ignore[no-untyped-call]
    return joined


class _Local(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, mesh: DeviceMesh, place: Placement, dual: Placement) -> Tensor:
        ctx.mesh, ctx.place, ctx.dual = mesh, place, dual
        ctx.home = given.placements[0] if isinstance(given, DTensor) else None
        if not isinstance(given, DTensor):
            given = DTensor.from_local(given, mesh, [Replicate()], run_check=False)
        return given.redistribute(mesh, [place]).to_local().clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        home = ctx.home
        wanted = Replicate() if home is None or home.is_partial() else home
        made = united(cotangent, ctx.mesh, ctx.dual, wanted, ctx.place)
        plain: Any = _Plain
        return plain.apply(made) if home is None else made, None, None, None


class _United(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own: Tensor, mesh: DeviceMesh, given: Placement, home: Placement, place: Placement | None = None
    ) -> Tensor:
        ctx.mesh, ctx.given = mesh, given
        ctx.place = place or (Replicate() if given.is_partial() else given)
        return DTensor.from_local(own, mesh, [given], run_check=False).redistribute(mesh, [home])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return local(cotangent, ctx.mesh, ctx.place, ctx.given), None, None, None, None


class _Plain(torch.autograd.Function):
    """The tensor of which every rank has a copy, as that copy."""

    @staticmethod
    def forward(ctx: Any, given: DTensor) -> Tensor:
        ctx.mesh = given.device_mesh
        return given.to_local().clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        # A plain tensor that was computed with a DTensor has a DTensor for its derivative.
        return cotangent if is_sharded(cotangent) else united(cotangent, ctx.mesh, Replicate(), Replicate())
