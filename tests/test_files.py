"""A file is written whole or not at all, also on a disk that fills, and by two programs at once."""

import contextlib
import re
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from shared import files, notebooks, results
from shared.errors import CourseError
from shared.notebooks import __main__ as command


@contextlib.contextmanager
def full_disk():
    """No file of this process can grow beyond 1,000 bytes: a real write fails halfway, as on a full disk.

    No fixture: pytest writes its own output before it takes a fixture down.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    return tmp_path


def pages(folder):
    return folder / "html" / "index.html", lambda: notebooks.build([], "open")


def table(folder):
    frame = pd.DataFrame({"value": range(100)})
    return folder / "results" / "lab.csv", lambda: results.save(frame, "lab")


def kept(folder):
    sweep = results.Sweep("s")
    return sweep.folder / "a.json", lambda: sweep.keep("a", lambda: list(range(1000)))


def notebook(folder):
    out = folder / "solved.ipynb"

    def solve():
        if command.main(["solve", "--lab", "2.4.6", "--out", str(out)]):
            raise CourseError("could not be written")

    return out, solve


@pytest.mark.parametrize("kind", [pages, table, kept, notebook])
def test_on_a_full_disk_what_was_there_stays_and_one_sentence_is_said(build, kind):
    path, write = kind(build)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("the old one")
    with full_disk(), pytest.raises(CourseError, match="could not be written"):
        write()
    left = [file for file in build.rglob("*") if file.is_file() and "pages" not in file.parts]
    assert [(file, file.read_text()) for file in left if file.stat().st_size] == [(path, "the old one")]


def test_the_sentence_names_the_file_the_reason_and_the_remedy(build):
    with full_disk(), pytest.raises(CourseError) as raised:
        files.write(build / "a.txt", "x" * 2000)
    said = str(raised.value)
    assert str(build / "a.txt") in said and "File too large" in said and "make room" in said
    assert raised.value.__suppress_context__


def test_an_error_of_the_block_passes_and_the_file_stays(build):
    files.write(path := build / "a.txt", "é\n")
    with pytest.raises(FileNotFoundError), files.replacing(path) as part:
        part.write_text("half")
        (build / "another").read_text()
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "é\n".encode() and list(build.iterdir()) == [path]


@pytest.mark.slow
def test_two_programs_write_two_files(build):
    code = "import sys; from pathlib import Path; from shared import files\n"
    code += (
        "with files.replacing(Path(sys.argv[1])) as part: print(part.name, flush=True); input(); part.write_text('b')"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, build / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with files.replacing(build / "a") as mine:
        assert other.stdout.readline().strip() != mine.name
        mine.write_text("a")
        other.communicate("\n")
        assert (build / "a").read_text() == "b"
    assert (build / "a").read_text() == "a" and list(build.iterdir()) == [build / "a"]


@pytest.mark.slow
def test_what_a_killed_process_has_left_goes_with_the_next_write(build):
    """A real process, killed while it writes; the unfinished file of one that lives stays, and a student's file."""
    code = "import sys; from pathlib import Path; from shared import files\n"
    code += "with files.replacing(Path(sys.argv[1])) as part: part.write_text('half'); print(part, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    killed, living = (subprocess.Popen([sys.executable, "-c", code, build / name], **pipes) for name in ("a", "b"))
    parts = [Path(process.stdout.readline().strip()) for process in (killed, living)]
    killed.kill()
    killed.wait()
    files.write(mine := build / f".notes-{files.MACHINE}-of-mine", "mine")
    assert [part.exists() for part in (*parts, mine)] == [False, True, True]
    living.communicate("\n")
    assert sorted(path.name for path in build.iterdir()) == sorted([mine.name, "b"])


@pytest.mark.slow
def test_a_lock_is_held_by_one_process_and_freed_by_its_end(build):
    code = "import sys; from pathlib import Path; from shared import files\n"
    code += "held = files.lock(Path(sys.argv[1])); print(bool(held), flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code, build / "lock"], **pipes)
    assert other.stdout.readline() == "True\n" and files.lock(build / "lock") is None
    other.kill()
    other.communicate()
    held = files.lock(build / "lock")
    assert held and files.lock(build / "lock") is None
    held.close()
    files.lock(build / "lock").close()


# What is written in place, and why.
ELSEWHERE = {
    "shared/files.py": "the one place, and the file of a lock, which has no content",
    "shared/hub/fetch.py": "a list of checked files that grows line by line",
    "scripts/kernels/build.py": "the log of a build, which grows",
    "shared/notebooks/launch.py": "os.devnull",
    "shared/machine/meters.py": "a switch of the system under /proc",
    "shared/notebooks/pages.py": "what Sphinx reads, made anew by each rendering",
    "scripts/merge.py": "a file of its own among those of an update, which moves it into its place",
    "scripts/release.py": "no file: it reads what git archives",
    "scripts/grading/judge.py": "a copy inside a sandbox",
    "scripts/rehearsal/models.py": "stand-ins, made anew by each rehearsal",
    "scripts/rehearsal/tokenizers.py": "stand-ins, made anew by each rehearsal",
}
WRITES = re.compile(
    r"\.write_(?:text|bytes)\(|open\([^)\n]*[\"'][wax]|nbformat\.write\((?!.*, part\))|\.to_csv\((?!part)"
)


def test_every_other_writer_of_the_course_uses_it():
    folders = ("shared", "scripts", "labs/solutions")
    sources = [path for folder in folders for path in (files.ROOT / folder).rglob("*.py")]
    writers = {path for path in sources if WRITES.search(path.read_text(encoding="utf-8"))}
    assert {str(path.relative_to(files.ROOT)) for path in writers} == set(ELSEWHERE)
    cells = [cell.source for lab in notebooks.labs() for cell in notebooks.read(lab).cells if cell.cell_type == "code"]
    assert [source for source in cells if WRITES.search(source)] == []


def test_the_search_for_writers_finds_each_way():
    for way in ("path.write_text(x)", "open(path, 'w')", 'path.open("wb")', "nbformat.write(nb, path)", "f.to_csv(x)"):
        assert WRITES.search(way), way
