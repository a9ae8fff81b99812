"""What this machine can run of the course, what not, and which command changes that: the facts behind `make doctor`.

No network is asked and no model is loaded. Sizes are bytes. The names of notebooks and programs are the only private
thing in it.
"""

import json
import platform
import re
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from shared import files, models, notebooks
from shared.errors import BadInput, DamagedCheckpoint
from shared.hub import store
from shared.hub.catalogue import SOURCES
from shared.kits import forecast, plans
from shared.machine import guard, kernels, pool, processor
from shared.machine.holders import notebook as notebook_of
from shared.machine.holders import processes
from shared.models.sizes import download_bytes
from shared.units import human

PATIENCE = 10  # seconds for what a command says
SENTENCE = 200  # characters of it that are shown


def section(read, *given) -> dict:
    """What a section of the page says, or {"unread": why it cannot be read}: the others are shown all the same."""
    try:
        return read(*given)
    except Exception as problem:  # whatever a machine that nobody has seen does
        return {
            "unread": f"cannot be read here ({' '.join(f'{type(problem).__name__}: {problem}'.split())[:SENTENCE]})"
        }


# ---- the machine ------------------------------------------------------------------------------------------------


def asked(*command: str) -> list[str]:
    """The lines that a command says, on whichever stream; none where it is missing. One that hangs is said."""
    options = {"capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(command, timeout=PATIENCE, **options)
    except subprocess.TimeoutExpired:
        return [f"nothing in {PATIENCE} seconds"]
    except OSError:
        return []
    return [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict:
    release = Path("/etc/dgx-release")
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": processor(),
        "dgx": release.read_text() if release.exists() else None,
        "packages": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "triton", "datasets", "peft")},
    }


def gpu() -> dict:
    """The GPU, its driver, and whether this PyTorch has code for it."""
    said = asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = next((line for line in said if re.fullmatch(r"[\d.]+", line)), None)  # or a sentence
    found = {"driver": driver, "cuda": torch.version.cuda, "name": None, "why": None}
    if not torch.cuda.is_available():
        if torch.version.cuda is None and driver:
            found["why"] = "there is a GPU, but this PyTorch is a build without CUDA"
            found["change"] = "make setup TORCH_INDEX_URL=<the CUDA index that pytorch.org shows for pip>"
        elif driver:
            found["why"] = f"there is a GPU, but its driver {driver} does not do for CUDA {torch.version.cuda}"
            found["change"] = "sudo apt upgrade, then restart (the driver has to be as new as PyTorch's CUDA)"
        else:
            heard = f" (nvidia-smi says: {said[0][:SENTENCE]})" if said else ""
            found["why"] = f"PyTorch sees no NVIDIA GPU{heard}; scale tiny needs none"
            found["change"] = "take a machine with one; in a container: docker run --gpus all ..."
        return found
    properties = torch.cuda.get_device_properties(0)
    capability, architectures = (properties.major, properties.minor), torch.cuda.get_arch_list()
    found |= {
        "name": properties.name,
        "capability": "{}.{}".format(*capability),
        "unified": pool.is_unified(),
        "memory_bytes": properties.total_memory,
        "architectures": architectures,
    }
    # Code for one version runs on later ones of the same major version.
    built = [divmod(int(number), 10) for name in architectures for number in re.findall(r"^sm_(\d+)", name)]
    if fitting := [one for one in built if one[0] == capability[0] and one <= capability]:
        best = "{}{}".format(*max(fitting))
        found["code"] = f"it runs PyTorch's code for sm_{best}"
        if max(fitting) != capability:
            found["code"] += f", so a warning that sm_{capability[0]}{capability[1]} is missing is harmless"
    else:
        found["why"] = f"this PyTorch has no code for compute capability {found['capability']}"
        found["change"] = "make setup TORCH_INDEX_URL=<another CUDA index that pytorch.org shows for pip>"
    return found


