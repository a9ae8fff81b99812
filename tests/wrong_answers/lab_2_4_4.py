"""Known-wrong answers of lab 2.4.4."""

import math

import torch
import torch.nn.functional as F

from shared.checks import lab_2_4_4
from wrong_answers import faulty


def softmax_first(logits, k, *, renormalise=False, late=False, dim=-1, swapped=False):
    weights, experts = (logits if late else logits.softmax(dim)).topk(k)
    weights = weights.softmax(-1) if late else weights
    weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
    return (weights, experts) if swapped else (experts, weights)


def choice_first(logits, k, *, early=False, twice=False, raw=False):
    values, experts = (logits.softmax(-1) if early or twice else logits).topk(k)
    return experts, values if early or raw else values.softmax(-1)


def biased(logits, k, bias, *, weigh=False, before=False, used=True, unit=True):
    scores = (logits + bias).sigmoid() if before else logits.sigmoid()
    values, experts = (scores if before or not used else scores + bias).topk(k)
    weights = values if weigh else scores.gather(-1, experts)
    return experts, weights / weights.sum(-1, keepdim=True) if unit else weights


def four_numbers(counts, *, less=1, sample=0, over=1, log=math.log, dead=0.05, zero=True):
    load = counts.double() / counts.double().mean()
    share = load / len(load)
    share = share[share > 0] if zero else share
    entropy = -(share * share.log()).sum().item() / log(len(load))
    spread = load.std(correction=sample).item() * (counts.double().mean().item() if over else 1)
    return load.max().item() - less, spread, entropy, int((load < dead).sum())


def balance(router_logits, k, real=None, *, pooled=False, padded=False, counted=("f",), E=None, total=False, over=1):
    layers = [torch.cat(list(router_logits))] if pooled else router_logits
    losses = []
    for logits in layers:
        P = logits.softmax(-1) if real is None or padded else logits.softmax(-1)[real]
        f = F.one_hot(P.topk(k).indices, P.shape[1]).sum(1).to(P.dtype).mean(0) / over
        f, P = (f if "f" in counted else P.mean(0)), (f if "P" in counted else P.mean(0))
        losses.append((E or len(f)) * (f * P).sum())
    return torch.stack(losses).sum() if total else torch.stack(losses).mean()


def fits(experts, E, factor, *, late=False, by_token=False, each=False, rounded=math.ceil, opposite=False):
    T, k = experts.shape
    room, taken = rounded(factor * T * (1 if each else k) / E), [0] * E
    places = [(t, r) for t in range(T) for r in range(k)] if by_token else [(t, r) for r in range(k) for t in range(T)]
    kept = torch.zeros(T, k, dtype=torch.bool)
    for t, r in reversed(places) if late else places:
        kept[t, r] = taken[experts[t, r]] < room
        taken[experts[t, r]] += 1
    return ~kept if opposite else kept


def controlled(bias, counts, u, *, sign=1, strict=torch.sign, whole=True):
    move = u * sign * strict(counts.double().mean() - counts)
    return bias + move if whole else move


WRONG = [
    (lab_2_4_4.softmax_router, faulty(softmax_first, late=True), "softmax after the wrong step"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, renormalise=True), "keeps the probabilities as they are"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, dim=0), "over the tokens"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, swapped=True), "the experts come first"),
    (lab_2_4_4.topk_router, faulty(choice_first, early=True), "softmax after the wrong step"),
    (lab_2_4_4.topk_router, faulty(choice_first, twice=True), "a second softmax"),
    (lab_2_4_4.topk_router, faulty(choice_first, raw=True), "Those are the logits"),
    (lab_2_4_4.biased_router, faulty(biased, weigh=True), "weights from the biased scores"),
    (lab_2_4_4.biased_router, faulty(biased, before=True), "after the sigmoid"),
    (lab_2_4_4.biased_router, faulty(biased, used=False), "not used in the choice"),
    (lab_2_4_4.biased_router, faulty(biased, unit=False), "divide by their sum"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, less=0), "even load has MaxVio 0"),
    (lab_2_4_4.imbalance, faulty(four_numbers), "Divide by the mean"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, sample=1), "correction=0"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, log=lambda E: 1), "Divide by log E"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, zero=False), "0 log 0 is 0"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, dead=0.3), "below 5 % of the mean"),
    (lab_2_4_4.balancing_loss, faulty(balance, pooled=True), "layers are pooled first"),
    (lab_2_4_4.balancing_loss, faulty(balance, counted=()), "probabilities twice"),
    (lab_2_4_4.balancing_loss, faulty(balance, counted=("f", "P")), "counts twice"),
    (lab_2_4_4.balancing_loss, faulty(balance, padded=True), "Padding is counted"),
    (lab_2_4_4.balancing_loss, faulty(balance, E=1), "E is missing"),
    (lab_2_4_4.balancing_loss, faulty(balance, total=True), "take their mean"),
    (lab_2_4_4.balancing_loss, faulty(balance, over=2), "do not divide by k"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, real).detach(), "has no gradient"),
    (lab_2_4_4.within_capacity, faulty(fits, late=True), "wrong tokens are dropped"),
    (lab_2_4_4.within_capacity, faulty(fits, by_token=True), "before any second choice"),
    (lab_2_4_4.within_capacity, faulty(fits, each=True), "counts all T * k choices"),
    (lab_2_4_4.within_capacity, faulty(fits, rounded=int), "Round the capacity up"),
    (lab_2_4_4.within_capacity, faulty(fits, opposite=True), "True means kept"),
    (lab_2_4_4.bias_step, faulty(controlled, sign=-1), "wrong direction"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: x), "only its sign does"),
    (lab_2_4_4.bias_step, faulty(controlled, whole=False), "add it to the bias"),
]

RIGHT = {
    lab_2_4_4.softmax_router: softmax_first,
    lab_2_4_4.topk_router: choice_first,
    lab_2_4_4.biased_router: biased,
    lab_2_4_4.imbalance: faulty(four_numbers, over=0),
    lab_2_4_4.balancing_loss: balance,
    lab_2_4_4.within_capacity: fits,
    lab_2_4_4.bias_step: controlled,
}
