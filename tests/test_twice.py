"""A student runs a cell twice: the same comes out, and no error. Lab 2.4.6, whose cells change models in place."""

import multiprocessing
import os

import pytest

from shared import files, notebooks

NUMBERS = {"steps": 8, "examples": 64, "short_steps": 6}
SLOW = {"memory-measure", "memory-figure", "train-replay", "forgetting", "forgetting-figure", "give-back"}


def twice() -> list[tuple[str, list[str], list[str]]]:
    """Each cell's id, what it printed the first and the second time, and its errors."""
    os.chdir(files.LABS)
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(colors="nocolor", config=config)
    notebook = notebooks.solve("2.4.6")
    notebooks.change_settings(notebook, "tiny", NUMBERS)
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or cell.id in SLOW:
            continue
        texts, errors = [], []
        for _ in range(2):
            with capture_output() as came:
                result = shell.run_cell(cell.source)
            texts.append(came.stdout)
            if error := result.error_before_exec or result.error_in_exec:
                errors.append(repr(error))
        found.append((cell.id, texts if "nbval-ignore-output" not in cell.metadata.get("tags", []) else [], errors))
    return found


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_BUILD", str(tmp_path_factory.mktemp("build")))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(twice)


def test_a_cell_that_runs_twice_raises_nothing_and_prints_the_same(cells):
    assert [(name, errors) for name, _, errors in cells if errors] == []
    assert [(name, texts) for name, texts, _ in cells if len(set(texts)) > 1] == []
    assert len(cells) > 30 and "merge" in {name for name, _, _ in cells}
