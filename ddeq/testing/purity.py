"""What every part of the library keeps to: declared capabilities, pure functions, batches, precision, measure consistency."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ddeq.iteration import ConvergenceWarning, Equation
from ddeq.measures import DiscreteMeasure
from ddeq.testing.close import assert_close
from ddeq.testing.problems import far_dead_atom
from ddeq.testing.samples import HINTS, with_dead_atoms

__all__ = [
    "assert_unchanged",
    "check_consistency",
    "check_declarations",
    "check_precision",
    "copied",
    "default_dtype",
    "in_dtype",
    "named_tensors",
    "quiet",
    "same_numbers",
    "stated",
]

M = TypeVar("M", bound=nn.Module)


@contextmanager
def stated(law: str) -> Iterator[None]:
    """Errors that are raised within become an `AssertionError` that names the ``law``."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{law}: it raised {type(error).__name__}: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Solves of checks may fail: no warnings of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def in_dtype(module: M, dtype: torch.dtype) -> M:
    """A copy of a module in a dtype: conversion in place would round what a user gave."""
    return copy.deepcopy(module).to(dtype)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The default dtype of torch, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_declarations(part: object, base: type, example: str, booleans: tuple[str, ...] = ()) -> None:
    """Typed capabilities: a subclass of ``base`` that is a frozen set of hashable options, and declares booleans.

    Parameters
    ----------
    part
        What a user wrote.
    base
        The abstract class.
    example
        How such a class begins, for messages.
    booleans
        Names of the capabilities that are true or false.
    """
    law, name = "typed capabilities", type(part).__name__
    if isinstance(part, type):
        raise AssertionError(f"{law}: expected an instance, got the class {part.__name__}; call it, {part.__name__}()")
    if not isinstance(part, base):
        raise AssertionError(f"{law}: {name} is not a subclass of {base.__name__}; write `class {name}({example})`")
    if not dataclasses.is_dataclass(part) or not _is_frozen(part):
        raise AssertionError(f"{law}: {name} is not a frozen set of options; write @dataclass(frozen=True) above the class")
    for field in dataclasses.fields(part):
        try:
            setattr(part, field.name, getattr(part, field.name))
        except (AttributeError, TypeError):
            continue
        raise AssertionError(f"{law}: the option {field.name} of {name} can be assigned; options must be frozen")
    try:
        hash(part)
    except TypeError as error:
        raise AssertionError(f"{law}: {name} cannot be hashed ({error}); options must be hashable: no lists, no eq=...") from None
    for capability in booleans:
        value = getattr(part, capability)
        if not isinstance(value, bool):
            raise AssertionError(f"{law}: {name}.{capability} is {value!r}; expected True or False")


def _is_frozen(part: Any) -> bool:
    return bool(part.__dataclass_params__.frozen)


