"""Where measured results go: tidy CSV under build/results, with the machine and the versions in every row."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

from shared import files
from shared.errors import BadInput, CourseError
from shared.notebooks import BUILD


def machine() -> dict[str, str | int]:
    """What a figure depends on besides the model: machine, threads, versions, date."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "machine": gpu or _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, such as +cu130, which the metadata may lack
        "transformers": importlib.metadata.version("transformers"),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith(("model name", "Model")))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def load(name: str, **same):
    """The table that `save` wrote to build/results/<name>.csv, or None where there is none.

    same: columns that have one value, this one, in every row: results of another scale are refused, not mixed in.
    Raises: BadInput where they differ, CourseError where the file cannot be read.
    """
    import pandas as pd

    path = BUILD / "results" / f"{name}.csv"
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
    path = BUILD / "results" / f"{name}.csv"
    with files.replacing(path) as part:
        frame.assign(**machine()).to_csv(part, index=False)
    return path
