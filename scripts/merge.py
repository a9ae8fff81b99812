"""A lab that a student changed and an update changes too, as one notebook: the course's cells with the student's work.

    python scripts/merge.py BASE NEW MINE MERGED   # four files; prints what the student should look at

BASE is the course's lab that the student began with, NEW the course's newest, MINE the student's. MERGED has the cells
of the course in the newest order:

- Only the student changed a cell: theirs. Only the course did: the course's.
- Both did: the course's, and directly below it a cell with the student's lines. An exercise keeps the student's work,
  and its new stub stands above it.
- The student deleted a cell: it comes back where it is an exercise or a check, or where the course changed it.
- What the student added stays below the cell of the course that it stood below. So does what they wrote into a cell
  that the course has removed.

A code cell keeps its outputs where its source stays as it was. Merging once more changes nothing.

`make update` calls this before the set-up, so it needs nothing but Python.
"""

import difflib
import json
import re
import sys
from pathlib import Path

ALIKE = 0.5  # the share of words from which a cell with the id of one of the course is that one
ALIKE_WITHOUT_ID = 0.75
OUTPUTS = ("stream", "display_data", "execute_result", "error")
ROLES = ("exercise", "check")
STUB = """**The update changed this exercise.** Your work is below, as it was. The new stub:

{fence}python
{stub}
{fence}"""
LINES = {
    "code": "# Yours, from the cell above, which the update changed too. To run it: Esc, then Y.\n{lines}",
    "markdown": "*Yours, from the text above, which the update changed too:*\n\n{lines}",
    "raw": "{lines}",
}
TOLD = {
    "stub": "the stub of an exercise changed; the new one stands above your work",
    "lines": "you changed these cells too; your lines stand below them",
    "gone": "no longer in the lab; what you wrote there is kept",
    "back": "you had deleted these; they are back",
}


def merge(base: dict, new: dict, mine: dict):
    """The merged notebook, and what to tell of it: a key of TOLD -> ids of cells.

    Args: three notebooks of nbformat 4 as JSON has them. None of them is changed.
    """
    before = {cell["id"]: cell for cell in tidy(base)}
    course = {cell["id"]: cell for cell in tidy(new)}
    students = tidy(mine)
    found = find(before, course, students)
    place_of = {cell_id: place for place, cell_id in found.items()}
    told = {reason: [] for reason in TOLD}

    groups = {None: []}  # a cell of the course, None for the notebook's top -> that cell, and what stands below it
    for cell_id, cell in course.items():
        old = before.get(cell_id, {**cell, "source": ""})
        if cell_id in place_of:
            reason, cells = together(old, cell, students[place_of[cell_id]])
        elif cell_id in before and not differ(old, cell) and not role(cell):
            continue
        else:
            reason, cells = "back" if cell_id in before else "", [cell]
        # What an earlier merge has put there already is among the student's own cells.
        groups[cell_id] = [one for one in cells if one["id"] == cell_id or is_new(one, students)]
        if reason:
            told[reason].append(cell_id)

    below = None
    for place, theirs in enumerate(students):
        cell_id = found.get(place)
        if cell_id in groups and cell_id is not None:
            below = cell_id
        elif cell_id is None:
            still = any(pattern_of(cell) and is_it(cell, theirs) for cell in course.values())  # a copy of an exercise
            own = theirs if still else without_role(theirs)
            groups[below].append({**own, "id": None if own["id"] in {*before, *course} else own["id"]})
        elif differ(before[cell_id], theirs):
            groups[below].append({**without_role(theirs), "id": f"mine-{cell_id}"})
            told["gone"].append(cell_id)

    cells = name([cell for group in groups.values() for cell in group], set(course))
    minor = max(5, *(notebook.get("nbformat_minor", 5) for notebook in (new, mine)))  # 5: the first one with ids
    kept = {"cells": cells, "metadata": three_way(base, new, mine), "nbformat": 4, "nbformat_minor": minor}
    return kept, told


