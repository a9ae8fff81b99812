"""The labs of the course as notebooks: where they are, what is wrong with a file, their answers, a solved one.

An exercise is a code cell with the tag `exercise` and an id such as `ex-kv-cache-bytes`. Its answer stands in
`labs/solutions/lab_2_4_N.py` under the line `# %% ex-kv-cache-bytes` and replaces the cell's whole source.
"""

import ast
import functools
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from shared import files
from shared.errors import BadInput

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


def labs(folder: Path | None = None) -> dict[str, Path]:
    """The labs of the course that exist in a folder (default: labs/): number -> notebook, in order."""
    paths = {name.split("-")[1]: (folder or files.LABS) / name for name in FILES}
    return {lab: path for lab, path in paths.items() if path.is_file()}


def path_of(lab: str) -> Path:
    """The notebook of a lab number such as "2.4.1"; BadInput in one sentence where there is none."""
    known = labs()
    if lab not in known:
        raise BadInput(f"There is no lab {lab!r}; the labs are {', '.join(known)}.")
    return known[lab]


def remedy(path: Path) -> str:
    """The command that brings the course's own file back."""
    return f"git restore {os.path.relpath(path, files.ROOT)}"


def solutions_path(lab: str) -> Path:
    return files.LABS / "solutions" / f"lab_{lab.replace('.', '_')}.py"


def sealed_path(lab: str) -> Path:
    """Where the answers are in a release, which has no labs/solutions/ (`make release`)."""
    return files.ROOT / "shared" / "notebooks" / "answers" / f"{solutions_path(lab).stem}.sealed"


def has_answers(lab: str) -> bool:
    return solutions_path(lab).exists() or sealed_path(lab).exists()


def _solutions_text(lab: str) -> str:
    path = solutions_path(lab)
    if sealed_path(lab).exists() and not path.exists():
        return files.unsealed(sealed_path(lab))
    return path.read_text(encoding="utf-8")


def answers(lab: str) -> dict[str, str]:
    """The answers of a lab: id of the exercise cell -> source."""
    blocks = re.split(r"^# %% *(\S+) *$", _solutions_text(lab), flags=re.MULTILINE)[1:]
    ids = blocks[::2]
    if len(set(ids)) < len(ids):
        raise BadInput(f"{solutions_path(lab).name} answers an exercise twice: {sorted(ids)}.")
    return dict(zip(ids, (source.strip() for source in blocks[1::2]), strict=True))


def run_solutions(lab: str) -> ModuleType:
    """The answers of a lab as a module of its own, with other objects at each call."""
    module = ModuleType(solutions_path(lab).stem)
    exec(compile(_solutions_text(lab), str(solutions_path(lab)), "exec"), vars(module))
    return module


@functools.cache
def solution(lab: str) -> ModuleType:
    """The answers of a lab as a module: the course's own version of every exercise."""
    return run_solutions(lab)


def read(lab: str):
    """The student notebook of a lab as a NotebookNode, with the ids and tags by which the course finds its cells.

    Raises BadInput, which names the file and a remedy, where the file is not a notebook, and where a hand has split the
    cell of an exercise.
    """
    path = path_of(lab)
    notebook = load(path)
    identify(notebook, lab)
    _check_joined(notebook, lab)
    return notebook


