"""Checks of lab 2.4.4: each exercise on small random cases against the definition, and the usual mistakes by name."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.checks import Wrong, exercise, expect


def _logits(seed: int, T: int = 6, E: int = 5) -> Tensor:
    return 2 * torch.randn(T, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _routed(came, T: int, k: int) -> tuple[Tensor, Tensor]:
    """The experts and weights of an answer; `Wrong` if they are not that."""
    if not isinstance(came, (tuple, list)) or len(came) != 2 or not all(isinstance(x, Tensor) for x in came):
        raise Wrong(f"expected two tensors, the experts and their weights, got {came!r}.")
    experts, weights = came
    if experts.is_floating_point() and not weights.is_floating_point():
        raise Wrong("the experts come first, then their weights: topk returns them the other way round.")
    for what, tensor in (("experts", experts), ("weights", weights)):
        if tensor.shape != (T, k):
            raise Wrong(f"{what}: expected the shape {(T, k)}, one row per token, got {tuple(tensor.shape)}.")
    return experts, weights


def _judge(answer, logits: Tensor, right: tuple[Tensor, Tensor], mistakes: dict, *more) -> None:
    T, k = right[0].shape
    experts, weights = _routed(answer(logits.clone(), k, *more), T, k)
    if not torch.equal(experts, right[0]):
        reason = next((f" {why}" for why, (other, _) in mistakes.items() if torch.equal(experts, other)), "")
        if not reason and torch.equal(experts.sort().values, right[0].sort().values):
            reason = " They are the right ones in another order: the largest comes first."
        raise Wrong(f"experts of {T} tokens: expected {right[0].tolist()}, got {experts.tolist()}.{reason}")
    values = {why: (lambda w=wrong: w) for why, (_, wrong) in mistakes.items()}
    expect(weights, right[1], f"weights of {T} tokens", values)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    weights, experts = scores.topk(k)
    return experts, weights


@exercise("2.4.4", "ex-softmax-router")
def softmax_router(answer, random):
    logits = _logits(1)
    experts, weights = right = _top(logits.softmax(-1), 2)
    mistakes = {
        "Those are scaled to sum to 1, as from a softmax over the chosen alone: this kind takes the softmax over all "
        "experts and keeps the probabilities as they are (softmax after the wrong step).": (
            experts,
            weights / weights.sum(-1, keepdim=True),
        ),
        "Those are the logits: take the softmax.": _top(logits, 2),
        "That softmax runs over the tokens: the experts are the last dimension.": _top(logits.softmax(0), 2),
        "Those are the smallest: topk takes the largest by itself.": _top(-logits, 2),
    }
    _judge(answer, logits, right, mistakes)
    return "probabilities over all experts, kept as they are: a token's weights sum to less than 1."


@exercise("2.4.4", "ex-topk-router")
def topk_router(answer, random):
    logits = _logits(2)
    experts, largest = _top(logits, 2)
    probabilities = logits.softmax(-1)
    mistakes = {
        "That is the softmax over all experts: here it comes after the choice, over the k chosen (softmax after the "
        "wrong step).": (experts, probabilities.gather(1, experts)),
        "That is a second softmax, over probabilities: the softmax is over the chosen logits.": (
            experts,
            probabilities.gather(1, experts).softmax(-1),
        ),
        "Those are the logits: take their softmax.": (experts, largest),
        "That softmax runs over the tokens: the k chosen are the last dimension.": (experts, largest.softmax(0)),
    }
    _judge(answer, logits, (experts, largest.softmax(-1)), mistakes)
    return "a softmax over the chosen: a token's weights sum to 1."


@exercise("2.4.4", "ex-biased-router")
def biased_router(answer, random):
    logits, k = _logits(3), 2
    bias = torch.tensor([0.6, -0.3, 0.0, 0.4, -0.5], dtype=torch.float64)
    scores = logits.sigmoid()
    unit = lambda w: w / w.sum(-1, keepdim=True)  # noqa: E731
    experts, biased = _top(scores + bias, k)
    plain = scores.gather(1, experts)
    inside = _top((logits + bias).sigmoid(), k)
    mistakes = {
        "Those are weights from the biased scores: the bias decides who is chosen and has no part in the weights.": (
            experts,
            unit(biased),
        ),
        "The bias is not used in the choice.": (_top(scores, k)[0], unit(_top(scores, k)[1])),
        "The bias is added to the logits: it belongs to the scores, after the sigmoid.": (inside[0], unit(inside[1])),
        "They are not scaled: divide by their sum.": (experts, plain),
        "Divide by the sum of the chosen, not of all scores.": (experts, plain / scores.sum(-1, keepdim=True)),
        "That is a softmax: each expert is scored by itself, with a sigmoid.": (
            _top(logits.softmax(-1) + bias, k)[0],
            unit(logits.softmax(-1).gather(1, experts)),
        ),
    }
    _judge(answer, logits, (experts, unit(plain)), mistakes, bias)
    return "the bias moves the choice; what a chosen expert says is its own score."


@exercise("2.4.4", "ex-imbalance")
def imbalance(answer, random):
    counts = torch.tensor([40, 30, 20, 9, 1, 0])  # mean 16.67: 5 % of it is 0.83
    load = counts.double() / counts.double().mean()
    share = load / len(load)
    entropy = torch.special.entr(share).sum().item()
    right = (load.max().item() - 1, load.std(correction=0).item(), entropy / math.log(6), 1)
    came = answer(counts.clone())
    if not isinstance(came, (tuple, list)) or len(came) != 4:
        raise Wrong(f"expected four numbers (MaxVio, variation, entropy, dead), got {came!r}.")
    explained = (
        {
            "Subtract 1: an even load has MaxVio 0.": load.max().item(),
            "The largest load over the fair one, not over the total.": share.max().item() - 1,
        },
        {
            "The deviation is that of all experts, not of a sample: correction=0.": load.std().item(),
            "Divide by the mean: the spread of the counts depends on how many tokens were counted.": (
                counts.double().std(correction=0).item()
            ),
            "That is its square: take the root.": load.var(correction=0).item(),
        },
        {
            "Divide by log E, so that an even load has 1.": entropy,
            "The sign: entropy is minus the sum of p log p.": -entropy / math.log(6),
            "Not a number: 0 log 0 is 0. torch.special.entr knows.": float("nan"),
        },
        {
            "Dead is below 5 % of the mean, not only what was never chosen or hardly.": int((share < 0.05).sum()),
            "That is their share: count them.": 1 / 6,
        },
    )
    what = ("MaxVio", "the coefficient of variation", "the entropy over log E", "the number of dead experts")
    for name, value, wanted, mistakes in zip(what, came, right, explained, strict=True):
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, float) and math.isnan(value):
            raise Wrong(f"{name} of {counts.tolist()}: got nan. 0 log 0 is 0: torch.special.entr knows.")
        expect(value, wanted, f"{name} of {counts.tolist()}", mistakes, rel=1e-6)
    even = answer(torch.full((4,), 7))
    expect(even[3], 0, "dead experts of an even load")
    return "four numbers of a load; 0, 0, 1 and 0 when it is even."


def _layer_loss(logits: Tensor, k: int, real: Tensor | None = None, E: int | None = None) -> Tensor:
    probabilities = logits.softmax(-1) if real is None else logits.softmax(-1)[real]
    f = F.one_hot(probabilities.topk(k).indices, logits.shape[1]).sum(1).to(logits.dtype).mean(0)
    return (E or logits.shape[1]) * (f * probabilities.mean(0)).sum()


@exercise("2.4.4", "ex-balancing-loss")
def balancing_loss(answer, random):
    k, layers = 2, [_logits(5, 8, 4), _logits(6, 8, 4).roll(1, 1)]
    real = torch.tensor([False, False, True, True, True, True, True, True])
    right = torch.stack([_layer_loss(layer, k) for layer in layers]).mean()
    mean = [layer.softmax(-1).mean(0) for layer in layers]
    chosen = [F.one_hot(layer.topk(k).indices, 4).sum(1).double().mean(0) for layer in layers]
    both = torch.stack([4 * (p * p).sum() for p in mean]).mean()
    counted = torch.stack([4 * (f * f).sum() for f in chosen]).mean()
    mistakes = {
        "The layers are pooled first: then two layers that use one half of the experts each score as perfect. Multiply "
        "f and P layer by layer.": lambda: _layer_loss(torch.cat(layers), k),
        "The layers are added up: take their mean.": lambda: 2 * right,
        "E is missing: an even load would score k / E.": lambda: right / 4,
        "f counts choices over tokens, so it sums to k: do not divide by k.": lambda: right / k,
        "Those are probabilities twice: f is counted from the choices.": lambda: both,
        "Those are counts twice: P is the mean probability, which has the gradient.": lambda: counted,
        "f counts only the first choice: all k of a token count.": lambda: torch.stack(
            [_layer_loss(layer, 1) for layer in layers]
        ).mean(),
    }
    given = [layer.clone().requires_grad_() for layer in layers]
    came = answer(given, k)
    expect(came.detach() if isinstance(came, Tensor) else came, right, "two layers, 8 tokens, k = 2", mistakes)
    if not came.requires_grad:
        raise Wrong("the loss has no gradient: P is the mean probability, and the logits have to reach it.")
    slope = torch.autograd.grad(came, given)[0]
    wanted = layers[0].clone().requires_grad_()
    wanted = torch.autograd.grad(_layer_loss(wanted, k) / 2, wanted)[0]
    expect(slope, wanted, "its gradient on the first layer", {"f has to be a constant: detach it.": lambda: -slope})
    expect(
        answer(layers, k, real).detach(),
        torch.stack([_layer_loss(layer, k, real) for layer in layers]).mean(),
        "the same with two tokens of padding",
        {
            "Padding is counted: leave those tokens out of f and of P, and out of T.": lambda: right,
            "Padding is left out of one of f and P, or still counted in T: take it out before the softmax's mean.": (
                lambda: torch.stack([_layer_loss(layer * real[:, None], k) for layer in layers]).mean()
            ),
        },
    )
    return "each layer by itself; f is counted, P has the gradient, padding has no part."


def _kept(experts: Tensor, E: int, factor: float, *, by_rank=True, last=False, down=False, every=True) -> Tensor:
    T, k = experts.shape
    exact = factor * (T * k if every else T) / E
    room = int(exact) if down else math.ceil(exact)
    order = [(t, r) for r in range(k) for t in range(T)] if by_rank else [(t, r) for t in range(T) for r in range(k)]
    taken, kept = [0] * E, torch.zeros(T, k, dtype=torch.bool)
    for t, r in reversed(order) if last else order:
        expert = int(experts[t, r])
        kept[t, r] = taken[expert] < room
        taken[expert] += 1
    return kept


@exercise("2.4.4", "ex-within-capacity")
def within_capacity(answer, random):
    experts = torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1], [2, 0], [0, 3], [1, 0]])
    came = answer(experts.clone(), 4, 1.0)
    if not isinstance(came, Tensor) or came.dtype != torch.bool or came.shape != experts.shape:
        raise Wrong(f"expected a bool tensor {tuple(experts.shape)}, True where a choice is kept, got {came!r}.")
    for factor in (1.0, 1.25):
        right = _kept(experts, 4, factor)
        if torch.equal(came := answer(experts.clone(), 4, factor), right):
            continue
        mistakes = {
            "That is the opposite: True means kept.": ~right,
            "The wrong tokens are dropped: the earlier one is served first.": _kept(experts, 4, factor, last=True),
            "Token by token: all first choices are placed before any second choice.": _kept(
                experts, 4, factor, by_rank=False
            ),
            "The capacity counts all T * k choices, not T tokens.": _kept(experts, 4, factor, every=False),
            "Round the capacity up.": _kept(experts, 4, factor, down=True),
            "Every rank has room of its own: the k choices of all tokens share an expert's capacity.": torch.cat(
                [_kept(experts[:, r : r + 1], 4, factor * 2) for r in range(2)], 1
            ),
        }
        reason = next((why for why, wrong in mistakes.items() if torch.equal(came, wrong)), "")
        raise Wrong(
            f"7 tokens, 4 experts, factor {factor}: expected the dropped (token, rank) {(~right).nonzero().tolist()}, "
            f"got {(~came).nonzero().tolist()}. {reason}"
        )
    if not answer(experts, 4, 4.0).all():
        raise Wrong("with room for all T * k choices at every expert nothing may be dropped.")
    return "first choices first, then the order of the tokens, and one room for all ranks."


@exercise("2.4.4", "ex-bias-step")
def bias_step(answer, random):
    bias = torch.tensor([0.1, -0.2, 0.0, 0.3], dtype=torch.float64)
    counts, u = torch.tensor([90, 10, 50, 50]), 0.01
    right = bias + u * torch.tensor([-1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    less = counts.double().mean() - counts
    given = bias.clone()
    came = answer(given, counts, u)
    expect(
        came,
        right,
        "the next bias for the counts 90, 10, 50, 50 and u = 0.01",
        {
            "The bias moves in the wrong direction: an expert with too little load needs a larger one.": lambda: (
                bias - u * torch.sign(less)
            ),
            "The size of the error counts in that: only its sign does.": lambda: bias + u * less,
            "The size of the error counts in that: only its sign does, also of the relative one.": lambda: (
                bias + u * less / counts.double().mean()
            ),
            "That is the change alone: add it to the bias.": lambda: u * torch.sign(less),
            "An expert at the mean stays where it is: sign(0) is 0.": lambda: (
                bias + u * torch.where(less > 0, 1.0, -1.0)
            ),
        },
    )
    if not torch.equal(given, bias):
        raise Wrong("the bias that was given was changed: return a new tensor.")
    return "up where the load was low, down where it was high, always by u."
