"""Checks of lab 2.4.5: each exercise on small cases against its definition, and the usual mistakes by name."""

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from shared.checks import Wrong, exercise, expect
from shared.checks.device import Device


def _pair(result, what: str, length: int = 2):
    if not isinstance(result, (tuple, list)) or len(result) != length:
        raise Wrong(f"expected {what}, got {result!r}.")
    return result


@exercise("2.4.5", "ex-windows")
def windows(answer, random):
    for tokens, window, stride in ((5, 8, 8), (8, 8, 8), (20, 8, 8), (21, 8, 3), (9, 4, 1), (0, 4, 2)):
        case = f"{tokens} tokens, window {window}, stride {stride}"
        found = answer(tokens, window, stride)
        if not isinstance(found, list) or not all(isinstance(w, tuple) and len(w) == 3 for w in found):
            raise Wrong(f"{case}: expected a list of (start, end, first), got {found!r}.")
        scored = [token for _, end, first in found for token in range(first, end + 1)]
        if len(set(scored)) < len(scored):
            twice = next(token for token in scored if scored.count(token) > 1)
            raise Wrong(f"{case}: token {twice} is scored twice. A window scores what no earlier window has scored.")
        if 0 in scored:
            raise Wrong(f"{case}: token 0 is scored, and nothing stands before it. It is read only.")
        if missing := sorted(set(range(1, tokens + 1)) - set(scored)):
            end = "The rest that fills no whole window counts too." if missing[-1] == tokens else ""
            raise Wrong(f"{case}: token {missing[0]} is never scored ({len(missing)} in all are not). {end}".strip())
        if scored != list(range(1, tokens + 1)):
            raise Wrong(f"{case}: expected tokens 1 to {tokens} in order, got {scored}.")
        for start, end, first in found:
            if end - start > window:
                raise Wrong(
                    f"{case}: ({start}, {end}, {first}) reads {end - start} tokens, and the window is {window}."
                )
            if start < 0 or first <= start:
                raise Wrong(f"{case}: ({start}, {end}, {first}) scores a token that it has no context for.")
            if first > 1 and end - first + 1 > stride:
                raise Wrong(f"{case}: ({start}, {end}, {first}) scores more than {stride} new tokens.")
        if any(end - start < min(window, tokens) for start, end, _ in found):
            raise Wrong(
                f"{case}: the window {found[-1]} is shorter than {window}. Let it reach back: its tokens deserve as "
                "much context as the others."
            )
    return "every token is scored once, with as much context as the window allows."


@exercise("2.4.5", "ex-window-nll")
def window_nll(answer, random):
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(7, 11, generator=generator, dtype=torch.float64)
    ids = torch.randint(11, (8,), generator=generator)
    each = F.cross_entropy(logits, ids[1:], reduction="none")
    unshifted = F.cross_entropy(logits, ids[:-1], reduction="none")
    for new in (3, 7):
        mistakes = {
            "That is the window's mean loss times its new tokens: the context's tokens are easier or harder than the "
            "new ones, so score the new ones by themselves.": each.mean().item() * new,
            "All tokens of the window are scored: the context was scored by an earlier window.": each.sum().item(),
            "These are the first tokens of the window: the new ones stand at its end.": each[:new].sum().item(),
            "That is the mean: a sum is wanted, since windows have different numbers of new tokens.": each[-new:]
            .mean()
            .item(),
            "Each row of logits predicts the next token: compare it with ids[1:], not ids[:-1].": unshifted[-new:]
            .sum()
            .item(),
            "These are bits: nats are wanted, the natural logarithm.": each[-new:].sum().item() / math.log(2),
            "The sign is wrong: a likelihood is below 1 and its logarithm negative.": -each[-new:].sum().item(),
        }
        expect(answer(logits, ids, new), each[-new:].sum().item(), f"{new} new tokens of 7", mistakes)
    return "the new tokens, each against the row before it, summed in nats."


