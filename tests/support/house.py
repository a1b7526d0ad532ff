"""The house rules that no linter knows: imports point one way, importing ddeq stays light, tensors have a place,
and what is public is documented.

Run by `make lint`. Order of the subpackages: each may import those before it; `data` imports `measures` only; nothing
imports `testing` or `viz`, which may import all.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import docstrings
import placed

ORDER = [
    "messages",
    "files",
    "integers",
    "untraced",
    "ranks",
    "draws",
    "measures",
    "memory",
    "held",
    "autodiff",
    "kernels",
    "reductions",
    "iteration",
    "functionals",
    "spaces",
    "flows",
    "solvers",
    "nn",
    "info",
    "experiments",
]
ALLOWED = {room: set(ORDER[: i + 1]) for i, room in enumerate(ORDER)}
ALLOWED["data"] = {"messages", "files", "integers", "ranks", "draws", "measures", "data"}
ALLOWED["nn"] |= {"data"}  # what the shipped weights take raw clouds to
ALLOWED["experiments"] |= {"data", "viz"}
ALLOWED["testing"] = {*ORDER, "data", "testing"} - {"experiments"}
ALLOWED["viz"] = {*ORDER, "viz"} - {"experiments"}
HEAVY = (
    "pykeops",
    "ot",
    "geomloss",
    "lightning",
    "matplotlib",
    "sklearn",
    "scipy",
    "hypothesis",
    "trimesh",
    "h5py",
    "torch_geometric",
    "jsonargparse",
    "geoopt",
)

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ddeq"


def imported_rooms(file: Path) -> list[tuple[int, str]]:
    """Rooms of ddeq that a file imports, with the lines."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ddeq":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, a.name.split(".")[1]) for a in node.names if a.name.startswith("ddeq.")]
    return found


def wrong_ways() -> list[str]:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        if room not in ALLOWED:
            wrong.append(f"{file}: {room} has no place in the order of imports; give it one in {Path(__file__).name}")
            continue
        for line, name in imported_rooms(file):
            if name not in ALLOWED[room] and name in ALLOWED:
                wrong.append(f"{file}:{line}: {room} must not import {name}")
    return wrong


def circles() -> list[str]:
    """Files that import each other, imports for the type checker included; those within functions are left out."""
    files = {file.relative_to(ROOT).with_suffix(""): file for file in PACKAGE.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__"): path for path in files}
    imports = {path: _imported_files(ast.parse(file.read_text()), names) - {path} for path, file in files.items()}
    reached = {path: set(found) for path, found in imports.items()}
    for _ in range(len(files)):
        grown = {path: found.union(*(reached[other] for other in found)) for path, found in reached.items()}
        if grown == reached:
            break
        reached = grown
    return [f"{files[path]}: is in a circle of imports" for path in sorted(files) if path in reached[path]]


def _imported_files(tree: ast.Module, names: dict[str, Path]) -> set[Path]:
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in inside:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {names[part] if part in names else names[node.module] for part in parts if node.module in names}
    return found


def heavy_imports() -> list[str]:
    """Libraries that `import ddeq` and its core rooms must not load."""
    program = "import ddeq, ddeq.functionals, ddeq.flows, ddeq.solvers, ddeq.nn, sys; print(*sys.modules)"
    quiet = "import torch, sys; print(*sys.modules)"
    with_ddeq, without = (
        set(subprocess.run([sys.executable, "-c", p], check=True, capture_output=True, text=True).stdout.split())
        for p in (program, quiet)
    )
    return [f"import ddeq loads {name}" for name in HEAVY if name in with_ddeq - without]


if __name__ == "__main__":
    documented = docstrings.problems(PACKAGE, ROOT / "docs" / "references.bib", ROOT / "docs")
    problems = wrong_ways() + circles() + placed.unplaced(PACKAGE) + documented + heavy_imports()
    print(*problems, sep="\n") if problems else print("house rules: all kept")
    sys.exit(bool(problems))
