"""Names in single backticks, as docstrings write them, link to what they name: `Stop` is ``ddeq.iteration.Stop``."""

import importlib
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def is_home(package: str, name: str) -> bool:
    """Whether a package is where a name is documented, and does not only pass it on."""
    found: Any = importlib.import_module(package)
    for part in name.split("."):
        found = getattr(found, part)
    return getattr(found, "__module__", package).startswith(package)


def by_last_name(env: BuildEnvironment) -> dict[str, str]:
    """Documented objects by the ends of their names; the shortest name of those that end alike."""
    found: dict[str, str] = {}
    for name, entry in sorted(env.domains["py"].objects.items(), key=lambda item: (item[0].count("."), item[0]), reverse=True):
        if not entry.aliased and name.startswith("ddeq."):
            parts = name.split(".")
            found |= {".".join(parts[start:]): name for start in range(1, len(parts))}
    return found


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, child: nodes.Element) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    if not hasattr(app, "ddeq_names"):
        app.ddeq_names = by_last_name(env)  # type: ignore[attr-defined]
    wanted = node["reftarget"].removeprefix("ddeq.").removesuffix("()")
    name = app.ddeq_names.get(wanted) or app.ddeq_names.get(wanted.rpartition(".")[2])
    if name is None:
        return None
    entry = env.domains["py"].objects[name]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, child, name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
