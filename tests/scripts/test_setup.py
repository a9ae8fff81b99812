"""The commands of the Makefile on machines that lack something, and the promises of the README about them.

The set-up runs for real in a copy of the clone, with real venv and pip, against a folder of wheels: every dependency is
there as an empty package, so that a whole set-up takes seconds and needs no network.
"""

import base64
import contextlib
import hashlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import files

pytestmark = pytest.mark.slow

ROOT = files.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)


def requirement_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group()


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """A wheel with these files; pip accepts nothing less than a RECORD with hashes."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b'=').decode()},{len(body)}"
        for path, body in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, body in files.items():
            wheel.writestr(path, body)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """Everything that pyproject.toml names as an empty wheel, and the real setuptools, which builds the course."""
    folder = tmp_path_factory.mktemp("wheels")
    extras = PROJECT["optional-dependencies"]
    for requirement in PROJECT["dependencies"] + extras["site"] + extras["test"]:
        if requirement_name(requirement) == PROJECT["name"]:  # an extra that takes another in
            continue
        version = re.search(r"[=>]=([\d.]+)", requirement).group(1)
        name = requirement_name(requirement)
        write_wheel(folder, name, version, {"torch/__init__.py": b""} if name == "torch" else {})
    write_wheel(folder, "packaging", "26.0", {})
    setuptools = importlib.metadata.distribution("setuptools")
    files = {
        str(path): path.locate().read_bytes()
        for path in setuptools.files
        if path.parts[0] != ".." and not path.parts[0].endswith(".dist-info") and "__pycache__" not in path.parts
    }
    files[f"setuptools-{setuptools.version}.dist-info/entry_points.txt"] = setuptools.read_text(
        "entry_points.txt"
    ).encode()
    write_wheel(folder, "setuptools", setuptools.version, files)
    return folder


def copy_of_the_clone(folder: Path) -> Path:
    """The part of the clone that the set-up reads, in a folder whose name has a space."""
    folder = folder / "my clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copytree(ROOT / "shared", folder / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def clone(tmp_path) -> Path:
    return copy_of_the_clone(tmp_path)


@pytest.fixture(scope="session")
def bare_venv(tmp_path_factory) -> Path:
    """What `python -m venv` makes, which takes as long as the rest of a set-up."""
    folder = tmp_path_factory.mktemp("bare") / ".venv"
    subprocess.run([BASE_PYTHON, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def clone_with_venv(clone, bare_venv) -> Path:
    """A clone for tests of what a set-up does in .venv once it is made."""
    shutil.copytree(bare_venv, clone / ".venv", symlinks=True, copy_function=os.link)
    return clone


@pytest.fixture(scope="session")
def one_clone(tmp_path_factory, bare_venv) -> Path:
    folder = copy_of_the_clone(tmp_path_factory.mktemp("ready"))
    shutil.copytree(bare_venv, folder / ".venv", symlinks=True, copy_function=os.link)
    return folder


@pytest.fixture
def ready_clone(one_clone, offline) -> Path:
    """One clone for several tests, set up before each of them where the one before left it otherwise."""
    shutil.copy(ROOT / "pyproject.toml", one_clone)
    result = make(one_clone, "setup")
    assert result.returncode == 0, result.stdout + result.stderr
    return one_clone


@pytest.fixture
def offline(wheels, monkeypatch) -> None:
    """pip sees the folder of wheels and nothing else."""
    only_pip_settings(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))


def only_pip_settings(monkeypatch, **settings: str) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    for name, value in ({"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"} | settings).items():
        monkeypatch.setenv(name, value)


def add_dependency(clone: Path, requirement: str) -> None:
    pyproject = clone / "pyproject.toml"
    first = "dependencies = [\n"
    pyproject.write_text(pyproject.read_text().replace(first, f'{first}    "{requirement}",\n', 1))


@pytest.fixture(autouse=True)
def outer_make_is_forgotten(monkeypatch) -> None:
    """`make test` runs these tests, and its variables must not reach the make under test."""
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "TORCH_INDEX_URL", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


def stop_sentence(result: subprocess.CompletedProcess) -> str:
    """The one line that the set-up says when it stops."""
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Set-up stopped: ")]
    assert "Traceback" not in result.stdout + result.stderr
    return line


def executable(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def only_these_tools(folder: Path, monkeypatch, *names: str) -> Path:
    """A PATH that holds what a shell script needs, and of Python only what the test puts there."""
    for name in ("sh", "make", "cat", "cmp", "sed", "awk", "df", "uname", "dirname", "mkdir", "rm", "echo", *names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    return folder


# --- The list of commands ---------------------------------------------------------------------------------------------


def test_bare_make_lists_every_command_and_only_commands_that_exist():
    listed = re.findall(r"^  make ([a-z-]+) +\S", make(ROOT).stdout, re.MULTILINE)
    commands = """
        setup lab run solutions site evaluate fetch cache doctor size kernels kernels-remove check test rehearse bench
        tiny curves recurrences finetune balance reference tables release grade update clean
    """
    assert listed == commands.split()
    for target in listed:
        assert make(ROOT, "--dry-run", target).returncode == 0, target


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_named(page: Path) -> set[str]:
    return set(re.findall(r"(?:^|`|=\S+ )make ([a-z-]+)", page.read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_text_names_only_commands_that_exist(page):
    for target in commands_named(page):
        assert make(ROOT, "--dry-run", target).returncode == 0, f"{page.name} names make {target}"


def test_the_page_of_commands_has_every_one_and_the_readme_the_first_ones():
    listed = set(re.findall(r"^  make ([a-z-]+)", make(ROOT).stdout, re.MULTILINE))
    assert commands_named(ROOT / "docs" / "commands.md") == listed
    assert {"lab", "run", "site", "solutions", "test"} <= commands_named(ROOT / "README.md")


def test_first_screen_of_the_readme_has_the_two_commands():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "make lab" in first_screen and "make test" in first_screen


def test_ci_calls_the_test_command_of_the_readme_and_nothing_else():
    script = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert script[-1] == "exec make test"
    assert all(line.startswith(("set ", "cd ")) for line in script[:-1])
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / "README.md").read_text()


def test_clean_keeps_labs_data_and_environment(clone):
    for kept in ("labs", "data", ".venv", "build"):
        (clone / kept).mkdir()
    assert make(clone, "clean").returncode == 0
    assert not (clone / "build").exists()
    assert all((clone / kept).exists() for kept in ("labs", "data", ".venv"))


# --- A set-up that works ----------------------------------------------------------------------------------------------


def installed(folder: Path) -> set[str]:
    """The packages in .venv."""
    (packages,) = folder.glob(".venv/lib/python*/site-packages")
    found = importlib.metadata.distributions(path=[str(packages)])
    return {its.metadata["Name"].lower().replace("_", "-") for its in found}


def test_setup_installs_the_course_with_torch_first_and_without_the_tools_of_the_tests(clone, offline):
    result = make(clone, "setup")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.index("Installing torch==") < result.stdout.index("Installing -e .")
    assert {requirement_name(requirement) for requirement in PROJECT["dependencies"]} <= installed(clone)
    assert not {"playwright", "sphinx"} & installed(clone)
    subprocess.run([clone / ".venv/bin/python", "-c", "import shared"], cwd="/", check=True)

    pages = make(clone, "setup-site")
    assert pages.returncode == 0 and "Making .venv" not in pages.stdout
    assert "sphinx" in installed(clone) and "playwright" not in installed(clone)
    assert make(clone, "setup").stdout == ""

    tools = make(clone, "setup-test")
    assert tools.returncode == 0 and "Making .venv" not in tools.stdout
    assert {"playwright", "sphinx"} <= installed(clone)
    assert make(clone, "setup").stdout == make(clone, "setup-site").stdout == ""


def test_second_call_has_nothing_to_do(ready_clone):
    start = time.perf_counter()
    result = make(ready_clone, "setup")
    assert (result.returncode, result.stdout) == (0, "")
    assert time.perf_counter() - start < 2


def test_settings_of_the_linter_need_no_new_setup(ready_clone):
    pyproject = ready_clone / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("line-length = 120", "line-length = 100"))
    assert make(ready_clone, "setup").stdout == ""


def test_lost_network_leaves_a_working_environment_alone(ready_clone, monkeypatch):
    """The list of dependencies changed and the network is away: the old environment survives the attempt."""
    before = (ready_clone / "pyproject.toml").read_text()
    add_dependency(ready_clone, "one-more==1.0")
    only_pip_settings(monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert "network" in stop_sentence(make(ready_clone, "setup"))
    (ready_clone / "pyproject.toml").write_text(before)
    assert make(ready_clone, "setup").returncode == 0


def test_changed_list_of_dependencies_is_installed_without_a_new_environment(ready_clone, wheels):
    write_wheel(wheels, "one-more", "1.0", {})
    add_dependency(ready_clone, "one-more==1.0")
    result = make(ready_clone, "setup")
    assert result.returncode == 0 and "Making .venv" not in result.stdout
    assert "one-more" in installed(ready_clone)


def test_torch_index_url_gives_torch_and_only_torch(ready_clone, tmp_path, monkeypatch):
    version = next(r for r in PROJECT["dependencies"] if r.startswith("torch==")).removeprefix("torch==")
    index = tmp_path / "index" / "torch"
    index.mkdir(parents=True)
    write_wheel(index, "torch", f"{version}+other", {"torch/__init__.py": b""})
    (index / "index.html").write_text("".join(f'<a href="{wheel.name}">wheel</a>' for wheel in index.glob("*.whl")))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nowhere").as_uri())

    def torch_version() -> str:
        code = "import importlib.metadata as m; print(m.version('torch'))"
        python = ready_clone / ".venv/bin/python"
        return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()

    assert torch_version() == version
    result = make(ready_clone, "setup", f"TORCH_INDEX_URL={index.parent.as_uri()}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert torch_version() == f"{version}+other"
    assert make(ready_clone, "setup").stdout == "", "the choice stays when it is not repeated"


def test_package_that_does_not_exist_leaves_pips_message_and_one_sentence(ready_clone):
    add_dependency(ready_clone, "not-there==1.0")
    result = make(ready_clone, "setup")
    assert "pip could not install" in stop_sentence(result) and "not-there==1.0" in result.stderr
    assert not (ready_clone / ".venv" / "ready").exists()


def test_interrupted_setup_is_redone_and_a_running_one_is_left_alone(clone, offline):
    process = subprocess.Popen(
        ["make", "setup"],
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("Installing torch"):
            break
    assert "another set-up is at work" in stop_sentence(make(clone, "setup"))

    # Killed as a whole, as when a laptop goes down, in the middle of pip's work.
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.read()  # ends when the last process of the group has gone
    process.wait()
    assert (clone / ".venv" / "unfinished").exists() and not (clone / ".venv" / "ready").exists()
    again = make(clone, "setup")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Making .venv" in again.stdout and "torch" in installed(clone)


@pytest.mark.parametrize("before", ["nothing", "a broken .venv"])
def test_of_two_first_setups_at_once_one_makes_venv_and_the_other_says_so(clone, tmp_path, before):
    if before != "nothing":
        (clone / ".venv").mkdir()
    slow = f'case "$2" in *_base_exec*) echo "$0" ;; venv) sleep 1; exit 1 ;; *) exec "{BASE_PYTHON}" "$@" ;; esac'
    command = ["make", "setup", f"PYTHON={executable(tmp_path / 'python3', slow)}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=clone, **pipes) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    ended = [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(both, outputs, strict=True)
    ]
    first, second = sorted(map(stop_sentence, ended))
    assert "another set-up is at work in this folder" in first and "venv failed" in second


# --- A clone as git makes it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.autocrlf=input", "core.eol=crlf"])
def test_a_clone_has_the_bytes_of_the_course_whatever_git_does_with_ends_of_lines(setting, tmp_path):
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no clone of the course")
    course, student = tmp_path / "course", tmp_path / "student"
    chosen = [name for name in tracked.stdout.split("\0") if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]
    for name in chosen:
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, course / name)
    git(course.parent, "init", "--quiet", "--initial-branch=main", str(course))
    git(course, "add", "--all", "--force")
    git(course, "commit", "--quiet", "--message=The course")
    git(tmp_path, "clone", "--quiet", f"--config={setting}", str(course), str(student))
    for name in chosen:
        assert (student / name).read_bytes() == (ROOT / name).read_bytes(), name
    for script in (student / "scripts").glob("*.sh"):
        assert subprocess.run(["sh", "-n", script], capture_output=True).returncode == 0, script
    assert b"Commands:" in subprocess.run(["make"], cwd=student, capture_output=True).stdout
    (student / "labs" / "my-notes.txt").write_bytes(b"a line\r\n")
    git(student, "add", "--all")
    assert git(student, "status", "--porcelain") == "A  labs/my-notes.txt\n"


# --- A machine that lacks something -----------------------------------------------------------------------------------


def test_too_old_python_is_named_and_refused(clone, tmp_path, monkeypatch):
    tools = only_these_tools(tmp_path / "bin", monkeypatch)
    executable(tools / "python3", "echo 3.9")
    sentence = stop_sentence(make(clone, "lab"))
    assert "python3 is Python 3.9" in sentence and "3.11, 3.12, 3.13 or 3.14" in sentence and "PYTHON=" in sentence
    assert not (clone / ".venv").exists()


def test_named_python_that_is_too_old_is_refused(clone, tmp_path):
    old = executable(tmp_path / "python3.9", "echo 3.9")
    assert "is Python 3.9" in stop_sentence(make(clone, "setup", f"PYTHON={old}"))


def taken_pythons() -> list[str]:
    """3.11, ...: what the line requires-python of pyproject.toml takes, of what may exist."""
    from packaging.specifiers import SpecifierSet

    taken = SpecifierSet(PROJECT["requires-python"])
    return [f"3.{minor}" for minor in range(40) if taken.contains(f"3.{minor}.0")]


@pytest.mark.parametrize("version", ["3.10", *taken_pythons(), "3.15", "4.0"])
def test_the_pythons_of_pyproject_are_taken_and_no_other(version, clone, tmp_path, monkeypatch):
    """A Python that is taken gets as far as its venv module, which the played one lacks."""
    tools = only_these_tools(tmp_path / "bin", monkeypatch)
    number = f'case "$2" in *version_info*) echo {version} ;; *_base_executable*) echo "$0" ;; *) exit 1 ;; esac'
    executable(tools / f"python{version}", number)
    executable(tools / "python3", "echo 3.9")
    sentences = [
        stop_sentence(make(clone, "setup", f"PYTHON={tools}/python{version}")),
        stop_sentence(make(clone, "setup")),
    ]
    if version in taken_pythons():
        assert all(f"sudo apt install python{version}-venv" in sentence for sentence in sentences)
    else:
        assert f"is Python {version}, and the course needs" in sentences[0] and "no Python" in sentences[1]
        assert all(taken in sentence for sentence in sentences for taken in taken_pythons())
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("kind", ["3.13 of pypy", "3.12 of 32 bits", "3.14 without the GIL"])
def test_a_python_for_which_there_are_no_wheels_is_named_and_refused(kind, clone, tmp_path):
    odd = executable(tmp_path / "odd", f"echo '{kind}'")
    assert f"is Python {kind}, and the course needs" in stop_sentence(make(clone, "setup", f"PYTHON={odd}"))


@pytest.mark.parametrize("page", ["README.md", "docs/setup.md", "docs/first-week.md"])
def test_the_text_names_the_pythons_that_are_taken(page):
    named = f"{', '.join(taken_pythons()[:-1])} or {taken_pythons()[-1]}"
    found = re.findall(r"Python (3\.\d+,[^()]*? or 3\.\d+)", (ROOT / page).read_text())
    assert found and set(found) == {named}


OTHERS = [number for number in taken_pythons() if number != "{}.{}".format(*sys.version_info)]
OTHERS = [Path(found) for number in OTHERS for found in [shutil.which(f"python{number}")] if found]


@pytest.mark.parametrize("python", OTHERS, ids=lambda path: path.name)
def test_setup_with_every_python_of_this_machine_that_is_taken(python, clone, offline):
    probe = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"{python} does not start, or comes without venv")
    result = make(clone, "setup", f"PYTHON={python}")
    assert result.returncode == 0 and "Set-up finished" in result.stdout, result.stdout + result.stderr


def test_missing_python_says_what_to_install(clone, tmp_path, monkeypatch):
    only_these_tools(tmp_path / "bin", monkeypatch)
    sentence = stop_sentence(make(clone, "run"))
    assert "no Python 3.11, 3.12, 3.13 or 3.14 was found" in sentence and "apt install" in sentence


def test_command_that_only_prints_an_error_is_no_python(clone, offline, tmp_path, monkeypatch):
    """pyenv leaves a python3.12 on the PATH that says "command not found" where 3.12 is not installed."""
    tools = only_these_tools(tmp_path / "bin", monkeypatch)
    executable(tools / "python3", "echo 'pyenv: python3: command not found' >&2; exit 127")
    executable(tools / "python3.12", f'exec "{BASE_PYTHON}" "$@"')
    result = make(clone, "setup")
    assert result.returncode == 0, result.stdout + result.stderr


def test_python_without_venv_names_the_package(clone, tmp_path):
    """As Debian ships it: the interpreter is there, ensurepip is not."""
    answers = 'case "$2" in *_base_executable*) echo "$0" ;; *ensurepip*) exit 1 ;;'
    debian = executable(tmp_path / "python3", f'{answers} *) exec "{BASE_PYTHON}" "$@" ;; esac')
    sentence = stop_sentence(make(clone, "setup", f"PYTHON={debian}"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"sudo apt install python{version}-venv" in sentence
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(("index", "needed"), [("", "9 GB"), ("https://index.example/whl/cpu", "3 GB")])
def test_full_disk_says_how_much_is_needed_and_how_much_is_there(clone, tmp_path, monkeypatch, index, needed):
    free_kib = 2 * 10**9 // 1024 + 1
    table = (
        f"Filesystem 1024-blocks Used Available Capacity Mounted on\\n/dev/my disk 99999999 1 {free_kib} 98%% /my disk"
    )
    executable(tmp_path / "bin" / "df", f"printf '{table}\\n'")
    executable(tmp_path / "bin" / "uname", "echo Linux")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    sentence = stop_sentence(make(clone, "setup", f"PYTHON={BASE_PYTHON}", f"TORCH_INDEX_URL={index}"))
    assert f"needs {needed}" in sentence and "has 2 GB free" in sentence
    assert f"{needed} while it installs" in (ROOT / "docs" / "setup.md").read_text()
    assert not (clone / ".venv").exists()


def test_no_network_is_said_in_seconds_and_leaves_nothing_half_done(clone, wheels, monkeypatch):
    only_pip_settings(
        monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="5", PIP_DEFAULT_TIMEOUT="180"
    )
    start = time.perf_counter()
    sentence = stop_sentence(make(clone, "setup", f"PYTHON={BASE_PYTHON}"))
    assert time.perf_counter() - start < 30
    assert "connect to the network" in sentence and "HTTPS_PROXY" in sentence
    assert "refused" in (clone / ".venv" / "probe.log").read_text()

    only_pip_settings(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert make(clone, "setup").returncode == 0
    assert {requirement_name(requirement) for requirement in PROJECT["dependencies"]} <= installed(clone)


# --- What other programs set ------------------------------------------------------------------------------------------


def torch_is_in(clone: Path) -> bool:
    code = "import sys, torch; print(torch.__file__.startswith(sys.prefix))"
    python = clone / ".venv/bin/python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("home", ["prefix"]),
        ("PIP_CONFIG_FILE", ["target", "no_deps"]),
        ("variables", ["target", "dry-run"]),
    ],
)
def test_pip_settings_of_another_place_do_not_reach_the_course(
    clone_with_venv, wheels, tmp_path, monkeypatch, where, names
):
    """Addresses do: here the folder of wheels stands in the same settings."""
    values = {name: "yes" if name in ("no_deps", "dry-run") else str(tmp_path / "elsewhere") for name in names}
    only_pip_settings(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    monkeypatch.delenv("PIP_CONFIG_FILE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if where == "variables":
        for name, value in values.items():
            monkeypatch.setenv(f"PIP_{name.upper().replace('-', '_')}", value)
    else:
        settings = tmp_path / ("home/.config/pip/pip.conf" if where == "home" else "pip.ini")
        settings.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} = {value}" for name, value in values.items()]
        settings.write_text("\n".join(["[install]", *lines, "[global]", f"find-links = {wheels}", *lines, ""]))
        monkeypatch.delenv("PIP_FIND_LINKS")
        if where != "home":
            monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    result = make(clone_with_venv, "setup")
    assert result.returncode == 0 and "Set-up finished" in result.stdout, result.stdout + result.stderr
    assert torch_is_in(clone_with_venv) and not (tmp_path / "elsewhere").exists()


def test_packages_of_another_program_do_not_reach_the_course(clone, offline, tmp_path, monkeypatch):
    """ROS and others put their packages on PYTHONPATH; PYTHONHOME is another Python's. pip's settings are here, too."""
    (tmp_path / "ros").mkdir()
    for name in ("torch", "venv", "ensurepip", "configparser", "pip"):
        (tmp_path / "ros" / f"{name}.py").write_text("raise SystemExit('of another program')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "ros"))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "ros"))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_DRY_RUN", "yes")
    result = make(clone, "setup", f"PYTHON={BASE_PYTHON}")
    assert result.returncode == 0, result.stdout + result.stderr
    names = ("PYTHONPATH", "PYTHONHOME", "PYTHONOPTIMIZE")
    program = (
        f"import os, sys, torch\nprint([n for n in {names} if n in os.environ], torch.__file__[: len(sys.prefix)])"
    )
    (clone / "scripts" / "doctor.py").write_text(program)
    assert make(clone, "doctor").stdout == f"[] {clone}/.venv\n" and not (tmp_path / "elsewhere").exists()


def test_set_up_ends_only_when_torch_can_be_imported(clone_with_venv, offline, wheels, tmp_path, monkeypatch):
    version = next(r for r in PROJECT["dependencies"] if r.startswith("torch==")).removeprefix("torch==")
    broken = tmp_path / "broken"
    shutil.copytree(wheels, broken)
    write_wheel(broken, "torch", version, {"torch/__init__.py": b"raise ImportError('libcudnn is of another kind')"})
    monkeypatch.setenv("PIP_FIND_LINKS", str(broken))
    result = make(clone_with_venv, "setup")
    assert "torch is installed and cannot be imported" in stop_sentence(result)
    assert "libcudnn is of another kind" in result.stderr and "Set-up finished" not in result.stdout
    assert not (clone_with_venv / ".venv" / "ready").exists()


# --- An update --------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Teacher", "-c", "user.email=teacher@example.org")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def course_and_student(tmp_path) -> tuple[Path, Path]:
    """The course's repository with two labs, and a student's clone of it."""
    course, student = tmp_path / "course", tmp_path / "student"
    (course / "labs").mkdir(parents=True)
    for name in ("lab-1.ipynb", "lab-2.ipynb"):
        (course / "labs" / name).write_text("first edition\n")
    (course / "notes.txt").write_text("first edition\n")
    (course / "scripts").mkdir()
    for name in ("update.sh", "merge.py"):
        shutil.copy(ROOT / "scripts" / name, course / "scripts")
    git(course, "init", "--quiet", "--initial-branch=main")
    git(course, "add", ".")
    git(course, "commit", "--quiet", "--message=First edition")
    git(tmp_path, "clone", "--quiet", str(course), str(student))
    (course / "labs" / "lab-1.ipynb").write_text("second edition\n")
    (course / "notes.txt").write_text("second edition\n")
    git(course, "commit", "--quiet", "--all", "--message=Second edition")
    return course, student


def update(student: Path) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "scripts/update.sh"], cwd=student, capture_output=True, text=True)


def test_update_brings_the_new_lab_and_keeps_the_students_beside_it(course_and_student):
    _, student = course_and_student
    (student / "labs" / "lab-1.ipynb").write_text("my answers to lab 1\n")
    (student / "labs" / "lab-2.ipynb").write_text("my answers to lab 2\n")
    result = update(student)
    assert result.returncode == 0, result.stderr
    assert (student / "labs" / "lab-1.ipynb").read_text() == "second edition\n"
    (mine,) = (student / "labs").glob("my-lab-1-*.ipynb")
    assert mine.read_text() == "my answers to lab 1\n" and mine.name in result.stdout
    assert (student / "labs" / "lab-2.ipynb").read_text() == "my answers to lab 2\n", "not in the update: not touched"
    assert update(student).returncode == 0, "a second update has nothing to do"
    assert len(list((student / "labs").glob("my-*"))) == 1


def test_a_second_update_in_the_same_second_keeps_both_versions(course_and_student):
    course, student = course_and_student
    executable(student.parent / "bin" / "date", "echo 20260101-120000")
    path = f"{student.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for number in (1, 2, 3):
        (student / "labs" / "lab-1.ipynb").write_text(f"my answers {number}\n")
        result = subprocess.run(
            ["sh", "scripts/update.sh"], cwd=student, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert result.returncode == 0, result.stderr
        edition(course, {"labs/lab-1.ipynb": f"edition {number + 2}\n"})
    kept = {file.read_text() for file in (student / "labs").glob("my-*.ipynb")}
    assert kept == {f"my answers {number}\n" for number in (1, 2, 3)}


def test_two_labs_of_one_name_in_two_folders_are_both_kept(course_and_student):
    course, student = course_and_student
    edition(course, {"labs/more/lab-1.ipynb": "first edition\n"})
    assert update(student).returncode == 0
    edition(course, {"labs/more/lab-1.ipynb": "second edition\n", "labs/lab-1.ipynb": "third edition\n"})
    for name in ("lab-1.ipynb", "more/lab-1.ipynb"):
        (student / "labs" / name).write_text(f"my {name}\n")
    assert update(student).returncode == 0
    assert {file.read_text() for file in (student / "labs").glob("my-*")} == {
        "my lab-1.ipynb\n",
        "my more/lab-1.ipynb\n",
    }


@pytest.mark.skipif(not shutil.which("flock"), reason="this system has no flock")
def test_an_update_beside_another_one_changes_nothing(course_and_student):
    _, student = course_and_student
    (student / "labs" / "lab-1.ipynb").write_text("my answers\n")
    held = files.lock(student / ".git" / "update.lock")
    assert refused(student).startswith("another update is at work")
    held.close()
    assert update(student).returncode == 0


def cells(**sources: str) -> str:
    """A lab as its file, of one code cell for each name."""
    made = [nbformat.v4.new_code_cell(source, id=name.replace("_", "-")) for name, source in sources.items()]
    return nbformat.writes(nbformat.v4.new_notebook(cells=made)) + "\n"


OLD = {"title": "print('first edition')", "ex_area": "def area(x):\n    raise NotImplementedError", "end": "print(1)"}
NEW = OLD | {"title": "print('second edition')", "more": "print(2)"}
WORK = {"ex_area": "def area(x):\n    return x * x"}


@pytest.fixture
def lab_of_both(course_and_student) -> tuple[Path, Path]:
    """A course and a student with a lab that is a notebook, changed on both sides, and other changes of the course."""
    course, student = course_and_student
    edition(course, {"labs/lab-1.ipynb": cells(**OLD), "old.txt": "old\n", "a *.txt": "first\n"})
    assert update(student).returncode == 0
    edition(course, {"labs/lab-1.ipynb": cells(**NEW), "old.txt": None, "a *.txt": "second\n", "sub/new.txt": "new\n"})
    (student / "labs" / "lab-1.ipynb").write_text(cells(**OLD | WORK))
    return course, student


def is_updated(course: Path, student: Path) -> None:
    """The lab has the update and the student's work, and everything else is the course's."""
    assert (student / "labs" / "lab-1.ipynb").read_text() == cells(**NEW | WORK)
    assert git(student, "rev-parse", "HEAD") == git(course, "rev-parse", "HEAD")
    assert git(student, "status", "--porcelain", "--untracked-files=no") == " M labs/lab-1.ipynb\n"
    assert cells(**OLD | WORK) in {copy.read_text() for copy in (student / "labs").glob("my-lab-1-*.ipynb")}


def test_a_lab_that_both_changed_has_the_update_and_the_work(lab_of_both):
    course, student = lab_of_both
    result = update(student)
    assert result.returncode == 0, result.stderr
    assert "labs/lab-1.ipynb has the update and your work" in result.stdout
    is_updated(course, student)
    before = snapshot(student)
    assert update(student).returncode == 0 and snapshot(student) == before, "a second update has nothing to do"


@pytest.mark.parametrize("moment", ["before reset", "after reset", "before merge", "in merge", "after merge"])
def test_an_update_that_is_killed_leaves_the_work_and_the_next_one_goes_on(lab_of_both, moment):
    course, student = lab_of_both
    when, command = moment.split()
    die = "kill -9 0"  # the whole session: the update and what it has started
    real = shutil.which("git")
    halfway = f"{real} show @{{upstream}}:'a *.txt' >'a *.txt'; mkdir sub; echo new >sub/new.txt; rm old.txt"
    then = {"before": die, "after": f'{real} "$@"; {die}', "in": f"{halfway}; touch .git/index.lock; {die}"}[when]
    executable(student.parent / "bin" / "git", f'[ "$1" != {command} ] || {{ {then}; }}\nexec {real} "$@"')
    path = f"{student.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    killed = subprocess.run(
        ["sh", "scripts/update.sh"], cwd=student, env=os.environ | {"PATH": path}, start_new_session=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert (student / "labs" / "lab-1.ipynb").read_text() in (cells(**OLD | WORK), cells(**NEW | WORK))
    result = update(student)
    assert result.returncode == 0, result.stderr
    is_updated(course, student)


def test_a_lab_that_is_no_notebook_any_more_is_kept_and_the_new_one_comes(lab_of_both):
    _, student = lab_of_both
    conflict = "<<<<<<< HEAD\n" + cells(**OLD) + ">>>>>>> theirs\n"
    (student / "labs" / "lab-1.ipynb").write_text(conflict)
    result = update(student)
    assert result.returncode == 0 and "no notebook that can be merged" in result.stdout, result.stderr
    assert (student / "labs" / "lab-1.ipynb").read_text() == cells(**NEW)
    assert [copy.read_text() for copy in (student / "labs").glob("my-lab-1-*.ipynb")] == [conflict]


# What a student and the course may do between two updates, as (who, what, which file).
FILES = ("labs/lab-1.ipynb", "labs/lab-2.ipynb", "labs/é 3.ipynb", "labs/sub/lab-1.ipynb", "notes.txt", "sub/deep.txt")
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(("student", "course")),
        st.sampled_from(("write", "delete", "rename", "stage", "folder", "mode", "link", "update")),
        st.sampled_from(FILES),
        st.sampled_from(FILES),
    ),
    min_size=2,
    max_size=7,
)


def deed(folder: Path, what: str, name: str, other: str, text: str) -> None:
    """One of `DEEDS` in a clone; where there is nothing to do it to, nothing."""
    file, target = folder / name, folder / other
    with contextlib.suppress(OSError):  # such as a file where a folder would be
        if what == "folder":  # where a file was or will be
            file.unlink(missing_ok=True)
            (file / "inside.txt").parent.mkdir(parents=True)
            (file / "inside.txt").write_text(text)
        elif what == "link":
            file.unlink(missing_ok=True)
            file.symlink_to("elsewhere.txt")
        elif what == "write":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        elif what == "delete":
            file.unlink()
        elif what == "rename" and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
        elif what == "mode":
            file.chmod(0o755)


@settings(max_examples=15)
@given(DEEDS)
def test_whatever_both_did_an_update_is_whole_or_nothing_and_loses_no_text(tmp_path_factory, deeds):
    folder = tmp_path_factory.mktemp("update")
    course, student = folder / "course", folder / "student"
    (course / "labs").mkdir(parents=True)
    (course / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "update.sh", course / "scripts")
    for name in (*FILES[:2], "notes.txt"):
        (course / name).write_text(f"first edition of {name}\n")
    git(course, "init", "--quiet", "--initial-branch=main")
    edition(course, {})
    git(folder, "clone", "--quiet", str(course), str(student))
    written = set()
    for number, (who, what, name, other) in enumerate([*deeds, ("student", "update", "", "")]):
        text = f"{who} {number}\n"
        if what == "update":
            checked_update(course, student, written)
        elif who == "course":
            deed(course, what, name, other, text)
            edition(course, {})
        elif what == "stage":
            git(student, "add", "--all")
        else:
            before = texts(student)
            deed(student, what, name, other, text)
            written = written & texts(student) | {text for text in texts(student) - before}


def texts(folder: Path) -> set[str]:
    """The content of every file of a clone."""
    files = [path for path in folder.rglob("*") if ".git" not in path.parts and path.is_file()]
    return {file.read_text() for file in files if not file.is_symlink()}


def checked_update(course: Path, student: Path, written: set[str]) -> None:
    """An update, which must keep every text of the student's, and be whole or leave everything as it was."""
    before = snapshot(student) | {"index": git(student, "status", "--porcelain").encode()}
    result = update(student)
    assert written <= texts(student), (result.stdout, result.stderr)
    if result.returncode:
        assert snapshot(student) | {"index": git(student, "status", "--porcelain").encode()} == before
        assert result.stderr.count("Update stopped") == 1
    else:
        assert git(student, "rev-parse", "HEAD") == git(course, "rev-parse", "HEAD")


