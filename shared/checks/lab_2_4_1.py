"""Checks of lab 2.4.1: each exercise on small cases worked out here, and the mistakes that are made most often."""

import itertools
import math
from types import SimpleNamespace

from shared.checks import Wrong, exercise, expect
from shared.checks.device import Device

# Small configs with different numbers in every place, so that no two mistakes give the same result.
PLAIN = SimpleNamespace(num_hidden_layers=3, hidden_size=40, num_attention_heads=5)
GROUPED = SimpleNamespace(num_hidden_layers=2, hidden_size=48, num_attention_heads=6, num_key_value_heads=2)
MAMBA = SimpleNamespace(num_hidden_layers=3, hidden_size=10, intermediate_size=20, state_size=7, conv_kernel=4)


@exercise("2.4.1", "ex-kv-cache-bytes")
def kv_cache_bytes(answer, random):
    right = 2 * 3 * 5 * 8 * 11 * 2  # keys and values, layers, heads, head size, tokens, bytes
    mistakes = {
        "Keys and values are both cached: that is the factor 2 that is missing.": right // 2,
        "Every layer keeps a cache of its own: multiply by num_hidden_layers.": right // 3,
        "Every head keeps keys and values: the width is heads times head size, which is hidden_size.": right // 5,
        "A value takes bytes_per_value bytes: you counted values, not bytes.": right // 2 // 2,
        "The cache grows with the tokens, not with their square: scores are not kept.": right * 11,
    }
    expect(answer(PLAIN, 11), right, "KV cache of 3 layers with 5 heads of 8, for 11 tokens in 2 bytes", mistakes)
    expect(
        answer(PLAIN, 11, batch=3, bytes_per_value=4),
        right * 6,
        "the same in 4 bytes for a batch of 3",
        {
            "Each sequence of a batch has a cache of its own: multiply by batch.": right * 2,
            "The size of a value is an argument, not always 2.": right * 3,
        },
    )
    right = 2 * 2 * 2 * 8 * 11 * 2
    expect(
        answer(GROUPED, 11),
        right,
        "KV cache with 6 query heads that share 2 key-value heads",
        {
            "Grouped queries share keys and values: count num_key_value_heads, not num_attention_heads.": right * 3,
            "The head size is hidden_size / num_attention_heads, also where fewer heads are cached.": right * 3,
        },
    )
    return "keys and values, of every layer, every cached head, every token."


