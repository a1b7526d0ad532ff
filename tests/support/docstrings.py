"""What the docstrings of public names must say, read from the sources alone.

Public is each name in the ``__all__`` of a package, with its public methods and properties.

- Each has a docstring. A method may have it from a base class or from a protocol of its package.
- Where there are two parameters or more, it names each: under ``Parameters``, or in the text, in backticks or a formula. Those
  of a constructor are named by the class; the fields of a data class may have docstrings of their own.
- Where the body raises a ``ValueError``, ``TypeError`` or ``RuntimeError``, the docstring says so; for a method, its own or
  that of the class.
- Each citation is in ``docs/references.bib``, and each entry there is cited.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef
HOOKS = ("extra_repr",)
"""Methods that PyTorch calls and documents."""


@dataclass(frozen=True)
class Module:
    """A source file: its definitions, and from where it has the other names."""

    file: Path
    tree: ast.Module

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        return {node.name: node for node in self.tree.body if isinstance(node, Definition)}

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom) and node.module)
        return {a.asname or a.name: (node.module, a.name) for node in nodes for a in node.names}

    @cached_property
    def public(self) -> list[str]:
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
                return list(ast.literal_eval(node.value))
        return []


@dataclass
class Library:
    """The modules of a package, and what its names are."""

    root: Path
    modules: dict[str, Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in sorted(self.root.rglob("*.py")):
            parts = file.relative_to(self.root.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(file, ast.parse(file.read_text()))

    def find(self, module: str, name: str) -> tuple[Module, Definition] | None:
        """The definition behind a name of a module, wherever it was imported from."""
        if module not in self.modules:
            return None
        seen = self.modules[module]
        if name in seen.definitions:
            return seen, seen.definitions[name]
        return self.find(*seen.imports[name]) if name in seen.imports else None

    def public(self) -> Iterator[tuple[Module, Definition]]:
        """Each public definition, once."""
        packages = [(name, m) for name, m in self.modules.items() if m.file.name == "__init__.py"]
        found = [self.find(name, exported) for name, m in packages for exported in m.public]
        yield from {id(pair[1]): pair for pair in found if pair is not None}.values()

    def bases(self, module: Module, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """The classes of the library that a class is made of, itself first."""
        yield node
        names = ".".join(module.file.relative_to(self.root.parent).with_suffix("").parts).removesuffix(".__init__")
        for base in node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            found = self.find(names, base.id) if isinstance(base, ast.Name) else None
            if found is not None and isinstance(found[1], ast.ClassDef):
                yield from self.bases(found[0], found[1])

    def protocols(self, module: Module) -> Iterator[ast.ClassDef]:
        """The protocols in a module's package."""
        for other in self.modules.values():
            if other.file.parent == module.file.parent:
                yield from (n for n in other.definitions.values() if isinstance(n, ast.ClassDef) and _is(n.bases, "Protocol"))


def problems(root: Path, bibliography: Path, pages: Path) -> list[str]:
    """What is missing in the docstrings of a package, and in its bibliography."""
    library = Library(root)
    found = [p for module, node in library.public() for p in _of_definition(library, module, node)]
    return found + list(_of_citations(root, bibliography, pages))


def _of_definition(library: Library, module: Module, node: Definition) -> Iterator[str]:
    text = _documentation(node)
    yield from _of_docstring(module, node, node.name, text, text)
    if isinstance(node, ast.FunctionDef):
        return
    inherited = _inherited(library, module, node)
    for name, method in _methods(node).items():
        own = ast.get_docstring(method)
        if name in ("__init__", "__post_init__"):
            yield from _of_body(module, method, node.name, text)
        elif not name.startswith("_") and (own or name not in HOOKS):
            whole = "\n\n".join(filter(None, (own, inherited.get(name))))
            yield from _of_docstring(module, method, f"{node.name}.{name}", whole, f"{whole}\n\n{text}")


def _of_docstring(module: Module, node: Definition, name: str, text: str | None, around: str | None) -> Iterator[str]:
    """Problems of one definition with its docstring ``text``; ``around``: with that of its class."""
    place = f"{module.file}:{node.lineno}"
    if not text:
        yield f"{place}: {name} has no docstring"
        return
    parameters = _parameters(node)
    unnamed = [p for p in parameters if len(parameters) > 1 and not _names(text, p)]
    if unnamed:
        yield f"{place}: the docstring of {name} does not name {', '.join(unnamed)}"
    if isinstance(node, ast.FunctionDef):
        yield from _of_body(module, node, name, around)


