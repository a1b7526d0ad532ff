"""A rule of the house: tensors are made with the dtype and on the device of what they belong to, not with PyTorch's defaults."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MADE = {"empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randn", "scalar_tensor", "tensor", "zeros"}
"""They follow the default dtype and device, if nothing else is said."""
COUNTED = {"arange", "randint", "randperm", "tril_indices", "triu_indices"}
"""Whole numbers: they follow the default device."""
OWNED = {"Parameter", "ParameterList", "register_buffer"}
"""What a module owns begins with the defaults, as PyTorch's own modules do."""
ELSEWHERE = {"data", "experiments", "testing", "viz"}
"""Where tensors are made from files, for files, for tests and for pictures, on the CPU."""


def unplaced(package: Path) -> list[str]:
    """Calls that make a tensor without a dtype or without a device."""
    found = []
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).parts[0] not in ELSEWHERE:
            tree = ast.parse(file.read_text())
            found += [f"{file}:{line}: {what}" for line, what in _unplaced(tree)]
    return found


def _unplaced(node: ast.AST, *, placed: bool = False, owned: bool = False) -> Iterator[tuple[int, str]]:
    """Wrong calls below a node; ``placed``: the node is moved to its place, ``owned``: what it holds is a module's own."""
    if isinstance(node, ast.Call):
        owner, name = _name(node.func)
        given = {keyword.arg for keyword in node.keywords}
        if owner == "torch" and not placed and not owned:
            if name in MADE and not {"dtype", "device"} <= given and None not in given:
                yield node.lineno, f"torch.{name} without dtype= and device="
            if name in COUNTED and "device" not in given and None not in given:
                yield node.lineno, f"torch.{name} without device="
            if name == "where" and all(_is_number(argument) for argument in node.args[1:3]) and len(node.args) > 2:
                yield node.lineno, "torch.where of two numbers has the default dtype"
        if isinstance(node.func, ast.Attribute):  # torch.zeros(3).to(x)
            yield from _unplaced(node.func, placed=placed or name in ("to", "type_as"), owned=owned)
        for child in (*node.args, *node.keywords):
            yield from _unplaced(child, owned=owned or name in OWNED)
        return
    for child in ast.iter_child_nodes(node):
        yield from _unplaced(child, placed=placed, owned=owned)


def _name(function: ast.expr) -> tuple[str, str]:
    if isinstance(function, ast.Attribute):
        return function.value.id if isinstance(function.value, ast.Name) else "", function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def _is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand)
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Attribute) and node.attr in ("inf", "nan"))
