"""`make doctor` on machines that are not here: torch's, nvidia-smi's and the kernel's answers are put in, all else is
real. Nobody has run it on a DGX Spark yet."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import facts
import pytest
import torch
from played import RECORDED, Gpu

from shared import files, memory, notebooks
from shared.files import ROOT
from shared.hub import store
from shared.kits import forecast, plans
from shared.machine import kernels, pool
from shared.models import fitting

pytestmark = pytest.mark.slow

spec = importlib.util.spec_from_file_location("doctor_page", ROOT / "scripts/doctor.py")
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)

MEMINFO_SPARK = (RECORDED / "unified.txt").read_text()  # a small MemFree, most of the rest in the page cache


def smi(folder, monkeypatch, apps="", driver="580.95.05"):
    """An nvidia-smi that answers with this driver and these programs."""
    text = f'#!/bin/sh\ncase "$1" in *driver*) echo "{driver}" ;; *) printf "{apps}" ;; esac\n'
    (folder / "bin").mkdir()
    (folder / "bin/nvidia-smi").write_text(text)
    (folder / "bin/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)


def device(monkeypatch, gpu: Gpu) -> None:
    """torch, as it answers with this GPU, whose rates cannot be measured."""
    gpu.plugged_in(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    here = dataclasses.replace(forecast.SPARK, name="this machine")
    monkeypatch.setattr(forecast, "machine", lambda device=None, dtype=torch.bfloat16: here)


def meminfo(tmp_path, monkeypatch, text):
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(pool, "MEMINFO", tmp_path / "meminfo")


def read(found) -> str:
    """The page as its reader sees it: no line is wider than the terminal."""
    text = page.page(found)
    assert max(map(len, text.splitlines())) <= 100
    return text


@pytest.fixture
def spark(spark, tmp_path, monkeypatch):
    """A DGX Spark with one program on its GPU."""
    smi(tmp_path, monkeypatch, f"{os.getppid()}, [N/A]\\n")
    device(monkeypatch, spark)
    return spark


# ---- this machine -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """A folder with a cuDNN, as CUDA's own packages or an older tutorial leave one, and a folder without."""
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "cudnn").mkdir()
    (folder / "cudnn/libcudnn_graph.so.9").touch()
    (folder / "others").mkdir()
    (folder / "others/libother.so").touch()
    return folder / "cudnn", folder / "others"


