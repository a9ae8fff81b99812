"""Notebook + answers -> solved, executed, rendered. The student notebook is the source; nothing derived is in git.

An exercise is a code cell with the tag `exercise` and an id such as `ex-kv-cache-bytes`. Its answer stands in
`labs/solutions/lab_2_4_N.py` under the line `# %% ex-kv-cache-bytes` and replaces the cell's whole source.

`python -m shared.notebooks run|render|solve --help` is what the Makefile calls.
"""

import ast
import ctypes
import functools
import html
import importlib.util
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from shared import commands, files
from shared.errors import BadInput, CourseError

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "labs"
BUILD = Path(os.environ.get("COURSE_BUILD") or ROOT / "build")  # another place, so that two runs do not meet
SCALES = ("tiny", "full")
# The labs of the course. Another notebook beside them (a copy, a solved one, a draft) is the student's.
FILES = (
    "lab-2.4.1-mamba-inference.ipynb",
    "lab-2.4.2-mamba-architecture.ipynb",
    "lab-2.4.3-moe-exploration.ipynb",
    "lab-2.4.4-moe-router.ipynb",
    "lab-2.4.5-architecture-comparison.ipynb",
    "lab-2.4.6-mamba-finetuning.ipynb",
)


@dataclass(frozen=True)
class Run:
    """What one execution of a lab gave. Seconds of wall clock, peak resident bytes of the kernel, checks, error."""

    lab: str
    notebook: Path
    seconds: float
    peak_bytes: int
    passed: int
    checks: int
    error: str = ""

    @property
    def page(self) -> Path:
        return BUILD / "html" / f"{self.notebook.stem}.html"


# ---- source -----------------------------------------------------------------------------------------------------


def labs(folder: Path | None = None) -> dict[str, Path]:
    """The labs of the course that exist in a folder (default: labs/): number -> notebook, in order."""
    paths = {name.split("-")[1]: (folder or LABS) / name for name in FILES}
    return {lab: path for lab, path in paths.items() if path.is_file()}


def path_of(lab: str) -> Path:
    """The notebook of a lab number such as "2.4.1"; BadInput in one sentence where there is none."""
    known = labs()
    if lab not in known:
        raise BadInput(f"There is no lab {lab!r}; the labs are {', '.join(known)}.")
    return known[lab]


def remedy(path: Path) -> str:
    """The command that brings the course's own file back."""
    return f"git restore {os.path.relpath(path, ROOT)}"


def solutions_path(lab: str) -> Path:
    return LABS / "solutions" / f"lab_{lab.replace('.', '_')}.py"


