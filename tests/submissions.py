"""A class that hands in its notebooks: unsolved, half solved, solved, wrong in each known way, hostile in many ways.

    python tests/submissions.py build/class

writes them (about 200), grades them on two cores, kills the grading once on the way, goes on, and compares each row
with what it must be. A quarter of an hour or more, so tests take only a few of them.
"""

import csv
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from shared import files, notebooks
from shared.notebooks import source

SOLVED, WRONG, OPEN, MISSING = "solved", "wrong", "open", "missing"
STOPPED, PATCHED, UNREADABLE = "stopped", "patched", "unreadable"
BREAKS = (WRONG, STOPPED, PATCHED)


@dataclass
class Expected:
    """What must stand in a submission's rows. rows: exercise -> results that are right, and a part of the sentence."""

    rows: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    problem: str = ""  # a part of the sentence about the whole file


# ---- answers as a cell's source ------------------------------------------------------------------------------------


def known_answers(lab: str) -> tuple[dict[str, list], dict[str, list]]:
    """By exercise: (source of a cell, part of the sentence) of the known wrong answers; sources of right ones."""
    module = importlib.import_module(f"wrong_answers.lab_{lab.replace('.', '_')}")
    text = Path(module.__file__).read_text(encoding="utf-8")
    text = text.replace("from wrong_answers import faulty", _faulty())
    wrong: dict[str, list] = {}
    for place, (check, _, named) in enumerate(module.WRONG):
        wrong.setdefault(check.cell_id, []).append((_picked(text, check, f"WRONG[{place}][1]"), named))
    right: dict[str, list] = {}
    for check, answers in module.RIGHT.items():
        number = len(answers) if isinstance(answers, list) else 0
        picks = [f"[{place}]" for place in range(number)] or [""]
        its = [
            _picked(text, check, f"next(v for c, v in RIGHT.items() if c.cell_id == {check.cell_id!r}){pick}")
            for pick in picks
        ]
        right[check.cell_id] = its
    return wrong, right


def _faulty() -> str:
    import inspect

    import wrong_answers

    return inspect.getsource(wrong_answers.faulty)


def _picked(text: str, check, expression: str) -> str:
    """A cell that defines an exercise's function as one of a module's."""
    return f"names = {{}}\nexec({text!r}, names)\n{check.__name__} = eval({expression!r}, names)"


# ---- the notebooks -------------------------------------------------------------------------------------------------


def filled(lab: str, answers: dict[str, str]):
    """The notebook of a lab with sources in the place of some exercises."""
    notebook = notebooks.read(lab)
    for cell in notebook.cells:
        if cell.id in answers:
            cell.source = answers[cell.id]
    return notebook