def _of_body(module: Module, node: ast.FunctionDef, name: str, text: str | None) -> Iterator[str]:
    missing = sorted({e for e in _raised(node) if e in ("ValueError", "TypeError", "RuntimeError") and e not in (text or "")})
    if missing:
        yield f"{module.file}:{node.lineno}: the docstring of {name} does not say when it raises a {' or a '.join(missing)}"


def _of_citations(root: Path, bibliography: Path, pages: Path) -> Iterator[str]:
    entries = re.findall(r"^@\w+\{([^,\s]+),", bibliography.read_text(), re.MULTILINE) if bibliography.exists() else []
    yield from (f"{bibliography}: {key} is there twice" for key in sorted({k for k in entries if entries.count(k) > 1}))
    cited: dict[str, Path] = {}
    written = [f for f in sorted(pages.rglob("*")) if f.suffix in (".md", ".py", ".rst") and "_build" not in f.parts]
    for file in [*sorted(root.rglob("*.py")), *written]:
        for keys in re.findall(r"(?::cite(?::\w+)?:|\{cite(?::\w+)?\})`([^`]+)`", file.read_text()):
            cited |= {key.strip(): file for key in keys.split(",")}
    yield from (f"{file}: cites {key}, which is not in {bibliography.name}" for key, file in cited.items() if key not in entries)
    yield from (f"{bibliography}: nothing cites {key}" for key in entries if key not in cited)


def _documentation(node: Definition) -> str | None:
    """A definition's docstring; for a class also those of its constructor and of its fields."""
    text = ast.get_docstring(node)
    if text is None or isinstance(node, ast.FunctionDef):
        return text
    constructor = next((m for name, m in _methods(node).items() if name == "__init__"), None)
    parts = [text, (ast.get_docstring(constructor) if constructor else None) or ""]
    for field_, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field_, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            parts.append(f"``{ast.unparse(field_.target)}`` {after.value.value}")
    return "\n\n".join(parts)


def _methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """The methods in a class body; of a property, what reads it."""
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not _is(m.decorator_list, "setter", "overload")]
    return {m.name: m for m in methods}


def _inherited(library: Library, module: Module, node: ast.ClassDef) -> dict[str, str]:
    """The docstrings of methods that a class may leave to its bases, or to a protocol of its package."""
    classes = [*library.protocols(module), *reversed(list(library.bases(module, node)))]
    methods = [(name, ast.get_docstring(m)) for c in classes for name, m in _methods(c).items()]
    return {name: text for name, text in methods if text}


def _parameters(node: Definition) -> list[str]:
    """The parameters of a function, or of a class: of its constructor, or the fields of a data class."""
    if isinstance(node, ast.ClassDef):
        constructor = _methods(node).get("__init__")
        if constructor is not None:
            return _parameters(constructor)
        if not _is(node.decorator_list, "dataclass") and not _is(node.bases, "NamedTuple"):
            return []
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and "ClassVar" not in ast.unparse(f.annotation)]
        return [name for f in fields if not (name := ast.unparse(f.target)).startswith("_")]
    a = node.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [p.arg for p in given if p.arg not in ("self", "cls") and not p.arg.startswith("_")]


def _names(text: str, parameter: str) -> bool:
    """Whether a docstring names a parameter: at the head of a line of a section, in backticks, or in a formula."""
    listed = re.search(rf"^(\w+, )*\*{{0,2}}{parameter}(, \w+)*( : .*)?$", text, re.MULTILINE)
    quoted = " ".join(a or b for a, b in re.findall(r"`+([^`]+)`+|\.\. math::(.*?)(?:\n\n|\Z)", text, re.DOTALL))
    quoted = re.sub(r"\\(mathrm|text)", "", quoted)
    return bool(listed) or bool(re.search(rf"(?<![A-Za-z0-9_]){parameter}(?![A-Za-z0-9])", quoted))


def _raised(node: ast.FunctionDef) -> Iterator[str]:
    """The exceptions that a function itself raises, not those of functions within it."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call) and isinstance(inner.exc.func, ast.Name):
            yield inner.exc.func.id
        if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(inner)


def _is(expressions: list[ast.expr], *names: str) -> bool:
    """Whether a decorator or a base in the list has one of the names, whatever it is called with or taken from."""
    for expression in expressions:
        inner = expression
        while isinstance(inner, ast.Call | ast.Subscript):
            inner = inner.func if isinstance(inner, ast.Call) else inner.value
        if (inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", None)) in names:
            return True
    return False
