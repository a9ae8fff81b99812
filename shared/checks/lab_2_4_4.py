"""Checks of lab 2.4.4: each exercise on loads and logits of many shapes, and the usual mistakes by name."""

import math
from fractions import Fraction
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.checks import Wrong, agree, case, exercise, expect, shown, unpacked


def _normal(random, *shape: int) -> Tensor:
    """In float32, as all that this lab calls an answer with."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random.randrange(2**31)))


# ---- three kinds of router --------------------------------------------------------------------------------------

SHAPES = [(6, 5, 2), (1, 4, 1), (1, 3, 3), (2, 2, 1), (7, 8, 3), (5, 4, 4), (200, 8, 2), (40, 64, 8)]  # T, E, k


def _routing(random, bias: bool = False) -> list:
    """Cases of a router, for logits of each size; with a bias where the kind has one."""
    cases = []
    for shift in (0, 1, -1) if bias else (0, 30, -30):
        for T, E, k in SHAPES:
            logits = 2 * _normal(random, T, E) + shift
            more = {"bias": _normal(random, E) / 3} if bias else {}
            cases.append(case(f"{T} tokens, {E} experts, k = {k}", logits, k, **more))
    return cases


def _as_pair(answer):
    """The answer, with `Wrong` where it does not give what the lab dispatches by: two tensors, the first of indices."""

    def router(*args, **kwargs):
        came = answer(*args, **kwargs)
        experts, weights = unpacked(came, 2, "two tensors, the experts and their weights")
        if not isinstance(experts, Tensor) or not isinstance(weights, Tensor):
            raise Wrong(f"expected two tensors, the experts and their weights, got {shown(came)}.")
        if experts.is_floating_point() and not weights.is_floating_point():
            raise Wrong("the experts come first, then their weights: topk returns them the other way round.")
        if experts.dtype != torch.int64:
            raise Wrong(f"the experts are indices, in int64 as topk gives them, got {experts.dtype}.")
        return experts, weights

    router.own = answer.own
    return router


def _by(scores: Tensor, k: int, weights=lambda x: x) -> tuple[Tensor, Tensor]:
    """The k largest scores, and weights made of them."""
    largest, experts = scores.topk(k)
    return experts, weights(largest)


def _unit(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _in_other_orders(own) -> dict:
    def by_number(*args, **kwargs):
        experts, weights = own(*args, **kwargs)
        return experts.sort().values, weights.gather(-1, experts.argsort())

    why = "They are the right ones in another order: the largest comes first"
    return {
        f"{why}.": lambda *args, **kwargs: [part.flip(-1) for part in own(*args, **kwargs)],
        f"{why}, whatever its number.": by_number,
    }


@exercise("2.4.4", "ex-softmax-router")
def softmax_router(answer, random):
    mistakes = {
        "Those are scaled to sum to 1, as from a softmax over the chosen alone: this kind takes the softmax over all "
        "experts and keeps the probabilities as they are (softmax after the wrong step).": (
            lambda x, k: _by(x.softmax(-1), k, _unit)
        ),
        "Those are the logits: take the softmax.": _by,
        "That softmax runs over the tokens: the experts are the last dimension.": lambda x, k: _by(x.softmax(0), k),
        "Those are the smallest: topk takes the largest by itself.": lambda x, k: _by((-x).softmax(-1), k),
        "Each expert is scored by itself in that: a softmax makes them share 1.": lambda x, k: _by(x.sigmoid(), k),
    }
    agree(_as_pair(answer), _routing(random), mistakes | _in_other_orders(answer.own))
    return "probabilities over all experts, kept as they are: a token's weights sum to less than 1."


@exercise("2.4.4", "ex-topk-router")
def topk_router(answer, random):
    mistakes = {
        "That is the softmax over all experts: here it comes after the choice, over the k chosen (softmax after the "
        "wrong step).": lambda x, k: _by(x.softmax(-1), k),
        "That is a second softmax, over probabilities: the softmax is over the chosen logits.": (
            lambda x, k: _by(x.softmax(-1), k, lambda w: w.softmax(-1))
        ),
        "Those are the logits: take their softmax.": _by,
        "That softmax runs over the tokens: the k chosen are the last dimension.": (
            lambda x, k: _by(x, k, lambda w: w.softmax(0))
        ),
        "Those are the logits over their sum: take their softmax.": lambda x, k: _by(x, k, _unit),
    }
    agree(_as_pair(answer), _routing(random), mistakes | _in_other_orders(answer.own))
    return "a softmax over the chosen: a token's weights sum to 1."


def _biased(x, k, bias, score=torch.sigmoid, choose_by=None, weigh_by=None, scaled=lambda w, scores: _unit(w)):
    """The rule of the exercise, with its faults: functions of logits and bias, and how the weights are scaled."""
    scores = score(x)
    experts = (choose_by(x, bias) if choose_by else scores + bias).topk(k).indices
    return experts, scaled((weigh_by(x, bias) if weigh_by else scores).gather(-1, experts), scores)


@exercise("2.4.4", "ex-biased-router")
def biased_router(answer, random):
    def inside(x, bias):
        return (x + bias).sigmoid()

    mistakes = {
        "Those are weights from the biased scores: the bias decides who is chosen and has no part in the weights.": (
            partial(_biased, weigh_by=lambda x, bias: x.sigmoid() + bias)
        ),
        "The bias is not used in the choice.": partial(_biased, choose_by=lambda x, bias: x),
        "The bias is added to the logits: it belongs to the scores, after the sigmoid.": (
            partial(_biased, choose_by=inside, weigh_by=inside)
        ),
        "The bias is added to the logits in the choice: it belongs to the scores.": partial(_biased, choose_by=inside),
        "They are not scaled: divide by their sum.": partial(_biased, scaled=lambda w, scores: w),
        "Divide by the sum of the chosen, not of all scores.": (
            partial(_biased, scaled=lambda w, scores: w / scores.sum(-1, keepdim=True))
        ),
        "They are scaled by a softmax: divide by their sum.": partial(_biased, scaled=lambda w, scores: w.softmax(-1)),
        "That is a softmax: each expert is scored by itself, with a sigmoid.": (
            partial(_biased, score=lambda x: x.softmax(-1))
        ),
        "The bias is taken off: it is added to the scores.": partial(_biased, choose_by=lambda x, b: x.sigmoid() - b),
    }
    x = torch.tensor([[2.0, 1.0, 0.0], [-1.0, 0.5, 1.5]])
    fixed = [
        case("2 tokens, 3 experts, k = 2", x, 2, torch.tensor([0.0, -0.5, 0.0])),
        case("2 tokens, 3 experts, k = 2, no bias", x, 2, torch.zeros(3)),
        case("2 tokens, 3 experts, k = 1, a bias that decides by itself", x, 1, torch.tensor([-2.0, -1.0, -2.0])),
    ]
    agree(_as_pair(answer), _routing(random, bias=True) + fixed, mistakes | _in_other_orders(answer.own))
    return "the bias moves the choice; what a chosen expert says is its own score."


# ---- how uneven ---------------------------------------------------------------------------------------------------


def _loads(random) -> list[Tensor]:
    """Counts of the kinds that the lab has, and many with experts on both sides of 5 % of the mean."""
    loads = [
        torch.tensor([467, 200, 50, 35, 25, 20, 3, 0]),  # mean 100: two are below 5
        torch.tensor([6, 1, 1, 0]),
        torch.tensor([7, 7, 7, 7]),
        torch.tensor([0, 12]),
        torch.tensor([0, 10, 10, 10, 10]),
        torch.tensor([1, 25, 27, 27]),  # an expert at 5 % of the mean
        torch.tensor([310, 45, 0, 120, 7, 95, 1, 222]),
        torch.tensor([0] * 15 + [25_600]),
        torch.tensor([0, 7_000, 12_000, 48_000, 100, 35_302, 0, 0]),
    ]
    while len(loads) < 24:
        E = random.randint(3, 64)
        counts = [random.choice([*range(12), 40, 80, 100, 300]) for _ in range(E)]
        if not any(20 * E * count == sum(counts) for count in counts):  # rounding decides there
            loads.append(torch.tensor(counts))
    return loads


def _entropy(counts: Tensor) -> Tensor:
    return torch.special.entr(counts / counts.sum()).sum()


FOUR = {  # number -> explanation -> the mistake, for counts in float64
    "MaxVio": {
        "Subtract 1: an even load has MaxVio 0.": lambda c: c.max() / c.mean(),
        "The largest load over the fair one, not over the total.": lambda c: c.max() / c.sum() - 1,
        "Over the mean, not over the median.": lambda c: c.max() / c.median() - 1,
        "The largest, not the one furthest from the mean: an idle expert delays nobody.": lambda c: (
            (c / c.mean() - 1).abs().max()
        ),
    },
    "the coefficient of variation": {
        "The deviation is that of all experts, not of a sample: correction=0.": lambda c: c.std() / c.mean(),
        "Divide by the mean: the spread of the counts depends on how many tokens were counted.": lambda c: c.std(
            correction=0
        ),
        "That is its square: take the root.": lambda c: c.var(correction=0) / c.mean() ** 2,
        "That is the mean distance: the standard deviation is the root of the mean square.": lambda c: (
            (c / c.mean() - 1).abs().mean()
        ),
    },
    "the entropy over log E": {
        "Divide by log E, so that an even load has 1.": _entropy,
        "The sign: entropy is minus the sum of p log p.": lambda c: -_entropy(c) / math.log(len(c)),
        "Divide by the log of all E experts, not of those that were chosen.": lambda c: (
            _entropy(c) / (c > 0).sum().log()
        ),
    },
    "the number of dead experts, below 5 % of the mean": {
        "An expert with 5 % of the mean is not below it.": lambda c: (c <= 0.05 * c.mean()).sum(),
        "More is dead than what was never chosen.": lambda c: (c == 0).sum(),
        "That is 5 % of all choices, not of the mean.": lambda c: (c < 0.05 * c.sum()).sum(),
        "That is 5 % of the largest, not of the mean.": lambda c: (c < 0.05 * c.max()).sum(),
        "That is their share: count them.": lambda c: (c < 0.05 * c.mean()).double().mean(),
    },
}


@exercise("2.4.4", "ex-imbalance")
def imbalance(answer, random):
    for counts in _loads(random):
        came = unpacked(answer(counts.clone()), 4, f"four numbers ({', '.join(FOUR)})")
        for (name, mistakes), value, right in zip(FOUR.items(), came, answer.own(counts), strict=True):
            named = f"{name} of {shown(counts.tolist())}"
            if value != value:
                raise Wrong(f"{named}: got nan. 0 log 0 is 0: torch.special.entr knows.")
            wrong = {why: partial(mistake, counts.double()) for why, mistake in mistakes.items()}
            expect(value, right, named, wrong, rel=1e-4)  # float32 leaves that of MaxVio near 0
    return "four numbers of a load; 0, 0, 1 and 0 when it is even."


# ---- the loss that balances ---------------------------------------------------------------------------------------


def _loss(layers, top_k, real=None, pooled=False, padding="taken out", f="counted", P="mean", scale=lambda L, E, k: 1):
    """The rule of the exercise, with its faults."""
    real = torch.ones(layers.shape[1], dtype=torch.bool) if real is None else real
    layers = {"taken out": layers[:, real], "zero": layers * real[:, None]}.get(padding, layers)
    probabilities = (layers.flatten(0, 1)[None] if pooled else layers).softmax(-1)
    E = layers.shape[-1]
    mean = probabilities.mean(1)
    counted = F.one_hot(probabilities.topk(top_k).indices, E).sum(2).to(mean.dtype).mean(1)
    factors = {"counted": counted, "mean": mean}
    return E * (factors[f] * factors[P]).sum(-1).mean() * scale(len(layers), E, top_k)


def _in_list(answer):
    """The answer as a function of one tensor (layers, T, E), so that its gradient can be had; it is called with a list.

    `Wrong` where it does not give what a training step needs: a scalar that has a gradient.
    """

    def loss(layers, *args, **kwargs):
        came = answer(list(layers), *args, **kwargs)
        if not isinstance(came, Tensor) or came.dim():
            raise Wrong(f"expected a scalar, a tensor without dimensions, got {shown(came)}.")
        if layers.requires_grad and not came.requires_grad:
            raise Wrong("the loss has no gradient: P is the mean probability, and the logits have to reach it.")
        return came

    loss.own = lambda layers, *args, **kwargs: answer.own(list(layers), *args, **kwargs)
    return loss


def _made() -> tuple[list, list]:
    """What the lab makes by hand: a hair's preference, and f against P; and cases whose gradient is next to nothing."""
    T, E = 64, 16
    even = torch.eye(E).repeat(T // E, 1) * 0.01
    full = torch.zeros(T, E)
    full[:, :2] = 50.0
    half = torch.full((T, E), -50.0)
    half[:, : E // 2] = 0.01 * torch.randn(T, E // 2, generator=torch.Generator().manual_seed(1))
    near = torch.zeros(T, E)
    near[:, 0] = 1e-3
    unsure, sure = torch.tensor([0.51, 0.49]).log(), torch.tensor([0.0, 30.0])
    steep = [
        case("a preference by a hair", near[None], 1),
        case("f and P that disagree", torch.cat([unsure.expand(60, 2), sure.expand(40, 2)])[None], 1),
    ]
    return steep, [
        case("an even load", (even + even.roll(1, 1))[None], 2),
        case("all tokens on the same two experts", full[None], 2),
        case("two layers that use one half each", torch.stack([half, half.roll(E // 2, 1)]), 2),
        case("all experts chosen", near[None], E),
    ]


@exercise("2.4.4", "ex-balancing-loss")
def balancing_loss(answer, random):
    layers = 2 * _normal(random, 2, 8, 4)
    layers[1, :, 2] += 1.5
    real = torch.tensor([False, True, True, False, True, True, True, False])
    cases = [
        case("two layers, 8 tokens, k = 2", layers, 2),
        case("the same with three tokens of padding", layers, 2, real),
        case("the same with no padding to leave out", layers, 2, real=torch.ones(8, dtype=torch.bool)),
        case("one layer, 8 tokens, k = 1", layers[:1], top_k=1),
        case("one layer and one token", layers[:1, :1], 1),
        case("a layer with one token that is not padding", layers[1:], 2, torch.arange(8) == 3),
    ]
    for L, T, E, k in ((3, 12, 5, 1), (4, 9, 6, 3), (1, 20, 3, 2), (3, 64, 16, 4), (2, 40, 8, 2)):
        logits = 2 * _normal(random, L, T, E) + _normal(random, L, 1, E)
        real = torch.tensor([random.random() < 0.6 for _ in range(T - 1)] + [True])
        what = f"{L} layers, {T} tokens, {E} experts, k = {k}"
        cases += [case(what, logits, top_k=k), case(f"{what}, padding", logits, k, real=real)]
    steep, flat = _made()
    mistakes = {
        "The layers are pooled first: then two layers that use one half of the experts each score as perfect. Multiply "
        "f and P layer by layer.": partial(_loss, pooled=True),
        "The layers are added up: take their mean.": partial(_loss, scale=lambda L, E, k: L),
        "E is missing: an even load would score k / E.": partial(_loss, scale=lambda L, E, k: 1 / E),
        "f counts choices over tokens, so it sums to k: do not divide by k.": partial(
            _loss, scale=lambda L, E, k: 1 / k
        ),
        "Those are probabilities twice: f is counted from the choices.": partial(_loss, f="mean"),
        "Those are counts twice: P is the mean probability, which has the gradient.": partial(_loss, P="counted"),
        "f counts only the first choice: all k of a token count.": (
            lambda layers, top_k, real=None: _loss(layers, 1, real)
        ),
        "Padding is counted: leave those tokens out of f and of P, and out of T.": partial(_loss, padding="counted"),
        "Padding is left out of one of f and P, or still counted in T: take it out before the softmax's mean.": (
            partial(_loss, padding="zero")
        ),
        "Those are the padded tokens: real is True at the others.": (
            lambda layers, top_k, real=None: _loss(layers, top_k, None if real is None else ~real)
        ),
        "Padding is still counted in T: divide by the number of real tokens.": lambda layers, top_k, real=None: (
            _loss(layers, top_k, real) * (1 if real is None else real.double().mean() ** 2)
        ),
    }
    agree(_in_list(answer), cases + steep, mistakes, gradients=True)
    agree(_in_list(answer), flat, mistakes)
    return "each layer by itself; f is counted, P has the gradient, padding has no part."


# ---- who is dropped -----------------------------------------------------------------------------------------------


def _kept(experts, E, factor, by_rank=True, last=False, rounded=math.ceil, every=True, apart=False):
    """The rule of the exercise by its definition, choice for choice, with its faults."""
    T, k = experts.shape
    room = rounded(factor * (T * k if every else T) / E)
    order = [(t, r) for r in range(k) for t in range(T)] if by_rank else [(t, r) for t in range(T) for r in range(k)]
    taken, kept = {}, torch.zeros(T, k, dtype=torch.bool)
    for t, r in reversed(order) if last else order:
        queue = int(experts[t, r]), r * apart
        kept[t, r] = taken.get(queue, 0) < room
        taken[queue] = taken.get(queue, 0) + 1
    return kept


def _queues(random) -> list:
    """Cases with even and uneven loads, whose capacity is the same in whatever order its factors are multiplied."""
    seven = torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1], [2, 0], [0, 3], [1, 0]])
    cases = [case(f"7 tokens, 4 experts, factor {factor}", seven, 4, factor) for factor in (1.0, 1.25, 4.0, 0.25)]
    while len(cases) < 40:
        T, E = random.choice([1, 2, 3, 5, 8, 12, 30]), random.choice([2, 3, 4, 5, 7, 8, 16])
        k, factor = random.randint(1, min(E, 4)), random.choice([0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
        if E & (E - 1) and (Fraction(factor) * T * k / E).denominator == 1:
            continue  # rounding would decide
        favour = random.choice([0.0, 1.0, 3.0]) * torch.linspace(random.choice([-1, 1]), 0, E)
        experts = (_normal(random, T, E) + favour).topk(k).indices
        cases.append(case(f"{T} tokens, {E} experts, k = {k}, factor {factor}", experts, E, factor))
    crowd = (_normal(random, 1000, 16) + torch.linspace(1, -1, 16)).topk(2).indices
    return [*cases, case("1,000 tokens, 16 experts, k = 2, factor 1.25", crowd, 16, 1.25)]


@exercise("2.4.4", "ex-within-capacity")
def within_capacity(answer, random):
    mistakes = {
        "That is the opposite: True means kept.": lambda *args: ~answer.own(*args),
        "The wrong tokens are dropped: the earlier one is served first.": partial(_kept, last=True),
        "Token by token: all first choices are placed before any second choice.": partial(_kept, by_rank=False),
        "The capacity counts all T * k choices, not T tokens.": partial(_kept, every=False),
        "Round the capacity up.": partial(_kept, rounded=int),
        "Round the capacity up, not to the nearest.": partial(_kept, rounded=round),
        "Round the capacity up: where it is whole, it stays.": partial(_kept, rounded=lambda exact: int(exact) + 1),
        "Every rank has room of its own: the k choices of all tokens share an expert's capacity.": partial(
            _kept, apart=True
        ),
        "One too many is kept: the capacity is the most that an expert takes.": partial(
            _kept, rounded=lambda exact: math.ceil(exact) + 1
        ),
    }
    agree(answer, _queues(random), mistakes)
    return "first choices first, then the order of the tokens, and one room for all ranks."


# ---- a controller -------------------------------------------------------------------------------------------------


@exercise("2.4.4", "ex-bias-step")
def bias_step(answer, random):
    def moved(by):
        return lambda bias, counts, u: bias + u * by(counts.double().mean() - counts, counts.double())

    size = "The size of the error counts in that: only its sign does"
    still = "An expert at the mean stays where it is: sign(0) is 0"
    mistakes = {
        "The bias moves in the wrong direction: an expert with too little load needs a larger one.": (
            moved(lambda less, counts: -less.sign())
        ),
        f"{size}.": moved(lambda less, counts: less),
        f"{size}, also of the relative one.": moved(lambda less, counts: less / counts.mean()),
        f"{size}, and tanh is no sign.": moved(lambda less, counts: less.tanh()),
        f"{still}.": moved(lambda less, counts: torch.where(less >= 0, 1.0, -1.0)),
        f"{still}, not -1.": moved(lambda less, counts: torch.where(less > 0, 1.0, -1.0)),
        "That is the change alone: add it to the bias.": (
            lambda bias, counts, u: u * (counts.double().mean() - counts).sign()
        ),
        "Compare with the mean, not with the median.": moved(lambda less, counts: (counts.median() - counts).sign()),
    }
    start = torch.tensor([0.1, -0.2, 0.0, 0.3])
    cases = [
        case("the counts 90, 10, 50, 50 and u = 0.01", start, torch.tensor([90, 10, 50, 50]), 0.01),
        case("the counts 1, 5, 3 and u = 0.1", torch.zeros(3), torch.tensor([1, 5, 3]), 0.1),
        case("the counts 3, 4, 4, 4 and u = 0.5", torch.zeros(4), torch.tensor([3, 4, 4, 4]), u=0.5),
        case("an even load", start, torch.tensor([8, 8, 8, 8]), u=0.01),
        case("a load next to even", torch.zeros(5), torch.tensor([1000, 1001, 999, 990, 1010]), 0.001),
        case("the counts 1000, 1001, 999, 0, 0, 0", torch.zeros(6), torch.tensor([1000, 1001, 999, 0, 0, 0]), 0.001),
    ]
    for E in (2, 3, 8, 16, 16, 16, 40):
        bias = _normal(random, E) / 100
        counts = torch.tensor([random.choice([0, 3, 4, 5, random.randrange(5000)]) for _ in range(E)])
        u = random.choice([0.0001, 0.001, 0.003, 0.01, 0.1])
        cases.append(case(f"{E} experts and u = {u}", bias, counts, u))

    def as_tensor(*args, **kwargs):
        came = answer(*args, **kwargs)
        if not isinstance(came, Tensor):
            raise Wrong(f"expected a tensor (E,), the next bias, got {shown(came)}.")
        return came

    as_tensor.own = answer.own
    agree(as_tensor, cases, mistakes)
    return "up where the load was low, down where it was high, always by u."
