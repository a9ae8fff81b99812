"""Training in two processes: the losses of one, results written once, and a lost process costs a sentence.

The lab runs as `make run LAB=2.4.6 NODES=2` runs it, up to its results, with gloo between the processes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from shared import files, notebooks
from shared.kits import finetune
from shared.notebooks import commands, launch

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "shared.notebooks.launch", "--lab", "2.4.6"]
BUILD = files.BUILD / "test-launch"  # its own: another worker may be running the same lab
RESULTS, TRAININGS = BUILD / "results", BUILD / "finetune"


def start(nodes: int) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COURSE_BUILD": str(BUILD)}
    command = [*COMMAND, "--nodes", str(nodes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=files.ROOT, env=environment, **pipes)


def finished(nodes: int) -> str:
    run = start(nodes)
    said, bar = run.communicate(timeout=600)
    assert run.returncode == 0, said + bar
    return said


def process_of(rank: int, launcher: int) -> int:
    """The process id of a worker: the child of the launcher that has this RANK."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"the launcher {launcher} has no worker {rank}")


@pytest.fixture(scope="module")
def killed() -> tuple[int, str, str]:
    """Exit code, what was said and what stood on stderr of a run that lost process 1 after its first checkpoint."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("finding a worker's process needs /proc")
    for old in TRAININGS.glob("mamba-*"):
        for file in sorted(old.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    (RESULTS / "finetune-tiny-2-processes.csv").unlink(missing_ok=True)
    run = start(2)
    for _ in range(3000):
        if any(finetune.last_checkpoint(folder) for folder in TRAININGS.glob("mamba-*")):
            break
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    os.kill(process_of(1, run.pid), signal.SIGKILL)
    said, errors = run.communicate(timeout=120)
    return run.returncode, said, errors


@pytest.fixture(scope="module")
def resumed(killed) -> str:
    return finished(2)


def test_a_killed_process_ends_the_run_with_one_sentence(killed):
    code, said, errors = killed
    assert code == 1 and "Traceback (most" not in errors + said
    (sentence,) = [line for line in errors.replace("\r", "\n").splitlines() if "Process" in line]
    assert "Process 1 of 2 was killed (SIGKILL)" in sentence and "Run the same command again" in sentence
    assert errors.strip().endswith(sentence)


def test_a_killed_run_leaves_no_process_and_no_result(killed):
    assert not (RESULTS / "finetune-tiny-2-processes.csv").exists()
    running = [f.read_bytes() for f in Path("/proc").glob("[0-9]*/cmdline") if os.access(f, os.R_OK)]
    assert not any(str(BUILD / "launch" / "lab_2_4_6.py").encode() in line for line in running)


def test_the_next_run_goes_on_from_the_checkpoint_and_ends(resumed):
    logged = [line for line in resumed.splitlines() if line.startswith("{'loss'") or "'loss':" in line]
    first, steps = int(finetune_steps()[0]), len(finetune_steps())
    assert steps == 20 and first == 8, "the losses from before the kill are in the log of the run"
    assert 0 < len(logged) < steps, "but only what came after the checkpoint was trained again"
    assert not list(TRAININGS.glob("mamba-*")), "a training that has ended leaves no checkpoints"


def finetune_steps() -> list[int]:
    return pd.read_csv(RESULTS / "finetune-tiny-2-processes-losses.csv").step.tolist()


def test_results_are_written_once(resumed):
    assert len(re.findall("^exact match, held out", resumed, flags=re.MULTILINE)) == 1, "process 1 says nothing"
    table = pd.read_csv(RESULTS / "finetune-tiny-2-processes.csv")
    assert len(table) == 1 and table.processes[0] == 2
    losses = finetune_steps()
    assert len(losses) == len(set(losses))


def test_two_processes_give_the_losses_of_one(resumed):
    finished(1)
    one, two = (
        pd.read_csv(RESULTS / f"finetune-tiny{which}-losses.csv")[["step", "train", "heldout"]]
        for which in ("", "-2-processes")
    )
    assert one.step.equals(two.step) and len(one) > 10
    for what in ("train", "heldout"):
        assert one[what].notna().equals(two[what].notna())
        apart = (one[what] - two[what]).abs()
        # Sums in another order differ by rounding, which each step passes on, and makes larger.
        assert apart[:4].max() < 1e-5 and apart.max() < 1e-3, (what, apart.tolist())
    one, two = (pd.read_csv(RESULTS / f"finetune-tiny{which}.csv") for which in ("", "-2-processes"))
    assert abs(one.exact_after[0] - two.exact_after[0]) <= 0.01 and one.trained[0] == two.trained[0]


# ---- what is said before anything starts ---------------------------------------------------------------------------


def test_the_exported_lab_is_the_solved_one_up_to_its_results():
    source = launch.export("2.4.6").read_text()
    assert "raise NotImplementedError" not in source and source.startswith("from shared.notebooks import launch")
    cells = re.findall(r"^# %% (\S+)$", source, flags=re.MULTILINE)
    code = [cell.id for cell in notebooks.read("2.4.6").cells if cell.cell_type == "code"]
    assert cells == code[: code.index("results") + 1]


LEAVES = """
import os, threading, time, torch
from shared.notebooks import launch
x = torch.ones(600, 600)
def work():
    while True:
        x @ x
