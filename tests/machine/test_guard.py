"""What keeps a machine with unified memory alive. GPU and /proc/meminfo are played; the notebook's kernel is real."""

import itertools
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client.manager import start_new_kernel

from shared import files, memory, models
from shared.errors import CourseError
from shared.machine import guard, holders, pool

sys.path.insert(0, str(files.ROOT / "scripts"))
import tables

pytestmark = pytest.mark.slow

GB = 1_000_000_000


@pytest.fixture
def spark(spark):
    spark.leave(119 * GB)
    return spark


# -------------------------------------------------------------------------------------------------- what is available

# What a DGX Spark said before a file of 60 GiB was written, with the file in the page cache, and after it was deleted:
# GiB, as measured in pull request 10704 of unslothai/unsloth (September 2026). CUDA's free is the kernel's MemFree.
GB10 = [
    {"cuda": 103.25, "MemFree": 103.25, "MemAvailable": 115.85, "Cached": 12.64},
    {"cuda": 41.52, "MemFree": 41.52, "MemAvailable": 115.65, "Cached": 72.64},
    {"cuda": 103.30, "MemFree": 103.30, "MemAvailable": 115.87, "Cached": 12.61},
]


@pytest.mark.parametrize("said", GB10)
def test_a_file_in_the_page_cache_of_a_gb10_takes_nothing_from_a_model(said, spark, monkeypatch):
    rows = [f"{field}: {round(said[field] * 2**20)} kB" for field in ("MemFree", "MemAvailable", "Cached")]
    spark.says("\n".join([f"MemTotal: {guard.SPARK // 1024} kB", *rows]))
    spark.free = int(said["cuda"] * 2**30)
    assert pool.available() == pytest.approx(said["MemAvailable"] * 2**30, rel=1e-6)
    assert guard.budget() == pool.available() - guard.reserve()
    assert models.fits("mixtral-8x7b", weights="random"), "93 GB fit beside the reserve, whatever the page cache has"


# ------------------------------------------------------------------------------------------------- reserve and budget


def test_the_played_spark_has_the_bytes_of_current_firmware(spark):
    assert pool.host("MemTotal") == guard.SPARK == 130_663_006_208


def test_on_unified_memory_a_reserve_stays_free_and_elsewhere_nothing_is_kept(spark):
    assert guard.reserve("cuda") == guard.kept(guard.SPARK) == pytest.approx(0.15 * guard.SPARK, abs=1)
    assert guard.budget("cuda") == pool.available("cuda") - guard.reserve("cuda")
    assert guard.reserve("cpu") == 0 and guard.budget("cpu") == pool.available("cpu")
    spark.leave(3 * GB)
    assert guard.budget("cuda") == 0


def test_reserve_and_floor_lie_well_above_the_level_at_which_a_spark_was_unusable():
    unusable = 11.7 * GB
    assert 1.3 * unusable < guard.floor(guard.SPARK) < guard.kept(guard.SPARK) - 3 * GB
    small = 16 * GB
    assert (guard.floor(small), guard.kept(small)) == (guard.FLOOR_LEAST, guard.RESERVE_LEAST)


def test_the_page_on_machines_has_these_numbers():
    text = " ".join((files.ROOT / "docs" / "machines.md").read_text(encoding="utf-8").split())
    assert f"less than {100 * guard.RESERVE:g} % of it free ({memory.human(guard.kept(guard.SPARK))})" in text
    assert f"less than {100 * guard.FLOOR:g} % is left ({memory.human(guard.floor(guard.SPARK))})" in text
    assert f"more than {memory.human(guard.SWAPPED)} to swap" in text


# ----------------------------------------------------------------------------------------- what fits, and what is said


@pytest.mark.parametrize("available", [117.9, 119.1])
def test_on_a_spark_neither_jamba_nor_mixtral_fits_in_16_bits_and_both_do_in_8(spark, available):
    spark.leave(available * GB)
    for name in ("jamba-v0.1", "mixtral-8x7b"):
        assert not models.fits(name), name
        assert models.fits(name, bits=8), name


