"""Judges the notebooks that students handed in (`make grade SUBMISSIONS=folder`), and writes who solved what.

    build/grade/results.csv    student, lab, exercise, result, what the check said
    build/grade/nbgrader.csv   points per student and lab, in the columns of `nbgrader export`
    build/grade/index.html     what failed, with the sentence that the student saw

What is judged is kept by the content of the file and the version of the course: run again after any end, it goes on
where it was.
"""

import hashlib
import json
import os
import queue
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from grading import report, sandbox, submissions
from grading.submissions import Found

from shared import files
from shared.errors import BadInput, CourseError
from shared.notebooks import commands

FOLDER = files.BUILD / "grade"
WORKERS = max(1, min(os.cpu_count() or 1, 8))


def version() -> str:
    """A fingerprint of all that a verdict depends on: the course's own modules, labs and answers, and this program."""
    folders = [files.ROOT / folder for folder in ("shared", "labs", "scripts/grading")]
    return files.fingerprint(path for folder in folders for end in ("*.py", "*.ipynb") for path in folder.rglob(end))


class Grader:
    """Judges submissions in sandboxes, which are used again as long as a submission leaves nothing in them."""

    def __init__(self, isolated: bool):
        self.isolated, self.version = isolated, version()
        self.free: queue.SimpleQueue[sandbox.Sandbox] = queue.SimpleQueue()

    def judge(self, found: Found) -> dict:
        """What is known of a submission: {"lab", "exercises", "rows"}, or {"problem"}."""
        if found.problem:
            return {"problem": found.problem}
        try:
            handle = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as problem:
            return {"problem": f"The file cannot be read ({problem.strerror})."}
        try:
            key = hashlib.sha256(self.version.encode())
            with open(handle, "rb", closefd=False) as file:
                while block := file.read(2**20):
                    key.update(block)
            kept = FOLDER / "judged" / f"{key.hexdigest()[:32]}.json"
            if not kept.is_file():
                about = self._judge_apart(found, handle)
                files.write(kept, json.dumps(about, indent=1) + "\n")
            return json.loads(kept.read_text(encoding="utf-8"))
        finally:
            os.close(handle)

    def _judge_apart(self, found: Found, handle: int) -> dict:
        known: list[dict] = []
        while True:
            os.lseek(handle, 0, os.SEEK_SET)
            box = self._sandbox()
            try:
                about, finished, usable = sandbox.judged(box, found.path.name, handle, known)
            except BaseException:
                box.close()
                raise
            self.free.put(box) if usable else box.close()
            if finished:
                return about | {"rows": known}

    def _sandbox(self) -> sandbox.Sandbox:
        try:
            return self.free.get_nowait()
        except queue.Empty:
            return sandbox.Sandbox(self.isolated)

    def close(self) -> None:
        while not self.free.empty():
            self.free.get().close()


def grade(folder: Path, isolated: bool) -> list[dict]:
    """The rows of all submissions in a folder, several at a time."""
    found = submissions.find(folder)
    grader = Grader(isolated)
    pool = ThreadPoolExecutor(WORKERS)
    about: dict[Path, dict] = {}
    try:
        jobs = {pool.submit(grader.judge, each): each for each in found}
        for number, job in enumerate(as_completed(jobs), start=1):
            each = jobs[job]
            about[each.path] = job.result()
            print(f"{number} of {len(found)}: {report.summary(each, about[each.path])}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
        grader.close()
    if grader.version != version():
        raise CourseError("The course's files were changed during the grading, so nothing is written: run this again.")
    return [row for each in found for row in report.rows_of(each, folder, about[each.path])]


@commands.program("Stopped: what is judged is kept; run this again to go on.")
def main(arguments: list[str] | None = None) -> None:
    parser = commands.Parser(__doc__)
    parser.add_argument("--isolation", default="bubblewrap", type=commands.one_of("ISOLATION", ("bubblewrap", "none")))
    parser.add_argument("folder", help="with the submissions")
    options = parser.parse_args(arguments)
    if not options.folder:
        raise BadInput("SUBMISSIONS is missing: make grade SUBMISSIONS=folder, with what students handed in.")
    folder = Path(options.folder).expanduser()
    submissions.check_folder(folder)
    if options.isolation == "bubblewrap":
        sandbox.check_isolation()
    with commands.alone("make grade", FOLDER):
        report.write(FOLDER, grade(folder, options.isolation == "bubblewrap"))
    shown = Path(os.path.relpath(FOLDER))
    print(
        f"{shown / 'index.html'} says what failed; {shown / 'results.csv'} and nbgrader.csv beside it are the tables."
    )


if __name__ == "__main__":
    sys.exit(main())
