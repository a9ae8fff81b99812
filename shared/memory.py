"""How much memory is free, how much a piece of code takes, and how much a model's cache holds.

Three kinds of machine, three truths:
- discrete GPU: CUDA knows what is free, and torch's allocator knows every byte that tensors take.
- unified memory (DGX Spark): CPU and GPU share one pool. CUDA's "free" counts page cache as used, so ask the kernel;
  CUDA allocations do not show in the process's RSS, so add what torch has reserved.
- CPU: MemAvailable, or what the container's limit leaves; a process takes its resident set (RSS).

All sizes are bytes. `human` prints them in decimal units: GB = 1e9 bytes.
"""

import re
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from shared import meters
from shared.errors import BadInput
from shared.meters import held

__all__ = [
    "CacheBytes",
    "available",
    "cache_bytes",
    "held",
    "host",
    "human",
    "is_unified",
    "meminfo",
    "pick_device",
    "present_device",
    "track",
]

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
# The processor time that the thread which samples a block may take, as a share of the block's time: where the machine
# keeps an exact peak, and where the samples are the peak.
SHARE = {True: 0.003, False: 0.008}


def human(size: float) -> str:
    """Three digits and a decimal unit: `human(5_536_691_200)` is '5.54 GB' (GB = 1e9 bytes)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        text = f"{float(f'{size:.3g}'):g}"  # rounded first, so that 999.9 MB becomes 1 GB and not 1e+03 MB
        if abs(float(text)) < 1000 or unit == "TB":
            return f"{text} {unit}"
        size /= 1000


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
    """Bytes that this process can still take on `device` (default: the GPU if there is one, else the CPU)."""
    import torch

    device = pick_device(device)
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
    if not MEMINFO.exists():
        import psutil

        all_of_it, swap = psutil.virtual_memory(), psutil.swap_memory()
        found = {"MemTotal": all_of_it.total, "MemAvailable": all_of_it.available}
        return found | {"SwapTotal": swap.total, "SwapFree": swap.free}
    fields = re.findall(r"^(\S+):\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    found = {field: int(size) * 1024 for field, size in fields}
    if "MemAvailable" not in found:
        free = found["MemFree"] + found.get("Buffers", 0) + found.get("Cached", 0)
        found["MemAvailable"] = max(0, free - found.get("Shmem", 0))  # Shmem is in Cached, and no file's
    return found


def host(field: str) -> int:
    """Bytes of one field of `meminfo`; 0 for one that this kernel does not have."""
    return meminfo().get(field, 0)


def _cgroup_available() -> list[int]:
    """What each memory limit on the way from this process's control group to the root leaves, versions 1 and 2."""
    left = []
    groups = (meters.PROCESS / "cgroup").read_text().splitlines() if (meters.PROCESS / "cgroup").exists() else []
    for number, controllers, group in (line.split(":", 2) for line in groups):
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
            if (folder / limit).exists() and (most := (folder / limit).read_text().strip()) != "max":
                stat = (folder / "memory.stat").read_text() if (folder / "memory.stat").exists() else ""
                reclaimable = re.search(rf"^{cache} (\d+)", stat, re.MULTILINE)
                used = int((folder / usage).read_text()) - (int(reclaimable[1]) if reclaimable else 0)
                left.append(max(0, int(most) - used))
            if folder == root:
                break
    return left


# ------------------------------------------------------------------------------------------------- what code takes


STOPS = (signal.SIGINT, signal.SIGUSR2)  # Ctrl-C and what the guard sends: both raise wherever the program stands


