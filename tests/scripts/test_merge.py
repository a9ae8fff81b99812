"""An update of a lab that a student has written into: what each side did is there afterwards (scripts/merge.py)."""

import copy
import json
import random

import merge
import nbformat
import pytest

from shared import notebooks


def one(cells: list, cell_id: str) -> dict:
    (cell,) = [cell for cell in cells if cell.get("id") == cell_id]
    return cell


def cell(cell_id: str, source: str, kind: str = "code", *tags: str) -> dict:
    made = {"cell_type": kind, "id": cell_id, "metadata": {"tags": list(tags)} if tags else {}, "source": source}
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def notebook(*cells: dict, minor: int = 5) -> dict:
    return {"cells": copy.deepcopy(list(cells)), "metadata": {}, "nbformat": 4, "nbformat_minor": minor}


STUB = "def area(x):\n    raise NotImplementedError"
WORK = "def area(x):\n    return x * x"
SMALL = notebook(
    cell("title", "# A lab\n\nAbout areas.", "markdown"),
    cell("settings", "SETTINGS = {'side': 2}"),
    cell("ex-area", STUB, "code", "exercise"),
    cell("check-area", "from shared.checks import lab as check\narea = check.area(area)", "code", "check"),
    cell("read", "The area grows with the square.", "markdown"),
)


def changed(base: dict, **sources: str) -> dict:
    """The notebook with other sources in some cells; `_` in a name stands for `-`."""
    new = copy.deepcopy(base)
    for name, source in sources.items():
        one(new["cells"], name.replace("_", "-"))["source"] = source
    return new


def merged(base: dict, new: dict, mine: dict) -> list[dict]:
    """The cells of the merged notebook, which is a valid one; merging again changes nothing."""
    came, _ = merge.merge(base, new, mine)
    nbformat.validate(nbformat.from_dict(came))
    assert merge.merge(new, new, came)[0] == came
    return came["cells"]


def ids(cells: list[dict]) -> list[str]:
    return [cell["id"] for cell in cells]


# ---- cell by cell ----------------------------------------------------------------------------------------------------


def test_what_one_side_alone_changed_is_taken_from_it():
    mine = changed(SMALL, settings="SETTINGS = {'side': 3}", ex_area=WORK)
    new = changed(SMALL, title="# A better title", read="It grows fast.")
    cells = merged(SMALL, new, mine)
    assert ids(cells) == ids(SMALL["cells"])
    assert [cell["source"] for cell in cells[:3]] == ["# A better title", "SETTINGS = {'side': 3}", WORK]
    assert cells[4]["source"] == "It grows fast."


def test_an_exercise_keeps_the_work_and_the_new_stub_stands_above_it():
    stub = "def area(x, y):\n    raise NotImplementedError"
    cells = merged(SMALL, changed(SMALL, ex_area=stub), changed(SMALL, ex_area=WORK))
    place = ids(cells).index("ex-area")
    assert cells[place]["source"] == WORK and cells[place]["metadata"]["tags"] == ["exercise"]
    assert ids(cells)[place - 1 : place + 2] == ["new-ex-area", "ex-area", "check-area"], "its check is directly below"
    assert stub in cells[place - 1]["source"] and cells[place - 1]["cell_type"] == "markdown"
    assert merge.merge(SMALL, changed(SMALL, ex_area=stub), changed(SMALL, ex_area=WORK))[1]["stub"] == ["ex-area"]


def test_a_stub_that_nobody_worked_on_is_the_new_one():
    stub = "def area(x, y):\n    raise NotImplementedError"
    for untouched in (STUB, STUB + "\n", "", "\n"):
        cells = merged(SMALL, changed(SMALL, ex_area=stub), changed(SMALL, ex_area=untouched))
        assert ids(cells) == ids(SMALL["cells"]) and one(cells, "ex-area")["source"] == stub


