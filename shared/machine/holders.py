"""Who holds memory on this machine: other notebooks' kernels, resident and on the GPU."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from shared.units import human

if TYPE_CHECKING:
    import psutil


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
    try:
        every = list(psutil.process_iter())
    except (OSError, psutil.Error):  # a sandbox that shows none
        return
    for process in every:
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.pid != os.getpid():
                yield process, process.memory_info().rss, on_gpu.get(process.pid, 0)


def notebook(process: "psutil.Process") -> str | None:
    """The notebook of a Jupyter kernel, None for any other process. One that no Jupyter server started has no name."""
    import psutil

    with suppress(psutil.Error):
        if any(os.path.basename(word).startswith("ipykernel") for word in process.cmdline()):
            return process.environ().get("JPY_SESSION_NAME") or "a notebook"


def said() -> str:
    """The three largest of `others` as the end of a sentence, or nothing."""
    kernels = [f"{name} (process {pid}, {human(held)})" for name, pid, held in others()[:3]]
    return f"; shut down what else holds memory: {', '.join(kernels)}" if kernels else ""


def _gpu_bytes() -> dict[int, int]:
    """Process id -> bytes that it holds on the GPU, as nvidia-smi has it; RSS does not show them."""
    ask = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, errors="replace", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    # MiB, or [N/A]; and where it fails, a sentence instead of rows.
    pairs = [re.fullmatch(r"(\d+), *(\d+)", row.strip()) for row in said.stdout.splitlines()]
    return {int(pair[1]): int(pair[2]) * 2**20 for pair in pairs if pair}