def test_update_that_would_overwrite_another_file_changes_nothing(course_and_student):
    _, student = course_and_student
    (student / "labs" / "lab-1.ipynb").write_text("my answers\n")
    (student / "notes.txt").write_text("my notes\n")
    result = update(student)
    assert result.returncode != 0 and "nothing was changed: notes.txt was changed here" in result.stderr
    assert (student / "labs" / "lab-1.ipynb").read_text() == "my answers\n"
    assert (student / "notes.txt").read_text() == "my notes\n"


def test_update_of_a_clone_with_commits_of_its_own_changes_nothing(course_and_student):
    _, student = course_and_student
    (student / "labs" / "lab-1.ipynb").write_text("my answers\n")
    git(student, "commit", "--quiet", "--all", "--message=My answers")
    result = update(student)
    assert result.returncode != 0 and "git pull --rebase" in result.stderr
    assert (student / "labs" / "lab-1.ipynb").read_text() == "my answers\n"
    git(student, *re.search(r"git (reset \w+)", result.stderr)[1].split())
    assert update(student).returncode == 0
    assert "my answers\n" in texts(student)


def test_update_without_its_remote_says_so(course_and_student):
    course, student = course_and_student
    course.rename(course.with_name("away"))
    result = update(student)
    assert result.returncode != 0 and "git reaches no remote" in result.stderr


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a clone outside .git, with the commit that is checked out."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if ".git" not in path.parts}
    content = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    return content | {"HEAD": git(folder, "rev-parse", "HEAD").encode()}


