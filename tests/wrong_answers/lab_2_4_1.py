"""Known-wrong answers of lab 2.4.1."""

import math
import statistics
import time

import numpy as np

from shared.checks import lab_2_4_1


def kv(config, tokens, batch=1, bytes_per_value=2, *, factor=2, heads=None, layers=True):
    cached = heads or getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = config.hidden_size // config.num_attention_heads
    return factor * (config.num_hidden_layers if layers else 1) * batch * cached * tokens * size * bytes_per_value


def kv_all_heads(config, tokens, batch=1, bytes_per_value=2):
    return kv(config, tokens, batch, bytes_per_value, heads=config.num_attention_heads)


def state(config, batch=1, bytes_per_value=2, *, window_bytes=None, state_bytes=4, channels=None, window=True):
    width = channels or config.intermediate_size
    kept = width * config.conv_kernel * (window_bytes or bytes_per_value) if window else 0
    return config.num_hidden_layers * batch * (kept + width * config.state_size * state_bytes)


def timer(warm=True, before=True, after=True, together=False, count_warmup=False):
    def measure(work, synchronize, warmup=3, repeats=5):
        seconds = []
        for _ in range(warmup if warm and not count_warmup else 0):
            work()
        for _ in range(repeats + warmup * count_warmup):
            if before:
                synchronize()
            start = time.perf_counter()
            work()
            if after:
                synchronize()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds) if together else seconds

    return measure


def fit(log_x=np.log, log_y=np.log, dof=2, root=True):
    def growth_exponent(tokens, values):
        x, y = log_x(np.asarray(tokens, float)), log_y(np.asarray(values, float))
        slope, intercept = np.polyfit(x, y, 1)
        variance = ((y - slope * x - intercept) ** 2).sum() / (len(x) - dof) / ((x - x.mean()) ** 2).sum()
        return float(slope), float(math.sqrt(variance) if root else variance)

    return growth_exponent


WRONG = [
    (lab_2_4_1.kv_cache_bytes, lambda *a, **k: kv(*a, **k) // 2, "Keys and values are both cached"),
    (lab_2_4_1.kv_cache_bytes, lambda *a, **k: kv(*a, **k, layers=False), "Every layer keeps a cache"),
    (lab_2_4_1.kv_cache_bytes, kv_all_heads, "num_key_value_heads, not num_attention_heads"),
    (lab_2_4_1.kv_cache_bytes, lambda c, t, batch=1, bytes_per_value=2: kv(c, t, 1, bytes_per_value), "by batch"),
    (lab_2_4_1.kv_cache_bytes, lambda c, t, batch=1, bytes_per_value=2: kv(c, t, batch), "not always 2"),
    (lab_2_4_1.mamba_state_bytes, lambda *a, **k: state(*a, **k, state_bytes=2), "float32"),
    (lab_2_4_1.mamba_state_bytes, lambda *a, **k: state(*a, **k, window=False), "convolution window is missing"),
    (lab_2_4_1.mamba_state_bytes, lambda c, *a, **k: state(c, *a, **k, channels=c.hidden_size), "not hidden_size"),
    (
        lab_2_4_1.mamba_state_bytes,
        lambda *a, **k: state(*a, **k, window_bytes=4),
        "Only the recurrent state is float32",
    ),
    (lab_2_4_1.mamba_state_bytes, lambda c, batch=1, bytes_per_value=2: state(c, 1, bytes_per_value), "by batch"),
    (lab_2_4_1.measure, timer(warm=False), "Warm up before"),
    (lab_2_4_1.measure, timer(before=False), "before you start the clock"),
    (lab_2_4_1.measure, timer(after=False), "before you read the end"),
    (lab_2_4_1.measure, timer(count_warmup=True), "do not count"),
    (lab_2_4_1.measure, timer(together=True), "Keep them apart"),
    (lab_2_4_1.growth_exponent, fit(lambda x: x, lambda y: y), "logarithm of the values against"),
    (lab_2_4_1.growth_exponent, fit(np.log, np.log10), "both with the same base"),
    (lab_2_4_1.growth_exponent, fit(dof=0), "n - 2"),
    (lab_2_4_1.growth_exponent, fit(dof=1), "not n - 1"),
    (lab_2_4_1.growth_exponent, fit(root=False), "square root"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: bw / (w + kv + 2 * s), "not once per sequence"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / w, "cache is read at every step"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / (w + batch * (kv + s)), "moves twice"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: (w + batch * (kv + 2 * s)) / bw, "tokens per second"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / (w + kv + 2 * s), "by batch"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: m // kv, "weights take their part"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: (m - w) // kv, "divide by batch"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: (m - w) / kv, "round down"),
    (
        lab_2_4_1.context_that_fits,
        lambda m, w, kv, state_bytes=0, batch=1: max(0, m - w - batch * state_bytes) // (batch * kv),
        "return math.inf",
    ),
]

RIGHT = {
    lab_2_4_1.kv_cache_bytes: kv,
    lab_2_4_1.mamba_state_bytes: state,
    lab_2_4_1.measure: timer(),
    lab_2_4_1.growth_exponent: fit(),
}
