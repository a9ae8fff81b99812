"""Checks of lab 2.4.1: each exercise on cases of many sizes, and the mistakes that are made most often."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
from transformers import GPTNeoXConfig, MambaConfig

from shared import files
from shared.checks import Wrong, agree, as_tensor, case, exercise, expect, instead, unpacked
from shared.checks.device import CALL, Accelerator
from shared.models.cards import PUBLISHED

TINY = files.DATA / "tiny"


def _attention(layers: int, heads: int, head_size: int, **grouped: int) -> SimpleNamespace:
    sizes = {"num_hidden_layers": layers, "hidden_size": heads * head_size, "num_attention_heads": heads}
    return SimpleNamespace(**sizes, **grouped)


def _mamba(layers: int, channels: int, state: int, window: int) -> SimpleNamespace:
    sizes = {"num_hidden_layers": layers, "intermediate_size": channels, "hidden_size": channels // 2}
    return SimpleNamespace(**sizes, state_size=state, conv_kernel=window)


def _config(own, **others):
    """The course's own with other values in the config."""
    return instead(
        own,
        config=lambda given: SimpleNamespace(
            **vars(given.config) | {name: v(given) if callable(v) else v for name, v in others.items()}
        ),
    )


@exercise("2.4.1", "ex-kv-cache-bytes")
def kv_cache_bytes(answer, random):
    own = answer.own
    plain, grouped = _attention(3, 5, 8), _attention(2, 6, 8, num_key_value_heads=2)
    cases = [
        case("KV cache of 3 layers with 5 heads of 8, for 11 tokens in 8 bytes", plain, 11, bytes_per_value=8),
        case("the same where no size of a value is given", plain, 11),
        case("the same in 4 bytes for a batch of 3", plain, 11, batch=3, bytes_per_value=4),
        case("the same with a batch of 2 alone", plain, 11, 2),
        case("KV cache with 6 query heads that share 2 key-value heads", grouped, 11),
        case("the same in 4 bytes for a batch of 3", grouped, 11, 3, 4),
        case("one layer with one head, one token in one byte", _attention(1, 1, 7), 1, 1, 1),
        case("tiny/transformer after 256 tokens", GPTNeoXConfig.from_json_file(TINY / "transformer/config.json"), 256),
        case("Pythia-2.8B after 16,384 tokens", GPTNeoXConfig.from_json_file(PUBLISHED / "pythia-2.8b.json"), 16384),
    ]
    for heads, cached in ((12, 3), (8, 8), (15, 5), (6, 1)):
        config = _attention(random.randint(1, 40), heads, random.randint(2, 80), num_key_value_heads=cached)
        tokens, batch, size = random.randint(1, 9999), random.randint(1, 9), random.choice([1, 2, 4])
        cases.append(case(f"a batch of {batch}, {config}, {tokens} tokens", config, tokens, batch, size))
    mistakes = {
        "Keys and values are both cached: that is the factor 2 that is missing.": (
            instead(own, bytes_per_value=lambda given: given.bytes_per_value / 2)
        ),
        "Every layer keeps a cache of its own: multiply by num_hidden_layers.": _config(own, num_hidden_layers=1),
        "Every head keeps keys and values: the width is heads times head size, which is hidden_size.": (
            _config(own, num_key_value_heads=1)
        ),
        "A value takes bytes_per_value bytes: you counted values, not bytes.": instead(own, bytes_per_value=1),
        "The size of a value is an argument, not always 2.": instead(own, bytes_per_value=2),
        "The cache grows with the tokens, not with their square: scores are not kept.": (
            instead(own, tokens=lambda given: given.tokens**2)
        ),
        "Each sequence of a batch has a cache of its own: multiply by batch.": instead(own, batch=1),
        "Grouped queries share keys and values: count num_key_value_heads, not num_attention_heads. The head size is "
        "hidden_size / num_attention_heads, also where fewer heads are cached.": _config(own, num_key_value_heads=None),
    }
    agree(answer, cases, mistakes)
    return "keys and values, of every layer, every cached head, every token."