@exercise("2.4.5", "ex-yardsticks")
def yardsticks(answer, random):
    texts = ["Le mètre est défini à Paris.", "a b", "A whole sentence, in six words."]
    nll, tokens = [40.0, 3.0, 11.5], [17, 3, 9]
    nats, size = sum(nll), [len(text.encode()) for text in texts]
    words = [len(text.split()) for text in texts]
    bits = lambda total, sizes: total / math.log(2) / sum(sizes)  # noqa: E731
    came = _pair(answer(nll, tokens, texts), "token perplexity, word perplexity and bits per byte", 3)
    averaged = "is averaged over documents: a short one would count as much as a long one. Sum nats and tokens first."
    expect(
        came[0],
        math.exp(nats / sum(tokens)),
        "token perplexity of three documents",
        {
            f"It {averaged}": float(np.mean([math.exp(n / t) for n, t in zip(nll, tokens, strict=True)])),
            f"The loss {averaged}": math.exp(float(np.mean([n / t for n, t in zip(nll, tokens, strict=True)]))),
            "That is the mean loss: perplexity is its exponential.": nats / sum(tokens),
            "Nats belong to exp, bits to a power of two.": 2 ** (nats / sum(tokens)),
        },
    )
    expect(
        came[1],
        math.exp(nats / sum(words)),
        "word perplexity",
        {
            "It is per token: divide the same nats by the number of words.": math.exp(nats / sum(tokens)),
            "It is per character: words are what white space separates.": math.exp(nats / sum(map(len, texts))),
        },
    )
    expect(
        came[2],
        bits(nats, size),
        "bits per byte",
        {
            "Characters are counted, not bytes: é has two bytes in UTF-8.": bits(nats, map(len, texts)),
            "These are nats: a bit is log(2) nats.": nats / sum(size),
            "It is per token, not per byte.": bits(nats, tokens),
            f"It {averaged}": float(np.mean([bits(n, [s]) for n, s in zip(nll, size, strict=True)])),
        },
    )
    return "one sum of nats over tokens, words and bytes."


@exercise("2.4.5", "ex-paired-interval")
def paired_interval(answer, random):
    rng = np.random.default_rng(3)
    size = rng.integers(50, 2000, 80)
    b = size * rng.normal(0.5, 0.15, 80)  # documents differ much,
    a = b + size * rng.normal(0.02, 0.02, 80) + 300 / size  # the models little; short documents count otherwise
    draws = 3000
    drawn = rng.integers(80, size=(2, draws, 80))
    right = (a - b)[drawn[0]].sum(1) / math.log(2) / size[drawn[0]].sum(1)
    low, high = np.quantile(right, (0.025, 0.975))
    width, centre = high - low, float((a - b).sum() / math.log(2) / size.sum())
    apart = a[drawn[0]].sum(1) / size[drawn[0]].sum(1) - b[drawn[1]].sum(1) / size[drawn[1]].sum(1)
    came = [float(x) for x in _pair(answer(a, b, size, draws, 1), "two numbers, low and high")]
    if not came[0] < came[1]:
        raise Wrong(f"expected low < high, got {came}.")
    middle, spread = sum(came) / 2, came[1] - came[0]
    if abs(middle + centre) < width / 4:
        raise Wrong(f"expected about ({low:.4f}, {high:.4f}), got ({came[0]:.4f}, {came[1]:.4f}). That is b minus a.")
    ratios = -float(np.mean((b - a) / size)) / math.log(2)
    if abs(middle - ratios) < 0.15 * width < abs(middle - (low + high) / 2):
        raise Wrong(
            f"expected about ({low:.4f}, {high:.4f}), got ({came[0]:.4f}, {came[1]:.4f}). Sum nats and bytes of a draw "
            "first, then divide: a mean of ratios weighs short documents too much."
        )
    reasons = [
        (width / 80**0.5, "That interval shrinks as if every draw were a new experiment: take quantiles of the draws."),
        (float(np.ptp(np.quantile(apart, (0.025, 0.975)))) / math.log(2), _UNPAIRED),
        (float(np.ptp(np.quantile(right, (0.05, 0.95)))), "That is a 90 % interval: leave 2.5 % out at each end."),
        (width * math.log(2), "These are nats per byte: a bit is log(2) nats."),
    ]
    if abs(spread - width) > 0.09 * width:
        why = min(reasons, key=lambda r: abs(math.log(spread / r[0])))
        named = why[1] if abs(math.log(spread / why[0])) < 0.12 else "Take their 2.5 % and 97.5 % quantiles."
        raise Wrong(
            f"expected about ({low:.4f}, {high:.4f}), {width:.4f} wide, got ({came[0]:.4f}, {came[1]:.4f}), "
            f"{spread:.4f} wide. {named}"
        )
    if abs(middle - (low + high) / 2) > 0.12 * width:
        raise Wrong(
            f"expected about ({low:.4f}, {high:.4f}), got ({came[0]:.4f}, {came[1]:.4f}): right width, wrong place."
        )
    return "documents are drawn once for both models, and sums are divided."


_UNPAIRED = (
    "The two models got different documents: then the interval shows how much documents differ. Draw once, for both."
)


