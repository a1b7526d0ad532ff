"""The check of docstrings that `make lint` runs: it passes what is documented and names what is not."""

from textwrap import dedent

import docstrings
import pytest

GOOD = '''
    """A module."""

    from dataclasses import dataclass
    from typing import Protocol


    class Stepper(Protocol):
        """A protocol."""

        def step(self, z, state):
            """The next of ``z`` and ``state``."""


    @dataclass(frozen=True)
    class Euler:
        r"""Steps of size :math:`\\tau`, by :cite:t:`euler1768institutiones`.

        Parameters
        ----------
        size, restart
            Options.

        Raises
        ------
        ValueError
            If ``size`` is not positive.
        """

        size: float
        restart: bool = True
        seen: int = 0
        """A field with a docstring of its own."""

        def __post_init__(self):
            if self.size <= 0:
                raise ValueError("size")

        def step(self, z, state):
            return z + self.size, state

        def turned(self, angle):
            """One parameter needs no name."""

        def extra_repr(self):
            return ""

        def _hidden(self, a, b):
            raise TypeError


    def distance(x, y, *, scale=1.0):
        r"""The distance :math:`|x - y|` times ``scale``; a `TypeError` for words."""
        if isinstance(x, str):
            raise TypeError("x")


    def not_public(x, y):
        pass
'''


@pytest.fixture
def problems_of(tmp_path):
    """The problems of a package with one module, some of whose text is replaced."""

    def found(old="", new="", *, bibliography="@book{euler1768institutiones,\n  year = {1768},\n}\n", page=""):
        package, pages = tmp_path / "package", tmp_path / "docs"
        package.mkdir()
        pages.mkdir()
        (package / "__init__.py").write_text(
            "from package.module import Euler, Stepper, distance\n__all__ = ['Euler', 'Stepper', 'distance']\n"
        )
        assert old in GOOD
        (package / "module.py").write_text(dedent(GOOD.replace(old, new) if old else GOOD))
        (pages / "page.md").write_text(page)
        (pages / "references.bib").write_text(bibliography)
        return docstrings.problems(package, pages / "references.bib", pages)

    return found


def test_what_is_documented_passes(problems_of):
    assert problems_of() == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"""A protocol."""', "pass", "Stepper has no docstring"),
        ('"""The next of ``z`` and ``state``."""', "...", "Euler.step has no docstring"),
        ('"""One parameter needs no name."""', "...", "Euler.turned has no docstring"),
        ("times ``scale``", "times a number", "distance does not name scale"),
        (":math:`|x - y|`", "", "distance does not name x, y"),
        ("size, restart", "restart", None),  # the text under Raises still has it in backticks
        ("size, restart", "size", "Euler does not name restart"),
        ("a `TypeError` for words", "no words", "distance does not say when it raises a TypeError"),
        ("ValueError\n            If", "If", "Euler does not say when it raises a ValueError"),
        ("euler1768institutiones", "euler1768", "cites euler1768, which is not in references.bib"),
        ("by :cite:t:`euler1768institutiones`", "by Euler", "nothing cites euler1768institutiones"),
    ],
)
def test_what_is_missing_is_named(problems_of, old, new, problem):
    found = problems_of(old, new)
    assert (found == []) if problem is None else any(problem in line for line in found)


def test_pages_cite_too(problems_of):
    page = "{cite:t}`euler1768institutiones` and {cite:p}`nobody`"
    (problem,) = problems_of("by :cite:t:`euler1768institutiones`", "by Euler", page=page)
    assert "cites nobody" in problem


def test_an_entry_that_is_there_twice_is_named(problems_of):
    assert any("is there twice" in line for line in problems_of(bibliography="@book{euler1768institutiones,\n}\n" * 2))
