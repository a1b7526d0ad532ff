"""Bibliography entries labelled as they are cited: by author and year."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


class AuthorYearLabels(BaseLabelStyle):
    """``Krantz and Parks, 2002``"""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        seen: dict[str, int] = {}
        for entry in sorted_entries:
            people = entry.persons.get("author") or entry.persons.get("editor") or []
            names = [" ".join(person.prelast_names + person.last_names) for person in people]
            several = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
            label = f"{several}, {entry.fields['year']}"
            seen[label] = seen.get(label, 0) + 1
            yield label + (chr(ord("a") + seen[label] - 1) if seen[label] > 1 else "")


class AuthorYear(PlainStyle):
    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


def setup(app: Sphinx) -> dict[str, bool]:
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
