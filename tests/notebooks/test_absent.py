"""A notebook goes on where something cannot be had: which cells run, which do not, and what each of them says."""

import re
import subprocess
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from shared import files
from shared.errors import BadInput, DamagedCheckpoint, DiskFull, Missing, NotEnoughMemory
from shared.machine.guard import MemoryRanLow
from shared.notebooks import absent

LOAD = "model, size = load(), 3"


class Notebook:
    """Cells in a shell of this process. `load` raises until something is fetched; `ran`: what `measure` was given."""

    def __init__(self, shell):
        self.shell, self.fetched, self.ran = shell, [], []
        shell.user_ns.update(load=self._load, measure=self._measure)

    def _load(self, name="mamba-2.8b"):
        if not self.fetched:
            raise Missing(f"{name} is not here: fetch it.")
        return self.fetched[-1]

    def _measure(self, value):
        self.ran.append(value)
        return value

    def run(self, source: str) -> str:
        """What a cell shows, text and outputs, without colours. Its result is kept in `result`."""
        with capture_output() as came:
            self.result = self.shell.run_cell(source, store_history=True)
        self.outputs = came.outputs
        self.metadata = [output.metadata for output in came.outputs if output.metadata]
        shown = "".join(output.data.get("text/plain", "") for output in came.outputs if output.metadata)
        return re.sub(r"\x1b\[[\d;]*m", "", came.stdout + shown)

    def needs(self, source: str) -> str | None:
        """The name for lack of which a cell is not run; None if it is run."""
        said = self.run(source)
        assert self.result.success, said  # in both cases: nothing stops
        found = re.fullmatch(r"Not run: it needs `(\w+)`, and why that is missing stands below cell \[\d+\]\.", said)
        return found and found[1]


@pytest.fixture
def plain(monkeypatch) -> InteractiveShell:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # a shell puts its own there
    InteractiveShell.clear_instance()
    config = Config()
    config.HistoryManager.enabled = False
    yield InteractiveShell.instance(colors="nocolor", config=config)
    InteractiveShell.clear_instance()


@pytest.fixture
def notebook(plain) -> Notebook:
    notebook = Notebook(plain)
    assert notebook.run("from shared.notebooks import absent\nabsent.skip_cells()") == ""
    return notebook


# ---- what is missing is said once, and does not stop ------------------------------------------------------------


def test_what_is_missing_is_one_sentence_and_stops_nothing(notebook):
    assert notebook.run(LOAD) == "Missing: mamba-2.8b is not here: fetch it."
    assert notebook.result.success and notebook.metadata == [{"missing": "Missing: mamba-2.8b is not here: fetch it."}]
    assert notebook.run("measure(1)\nprint('on')") == "on\n" and notebook.ran == [1]


def test_without_the_call_the_error_is_one_and_the_next_cell_fails(plain):
    notebook = Notebook(plain)
    assert "Missing: mamba-2.8b is not here" in notebook.run(LOAD)
    assert isinstance(notebook.result.error_in_exec, Missing)
    notebook.run("model")
    assert isinstance(notebook.result.error_in_exec, NameError)


def test_the_same_sentence_is_shown_once_and_then_by_the_number_of_its_cell(notebook):
    notebook.run(LOAD)
    number = notebook.result.execution_count
    again = notebook.run("twin = load()")
    assert again == f"Not run to its end: it needs what is missing below cell [{number}]."
    assert notebook.needs("twin") == "twin" and f"below cell [{number}]" in notebook.run("twin")
    assert notebook.run("other = load('pythia-2.8b')") == "Missing: pythia-2.8b is not here: fetch it."
    assert notebook.run(LOAD).startswith("Missing: ")  # the first of them, once more
    assert f"below cell [{notebook.result.execution_count}]" in notebook.run("model")


@pytest.mark.parametrize("kind", [DiskFull, NotEnoughMemory, DamagedCheckpoint])
def test_so_is_what_this_machine_has_no_room_for_or_has_damaged(notebook, kind):
    notebook.shell.user_ns["kind"] = kind
    assert notebook.run("model = None\nraise kind('It needs 93 GB.')") == f"{kind.__name__}: It needs 93 GB."
    assert notebook.needs("model") == "model"


@pytest.mark.parametrize("kind", [MemoryRanLow, BadInput, ValueError, KeyboardInterrupt, UnboundLocalError])
def test_every_other_error_stops_as_before(notebook, kind):
    notebook.shell.user_ns["kind"] = kind
    assert kind.__name__ in notebook.run("model = 1\nraise kind('It was stopped.')")
    assert isinstance(notebook.result.error_in_exec, kind) and not notebook.metadata
    assert notebook.needs("model") is None


