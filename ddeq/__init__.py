"""ddeq: energies on measures, the flows that descend them, and the equilibria that they and maps on measures define.

Everything is a function of measures: of `DiscreteMeasure`, which the subpackages share. They load when first used:

- `ddeq.functionals`: energies with their first variations and Wasserstein gradients; `ddeq.kernels`;
- `ddeq.spaces`: where atoms live; `ddeq.flows`: gradient flows;
- `ddeq.solvers`: fixed points of maps on measures, and their derivatives;
- `ddeq.nn`: measure-consistent layers and Distributional Deep Equilibrium Models;
- `ddeq.reductions`, `ddeq.iteration`: sums over atoms, and the loop that all iterative methods share;
- `ddeq.data`, `ddeq.experiments`, `ddeq.testing`, `ddeq.viz`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddeq.measures import DiscreteMeasure

if TYPE_CHECKING:
    from ddeq.flows import flow as flow
    from ddeq.functionals import Functional as Functional
    from ddeq.solvers.fixed_point import fixed_point as fixed_point

__version__ = "0.1.0"
__all__ = ["DiscreteMeasure", "Functional", "__version__", "fixed_point", "flow"]

_HOMES = {"Functional": "functionals", "flow": "flows", "fixed_point": "solvers"}
_ROOMS = {
    "data",
    "experiments",
    "flows",
    "functionals",
    "iteration",
    "kernels",
    "nn",
    "reductions",
    "solvers",
    "spaces",
    "testing",
}
_ROOMS |= {"measures", "viz"}
_REEXPORTS = {"ConvergenceError": "iteration", "ConvergenceWarning": "iteration"}


def __getattr__(name: str) -> Any:
    home = (_HOMES | _REEXPORTS).get(name)
    if home is not None:
        return getattr(importlib.import_module(f"ddeq.{home}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"ddeq.{name}")
    raise AttributeError(f"module 'ddeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_REEXPORTS, *_ROOMS})