def named_tensors(tree: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors that an object holds, each with the name under which it is reached."""
    seen = set() if seen is None else seen
    if tree is None or id(tree) in seen:
        return
    seen.add(id(tree))
    parts: Mapping[str, Any]
    if isinstance(tree, Tensor):
        yield name, tree
        return
    if isinstance(tree, nn.Module):
        parts = {**dict(tree.named_parameters()), **dict(tree.named_buffers())}
    elif isinstance(tree, DiscreteMeasure):
        parts = {"points": tree.points, "weights": tree.weights, "marks": tree.marks}
    elif isinstance(tree, dict):
        parts = {str(k): v for k, v in tree.items()}
    elif isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        parts = tree._asdict()
    elif isinstance(tree, list | tuple):
        parts = {str(i): v for i, v in enumerate(tree)}
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
    elif isinstance(tree, Equation):
        parts = vars(tree)
    else:
        leaves = pytree.tree_leaves(tree)
        parts = {str(i): t for i, t in enumerate(leaves)} if not (len(leaves) == 1 and leaves[0] is tree) else {}
    for key, part in parts.items():
        yield from named_tensors(part, f"{name}.{key}" if name else key, seen)


def copied(**trees: Any) -> dict[str, Tensor]:
    """Copies of all tensors that some objects hold, by name."""
    return {name: t.detach().clone() for key, tree in trees.items() for name, t in named_tensors(tree, key)}


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree bit for bit; NaN equals NaN."""
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    a, b = a.detach(), b.detach()
    return bool(((a == b) | ((a != a) & (b != b))).all())


def assert_unchanged(law: str, before: Mapping[str, Tensor], **trees: Any) -> None:
    """Raise unless all tensors are still those of which ``before`` holds copies."""
    now = {name: t for key, tree in trees.items() for name, t in named_tensors(tree, key)}
    for name, t in before.items():
        if name in now and not same_numbers(t, now[name]):
            change = (now[name] - t).abs().max() if now[name].shape == t.shape and t.is_floating_point() else torch.nan
            raise AssertionError(
                f"{law}: {name}, of shape {tuple(t.shape)}, was changed, by up to {float(change):.3e}; make new tensors and "
                "write into none that was given"
            )


def check_consistency(
    of: Callable[[DiscreteMeasure], Tensor], mu: DiscreteMeasure, what: str, *, rtol: float = 1e-6, theorems: str = "T1"
) -> None:
    """Measure consistency of a field ``of`` a measure, ``(*batch, n, ...)``: however it is stored, atoms get the same.

    Parameters
    ----------
    of
        The function.
    mu
        Where.
    what
        What it gives, for messages.
    rtol
        Allowed relative difference.
    theorems
        What is cited.
    """
    expected = of(mu)
    n, atom = mu.n, mu.n // 2
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(mu.device)
    last = torch.tensor([*range(n), atom], device=mu.device)
    atoms = len(mu.batch_shape)
    ways = (
        ("permuting the atoms", mu.permute_atoms(order), order),
        ("splitting an atom", mu.split_atom(atom, 0.3), last),
        ("adding atoms of mass zero", with_dead_atoms(mu), None),
        ("adding an atom of mass zero far away, at 1e30,", far_dead_atom(mu), None),
    )
    for change, same, index in ways:
        law = f"measure consistency ({theorems}): {change} changes {what}"
        with stated(law):
            actual = of(same)
        actual = actual.narrow(atoms, 0, n) if index is None else actual
        wanted = expected if index is None else expected.index_select(atoms, index)
        hint = HINTS.get(change, HINTS["adding atoms of mass zero"])
        assert_close(actual, wanted, law, rtol=rtol, scale=1e-3, hint=hint)


def check_precision(run: Callable[[DiscreteMeasure], Any], mu: DiscreteMeasure, what: str) -> None:
    """Both dtypes: results have that of the measure, are on its device, and do not depend on torch's default dtype."""
    for dtype in (torch.float32, torch.float64):
        results = []
        for default in (torch.float32, torch.float64):
            law = f"dtypes: {what} of a measure in {dtype} with torch's default {default}"
            with default_dtype(default), stated(law):
                results.append(dict(named_tensors(run(mu.to(dtype)), what)))
            for name, t in results[-1].items():
                if t.is_floating_point() and t.dtype != dtype:
                    raise AssertionError(f"{law}: {name} is in {t.dtype}; make tensors with new_zeros, zeros_like and the like")
                if t.device != mu.device:
                    raise AssertionError(f"{law}: {name} is on {t.device}, and the measure on {mu.device}")
                if t.is_floating_point() and not bool(torch.isfinite(t).all()):
                    raise AssertionError(f"{law}: {name} is not finite")
        for name, t in results[0].items():
            if not same_numbers(t, results[1][name]):
                difference = float((t - results[1][name]).abs().max())
                raise AssertionError(
                    f"dtypes: {name} of a measure in {dtype} depends on torch's default dtype, by {difference:.3e}: is there a "
                    "torch.zeros or torch.tensor without dtype=?"
                )
