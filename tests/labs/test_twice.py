"""Each lab again: every cell twice, on a second kernel under nbval, and with sections skipped. The same comes out."""

import ast
import contextlib
import copy
import functools
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
from conftest import stub_kernels
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from rehearsal import warm

from shared import files, notebooks
from shared.notebooks import absent

pytestmark = pytest.mark.slow

EACH = pytest.mark.parametrize("lab", notebooks.labs())
NUMBERS = {  # shorter runs: what is held here does not depend on them
    "2.4.1": {
        "contexts": (64, 128, 256),
        "timing": {"new_tokens": 4, "repeats": 2, "warmup": 1},
        "recall_steps": 12,
    },
    "2.4.2": {"lengths": (128, 256, 512), "copying_steps": 22, "induction_steps": 4},
    "2.4.3": {"prompts": 16, "permutations": 49, "subsets": 2},
    "2.4.4": {"windows": 8, "steps": 8},
    "2.4.5": {
        "strides": (64, 48, 32),
        "passage": 1000,
        "story": 2500,
        "documents": 20,
        "contexts": (64, 128, 256),
        "batches": (1, 2),
        "timing": {"new_tokens": 3, "repeats": 2, "warmup": 1},
    },
    "2.4.6": {"steps": 8, "examples": 64, "short_steps": 6},
}
ONCE = {  # cells that take long, and show nothing new the second time
    "2.4.1": {"timeline", "timeline-picture", "timeline-figure"},  # loads a model of 130 million parameters
    "2.4.6": {  # train
        *("memory-peaks", "memory-measure", "memory-figure"),
        *("train-replay", "forgetting", "switched-off", "forgetting-figure"),
    },
}
# Jumps: a lab, and the section that a student goes to after having run all above section 3.
JUMPS = {"2.4.1": 6, "2.4.2": 6, "2.4.3": 6, "2.4.4": 8, "2.4.5": 4, "2.4.6": 8}


AGAIN = "-again"


# ---- each cell twice, and a second kernel ---------------------------------------------------------------------------


def run_twice(lab: str, folder) -> notebooks.Run:
    """Execute a solved lab, with shorter runs, in which each code cell stands twice: the copy's id ends with AGAIN."""
    notebook = notebooks.solve(lab)
    notebooks.change_settings(notebook, "tiny", NUMBERS[lab])
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and cell.id != "parameters" and cell.id not in ONCE.get(lab, ()):
            cells.append(copy.deepcopy(cell))
            cells[-1].id += AGAIN
    notebook.cells = cells
    with patch.object(notebooks.run, "solve", lambda name: notebook):
        return notebooks.execute(lab, folder=folder, kernel=warm.forked())


@pytest.fixture(scope="module")
def worker(no_network, tmp_path_factory):
    """A process without network that has imported what labs import."""
    with warm.process({**no_network, "COURSE_BUILD": str(tmp_path_factory.mktemp("build"))}) as worker:
        yield worker


@pytest.fixture(scope="module")
def twice(worker, tmp_path_factory) -> Callable[[str], nbformat.NotebookNode]:
    """A lab as `run_twice` left it. It runs when a test asks for it first."""
    folder = tmp_path_factory.mktemp("twice")

    @functools.cache
    def executed(lab: str):
        done = worker.submit(run_twice, lab, folder).result()
        assert done.error == "" and done.passed == done.checks
        # On a busy machine a kernel sends one print in two parts: they are one output.
        return CoalesceStreamsPreprocessor().preprocess(nbformat.read(done.notebook, as_version=4), {})[0]

    return executed


def stream(cell, name: str) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == name)


def printed(cell) -> str:
    """What a cell printed, and a second run has to print too."""
    return "" if "nbval-ignore-output" in cell.metadata.get("tags", []) else stream(cell, "stdout")


@EACH
def test_a_cell_that_runs_twice_raises_nothing_and_prints_the_same(lab, twice):
    cells = {cell.id: cell for cell in twice(lab).cells if cell.cell_type == "code"}
    pairs = {name: (cell, cells[name + AGAIN]) for name, cell in cells.items() if name + AGAIN in cells}
    texts = {name: (printed(one), printed(two)) for name, (one, two) in pairs.items()}
    assert {name: text for name, text in texts.items() if text[0] != text[1]} == {}
    assert {cell.id: text for cell in cells.values() if (text := stream(cell, "stderr"))} == {}
    assert len(pairs) > 30 and sum(bool(text) for text, _ in texts.values()) > 15


