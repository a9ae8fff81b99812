"""The results as two tables and a page."""

import csv
import io
from collections import Counter
from html import escape
from pathlib import Path

from grading import rows
from grading.submissions import Found, printable
from shared import files, notebooks

COLUMNS = ("student", "file", "lab", "exercise", "result", "points", "sentence", "note")
# Of `nbgrader export` (CsvExportPlugin).
NBGRADER = (
    *("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email"),
    *("raw_score", "late_submission_penalty", "score", "max_score"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute


def rows_of(found: Found, root: Path, about: dict) -> list[dict]:
    """The rows of one submission: one for each exercise, or one that says why there is none."""
    shared = {"student": found.student, "file": printable(str(found.path.relative_to(root)))}
    if "problem" in about:
        return [shared | {"lab": found.lab} | rows.row("", rows.UNREADABLE, about["problem"]) | {"points": 0}]
    other = f"The file's name says lab {found.lab}." if found.lab not in ("", about["lab"]) else ""
    return [
        shared
        | {"lab": about["lab"]}
        | row
        | {"points": int(row["result"] == rows.SOLVED), "note": " ".join(filter(None, [other, row["note"]]))}
        for row in sorted(about["rows"], key=lambda row: about["exercises"].index(row["exercise"]))
    ]


def summary(found: Found, about: dict) -> str:
    """A line for the terminal."""
    if "problem" in about:
        return f"{found.student}: {about['problem']}"
    counts = Counter(row["result"] for row in about["rows"])
    return f"{found.student}, lab {about['lab']}: {', '.join(f'{n} {result}' for result, n in counts.items())}"


def write(folder: Path, results: list[dict]) -> None:
    files.write(folder / "results.csv", table(COLUMNS, results))
    files.write(folder / "nbgrader.csv", table(NBGRADER, scores(results)))
    files.write(folder / "index.html", page(results))


def table(columns: tuple[str, ...], lines: list[dict]) -> str:
    """CSV. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _cell(line.get(name, "")) for name in columns})
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    flat = " ".join(value.encode("utf-8", "backslashreplace").decode().split()).replace("\0", "")
    return f"'{flat}" if flat.startswith(FORMULA) else flat


def by_file(results: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """(student, file) -> its rows."""
    found: dict[tuple[str, str], list[dict]] = {}
    for row in results:
        found.setdefault((row["student"], row["file"]), []).append(row)
    return found


def scores(results: list[dict]) -> list[dict]:
    """Points per lab and student. Of several files for one lab the best counts."""
    best: dict[tuple[str, str], int] = {}
    for (student, _), its in by_file(results).items():
        if lab := its[0]["lab"]:
            points = sum(row["points"] for row in its)
            best[lab, student] = max(points, best.get((lab, student), 0))
    return [
        {
            "assignment": notebooks.path_of(lab).stem,
            "student_id": student,
            "raw_score": float(points),
            "late_submission_penalty": 0.0,
            "score": float(points),
            "max_score": float(len(notebooks.answers(lab))),
        }
        for (lab, student), points in sorted(best.items())
    ]


# ---- the page ------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --soft: light-dark(#666, #aaa); --bad: light-dark(#a31515, #ff9c9c);
  --good: light-dark(#116329, #7ee29a); --line: light-dark(#ddd, #444) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
.wide { overflow-x: auto }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right }
h2 { margin-top: 2.5rem } h3 { margin: 2rem 0 0 }
p.file, .note { color: var(--soft); margin: 0 }
.solved { color: var(--good) } .wrong, .stopped, .patched, .unreadable, .missing { color: var(--bad) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit }
td:nth-child(-n+2) { white-space: nowrap; max-width: 22rem; overflow: hidden; text-overflow: ellipsis }
td:first-child { min-width: 2.5rem } section td:first-child { width: 14rem } section td:nth-child(2) { width: 5rem }
a { color: inherit }
"""


def page(results: list[dict]) -> str:
    """How often each exercise is solved, who has how much, and of each submission what is not solved, and why."""
    submissions = by_file(results)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Grades</title><style>{STYLE}</style><main><h1>{len(submissions)} submissions</h1>",
        "<h2>Exercises</h2>",
        _table(["Lab", "Exercise", *RESULTS], _by_exercise(results), numbers=2),
        "<h2>Students</h2>",
        _table(["Student", "Lab", "Solved"], [_line(n, its) for n, its in enumerate(submissions.values())]),
        "<h2>What is not solved</h2>",
    ]
    for number, its in enumerate(submissions.values()):
        if _is_told(its):
            parts.append(_section(number, its))
    return "".join(parts) + "</main></html>\n"


RESULTS = (rows.SOLVED, rows.WRONG, rows.OPEN, rows.MISSING, rows.STOPPED, rows.PATCHED)


def _by_exercise(results: list[dict]) -> list[list[str]]:
    counts: dict[tuple[str, str], Counter] = {}
    for row in results:
        if row["exercise"]:
            counts.setdefault((row["lab"], row["exercise"]), Counter())[row["result"]] += 1
    in_order = [(lab, exercise) for lab in notebooks.labs() for exercise in notebooks.answers(lab)]
    return [
        [lab, escape(exercise), *(str(counts[lab, exercise][result] or "") for result in RESULTS)]
        for lab, exercise in in_order
        if (lab, exercise) in counts
    ]


def _line(number: int, its: list[dict]) -> list[str]:
    solved = sum(row["points"] for row in its)
    first = its[0]
    said = f"{solved} of {len(its)}" if first["exercise"] else f"<span class=unreadable>{first['result']}</span>"
    name = escape(first["student"])
    return [f"<a href=#s{number}>{name}</a>" if _is_told(its) else name, escape(first["lab"]), said]


def _is_told(its: list[dict]) -> bool:
    """Whether a submission has a section of its own."""
    return any(row["result"] != rows.SOLVED or row["note"] for row in its)


def _section(number: int, its: list[dict]) -> str:
    first = its[0]
    lines = [
        [
            escape(row["exercise"] or "the file"),
            f"<span class={row['result']}>{row['result']}</span>",
            f"<pre>{escape(row['sentence'])}</pre><p class=note>{escape(row['note'])}</p>",
        ]
        for row in its
        if row["result"] != rows.SOLVED or row["note"]
    ]
    heading = f"{escape(first['student'])}{', lab ' * bool(first['lab'])}{escape(first['lab'])}"
    return (
        f"<section><h3 id=s{number}>{heading}</h3><p class=file>{escape(first['file'])}</p>"
        f"{_table(['Exercise', 'Result', 'What the student saw'], lines)}</section>"
    )


def _table(heads: list[str], lines: list[list[str]], numbers: int | None = None) -> str:
    """A table of escaped texts. numbers: from which column on they are numbers."""
    kinds = [" class=number" if numbers is not None and place >= numbers else "" for place in range(len(heads))]
    head = "".join(f"<th{kind}>{text}</th>" for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{text}</td>" for kind, text in zip(kinds, line, strict=True)) + "</tr>"
        for line in lines
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
