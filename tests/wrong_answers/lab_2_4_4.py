"""Known-wrong answers of lab 2.4.4."""

import math
import statistics

import numpy as np
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


def balance(
    router_logits, top_k, real=None, *, pooled=False, padded=False, counted=("f",), E=None, total=False, over=1
):
    layers = [torch.cat(list(router_logits))] if pooled else router_logits
    losses = []
    for logits in layers:
        P = logits.softmax(-1) if real is None or padded else logits.softmax(-1)[real]
        f = F.one_hot(P.topk(top_k).indices, P.shape[1]).sum(1).to(P.dtype).mean(0) / over
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


# ---- right answers in other styles ----------------------------------------------------------------------------------


def softmax_by_sort(logits, top_k):
    probabilities = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
    order = torch.argsort(probabilities, dim=1, descending=True)[:, :top_k]
    return order, torch.gather(probabilities, 1, order)


def softmax_by_rows(logits, top_k):
    experts, weights = [], []
    for row in logits.tolist():
        total = sum(math.exp(x) for x in row)
        best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top_k]
        experts.append(best)
        weights.append([math.exp(row[e]) / total for e in best])
    return torch.tensor(experts), torch.tensor(weights)


def softmax_by_numpy(logits, top_k):
    x = logits.numpy()
    p = np.exp(x - x.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    best = np.argsort(-p, axis=1)[:, :top_k]
    return torch.from_numpy(best), torch.from_numpy(np.take_along_axis(p, best, 1))


def softmax_in_float64(logits, top_k):
    found = F.softmax(logits.double(), dim=-1).topk(k=top_k, dim=-1, largest=True)
    return found.indices, found.values


def choice_by_zip(logits, top_k):
    rows = [row.topk(top_k) for row in logits]
    return torch.stack([r.indices for r in rows]), torch.stack([(r.values - r.values.logsumexp(0)).exp() for r in rows])


def as_in_mixtral(logits, top_k):
    weights, experts = torch.topk(F.softmax(logits, dim=1, dtype=torch.float), top_k, dim=-1)
    weights /= weights.sum(dim=-1, keepdim=True)
    return [experts, weights.to(logits.dtype)]


def masked_softmax(logits, top_k):
    experts = logits.topk(top_k, -1)[1]
    kept = torch.full_like(logits, -math.inf).scatter(1, experts, logits.gather(1, experts))
    return experts, kept.softmax(1).gather(1, experts)


def choice_by_numpy(logits, top_k):
    x = logits.float().numpy()
    best = np.argsort(x, axis=-1)[:, ::-1][:, :top_k].copy()
    e = np.exp(np.take_along_axis(x, best, -1))
    return torch.from_numpy(best), torch.from_numpy(e / e.sum(-1, keepdims=True))


def biased_by_loop(logits, top_k, bias):
    experts, weights = [], []
    for row in logits:
        scores = 1 / (1 + torch.exp(-row))
        best = torch.argsort(scores + bias, descending=True)[:top_k]
        experts.append(best)
        weights.append(scores[best] / scores[best].sum())
    return torch.stack(experts), torch.stack(weights)


def as_in_deepseek(logits, top_k, bias):
    scores = logits.to(torch.float32).sigmoid()
    experts = torch.topk(scores + bias.unsqueeze(0), k=top_k, dim=-1, sorted=True)[1]
    weights = scores.gather(1, experts)
    return experts, weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)


def biased_by_index(logits, top_k, bias):
    scores = torch.sigmoid(logits)
    experts = (scores + bias).sort(dim=-1, descending=True).indices[..., :top_k]
    return experts, F.normalize(scores[torch.arange(len(scores))[:, None], experts], p=1, dim=-1)


def biased_by_numpy(logits, top_k, bias):
    scores = 1 / (1 + np.exp(-logits.numpy()))
    best = np.argsort(-(scores + bias.numpy()), 1)[:, :top_k]
    weights = np.take_along_axis(scores, best, 1)
    return torch.tensor(best), torch.tensor(weights / weights.sum(1)[:, None])


def imbalance_by_numpy(counts):
    c = counts.numpy().astype(np.float64)
    p = c[c > 0] / c.sum()
    return np.array(
        [
            c.max() / c.mean() - 1,
            c.std() / c.mean(),
            -(p * np.log(p)).sum() / np.log(c.size),
            (c < 0.05 * c.mean()).sum(),
        ]
    )


