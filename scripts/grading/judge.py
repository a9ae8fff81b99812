"""What runs inside a sandbox: submitted notebooks, one after the other, against the official labs and checks.

Three processes stand one below the other. The first has imported everything and never sees a submission. It forks one
process for each submission, which reads the notebook and runs what the official lab has above an exercise. That one
forks a process for each exercise, and only there the student's code runs: it hands its function to the official check
and writes the verdict, with a key, into a pipe. Whatever that process does to its memory ends with it.

A verdict counts when it comes with the key and is all that the pipe holds, when the functions of `shared` and of the
libraries are the same after the check as before, and, for a right answer, when the check then still refuses a function
that gives None and still accepts the course's own.
"""

import contextlib
import ctypes
import json
import os
import random
import resource
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy
import psutil
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from grading import rows
from grading.lab import Submission
from grading.unchanged import functions, replaced
from shared.checks import lab_2_4_1, lab_2_4_2, lab_2_4_3, lab_2_4_4, lab_2_4_5, lab_2_4_6
from shared.errors import CourseError
from shared.notebooks import notice, source

CHECKS = {
    check.cell_id: check
    for module in (lab_2_4_1, lab_2_4_2, lab_2_4_3, lab_2_4_4, lab_2_4_5, lab_2_4_6)
    for check in vars(module).values()
    if hasattr(check, "cell_id")
}
RESULTS = {notice.PASSED: rows.SOLVED, notice.FAILED: rows.WRONG, notice.OPEN: rows.OPEN}
MEMORY = 2 * 2**30  # bytes that an exercise's process may ask for beside those it begins with
FILE_BYTES = 64 * 2**20
PROCESSES = 64
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # of linux/prctl.h


def begin(user: int | None) -> None:
    """Give up what a student's code must not have: root, and that its processes can look into this one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


# ---- the first process ---------------------------------------------------------------------------------------------


def serve(channel: socket.socket, folder: Path) -> None:
    """Judge the submissions that come through the channel, until it is closed, or one has left something behind.

    A job is a line with what is known about the submission, and the open file. Answered are, each a line of JSON: the
    lab; each exercise as it begins, and its row; at the end whether nothing is left of it.
    """
    kept = set(folder.iterdir())
    warm_up(folder)
    swept(folder, kept)
    say(channel, ready=True)
    while True:
        line, handles, _, _ = socket.recv_fds(channel, 2**20, 1)
        if not line:
            return
        job = json.loads(line)
        process = os.fork()
        if not process:
            try:
                judge_submission(channel, folder, job, handles[0])
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(handles[0])
        status = os.waitpid(process, 0)[1]
        end_children()
        clean = swept(folder, kept)
        say(channel, ended=os.waitstatus_to_exitcode(status), clean=clean)
        if not clean:
            return


def say(channel: socket.socket, **message) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def warm_up(folder: Path) -> None:
    """Import, once for all submissions, what the labs import."""
    with contextlib.suppress(OSError):  # matplotlib looks a while for fonts where it has no list of them
        shutil.copytree(Path(sys.prefix) / "matplotlib", folder / "matplotlib")
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    for lab in source.labs():
        for cell in source.read(lab).cells:
            if cell.id in ("parameters", "imports", "settings"):
                shell.run_cell(cell.source).raise_error()
    shell.reset(new_session=False)


def end_children() -> int:
    """End all processes that began below this one, and say how many there were."""
    ended = 0
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                ended += 1
        time.sleep(0.01)
    return ended


def swept(folder: Path, kept: set[Path]) -> bool:
    """Whether all that was written could be deleted again."""
    for path in set(folder.iterdir()) - kept:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return set(folder.iterdir()) == kept


# ---- the process of a submission -----------------------------------------------------------------------------------


def judge_submission(channel: socket.socket, folder: Path, job: dict, handle: int) -> None:
    """Say a row for each exercise that is not known yet, or the problem with the whole notebook."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    place = folder / "submission"
    place.mkdir()
    path = place / Path(job["name"]).name
    with open(handle, "rb") as file, path.open("wb") as copy:
        shutil.copyfileobj(file, copy)
    try:
        submission = Submission(path)
    except CourseError as problem:
        say(channel, problem=str(problem))
        return
    shutil.rmtree(place)
    kept = set(folder.iterdir())
    say(channel, lab=submission.lab, exercises=list(submission.answers))
    shell = InteractiveShell.instance()
    its = source.solution(submission.lab)
    shell.user_ns.update({name: getattr(its, name) for name in map(source.name_of, submission.answers)})
    copies = source.run_solutions(submission.lab)  # a check takes the solution's own functions for answers not run
    known = {each["exercise"]: each["result"] for each in job["known"]}
    ran: set[str] = set()
    for exercise in submission.answers:
        if exercise in known:
            continue
        if not submission.cells(exercise):
            row = rows.row(exercise, rows.MISSING, f"No cell defines {source.name_of(exercise)}.")
        else:
            needed = submission.needed(exercise, {each for each, result in known.items() if result == rows.SOLVED})
            for cell in submission.official.cells:
                if cell.id in needed.official and cell.id not in ran:
                    shell.run_cell(cell.source).raise_error()
                    ran.add(cell.id)
            say(channel, begins=exercise)
            row = judge_apart(channel, exercise, needed.sources, getattr(copies, source.name_of(exercise)))
            left = "Processes that it had started were still running." if end_children() else ""
            swept(folder, kept)
            row["note"] = " ".join(filter(None, [submission.note(exercise), left]))
        known[exercise] = row["result"]
        say(channel, row=row)


