"""A GPU, and a DGX Spark, that are not here: torch and /proc/meminfo answer as they would, and the rest is real."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from shared.machine import guard, holders, pool

RECORDED = Path(__file__).parent / "meminfo"
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # of torch 2.13.0+cu130


@dataclass
class Gpu:
    """What torch says of a GPU, to be changed by a test, and what was asked of it; all sizes are bytes.

    free: as CUDA says it. fraction: to which torch was capped. emptied, watched: how often.
    """

    name: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    integrated: bool = False
    total: int = 140_000_000_000
    free: int = 0
    reserved: int = 0
    allocated: int = 0
    peak: int = 0
    fraction: float | None = None
    emptied: int = 0
    watched: int = 0

    def reset_peak(self, device=None) -> None:
        self.peak = self.allocated

    def empty(self) -> None:
        self.emptied += 1
        self.reserved = self.allocated

    def cap(self, fraction: float, device=None) -> None:
        self.fraction = fraction

    def watch(self) -> None:
        self.watched += 1

    def properties(self, device=None) -> SimpleNamespace:
        major, minor = self.capability
        kept = {"name": self.name, "major": major, "minor": minor, "total_memory": self.total}
        return SimpleNamespace(**kept, is_integrated=int(self.integrated))

    def plugged_in(self, monkeypatch) -> "Gpu":
        """This GPU, with torch answering for it from here on."""
        for function, answer in {
            "is_available": lambda: True,
            "get_device_properties": self.properties,
            "get_device_name": lambda device=None: self.name,
            "get_arch_list": lambda: ARCHITECTURES,
            "mem_get_info": lambda device=None: (self.free, self.total),
            "memory_reserved": lambda device=None: max(self.reserved, self.allocated),
            "memory_allocated": lambda device=None: self.allocated,
            "max_memory_allocated": lambda device=None: max(self.peak, self.allocated),
            "reset_peak_memory_stats": self.reset_peak,
            "empty_cache": self.empty,
            "set_per_process_memory_fraction": self.cap,
        }.items():
            monkeypatch.setattr(torch.cuda, function, answer)
        monkeypatch.setattr(guard, "watch", self.watch)
        return self


@dataclass
class Spark(Gpu):
    """A DGX Spark with the firmware of 2026, whose GPU shares the memory, a third of it in the page cache."""

    name: str = "NVIDIA GB10"
    capability: tuple[int, int] = (12, 1)
    integrated: bool = True
    total: int = guard.SPARK
    free: int = 3_000_000_000
    file: Path = RECORDED / "unified.txt"  # that is read in the place of /proc/meminfo

    def says(self, text: str) -> None:
        """Let /proc/meminfo be this text."""
        self.file.write_text(text)

    def leave(self, size: float) -> None:
        """Let so many bytes be available."""
        recorded = (RECORDED / "unified.txt").read_text()
        self.says(re.sub(r"(MemAvailable: +)\d+", rf"\g<1>{int(size) // 1024}", recorded))

    def switched_on(self, monkeypatch, folder: Path) -> "Spark":
        """This machine from here on, with no other notebook open; its files lie in `folder`."""
        self.file = folder / "meminfo"
        self.says((RECORDED / "unified.txt").read_text())
        monkeypatch.setattr(pool, "MEMINFO", self.file)
        monkeypatch.setattr(holders, "others", lambda: [])
        self.plugged_in(monkeypatch)
        return self
