"""The site: `make docs`. All that a page needs is in the build; no network is asked for anything."""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

from short_names import is_home  # noqa: E402

import ddeq  # noqa: E402

project, author, copyright = "ddeq", "the ddeq developers", "the ddeq developers"
version = release = ddeq.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "author_year",
    "gallery_links",
    "theorems",
    "short_names",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery", "extensions", "sg_execution_times.rst"]
default_role = "py:obj"
suppress_warnings = ["config.cache"]  # the order of the gallery is a function

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_ignore_module_all = False
autosummary_imported_members = True
autosummary_context = {"is_home": is_home}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
maximum_signature_line_length = 90
numpydoc_show_class_members = False
python_use_unqualified_type_names = True
add_module_names = False

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = bibtex_default_style = "author_year"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "within_subsection_order": "gallery_order.ByChapter",
    "remove_config_comments": True,
    "show_memory": False,
    "abort_on_example_error": True,
    "matplotlib_animations": True,
    "default_thumb_file": str(HERE / "pictures" / "equilibrium.png"),
    "min_reported_time": 1e9,
    "download_all_examples": False,
    "image_scrapers": ("gallery_pictures",),
}
warnings.filterwarnings("ignore", message=".*FigureCanvasAgg is non-interactive.*")

PAGES_WITH_CONTENTS = [
    *("index", "guide/*", "theory/index", "theory/notation", "theory/t[0-9]*", "examples/*", "benchmarks", "contributing")
]
html_theme = "pydata_sphinx_theme"
html_title = "ddeq"
html_static_path = ["_static"]
html_css_files = ["ddeq.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_depth": 2,
    "secondary_sidebar_items": {page: ["page-toc"] for page in PAGES_WITH_CONTENTS},
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "installation": [], "glossary": [], "references": [], "changelog": [], "contributing": []}
