"""A process that judges submissions, apart from everything else on this machine, with bounds on what it takes.

bubblewrap gives it an own view: the course and its Python, read-only; a small disk in memory; no network, no home, no
other process. The kernel bounds each exercise's processor time, memory, files and processes (`judge.limit`); what is
left to bound from outside, time by the clock, memory of all processes together and printed output, is bounded here.
"""

import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from grading import rows
from shared import files
from shared.errors import CourseError

START_SECONDS = 600  # to import everything, on a busy machine
READ_SECONDS = 120  # a notebook, and what the lab has above an exercise
MEMORY = 3 * 2**30  # bytes that all processes of an exercise may hold beside what they begin with
DISK = 256 * 2**20
OUTPUT = 10 * 2**20
LOOK = 0.2  # seconds between two looks at time and memory
USERS = range(61184, 65520)  # nobody's: systemd hands these numbers out to services for a while
NUMBERS = itertools.count()  # a user for each sandbox: the kernel counts a user's processes together
SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)


def check_isolation() -> None:
    """Raise CourseError where bubblewrap is not installed."""
    if not shutil.which("bwrap"):
        raise CourseError(
            "Students' code needs a sandbox, and bubblewrap is not installed: sudo apt-get install bubblewrap (where "
            "nothing is of worth, make grade ISOLATION=none goes without)."
        )


class Limit(Exception):
    """Why the code under judgement was stopped, in a sentence."""