def refused(student: Path) -> str:
    """The one sentence of an update that changed nothing."""
    before = snapshot(student)
    result = update(student)
    assert result.returncode == 1 and result.stdout == ""
    assert snapshot(student) == before
    *_, last = result.stderr.splitlines()
    assert result.stderr.count("Update stopped") == 1
    return last.removeprefix("Update stopped, nothing was changed: ")


def edition(course: Path, changes: dict[str, str | None]) -> None:
    """A commit of the course with these files, None for one that goes."""
    for name, text in changes.items():
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            (course / name).unlink()
        else:
            (course / name).write_text(text)
    git(course, "add", "--all", "--force")
    git(course, "commit", "--quiet", "--allow-empty", "--message=Next edition")


@pytest.mark.parametrize(
    ("comes", "mine"),
    [
        ("extra.txt", "extra.txt"),
        ("labs/lab-3.ipynb", "labs/lab-3.ipynb"),
        ("with a space é.txt", "with a space é.txt"),
        ("folder/new.txt", "folder"),
        ("file", "file/of/mine.txt"),
        ("build/table.txt", "build/table.txt"),
    ],
)
def test_update_that_brings_a_file_where_the_student_has_one_changes_nothing(course_and_student, comes, mine):
    course, student = course_and_student
    edition(course, {comes: "the course's\n"})
    (student / ".git/info/exclude").write_text("/build/\n")
    (student / "labs" / "lab-1.ipynb").write_text("my answers\n")
    (student / mine).parent.mkdir(parents=True, exist_ok=True)
    (student / mine).write_text("mine\n")
    sentence = refused(student)
    assert (
        sentence
        == f"{mine.split('/of/')[0]} is yours, and the update brings a file of that name; rename yours, then try again."
    )


