"""What an eager decode step asks of a machine, counted, and where its time goes: torch's profiler, and the clock."""

import statistics
from collections import Counter
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared import models, timing
from shared.errors import CourseError
from shared.machine import process

# What reads a weight matrix or a cache; Mamba's convolution over four tokens is elementwise in all but name.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "_scaled_dot_product_flash_attention_for_cpu")


@dataclass(frozen=True)
class StepProfile:
    """One eager decode step; all seconds are of a step.

    Attributes:
        operations: calls into torch.
        kernels: launches on the GPU, copies among them; 0 on a CPU.
        seconds: median without the profiler.
        profiled_seconds: the same with it. Noting each operation takes time too: 30 to 90 % of a step more in the tiny
            models on a CPU.
        shares: part -> share of the step; they add up to 1. On a CPU "matrix products", "other operations" (torch's own
            work around the products too) and "between operations" (Python) are shares of the profiled step, which makes
            the last two, with their many calls, a little larger than they are. On a GPU "GPU computing" (a clock of the
            GPU's own, which the profiler does not slow) and "GPU waiting" are shares of the step without it.
    """

    operations: int
    kernels: int
    seconds: float
    profiled_seconds: float
    shares: dict[str, float]


class Counted(TorchDispatchMode):
    """Counts what is done inside the with: the same however busy the machine is.

    Attributes:
        operations: calls into torch.
        bytes: what these read and write, all tensors given and returned; views move nothing. A compiled kernel that is
            no operation of torch, as mamba-ssm's, is not seen.
    """

    def __init__(self):
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations += 1
        if not function.is_view:
            moved = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            # An expanded tensor is larger than what it reads.
            self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in moved)
        return out


@torch.inference_mode()
def step_profile(model, input_ids: torch.Tensor, steps: int = 9) -> StepProfile:
    """Profile `steps` eager decode steps after `input_ids` (B, T); 25 others give `seconds`.

    Raises: CourseError where the profiler is not allowed to see the GPU.
    """
    from torch.autograd import profiler  # torch.profiler is the same and imports a compiler first, which takes a second

    device = model.device
    logits, cache = models.forward(model, input_ids.to(device))
    token = logits[:, -1:].argmax(-1)

    def step() -> None:
        models.forward(model, token, cache)

    on_gpu, profiles = device.type == "cuda", []
    quiet = process.environment(KINETO_LOG_LEVEL="99")  # or it notes its start and end on stderr, below the cell
    with quiet, model._optimize_model_for_decode():  # as in `timing.generation`
        with Counted() as counted:
            step()
        seconds = statistics.median(timing.measure(step, device, warmup=timing.WARM_STEPS, repeats=25))
        for _ in range(steps):
            with profiler.profile(use_device="cuda" if on_gpu else None, use_kineto=True) as profile:
                [length] = timing.measure(step, device, warmup=0, repeats=1)
            profiles.append((length, profile))
    seen = [(length, profile.function_events) for length, profile in profiles]
    kernels = [[event for event in events if event.device_type.name == "CUDA"] for _, events in seen]
    if on_gpu and not kernels[0]:
        raise CourseError("The profiler sees no kernels on this GPU: run this where it may, as outside a container.")
    parts = _on_gpu(kernels, seconds) if on_gpu else _on_cpu(seen)
    profiled = statistics.median(length for length, _ in seen) if on_gpu else sum(parts.values())
    shares = {part: spent / sum(parts.values()) for part, spent in parts.items()}
    return StepProfile(counted.operations, len(kernels[0]), seconds, profiled, shares)


def _on_cpu(steps) -> dict[str, float]:
    """Seconds of each part of a step, given the (seconds, events) of several: the time that operations spent in
    themselves and not in others that they called, for each name the median, so that no disturbance counts.
    """
    import pandas as pd

    rows = []
    for seconds, events in steps:
        spent = Counter()
        for event in events:
            spent[event.name.removeprefix("aten::")] += event.self_cpu_time_total / 1e6
        rows.append({**spent, "": seconds - spent.total()})
    usual = pd.DataFrame(rows).median().to_dict()
    between, products = usual.pop(""), sum(usual.get(name, 0.0) for name in PRODUCTS)
    return {
        "matrix products": products,
        "other operations": sum(usual.values()) - products,
        "between operations": between,
    }


def _on_gpu(steps, seconds: float) -> dict[str, float]:
    """Seconds of each part of a step of `seconds`, given the kernels of several: one stream runs one after another."""
    busy = statistics.median(sum(kernel.time_range.elapsed_us() for kernel in kernels) for kernels in steps) / 1e6
    return {"GPU computing": min(busy, seconds), "GPU waiting": max(seconds - busy, 0.0)}