class Sandbox:
    """One judging process. Whatever ends it, also the end of this process, ends all that it has started."""

    def __init__(self, isolated: bool):
        self.channel, theirs = socket.socketpair()
        self.folder = None if isolated else tempfile.mkdtemp(prefix="grading-")
        self.buffer, self.printed, self.errors = b"", 0, b""
        self.begun = 0  # bytes that the judging process holds before it has seen a submission
        root = os.geteuid() == 0
        user = str(USERS[(os.getpid() + next(NUMBERS)) % len(USERS)]) if isolated and root else ""
        judge = [sys.executable, "-m", "grading.judge", str(theirs.fileno()), user]
        environment = self._environment(self.folder or "/tmp", isolated)
        self.process = subprocess.Popen(
            [*(self._wrapped(root, environment) if isolated else ()), *judge],
            env=environment,
            cwd=files.LABS,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()
        try:
            self.message(time.monotonic() + START_SECONDS)
            self.begun = max((its.memory_info().rss for its in self._processes()), default=0)
        except (Limit, EOFError):
            self.close()
            raise CourseError(f"The sandbox for students' code did not start: {self.last_line()}") from None

    @staticmethod
    def _environment(scratch: str, isolated: bool) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "USER": "student",
            "HOME": scratch,
            "TMPDIR": scratch,
            "COURSE_BUILD": f"{scratch}/build",
            "COURSE_PROGRESS": "off",
            "PYTHONPATH": f"{files.ROOT / 'scripts'}:{files.ROOT}",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": f"{scratch}/hf",
            "CUDA_VISIBLE_DEVICES": "",
            "IPYTHONDIR": f"{scratch}/ipython",
            "MPLCONFIGDIR": f"{scratch}/matplotlib",
            "MPLBACKEND": "agg",
        } | ({"GRADING_ISOLATED": "yes"} if isolated else {})

    @staticmethod
    def _wrapped(root: bool, environment: dict[str, str]) -> list[str]:
        """bubblewrap's command up to the program. Root keeps the right to become nobody, and uses it at once."""
        course = [files.ROOT / name for name in ("shared", "labs", "data", "scripts/grading", "pyproject.toml")]
        python = [Path(sys.prefix) / name for name in ("bin", "lib", "lib64", "pyvenv.cfg", "matplotlib")]
        seen = [*map(Path, SYSTEM), Path(sys.base_prefix), *python, *course]
        above = sorted({str(parent) for path in seen for parent in path.parents} - {"/", "/tmp", *SYSTEM})
        return [
            *("bwrap", "--die-with-parent", "--new-session"),
            *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
            *(("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if root else ("--unshare-user",)),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--perms", "1777", "--size", str(DISK), "--tmpfs", "/dev/shm"),
            *("--remount-ro", "/dev"),
            *("--perms", "1777", "--size", str(DISK), "--tmpfs", "/tmp"),
            *(word for path in above for word in ("--perms", "0755", "--dir", path)),
            *(word for path in seen for word in ("--ro-bind-try", str(path), str(path))),
            *("--chdir", str(files.LABS), "--clearenv"),
            *(word for name, value in environment.items() for word in ("--setenv", name, value)),
            "--",
        ]

    def send(self, job: dict, handle: int) -> None:
        self.printed = 0
        socket.send_fds(self.channel, [json.dumps(job).encode() + b"\n"], [handle])

    def message(self, until: float, bounded: bool = False) -> dict:
        """The next thing that the judging process says.

        until: time.monotonic() at which it must have come. bounded: whether memory and output are looked at.
        Raises Limit, and EOFError where the process has ended.
        """
        before = self.held() if bounded else 0
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.channel, self.process.stdout], [], [], LOOK)
            if self.process.stdout in ready and (text := os.read(self.process.stdout.fileno(), 2**16)):
                self.printed += len(text)
                self.errors = (self.errors + text)[-5000:]
            if self.channel in ready:
                came = self.channel.recv(2**20)
                if not came:
                    raise EOFError
                self.buffer += came
            if time.monotonic() > until:
                raise Limit(rows.TOO_LONG)
            if bounded and self.printed > OUTPUT:
                raise Limit(f"The code was stopped after it had printed {OUTPUT / 2**20:.0f} MiB.")
            if bounded and self.held() - before > MEMORY:
                raise Limit(f"The code was stopped when its processes held more than {MEMORY / 2**30:.0f} GiB.")
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def _processes(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def held(self) -> int:
        """Bytes of memory of all processes, as far as each holds more than the first one did before any submission."""
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += max(0, process.memory_info().rss - self.begun)
        return total

    def last_line(self) -> str:
        """The last that was printed in here."""
        lines = self.errors.decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it has said nothing."

    def close(self) -> None:
        """End all that runs here."""
        below = self._processes()
        self.process.kill()  # with bubblewrap, all processes of its own end with it
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.channel.close()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def judged(sandbox: Sandbox, name: str, handle: int, known: list[dict]) -> tuple[dict, bool, bool]:
    """Have a submission judged as far as it goes, and add its rows to those that are known.

    Returns what is known of it ({"lab": ..., "exercises": ...} or {"problem": ...}), whether it came to its end, and
    whether the sandbox can take another one.
    """
    about, current, why, usable = {}, "", "", False
    try:
        sandbox.send({"name": name, "known": known}, handle)
        while "ended" not in about:
            seconds = rows.CLOCK_SECONDS if current else READ_SECONDS
            message = sandbox.message(time.monotonic() + seconds, bounded=True)
            if "begins" in message:
                current, sandbox.printed = message["begins"], 0
            elif "row" in message:
                known.append(message["row"])
                current = ""
            else:
                about |= message
        usable = about.pop("clean")
        if status := about.pop("ended"):
            why = f"The process that judges was ended (exit code {status}): {sandbox.last_line()}"
    except Limit as limit:
        why = str(limit)
    except (EOFError, OSError):
        why = "The process that judges was ended by the code."
    if why and current:
        known.append(rows.row(current, rows.STOPPED, why))
    elif why and "exercises" not in about:
        about["problem"] = f"{name} could not be read. {why}"
    elif why:
        done = {row["exercise"] for row in known}
        known += [rows.row(each, rows.STOPPED, why) for each in about["exercises"] if each not in done]
    finished = "problem" in about or {row["exercise"] for row in known} == set(about["exercises"])
    return about, finished, usable
