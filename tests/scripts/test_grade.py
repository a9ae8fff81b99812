"""Grading: whose a file is, what a verdict is, and that no submission stands in the way of another."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grade
import pytest
from grading import judge, report, rows, sandbox
from grading.lab import Submission
from grading.submissions import Found, find
from submissions import ODD, Class, faults, filled

from shared import files, notebooks

FILE = notebooks.path_of("2.4.1").name


# ---- whose a file is ----------------------------------------------------------------------------------------------

NAMES = {
    f"anna_{FILE}": "anna",
    f"Anna Muster_4711_assignsubmission_file_{FILE}": "Anna Muster",
    f"Anna Muster_4711_assignsubmission_file_/{FILE}": "Anna Muster",
    "musteranna_12345_678901_lab-2.4.1-mamba-inference-1.ipynb": "musteranna",
    "musteranna_LATE_12345_678901_LAB-2.4.1-MAMBA.ipynb": "musteranna",
    f"anna/{FILE}": "anna",
    f"anna/lab-2.4.1/{FILE}": "anna",
    "anna/my homework.ipynb": "anna",
    "homework of anna.ipynb": "homework of anna",
    FILE: FILE.removesuffix(".ipynb"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_belongs_to_whom_its_folder_or_its_name_says(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).touch()
    assert [each.student for each in find(tmp_path)] == [NAMES[name]]


def test_the_layout_of_nbgrader_is_found_from_above_and_from_within(tmp_path):
    path = tmp_path / "submitted" / "anna" / "lab-2.4.1" / FILE
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / FILE).touch()
    for folder in (tmp_path, tmp_path / "submitted"):
        assert [(each.student, each.lab, each.path) for each in find(folder)] == [("anna", "2.4.1", path)]


def test_what_a_system_leaves_in_a_folder_is_no_submission(tmp_path):
    for name in (f"anna/.ipynb_checkpoints/{FILE}", "__MACOSX/x.ipynb", f"anna/{FILE}", "anna/.DS_Store", "anna/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [str(each.path.relative_to(tmp_path)) for each in find(tmp_path)] == [f"anna/{FILE}"]


def test_a_link_is_not_followed_neither_to_a_file_nor_to_a_folder(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / FILE).touch()
    folder = tmp_path / "class"
    (folder / "bert").mkdir(parents=True)
    (folder / "bert" / FILE).symlink_to(secret / FILE)
    (folder / "anna").symlink_to(secret)
    assert [(each.student, "link" in each.problem) for each in find(folder)] == [("anna", True), ("bert", True)]


# ---- what belongs to an exercise ------------------------------------------------------------------------------------


def of(tmp_path, notebook) -> Submission:
    import nbformat

    path = tmp_path / "x.ipynb"
    path.write_text(notebook if isinstance(notebook, str) else nbformat.writes(notebook))
    return Submission(path)


def test_an_exercise_needs_the_cells_whose_names_it_reads_and_no_others(tmp_path):
    notebook = filled("2.4.2", notebooks.answers("2.4.2"))
    its = of(tmp_path, notebook)
    needed = its.needed("ex-mamba-block", {"ex-selection"})
    assert needed.official == ["imports"]
    assert needed.sources == [its.answers["ex-selection"], its.answers["ex-mamba-block"]]


@pytest.mark.parametrize("name", [name for name, (_, _, problem) in ODD.items() if not problem])
def test_a_lab_is_known_by_its_exercises(name, tmp_path):
    change = ODD[name][0]
    came = change(filled("2.4.1", notebooks.answers("2.4.1")))
    assert of(tmp_path, came.decode("utf-8") if isinstance(came, bytes) else came).lab == "2.4.1"


def test_an_edited_check_is_said(tmp_path):
    its = of(tmp_path, ODD["edited-check"][0](filled("2.4.1", {})))
    assert "was edited" in its.note("ex-kv-cache-bytes") and its.note("ex-measure") == ""
    assert "2 cells define" in of(tmp_path, ODD["doubled"][0](filled("2.4.1", {}))).note("ex-kv-cache-bytes")


# ---- the tables ----------------------------------------------------------------------------------------------------


def results() -> list[dict]:
    about = {
        "lab": "2.4.1",
        "exercises": list(notebooks.answers("2.4.1")),
        "rows": [rows.row(each, rows.WRONG, "=1+1\n<script>") for each in list(notebooks.answers("2.4.1"))[:2]],
    }
    about["rows"][0]["result"] = rows.SOLVED
    folder = Path("class")
    found = [Found(name, folder / f"{name}.ipynb", "2.4.1") for name in ("anna", "=cmd()")]
    lines = [row for each in found for row in report.rows_of(each, folder, about)]
    return lines + report.rows_of(Found("bert", folder / "b.ipynb", "2.4.1"), folder, {"problem": "It is empty."})


def test_the_tables_have_the_columns_of_nbgrader_and_nothing_that_a_spreadsheet_computes():
    table = list(csv.DictReader(report.table(report.NBGRADER, report.scores(results())).splitlines()))
    assert list(table[0]) == list(report.NBGRADER)
    assert [(row["student_id"], row["score"], row["max_score"]) for row in table] == [
        ("'=cmd()", "1.0", "6.0"),
        ("anna", "1.0", "6.0"),
        ("bert", "0.0", "6.0"),
    ]
    text = report.table(report.COLUMNS, results())
    assert "'=1+1 <script>" in text and len(text.splitlines()) == 1 + len(results())


def test_the_page_shows_what_a_student_wrote_as_text():
    page = report.page(results())
    assert "<script>" not in page and "&lt;script&gt;" in page and "It is empty." in page


# ---- grading ---------------------------------------------------------------------------------------------------------


def test_the_page_on_grading_has_the_limits_that_hold():
    page = " ".join((files.ROOT / "docs" / "grading.md").read_text(encoding="utf-8").split())
    said = f"{rows.CPU_SECONDS} seconds of the processor and {rows.CLOCK_SECONDS} by the clock, "
    said += f"{judge.MEMORY // 2**30} GiB of memory a process and {sandbox.MEMORY // 2**30} in all, "
    said += f"{sandbox.DISK // 2**20} MiB of disk, {judge.PROCESSES} processes, {sandbox.OUTPUT // 2**20} MiB of output"
    assert said in page


def test_without_a_sandbox_it_refuses_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / FILE).touch()
    assert grade.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "sudo apt-get install bubblewrap" in said and "ISOLATION=none" in said and said.count("\n") == 1


HOSTILE = (
    "killed",
    "kills-all",
    "early-exit",
    "patched-compare",
    "false-channel",
    "top-gigabyte",
    "full-disk",
    "forks",
)
HANDED_IN = ("conflict", "missing", "doubled", "no-ids", "edited-check", "nested")


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A few submissions of every kind, graded: the class, and how to grade it again."""
    if not shutil.which("bwrap"):
        reason = "no bubblewrap on this machine (Debian: sudo apt install bubblewrap)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("grading")
    its = Class(folder / "class")
    its.hostile(HOSTILE)
    its.odd(chosen=HANDED_IN)
    its.solved("2.4.2")

    def again() -> subprocess.CompletedProcess:
        environment = {**os.environ, "COURSE_BUILD": str(folder / "build")}
        command = [sys.executable, "scripts/grade.py", str(its.folder)]
        return subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, text=True)

    done = again()
    assert done.returncode == 0, done.stdout + done.stderr
    return its, again, folder / "build" / "grade"


@pytest.mark.slow
def test_each_submission_gets_its_rows_whatever_the_others_do(graded):
    its, _, build = graded
    assert list(faults(its.expected, build / "results.csv")) == []
    page = (build / "index.html").read_text()
    assert "merge conflict" in page and rows.TOO_LONG not in page


@pytest.mark.slow
def test_what_is_judged_is_not_judged_again_and_the_result_is_the_same(graded, monkeypatch):
    _, again, build = graded
    names = ("results.csv", "nbgrader.csv", "index.html")
    before = [(build / name).read_bytes() for name in names]
    kept = {path: path.stat().st_mtime_ns for path in (build / "judged").iterdir()}
    one = next(path for path in kept if "early" not in path.read_text())
    one.unlink()  # as if it had been killed before this one was done
    assert again().returncode == 0
    assert [(build / name).read_bytes() for name in names] == before
    newer = [path for path in (build / "judged").iterdir() if path.stat().st_mtime_ns != kept[path]]
    assert newer == [one] and json.loads(one.read_text())
