"""An interrupted sweep loses no finished result, counts none twice, and never mixes results of other settings."""

import datetime
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from shared import files, results
from shared.errors import BadInput, CourseError


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    return tmp_path


def run(sweep, items, stop_at=None) -> dict:
    def measure(item):
        if item == stop_at:
            raise KeyboardInterrupt
        return {"item": item, "value": len(item) / 3}

    return {item: sweep.keep(item, partial(measure, item)) for item in items}


def test_a_second_run_goes_on_where_the_first_stopped_and_measures_nothing_twice(build):
    first = results.Sweep("s", scale="tiny")
    with pytest.raises(KeyboardInterrupt):
        run(first, ["tiny/a", "tiny/bb", "tiny/ccc"], stop_at="tiny/ccc")
    second = results.Sweep("s", scale="tiny")
    assert [second.has(item) for item in ("tiny/a", "tiny/bb", "tiny/ccc")] == [True, True, False]
    found = run(second, ["tiny/a", "tiny/bb", "tiny/ccc"])
    assert (first.made, second.made) == (2, 1)
    assert found == {item: {"item": item, "value": len(item) / 3} for item in ("tiny/a", "tiny/bb", "tiny/ccc")}


def test_a_finished_sweep_is_a_table_and_the_next_run_measures_anew(build):
    sweep = results.Sweep("s", scale="tiny")
    path = sweep.finish(pd.DataFrame(run(sweep, ["a", "bb"]).values()))
    assert list(pd.read_csv(path).item) == ["a", "bb"] and not sweep.folder.exists()
    again = results.Sweep("s", scale="tiny")
    run(again, ["a", "bb"])
    assert again.made == 2


@pytest.mark.parametrize("change", [{"scale": "full"}, {"scale": "tiny", "stride": 3}, {}])
def test_other_settings_are_another_sweep_and_neither_loses_or_mixes_results(build, change):
    run(results.Sweep("s", scale="tiny"), ["a"])
    other = results.Sweep("s", **change)
    assert not other.has("a")
    other.keep("a", lambda: "measured under other settings")
    assert results.Sweep("s", scale="tiny").keep("a", lambda: "again")["value"] == 1 / 3
    other.finish(pd.DataFrame({"x": [1]}))
    assert results.Sweep("s", scale="tiny").has("a"), "the end of one sweep must leave the other"


def test_another_machine_or_version_counts_as_other_settings(build, monkeypatch):
    run(results.Sweep("s"), ["a"])
    monkeypatch.setattr(results, "machine", lambda: {"machine": "another", "date": "2026-01-01"})
    assert not results.Sweep("s").has("a")


def test_numbers_of_numpy_and_torch_are_kept(build):
    measured = {"mean": np.float32(0.5), "count": np.int64(3), "each": np.arange(2), "loss": torch.tensor(1.5)}
    kept = results.Sweep("s").keep("a", lambda: measured)
    assert kept == {"mean": 0.5, "count": 3, "each": [0, 1], "loss": 1.5} == results.Sweep("s").keep("a", dict)


