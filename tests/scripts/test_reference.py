"""`make reference` measures every point once, survives what a machine does to it, and labs can trust what it wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import points
import psutil
import pytest
import speed
import torch

from shared import files, models, notebooks, reference, timing
from shared.machine import guard
from shared.models.cards import NARROW, check_name, published_config

pytestmark = pytest.mark.slow

# ---- the plan -----------------------------------------------------------------------------------------------------


def test_scale_full_has_every_comparison_that_the_labs_make():
    parts = points.plan("full", on_gpu=True)
    pair = {"mamba-2.8b", "pythia-2.8b"}
    both = {False, True}  # step by step, and as a CUDA graph
    assert {(p["model"], p["graph"], p["tokens"]) for p in parts["context"]} == {
        (name, graph, 2**k) for name in pair for graph in both for k in range(10, 18)
    }
    assert {(p["model"], p["batch"]) for p in parts["batch"]} == {(name, 2**k) for name in pair for k in range(7)}
    assert {p["model"] for p in parts["mixtures"]} == {"olmoe-1b-7b", "deepseek-moe-16b"}
    assert {p["model"] for p in parts["large"]} == {"mixtral-8x7b"}
    assert {(p["model"], p["tokens"]) for p in parts["siblings"]} == {
        (name, 2**k) for name in ("mamba2-2.7b", "mamba2attn-2.7b", "transformerpp-2.7b") for k in range(10, 18)
    }
    assert [p["layers"] for p in parts["hybrid"]] == [8, 16, 24, 32]
    assert {p["path"] for part in parts if part.startswith("scan-") for p in parts[part]} == {
        "kernel",
        "course",
        "reference",
    }
    assert {p["way"] for p in parts["tuning"]} == set(points.WAYS)
    for scale in points.SETTINGS:
        for part in points.plan(scale, on_gpu=True).values():
            assert all(check_name(p["model"]) for p in part if "way" not in p)
            assert len({json.dumps(p) for p in part}) == len(part)


def test_a_cpu_measures_no_graph_and_no_kernel():
    parts = points.plan("tiny", on_gpu=False)
    assert not any(point.get("graph") for part in parts.values() for point in part) and "scan-kernel" not in parts


@pytest.mark.parametrize("name", NARROW)
def test_a_shape_at_scale_tiny_is_of_the_class_of_the_published_one_and_small(name):
    bench = points.Bench("tiny")
    point = {"model": name, "graph": False, "tokens": 32, "batch": 1}
    row = bench.row(point, None)
    assert row["status"] == "ok" and row["decode_seconds"] > 0
    assert type(bench.model).__name__ == published_config(name.removeprefix("tiny/")).architectures[0]
    assert row["weight_bytes"] == models.size(name, torch.float32).weight_bytes < 2e6
    kinds = {type(layer).__name__ for layer in bench.model.modules()}
    assert ("NemotronHAttention" in kinds and "NemotronHMamba2Mixer" in kinds) == (name == "tiny/mamba2attn-2.7b")


# ---- one point ----------------------------------------------------------------------------------------------------

POINT = {"model": "tiny/mamba", "graph": False, "tokens": 64, "batch": 2}
BEFORE = {"tokens": 32, "batch": 1, "peak_bytes": 1000, "time_to_first_token": 1.0}


def test_what_would_not_fit_is_not_tried(monkeypatch):
    bench = points.Bench("tiny")
    monkeypatch.setattr(guard, "budget", lambda device=None: 3999)  # four times the tokens, four times the peak
    monkeypatch.setattr(bench, "load", None)
    assert bench.row(POINT, BEFORE) == {"status": "out of memory", "expected_bytes": 4000}


def test_what_would_take_minutes_is_not_tried(monkeypatch):
    bench = points.Bench("tiny")
    monkeypatch.setattr(bench, "load", None)
    assert bench.row(POINT, BEFORE | {"time_to_first_token": 16}) == {"status": "slow", "expected_seconds": 64}


def test_a_batch_of_a_fine_tuning_is_tried_whatever_the_smaller_one_took(monkeypatch):
    """The peak has the model in it, which does not grow: to scale all of it would refuse what fits."""
    bench = points.Bench("tiny")
    monkeypatch.setattr(bench, "tune", lambda point, seconds: {"peak_bytes": 1})
    monkeypatch.setattr(guard, "budget", lambda device=None: 1001)
    point = {"model": "mamba", "way": "LoRA", "tokens": 64, "batch": 2}
    assert bench.row(point, point | {"batch": 1, "peak_bytes": 1000}) == {"status": "ok", "peak_bytes": 1}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, guard.MemoryRanLow])
def test_running_out_of_memory_is_a_result(monkeypatch, error):
    bench = points.Bench("tiny")

    def load(*arguments):
        raise error("full")

    monkeypatch.setattr(bench, "load", load)
    assert bench.row(POINT, None) == {"status": "out of memory"}


def test_a_path_that_is_not_here_is_refused_and_not_timed_under_another_name():
    with pytest.raises(models.CourseError, match="course would run; `make kernels` builds"):
        points.Bench("tiny").row({"model": "tiny/mamba", "path": "kernel", "tokens": 16, "batch": 1}, None)


def test_layers_are_refused_before_a_byte_is_taken(monkeypatch):
    monkeypatch.setattr(guard, "budget", lambda device=None: 10**9)
    monkeypatch.setattr(models, "from_config", None)
    with pytest.raises(models.NotEnoughMemory, match=r"jamba-v0.1 with 8 layers needs 26.6 GB and 1 GB are available"):
        points.first_layers("jamba-v0.1", 8, torch.bfloat16, torch.device("cpu"))


# ---- a run of the program -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The course without what is derived, so that nothing is written into this one."""
    folder = tmp_path_factory.mktemp("course")
    for name in ("shared", "scripts", "data", "labs"):
        shutil.copytree(files.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "data/reference").glob(f"{reference.slug()}.json"):
        file.unlink()
    return folder


