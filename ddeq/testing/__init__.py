"""Checks that users import to hold their own functionals, maps and models to the laws that the library relies on.

Each check raises an `AssertionError` that names the law which broke, with numbers. `ddeq.testing.strategies` draws
measures for hypothesis with what goes wrong in practice: atoms of mass zero, coincident atoms, single atoms, offsets and
small scales. The library's own tests use exactly these.
"""

import importlib
from types import ModuleType

from ddeq.testing.close import assert_close
from ddeq.testing.flows import check_flow
from ddeq.testing.functionals import check_functional
from ddeq.testing.maps import check_map
from ddeq.testing.solutions import check_implicit_gradient, check_solution

__all__ = ["assert_close", "check_flow", "check_functional", "check_implicit_gradient", "check_map", "check_solution"]


def __getattr__(name: str) -> ModuleType:
    if name == "strategies":  # needs hypothesis, which the checks do not
        return importlib.import_module("ddeq.testing.strategies")
    raise AttributeError(f"module 'ddeq.testing' has no attribute {name!r}")