def answers(lab: str) -> dict[str, str]:
    """The answers of a lab: id of the exercise cell -> source."""
    blocks = re.split(r"^# %% *(\S+) *$", solutions_path(lab).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    ids = blocks[::2]
    if len(set(ids)) < len(ids):
        raise BadInput(f"{solutions_path(lab).name} answers an exercise twice: {sorted(ids)}.")
    return dict(zip(ids, (source.strip() for source in blocks[1::2]), strict=True))


@functools.cache
def solution(lab: str) -> ModuleType:
    """The answers of a lab as a module: the course's own version of every exercise."""
    spec = importlib.util.spec_from_file_location(solutions_path(lab).stem, solutions_path(lab))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(lab: str):
    """The student notebook of a lab as a NotebookNode, with the ids and tags by which the course finds its cells.

    Raises BadInput, which names the file and a remedy, where the file is not a notebook.
    """
    path = path_of(lab)
    notebook = _load(path)
    _identify(notebook, lab)
    return notebook


def _load(path: Path):
    """A notebook from its file, in nbformat 4, ids as they are. BadInput where it cannot be read."""
    import nbformat

    def damaged(what: str) -> BadInput:
        return BadInput(
            f"{os.path.relpath(path, ROOT)} {what}: keep it under another name, then take the course's own file "
            f"again, from the ZIP or with {remedy(path)}"
        )

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as problem:
        raise damaged(f"cannot be read ({problem.strerror})") from None
    except UnicodeDecodeError:
        raise damaged("is not UTF-8 text (an editor saved it in another encoding)") from None
    if not text.strip():
        raise damaged("is empty")
    try:
        notebook = nbformat.convert(nbformat.reader.reads(text), 4)
    except nbformat.reader.NotJSONError:
        conflict = re.search("^(<{7}|>{7}) ", text, re.MULTILINE)
        raise damaged("holds a merge conflict" if conflict else "is not JSON (it may be cut off)") from None
    except Exception:  # whatever else nbformat meets in a JSON file that is no notebook
        raise damaged("is not a notebook") from None
    cells = notebook.get("cells")
    if not isinstance(cells, list) or not all(_is_cell(cell) for cell in cells):
        raise damaged("is not a notebook")
    return notebook


def _is_cell(cell) -> bool:
    kinds = {"cell_type": str, "source": str, "metadata": dict}
    return isinstance(cell, dict) and all(isinstance(cell.get(name), kind) for name, kind in kinds.items())


def _identify(notebook, lab: str) -> None:
    """Give cells their ids and tags back that a program left out when it saved them (Colab), by the names in them."""
    for cell in notebook.cells:
        cell.setdefault("id", cell.metadata.get("id"))  # where Colab puts it
    marks = {"parameters": ("parameters", r"SCALE *="), "settings": (None, r"SETTINGS *=")}
    for exercise in answers(lab) if solutions_path(lab).exists() else ():
        name = _name(exercise)
        marks[exercise] = ("exercise", rf"(?:def|class) {name}\b")
        marks[exercise.replace("ex-", "check-", 1)] = ("check", rf"{name} *= *check\.{name}\(")
    for cell_id, (tag, pattern) in marks.items():
        same = [cell for cell in notebook.cells if cell.id == cell_id]
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.id not in marks]
        same += [cell for cell in code if re.search(f"^{pattern}", cell.source, re.MULTILINE)]
        if same:
            same[0].id = cell_id
            if tag and tag not in same[0].metadata.get("tags", []):
                same[0].metadata.tags = [*same[0].metadata.get("tags", []), tag]
    taken = set()
    for cell in notebook.cells:
        if not isinstance(cell.id, str) or cell.id in taken:
            cell.id = uuid.uuid4().hex[:8]
        taken.add(cell.id)
    notebook.nbformat_minor = max(5, notebook.nbformat_minor)  # the first version with ids


def _name(exercise: str) -> str:
    """What an exercise defines: `kv_cache_bytes` in ex-kv-cache-bytes."""
    return exercise.removeprefix("ex-").replace("-", "_")


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def solve(lab: str):
    """The notebook of a lab with each answer in the place of its stub, as a NotebookNode.

    A student's copy of an exercise's cell gets the answer too. Raises BadInput when exercises and answers do not
    match otherwise.
    """
    notebook, known = read(lab), answers(lab)
    by_name = {_name(exercise): exercise for exercise in known}
    found, odd = set(), set()
    for cell in tagged(notebook, "exercise"):
        defined = re.findall(r"^(?:def|class) (\w+)", cell.source, re.MULTILINE)
        exercise = cell.id if cell.id in known else next((by_name[name] for name in defined if name in by_name), None)
        if exercise:
            cell.source = known[exercise]
            found.add(exercise)
        else:
            odd.add(cell.id)
    odd |= set(known) - found
    if odd:
        raise BadInput(
            f"Lab {lab}: exercises and answers do not match: {', '.join(sorted(odd))} (keep your file under another "
            f"name, then take the course's own again: {remedy(path_of(lab))})."
        )
    return notebook


# ---- execution --------------------------------------------------------------------------------------------------


