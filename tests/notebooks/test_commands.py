"""What people give the commands of the Makefile: whatever it is, one sentence ends the command, and no traceback.

What a command would run is read from `make --dry-run`, with the shell's quoting, and its program's `main` is called.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shared import files
from shared.errors import CourseError
from shared.notebooks import commands

pytestmark = pytest.mark.slow

HUGE = "9" * 40
ODD = ("words", "0", "-1", "1.5", HUGE, "", "two words", "it's", '"', "`id`", "é 日本", "nan", "inf", "--help")
ODD += (
    "2.4.1\nx",
    "tiny\n",
    "$HOME",
    "$(error was called)",
    "$",
    "a;b",
    "\\",
    "a\\\nb",
    "#",
    "a & b | c > d",
    "%",
    "*",
)

# Of each variable: the commands that read it, and which of the values above mean something there.
READ = {
    "PORT": (["lab"], ()),
    "BROWSER": (["lab"], ()),
    "NOTEBOOK_DIR": (["lab"], ()),
    "SCALE": (["run", "solutions", "site", "fetch", "reference", "run NODES=2 LAB=2.4.6"], ()),
    "LAB": (["lab", "run", "solutions", "site", "rehearse", "fetch SCALE=full", "run NODES=2"], ("",)),
    "NAME": (["fetch", "size"], ("",)),
    "CLEAR": (["cache"], ("",)),
    "CONFIG": (["size"], ()),
    "JSON": (["doctor"], ("",)),
    "MODELS": (["evaluate"], ()),
    "TEXT": (["evaluate"], ()),
    "WINDOW": (["evaluate"], ()),
    "PROCESSES": (["evaluate"], ()),
    "NODES": (["run LAB=2.4.6"], ("",)),
    "HEAD": (["run LAB=2.4.6 NODES=2"], ("words", "0", "1.5", HUGE, "", "nan", "inf")),
    "PART": (["reference SCALE=tiny"], ("",)),
    "MINUTES": (["reference SCALE=tiny"], ("1.5", HUGE, "")),
    "WEIGHTS": (["rehearse"], ("",)),
    "SUBMISSIONS": (["grade"], ()),
    "ISOLATION": (["grade"], ()),
    "STYLE": (["solutions"], ()),
}
OF_THE_SETUP = {"PYTHON", "TORCH_INDEX_URL"}  # tests/scripts/test_setup.py


def called(target: str, **variables: str) -> list[str]:
    """The arguments with which a command of the Makefile calls Python, the program first."""
    given = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--no-print-directory", "--dry-run", *target.split(), *given]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, check=True)
    line = done.stdout.decode(errors="surrogateescape").splitlines()[-1]
    words = shlex.split(line)
    return words[words.index(".venv/bin/python") + 1 :]


def main_of(program: Path):
    """The `main` of a program that lies in a folder of its own."""
    sys.path.insert(0, str(program.parent))
    try:
        return importlib.import_module(program.stem).main
    finally:
        sys.path.remove(str(program.parent))


def module_of(name: str):
    """What `python -m name` runs: a module, or the __main__ of a package."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def run(words: list[str]) -> int:
    """The exit code of a program, called in this process."""
    if words[0] == "-m":
        return module_of(words[1]).main(words[2:])
    return main_of(files.ROOT / words[0])(words[1:])


