"""The site: Sphinx with MyST-NB. Nothing is executed, and a reader's browser fetches nothing."""

from __future__ import annotations

import re
from pathlib import Path

_settings = Path(__file__).resolve().parent
while not (_settings / "pyproject.toml").exists():
    _settings = _settings.parent
_text = (_settings / "pyproject.toml").read_text(encoding="utf-8")
_found = re.search(r'^Repository = "([^"]+)"$', _text, re.MULTILINE)
_address = _found.group(1) if _found else ""

project = "minids3"
author = "the authors of minids3"
copyright = "the authors, MIT licence"
html_title = "Build a small DeepSeek-V3"
language = "en"
extensions = ["myst_nb"]
exclude_patterns = ["extra"]

nb_execution_mode = "off"
nb_merge_streams = True
# No formulas are set: a dollar is a dollar. (MathJax would have to be fetched.)
myst_enable_extensions: list[str] = []
myst_heading_anchors = 3
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_render_markdown_format = "commonmark"
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "misc.highlighting_failure"]

html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}  # without it the theme complains on the console
html_theme_options = {
    "repository_url": _address,
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navbar_start": [],  # the search stands in the sidebar
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_favicon = "static/mark.svg"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
