"""A lab gives back what it loaded: another notebook may need it. Read from the run that `make run` makes."""

import nbformat
import pytest

from shared import files, notebooks

pytestmark = pytest.mark.slow

EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))
FEW = ("2.4.5", "2.4.6")  # one frees each model before the next, the other has bases of 0.3 MB
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@EACH
def test_the_last_code_cell_gives_the_models_back(lab):
    cells = [cell for cell in notebooks.read(lab).cells if cell.cell_type == "code"]
    assert cells[-1].id == "give-back", f"end lab {lab} with a cell give-back, as lab 2.4.1 does"
    by_hand = "models.unload()" in cells[-1].source and "memory.held()" in cells[-1].source
    assert by_hand or "lab.give_back()" in cells[-1].source


@EACH
def test_after_the_lab_its_models_are_gone_and_little_else_is_left(made, lab):
    executed = nbformat.read(files.BUILD / "executed" / notebooks.path_of(lab).name, as_version=4)
    (cell,) = [cell for cell in executed.cells if cell.id == "give-back"]
    sizes = [line.split()[-2:] for line in notebooks.text(cell).splitlines()]
    freed, held = [float(number) * UNITS[unit] for number, unit in sizes]
    assert freed > 4e6 or (lab in FEW and freed > 0.2e6 and freed + held < 4e6)  # a tiny model in float32 has 4 MB
    assert held < 200e6  # results, and at scale full the weights alone would be gigabytes
