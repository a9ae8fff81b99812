"""Notebook + answers -> solved, executed, rendered. The student notebook is the source; nothing derived is in git.

`source` finds, reads and solves labs, `run` executes them, `record` says what an executed one came from, `pages`
renders them, `python -m shared.notebooks` is what the Makefile calls.

Its import marks one package as not there, for the whole process: `rfc3987_syntax`. nbformat brings jsonschema, which
builds a grammar of web addresses with it, a second of the processor at each import, and no notebook needs that.
"""

import sys

from shared.notebooks.pages import UNSOLVED, build, heading, table, unsolved
from shared.notebooks.record import Run
from shared.notebooks.run import execute, execute_apart, kernel_manager
from shared.notebooks.source import (
    FILES,
    SCALES,
    answers,
    change_settings,
    check_scale,
    labs,
    missing,
    path_of,
    read,
    remedy,
    solution,
    solutions_path,
    solve,
    tagged,
    text,
)

sys.modules.setdefault("rfc3987_syntax", None)

__all__ = [
    "FILES",
    "SCALES",
    "UNSOLVED",
    "Run",
    "answers",
    "build",
    "change_settings",
    "check_scale",
    "execute",
    "execute_apart",
    "heading",
    "kernel_manager",
    "labs",
    "missing",
    "path_of",
    "read",
    "remedy",
    "solution",
    "solutions_path",
    "solve",
    "table",
    "tagged",
    "text",
    "unsolved",
]