for code in (0, 2, 3):
    if not os.fork():  # before torch has threads
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
        print("done")
        launch.leave(code)
    print("left with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_a_process_ends_with_its_code_while_a_thread_is_inside_torch():
    """Python's own way out would abort it: exit code -6, "terminate called without an active exception"."""
    done = subprocess.run([sys.executable, "-c", LEAVES], cwd=files.ROOT, capture_output=True, text=True)
    said = "".join(f"done\nleft with {code}\n" for code in (0, 2, 3))
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_scale_reaches_the_exported_lab():
    parts = launch.export("2.4.6", "full").read_text().split("# %% imports")[0]
    assert parts.strip().endswith("SCALE = 'full'")


@pytest.mark.parametrize(
    ("lab", "scale", "said"),
    [
        ("2.4.1", "tiny", "NODES is for a lab that trains"),
        ("9.9", "tiny", "no lab '9.9'"),
        ("2.4.6", "big", "SCALE=big"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(lab, scale, said, capsys):
    assert launch.main(["--lab", lab, "--scale", scale, "--nodes", "2"]) == 1
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes=1000"], f"at most {commands.AT_ONCE}, or name the first of several machines"),
        (["--nodes=2", f"--head={'x' * 300}"], "is no machine that is known here"),
    ],
)
def test_machines_that_are_too_many_or_unknown_are_one_sentence(arguments, said, capsys):
    assert launch.main(["--lab=2.4.6", *arguments]) == 1
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1


def test_a_second_launch_in_the_same_folder_is_one_sentence_while_the_first_one_lives(capsys, monkeypatch, tmp_path):
    """The file alone, which a launch that was killed leaves, hinders nobody."""
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    held = commands.alone("make run NODES=", tmp_path)
    assert launch.main(["--lab=2.4.6", "--nodes=2"]) == 1
    assert "Another `make run NODES=` is at work" in capsys.readouterr().err
    held.close()
    commands.alone("make run NODES=", tmp_path).close()


# ---- a mixture that does not fit one machine -----------------------------------------------------------------------

SPLIT = """
import os, sys, torch, torch.distributed as dist
from transformers import AutoModelForCausalLM, OlmoeForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils import logging
logging.set_verbosity_error(); logging.disable_progress_bar()
rank = 0 if os.fork() else 1
os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}}
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
ids = torch.arange(100, 140)[None]
load = lambda **how: AutoModelForCausalLM.from_pretrained({path!r}, dtype=torch.float32, **how).eval()
with torch.no_grad():
    whole = load()(ids).logits
    for how, config in (("tensor", DistributedConfig(tp_size=2)), ("expert", DistributedConfig(tp_size=2, ep_size=2))):
        model = load(distributed_config=config)
        off = ((model(ids).logits - whole).abs().max() / whole.abs().max()).item()
        experts = next(p for n, p in model.named_parameters() if n.endswith("experts.gate_up_proj"))
        if rank == 0:
            print(how, off, *experts.to_local().shape)
dist.destroy_process_group()
if rank == 0:
    assert os.wait()[1] == 0
"""


def test_a_mixture_split_by_tensors_or_by_experts_gives_the_logits_of_the_whole(tmp_path):
    program = SPLIT.format(path=str(files.ROOT / "data" / "tiny" / "olmoe"))
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line.split()[0]: [float(n) for n in line.split()[1:]] for line in done.stdout.strip().splitlines()}
    assert found["tensor"][1:] == [16, 48, 96], "half of every expert"
    assert found["expert"][1:] == [8, 96, 96], "every second expert, whole"
    assert max(off for off, *_ in found.values()) < 1e-5
