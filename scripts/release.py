"""The course without its answers, as an archive for students: build/release/<name>.zip (`make release`).

What is committed goes in, without tests and history. Checks and later cells need the course's own answers, so these are
in it, and the checks, which hold pieces of them, compressed. That hides them from a reader and from a search, and
protects from nobody: who grades, grades with the clone (docs/grading.md).
"""

import ast
import io
import itertools
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from shared import files, notebooks
from shared.errors import CourseError
from shared.notebooks import commands, source

FOLDER = files.BUILD / "release"
LEFT_OUT = ("tests/", "labs/solutions/", ".ci/", ".pre-commit-config.yaml")
LEAST = 12  # characters, blanks not counted, of a line that says something
DISTINCT = 30  # of one that says enough by itself
ABOUT = """Release {name}, of commit {commit}.

The answers of the exercises are not in this folder as text. Checks, and cells that need an earlier exercise, take the
course's own version from compressed files (*.sealed). That hides the answers and does not protect them.

Begin with README.md. This folder has no history: a newer release comes as a new archive, beside this one.
"""
UNSEALS = '''"""The checks of this lab, which `make release` has compressed: that hides and does not protect."""

from pathlib import Path

from shared import files

exec(compile(files.unsealed(Path(__file__).with_suffix(".sealed")), __file__, "exec"))
'''


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=files.ROOT, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise CourseError(f"make release takes what is committed in the clone, and git failed: {said[-1]}")
    return done.stdout


def committed() -> dict[str, tuple[bytes, int]]:
    """Path -> content and mode of each file of the last commit."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", "HEAD"))) as archive:
        for member in archive:
            if member.isfile():
                found[member.name] = archive.extractfile(member).read(), member.mode
    return found


def released(tree: dict[str, tuple[bytes, int]]) -> dict[str, tuple[bytes, int]]:
    """The files of a release: some left out, answers and checks sealed."""
    found = {path: its for path, its in tree.items() if not path.startswith(LEFT_OUT)}
    for lab in notebooks.labs():
        stem = source.solutions_path(lab).stem
        answers = tree.get(f"labs/solutions/{stem}.py")
        if answers is None:
            raise CourseError(f"The last commit has no labs/solutions/{stem}.py: make the release in the whole clone.")
        found[str(source.sealed_path(lab).relative_to(files.ROOT))] = files.sealed(answers[0].decode()), 0o644
        checks = f"shared/checks/{stem}"
        found[f"{checks}.sealed"] = files.sealed(tree[f"{checks}.py"][0].decode()), 0o644
        found[f"{checks}.py"] = UNSEALS.encode(), 0o644
    return found


# ---- what must not be in it ------------------------------------------------------------------------------------------


def squeezed(line: str) -> str:
    return "".join(line.split())


def told(lab: str) -> Iterator[tuple[str, list[str]]]:
    """Each exercise with the lines of its answer that its cell in the lab does not have, blanks taken out."""
    cells = {cell.id: cell.source for cell in notebooks.read(lab).cells}
    for exercise, answer in notebooks.answers(lab).items():
        given = {squeezed(line) for line in cells[exercise].splitlines()}
        docstring = ast.get_docstring(ast.parse(answer).body[0], clean=False) or ""
        given |= {squeezed(line) for line in docstring.splitlines()}
        lines = [squeezed(line) for line in answer.splitlines() if not line.strip().startswith("#")]
        yield exercise, [line for line in lines if line not in given and len(line) >= LEAST]


def leaks(found: dict[str, bytes]) -> Iterator[str]:
    """A line for each file that holds two lines of an answer in a row, or one long one.

    A single short line is an idiom (`start = time.perf_counter()`), which the package and the labs have, too.
    """
    texts = {
        path: squeezed(content.decode("utf-8", "ignore").replace("\\n", "").replace('\\"', '"'))
        for path, content in found.items()
    }
    for lab in notebooks.labs():
        for exercise, lines in told(lab):
            pieces = [one + other for one, other in itertools.pairwise(lines)]
            pieces += [line for line in lines if len(line) >= DISTINCT or len(lines) == 1]
            for path, text in texts.items():
                if piece := next((piece for piece in pieces if piece in text), None):
                    yield f"{path} holds a piece of the answer of {exercise}: {piece[:80]}"


# ---- the archive -----------------------------------------------------------------------------------------------------


def write(archive: Path, found: dict[str, tuple[bytes, int]]) -> None:
    """The files in a folder of the archive's name; the same bytes for the same commit."""
    year, *others = map(int, git("log", "-1", "--format=%cd", "--date=format:%Y %m %d %H %M %S").split())
    with files.replacing(archive) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as target:
        for path, (content, mode) in sorted(found.items()):
            info = zipfile.ZipInfo(f"{archive.stem}/{path}", (year, *others))
            info.external_attr = (0o100000 | mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, content)


@commands.program()
def main(arguments: list[str] | None = None) -> None:
    commands.Parser(__doc__).parse_args(arguments)
    commit = git("rev-parse", "--short=10", "HEAD").decode().strip()
    found = released(committed())
    project = tomllib.loads(found["pyproject.toml"][0].decode())["project"]
    name = f"{project['name']}-{project['version']}-{commit}"
    found["RELEASE.md"] = ABOUT.format(name=name, commit=commit).encode(), 0o644
    if leak := next(leaks({path: content for path, (content, _) in found.items()}), None):
        raise CourseError(f"{leak}: take it out and commit, then run this again.")
    with commands.alone("make release", FOLDER):
        write(FOLDER / f"{name}.zip", found)
    print(f"{FOLDER / name}.zip holds {len(found)} files, and no answer as text. What is not committed is not in it.")


if __name__ == "__main__":
    sys.exit(main())
