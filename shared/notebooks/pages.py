"""The course as pages that open from disk without any network, rendered by Sphinx; and the closing table of a run.

What Sphinx reads is laid out under build/pages/ as the clone is: the labs with their outputs, and the pages of docs/.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from shared import files
from shared.errors import BadInput, CourseError
from shared.notebooks import notice
from shared.notebooks.record import Run, commit
from shared.notebooks.source import answers, check_of, read, tagged

# What stands in the place of an exercise: its answer; its stub, with the answer in a fold; its stub alone.
OPEN, COLLAPSED, UNSOLVED = STYLES = ("open", "collapsed", "unsolved")
DOCS = files.ROOT / "docs"
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")
# The figure of each lab that stands on the front page, by the id of its cell.
SIGNATURE = {
    "2.4.1": "first-figure",
    "2.4.2": "induction-figure",
    "2.4.3": "signature-figure",
    "2.4.4": "signature-figure",
    "2.4.5": "position-figure",
    "2.4.6": "forgetting-figure",
}


def check(style: str) -> None:
    """Raise an error, in one sentence, for a style that is none, or where what makes pages is not installed."""
    if style not in STYLES:
        raise BadInput(f"STYLE={style} is unknown; it is {OPEN} or {COLLAPSED}.")
    if not find_spec("myst_nb"):
        raise CourseError("Pages need Sphinx, which `make solutions` and `make site` install: call one of them.")


def build(runs: list[Run], style: str, folder: Path | None = None) -> Path:
    """Render executed labs and the pages of docs/; returns the front page.

    folder: where to; default build/html, and build/site for the unsolved course.
    Raises: CourseError where Sphinx finds a fault, such as a link to a page that is not there, or the disk is full.
    """
    check(style)
    out = folder or files.BUILD / ("site" if style == UNSOLVED else "html")
    lock = files.lock(out.parent / f".{out.name}.lock")
    if lock is None:
        raise CourseError(f"Another program writes pages to {out} now: wait until it ends, then run this again.")
    with lock:
        source, part = out.parent / "pages" / out.name, out.with_name(f".{out.name}")
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        try:
            lay_out(runs, style, source)
        except OSError as problem:
            raise CourseError(files.unwritten(source, problem)) from None
        sphinx(source, part, footer(runs))
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    return out / "index.html"


def sphinx(source: Path, out: Path, below: str) -> None:
    """Render a folder of pages into another, with a text below each. A warning, such as of a dead link, is an error."""
    options = ["-b", "html", "-j", "auto", "-q", "--fail-on-warning", "--keep-going", "-c", DOCS]
    options += ["-d", source / ".doctrees", "-D", f"html_theme_options.extra_footer={below}"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *options, source, out], capture_output=True, text=True)
    if done.returncode:
        raise CourseError(f"Sphinx found faults in the pages, mend these: {' '.join(done.stderr.split())}")


def lay_out(runs: list[Run], style: str, source: Path) -> None:
    """Write what Sphinx reads: the labs, the pages of docs/, the front page with its figures and its table."""
    import nbformat

    (source / "labs").mkdir(parents=True)
    (source / "figures").mkdir()
    for name in BESIDE:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(files.ROOT / name, source / name)
    shutil.copytree(DOCS, source / "docs", ignore=shutil.ignore_patterns("*.py", "static", "index.md"))
    cards, rows = [], []
    for run in runs:
        notebook = nbformat.read(run.notebook, as_version=4)
        cards.append(card(run, notebook, source / "figures"))
        rows.append(row(run, notebook))
        nbformat.write(page(run, notebook, style), source / "labs" / run.notebook.name)
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    front = front.replace("<!-- figures -->", "\n".join(cards)).replace("<!-- measured -->", "\n".join(rows))
    files.write(source / "index.md", front)


# ---- a lab's page ---------------------------------------------------------------------------------------------------


def page(run: Run, notebook, style: str):
    """The executed notebook of a run as Sphinx is to read it, with a last section on how it was made."""
    import nbformat

    if style == UNSOLVED:
        unsolved(run.lab, notebook)
    cells, stub = [], stubs(run.lab)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            continue
        for output in cell.get("outputs", []):
            show(cell, output)
        cells.append(cell)
        if style == COLLAPSED and "exercise" in tags:
            cells.append(folded(cell.source))
            cell.source = stub[cell.id]
    cells.append(nbformat.v4.new_markdown_cell(f"## How this page was made\n\n{origin(run)}"))
    notebook.cells = cells
    notebook.metadata.pop("widgets", None)
    return notebook


def show(cell, output) -> None:
    """Of a figure keep the image with its words, at its size in JupyterLab; of a widget the picture beside it.

    A widget without its kernel is dead, and its player would come from the network.
    """
    data = output.get("data", {})
    data.pop("application/vnd.jupyter.widget-view+json", None)
    if data.pop(notice.DRAWN, None) is not None:
        width = re.search(r'width="(\d+)"', data.pop("text/html"))[1]
        cell.metadata["mystnb"] = {"image": {"alt": data["text/plain"], "width": f"{width}px"}}


def folded(answer: str):
    """A cell with the answer of an exercise in a fold."""
    import nbformat

    prompts = {"code_prompt_show": "An answer", "code_prompt_hide": "An answer"}
    return nbformat.v4.new_code_cell(answer, metadata={"tags": ["hide-input"], "mystnb": prompts})


def stubs(lab: str) -> dict[str, str]:
    """What a student finds in the cells of the exercises, by their ids."""
    return {cell.id: cell.source for cell in tagged(read(lab), "exercise")}


def unsolved(lab: str, notebook) -> None:
    """Make of an executed solved lab what an executed unsolved one is: only exercises and checks differ."""
    import nbformat

    cells = {cell.id: cell for cell in notebook.cells}
    none = f"  0 of {len(answers(lab))} solved in this lab."
    for exercise, stub in stubs(lab).items():
        cells[exercise].source = stub
        verdict = notice.marked(notice.OPEN, exercise, notice.NOT_ATTEMPTED)
        printed = nbformat.v4.new_output("stream", text=f"{verdict}\n{none}\n")
        cells[check_of(exercise)].outputs = [printed]  # also where the run ended before


def origin(run: Run) -> str:
    """Where a page's outputs come from, in sentences."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    said = [
        f"Executed at scale {run.scale} on {run.date} in {run.seconds:.0f} seconds,",
        f"with at most {run.peak_bytes / 1e9:.2f} GB of memory, on {run.machine}.",
        f"{versions}.",
        f"Commit {run.commit or 'unknown'}.",
        f"{run.passed} of {run.checks} checks of the solved lab passed.",
    ]
    return " ".join([*said, f"Not whole: {run.error}"] if run.error else said)


