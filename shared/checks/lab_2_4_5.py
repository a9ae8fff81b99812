"""Checks of lab 2.4.5: each exercise on cases of many sizes, and the usual mistakes by name."""

import math
import operator
import statistics

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from shared.checks import Wrong, agree, case, exercise, expect, shown, unpacked
from shared.checks.device import Accelerator

# ---- windows --------------------------------------------------------------------------------------------------------


@exercise("2.4.5", "ex-windows")
def windows(answer, random):
    cases = [(5, 8, 8), (8, 8, 8), (20, 8, 8), (21, 8, 3), (9, 4, 1), (0, 4, 2), (1, 1, 1), (7, 1, 1), (2900, 256, 128)]
    for _ in range(12):
        window = random.randint(1, 40)
        cases.append((random.randint(0, 150), window, random.randint(1, window)))
    for tokens, window, stride in cases:
        what = f"{tokens} tokens, window {window}, stride {stride}"
        found = _triples(answer(tokens, window, stride), what)
        _scored_once(found, tokens, what)
        if not tokens:  # nothing is scored; whether a window reads nothing is left open
            continue
        for start, end, first in found:
            shape = f"{what}: ({start}, {end}, {first})"
            if end - start > window:
                raise Wrong(f"{shape} reads {end - start} tokens, and the window is {window}.")
            if start < 0 or first <= start:
                raise Wrong(f"{shape} scores a token that it has no context for.")
            if first > 1 and end - first + 1 > stride:
                raise Wrong(f"{shape} scores more than {stride} new tokens.")
        if any(end - start < min(window, tokens) for start, end, _ in found):
            raise Wrong(
                f"{what}: the window {found[-1]} is shorter than {window}. Let it reach back: its tokens deserve as "
                "much context as the others."
            )
        few = "The first window scores all that it reads, and each later one `stride` new tokens, as far as they reach."
        if found != answer.own(tokens, window, stride):
            raise Wrong(f"{what}: expected {shown(answer.own(tokens, window, stride))}, got {shown(found)}. {few}")
    return "every token is scored once, with as much context as the window allows."


def _triples(came, what: str) -> list[tuple[int, int, int]]:
    """The windows of an answer as whole numbers; `Wrong` if they are not that."""
    try:
        found = [tuple(map(operator.index, window)) for window in came]  # what can stand in a slice
        if all(len(window) == 3 for window in found):
            return found
    except (TypeError, ValueError):
        pass
    raise Wrong(f"{what}: expected a list of (start, end, first), got {shown(came)}.")


def _scored_once(found: list, tokens: int, what: str) -> None:
    scored = [token for _, end, first in found for token in range(first, end + 1)]
    if len(set(scored)) < len(scored):
        twice = next(token for token in scored if scored.count(token) > 1)
        raise Wrong(f"{what}: token {twice} is scored twice. A window scores what no earlier window has scored.")
    if 0 in scored:
        raise Wrong(f"{what}: token 0 is scored, and nothing stands before it. It is read only.")
    if missing := sorted(set(range(1, tokens + 1)) - set(scored)):
        end = "The rest that fills no whole window counts too." if missing[-1] == tokens else ""
        raise Wrong(f"{what}: token {missing[0]} is never scored ({len(missing)} in all are not). {end}".strip())
    if scored != list(range(1, tokens + 1)):
        raise Wrong(f"{what}: expected tokens 1 to {tokens} in order, got {scored}.")


