"""Known-wrong answers of lab 2.4.5."""

import itertools
import math
import random
import statistics
import time
import timeit
from unicodedata import normalize

import numpy as np
import pandas as pd
import torch
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


def clocked(
    *, before=True, after=True, leave=True, middle=statistics.median, whole=False, clock=time.perf_counter, unit=1
):
    def first_and_decode(prefill, step, synchronize, new_tokens, warm=8):
        def seconds(work):
            if before:
                synchronize()
            start = clock()
            work()
            if after:
                synchronize()
            return (clock() - start) / unit

        first = seconds(prefill)
        steps = [seconds(step) for _ in range(new_tokens - 1)]
        counted = steps[warm:] if leave else steps
        return first, (first + sum(steps)) / new_tokens if whole else middle(counted)

    return first_and_decode


def front(points, *, beats=lambda p, q: p[0] <= q[0] and p[1] <= q[1] and p != q, order=True):
    kept = [name for name, q in points.items() if not any(beats(p, q) for p in points.values())]
    return sorted(kept, key=lambda name: points[name]) if order else kept


def decided(table, memory_bytes, context, *, ties=True, long="decode_long_ms", cache=True, weights=None, loss=False):
    weight = table.weight_bytes if weights is None else table[weights] * 2
    each = table.kv_bytes_per_token * context + table.state_bytes if cache else weight
    near = table.low < 0 if ties == "strict" else table.low <= 0
    quality = table[near].decode_ms if ties and near.any() else table.bits_per_byte if loss else table.decode_ms
    sequences = (memory_bytes - weight) / each
    return {"quality": quality.idxmin(), "long": table[long].idxmin(), "many": sequences.idxmax()}


# ---- answers in other styles, all right ----------------------------------------------------------------------------


def cut_by_ends(tokens, window, stride):
    ends = [min(window, tokens)] if tokens else []
    while ends and ends[-1] < tokens:
        ends.append(min(ends[-1] + stride, tokens))
    firsts = [1] + [end + 1 for end in ends[:-1]]
    return [[max(0, end - window), end, first] for end, first in zip(ends, firsts, strict=False)]


def cut_lazily(tokens, window, stride):
    yield from cut(tokens, window, stride)


def nats_one_by_one(logits, ids, new):
    rows = range(len(logits) - new, len(logits))
    return -sum(float(F.log_softmax(logits[t].double(), 0)[ids[t + 1]]) for t in rows)


def nats_in_numpy(logits, ids, new):
    x = logits.numpy().astype(float)
    x = x - x.max(1, keepdims=True)
    logs = x - np.log(np.exp(x).sum(1, keepdims=True))
    return -logs[np.arange(len(x)), ids.numpy()[1:]][-new:].sum()


def measures_in_numpy(nll, tokens, texts):
    nats = np.sum(nll)
    words, size = np.sum([len(t.split()) for t in texts]), np.sum([len(bytes(t, "utf8")) for t in texts])
    return np.array([np.exp(nats / np.sum(tokens)), np.exp(nats / words), nats / np.log(2) / size])


def measures_in_bits(nll, tokens, texts):
    bits = sum(nll) / LN2
    return [2 ** (bits / sum(tokens)), 2 ** (bits / len(" ".join(texts).split())), bits / len("".join(texts).encode())]


def interval_by_choices(nll_a, nll_b, size, draws=2000, seed=0):
    rng = random.Random(seed)
    found = []
    for _ in range(draws):
        chosen = rng.choices(range(len(size)), k=len(size))
        found.append(sum(nll_a[i] - nll_b[i] for i in chosen) / LN2 / sum(size[i] for i in chosen))
    return tuple(np.percentile(found, [2.5, 97.5]))


def interval_in_torch(nll_a, nll_b, size, draws=2000, seed=0):
    a, b, size = (torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (nll_a, nll_b, size))
    drawn = torch.randint(len(size), (draws, len(size)), generator=torch.Generator().manual_seed(seed))
    bits = (a - b)[drawn].sum(1) / size[drawn].sum(1) / LN2
    return torch.quantile(bits, torch.tensor([0.025, 0.975], dtype=torch.float64))


def interval_by_counts(nll_a, nll_b, size, draws=2000, seed=0):
    size, n = np.asarray(size), len(size)
    counts = np.random.default_rng(seed).multinomial(n, np.ones(n) / n, size=draws)
    bits = counts @ (np.asarray(nll_a) - np.asarray(nll_b)) / (counts @ size) / LN2
    return list(np.quantile(bits, [0.025, 0.975]))