@exercise("2.4.1", "ex-mamba-state-bytes")
def mamba_state_bytes(answer, random):
    own, small = answer.own, _mamba(3, 20, 7, 4)
    cases = [
        case("state of 3 layers, 20 channels, state size 7 and window 4 in 2 bytes", small),
        case("the same with a batch of 5 and a window in 4 bytes", small, batch=5, bytes_per_value=4),
        case("the same with a batch of 2 alone", small, 2),
        case("the same with a window in 1 byte", small, bytes_per_value=1),
        case("the same with a window in 8 bytes", small, bytes_per_value=8),
        case("one layer, one channel, one of everything", _mamba(1, 1, 1, 1), 1, 1),
        case("tiny/mamba", MambaConfig.from_json_file(TINY / "mamba/config.json")),
        case("Mamba-2.8B", MambaConfig.from_json_file(PUBLISHED / "mamba-2.8b.json")),
    ]
    for _ in range(4):
        config = _mamba(*(random.randint(1, most) for most in (60, 5000, 130, 9)))
        batch, size = random.randint(1, 64), random.choice([1, 2, 4])
        cases.append(case(f"a batch of {batch}, {config}, in {size} bytes", config, batch, size))

    mistakes = {
        "The recurrent state is kept in float32 (4 bytes) also in a 16-bit model.": (
            _config(own, state_size=lambda given: given.config.state_size * given.bytes_per_value / 4)
        ),
        "The convolution window is missing: conv_kernel values per channel.": _config(own, conv_kernel=0),
        "The recurrent state is missing: state_size values per channel.": _config(own, state_size=0),
        "Channels are intermediate_size (the inner width), not hidden_size.": (
            _config(own, intermediate_size=lambda given: given.config.hidden_size)
        ),
        "Every layer keeps its own state: multiply by num_hidden_layers.": _config(own, num_hidden_layers=1),
        "Only the recurrent state is float32; the window has bytes_per_value bytes.": instead(own, bytes_per_value=4),
        "transformers keeps conv_kernel columns of the window, not conv_kernel - 1.": (
            _config(own, conv_kernel=lambda given: given.config.conv_kernel - 1)
        ),
        "Each sequence of a batch has a state of its own: multiply by batch.": instead(own, batch=1),
        "The window is kept in the model's type: bytes_per_value bytes.": instead(own, bytes_per_value=2),
    }
    agree(answer, cases, mistakes)
    return "a window and a state per channel and layer, and no number of tokens anywhere."


@exercise("2.4.1", "ex-measure")
def measure(answer, random):
    for given in ({}, {"warmup": 2, "repeats": 3}, {"warmup": 1, "repeats": 5}, {"warmup": 0, "repeats": 1}):
        warmup, repeats = given.get("warmup", 3), given.get("repeats", 5)
        costs = [0.012] * warmup + random.sample([0.003, 0.005, 0.007, 0.009, 0.011], repeats)  # slow at first
        _measured(answer, costs, warmup, repeats, given)
    return "warmed up, synchronised before the start and before the end."


def _measured(answer, costs: list[float], warmup: int, repeats: int, given: dict[str, int]) -> None:
    """Raise `Wrong` unless the answer times the calls of a device, whatever clock it reads."""
    device, left = Accelerator(), iter(costs)
    came = answer(lambda: device.work(next(left, 0.003)), device.synchronize, **given)
    times, calls = as_tensor(came), len(device.calls)
    if times is None or times.dim() != 1:
        raise Wrong(
            f"expected a list with the seconds of each repeat, got {came!r}. Keep them apart: the spread counts."
        )
    if warmup and len(times) == warmup + repeats:
        raise Wrong(f"expected {repeats} times, got {len(times)}. The warm-up calls run, but do not count.")
    if calls != warmup + repeats:
        why = " Warm up before you measure." if calls < warmup + repeats else ""
        raise Wrong(f"expected {warmup} + {repeats} calls of work(), saw {calls}.{why}")
    if len(times) != repeats:
        raise Wrong(f"expected {repeats} times, got {len(times)}.")
    for number, seconds in enumerate(times.tolist(), warmup):
        least, most = device.span(number, number)
        if least <= seconds <= most:
            continue
        said = (
            f"repeat {number - warmup + 1} keeps the device busy for {costs[number]:.3g} s, you measured {seconds:.3g}"
        )
        why = "Read a clock that counts waiting too, for each call alone, and give the times in the order of the calls."
        if any(least <= seconds / unit <= most for unit in (1e3, 1e6, 1e9)):
            why = "That is another unit: seconds are asked for."
        elif seconds < least and (math.isinf(device.calls[-1].done) or CALL < seconds < 2 * CALL):
            why = "The clock stopped before the device had finished: synchronise before you read the end."
        elif number == warmup and seconds > most + costs[0] / 2:
            why = "It waited for the warm-up calls too: synchronise before you start the clock."
        raise Wrong(f"{said} s. {why}")