# ---- what needs it is not run -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [
        "measure(model)",
        "measure(0)\nprint(model.config)",  # anywhere in the cell, and nothing before it is run
        "x = 1 if measure(0) else model",
        "size += measure(1)",
        "size[0] = measure(1)",
        "model.config = measure(1)",
        "del model, size\nmeasure(1)",
        "model = measure(0) or model",
        "f'{measure(0)} {model}'",
        "def f():\n    return model\nmeasure(f)",
        "def f(x=model): pass\nmeasure(f)",
        "def f():\n    def g():\n        return [lambda: model for _ in range(3)]\n    return g\nmeasure(f)",
        "class A:\n    size = model\nmeasure(A)",
        "class A:\n    def f(self): return model\nmeasure(A)",
        "class A(model): pass\nmeasure(A)",
        "@model\ndef f(): pass\nmeasure(f)",
        "measure([model for x in range(2)])",
        "measure({x: 1 for x in model})",
        "measure(0)\nfor x in range(3):\n    model(x)",
        "measure(0)\nwith model as m: pass",
        "measure(0)\ntry:\n    1 / 0\nexcept model:\n    pass",
        "measure(0)\nmatch 3:\n    case model.three: pass",
        "import asyncio\nmeasure(await asyncio.sleep(0, model))",
        "def f():\n    global model\n    model.x = 1\nmeasure(f)",
    ],
)
def test_a_cell_that_reads_an_absent_name_is_not_run(notebook, cell):
    notebook.run(LOAD)
    assert notebook.needs(cell) in ("model", "size")
    assert notebook.ran == []


@pytest.mark.parametrize(
    "cell",
    [
        "model = measure(1)\nprint(model)",
        "for model in range(3):\n    measure(model)",
        "def f(model, *size): return model, size\nmeasure(f(1))",
        "measure((lambda model: model)(1))",
        "measure([model for model in range(3)])",
        "measure({model: size for model, size in [(1, 2)]})",
        "def f():\n    model = 1\n    def g(): return model\n    return g()\nmeasure(f())",
        "def f(): return model\nmodel = 3\nmeasure(f())",
        "def model(): return model\nmeasure(model)",
        "class A:\n    model = 1\n    size = model\nmeasure(A)",
        "measure('model and size')",
        "x = type('X', (), {'model': 1})\nmeasure(x.model)\nx.model = 2",
        "import math as model\nmeasure(model.pi)",
        "from math import pi as model\nmeasure(model)",
        "with open('/dev/null') as model:\n    measure(model.name)",
        "try:\n    1 / 0\nexcept ZeroDivisionError as model:\n    measure(str(model))",
        "if (model := measure(1)): print(model)",
        "def f():\n    global model\n    model = 1\n    return model\nmeasure(f())",
        "match (1, 2):\n    case (model, size):\n        measure(model + size)",
        "def f(**options): return options\nmeasure(f(model=1))",
    ],
)
def test_a_cell_that_binds_the_name_itself_or_means_another_one_is_run(notebook, cell):
    notebook.run(LOAD)
    assert notebook.needs(cell) is None and len(notebook.ran) >= 1


def test_what_a_cell_that_is_not_run_would_have_bound_is_absent_too(notebook):
    notebook.run(LOAD)
    number = notebook.result.execution_count
    made = {
        "table = measure(model)": "model",
        "for row in table: total = row": "table",
        "import json as j\nprint(total)": "total",
        "def f(): return total\ng = f": "total",
        "j.dumps({})": "j",
        "f()": "f",
        "row": "row",
    }
    for cell, name in made.items():
        assert notebook.needs(cell) == name
        assert f"[{number}]" in notebook.run(cell)  # where the sentence stands, not the cell between
    assert notebook.ran == []


def test_what_was_bound_before_is_not_taken_for_what_a_cell_could_not_make(notebook):
    """Neither the value of an earlier run, nor the half of one that `load` interrupted."""
    notebook.run("table, total = measure('of an earlier cell'), 1")
    notebook.run("table = {}\ntable['mamba'] = 1\ntable['pythia'] = load()")
    assert notebook.needs("print(table)") == "table"
    assert notebook.needs("total = len(table)") == "table"
    assert notebook.needs("print(total)") == "total"
    notebook.run("table = {}\ntable['olmoe'] = load('olmoe-1b-7b')")  # bound for a moment, once more
    assert notebook.needs("print(table)") == "table"