def test_the_data_sheet_says_of_the_two_what_fits_says(spark):
    """Jamba never fits; Mixtral does from what the sheet names on, which only an idle machine has."""
    text = tables.FILE.read_text(encoding="utf-8")
    (said,) = re.findall(r"<!-- table: spark -->\n(.*)\n", text)
    assert "Jamba does not fit on one DGX Spark, and Mixtral only where next to nothing else runs" in said
    parts = re.fullmatch(r".* they need (.*), and .* So (.*) have .* report (.*) on .* load in (.*), and fit\.", said)
    loading, needed, idle, eight = (
        [float(size) * GB for size in re.findall(r"([\d.]+) GB", part)] for part in parts.groups()
    )
    for name, least, load in zip(("jamba-v0.1", "mixtral-8x7b"), needed, loading, strict=True):
        assert models.fits(name).needed_bytes == pytest.approx(load, abs=0.05 * GB)
        spark.leave(least - 0.06 * GB)
        assert not models.fits(name), name
        spark.leave(least + 0.06 * GB)
        assert models.fits(name), name
    assert needed[0] > guard.SPARK  # never
    assert max(idle) - 5 * GB < needed[1] < max(idle)  # next to nothing else
    for name, load in zip(("jamba-v0.1", "mixtral-8x7b"), eight, strict=True):
        assert models.fits(name, bits=8).needed_bytes == pytest.approx(load, abs=0.05 * GB)
        spark.leave(min(idle))
        assert models.fits(name, bits=8), name


# --------------------------------------------------------------------------------------------------- the cap, and loads


def test_torch_may_take_what_is_free_less_the_reserve(spark):
    spark.allocated = 10 * GB
    guard.protect("cuda")
    most = spark.fraction * spark.total
    assert most == pytest.approx(10 * GB + pool.available("cuda") - guard.reserve("cuda")) and spark.watched == 1


def test_on_a_cpu_and_on_a_discrete_gpu_nothing_is_capped_or_watched(spark, monkeypatch):
    guard.protect("cpu")
    spark.integrated = False
    guard.protect("cuda")
    assert spark.fraction is None and spark.watched == 0


def test_a_load_that_would_touch_the_reserve_is_refused_before_a_byte_is_taken(spark, monkeypatch):
    needed = models.fits("mamba-2.8b").needed_bytes
    monkeypatch.setattr(models.checkpoints, "folder", lambda name: pytest.fail("it was fetched"))
    monkeypatch.setattr(holders, "others", lambda: [("labs/lab-2.4.3.ipynb", 77, 45 * GB)])
    spark.leave(needed + guard.reserve() - 10 * 1024)
    with memory.track("cpu") as m, pytest.raises(models.NotEnoughMemory) as error:
        models.load("mamba-2.8b")
    text = str(error.value)
    assert m.peak_bytes < 50e6 and spark.fraction is None
    assert f"beside the {memory.human(guard.reserve())} that stay free" in text and text.count(". ") == 0
    assert text.endswith("; shut down what else holds memory: labs/lab-2.4.3.ipynb (process 77, 45 GB).")
    spark.leave(needed + guard.reserve() + 10 * 1024)
    assert models.fits("mamba-2.8b")


def test_a_load_caps_torch_and_starts_the_watchdog_before_it_takes_memory(spark, monkeypatch):
    def loading(*_):
        assert 0 < spark.fraction < 1 and spark.watched == 1
        raise InterruptedError

    monkeypatch.setattr(models.loading, "from_config", loading)
    with pytest.raises(InterruptedError):
        models.load("tiny/mamba", weights="random")


# ---------------------------------------------------------------------------------------------------- levels of a cell


def levels(available: float, swap: float | None = 16) -> dict[str, int]:
    """What the kernel says of a Spark with so many GB available and of 16 GB of swap so many free; None: no swap."""
    found = {"MemTotal": guard.SPARK, "MemAvailable": int(available * GB)}
    return found if swap is None else found | {"SwapTotal": 16 * GB, "SwapFree": int(swap * GB)}


def stops(*sequence: tuple) -> list[int]:
    """At which of these levels a cell that begins at the first one is stopped."""
    cell = guard._Cell(levels(*sequence[0]))
    return [number for number, now in enumerate(sequence) if cell.why_stop(levels(*now))]


def test_a_cell_is_stopped_at_the_floor_and_not_above_it():
    assert stops((60,), (16,), (15.6,)) == [2]


def test_from_below_the_floor_no_cell_gets_to_the_unusable_level_without_a_stop():
    """Down from 15 GB in steps of 0.1: a stop every GB or less. What half of the rest would allow is 7.5 GB."""
    down = [15 - step / 10 for step in range(34)]  # to 11.7
    stopped = [down[number] for number in stops(*((level,) for level in down))]
    assert len(stopped) >= 3 and stopped[0] >= 14
    assert all(above - below < 1 for above, below in itertools.pairwise(stopped))


