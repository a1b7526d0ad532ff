"""Sums over atoms that are spread over the ranks of a process group: each rank computes the rows of its own points.

A measure is sharded if its tensors are DTensors that are split along the atoms. PyTorch itself does what it can with these; the
sums over pairs are here, since each rank needs the atoms of all others for them. If autograd records, they are gathered; if
not, they travel in a ring, and no rank holds more than two shards (shards, T20). For its own rows a rank uses the
backend that `choose` names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from ddeq.autodiff import OpenModule
from ddeq.kernels import Kernel
from ddeq.measures import DiscreteMeasure, unchecked
from ddeq.ranks.dtensors import local, united
from ddeq.reductions import dense
from ddeq.reductions.backends import Backend
from ddeq.reductions.choice import chosen

__all__ = ["SHARDED", "Sharded", "gather", "join_shards", "shard"]

Mesh = DeviceMesh | dist.ProcessGroup


def shard(mu: DiscreteMeasure, mesh: Mesh) -> DiscreteMeasure:
    """The measure with its atoms spread over the ranks. Each rank passes all of ``mu`` and keeps its own part.

    Functionals and flows accept it like any other measure, with the same values and derivatives (shards, T20). All
    ranks must make the same calls. It is padded with atoms of mass zero until all ranks have equally many.

    Parameters
    ----------
    mu
        The same measure on every rank.
    mesh
        A one-dimensional ``DeviceMesh``, or a process group.

    Raises
    ------
    ValueError
        If ``mesh`` has more than one dimension.

    Notes
    -----
    `join_shards` is for measures too large for one rank; `gather` gives the whole measure again, on every rank.

    References
    ----------
    :cite:t:`liu2023ring`, on passing shards around a ring.
    """
    mesh = _line_of(mesh, mu.device)
    mu = mu.pad_atoms(-mu.n % mesh.size())
    return _map(mu, lambda t, dim: distribute_tensor(t, mesh, [Shard(dim)], src_data_rank=None))


def join_shards(part: DiscreteMeasure, mesh: Mesh) -> DiscreteMeasure:
    """The measure whose atoms are those of the ``part`` of every rank. All parts have equally many atoms; none is sent.

    Raises
    ------
    ValueError
        If the ranks' parts differ in shape, or ``mesh`` has more than one dimension.
    """
    mesh = _line_of(mesh, part.device)
    shapes: list[Any] = [None] * mesh.size()
    own = [None if t is None else tuple(t.shape) for t in (part.points, part.weights, part.marks)]
    dist.all_gather_object(shapes, own, group=mesh.get_group())
    if any(shape != own for shape in shapes):
        raise ValueError(f"part: expected the same shapes on every rank, got {shapes}; use pad_atoms where there are fewer atoms")
    return _map(part, lambda t, dim: DTensor.from_local(t, mesh, [Shard(dim)], run_check=False))


def gather(mu: DiscreteMeasure) -> DiscreteMeasure:
    """The whole measure, on every rank; without the history of its tensors."""
    return _map(mu.detach(), lambda t, dim: t.full_tensor() if isinstance(t, DTensor) else t)


class Sharded(Backend):
    """Sums of DTensors. It is not registered: whoever sums sharded tensors gets it."""

    name = "sharded"

    def obstacle(self, device: torch.device, kernel: Kernel | None) -> str | None:
        return None

    def sum_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m c"],
    ) -> Float[Tensor, "*batch n c"]:
        return _sum(_KernelSum(kernel, lambda backend, *args: backend.sum_pairs(*args)), x, y, b, -2)

    def sum_gradients(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        b: Float[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n d"]:
        return _sum(_KernelSum(kernel, lambda backend, *args: backend.sum_gradients(*args)), x, y, b, -1)

    @torch.no_grad()
    def max_pairs(
        self,
        kernel: Kernel,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch m d"],
        alive: Bool[Tensor, "*batch m"],
    ) -> Float[Tensor, "*batch n"]:
        run = _KernelSum(kernel, lambda backend, *args: backend.max_pairs(*args), torch.maximum)
        return _sum(run, x, y, alive, -1)

    def sum_function(
        self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, b: Tensor, module: nn.Module | None = None
    ) -> Tensor:
        """``sum_j function(x_i, y_j) b_j``, as `dense.sum_function`."""
        return _sum(_FunctionSum(function, module), x, y, b, -2)

    def by_rows(self, function: Callable[[Tensor, DiscreteMeasure], Tensor], x: Tensor, mu: DiscreteMeasure) -> Tensor:
        """``function(x, mu)`` with one row for each point of ``x``: each rank computes its own rows and needs all of ``mu``."""
        mesh = _mesh_of(x, mu.points, mu.weights)
        rows = _is_split(x)
        gathered = _map(mu.with_marks(None), lambda t, dim: local(t, mesh, Replicate(), _dual(Replicate(), rows)))
        own = Shard(x.ndim - 2) if rows else Replicate()
        result = function(local(x, mesh, own, own), gathered)
        return united(result, mesh, own, own)

    def sum_over_items(self, function: Callable[..., Tensor], items: Tensor, *tensors: Tensor) -> Tensor:
        """``function(items, *tensors)``, a sum over ``items``: each rank takes some of the items, and all of the ``tensors``."""
        mesh = _mesh_of(items, *tensors)
        rank, size = mesh.get_local_rank(), mesh.size()
        items, *rest = [local(t, mesh, Replicate(), Partial()) for t in (items, *tensors)]
        total = function(items[rank::size] if rank < len(items) else items[:1], *rest)
        return united(total if rank < len(items) else 0.0 * total, mesh, Partial(), Replicate())


SHARDED = Sharded()


class _KernelSum(nn.Module):
    """One of the sums of a kernel, by the backend that a rank chooses for its part; ``joined`` joins the results of two parts."""

    def __init__(
        self,
        kernel: Kernel,
        run: Callable[[Backend, Kernel, Tensor, Tensor, Tensor], Tensor],
        joined: Callable[[Tensor, Tensor], Tensor] = torch.add,
    ) -> None:
        super().__init__()
        self.kernel, self.run, self.joined = kernel, run, joined

    def forward(self, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return self.run(chosen(self.kernel, x, y, b), self.kernel, x, y, b)


class _FunctionSum(nn.Module):
    """A sum of a function of pairs."""

    joined = staticmethod(torch.add)

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], module: nn.Module | None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return dense.sum_function(self.function, x, y, b, self.module)


def _sum(operation: _KernelSum | _FunctionSum, x: Tensor, y: Tensor, b: Tensor, atoms: int) -> Tensor:
    """The operation on the rows ``x`` and the columns ``y`` and ``b``, whose dimension ``atoms`` counts atoms."""
    mesh = _mesh_of(x, y, b)
    rows, columns = _is_split(x), _is_split(y) or _is_split(b)
    call = OpenModule(operation)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, b, *call.tensors))
    row, column, other = Shard(x.ndim - 2), Shard(y.ndim - 2), Shard(b.ndim + atoms)
    shared = _dual(Replicate(), rows or columns)
    own = (row, row) if rows else (Replicate(), shared)
    tensors = [local(t, mesh, Replicate(), shared) for t in call.tensors]
    x = local(x, mesh, *own)
    if rows and columns and not recorded:
        parts = [local(t, mesh, place, place) for t, place in ((y, column), (b, other))]
        result = _around(lambda *part: call(tensors, x, *part), parts, operation.joined, mesh)
    else:
        places = [(column, column), (other, other)] if columns and not rows else [(Replicate(), shared)] * 2
        result = call(tensors, x, *(local(t, mesh, *place) for t, place in zip((y, b), places, strict=True)))
    if rows or not columns:
        return united(result, mesh, *((row, row) if rows else (Replicate(), Replicate())))
    if operation.joined is torch.maximum:
        return united(result, mesh, Partial("max"), Replicate())
    return united(result, mesh, Partial(), Replicate())


def _around(
    function: Callable[..., Tensor], parts: list[Tensor], joined: Callable[[Tensor, Tensor], Tensor], mesh: DeviceMesh
) -> Tensor:
    """``function`` of the ``parts`` of each rank in turn, joined; the next parts arrive while it is computed."""
    group, rank, size = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    ahead, behind = (dist.get_global_rank(group, (rank + step) % size) for step in (1, -1))
    parts = [part.contiguous() for part in parts]
    total = None
    for step in range(size):
        coming, transfers = [], []
        if step < size - 1:
            coming = [torch.empty_like(part) for part in parts]
            sends = [dist.P2POp(dist.isend, part, ahead, group) for part in parts]
            receives = [dist.P2POp(dist.irecv, part, behind, group) for part in coming]
            transfers = dist.batch_isend_irecv(sends + receives)
        result = function(*parts)
        total = result if total is None else joined(total, result)
        for transfer in transfers:
            transfer.wait()
        parts = coming
    assert total is not None
    return total


def _dual(place: Placement, differs: bool) -> Placement:
    """Placement of the derivative in a tensor placed at ``place``; ``differs``: whether the ranks use it differently."""
    return Partial() if differs and place.is_replicate() else place


def _is_split(t: Tensor) -> bool:
    return isinstance(t, DTensor) and t.placements[0].is_shard()


def _mesh_of(*tensors: Tensor) -> DeviceMesh:
    meshes = {t.device_mesh for t in tensors if isinstance(t, DTensor)}
    if len(meshes) != 1 or next(iter(meshes)).ndim != 1:
        raise ValueError(f"mesh: expected one line of ranks for all measures, got {sorted(map(str, meshes))}")
    return meshes.pop()


def _line_of(mesh: Mesh, device: torch.device) -> DeviceMesh:
    if isinstance(mesh, dist.ProcessGroup):
        mesh = DeviceMesh.from_group(mesh, device.type)
    if mesh.ndim != 1:
        raise ValueError(f"mesh: expected one dimension, along which atoms are spread, got {mesh.ndim}; use mesh['its name']")
    return mesh


def _map(mu: DiscreteMeasure, f: Callable[[Tensor, int], Tensor]) -> DiscreteMeasure:
    """``f`` of each of the measure's tensors and the dimension of it that counts atoms."""
    marks = None if mu.marks is None else f(mu.marks, mu.marks.ndim - 2)
    return unchecked(f(mu.points, mu.points.ndim - 2), f(mu.weights, mu.weights.ndim - 1), marks)