def test_every_variable_of_the_makefile_is_tried():
    head = (files.ROOT / "Makefile").read_text().split("# A value as one word")[0]
    assert set(re.findall(r"^([A-Z_]+) *\??=", head, re.MULTILINE)) == {*READ, *OF_THE_SETUP}
    given = re.search(r"^GIVEN = (.*)\\\n(.*)", (files.ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(" ".join(given.groups()).split()) == {*READ, *OF_THE_SETUP}


@pytest.mark.parametrize(
    ("variable", "target"), [(name, target) for name, (targets, _) in READ.items() for target in targets]
)
def test_a_value_that_means_nothing_ends_the_command_with_one_sentence(variable, target, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(files.ROOT)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for value in ODD:
        if value in READ[variable][1]:
            continue
        code = run(called(target, **{variable: value}))
        said = capsys.readouterr()
        assert code not in (0, None), f"{variable}={value}"
        assert said.out == "" and said.err.count("\n") == 1, f"{variable}={value}: {said}"
        assert "fault of the course" not in said.err and "usage:" not in said.err, said.err


def test_a_value_that_means_something_reaches_the_program_as_it_is():
    for value in ("it's", 'a "b" `c` #', "é 日本", "--help", "$HOME $$ $(error was called) ${x}", "\\ a;b"):
        assert called("lab", NOTEBOOK_DIR=value)[-2:] == ["--", value]
        assert called("evaluate", MODELS=value)[-2:] == ["--", value]
        assert f"--lab={value}" in called("run", LAB=value)


# ---- how a program ends ---------------------------------------------------------------------------------------------


def ended(raises: BaseException | None, code: int | None = None) -> int:
    @commands.program("Interrupted: nothing is lost.")
    def main():
        if raises:
            raise raises
        return code

    return main()


def test_a_program_ends_with_its_code_or_with_a_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    assert [ended(None), ended(None, 3), ended(None, True)] == [0, 3, 1]
    assert ended(CourseError("A sentence.")) == 1 and capsys.readouterr().err == "A sentence.\n"
    assert ended(KeyboardInterrupt()) == 130 and capsys.readouterr().err == "\nInterrupted: nothing is lost.\n"
    assert ended(OSError(28, "No space left on device")) == 1
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "make room" in said and said.count("\n") == 1


@pytest.mark.parametrize("port", ["99999", "x", "-1"])
def test_an_endpoint_whose_port_is_none_is_one_sentence(port, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert ended(None) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"HF_ENDPOINT=http://127.0.0.1:{port} is no address (") and said.count("\n") == 1


def test_a_letter_that_the_terminal_does_not_know_is_written_by_its_number(tmp_path):
    """As on a server with LANG=C in a home folder with an accent, or with a name that is no UTF-8."""
    code = "from shared.notebooks import commands\ncommands.program()(lambda: print('caf\\xe9 \\udce9'))()"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=files.ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "caf\\xe9 \\udce9\n" and done.stderr == ""


def test_another_error_is_one_line_and_its_traceback_is_kept(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "BUILD", tmp_path)
    assert ended(KeyError("a\nb")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("KeyError: 'a\\nb' (tests/notebooks/test_commands.py, line ")
    kept = (tmp_path / "traceback.txt").read_text()
    assert str(tmp_path / "traceback.txt") in said and "raise raises" in kept and kept.startswith("Traceback")


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from shared.notebooks import commands\n"
    code += "@commands.program()\ndef main(): print('x\\n' * 10**6)\nsys.exit(main())"
    pipe = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -n 1"
    done = subprocess.run(pipe, shell=True, cwd=files.ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_every_program_of_the_makefile_ends_this_way():
    """Read from its source: what starts in another way ends with argparse's lines of usage, or with a traceback."""
    named = re.findall(r"\$\(VENV_PYTHON\) ((?:-m )?[\w./]+)", (files.ROOT / "Makefile").read_text())
    modules = {module_of(name) for name in re.findall(r"shared\.[\w.]+", (files.ROOT / "Makefile").read_text())}
    programs = {*named, *(os.path.relpath(module.__file__, files.ROOT) for module in modules)}
    assert len(modules) == 2
    for program in {name for name in programs if name.endswith(".py")}:
        source = (files.ROOT / program).read_text()
        assert re.search(r"^@commands\.program\(.*\)\ndef main\(", source, re.MULTILINE), program
        assert "sys.exit(main(" in source and "argparse" not in source, program