@exercise("2.4.1", "ex-mamba-state-bytes")
def mamba_state_bytes(answer, random):
    window, state = 20 * 4 * 2, 20 * 7 * 4
    right = 3 * (window + state)
    mistakes = {
        "The recurrent state is kept in float32 (4 bytes) also in a 16-bit model.": 3 * (window + state // 2),
        "The convolution window is missing: conv_kernel values per channel.": 3 * state,
        "The recurrent state is missing: state_size values per channel.": 3 * window,
        "Channels are intermediate_size (the inner width), not hidden_size.": right // 2,
        "Every layer keeps its own state: multiply by num_hidden_layers.": right // 3,
        "Only the recurrent state is float32; the window has bytes_per_value bytes.": 3 * (2 * window + state),
        "transformers keeps conv_kernel columns of the window, not conv_kernel - 1.": 3 * (window * 3 // 4 + state),
    }
    expect(answer(MAMBA), right, "state of 3 layers, 20 channels, state size 7 and window 4 in 2 bytes", mistakes)
    expect(
        answer(MAMBA, batch=5, bytes_per_value=4),
        15 * (2 * window + state),
        "the same with a batch of 5 and a window in 4 bytes",
        {
            "Each sequence of a batch has a state of its own: multiply by batch.": 3 * (2 * window + state),
            "The window is kept in the model's type: bytes_per_value bytes.": 15 * (window + state),
        },
    )
    return "a window and a state per channel and layer, and no number of tokens anywhere."


@exercise("2.4.1", "ex-measure")
def measure(answer, random):
    # The first calls are slow, as where a kernel is compiled.
    def trial(warmup: int, repeats: int) -> tuple[object, int]:
        device, calls = Device(), itertools.count()

        def work():
            call = next(calls)
            device.work(50.0 if call < 2 else 1.0 + call / 100)

        with device.clock():
            return answer(work, device.synchronize, warmup=warmup, repeats=repeats), next(calls)

    for warmup, repeats in ((3, 5), (2, 3)):
        came, calls = trial(warmup, repeats)
        if not isinstance(came, (list, tuple)):
            raise Wrong(
                f"expected a list with the seconds of each repeat, got {came!r}. Keep them apart: the spread counts."
            )
        right = [1.001 + (warmup + i) / 100 for i in range(repeats)]
        if len(came) == warmup + repeats:
            raise Wrong(f"expected {repeats} times, got {len(came)}. The warm-up calls run, but do not count.")
        if calls < warmup + repeats:
            raise Wrong(f"expected {warmup} + {repeats} calls of work(), saw {calls}. Warm up before you measure.")
        if came and max(came) < 0.5:
            raise Wrong(
                f"the calls take about 1 s each, you measured {max(came):.3g} s. "
                "The clock stopped before the device had finished: synchronise before you read the end."
            )
        if came and came[0] > 2:
            raise Wrong(
                f"the first call took {right[0]:.4g} s, you measured {came[0]:.4g} s. "
                "It waited for the warm-up calls too: synchronise before you start the clock."
            )
        expect(list(came), right, f"times of {repeats} calls after {warmup} warm-up calls", rel=1e-6)
    return "warmed up, synchronised before the start and before the end."


@exercise("2.4.1", "ex-growth-exponent")
def growth_exponent(answer, random):
    tokens = [256, 512, 1024, 2048, 4096]
    slope, error = _pair(answer(tokens, [3e-6 * t**1.5 for t in tokens]))
    if not abs(slope - 1.5) < 1e-6:
        raise Wrong(
            f"values that grow as tokens**1.5: expected a slope of 1.5, got {slope:.4g}. "
            "Fit the logarithm of the values against the logarithm of the tokens, both with the same base."
        )
    if not abs(error) < 1e-6:
        raise Wrong(f"a perfect power law has no error: expected 0, got {error:.4g}.")
    values = [0.9, 2.3, 3.6, 8.5, 15.0]
    x, y = [math.log(t) for t in tokens], [math.log(v) for v in values]
    mx, my = sum(x) / 5, sum(y) / 5
    sxx = sum((a - mx) ** 2 for a in x)
    right = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sxx
    squares = sum((b - my - right * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    right_error = math.sqrt(squares / 3 / sxx)
    slope, error = _pair(answer(tokens, values))
    expect(slope, right, "slope through five noisy points", rel=1e-6)
    expect(
        error,
        right_error,
        "its standard error",
        {
            "Divide the squared residuals by n - 2: a line has two parameters.": math.sqrt(squares / 5 / sxx),
            "Divide the squared residuals by n - 2, not n - 1: a line has two parameters.": math.sqrt(
                squares / 4 / sxx
            ),
            "That is the variance of the slope: take its square root.": squares / 3 / sxx,
            "That is the spread of the residuals; divide it by the spread of log(tokens).": math.sqrt(squares / 3),
        },
        rel=1e-6,
    )
    return f"slope {slope:.2f} ± {error:.2f} on the noisy points: an exponent without its error is a guess."


@exercise("2.4.1", "ex-decode-roofline")
def decode_roofline(answer, random):
    expect(
        answer(1000, 0, 0, 5000),
        5.0,
        "1,000 bytes of weights at 5,000 bytes/s",
        {"Seconds per token came out: the roofline is tokens per second.": 0.2},
    )
    expect(
        answer(1000, 250, 0, 5000),
        4.0,
        "the same with a cache of 250 bytes",
        {"The cache is read at every step too: add it to the weights.": 5.0},
    )
    expect(
        answer(1000, 0, 125, 5000),
        4.0,
        "the same with a state of 125 bytes in place of the cache",
        {
            "A state is read and written at every step: it moves twice.": 5000 / 1125,
            "The state moves at every step too: add it.": 5.0,
        },
    )
    right = 8 * 5000 / (1000 + 8 * 500)
    expect(
        answer(1000, 250, 125, 5000, batch=8),
        right,
        "a batch of 8, each sequence with a cache of 250 and a state of 125 bytes",
        {
            "Weights are read once per step for the whole batch, not once per sequence.": 5000 / 1500,
            "Every sequence has a cache and a state of its own: multiply them by batch.": 8 * 5000 / 1500,
            "Count the tokens of the whole batch: a step makes one per sequence.": right / 8,
        },
    )
    return "weights once per step, caches and states once per sequence."


@exercise("2.4.1", "ex-context-that-fits")
def context_that_fits(answer, random):
    expect(
        answer(1000, 400, 7),
        85,
        "1,000 bytes, weights of 400, a cache of 7 per token",
        {
            "The weights take their part of the memory first.": 142,
            "A token fits or it does not: round down to whole tokens.": 600 / 7,
            "Round down: the token that overflows does not fit.": 86,
        },
    )
    expect(
        answer(1000, 400, 7, state_bytes=50, batch=4),
        14,
        "the same with states of 50 bytes and a batch of 4",
        {
            "Every sequence of the batch has its own cache: divide by batch.": 400 // 7,
            "Every sequence of the batch has its own state.": 550 // 28,
            "The states take room too.": 600 // 28,
            "Every sequence of the batch has its own cache and state: divide by batch.": 600 // 7,
        },
    )
    expect(answer(300, 400, 7), 0, "weights that do not fit", {"A negative context is no answer: return 0.": -100 // 7})
    try:
        came = answer(1000, 400, 0, state_bytes=50)
    except ZeroDivisionError:
        raise Wrong("a model without a cache divides by zero: where nothing grows, return math.inf.") from None
    expect(came, math.inf, "a model whose memory does not grow with the context")
    return "weights and states first, then whole tokens."


def _pair(result: object) -> tuple[float, float]:
    try:
        slope, error = result
        return float(slope), float(error)
    except (TypeError, ValueError):
        raise Wrong(f"expected two numbers, the slope and its standard error, got {result!r}.") from None
