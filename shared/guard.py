"""Keep a machine whose GPU shares the CPU's memory (DGX Spark) from running dry: it would hang instead of raising.

Before a load and each step of a sweep, what they need is compared with what is free less a reserve (`budget`). torch is
capped (`cap`). A thread watches what is left, for what no one foresaw, and stops the running cell (`watch`); the
notebook's variables stay. Elsewhere nothing happens: a discrete GPU raises, a CPU has swap or a container's limit.

Tested with faked devices and files of /proc; it has not run on a Spark yet.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from shared import memory, meters
from shared.errors import NotEnoughMemory

if TYPE_CHECKING:
    import psutil

SHARE, LEAST = 0.05, 4_000_000_000  # of the machine's memory, and bytes: what stays with everything else on it
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


def reserve(device=None) -> int:
    """Bytes that stay with the rest of the machine: 5 %, at least 4 GB, where the memory is unified; elsewhere 0."""
    return max(LEAST, int(SHARE * memory.host("MemTotal"))) if memory.is_unified(device) else 0


def budget(device=None) -> int:
    """Bytes that a load or a measurement may plan with on `device`: what is available less the reserve."""
    return max(0, memory.available(device) - reserve(device))


def cap(device=None) -> None:
    """On unified memory, make torch raise OutOfMemoryError before it takes the reserve; elsewhere do nothing."""
    import torch

    if memory.is_unified(device := memory.pick_device(device)):
        most = torch.cuda.memory_allocated(device) + budget(device)
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)


def protect(device=None) -> None:
    """Cap torch and start the watchdog where the memory is unified; elsewhere do nothing."""
    cap(device)
    if memory.is_unified(device):
        watch()


# -------------------------------------------------------------------------------------------------------- the watchdog

_watchdog: threading.Thread | None = None


def watch() -> None:
    """Stop the running cell with MemoryRanLow when less than half of the reserve is left. One thread per process.

    Python raises between two of its own steps: a single call into torch that takes all memory at once is not stopped
    by this, but by `cap`.
    """
    global _watchdog
    if _watchdog is None and threading.current_thread() is threading.main_thread():
        signal.signal(SIGNAL, _stop)
        _watchdog = threading.Thread(target=_watch, args=(reserve() // 2,), name="memory guard", daemon=True)
        _watchdog.start()


def _watch(floor: int) -> None:
    limit = floor
    while True:
        time.sleep(INTERVAL)
        if (left := memory.host("MemAvailable")) > floor:
            limit = floor
        elif left < limit:
            limit = left // 2  # a cell that gives memory back can run; one that takes half of the rest is stopped too
            signal.pthread_kill(threading.main_thread().ident, SIGNAL)


def _stop(_, frame) -> None:
    """Raise in the main thread, if a cell's code (or a script's) is on its stack: Jupyter's own must not be stopped."""
    while frame and frame.f_globals is not vars(sys.modules["__main__"]):
        frame = frame.f_back
    if frame:
        raise MemoryRanLow(
            f"The cell was stopped: {memory.human(memory.host('MemAvailable'))} of the memory that GPU and CPU share "
            f"were left, and without any the machine hangs; your variables are kept{others_said()}."
        )


# ----------------------------------------------------------------------------------------------------- who holds memory


def others() -> list[tuple[str, int, int]]:
    """Other notebooks' kernels on this machine: the notebook, process id and bytes (resident and on the GPU) of each.

    The largest comes first.
    """
    found = [(notebook(process), process.pid, resident + on_gpu) for process, resident, on_gpu in processes()]
    return sorted((kernel for kernel in found if kernel[0]), key=lambda kernel: -kernel[2])


def processes() -> Iterator[tuple["psutil.Process", int, int]]:
    """Every other process that this user may look at, with its bytes: resident, and on the GPU."""
    import psutil

    on_gpu = _gpu_bytes()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.pid != os.getpid():
                yield process, process.memory_info().rss, on_gpu.get(process.pid, 0)


def notebook(process: "psutil.Process") -> str | None:
    """The notebook of a Jupyter kernel, None for any other process. One that no Jupyter server started has no name."""
    import psutil

    with suppress(psutil.Error):
        if any(os.path.basename(word).startswith("ipykernel") for word in process.cmdline()):
            return process.environ().get("JPY_SESSION_NAME") or "a notebook"


def others_said() -> str:
    """The three largest of `others` as the end of a sentence, or nothing."""
    kernels = [f"{name} (process {pid}, {memory.human(held)})" for name, pid, held in others()[:3]]
    return f"; shut down what else holds memory: {', '.join(kernels)}" if kernels else ""


def _gpu_bytes() -> dict[int, int]:
    """Process id -> bytes that it holds on the GPU, as nvidia-smi has it; RSS does not show them."""
    ask = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(ask, capture_output=True, text=True, timeout=5).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = [row.split(",") for row in rows]
    return {int(pid): int(held) * 2**20 for pid, held in pairs if held.strip().isdigit()}  # MiB, or [N/A]
