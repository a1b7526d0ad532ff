"""`check_memory`: does a functional that remembers give what it gives without a memory?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ddeq.functionals.base import Functional
from ddeq.measures import DiscreteMeasure
from ddeq.memory import check_memory as check_shapes
from ddeq.memory import memory_rows, restored_memory, saved_memory
from ddeq.testing.close import assert_close
from ddeq.testing.purity import stated
from ddeq.testing.samples import trial_measures_for

__all__ = ["check_memory"]

STEPS = 5
"""Measures on the path: small steps, and a jump."""


def check_memory(
    functional: Functional, measures: DiscreteMeasure | Sequence[DiscreteMeasure] | None = None, *, units: float = 2e4
) -> None:
    """Hold `ddeq.Functional.prepare` to its promise: whatever was remembered, results are those without a memory.

    Checked along a path from each measure, with small steps and a jump: value, first variation, Wasserstein gradient and
    derivatives, at the measure that was prepared for and at another one; that the memory keeps its structure and shapes, has
    one entry for each sample and no history; that samples can be left out; that a memory which was saved goes on; and that
    neither the functional, nor the measure, nor the memory is changed in place. A functional that `draws` is held to all but
    the comparison with results without a memory.

    Parameters
    ----------
    functional
        What to check.
    measures
        Where to begin; default: small ones, as in `check_functional`.
    units
        Rounding units of the dtype that are allowed, next to the ``tolerance`` of the functional.

    Raises
    ------
    AssertionError
        Saying which law broke, with numbers.
    """
    tried = trial_measures_for(functional)
    measures = tried if measures is None else measures
    for mu in [measures] if isinstance(measures, DiscreteMeasure) else measures:
        _check_path(functional, mu.detach(), units + 100.0 * functional.tolerance / torch.finfo(mu.dtype).eps)


def _check_path(functional: Functional, start: DiscreteMeasure, units: float) -> None:
    memory: Any = None
    generator = torch.Generator().manual_seed(0) if functional.draws else None
    for step, mu in enumerate(_path(start)):
        seed = None if generator is None else generator.get_state()
        prepared, following = _prepared(functional, mu, memory, step, generator)
        if memory is not None and _structure(following) != _structure(memory):
            raise AssertionError(
                f"memory: expected the structure and shapes that it had, {_structure(memory)}, got {_structure(following)}"
            )
        if generator is None:
            _compare(prepared, functional, mu, units, "memory: after `prepare`,")
            _compare(prepared, functional, _moved(mu, 0.1), units, "memory: at another measure than `prepare` had,")
        restored = restored_memory(following, saved_memory(following))
        if following is not None and restored is None:
            raise AssertionError("memory: it is not what it was when it is read from a file; keep to tensors, numbers and Cached")
        if memory is not None:
            saved = restored_memory(memory, saved_memory(memory))
            if generator is not None and seed is not None:
                generator.set_state(seed)
            again, _ = functional.prepare(mu, saved, step, generator)
            _compare(again, prepared, mu, units, "memory: after it was saved and read again,")
        if functional.removable and mu.batch_shape and mu.batch_shape[0] > 1:
            _check_rows(functional, prepared, following, mu, step, units)
        memory = following


def _prepared(
    functional: Functional, mu: DiscreteMeasure, memory: Any, step: int, generator: torch.Generator | None
) -> tuple[Functional, Any]:
    """What `prepare` gives, without derivatives, once it is known to change nothing in place and to fit the batch."""
    held = [*functional.parameters(), *functional.buffers(), mu.points, mu.weights]
    held += [t for t in pytree.tree_leaves(memory) if isinstance(t, Tensor)]
    before = [t.detach().clone() for t in held]
    with torch.no_grad(), stated("memory: `prepare`"):
        found = functional.prepare(mu, memory, step, generator)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Functional)):
            raise AssertionError(f"memory: `prepare` should return a Functional and a memory, got {found!r}")
        check_shapes(f"{type(functional).__name__}.prepare", found[1], mu.batch_shape)
    if not all(torch.equal(a, b) for a, b in zip(before, held, strict=True)):
        raise AssertionError("purity: `prepare` changes the functional, the measure or the memory in place")
    return found


def _compare(functional: Functional, expected: Functional, mu: DiscreteMeasure, units: float, when: str) -> None:
    """Values and derivatives, those in parameters and targets that require grad included."""
    held = [t for t in (*expected.parameters(), *expected.buffers()) if t.requires_grad]
    results = []
    for F in (functional, expected):
        points = mu.points.clone().requires_grad_()
        with torch.enable_grad():
            value = F(mu.with_points(points))
            slopes = torch.autograd.grad(value.sum(), [points, *held], materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            variation = F.first_variation(mu)
            results.append((F(mu), F.wasserstein_gradient(mu), variation - variation[..., :1], *slopes))
    names = ["the value", "the Wasserstein gradient", "the first variation", "the derivative in the points"]
    names += ["the derivative in a tensor that it holds"] * len(held)
    for name, found, wanted in zip(names, *results, strict=True):
        scale = 1e-3 + wanted.detach().abs().max()
        assert_close(found, wanted, f"{when} {name} is not that without a memory", scale=scale, units=units)


def _check_rows(functional: Functional, prepared: Functional, memory: Any, mu: DiscreteMeasure, step: int, units: float) -> None:
    """One measure of the batch alone, with its part of what was prepared, and of the memory."""
    keep = torch.tensor([mu.batch_shape[0] - 1], device=mu.device)
    left, alone = functional.rows(keep, mu.batch_shape), mu[keep]
    if functional.draws:  # what was drawn is the same for the measure alone
        value, law = prepared.rows(keep, mu.batch_shape)(alone), "memory: where samples were left out after `prepare`, the value"
        assert_close(value, prepared(mu)[keep], f"{law} is another one", scale=1e-3 + value.abs().max(), units=units)
    else:
        _compare(prepared.rows(keep, mu.batch_shape), left, alone, units, "memory: where samples were left out after `prepare`,")
        again, _ = left.prepare(alone, memory_rows(memory, keep), step + 1, None)
        _compare(again, left, alone, units, "memory: where samples were left out of it,")


def _structure(memory: Any) -> tuple[Any, ...]:
    leaves, spec = pytree.tree_flatten(memory)
    return spec, *(tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in leaves)


def _path(start: DiscreteMeasure) -> list[DiscreteMeasure]:
    path = [start]
    for step in range(1, STEPS):
        path.append(_moved(path[-1], 1.0 if step == STEPS - 2 else 0.01, step))
    return [*path, path[-1]]


def _moved(mu: DiscreteMeasure, share: float, seed: int = 0) -> DiscreteMeasure:
    """Atoms moved by about a share of the spread of the measure."""
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randn(mu.points.shape, generator=g, dtype=mu.dtype).to(mu.device)
    return mu.with_points(mu.points + share * (0.1 + mu.points.std()) * drawn if mu.points.numel() > 1 else mu.points + share)
