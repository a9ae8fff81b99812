"""Where measured results go: tidy CSV under build/results, with the machine and the versions in every row.

A sweep over models can be interrupted: each result is kept as it comes, and a second run goes on.

    quality = results.Sweep("lab-2.4.5-tiny-quality", scale="tiny", window=256)
    for name in zoo:
        quality.keep(name, lambda: measure(name))   # measured once, then read
    quality.finish(frame)                           # the CSV is written, what was kept goes

What takes long in a lab is there again after a restart of its kernel, and says that it is not new:

    curves = results.kept("lab-2.4.1-recall", train, steps=100)   # the function, and its arguments
"""

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pickle
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TypeVar

from shared import files
from shared.errors import BadInput, CourseError
from shared.machine import processor
from shared.notebooks import absent, progress

Result = TypeVar("Result")
SAMPLE = 1_000_000  # values of a tensor that its content is told by
taken: list[str] = []  # the names of what this process has taken over from before a restart, as it came


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
        if (earlier := self._read(item)) is not None:
            return earlier["result"]
        text = json.dumps(plain({"settings": self.settings, "result": kept(f"{self.name}-{item}", measure)}))
        files.write(self._file(item), text)
        self.made += 1
        return json.loads(text)["result"]

    def finish(self, frame) -> Path:
        """Write the whole table to build/results/<name>.csv, and forget what was kept: the next run measures anew.

        For a student each result is still there after a restart, and says so (`kept`).
        """
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


# ---- over a restart of the kernel --------------------------------------------------------------------------------


def kept(name: str, measure: Callable[..., Result], *arguments, **options) -> Result:
    """What `measure(*arguments, **options)` returns, or what it has returned before a restart of the kernel.

    Which one is printed: a time that was measured earlier is not passed off as new. It is kept in build/kept/<name>.pt
    as long as all that it depends on is the same: arguments, the code of `measure` and of the notebook's functions that
    it calls with the values that they read, `shared/`, the tiny models, machine and versions. So `measure` seeds what
    it draws, and returns what it makes. The random numbers that follow are those of a new measurement, too. A run of
    the labs by a program (COURSE_PROGRESS=off) always measures.
    """
    import torch

    if progress.off():
        return measure(*arguments, **options)
    path = files.BUILD / "kept" / f"{name.replace('/', '--')}.pt"
    key = _content((measure, arguments, options))
    known = _read_kept(path)
    if key and known.get("key") == key:
        torch.set_rng_state(known["random"])
        taken.append(name)
        print(f"Kept from {known['when']}, not measured now: to measure it anew, delete {_from_here(path)}")
        return known["value"]
    value = measure(*arguments, **options)
    if key:
        when = f"{datetime.datetime.now():%H:%M on %d %B}"
        known = {"key": key, "when": when, "random": torch.get_rng_state(), "value": value}
        # A result is worth more than its record: a full disk, an object that cannot be written.
        with suppress(CourseError, pickle.PicklingError, TypeError, AttributeError), files.replacing(path) as part:
            torch.save(known, part)
    return value


def _read_kept(path: Path) -> dict:
    import torch

    try:
        return torch.load(path, weights_only=False)  # of this folder's own kernels
    except Exception:  # not there, cut off, or of classes that are gone
        return {}


def _from_here(path: Path) -> str:
    return os.path.relpath(path, files.ROOT) if path.is_relative_to(files.ROOT) else str(path)


def _content(value) -> str:
    """A hash of a value by its content, with the course's code and the machine; "" where a part has none."""
    where = {key: value for key, value in machine().items() if key != "date"}
    stream = io.BytesIO()
    try:
        _Content(stream, protocol=5).dump((where, _course(), value))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
        return ""
    return hashlib.sha256(stream.getbuffer()).hexdigest()


@functools.cache
def _course() -> str:
    """A hash of the course's code and of its tiny models."""
    return files.fingerprint([*(files.ROOT / "shared").rglob("*.py"), *(files.DATA / "tiny").rglob("*")])


class _Content(pickle.Pickler):
    """Writes what a value is made of: functions of a notebook by their code, tensors by their numbers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.functions: set[int] = set()

    def reducer_override(self, value):
        import torch

        if isinstance(value, ModuleType):
            return str, (value.__name__,)
        if isinstance(value, torch.nn.Module):
            return str, (type(value).__name__, sorted(value.state_dict().items()))
        if isinstance(value, torch.Tensor):
            every = max(1, value.numel() // SAMPLE)
            numbers = value.detach().flatten()[::every].to("cpu").contiguous().view(torch.uint8).numpy().tobytes()
            return str, (str(value.dtype), tuple(value.shape), numbers)
        if isinstance(value, torch.Generator):
            return str, (value.get_state(),)
        if isinstance(value, CodeType):
            return str, (value.co_code, value.co_names, value.co_varnames, value.co_consts)
        module = getattr(value, "__module__", "")
        own = module == "__main__" or module not in sys.modules  # of the notebook, or an answer of the course
        if isinstance(value, FunctionType) and (own or "<" in value.__qualname__):
            return str, (value.__qualname__, *self._function(value))
        if isinstance(value, type) and own:
            return str, (value.__qualname__, value.__bases__, sorted(self._methods(value)))
        return NotImplemented

    def _function(self, function: FunctionType) -> tuple:
        """Its code, its defaults, and the values that it reads outside of itself."""
        if id(function) in self.functions:  # it calls itself
            return ()
        self.functions.add(id(function))
        reads, _ = absent.reads_and_binds(function.__code__)
        outside = {name: function.__globals__[name] for name in reads if name in function.__globals__}
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        return function.__code__, function.__defaults__, function.__kwdefaults__, outside, cells

    def _methods(self, kind: type) -> list:
        return [(name, its) for name, its in vars(kind).items() if isinstance(its, FunctionType)]


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
