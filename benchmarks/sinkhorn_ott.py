"""OTT-JAX's Sinkhorn divergence for `sinkhorn_ways.OTT`, in an interpreter that has ott-jax (and needs neither torch nor ddeq).

    PYTHON benchmarks/sinkhorn_ott.py float32

Requests and replies are lines of JSON. A request names a file with the points of both measures, a threshold, the most iterations,
and where the gradient goes; the reply has the seconds of value and gradient. Each function is compiled before it is timed.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ott.tools import sinkhorn_divergence


def compiled(x: Any, y: Any, blur: float, threshold: float, most: int) -> Any:
    """Value and gradient; its cost is twice ours, and so is its regularization."""

    def value(x: Any, y: Any) -> Any:
        found, out = sinkhorn_divergence.sinkdiv(
            x, y, epsilon=2 * blur**2, solve_kwargs={"threshold": threshold, "max_iterations": most}
        )
        return 0.5 * found, (out.n_iters, out.converged)

    return jax.jit(jax.value_and_grad(value, has_aux=True)).lower(x, y).compile()


def main(dtype: str) -> None:
    jax.config.update("jax_enable_x64", dtype == "float64")
    known: dict[tuple[str, float], tuple[Any, Any, Any]] = {}
    print(json.dumps({"version": f"ott-jax {version('ott-jax')}, jax {version('jax')}"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        key = asked["points"], asked["threshold"]
        if key not in known:
            given = np.load(asked["points"])
            x, y = (jnp.asarray(given[name], dtype) for name in "xy")
            known[key] = x, y, compiled(x, y, asked["blur"], asked["threshold"], asked["most"])
        x, y, call = known[key]
        start = time.perf_counter()
        (_, (iterations, converged)), gradient = jax.block_until_ready(call(x, y))
        seconds = time.perf_counter() - start
        np.save(asked["gradient"], np.asarray(gradient))
        print(
            json.dumps({"seconds": seconds, "iterations": [int(n) for n in iterations], "converged": all(map(bool, converged))}),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1])
