"""Run a solved lab's training in several processes, on one machine or on several: `make run LAB=2.4.6 NODES=2`.

The lab becomes a plain Python file, build/launch/lab_2_4_6.py, that torchrun (called here) or `accelerate launch`
starts once per process. Trainer sees the others and shares each batch among them; process 0 prints and writes. The
file ends where the results are written: what the lab looks at afterwards needs one machine.
"""

import os
import re
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from shared import files, notebooks
from shared.errors import BadInput, CourseError
from shared.machine import process
from shared.notebooks import commands

FOLDER = files.BUILD / "launch"
LAST = {"2.4.6": "results"}  # lab -> the cell at which the file ends
PORT = 29500


def export(lab: str, scale: str = "tiny") -> Path:
    """Write the solved lab as a Python file, up to its results, and return its path.

    Raises: BadInput in one sentence where the lab or the scale is unknown, or the lab does not train.
    """
    notebooks.check_scale(scale)
    notebook = notebooks.solve(lab)
    if lab not in LAST:
        raise BadInput(f"NODES is for a lab that trains in several processes: {', '.join(LAST)}, not {lab}.")
    if LAST[lab] not in {cell.id for cell in notebook.cells}:
        path = notebooks.path_of(lab)
        raise BadInput(
            f"{path.name} has no cell `{LAST[lab]}`, where the training ends: keep your file under another name, then "
            f"take the course's own again: {notebooks.remedy(path)}"
        )
    parts = ["from shared.notebooks import launch\n\nlaunch.lab_worker()"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts.append(f"# %% {cell.id}\n{cell.source}")
        if "parameters" in cell.metadata.get("tags", []):
            parts.append(f"SCALE = {scale!r}")
        if cell.id == LAST[lab]:
            break
    parts.append("launch.leave()")
    path = FOLDER / notebooks.solutions_path(lab).name
    files.write(path, "\n\n".join(parts) + "\n")
    return path


def worker() -> None:
    """What a process of several does first, for the rest of its life: end with the launcher, leave its traceback there.

    Where somebody's own launcher has started it, nothing changes.
    """
    if folder := os.environ.get("COURSE_LAUNCH"):
        process.end_with(int(os.environ["COURSE_LAUNCHER"]))
        log = _log(Path(folder), int(os.environ["RANK"]))
        sys.excepthook = lambda *error: files.write(log, "".join(traceback.format_exception(*error)))


def lab_worker() -> None:
    """As `worker`; and stand where a notebook stands, take a GPU of its own, leave the talking to process 0."""
    import torch

    worker()
    os.chdir(files.LABS)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives


def leave(code: int = 0) -> NoReturn:
    """End a process of several at once, with `code`, in the place of Python's own way out.

    Python takes itself apart at its end, and a thread of torch or gloo that wants it just then (to give back a tensor)
    aborts the process: "terminate called without an active exception", exit code -6, after all work was done. So the
    group's threads are joined first and nothing is taken apart, as multiprocessing ends its processes.
    """
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _log(folder: Path, rank: int) -> Path:
    """Where a process leaves its traceback: when one is lost, the others raise too, and nobody can read that."""
    return folder / f"process-{rank}.log"


def launch(lab: str, scale: str, nodes: int, head: str = "") -> None:
    """Train in `nodes` processes, on this machine or, with the name of the first machine in `head`, one on each.

    Raises: BadInput for what cannot be started. CourseError in one sentence where another launch is at work here, and
        when a process ends early; the others are then stopped.
    """
    script = export(lab, scale)
    if head:
        _check_head(head)
    elif nodes > commands.AT_ONCE:
        raise BadInput(
            f"NODES={nodes} processes are too many for this machine, which has {os.cpu_count()} cores: give at most "
            f"{commands.AT_ONCE}, or name the first of several machines with HEAD=."
        )
    # Several machines may share this folder, and each has a part in the same launch.
    held = None if head else commands.alone("make run NODES=", FOLDER)
    where = ["--standalone", f"--nproc-per-node={nodes}"]
    goes_on = "the training goes on from its last checkpoint"
    if head:
        where = [f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-id={lab}"]
        where.append(f"--rdzv-endpoint={head}:{PORT}")
    try:
        torchrun([str(script)], where, nodes, FOLDER, goes_on)
    finally:
        if held:
            held.close()


def _check_head(head: str) -> None:
    """Raise BadInput for a machine that has no address."""
    known = re.fullmatch(r"[\w:][\w.:-]*", head) is not None  # else it need not be asked for, which may take a while
    try:
        known = known and socket.getaddrinfo(head, PORT)
    except (OSError, UnicodeError):
        known = False
    if not known:
        raise BadInput(f"HEAD={head} is no machine that is known here: give the first one's name or address.")


def torchrun(command: list[str], where: list[str], nodes: int, folder: Path, goes_on: str) -> None:
    """Run a program of Python in several processes, as torchrun does it on the command line.

    All end with this process, also by SIGKILL, if they call `worker`; where one ends too early, the others are stopped.

    Args:
        command: the program and its arguments. where: arguments of torchrun that say how many, and on which machines.
        nodes: how many, for the sentence. folder: for tracebacks. goes_on: what a second call does, as a clause.

    Raises: Lost in one sentence where a process ends early or the connection to another machine is lost.
    """
    for old in folder.glob("process-*.log"):
        old.unlink()
    # The warnings of torch's C++ about a lost process are a page long, and so is the report of a failure.
    quiet = process.environment(TORCH_CPP_LOG_LEVEL="ERROR")
    for_workers = process.environment(COURSE_LAUNCH=str(folder), COURSE_LAUNCHER=str(os.getpid()))
    with quiet, for_workers, process.silent("torch.distributed.elastic"):
        import torch.distributed
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.run import parse_args, run

        try:
            run(parse_args([*where, "--max-restarts=0", "--monitor-interval=0.1", *command]))
        except ChildFailedError as failed:
            codes = {failure.exitcode for failure in failed.failures.values()}
            raise Lost(_sentence(failed.failures, nodes, folder, goes_on), codes) from None
        except (RendezvousError, torch.distributed.DistError) as lost:
            raise Lost(
                f"The connection to the other machines was lost ({type(lost).__name__}): start the same command on "
                f"each of them, and {goes_on}."
            ) from None


class Lost(CourseError):
    """One of several processes ended too early. codes: with which they ended."""

    def __init__(self, sentence: str, codes: set[int] = frozenset()):
        super().__init__(sentence)
        self.codes = codes


def _sentence(failures: dict, nodes: int, folder: Path, goes_on: str) -> str:
    """Which process ended the run, and what to do.

    Who was killed comes first: who raised has often only lost the other. SIGTERM is what those get that are stopped.
    """
    order = lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].exitcode >= 0, item[0])  # noqa: E731
    rank, failure = min(failures.items(), key=order)
    log = _log(folder, rank)
    if failure.exitcode < 0:
        what = f"was killed ({signal.Signals(-failure.exitcode).name})"
    else:
        text = log.read_text().strip() if log.exists() else ""
        what = f"stopped: {text.splitlines()[-1]}" if text else f"ended with exit code {failure.exitcode}"
        if "gloo" in text or "NCCL" in text:
            what = "lost its connection to a process on another machine"
    said = f"Process {rank} of {nodes} {what}, and the others were stopped. Run the same command again: {goes_on}."
    return said + (f" (Tracebacks are in {folder}.)" if list(folder.glob("process-*.log")) else "")


@commands.program()
def main(arguments: list[str] | None = None) -> int:
    """Train a lab in several processes."""
    parser = commands.Parser(main.__doc__, prog="python -m shared.notebooks.launch")
    parser.add_argument("--lab", required=True, help="such as 2.4.6")
    parser.add_argument("--scale", default="tiny", help="tiny or full")
    parser.add_argument(
        "--nodes", type=commands.whole("NODES", most=1024), required=True, help="or machines, with --head"
    )
    parser.add_argument("--head", default="", help="name or address of the first machine; call this on each of them")
    options = parser.parse_args(arguments)
    launch(options.lab, options.scale, options.nodes, options.head)
    print(f"{options.nodes} processes have trained; their results are in {files.BUILD / 'results'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
