"""How sphinx-gallery keeps the gallery's pictures: with all that is drawn, titles at the edge included."""

from __future__ import annotations

from typing import Any

from sphinx_gallery.scrapers import matplotlib_scraper


def _get_sg_image_scraper() -> Any:
    return _scrape


def _scrape(block: Any, block_vars: Any, gallery_conf: Any) -> Any:
    return matplotlib_scraper(block, block_vars, gallery_conf, bbox_inches="tight")
