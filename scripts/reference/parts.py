"""What the programs beside this one share: runs that are kept as they end, and compact JSON."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from shared import files


def kept(file: Path, settings: dict) -> dict | None:
    """{settings, result, seconds} of a run with these settings, or None: what was run under others is no result."""
    if not file.exists():
        return None
    part = json.loads(file.read_text())
    return part if part["settings"] == json.loads(json.dumps(settings)) else None


def keep(file: Path, settings: dict, make: Callable[[], object]) -> dict:
    """{settings, result, seconds} of `make()`: from `file` if a run with these settings is there, else written to it.

    The file is complete or not there: an interrupted program goes on where it was.
    """
    if part := kept(file, settings):
        return part
    start = time.perf_counter()
    result = make()
    part = {"settings": settings, "result": result, "seconds": round(time.perf_counter() - start, 1)}
    print(f"{file.stem:30} {part['seconds']:6.1f} s", flush=True)
    files.write(file, json.dumps(part))
    return part


def compact(content: dict) -> str:
    """JSON with one line per key and lists of numbers on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(content, indent=1))