def clocked_in_numpy(prefill, step, synchronize, new_tokens, warm=8):
    times = []
    synchronize()
    for work in [prefill] + [step] * (new_tokens - 1):
        start = time.monotonic_ns()
        work()
        synchronize()
        times.append((time.monotonic_ns() - start) / 1e9)
    return times[0], np.median(times[1 + warm :])


def front_by_sweep(points):
    kept, least = [], math.inf
    for _, group in itertools.groupby(sorted(points, key=lambda n: points[n]), key=lambda n: points[n][0]):
        group = list(group)
        best = min(points[name][1] for name in group)
        if best < least:
            kept += [name for name in group if points[name][1] == best]
            least = best
    return tuple(kept)


def front_in_numpy(points):
    names = np.array(list(points), dtype=object)
    if not len(names):
        return names
    xy = np.array([points[name] for name in names])
    beaten = ((xy[:, None] <= xy).all(2) & (xy[:, None] < xy).any(2)).any(0)
    return names[~beaten][np.lexsort(xy[~beaten].T[::-1])]


def hull(points):
    """The front's lower convex hull."""
    kept = []
    for name in front(points):
        while len(kept) > 1:
            (x1, y1), (x2, y2), (x3, y3) = (points[n] for n in (*kept[-2:], name))
            if (x2 - x1) * (y3 - y1) > (y2 - y1) * (x3 - x1):
                break
            kept.pop()
        kept.append(name)
    return kept


def without_what_is_hollow(points):
    """The front without what lies above the line between two others; twins stay."""
    kept = {points[name] for name in hull(points)}
    return [name for name in front(points) if points[name] in kept]


def decided_by_loops(table, memory_bytes, context):
    rows = dict(table.iterrows())
    room = {
        n: (memory_bytes - r.weight_bytes) // (r.kv_bytes_per_token * context + r.state_bytes) for n, r in rows.items()
    }
    return {
        "many": max(room, key=room.get),
        "quality": min((n for n in rows if rows[n].low <= 0), key=lambda n: rows[n].decode_ms),
        "long": table.sort_values("decode_long_ms").index[0],
    }


def decided_by_query(table, memory_bytes, context):
    table = table.assign(
        n=(memory_bytes - table.weight_bytes) / (table.kv_bytes_per_token * context + table.state_bytes)
    )
    return {
        "quality": table.query("low <= 0").decode_ms.idxmin(),
        "long": table.index[table.decode_long_ms.argmin()],
        "many": table.n.nlargest(1).index[0],
    }