@exercise("2.4.5", "ex-first-and-decode")
def first_and_decode(answer, random):
    device, calls = Device(queue=3.0), {"prefill": 0, "step": 0}

    def prefill():
        calls["prefill"] += 1
        device.work(4.0)

    def step():  # the first ones are slow, and one is disturbed
        i, calls["step"] = calls["step"], calls["step"] + 1
        device.work(cost[i] if i < len(cost) else 1.0)

    cost = [1.0 if i < 8 else 0.2 + 0.01 * i + 2 * (i == 15) for i in range(19)]
    with device.clock():
        came = answer(prefill, step, device.synchronize, 20)
    first, each = _pair(came, "two numbers, seconds to the first token and of one that follows")
    counted = cost[8:]
    if first < 0.1 or each < 0.01:
        raise Wrong(
            f"reading the prompt takes 4 s and a step about 0.3 s, you measured {first:.3g} s and {each:.3g} s. The "
            "clock stopped before the device had finished: call synchronize() before you read the end."
        )
    expect(
        first,
        4.001,
        "time to the first token",
        {
            "It waited for what the device had still to do from before: synchronise before you start the clock.": 7.001,
            "That is everything, end to end: the first token comes out of prefill().": 4.001 + sum(cost) + 19 * 0.001,
        },
        rel=1e-6,
    )
    if calls != {"prefill": 1, "step": 19}:
        raise Wrong(
            f"20 new tokens: expected 1 prefill and 19 steps, saw {calls['prefill']} and {calls['step']}. "
            "The prefill makes the first token."
        )
    expect(
        each,
        float(np.median(counted)) + 0.001,
        "one token that follows",
        {
            "The first steps warm up caches and allocator: leave `warm` of them out.": float(np.median(cost)) + 0.001,
            "That is a mean, and one step in a hundred is interrupted: take the median.": float(np.mean(counted))
            + 0.001,
            "That is the mean of all steps: leave the first out and take the median.": float(np.mean(cost)) + 0.001,
            "That is end-to-end time over tokens, with the prefill in it: time the steps alone.": (
                4.001 + sum(cost) + 0.019
            )
            / 20,
        },
        rel=1e-6,
    )
    return "prefill and steps apart, synchronised, the warm-up left out."


@exercise("2.4.5", "ex-pareto")
def pareto(answer, random):
    points = {"slow": (9.0, 0.3), "poor": (2.0, 0.9), "beaten": (5.0, 0.6), "good": (4.0, 0.5), "late": (4.0, 0.7)}
    points |= {"twin": (4.0, 0.5), "worst": (9.5, 0.95)}
    right = ["poor", "good", "twin", "slow"]
    came = answer(dict(points))
    if not isinstance(came, (list, tuple)) or not all(isinstance(name, str) for name in came):
        raise Wrong(f"expected a list of names, got {came!r}.")
    why = ""
    if "worst" in came:
        why = "Less is better, in cost and in loss."
    elif {"late", "beaten"} & set(came):
        why = "Equal cost and more loss is beaten: at least as good in both, better in one."
    elif set(came) == {"poor", "slow"}:
        why = "Two equal points do not beat each other; and the front is more than the best of each axis."
    elif len(came) == 1:
        why = "The front is more than one winner: each point that none beats belongs to it."
    if set(came) != set(right):
        raise Wrong(f"{points}: expected {right}, got {list(came)}. {why}".strip())
    if [points[name] for name in came] != [points[name] for name in right]:
        raise Wrong(f"expected the order of growing cost, {right}, got {list(came)}.")
    return "what no other point beats, and nothing else."


@exercise("2.4.5", "ex-decide")
def decide(answer, random):
    base = pd.DataFrame(
        {
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
    )
    # The same numbers under other names, so that a name typed in is wrong.
    tables = [base.set_axis(list(np.roll(["a", "b", "c", "d"], shift))) for shift in range(4)]
    answers = [answer(table.copy(), 2000.0, 100) for table in tables]
    if isinstance(answers[0], dict) and answers[0] and all(a == answers[0] for a in answers):
        raise Wrong(f"got {answers[0]!r} whatever the numbers are: read the names off the table, do not type them in.")
    for table, came in zip(tables, answers, strict=True):
        a, b, c, d = table.index
        if not isinstance(came, dict) or set(came) != {"quality", "long", "many"}:
            raise Wrong(f'expected a dict with "quality", "long" and "many", got {came!r}.')
        for need, right in {"quality": b, "long": a, "many": a}.items():
            if came[need] == right:
                continue
            hints = {
                ("quality", c): "That has the least bits per byte, but another ties with it and is faster: see `low`.",
                ("quality", d): "Fast, but not among those that tie with the best: `low` above 0 is a real loss.",
                ("long", d): "That is the fastest at the short context: a cache grows, read decode_long_ms.",
                ("many", c): "Active parameters work for a token, but all experts lie in memory: count weight_bytes.",
                ("many", b): "Each sequence has its own cache of context * kv_bytes_per_token: the weights alone do "
                "not decide.",
                ("many", d): "Each sequence has its own cache of context * kv_bytes_per_token, and its state.",
            }
            named = hints.get((need, came[need]), "Read it off the table: the numbers decide, not the name.")
            raise Wrong(f"{need}: expected {right!r} for\n{table.to_string()}\n  got {came[need]!r}. {named}")
    return "each need is decided by its own column."