def compiled() -> dict:
    """The kernels: whether they are there and work, what they were built for, and how they compared with float64."""
    state, why = kernels.status()
    found = {"status": state, "why": why, "versions": {name: version(name) for name in ("causal-conv1d", "mamba-ssm")}}
    spec = find_spec("mamba_ssm")
    record = Path(spec.origin).parents[1] / "built.json" if spec and spec.origin else Path("none")
    if record.exists():
        found["built"] = built = json.loads(record.read_text())
        if built["torch"] != torch.__version__:
            found |= {"status": "broken", "why": f"built for torch {built['torch']}, and {torch.__version__} is here"}
    if found["status"] != "installed" and torch.cuda.is_available():
        found["change"] = "make kernels-remove; make kernels" if state == "broken" else "make kernels"
    return found


# ---- memory and disk --------------------------------------------------------------------------------------------


def program(process: psutil.Process) -> str:
    """The first words of a command, without folders: "python -m pytest"."""
    try:
        return " ".join(Path(part).name for part in process.cmdline()[:3])[:40] or process.name()
    except psutil.Error:
        return "a program"


def holders(least: float = 200e6, most: int = 5) -> list[dict]:
    """The processes that hold most memory, largest first, with the notebook of each that is a Jupyter kernel."""
    rows = []
    for process, resident, on_gpu in processes():
        if resident + on_gpu >= least:
            path = notebook_of(process)
            row = {"pid": process.pid, "name": program(process), "notebook": path and Path(path).name}
            rows.append(row | {"resident_bytes": resident, "gpu_bytes": on_gpu})
    return sorted(rows, key=lambda row: -row["resident_bytes"] - row["gpu_bytes"])[:most]


def memory_now() -> dict:
    """What is available and free, what the page cache holds, swap, and who holds the rest. Bytes.

    On unified memory also what plans leave free (`reserve`) and where the watchdog stops a cell (`floor`).
    """
    now = pool.meminfo()
    found = {"available": pool.available("cpu"), "device_available": pool.available(), "holders": holders()}
    found |= {"total": now["MemTotal"], "swap_total": now.get("SwapTotal", 0), "swap_free": now.get("SwapFree", 0)}
    if "MemFree" in now:
        cached = sum(now.get(field, 0) for field in ("Cached", "Buffers", "SReclaimable"))
        found["free"] = now["MemFree"]
        found["page_cache"] = max(0, cached - now.get("Shmem", 0))  # Shmem is in Cached, and no file's
        found["dirty"] = now.get("Dirty", 0) + now.get("Writeback", 0)
    if pool.is_unified():
        found |= {"reserve": guard.reserve(), "floor": guard.floor(now["MemTotal"])}
    return found


def disk() -> dict:
    """Free bytes where the course and the Hugging Face cache lie, and what the course keeps there."""
    kept = store.cached()
    hub_cache = store.storage(next(iter(SOURCES.values()))).parent
    return {
        "course": str(files.ROOT),
        "course_free": shutil.disk_usage(files.ROOT).free,
        "cache": str(hub_cache),
        "cache_free": files.free(hub_cache),
        "cache_closed": files.closed(hub_cache),
        "cached": {row.Index: int(row.download_bytes + row.arrow_bytes) for row in kept.itertuples()},
    }


# ---- labs -------------------------------------------------------------------------------------------------------


def last_run(lab: str, scale: str) -> float | None:
    """Seconds of the last whole run of a lab by `make run` on this machine, None without one."""
    file = files.BUILD / "executed" / notebooks.path_of(lab).name
    try:
        run = json.loads(file.read_text())["metadata"]["papermill"]
    except (OSError, ValueError, KeyError):
        return None
    return run["duration"] if run["parameters"].get("SCALE") == scale and not run["exception"] else None


def minutes(lab: str, scale: str, expected: float | None = None) -> str:
    """How long a lab takes and how that is known; `expected`: the seconds of its plan."""
    if seconds := last_run(lab, scale):
        return f"{seconds / 60:.1f} min, the last run here"
    if expected:
        return f"{plans.duration(expected)}, computed"
    documented = re.search(r"about (?:a|an|[\d.]+) minutes?", plans.needs(lab, scale))
    return f"{documented[0]} on two cores" if documented else "not measured yet"


ROOM = 2e9  # bytes: measuring a GPU's rates takes one


def plan(lab: str, device: dict) -> plans.Plan:
    """What a lab takes at scale full with its own settings: on this machine, or on a DGX Spark where no GPU answers."""
    answers = device["name"] and not device["why"] and pool.available() > ROOM
    return plans.lab(lab, plans.default_settings(lab), on=None if answers else forecast.SPARK)