def test_whoever_runs_a_cell_again_and_again_is_stopped_each_time():
    level, runs = 15.0, 0
    while level > 11.7:
        cell, begin = guard._Cell(levels(level)), level
        while not cell.why_stop(levels(level)):
            level -= 0.1
        assert begin - level < 1.1
        runs += 1
    assert runs >= 4


@pytest.mark.parametrize("begin", [15, 3, 0.5])
def test_a_cell_that_begins_low_runs_while_it_takes_little_or_gives_back(begin):
    assert stops((begin,), (begin * 0.95,), (begin + 4,)) == []


def test_what_came_back_is_not_taken_again_below_the_floor():
    assert stops((10,), (14,), (13.5,), (12.9,)) == [3]
    assert stops((10,), (60,), (16,), (15.6,)) == [3]


def test_a_fall_of_free_swap_by_more_than_a_gigabyte_stops_a_cell_with_much_memory_available():
    assert stops((60, 15), (60, 14.1), (60, 13.9)) == [2]
    assert stops((60, 0.5), (60, 0)) == []  # it was used before the cell began, and little is left of it


def test_swap_that_recovers_counts_from_where_it_came_back_to():
    assert stops((60, 10), (60, 15), (60, 13.9)) == [2]
    assert stops((60, 15), (60, 13.9), (60, 13), (60, 12.8), (60, 15), (60, 13.9)) == [1, 3, 5]


def test_a_machine_without_swap_or_one_that_switches_it_off_stops_for_no_swap():
    assert stops((60, None), (60, None)) == []
    cell = guard._Cell(levels(60, 15))
    assert not cell.why_stop({"MemTotal": guard.SPARK, "MemAvailable": 59 * GB, "SwapTotal": 0, "SwapFree": 0})


# ---------------------------------------------------------------------------------------------------------- watchdog

SETUP = """
import time
from pathlib import Path
from shared import memory
from shared.machine import guard, holders, pool
pool.MEMINFO = Path({file!r})
pool.is_unified = lambda device=None: True  # this part is played; the thread, the signal and the kernel are real
holders.others = lambda: [("labs/lab-2.4.3.ipynb", 77, 45_000_000_000)]
kept = 41
with memory.track("cpu"):  # starts the watchdog
    pass
"""
CELL = """
import torch
def work():
    big = torch.ones(50_000_000)  # 200 MB
    print("working", flush=True)
    {wait}
work()
"""
NOTEBOOK = "/course/labs/lab-2.4.9-played.ipynb"
RSS = "int(open('/proc/self/statm').read().split()[1]) * 4096"


@contextmanager
def started():
    """A Jupyter kernel; `kernel.run(code)` gives what a notebook's cell would show."""
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(files.ROOT), "JPY_SESSION_NAME": NOTEBOOK}
    options = {"extra_arguments": ["--IPKernelApp.log_level=40"], "env": os.environ | env}
    manager, client = start_new_kernel(kernel_name="python3", **options)

    def run(code, while_running=lambda: None):
        shown, error = [], None

        def see(message):
            nonlocal error
            if message["msg_type"] == "stream":
                shown.append(message["content"]["text"])
                if "working" in message["content"]["text"]:
                    while_running()
            elif message["msg_type"] == "error":
                error = message["content"]

        client.execute_interactive(code, timeout=120, output_hook=see)
        return "".join(shown), error

    yield SimpleNamespace(run=run, pid=manager.provisioner.pid)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel():
    """One for all tests of the watchdog, which live on in it as a student's cells do; each begins with `SETUP`."""
    with started() as its:
        yield its


def meminfo(path: Path, available: float, swap: float = 16 * GB) -> None:
    rows = {"MemTotal": guard.SPARK, "MemAvailable": available, "SwapTotal": 16 * GB, "SwapFree": swap}
    part = path.with_suffix(".part")
    part.write_text("".join(f"{field}: {int(size) // 1024} kB\n" for field, size in rows.items()))
    part.replace(path)