def judge_apart(channel: socket.socket, exercise: str, sources: list[str], own: Callable) -> dict[str, str]:
    """The row of an exercise, judged in a process of its own."""
    key = secrets.token_hex(16)
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        leave = os._exit  # whatever the code puts in its place
        try:
            channel.close()
            os.close(reader)
            judge_here(exercise, sources, own, key, writer)
        finally:
            leave(1)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.set_blocking(reader, False)  # a process that is left may hold the other end
    try:
        written = os.read(reader, 2**16).decode("utf-8", "replace")
    except BlockingIOError:
        written = ""
    os.close(reader)
    if written.startswith(key):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            its = json.loads(written.removeprefix(key))
            return rows.row(exercise, its["result"], its["sentence"])
    if written:
        return rows.row(exercise, rows.PATCHED, "The code wrote into the channel of the verdicts.")
    if status == -signal.SIGXCPU:
        return rows.row(exercise, rows.STOPPED, rows.TOO_LONG)
    how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended itself (exit code {status})"
    return rows.row(exercise, rows.STOPPED, f"The process {how} before there was a verdict.")


# ---- the process of an exercise ------------------------------------------------------------------------------------


def judge_here(exercise: str, sources: list[str], own: Callable, key: str, writer: int) -> None:
    """Run the student's cells, have the check judge, write the row into the pipe, end this process."""
    write, dumps, process, whose = os.write, json.dumps, os.getpid(), os.getpid
    judge, before = CHECKS[exercise].judge, functions()
    limit()
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    try:
        row = verdict(exercise, sources, judge)
        if changed := replaced(before):
            sentence = f"The code replaced {', '.join(changed[:5])}, with which it is judged."
            row = rows.row(exercise, rows.PATCHED, sentence)
        elif row["result"] == rows.SOLVED and (
            judge(lambda *args, **kwargs: None).mark != notice.FAILED or judge(own).mark != notice.PASSED
        ):
            row = rows.row(exercise, rows.PATCHED, "After the code ran, its check no longer told right from wrong.")
    except BaseException as problem:
        sentence = f"The code could not be judged ({type(problem).__name__}: {str(problem)[:200]})."
        row = rows.row(exercise, rows.STOPPED, sentence)
    if whose() == process:  # a copy of this process, which the code has made, has no say
        write(writer, (key + dumps(row)).encode())


def limit() -> None:
    """Bound this process, and those that it starts, by the kernel."""
    own = psutil.Process().memory_info().vms
    limits = {
        resource.RLIMIT_CPU: (rows.CPU_SECONDS, rows.CPU_SECONDS + 1),
        resource.RLIMIT_AS: (own + MEMORY, own + MEMORY),
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
    }
    if "GRADING_ISOLATED" in os.environ:  # else it would count what else this user runs
        limits[resource.RLIMIT_NPROC] = (PROCESSES, PROCESSES)
    for what, bounds in limits.items():
        resource.setrlimit(what, bounds)
    os.register_at_fork(after_in_child=lambda: os.nice(19))  # a thousand copies do not keep this one from its end


def verdict(exercise: str, sources: list[str], judge: Callable) -> dict[str, str]:
    """What the check says about the function that the student's cells define."""
    shell = InteractiveShell.instance()
    name = source.name_of(exercise)
    shell.user_ns.pop(name)
    error = None
    for text in sources:
        ran = shell.run_cell(text)
        error = ran.error_before_exec or ran.error_in_exec or error
    if name in shell.user_ns:
        its = judge(shell.user_ns[name])
        said = its.text.removesuffix(notice.GOES_ON).rstrip()
        return rows.row(exercise, RESULTS[its.mark], said)
    if isinstance(error, SyntaxError):
        return rows.row(exercise, rows.WRONG, f"The cell is no Python (line {error.lineno}: {error.msg}).")
    if error is not None:
        return rows.row(exercise, rows.WRONG, f"The cell raised {type(error).__name__}: {error}.")
    return rows.row(exercise, rows.MISSING, f"The cell does not define {name}.")


if __name__ == "__main__":
    user = int(sys.argv[2]) if sys.argv[2] else None
    begin(user)
    serve(socket.socket(fileno=int(sys.argv[1])), Path(tempfile.gettempdir()))
