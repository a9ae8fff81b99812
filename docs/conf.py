"""Sphinx's settings for the pages that `make solutions` and `make site` render. shared/notebooks/pages.py calls it.

Nothing here asks for a network: formulas become MathML, fonts and search lie beside the pages.
"""

from pathlib import Path

import ziamath
from docutils import nodes
from latex2mathml.converter import convert

project = "Efficient Architectures"
author = "the maintainers of the efficient architectures labs"
language = "en"
extensions = ["myst_nb"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_dmath_double_inline = True  # $$ within a paragraph, as JupyterLab shows it
myst_heading_anchors = 3
nb_execution_mode = "off"  # `python -m shared.notebooks` has executed them
nb_merge_streams = True
nb_code_prompt_show = "The code of this figure"
nb_code_prompt_hide = "The code of this figure"
nb_ipywidgets_js = {}  # a widget without its kernel is dead, and its player would come from the network

exclude_patterns = ["**/__pycache__"]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static", str(Path(ziamath.__file__).parent / "fonts")]  # a font for formulas, STIX Two Math
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_show_search_summary = False  # the summary asks a server for pages; these open from disk
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system has it
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search stands in the sidebar
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def show_inline(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def show_block(translator, node):
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (show_inline, None), (show_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
