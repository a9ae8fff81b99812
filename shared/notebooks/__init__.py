"""Notebook + answers -> solved, executed, rendered. The student notebook is the source; nothing derived is in git.

`source` finds, reads and solves labs, `run` executes them, `record` says what an executed one came from, `pages`
renders them, `python -m shared.notebooks` is what the Makefile calls.
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

# nbformat brings jsonschema, and that builds a grammar of web addresses where this package is installed: at each import
# a second of the processor for what no notebook needs. Without the package it goes without.
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
