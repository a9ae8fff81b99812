"""A sweep over models that can be interrupted: each result is kept as it comes, and a second run goes on.

    quality = sweeps.Sweep("lab-2.4.5-tiny-quality", scale="tiny", window=256)
    for name in zoo:
        quality.keep(name, lambda: measure(name))   # measured once, then read
    quality.finish(frame)                           # the CSV is written, what was kept goes

A result is a file of its own under build/results/<name>-<key>.unfinished/, complete or not there. The key is made of
the settings, the machine and the versions: under others it is another sweep, with a folder of its own, and neither is
lost.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from shared import files, results
from shared.notebooks import BUILD


class Sweep:
    """Results by item (a model's name), as JSON; `made` counts what this process measured itself."""

    def __init__(self, name: str, **settings):
        """settings: all that a result depends on besides its item; JSON values."""
        where = {key: value for key, value in results.machine().items() if key != "date"}
        self.name, self.settings = name, {**settings, **where}
        key = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = BUILD / "results" / f"{name}-{key}.unfinished"
        self.made = 0

    def has(self, item: str) -> bool:
        """Whether the result of `item` is kept."""
        return self._read(item) is not None

    def keep(self, item: str, measure: Callable[[], object]):
        """The kept result of `item`, or what `measure()` returns, which is kept from then on.

        Numbers of numpy and torch are kept as plain ones. Raises: CourseError where the result cannot be written.
        """
        if (kept := self._read(item)) is not None:
            return kept["result"]
        text = json.dumps({"settings": self.settings, "result": measure()}, default=_plain)
        files.write(self._file(item), text)
        self.made += 1
        return json.loads(text)["result"]

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
            _ = kept["result"]
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged from outside
            return None
        return kept


def _plain(value):
    """A number, an array or a tensor as JSON has it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"A result of a sweep cannot hold {type(value).__name__}: give numbers, text, lists or dicts.")
