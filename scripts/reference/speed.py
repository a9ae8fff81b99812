"""Measure speed and memory of the course's models on this machine (`make reference`): data/reference/<machine>.json.

    python scripts/reference/speed.py                   everything, at scale full; an interrupted call goes on
    python scripts/reference/speed.py --part context    one part
    python scripts/reference/speed.py --minutes 9       begin no point later than that; the same call goes on
    python scripts/reference/speed.py --scale tiny      the same with models that ship, on any CPU, in some minutes

Weights are random: the shapes are the published ones, nothing is downloaded, and neither speed nor memory depends on
what a text says. Each part runs in a process of its own, so that it starts with all memory and on one path of the scan.
Each point is kept in build/reference/ as it ends. One that took its process down, or the machine, is not tried again
and says "did not finish", until its file there is deleted. After a change of code, `make clean` comes first.

The file holds, by scale,

    made       {machine, threads, versions, date, kernels, memory_bytes, unified, seconds, planned: points in all}
    bandwidth  bytes per second that the device copies, reads and writes both counted
    columns    of the rows: part, the point's own (model, tokens, batch, graph, layers, path, way), status ("ok",
               "out of memory", "slow", "did not finish", or "refused: " and why), and what was measured: fields of
               timing.GenerationTiming, weight_bytes, load_peak_bytes (above the level before)
    rows       one list per point
"""

import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from parts import compact, keep, kept
from points import SETTINGS, Bench, plan

from shared import files, reference, results, timing
from shared.errors import BadInput, CourseError
from shared.machine import kernels, pool
from shared.notebooks import commands


def file_of(scale: str, part: str, point: dict) -> Path:
    name = "-".join(str(value).replace("/", "_").replace(" ", "") for value in point.values())
    return files.BUILD / "reference" / f"{reference.slug()}-{scale}" / part / f"{name}.json"


def settings_of(point: dict) -> dict:
    """What a result belongs to: the point, the machine and the versions."""
    return point | {key: value for key, value in results.machine().items() if key != "date"}


def once(running: Path, bench: Bench, point: dict, before: dict | None) -> dict:
    """Measure a point that has not taken a process down before; the file `running` lies there while it lasts."""
    if running.exists():
        running.unlink()
        return {"status": "did not finish"}
    running.parent.mkdir(parents=True, exist_ok=True)
    running.touch()
    try:
        return bench.row(point, before)
    finally:
        running.unlink()


def measure(scale: str, part: str, until: float) -> None:
    """Measure what is missing of a part; begin no point after `until`, in seconds of time.time."""
    bench, done = Bench(scale), {}
    for point in plan(scale, bench.device.type == "cuda")[part]:
        kind = tuple(point.get(key) for key in ("model", "graph", "way"))
        file = file_of(scale, part, point)
        running = file.with_suffix(".running")
        if not kept(file, settings_of(point)) and time.time() > until:
            return
        try:
            result = keep(file, settings_of(point), partial(once, running, bench, point, done.get(kind)))["result"]
        except CourseError as error:  # said, but not kept as a result: the next call tries again
            print(f"{file.stem}: {error}", flush=True)
            files.write(file.with_suffix(".refused"), str(error))
            continue
        if result["status"] == "ok":
            done[kind] = point | result


def write(scale: str, parts: dict[str, list[dict]]) -> str:
    """What is kept, into data/reference/<machine>.json; other scales in it stay. Returns a sentence."""
    device, rows, seconds = pool.pick_device(), [], 0.0
    for part, points in parts.items():
        for point in points:
            file = file_of(scale, part, point)
            refused = file.with_suffix(".refused")
            if found := kept(file, settings_of(point)):
                rows.append({"part": part} | point | found["result"])
                seconds += found["seconds"]
            elif refused.exists():
                rows.append({"part": part} | point | {"status": f"refused: {refused.read_text()}"})
    if not rows:
        return "Nothing is measured yet."
    most = pool.host("MemTotal")
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory
    made = results.machine() | {"kernels": kernels.status()[0], "unified": pool.is_unified(device)}
    planned = sum(map(len, parts.values()))
    made |= {"memory_bytes": most, "seconds": round(seconds), "planned": planned}
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = reference.FOLDER / f"{reference.slug()}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[scale] = {
        "made": made,
        "bandwidth": round(timing.memory_bandwidth(device)),
        "columns": columns,
        "rows": [[shortened(row.get(column)) for column in columns] for row in rows],
    }
    files.write(path, compact(content) + "\n")
    refused = sum(row["status"].startswith("refused") for row in rows)
    done = f"{len(rows) - refused} of {planned} points are measured"
    return f"{done}{f', {refused} refused' if refused else ''}: {os.path.relpath(path)}"


def shortened(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def call(command: list, env: dict[str, str], lock) -> int:
    """The exit status of a command, which gets the time to clean up where Ctrl-C ends both."""
    process = subprocess.Popen(command, env=env, pass_fds=[lock.fileno()])
    try:
        return process.wait()
    finally:  # subprocess.run would kill it
        process.wait()


@commands.program("Interrupted: the same command goes on.")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(__doc__)
    parser.add_argument("--scale", default="full", type=commands.one_of("SCALE", SETTINGS), help=" or ".join(SETTINGS))
    parser.add_argument("--part", help="default: all")
    parser.add_argument("--minutes", type=commands.positive("MINUTES"), default=math.inf)
    parser.add_argument("--until", type=float, help="of the process of one part, in seconds of time.time")
    options = parser.parse_args(arguments)
    if options.until:
        measure(options.scale, options.part, options.until)
        return 0
    on_gpu = pool.pick_device().type == "cuda"
    if options.scale == "full" and not on_gpu:
        raise BadInput(
            "Scale full needs an NVIDIA GPU, and PyTorch sees none: `make reference SCALE=tiny` measures this CPU."
        )
    parts = plan(options.scale, on_gpu)
    if options.part and options.part not in parts:
        raise BadInput(f"There is no part {options.part!r}; the parts are {', '.join(parts)}.")
    lock = commands.alone("make reference", files.BUILD / "reference")
    until, failed = time.time() + 60 * options.minutes, []
    for part in [options.part] if options.part else parts:
        print(f"-- {part}", flush=True)
        off = {"MAMBA_KERNELS": "off"} if part in ("scan-course", "scan-reference") else {}
        command = [sys.executable, __file__, "--scale", options.scale, "--part", part, "--until", str(until)]
        before = None
        while call(command, {**os.environ, **off}, lock):
            marks = [file_of(options.scale, part, point).with_suffix(".running") for point in parts[part]]
            killed = [mark for mark in marks if mark.exists()]
            if not killed or killed == before:  # an error of its own, with a traceback
                failed.append(part)
                break
            before = killed
    print(write(options.scale, parts))
    if failed:
        print(f"Not to the end: {', '.join(failed)} (see above). The same command goes on.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