def tiny(lab: str) -> dict:
    least = re.search(r"([\d.]+) GB of free memory", plans.needs(lab, "tiny"))
    least, free = float(least[1]) * 1e9 if least else 2e9, pool.available("cpu")
    row = {
        "lab": lab,
        "scale": "tiny",
        "models": ["data/tiny"],
        "memory_bytes": int(least),
        "minutes": minutes(lab, "tiny"),
    }
    if free >= least:
        return row | {"runs": True}
    return row | {
        "runs": False,
        "why": f"{human(free)} of memory are free",
        "change": "close other notebooks and programs",
    }


def full(lab: str, device: dict) -> dict:
    """Whether a lab runs at scale full: one model after the other in memory, all of its sources on this machine."""
    names = [name for name, source in SOURCES.items() if lab in source.labs]
    fits = {name: models.fits(name) for name in names if SOURCES[name].kind == "model"}
    largest = max(fits, key=lambda name: fits[name].needed_bytes, default=None)
    expected = plan(lab, device)
    row = {"lab": lab, "scale": "full", "models": list(fits), "minutes": minutes(lab, "full", expected.seconds)}
    row["memory_bytes"] = fits[largest].needed_bytes if largest else None
    row |= {"forecast_for": expected.on.name, "forecast_seconds": expected.seconds, "peak_bytes": expected.peak_bytes}
    missing = [name for name in names if not store.local(name)]
    download = sum(download_bytes(name) for name in missing)
    room = files.free(store.storage(SOURCES[names[0]])) if names else 0
    if device["why"]:
        why = device["why"] if device["name"] else "scale full wants an NVIDIA GPU"
        return row | {"runs": False, "why": why, "change": device["change"]}
    if largest and not fits[largest]:
        return row | {
            "runs": False,
            "why": fits[largest].reason.rstrip("."),
            "change": "close other notebooks and programs",
        }
    if missing and (closed := files.closed(store.storage(SOURCES[missing[0]]))):
        why = f"the cache cannot be made or written in ({closed})"
        return row | {"runs": False, "why": why, "change": "export HF_HOME=<a folder that you may write in>"}
    if missing and download > room:
        why = f"{human(download)} to download, and the disk has {human(room)} free"
        return row | {"runs": False, "why": why, "change": "export HF_HOME=<a folder on a larger disk>"}
    if missing:
        why = f"not here yet: {', '.join(missing)} ({human(download)})"
        return row | {"runs": False, "why": why, "change": f"make fetch LAB={lab} SCALE=full"}
    return row | {"runs": True}


def rows(lab: str, device: dict) -> list[dict]:
    """Both scales of a lab; a notebook that cannot be read runs at neither."""
    try:
        return [tiny(lab), full(lab, device)]
    except BadInput as problem:
        why, change = str(problem), notebooks.remedy(notebooks.path_of(lab))
    except DamagedCheckpoint as problem:
        why, change = str(problem), "make cache, which names what is not whole"
    except Exception as problem:  # of this machine
        why, change = f"{type(problem).__name__}: {problem}", f"make run LAB={lab}, which may run all the same"
    unknown = {"models": [], "memory_bytes": None, "minutes": "", "runs": False, "why": why, "change": change}
    return [{"lab": lab, "scale": scale} | unknown for scale in notebooks.SCALES]


def facts() -> dict:
    """Everything that the page says."""
    device = section(gpu)
    if "unread" in device:
        device |= {"driver": None, "name": None, "why": device["unread"], "change": "nvidia-smi, which says more"}
    return {
        "machine": section(machine),
        "gpu": device,
        "kernels": section(compiled),
        "memory": section(memory_now),
        "disk": section(disk),
        "labs": [row for lab in notebooks.labs() for row in rows(lab, device)],
        "solved": section(solved),
    }


def solved() -> dict:
    """How many exercises of each lab a check has found right in this clone, and how many there are."""
    from shared.notebooks import progress

    return {lab: [len(progress.solved(lab)), len(notebooks.answers(lab))] for lab in notebooks.labs()}