@pytest.mark.parametrize(
    "wait", ["time.sleep(60)", "while True: (big @ big)"], ids=["in a call that waits", "between calls into torch"]
)
def test_the_watchdog_stops_the_cell_and_the_kernel_and_its_variables_live_on(kernel, tmp_path, wait):
    file = tmp_path / "meminfo"
    meminfo(file, 60 * GB)
    _, error = kernel.run(SETUP.format(file=str(file)))
    assert error is None, error
    start = time.monotonic()
    shown, error = kernel.run(CELL.format(wait=wait), while_running=lambda: meminfo(file, 3 * GB))
    assert "working" in shown and error["ename"] == "MemoryRanLow" and time.monotonic() - start < 30
    assert error["evalue"] == (
        "The cell was stopped: 3 GB of the memory that GPU and CPU share were left, and without any the machine hangs; "
        "your variables are kept, and models.unload() gives the models' memory back; shut down what else holds memory: "
        "labs/lab-2.4.3.ipynb (process 77, 45 GB)."
    )
    assert error["traceback"] == [f"MemoryRanLow: {error['evalue']}"]  # a sentence and no frames

    # The next cell runs, although memory is still low: giving it back must be possible.
    shown, error = kernel.run("time.sleep(0.3); print(kept + 1)")
    assert error is None and shown == "42\n"
    # One that takes much of what is left is stopped again, and once there is room the watchdog is as before.
    _, error = kernel.run("print('working', flush=True); time.sleep(60)", lambda: meminfo(file, 2.7 * GB))
    assert error["ename"] == "MemoryRanLow" and "2.7 GB" in error["evalue"]
    meminfo(file, 60 * GB)
    _, error = kernel.run("time.sleep(0.3)")
    assert error is None
    _, error = kernel.run("print('working', flush=True); time.sleep(60)", lambda: meminfo(file, 3 * GB))
    assert error["ename"] == "MemoryRanLow"


def test_a_cell_that_sends_a_gigabyte_to_swap_is_stopped_and_what_went_there_before_it_does_not_count(kernel, tmp_path):
    file, waits = tmp_path / "meminfo", "print('working', flush=True); time.sleep({})"
    meminfo(file, 60 * GB)
    kernel.run(SETUP.format(file=str(file)))
    meminfo(file, 60 * GB, swap=15.2 * GB)  # between two cells, by somebody else
    time.sleep(0.3)
    _, error = kernel.run(waits.format(0.5), lambda: meminfo(file, 60 * GB, swap=14.4 * GB))
    assert error is None, error
    _, error = kernel.run(waits.format(60), lambda: meminfo(file, 60 * GB, swap=13.2 * GB))
    assert error["ename"] == "MemoryRanLow" and error["evalue"].startswith(
        "The cell was stopped: free swap fell by 1.2 GB since it began, to 13.2 GB: memory is short, and without any "
        "the machine hangs; your variables are kept, and models.unload()"
    )
    assert error["evalue"].count(". ") == 0
    assert kernel.run("time.sleep(0.3); print(kept)") == ("41\n", None)


SCRIPT = """
import time
from pathlib import Path
from shared import memory
from shared.machine import guard, holders, pool
pool.MEMINFO = Path({file!r})
holders.others = lambda: []
guard.watch()
print("working", flush=True)
for _ in range(2):
    try:
        time.sleep(60)
    except guard.MemoryRanLow as error:
        print(error, flush=True)
"""


def test_a_script_is_stopped_by_the_swap_that_it_takes_since_the_watchdog_began_and_again(tmp_path):
    file = tmp_path / "meminfo"
    meminfo(file, 60 * GB, swap=9 * GB)
    command = [sys.executable, "-c", SCRIPT.format(file=str(file))]
    with subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout.readline() == "working\n"
        meminfo(file, 60 * GB, swap=7.5 * GB)
        assert "free swap fell by 1.5 GB since it began, to 7.5 GB" in script.stdout.readline()
        meminfo(file, 60 * GB, swap=6 * GB)
        assert "free swap fell by 1.5 GB since it began, to 6 GB" in script.stdout.readline()
        assert script.wait(30) == 0


def test_a_stopped_cell_gives_back_what_its_calls_had(kernel, tmp_path):
    file = tmp_path / "meminfo"
    meminfo(file, 60 * GB)
    kernel.run(SETUP.format(file=str(file)) + "import torch")
    before = int(kernel.run(f"print({RSS})")[0])
    _, error = kernel.run(CELL.format(wait="time.sleep(60)"), while_running=lambda: meminfo(file, 3 * GB))
    assert error["ename"] == "MemoryRanLow"
    after = int(kernel.run(f"print({RSS})")[0])
    assert after - before < 50e6  # of 200 MB


