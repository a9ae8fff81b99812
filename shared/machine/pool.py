"""The memory that this process can still take, and of which device.

Three kinds of machine, three truths:
- discrete GPU: CUDA knows what is free.
- unified memory (DGX Spark): CPU and GPU share one pool. CUDA's "free" counts page cache as used, so ask the kernel.
- CPU: MemAvailable, or what the container's limit leaves.

All sizes are bytes.
"""

import os
import re
from pathlib import Path

from shared.errors import BadInput
from shared.machine import meters

MEMINFO = Path("/proc/meminfo")
SYSCONF = {"MemTotal": "PHYS", "MemAvailable": "AVPHYS"}
CGROUPS = Path("/sys/fs/cgroup")


def pick_device(device=None):
    """The torch device that is meant: the one given, or the GPU if there is one, or the CPU.

    Raises: BadInput for what names none.
    """
    import torch

    try:
        return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except (RuntimeError, TypeError):
        raise BadInput(f'There is no device {device!r}: choose "cpu" or "cuda", or leave it out.') from None


def present_device(device=None):
    """`pick_device`, where this machine has it. Raises: BadInput for a GPU that is not there."""
    import torch

    found = pick_device(device)
    try:
        if found.type == "cuda":
            torch.cuda.get_device_properties(found)
    except (AssertionError, RuntimeError):
        asked = f"torch finds {torch.cuda.device_count()} GPUs and {str(found)!r} was asked for"
        raise BadInput(f'{asked}: choose "cpu", or leave the device out.') from None
    return found


def is_unified(device=None) -> bool:
    """Whether the GPU takes its memory from the same pool as the CPU, as on DGX Spark."""
    import torch

    device = pick_device(device)
    return device.type == "cuda" and bool(getattr(torch.cuda.get_device_properties(device), "is_integrated", False))


# --------------------------------------------------------------------------------------------------- what is free


def available(device=None) -> int:
    """Bytes that this process can still take on `device` (default: the GPU if there is one, else the CPU).

    Raises: BadInput for a GPU that is not there.
    """
    import torch

    device = present_device(device)
    if device.type != "cuda":
        return min([host("MemAvailable"), *_cgroup_available()])
    # What torch has reserved and does not use is free for the next tensor.
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # Containers do not count CUDA allocations, so their limit says nothing about unified memory.
    return spare + (host("MemAvailable") if is_unified(device) else torch.cuda.mem_get_info(device)[0])


def meminfo() -> dict[str, int]:
    """Field -> bytes, as /proc/meminfo has them. MemTotal and MemAvailable are always there, elsewhere from psutil.

    MemAvailable counts page cache as free. A kernel that does not say it (a sandbox's) has what this adds up.
    """
    try:
        text = MEMINFO.read_text(errors="replace")
    except OSError:  # a Mac, or a sandbox without /proc
        text = ""
    found = {field: int(size) * 1024 for field, size in re.findall(r"^(\S+):\s+(\d+) kB$", text, re.MULTILINE)}
    if "MemTotal" not in found or not {"MemAvailable", "MemFree"} & found.keys():
        return _counted()
    if "MemAvailable" not in found:
        free = found["MemFree"] + found.get("Buffers", 0) + found.get("Cached", 0)
        found["MemAvailable"] = max(0, free - found.get("Shmem", 0))  # Shmem is in Cached, and no file's
    return found


def _counted() -> dict[str, int]:
    """The fields of `meminfo` as psutil has them, or, where it reads /proc in vain, as the C library does."""
    import psutil

    try:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    except (OSError, ValueError, KeyError, psutil.Error):
        page = os.sysconf("SC_PAGE_SIZE")
        return {field: page * os.sysconf(f"SC_{pages}_PAGES") for field, pages in SYSCONF.items()}
    found = {"MemTotal": memory.total, "MemAvailable": memory.available}
    return found | {"SwapTotal": swap.total, "SwapFree": swap.free}


def host(field: str) -> int:
    """Bytes of one field of `meminfo`; 0 for one that this kernel does not have."""
    return meminfo().get(field, 0)


def _cgroup_available() -> list[int]:
    """What each memory limit on the way from this process's control group to the root leaves, versions 1 and 2."""
    left = []
    for number, controllers, group in re.findall(
        r"^(\d+):([^:\n]*):(/.*)$", _text(meters.PROCESS / "cgroup"), re.MULTILINE
    ):
        if number == "0":
            root, limit, usage, cache = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                CGROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # Inside a container the path can belong to the host: then only the last step, the root itself, exists.
        path = root / group.lstrip("/")
        for folder in [path, *path.parents]:
            most, used = (_text(folder / name).strip() for name in (limit, usage))
            if most.isdecimal() and used.isdecimal():  # not "max", and both there
                reclaimable = re.search(rf"^{cache} (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
                cached = int(reclaimable[1]) if reclaimable else 0
                left.append(max(0, int(most) - int(used) + cached))
            if folder == root:
                break
    return left


def _text(path: Path) -> str:
    """What a file of the kernel says; nothing where there is none or it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
