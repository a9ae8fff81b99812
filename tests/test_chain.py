"""The chain: answers into stubs -> papermill -> nbval on a second kernel -> pages; and the labs with nothing solved.

The first run is `make run`, as an instructor types it, with every way to a model hub closed.
"""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from shared import checks, notebooks

EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))


def executed(lab: str):
    return nbformat.read(notebooks.BUILD / "executed" / notebooks.path_of(lab).name, as_version=4)


def errors(notebook) -> list[str]:
    return [o.evalue for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]


@EACH
def test_make_run_ends_with_a_table_of_labs_that_pass_all_checks(made, lab):
    header, *rows = made.strip().splitlines()[-1 - len(notebooks.labs()) :]
    assert header.split() == ["lab", "seconds", "peak", "memory", "checks", "passed", "page", "to", "open"]
    (row,) = [r for r in rows if r.startswith(lab)]
    exercises = len(notebooks.answers(lab))
    assert f"{exercises} of {exercises}" in row
    assert (notebooks.ROOT / row.split()[-1]).is_file()
    seconds, peak = float(row.split()[1]), float(row.split()[2])
    assert seconds > 1 and 0.2 < peak < 24  # GB: torch alone takes more than the lower bound


@EACH
def test_every_check_of_the_solved_lab_is_green_and_no_cell_fails_or_warns(made, lab):
    notebook = executed(lab)
    assert errors(notebook) == []
    for cell in notebooks.tagged(notebook, "check"):
        assert checks.PASSED in notebooks.text(cell), cell.id
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", f"{cell.id}: {output.text}"


@EACH
def test_a_second_kernel_gives_the_same_outputs(made, lab, no_network):
    path = notebooks.BUILD / "executed" / notebooks.path_of(lab).name
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "-p",
        "no:cacheprovider",
        "-q",
        "--rootdir",
        path.parent,
        path,
    ]
    done = subprocess.run(
        [*map(str, command), "-c", os.devnull, "--nbval-cell-timeout", "300"],
        cwd=notebooks.LABS,
        env=no_network,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    compared = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert compared == sum(cell.cell_type == "code" for cell in executed(lab).cells)


@EACH
def test_nbval_would_see_a_changed_result(made, lab, tmp_path, no_network):
    """A negative control: the same comparison on the lab's first cells, with one stored number changed, must fail."""
    notebook = executed(lab)
    position = next(i for i, c in enumerate(notebook.cells) if c.id == "first-figure-numbers")
    notebook.cells = notebook.cells[: position + 1]
    (output,) = notebook.cells[-1].outputs
    output.text = re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), output.text, count=1)
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-c", os.devnull, "--rootdir", tmp_path, tmp_path]
    done = subprocess.run([*map(str, command)], env=no_network, capture_output=True, text=True)
    assert "1 failed" in done.stdout, done.stdout[-3000:]


@EACH
def test_an_unsolved_lab_runs_to_its_end_and_says_not_attempted_yet(lab, tmp_path):
    """With random weights, so that this other value of the parameter runs as well."""
    run = notebooks.execute(lab, solved=False, folder=tmp_path, WEIGHTS="random")
    assert run.error == ""
    notebook = nbformat.read(run.notebook, as_version=4)
    assert errors(notebook) == []
    verdicts = [notebooks.text(cell) for cell in notebooks.tagged(notebook, "check")]
    assert len(verdicts) == len(notebooks.answers(lab)) and run.passed == 0
    for verdict in verdicts:
        assert "not attempted yet" in verdict and "Traceback" not in verdict


@EACH
def test_the_page_opens_from_disk_without_any_network(made, lab):
    page = (notebooks.BUILD / "html" / f"{notebooks.path_of(lab).stem}.html").read_text(encoding="utf-8")
    outside = re.findall(r"""(?:src|href)=["'](?!#|data:)([^"']+)""", page)
    assert outside == []
    assert "@import" not in page and "url(http" not in page
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) >= 3
    for image in images:
        assert len(re.search(r'alt="([^"]*)"', image)[1]) > 40


def test_the_index_links_every_page(made):
    page = (notebooks.BUILD / "html" / "index.html").read_text(encoding="utf-8")
    for lab in notebooks.labs():
        assert f'href="{notebooks.path_of(lab).stem}.html"' in page


def test_a_lab_whose_check_fails_makes_the_command_fail(tmp_path, monkeypatch, capsys):
    failed = notebooks.Run("2.4.1", notebooks.path_of("2.4.1"), 1.0, 10**9, passed=6, checks=7)
    monkeypatch.setattr(notebooks, "run", lambda lab, scale: [failed])
    assert notebooks.main(["run"]) == 1
    assert "6 of 7" in capsys.readouterr().out


def test_a_kernel_that_is_killed_is_reported_and_what_came_before_is_kept(tmp_path, monkeypatch):
    notebook = notebooks.solve("2.4.1")
    position = next(i for i, cell in enumerate(notebook.cells) if cell.id == "check-kv-cache-bytes")
    notebook.cells = notebook.cells[: position + 2]
    notebook.cells[-1] = nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(notebooks, "solve", lambda lab: notebook)
    run = notebooks.execute("2.4.1", folder=tmp_path)
    assert "kernel died" in run.error and run.passed == 1
    assert "the kernel died" in notebooks.table([run])


def test_a_full_disk_is_one_sentence_that_names_the_folder(monkeypatch, capsys):
    def full(lab, scale):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notebooks, "run", full)
    assert notebooks.main(["run"]) == 1
    said = capsys.readouterr().err
    assert str(notebooks.BUILD) in said and "is full" in said and said.count("\n") == 1


@EACH
@pytest.mark.parametrize("parameter", ["SCALE", "WEIGHTS"])
def test_an_unknown_parameter_value_stops_the_lab_with_one_sentence(lab, parameter, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "SCALES", ("tiny", "full", "huge"))
    run = notebooks.execute(lab, folder=tmp_path, **{parameter: "huge"})
    assert f"{parameter} = 'huge' is unknown" in run.error
    notebook = nbformat.read(run.notebook, as_version=4)
    (trace,) = [o.traceback for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    frames = re.findall(r"^(?:File|Cell In)", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(trace)), flags=re.MULTILINE)
    assert len(frames) <= 1


@pytest.mark.parametrize(
    ("lab", "model", "size", "passed"),
    [("2.4.1", "mamba-2.8b", "11.1 GB", 2), ("2.4.2", "mamba-130m", "517 MB", 0)],  # float32, as published
)
def test_scale_full_without_the_model_says_what_is_missing_and_how_to_get_it(
    lab, model, size, passed, tmp_path, no_network, monkeypatch
):
    for name, value in no_network.items():
        monkeypatch.setenv(name, value)
    run = notebooks.execute(lab, scale="full", folder=tmp_path)
    assert run.error.startswith("Missing: ") and model in run.error and size in run.error
    assert run.passed == passed  # what comes before it has run, and what it printed is there
