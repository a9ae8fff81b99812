"""The chain: answers into stubs -> papermill; and the unsolved labs under nbval on a second kernel.

The first run is `make run`, as an instructor types it, with every way to a model hub closed.
"""

import copy
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable

import nbformat
import pytest
import torch
from conftest import stub_kernels
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


# What only clocks see of a lab may be smaller on the second kernel: nbval does not compare it, and does all the rest.
CLOCKED = {
    "2.4.1": {"timing": {"new_tokens": 10, "repeats": 1, "warmup": 1}},
    "2.4.2": {"lengths": (64, 128, 256)},
    "2.4.5": {"contexts": (64, 128, 256), "timing": {"new_tokens": 10, "repeats": 1, "warmup": 1}},
}


# The bytes of an image stand twice in an output, and nbval leaves images out: what a figure shows is compared instead.
SANITIZE = '[image]\nregex: data:image/png;base64,[^"]+\nreplace: IMAGE\n'


@pytest.fixture(scope="session")
def compared(made, no_network, tmp_path_factory) -> Callable[[str], str]:
    """What nbval says of a lab that nobody has solved, on a second kernel, against what the solved one printed.

    A check says "not attempted yet" and hands over the course's own version, so everything else has to come out the
    same. One cell stands twice: the copy claims another number than the cell prints.
    """
    # Without network, in another build folder (what the first run saved there cannot help), and with kernels that crash
    # on a CPU tensor, as those that `make kernels` builds do: a lab whose CPU models reached them would fail.
    folder, stubs = tmp_path_factory.mktemp("build"), stub_kernels(tmp_path_factory.mktemp("kernels"))
    nothing_from_before = {**no_network, "COURSE_BUILD": str(folder), "PYTHONPATH": str(stubs)}

    @functools.cache
    def run(lab: str) -> str:
        notebook = executed(lab)
        notebooks.unsolved(lab, notebook)  # what `make site` shows
        notebooks.change_settings(notebook, "tiny", CLOCKED.get(lab, {}))
        position = next(i for i, c in enumerate(notebook.cells) if c.id == "first-figure-numbers")
        changed = copy.deepcopy(notebook.cells[position])
        changed.id = "changed"
        (output,) = changed.outputs
        output.text = re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), output.text, count=1)
        notebook.cells.insert(position + 1, changed)
        folder = tmp_path_factory.mktemp("compared")
        nbformat.write(notebook, path := folder / "lab.ipynb")
        (folder / "sanitize").write_text(SANITIZE)
        options = ["--nbval", "--nbval-sanitize-with", str(folder / "sanitize")]
        options += ["-p", "no:cacheprovider", "-v", "-c", os.devnull, "--nbval-cell-timeout", "300"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "--rootdir", folder, path],
            cwd=files.LABS,
            env=nothing_from_before,
            capture_output=True,
            text=True,
        )
        return done.stdout

    return run


def verdicts(said: str) -> list[str]:
    """nbval's verdict on each code cell, in order."""
    return re.findall(r"^\S+::Cell \d+ ([A-Z]+)", said, flags=re.MULTILINE)


@EACH
def test_an_unsolved_lab_runs_to_its_end_and_a_second_kernel_gives_the_outputs_of_the_solved_one(compared, lab):
    code = [cell for cell in executed(lab).cells if cell.cell_type == "code"]
    position = [cell.id for cell in code].index("first-figure-numbers")
    found = verdicts(compared(lab))
    assert found[: position + 1] + found[position + 2 :] == ["PASSED"] * len(code), compared(lab)[-6000:]


@EACH
def test_nbval_would_see_a_changed_result(compared, lab):
    """A negative control: the copy of a cell, with one stored number changed, must fail, and nothing else."""
    code = [cell.id for cell in executed(lab).cells if cell.cell_type == "code"]
    found = verdicts(compared(lab))
    assert found[code.index("first-figure-numbers") + 1] == "FAILED" and found.count("FAILED") == 1
    assert "1 failed" in compared(lab), compared(lab)[-3000:]


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
