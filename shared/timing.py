"""How fast a model reads (prefill) and writes (decode): warmed up at the same shape, synchronised, medians with spread.

Protocol: greedy decoding of a fixed number of tokens, batch stated, one model in memory at a time. Prefill and each
decode step are timed apart: end-to-end time divided by tokens is neither.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared import memory, models
from shared.errors import NotEnoughMemory
from shared.machine import graphs, guard

WARM_STEPS = 8  # decode steps before the first that counts: allocator and caches settle
SLOW = 60  # seconds of a prefill: a sweep leaves out what would take longer


@dataclass(frozen=True)
class GenerationTiming:
    """Medians over repeats, with the quartiles of each. Times in seconds, rates in tokens per second over the batch."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    time_to_first_token: float
    time_to_first_token_q1: float
    time_to_first_token_q3: float
    prefill_rate: float
    decode_seconds: float
    decode_seconds_q1: float
    decode_seconds_q3: float
    decode_rate: float
    peak_bytes: int
    cache_bytes: int


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has done what it was given. A CPU has when the call returns; a GPU has not."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure(work: Callable[[], object], device: torch.device | str = "cpu", warmup: int = 3, repeats: int = 5):
    """Seconds of each of `repeats` calls of `work`, after `warmup` calls that do not count; synchronised."""
    for _ in range(warmup):
        work()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return taken


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile; of one value, that value three times."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def memory_bandwidth(device: torch.device | str = "cpu", megabytes: int = 256) -> float:
    """Bytes per second that the device copies, reads and writes both counted; the median of five copies.

    Args:
        megabytes: size of the block in 1e6 bytes; far larger than any cache, or it measures the cache.
    """
    source = torch.ones(megabytes * 1_000_000 // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = measure(lambda: target.copy_(source), device, warmup=2)
    return 2 * source.numel() * source.element_size() / statistics.median(seconds)


def matrix_rate(dtype: torch.dtype, device: torch.device | str = "cpu", width: int | None = None) -> float:
    """FLOPs per second of a product of two square matrices; a multiplication and an addition are two. Median of five.

    Args:
        width: rows and columns; without it 8,192 on a GPU, which smaller ones leave idle, and 512 elsewhere.
    """
    width = width or (8192 if torch.device(device).type == "cuda" else 512)
    left, right = torch.ones(2, width, width, dtype=dtype, device=device)
    out = torch.empty_like(left)
    seconds = measure(lambda: torch.mm(left, right, out=out), device, warmup=2)
    return 2 * width**3 / statistics.median(seconds)


@torch.inference_mode()
def call_seconds(device: torch.device | str = "cpu") -> float:
    """Seconds of a call into torch that has next to nothing to do, with the Python before it, as in a model's layer."""
    layers = torch.nn.Sequential(*[_Layer(128) for _ in range(16)]).to(device)
    x = torch.ones(1, 1, 128, device=device)
    with _Calls() as calls:
        layers(x)
    return statistics.median(measure(lambda: layers(x), device, warmup=5, repeats=21)) / calls.count


class _Layer(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(left * torch.nn.functional.silu(right))


class _Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


# ---- generation -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def generation(
    model,
    input_ids: torch.Tensor,
    new_tokens: int,
    repeats: int = 5,
    warmup: int = 3,
    least_seconds: float = 0.0,
    beyond_limit: bool = False,
    graph: bool = False,
) -> GenerationTiming:
    """Time a model's prefill of `input_ids` (B, T) and greedy decoding of `new_tokens` tokens after it.

    Args:
        warmup: runs at the same shape that do not count.
        least_seconds: repeat for so long at least: a run of milliseconds is as short as one disturbance.
        beyond_limit: allow more tokens than the model's position limit. Speed and memory are right there, text is not.
        graph: replay the decode steps from a CUDA graph (`machine.graphs`). The steps that count are the same ones.

    Returns: GenerationTiming; `peak_bytes` above the level before the call, of one prefill and its decoding.
    Raises: models.ContextTooLong beyond the limit, ValueError for fewer than two new tokens, three with `graph`,
        CourseError where the model or the device has no graph.
    """
    if new_tokens < (least := 3 if graph else 2):
        raise ValueError(f"new_tokens={new_tokens}: decoding is timed from token {least} on; ask for {least} or more.")
    warm = min(WARM_STEPS, (new_tokens - 1) // 2)
    batch, tokens = input_ids.shape
    if not beyond_limit:
        models.check_context(model, tokens + new_tokens)
    input_ids = input_ids.to(model.device)

    def once() -> tuple[float, float, int]:
        synchronize(model.device)
        start = time.perf_counter()
        logits, cache = models.forward(model, input_ids)
        token = logits[:, -1:].argmax(-1)
        synchronize(model.device)
        first = time.perf_counter() - start

        def step() -> None:
            token.copy_(models.forward(model, token, cache)[0][:, -1:].argmax(-1))

        # As `generate` does it: on a GPU the experts of a step are gathered, which is quicker than to group one token.
        with model._optimize_model_for_decode():
            decode, left = step, warm
            if graph:
                graphs.fixed(cache, tokens + new_tokens - 1)
                decode, left = graphs.capture(step, model.device, warm), 0  # the warm steps are taken
            seconds = measure(decode, model.device, warmup=left, repeats=new_tokens - 1 - warm)
        return first, statistics.median(seconds), memory.cache_bytes(cache).total

    with memory.track(model.device) as tracked:
        held = once()[2]  # the first run, which is slow, is the one whose memory is tracked
    for _ in range(warmup - 1):
        once()
    firsts, steps, begin = [], [], time.perf_counter()
    while len(firsts) < repeats or time.perf_counter() - begin < least_seconds:
        first, step, _ = once()
        firsts.append(first)
        steps.append(step)
    (first_q1, first, first_q3), (step_q1, step, step_q3) = quartiles(firsts), quartiles(steps)
    return GenerationTiming(
        batch=batch,
        prompt_tokens=tokens,
        new_tokens=new_tokens,
        repeats=len(firsts),
        time_to_first_token=first,
        time_to_first_token_q1=first_q1,
        time_to_first_token_q3=first_q3,
        prefill_rate=batch * tokens / first,
        decode_seconds=step,
        decode_seconds_q1=step_q1,
        decode_seconds_q3=step_q3,
        decode_rate=batch / step,
        peak_bytes=tracked.peak_bytes,
        cache_bytes=held,
    )


def sweep(
    model, prompts: dict[int, torch.Tensor], new_tokens: int, slow: float = SLOW, smaller: dict | None = None, **options
) -> Iterable[dict]:
    """Time one model over growing prompts; yields a row per length, and ends with the first that is not to be had.

    Before each length the last ones are scaled up to it. Its peak is compared with the memory that is there: running
    out raises on a discrete GPU, but hangs a machine with unified memory, where a reserve is left free and the watchdog
    (`machine.guard`) sees what was not foreseen. Its prefill is compared with `slow`. Neither point is tried, and both
    are results.

    Args:
        prompts: length -> token ids (B, length), as from `data.random_tokens`.
        slow: seconds; a prefill that would take longer ends the sweep, one that would take more than a tenth of it is
            warmed up once and repeated twice.
        smaller: the row of a smaller point of this model, at any batch, from which the first one follows.
        options: of `generation`.

    Yields: `status` ("ok", "out of memory" or "slow"), `tokens`, and the fields of GenerationTiming where it is ok.
    """
    done = [smaller] if smaller else []
    for tokens, input_ids in sorted(prompts.items()):
        expected = done[-1]["peak_bytes"] * input_ids.numel() / _amount(done[-1]) if done else 0
        if expected >= (there := guard.budget(model.device)):
            yield {"tokens": tokens, "status": "out of memory", "expected_bytes": expected, "available_bytes": there}
            return
        if (seconds := expected_seconds(done, input_ids.numel())) > slow:
            yield {"tokens": tokens, "status": "slow", "expected_seconds": seconds}
            return
        chosen = options | long_point(seconds, slow)
        try:
            timed = generation(model, input_ids, new_tokens, beyond_limit=True, **chosen)
        except (torch.OutOfMemoryError, MemoryError, NotEnoughMemory):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            yield {"tokens": tokens, "status": "out of memory"}
            return
        done.append({"tokens": tokens, "status": "ok", **asdict(timed)})
        yield done[-1]


def expected_seconds(rows: list[dict], amount: int) -> float:
    """Seconds of a prefill of so many tokens in all sequences, from those of smaller ones in `rows`, 0 without any.

    They grow as they grew from the one before to the last, if there are two, as a power between 1 and 2 of the amount:
    products are linear in it and attention quadratic.
    """
    if not rows:
        return 0.0
    last, power = rows[-1], 1.0
    if len(rows) > 1:
        larger = _amount(last) / _amount(rows[-2])
        slower = last["time_to_first_token"] / rows[-2]["time_to_first_token"]
        power = min(2.0, max(1.0, math.log(slower) / math.log(larger)))
    return last["time_to_first_token"] * (amount / _amount(last)) ** power


def _amount(row: dict) -> int:
    return row["tokens"] * row["batch"]


def long_point(seconds: float, slow: float = SLOW) -> dict:
    """The options of `generation` that change where a prefill is expected to take more than a tenth of `slow`."""
    return {"warmup": 1, "repeats": 2, "least_seconds": 0.0} if seconds > slow / 10 else {}