def load(path: Path):
    """A notebook from its file, in nbformat 4, ids as they are. BadInput where it cannot be read."""
    import nbformat

    def damaged(what: str) -> BadInput:
        if not path.is_relative_to(files.ROOT):  # no file of the course
            return BadInput(f"{path.name} {what}.")
        return BadInput(
            f"{os.path.relpath(path, files.ROOT)} {what}: keep it under another name, then take the course's own file "
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


def identify(notebook, lab: str) -> None:
    """Give cells their ids and tags back that a program left out when it saved them (Colab), by the names in them.

    A cell of the course that was turned into text is code again.
    """
    for cell in notebook.cells:
        _complete(cell)
    marks = {"parameters": ("parameters", r"SCALE *="), "settings": (None, r"SETTINGS *=")}
    for exercise in answers(lab) if has_answers(lab) else ():
        name = name_of(exercise)
        marks[exercise] = ("exercise", defines(exercise))
        marks[check_of(exercise)] = ("check", rf"{name} *= *check\.{name}\(")
    fits = {cell_id: re.compile(f"^{pattern}", re.MULTILINE).search for cell_id, (_, pattern) in marks.items()}
    for cell_id, (tag, _) in marks.items():
        same = [cell for cell in notebook.cells if cell.id == cell_id]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        other = [cell for cell in code if cell.id not in fits or not fits[cell.id](cell.source)]
        same += [cell for cell in other if fits[cell_id](cell.source) and cell not in same]
        same.sort(
            key=lambda cell: not fits[cell_id](cell.source)
        )  # the name counts more than the id, which a hand moves
        for cell in same[1:]:
            if cell.id == cell_id:
                cell.id = None
        if same:
            same[0].id = cell_id
            if same[0].cell_type != "code":
                same[0].update(cell_type="code", outputs=[], execution_count=None)
                same[0].pop("attachments", None)
            if tag and tag not in same[0].metadata.get("tags", []):
                same[0].metadata.tags = [*same[0].metadata.get("tags", []), tag]
    taken = set()
    for cell in notebook.cells:
        if not isinstance(cell.id, str) or cell.id in taken:
            cell.id = uuid.uuid4().hex[:8]
        taken.add(cell.id)
    notebook.nbformat_minor = max(5, notebook.nbformat_minor)  # the first version with ids


def _complete(cell) -> None:
    """Give a cell what nbformat asks of it, and an id of its own where it has one: None otherwise."""
    ids = [cell.get("id"), cell.metadata.get("id")]  # Colab writes the second
    cell.id = next((text for text in ids if isinstance(text, str) and text), None)
    tags = cell.metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        del cell.metadata["tags"]
    if cell.cell_type == "code":
        cell.setdefault("outputs", [])
        cell.setdefault("execution_count", None)


def _check_joined(notebook, lab: str) -> None:
    """Raise BadInput where the cell of an exercise was split: its second half would be run as code of its own."""
    known = answers(lab) if has_answers(lab) else {}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    above, complete = None, True  # the exercise whose check is still to come, and whether its cell is Python by itself
    for number, cell in enumerate(code):
        if cell.id in known:
            above, complete = cell.id, _is_python(cell.source)
        elif cell.id.startswith("check-"):
            above, complete = None, True
        elif _is_part(cell, above is not None, complete):
            exercise = above or next((other.id for other in code[number:] if other.id in known), "")
            begins = _first_line(cell).strip()[:40]
            path = path_of(lab)
            raise BadInput(
                f"{os.path.relpath(path, files.ROOT)}: exercise {exercise} stands in several cells, one of which "
                f"begins with {begins!r}: select them in JupyterLab and join them with Shift+M, or keep your file "
                f"under another name and take the course's own again: {remedy(path)}"
            )


def _is_part(cell, below: bool, complete: bool) -> bool:
    """Whether a cell is a piece of an exercise. below: an exercise's cell stands above; complete: it is Python."""
    if "exercise" in cell.metadata.get("tags", []):
        return not re.search(r"^(?:def|class) ", cell.source, re.MULTILINE)
    indented = _first_line(cell)[:1].isspace()
    if below and (indented or not complete):
        return indented or not _is_python(cell.source)
    return indented and not _is_python(cell.source)


def _first_line(cell) -> str:
    return next((line for line in cell.source.splitlines() if line.strip()), "")


def _is_python(source: str) -> bool:
    """Whether a notebook can run a source: IPython takes out what is indented as a whole, and knows magics."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        compile(TransformerManager().transform_cell(source), "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except (SyntaxError, ValueError):
        return False
    return True


def check_of(exercise: str) -> str:
    """The id of the cell that checks an exercise: check-kv-cache-bytes for ex-kv-cache-bytes."""
    return exercise.replace("ex-", "check-", 1)


def name_of(exercise: str) -> str:
    """What an exercise defines: `kv_cache_bytes` in ex-kv-cache-bytes."""
    return exercise.removeprefix("ex-").replace("-", "_")


def defines(exercise: str) -> str:
    """The pattern, at the beginning of a line, of what an exercise's cell defines."""
    return rf"(?:def|class) {name_of(exercise)}\b"


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def solve(lab: str):
    """The notebook of a lab with each answer in the place of its stub, as a NotebookNode.

    A student's copy of an exercise's cell gets the answer too. Raises BadInput when exercises and answers do not
    match otherwise.
    """
    notebook, known = read(lab), answers(lab)
    by_name = {name_of(exercise): exercise for exercise in known}
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


def check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise BadInput(f"SCALE={scale} is unknown; it is one of {', '.join(SCALES)}.")


def text(cell) -> str:
    """What a code cell printed or showed as plain text."""
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", [])]
    return "".join(parts)


def missing(notebook) -> Iterator[str]:
    """What an executed notebook could not have and went on without (`notebooks.absent`): its sentences, in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if sentence := output.get("metadata", {}).get("missing"):
                yield sentence
