"""Where the course's folders are, writing a file whole or not at all, and what only one process may do."""

import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from shared.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "labs"
DATA = ROOT / "data"
BUILD = Path(os.environ.get("COURSE_BUILD") or ROOT / "build")  # another place, so that two runs do not meet

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, this user's share of it, a limit of the shell
MACHINE = re.sub(r"\W", "-", platform.node())  # several machines may share a folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write to in the block: a file of this process, which takes the place of `path` at the end.

    Where the block raises, or the disk is full, what stood at `path` stays, and nothing is left beside it. What a
    process that was killed has left in the folder goes.
    Raises: CourseError in one sentence where the file cannot be written.
    """
    part = path.with_name(f".{os.getpid()}-{MACHINE}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_parts(path.parent, ended)
        yield part
        part.replace(path)
    except OSError as problem:
        about = Path(problem.filename or part)  # a folder above, the part, or in a write no name at all
        if problem.errno not in FULL and about not in (part, *part.parents):
            raise  # the block's own trouble, with another file
        raise CourseError(unwritten(path, problem)) from None
    finally:
        with suppress(OSError):
            part.unlink()


def remove_parts(folder: Path, of: Callable[[int], bool]) -> None:
    """Delete the unfinished files of this machine's processes `of` which (by their number) that is true."""
    for part in folder.glob(f".*-{MACHINE}-*"):
        number = part.name[1:].split("-")[0]
        if number.isdecimal() and of(int(number)):
            part.unlink(missing_ok=True)


def ended(process: int) -> bool:
    """Whether no process of this number is alive on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's; no number of a process
        pass
    return False


def write(path: Path, text: str) -> None:
    """Write a text as UTF-8, as `replacing` does, with its line ends as they are."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def fingerprint(paths: Iterable[Path]) -> str:
    """A hash of files of the course, of their names and their content; folders and compiled Python are left out."""
    found = hashlib.sha256()
    for path in sorted(path for path in set(paths) if path.is_file() and path.suffix != ".pyc"):
        found.update(f"\n{path.relative_to(ROOT)}\n".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def sealed(text: str) -> bytes:
    """A text so that nobody reads it by accident. It hides and does not protect: `unsealed` gives it back."""
    return zlib.compress(text.encode("utf-8"), 9)


def unsealed(path: Path) -> str:
    """The text that `sealed` has made into the file at `path`."""
    return zlib.decompress(path.read_bytes()).decode("utf-8")


def lock(path: Path) -> TextIO | None:
    """A lock by this name, or None where another process of this machine has it.

    It is given back when the file that comes is closed, or the process ends in whatever way. The file at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a disk of the network without locks
        pass
    return file


def unwritten(path: Path, problem: OSError) -> str:
    """One sentence about a file or a folder that cannot be written, and what to do."""
    why = problem.strerror or problem
    remedy = "make room on its disk" if problem.errno in FULL else "see that you may write there"
    return f"{path} could not be written ({why}), and what was there before stays: {remedy}, then run this again."


def free(folder: Path) -> int:
    """Free bytes on the disk that holds `folder`, or will."""
    return shutil.disk_usage(_nearest(folder)).free


def closed(folder: Path) -> str:
    """Why no file can be made in `folder`, which is there or is to be made; empty where one can, or the disk is full.

    Asked by making one: permissions alone do not tell (a disk that is read-only, /proc). It is deleted at once.
    """
    try:
        with tempfile.TemporaryDirectory(dir=_nearest(folder)):
            return ""
    except OSError as problem:
        return "" if problem.errno in FULL else str(problem.strerror)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
