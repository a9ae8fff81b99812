"""What `memory.track` reads: the level of memory now and, where the machine keeps one, the peak since the last reset.

A meter has `settle()` (give back what is merely kept), `level()`, `peak()` (0 where none is kept) and `reset()`; bytes.
`exact` says whether a peak is kept.
"""

import ctypes
import gc
import os
import re
from pathlib import Path

PROCESS, PAGE = Path("/proc/self"), os.sysconf("SC_PAGE_SIZE")


class Host:
    """The process's resident set. Linux keeps its high-water mark and lets us reset it: an exact peak, not sampled."""

    device = None

    def __init__(self):
        self.exact = os.access(PROCESS / "clear_refs", os.W_OK)
        # Opened once: a sample is one system call, at which it takes the interpreter from the code that it watches.
        self._statm = (PROCESS / "statm").open("rb", buffering=0) if (PROCESS / "statm").exists() else None
        if not self._statm:
            import psutil

            self._process = psutil.Process()

    def settle(self):
        gc.collect()
        # glibc keeps freed heap: a tensor that fits into it would not show. Give it back first, where glibc is.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)

    def level(self) -> int:
        if self._statm:
            return int(os.pread(self._statm.fileno(), 64, 0).split()[1]) * PAGE
        return self._process.memory_info().rss

    def peak(self) -> int:
        if not self.exact:
            return 0
        return int(re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) * 1024

    def reset(self):
        try:
            (PROCESS / "clear_refs").write_text("5")
        except OSError:  # not Linux, or a sandbox that forbids it: the sampled level has to do
            self.exact = False


class Cuda:
    """Bytes in tensors on a discrete GPU: torch's allocator keeps the exact peak."""

    exact = True

    def __init__(self, device):
        import torch

        self.cuda, self.device = torch.cuda, device

    def settle(self):
        gc.collect()

    def level(self) -> int:
        return self.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return self.cuda.max_memory_allocated(self.device)

    def reset(self):
        self.cuda.reset_peak_memory_stats(self.device)


class Unified(Host):
    """RSS plus what torch has reserved: one pool, neither sees the other, and no one keeps the peak of the sum."""

    def __init__(self, device):
        import torch

        super().__init__()
        self.cuda, self.device, self.exact = torch.cuda, device, False

    def settle(self):
        super().settle()
        self.cuda.empty_cache()  # for the same reason as malloc_trim

    def level(self) -> int:
        return super().level() + self.cuda.memory_reserved(self.device)

    def peak(self) -> int:
        return 0

    def reset(self):
        pass


def held() -> int:
    """Bytes of the tensors that are alive in this process, on all devices; tensors that share memory count once."""
    import torch

    gc.collect()
    storages = [each.untyped_storage() for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())
