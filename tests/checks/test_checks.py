"""Every check accepts its answer, refuses known-wrong ones and names their mistake, and never crashes."""

import functools
import importlib
import time

import pytest

from shared import notebooks
from shared.checks import lab_2_4_1, lab_2_4_2, lab_2_4_3, lab_2_4_4, lab_2_4_5, lab_2_4_6
from shared.notebooks import notice

LABS = {
    "2.4.1": lab_2_4_1,
    "2.4.2": lab_2_4_2,
    "2.4.3": lab_2_4_3,
    "2.4.4": lab_2_4_4,
    "2.4.5": lab_2_4_5,
    "2.4.6": lab_2_4_6,
}
ANSWERS = [
    importlib.import_module(module.__name__.replace("shared.checks", "wrong_answers")) for module in LABS.values()
]
WRONG = [wrong for answers in ANSWERS for wrong in answers.WRONG]
RIGHT = {check: right for answers in ANSWERS for check, right in answers.RIGHT.items()}


def checks_of(module):
    return {f.cell_id: f for f in vars(module).values() if hasattr(f, "cell_id")}


ALL = [(lab, cell_id, check) for lab, module in LABS.items() for cell_id, check in checks_of(module).items()]
EACH = pytest.mark.parametrize(("lab", "cell_id", "check"), ALL, ids=[f"{lab}-{cell_id}" for lab, cell_id, _ in ALL])


def own(lab, check):
    """What the lab goes on with where an answer is not right."""
    return getattr(notebooks.solution(lab), check.__name__)


@functools.cache
def _answers(lab) -> dict:
    """The course's answers as a student's cells would define them: other objects than the course's own."""
    names = {"__name__": "__main__"}
    exec(compile(notebooks.solutions_path(lab).read_text(), f"<answers of {lab}>", "exec"), names)
    return names


def written(lab, check):
    """The course's answer, as if a student had written it."""
    return _answers(lab)[check.__name__]


def test_every_exercise_has_a_check_and_every_check_an_exercise():
    for lab in notebooks.labs():
        assert set(checks_of(LABS[lab])) == set(notebooks.answers(lab))


@EACH
def test_the_answer_passes_and_is_handed_back(lab, cell_id, check, capsys):
    answer = written(lab, check)
    start = time.process_time()  # of this process: other work on the machine does not count
    assert check(answer) is answer
    assert time.process_time() - start < 1
    assert notice.PASSED in capsys.readouterr().out


@EACH
def test_an_open_exercise_is_not_attempted_yet_and_the_course_goes_on(lab, cell_id, check, capsys):
    def stub(*args, **kwargs):
        raise NotImplementedError

    assert check(stub) is own(lab, check)
    said = capsys.readouterr().out
    assert "not attempted yet" in said and notice.PASSED not in said and notice.FAILED not in said


@EACH
@pytest.mark.parametrize("result", [None, 0, -1.0, "text", [], (1, 2, 3), float("nan"), {}], ids=repr)
def test_nonsense_is_refused_without_a_traceback(lab, cell_id, check, result, capsys):
    assert check(lambda *args, **kwargs: result) is own(lab, check)
    said = capsys.readouterr().out
    assert notice.FAILED in said and "Traceback" not in said


@EACH
def test_an_answer_that_raises_is_told_what_it_raised(lab, cell_id, check, capsys):
    def broken(*args, **kwargs):
        raise KeyError("layers")

    assert check(broken) is own(lab, check)
    assert "KeyError" in capsys.readouterr().out


@pytest.mark.parametrize(("check", "wrong", "named"), WRONG, ids=[f"{c.cell_id}: {n}" for c, _, n in WRONG])
def test_a_known_wrong_answer_is_refused_with_its_mistake_named(check, wrong, named, capsys):
    handed_back = check(wrong)
    said = capsys.readouterr().out
    assert notice.FAILED in said and named in said, said
    assert handed_back is not wrong


def test_every_check_refuses_at_least_one_known_wrong_answer():
    refused = {check.cell_id for check, _, _ in WRONG}
    assert refused == {cell_id for _, cell_id, _ in ALL}


@pytest.mark.slow
def test_the_right_forms_of_the_wrong_answers_pass(capsys):
    """What is refused is the fault and nothing else: other styles pass, and the wrong answers without their fault."""
    for check, answers in RIGHT.items():
        for right in answers if isinstance(answers, list) else [answers]:
            handed = check(right)  # itself, or itself with its result made into tensors
            assert getattr(handed, "__wrapped__", handed) is right, capsys.readouterr().out