@exercise("2.4.1", "ex-growth-exponent")
def growth_exponent(answer, random):
    tokens, noisy = [256, 512, 1024, 2048, 4096], [0.9, 2.3, 3.6, 8.5, 15.0]
    mamba, transformer = range(5), range(5, 10)  # labels of a table's rows, as the lab passes its columns
    cases = [
        case("five noisy points", tokens, noisy),
        case("values that grow as tokens**1.5", tokens, [3e-6 * t**1.5 for t in tokens]),
        case("the least number of points", [1, 2, 4], [1.0, 2.5, 3.0]),
        case("points in another order, one context measured twice", [2048, 256, 512, 256], [9.0, 2.0, 2.9, 1.1]),
        case("columns of a table", pd.Series(tokens, transformer), pd.Series(noisy, transformer)),
        case("whole numbers, in proportion", pd.Series(tokens, mamba), pd.Series(tokens, mamba) * 2048),
        case("a rate that falls", np.array(tokens), np.array([90.0, 61.0, 33.0, 29.0, 13.0])),
        case("large values at long contexts", tuple(1024 * t for t in tokens), tuple(v * 1e9 for v in noisy)),
    ]
    for n in (3, 4, 7, 12):
        x = [random.randint(1, 200_000) for _ in range(n)]
        power, size = random.uniform(-1, 2.5), 10 ** random.uniform(-6, 6)
        y = [size * t**power * math.exp(random.gauss(0, 0.3)) for t in x]
        cases.append(case(f"{n} noisy points, {x} against {y}", x, y))

    def fit(log_x=np.log, log_y=np.log, free=2, error=lambda variance, spread: math.sqrt(variance / spread)):
        """Least squares with a fault: error is of the residuals' variance and the spread of x, a sum of squares."""

        def found(tokens, values):
            x, y = log_x(np.asarray(tokens, float)), log_y(np.asarray(values, float))
            slope, start = np.polyfit(x, y, 1)
            variance = ((y - start - slope * x) ** 2).sum() / (len(x) - free)
            return slope, error(variance, ((x - x.mean()) ** 2).sum())

        return found

    line = "Fit the logarithm of the values against the logarithm of the tokens"
    mistakes = {
        f"{line}: these are the values against the tokens.": fit(np.array, np.array),
        f"{line}: these are the values themselves.": fit(np.log, np.array),
        f"{line}: these are the tokens themselves.": fit(np.array, np.log),
        f"{line}, both with the same base.": fit(np.log, np.log10),
        f"{line}, both with the same base, e, 2 or 10.": fit(np.log10, np.log),
        "Divide the squared residuals by n - 2: a line has two parameters.": fit(free=0),
        "Divide the squared residuals by n - 2, not n - 1: a line has two parameters.": fit(free=1),
        "That is the variance of the slope: take its square root.": fit(
            error=lambda variance, spread: variance / spread
        ),
        "That is the spread of the residuals; divide it by the spread of log(tokens).": (
            fit(error=lambda variance, spread: math.sqrt(variance))
        ),
        "The slope comes first, then its error.": lambda tokens, values: answer.own(tokens, values)[::-1],
    }
    agree(answer, cases, mistakes, rel=1e-4)  # float32 loses two more digits in the residuals
    state = answer(pd.Series(tokens, mamba), pd.Series([270336] * 5, mamba))  # for its error scipy gives nan
    expect(unpacked(state, 2, "two numbers, the slope and its error")[0], 0.0, "slope of what does not grow")
    slope, error = answer.own(tokens, noisy)
    return f"slope {slope:.2f} ± {error:.2f} on the noisy points: an exponent without its error is a guess."


@exercise("2.4.1", "ex-decode-roofline")
def decode_roofline(answer, random):
    own = answer.own
    cases = [
        case("1,000 bytes of weights at 5,000 bytes/s", 1000, 0, 0, 5000),
        case("the same with a cache of 250 bytes", 1000, 250, 0, 5000),
        case("the same with a state of 125 bytes in place of the cache", 1000, 0, 125, 5000),
        case("a batch of 8, each sequence with a cache of 250 and a state of 125 bytes", 1000, 250, 125, 5000, batch=8),
        case("a batch of 4, each with a cache of 10 and a state of 5 bytes", 80, 10, 5, 100, 4),
        case("a batch of 3, each with a cache alone", 1000, 250, 0, 5000, 3),
        case("a batch of 3, each with a state alone", 1000, 0, 125, 5000, 3),
        case("a batch of 7 with neither", 1000, 0, 0, 5000, 7),
        case("less than a token per second", 5_550_417_920, 2048 * 327_680, 0, 1e8, batch=1),
        case("2.8 billion weights at 273 GB/s, a batch of 64", 5_550_417_920, 131_072 * 327_680, 0, 273e9, 64),
    ]
    for _ in range(6):
        sizes = [random.randint(1, 10**9) / 2 for _ in range(3)]
        rate, batch = random.uniform(1e6, 1e12), random.randint(2, 99)
        cases.append(
            case(f"weights, cache, state of {sizes} bytes, {rate:.6g} bytes/s, batch {batch}", *sizes, rate, batch)
        )
    mistakes = {
        "Seconds per token came out: the roofline is tokens per second.": lambda *a, **k: 1 / own(*a, **k),
        "Seconds per step came out: the roofline is tokens per second.": (lambda *a, batch=1: batch / own(*a, batch)),
        "The cache is read at every step too: add it to the weights.": instead(own, kv_bytes=0),
        "The state moves at every step too: add it.": instead(own, state_bytes=0),
        "A state is read and written at every step: it moves twice.": (
            instead(own, state_bytes=lambda given: given.state_bytes / 2)
        ),
        "Weights are read once per step for the whole batch, not once per sequence.": instead(own, batch=1),
        "Every sequence has a cache and a state of its own: multiply them by batch.": (
            instead(own, batch=1, bandwidth=lambda given: given.bandwidth * given.batch)
        ),
        "Count the tokens of the whole batch: a step makes one per sequence.": (
            instead(own, bandwidth=lambda given: given.bandwidth / given.batch)
        ),
    }
    agree(answer, cases, mistakes)
    return "weights once per step, caches and states once per sequence."