class Tracker:
    """What `track` hands out. All its figures are bytes above the level at entry."""

    def __init__(self, meter, interval: float):
        self._meter, self._interval = meter, interval
        self._phase, self._peaks, self._samples = "start", {}, []
        self._over, self._watching = False, threading.Lock()
        self._watching.acquire()
        self._thread = threading.Thread(target=self._watch, name="memory.track", daemon=True)
        self._handlers, self._late = {}, []

    def __enter__(self) -> "Tracker":
        try:
            self._hear()
            self._meter.settle()
            with _lock:
                _settle_peak(self._meter)
                self._start, self._entry = time.perf_counter(), self._meter.level()
                _active.append(self)
                self._sample()
            self._thread.start()
            while self._late:
                self._handlers[number := self._late.pop()](number, sys._getframe(1))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_) -> None:
        try:
            if not self._over:
                self._sample(settle_peak=True)
        finally:
            self._end()
        while self._late:
            self._handlers[number := self._late.pop()](number, sys._getframe(1))

    def _end(self) -> None:
        self._over = True
        with _lock:
            if self in _active:
                _active.remove(self)
        if self._watching.locked():
            self._watching.release()
        if self._thread.is_alive():
            self._thread.join()
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._hold:
                signal.signal(number, handler)

    def _hear(self) -> None:
        """Until the end, hear the signals that raise before whoever else does."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)

    def _hold(self, number: int, frame) -> None:
        """Pass a signal on, but not amid entry and exit: there it waits until all is in order."""
        here = frame
        while here:
            if here.f_code in _WHOLE and here.f_locals.get("self") is self:
                self._late.append(number)
                return
            here = here.f_back
        self._handlers[number](number, frame)

    @property
    def peak_bytes(self) -> int:
        """The most that was taken at once since entry."""
        return max(self.phases().values())

    def mark(self, phase: str) -> None:
        """Call what follows `phase`, until the next mark."""
        with _lock:
            self._sample()
            self._meter.settle()  # or what this phase freed and the heap kept would count for the next one
            _settle_peak(self._meter)
            self._phase = phase
            self._sample()

    def phases(self) -> dict[str, int]:
        """The peak of each phase, in the order in which they began."""
        if not self._over:
            self._sample(settle_peak=True)
        return {phase: max(0, peak - self._entry) for phase, peak in self._peaks.items()}

    def timeline(self):
        """DataFrame with one row per sample: seconds since entry, bytes, phase."""
        import pandas as pd

        rows = [(seconds, level - self._entry, phase) for seconds, level, phase in list(self._samples)]
        return pd.DataFrame(rows, columns=["seconds", "bytes", "phase"])

    def _note(self, level: int) -> None:
        self._peaks[self._phase] = max(level, self._peaks.get(self._phase, 0))

    def _sample(self, settle_peak: bool = False) -> None:
        with _lock:
            self._note(level := self._meter.level())
            self._samples.append((time.perf_counter() - self._start, level, self._phase))
            if settle_peak:
                _settle_peak(self._meter)

    def _watch(self) -> None:
        pause = self._interval
        while not self._watching.acquire(timeout=pause):  # a lock costs a fraction of what an Event does
            self._sample()
            elapsed = time.perf_counter() - self._start
            # Waking up costs many times what reading does, and what depends on the machine: so it is measured.
            pause = max(self._interval, time.thread_time() / SHARE[self._meter.exact] - elapsed)
            if self._meter.exact:
                pause = max(pause, elapsed / 1000)  # or the samples of hours would show in what they sample


_WHOLE = {Tracker.__enter__.__code__, Tracker.__exit__.__code__}
_lock = threading.RLock()
_active: list[Tracker] = []


def _settle_peak(meter) -> None:
    """Credit the high-water mark to every tracker that shares it, then start it anew: nested trackers reset it too."""
    peak = meter.peak()
    for tracker in _active:
        if type(tracker._meter) is type(meter) and tracker._meter.device == meter.device:
            tracker._note(peak)
    meter.reset()


def track(device=None, interval: float = 0.005) -> Tracker:
    """Watch the memory that the block takes on `device` (default: the GPU if there is one, else the CPU).

    A thread samples the level every `interval` seconds, or as often as it can within 0.3 % of the block's time: where a
    sample costs 100 microseconds, every 33 milliseconds. Where the machine keeps an exact peak (Linux RSS, torch's CUDA
    allocator), that is the peak. Elsewhere the largest sample is, and samples may take 0.8 %: what comes and goes
    between two of them is missed. On unified memory that is resident memory alone, because torch keeps what it has
    reserved on the GPU.
    At entry and at each mark garbage is collected and freed heap given back. That is no part of what follows, but takes
    a tenth of a second where many objects live: do not time across it.
    While the block lasts, signals that raise (Ctrl-C) pass through a handler of the tracker, which holds them back amid
    entry and exit; their own handlers are put back.
    Resident memory counts pages that were touched: `torch.empty` alone takes nothing, and the pages of a memory-mapped
    checkpoint count once they are read. On unified memory `guard.watch` runs from the first call on.

    >>> with memory.track() as m:
    ...     m.mark("prefill")
    ...     model(input_ids)
    >>> m.peak_bytes, m.phases(), m.timeline()
    """
    device = pick_device(device)
    if device.type != "cuda":
        meter = meters.Host()
    else:
        meter = meters.Unified(device) if is_unified(device) else meters.Cuda(device)
    if is_unified(device):
        from shared import guard

        guard.watch()
    return Tracker(meter, interval)


# ------------------------------------------------------------------------------------------------ what a cache holds


@dataclass(frozen=True)
class CacheBytes:
    """Bytes in a model's cache: keys and values, convolution states, recurrent (SSM) states."""

    kv: int
    conv: int
    recurrent: int

    @property
    def total(self) -> int:
        return self.kv + self.conv + self.recurrent


def cache_bytes(cache) -> CacheBytes:
    """Count the tensors in a transformers `Cache` (attention, Mamba or both), each once, as elements times their size.

    Args:
        cache: `outputs.past_key_values`, or `outputs.cache_params` for a pure Mamba model.
    """
    if not hasattr(cache, "layers"):
        raise TypeError(
            f"cache_bytes needs the cache of a model's output and got {type(cache).__name__}: "
            "call the model with use_cache=True and pass its past_key_values (cache_params for Mamba)."
        )
    seen = set()

    def count(*tensors) -> int:
        new = {id(t): t.numel() * t.element_size() for t in tensors if t is not None and id(t) not in seen}
        seen.update(new)
        return sum(new.values())

    kv = conv = recurrent = 0
    for layer in cache.layers:
        kv += count(getattr(layer, "keys", None), getattr(layer, "values", None))
        conv += count(*getattr(layer, "conv_states", {}).values())
        recurrent += count(*getattr(layer, "recurrent_states", {}).values())
    return CacheBytes(kv, conv, recurrent)
