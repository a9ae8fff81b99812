"""Where measured results go: tidy CSV under build/results, with the machine and the versions in every row.

A sweep over models can be interrupted: each result is kept as it comes, and a second run goes on.

    quality = results.Sweep("lab-2.4.5-tiny-quality", scale="tiny", window=256)
    for name in zoo:
        quality.keep(name, lambda: measure(name))   # measured once, then read
    quality.finish(frame)                           # the CSV is written, what was kept goes
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from shared import files
from shared.errors import BadInput, CourseError
from shared.machine import processor


def machine() -> dict[str, str | int]:
    """What a figure depends on besides the model: machine, threads, versions, date."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "machine": gpu or processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, such as +cu130, which the metadata may lack
        "transformers": importlib.metadata.version("transformers"),
        "date": datetime.date.today().isoformat(),
    }


def load(name: str, **same):
    """The table that `save` wrote to build/results/<name>.csv, or None where there is none.

    same: columns that have one value, this one, in every row: results of another scale are refused, not mixed in.
    Raises: BadInput where they differ, CourseError where the file cannot be read.
    """
    import pandas as pd

    path = files.BUILD / "results" / f"{name}.csv"
    if not path.exists():
        return None
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as problem:
        raise CourseError(f"{path} cannot be read ({problem}): delete it and run its lab again.") from None
    for column, value in same.items():
        found = sorted(set(map(str, frame[column]))) if column in frame else ["nothing"]
        if found != [str(value)]:
            raise BadInput(f"{path} has {column} = {', '.join(found)}, not {value}: run its lab again with {value}.")
    return frame


def save(frame, name: str) -> Path:
    """Write a tidy DataFrame, with `machine()` in columns of its own, to build/results/<name>.csv; returns the path.

    The file is complete or it is the previous one (`files.replacing`).
    Raises: CourseError in one sentence where it cannot be written, such as on a full disk.
    """
    path = files.BUILD / "results" / f"{name}.csv"
    with files.replacing(path) as part:
        frame.assign(**machine()).to_csv(part, index=False)
    return path


# ---- a sweep that goes on where it stopped -----------------------------------------------------------------------


class Sweep:
    """Results by item (a model's name), as JSON; `made` counts what this process measured itself.

    A result is a file of its own under build/results/<name>-<key>.unfinished/, complete or not there. The key is made
    of the settings, the machine and the versions: under others it is another sweep, with a folder of its own, and
    neither is lost.
    """

    def __init__(self, name: str, **settings):
        """settings: all that a result depends on besides its item."""
        where = {key: value for key, value in machine().items() if key != "date"}
        self.name, self.settings = name, {**settings, **where}
        key = hashlib.sha256(json.dumps(plain(self.settings), sort_keys=True).encode()).hexdigest()[:8]
        self.folder = files.BUILD / "results" / f"{name}-{key}.unfinished"
        self.made = 0

    def has(self, item: str) -> bool:
        """Whether the result of `item` is kept."""
        return self._read(item) is not None

    def keep(self, item: str, measure: Callable[[], object]):
        """The kept result of `item`, or what `measure()` returns, which is kept from then on.

        It is kept as `plain` gives it. Raises: CourseError where the result cannot be written, BadInput where it cannot
        be kept at all.
        """
        if (kept := self._read(item)) is not None:
            return kept["result"]
        text = json.dumps(plain({"settings": self.settings, "result": measure()}))
        files.write(self._file(item), text)
        self.made += 1
        return json.loads(text)["result"]

    def finish(self, frame) -> Path:
        """Write the whole table to build/results/<name>.csv, and forget what was kept: the next run measures anew."""
        path = save(frame, self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        return path

    def _file(self, item: str) -> Path:
        return self.folder / f"{str(item).replace('/', '--')}.json"

    def _read(self, item: str) -> dict | None:
        try:
            kept = json.loads(self._file(item).read_text(encoding="utf-8"))
            _ = kept["result"]
        except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged from outside
            return None
        return kept


def plain(value):
    """A value as JSON has it, whatever it holds: numbers of numpy and torch, sets, dates, paths, dataclasses, configs.

    Raises: BadInput for what has no such form, such as a model.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_key(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    if hasattr(value, "tolist"):  # numpy, torch, a column of pandas
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not hasattr(value, "to_dict") and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return plain(value.to_dict())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if (
        isinstance(value, (os.PathLike, Decimal, Fraction)) or type(value).__module__ == "torch"
    ):  # torch: a dtype, a device
        return str(value)
    raise BadInput(f"A result of a sweep cannot hold {type(value).__name__}: give numbers, text, lists or dicts.")


def _key(key) -> str:
    return key if isinstance(key, str) else str(plain(key))