@pytest.mark.parametrize("name, kind", [("settings", "raw"), ("read", "markdown"), ("check-area", "raw")])
def test_of_a_cell_that_both_changed_the_students_lines_stand_below_the_courses(name, kind):
    old = one(SMALL["cells"], name)["source"]
    mine, new = changed(SMALL, **{name: old + "\nmine = 1"}), changed(SMALL, **{name: old + "\ntheirs = 1"})
    cells = merged(SMALL, new, mine)
    place = ids(cells).index(name)
    below = cells[place + 1]
    assert cells[place]["source"] == old + "\ntheirs = 1"
    assert below["cell_type"] == kind and below["source"].endswith("\nmine = 1") and old not in below["source"]


def test_lines_that_a_student_only_took_out_need_no_cell():
    both = changed(SMALL, title="# A lab")
    cells = merged(SMALL, changed(SMALL, title="# A lab\n\nOn areas."), both)
    assert ids(cells) == ids(SMALL["cells"]) and cells[0]["source"] == "# A lab\n\nOn areas."


def test_what_a_student_added_stays_below_its_neighbour_also_where_that_moved_or_went():
    mine = copy.deepcopy(SMALL)
    mine["cells"].insert(0, cell("a", "top = 1"))
    mine["cells"].insert(3, cell("b", "after_settings = 1"))
    mine["cells"].append(cell("c", "end = 1"))
    new = notebook(*(SMALL["cells"][place] for place in (0, 2, 3, 1)))
    assert ids(merged(SMALL, new, mine)) == ["a", "title", "ex-area", "check-area", "c", "settings", "b"]


def test_what_a_student_wrote_into_a_cell_that_went_stays_and_is_no_exercise_any_more():
    mine = changed(SMALL, ex_area=WORK, check_area="area = check.area(area)\nprint(1)", settings="SETTINGS = {}")
    cells = merged(SMALL, notebook(SMALL["cells"][0]), mine)
    assert ids(cells) == ["title", "mine-settings", "mine-ex-area", "mine-check-area"]
    assert one(cells, "mine-ex-area")["source"] == WORK
    assert not any(cell["metadata"].get("tags") for cell in cells)


def test_of_what_a_student_deleted_exercises_checks_and_what_is_new_in_it_come_back():
    mine = notebook(SMALL["cells"][0])
    assert ids(merged(SMALL, changed(SMALL, title="# New"), mine)) == ["title", "ex-area", "check-area"]
    assert ids(merged(SMALL, changed(SMALL, read="New"), mine)) == ["title", "ex-area", "check-area", "read"]
    assert merge.merge(SMALL, changed(SMALL, read="New"), mine)[1]["back"] == ["ex-area", "check-area", "read"]


# ---- files that other programs wrote ---------------------------------------------------------------------------------


def test_work_is_found_again_where_a_program_left_out_or_renamed_the_ids():
    new = changed(SMALL, title="# A better title", read="It grows fast.")
    for rename in (lambda place: {}, lambda place: {"id": f"x{place}"}, lambda place: {"id": "same"}):
        mine = changed(SMALL, ex_area=WORK, settings="SETTINGS = {'side': 3}")
        for place, one_cell in enumerate(mine["cells"]):
            del one_cell["id"]
            one_cell["metadata"] = {}
            one_cell.update(rename(place))
        mine["nbformat_minor"] = 4
        cells = merged(SMALL, new, mine)
        assert ids(cells) == ids(SMALL["cells"])
        assert cells[1]["source"] == "SETTINGS = {'side': 3}" and cells[2]["source"] == WORK
        assert cells[0]["source"] == "# A better title" and cells[2]["metadata"] == {"tags": ["exercise"]}


def test_the_copy_of_a_stub_does_not_take_the_place_of_the_work():
    for copied in ({"id": "x"}, {"id": "ex-area"}):
        for place in (2, 3):
            mine = changed(SMALL, ex_area=WORK)
            mine["cells"].insert(place, {**cell("x", STUB, "code", "exercise"), **copied})
            assert one(merged(SMALL, changed(SMALL, title="# New"), mine), "ex-area")["source"] == WORK


