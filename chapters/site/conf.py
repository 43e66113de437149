"""Sphinx's settings for the book; `lab.tools.book` stages the pages and starts the build."""

import sys
from pathlib import Path

CHAPTERS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHAPTERS.parent), str(CHAPTERS)]

from lab.tools import book  # noqa: E402  (autodoc needs the same paths)

project = "sare_min"
copyright = "the authors of sare_min, Apache-2.0"
html_title = "Sharpness-aware erasure"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
exclude_patterns = []
smartquotes = False  # the text is the chapters', to the letter

# Notebooks: what they stored is shown, nothing runs.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # no page holds a widget; the default loads two scripts from elsewhere
nb_merge_streams = True

myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_heading_anchors = 4  # the anchors that GitHub gives

# Docstrings are plain text with Markdown's backticks.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"

# A page that is opened from a folder may fetch nothing, not even its neighbours.
mathjax_path = "mathjax-3.2.2-tex-svg-full.js"
html_show_search_summary = False  # it reads the pages that it found by fetch

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["book.css", "slider.css"]
html_js_files = ["book.js"]
html_use_index = False  # the search finds names as well
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "footer_icons": [],
    "light_css_variables": {"color-brand-primary": "#0a58a5", "color-brand-content": "#0a58a5"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ff", "color-brand-content": "#7cc4ff"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def give_levels(app, pagename, templatename, context, doctree):
    """The captions of the contents call themselves headings and do not say of which level."""
    for key in ("furo_navigation_tree", "toc"):
        if key in context:
            context[key] = context[key].replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app):
    app.connect("html-page-context", give_levels, priority=900)  # after the theme's own
    app.connect("autodoc-process-docstring", book.process_docstring)
