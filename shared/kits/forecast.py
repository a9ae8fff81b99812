"""What a forward will take on a machine, before it runs: seconds and bytes, from counts on shapes and three rates.

    seconds = max(FLOPs / matrix rate, bytes of products / bandwidth) + bytes of the rest / bandwidth + calls

A product computes while it reads, so the slower of the two counts; attention reaches a share of a product's rate. One
operation after another does not overlap, so they add up. Calls into torch take the processor's time: on a CPU they are
added; a GPU works while it is asked, so the longer of working and asking counts there. A forecast is meant to be right
within a factor of 2 (tests/test_forecast.py holds it to that on a CPU). It knows nothing of caches, of small matrices
that leave a GPU idle, or of other programs. What the library's own code does in the chunks of Mamba-2, with
exponentials and strided copies, took up to 6 times its forecast on a CPU.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from shared import timing
from shared.kits import counting
from shared.kits.counting import Work
from shared.machine import guard, kernels, pool
from shared.models.sizes import size

ATTENTION = 0.5  # of the rate of a product, since a softmax stands between its two: measured 0.3 to 0.6 on a CPU
HEAP = 1.4  # what a CPU process holds over what lives: freed blocks stay with its heap. Measured: 1.3 to 1.7


@dataclass(frozen=True)
class Machine:
    """What a forecast needs to know of a machine.

    Attributes:
        bandwidth: bytes per second, reads and writes both counted. matrix_rate: FLOPs per second of a product.
        call_seconds: of a call into torch, with the Python before it.
        memory_bytes: what weights, cache and activations may take together.
        gpu: whether calls overlap with work. path: of Mamba's scan, as `models.path` names it.
        source: where the numbers come from, for a reader.
        disk: bytes per second of weights that are loaded. Assumed, not measured: an SSD reads faster, but converts.
    """

    name: str
    bandwidth: float
    matrix_rate: float
    call_seconds: float
    memory_bytes: int
    gpu: bool
    path: str
    source: str
    disk: float = 1e9

    def seconds(self, work: Work) -> float:
        """How long work takes."""
        flops = work.flops + work.attention_flops * (1 / ATTENTION - 1)
        busy = max(flops / self.matrix_rate, work.product_bytes / self.bandwidth)
        busy += work.other_bytes / self.bandwidth
        calls = work.operations * self.call_seconds
        return max(busy, calls) if self.gpu else busy + calls

    def held(self, live: float) -> int:
        """What a process takes for so many bytes that live at once."""
        return int(live if self.gpu else live * HEAP)


SPARK = Machine(
    name="DGX Spark",
    bandwidth=273e9,  # its data sheet
    matrix_rate=60e12,  # bf16; reports have 60 to 92
    call_seconds=8e-6,  # assumed: nobody has reported it
    memory_bytes=guard.SPARK - guard.kept(guard.SPARK),
    gpu=True,
    path="kernel",
    source="by arithmetic, from the data sheet and reports; nobody has measured it",
)


def machine(device=None, dtype: torch.dtype = torch.bfloat16) -> Machine:
    """This machine, measured once a process and dtype (under a second on a CPU); its memory is what is free now."""
    device = pool.pick_device(device)
    return replace(_measured(device, dtype), memory_bytes=guard.budget(device))


@cache
def _measured(device: torch.device, dtype: torch.dtype) -> Machine:
    gpu = device.type == "cuda"
    return Machine(
        name="this machine",
        bandwidth=timing.memory_bandwidth(device, megabytes=256 if gpu else 64),
        matrix_rate=timing.matrix_rate(dtype, device),
        call_seconds=timing.call_seconds(device),
        memory_bytes=0,
        gpu=gpu,
        path="kernel" if gpu and kernels.present() else "course",
        source=f"from the bandwidth, matrix rate and calls measured on {device}",
    )


# ---- one model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generation:
    """A prefill and the decoding after it: seconds, seconds of a token, and bytes beside the weights at their peak."""

    prefill_seconds: float
    decode_seconds: float
    peak_bytes: int
    cache_bytes: int


def generation(name: str, tokens: int, on: Machine, batch: int = 1, dtype=torch.bfloat16, path: str | None = None):
    """Forecast what `timing.generation` measures of a prompt (batch, tokens).

    Args:
        path: of the scan; default the machine's.

    Returns: Generation. Raises: BadInput for an unknown model.
    """
    counts = counting.count(name, tokens, batch, dtype, path or on.path, on.gpu)
    return Generation(
        prefill_seconds=on.seconds(counts.prefill),
        decode_seconds=on.seconds(counts.decode),
        peak_bytes=on.held(max(counts.prefill.peak_bytes, counts.decode.peak_bytes)),
        cache_bytes=counts.cache_bytes,
    )


def longest(name: str, on: Machine, dtype=torch.bfloat16, bits: int = 16) -> int:
    """The longest context, in tokens, whose weights, cache and activations fit; 0 where not even the weights do.

    Beside the weights everything grows linearly, so two lengths tell. `bits`: as in `models.load`.
    """
    room = on.memory_bytes - size(name, dtype, bits).weight_bytes
    short, long = 2**15, 2**16
    at_short, at_long = (generation(name, tokens, on, dtype=dtype).peak_bytes for tokens in (short, long))
    return max(0, int(short + (room - at_short) * (long - short) / (at_long - at_short)))


def left_out(name: str, tokens: int, on: Machine, batch: int = 1, dtype=torch.bfloat16, slow=timing.SLOW) -> str:
    """Why a sweep will not measure a context: "out of memory", "slow", or "" where it will."""
    expected = generation(name, tokens, on, batch, dtype)
    if size(name, dtype).weight_bytes + expected.peak_bytes > on.memory_bytes:
        return "out of memory"
    return "slow" if expected.prefill_seconds > slow else ""