def test_what_a_function_of_a_cell_would_have_bound_is_absent_too(notebook):
    notebook.run("total = 0")
    notebook.run(LOAD)
    assert notebook.needs("def f():\n    global total\n    total = model\nf()") == "model"
    assert notebook.needs("total") == "total"


def test_a_name_that_a_cell_binds_and_deletes_does_not_become_absent(notebook):
    notebook.run("error = 'bits'")
    notebook.run(LOAD)
    assert notebook.needs("try:\n    x = model\nexcept ValueError as error:\n    print(error)") == "model"
    assert notebook.needs("error") is None and notebook.needs("x") == "x"


def test_a_function_from_before_that_reads_an_absent_name_ends_its_cell(notebook):
    notebook.run("def judge(): return model\nmodel = 'tiny'")
    notebook.run(LOAD)
    said = notebook.run("score = measure(1), judge()")
    assert said.startswith("Not run to its end: it needs `model`, and why that is missing stands below cell [")
    assert notebook.result.success and notebook.ran == [1]
    assert notebook.needs("score") == "score"


def test_a_name_that_nobody_knows_is_the_usual_error(notebook):
    notebook.run(LOAD)
    assert "NameError: name 'modle' is not defined" in notebook.run("modle")
    assert isinstance(notebook.result.error_in_exec, NameError)


def test_ipython_counts_a_cell_that_could_not_run_as_one_that_failed(notebook):
    """A clock can tell by that: such a cell has not taken its time."""
    for cell, ran in ((LOAD, False), ("model", False), ("measure(1)", True)):
        notebook.run(cell)
        assert notebook.result.success and notebook.shell.last_execution_succeeded == ran


def test_each_line_can_be_told_by_its_metadata(notebook):
    notebook.run(LOAD)
    notebook.run("model")
    assert notebook.metadata == [{"needs": "model"}]
    notebook.run("print('Missing: what a student may print')\n3")
    assert notebook.metadata == []


# ---- and is there again -----------------------------------------------------------------------------------------


def test_after_the_fetch_the_same_cells_run(notebook):
    cells = ["rank = 2", LOAD, "table = [measure(model)]", "rank = rank * size", "table[0], rank"]
    for cell in cells:
        notebook.run(cell)
    assert notebook.ran == []
    notebook.fetched.append("weights")
    for cell in cells[1:]:  # from the load cell on, without a restart
        assert notebook.needs(cell) is None
    assert notebook.ran == ["weights"] and notebook.result.result == ("weights", 6)


def test_a_cell_that_goes_on_from_an_earlier_value_finds_it_when_it_is_run_again(notebook):
    notebook.run("total = 1")
    notebook.run("total += load()")
    assert notebook.needs("total") == "total"
    notebook.fetched.append(5)
    assert notebook.needs("total += load()") is None
    notebook.run("total")
    assert notebook.result.result == 6


def test_a_cell_run_twice_says_the_same_twice(notebook):
    for _ in range(2):
        assert notebook.run(LOAD) == "Missing: mamba-2.8b is not here: fetch it."
    for _ in range(2):
        assert notebook.needs("size = size + 1") == "size"


@pytest.mark.parametrize(
    "cell",
    [
        "model = 1",
        "from math import *\nmodel = pi",
        "globals()['model'] = 1",
        "exec('model = 1')",
        "def f():\n    global model\n    model = 1\nf()",
        "%store_nothing\nmodel = 1",
        "model = 1\n1 / 0",  # it is bound, whatever came after
    ],
)
def test_any_binding_makes_a_name_present_again(notebook, cell):
    notebook.shell.register_magic_function(lambda line: None, magic_name="store_nothing")
    notebook.run(LOAD)
    notebook.run(cell)
    notebook.run("model")
    assert notebook.result.result in (1, 3.141592653589793)


def test_a_star_import_makes_its_names_present(notebook):
    notebook.run("pi = load()")
    assert notebook.needs("pi") == "pi"
    assert notebook.needs("from math import *") is None
    assert notebook.needs("pi") is None


def test_a_name_that_is_present_again_and_then_deleted_is_unknown(notebook):
    notebook.run(LOAD)
    for cell in ("model = 1", "del model"):
        assert notebook.needs(cell) is None
    assert "NameError" in notebook.run("model")


