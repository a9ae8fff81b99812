"""A sweep over models that can be interrupted: each result is kept as it comes, and a second run goes on.

    quality = sweeps.Sweep("lab-2.4.5-tiny-quality", scale="tiny", window=256)
    for name in zoo:
        quality.keep(name, lambda: measure(name))   # measured once, then read
    quality.finish(frame)                           # the CSV is written, what was kept goes

A result is a file of its own under build/results/<name>.unfinished/, complete or not there. It holds the settings, the
machine and the versions under which it was made: a run under others is refused, not mixed in.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from shared import results
from shared.errors import BadInput, CourseError
from shared.notebooks import BUILD


class Sweep:
    """Results by item (a model's name), as JSON; `made` counts what this process measured itself."""

    def __init__(self, name: str, **settings):
        """settings: all that a result depends on besides its item; JSON values."""
        self.name, self.folder, self.made = name, BUILD / "results" / f"{name}.unfinished", 0
        where = {key: value for key, value in results.machine().items() if key != "date"}
        self.settings = json.loads(json.dumps({**settings, **where}))

    def keep(self, item: str, measure: Callable[[], object]):
        """The kept result of `item`, or what `measure()` returns, which is kept from then on.

        Raises: BadInput where the kept one was made under other settings; CourseError where it cannot be written.
        """
        file = self.folder / f"{item.replace('/', '--')}.json"
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            before, result = kept["settings"], kept["result"]
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged from outside
            result = json.loads(json.dumps(measure()))
            self._write(file, json.dumps({"settings": self.settings, "result": result}))
            self.made += 1
            return result
        if before != self.settings:
            raise BadInput(f"{_difference(before, self.settings)} in {self._others()}")
        return result

    def finish(self, frame) -> Path:
        """Write the whole table to build/results/<name>.csv, and forget what was kept: the next run measures anew."""
        path = results.save(frame, self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        return path

    def _others(self) -> str:
        return (
            f"an interrupted sweep in {self.folder}: go on with those settings, or delete that folder and start anew."
        )

    @staticmethod
    def _write(file: Path, text: str) -> None:
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            part.replace(file)
        except OSError as problem:
            part.unlink(missing_ok=True)
            raise CourseError(f"The result could not be kept in {file}: {problem.strerror}.") from None


def _difference(before: dict, now: dict) -> str:
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "Other settings (" + ", ".join(f"{k}: {before.get(k)!r} then, {now.get(k)!r} now" for k in keys) + ")"
