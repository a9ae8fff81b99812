"""What every lab keeps to: one source, nothing derived in it, exercises and answers that match, cells one can read."""

import ast
import itertools
import re
import statistics

import nbformat
import pytest

from shared import files, notebooks
from shared.notebooks import __main__ as command

EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))
TAGS = {"parameters", "exercise", "check", "nbval-ignore-output", "hide-input"}
FOLDED = {"source_hidden": True}  # what JupyterLab reads; the pages read the tag `hide-input`
# What a cell asks a reader to hold: its expressions and statements.
MEDIAN, NINE_OF_TEN, MOST = 50, 110, 160
NUMBERS = {  # what makes a lab long
    "2.4.1": ["contexts", "timing", "recall_steps"],
    "2.4.2": ["lengths", "copying_steps", "induction_steps"],
    "2.4.3": ["permutations", "subsets"],
    "2.4.4": ["steps"],
    "2.4.5": ["strides", "passage", "story", "contexts", "batches", "timing"],
    "2.4.6": ["steps", "examples"],
}


README = (files.ROOT / "README.md").read_text(encoding="utf-8")
FIRST_WEEK = (files.ROOT / "docs" / "first-week.md").read_text(encoding="utf-8")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def interface(source: str) -> list:
    """Names, arguments, annotations and docstrings of the functions and classes at the top of a cell."""
    nodes = [n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return [(type(n).__name__, n.name, *_signature(n), ast.get_docstring(n)) for n in nodes]


def _signature(node) -> list[str]:
    if not isinstance(node, ast.FunctionDef):
        return []
    return [ast.dump(node.args), ast.dump(node.returns) if node.returns else ""]


@EACH
def test_the_notebook_is_valid_and_holds_nothing_derived(lab):
    notebook = notebooks.read(lab)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec"}
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
        assert set(cell.metadata) <= {"tags", "jupyter"} and set(cell.metadata.get("tags", [])) <= TAGS, cell.id
        folded = "hide-input" in cell.metadata.get("tags", [])
        assert cell.metadata.get("jupyter") == (FOLDED if folded else None), cell.id


@EACH
def test_cell_ids_are_unique_and_say_what_the_cell_is(lab):
    ids = [cell.id for cell in notebooks.read(lab).cells]
    assert len(set(ids)) == len(ids)
    for cell_id in ids:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell_id), cell_id
        assert not re.fullmatch(r"[0-9a-f]{8}(-.*)?", cell_id), f"{cell_id} looks generated"


@EACH
def test_exercises_and_answers_match_one_to_one(lab):
    stubs = {cell.id: cell.source for cell in notebooks.tagged(notebooks.read(lab), "exercise")}
    answers = notebooks.answers(lab)
    assert set(stubs) == set(answers) and 5 <= len(stubs) <= 9
    for cell_id, stub in stubs.items():
        assert interface(stub) == interface(answers[cell_id]) != [], cell_id
        assert "raise NotImplementedError" in stub and "NotImplementedError" not in answers[cell_id]


@EACH
def test_each_exercise_is_followed_by_its_check(lab):
    cells = notebooks.read(lab).cells
    for cell, after in itertools.pairwise(cells):
        if "exercise" in cell.metadata.get("tags", []):
            name = interface(cell.source)[0][1]
            # With its import: after a restart, the exercise's cell and this one are enough.
            imported = f"from shared.checks import lab_{lab.replace('.', '_')} as check"
            assert after.source == f"{imported}\n\n{name} = check.{name}({name})"
            assert after.metadata.tags == ["check"]


@EACH
def test_no_answer_stands_in_the_notebook(lab):
    text = "\n".join(cell.source for cell in notebooks.read(lab).cells)
    for cell_id, answer in notebooks.answers(lab).items():
        for function in ast.parse(answer).body:
            body = function.body[1:] if ast.get_docstring(function) else function.body
            for statement in body:
                source = ast.unparse(statement)
                assert len(source) < 20 or source not in text, f"{cell_id}: {source}"


@EACH
def test_solving_changes_the_exercise_cells_and_nothing_else(lab):
    for before, after in zip(notebooks.read(lab).cells, notebooks.solve(lab).cells, strict=True):
        assert (before.source != after.source) == ("exercise" in before.metadata.get("tags", [])), before.id


@EACH
def test_parameters_are_literals(lab):
    (cell,) = notebooks.tagged(notebooks.read(lab), "parameters")
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


@EACH
def test_code_cells_are_short(lab):
    lengths = [len(cell.source.splitlines()) for cell in code(notebooks.read(lab))]
    assert max(lengths) <= 40 and statistics.median(lengths) <= 12


