"""What is changed for the whole process is as before once the block has ended, also where it raises."""

import logging
import os

import pytest
import torch

from shared.machine import process


@pytest.mark.parametrize("own", [None, "of the user"])
def test_a_variable_is_there_inside_and_the_users_own_stays(monkeypatch, own):
    monkeypatch.delenv("COURSE_TRIAL", raising=False)
    if own:
        monkeypatch.setenv("COURSE_TRIAL", own)
    with pytest.raises(ZeroDivisionError), process.environment(COURSE_TRIAL="1"):
        assert os.environ["COURSE_TRIAL"] == (own or "1")
        os.environ["COURSE_OTHER"] = "kept"
        1 / 0  # noqa: B018
    assert os.environ.get("COURSE_TRIAL") == own and os.environ.pop("COURSE_OTHER") == "kept"


def test_a_logger_is_silent_inside_and_has_its_level_back():
    log = logging.getLogger("course.trial")
    log.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), process.silent("course.trial"):
        assert not log.isEnabledFor(logging.ERROR)
        1 / 0  # noqa: B018
    assert log.level == logging.INFO


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_zero_inside_and_as_they_were_after(before):
    torch.set_flush_denormal(False)  # a program that a test has called may have left it on
    smallest = torch.tensor([1e-45])
    try:
        assert torch.set_flush_denormal(before)
        with pytest.raises(ZeroDivisionError), process.denormals_as_zero():
            assert (smallest * 1).item() == 0
            1 / 0  # noqa: B018
        assert ((smallest * 1).item() == 0) is before
    finally:
        torch.set_flush_denormal(False)
