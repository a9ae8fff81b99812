"""What a student does with cells: run one twice, skip sections, go back. The same comes out, or one sentence."""

import ast
import os
import re

import pytest
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
    "2.4.3": {"prompts": 30, "permutations": 49, "subsets": 2},
    "2.4.4": {"windows": 8, "steps": 8},
    "2.4.5": {
        "strides": (64, 48, 32),
        "passage": 1000,
        "story": 4000,
        "documents": 20,
        "contexts": (64, 128, 256),
        "batches": (1, 2, 4),
        "timing": {"new_tokens": 3, "repeats": 2, "warmup": 1},
    },
    "2.4.6": {"steps": 8, "examples": 64, "short_steps": 6},
}
SLOW = {
    "2.4.1": {"timeline", "timeline-picture", "timeline-figure"},  # loads a model of 130 million parameters
    "2.4.6": {
        *("memory-peaks", "memory-measure", "memory-figure"),  # trains eight million parameters
        *("train-replay", "forgetting", "switched-off", "forgetting-figure"),  # a third training
    },
}
# Jumps: a lab, and the section that a student goes to after having run all above section 3.
JUMPS = {"2.4.1": 6, "2.4.2": 6, "2.4.3": 6, "2.4.4": 8, "2.4.5": 4, "2.4.6": 8}


# ---- a lab in a shell of its own ------------------------------------------------------------------------------------


def shell_for(lab: str):
    """An IPython shell, and the code cells of a solved lab with shorter runs."""
    os.chdir(files.LABS)
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(colors="nocolor", config=config)
    notebook = notebooks.solve(lab)
    notebooks.change_settings(notebook, "tiny", NUMBERS[lab])
    sections = {cell.id: cell.section for cell in absent.cells_of(notebook)}
    cells = [cell for cell in notebook.cells if cell.id in sections and cell.id not in SLOW.get(lab, ())]
    return shell, [(sections[cell.id], cell) for cell in cells]


def run(shell, cell) -> tuple[str, str, str, str]:
    """What a cell prints, what it says of a name that is not there, what stands on stderr, and its error."""
    from IPython.utils.capture import capture_output

    with capture_output() as came:
        result = shell.run_cell(cell.source)
    said = [output.data["text/plain"] for output in came.outputs if "needs" in output.metadata]
    error = result.error_before_exec or result.error_in_exec
    printed = "" if "nbval-ignore-output" in cell.metadata.get("tags", []) else came.stdout
    return printed, "".join(said), came.stderr, repr(error) if error else ""


def twice(lab: str) -> dict[str, tuple]:
    """Each cell's id, and what came of its first and of its second run."""
    shell, cells = shell_for(lab)
    return {cell.id: (run(shell, cell), run(shell, cell)) for _, cell in cells}


def jump(lab: str, to: int) -> tuple[str, dict[str, tuple]]:
    """Run all above section 3, then section `to`; do what the first sentence says, then run the section again.

    Returns: the sentence, and what came of each cell of the section at the end.
    """
    shell, cells = shell_for(lab)
    number = {section: int(found[1]) for section, _ in cells if (found := re.match(r"section (\d+)", section))}
    for section, cell in cells:
        if number.get(section, 0) < 3:
            run(shell, cell)
    asked = [cell for section, cell in cells if number.get(section) == to]
    first = next(came for cell in asked if (came := run(shell, cell))[3])
    said = first[1] + first[2]
    for section, cell in cells:
        if section in said:
            run(shell, cell)
    return said, {cell.id: run(shell, cell) for cell in asked}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Calls a function in a new process, which has imported what labs import."""
    env = {**os.environ, "COURSE_BUILD": str(tmp_path_factory.mktemp("build")), "MPLBACKEND": "agg"}
    with warm.process(env) as worker:
        yield lambda function, *arguments: worker.submit(warm.in_a_fork, function, *arguments).result()


@pytest.fixture(scope="module")
def came(fresh) -> dict[str, dict]:
    """lab -> what came of its cells, run twice. A lab is run when a test asks for it."""

    class Labs(dict):
        def __missing__(self, lab):
            self[lab] = fresh(twice, lab)
            return self[lab]

    return Labs()


@pytest.mark.parametrize("lab", NUMBERS)
def test_a_cell_that_runs_twice_raises_nothing_and_prints_the_same(lab, came):
    cells = came[lab]
    assert {name: (one[3], two[3]) for name, (one, two) in cells.items() if one[3] or two[3]} == {}
    assert {name: (one[0], two[0]) for name, (one, two) in cells.items() if one[0] != two[0]} == {}
    assert {name: two[2] for name, (_, two) in cells.items() if re.search("Warning|Error", two[2])} == {}
    assert len(cells) > 30 and sum(bool(one[0]) for one, _ in cells.values()) > 15


@pytest.mark.parametrize("lab, to", JUMPS.items())
def test_after_a_jump_one_sentence_names_the_sections_to_run_first_and_then_all_is_as_in_order(lab, to, fresh, came):
    said, cells = fresh(jump, lab, to)
    assert re.fullmatch(r"\S*`\w+` is not there yet\. Run first: section \d \(.*\)\.\S*", said), said
    assert {name: error for name, (*_, error) in cells.items() if error} == {}
    texts = {name: (text, came[lab][name][0][0]) for name, (text, *_) in cells.items()}
    assert {name: text for name, (text, before) in texts.items() if verdict(text) != verdict(before)} == {}


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