# The bytes of an image stand twice in an output, and nbval leaves images out: what a figure shows is compared instead.
SANITIZE = '[image]\nregex: data:image/png;base64,[^"]+\nreplace: IMAGE\n'


def unsolved(lab: str, notebook) -> list:
    """The cells of a solved lab that was run twice as those of one that nobody has solved, each once."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if not cell.id.endswith(AGAIN)]
    notebooks.unsolved(lab, notebook)  # what `make site` shows
    return notebook


@pytest.fixture(scope="module")
def second(no_network, tmp_path_factory):
    """A process like `worker` to which nothing that the first one saved can help, and in which Mamba's kernels crash.

    Those on a CPU tensor do, as those that `make kernels` builds: a lab whose CPU models reached them would fail.
    """
    stubs = stub_kernels(tmp_path_factory.mktemp("kernels"))
    env = {**no_network, "COURSE_BUILD": str(tmp_path_factory.mktemp("build"))}
    with contextlib.ExitStack() as until_the_end:
        with patch.object(sys, "path", [str(stubs), *sys.path]):  # which it takes over at its start
            second = until_the_end.enter_context(warm.process(env))
        yield second


def nbval(notebook) -> str:
    """What nbval prints of a notebook, on a kernel that is a fork of this process."""
    from nbval import kernel

    os.chdir(files.LABS)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        nbformat.write(notebook, path := f"{folder}/lab.ipynb")
        Path(f"{folder}/sanitize").write_text(SANITIZE)
        options = ["--nbval", f"--nbval-sanitize-with={folder}/sanitize", "--nbval-cell-timeout=300", "--capture=no"]
        options += ["-p", "no:cacheprovider", "-v", "-c", os.devnull, f"--rootdir={folder}"]
        with patch.object(kernel, "KernelManager", warm.forked(kernel.KernelManager)):
            pytest.main([*options, path])
    return said.getvalue()


@pytest.fixture(scope="module")
def compared(twice, second) -> Callable[[str], tuple[list[str], str]]:
    """What nbval says of a lab that nobody has solved, on a second kernel, against what the solved one printed.

    A check says "not attempted yet" and hands over the course's own version, so everything else has to come out the
    same. One cell stands twice: the copy claims another number than the cell prints.

    Returns: the ids of the code cells, and what nbval printed.
    """

    @functools.cache
    def run(lab: str) -> tuple[list[str], str]:
        notebook = unsolved(lab, twice(lab))
        position = next(i for i, c in enumerate(notebook.cells) if c.id == "first-figure-numbers")
        changed = copy.deepcopy(notebook.cells[position])
        changed.id = "changed"
        (output,) = changed.outputs
        output.text = re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), output.text, count=1)
        notebook.cells.insert(position + 1, changed)
        said = second.submit(warm.in_a_fork, nbval, notebook).result()
        return [cell.id for cell in notebook.cells if cell.cell_type == "code"], said

    return run


def verdicts(said: str) -> list[str]:
    """nbval's verdict on each code cell, in order."""
    return re.findall(r"^\S+::Cell \d+ ([A-Z]+)", said, flags=re.MULTILINE)


@EACH
def test_an_unsolved_lab_runs_to_its_end_and_a_second_kernel_gives_the_outputs_of_the_solved_one(compared, lab):
    cells, said = compared(lab)
    found = zip(cells, verdicts(said), strict=True)
    assert {name: verdict for name, verdict in found if verdict != "PASSED"} == {"changed": "FAILED"}, said[-6000:]
    assert "1 failed" in said  # a negative control: the copy of a cell, with one stored number changed


# ---- sections skipped -----------------------------------------------------------------------------------------------


def run(shell, cell) -> tuple[str, str, str]:
    """What a cell prints, what it says of a name that is not there and on stderr, and its error."""
    from IPython.utils.capture import capture_output

    with capture_output() as came:
        result = shell.run_cell(cell.source)
    said = [output.data["text/plain"] for output in came.outputs if "needs" in output.metadata]
    error = result.error_before_exec or result.error_in_exec
    ignored = "nbval-ignore-output" in cell.metadata.get("tags", [])
    return "" if ignored else came.stdout, "".join(said) + came.stderr, repr(error) if error else ""


