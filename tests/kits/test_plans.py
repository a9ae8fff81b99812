"""What a lab says before one waits: on a DGX Spark none is longer than 40 minutes, with Mamba's kernels or without."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from shared import files, notebooks, results, timing
from shared.kits import forecast, plans

pytestmark = pytest.mark.slow  # a plan counts the work of a whole lab, and takes seconds

SPARK = forecast.SPARK
WITHOUT = dataclasses.replace(SPARK, path="course")  # the course's scan, where nobody built the kernels
EACH = pytest.mark.parametrize("lab", list(notebooks.labs()))
MINUTES = 40


@functools.cache
def default_plan(lab: str, on: forecast.Machine) -> plans.Plan:
    return plans.lab(lab, plans.default_settings(lab), on=on)


def plan(lab: str, on: forecast.Machine = SPARK, **changes) -> plans.Plan:
    if not changes:
        return default_plan(lab, on)
    return plans.lab(lab, plans.default_settings(lab) | changes, on=on)


@EACH
def test_no_lab_is_longer_than_forty_minutes_on_a_spark_and_each_fits(lab):
    for on in (SPARK, WITHOUT):
        assert 60 < plan(lab, on).seconds < MINUTES * 60, on.path
        assert 0 < plan(lab, on).peak_bytes < on.memory_bytes


@pytest.mark.parametrize(
    ("lab", "changes"),
    [
        ("2.4.1", {"timing": {"new_tokens": 2000, "repeats": 5, "warmup": 3}}),
        ("2.4.5", {"story": 5_000_000}),
        ("2.4.6", {"steps": 1000}),
    ],
)
def test_settings_that_take_too_long_are_seen(lab, changes):
    assert plan(lab, WITHOUT, **changes).seconds > MINUTES * 60


@EACH
def test_the_minutes_in_a_lab_s_table_are_those_of_its_plan(lab):
    said = re.search(r"by arithmetic (\d+) minutes there(?:, (\d+) without Mamba's kernels)?", plans.needs(lab, "full"))
    for minutes, on in zip(said.groups(), (SPARK, WITHOUT), strict=True):
        assert int(minutes or said[1]) == pytest.approx(plan(lab, on).seconds / 60, abs=1.5)


def test_the_minutes_in_the_readme_are_those_of_the_shortest_and_the_longest_plan():
    seconds = [plan(lab, SPARK).seconds for lab in notebooks.labs()]
    said = f"by arithmetic {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes on a Spark with Mamba's kernels"
    assert said in (files.ROOT / "README.md").read_text(encoding="utf-8")


@EACH
def test_a_plan_names_its_parts_its_memory_and_its_contexts(lab):
    made = plan(lab)
    text = str(made)
    assert all(name in text for name in made.parts) and "everything else" in made.parts
    assert made.models and all(f"longest context that fits: {name}" in text for name in made.models)
    assert "memory at its peak" in text and "left out" in text and "nobody has measured it" in text
    assert all(len(line) < 130 for line in text.splitlines())


@EACH
def test_the_cells_of_a_part_are_cells_of_the_lab(lab):
    ids = {cell.id for cell in notebooks.read(lab).cells if cell.cell_type == "code"}
    timed = [cell for cells in plan(lab).cells.values() for cell in cells]
    assert timed and set(timed) <= ids and len(set(timed)) == len(timed)


@EACH
def test_a_lab_prints_its_plan_before_its_parts_and_the_clock_after_them(lab):
    ids = [cell.id for cell in notebooks.read(lab).cells]
    timed = [ids.index(cell) for cells in plan(lab).cells.values() for cell in cells]
    assert ids.index("forecast") < min(timed) and max(timed) < ids.index("forecast-measured")


def test_random_weights_are_neither_read_from_a_disk_nor_asked_about_books():
    settings = plans.default_settings("2.4.5")
    trained, random = (plans.lab("2.4.5", settings, weights, on=SPARK) for weights in ("trained", "random"))
    assert trained.load(1, "mamba-2.8b") > 10 and random.load(1, "mamba-2.8b") == 0
    assert random.parts["quality of all models"] < trained.parts["quality of all models"] / 3


def test_what_a_sweep_leaves_out_is_said_and_takes_no_time():
    small = dataclasses.replace(SPARK, memory_bytes=15 * 10**9)
    left = [line for line in plan("2.4.1", small).left_out if "out of memory" in line]
    assert left == [
        "mamba-2.8b, batch 1, from 131,072 tokens on (out of memory)",
        "pythia-2.8b, batch 1, from 32,768 tokens on (out of memory)",
    ]
    swept = "the sweep of both models"
    assert plan("2.4.1", small).parts[swept] < plan("2.4.1").parts[swept]
    assert any("where its positions end" in line for line in plan("2.4.1").left_out)


def test_the_plan_of_the_comparison_counts_the_siblings_and_says_which_of_their_points_do_not_fit():
    part, siblings = "cost of all models", plans.default_settings("2.4.5")["siblings"]
    assert len(siblings) == 3
    for name in siblings:  # each takes a minute or more
        others = tuple(other for other in siblings if other != name)
        assert plan("2.4.5").parts[part] > plan("2.4.5", siblings=others).parts[part] + 60, name
    small = plan("2.4.5", dataclasses.replace(SPARK, memory_bytes=20 * 10**9))
    assert "mamba2-2.7b, batch 1, from 32,768 tokens on (out of memory)" in small.left_out
    assert "A prefill of mamba2-2.7b and mamba2attn-2.7b may take longer" in str(small)


def test_another_model_and_eight_bits_change_the_plan():
    settings = plans.default_settings("2.4.3") | {"model": "mixtral-8x7b"}
    sixteen, eight = (plans.lab("2.4.3", settings, bits=bits, on=SPARK) for bits in (16, 8))
    assert sixteen.models == ["mixtral-8x7b"] and eight.peak_bytes < 0.6 * sixteen.peak_bytes


def test_this_machine_is_planned_for_where_none_is_named():
    settings = plans.default_settings("2.4.1", "tiny")
    made = plans.lab("2.4.1", settings)
    assert "measured on" in str(made) and made.on.name == "this machine" and made.seconds > 60


# ---- the clock ----------------------------------------------------------------------------------------------------


def test_the_clock_times_the_cells_of_a_lab_and_no_others(monkeypatch):
    now = iter([10.0, 14.0, 20.0, 21.0, 30.0, 39.0])
    monkeypatch.setattr(plans, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    source = {cell.id: cell.source for cell in notebooks.read("2.4.1").cells}
    clock = plans.Clock("2.4.1")
    for cell, success in ((source["sweep"], True), ("x = 1", True), (source["counted"], False)):
        clock.begin(SimpleNamespace(raw_cell=cell + "\n"))
        clock.shell = SimpleNamespace(last_execution_succeeded=success)
        clock.end(SimpleNamespace(success=True))  # a cell that was not run for want of a model has no error left
    assert clock.seconds == {"sweep": 4.0}
    made = plan("2.4.1")
    monkeypatch.setattr(plans.Clock, "running", clock)
    (row,) = [line for line in made.against_the_clock().splitlines() if "the sweep" in line]
    assert "4.0 s" in row
    (row,) = [line for line in made.against_the_clock().splitlines() if "counting" in line]
    assert row.split()[-2:] == ["-", "-"]


def test_a_cell_that_takes_a_result_over_from_before_a_restart_is_not_timed(monkeypatch):
    monkeypatch.setattr(results, "taken", [])
    clock = plans.Clock("2.4.1")
    clock.shell = SimpleNamespace(last_execution_succeeded=True)
    for cell in notebooks.read("2.4.1").cells:
        if cell.id in ("sweep", "recall-training"):
            clock.begin(SimpleNamespace(raw_cell=cell.source))
            results.taken.extend(["the sweep of a model"] * (cell.id == "sweep"))
            clock.end(None)
    assert list(clock.seconds) == ["recall-training"]


@pytest.fixture
def shell():
    interactive = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    yield interactive.instance()
    interactive.clear_instance()
    plans.Clock.running = None


def test_the_clock_hangs_on_a_notebook_s_cells_once(shell):
    source = {cell.id: cell.source for cell in notebooks.read("2.4.1").cells}
    for _ in range(2):  # the cell is run again
        plan("2.4.1").watch()
    shell.run_cell(source["parameters"])
    shell.run_cell("y = 2")
    assert list(plans.Clock.running.seconds) == ["parameters"]
    ours = [call for calls in shell.events.callbacks.values() for call in calls if hasattr(call, "__self__")]
    assert sum(isinstance(call.__self__, plans.Clock) for call in ours) == 2


def test_scoring_a_text_makes_the_logits_of_all_positions():
    made = plan("2.4.5")
    read, scored = made.read("mamba-130m", 1e6, 1024), made.score("mamba-130m", 1e6, 1024)
    assert 1.2 * read < scored < 5 * read


def test_points_of_a_sweep_stand_beside_their_forecast():
    made = plan("2.4.1")
    expected = forecast.generation("pythia-2.8b", 8192, SPARK)
    row = {
        "model": "pythia-2.8b",
        "tokens": 8192,
        "batch": 1,
        "time_to_first_token": 2 * expected.prefill_seconds,
        "decode_seconds": expected.decode_seconds / 2,
        "peak_bytes": expected.peak_bytes,
    }
    assert made.against(pd.DataFrame([row])).splitlines()[-1].split()[-3:] == ["2.0", "0.5", "1.0"]


def test_the_limit_of_a_sweep_is_one_number():
    assert timing.SLOW == 60 and timing.long_point(5) == {} and timing.long_point(7)["repeats"] == 2
    assert torch.tensor(plans.rest("2.4.1")) == 60