def test_the_work_is_where_the_function_is_not_where_the_id_is():
    mine = changed(SMALL, ex_area="    return x * x")
    mine["cells"].insert(2, cell("first-half", "def area(x):\n    x = float(x)"))
    cells = merged(SMALL, changed(SMALL, title="# New"), mine)
    assert one(cells, "ex-area")["source"] == "def area(x):\n    x = float(x)"
    assert cells[ids(cells).index("ex-area") + 1]["source"] == "    return x * x"


def test_outputs_stay_with_the_source_that_made_them():
    shown = {"output_type": "stream", "name": "stdout", "text": ["4\n"]}
    mine = changed(SMALL, ex_area=WORK)
    for name in ("settings", "ex-area", "check-area"):
        one(mine["cells"], name).update(outputs=[shown], execution_count=3)
    cells = merged(SMALL, changed(SMALL, settings="SETTINGS = {}"), mine)
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"] == [[], [shown], [shown]]


def test_line_ends_of_windows_are_no_change():
    mine = copy.deepcopy(SMALL)
    for one_cell in mine["cells"]:
        one_cell["source"] = one_cell["source"].replace("\n", "\r\n").splitlines(keepends=True)
    new = changed(SMALL, title="# New", ex_area="def area(x, y):\n    raise NotImplementedError")
    assert merged(SMALL, new, mine) == new["cells"]


def test_a_picture_in_the_students_lines_comes_along():
    mine = changed(SMALL, read="The area grows with the square.\n![me.png](attachment:me.png)")
    one(mine["cells"], "read")["attachments"] = {"me.png": {"image/png": "aGk="}}
    cells = merged(SMALL, changed(SMALL, read="It grows fast."), mine)
    assert one(cells, "mine-read")["attachments"] == {"me.png": {"image/png": "aGk="}}


# ---- whatever both sides did -----------------------------------------------------------------------------------------

PAIRS = 500
BOTH = ("edit", "edit a line", "add", "delete", "move", "rename id", "metadata")
STUDENTS = (
    *BOTH,
    "solve",
    "solve",
    "split",
    "join",
    "duplicate",
    "twice",
    "lose ids",
    "run",
    "retype",
    "blank",
    "crlf",
)
COURSE = (*BOTH, "edit", "new stub", "new exercise", "remove exercise")


@pytest.fixture(scope="module")
def lab() -> dict:
    """The first cells of a lab of the course, as JSON has them."""
    whole = json.loads(notebooks.path_of("2.4.2").read_text(encoding="utf-8"))
    return {**whole, "cells": whole["cells"][:32]}


def do(what: str, who: str, notebook: dict, chance: random.Random) -> None:
    """One edit of a notebook. Lines that are written are like no other line."""
    cells = notebook["cells"]
    place = chance.randrange(len(cells))
    this = cells[place]
    line = f"{who} {chance.random()}"
    exercises = [cell for cell in cells if "exercise" in cell["metadata"].get("tags", [])]
    this["source"] = "".join(this["source"])
    lines = this["source"].split("\n")
    if what == "edit":
        this["source"] = f"{line}\n  {line} more"
    elif what == "edit a line":
        lines[chance.randrange(len(lines))] = line
        this["source"] = "\n".join(lines)
    elif what == "add":
        cells.insert(
            place, cell(f"{who}-{chance.random()}".replace(".", "-"), line, chance.choice(("code", "markdown", "raw")))
        )
    elif what == "delete" and len(cells) > 5:
        cells.pop(place)
    elif what == "move":
        cells.insert(chance.randrange(len(cells)), cells.pop(place))
    elif what == "rename id":
        this["id"] = f"renamed-{chance.random()}".replace(".", "-")
    elif what == "metadata":
        this["metadata"] = {**this["metadata"], who: chance.random()}
    elif what in ("solve", "new stub") and exercises:
        exercise = chance.choice(exercises)
        lines = "".join(exercise["source"]).split("\n")
        exercise["source"] = "\n".join([*lines[: chance.randrange(len(lines))], f"    {line}"])
    elif what == "split" and len(lines) > 1:
        cut = chance.randrange(1, len(lines))
        halves = [{**this, "source": "\n".join(half)} for half in (lines[:cut], lines[cut:])]
        halves[chance.randrange(2)]["id"] = f"half-{chance.random()}".replace(".", "-")
        cells[place : place + 1] = halves
    elif what == "join" and place:
        above = cells[place - 1]
        above["source"] = "".join(above["source"]) + "\n" + this["source"]
        cells.pop(place)
    elif what in ("duplicate", "twice"):  # with an id of its own, and without
        own = {"id": f"copy-{chance.random()}".replace(".", "-")} if what == "duplicate" else {}
        cells.insert(chance.randrange(len(cells)), {**copy.deepcopy(this), **own})
    elif what == "lose ids":
        notebook["nbformat_minor"] = chance.randrange(5)
        for one_cell in cells:
            one_cell.pop("id", None)
            one_cell["metadata"] = chance.choice(({}, one_cell["metadata"]))
    elif what == "run" and this["cell_type"] == "code":
        this.update(outputs=[{"output_type": "stream", "name": "stdout", "text": line}], execution_count=place)
    elif what == "retype":
        this["cell_type"] = "markdown" if this["cell_type"] == "code" else "code"
    elif what == "blank":
        this["source"] = ""
    elif what == "crlf":
        this["source"] = this["source"].replace("\n", "\r\n")
    elif what == "new exercise":
        name = f"new{place}-{len(cells)}"
        exercise = cell(f"ex-{name}", f"def {name.replace('-', '_')}():\n    {line}", "code", "exercise")
        cells[place:place] = [exercise, cell(f"check-{name}", f"print({line!r})", "code", "check")]
    elif what == "remove exercise" and exercises:
        cells.remove(chance.choice(exercises))


