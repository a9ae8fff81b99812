"""Known-wrong answers of lab 2.4.1, and right ones in other styles."""

import math
import statistics
import time
import timeit

import numpy as np
import pandas as pd
import torch

from shared.checks import instead, lab_2_4_1


def heads_of(config) -> int:
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


def kv_cache_bytes(config, tokens, batch=1, bytes_per_value=2, *, factor=2, heads=None, layers=None, size=None):
    cached, layers = heads or heads_of(config), layers or config.num_hidden_layers
    head_size = size or config.hidden_size // config.num_attention_heads
    return factor * layers * batch * cached * tokens * head_size * bytes_per_value


def kv_by_shapes(config, tokens, batch=1, bytes_per_value=2):
    total = 0
    for _ in range(config.num_hidden_layers):
        for _ in ("keys", "values"):
            shape = (batch, heads_of(config), tokens, config.hidden_size // config.num_attention_heads)
            total += math.prod(shape) * bytes_per_value
    return total


def kv_on_meta(config, tokens, batch=1, bytes_per_value=2):
    head_size = config.hidden_size // config.num_attention_heads
    keys = torch.empty(config.num_hidden_layers, batch, heads_of(config), tokens, head_size, device="meta")
    return torch.tensor(2 * keys.numel() * bytes_per_value)


def kv_changes_config(config, tokens, batch=1, bytes_per_value=2):
    config.num_key_value_heads = heads_of(config)
    return kv_cache_bytes(config, tokens, batch, bytes_per_value)


def mamba_state_bytes(config, batch=1, bytes_per_value=2, *, columns=None, state=None, width=4, channels=None):
    window = (config.conv_kernel if columns is None else columns) * bytes_per_value
    state = (config.state_size if state is None else state) * width
    return config.num_hidden_layers * batch * (channels or config.intermediate_size) * (window + state)


def state_on_meta(config, batch=1, bytes_per_value=2):
    window = torch.empty(batch, config.intermediate_size, config.conv_kernel, device="meta")
    state = torch.empty(batch, config.intermediate_size, config.state_size, device="meta")
    return config.num_hidden_layers * (window.numel() * bytes_per_value + state.nbytes)


def timer(before=True, after=True, inside=False, clock=time.perf_counter, scale=1, made=list, warm=None, count=None):
    """measure() with faults; made: of the list of seconds. warm, count: calls, whatever is asked for."""

    def measure(work, synchronize, warmup=3, repeats=5):
        seconds = []
        for _ in range(warmup if warm is None else warm):
            work()
        for _ in range(repeats if count is None else count):
            if before:
                synchronize()
            start = clock()
            if inside:
                synchronize()
            work()
            if after:
                synchronize()
            seconds.append((clock() - start) * scale)
        return made(seconds)

    return measure


def timed_with_warm_up(work, synchronize, warmup=3, repeats=5):
    return timer(warm=0)(work, synchronize, 0, warmup + repeats)


def starts_late(work, synchronize, warmup=3, repeats=5):
    def late(clock=time.perf_counter):
        work()
        start = clock()
        synchronize()
        return clock() - start

    for _ in range(warmup):
        work()
    synchronize()
    return [late() for _ in range(repeats)]


def one_span(work, synchronize, warmup=3, repeats=5):
    for _ in range(warmup):
        work()
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return [(time.perf_counter() - start) / repeats] * repeats


def since_the_first_start(work, synchronize, warmup=3, repeats=5):
    return np.cumsum(timer()(work, synchronize, warmup, repeats))


def kept_between_calls(seconds=[]):  # noqa: B006
    return timer(made=lambda new: seconds.extend(new) or seconds)


def stamps(work, synchronize, warmup=3, repeats=5):
    for _ in range(warmup):
        work()
        synchronize()
    times = [time.monotonic()]
    for _ in range(repeats):
        work()
        synchronize()
        times.append(time.monotonic())
    return np.diff(times)


def by_timeit(work, synchronize, warmup=3, repeats=5):
    def both():
        work()
        synchronize()

    for _ in range(warmup):
        both()
    return timeit.repeat(both, number=1, repeat=repeats)


def all_calls_timed(work, synchronize, warmup=3, repeats=5):
    return timer(warm=0)(work, synchronize, 0, warmup + repeats)[warmup:]


def lazily(work, synchronize, warmup=3, repeats=5):
    for _ in range(warmup):
        work()
    for _ in range(repeats):
        yield from timer()(work, synchronize, 0, 1)


def on_logs(tokens, values):
    return np.log(np.asarray(tokens, float)), np.log(np.asarray(values, float))


def fit(log_x=np.log, log_y=np.log, free=2, slope=None, error=None):
    """growth_exponent() with faults. error: of the residuals, dx and the number of points."""

    def growth_exponent(tokens, values):
        x, y = log_x(np.asarray(tokens, float)), log_y(np.asarray(values, float))
        found, start = np.polyfit(x, y, 1)
        found = slope(x, y) if slope else found
        residuals, dx = y - start - found * x, x - x.mean()
        if error:
            return found, error(residuals, dx, len(x))
        return found, math.sqrt((residuals**2).sum() / (len(x) - free) / (dx**2).sum())

    return growth_exponent


def by_linregress(tokens, values):
    from scipy import stats

    line = stats.linregress(*on_logs(tokens, values))
    return line.slope, line.stderr


def by_covariance(tokens, values):
    line, covariance = np.polyfit(*on_logs(tokens, values), 1, cov=True)
    return np.array([line[0], covariance[0, 0] ** 0.5])


def in_float32(tokens, values):
    x, y = (torch.tensor(np.array(v), dtype=torch.float32).log2() for v in (tokens, values))
    dx = x - x.mean()
    slope = (dx * (y - y.mean())).sum() / dx.square().sum()
    rest = y - y.mean() - slope * dx
    return slope, (rest.square().sum() / (len(x) - 2) / dx.square().sum()).sqrt()


def by_loops(tokens, values):
    x, y = ([math.log10(v) for v in column] for column in (tokens, values))
    slope, start = statistics.linear_regression(x, y)
    rest = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return [slope, math.sqrt(rest / (len(x) - 2) / sum((a - sum(x) / len(x)) ** 2 for a in x))]


def first_and_last(x, y):
    return (y[-1] - y[0]) / (x[-1] - x[0])


def decode_roofline(weight_bytes, kv_bytes, state_bytes, bandwidth, batch=1):
    return bandwidth / (weight_bytes / batch + kv_bytes + 2 * state_bytes)


def context_that_fits(memory_bytes, weight_bytes, kv_bytes_per_token, state_bytes=0, batch=1):
    room = (memory_bytes - weight_bytes) / batch - state_bytes
    if room < 0:
        return 0
    return math.floor(room / kv_bytes_per_token) if kv_bytes_per_token else float("inf")


def by_search(memory_bytes, weight_bytes, kv_bytes_per_token, state_bytes=0, batch=1):
    def fits(tokens):
        return weight_bytes + batch * (state_bytes + tokens * kv_bytes_per_token) <= memory_bytes

    if not fits(0) or not kv_bytes_per_token:
        return math.inf if fits(0) else 0
    low, high = 0, memory_bytes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def by_counting(memory_bytes, weight_bytes, kv_bytes_per_token, state_bytes=0, batch=1):
    used, tokens = weight_bytes + batch * state_bytes, 0
    if used > memory_bytes or not kv_bytes_per_token:
        return 0 if used > memory_bytes else math.inf
    while used + (tokens + 1) * batch * kv_bytes_per_token <= memory_bytes:
        tokens += 1
    return tokens


def nothing_left(memory_bytes, weight_bytes, kv_bytes_per_token, state_bytes=0, batch=1):
    room = memory_bytes - weight_bytes - batch * state_bytes
    if room <= 0:
        return 0
    try:
        return room // (batch * kv_bytes_per_token)
    except ZeroDivisionError:
        return np.inf


def whole(down, nothing=math.inf):
    """context_that_fits() with another rounding, and with another answer where nothing grows."""

    def tokens(memory_bytes, weight_bytes, kv_bytes_per_token, state_bytes=0, batch=1):
        room = max(0, memory_bytes - weight_bytes - batch * state_bytes)
        return down(room / (batch * kv_bytes_per_token)) if kv_bytes_per_token else nothing

    return tokens


def of(made, right, **others):
    """A right answer with other arguments, and with something made of its result."""
    return lambda *args, **kwargs: made(instead(right, **others)(*args, **kwargs))


def each(check, answers: dict):
    return [(check, answer, named) for answer, named in answers.items()]


KV = {
    instead(kv_cache_bytes, factor=1): "Keys and values are both cached",
    instead(kv_cache_bytes, layers=1): "Every layer keeps a cache",
    instead(kv_cache_bytes, heads=1): "Every head keeps keys and values",
    instead(
        kv_cache_bytes, heads=lambda g: g.config.num_attention_heads
    ): "num_key_value_heads, not num_attention_heads",
    instead(kv_cache_bytes, batch=1): "by batch",
    instead(kv_cache_bytes, bytes_per_value=2): "not always 2",
    instead(kv_cache_bytes, bytes_per_value=1): "you counted values, not bytes",
    instead(kv_cache_bytes, tokens=lambda g: g.tokens**2): "not with their square",
    instead(kv_cache_bytes, layers=3): "expected",
    instead(kv_cache_bytes, size=8): "expected",
    instead(
        kv_cache_bytes, size=lambda g: g.config.hidden_size // heads_of(g.config)
    ): "hidden_size / num_attention_heads",
    instead(
        kv_cache_bytes, heads=lambda g: 2 if heads_of(g.config) != g.config.num_attention_heads else None
    ): "expected",
    instead(kv_cache_bytes, tokens=lambda g: g.tokens + 1): "expected",
    instead(kv_cache_bytes, tokens=lambda g: min(g.tokens, 2048)): "Pythia-2.8B",
    lambda config, tokens, batch=1, bytes_per_value=4: kv_cache_bytes(
        config, tokens, batch, bytes_per_value
    ): "no size",
    of(str, kv_cache_bytes): "got '",
    of(lambda size: size / 2**20, kv_cache_bytes): "expected",
    of(lambda size: int(np.array(size).astype(np.int32)), kv_cache_bytes): "Pythia-2.8B",
    kv_changes_config: "the argument `config` was changed",
}
STATE = {
    instead(mamba_state_bytes, width=lambda g: g.bytes_per_value): "float32",
    instead(mamba_state_bytes, columns=0): "convolution window is missing",
    instead(mamba_state_bytes, state=0): "recurrent state is missing",
    instead(mamba_state_bytes, channels=lambda g: g.config.hidden_size): "not hidden_size",
    instead(mamba_state_bytes, bytes_per_value=4): "Only the recurrent state is float32",
    instead(mamba_state_bytes, bytes_per_value=2): "The window is kept in the model's type",
    instead(mamba_state_bytes, columns=lambda g: g.config.conv_kernel - 1): "not conv_kernel - 1",
    instead(mamba_state_bytes, batch=1): "by batch",
    instead(mamba_state_bytes, columns=4): "expected",
    instead(mamba_state_bytes, state=16): "expected",
    instead(mamba_state_bytes, state=7): "expected",
    instead(mamba_state_bytes, width=lambda g: max(4, g.bytes_per_value)): "8 bytes",
    instead(mamba_state_bytes, width=lambda g: min(4, 2 * g.bytes_per_value)): "1 byte",
    instead(mamba_state_bytes, channels=lambda g: 2 * g.config.hidden_size): "expected",
    of(lambda size: size / 1e6, mamba_state_bytes): "expected",
}
MEASURE = {
    timer(warm=0): "Warm up before",
    timer(before=False): "before you start the clock",
    timer(before=False, inside=True): "before you start the clock",
    timer(after=False): "before you read the end",
    timer(before=False, after=False): "before you read the end",
    timed_with_warm_up: "do not count",
    timer(made=statistics.median): "Keep them apart",
    timer(made=sum): "Keep them apart",
    timer(clock=time.process_time): "counts waiting",
    timer(clock=time.perf_counter_ns): "seconds are asked for",
    timer(scale=1000): "seconds are asked for",
    timer(warm=3): "calls of work()",
    timer(count=5): "expected 3 times",
    timer(made=sorted): "in the order of the calls",
    timer(made=lambda seconds: seconds[::-1]): "in the order of the calls",
    timer(made=lambda seconds: [statistics.mean(seconds)] * len(seconds)): "each call alone",
    timer(made=lambda seconds: [str(s) for s in seconds]): "expected a list",
    one_span: "you measured",
    since_the_first_start: "each call alone",
    starts_late: "for each call alone",
    kept_between_calls(): "expected 3 times, got 8",
    lambda work, synchronize, warmup=3, repeats=5: [0.01] * repeats: "Warm up before",
}
EXPONENT = {
    fit(np.array, np.array): "logarithm of the values against",
    fit(np.log, np.array): "the values themselves",
    fit(np.array, np.log): "the tokens themselves",
    fit(np.log, np.log10): "both with the same base",
    fit(free=0): "n - 2",
    fit(free=1): "not n - 1",
    fit(error=lambda rest, dx, n: (rest**2).sum() / (n - 2) / (dx**2).sum()): "square root",
    fit(error=lambda rest, dx, n: math.sqrt((rest**2).sum() / (n - 2))): "divide it by the spread",
    fit(error=lambda rest, dx, n: math.sqrt((rest**2).sum() / 3 / (dx**2).sum())): "the least number of points",
    fit(error=lambda rest, dx, n: 1.96 * math.sqrt((rest**2).sum() / (n - 2) / (dx**2).sum())): "expected",
    fit(error=lambda rest, dx, n: abs(rest).max()): "expected",
    fit(error=lambda rest, dx, n: 0.0): "expected",
    fit(slope=first_and_last): "expected",
    fit(slope=lambda x, y: x @ y / (x @ x)): "expected",
    fit(slope=lambda x, y: 1 / np.polyfit(y, x, 1)[0]): "expected",
    fit(slope=lambda x, y: np.median(np.diff(y) / np.diff(x))): "expected",
    lambda tokens, values: by_covariance(sorted(tokens), sorted(values)): "expected",
    lambda tokens, values: by_covariance(tokens[:5], values[:5]): "expected",
    lambda tokens, values: by_covariance([tokens[i] for i in range(len(tokens))], values): "KeyError",
    lambda tokens, values: by_covariance(tokens, values)[::-1]: "The slope comes first",
    lambda tokens, values: by_covariance(tokens, values).round(2): "expected",
    lambda tokens, values: by_covariance(tokens, values)[0]: "expected",
}
ROOFLINE = {
    instead(decode_roofline, batch=1): "not once per sequence",
    instead(decode_roofline, kv_bytes=0): "cache is read at every step",
    instead(decode_roofline, state_bytes=0): "state moves at every step",
    instead(decode_roofline, state_bytes=lambda g: g.state_bytes / 2): "moves twice",
    instead(decode_roofline, batch=1, bandwidth=lambda g: g.bandwidth * g.batch): "multiply them by batch",
    instead(decode_roofline, bandwidth=lambda g: g.bandwidth / g.batch): "Count the tokens of the whole batch",
    of(lambda rate: 1 / rate, decode_roofline): "tokens per second",
    instead(decode_roofline, kv_bytes=lambda g: 2 * g.kv_bytes): "expected",
    instead(decode_roofline, kv_bytes=lambda g: g.kv_bytes / g.batch): "expected",
    instead(decode_roofline, batch=lambda g: g.batch if g.kv_bytes else 1): "a state alone",
    instead(decode_roofline, batch=lambda g: g.batch if g.state_bytes else 1): "a cache alone",
    instead(decode_roofline, batch=lambda g: min(g.batch, 64)): "expected",
    instead(decode_roofline, kv_bytes=lambda g: max(g.kv_bytes, 2 * g.state_bytes), state_bytes=0): "expected",
    of(int, decode_roofline): "expected",
    of(lambda rate: round(rate, 1), decode_roofline): "expected",
    of(lambda rate: max(rate, 1), decode_roofline): "less than a token",
    of(str, decode_roofline): "expected",
    lambda w, kv, s, rate, batch=2: decode_roofline(w, kv, s, rate, batch): "expected",
}
FITS = {
    instead(context_that_fits, weight_bytes=0): "weights take their part",
    instead(context_that_fits, state_bytes=0): "states take room too",
    instead(context_that_fits, batch=1): "multiply both by batch",
    instead(context_that_fits, batch=1, state_bytes=lambda g: g.batch * g.state_bytes): "divide by batch",
    instead(context_that_fits, batch=1, state_bytes=0): "divide by batch",
    instead(context_that_fits, state_bytes=lambda g: g.state_bytes / g.batch): "has its own state",
    whole(float): "round down",
    whole(math.ceil): "Round down",
    whole(round): "Round down",
    whole(lambda tokens: math.floor(tokens) + 1): "Round down",
    whole(math.floor): "also where nothing grows: return 0",
    whole(math.floor, 10**12): "expected inf",
    whole(math.floor, None): "expected inf",
    whole(math.floor, "inf"): "expected inf",
    lambda m, w, kv, state_bytes=0, batch=1: max(0, m - w - batch * state_bytes) // (batch * kv): "return math.inf",
    lambda m, w, kv, state_bytes=0, batch=1: math.floor(
        (m - w - batch * state_bytes) / batch / kv if kv else 9**99
    ): "return 0",
    instead(context_that_fits, state_bytes=lambda g: 2 * g.state_bytes): "expected",
    instead(context_that_fits, memory_bytes=lambda g: g.memory_bytes - 1): "to the byte",
    instead(context_that_fits, kv_bytes_per_token=lambda g: max(1, g.kv_bytes_per_token)): "expected inf",
    of(lambda tokens: tokens + 1, context_that_fits): "expected",
    of(lambda tokens: min(tokens, 131072), context_that_fits): "expected inf",
}
WRONG = [
    *each(lab_2_4_1.kv_cache_bytes, KV),
    *each(lab_2_4_1.mamba_state_bytes, STATE),
    *each(lab_2_4_1.measure, MEASURE),
    *each(lab_2_4_1.growth_exponent, EXPONENT),
    *each(lab_2_4_1.decode_roofline, ROOFLINE),
    *each(lab_2_4_1.context_that_fits, FITS),
]

RIGHT = {
    lab_2_4_1.kv_cache_bytes: [
        kv_cache_bytes,
        kv_by_shapes,
        kv_on_meta,
        of(float, kv_cache_bytes),
        of(np.int64, kv_cache_bytes),
    ],
    lab_2_4_1.mamba_state_bytes: [
        mamba_state_bytes,
        state_on_meta,
        of(float, mamba_state_bytes),
        of(torch.tensor, mamba_state_bytes),
        of(np.array, mamba_state_bytes),
    ],
    lab_2_4_1.measure: [
        timer(),
        timer(clock=time.time),
        timer(clock=timeit.default_timer, made=tuple),
        timer(clock=time.perf_counter_ns, scale=1e-9, made=torch.tensor),
        timer(clock=time.monotonic_ns, scale=1e-9, made=lambda seconds: pd.Series(seconds, range(5, 5 + len(seconds)))),
        stamps,
        by_timeit,
        all_calls_timed,
        lazily,
    ],
    lab_2_4_1.growth_exponent: [fit(), fit(np.log2, np.log2), by_linregress, by_covariance, in_float32, by_loops],
    lab_2_4_1.decode_roofline: [
        decode_roofline,
        of(np.float32, decode_roofline),
        of(torch.tensor, decode_roofline),
        lambda w, kv, s, rate, batch=1: batch / ((w + batch * (kv + 2 * s)) / rate),
        lambda w, kv, s, rate, batch=1: sum(rate / (w + sum([kv + s + s] * batch)) for _ in range(batch)),
    ],
    lab_2_4_1.context_that_fits: [
        context_that_fits,
        by_search,
        by_counting,
        nothing_left,
        of(float, context_that_fits),
        of(np.float64, context_that_fits),
        of(torch.tensor, context_that_fits),
    ],
}