@exercise("2.4.5", "ex-window-nll")
def window_nll(answer, random):
    def window(T, V, new, scale=3.0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(random.randrange(2**31))
        logits = (scale * torch.randn(T, V, generator=generator, dtype=torch.float64)).to(dtype)
        return case(f"{new} new tokens of {T}", logits, torch.randint(V, (T + 1,), generator=generator), new)

    cases = [window(7, 11, 3), window(7, 11, 7), window(1, 2, 1), window(5, 3, 1), window(12, 50, 11)]
    cases += [window(40, 300, 17, dtype=torch.float32), window(9, 20, 4, scale=8.0, dtype=torch.float32)]

    def by(part=lambda each, new: each[-new:].sum(), shift=True):
        def window_nll(logits, ids, new):
            each = F.cross_entropy(logits, ids[1:] if shift else ids[:-1], reduction="none")
            return part(each, new)

        return window_nll

    mistakes = {
        "That is the window's mean loss times its new tokens: the context's tokens are easier or harder than the "
        "new ones, so score the new ones by themselves.": by(lambda each, new: each.mean() * new),
        "All tokens of the window are scored: the context was scored by an earlier window.": by(
            lambda each, new: each.sum()
        ),
        "These are the first tokens of the window: the new ones stand at its end.": by(
            lambda each, new: each[:new].sum()
        ),
        "That is the mean: a sum is wanted, since windows have different numbers of new tokens.": by(
            lambda each, new: each[-new:].mean()
        ),
        "Each row of logits predicts the next token: compare it with ids[1:], not ids[:-1].": by(shift=False),
        "These are bits: nats are wanted, the natural logarithm.": by(
            lambda each, new: each[-new:].sum() / math.log(2)
        ),
        "The sign is wrong: a likelihood is below 1 and its logarithm negative.": by(
            lambda each, new: -each[-new:].sum()
        ),
    }
    agree(answer, cases, mistakes)
    return "the new tokens, each against the row before it, summed in nats."


# ---- yardsticks -----------------------------------------------------------------------------------------------------

LN2 = math.log(2)
WORDS = ("a", "défini", "Paris.", "日本", "🙂", "naïve", "12", "-", "café,", "zum", "Σ")
SPACES = (" ", "  ", "\n", "\t", " \n\n", "\u3000")


def _text(random) -> str:
    """Words of one to four bytes a character, between all kinds of white space."""
    parts = [random.choice(WORDS) + random.choice(SPACES) for _ in range(random.randint(2, 12))]
    return random.choice(["", " "]) + "".join(parts)


@exercise("2.4.5", "ex-yardsticks")
def yardsticks(answer, random):
    texts = ["Le mètre est défini à Paris.", "a b", "A whole sentence, in six words."]
    cases = [case("three documents", [40.0, 3.0, 11.5], [17, 3, 9], texts)]
    cases += [case("one document", [7.5], [5], ["é 日本 🙂\n\nzwei  Wörter\tund mehr "])]
    for number in (2, 6, 9):
        texts = [_text(random) for _ in range(number)]
        tokens = [random.randint(1, 30) for _ in texts]
        nll = [count * random.uniform(0.5, 2.0) for count in tokens]
        cases.append(case(f"{number} documents", nll, tokens, texts))
    sparse = ["two words", "", "\n cafe\u0301 \n", " \n"]
    cases += [case("four documents, two of them without a word", [3.0, 2.0, 4.0, 1.0], [2, 1, 3, 1], sparse)]

    def by(unit="tokens", average=None, base=LN2, split=str.split, size=lambda text: len(text.encode())):
        def yardsticks(nll, tokens, texts):
            nats, words, sizes = sum(nll), [len(split(t)) for t in texts], [size(t) for t in texts]
            each = [n / t for n, t in zip(nll, tokens, strict=True)]
            perplexity = {
                None: math.exp(nats / sum(tokens)),
                "perplexities": statistics.mean(map(math.exp, each)),
                "losses": math.exp(statistics.mean(each)),
                "mean loss": nats / sum(tokens),
                "powers of two": 2 ** (nats / sum(tokens)),
            }[average if average != "bytes" else None]
            per_word = {"tokens": sum(words), "token": sum(tokens), "character": sum(map(len, texts))}[unit]
            rates = [n / base / s for n, s in zip(nll, sizes, strict=True)]
            bits = statistics.mean(rates) if average == "bytes" else nats / base / sum(sizes)
            return perplexity, math.exp(nats / per_word), bits

        return yardsticks

    averaged = "is averaged over documents: a short one would count as much as a long one. Sum nats and tokens first."
    mistakes = {
        f"Token perplexity {averaged}": by(average="perplexities"),
        f"The loss {averaged}": by(average="losses"),
        "That is the mean loss: perplexity is its exponential.": by(average="mean loss"),
        "Nats belong to exp, bits to a power of two.": by(average="powers of two"),
        "Word perplexity is per token: divide the same nats by the number of words.": by("token"),
        "Word perplexity is per character: words are what white space separates.": by("character"),
        "Characters are counted, not bytes: é has two bytes in UTF-8.": by(size=len),
        "These are nats per byte: a bit is log(2) nats.": by(base=1),
        f"Bits per byte {averaged}": by(average="bytes"),
        "Words are what white space separates, however much of it: split() without an argument.": by(
            split=lambda text: text.split(" ")
        ),
    }
    agree(answer, cases, mistakes)
    return "one sum of nats over tokens, words and bytes."


# ---- the interval ---------------------------------------------------------------------------------------------------


def _documents(random, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats of two models and bytes: documents differ much, models little, and short documents count otherwise."""
    rng = np.random.default_rng(random.randrange(2**31))
    size = rng.integers(50, 2000, number)
    b = size * rng.normal(0.5, 0.15, number)
    return b + size * rng.normal(0.02, 0.02, number) + 300 / size, b, size


@exercise("2.4.5", "ex-paired-interval", seconds=3)
def paired_interval(answer, random):
    a, b, size = _documents(random, 80)
    came = _ends(answer(a, b, size, 6000, 1), "80 documents")
    _as_drawn(came, a, b, size, np.random.default_rng(random.randrange(2**31)), near=0.05)
    for number in (30, 200):
        a, b, size = _documents(random, number)
        came = _ends(answer(a.tolist(), b.tolist(), size.tolist(), 3000, 1), f"{number} documents, in lists")
        _as_drawn(came, a, b, size, np.random.default_rng(random.randrange(2**31)))
    _exact(answer, random)
    a, b, size = _documents(random, 12)
    once, again, other = (_ends(answer(a, b, size, draws=50, seed=seed), "12 documents") for seed in (3, 3, 4))
    if once != again:
        raise Wrong("the same seed gave two results: a generator of its own, made from `seed`, repeats.")
    if once == other:
        raise Wrong("two seeds gave one result: make the generator from `seed`.")
    if _ends(answer(a, b, size), "12 documents") != _ends(answer(a, b, size, 2000, 0), "the same"):
        raise Wrong("without draws and seed, 2,000 draws and seed 0 are meant, as the first line says.")
    return "documents are drawn once for both models, and sums are divided."


def _exact(answer, random) -> None:
    """Cases in which every draw is known."""
    a, b, size = _documents(random, 2)
    alone = _ends(answer(a[:1], b[:1], size[:1], 20, 1), "one document")
    bits = (a - b) / np.log(2) / size
    expect(alone, (bits[0], bits[0]), "one document, which every draw takes")
    same = _ends(answer(a, a, size, 200, 1), "a model against itself")
    expect(same, (0.0, 0.0), "a model against itself", {_UNPAIRED: lambda: same})
    two = _ends(answer(a, b, size, 1000, 1), "two documents")
    why = "With replacement, each may be drawn twice: then the ends are one document alone."
    expect(two, (min(bits), max(bits)), "two documents", {why: lambda: two})
    one_of_four, nobody, bytes_each = 32 * np.log(2) * np.array([0, 0, 0, 1]), np.zeros(4), np.full(4, 8)
    four = _ends(answer(one_of_four, nobody, bytes_each, 4000, 1), "four documents")
    why = "A draw takes as many documents as there are, here four."
    expect(four, (0.0, 3.0), "four documents, three of them equal in both models", {why: lambda: four})
    a, b, size = _documents(random, 9)
    for draws in (50, 3000):
        one, other = (_ends(answer(a, b, size, draws=n, seed=5), f"{n:,} draws") for n in (draws, draws - 1))
        if one == other:
            raise Wrong(f"{draws:,} draws and one less give the very same interval: `draws` is not used.")


def _ends(came, what: str) -> tuple[float, float]:
    low, high = unpacked(came, 2, "two numbers, low and high")
    try:
        return float(low), float(high)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what}: expected two numbers, low and high, got {shown(came)}.") from None


def _as_drawn(came: tuple[float, float], a, b, size, rng, near: float = 0.1) -> None:
    """`Wrong` unless both ends are where other draws have them, within this share of the width.

    Of 6,000 draws, the standard error of an end is 0.9 % of the width.
    """
    n = len(size)
    drawn = rng.integers(n, size=(2, 10_000, n))
    right = (a - b)[drawn[0]].sum(1) / math.log(2) / size[drawn[0]].sum(1)
    low, high = np.quantile(right, (0.025, 0.975))
    width, centre = high - low, float((a - b).sum() / math.log(2) / size.sum())
    apart = a[drawn[0]].sum(1) / size[drawn[0]].sum(1) - b[drawn[1]].sum(1) / size[drawn[1]].sum(1)
    wanted = f"{n} documents: expected about ({low:.4f}, {high:.4f}), got ({came[0]:.4f}, {came[1]:.4f})"
    if not came[0] < came[1]:
        raise Wrong(f"{n} documents: expected low < high, got ({came[0]:.4g}, {came[1]:.4g}).")
    middle, spread = sum(came) / 2, came[1] - came[0]
    if abs(middle + centre) < width / 4:
        raise Wrong(f"{wanted}. That is b minus a.")
    ratios = float(np.mean((a - b) / size)) / math.log(2)
    if abs(middle - ratios) < 0.15 * width < abs(middle - (low + high) / 2):
        raise Wrong(
            f"{wanted}. Sum nats and bytes of a draw first, then divide: a mean of ratios weighs short documents "
            "too much."
        )
    reasons = [
        (width / n**0.5, "That interval shrinks as if every draw were a new experiment: take quantiles of the draws."),
        (float(np.ptp(np.quantile(apart, (0.025, 0.975)))) / math.log(2), _UNPAIRED),
        (float(np.ptp(np.quantile(right, (0.05, 0.95)))), "That is a 90 % interval: leave 2.5 % out at each end."),
        (width * math.log(2), "These are nats per byte: a bit is log(2) nats."),
    ]
    if max(abs(came[0] - low), abs(came[1] - high)) < near * width:
        return
    if abs(spread - width) > near * width:
        why = min(reasons, key=lambda r: abs(math.log(spread / r[0])))
        named = why[1] if abs(math.log(spread / why[0])) < 0.12 else "Take their 2.5 % and 97.5 % quantiles."
        raise Wrong(f"{wanted}: {spread:.4f} wide in place of {width:.4f}. {named}")
    raise Wrong(f"{wanted}. Leave 2.5 % of the draws out at each end.")


_UNPAIRED = (
    "The two models got different documents: then the interval shows how much documents differ. Draw once, for both."
)


# ---- the clock ------------------------------------------------------------------------------------------------------


@exercise("2.4.5", "ex-first-and-decode", seconds=3)
def first_and_decode(answer, random):
    _timed(answer, random, 20, 8, {})
    _timed(answer, random, 13, 3, {"warm": 3})
    _timed(answer, random, 6, 0, {"warm": 0})
    return "prefill and steps apart, synchronised, the warm-up left out."


EARLIER, PROMPT, WARMING = 0.012, 0.05, 0.02  # seconds: work from before, the prefill, one of the first steps


def _timed(answer, random, new_tokens: int, warm: int, given: dict[str, int]) -> None:
    """Raise `Wrong` unless the answer times a device whose first steps are slow, and one of the others disturbed."""
    steps = new_tokens - 1
    counted = [0.001 + 0.0002 * number**2 for number in range(1, steps - warm)] + [0.03]
    costs = [WARMING] * warm + random.sample(counted, len(counted))
    device, asked, left = Accelerator(), [], iter(costs)
    device.work(EARLIER)

    def prefill():
        asked.append("prefill")
        device.work(PROMPT)

    def step():
        asked.append("step")
        device.work(next(left, 0.004))

    came = answer(prefill, step, device.synchronize, new_tokens, **given)
    first, each = unpacked(came, 2, "two numbers, seconds to the first token and of one that follows")
    if asked != ["prefill"] + ["step"] * steps:
        saw = f"{asked.count('prefill')} and {asked.count('step')}"
        raise Wrong(
            f"{new_tokens} new tokens: expected 1 prefill and then {steps} steps, saw {saw}. The prefill makes the "
            "first token."
        )
    least, most = device.span(1, 1)
    if not least <= float(first) <= most:
        why = "Read a clock that counts waiting too, and give seconds."
        if math.isinf(least) or float(first) < PROMPT / 2:
            why = "The clock stopped before the device had finished: call synchronize() before you read the end."
        elif not device.waited(1) or float(first) > PROMPT + EARLIER / 2:
            why = "It waited for what the device had still to do from before: synchronise before you start the clock."
        if float(first) > 0.8 * sum(costs):
            why = "That is everything, end to end: the first token comes out of prefill()."
        raise Wrong(f"time to the first token: the prompt takes {PROMPT} s, you measured {float(first):.3g} s. {why}")
    spans = [device.span(number, number) for number in range(2, 2 + steps)]
    least, most = (statistics.median(ends) for ends in zip(*spans[warm:], strict=True))
    if least <= float(each) <= most:
        return
    if math.isinf(least):
        why = "The clock stopped before the device had finished: call synchronize() before you read the end."
        raise Wrong(f"one token that follows takes some milliseconds, you measured {float(each):.3g} s. {why}")
    about = [(low + high) / 2 for low, high in spans]
    whole = device.calls[-1].done - device.calls[1].begun
    reasons = {
        "The first steps warm up caches and allocator: leave `warm` of them out.": statistics.median(about),
        "That is a mean, and one step here was disturbed: take the median.": statistics.mean(about[warm:]),
        "That is the mean of all steps: leave the first out and take the median.": statistics.mean(about),
        "That is end-to-end time over tokens, with the prefill in it: time the steps alone.": whole / new_tokens,
        "`warm` says how many steps do not count.": statistics.median(about[8:] or about),
    }
    why = min(reasons, key=lambda reason: abs(reasons[reason] - float(each)))
    near = abs(reasons[why] - float(each)) < 0.1 * reasons[why]
    raise Wrong(
        f"one token that follows, of {new_tokens}: between {least:.4f} s and {most:.4f} s, you measured "
        f"{float(each):.4g} s. {why if near else 'Time each step alone, and take the median of those that count.'}"
    )


# ---- decisions ------------------------------------------------------------------------------------------------------


@exercise("2.4.5", "ex-pareto")
def pareto(answer, random):
    points = {"slow": (9.0, 0.3), "poor": (2.0, 0.9), "beaten": (5.0, 0.6), "good": (4.0, 0.5), "late": (4.0, 0.7)}
    points |= {"twin": (4.0, 0.5), "worst": (9.5, 0.95)}
    hollow = {"cheap": (1.0, 9.0), "between": (5.0, 8.5), "near": (8.0, 8.4), "good": (9.0, 1.0)}  # no convex front
    close = {"a": (1.0, 2.0), "b": (1.0 + 1e-9, 2.0 - 1e-9), "c": (1.0 + 1e-9, 2.0), "d": (1.0, 2.0 + 1e-9)}
    curve = {f"of {n}": (float(n), 1 / n) for n in random.sample(range(1, 50), 30)}
    tables = [points, hollow, {"alone": (3.0, 3.0)}, close, curve]
    for number in (2, 5, 8, 12, 20):
        for _ in range(4):
            kind = random.choice([lambda: float(random.randint(-3, 6)), lambda: random.gauss(0, 100)])
            names = random.sample(range(1000), number)
            tables.append({f"m{name}": (kind(), kind()) for name in names})
    for table in tables:
        _front(answer(dict(table)), answer.own(table), table)
    return "what no other point beats, and nothing else."


def _front(came, right: list[str], points: dict) -> None:
    try:
        came = None if isinstance(came, (str, dict)) else [str(name) for name in came]
    except TypeError:
        came = None
    if came is None:
        raise Wrong(f"expected a list of names, got {shown(came)}. Is the return missing?")
    kept, wanted = set(came), set(right)
    why = "Each point that no other beats belongs to it, once, and no other."
    if "worst" in kept:
        why = "Less is better, in cost and in loss."
    elif {"late", "beaten"} & kept:
        why = "Equal cost and more loss is beaten: at least as good in both, better in one."
    elif len(came) == 1 < len(right):
        why = "The front is more than one winner: each point that none beats belongs to it."
    elif kept == {"poor", "slow"}:
        why = "Two equal points do not beat each other; and the front is more than the best of each axis."
    elif kept < wanted and {"cheap", "good"} <= kept:
        why = "A point may lie above the line between two others: one that is as good in both beats it, no line does."
    if kept != wanted or len(came) != len(right):
        raise Wrong(f"{points}: expected {right}, got {came}. {why}")
    if [points[name] for name in came] != [points[name] for name in right]:
        raise Wrong(f"{points}: expected the order of growing cost, {right}, got {came}.")


BASE = {
    "bits_per_byte": [0.50, 0.48, 0.47, 0.60],
    "low": [0.01, -0.002, 0.0, 0.1],
    "decode_ms": [5.0, 4.0, 6.0, 1.0],
    "decode_long_ms": [5.0, 20.0, 8.0, 9.0],
    "total": [100, 110, 900, 400],
    "active": [100, 110, 10, 60],
    "weight_bytes": [260, 220, 1800, 800],
    "kv_bytes_per_token": [0, 4, 1, 3],
    "state_bytes": [300, 0, 20, 0],
}


@exercise("2.4.5", "ex-decide")
def decide(answer, random):
    base = pd.DataFrame(BASE)
    # The same numbers under other names, so that a name typed in is wrong.
    tables = [base.set_axis(list(np.roll(["a", "b", "c", "d"], shift))) for shift in range(4)]
    answers = [answer(table.copy(), 2000.0, 100) for table in tables]
    if isinstance(answers[0], dict) and answers[0] and all(a == answers[0] for a in answers):
        raise Wrong(f"got {answers[0]!r} whatever the numbers are: read the names off the table, do not type them in.")
    for table, came in zip(tables, answers, strict=True):
        a, b, c, d = table.index
        hints = {
            ("quality", c): "That has the least bits per byte, but another ties with it and is faster: see `low`.",
            ("quality", d): "Fast, but not among those that tie with the best: `low` above 0 is a real loss.",
            ("long", d): "That is the fastest at the short context: a cache grows, read decode_long_ms.",
            ("many", c): "Active parameters work for a token, but all experts lie in memory: count weight_bytes.",
            ("many", b): "Each sequence has its own cache of context * kv_bytes_per_token: the weights alone do "
            "not decide.",
            ("many", d): "Each sequence has its own cache of context * kv_bytes_per_token, and its state.",
        }
        _decided(came, {"quality": b, "long": a, "many": a}, table, "", hints)
    asked = [(_light_and_heavy(), share * 10**10, 10_000) for share in (0.97, 1.03)]
    for table, memory_bytes, context in [*asked, *(_table(random) for _ in range(60))]:
        right = answer.own(table, memory_bytes, context)
        said = f"memory_bytes {memory_bytes:,}, context {context:,}, "
        _decided(answer(table.copy(), memory_bytes, context), right, table, said, {})
    return "each need is decided by its own column."


def _decided(came, right: dict[str, str], table: pd.DataFrame, said: str, hints: dict) -> None:
    if not hasattr(came, "keys") or set(came.keys()) != {"quality", "long", "many"}:
        raise Wrong(f'expected a dict with "quality", "long" and "many", got {shown(came)}.')
    for need, wanted in right.items():
        if str(came[need]) != wanted:
            named = hints.get((need, str(came[need])), "Read it off the table: the numbers decide, not the name.")
            raise Wrong(
                f"{need}: {said}expected {wanted!r} for\n{table.to_string()}\n  got {shown(came[need])}. {named}"
            )


def _light_and_heavy() -> pd.DataFrame:
    """Two models; above 10 GB the heavier one holds more sequences of 10,000 tokens, below 10 GB the lighter one."""
    table = pd.DataFrame(BASE).head(2).set_axis(["light", "heavy"])
    columns = ["weight_bytes", "kv_bytes_per_token", "state_bytes"]
    table[columns] = [[2_000_000_000, 0, 40_000_000], [8_000_000_000, 1000, 0]]
    return table


def _table(random) -> tuple[pd.DataFrame, int, int]:
    """Models of any number with a clear answer to each need: measured numbers, and columns that do not matter."""
    while True:
        number = random.randint(1, 7)
        drawn = {
            "bits_per_byte": [random.uniform(0.4, 0.7) for _ in range(number)],
            "decode_ms": [hundredths / 100 for hundredths in random.sample(range(100, 900), number)],
            "decode_long_ms": [hundredths / 100 for hundredths in random.sample(range(100, 2000), number)],
            "total": [random.randrange(10**8, 10**10) for _ in range(number)],
            "kv_bytes_per_token": [random.choice([0, 4096, 24_576, 131_072, 524_288]) for _ in range(number)],
            "state_bytes": [random.choice([20_000, 23_592_960, 170_524_672]) for _ in range(number)],
        }
        least = min(drawn["bits_per_byte"])
        near = [random.choice([-0.02, 0.0, 0.004, 0.03]) for _ in range(number)]
        drawn["low"] = [min(n, 0.0) if b == least else n for n, b in zip(near, drawn["bits_per_byte"], strict=True)]
        drawn["high"] = [low + random.uniform(0.01, 0.05) for low in drawn["low"]]
        drawn["active"] = [total // random.choice([1, 3, 10]) for total in drawn["total"]]
        drawn["weight_bytes"] = [total * random.choice([1, 2, 4]) for total in drawn["total"]]
        columns = random.sample(list(drawn), len(drawn))
        names = [f"model-{name}" for name in random.sample(range(100), number)]
        table = pd.DataFrame(drawn, index=names)[columns]
        if random.random() < 0.5:
            table = table.astype(float)
        context, memory_bytes = random.choice([0, 256, 8192, 100_000]), random.choice([8, 40, 130]) * 10**9
        each = table.kv_bytes_per_token * context + table.state_bytes
        sequences = sorted((memory_bytes - table.weight_bytes) / each, reverse=True)
        if sequences[0] >= 2 and (number == 1 or sequences[0] > sequences[1] + 1.5):
            return table, memory_bytes, context