def together(old: dict, cell: dict, theirs: dict):
    """What becomes of a cell of the course: a key of TOLD or "", and the cells that stand for it from now on."""
    if role(cell) and not text(theirs):
        return "back", [cell]
    if role(cell):  # one that was turned into text is code again
        theirs = {**theirs, "cell_type": cell["cell_type"]}
    own = {"id": cell["id"], "metadata": three_way(old, cell, theirs)}
    if not differ(cell, theirs):
        return "", [complete({**theirs, **own, "source": cell["source"]})]
    if not differ(old, cell):
        return "", [complete({**theirs, **own})]
    if role(cell) == "exercise" and differ(old, theirs):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", cell["source"])), default=0))
        note = {"cell_type": "markdown", "source": STUB.format(stub=text(cell), fence=fence)}
        return "stub", [complete({**note, "id": f"new-{cell['id']}", "metadata": {}}), complete({**theirs, **own})]

    course = {line.strip() for version in (old, cell) for line in version["source"].split("\n")}
    lines = [line for line in theirs["source"].split("\n") if line.strip() not in course - {""}]
    lines = "\n".join(lines).strip("\n")
    if not lines.strip():
        return "", [{**cell, "metadata": own["metadata"]}]
    kind = theirs["cell_type"]
    mine = {"id": f"mine-{cell['id']}", "metadata": {}, "source": LINES[kind].format(lines=lines)}
    mine["cell_type"] = "raw" if kind == "code" else kind  # old code after new code would undo it
    if "attachments" in theirs:
        mine["attachments"] = theirs["attachments"]
    return "lines", [{**cell, "metadata": own["metadata"]}, complete(mine)]


# ---- which of the course's cells a student's cell is -----------------------------------------------------------------


def find(before: dict, course: dict, students: list) -> dict:
    """Place among the student's cells -> id of the course's cell. Ids may be missing, new, moved or there twice."""
    known = {**course, **before}
    found = {}
    # What a merge has named is the student's own for good.
    candidates = [place for place, one in enumerate(students) if not (one["id"] or "").startswith(("mine-", "new-"))]

    def take(fits):
        for cell_id, cell in known.items():
            places = [place for place in candidates if place not in found and fits(cell, students[place])]
            if places and cell_id not in found.values():
                found[max(places, key=lambda place: differ(cell, students[place]))] = cell_id

    take(lambda cell, one: one["id"] == cell["id"] and (is_it(cell, one) or is_it(course.get(cell["id"], cell), one)))
    take(lambda cell, one: one["cell_type"] == "code" and bool(pattern_of(cell)) and is_it(cell, one))
    take(lambda cell, one: bool(text(cell)) and not differ(cell, one))
    take(lambda cell, one: one["id"] == cell["id"] and cell["id"] in before)

    left = [cell for cell_id, cell in before.items() if cell_id not in found.values()]
    loose = [place for place in candidates if place not in found]
    pairs = [(likeness(cell, students[place]), place, cell["id"]) for cell in left for place in loose]
    for alike, place, cell_id in sorted(pairs, key=lambda pair: -pair[0]):
        if alike >= ALIKE_WITHOUT_ID and place not in found and cell_id not in found.values():
            found[place] = cell_id
    return found


def is_it(cell: dict, one: dict) -> bool:
    """Whether a cell may be one of the course: by the name that it defines, or else by its words."""
    pattern = pattern_of(cell)
    return bool(re.search(pattern, one["source"], re.MULTILINE)) if pattern else likeness(cell, one) >= ALIKE


def pattern_of(cell: dict) -> str:
    """A pattern for what a cell of the course defines, by which a student's version is known, or ""."""
    kind, _, rest = (cell["id"] or "").partition("-")
    function = re.escape(rest.replace("-", "_"))
    patterns = {
        "ex": rf"^(?:def|class) {function}\b",
        "check": rf"^{function} *= *check\.{function}\(",
        "parameters": r"^SCALE *=",
        "settings": r"^SETTINGS *=",
    }
    pattern = patterns.get(kind, "")
    return pattern if pattern and re.search(pattern, cell["source"], re.MULTILINE) else ""