def test_a_kernel_between_two_cells_is_left_alone(kernel, tmp_path):
    file = tmp_path / "meminfo"
    meminfo(file, 60 * GB)
    kernel.run(SETUP.format(file=str(file)))
    meminfo(file, 3 * GB)
    time.sleep(0.5)
    assert kernel.run("print(kept)") == ("41\n", None)


def test_enough_memory_stops_nothing(kernel, tmp_path):
    file = tmp_path / "meminfo"
    meminfo(file, 60 * GB)
    kernel.run(SETUP.format(file=str(file)))
    assert kernel.run("time.sleep(0.5); print(kept)") == ("41\n", None)


def test_a_sweep_keeps_the_points_that_it_has_when_the_watchdog_stops_it(kernel, tmp_path):
    file = tmp_path / "meminfo"
    meminfo(file, 60 * GB)
    code = """
def slow(*args, real=timing.generation, **options):
    if args[1].shape[1] > 8:
        print("working", flush=True)
        time.sleep(60)
    return real(*args, **options)
timing.generation = slow
rows = list(timing.sweep(model, data.random_tokens(1024, [8, 16, 32]), new_tokens=3, repeats=1, warmup=1))
"""
    load = "from shared import data, models, timing\nfrom shared.machine import pool\n"
    load += "pool.is_unified = lambda device=None: False  # played by others before, and a load would ask CUDA\n"
    load += "model, _ = models.load('tiny/mamba', device='cpu')\n"
    _, error = kernel.run(load + SETUP.format(file=str(file)))
    assert error is None, error
    _, error = kernel.run(code, while_running=lambda: meminfo(file, 3 * GB))
    assert error is None, error
    shown, _ = kernel.run("print([(row['tokens'], row['status']) for row in rows])")
    assert shown == "[(8, 'ok'), (16, 'out of memory')]\n"


# ------------------------------------------------------------------------------------------------- who holds memory


@pytest.fixture
def fresh_kernel():
    with started() as its:
        yield its


def test_another_notebooks_kernel_is_named_with_its_path_and_bytes(fresh_kernel, tmp_path, monkeypatch):
    kernel = fresh_kernel
    kernel.run("import numpy; held = numpy.ones(25_000_000)")  # 200 MB
    (found,) = [k for k in holders.others() if k[1] == kernel.pid]
    assert found[0] == NOTEBOOK and 200e6 < found[2] < 600e6
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{kernel.pid}, 1000'\necho '{os.getpid()}, 7'\necho '12, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (on_gpu,) = [k for k in holders.others() if k[1] == kernel.pid]
    assert on_gpu[2] == pytest.approx(found[2] + 1000 * 2**20, rel=0.01)
    assert os.getpid() not in [pid for _, pid, _ in holders.others()]
    assert f"(process {kernel.pid}, " in holders.said() or len(holders.others()) > 3


@pytest.mark.parametrize(
    "said",
    ["NVIDIA-SMI has failed because it could not communicate with the driver.", "No devices were found, 0", "", "7,"],
)
def test_an_nvidia_smi_that_says_a_sentence_counts_for_no_process(tmp_path, monkeypatch, said):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{said}'\necho '12, 1000'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert holders._gpu_bytes() == {12: 1000 * 2**20}


def test_the_message_of_a_stop_is_an_error_of_the_course():
    assert issubclass(guard.MemoryRanLow, CourseError) and issubclass(guard.MemoryRanLow, models.NotEnoughMemory)


def test_the_page_on_machines_has_the_shares_of_the_guard():
    page = " ".join((files.ROOT / "docs" / "machines.md").read_text(encoding="utf-8").split())
    kept, floor = guard.kept(guard.SPARK), guard.floor(guard.SPARK)
    assert f"{guard.SPARK / 1e9:.0f} GB ({guard.SPARK / 2**30:.1f} GiB)" in page
    assert f"less than {guard.RESERVE:.0%} of it free ({kept / 1e9:.1f} GB)".replace("%", " %") in page
    assert f"less than {guard.FLOOR:.0%} is left ({floor / 1e9:.1f} GB)".replace("%", " %") in page
    assert f"more than {guard.SWAPPED // GB} GB to swap" in page
