"""Notebook + answers -> solved, executed, rendered. The student notebook is the source; nothing derived is in git.

`source` finds, reads and solves labs, `run` executes them, `pages` renders what came, `python -m shared.notebooks` is
what the Makefile calls.
"""

from shared.notebooks.pages import heading, index, render, table
from shared.notebooks.run import Run, execute, execute_apart, kernel_manager
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

__all__ = [
    "FILES",
    "SCALES",
    "Run",
    "answers",
    "change_settings",
    "check_scale",
    "execute",
    "execute_apart",
    "heading",
    "index",
    "kernel_manager",
    "labs",
    "missing",
    "path_of",
    "read",
    "remedy",
    "render",
    "solution",
    "solutions_path",
    "solve",
    "table",
    "tagged",
    "text",
]