def test_update_undoes_its_moves_where_git_refuses_after_them(course_and_student):
    _, student = course_and_student
    (student / "labs" / "lab-1.ipynb").write_text("my answers\n")
    executable(student.parent / "bin" / "git", f'[ "$1" != merge ] || exit 1\nexec {shutil.which("git")} "$@"')
    before = snapshot(student)
    path = f"{student.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["sh", "scripts/update.sh"], cwd=student, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert result.returncode == 1 and "git could not do it" in result.stderr
    assert snapshot(student) == before


def test_update_keeps_the_student_s_version_of_a_lab_that_was_renamed(course_and_student):
    course, student = course_and_student
    edition(course, {"labs/lab-2.ipynb": None, "labs/lab-2-new-name.ipynb": "first edition\n"})
    (student / "labs" / "lab-2.ipynb").write_text("my answers to lab 2\n")
    result = update(student)
    assert result.returncode == 0, result.stderr
    (mine,) = (student / "labs").glob("my-lab-2-*.ipynb")
    assert (
        mine.read_text() == "my answers to lab 2\n" and f"labs/lab-2.ipynb is kept as labs/{mine.name}" in result.stdout
    )
    assert not (student / "labs" / "lab-2.ipynb").exists()
    assert (student / "labs" / "lab-2-new-name.ipynb").exists()


