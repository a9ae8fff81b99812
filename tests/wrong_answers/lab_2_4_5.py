"""Known-wrong answers of lab 2.4.5."""

import math
import statistics
import time

import numpy as np
import torch.nn.functional as F

from shared.checks import lab_2_4_5
from wrong_answers import faulty

LN2 = math.log(2)


def cut(tokens, window, stride, *, first="new", last="back", zero=False):
    """The windows of lab 2.4.5; first: what a window scores; last: what becomes of the rest."""
    found, scored, end = [], 0, min(window, tokens)
    while scored < tokens:
        start = max(0, end - window)
        if last == "short" and found:
            start = max(start, found[-1][0] + stride)
        begin = {"new": scored + 1, "all": start + 1, "stride": end - stride + 1}[first]
        found.append((start, end, begin - 1 if zero and not found else begin))
        if last == "drop" and end + stride > tokens:
            break
        scored, end = end, min(end + stride, tokens)
    return found


def nats(logits, ids, new, *, part=lambda x, new: x[-new:].sum(), shift=1, factor=1.0):
    target = ids[1:] if shift else ids[:-1]
    return factor * part(F.cross_entropy(logits, target, reduction="none"), new).item()


def measures(nll, tokens, texts, *, length=lambda t: len(t.encode()), words=lambda t: len(t.split()), base=LN2):
    total, per_word = math.fsum(nll), sum(map(words, texts))
    return math.exp(total / sum(tokens)), math.exp(total / per_word), total / base / sum(map(length, texts))


def averaged(nll, tokens, texts):
    right = measures(nll, tokens, texts)
    return statistics.mean(math.exp(n / t) for n, t in zip(nll, tokens, strict=True)), *right[1:]


def interval(a, b, size, draws=2000, seed=0, *, paired=True, ends=(0.025, 0.975), ratios=False, base=LN2, sign=1):
    a, b, size = (np.asarray(x, float) for x in (a, b, size))
    rng = np.random.default_rng(seed)
    one = rng.integers(len(size), size=(draws, len(size)))
    two = one if paired else rng.integers(len(size), size=(draws, len(size)))
    if ratios:
        found = (a / size)[one].mean(1) - (b / size)[two].mean(1)
    else:
        found = a[one].sum(1) / size[one].sum(1) - b[two].sum(1) / size[two].sum(1)
    return tuple(float(x) for x in sorted(sign * np.quantile(found / base, ends)))


def clocked(*, before=True, after=True, warm=True, middle=statistics.median, whole=False):
    def first_and_decode(prefill, step, synchronize, new_tokens, warm_steps=8):
        def seconds(work):
            if before:
                synchronize()
            start = time.perf_counter()
            work()
            if after:
                synchronize()
            return time.perf_counter() - start

        first = seconds(prefill)
        steps = [seconds(step) for _ in range(new_tokens - 1)]
        counted = steps[warm_steps:] if warm else steps
        return first, (first + sum(steps)) / new_tokens if whole else middle(counted)

    return first_and_decode


def front(points, *, beats=lambda p, q: p[0] <= q[0] and p[1] <= q[1] and p != q, order=True):
    kept = [name for name, q in points.items() if not any(beats(p, q) for p in points.values())]
    return sorted(kept, key=lambda name: points[name]) if order else kept


def decided(table, memory_bytes, context, *, ties=True, long="decode_long_ms", cache=True, weights=None, loss=False):
    weight = table.weight_bytes if weights is None else table[weights] * 2
    each = table.kv_bytes_per_token * context + table.state_bytes if cache else weight
    quality = table[table.low <= 0].decode_ms if ties else table.bits_per_byte if loss else table.decode_ms
    sequences = (memory_bytes - weight) / each
    return {"quality": quality.idxmin(), "long": table[long].idxmin(), "many": sequences.idxmax()}


