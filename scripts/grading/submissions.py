"""Which submissions lie in a folder, and whose they are.

flat        anna_lab-2.4.1-mamba-inference.ipynb, with what Moodle or Canvas puts between name and file
a folder    anna/lab-2.4.1-mamba-inference.ipynb; Moodle's `Anna Muster_123_assignsubmission_file_/...`
nbgrader    submitted/anna/lab-2.4.1/lab-2.4.1-mamba-inference.ipynb
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadInput

LARGEST = 100 * 2**20  # bytes of a notebook
SKIPPED = ("__MACOSX", "Thumbs.db", "desktop.ini")
LAB = re.compile(r"lab[-_ ]?2[._-]4[._-](\d)", re.IGNORECASE)
# What Moodle writes behind a name, and what Canvas writes: late or not, number of the student, number of the file.
ADDED = re.compile(r"_\d+_assignsubmission_\w+$|(?:_late)?(?:_\d+){2}$", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A file that was handed in. lab: by its name, "" where that does not say. problem: why it cannot be read."""

    student: str
    path: Path
    lab: str
    problem: str = ""


def find(folder: Path) -> list[Found]:
    """All submissions below a folder, in order of their names. Links are not followed."""
    check_folder(folder)
    root = folder / "submitted" if (folder / "submitted").is_dir() else folder
    paths = sorted(_files(root))
    found = [Found(_student(root, path), path, _lab(root, path), _problem(path)) for path in paths]
    notebooks = {each.student for each in found if each.path.suffix == ".ipynb"}
    found = [each for each in found if each.path.suffix == ".ipynb" or each.student not in notebooks]
    found += [
        Found(_clean(path.name), path, "", "The folder holds no file.")
        for path in root.iterdir()
        if path.is_dir() and not path.is_symlink() and not _is_skipped(path) and not any(_files(path))
    ]
    if not found:
        raise BadInput(
            f"SUBMISSIONS={printable(str(folder))} holds no file: name the folder that holds what students handed in."
        )
    return sorted(found, key=lambda each: (each.student, str(each.path)))


def check_folder(folder: Path) -> None:
    """Raise BadInput where there is no such folder."""
    try:
        there = folder.is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        shown = " ".join(printable(str(folder)).split())[:60]
        raise BadInput(f"SUBMISSIONS={shown} is no folder: name the one that holds what students handed in.")


def _files(root: Path):
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _is_skipped(Path(name))]
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in [*names, *linked] if not _is_skipped(Path(name)))


def _is_skipped(path: Path) -> bool:
    return path.name.startswith(".") or path.name in SKIPPED


def _student(root: Path, path: Path) -> str:
    first, *rest = path.relative_to(root).parts
    if rest:
        return _clean(first)
    name = LAB.search(path.stem)
    return _clean(path.stem[: name.start()] if name and name.start() else path.stem)


def _clean(name: str) -> str:
    name = ADDED.sub("", name.strip("_- .")).strip("_- .") or name
    return printable(name)


def printable(text: str) -> str:
    """A file's name as text, also where it is no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _lab(root: Path, path: Path) -> str:
    named = LAB.findall(path.name) or LAB.findall(str(path.relative_to(root).parent))
    return f"2.4.{named[-1]}" if named else ""


def _problem(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "The file is a link, and links are not followed: hand in the notebook itself."
    if not stat.S_ISREG(status.st_mode):
        return "That is no file."
    if path.suffix.lower() != ".ipynb":
        return f"The file is no notebook: its name ends in {path.suffix or 'nothing'} and not in .ipynb."
    if status.st_size > LARGEST:
        return f"The file has {status.st_size / 2**20:,.0f} MiB, more than the {LARGEST / 2**20:.0f} that are read."
    return ""
