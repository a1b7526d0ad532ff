"""A fixed point as a function of all tensors that its derivatives can reach, for checks of adjoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ddeq.iteration import Adjoint, Solver, Stop
from ddeq.measures import DiscreteMeasure
from ddeq.solvers import fixed_point
from ddeq.testing.purity import stated

__all__ = ["Map", "Problem", "gradients"]

Map = Callable[..., DiscreteMeasure]


class Problem:
    """A fixed point as a function of the tensors that its derivatives can reach, by name."""

    def __init__(
        self, adjoint: Adjoint, map: Map, mu0: DiscreteMeasure, args: tuple[Any, ...], in_dims: Any, solver: Solver, stop: Stop
    ) -> None:
        self.adjoint, self.map, self.mu0, self.in_dims, self.solver, self.stop = adjoint, map, mu0, in_dims, solver, stop
        self.leaves, self.spec = pytree.tree_flatten(args)
        self.own = {f"parameter {k}": p for k, p in map.named_parameters()} if isinstance(map, nn.Module) else {}
        self.inputs: dict[str, Tensor] = {"weights": mu0.weights} | ({} if mu0.marks is None else {"marks": mu0.marks})
        self.inputs |= {f"argument {i}": t for i, t in enumerate(self.leaves) if isinstance(t, Tensor) and t.is_floating_point()}
        g = torch.Generator().manual_seed(0)
        self.directions = {k: torch.randn(t.shape, generator=g, dtype=t.dtype).to(t) for k, t in self.all.items()}
        self.directions["weights"] = self.directions["weights"] * mu0.weights
        cotangent = torch.randn(mu0.points.shape, generator=g, dtype=mu0.dtype).to(mu0.points)
        self.cotangent = torch.where(mu0.support().unsqueeze(-1), cotangent, 0.0)

    @property
    def all(self) -> dict[str, Tensor]:
        return {k: t.detach() for k, t in (self.inputs | self.own).items()}

    def fresh(self) -> dict[str, Tensor]:
        """Leaves with these values that require grad."""
        return {k: t.clone().requires_grad_() for k, t in self.all.items()}

    def solve(self, tensors: dict[str, Tensor], **options: Any) -> Any:
        mu = self.mu0.with_weights(tensors["weights"]).with_marks(tensors.get("marks"))
        leaves = [tensors.get(f"argument {i}", t) for i, t in enumerate(self.leaves)]
        args = pytree.tree_unflatten(leaves, self.spec)
        own = {k.removeprefix("parameter "): tensors[k] for k in self.own}
        given: dict[str, Any] = {"in_dims": self.in_dims, "solver": self.solver, "stop": self.stop, "adjoint": self.adjoint}

        def run() -> Any:
            start = mu if "start" not in tensors else mu.with_points(tensors["start"])
            return fixed_point(self.map, start, *args, **(given | options))

        if not own:
            return run()
        return torch.func.functional_call(_Call(self.map, run), {f"module.{k}": t for k, t in own.items()}, ())

    def loss(self, tensors: dict[str, Tensor], **options: Any) -> Tensor:
        points = self.solve(tensors, **options).measure.points
        value: Tensor = ((points + 0.5 * points.square()) * self.cotangent).sum()
        return value

    def moved(self, name: str, t: float) -> dict[str, Tensor]:
        return self.fresh() | {name: (self.all[name] + t * self.directions[name]).requires_grad_()}


class _Call(nn.Module):
    """A function that runs while the parameters of a module are others."""

    def __init__(self, module: Any, run: Callable[[], Any]) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self) -> Any:
        return self.run()


def gradients(value: Tensor, tensors: dict[str, Tensor], law: str, create_graph: bool = False) -> dict[str, Tensor]:
    if not value.requires_grad:
        raise AssertionError(f"{law}: the solution has no history; is it computed under no_grad and never attached again?")
    with stated(law):
        grads = torch.autograd.grad(value, list(tensors.values()), allow_unused=True, create_graph=create_graph)
    found = dict(zip(tensors, grads, strict=True))
    for name, gradient in found.items():
        if gradient is None:
            raise AssertionError(f"{law}: they do not reach {name}; the solution is a function of all of `equation.tensors`")
        if not bool(torch.isfinite(gradient).all()):
            raise AssertionError(f"{law}: that in {name} is not finite")
    return found