WRONG = [
    (lab_2_4_5.windows, faulty(cut, first="all"), "scored twice"),
    (lab_2_4_5.windows, faulty(cut, first="stride"), "is scored"),
    (lab_2_4_5.windows, faulty(cut, last="drop"), "fills no whole window"),
    (lab_2_4_5.windows, faulty(cut, last="short"), "Let it reach back"),
    (lab_2_4_5.windows, faulty(cut, zero=True), "token 0 is scored"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x.mean() * new), "mean loss times its new tokens"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x.sum()), "scored by an earlier window"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x[-new:].mean()), "That is the mean"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x[:new].sum()), "stand at its end"),
    (lab_2_4_5.window_nll, faulty(nats, shift=0), "ids[1:], not ids[:-1]"),
    (lab_2_4_5.window_nll, faulty(nats, factor=1 / math.log(2)), "nats are wanted"),
    (lab_2_4_5.window_nll, faulty(nats, factor=-1), "sign is wrong"),
    (lab_2_4_5.yardsticks, averaged, "averaged over documents"),
    (lab_2_4_5.yardsticks, faulty(measures, length=len), "Characters are counted, not bytes"),
    (lab_2_4_5.yardsticks, faulty(measures, base=1), "a bit is log(2) nats"),
    (lab_2_4_5.yardsticks, faulty(measures, words=len), "per character"),
    (lab_2_4_5.paired_interval, faulty(interval, paired=False), "Draw once, for both"),
    (lab_2_4_5.paired_interval, faulty(interval, ends=(0.05, 0.95)), "90 % interval"),
    (lab_2_4_5.paired_interval, faulty(interval, base=1), "nats per byte"),
    (lab_2_4_5.paired_interval, faulty(interval, ratios=True), "mean of ratios"),
    (lab_2_4_5.paired_interval, faulty(interval, sign=-1), "b minus a"),
    (lab_2_4_5.first_and_decode, clocked(before=False, after=False), "before the device had finished"),
    (lab_2_4_5.first_and_decode, clocked(after=False), "before the device had finished"),
    (lab_2_4_5.first_and_decode, clocked(before=False), "before you start the clock"),
    (lab_2_4_5.first_and_decode, clocked(warm=False), "leave `warm` of them out"),
    (lab_2_4_5.first_and_decode, clocked(middle=statistics.mean), "take the median"),
    (lab_2_4_5.first_and_decode, clocked(whole=True), "end-to-end time over tokens"),
    (lab_2_4_5.pareto, faulty(front, beats=lambda p, q: p[0] >= q[0] and p[1] >= q[1] and p != q), "Less is better"),
    (lab_2_4_5.pareto, faulty(front, beats=lambda p, q: p[0] < q[0] and p[1] < q[1]), "at least as good in both"),
    (lab_2_4_5.pareto, lambda points: [min(points, key=lambda n: points[n][i]) for i in (0, 1)], "best of each axis"),
    (lab_2_4_5.pareto, lambda points: [min(points, key=lambda n: sum(points[n]))], "more than one winner"),
    (lab_2_4_5.pareto, faulty(front, order=False), "order of growing cost"),
    (
        lab_2_4_5.decide,
        lambda table, memory_bytes, context: {"quality": "b", "long": "a", "many": "a"},
        "do not type them in",
    ),
    (lab_2_4_5.decide, faulty(decided, ties=False, loss=True), "another ties with it and is faster"),
    (lab_2_4_5.decide, faulty(decided, ties=False), "not among those that tie"),
    (lab_2_4_5.decide, faulty(decided, long="decode_ms"), "a cache grows"),
    (lab_2_4_5.decide, faulty(decided, weights="active"), "all experts lie in memory"),
    (lab_2_4_5.decide, faulty(decided, cache=False), "weights alone do not decide"),
]

RIGHT = {
    lab_2_4_5.windows: cut,
    lab_2_4_5.window_nll: nats,
    lab_2_4_5.yardsticks: measures,
    lab_2_4_5.paired_interval: interval,
    lab_2_4_5.first_and_decode: clocked(),
    lab_2_4_5.pareto: front,
    lab_2_4_5.decide: decided,
}