def make_doctor(*arguments: str) -> subprocess.CompletedProcess:
    """`make doctor` without a network."""
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = ["make", "--no-print-directory", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def here(libraries) -> SimpleNamespace:
    """What `make doctor` prints on this machine, and what it says as JSON with a foreign cuDNN on the path."""
    before = os.times().children_user
    done = make_doctor()
    spent = os.times().children_user - before
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setenv("LD_LIBRARY_PATH", f"{libraries[1]}:{libraries[0]}::/nowhere")
        with redirect_stderr(io.StringIO()) as warned:
            assert page.main(["--json=yes"]) == 0
    facts = json.loads(out.getvalue())
    return SimpleNamespace(text=done.stdout, facts=facts, warned=warned.getvalue(), seconds=spent)


def test_the_page_has_every_part_fits_the_terminal_and_takes_seconds(here):
    lines = here.text.splitlines()
    labels = [line.split()[0] for line in lines if line and not line.startswith((" ", "2."))]
    machine = ["What", "Machine", "Packages", "GPU", "Kernels", "Memory", "Swap", "Disk", "Cache"]
    assert labels == [*machine, "Lab", "Solved", "Not"]
    assert max(map(len, lines)) <= 100 and len(lines) < 60
    assert here.seconds < 30


def test_json_has_the_facts_of_the_page(here):
    facts = here.facts
    assert set(facts) == {"machine", "gpu", "kernels", "memory", "disk", "labs", "solved"}
    assert facts["machine"]["packages"]["torch"] == torch.__version__
    assert {(row["lab"], row["scale"]) for row in facts["labs"]} == {
        (lab, scale) for lab in notebooks.labs() for scale in notebooks.SCALES
    }
    assert "JSON=perhaps" in make_doctor("JSON=perhaps").stderr  # so make hands it on


def test_every_no_comes_with_the_command_that_changes_it(here):
    for row in here.facts["labs"]:
        assert row["runs"] or (row["why"] and row["change"]), row
    lines = here.text.splitlines()
    for number, line in enumerate(lines):
        if " no " in line[:24]:
            assert any("-> " in after for after in lines[number + 1 : number + 5]), line


def test_a_scale_has_the_needs_that_its_lab_documents(here):
    row = next(row for row in here.facts["labs"] if (row["lab"], row["scale"]) == ("2.4.1", "tiny"))
    assert row["memory_bytes"] == 2e9 and row["minutes"] in (
        "about a minute on two cores",
        facts.minutes("2.4.1", "tiny"),
    )


def test_minutes_are_those_of_the_last_run_here(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    file = tmp_path / "executed" / notebooks.path_of("2.4.1").name
    assert facts.minutes("2.4.1", "tiny") == "about a minute on two cores"
    file.parent.mkdir()
    run = {"duration": 90.0, "parameters": {"SCALE": "tiny"}, "exception": None}
    file.write_text(json.dumps({"metadata": {"papermill": run}}))
    assert facts.minutes("2.4.1", "tiny") == "1.5 min, the last run here"
    assert facts.minutes("2.4.1", "full", 600) == "10 min, computed"
    assert facts.minutes("2.4.1", "full") == "not measured yet"
    file.write_text(json.dumps({"metadata": {"papermill": {**run, "exception": True}}}))
    assert facts.minutes("2.4.1", "tiny") == "about a minute on two cores"


def test_scale_full_has_the_time_and_the_memory_of_its_plan(tmp_path, monkeypatch):
    device = {"name": None, "why": "PyTorch sees no NVIDIA GPU", "change": "take a machine with one"}
    made = plans.lab("2.4.1", plans.default_settings("2.4.1"), on=forecast.SPARK)
    row = facts.full("2.4.1", device)
    assert (row["forecast_for"], row["forecast_seconds"]) == ("DGX Spark", made.seconds)
    text = "\n".join(page.lab_lines([row]))
    assert memory.human(made.peak_bytes) in text and f"{plans.duration(made.seconds)}, computed" in text
    assert "as computed for a DGX Spark, since no GPU answers here; not measured" in page.full_line([row])


def test_a_gpu_that_answers_is_planned_for_and_a_full_one_is_not_asked(spark, monkeypatch):
    row = facts.full("2.4.1", facts.gpu())
    assert row["forecast_for"] == "this machine" and "from three rates measured on it" in page.full_line([row])
    monkeypatch.setattr(pool, "available", lambda device=None: 10**9)
    assert facts.full("2.4.1", facts.gpu())["forecast_for"] == "DGX Spark"


# ---- machines that are not here ---------------------------------------------------------------------------------


def test_a_spark_is_unified_and_its_warning_harmless(spark):
    text = read(facts.facts())
    assert "NVIDIA GB10, compute capability 12.1, 131 GB, one memory for CPU and GPU (unified)" in text
    assert "driver 580.95.05, PyTorch for CUDA 13.0" in " ".join(text.split())
    assert "runs PyTorch's code for sm_120, so a warning that sm_121 is missing is harmless" in " ".join(text.split())
    assert "Kernels     not installed" in text and "-> make kernels\n" in text


def test_a_spark_counts_the_page_cache_as_free_and_swap_not(spark):
    found = facts.memory_now()
    assert found["device_available"] == 101234567 * 1024 > 30 * torch.cuda.mem_get_info()[0]
    assert found["page_cache"] == (92345678 + 412345 + 912345 - 12345) * 1024
    assert found["free"] == 9012345 * 1024 and found["dirty"] == (2345678 + 123456) * 1024
    assert found["swap_free"] == found["swap_total"] == 16777212 * 1024
    text = " ".join(read(facts.facts()).split())
    assert (
        "104 GB of 131 GB available; 9.23 GB free, and page cache 95.9 GB, which Linux gives back when it is needed "
        "(2.53 GB are not on the disk yet)" in text
    )
    assert "not counted as memory" in text


def test_a_spark_tells_its_reserve_the_watchdogs_floor_and_what_a_full_page_cache_does(spark, monkeypatch, tmp_path):
    text = " ".join(read(facts.facts()).split())
    assert "loads and sweeps leave 19.6 GB available, and a cell is stopped below 15.7 GB" in text
    assert "may not start beside a large one -> sync; echo 1 | sudo tee /proc/sys/vm/drop_caches" in text
    meminfo(tmp_path, monkeypatch, MEMINFO_SPARK.replace("   9012345 kB", "  90123456 kB"))
    text = " ".join(read(facts.facts()).split())
    assert "90.1 GB" not in text and "92.3 GB free" in text and "drop_caches" not in text


def test_a_machine_whose_kernel_says_little_has_its_page_all_the_same(monkeypatch, tmp_path):
    meminfo(tmp_path, monkeypatch, "MemTotal: 16000000 kB\nMemFree: 9000000 kB\nCached: 1000000 kB\n")
    text = " ".join(read(facts.facts()).split())
    assert "10.2 GB of 16.4 GB available; 9.22 GB free" in text and "Swap none" in text and "a cell is" not in text


def test_what_a_spark_lacks_for_a_lab_is_a_download(spark, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "local", lambda name, split=None: None)
    row = facts.full("2.4.1", facts.gpu())
    assert not row["runs"] and row["change"] == "make fetch LAB=2.4.1 SCALE=full"
    assert "mamba-2.8b, pythia-2.8b, pg19 (16.6 GB)" in row["why"]
    monkeypatch.setattr(files, "free", lambda folder: 10**9)
    assert "HF_HOME" in facts.full("2.4.1", facts.gpu())["change"]
    monkeypatch.setattr(store, "local", lambda name, split=None: tmp_path)
    assert facts.full("2.4.1", facts.gpu())["runs"]


def test_a_cache_where_no_folder_can_be_made_is_no_small_disk(spark, monkeypatch):
    monkeypatch.setattr(store, "storage", lambda source: Path("/proc/x/hub") / source.repo)
    found = facts.facts()
    assert "cannot be made or written in (No such file or directory)" in " ".join(read(found).split())
    row = next(row for row in found["labs"] if (row["lab"], row["scale"]) == ("2.4.1", "full"))
    assert "cannot be made" in row["why"] and row["change"] == "export HF_HOME=<a folder that you may write in>"


def test_a_full_spark_says_which_model_does_not_fit(spark, monkeypatch, tmp_path):
    meminfo(tmp_path, monkeypatch, MEMINFO_SPARK.replace("101234567", "3000000"))
    row = facts.full("2.4.1", facts.gpu())
    assert not row["runs"] and row["why"].startswith("pythia-2.8b does not fit: it needs ")
    assert row["memory_bytes"] == fitting.fits("pythia-2.8b").needed_bytes and "close other" in row["change"]


def test_a_discrete_gpu_has_memory_of_its_own(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, f"{os.getppid()}, 2048\\n")
    device(monkeypatch, Gpu("NVIDIA H100 80GB HBM3", (9, 0), total=85 * 10**9, free=80 * 10**9))
    found = facts.facts()
    text = read(found)
    assert "memory of its own" in text and "on the GPU 80 GB of 85 GB available" in text
    assert "runs PyTorch's code for sm_90 (" in text and "harmless" not in text
    (row,) = [row for row in found["memory"]["holders"] if row["pid"] == os.getppid()]
    assert row["gpu_bytes"] == 2048 * 2**20 and "2.15 GB on the GPU held by" in text


def test_a_gpu_that_this_torch_has_no_code_for_is_a_no(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch)
    device(monkeypatch, Gpu("Tesla V100", (7, 0), total=16 * 10**9, free=15 * 10**9))
    text = read(facts.facts())
    assert "no code for compute capability 7.0" in text and "TORCH_INDEX_URL" in text
    assert not any(row["runs"] for row in facts.facts()["labs"] if row["scale"] == "full")


@pytest.mark.parametrize(("cuda", "says"), [(None, "a build without CUDA"), ("13.0", "its driver 470.1 does not do")])
def test_a_gpu_that_torch_cannot_use_says_what_is_in_the_way(tmp_path, monkeypatch, cuda, says):
    smi(tmp_path, monkeypatch, driver="470.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = facts.gpu()
    assert says in found["why"] and found["change"]


@pytest.mark.parametrize(
    ("body", "heard"),
    [
        ("echo No devices were found", " (nvidia-smi says: No devices were found)"),
        ("echo NVIDIA-SMI has failed; exit 9", " (nvidia-smi says: NVIDIA-SMI has failed)"),
        ("echo Failed to initialize NVML >&2; exit 18", " (nvidia-smi says: Failed to initialize NVML)"),
        ("echo '[N/A]'", " (nvidia-smi says: [N/A])"),
        ("echo '[Not Supported], [Not Supported]'", " (nvidia-smi says: [Not Supported], [Not Supported])"),
        ("printf '\\377\\n'", " (nvidia-smi says: \ufffd)"),
        ("exit 255", ""),
        ("kill -9 $$", ""),
        ("sleep 9", " (nvidia-smi says: nothing in 0.2 seconds)"),
    ],
)
def test_an_nvidia_smi_without_a_driver_is_told_with_what_it_says(body, heard, tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch)
    (tmp_path / "bin/nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(facts, "PATIENCE", 0.2)
    found = facts.gpu()
    assert found["driver"] is None and found["why"] == f"PyTorch sees no NVIDIA GPU{heard}; scale tiny needs none"


@pytest.mark.parametrize("said", ["580.1\\n580.1\\n", "\\n580.1\\n", "WARNING: infoROM is corrupted\\n580.1\\n"])
def test_the_driver_is_found_among_several_gpus_and_warnings(said, tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch)
    (tmp_path / "bin/nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}'\n")
    assert facts.gpu()["driver"] == "580.1"


SECTIONS = {"Machine": "machine", "GPU": "gpu", "Kernels": "compiled", "Memory": "memory_now", "Disk": "disk"}


@pytest.mark.parametrize("label", SECTIONS)
def test_a_section_that_cannot_be_read_says_why_and_the_others_are_shown(label, monkeypatch):
    def fails():
        raise PermissionError(13, "Permission denied", "/sys")

    monkeypatch.setattr(facts, SECTIONS[label], fails)
    monkeypatch.setattr(notebooks, "labs", lambda: ["2.4.2"])
    found = facts.facts()
    text = " ".join(read(found).split())
    assert re.search(rf" {label} [^>]*cannot be read here \(PermissionError: .*/sys'\)", text) and "2.4.2 tiny" in text
    assert all(f" {other} " in text for other in SECTIONS) and json.dumps(found)


def test_a_lab_of_which_nothing_can_be_computed_says_why(monkeypatch):
    def fails(device=None):
        raise RuntimeError("no such counter")

    monkeypatch.setattr(pool, "available", fails)
    rows = facts.rows("2.4.1", {"name": None, "why": "no GPU", "change": "take one"})
    assert [row["why"] for row in rows] == ["RuntimeError: no such counter"] * 2 and page.lab_lines(rows)


def test_little_memory_is_a_no_at_scale_tiny(tmp_path, monkeypatch):
    meminfo(tmp_path, monkeypatch, MEMINFO_SPARK.replace("101234567", "900000"))
    row = facts.tiny("2.4.1")
    assert not row["runs"] and row["why"] == "922 MB of memory are free" and "close other notebooks" in row["change"]


# ---- a cuDNN that is not PyTorch's ------------------------------------------------------------------------------

ABORTS = "import os\nos.abort()\n"


def test_a_foreign_cudnn_is_named_with_its_remedy_before_torch_dies_of_it(libraries, tmp_path):
    """As a real one may: at import."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(ABORTS)
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries[0]), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, ROOT / "scripts/doctor.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT
    said = " ".join(done.stdout.split())
    assert said == (
        f"cuDNN LD_LIBRARY_PATH names {libraries[0]}, with a cuDNN that is not PyTorch's: importing PyTorch may abort "
        "-> unset LD_LIBRARY_PATH"
    )


def test_other_entries_of_the_path_stay_and_the_page_follows_where_torch_lives(libraries, here):
    found = here.facts["gpu"]["foreign_cudnn"]
    assert found["change"] == f"export LD_LIBRARY_PATH={libraries[1]}:/nowhere" and found["change"] in here.warned
    assert str(libraries[0]) in found["why"]


def test_no_cudnn_on_the_path_or_this_environments_own_is_not_named(libraries, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{libraries[1]}:/nowhere")
    assert page.foreign_cudnn() is None
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert page.foreign_cudnn() is None
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries[0]))
    assert page.foreign_cudnn() is not None
    monkeypatch.setattr(sys, "prefix", str(libraries[0].parent))
    assert page.foreign_cudnn() is None


# ---- who holds memory -------------------------------------------------------------------------------------------


def test_a_notebook_is_named_by_its_file_and_what_it_holds():
    """A process that looks as a Jupyter kernel does, and holds 300 MB."""
    code = "import sys, time\nheld = bytearray(300_000_000)\nprint('ready', flush=True)\ntime.sleep(60)"
    env = {**os.environ, "JPY_SESSION_NAME": "/home/me/labs/lab-2.4.5-comparison.ipynb"}
    command = [sys.executable, "-c", code, "-m", "ipykernel_launcher", "-f", "kernel-1.json"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        (row,) = [row for row in facts.holders(most=100) if row["pid"] == process.pid]
    finally:
        process.kill()
        process.wait()
    assert row["notebook"] == "lab-2.4.5-comparison.ipynb" and 300e6 < row["resident_bytes"] < 400e6
    found = {"available": 1, "total": 2, "swap_total": 0, "swap_free": 0, "holders": [row]}
    text = "\n".join(page.memory_lines(found, {"name": None}))
    assert f"held by lab-2.4.5-comparison.ipynb (pid {process.pid})" in text and "Shut Down Kernel" in text


# ---- kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "torch_version", "says"),
    [
        (("installed", ""), torch.__version__, "built for 12.1 on 2026-01-01, all 1 comparisons with float64 right"),
        (("installed", ""), "2.12.0", "built for torch 2.12.0, and"),
        (("broken", "ImportError: undefined symbol"), torch.__version__, "broken: ImportError: undefined symbol"),
    ],
    ids=["right", "stale", "broken"],
)
def test_the_kernels_are_told_with_their_check(tmp_path, monkeypatch, spark, status, torch_version, says):
    (tmp_path / "kernels/mamba_ssm").mkdir(parents=True)
    (tmp_path / "kernels/mamba_ssm/__init__.py").touch()
    checks = [{"name": "mamba_selective_scan", "passed": True}]
    record = {"torch": torch_version, "architecture": "12.1", "date": "2026-01-01", "checks": checks}
    (tmp_path / "kernels/built.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(str(tmp_path / "kernels"))
    monkeypatch.setattr(kernels, "status", lambda: status)
    text = " ".join(" ".join(page.kernel_lines(facts.compiled())).split())
    assert says in text
    assert ("-> make kernels" in text) == ("all 1" not in text)


def test_kernels_from_elsewhere_are_not_called_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "status", lambda: ("installed", ""))
    assert "nobody compared them here" in "\n".join(page.kernel_lines(facts.compiled()))