@EACH
def test_teaching_cells_have_one_idea(lab):
    """Counted without the cells of exercises, checks and parameters."""
    teaching = [c for c in code(notebooks.read(lab)) if not {"exercise", "check", "parameters"} & set(tags(c))]
    sizes = sorted(
        sum(isinstance(node, (ast.expr, ast.stmt)) for node in ast.walk(ast.parse(cell.source))) for cell in teaching
    )
    assert statistics.median(sizes) <= MEDIAN
    assert sizes[len(sizes) * 9 // 10] <= NINE_OF_TEN and sizes[-1] <= MOST


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


@EACH
def test_a_lab_says_where_a_reader_is_and_how_long_its_exercises_take(lab):
    cells = {cell.id: cell.source for cell in prose(notebooks.read(lab))}
    text = "\n".join(cells.values())
    exercises = re.findall(r"\*\*Exercise (\d) of (\d) · (\d+) minutes\.\*\*", text)
    count = len(notebooks.answers(lab))
    assert [(int(n), int(of)) for n, of, _ in exercises] == [(n, count) for n in range(1, count + 1)]
    minutes = sum(int(m) for *_, m in exercises)
    assert f"{count} exercises, about {minutes} minutes" in cells["needs"] and "Before this lab:" in cells["needs"]
    assert re.search(rf"^\| {lab} .* \| {count} exercises, {minutes} minutes \|$", README, re.MULTILINE)
    each = [int(m) for m in re.findall(r"^\*Section .* · about (\d+) minutes\*", text, re.MULTILINE)]
    row = rf"^\| {lab} \| {sum(each)} minutes \| {minutes} minutes \| sections (.*) \|$"
    split = re.search(row, FIRST_WEEK, re.MULTILINE)[1].split("; ")
    parts = [[int(n) for n in re.findall(r"\d+", part)] for part in split]
    assert [n for part in parts for n in range(part[0], part[-1] + 1)] == list(range(1, len(each) + 1))
    assert max(sum(each[part[0] - 1 : part[-1]]) for part in parts) <= 90
    assert "at most 90 of these minutes" in FIRST_WEEK
    sections = re.findall(r"^## (\d+) · ", text, re.MULTILINE)
    places = re.findall(r"^\*Section (\d+) of (\d+) · ", text, re.MULTILINE)
    assert places == [(n, sections[-1]) for n in sections]
    assert "**At the end you can say**" in cells["title"]


@EACH
def test_a_lab_ends_with_questions_whose_answers_are_folded_and_two_challenges(lab):
    cells = {cell.id: cell.source for cell in prose(notebooks.read(lab))}
    assert 3 <= cells["questions"].count("<details><summary>") <= 5
    assert (
        len(re.findall(r"^- \*[^*]+\.\* .*(Target|\d)", cells["challenges"], re.MULTILINE)) == 2
    )  # each with a figure


@EACH
def test_formulas_are_latex_that_the_pages_can_show(lab):
    """Found and turned into MathML by the programs that make the pages; what is left has no dollar in it."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    markdown = MarkdownIt("commonmark").use(dollarmath_plugin, double_inline=True)
    for cell in prose(notebooks.read(lab)):
        for token in (part for block in markdown.parse(cell.source) for part in [block, *(block.children or [])]):
            if token.type.startswith("math"):
                assert "<math" in convert(token.content), cell.id
            elif token.type == "text":
                assert "$" not in token.content, cell.id


@EACH
def test_every_heading_is_followed_by_something_and_every_plot_by_a_sentence(lab):
    cells = notebooks.read(lab).cells
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "markdown" and cell.source.splitlines()[-1].startswith("#"):
            assert after is not None and not after.source.startswith("#"), cell.id
        if "plots.show(" in cell.source:
            position = cells.index(cell)
            assert any(c.cell_type == "markdown" for c in cells[position + 1 : position + 3]), cell.id


@EACH
def test_files_and_sections_that_a_lab_sends_to_exist(lab):
    text = "\n".join(cell.source for cell in prose(notebooks.read(lab)))
    assert "README's" not in text  # what is long stands in docs/
    for name in re.findall(r"`((?:data|docs|labs|scripts|shared)/[\w./-]+)`", text):
        assert (files.ROOT / name).exists(), name
    for section, name in re.findall(r'"([^"]+)" in `(docs/[\w-]+\.md)`', text):
        assert re.search(f"^#+ {section}$", (files.ROOT / name).read_text(encoding="utf-8"), re.MULTILINE), section


@EACH
def test_figures_come_early_and_have_alternative_text(lab):
    cells = notebooks.read(lab).cells
    first = next(i for i, cell in enumerate(cells) if "plots.show(" in cell.source)
    assert first <= 12
    for cell in code(notebooks.read(lab)):
        assert "plt.show" not in cell.source
        for call in re.findall(r'plots\.show\(\s*fig, f?"([^"]*)"', cell.source):
            assert len(call) > 40, cell.id
        assert cell.source.count("plots.show(") == len(re.findall(r'plots\.show\(\s*fig, f?"', cell.source))


@EACH
def test_prose_is_short_and_needs_nothing_from_outside(lab):
    for cell in prose(notebooks.read(lab)):
        words = [w for line in cell.source.splitlines() if not line.startswith(("|", "- ", "#")) for w in line.split()]
        assert len(words) <= 90, f"{cell.id}: {len(words)} words"
        assert "http://" not in cell.source, cell.id
        assert "!" not in re.sub(r"`[^`]*`|!\[", "", cell.source), f"{cell.id}: exclamation mark"
        assert not re.search(r"[\U0001F300-\U0001FAFF]", cell.source), cell.id


@EACH
def test_solutions_hold_one_block_per_exercise_in_the_order_of_the_lab(lab):
    stubs = [cell.id for cell in notebooks.tagged(notebooks.read(lab), "exercise")]
    assert list(notebooks.answers(lab)) == stubs


def test_nothing_in_shared_imports_from_labs():
    for path in (files.ROOT / "shared").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) labs", path.read_text(encoding="utf-8"), flags=re.MULTILINE), path


def test_an_unknown_lab_is_one_clear_sentence(capsys):
    assert command.main(["run", "--lab", "9.9"]) == 1
    said = capsys.readouterr().err
    assert "There is no lab '9.9'" in said and "2.4.1" in said and "Traceback" not in said


def test_an_unknown_scale_is_one_clear_sentence(capsys):
    assert command.main(["run", "--lab", "2.4.1", "--scale", "huge"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_parameter_is_an_error_and_not_a_warning(tmp_path):
    with pytest.raises(ValueError, match="no parameter SPEED"):
        notebooks.execute("2.4.1", folder=tmp_path, SPEED=3)


@pytest.mark.parametrize("scale", notebooks.SCALES)
@EACH
def test_numbers_of_a_scale_can_be_changed_in_a_copy_before_anything_reads_them(lab, scale):
    notebook, names = notebooks.read(lab), NUMBERS[lab]
    scope = {"SCALE": scale}
    notebooks.change_settings(notebook, scale, dict.fromkeys(names, "changed"))
    cells = {cell.id: cell.source for cell in notebook.cells}
    exec(cells["parameters"] + f"\nSCALE = {scale!r}\n" + cells.get("imports", ""), scope)
    exec(cells["settings"], scope)
    assert [scope["settings"][name] for name in names] == ["changed"] * len(names)
    other = scope["SETTINGS"]["full" if scale == "tiny" else "tiny"]
    assert "changed" not in [other[name] for name in names]


@EACH
def test_a_number_that_a_scale_does_not_have_is_one_clear_sentence(lab):
    with pytest.raises(ValueError, match=r"^The settings of scale tiny have no speed; they have .*\.$"):
        notebooks.change_settings(notebooks.read(lab), "tiny", {"speed": 3})


def test_a_number_is_looked_for_in_its_scale_and_at_its_place():
    notebook = notebooks.read("2.4.5")
    with pytest.raises(ValueError, match="no new_tokens;"):  # one of the settings of `timing`, not of the lab
        notebooks.change_settings(notebook, "tiny", {"new_tokens": 3})
    with pytest.raises(ValueError, match="no books;"):
        notebooks.change_settings(notebook, "tiny", {"books": 3})
    notebooks.change_settings(notebook, "full", {"books": 3})


@pytest.mark.slow
def test_numbers_reach_what_is_executed_and_not_the_lab(tmp_path, monkeypatch):
    notebook, before = notebooks.solve("2.4.6"), notebooks.path_of("2.4.6").read_bytes()
    first = [cell for cell in notebook.cells if cell.id in ("parameters", "imports", "settings")]
    notebook.cells = [*first, nbformat.v4.new_code_cell("print(settings)")]
    monkeypatch.setattr(notebooks.run, "solve", lambda lab: notebook)
    run = notebooks.execute("2.4.6", folder=tmp_path, numbers={"steps": 7})
    assert run.error == ""
    settings = ast.literal_eval(notebooks.text(nbformat.read(run.notebook, as_version=4).cells[-1]))
    assert settings["steps"] == 7 and settings["batch"] > 7
    assert notebooks.path_of("2.4.6").read_bytes() == before


def test_a_notebook_without_a_parameters_cell_is_an_error(tmp_path, monkeypatch):
    notebook = notebooks.read("2.4.1")
    for cell in notebooks.tagged(notebook, "parameters"):
        cell.metadata["tags"] = []
    monkeypatch.setattr(notebooks.run, "solve", lambda lab: notebook)
    with pytest.raises(ValueError, match="needs exactly one"):
        notebooks.execute("2.4.1", folder=tmp_path)


def test_an_answer_without_an_exercise_is_an_error(monkeypatch):
    monkeypatch.setattr(notebooks.source, "answers", lambda lab: {"ex-of-another-lab": "x = 1"})
    with pytest.raises(ValueError, match="do not match"):
        notebooks.solve("2.4.1")
