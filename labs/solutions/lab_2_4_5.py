"""Answers of lab 2.4.5: one block per exercise cell, which takes the place of its stub."""

import math
import statistics
import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor


# %% ex-windows
def windows(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """What each window reads and scores, so that every token is scored exactly once.

    tokens: of the text. They are numbered 1 to `tokens`; token 0 starts the text and is
        read, not scored. window: tokens read at once. stride: new tokens per window.

    Returns: (start, end, first) of each window. It reads tokens start to end - 1, at most
        `window` of them, and scores tokens first to end. The last window is as long as the
        others where the text allows it: it reaches back.
    """
    found, scored, end = [], 0, min(window, tokens)
    while scored < tokens:
        found.append((max(0, end - window), end, scored + 1))
        scored, end = end, min(end + stride, tokens)
    return found


# %% ex-window-nll
def window_nll(logits: Tensor, ids: Tensor, new: int) -> float:
    """The negative log-likelihood of a window's new tokens, summed, in nats.

    logits: (T, V), what the model says after each of ids[0] to ids[T - 1].
    ids: (T + 1,), the tokens read and the one after them. new: how many of the last
        tokens no earlier window has scored.
    """
    surprise = torch.logsumexp(logits, 1) - logits.gather(1, ids[1:, None])[:, 0]
    return surprise[len(surprise) - new :].sum().item()


# %% ex-yardsticks
def yardsticks(
    nll: list[float], tokens: list[int], texts: list[str]
) -> tuple[float, float, float]:
    """Token perplexity, word perplexity and bits per byte of a set of documents.

    nll, tokens: nats and number of tokens of each document. texts: the documents; words
        are what white space separates, bytes those of UTF-8.
    """
    nats = math.fsum(nll)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode("utf-8")) for text in texts)
    return (
        math.exp(nats / sum(tokens)),
        math.exp(nats / words),
        nats / math.log(2) / size,
    )


# %% ex-paired-interval
def paired_interval(
    nll_a, nll_b, size, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """A 95 % bootstrap interval of bits per byte of model a minus model b.

    nll_a, nll_b: nats of each document, (documents,), the same documents in the same order.
    size: bytes of each. A draw takes as many documents, with replacement, for both models.
    """
    difference, size = np.asarray(nll_a) - np.asarray(nll_b), np.asarray(size)
    drawn = np.random.default_rng(seed).integers(len(size), size=(draws, len(size)))
    bits = difference[drawn].sum(1) / np.log(2) / size[drawn].sum(1)
    low, high = np.quantile(bits, (0.025, 0.975))
    return float(low), float(high)


# %% ex-first-and-decode
def first_and_decode(
    prefill, step, synchronize, new_tokens: int, warm: int = 8
) -> tuple[float, float]:
    """Seconds to the first token, and the median seconds of one that follows.

    prefill(): reads the prompt and makes the first token. step(): makes the next one.
    synchronize(): waits until the device has done what it was given.
    new_tokens: all that are made, the first included. warm: steps that do not count.
    """

    def seconds(work) -> float:
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - start

    first = seconds(prefill)
    steps = [seconds(step) for _ in range(new_tokens - 1)]
    return first, statistics.median(steps[warm:])


# %% ex-pareto
def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names that no other one beats, by growing cost.

    points: name -> (cost, loss), less is better in both. One beats another if it is at
        least as good in both and better in one.
    """
    front = [
        name
        for name, (cost, loss) in points.items()
        if not any(
            c <= cost and worse <= loss and (c, worse) != (cost, loss)
            for c, worse in points.values()
        )
    ]
    return sorted(front, key=lambda name: points[name])


# %% ex-decide
def decide(table: pd.DataFrame, memory_bytes: float, context: int) -> dict[str, str]:
    """Which model for which need, from measured numbers alone.

    table: a row per model, with bits_per_byte; low (of the 95 % interval of bits per byte
        minus the best model's: at most 0 means a tie with it); decode_ms at a short and
        decode_long_ms at a long context; parameters total and active; weight_bytes,
        kv_bytes_per_token and state_bytes.

    Returns: "quality": of those that tie with the best, the one with the least decode_ms;
        "long": the one with the least decode_long_ms; "many": the one that holds the most
        sequences of `context` tokens in memory_bytes, beside its weights, each with a cache
        and a state of its own.
    """
    ties = table[table.low <= 0]
    each = table.kv_bytes_per_token * context + table.state_bytes
    sequences = (memory_bytes - table.weight_bytes) / each
    return {
        "quality": ties.decode_ms.idxmin(),
        "long": table.decode_long_ms.idxmin(),
        "many": sequences.idxmax(),
    }
