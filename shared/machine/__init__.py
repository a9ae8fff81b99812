"""What lies between the course and the machine: free memory, the watchdog, meters, kernels, graphs,
and what is set for a whole process."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The name of the processor and the number of its cores, as the system says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith(("model name", "Model")))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