def start(copy, *arguments) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "COURSE_BUILD": str(copy / "build")}
    command = [sys.executable, copy / "scripts/reference/speed.py", "--scale", "tiny", *arguments]
    return subprocess.Popen(
        command,
        env=env,
        cwd=copy,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.fixture
def begun_here(copy, monkeypatch, capfd):
    """The program with this process as its first one, which spares the import; parts run in the copy, in their own."""
    monkeypatch.setenv("PYTHONPATH", str(copy))
    monkeypatch.setenv("COURSE_BUILD", str(copy / "build"))
    monkeypatch.setattr(files, "BUILD", copy / "build")
    monkeypatch.setattr(reference, "FOLDER", copy / "data/reference")
    monkeypatch.setattr(speed, "__file__", str(copy / "scripts/reference/speed.py"))

    def begun(*arguments) -> tuple[int, str]:
        code = speed.main(["--scale", "tiny", *arguments])
        return code, "".join(capfd.readouterr())

    return begun


def measured(copy) -> dict:
    """The points that are kept, and when each was written."""
    return {file: file.stat().st_mtime_ns for file in copy.glob("build/reference/*/*/*.json")}


def running(copy, process: subprocess.Popen, after: int = 0) -> None:
    """Wait until a point is being measured, after so many others."""
    while not list(copy.glob("build/reference/*/*/*.running")) or len(measured(copy)) < after:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def written(copy, folder="data/reference") -> list[dict]:
    content = json.loads((copy / folder / f"{reference.slug()}.json").read_text())["tiny"]
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def test_a_run_that_is_cut_short_goes_on_where_it_was(copy):
    stopped = start(copy, "--part", "hybrid")
    running(copy, stopped, after=1)
    os.killpg(stopped.pid, signal.SIGINT)  # as Ctrl-C does
    out, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and "the same command goes on" in out and "Traceback" not in out
    assert not list(copy.rglob("*.running"))

    (before,) = measured(copy).items()
    total = sum(map(len, points.plan("tiny", torch.cuda.is_available()).values()))
    assert f"2 of {total} points are measured" in finished(start(copy, "--part", "hybrid"))
    assert len(measured(copy)) == 2 and before in measured(copy).items()  # measured once

    shapes = {row["layers"]: row for row in written(copy)}
    for layers, row in shapes.items():
        assert row["status"] == "ok" and row["part"] == "hybrid" and row["tokens"] == row["prompt_tokens"] == 256
        model = points.first_layers("tiny/jamba", layers, torch.float32, torch.device("cpu"))
        assert row["weight_bytes"] == sum(p.numel() * 4 for p in model.parameters())
    assert shapes[4]["weight_bytes"] == models.size("tiny/jamba", torch.float32).weight_bytes
    assert shapes[3]["weight_bytes"] < shapes[4]["weight_bytes"]


def test_what_other_versions_measured_is_measured_anew_and_not_mixed_in(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(points.Bench, "row", lambda bench, point, before: {"status": "ok", "peak_bytes": 1})
    plan = {"hybrid": points.plan("tiny", False)["hybrid"]}
    speed.measure("tiny", "hybrid", until=time.time() + 60)
    for number, file in enumerate(sorted(tmp_path.rglob("*.json"))):
        kept = json.loads(file.read_text())
        if number:
            file.write_text(json.dumps(kept | {"settings": kept["settings"] | {"torch": "1.0"}}))
    assert "1 of 2 points are measured" in speed.write("tiny", plan)
    speed.measure("tiny", "hybrid", until=time.time() - 1)  # too late: the old one stays out
    assert "1 of 2 points are measured" in speed.write("tiny", plan)
    speed.measure("tiny", "hybrid", until=time.time() + 60)
    assert "2 of 2 points are measured" in speed.write("tiny", plan)


def test_what_this_machine_refuses_is_said_in_the_file_and_tried_again(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    tried = []

    def row(bench, point, before):
        tried.append(point["layers"])
        if len(tried) == 2:
            raise models.NotEnoughMemory("it needs 93 GB")
        return {"status": "ok", "peak_bytes": 1}

    monkeypatch.setattr(points.Bench, "row", row)
    plan = {"hybrid": points.plan("tiny", False)["hybrid"]}
    speed.measure("tiny", "hybrid", until=time.time() + 60)
    assert "1 of 2 points are measured, 1 refused" in speed.write("tiny", plan)
    assert [r["status"] for r in written(tmp_path, ".")] == ["ok", "refused: it needs 93 GB"]
    assert list(reference.rows("hybrid", "tiny").layers) == [3]
    speed.measure("tiny", "hybrid", until=time.time() + 60)
    assert tried == [3, 4, 4] and "2 of 2 points are measured:" in speed.write("tiny", plan)


def test_no_point_begins_after_the_deadline(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    monkeypatch.setattr(points.Bench, "row", None)
    speed.measure("tiny", "hybrid", until=time.time() - 1)
    assert (
        not list(tmp_path.rglob("*")) and speed.write("tiny", points.plan("tiny", False)) == "Nothing is measured yet."
    )


def test_a_point_that_kills_its_process_is_not_tried_again(copy, begun_here):
    file = copy / f"data/reference/{reference.slug()}.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | {"full": "of another day"}))
    process = start(copy, "--part", "large")
    running(copy, process)
    (worker,) = psutil.Process(process.pid).children()
    worker.suspend()
    code, said = begun_here("--part", "large")  # the point is being measured: that is no reason to give it up
    assert "Another `make reference` is at work" in said and code == 1
    worker.kill()  # as the kernel does where memory has run out
    finished(process)
    (row,) = [row for row in written(copy) if row["part"] == "large"]
    assert row["status"] == "did not finish" and row.get("decode_seconds") is None
    assert json.loads(file.read_text())["full"] == "of another day"  # what was there before stays


def test_an_error_ends_its_part_and_the_next_call_tries_again(copy, begun_here):
    broken = copy / "shared" / "scan.py"
    text = broken.read_text()
    broken.write_text(text + "\n\ndef in_transformers():\n    raise RuntimeError('not today')\n")
    code, out = begun_here("--part", "mixtures")
    broken.write_text(text)
    assert code == 1 and "not today" in out and "Not to the end: mixtures" in out
    assert not list(copy.rglob("*.running"))


def test_a_part_whose_process_ends_at_once_is_left_and_not_begun_for_ever(copy, begun_here):
    stale = copy / f"build/reference/{reference.slug()}-tiny/batch/tiny_mamba-False-256-1.running"
    stale.parent.mkdir(parents=True)
    stale.touch()  # from a process that was killed
    broken = copy / "scripts" / "reference" / "parts.py"
    text = broken.read_text()
    broken.write_text(text + "\nimport sys\nif '--until' in sys.argv:\n    raise OSError('no driver')\n")
    code, out = begun_here("--part", "batch")
    broken.write_text(text)
    stale.unlink()
    assert code == 1 and out.count("no driver") == 4 and "Not to the end: batch" in out


def test_make_reference_says_what_a_machine_without_a_gpu_can_do():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(["make", "reference"], cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode and "`make reference SCALE=tiny` measures this CPU" in done.stderr


# ---- what is shipped ------------------------------------------------------------------------------------------------

SHIPPED = [(scale, name) for scale in points.SETTINGS for name in reference.machines(scale)]


@pytest.mark.parametrize(("scale", "machine"), SHIPPED)
def test_a_shipped_machine_has_points_of_the_plan_and_they_agree_with_arithmetic(scale, machine):
    content = reference.machines(scale)[machine]
    made = content["made"]
    assert made.keys() >= {"machine", "threads", "torch", "transformers", "date", "kernels", "memory_bytes", "unified"}
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
    plan = points.plan(scale, on_gpu=scale == "full")
    measured = [row["part"] for row in rows]
    assert made["planned"] == sum(map(len, plan.values()))
    # A machine that was lent for minutes may have some of its points, which `reference.said` says; a CPU has all.
    assert len(rows) == made["planned"] or f"{len(rows)} of {made['planned']} points" in reference.said(scale)
    assert scale == "full" or len(rows) == made["planned"]
    for part, points_of_it in plan.items():
        of_it = [row for row in rows if row["part"] == part]
        kept = [{key: row[key] for key in points_of_it[0]} for row in of_it]
        assert all(point in points_of_it for point in kept) and len(kept) <= len(points_of_it), part
    assert set(measured) <= set(plan)
    dtype = points.SETTINGS[scale]["dtype"]
    for row in rows:
        if row["status"] != "ok":
            assert row["status"].split(":")[0] in ("out of memory", "slow", "did not finish", "refused")
            continue
        if row["part"] in ("tuning", "hybrid"):
            continue
        size = models.size(row["model"], dtype)
        assert row["weight_bytes"] == size.weight_bytes <= row["load_peak_bytes"]
        assert row["time_to_first_token_q1"] <= row["time_to_first_token"] <= row["time_to_first_token_q3"]
        if row["part"].startswith("scan-"):
            assert row["path"] == row["part"].removeprefix("scan-")
            continue
        assert row["decode_seconds_q1"] <= row["decode_seconds"] <= row["decode_seconds_q3"]
        assert row["decode_rate"] == pytest.approx(row["batch"] / row["decode_seconds"], rel=2e-3)
        room = row["tokens"] + row["new_tokens"] - 1  # the last token is not read
        cache = row["batch"] * (room * size.kv_bytes_per_token + size.state_bytes)
        assert cache <= row["cache_bytes"] <= cache * (1 + (row["graph"] or 0) * 0.05)


def test_a_scale_that_no_machine_has_measured_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    assert (
        reference.said("full")
        == ("No machine has been measured at scale full yet: `make reference` does that.")
        == reference.table("context", "full", "model")
    )
    assert reference.rows("context", "full").empty


def test_what_a_gpu_measured_is_what_the_text_says_of_it():
    rows = reference.rows("context", "full")
    step = rows[(rows.machine == "NVIDIA H200") & (rows.model == "pythia-2.8b") & (rows.tokens == 2048)]
    eager, graph = (step[step.graph == way].decode_seconds.item() for way in (False, True))
    cell = next(cell for cell in notebooks.read("2.4.1").cells if cell.id == "h-graphs")
    assert f"{1e3 * eager:.1f} ms eager and {1e3 * graph:.1f} ms as a graph" in cell.source
    made = reference.machines("full")["NVIDIA H200"]
    done = f"{len(made['rows'])} of {made['made']['planned']} points"
    assert done in reference.said("full")
    for page in ("README.md", "docs/machines.md"):
        assert done in (files.ROOT / page).read_text(), page


def test_the_page_of_commands_has_the_minutes_that_the_programs_took():
    """Each file says how long its command ran, on one core of an AMD EPYC."""
    page = (files.ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name in ("curves", "recurrences", "finetune", "balance"):
        made = json.loads((reference.FOLDER / f"{name}.json").read_text())["made"]
        seconds = made["seconds"]
        seconds = sum(seconds.values()) if isinstance(seconds, dict) else seconds
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `make {name}`")]
        assert f"({seconds / 60:.0f} minutes on one core of an AMD EPYC)" in line
        assert made["machine"].startswith("AMD EPYC") and made["threads"] == 1
    seconds = reference.machines("tiny")["AMD EPYC, 2 cores"]["made"]["seconds"]
    assert f"`SCALE=tiny` on a CPU ({seconds / 60:.0f} minutes on one core of an AMD EPYC)" in page
    report = json.loads((files.DATA / "tiny" / "report.json").read_text())
    each = [model["seconds"] for model in report["models"].values()]  # two models at a time
    assert "(about half an hour on two cores)" in page and 20 < sum(each) / 2 / 60 < 40


# ---- what labs read -------------------------------------------------------------------------------------------------

COLUMNS = ["part", "model", "graph", "tokens", "status", "decode_seconds", "peak_bytes"]
ROWS = [
    ["context", "a", False, 256, "ok", 0.002, 1_500_000],
    ["context", "a", False, 512, "out of memory", None, None],
    ["large", "b", True, 256, "did not finish", None, None],
]


@pytest.fixture
def two_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    for name in ("First", "Second"):
        content = {
            "made": {"machine": name, "date": "2026-01-02", "planned": len(ROWS)},
            "bandwidth": 10,
            "columns": COLUMNS,
            "rows": ROWS,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps({"tiny": content}))
    (tmp_path / "curves.json").write_text(json.dumps({"made": {}, "runs": {}}))


def test_points_of_all_machines_come_as_one_table_without_those_that_failed(two_machines):
    frame = reference.rows("context", "tiny")
    assert list(frame.machine) == ["First", "Second"] and list(frame.tokens) == [256, 256]
    assert reference.said("tiny") == "measured before, at scale tiny: First (2026-01-02), Second (2026-01-02)"
    lines = reference.table("context", "tiny", "model", "decode_seconds", "peak_bytes").splitlines()
    assert [line.split() for line in lines[1:]] == [[name, "a", "0.002", "1.5", "MB"] for name in ("First", "Second")]
    assert reference.table("large", "tiny", "model") == "large: nothing measured on these machines"
    chosen_by = {"machine", "model", "graph", "way", "batch", "tokens"}  # by labs
    assert chosen_by <= set(reference.rows("large", "tiny"))
    assert reference.rows("context", "full").empty and "yet" in reference.said("full")


def decoding(model: str, seconds: list[float], spread: float) -> pd.DataFrame:
    rows = {"tokens": [256 * 2**k for k in range(len(seconds))], "decode_seconds": seconds}
    quartiles = {f"decode_seconds_{q}": [s * f for s in seconds] for q, f in (("q1", 1 - spread), ("q3", 1 + spread))}
    return pd.DataFrame(rows | quartiles).assign(model=model)


def test_the_advantage_is_a_ratio_with_its_spread_and_begins_where_all_of_it_is_above_one():
    both = pd.concat([decoding("mamba", [2, 2, 2, 2], 0.1), decoding("twin", [1, 2.2, 3, 6], 0.1)])
    found = reference.advantage(both.sample(frac=1, random_state=0), "mamba", "twin")
    assert list(found.tokens) == [256, 512, 1024, 2048] and list(found.ratio) == [0.5, 1.1, 1.5, 3]
    assert found.low.to_list() == pytest.approx([r * 0.9 / 1.1 for r in found.ratio])
    assert found.high.to_list() == pytest.approx([r * 1.1 / 0.9 for r in found.ratio])
    assert reference.begins(found) == 1024  # at 512 the median is ahead, the spread is not
    assert reference.begins(found[:2]) is None
    assert reference.begins(found[2:]) == 1024
    dip = found.assign(low=[2, 2, 0.9, 2])
    assert reference.begins(dip) == 2048  # from there on, not before a context that it loses again


def test_the_settings_are_those_of_the_timer():
    for settings in points.SETTINGS.values():
        assert settings["timing"]["new_tokens"] > timing.WARM_STEPS + 8
