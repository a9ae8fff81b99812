"""Answers of lab 2.4.1: one block per exercise cell, which takes the place of its stub."""

import math
import time

import numpy as np


# %% ex-kv-cache-bytes
def kv_cache_bytes(config, tokens: int, batch: int = 1, bytes_per_value: int = 2) -> int:
    """Bytes of the key-value cache after `tokens` tokens.

    config: has num_hidden_layers, hidden_size, num_attention_heads and, where fewer heads
        are cached than queries are computed, num_key_value_heads.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = config.hidden_size // config.num_attention_heads
    keys = config.num_hidden_layers * batch * heads * tokens * head_size * bytes_per_value
    return 2 * keys  # values are as large as keys


# %% ex-mamba-state-bytes
def mamba_state_bytes(config, batch: int = 1, bytes_per_value: int = 2) -> int:
    """Bytes that Mamba carries from token to token: convolution window and recurrent state.

    config: has num_hidden_layers, intermediate_size (the inner width D), state_size (N)
        and conv_kernel. The window is kept in the model's type, the state in float32.
    """
    window = config.intermediate_size * config.conv_kernel * bytes_per_value
    state = config.intermediate_size * config.state_size * 4
    return config.num_hidden_layers * batch * (window + state)


# %% ex-measure
def measure(work, synchronize, warmup: int = 3, repeats: int = 5) -> list[float]:
    """Seconds of each of `repeats` calls of `work()`, after `warmup` that do not count.

    synchronize: call it to wait until the device has finished what it was given.
    Returns the seconds of each repeat by itself, in the order of the calls.
    """
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


# %% ex-growth-exponent
def growth_exponent(tokens, values) -> tuple[float, float]:
    """The slope p of values ~ tokens**p on log-log axes, and its standard error.

    tokens, values: lists, arrays or columns of a table (whose labels need not begin at 0),
        three or more positive numbers in each.
    """
    x, y = np.log(np.asarray(tokens, float)), np.log(np.asarray(values, float))
    dx = x - x.mean()
    slope = (dx @ (y - y.mean())) / (dx @ dx)
    residuals = y - y.mean() - slope * dx
    variance = residuals @ residuals / (len(x) - 2)  # a line has two parameters
    return float(slope), math.sqrt(variance / (dx @ dx))


# %% ex-decode-roofline
def decode_roofline(
    weight_bytes: float,
    kv_bytes: float,
    state_bytes: float,
    bandwidth: float,
    batch: int = 1,
) -> float:
    """Tokens per second, over the whole batch, if decoding did nothing but move bytes.

    weight_bytes: read once per step, for all sequences together.
    kv_bytes, state_bytes: of ONE sequence. A cache is read; a state is read and written.
    bandwidth: bytes per second.
    """
    step = weight_bytes + batch * (kv_bytes + 2 * state_bytes)
    return batch * bandwidth / step


# %% ex-context-that-fits
def context_that_fits(
    memory_bytes: int,
    weight_bytes: int,
    kv_bytes_per_token: int,
    state_bytes: int = 0,
    batch: int = 1,
) -> float:
    """The most tokens of context per sequence that weights, state and cache leave room for.

    Returns 0 where not even weights and states fit, also for a model without a cache.
    Where they fit and there is no cache, nothing grows: returns math.inf.
    """
    room = memory_bytes - weight_bytes - batch * state_bytes
    if room < 0:
        return 0
    if kv_bytes_per_token == 0:
        return math.inf
    return room // (batch * kv_bytes_per_token)
