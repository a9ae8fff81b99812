"""Labs that stop or are not solved: nothing attempted, a dead kernel, a full disk, a wrong parameter, no model."""

import re

import nbformat
import pytest

from shared import notebooks

EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))


def errors(notebook) -> list[str]:
    return [o.evalue for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]


@EACH
def test_an_unsolved_lab_runs_to_its_end_and_says_not_attempted_yet(lab, tmp_path, monkeypatch):
    """With random weights, so that this other value of the parameter runs as well."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))  # the kernel's: its results are not those of the solved lab
    run = notebooks.execute(lab, solved=False, folder=tmp_path, WEIGHTS="random")
    assert run.error == ""
    notebook = nbformat.read(run.notebook, as_version=4)
    assert errors(notebook) == []
    verdicts = [notebooks.text(cell) for cell in notebooks.tagged(notebook, "check")]
    assert len(verdicts) == len(notebooks.answers(lab)) and run.passed == 0
    for verdict in verdicts:
        assert "not attempted yet" in verdict and "Traceback" not in verdict


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
    assert len(raised.traceback) == 2  # this test and the cell: one frame for a student


def test_an_unknown_scale_stops_the_lab_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "SCALES", ("tiny", "full", "huge"))
    run = notebooks.execute("2.4.1", folder=tmp_path, SCALE="huge")
    assert "SCALE = 'huge' is unknown" in run.error
    notebook = nbformat.read(run.notebook, as_version=4)
    (trace,) = [o.traceback for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    frames = re.findall(r"^(?:File|Cell In)", re.sub(r"\x1b\[[\d;]*m", "", "\n".join(trace)), flags=re.MULTILINE)
    assert len(frames) <= 1


@pytest.mark.parametrize(
    ("lab", "model", "size", "passed"),
    [
        ("2.4.1", "mamba-2.8b", "11.1 GB", 2),
        ("2.4.2", "mamba-130m", "517 MB", 0),  # float32, as published
        ("2.4.3", "olmoe-1b-7b", "13.8 GB", 1),
        ("2.4.4", "olmoe-1b-7b", "13.8 GB", 0),
        ("2.4.5", "mamba-2.8b", "11.1 GB", 0),
        ("2.4.6", "mamba-1.4b", "5.49 GB", 0),
    ],
)
def test_scale_full_without_the_model_says_what_is_missing_and_how_to_get_it(
    lab, model, size, passed, tmp_path, no_network, monkeypatch
):
    for name, value in no_network.items():
        monkeypatch.setenv(name, value)
    run = notebooks.execute(lab, scale="full", folder=tmp_path)
    assert run.error.startswith("Missing: ") and model in run.error and size in run.error
    assert run.passed == passed  # what comes before it has run, and what it printed is there
