"""The chain: answers into stubs -> papermill. It is `make run`, as an instructor types it, without a way to a hub."""

import re

import nbformat
import pytest
import torch
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

from shared import files, notebooks, plots
from shared.notebooks import notice

pytestmark = pytest.mark.slow

EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))


def executed(lab: str):
    """A lab as `make run` left it. On a busy machine a kernel sends one print in two parts: they are one output."""
    notebook = nbformat.read(files.BUILD / "executed" / notebooks.path_of(lab).name, as_version=4)
    return CoalesceStreamsPreprocessor().preprocess(notebook, {})[0]


def errors(notebook) -> list[str]:
    return [o.evalue for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]


@EACH
def test_make_run_ends_with_a_table_of_labs_that_pass_all_checks(made, lab):
    header, *rows = made.strip().splitlines()[-1 - len(notebooks.labs()) :]
    assert header.split() == ["lab", "seconds", "peak", "memory", "checks", "passed", "notebook", "to", "open"]
    (row,) = [r for r in rows if r.startswith(lab)]
    exercises = len(notebooks.answers(lab))
    assert f"{exercises} of {exercises}" in row
    assert (files.ROOT / row.split()[-1]).is_file()
    seconds, peak = float(row.split()[1]), float(row.split()[2])
    assert seconds > 1 and 0.2 < peak < 24  # GB: torch alone takes more than the lower bound
    said = re.search(r"two cores, at most ([\d.]+) GB \|", (files.ROOT / "README.md").read_text(encoding="utf-8"))
    assert peak <= float(said[1]) < 2 or torch.cuda.is_available()  # of the 2 GB that have to be free


@EACH
def test_every_check_of_the_solved_lab_is_green_and_no_cell_fails_or_warns(made, lab):
    notebook = executed(lab)
    assert errors(notebook) == []
    for cell in notebooks.tagged(notebook, "check"):
        assert notice.passed(notebooks.text(cell)), cell.id
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", f"{cell.id}: {output.text}"


def figures_of(lab: str) -> list[tuple[str, nbformat.NotebookNode]]:
    """The id of its cell and the output of each figure of an executed lab."""
    outputs = [(cell.id, output) for cell in executed(lab).cells for output in cell.get("outputs", [])]
    return [(name, output) for name, output in outputs if plots.DRAWN in output.get("data", {})]


@EACH
def test_every_figure_shows_what_its_cell_drew(made, lab):
    """No empty series, no value that is no number, no x twice; and no image by another way."""
    wrong = {name: plots.faults(output.data[plots.DRAWN]) for name, output in figures_of(lab)}
    assert {name: found for name, found in wrong.items() if found} == {}
    outputs = [output for cell in executed(lab).cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(figures_of(lab))
