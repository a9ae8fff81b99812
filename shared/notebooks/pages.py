"""Executed labs as HTML pages that open from disk without any network, their index, and the closing table."""

import html
import os
import re
from pathlib import Path

from shared import files
from shared.notebooks.run import Run
from shared.notebooks.source import read

# A cell that only draws is folded: the reader meets the picture and its sentence. JupyterLab folds it too.
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block input %}
{%- if 'hide-input' in cell.metadata.get('tags', []) -%}
<details><summary>the code of this figure</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{% endblock input %}
"""


def render(run: Run) -> Path:
    """Write an executed lab as one HTML page that opens from disk, without any network."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    # No MathJax, no widgets' state and no RequireJS: without these three the page needs nothing from outside.
    exporter = HTMLExporter(
        mathjax_url="",
        require_js_url="",
        jupyter_widgets_base_url="",
        exclude_anchor_links=True,
        extra_loaders=[DictLoader({"course.html.j2": TEMPLATE})],
        template_file="course.html.j2",
    )
    notebook = nbformat.read(run.notebook, as_version=4)
    notebook.metadata["title"] = heading(notebook)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_formulas(cell.source)
    # A widget without its kernel is dead, and its player would come from the network: the page shows its picture.
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    body, _ = exporter.from_notebook_node(notebook)
    files.write(run.page, body)
    return run.page


FORMULA = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?![\s$])([^$\n]+?)(?<!\s)\$", re.DOTALL)


def with_formulas(markdown: str) -> str:
    """Markdown with its LaTeX, between $ or $$, as MathML, which a browser shows without a program from the network."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match) -> str:
        code, block, inline = found.groups()
        if code:
            return code
        formula = convert(block or inline, display="block" if block else "inline")
        return formula.replace("\n", " ")

    return FORMULA.sub(mathml, markdown)


def heading(notebook) -> str:
    """The first heading of a notebook: its title."""
    return next(c.source for c in notebook.cells if c.cell_type == "markdown").splitlines()[0].lstrip("# ")


def index(runs: list[Run]) -> Path:
    """Write build/html/index.html: one row per lab with its page."""
    rows = "".join(
        f'<tr><td><a href="{html.escape(r.page.name)}">{html.escape(heading(read(r.lab)))}</a></td>'
        f"<td>{r.seconds:.0f} s</td><td>{r.peak_bytes / 1e9:.2f} GB</td><td>{r.passed} of {r.checks}</td>"
        f"<td>{html.escape(r.error) or 'no error'}</td></tr>"
        for r in runs
    )
    page = files.BUILD / "html" / "index.html"
    files.write(
        page,
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Efficient architectures: solved labs</title>'
        "<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:3rem auto;padding:0 1rem}"
        "td,th{text-align:left;padding:.4rem 1rem .4rem 0;border-bottom:1px solid #ddd}</style>"
        "<h1>Efficient architectures: solved labs</h1><table><tr><th>Lab</th><th>Time</th><th>Peak memory</th>"
        f"<th>Checks passed</th><th>Errors</th></tr>{rows}</table></html>\n",
    )
    return page


def table(runs: list[Run]) -> str:
    """The closing table of `make run`."""
    lines = [f"{'lab':<6} {'seconds':>8} {'peak memory':>12} {'checks passed':>14}  page to open"]
    for r in runs:
        checks = f"{r.passed} of {r.checks}"
        lines.append(
            f"{r.lab:<6} {r.seconds:>8.1f} {r.peak_bytes / 1e9:>9.2f} GB {checks:>14}  {os.path.relpath(r.page)}"
        )
        if r.error:
            lines.append(f"       not whole: {r.error}")
    return "\n".join(lines)