@pytest.mark.parametrize("staged", [False, True])
def test_update_brings_a_lab_back_that_the_student_renamed(course_and_student, staged):
    _, student = course_and_student
    (student / "labs" / "lab-1.ipynb").rename(student / "labs" / "lab 1, mine.ipynb")
    if staged:
        git(student, "add", "--all")
    result = update(student)
    assert result.returncode == 0, result.stderr
    assert (student / "labs" / "lab-1.ipynb").read_text() == "second edition\n"
    assert (student / "labs" / "lab 1, mine.ipynb").read_text() == "first edition\n"
    assert not list((student / "labs").glob("my-*"))


@pytest.mark.parametrize("inside", [False, True])
def test_update_of_a_folder_from_a_zip_says_so_also_inside_another_repository(course_and_student, inside):
    course, student = course_and_student
    folder = student / "unpacked" if inside else student.parent / "unpacked"
    shutil.copytree(course, folder, ignore=shutil.ignore_patterns(".git"))
    before = snapshot(student)
    result = update(folder)
    assert result.returncode == 1 and result.stdout == "" and result.stderr.strip().count("\n") == 0
    assert "nothing was changed: this folder is not a clone" in result.stderr
    assert snapshot(student) == before


def test_update_of_another_user_s_clone_says_whose_it_is_and_how_to_trust_it(course_and_student, monkeypatch):
    _, student = course_and_student
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    result = update(student)
    assert result.returncode == 1 and result.stderr.strip().count("\n") == 0
    assert "belongs to another user" in result.stderr
    assert f"git config --global --add safe.directory '{student.resolve()}'" in result.stderr


