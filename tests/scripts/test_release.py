"""The archive for students: no answer in it, and all that a lab needs to go on without them."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import release

from shared import files, notebooks
from shared.notebooks import notice

pytestmark = pytest.mark.slow

LEAST = 28  # characters of a line of an answer that stands nowhere by chance; `start = time.perf_counter()` has 27
BEGINS = ("#", '"""', "return None", "raise ")


def own_lines(lab: str) -> dict[str, set[str]]:
    """Exercise -> lines of its answer that the lab's cell does not have."""
    cells = {cell.id: cell.source for cell in notebooks.read(lab).cells}
    return {
        exercise: {
            line.strip()
            for line in answer.splitlines()
            if len(line.strip()) >= LEAST and line not in cells[exercise] and not line.strip().startswith(BEGINS)
        }
        for exercise, answer in notebooks.answers(lab).items()
    }


OWN = {exercise: lines for lab in notebooks.labs() for exercise, lines in own_lines(lab).items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The release of the last commit, unpacked in an empty folder."""
    if not (files.ROOT / ".git").exists():
        pytest.skip("a release is made in a clone")
    folder = tmp_path_factory.mktemp("release")
    patch = pytest.MonkeyPatch()
    patch.setattr(release, "FOLDER", folder)
    assert release.main([]) == 0
    patch.undo()
    (packed,) = folder.glob("*.zip")
    with zipfile.ZipFile(packed) as its:
        its.extractall(folder)
    return folder / packed.stem


def texts(folder: Path) -> dict[str, str]:
    """Each file as text; a notebook with every string in it, wherever it stands."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode("utf-8", "ignore")
            found[str(path.relative_to(folder))] = (
                "\n".join(strings(json.loads(text))) if path.suffix == ".ipynb" else text
            )
    return found


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


def test_no_line_of_an_answer_is_in_the_archive(archive):
    its = texts(archive)
    found = {(path, line) for lines in OWN.values() for line in lines for path, text in its.items() if line in text}
    assert found == set()
    assert {path for path in its if path.startswith((".git/", "tests/", "labs/solutions"))} == set()
    assert not [path for path in its if "wrong_answers" in path or "mutants" in path]


def test_the_same_search_finds_answers_where_they_are():
    its = "\n".join(texts(files.LABS / "solutions").values())
    assert all(line in its for lines in OWN.values() for line in lines)
    assert len([lines for lines in OWN.values() if lines]) > 0.9 * len(OWN)
    for folder in ("tests/wrong_answers", "shared/checks"):
        other = "\n".join(texts(files.ROOT / folder).values())
        assert any(line in other for lines in OWN.values() for line in lines), folder


def test_an_answer_in_a_notebook_or_its_metadata_stops_the_release():
    answer = notebooks.answers("2.4.2")["ex-chunked-scan"]
    for where in ("source", "metadata"):
        content = json.dumps({"cells": [{where: {"kept": answer}}]}).encode()
        leaks = release.leaks({"labs/x.ipynb": content})
        assert any(leak.startswith("labs/x.ipynb holds a piece of the answer of ex-chunked-scan") for leak in leaks)


ALONE = """
import json, sys
from pathlib import Path
from shared import files, notebooks
from shared.checks import lab_2_4_1

assert files.ROOT == Path.cwd() and not (files.LABS / "solutions").exists()
run = notebooks.execute("2.4.4", solved=False, numbers={"windows": 2, "steps": 2})
names = {}
exec(json.load(sys.stdin), names)
right = lab_2_4_1.mamba_state_bytes.judge(names["mamba_state_bytes"])
wrong = lab_2_4_1.mamba_state_bytes.judge(lambda config, batch=1, bytes_per_value=2: 1)
print(json.dumps([run.error, run.passed, run.checks, right.mark, wrong.mark, wrong.text]))
"""


def test_an_unsolved_lab_runs_in_it_to_its_end_and_its_checks_judge(archive, no_network):
    environment = {**no_network, "PYTHONPATH": str(archive)}
    environment.pop("COURSE_BUILD", None)
    answer = json.dumps(notebooks.answers("2.4.1")["ex-mamba-state-bytes"])
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=archive, env=environment, input=answer, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error, passed, number, *marks, said = json.loads(done.stdout.splitlines()[-1])
    assert (error, passed) == ("", 0) and number == len(notebooks.answers("2.4.4"))
    assert marks == [notice.PASSED, notice.FAILED] and "expected" in said
    text = (archive / "build" / "executed" / notebooks.path_of("2.4.4").name).read_text(encoding="utf-8")
    assert text.count("The lab goes on with the course's own version") >= number


def test_the_same_commit_gives_the_same_bytes(archive, monkeypatch, tmp_path):
    monkeypatch.setattr(release, "FOLDER", tmp_path)
    assert release.main([]) == 0
    (packed,) = tmp_path.glob("*.zip")
    assert packed.read_bytes() == (archive.parent / packed.name).read_bytes()
