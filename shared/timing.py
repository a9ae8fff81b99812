"""How fast a model reads (prefill) and writes (decode): warmed up at the same shape, synchronised, medians with spread.

Protocol: greedy decoding of a fixed number of tokens, batch stated, one model in memory at a time. Prefill and each
decode step are timed apart: end-to-end time divided by tokens is neither.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch

from shared import graphs, guard, memory, models
from shared.errors import NotEnoughMemory

WARM_STEPS = 8  # decode steps before the first that counts: allocator and caches settle


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
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


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


# ---- generation -------------------------------------------------------------------------------------------------


STATE_ONLY = ("mamba", "falcon_mamba", "mamba2")  # model types whose cache is a state of fixed size and nothing else


def forward(model, input_ids: torch.Tensor, cache=None, keep: int = 1, use_cache: bool = True):
    """One forward: logits of the last `keep` positions (B, keep, V) and the cache (None without `use_cache`).

    Mamba calls its cache `cache_params`, everything else `past_key_values`; the rest is the same. Only the logits that
    are asked for are computed: those of 100,000 positions would take 20 GB.
    """
    name = "cache_params" if model.config.model_type in STATE_ONLY else "past_key_values"
    given = {name: cache} if cache is not None else {}
    output = model(input_ids, use_cache=use_cache, logits_to_keep=keep, **given)
    return output.logits, getattr(output, name)


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
        graph: replay the decode steps from a CUDA graph (`shared.graphs`). The steps that count are the same ones.

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
        logits, cache = forward(model, input_ids)
        token = logits[:, -1:].argmax(-1)
        synchronize(model.device)
        first = time.perf_counter() - start

        def step() -> None:
            token.copy_(forward(model, token, cache)[0][:, -1:].argmax(-1))

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


def sweep(model, prompts: dict[int, torch.Tensor], new_tokens: int, **options) -> Iterable[dict]:
    """Time one model over growing prompts; yields a row per length, and ends with the one that memory does not hold.

    Before each length the peak of the last one is scaled up to it and compared with the memory that is there: running
    out raises on a discrete GPU, but hangs a machine with unified memory, where a reserve is left free and the watchdog
    (`shared.guard`) sees what was not foreseen. An out-of-memory point is a result.

    Args:
        prompts: length -> token ids (B, length), as from `data.random_tokens`.
        options: of `generation`.

    Yields: `status` ("ok" or "out of memory"), `tokens`, and the fields of GenerationTiming where it is ok.
    """
    last = None
    for tokens, input_ids in sorted(prompts.items()):
        expected = last["peak_bytes"] * tokens / last["tokens"] if last else 0
        if expected >= (there := guard.budget(model.device)):
            yield {"tokens": tokens, "status": "out of memory", "expected_bytes": expected, "available_bytes": there}
            return
        try:
            last = {
                "tokens": tokens,
                "status": "ok",
                **asdict(generation(model, input_ids, new_tokens, beyond_limit=True, **options)),
            }
        except (torch.OutOfMemoryError, MemoryError, NotEnoughMemory):
            last = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            yield {"tokens": tokens, "status": "out of memory"}
            return
        yield last
