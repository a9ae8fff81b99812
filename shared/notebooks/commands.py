"""What the programs behind the Makefile share: how they read their arguments, and how they end.

A program ends with one sentence on stderr and an exit code, whatever it was given: it reads its arguments with a
`Parser`, whose types name the variable of the Makefile, and its `main` is decorated with `program`.
"""

import argparse
import functools
import math
import os
import re
import sys
import traceback
import urllib.parse
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from shared import files
from shared.errors import BadInput, CourseError

SHOWN = 60  # characters of a wrong value that its sentence repeats
AT_ONCE = max(8, os.cpu_count() or 1)  # processes that a program starts on this machine at the most


class Parser(argparse.ArgumentParser):
    """argparse's parser, which raises BadInput where that one prints how to call it, and ends the process."""

    def __init__(self, description: str, **options):
        shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(description=description, **shape, **options)

    def error(self, message: str):
        sentence = re.sub(r"^argument \S+: ", "", message)  # the types below name the variable themselves
        raise BadInput(" ".join(sentence.split()))


# ---- types of an argument: each says in a sentence what the variable of the Makefile may be ------------------------


def whole(name: str, least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) else None
        if number is None or not least <= number <= most:
            raise _wrong(name, text, f"is no whole number from {least} to {most}.")
        return number

    return read


def positive(name: str) -> Callable[[str], float]:
    """A number above 0, and finite."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise _wrong(name, text, "is no number above 0.")
        return number

    return read


def one_of(name: str, known: Iterable[str]) -> Callable[[str], str]:
    """One of the words in `known`."""
    known = tuple(known)

    def read(text: str) -> str:
        if text not in known:
            raise _wrong(name, text, f"is unknown; it is one of {', '.join(filter(None, known))}.")
        return text

    return read


def _wrong(name: str, text: str, what: str) -> argparse.ArgumentTypeError:
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return argparse.ArgumentTypeError(f"{name}={short} {what}")


# ---- how a program ends ---------------------------------------------------------------------------------------------


def program(stopped: str = "Stopped.") -> Callable[[Callable], Callable[..., int]]:
    """A decorator of a program's `main`, which then returns its exit code (0 for None) and raises no Exception.

    A CourseError is its sentence, Ctrl-C is `stopped`. Any other error is a fault of the course: one line says which,
    and where its traceback is kept. Who closes the pipe that the program prints to (`make doctor | head`) ends it.
    """

    def decorate(main: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(main)
        def ended(*arguments) -> int:
            with suppress(AttributeError):  # what stands in the place of a stream need not have it
                sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that does not know a letter of a path
            try:
                _check_endpoint()
                code = main(*arguments)
                sys.stdout.flush()
                return int(code or 0)
            except CourseError as problem:
                print(problem, file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"\n{stopped}", file=sys.stderr)
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
                return 1
            except Exception as problem:
                print(_fault(problem), file=sys.stderr)
                return 1

        return ended

    return decorate


def _check_endpoint() -> None:
    """Raise BadInput where the address of the hub has a port that is none: its client cannot even be imported then."""
    address = os.environ.get("HF_ENDPOINT", "")
    try:
        _ = urllib.parse.urlsplit(address).port
    except ValueError as problem:
        raise BadInput(
            f"HF_ENDPOINT={address} is no address ({problem}): unset it, or write one such as https://huggingface.co."
        ) from None


def alone(command: str, folder: Path) -> TextIO:
    """A lock (see `files.lock`) to hold while `command` works in a folder. Raises CourseError where it runs already."""
    held = files.lock(folder / "lock")
    if not held:
        raise CourseError(f"Another `{command}` is at work in {folder}: wait until it ends, then run this again.")
    return held


def _fault(problem: Exception) -> str:
    """One line about an error that is no CourseError; its traceback goes to build/traceback.txt."""
    if isinstance(problem, OSError) and problem.errno in files.FULL:
        return files.unwritten(Path(problem.filename or files.BUILD), problem)
    frame = traceback.extract_tb(problem.__traceback__)[-1]
    place = (
        os.path.relpath(frame.filename, files.ROOT)
        if Path(frame.filename).is_relative_to(files.ROOT)
        else frame.filename
    )
    what = " ".join(f"{type(problem).__name__}: {problem}".split())
    kept = files.BUILD / "traceback.txt"
    try:
        files.write(kept, "".join(traceback.format_exception(problem)))
        report = f"please report it with {kept}."
    except CourseError as unwritten:
        report = f"please report it. ({unwritten})"
    return f"{what} ({place}, line {frame.lineno}): that is a fault of the course, {report}"