# ---- the front page -------------------------------------------------------------------------------------------------


def card(run: Run, notebook, figures: Path) -> str:
    """A lab on the front page: the figure that stands for it, a link, the figure's sentence."""
    cell = next(cell for cell in notebook.cells if cell.id == SIGNATURE[run.lab])
    drawn = next((output.data for output in cell.outputs if notice.DRAWN in output.get("data", {})), None)
    if drawn is None:  # the run ended before
        return ""
    (figures / f"{run.lab}.png").write_bytes(base64.b64decode(drawn["image/png"]))
    sentence = drawn["text/plain"]
    lines = [f"::::{{figure}} figures/{run.lab}.png", f":alt: {sentence}", f":target: labs/{run.notebook.stem}.html"]
    return "\n".join([*lines, "", f"[{heading(notebook)}](labs/{run.notebook.name})\n\n{sentence}", "::::", ""])


def row(run: Run, notebook) -> str:
    """A lab in the table of the front page."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    whole = sum(map(int, re.findall(r"^\*Section .* · about (\d+) minutes\*", text, re.MULTILINE)))
    exercises = [int(minutes) for minutes in re.findall(r"\*\*Exercise \d of \d · (\d+) minutes", text)]
    columns = [
        f"[{run.lab}](labs/{run.notebook.name})",
        f"{len(exercises)} in {sum(exercises)} minutes",
        f"{whole} minutes",
        f"{run.seconds:.0f} s",
        f"{run.peak_bytes / 1e9:.2f} GB",
        f"{run.passed} of {run.checks}",
    ]
    return f"| {' | '.join(columns)} |"


def footer(runs: list[Run]) -> str:
    """What stands below every page."""
    made = {f"{run.machine}, Python {run.versions['Python']}, torch {run.versions['torch']}" for run in runs}
    minutes = sum(run.seconds for run in runs) / 60
    ran = f"{len(runs)} labs executed in {minutes:.0f} minutes on {'; '.join(sorted(made))}"
    return f"<p>Commit {commit() or 'unknown'} · {ran}</p>"


def heading(notebook) -> str:
    """The first heading of a notebook: its title."""
    return next(c.source for c in notebook.cells if c.cell_type == "markdown").splitlines()[0].lstrip("# ")


# ---- in the terminal ------------------------------------------------------------------------------------------------


def table(runs: list[Run]) -> str:
    """The closing table of `make run`."""
    lines = [f"{'lab':<6} {'seconds':>8} {'peak memory':>12} {'checks passed':>14}  notebook to open"]
    for r in runs:
        checks = f"{r.passed} of {r.checks}"
        path = os.path.relpath(r.notebook)
        lines.append(f"{r.lab:<6} {r.seconds:>8.1f} {r.peak_bytes / 1e9:>9.2f} GB {checks:>14}  {path}")
        if r.error:
            lines.append(f"       not whole: {r.error}")
    return "\n".join(lines)