@exercise("2.4.1", "ex-context-that-fits")
def context_that_fits(answer, random):
    own = answer.own
    cases = [
        case("1,000 bytes, weights of 400, a cache of 7 per token", 1000, 400, 7),
        case("the same with states of 50 bytes and a batch of 4", 1000, 400, 7, state_bytes=50, batch=4),
        case("a batch of 4 alone", 1000, 400, 7, batch=4),
        case("states of 50 bytes alone", 1000, 400, 7, state_bytes=50),
        case("a cache of 6 per token, which fills the memory to the byte", 1000, 400, 6),
        case("a cache of 7 per token, one byte less than 85 tokens take", 1000, 406, 7),
        case("weights that do not fit", 300, 400, 7),
        case("weights that fill the memory, and a cache", 400, 400, 7),
        case("one byte too few for the weights", 399, 400, 7),
        case("weights that fit beside states that do not", 1000, 400, 7, 200, 4),
        case("a model whose memory does not grow with the context", 1000, 400, 0, state_bytes=50),
        case("the same with a batch of 4", 1000, 400, 0, 50, 4),
        case("a model that does not grow, whose weights do not fit", 300, 400, 0),
        case("a model that does not grow, whose states do not fit for a batch of 64", 1000, 400, 0, 50, 64),
        case("Pythia-2.8B in 100 GB", 10**11, 5_550_417_920, 327_680, 0, 8),
        case("Jamba in 115 GB", 115 * 10**9, 103_140_646_656, 16_384, 16_515_072, 8),
    ]
    for _ in range(8):
        batch, state = random.randint(1, 64), random.randint(0, 999)
        memory, weights, cache = (
            random.randint(10**6, 10**8),
            random.randint(10**3, 10**6),
            random.randint(10**3, 10**5),
        )
        what = f"{memory} bytes, weights of {weights}, {cache} per token, states of {state}, batch {batch}"
        cases.append(case(what, memory, weights, cache, state, batch))

    def rounded(down):
        def tokens(memory, weights, cache, state_bytes=0, batch=1):
            return down((memory - weights - batch * state_bytes) / (batch * cache))

        return tokens

    mistakes = {
        "The weights take their part of the memory first.": instead(own, weight_bytes=0),
        "A token fits or it does not: round down to whole tokens.": rounded(float),
        "Round down: the token that overflows does not fit.": rounded(math.ceil),
        "A negative context is no answer: return 0.": rounded(math.floor),
        "Every sequence of the batch has its own cache and state: multiply both by batch.": instead(own, batch=1),
        "Every sequence of the batch has its own cache: divide by batch.": (
            instead(own, batch=1, state_bytes=lambda given: given.batch * given.state_bytes)
        ),
        "Every sequence of the batch has its own state.": (
            instead(own, state_bytes=lambda given: given.state_bytes / given.batch)
        ),
        "The states take room too.": instead(own, state_bytes=0),
        "Neither batch nor states are counted: divide by batch, and every sequence has its own state.": (
            instead(own, batch=1, state_bytes=0)
        ),
        "Where weights and states do not fit there is no context, also where nothing grows: return 0.": (
            instead(own, memory_bytes=lambda given: given.memory_bytes if given.kv_bytes_per_token else math.inf)
        ),
    }
    try:
        agree(answer, cases, mistakes)
    except ZeroDivisionError:
        raise Wrong("a model without a cache divides by zero: where nothing grows, return math.inf.") from None
    return "weights and states first, then whole tokens."
