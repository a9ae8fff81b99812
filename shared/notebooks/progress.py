"""Which exercises of a lab have been solved, kept under build/ by the answers that the checks found right.

It is a student's own: where COURSE_PROGRESS is "off", as in every run of the labs by a program, it lasts as long as the
process and begins empty.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path

from shared import files
from shared.errors import CourseError
from shared.notebooks.source import answers

OFF = "off"
_here: dict[str, dict[str, str]] = {}  # of this process, where nothing is kept


def solved(lab: str) -> list[str]:
    """The ids of the solved exercises of a lab, in the lab's order."""
    known = _read(lab)
    return [cell_id for cell_id in answers(lab) if cell_id in known]


def said(lab: str) -> str:
    """Such as "4 of 7 solved in this lab"."""
    return f"{len(solved(lab))} of {len(answers(lab))} solved in this lab"


def note(lab: str, cell_id: str, answer: Callable | None) -> None:
    """Keep that an exercise is solved by this answer, or, with None, that it is not solved."""
    known = dict(_read(lab))
    key = answer and _fingerprint(answer)
    if known.get(cell_id) == key:
        return
    known = {name: kept for name, kept in known.items() if name != cell_id} | ({cell_id: key} if key else {})
    if off():
        _here[lab] = known
        return
    try:
        files.write(_path(lab), json.dumps(known, indent=1) + "\n")
    except CourseError:  # a full disk, another user's folder: a verdict is worth more than its record
        _here[lab] = known


def off() -> bool:
    """Whether nothing is to be kept of this process: a program runs the lab, not a student."""
    return os.environ.get("COURSE_PROGRESS") == OFF


def _path(lab: str) -> Path:
    return files.BUILD / "progress" / f"lab-{lab}.json"


def _read(lab: str) -> dict[str, str]:
    if off() or lab in _here:
        return _here.get(lab, {})
    try:
        known = json.loads(_path(lab).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _fingerprint(answer: Callable) -> str:
    """Of an answer's text; where it has none, of its code."""
    try:
        text = inspect.getsource(answer)
    except (OSError, TypeError):
        code = getattr(answer, "__code__", None)
        text = repr((code.co_code, code.co_names)) if code else repr(type(answer))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