def rows_for(lab: str, answers: dict[str, tuple]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Expected rows, of which those that are not named stay open."""
    return {exercise: answers.get(exercise, ((OPEN,), "")) for exercise in notebooks.answers(lab)}


def name_in(lab: str, student: str) -> str:
    return f"{student}_{notebooks.path_of(lab).name}"


class Class:
    """Writes submissions into a folder and keeps what must come of each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.expected: dict[str, Expected] = {}
        folder.mkdir(parents=True)

    def add(self, name: str, notebook, expected: Expected) -> None:
        """notebook: a NotebookNode, or a text or bytes for a file that is none."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(notebook, bytes):
            path.write_bytes(notebook)
        elif isinstance(notebook, str):
            path.write_text(notebook, encoding="utf-8")
        else:
            nbformat.write(notebook, path)
        self.expected[name] = expected

    def honest(self) -> None:
        """One unsolved and one solved notebook of each lab, half solved ones, and each known wrong answer."""
        dice = random.Random(0)
        for lab in notebooks.labs():
            own = notebooks.answers(lab)
            wrong, right = known_answers(lab)
            self.add(name_in(lab, "open"), filled(lab, {}), Expected(rows_for(lab, {})))
            self.solved(lab)
            for number in range(2):
                half = dict(dice.sample(sorted(own.items()), len(own) // 2))
                expected = rows_for(lab, {exercise: ((SOLVED,), "") for exercise in half})
                self.add(name_in(lab, f"half{number}"), filled(lab, half), Expected(expected))
            for number in range(max(map(len, wrong.values()))):
                answers, expected = {}, {}
                for exercise in own:
                    if number < len(wrong[exercise]):
                        answers[exercise], named = wrong[exercise][number]
                        expected[exercise] = ((WRONG,), named)
                    else:
                        others = right.get(exercise) or [own[exercise]]
                        answers[exercise] = others[number % len(others)]
                        expected[exercise] = ((SOLVED,), "")
                self.add(name_in(lab, f"wrong{number:02}"), filled(lab, answers), Expected(expected))

    def hostile(self, chosen: tuple[str, ...] | None = None, lab: str = "2.4.1") -> None:
        """Solved notebooks in one of whose cells the code does what it must not; all other exercises are judged."""
        own = notebooks.answers(lab)
        places = list(own)
        for number, (name, (text, results, said)) in enumerate(HOSTILE.items()):
            if chosen is not None and name not in chosen:
                continue
            exercise = places[number % len(places)]
            function = source.name_of(exercise)
            code = text.format(name=function, answer=own[exercise])
            expected = {other: ((SOLVED,), "") for other in own} | {exercise: (results, said)}
            self.add(name_in(lab, f"hostile-{name}"), filled(lab, own | {exercise: code}), Expected(expected))

    def solved(self, lab: str) -> None:
        """The answers, handed in as a student would."""
        expected = {exercise: ((SOLVED,), "") for exercise in notebooks.answers(lab)}
        self.add(name_in(lab, "solved"), filled(lab, notebooks.answers(lab)), Expected(expected))

    def odd(self, chosen: tuple[str, ...] | None = None, lab: str = "2.4.1") -> None:
        """Notebooks that are moved, cut, doubled, of another lab, or none."""
        own = notebooks.answers(lab)
        for name, (change, rows, problem) in ODD.items():
            if chosen is not None and name not in chosen:
                continue
            came = change(filled(lab, own))
            solved = {exercise: ((SOLVED,), "") for exercise in own}
            expected = Expected(problem=problem) if problem else Expected(solved | rows)
            self.add(name_in(lab, f"odd-{name}"), came, expected)

    def named(self, lab: str = "2.4.1") -> None:
        """Folders and files of every kind and name."""
        own = notebooks.answers(lab)
        solved = Expected({exercise: ((SOLVED,), "") for exercise in own})
        file = notebooks.path_of(lab).name
        for folder in FOLDERS:
            self.add(f"{folder}{file}", filled(lab, own), solved)
        other = {exercise: ((SOLVED,), "") for exercise in notebooks.answers("2.4.3")}
        self.add(f"swapped_{file}", filled("2.4.3", notebooks.answers("2.4.3")), Expected(other))
        for two in ("2.4.4", "2.4.6"):
            both = {exercise: ((SOLVED,), "") for exercise in notebooks.answers(two)}
            name = f"several labs/{notebooks.path_of(two).name}"
            self.add(name, filled(two, notebooks.answers(two)), Expected(both))
        (self.folder / f"link_{file}").symlink_to(Path("/etc/passwd"))
        self.expected[f"link_{file}"] = Expected(problem="is a link")
        os.mkfifo(self.folder / f"pipe_{file}")
        self.expected[f"pipe_{file}"] = Expected(problem="That is no file")
        self.add("only a text/homework.pdf", b"%PDF", Expected(problem="is no notebook"))
        (self.folder / "handed in nothing").mkdir()
        self.expected["handed in nothing"] = Expected(problem="holds no file")
        with (self.folder / f"huge_{file}").open("wb") as huge:
            huge.truncate(2 * 2**30)
        self.expected[f"huge_{file}"] = Expected(problem="2,048 MiB")


FOLDERS = (
    "Ana Muñoz_4711_assignsubmission_file_/",
    "Ann O'Neill_4712_assignsubmission_file_",
    "submitted2/berta/lab-2.4.1/",
    "canvasname_LATE_12345_678901_",
    "名前 with spaces/",
    "=cmd|' calc'!A0/",
    '"quoted" <b>&amp;/',
    "-dash --help/",
    "new\nline/",
    os.fsdecode(b"not utf-8 \xff/"),
    "deep/er/and/deeper/",
)

# name -> source of the exercise's cell; what may come; part of the sentence. {answer}: the right one, at the top level.
HOSTILE: dict[str, tuple[str, tuple[str, ...], str]] = {
    "loop": ("def {name}(*a, **k):\n    while True: pass", (WRONG,), "did not end"),
    "top-loop": ("{answer}\nwhile True: pass", (STOPPED,), "did not end"),
    "loop-no-alarm": (
        "import signal\ndef {name}(*a, **k):\n    signal.setitimer(signal.ITIMER_REAL, 0)\n    while True: pass",
        (STOPPED,),
        "did not end",
    ),
    "sleep": ("import time\ndef {name}(*a, **k):\n    time.sleep(1000)", (WRONG,), "did not end"),
    "top-sleep": ("{answer}\nimport time\ntime.sleep(10000)", (STOPPED,), "did not end"),
    "forks": ("import os\ndef {name}(*a, **k):\n    while True: os.fork()", BREAKS, ""),
    "top-forks": ("import os\nwhile True: os.fork()", BREAKS, ""),
    "forks-on-and-on": (
        "import os\nwhile True:\n    try: os.fork()\n    except BaseException: pass",
        BREAKS,
        "",
    ),
    "threads": ("import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()", BREAKS, ""),
    "subprocesses": ("import subprocess\nwhile True: subprocess.Popen(['sleep', '1000'])", BREAKS, ""),
    "file": ("with open('/tmp/x', 'wb') as f:\n    while True: f.write(bytes(2**20))", (WRONG,), "too large"),
    "full-disk": (
        "for n in range(10**6):\n    with open(f'/tmp/x{{n}}', 'wb') as f: f.write(bytes(2**24))",
        (WRONG,),
        "No space left",
    ),
    "shm": (
        "for n in range(10**6):\n    with open(f'/dev/shm/x{{n}}', 'wb') as f: f.write(bytes(2**24))",
        (WRONG,),
        "No space left",
    ),
    "outside": ("open('shared/errors.py', 'a')\nopen('../shared/errors.py', 'a')", (WRONG,), "Error"),
    "read-only": ("from shared import files\n(files.ROOT / 'shared/errors.py').write_text('')", (WRONG,), "Read-only"),
    "memory": ("x = bytes(10**11)", (WRONG,), "MemoryError"),
    "memory-bit-by-bit": ("x = []\nwhile True: x.append(bytearray(b'1') * 2**24)", (WRONG,), "MemoryError"),
    "memory-of-many": (
        "import os\nfor n in range(6): os.fork()\nx = bytearray(b'1') * 2**28\nimport time\ntime.sleep(1000)",
        (STOPPED,),
        "GiB",
    ),
    "killed": ("import os\ndef {name}(*a, **k):\n    os.kill(os.getpid(), 9)", (STOPPED,), "SIGKILL"),
    "crash": ("import ctypes\ndef {name}(*a, **k):\n    ctypes.string_at(0)", (STOPPED,), "SIGSEGV"),
    "kills-parent": ("import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(9)", (STOPPED,), "ended"),
    "kills-all": ("import os\nos.kill(-1, 9)\nimport time\ntime.sleep(9)", (STOPPED,), ""),
    "exit": ("import sys\ndef {name}(*a, **k):\n    sys.exit(0)", (WRONG,), "SystemExit"),
    "top-exit": ("import sys\nsys.exit(0)", (WRONG,), "SystemExit"),
    "early-exit": ("import os\ndef {name}(*a, **k):\n    os._exit(0)", (STOPPED,), "exit code 0"),
    "exec": ("import os\nos.execv('/bin/true', ['true'])", (STOPPED,), "exit code 0"),
    "gigabyte": ("def {name}(*a, **k):\n    print('x' * 10**9)", (WRONG,), ""),
    "top-gigabyte": ("{answer}\nfor n in range(1000): print('x' * 10**6)", (STOPPED,), "printed"),
    "raw-gigabyte": ("import os\nwhile True: os.write(1, bytes(2**16))", (STOPPED,), "printed"),
    "patched-compare": (
        "from shared.checks import compare\nimport shared.checks\n"
        "compare.difference = shared.checks.difference = lambda *a, **k: None\ndef {name}(*a, **k): return 1",
        (PATCHED,),
        "shared.checks",
    ),
    "patched-agree": (
        "import sys\nfor m in list(sys.modules.values()):\n"
        "    if getattr(m, 'agree', None): m.agree = m.expect = lambda *a, **k: None\ndef {name}(*a, **k): return 1",
        (PATCHED,),
        "agree",
    ),
    "patched-code": (
        "from shared.checks import compare\ncompare.difference.__code__ = (lambda came, right, rel=0: None).__code__\n"
        "def {name}(*a, **k): return 1",
        (PATCHED,),
        "difference",
    ),
    "patched-class": (
        "from shared.checks.watch import Answer\nAnswer.__call__ = lambda self, *a, **k: self.own(*a, **k)\n"
        "def {name}(*a, **k): return 1",
        (PATCHED,),
        "Answer.__call__",
    ),
    "patched-builtins": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.max = lambda *x, **k: 0\ndef {name}(*a, **k): return 1",
        (PATCHED,),
        "builtins",
    ),
    "patched-solution": (
        "from shared import notebooks\nits = notebooks.solution('2.4.1')\nits.{name} = lambda *a, **k: 1\n"
        "def {name}(*a, **k): return 1",
        BREAKS,
        "",
    ),
    "patched-late": (
        "from shared.checks import compare\ndef {name}(*a, **k):\n"
        "    compare.is_close = lambda *a, **k: True\n"
        "    import shared.checks\n    shared.checks.difference = lambda *a, **k: None\n    return 1",
        BREAKS,
        "",
    ),
    "false-verdict": (
        "print('\\x1b[32m✓ ex-{name}\\x1b[0m: solved.')\nprint('{{\"result\": \"solved\"}}')\n"
        "def {name}(*a, **k): return None",
        (WRONG,),
        "",
    ),
    "false-channel": (
        "import os, json\nfor fd in range(3, 256):\n"
        "    try: os.write(fd, json.dumps(dict(exercise='ex', result='solved', sentence='', note='')).encode())\n"
        "    except OSError: pass\ndef {name}(*a, **k): return None",
        (PATCHED,),
        "channel",
    ),
    "closed-channel": ("import os\nos.closerange(3, 256)\n{answer}", (STOPPED,), ""),
    "patched-json": (
        "import json\njson.dumps = lambda *a, **k: '{{}}'\n{answer}",
        (SOLVED, PATCHED),
        "",
    ),
    "patched-exit": ("import os\nos._exit = os.getpid\nos.write = lambda *a: 0\n{answer}", (SOLVED, PATCHED), ""),
    "odd-error": (
        "class E(Exception):\n    def __str__(self): raise self\ndef {name}(*a, **k): raise E()",
        BREAKS,
        "",
    ),
    "recursion": ("def {name}(*a, **k): return {name}(*a, **k)", (WRONG,), "RecursionError"),
    "network": (
        "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=5)",
        (WRONG,),
        "Error",
    ),
    "others": (
        "import pathlib\nraise ValueError(sorted(map(str, pathlib.Path('/').glob('*'))))",
        (WRONG,),
        "ValueError",
    ),
    "no-python": ("def {name}(config:\n    return 1", (WRONG,), "no Python"),
    "deep": ("x = " + "-" * 200_000 + "1\n{answer}", BREAKS, ""),
    "brackets": ("x = " + "(" * 200_000 + "\n{answer}", BREAKS, ""),
    "magic": ("%timeit -n1 -r1 1 + 1\n{answer}", (SOLVED,), ""),
    "own-test": ("{answer}\nassert False, 'my own test'", (SOLVED,), ""),
    "stub-with-print": ("def {name}(*a, **k):\n    print('x')\n    raise NotImplementedError", (OPEN,), ""),
    "not-a-function": ("{name} = 5", (WRONG,), "expected a function"),
    "deleted": ("pass", (MISSING,), "does not define"),
}

FIRST, SECOND = "ex-kv-cache-bytes", "ex-mamba-state-bytes"


def _text(change: Callable[[str], object]) -> Callable:
    return lambda notebook: change(nbformat.writes(notebook))


def _cells(change: Callable[[list], object]) -> Callable:
    def changed(notebook):
        change(notebook.cells)
        return notebook

    return changed


def _by_id(cells: list, cell_id: str):
    return next(cell for cell in cells if cell.id == cell_id)


def _without_ids(notebook):
    for cell in notebook.cells:
        cell.pop("id")
    notebook.nbformat_minor = 4
    return nbformat.writes(notebook)


def _doubled(notebook) -> str:
    """With an id twice, which nbformat would not write."""
    cell = _by_id(notebook.cells, FIRST)
    place = notebook.cells.index(cell)
    notebook.cells.insert(place, nbformat.from_dict(cell | {"source": "def kv_cache_bytes(*a, **k): return 1"}))
    return json.dumps(notebook)


def _helper(cells: list) -> None:
    cell = _by_id(cells, FIRST)
    cell.source = "def kv_cache_bytes(*args, **kwargs):\n    return helper(*args, **kwargs)"
    text = notebooks.answers("2.4.1")[FIRST].replace("def kv_cache_bytes", "def helper")
    cells.insert(cells.index(cell), nbformat.v4.new_code_cell(text))


def _shadowed(cells: list) -> None:
    cell = _by_id(cells, FIRST)
    cells.insert(cells.index(cell) + 2, nbformat.v4.new_code_cell("def kv_cache_bytes(*a, **k): return 1"))


def _edited_check(cells: list) -> None:
    _by_id(cells, "check-kv-cache-bytes").source = "print('✓ ex-kv-cache-bytes: all good')"
    _by_id(cells, FIRST).source = "def kv_cache_bytes(*a, **k): return 1"


def _patching_cell(cells: list) -> None:
    cells.insert(0, nbformat.v4.new_code_cell("import shared.checks.compare as c\nc.difference = lambda *a: None"))


# name -> what is done to the solved notebook; which rows then differ from solved; part of the sentence about the file.
ODD: dict[str, tuple[Callable, dict, str]] = {
    "missing": (_cells(lambda cells: cells.remove(_by_id(cells, FIRST))), {FIRST: ((MISSING,), "No cell")}, ""),
    "doubled": (_doubled, {}, ""),
    "shadowed": (_cells(_shadowed), {}, ""),
    "helper": (_cells(_helper), {}, ""),
    "edited-check": (_cells(_edited_check), {FIRST: ((WRONG,), "")}, ""),
    "patching-cell": (_cells(_patching_cell), {}, ""),
    "moved": (_cells(lambda cells: cells.reverse()), {}, ""),
    "no-ids": (_without_ids, {}, ""),
    "renamed": (lambda notebook: notebook, {}, ""),
    "only-code": (
        _cells(lambda cells: cells.__setitem__(slice(None), [_by_id(cells, e) for e in (FIRST, SECOND)])),
        {each: ((MISSING,), "") for each in notebooks.answers("2.4.1") if each not in (FIRST, SECOND)},
        "",
    ),
    "empty": (lambda notebook: "", {}, "is empty"),
    "binary": (lambda notebook: bytes(range(256)) * 100, {}, "UTF-8"),
    "utf-16": (_text(lambda text: text.encode("utf-16")), {}, "UTF-8"),
    "bom": (_text(lambda text: text.encode("utf-8-sig")), {}, ""),
    "cut-off": (_text(lambda text: text[: len(text) // 2]), {}, "not JSON"),
    "conflict": (
        _text(lambda text: text.replace('"cells"', "<<<<<<< HEAD\n=======\n>>>>>>> theirs\n", 1)),
        {},
        "merge conflict",
    ),
    "html": (lambda notebook: "<!doctype html><html>log in</html>", {}, "not JSON"),
    "list": (lambda notebook: "[]", {}, "not a notebook"),
    "number": (lambda notebook: "1", {}, "not a notebook"),
    "no-cells": (lambda notebook: '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', {}, "not a notebook"),
    "odd-cells": (
        lambda notebook: '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1, null]}',
        {},
        "not a notebook",
    ),
    "nested": (lambda notebook: "[" * 10**6, {}, "not"),
    "no-exercise": (_cells(lambda cells: cells.__delitem__(slice(1, None))), {}, "no exercise"),
    "zip": (lambda notebook: b"PK\x03\x04" + bytes(1000), {}, "not JSON"),
}
# ---- what came ------------------------------------------------------------------------------------------------------


def shown(name: str) -> str:
    """A file's name as it stands in the table."""
    return " ".join(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").split())


def faults(expected: dict[str, Expected], table: Path) -> Iterator[str]:
    """A line for each row that is not what it must be."""
    came: dict[str, dict[str, dict]] = {}
    with table.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            came.setdefault(row["file"].removeprefix("'"), {})[row["exercise"]] = row
    named = {shown(name): its for name, its in expected.items()}
    yield from (f"{name}: no such submission" for name in came.keys() - named.keys())
    for name, its in named.items():
        found = came.get(name, {})
        if its.problem:
            row = found.get("", {"result": "", "sentence": ""})
            if row["result"] != UNREADABLE or its.problem not in row["sentence"]:
                yield f"{name}: {found} and not {its.problem!r}"
            continue
        if set(found) != set(its.rows):
            yield f"{name}: rows {sorted(found)} and not {sorted(its.rows)}"
        for exercise, (results, said) in its.rows.items():
            row = found.get(exercise)
            if row and (row["result"] not in results or " ".join(said.split()) not in row["sentence"]):
                yield f"{name}, {exercise}: {row['result']} ({row['sentence'][:300]}) and not {results} ({said})"


def grade(folder: Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "scripts/grade.py", str(folder)], cwd=files.ROOT, start_new_session=True, **options
    )


def main() -> int:
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(files.BUILD / "grade", ignore_errors=True)
    its = Class(folder)
    its.honest()
    its.hostile()
    its.odd()
    its.named()
    print(f"{len(its.expected)} submissions, {sum(len(e.rows) or 1 for e in its.expected.values())} rows", flush=True)
    start = time.perf_counter()
    process = grade(folder)
    judged = files.BUILD / "grade" / "judged"
    while len(list(judged.glob("*.json"))) < len(its.expected) // 3:
        time.sleep(0.5)
        assert process.poll() is None, "the grading has ended by itself"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(judged.glob("*.json")))
    print(f"killed after {time.perf_counter() - start:.0f} s, with {kept} judged", flush=True)
    assert grade(folder).wait() == 0
    print(f"done after {time.perf_counter() - start:.0f} s", flush=True)
    table = files.BUILD / "grade" / "results.csv"
    found = list(faults(its.expected, table))
    print(*found, sep="\n")
    print(f"{len(found)} rows are not what they must be")
    (folder.parent / f"{folder.name}-expected.json").write_text(
        json.dumps({k: v.rows for k, v in its.expected.items()})
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