def lines_of(*cells: dict) -> set[str]:
    return {line.strip() for cell in cells for line in "".join(cell["source"]).splitlines()}


def source_of(cells: list[dict]) -> dict[str, str]:
    """id -> source of the cells that have an id."""
    return {cell["id"]: "".join(cell["source"]).strip() for cell in cells if "id" in cell}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_whatever_both_did_no_line_of_the_student_and_no_change_of_the_course_is_lost(lab, part):
    changes = 0
    for seed in range(part * PAIRS // 10, (part + 1) * PAIRS // 10):
        chance = random.Random(seed)
        new, mine = copy.deepcopy(lab), copy.deepcopy(lab)
        deeds = [(who, chance.choice(kinds)) for who, kinds in (("student", STUDENTS), ("course", COURSE)) * 6]
        for who, what in deeds[: chance.randrange(2, len(deeds))]:
            do(what, who, mine if who == "student" else new, chance)
        cells = merged(lab, new, mine)

        theirs = lines_of(*mine["cells"]) - lines_of(*lab["cells"])
        assert theirs <= lines_of(*cells), (seed, deeds)
        killed, _ = merge.merge(lab, new, {**mine, "cells": cells})  # when the file was written, and git not yet moved
        assert theirs <= lines_of(*killed["cells"]), (seed, deeds)

        old, course, came = source_of(lab["cells"]), source_of(new["cells"]), source_of(cells)
        students = source_of(mine["cells"])
        assert [cell_id for cell_id in course if cell_id in came] == [cell_id for cell_id in came if cell_id in course]
        for cell_id, source in course.items():
            here = cell_id in came and one(cells, cell_id)
            if old.get(cell_id) != source:
                changes += 1
                exercise = "exercise" in here["metadata"].get("tags", [])
                note = came.get(f"new-{cell_id}", "") if exercise and came[cell_id] != source else came[cell_id]
                assert source in note, (seed, cell_id)
            elif students.get(cell_id) == source:
                assert came[cell_id] == source, (seed, cell_id)
            if here:
                assert here["metadata"].get("tags") == one(new["cells"], cell_id)["metadata"].get("tags")
        for cell_id in set(old) - set(course):
            kept = "".join(map(str, students.values())).count(old[cell_id]) + ("lose ids" in str(deeds))
            assert cell_id not in came or kept != 1 or students.get(cell_id) != old[cell_id], (seed, cell_id)
    assert changes > 50