def imbalance_in_lists(counts):
    c = counts.tolist()
    mean = sum(c) / len(c)
    entropy = sum(-x / sum(c) * math.log(x / sum(c), len(c)) for x in c if x)
    return [max(c) / mean - 1, statistics.pstdev(c) / mean, entropy, len([x for x in c if x / mean < 0.05])]


def imbalance_in_float32(counts):
    c = counts.float()
    p = c / c.sum()
    entropy = torch.distributions.Categorical(probs=p).entropy() / math.log(len(c))
    return c.max() / c.mean() - 1, c.std(unbiased=False) / c.mean(), entropy, (c < c.mean() / 20).sum()


def imbalance_with_xlogy(counts):
    load = counts / counts.float().mean()
    p = load / load.sum()
    entropy = -torch.xlogy(p, p).sum() / torch.log(torch.tensor(len(p)))
    return load.max().item() - 1, ((load - 1) ** 2).mean().sqrt().item(), entropy.item(), len(load[load < 0.05])


def loss_in_einsum(router_logits, top_k, real=None):
    layers = torch.stack(tuple(router_logits))
    layers = layers if real is None else layers[:, real]
    P = layers.softmax(-1)
    f = torch.zeros_like(P).scatter(-1, P.topk(top_k, -1).indices, 1.0).mean(1)
    return layers.shape[-1] * torch.einsum("le,le->l", f, P.mean(1)).mean()


def loss_by_masks(router_logits, top_k, real=None):
    total = 0.0
    for logits in router_logits:
        mask = torch.ones(len(logits)) if real is None else real.float()
        P = (logits.softmax(1) * mask[:, None]).sum(0) / mask.sum()
        chosen = F.one_hot(logits.argsort(1, descending=True)[:, :top_k], logits.shape[1]).sum(1)
        f = (chosen * mask[:, None]).sum(0) / mask.sum()
        total = total + logits.shape[1] * torch.dot(f.to(P.dtype), P)
    return total / len(router_logits)


def loss_in_float32(router_logits, top_k, real=None):
    found = []
    for logits in router_logits:
        p = torch.softmax(logits.float(), dim=-1)
        p = p[real] if real is not None else p
        f = torch.tensor([(p.detach().topk(top_k)[1] == e).any(1).float().mean() for e in range(p.size(1))])
        found.append((f * p.mean(0)).sum() * p.size(1))
    return sum(found) / len(found)


def loss_by_dot(router_logits, top_k, real=None):
    """Right for the float32 that the lab has, and only for that."""
    found = []
    for logits in router_logits:
        P = logits.softmax(-1)[slice(None) if real is None else real]
        f = torch.bincount(P.topk(top_k).indices.flatten(), minlength=P.shape[1]) / len(P)
        found.append(P.shape[1] * f @ P.mean(0))
    return torch.stack(found).mean()


def loss_in_float64(router_logits, top_k, real=None):
    return balance([logits.double() for logits in router_logits], top_k, real)


