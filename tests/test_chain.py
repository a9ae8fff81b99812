"""The chain: answers into stubs -> papermill -> nbval on a second kernel -> pages.

The first run is `make run`, as an instructor types it, with every way to a model hub closed.
"""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import stub_kernels

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


@pytest.fixture(scope="session")
def nothing_from_before(no_network, tmp_path_factory) -> dict[str, str]:
    """Without network, in another build folder (what the first run saved there cannot help), and with kernels that
    crash on a CPU tensor, as those that `make kernels` builds do: a lab whose CPU models reached them would fail."""
    folder, stubs = tmp_path_factory.mktemp("build"), stub_kernels(tmp_path_factory.mktemp("kernels"))
    return {**no_network, "COURSE_BUILD": str(folder), "PYTHONPATH": str(stubs)}


@EACH
def test_a_second_kernel_gives_the_same_outputs(made, lab, nothing_from_before):
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
        env=nothing_from_before,
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