def execute(
    lab: str,
    scale: str = "tiny",
    solved: bool = True,
    folder: Path | None = None,
    numbers: dict | None = None,
    **parameters,
) -> Run:
    """Execute a lab with papermill on a fresh kernel and write it to `folder` (default build/executed).

    Further keyword arguments set values of the lab's `parameters` cell; an unknown one is an error (papermill only
    warns). A failing cell does not raise: the run carries its error, and the notebook is written as far as it came.
    Nor does something missing: the run carries the first sentence about it, and cells that do not need it have run.

    Args:
        numbers: in the place of some in the settings of this scale, such as {"contexts": (64, 128)}: a shorter run.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    _check_scale(scale)
    notebook = solve(lab) if solved else read(lab)
    parameters = {"SCALE": scale, **parameters}
    cells = tagged(notebook, "parameters")
    if len(cells) != 1:
        raise BadInput(f"Lab {lab} has {len(cells)} cells tagged `parameters`; it needs exactly one.")
    known = re.findall(r"^(\w+) *=", cells[0].source, flags=re.MULTILINE)
    if unknown := set(parameters) - set(known):
        raise BadInput(f"Lab {lab} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(known)}.")
    if numbers:
        change_settings(notebook, scale, numbers)

    folder = folder or BUILD / "executed"
    out = folder / path_of(lab).name
    ends_with_us = f"__import__('shared.notebooks').notebooks.end_with({os.getpid()})"
    start, error = time.perf_counter(), ""
    with files.replacing(out) as partial:  # a run that is interrupted leaves the last whole one in its place
        try:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters,
                kernel_name="python3",
                cwd=LABS,
                progress_bar=sys.stderr.isatty(),
                extra_arguments=[
                    "--IPKernelApp.log_level=40",  # errors only: it warns that localhost is not encrypted
                    f"--IPKernelApp.exec_lines={ends_with_us}",
                ],
            )
        except papermill.PapermillExecutionError as failed:
            error = f"{failed.ename}: {failed.evalue}".splitlines()[0]
        except DeadKernelError:
            error = "the kernel died, most likely for lack of memory: close other notebooks and run this lab again"
        seconds = time.perf_counter() - start
        executed = nbformat.read(partial, as_version=4)
    verdicts = [text(cell) for cell in tagged(executed, "check")]
    error = error or next(missing(executed), "")
    # ru_maxrss of the children: the kernel is the only child that has ended (kilobytes on Linux, bytes on a Mac).
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(lab, out, seconds, peak, sum("✓" in v for v in verdicts), len(verdicts), error)


def end_with(parent: int) -> None:
    """From here on this process, a child of process `parent`, ends when that one does, also by SIGKILL.

    Linux sees to it, at once. Elsewhere a thread looks twice a second.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(1, signal.SIGKILL) == 0:  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended before
            os._exit(1)
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=look, name="end with parent", daemon=True).start()


def change_settings(notebook, scale: str, numbers: dict) -> None:
    """Put numbers in the place of some of a scale's, in the notebook's settings cell, before anything reads them.

    Raises BadInput for a name that the scale's settings do not have.
    """
    cell = next(cell for cell in notebook.cells if cell.id == "settings")
    tree = ast.parse(cell.source)
    table = next(s for s in tree.body if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "SETTINGS")
    scales = {key.value: _names(value) for key, value in zip(table.value.keys, table.value.values, strict=True)}
    if unknown := set(numbers) - set(scales[scale]):
        raise BadInput(
            f"The settings of scale {scale} have no {', '.join(sorted(unknown))}; they have {', '.join(scales[scale])}."
        )
    lines = cell.source.splitlines()
    lines.insert(table.end_lineno, f"SETTINGS[{scale!r}].update({numbers!r})")
    cell.source = "\n".join(lines)


def _names(table: ast.expr) -> list[str]:
    """The names in a table that is written as {...}, dict(...) or several of them joined by |."""
    if isinstance(table, ast.BinOp):
        return _names(table.left) + _names(table.right)
    if isinstance(table, ast.Call):
        return [keyword.arg for keyword in table.keywords]
    return [key.value for key in table.keys]


