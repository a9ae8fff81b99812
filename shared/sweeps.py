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
from contextlib import suppress
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

    def has(self, item: str) -> bool:
        """Whether the result of `item` is kept. Raises: BadInput where it was made under other settings."""
        return self._read(item) is not None

    def keep(self, item: str, measure: Callable[[], object]):
        """The kept result of `item`, or what `measure()` returns, which is kept from then on.

        Raises: BadInput where the kept one was made under other settings; CourseError where it cannot be written.
        """
        if (kept := self._read(item)) is not None:
            return kept["result"]
        result = json.loads(json.dumps(measure()))
        self._write(self._file(item), json.dumps({"settings": self.settings, "result": result}))
        self.made += 1
        return result

    def finish(self, frame) -> Path:
        """Write the whole table to build/results/<name>.csv, and forget what was kept: the next run measures anew."""
        path = results.save(frame, self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        return path

    def _file(self, item: str) -> Path:
        return self.folder / f"{item.replace('/', '--')}.json"

    def _read(self, item: str) -> dict | None:
        try:
            kept = json.loads(self._file(item).read_text(encoding="utf-8"))
            before, _ = kept["settings"], kept["result"]
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged from outside
            return None
        keys = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        if keys:
            changed = ", ".join(f"{key}: {before.get(key)!r} then, {self.settings.get(key)!r} now" for key in keys)
            raise BadInput(
                f"{self.folder} holds an interrupted sweep with other settings ({changed}): go on with those, or "
                "delete that folder and start anew."
            )
        return kept

    @staticmethod
    def _write(file: Path, text: str) -> None:
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            part.replace(file)
        except OSError as problem:
            with suppress(OSError):
                part.unlink()
            raise CourseError(f"The result could not be kept in {file}: {problem.strerror}.") from None