def fits_by_queue(experts, number, factor):
    T, k = experts.shape
    room = [-int(-factor * T * k // number)] * number
    kept = []
    for rank in experts.T.tolist():
        column = []
        for expert in rank:
            column.append(room[expert] > 0)
            room[expert] -= 1
        kept.append(column)
    return [list(row) for row in zip(*kept, strict=True)]


def fits_by_expert(experts, number, factor):
    T, k = experts.shape
    capacity = int(np.ceil(factor * T * k / number))
    queue = experts.T.reshape(-1)
    kept = torch.zeros(T * k, dtype=torch.bool)
    for expert in range(number):
        kept[(queue == expert).nonzero().flatten()[:capacity]] = True
    return kept.reshape(k, T).T


def fits_by_sort(experts, number, factor):
    T, k = experts.shape
    queue = experts.T.flatten()
    order = queue.argsort(stable=True)
    starts = torch.searchsorted(queue[order], torch.arange(number))
    place = torch.empty_like(queue)
    place[order] = torch.arange(T * k) - starts[queue[order]]
    return (place < math.ceil(T * k / number * factor)).view(k, T).t()


def fits_by_numpy(experts, number, factor):
    hot = np.eye(number)[experts.numpy().T.ravel()]
    place = (hot.cumsum(0) * hot).sum(1)
    return (place <= np.ceil(factor * experts.numel() / number)).reshape(experts.shape[::-1]).T


def step_by_where(bias, counts, u):
    mean = counts.sum() / len(counts)
    return torch.where(counts < mean, bias + u, torch.where(counts > mean, bias - u, bias))


def step_by_loop(bias, counts, u):
    new = bias.clone()
    for expert, count in enumerate(counts.tolist()):
        fair = counts.sum().item() / len(counts)
        new[expert] += u * ((count < fair) - (count > fair))
    return new


def step_by_share(bias, counts, u):
    return bias - u * torch.sign(len(counts) * counts - counts.sum())


def step_by_numpy(bias, counts, u):
    return torch.from_numpy(bias.numpy() + u * np.sign(counts.numpy().mean() - counts.numpy()))


# ---- more wrong answers ---------------------------------------------------------------------------------------------


def kept_in_place(bias, counts, u, state={}):  # noqa: B006
    """An answer that gives its one buffer each time."""
    buffer = state.setdefault(len(bias), torch.empty(len(bias), dtype=torch.float64))
    return buffer.copy_(controlled(bias, counts, u))


def with_numbers(change):
    """The four numbers with a change to one of them."""

    def answer(counts):
        found = dict(zip("vsed", four_numbers(counts, over=0), strict=True))
        return tuple((found | change(counts.double(), **found)).values())

    return answer


def at_weights(change, router):
    """A router whose weights are changed."""

    def answer(logits, *args, **kwargs):
        experts, weights = router(logits, *args, **kwargs)
        return experts, change(weights)

    return answer


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
    (lab_2_4_4.softmax_router, lambda x, k: softmax_first(x, 2), "shape"),
    (lab_2_4_4.softmax_router, lambda x, k: softmax_first(-x, k), "smallest"),
    (lab_2_4_4.softmax_router, lambda x, k: softmax_first(x, k)[0], "expected two tensors"),
    (lab_2_4_4.softmax_router, lambda x, k: softmax_first(x, k)[1], "expected two tensors"),
    (lab_2_4_4.softmax_router, lambda x, k: [t.tolist() for t in softmax_first(x, k)], "expected two tensors"),
    (lab_2_4_4.softmax_router, lambda x, k: torch.stack([t.double() for t in softmax_first(x, k)]), "int64"),
    (lab_2_4_4.softmax_router, lambda x, k: [t.flip(-1) for t in softmax_first(x, k)], "another order"),
    (lab_2_4_4.softmax_router, lambda x, k: [t.sort(-1).values for t in softmax_first(x, k)], "expected"),
    (lab_2_4_4.softmax_router, lambda x, k: [t.squeeze() for t in softmax_first(x, k)], "shape"),
    (lab_2_4_4.softmax_router, lambda x, k: [t[:6] for t in softmax_first(x, k)], "shape"),
    (lab_2_4_4.softmax_router, lambda x, k: choice_first(x, k, raw=True), "take the softmax"),
    (lab_2_4_4.softmax_router, lambda x, k: x.sigmoid().topk(k)[::-1], "scored by itself"),
    (lab_2_4_4.softmax_router, lambda x, k: softmax_first(x / x.shape[1] ** 0.5, k), "expected"),
    (lab_2_4_4.softmax_router, at_weights(lambda w: (100 * w).round() / 100, softmax_first), "expected"),
    (lab_2_4_4.softmax_router, at_weights(torch.log, softmax_first), "expected"),
    (lab_2_4_4.softmax_router, lambda x, k: softmax_first(x.sub_(x.max()), k), "was changed"),
    (lab_2_4_4.topk_router, lambda x, k: choice_first(x, 2), "shape"),
    (lab_2_4_4.topk_router, lambda x, k: choice_first(x, k)[::-1], "the experts come first"),
    (lab_2_4_4.topk_router, lambda x, k: (x.topk(k)[1], torch.full((len(x), k), 1 / k)), "expected"),
    (lab_2_4_4.topk_router, lambda x, k: (x.topk(k)[1], x.topk(k)[0].softmax(0)), "over the tokens"),
    (lab_2_4_4.topk_router, lambda x, k: (x.topk(k)[1], x.topk(k)[0] / x.topk(k)[0].sum(-1, True)), "over their sum"),
    (lab_2_4_4.topk_router, lambda x, k: [t.flip(-1) for t in choice_first(x, k)], "another order"),
    (lab_2_4_4.topk_router, lambda x, k: (choice_first(x, k)[0].int(), choice_first(x, k)[1]), "int64"),
    (lab_2_4_4.topk_router, lambda x, k: softmax_first(x.log_softmax(-1), k), "wrong step"),
    (lab_2_4_4.topk_router, lambda x, k: softmax_first(x.sigmoid(), k, late=True), "expected"),
    (lab_2_4_4.topk_router, lambda x, k: softmax_first(x, k, renormalise=True, dim=0), "expected"),
    (lab_2_4_4.topk_router, at_weights(lambda w: w.clamp(0.1, 0.9), choice_first), "expected"),
    (lab_2_4_4.topk_router, lambda x, k: (x.topk(k)[1], (x.topk(k)[0] ** 2).softmax(-1)), "expected"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, 2, bias), "shape"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, k, -bias), "taken off"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, k, bias.sign()), "expected"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, k, 2 * bias), "expected"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, k, bias[:1]), "expected"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, k, bias)[::-1], "the experts come first"),
    (
        lab_2_4_4.biased_router,
        lambda x, k, bias: (biased(x, k, bias)[0], biased(x, k, bias, used=False)[1]),
        "expected",
    ),
    (lab_2_4_4.biased_router, at_weights(lambda w: w.softmax(-1), faulty(biased, unit=False)), "by a softmax"),
    (lab_2_4_4.biased_router, at_weights(lambda w: w / w.max(-1, True).values, biased), "expected"),
    (lab_2_4_4.biased_router, at_weights(lambda w: F.normalize(w, dim=-1), biased), "expected"),
    (lab_2_4_4.biased_router, lambda x, k, b: ((x.sigmoid() + b).topk(k)[1], choice_first(x, k)[1]), "expected"),
    (lab_2_4_4.biased_router, lambda x, k, bias: [t.flip(1) for t in biased(x, k, bias)], "another order"),
    (lab_2_4_4.biased_router, lambda x, k, bias: biased(x, k, bias.sub_(bias.mean())), "was changed"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"v": c.max() / c.median() - 1}), "MaxVio"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"v": (c / c.mean() - 1).abs().max()}), "MaxVio"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"v": (c.max() - c.min()) / c.mean() - 1}), "MaxVio"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"v": n["v"] + 1}), "even load has MaxVio 0"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"s": n["s"] ** 2}), "take the root"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"s": (c / c.mean() - 1).abs().mean()}), "mean distance"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"s": c.std(correction=0) / c.median()}), "variation"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"e": n["e"] * math.log(len(c), 2)}), "entropy"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"e": 1 - n["e"]}), "entropy"),
    (
        lab_2_4_4.imbalance,
        with_numbers(lambda c, **n: {"e": n["e"] * math.log(len(c)) / math.log(max(2, (c > 0).sum()))}),
        "entropy",
    ),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c == 0).sum()}), "never chosen"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c < 0.05 * c.max()).sum()}), "of the largest"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c <= 0.05 * c.mean()).sum()}), "is not below it"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c < 0.05 * c.median()).sum()}), "dead"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c < 0.1 * c.mean()).sum()}), "dead"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c < 0.025 * c.mean()).sum()}), "dead"),
    (lab_2_4_4.imbalance, with_numbers(lambda c, **n: {"d": (c < 1).any()}), "dead"),
    (lab_2_4_4.imbalance, lambda counts: four_numbers(counts[:6], over=0), "expected"),
    (lab_2_4_4.imbalance, lambda counts: four_numbers(counts, over=0, log=lambda E: math.log(6)), "entropy"),
    (lab_2_4_4.imbalance, lambda counts: four_numbers(counts, over=0)[:3], "four numbers"),
    (lab_2_4_4.imbalance, lambda counts: [str(x) for x in four_numbers(counts, over=0)], "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, 2, real), "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x[:2], k, real), "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x[:1], k, real), "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, None if real is None else ~real), "padded tokens"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, real, E=16), "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, real).item(), "expected a scalar"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, real)[None], "expected a scalar"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance([t.detach() for t in x], k, real), "has no gradient"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, real) - k, "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance([t.sigmoid() for t in x], k, real), "expected"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: max(balance([t], k, real) for t in x), "expected"),
    (
        lab_2_4_4.balancing_loss,
        lambda x, k, real=None: balance([x[0], *(t.detach() for t in x[1:])], k, real),
        "gradients of the arguments",
    ),
    (
        lab_2_4_4.balancing_loss,
        lambda x, k, real=None: balance(x, k, real) + 0.1 * (y := x[0].sum()) - 0.1 * y.detach(),
        "gradients of the arguments",
    ),
    (
        lab_2_4_4.balancing_loss,
        lambda x, k, real=None: balance([t if real is None else t * real[:, None] for t in x], k),
        "before the softmax's mean",
    ),
    (
        lab_2_4_4.balancing_loss,
        lambda x, k, real=None: balance(x, k, real) * (1 if real is None else real.double().mean() ** 2),
        "still counted in T",
    ),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts, 4, factor), "IndexError"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts, E, 1.0), "expected"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts, int(experts.max()) + 1, factor), "expected"),
    (lab_2_4_4.within_capacity, faulty(fits, rounded=round), "not to the nearest"),
    (lab_2_4_4.within_capacity, faulty(fits, rounded=lambda x: int(x) + 1), "where it is whole"),
    (lab_2_4_4.within_capacity, faulty(fits, rounded=lambda x: math.ceil(x) + 1), "One too many"),
    (lab_2_4_4.within_capacity, faulty(fits, rounded=lambda x: math.ceil(x) - 1), "expected"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts, E, factor).T, "shape"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts[:, :2], E, factor), "expected"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts, E, factor).all(1), "shape"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts.flip(0), E, factor).flip(0), "expected"),
    (lab_2_4_4.within_capacity, lambda experts, E, factor: fits(experts.flip(1), E, factor).flip(1), "expected"),
    (
        lab_2_4_4.within_capacity,
        lambda experts, E, factor: torch.cat([fits(column[:, None], E, 2 * factor) for column in experts.T], 1),
        "room of its own",
    ),
    (lab_2_4_4.bias_step, faulty(controlled, strict=torch.tanh), "tanh is no sign"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: x / x.abs().max()), "expected"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: x.clamp(-1, 1)), "expected"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: torch.where(x >= 0, 1.0, -1.0)), "sign(0) is 0"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: torch.where(x > 0, 1.0, -1.0)), "sign(0) is 0"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: (x > 0).double()), "expected"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: x.sign() * (x.abs() > 5)), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: b + u * (c.double().mean() - c).div(c.sum()).round(decimals=2).sign(), "exp"),
    (lab_2_4_4.bias_step, lambda b, c, u: b + u * (c.double().median() - c).sign(), "not with the median"),
    (lab_2_4_4.bias_step, lambda b, c, u: controlled(b, c, 0.01), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: controlled(b, c, 0.1 * u), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: controlled(torch.zeros(len(b)), c, u), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: b + u * ((c.min() + c.max()) / 2 - c).sign(), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: b + u * (c.sum() // len(c) - c).sign(), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: controlled(b, c, u) - controlled(b, c, u).mean(), "expected"),
    (lab_2_4_4.bias_step, lambda b, c, u: b.add_(u * (c.double().mean() - c).sign()), "was changed"),
    (lab_2_4_4.bias_step, lambda b, c, u: controlled(b, c, u).tolist(), "expected a tensor"),
    (lab_2_4_4.bias_step, kept_in_place, "a later call changed it"),
]

RIGHT = {
    lab_2_4_4.softmax_router: [
        softmax_first,
        softmax_by_sort,
        softmax_by_rows,
        softmax_by_numpy,
        softmax_in_float64,
    ],
    lab_2_4_4.topk_router: [choice_first, as_in_mixtral, masked_softmax, choice_by_numpy, choice_by_zip],
    lab_2_4_4.biased_router: [biased, biased_by_loop, as_in_deepseek, biased_by_index, biased_by_numpy],
    lab_2_4_4.imbalance: [
        faulty(four_numbers, over=0),
        imbalance_by_numpy,
        imbalance_in_lists,
        imbalance_in_float32,
        imbalance_with_xlogy,
    ],
    lab_2_4_4.balancing_loss: [balance, loss_in_einsum, loss_by_masks, loss_in_float32, loss_in_float64, loss_by_dot],
    lab_2_4_4.within_capacity: [fits, fits_by_queue, fits_by_expert, fits_by_sort, fits_by_numpy],
    lab_2_4_4.bias_step: [controlled, step_by_where, step_by_loop, step_by_share, step_by_numpy],
}