def test_update_without_git_says_so(course_and_student, tmp_path, monkeypatch):
    _, student = course_and_student
    only_these_tools(tmp_path / "bin", monkeypatch)
    assert "git is not installed" in update(student).stderr


def test_update_knows_a_repository_without_remote_a_detached_head_and_an_unfinished_merge(course_and_student):
    course, student = course_and_student
    git(student, "checkout", "--quiet", "--detach")
    assert refused(student).startswith("no branch is checked out")
    git(student, "checkout", "--quiet", "main")
    git(student, "checkout", "--quiet", "-b", "mine")
    assert refused(student).startswith("this branch follows no remote branch")
    git(student, "checkout", "--quiet", "main")
    (student / "notes.txt").write_text("mine\n")
    git(student, "commit", "--quiet", "--all", "--message=Mine")
    with pytest.raises(subprocess.CalledProcessError):
        git(student, "pull", "--no-rebase")
    assert refused(student).startswith("a merge was begun here and not ended")
    assert refused(course).startswith("this repository has no remote")


def test_update_ignores_the_variables_of_another_repository(course_and_student, monkeypatch):
    course, student = course_and_student
    monkeypatch.setenv("GIT_DIR", str(course / ".git"))
    result = update(student)
    monkeypatch.delenv("GIT_DIR")
    assert result.returncode == 0 and (student / "notes.txt").read_text() == "second edition\n"


# --- conda ------------------------------------------------------------------------------------------------------------


def test_conda_environment_agrees_with_pyproject():
    from packaging.specifiers import SpecifierSet

    yaml = pytest.importorskip("yaml")
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    named = [entry for entry in dependencies if isinstance(entry, str)]
    (by_pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    (python,) = [entry.removeprefix("python=") for entry in named if entry.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert {"pip", "ninja"} <= set(named)
    assert by_pip == ["-e ."], "pyproject.toml is the one list"
    assert [entry for entry in named if "=" in entry] == [f"python={python}"], "no versions of its own"