@pytest.mark.slow
def test_what_a_failed_cell_had_loaded_can_be_freed(notebook):
    """The error is not kept, and with it not the frames: on a machine with one memory a model would stay in it."""
    import gc
    import weakref

    class Weights:
        pass

    def half():
        weights = Weights()
        alive.append(weakref.ref(weights))
        raise Missing("The second half is not here.")

    alive = []
    notebook.shell.user_ns["half"] = half
    notebook.run("model = half()")
    gc.collect()
    assert alive[0]() is None


# ---- what IPython does is done as before ------------------------------------------------------------------------


def test_a_second_call_changes_nothing(notebook):
    notebook.run(LOAD)
    number = notebook.result.execution_count
    notebook.run("absent.skip_cells()")
    assert len(notebook.shell.ast_transformers) == 1
    assert f"below cell [{number}]" in notebook.run("model") and len(notebook.outputs) == 1


CELLS = {
    "an error in a function": "def f(x):\n    y = x + 1\n    return y / 0\n\n\nprint('first')\nf(1)",
    "an unknown name": "x = 1\n\nprint(nobody_knows)",
    "an unknown name in a function": "def f():\n    return nobody_knows\n\n\nf()",
    "an exception with a cause": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('no') from e",
    "a syntax error": "x = (1,\nprint 3",
    "an error of the compiler": "x = 1\nreturn x",
    "an indentation error": "if x:\nprint(3)",
    "an interrupt": "raise KeyboardInterrupt",
    "the value of the last line": "x = 20\nx + 1",
    "no value after a semicolon": "x = 20\nx + 1;",
    "the last value": "_",
    "a value by its number": "7\nOut[max(Out)] if Out else None",
    "await": "import asyncio\nawait asyncio.sleep(0, 'awaited')",
    "a line magic": "%precision 3\n1 / 3",
    "a cell magic": "%%capture kept\nprint('hidden')\nvalue = 8",
    "what a cell magic left": "kept.stdout, value",
    "a cell magic with an error": "%%capture\n1 / 0",
    "help": "len?",
    "an unknown magic": "%no_such_magic",
    "nothing": "",
    "a comment": "# nothing",
    "a future import": "from __future__ import annotations\ndef f(x: nobody_knows): pass\nf.__annotations__",
}


def shown(shell) -> dict[str, str]:
    """What each of CELLS shows, errors with their frames, results and what IPython thinks of it."""
    found = {}
    for what, cell in CELLS.items():
        with capture_output() as came:
            result = shell.run_cell(cell, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        text = re.sub(r"0x[0-9a-f]+", "0x", came.stdout + came.stderr)
        found[what] = (text, repr(result.result), type(error).__name__, shell.last_execution_succeeded)
    return found


@pytest.mark.slow
def test_every_other_cell_shows_what_it_shows_without_the_call(plain):
    cells_before = "import sys", "assert sys"  # as many as the second time
    for cell in cells_before:
        plain.run_cell(cell, store_history=True)
    before = shown(plain)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor", config=plain.config)
    for cell in ("from shared.notebooks import absent", "absent.skip_cells()"):
        shell.run_cell(cell, store_history=True)
    after = shown(shell)
    assert len(shell.ast_transformers) == 1  # what raises is taken out by IPython
    assert after == before
    assert "----> 3     return y / 0" in before["an error in a function"][0]
    assert "----> 7 f(1)" in before["an error in a function"][0]
    assert before["the value of the last line"][1] == before["the last value"][1] == "21"
    assert "'awaited'" in before["await"] and "('hidden\\n', 8)" in before["what a cell magic left"]


def test_a_cell_magic_does_not_hide_what_its_cell_needs(notebook):
    notebook.run(LOAD)
    notebook.run("%%capture\ntable = measure(model)")
    assert notebook.ran == [] and notebook.needs("table") == "table"
    notebook.run("%%time\ntable = measure(model)")
    assert notebook.ran == []


def test_the_last_value_is_ipython_s_whatever_a_cell_calls_it(notebook):
    notebook.run("41 + 1")
    notebook.run("model, _ = load(), 1")
    notebook.run("_")
    assert notebook.result.result == 42


@pytest.mark.slow
def test_in_a_script_nothing_changes():
    script = (
        "from shared import errors\nfrom shared.notebooks import absent\n"
        "absent.skip_cells()\n"
        "print('before', flush=True)\n"
        "raise errors.Missing('mamba-2.8b is not here.')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "before\n" and "Missing: mamba-2.8b is not here." in done.stderr


def test_what_it_catches_is_said_by_the_course_itself():
    assert all(kind.__module__ == "shared.errors" for kind in absent.NOT_HERE)