def _check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise BadInput(f"SCALE={scale} is unknown; it is one of {', '.join(SCALES)}.")


def text(cell) -> str:
    """What a code cell printed or showed as plain text."""
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", [])]
    return "".join(parts)


def missing(notebook) -> Iterator[str]:
    """What an executed notebook could not have and went on without (`shared.absent`): its sentences, in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if sentence := output.get("metadata", {}).get("missing"):
                yield sentence


def run(lab: str | None = None, scale: str = "tiny") -> list[Run]:
    """Execute solved labs (all, or one), each in a process of its own, and render them to build/html."""
    _check_scale(scale)
    chosen = [lab] if lab else list(labs())
    for name in chosen:
        solve(name)  # a damaged notebook is said before anything runs
    runs = []
    for name in chosen:
        print(f"lab {name} at scale {scale} …", flush=True)
        runs.append(_executed(name, scale))
        render(runs[-1])
    index(runs)
    return runs


def _executed(lab: str, scale: str) -> Run:
    """`execute` in a new process, which ends with this one: the peak memory of a lab is that of its own kernel alone.

    On Ctrl-C it is ended with its kernel, and its unfinished notebook is deleted.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _worker, (os.getpid(),)) as pool:
        # The worker hears Ctrl-C too. Until it can leave the answer to this process, it waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            running = pool.submit(execute, lab, scale)
            workers = multiprocessing.active_children()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            return running.result()
        except BrokenProcessPool:
            raise CourseError(
                f"The process that ran lab {lab} was killed, most likely for lack of memory: close other notebooks, "
                "then run this again."
            ) from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            for worker in workers:
                worker.kill()
                worker.join()
                files.remove_parts(BUILD / "executed", worker.pid.__eq__)
            raise


def _worker(parent: int) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler, not SIG_IGN: its kernel would inherit that
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# ---- pages ------------------------------------------------------------------------------------------------------


def render(run: Run) -> Path:
    """Write an executed lab as one HTML page that opens from disk, without any network."""
    import nbformat
    from nbconvert import HTMLExporter

    # The labs use no TeX, no widgets state and no RequireJS: without these three the page needs nothing from outside.
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jupyter_widgets_base_url="", exclude_anchor_links=True)
    notebook = nbformat.read(run.notebook, as_version=4)
    notebook.metadata["title"] = heading(notebook)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    # A widget without its kernel is dead, and its player would come from the network: the page shows its picture.
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    body, _ = exporter.from_notebook_node(notebook)
    files.write(run.page, body)
    return run.page


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
    page = BUILD / "html" / "index.html"
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


# ---- command line -----------------------------------------------------------------------------------------------


@commands.program("Stopped: the lab that was running has left no page; earlier pages stay.")
def main(arguments: list[str] | None = None) -> int:
    """`run` and `render` execute solved labs into build/; `solve` writes one solved, unexecuted notebook."""
    parser = commands.Parser(main.__doc__, prog="python -m shared.notebooks")
    parser.add_argument("command", choices=("run", "render", "solve"))
    parser.add_argument("--lab", help="one lab, such as 2.4.1 (default: all)")
    parser.add_argument("--scale", default="tiny", help="tiny or full")
    parser.add_argument("--out", type=Path, help="solve: where to write the notebook")
    options = parser.parse_args(arguments)
    if options.command == "solve":
        import nbformat

        if not options.lab or not options.out:
            raise BadInput("`solve` needs --lab, such as 2.4.1, and --out, the notebook to write.")
        with files.replacing(options.out) as part:
            nbformat.write(solve(options.lab), part)
        return 0
    runs = run(options.lab, options.scale)
    if options.command == "run":
        print(table(runs))
    else:
        print(f"Open {os.path.relpath(BUILD / 'html' / 'index.html')} in a browser.")
    good = all(r.passed == r.checks and not r.error for r in runs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
