"""The marks and colours with which the course speaks in a notebook, and how a program reads them again."""

import re

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
PASSED, FAILED, OPEN = "✓", "✗", "○"
# What is open has the colour of the text around it: the greys of terminals vanish in one of JupyterLab's themes.
COLOUR = {PASSED: GREEN, FAILED: RED, OPEN: ""}
GOES_ON = "The lab goes on with the course's own version."  # the end of a verdict that is not green
NOT_ATTEMPTED = f"not attempted yet. {GOES_ON}"
DRAWN = "application/vnd.course.drawn+json"  # the part of an output that says what a figure shows


def marked(mark: str, name: str, text: str) -> str:
    """The line of a verdict: its mark, the id of the exercise's cell, and what there is to say."""
    return f"{COLOUR[mark]}{mark} {name}{PLAIN}: {text}"


def passed(text: str) -> bool:
    """Whether a check's output says that an answer is right: a line begins with that mark."""
    return re.search(f"^(?:{re.escape(GREEN)})?{PASSED} ", text, re.MULTILINE) is not None
