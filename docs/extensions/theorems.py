"""Numbers of statements: ``T5`` links to its page wherever it stands, and a table shows who holds what to it.

The table is read off the sources: statements from ``docs/theory``, symbolic checks from ``proofs_checks``, property tests from
their ``@pytest.mark.theorem`` marks, code from the docstrings that name a statement. An empty cell is a warning, which fails
the build.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w./-])T([1-9]\d?)(?![\w/])")

logger = logging.getLogger(__name__)


@dataclass
class Statement:
    """One row of the table."""

    number: int
    page: str
    title: str
    checks: list[str] = field(default_factory=list)
    tests: Counter[str] = field(default_factory=Counter)
    code: list[str] = field(default_factory=list)


def statements() -> dict[int, Statement]:
    found = {}
    for page in sorted((ROOT / "docs/theory").glob("t[0-9][0-9]_*.md")):
        number = int(page.stem[1:3])
        title = page.read_text().splitlines()[0].removeprefix(f"# T{number} ")
        checks = sorted(f.name for f in (ROOT / "proofs_checks").glob(f"test_{page.stem[:3]}_*.py"))
        found[number] = Statement(number, f"theory/{page.stem}", title, checks)
    for number, test in marked_tests():
        found[number].tests[test] += 1
    for number, name in naming_code():
        if name not in found[number].code:
            found[number].code.append(name)
    return found


def marked_tests() -> Iterator[tuple[int, str]]:
    """Statement and file, for each test that bears the statement's mark."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(file.read_text())
        everywhere = [n for node in tree.body if isinstance(node, ast.Assign) for n in _numbers(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in {*everywhere, *(n for decorator in node.decorator_list for n in _numbers(decorator))}:
                    yield number, str(file.relative_to(ROOT / "tests"))


def _numbers(node: ast.AST) -> Iterator[int]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "theorem":
            for argument in call.args:
                yield int(ast.literal_eval(argument).removeprefix("T"))


def naming_code() -> Iterator[tuple[int, str]]:
    """Statement and public name, for each class and function of the library whose docstring names the statement."""
    for package in sorted((ROOT / "ddeq").iterdir()):
        files = sorted(package.glob("*.py")) if package.is_dir() else [package] if package.suffix == ".py" else []
        for file in files:
            tree = ast.parse(file.read_text())
            for node in tree.body:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                    for inner in ast.walk(node):
                        if isinstance(inner, (ast.ClassDef, ast.FunctionDef)):
                            for number in NUMBER.findall(ast.get_docstring(inner) or ""):
                                yield int(number), node.name


class TheoremTable(SphinxDirective):
    """``.. theorem-table::``"""

    def run(self) -> list[nodes.Node]:
        table = nodes.table(classes=["theorems"])
        head = ["statement", "symbolic check", "property tests", "code"]
        group = nodes.tgroup(cols=len(head))
        table += group
        for width in (20, 20, 35, 25):
            group += nodes.colspec(colwidth=width)
        group += nodes.thead("", _row([nodes.paragraph(text=text) for text in head]))
        body = nodes.tbody()
        group += body
        for statement in statements().values():
            for what in ("checks", "tests", "code"):
                if not getattr(statement, what):
                    logger.warning("T%d %s: no %s", statement.number, statement.title, what)
            body += _row(
                [
                    nodes.paragraph("", "", _page(self.env.docname, statement, f"T{statement.number} {statement.title}")),
                    nodes.paragraph("", "", *_literals(statement.checks)),
                    nodes.paragraph(text=_by_folder(statement.tests)),
                    nodes.paragraph("", "", *_objects(self.env.docname, statement.code)),
                ]
            )
        return [table]


def _row(cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in cells))


def _literals(texts: list[str]) -> list[nodes.Node]:
    return _separated([nodes.literal(text=text) for text in texts])


def _by_folder(tests: Counter[str]) -> str:
    """``functionals: laws 3, mmd 2; nn: cell 1``"""
    folders: dict[str, list[str]] = {}
    for file, count in sorted(tests.items()):
        path = Path(file)
        folder = "" if path.parent == Path() else f"{path.parent}: "
        folders.setdefault(folder, []).append(f"{path.stem.removeprefix('test_')} {count}")
    return "; ".join(folder + ", ".join(files) for folder, files in folders.items())


def _objects(document: str, names: list[str]) -> list[nodes.Node]:
    return _separated(
        [
            addnodes.pending_xref(
                "",
                nodes.literal(text=name),
                refdomain="py",
                reftype="obj",
                reftarget=name,
                refdoc=document,
                refwarn=False,
            )
            for name in names
        ]
    )


def _separated(items: list[nodes.Node]) -> list[nodes.Node]:
    parts: list[nodes.Node] = []
    for item in items:
        parts += [nodes.Text(", "), item] if parts else [item]
    return parts


def _page(document: str, statement: Statement, text: str) -> nodes.Node:
    return addnodes.pending_xref(
        "",
        nodes.inline(text=text),
        refdomain="std",
        reftype="doc",
        reftarget="/" + statement.page,
        refdoc=document,
        refexplicit=True,
        refwarn=True,
    )


class LinkNumbers(SphinxTransform):
    """Links the numbers of statements in running text to their pages."""

    default_priority = 500

    def apply(self) -> None:
        pages = {int(p.stem[1:3]): p for p in (ROOT / "docs/theory").glob("t[0-9][0-9]_*.md")}
        for text in list(self.document.findall(nodes.Text)):
            parent = text.parent
            if not NUMBER.search(text) or _is_inside(text):
                continue
            parts: list[nodes.Node] = []
            end = 0
            for match in NUMBER.finditer(text):
                number = int(match[1])
                if number not in pages or f"theory/{pages[number].stem}" == self.env.docname:
                    continue
                statement = Statement(number, f"theory/{pages[number].stem}", "")
                parts += [nodes.Text(text[end : match.start()]), _page(self.env.docname, statement, match[0])]
                end = match.end()
            if parts:
                parent.replace(text, [*parts, nodes.Text(text[end:])])


def _is_inside(text: nodes.Text) -> bool:
    """Whether links make no sense here."""
    node = text.parent
    while node is not None:
        if isinstance(
            node, (nodes.reference, nodes.literal, nodes.literal_block, nodes.title, nodes.math, addnodes.pending_xref)
        ):
            return True
        node = node.parent
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("theorem-table", TheoremTable)
    app.add_transform(LinkNumbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