def one_less(nll_a, nll_b, size, draws=2000, seed=0):
    difference, size = np.asarray(nll_a) - np.asarray(nll_b), np.asarray(size)
    drawn = np.random.default_rng(seed).integers(len(size), size=(draws, max(1, len(size) - 1)))
    ends = np.quantile(difference[drawn].sum(1) / size[drawn].sum(1) / LN2, (0.025, 0.975))
    return tuple(ends)


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
    (lab_2_4_5.first_and_decode, clocked(leave=False), "leave `warm` of them out"),
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
    (lab_2_4_5.windows, lambda tokens, window, stride: cut(tokens, window, 1), "expected"),
    (lab_2_4_5.windows, lambda tokens, window, stride: cut(tokens, window, window), "scores more than"),
    (lab_2_4_5.windows, lambda tokens, window, stride: cut(tokens, 8, min(8, stride)), "window"),
    (lab_2_4_5.windows, lambda tokens, window, stride: cut(tokens, tokens or 1, stride), "the window is"),
    (lab_2_4_5.windows, lambda tokens, window, stride: [(0, tokens, 1)], "the window is"),
    (lab_2_4_5.windows, lambda *a: [(s, e - 1, f) for s, e, f in cut(*a)], "never scored"),
    (lab_2_4_5.windows, lambda *a: [(s, e) for s, e, _ in cut(*a)], "expected a list of (start, end, first)"),
    (lab_2_4_5.windows, lambda *a: cut(*a)[::-1], "in order"),
    (lab_2_4_5.windows, lambda *a: [(s, f, e) for s, e, f in cut(*a)], "scored"),
    (lab_2_4_5.windows, lambda *a: [tuple(map(str, window)) for window in cut(*a)], "expected a list"),
    (lab_2_4_5.windows, lambda *a: len(cut(*a)), "expected a list"),
    (lab_2_4_5.window_nll, lambda logits, ids, new: nats(logits, ids, 3), "expected"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x.median() * new), "expected"),
    (lab_2_4_5.window_nll, lambda x, ids, new: -x.gather(1, ids[1:, None])[-new:].sum(), "expected"),
    (lab_2_4_5.window_nll, lambda x, ids, new: F.cross_entropy(x[:, :11], ids[1:].clamp(max=10)) * new, "expected"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x[-new - 1 :].sum()), "expected"),
    (lab_2_4_5.window_nll, lambda x, ids, new: x.log_softmax(0).gather(1, ids[1:, None])[-new:].sum() * -1, "expected"),
    (lab_2_4_5.window_nll, lambda *a: str(nats(*a)), "expected"),
    (lab_2_4_5.yardsticks, faulty(measures, words=lambda t: len(t.split(" "))), "split() without"),
    (lab_2_4_5.yardsticks, faulty(measures, words=lambda t: t.count(" ") + 1), "expected"),
    (lab_2_4_5.yardsticks, faulty(measures, length=lambda t: sum(1 + (ord(c) > 127) for c in t)), "expected"),
    (lab_2_4_5.yardsticks, faulty(measures, length=lambda t: len(t.encode("utf-16"))), "expected"),
    (lab_2_4_5.yardsticks, faulty(measures, length=lambda t: len(t.strip().encode())), "expected"),
    (lab_2_4_5.yardsticks, lambda n, t, x: measures(list(itertools.compress(n, map(str.strip, x))), t, x), "expected"),
    (lab_2_4_5.yardsticks, faulty(measures, length=lambda t: len(normalize("NFC", t).encode())), "expected"),
    (lab_2_4_5.yardsticks, lambda n, t, x: measures(n[:3], t[:3], x[:3]), "expected"),
    (lab_2_4_5.yardsticks, lambda n, t, x: measures(n, t, x)[::-1], "expected"),
    (lab_2_4_5.yardsticks, lambda n, t, x: measures(n, t, x)[:2], "expected"),
    (lab_2_4_5.yardsticks, lambda n, t, x: measures(n, [sum(t) / len(t)], x), "expected"),
    (
        lab_2_4_5.paired_interval,
        lambda a, b, size, draws=2000, seed=0: interval(a, b, size, 2000, seed),
        "`draws` is not used",
    ),
    (lab_2_4_5.paired_interval, lambda a, b, size, draws=2000, seed=0: interval(a, b, size, draws, 0), "two seeds"),
    (lab_2_4_5.paired_interval, lambda a, b, size, draws=2000, seed=0: interval(a, b, size, draws, None), "same seed"),
    (lab_2_4_5.paired_interval, lambda a, b, size, draws=500, seed=0: interval(a, b, size, draws, seed), "2,000 draws"),
    (lab_2_4_5.paired_interval, lambda a, b, size, draws=2000, seed=1: interval(a, b, size, draws, seed), "seed 0"),
    (lab_2_4_5.paired_interval, faulty(interval, ends=(0.05, 0.975)), "2.5 %"),
    (lab_2_4_5.paired_interval, faulty(interval, ends=(0.005, 0.995)), "2.5 %"),
    (
        lab_2_4_5.paired_interval,
        lambda a, b, size, *r, **k: interval(a[:-1], b[:-1], size[:-1], *r, **k),
        "one document",
    ),
    (lab_2_4_5.paired_interval, one_less, "as many documents as there are"),
    (lab_2_4_5.paired_interval, lambda *a, **k: interval(*a, **k)[::-1], "low < high"),
    (lab_2_4_5.paired_interval, lambda *a, **k: sum(interval(*a, **k)) / 2, "two numbers"),
    (lab_2_4_5.first_and_decode, clocked(unit=1e-3), "you measured"),
    (lab_2_4_5.first_and_decode, clocked(middle=min), "one token that follows"),
    (lab_2_4_5.first_and_decode, clocked(middle=lambda t: statistics.mean(sorted(t)[1:-1])), "one token that follows"),
    (lab_2_4_5.first_and_decode, clocked(middle=max), "one token that follows"),
    (lab_2_4_5.first_and_decode, clocked(clock=time.process_time), "first token"),
    (lab_2_4_5.first_and_decode, lambda p, s, sync, n, warm=8: clocked()(p, s, sync, n, 8), "of 13"),
    (lab_2_4_5.first_and_decode, lambda p, s, sync, n, warm=8: clocked()(p, s, sync, n + 1, warm), "1 prefill"),
    (lab_2_4_5.first_and_decode, lambda p, s, sync, n, warm=8: clocked()(p, s, sync, 20, warm), "1 prefill"),
    (lab_2_4_5.first_and_decode, lambda *a, **k: clocked()(*a, **k)[::-1], "first token"),
    (lab_2_4_5.first_and_decode, lambda p, s, sync, n, warm=8: (0.02, 0.006), "1 prefill"),
    (
        lab_2_4_5.first_and_decode,
        lambda p, s, sync, n, warm=9: clocked()(p, s, sync, n, warm),
        "one token that follows",
    ),
    (lab_2_4_5.pareto, without_what_is_hollow, "no line does"),
    (lab_2_4_5.pareto, lambda points: list({points[n]: n for n in front(points)}.values()), "expected"),
    (lab_2_4_5.pareto, lambda points: front(points)[::-1], "growing cost"),
    (lab_2_4_5.pareto, lambda points: sorted(front(points)), "growing cost"),
    (lab_2_4_5.pareto, lambda points: front({n: p for n, p in points.items() if p[0] > 0}), "expected"),
    (lab_2_4_5.pareto, faulty(front, beats=lambda p, q: p[0] < q[0] and p[1] <= q[1]), "expected"),
    (lab_2_4_5.pareto, lambda points: front({n: (round(c, 2), round(w, 2)) for n, (c, w) in points.items()}), "exp"),
    (lab_2_4_5.pareto, faulty(front, beats=lambda p, q: p != q and max(p[0] - q[0], p[1] - q[1]) < 1e-3), "expected"),
    (lab_2_4_5.pareto, lambda points: front(points)[:12], "expected"),
    (lab_2_4_5.pareto, lambda points: list(points), "expected"),
    (lab_2_4_5.pareto, lambda points: " ".join(front(points)), "expected a list"),
    (lab_2_4_5.pareto, lambda points: len(front(points)), "expected a list"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t.assign(decode_long_ms=t.decode_long_ms.astype(int)), m, c), "long"),
    (lab_2_4_5.decide, faulty(decided, ties="strict"), "quality"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t, m, 100), "many"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t, 2000.0, c), "many"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t, m * 2**30 / 1e9, c), "many"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t, m / 2**30 * 1e9, c), "many"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t.assign(state_bytes=0.5), m, c), "many"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t.assign(weight_bytes=0), m, c), "many"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t.assign(low=t.low - 0.005), m, c), "quality"),
    (lab_2_4_5.decide, lambda t, m, c: decided(t.head(4), m, c), "expected"),
    (lab_2_4_5.decide, lambda t, m, c: {**decided(t, m, c), "long": (t.decode_long_ms - t.decode_ms).idxmin()}, "long"),
    (lab_2_4_5.decide, lambda t, m, c: {**decided(t, m, c), "many": (t.kv_bytes_per_token).idxmin()}, "many"),
    (lab_2_4_5.decide, lambda t, m, c: {**decided(t, m, c), "quality": (t.low).idxmin()}, "quality"),
    (lab_2_4_5.decide, lambda t, m, c: {k: [v] for k, v in decided(t, m, c).items()}, "expected"),
    (lab_2_4_5.decide, lambda t, m, c: tuple(decided(t, m, c).values()), "expected a dict"),
]

