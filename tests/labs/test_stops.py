"""Labs that stop: a dead kernel, a full disk, a wrong parameter, no model."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from rehearsal import models as stand_ins

from shared import files, notebooks
from shared.errors import BadInput
from shared.kits import plans
from shared.notebooks import __main__ as command
from shared.notebooks import absent, launch, notice

pytestmark = pytest.mark.slow

EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))


def errors(notebook) -> list[str]:
    return [o.evalue for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]


def test_a_lab_whose_check_fails_makes_the_command_fail(tmp_path, monkeypatch, capsys):
    failed = notebooks.Run("2.4.1", notebooks.path_of("2.4.1"), 1.0, 10**9, passed=6, checks=7)
    monkeypatch.setattr(command, "run", lambda lab, scale: [failed])
    assert command.main(["run"]) == 1
    assert "6 of 7" in capsys.readouterr().out


def test_a_kernel_that_is_killed_is_reported_and_what_came_before_is_kept(tmp_path, monkeypatch):
    notebook = notebooks.solve("2.4.1")
    position = next(i for i, cell in enumerate(notebook.cells) if cell.id == "check-kv-cache-bytes")
    notebook.cells = notebook.cells[: position + 2]
    notebook.cells[-1] = nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(notebooks.run, "solve", lambda lab: notebook)
    run = notebooks.execute("2.4.1", folder=tmp_path)
    assert "kernel died" in run.error and run.passed == 1
    assert "the kernel died" in notebooks.table([run])


def test_a_full_disk_is_one_sentence_that_names_the_folder(monkeypatch, capsys):
    def full(lab, scale):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "run", full)
    assert command.main(["run"]) == 1
    said = capsys.readouterr().err
    assert str(files.BUILD) in said and "make room" in said and said.count("\n") == 1


def running(no_network, folder) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """`make run` of a lab in a group of processes of its own, once its kernel has started, and all its children."""
    command = [sys.executable, "-m", "shared.notebooks", "run", "--lab", "2.4.6"]
    environment = {**no_network, "COURSE_BUILD": str(folder)}
    main = subprocess.Popen(
        command,
        cwd=files.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(folder.rglob(".*-lab-2.4.6-*")):  # papermill writes it first
        assert main.poll() is None
        time.sleep(0.05)
    while not any("ipykernel_launcher" in child.cmdline() for child in psutil.Process(main.pid).children(True)):
        time.sleep(0.05)
    time.sleep(1)  # the kernel has read its first line, and works
    return main, psutil.Process(main.pid).children(recursive=True)


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all have ended within a few seconds; who waits for them to be collected has ended too."""
    until = time.time() + 5
    while time.time() < until:
        if not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            return True
        time.sleep(0.05)
    return False


def test_what_a_killed_run_has_started_ends_with_it(no_network, tmp_path):
    main, children = running(no_network, tmp_path)
    main.kill()
    main.communicate()
    assert len(children) >= 2 and ended(children)


