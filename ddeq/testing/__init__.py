"""Checks that users import to hold their own functionals, maps, models, and parts of flows and solves to the laws of the library.

`check_functional`, `check_memory`, `check_map`, `check_flow`, `check_solution` and `check_implicit_gradient` check problems and
results;
`check_solver`, `check_stepper`, `check_geometry`, `check_adjoint`, `check_noise`, `check_reaction`, `check_space` and
`check_backend` check subclasses of the abstract classes of those names. Each check raises an `AssertionError` that names the
law which broke, with numbers. `ddeq.testing.strategies` draws measures for hypothesis with what goes wrong in practice: atoms
of mass zero, coincident atoms, single atoms, offsets and small scales. The library's own tests use exactly these.
"""

import importlib
from types import ModuleType

from ddeq.testing.adjoints import check_adjoint
from ddeq.testing.backends import check_backend
from ddeq.testing.close import assert_close
from ddeq.testing.flows import check_flow
from ddeq.testing.functionals import check_functional
from ddeq.testing.geometries import check_geometry
from ddeq.testing.maps import check_map
from ddeq.testing.memories import check_memory
from ddeq.testing.noises import check_noise
from ddeq.testing.reactions import check_reaction
from ddeq.testing.solutions import check_implicit_gradient, check_solution
from ddeq.testing.solvers import check_solver
from ddeq.testing.spaces import check_space
from ddeq.testing.steppers import check_stepper

__all__ = [
    "assert_close",
    "check_adjoint",
    "check_backend",
    "check_flow",
    "check_functional",
    "check_geometry",
    "check_implicit_gradient",
    "check_map",
    "check_memory",
    "check_noise",
    "check_reaction",
    "check_solution",
    "check_solver",
    "check_space",
    "check_stepper",
]


def __getattr__(name: str) -> ModuleType:
    if name == "strategies":  # needs hypothesis, which the checks do not
        return importlib.import_module("ddeq.testing.strategies")
    raise AttributeError(f"module 'ddeq.testing' has no attribute {name!r}")