@dataclass
class Point:
    x: np.int64
    y: tuple


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Path("a/b"), "a/b"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        ({3, 1}, [1, 3]),
        (Point(np.int64(1), (np.float32(0.5), None)), {"x": 1, "y": [0.5, None]}),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.device("cpu"), "cpu"),
        (torch.tensor([1.5], requires_grad=True), [1.5]),
        (np.bool_(True), True),
        (Decimal("0.10"), "0.10"),
        (pd.Series([1, 2]), [1, 2]),
        (pd.DataFrame({"a": [1]}), {"a": {"0": 1}}),
        ({np.int64(1): np.int64(2), None: 3, torch.float16: 4}, {"1": 2, "None": 3, "torch.float16": 4}),
        (math.inf, math.inf),
        ("lone \udcff", "lone \udcff"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_measurement_returns_is_kept(build, value, kept):
    """Also as a setting, and read again as it was first given back."""
    assert results.Sweep("s", made_of=value).keep(3, lambda: {"row": value}) == {"row": kept}
    assert results.Sweep("s", made_of=value).keep(3, dict) == {"row": kept}


def test_a_result_that_is_no_number_is_kept_as_none(build):
    assert math.isnan(results.Sweep("s").keep("a", lambda: np.float32("nan")))
    assert math.isnan(results.Sweep("s").keep("a", dict))


@pytest.mark.parametrize("value", [object(), torch.nn.Linear(1, 1), int, b"bytes", 1j, {"a": [object()]}])
def test_what_no_table_can_hold_is_one_sentence(build, value):
    with pytest.raises(BadInput, match=r"^A result of a sweep cannot hold \w+: give numbers, text, lists or dicts\.$"):
        results.Sweep("s").keep("a", lambda: value)


def test_the_date_alone_does_not(build, monkeypatch):
    run(results.Sweep("s"), ["a"])
    today = results.machine()
    monkeypatch.setattr(results, "machine", lambda: {**today, "date": "1999-01-01"})
    assert results.Sweep("s").has("a")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": {}}'])
def test_a_damaged_result_is_measured_again(build, damage):
    run(results.Sweep("s"), ["a"])
    (file,) = results.Sweep("s").folder.iterdir()
    file.write_text(damage)
    again = results.Sweep("s")
    run(again, ["a"])
    assert again.made == 1


def test_a_result_that_cannot_be_written_is_one_sentence(build):
    (build / "results").write_text("a file in the folder's place")
    with pytest.raises(CourseError, match="could not be written"):
        run(results.Sweep("s"), ["a"])


@pytest.mark.slow
def test_a_killed_process_leaves_whole_results_only(tmp_path):
    """A real one: it is killed while it measures its third item; what it had finished is there, and nothing else."""
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(files.ROOT)!r})
        from pathlib import Path
        from shared import files, results
        files.BUILD = Path({str(tmp_path)!r})
        sweep = results.Sweep("s", scale="tiny")
        for item in "abc":
            sweep.keep(item, lambda: os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == item else item * 3)
        print(sweep.made)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    killed = subprocess.run([*command, "c"], env={**os.environ}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "results").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["a.json", "b.json"]
    done = subprocess.run([*command, "none"], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_a_table_of_another_scale_is_refused_and_a_missing_one_is_none(build):
    assert results.load("nothing") is None
    results.save(pd.DataFrame({"scale": ["tiny", "tiny"], "x": [1, 2]}), "t")
    assert list(results.load("t", scale="tiny").x) == [1, 2]
    with pytest.raises(BadInput, match="scale = tiny, not full"):
        results.load("t", scale="full")
    with pytest.raises(BadInput, match="weights = nothing"):
        results.load("t", weights="trained")
    (build / "results" / "t.csv").write_text("")
    with pytest.raises(CourseError, match="cannot be read"):
        results.load("t")


# ---- over a restart of the kernel ------------------------------------------------------------------------------------


@pytest.fixture
def student(build, monkeypatch):
    """Where a student runs a lab, and not a program."""
    monkeypatch.setenv("COURSE_PROGRESS", "")
    return build


CELLS = """
import torch
steps = 3
calls = []
def half(x):
    return x / 2
def train(model, more):
    calls.append(1)
    torch.manual_seed(0)
    return {"model": model, "drawn": torch.rand(steps), "half": half(more)}
torch.manual_seed(1)
model = torch.nn.Linear(2, 2)
"""


def cells(*changes: tuple[str, str]) -> dict:
    """The names of a notebook that was just restarted and has run these cells, with some text replaced."""
    source = CELLS
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    names = {"__name__": "__main__"}
    exec(compile(source, "<cells>", "exec"), names)
    return names


def trained(names: dict, more=1.0) -> dict:
    return results.kept("lab-train", names["train"], names["model"], more=more)


def test_after_a_restart_a_result_is_there_again_and_says_that_it_is_not_new(student, capsys):
    first = cells()
    before = trained(first)
    drawn = torch.rand(3)  # by a later cell
    assert capsys.readouterr().out == ""
    second = cells()
    after = trained(second)
    said = capsys.readouterr().out
    assert re.fullmatch(r"Kept from \d\d:\d\d on .*, not measured now: .* delete \S+/kept/lab-train.pt\n", said)
    assert (first["calls"], second["calls"]) == ([1], []) and results.taken[-1] == "lab-train"
    assert torch.equal(before["drawn"], after["drawn"]) and torch.equal(before["model"].weight, after["model"].weight)
    assert torch.equal(torch.rand(3), drawn), "what a later cell draws is what it drew before"
    next((student / "kept").iterdir()).unlink()
    trained(second)
    assert second["calls"] == [1], "deleted, as the line says"


@pytest.mark.parametrize(
    "change",
    [
        ("steps = 3", "steps = 4"),
        ("x / 2", "x / 3"),
        ('"drawn"', '"more"'),
        ("manual_seed(1)", "manual_seed(2)"),
        ("return x / 2", "return (lambda: x / 4)()"),
    ],
)
def test_what_a_result_depends_on_has_it_measured_anew(student, change):
    trained(cells())
    other = cells(change)
    trained(other)
    assert other["calls"] == [1]
    trained(again := cells(change))
    assert again["calls"] == [], "and that one is kept"


def test_other_arguments_another_version_and_a_program_measure(student, monkeypatch):
    trained(cells())
    trained(other := cells(), more=2.0)
    assert other["calls"] == [1]
    monkeypatch.setattr(results, "machine", lambda: {"torch": "another"})
    trained(other, more=2.0)
    assert other["calls"] == [1, 1]
    monkeypatch.setenv("COURSE_PROGRESS", "off")
    trained(other, more=2.0)
    assert other["calls"] == [1, 1, 1]


def test_what_cannot_be_kept_is_measured_each_time(student):
    calls = []
    for _ in range(2):
        results.kept("a lock comes", lambda: calls.append("result") or threading.Lock())
        results.kept("a lock goes in", lambda lock: calls.append("argument"), threading.Lock())
    assert calls == ["result", "argument"] * 2


def test_a_damaged_file_is_measured_over(student):
    (student / "kept").mkdir()
    (student / "kept" / "cut.pt").write_bytes(b"PK")
    assert [results.kept("cut", lambda: 2), results.kept("cut", lambda: 2)] == [2, 2]
    assert len((student / "kept" / "cut.pt").read_bytes()) > 2


def test_a_finished_sweep_is_there_again_for_a_student(student, capsys):
    frame = pd.DataFrame({"x": [1]})
    names = cells()
    for _ in range(2):
        sweep = results.Sweep("s", scale="tiny")
        sweep.keep("tiny/a", partial(names["half"], 3))
        sweep.finish(frame)
    assert capsys.readouterr().out.count("Kept from") == 1
