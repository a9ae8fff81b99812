"""Keep a machine whose GPU shares the CPU's memory (DGX Spark) from running dry: it would hang instead of raising.

Before a load and each step of a sweep, what they need is compared with what is free less a reserve (`budget`). torch is
capped (`cap`). A thread watches memory and swap, for what no one foresaw, and stops the running cell (`watch`); the
notebook's variables stay. Elsewhere nothing happens: a discrete GPU raises, a CPU has swap or a container's limit.

Tested with faked devices and files of /proc; it has not run on a Spark yet.
"""

import signal
import sys
import threading
import time
import traceback

from shared.errors import NotEnoughMemory
from shared.machine import holders, meters, pool
from shared.units import human

# What stays free where CPU and GPU share the memory: a share of it, and at least so many bytes. From reports alone:
# - A Spark was nearly unusable with 11.7 GB available and 0.14 GB of swap free (NVIDIA-NeMo/Automodel issue 3532). The
#   watchdog has to act well above that: its floor there is 15.7 GB. Plans leave 19.6 GB. The 3.9 GB between the two are
#   for what no plan counts, so that it does not stop a cell at once.
# - Machines under pressure still wedge with the software of 2026, without an error or with one that comes too late
#   (NVIDIA/open-gpu-kernel-modules issue 1358, NVIDIA/dgx-spark-playbooks issue 97). Others keep 8 or 26 GiB free.
RESERVE, RESERVE_LEAST = 0.15, 4_000_000_000  # plans: `budget`, `cap`, `models.fits`
FLOOR, FLOOR_LEAST = 0.12, 3_000_000_000  # the watchdog
# Bytes that may go to swap while a cell runs. Linux swaps before little is available, and in the report swap was gone.
SWAPPED = 1_000_000_000
STEP = 16  # a cell that begins below the floor may take a sixteenth of what is left (`_Cell`)
SPARK = 130_663_006_208  # bytes in all of a DGX Spark with the firmware of 2026 (121.69 GiB), as its owners report it

INTERVAL = 0.05  # seconds; a core fills less than half a GB in that time
SIGNAL = signal.SIGUSR2  # Jupyter has SIGINT for itself, and faulthandler is often given SIGUSR1


class MemoryRanLow(NotEnoughMemory):
    """The watchdog stopped the cell before the machine ran out of memory."""

    def _render_traceback_(self) -> list[str]:
        traceback.clear_frames(self.__traceback__)  # IPython keeps it, and with it all that the cell's calls had
        meters.Host().settle()
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()
        return super()._render_traceback_()


def kept(total: int) -> int:
    """Bytes that a plan leaves free on a machine with `total` bytes of unified memory."""
    return max(RESERVE_LEAST, int(RESERVE * total))


def floor(total: int) -> int:
    """Available bytes below which the watchdog stops a cell on a machine with `total` bytes of unified memory."""
    return max(FLOOR_LEAST, int(FLOOR * total))


def reserve(device=None) -> int:
    """Bytes that stay with the rest of the machine: `kept` of its memory where that is unified; elsewhere 0."""
    return kept(pool.host("MemTotal")) if pool.is_unified(device) else 0


def budget(device=None) -> int:
    """Bytes that a load or a measurement may plan with on `device`: what is available less the reserve."""
    return max(0, pool.available(device) - reserve(device))


def cap(device=None) -> None:
    """From here on torch raises OutOfMemoryError before it takes the reserve of unified memory; elsewhere nothing."""
    import torch

    if pool.is_unified(device := pool.pick_device(device)):
        most = torch.cuda.memory_allocated(device) + budget(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)


def protect(device=None) -> None:
    """Cap torch and start the watchdog, both for the rest of the process, where the memory is unified; else nothing."""
    cap(device)
    if pool.is_unified(device):
        watch()


# -------------------------------------------------------------------------------------------------------- the watchdog


class _Cell:
    """The levels at which the running cell is stopped, from those at its begin.

    A cell that begins below the floor must be able to give memory back, so it may run, and take little: of 15 GB, 0.9.
    Whoever runs it again after each stop is told three times before 11.7 GB are left. What comes back while it runs
    (memory or swap) is not the cell's to take again.
    """

    def __init__(self, now: dict[str, int]):
        self._least, self._swapped = _least(now), _swapped(now)

    def why_stop(self, now: dict[str, int]) -> str:
        """What is wrong at the levels `now` (of `pool.meminfo`), or nothing. Once said, `now` counts as the begin."""
        left, swapped = now["MemAvailable"], _swapped(now)
        if left < self._least:
            self._least = _least(now)
            return f"{human(left)} of the memory that GPU and CPU share were left"
        if (more := swapped - self._swapped) > SWAPPED:
            self._swapped = swapped
            free = human(now["SwapFree"])
            return f"free swap fell by {human(more)} since it began, to {free}: memory is short"
        self._least = max(self._least, _least(now))
        self._swapped = min(self._swapped, swapped)
        return ""


def _least(now: dict[str, int]) -> int:
    left = now["MemAvailable"]
    return min(floor(now["MemTotal"]), left - left // STEP)


def _swapped(now: dict[str, int]) -> int:
    """Bytes in swap. SwapFree alone would also fall where somebody switches swap off."""
    return now.get("SwapTotal", 0) - now.get("SwapFree", 0)


_watchdog: threading.Thread | None = None
_cell: _Cell
_why = ""  # of the last stop


def watch() -> None:
    """Stop the running cell with MemoryRanLow when less than `floor` is left, or when it sends SWAPPED bytes to swap.

    For the rest of the process: the first call takes the signal SIGUSR2 and starts a thread, later ones change nothing.
    In a notebook each cell's levels are those at its begin, in a script those at this call. Python raises between two
    of its own steps: a single call into torch that takes all memory at once is not stopped by this, but by `cap`.
    """
    global _watchdog
    if _watchdog is None and threading.current_thread() is threading.main_thread():
        _begin()
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell:
            shell.events.register("pre_run_cell", _begin)
        signal.signal(SIGNAL, _stop)
        _watchdog = threading.Thread(target=_watch, name="memory guard", daemon=True)
        _watchdog.start()


def _begin(_=None) -> None:
    global _cell
    _cell = _Cell(pool.meminfo())


def _watch() -> None:
    global _why
    while True:
        time.sleep(INTERVAL)
        cell = _cell
        why = cell.why_stop(pool.meminfo())
        if why and cell is _cell:  # or the next cell would be stopped for what this one did
            _why = why
            signal.pthread_kill(threading.main_thread().ident, SIGNAL)


def _stop(_, frame) -> None:
    """Raise in the main thread, if a cell's code (or a script's) is on its stack: Jupyter's own must not be stopped."""
    while frame and frame.f_globals is not vars(sys.modules["__main__"]):
        frame = frame.f_back
    if frame:
        raise MemoryRanLow(
            f"The cell was stopped: {_why}, and without any the machine hangs; your variables are kept, and "
            f"models.unload() gives the models' memory back{holders.said()}."
        )
