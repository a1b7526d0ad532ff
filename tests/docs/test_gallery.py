"""Every page of the gallery runs, and draws."""

import runpy
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "gallery").glob("plot_*.py"))


@pytest.mark.slow  # `make docs` runs them too
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, monkeypatch):
    mpl.use("Agg")
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf().number))
    runpy.run_path(str(page))
    plt.close("all")
    assert drawn


def test_each_page_asks_a_question():
    assert len(PAGES) >= 3
    for page in PAGES:
        head = page.read_text().split('"""')[1]
        assert "?*" in head, page.name