def test_what_a_killed_worker_has_started_ends_with_it_and_the_command_says_one_sentence(no_network, tmp_path):
    main, children = running(no_network, tmp_path)
    (worker,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    worker.kill()
    _, said = main.communicate(timeout=20)
    assert main.returncode == 1 and said.count("\n") == 1 and "run this again" in said, said
    assert ended(children)


@pytest.mark.parametrize("times", [1, 20])
def test_ctrl_c_ends_a_run_with_one_line_and_leaves_nothing_half_written(times, no_network, tmp_path):
    main, children = running(no_network, tmp_path)
    for _ in range(times):
        os.killpg(main.pid, signal.SIGINT)
        time.sleep(0.01)
    _, said = main.communicate(timeout=20)
    assert main.returncode == 130 and said.strip().count("\n") == 0 and said.strip().startswith("Stopped"), said
    assert ended(children)
    assert [path for path in tmp_path.rglob("*lab-2.4.6*") if path.is_file()] == []


@pytest.mark.parametrize("parent", ["lives", "has ended"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_child_ends_with_its_parent_on_every_system(system, parent):
    """A real grandchild, whose parent is killed; "darwin" takes the way without prctl."""
    child = f"import os, sys, time; from shared.machine import process; sys.platform = {system!r}; "
    child += f"process.end_with(os.getppid() if {parent!r} == 'lives' else 1 << 30); print(os.getpid(), flush=True); "
    child += "time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    main = subprocess.Popen([sys.executable, "-c", code], cwd=files.ROOT, stdout=subprocess.PIPE, text=True)
    line = main.stdout.readline()
    if parent == "has ended":
        main.communicate(timeout=10)  # the child has ended by itself
        return
    process = psutil.Process(int(line))
    main.kill()
    assert ended([process])
    main.communicate()


@pytest.mark.parametrize("parameter", ["SCALE", "WEIGHTS"])
@EACH
def test_an_unknown_parameter_is_named_by_the_lab_s_first_cells(lab, parameter):
    scope = {}
    cells = {cell.id: cell.source for cell in notebooks.read(lab).cells}
    exec(cells["parameters"], scope)
    scope[parameter] = "huge"
    exec(cells.get("imports", ""), scope)
    with pytest.raises(ValueError, match=f"{parameter} = 'huge' is unknown") as raised:
        exec(cells["settings"], scope)
    shows_one_sentence = hasattr(raised.value, "_render_traceback_")
    assert shows_one_sentence or len(raised.traceback) == 2  # or this test and the cell: one frame for a student


def test_an_unknown_scale_stops_the_lab_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks.source, "SCALES", ("tiny", "full", "huge"))
    run = notebooks.execute("2.4.1", folder=tmp_path, SCALE="huge")
    assert "SCALE = 'huge' is unknown" in run.error
    notebook = nbformat.read(run.notebook, as_version=4)
    (trace,) = [o.traceback for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    frames = re.findall(r"^(?:File|Cell In)", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(trace)), flags=re.MULTILINE)
    assert len(frames) <= 1


# ---- make lab ---------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.CompletedProcess:
    """scripts/lab.py with values that stop it before JupyterLab starts."""
    command = [sys.executable, "scripts/lab.py", "labs", *arguments]
    return subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("port", ["99999", "65536", "0", "-1", "http", "", "8888.0", "8888 8889", "٨٨٨٨", "--help"])
def test_a_port_that_is_none_is_one_sentence(port):
    done = start(f"--port={port}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"PORT={port} is no whole number from 1 to 65535.\n"


def test_a_port_that_is_taken_is_one_sentence_with_a_port_that_is_free():
    with socket.socket() as other, socket.socket() as free:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = start(f"--port={port}")
        assert done.returncode == 1 and done.stderr.startswith(f"Port {port} is taken") and done.stderr.count("\n") == 1
        free.bind(("127.0.0.1", int(re.search(r"make lab PORT=(\d+)", done.stderr)[1])))


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--browser=maybe", "BROWSER=maybe is unknown; it is one of yes, no."),
        ("--lab=2.4", "There is no lab 2.4 in labs; a bare `make lab` opens the first one."),
        ("--lab=*", "There is no lab * in labs; a bare `make lab` opens the first one."),
    ],
)
def test_another_bad_value_of_make_lab_is_one_sentence(argument, sentence):
    assert start(argument).stderr == f"{sentence}\n"


def test_a_folder_that_is_none_is_one_sentence(tmp_path):
    command = [sys.executable, "scripts/lab.py", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    assert done.stderr == f"NOTEBOOK_DIR={tmp_path / 'none'} is no folder; a bare `make lab` opens labs/.\n"


# ---- what lies beside a lab -------------------------------------------------------------------------------------


@pytest.fixture
def labs(tmp_path, monkeypatch) -> Path:
    """A student's labs/, which the course reads in the place of its own."""
    folder = tmp_path / "labs"
    shutil.copytree(files.LABS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    monkeypatch.setattr(files, "LABS", folder)
    return folder


COPIES = (
    "{}-Copy1.ipynb",
    "{}_solved.ipynb",
    "{} (1).ipynb",
    "{}.backup.ipynb",
    "my-{}-20260101-120000.ipynb",
    "Copy of {}.ipynb",
    "lab-2.4.1.ipynb",
    "lab-2.4.0-notes.ipynb",
    "lab-notes.ipynb",
    "lab-.ipynb",
    "Untitled.ipynb",
    "Untitled1.ipynb",
    ".ipynb_checkpoints/{}-checkpoint.ipynb",
    ".ipynb_checkpoints/{}.ipynb",
)


def test_the_labs_are_the_files_of_the_course_and_copies_are_the_student_s(labs):
    import lab as page

    before = notebooks.labs()
    (labs / ".ipynb_checkpoints").mkdir()
    for path in before.values():
        for copy in COPIES:
            (labs / copy.format(path.stem)).write_text("a copy\n")
    assert notebooks.labs() == before and [path.name for path in before.values()] == list(notebooks.FILES)
    for number, path in before.items():
        assert page.first_page(labs, number) == f"/lab/tree/{path.name}"
        assert notebooks.path_of(number) == path
    assert page.first_page(labs, "") == f"/lab/tree/{notebooks.FILES[0]}"


def test_a_folder_without_labs_of_the_course_opens_the_file_browser(tmp_path):
    import lab as page

    (tmp_path / "lab-of-mine.ipynb").write_text("{}")
    assert page.first_page(tmp_path, "") == "/lab"


def test_every_notebook_of_the_course_is_listed():
    tracked = subprocess.run(["git", "ls-files", "labs"], cwd=files.ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no clone of the course")
    assert [Path(line).name for line in tracked.stdout.split() if line.endswith(".ipynb")] == list(notebooks.FILES)


# ---- a damaged notebook -----------------------------------------------------------------------------------------

CONFLICT = '{{\n<<<<<<< HEAD\n "cells": [],\n=======\n "cells": [1],\n>>>>>>> theirs\n{}'
DAMAGED = {
    "nothing": (lambda whole: b"", "is empty"),
    "white space": (lambda whole: b"\xef\xbb\xbf \n", "is empty"),
    "a merge conflict": (lambda whole: CONFLICT.format(whole.decode()).encode(), "holds a merge conflict"),
    "half of it": (lambda whole: whole[: len(whole) // 2], "is not JSON (it may be cut off)"),
    "a web page": (lambda whole: b"<!DOCTYPE html><title>404</title>", "is not JSON (it may be cut off)"),
    "a list": (lambda whole: b"[]", "is not a notebook"),
    "a number": (lambda whole: b"3", "is not a notebook"),
    "an object": (lambda whole: b'{"a": 1}', "is not a notebook"),
    "no cells": (lambda whole: b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "is not a notebook"),
    "odd cells": (
        lambda whole: b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}',
        "is not a notebook",
    ),
    "a later format": (lambda whole: b'{"nbformat": 9, "nbformat_minor": 0, "cells": []}', "is not a notebook"),
    "UTF-16": (lambda whole: whole.decode().encode("utf-16"), "is not UTF-8 text"),
    "Latin-1": (lambda whole: "\u00e9".encode("latin-1") + whole, "is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_notebook_is_one_sentence_that_names_the_file_and_a_remedy(kind, labs, monkeypatch, capsys):
    monkeypatch.setattr(files, "ROOT", labs.parent)
    path = labs / notebooks.FILES[0]
    damage, what = DAMAGED[kind]
    path.write_bytes(damage(path.read_bytes()))
    for arguments in (["run"], ["render"], ["solve", "--lab=2.4.1", f"--out={labs / 'out.ipynb'}"]):
        assert command.main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert said.err.startswith(f"labs/{path.name} {what}")
        assert f"git restore labs/{path.name}" in said.err
    with pytest.raises(BadInput, match=re.escape(what)):
        notebooks.read("2.4.1")


def test_doctor_says_of_a_damaged_notebook_why_it_does_not_run_and_shows_the_others(labs):
    import doctor as page
    import facts

    (labs / notebooks.FILES[0]).write_text("")
    device = facts.gpu()
    rows = [row for lab in ("2.4.1", "2.4.2") for row in facts.rows(lab, device)]
    damaged, whole = rows[:2], rows[2:]
    assert all(not row["runs"] and "is empty" in row["why"] and "git restore" in row["change"] for row in damaged)
    assert all("is empty" not in row.get("why", "") for row in whole)
    text = "\n".join(page.lab_lines(rows))
    assert "is empty" in text and page.full_line(rows)
    assert page.full_line(damaged)


# ---- a notebook that another program saved ----------------------------------------------------------------------


def as_saved_by(notebook: dict, program: str) -> dict:
    """The notebook as programs write it that leave out ids or tags, or write others."""
    for number, cell in enumerate(notebook["cells"]):
        if program in ("Colab", "ids in the metadata"):
            name = cell.pop("id")
            cell["metadata"]["id"] = name if program == "ids in the metadata" else f"aB3{number}"
        if program == "no ids":
            del cell["id"]
        if program == "other ids":
            cell["id"] = f"other-{number}"
        if program == "one id":
            cell["id"] = "the-same"
        if program in ("Colab", "no tags"):
            cell["metadata"].pop("tags", None)
    if program in ("Colab", "no ids", "ids in the metadata"):
        notebook["nbformat_minor"] = 0 if program == "Colab" else 4
    return notebook


@pytest.mark.parametrize("program", ["Colab", "ids in the metadata", "no ids", "other ids", "one id", "no tags"])
@EACH
def test_a_lab_keeps_its_exercises_checks_and_settings_whatever_program_saved_it(lab, program, labs):
    path = notebooks.path_of(lab)
    marked = lambda notebook: {  # noqa: E731
        cell.id: (cell.source, tag)
        for tag in ("parameters", "exercise", "check")
        for cell in notebooks.tagged(notebook, tag)
    }
    before = marked(notebooks.solve(lab))
    path.write_text(json.dumps(as_saved_by(json.loads(path.read_text(encoding="utf-8")), program)))
    solved = notebooks.solve(lab)
    assert marked(solved) == before
    notebooks.change_settings(solved, "tiny", {})
    nbformat.validate(solved)
    ids = [cell.id for cell in solved.cells]
    assert len(set(ids)) == len(ids)


def test_a_copy_of_an_exercise_gets_the_answer_too(labs):
    """JupyterLab copies the tag with the cell, and gives the copy an id of its own."""
    path = notebooks.path_of("2.4.1")
    notebook = nbformat.read(path, as_version=4)
    stub = next(cell for cell in notebook.cells if cell.id == "ex-measure")
    notebook.cells.append(nbformat.v4.new_code_cell(stub.source, metadata=stub.metadata))
    nbformat.write(notebook, path)
    solved = notebooks.solve("2.4.1")
    assert solved.cells[-1].source == notebooks.answers("2.4.1")["ex-measure"]


def text(cell: dict, kind: str) -> dict:
    return {key: value for key, value in cell.items() if key in ("id", "metadata", "source")} | {"cell_type": kind}


HANDS = {  # what a hand or a program does to the exercise's cell, or to the cell with the parameters
    "markdown": lambda cells, ex, first: cells.__setitem__(ex, text(cells[ex], "markdown")),
    "raw": lambda cells, ex, first: cells.__setitem__(first, text(cells[first], "raw")),
    "an id twice": lambda cells, ex, first: cells[first].update(id=cells[ex]["id"]),
    "a number as id": lambda cells, ex, first: cells[ex].update(id=7),
    "a list as id": lambda cells, ex, first: cells[ex].update(id=["x"]),
    "no tags": lambda cells, ex, first: cells[ex]["metadata"].update(tags=None),
    "a word as tags": lambda cells, ex, first: cells[ex]["metadata"].update(tags="exercise"),
    "no outputs": lambda cells, ex, first: [cell.pop("outputs", cell.pop("execution_count", None)) for cell in cells],
    "another order": lambda cells, ex, first: cells.reverse(),
}


@pytest.mark.parametrize("deed", HANDS)
def test_a_lab_is_solved_whatever_a_hand_did_to_its_cells(deed, labs):
    path = notebooks.path_of("2.4.1")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    place = {cell["id"]: number for number, cell in enumerate(notebook["cells"])}
    HANDS[deed](notebook["cells"], place["ex-measure"], place["parameters"])
    path.write_text(json.dumps(notebook), encoding="utf-8")
    solved = notebooks.solve("2.4.1")
    nbformat.validate(solved)
    code = {cell.id: cell.source for cell in solved.cells if cell.cell_type == "code"}
    assert code["ex-measure"] == notebooks.answers("2.4.1")["ex-measure"] and "SCALE" in code["parameters"]
    assert len(notebooks.tagged(solved, "parameters")) == 1 and plans.default_settings("2.4.1")


@pytest.mark.parametrize(("cell", "source"), [("settings", None), ("settings", "x = (("), ("parameters", "1 / 0")])
def test_settings_that_cannot_be_read_are_one_sentence_and_doctor_shows_the_other_labs(cell, source, labs):
    import facts

    path = notebooks.path_of("2.4.1")
    notebook = nbformat.read(path, as_version=4)
    (changed,) = [one for one in notebook.cells if one.id == cell]
    if source is None:
        notebook.cells.remove(changed)
    else:
        changed.source = source
    nbformat.write(notebook, path)
    with pytest.raises(BadInput, match=r"^The settings of lab 2\.4\.1 cannot be read .*git restore [^\n]*$"):
        plans.default_settings("2.4.1")
    assert all("cannot be read" in row["why"] for row in facts.rows("2.4.1", facts.gpu()))


def split(source: str, place: str) -> list[str]:
    """The lines of a source up to a line that begins so, and the rest."""
    lines = source.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith(place))
    return ["".join(lines[:at]).rstrip("\n"), "".join(lines[at:])]


SPLIT = {  # where a hand splits the cell of an exercise, and what its program does with id and tags
    "below the def line": ('    """Bytes', "the first has them"),
    "below the def line, by JupyterLab": ('    """Bytes', "both have the tags, neither the id"),
    "below the docstring": ("    raise", "the first has them"),
    "below the docstring, by JupyterLab": ("    raise", "both have the tags, neither the id"),
    "below the docstring, by a program without ids": ("    raise", "nobody has any"),
    "amid the docstring": ("    config:", "the first has them"),
    "above the def line": ("def ", "the first has them"),
    "above the def line, by JupyterLab": ("def ", "both have the tags, neither the id"),
}


@pytest.mark.parametrize("where", SPLIT)
def test_an_exercise_in_two_cells_is_one_sentence_wherever_it_is_read(where, labs, monkeypatch, capsys):
    import facts

    monkeypatch.setattr(files, "ROOT", labs.parent)
    path = notebooks.path_of("2.4.1")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    place, kept = SPLIT[where]
    at = next(number for number, cell in enumerate(notebook["cells"]) if cell["id"] == "ex-kv-cache-bytes")
    exercise = notebook["cells"][at]
    first, second = (exercise | {"source": part} for part in split("".join(exercise["source"]), place))
    second["id"] = "9c1d2e3f"
    if kept != "both have the tags, neither the id":
        second["metadata"] = {}
    else:
        first["id"] = "0a1b2c3d"
    if kept == "nobody has any":
        first["id"], first["metadata"] = "0a1b2c3d", {}
    notebook["cells"][at : at + 1] = [first, second]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    for arguments in (["run", "--lab=2.4.1"], ["solve", "--lab=2.4.1", f"--out={labs / 'out.ipynb'}"]):
        assert command.main(arguments) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert said.err.startswith(f"labs/{path.name}: exercise ex-kv-cache-bytes stands in several cells"), said.err
        assert "Shift+M" in said.err and f"git restore labs/{path.name}" in said.err
    rows = facts.rows("2.4.1", facts.gpu())
    assert all(not row["runs"] and "stands in several cells" in row["why"] for row in rows)
    # What the check's cell says where the name is not there: its first cell is no Python.
    monkeypatch.setattr(absent, "_show", lambda said, **metadata: print(said))
    error = NameError(name="kv_cache_bytes")
    shell = SimpleNamespace(user_ns={})
    try:
        exec("raise error", names := {"error": error})
    except NameError:
        shell.user_ns = names
        absent._Notebook(shell, "2.4.1").failed(shell, NameError, error, error.__traceback__.tb_next)
    assert "`kv_cache_bytes` is not there yet. labs/" in capsys.readouterr().out


OWN = {  # cells of a student's own beside an exercise, which are no part of it
    "a try": "print(kv_cache_bytes)",
    "indented, as pasted": "    x = 1\n    print(x)",
    "a magic": "%timeit 1 + 1",
    "not Python yet": "for layer in",
}


@pytest.mark.parametrize("kind", OWN)
def test_a_cell_of_a_student_s_own_is_no_part_of_an_exercise(kind, labs):
    path = notebooks.path_of("2.4.1")
    notebook = nbformat.read(path, as_version=4)
    at = next(number for number, cell in enumerate(notebook.cells) if cell.id == "ex-kv-cache-bytes")
    below = 2 if kind.startswith("indented") else 1  # right below the exercise it would be taken for its end
    notebook.cells.insert(at + below, nbformat.v4.new_code_cell(OWN[kind]))
    nbformat.write(notebook, path)
    assert notebooks.solve("2.4.1").cells[at].source == notebooks.answers("2.4.1")["ex-kv-cache-bytes"]


def test_a_deleted_exercise_and_a_deleted_end_name_the_cell_and_the_remedy(labs):
    path = notebooks.path_of("2.4.6")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "results"]
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match=r"has no cell `results`.*git restore"):
        launch.export("2.4.6")
    notebook.cells = [cell for cell in notebook.cells if cell.id != "ex-adapt"]
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match=r"ex-adapt.*git restore"):
        notebooks.solve("2.4.6")


# ---- scale full without anything fetched ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(no_network, tmp_path_factory) -> dict[str, str]:
    """An environment without network in which random weights have the shapes of the rehearsal's stand-ins.

    The published ones take minutes on a CPU.
    """
    stand_ins.write_configs(configs := tmp_path_factory.mktemp("configs"))
    return {**no_network, "COURSE_MODELS": str(configs)}


@pytest.fixture(scope="module")
def without_weights(small, tmp_path_factory) -> tuple[dict[str, list[dict]], list[Path]]:
    """What each cell of each lab showed at scale full without weights and network, and the files that were saved."""
    build = tmp_path_factory.mktemp("build")
    done = subprocess.run(
        [sys.executable, files.ROOT / "tests" / "without_weights.py"],
        cwd=files.ROOT,
        env={**small, "COURSE_BUILD": str(build)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [path for path in build.rglob("*") if path.is_file()]


def notes(cell: dict, kind: str) -> list[str]:
    """What an executed cell says of a kind: of what is "missing", or which name it "needs"."""
    return [note[kind] for note in cell["notes"] if kind in note]


@EACH
def test_without_weights_a_lab_runs_to_its_end_and_every_check_passes(lab, without_weights):
    """No exercise needs weights: a check judges an answer on small cases of its own."""
    cells = without_weights[0][lab]
    assert [cell["error"] for cell in cells if cell["error"]] == []
    verdicts = [cell["text"] for cell in cells if "check" in cell["tags"]]
    assert len(verdicts) == len(notebooks.answers(lab)) and all(map(notice.passed, verdicts)), verdicts


@pytest.mark.parametrize(
    ("lab", "names"),
    [
        ("2.4.1", ["mamba-2.8b"]),
        ("2.4.2", ["mamba-130m"]),
        ("2.4.3", ["olmoe-1b-7b"]),
        ("2.4.4", ["olmoe-1b-7b"]),
        ("2.4.5", ["mamba-2.8b", "wikitext-2"]),
        ("2.4.6", ["mamba-1.4b", "alpaca"]),
    ],
)
def test_without_weights_the_sentence_comes_first_and_once_and_the_other_cells_point_to_it(lab, names, without_weights):
    cells = without_weights[0][lab]
    said = {cell["number"]: cell["text"] for cell in cells if "Missing: " in cell["text"]}
    for name, sentence in zip(names, said.values(), strict=True):
        assert f"Missing: {name} is not complete" in sentence and f"`make fetch NAME={name}`" in sentence
        assert "`make fetch LAB=" in sentence and lab in sentence
    assert 'WEIGHTS = "random"' in next(iter(said.values()))
    others = [c for c in cells if c["number"] not in said and (notes(c, "needs") or notes(c, "missing"))]
    assert len(others) >= 10
    for cell in others:
        (number,) = re.findall(r"below cell \[(\d+)\]", cell["text"])
        assert int(number) in said and int(number) < cell["number"], cell["text"]
        assert all(f"Not run: it needs `{name}`, " in cell["text"] for name in notes(cell, "needs"))


@pytest.mark.parametrize(
    ("lab", "ran", "left_out"),
    [
        ("2.4.1", ["same-result", "roofline-figure", "recall-figure"], ["write-something", "sweep-figure", "save"]),
        ("2.4.2", ["curves-figure", "time-and-memory-figure", "specialists-figure"], ["watched", "zoo-copying"]),
        ("2.4.3", ["parts-figure", "mixtral-repetition"], ["route", "use-figure"]),
        ("2.4.4", ["families-match", "controller-figure", "longer-figure"], ["loads", "top-k-sweep"]),
        ("2.4.5", ["wrong-way-round", "recall-figure"], ["quality-sweep", "one-page", "decisions", "save"]),
        ("2.4.6", ["memory-figure", "real-sizes", "replay-table"], ["train", "results", "forgetting"]),
    ],
)
def test_without_weights_what_does_not_need_them_runs_and_nothing_half_measured_is_saved(
    lab, ran, left_out, without_weights
):
    cells, saved = without_weights
    told = {cell["id"]: cell["notes"] for cell in cells[lab] if notes(cell, "needs") or notes(cell, "missing")}
    assert {cell["id"] for cell in cells[lab]} >= {*ran, *left_out}
    assert told.keys().isdisjoint(ran) and told.keys() >= {*left_out}
    assert saved == []


def test_without_weights_make_run_fails_with_the_sentence_and_keeps_what_ran(small, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "shared.notebooks", "run", "--lab", "2.4.5", "--scale", "full"],
        cwd=files.ROOT,
        env={**small, "COURSE_BUILD": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    exercises = len(notebooks.answers("2.4.5"))
    assert done.returncode == 1 and f"{exercises} of {exercises}" in done.stdout, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert "Missing: mamba-2.8b is not complete" in last and re.search(r"fetches [\d.]+ [MG]B into", last)
    notebook = nbformat.read(tmp_path / "executed" / notebooks.path_of("2.4.5").name, as_version=4)
    assert errors(notebook) == []
    said = "".join(notebooks.text(cell) for cell in notebook.cells)
    assert said.count("Missing: mamba-2.8b is not complete") == 1
    assert "Not run: it needs `documents`" in said