RIGHT = {
    lab_2_4_5.windows: [cut, cut_by_ends, cut_lazily, lambda *a: tuple(cut(*a)), lambda *a: np.array(cut(*a))],
    lab_2_4_5.window_nll: [
        nats,
        nats_one_by_one,
        nats_in_numpy,
        lambda x, ids, new: F.nll_loss(x.log_softmax(1)[-new:], ids[-new:], reduction="sum"),
        lambda x, ids, new: F.cross_entropy(x.float()[-new:], ids[1:][-new:], reduction="none").sum().numpy(),
    ],
    lab_2_4_5.yardsticks: [
        measures,
        measures_in_numpy,
        measures_in_bits,
        lambda n, t, x: torch.tensor(measures(n, t, x)),
        lambda n, t, x: measures(np.asarray(n), np.asarray(t), x),
    ],
    lab_2_4_5.paired_interval: [
        interval,
        interval_by_choices,
        interval_in_torch,
        interval_by_counts,
        lambda *a, **k: list(map(np.float32, interval(*a, **k))),
    ],
    lab_2_4_5.first_and_decode: [
        clocked(),
        clocked_in_numpy,
        clocked(clock=time.monotonic),
        clocked(clock=time.time),
        clocked(clock=timeit.default_timer),
        clocked(clock=time.perf_counter_ns, unit=1e9),
    ],
    lab_2_4_5.pareto: [front, front_by_sweep, front_in_numpy, lambda p: iter(front(p)), lambda p: tuple(front(p))],
    lab_2_4_5.decide: [
        decided,
        decided_by_loops,
        decided_by_query,
        lambda t, m, c: pd.Series(decided(t, m, c)),
        lambda t, m, c: {k: np.str_(v) for k, v in decided(t, m, c).items()},
    ],
}