def likeness(cell: dict, one: dict) -> float:
    """The share of words, in order, that two cells have in common: 1 for the same text."""
    matcher = difflib.SequenceMatcher(None, cell["source"].split(), one["source"].split(), autojunk=False)
    bound = min(matcher.real_quick_ratio(), matcher.quick_ratio())
    return matcher.ratio() if bound >= ALIKE else bound


# ---- cells -----------------------------------------------------------------------------------------------------------


def text(cell: dict) -> str:
    return cell["source"].strip()


def differ(one: dict, other: dict) -> bool:
    return (one["cell_type"], text(one)) != (other["cell_type"], text(other))


def is_new(cell: dict, students: list) -> bool:
    return all(differ(cell, one) for one in students)


def role(cell: dict) -> str:
    return next((tag for tag in ROLES if tag in cell["metadata"].get("tags", [])), "")


def without_role(cell: dict) -> dict:
    tags = [tag for tag in cell["metadata"].get("tags", []) if tag not in ROLES]
    return {**cell, "metadata": {**cell["metadata"], "tags": tags}} if role(cell) else cell


def three_way(old: dict, new: dict, mine: dict) -> dict:
    """Metadata as the course has it now, and what only the student's has, unless the course took it away."""
    old, new, mine = (one.get("metadata", {}) for one in (old, new, mine))
    return {**{key: value for key, value in mine.items() if key not in old}, **new}


def tidy(notebook: dict) -> list:
    """The cells of a notebook, each with what nbformat asks of it and nothing else. id: None where there is none."""
    return [complete(cell) for cell in notebook["cells"]]


def complete(cell: dict) -> dict:
    source = cell.get("source", "")
    metadata = dict(cell.get("metadata") or {})
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        del metadata["tags"]
    ids = [cell.get("id"), metadata.get("id")]  # Colab writes the second
    whole = {
        "cell_type": cell["cell_type"],
        "id": next((one for one in ids if isinstance(one, str) and re.fullmatch(r"[\w-]{1,64}", one, re.ASCII)), None),
        "metadata": metadata,
        "source": ("".join(source) if isinstance(source, list) else source).replace("\r\n", "\n"),
    }
    if cell["cell_type"] == "code":
        outputs = cell.get("outputs") or []
        whole["outputs"] = outputs if all(output.get("output_type") in OUTPUTS for output in outputs) else []
        whole["execution_count"] = cell.get("execution_count")
    elif cell.get("attachments"):
        whole["attachments"] = cell["attachments"]
    return whole


def name(cells: list, course: set) -> list:
    """The cells with an id each: the course's keep theirs, and another one gets one where it has none that is free."""
    taken = set(course)
    named = []
    for cell in cells:
        cell_id, number = cell["id"] and cell["id"][:64], 0  # as long as nbformat takes
        while cell_id is None or (cell_id in taken and cell_id not in course):
            number += 1
            cell_id = f"mine-{number}"
        taken.add(cell_id)
        named.append({**cell, "id": cell_id})
    return named


# ---- files -----------------------------------------------------------------------------------------------------------


def read(path: str) -> dict:
    """A notebook of nbformat 4 from its file. Raises ValueError where it is none."""
    notebook = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    kinds = ("code", "markdown", "raw")
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or not isinstance(notebook.get("cells"), list):
        raise ValueError("it is not a notebook")
    if not all(isinstance(cell, dict) and cell.get("cell_type") in kinds for cell in notebook["cells"]):
        raise ValueError("it has cells that no notebook has")
    return notebook


def written(notebook: dict) -> bytes:
    """The file of a notebook, as nbformat writes it."""
    cells = [{**cell, "source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    lines = json.dumps({**notebook, "cells": cells}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return lines.encode("utf-8")


def main(base: str, new: str, mine: str, merged: str) -> int:
    try:
        notebook, told = merge(read(base), read(new), read(mine))
        Path(merged).write_bytes(written(notebook))
    except Exception as problem:  # whatever a file may hold
        print(f"{mine} is no notebook that can be merged: {problem}", file=sys.stderr)
        return 1
    for reason, ids in told.items():
        if ids:
            print(f"  {TOLD[reason]}: {', '.join(ids)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
