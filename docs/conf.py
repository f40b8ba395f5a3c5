"""How Sphinx builds these pages: `make docs` writes them to out/docs, with warnings as errors, and needs no network."""

import sys
from pathlib import Path

from tlkd import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "tlkd"
author = "The authors of tlkd"
project_copyright = "The authors of tlkd, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "generated_pages", "mathml", "repository_links"]
exclude_patterns = ["extensions"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "code"  # docstrings put names between single backticks
nitpicky = True
nitpick_ignore_regex = [  # what other projects and our inner modules call their types has no page here
    (r"py:.*", r"(?!tlkd\.).*|tlkd\.(\w+\.)+\w+")]

html_theme = "furo"
html_title = f"tlkd {__version__}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7db8dd", "color-brand-content": "#7db8dd"},
}
