"""Where the time of an eager decode step goes: torch's profiler over a few steps, and the clock without it."""

import os
import statistics
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared import timing
from shared.errors import CourseError

# What reads a weight matrix or a cache; Mamba's convolution over four tokens is elementwise in all but name.
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "_scaled_dot_product_flash_attention_for_cpu")


@dataclass(frozen=True)
class StepProfile:
    """One eager decode step; all seconds are of a step.

    Attributes:
        operators: calls into torch.
        kernels: launches on the GPU, copies among them; 0 on a CPU.
        seconds: median without the profiler.
        profiled_seconds: of the step whose shares these are, with it. Noting each operator takes time too: 30 to 90 %
            of a step more in the tiny models on a CPU.
        shares: part -> share of the step; they add up to 1. On a CPU "matrix products", "other operators" (torch's own
            work around the products too) and "between operators" (Python) are shares of the profiled step, which makes
            the last two, with their many calls, a little larger than they are. On a GPU "GPU computing" (a clock of the
            GPU's own, which the profiler does not slow) and "GPU waiting" are shares of the step without it.
    """

    operators: int
    kernels: int
    seconds: float
    profiled_seconds: float
    shares: dict[str, float]


@torch.inference_mode()
def step_profile(model, input_ids: torch.Tensor, steps: int = 7) -> StepProfile:
    """Profile the median of `steps` eager decode steps after `input_ids` (B, T); 25 others give `seconds`.

    Raises: CourseError where the profiler is not allowed to see the GPU.
    """
    from torch.autograd import profiler  # torch.profiler is the same and imports a compiler first, which takes a second

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it notes its start and end on stderr, below the cell
    device = model.device
    logits, cache = timing.forward(model, input_ids.to(device))
    token = logits[:, -1:].argmax(-1)

    def step() -> None:
        timing.forward(model, token, cache)

    on_gpu, profiles = device.type == "cuda", []
    with model._optimize_model_for_decode():  # as in `timing.generation`
        with _Count() as counted:
            step()
        seconds = statistics.median(timing.measure(step, device, warmup=timing.WARM_STEPS, repeats=25))
        for _ in range(steps):
            with profiler.profile(use_device="cuda" if on_gpu else None, use_kineto=True) as profile:
                [length] = timing.measure(step, device, warmup=0, repeats=1)
            profiles.append((length, profile))
    profiled, profile = sorted(profiles, key=lambda each: each[0])[steps // 2]
    launches = [event for event in profile.function_events if event.device_type.name == "CUDA"]
    if on_gpu and not launches:
        raise CourseError("The profiler sees no kernels on this GPU: a container may need --cap-add=SYS_ADMIN for it.")
    shares = _on_gpu(launches, seconds) if on_gpu else _on_cpu(profile.function_events, profiled)
    return StepProfile(counted.calls, len(launches), seconds, profiled, shares)


class _Count(TorchDispatchMode):
    """Counts the operators that are called inside the with."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def _on_cpu(events, seconds: float) -> dict[str, float]:
    """Shares of `seconds`, from the time that each operator spent in itself and not in operators that it called."""
    products = sum(e.self_cpu_time_total for e in events if e.name.removeprefix("aten::") in PRODUCTS) / 1e6
    operators = sum(e.self_cpu_time_total for e in events) / 1e6
    parts = products, operators - products, seconds - operators
    return dict(
        zip(("matrix products", "other operators", "between operators"), (p / seconds for p in parts), strict=True)
    )


def _on_gpu(launches, seconds: float) -> dict[str, float]:
    """Shares of `seconds`, from the kernels' times: one stream runs one after the other."""
    busy = min(1.0, sum(e.time_range.elapsed_us() for e in launches) / 1e6 / seconds)
    return {"GPU computing": busy, "GPU waiting": 1 - busy}