def jump(lab: str, to: int) -> tuple[str, dict[str, tuple]]:
    """In a shell, run all above section 3, then section `to`; do what the first sentence says; run the section again.

    Returns: the sentence, and what came of each cell of the section at the end.
    """
    shell = warm.shell()
    notebook = notebooks.solve(lab)
    notebooks.change_settings(notebook, "tiny", NUMBERS[lab])
    sections = {cell.id: cell.section for cell in absent.cells_of(notebook)}
    kept = sections.keys() - ONCE.get(lab, set())
    cells = [(sections[cell.id], cell) for cell in notebook.cells if cell.id in kept]
    number = {section: int(found[1]) for section, _ in cells if (found := re.match(r"section (\d+)", section))}
    for section, cell in cells:
        if number.get(section, 0) < 3:
            run(shell, cell)
    asked = [cell for section, cell in cells if number.get(section) == to]
    said = next(came[1] for cell in asked if (came := run(shell, cell))[2])
    for section, cell in cells:
        if section in said:
            run(shell, cell)
    return said, {cell.id: run(shell, cell) for cell in asked}


@pytest.mark.parametrize("lab, to", JUMPS.items())
def test_after_a_jump_one_sentence_names_the_sections_to_run_first_and_then_all_is_as_in_order(lab, to, worker, twice):
    said, cells = worker.submit(warm.in_a_fork, jump, lab, to).result()
    assert re.fullmatch(r"\S*`\w+` is not there yet\. Run first: section \d \(.*\)\.\S*", said), said
    assert {name: error for name, (*_, error) in cells.items() if error} == {}
    before = {cell.id: printed(cell) for cell in twice(lab).cells if cell.cell_type == "code"}
    texts = {name: (text, before[name]) for name, (text, *_) in cells.items()}
    assert {name: text for name, text in texts.items() if verdict(text[0]) != verdict(text[1])} == {}


def verdict(text: str) -> str:
    """What a cell printed, without how many exercises were solved before it: after a jump they are others."""
    return re.sub(r"\n +\d+ of \d+ solved in this lab\.", "", text)


# ---- names that pass between cells ----------------------------------------------------------------------------------


def makers(cells: list[absent.LabCell], name: str) -> list[absent.LabCell]:
    return [cell for cell in cells if name in cell.binds]


@EACH
def test_a_section_reads_of_another_only_what_that_one_alone_binds(lab):
    """So after a jump a name is either the right one or not there, and there is no stale one of an earlier section."""
    cells = absent.cells_of(notebooks.solve(lab))
    passing, unclear = 0, []
    for number, cell in enumerate(cells):
        for name in cell.reads:
            before = makers(cells[: number + 1], name)
            own = [maker for maker in before if maker.section == cell.section and maker is not cell]
            if before and not own:
                passing += 1
                if len({maker.section for maker in makers(cells, name)}) > 1:
                    unclear.append((cell.id, name, [maker.id for maker in makers(cells, name)]))
    assert unclear == [] and passing > 50


@EACH
def test_a_name_that_a_cell_reads_is_bound_before(lab):
    cells = absent.cells_of(notebooks.solve(lab))
    late = [
        (cell.id, name)
        for number, cell in enumerate(cells)
        for name in cell.reads
        if makers(cells, name) and not makers(cells[: number + 1], name)
    ]
    assert late == []


@EACH
def test_no_function_reads_a_global_that_a_later_cell_binds_anew(lab):
    notebook = notebooks.solve(lab)
    cells, source = absent.cells_of(notebook), {cell.id: cell.source for cell in notebook.cells}
    functions, anew = 0, []
    for number, cell in enumerate(cells):
        for node in ast.parse(source[cell.id]).body:
            if isinstance(node, ast.FunctionDef):
                functions += 1
                reads, _ = absent.reads_and_binds(compile(ast.unparse(node), "<function>", "exec"))
                later = {maker.id: name for name in reads for maker in makers(cells[number + 1 :], name)}
                anew += [(cell.id, maker, name) for maker, name in later.items() if not maker.startswith("check-")]
    assert anew == [] and functions > 5
