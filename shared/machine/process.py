"""What belongs to the whole process, changed for a while: the environment, a library's log, tiny numbers.

Each is undone at the end of its `with`. `end_with` alone is for good.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Inside the with, environment variables have these values, where they have none of the user's own."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def silent(logger: str) -> Iterator[None]:
    """Inside the with, a library's logger says what is critical, and nothing else."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Inside the with, torch on a CPU takes for zero what is too small for all digits of its type.

    Decayed states and their gradients get there, and each such number costs as much time as a hundred ordinary ones.
    """
    import torch

    before = bool(torch.tensor(1e-45) == 0)  # the smallest float32 is one: this is all that tells how it is set
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def end_with(parent: int) -> None:
    """From here on this process, a child of process `parent`, ends when that one does, also by SIGKILL.

    Linux sees to it, at once. Elsewhere a thread looks twice a second.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(1, signal.SIGKILL) == 0:  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended before
            os._exit(1)
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=look, name="end with parent", daemon=True).start()
