"""Answers of lab 2.4.4: one block per exercise cell, which takes the place of its stub."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


# %% ex-softmax-router
def softmax_router(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, then the k largest, with the probabilities as they are.

    logits: (T, E).

    Returns: two tensors: experts (T, k) in int64, the most probable first; their
        weights (T, k).
    """
    weights, experts = logits.softmax(-1).topk(top_k)
    return experts, weights


# %% ex-topk-router
def topk_router(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits, then a softmax over those alone.

    logits: (T, E).

    Returns: two tensors: experts (T, k) in int64, the largest first; their
        weights (T, k), which sum to 1.
    """
    largest, experts = logits.topk(top_k)
    return experts, largest.softmax(-1)


# %% ex-biased-router
def biased_router(logits: Tensor, top_k: int, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid scores; the bias decides who is chosen and has no part in the weights.

    logits: (T, E). bias: (E,).

    Returns: two tensors: experts (T, k) in int64, the largest biased score first; their
        weights (T, k), which sum to 1.
    """
    scores = logits.sigmoid()
    experts = (scores + bias).topk(top_k).indices
    weights = scores.gather(-1, experts)
    return experts, weights / weights.sum(-1, keepdim=True)


# %% ex-imbalance
def imbalance(counts: Tensor) -> tuple[float, float, float, int]:
    """How uneven a load is: four numbers for one layer.

    counts: (E,), how often each expert was chosen.

    Returns: MaxVio, the largest load over the mean, minus 1; the coefficient of variation,
        standard deviation over mean; the entropy of the load over log E; and the number of
        dead experts, those with less than 5 % of the mean.
    """
    load = counts.double() / counts.double().mean()
    share = load / len(load)
    entropy = torch.special.entr(share).sum() / math.log(len(load))
    deviation = load.std(correction=0)
    dead = int((load < 0.05).sum())
    return load.max().item() - 1, deviation.item(), entropy.item(), dead


# %% ex-balancing-loss
def balancing_loss(
    router_logits: Sequence[Tensor], top_k: int, real: Tensor | None = None
) -> Tensor:
    """E * sum of f_i * P_i for each layer by itself; the mean of the layers.

    router_logits: one tensor (T, E) per layer. real: (T,) bool, False at padding.
    f_i: share of the tokens that choose expert i among their k, without gradient.
    P_i: mean probability of expert i, softmax over all experts.

    Returns: a scalar, as a tensor with a gradient; k when the load is even.
    """
    by_layer = []
    for logits in router_logits:
        probabilities = logits.softmax(-1)
        if real is not None:
            probabilities = probabilities[real]
        T, E = probabilities.shape
        picked = probabilities.topk(top_k).indices
        f = torch.bincount(picked.flatten(), minlength=E) / T
        by_layer.append(E * (f * probabilities.mean(0)).sum())
    return torch.stack(by_layer).mean()


# %% ex-within-capacity
def within_capacity(experts: Tensor, number: int, factor: float) -> Tensor:
    """Which choices an expert has room for, when each takes factor * T * k / E at most.

    experts: (T, k), the choices of each token, its first choice first. number: E.
    All first choices are placed before any second choice; among equals the earlier token
    comes first. The capacity is rounded up.

    Returns: (T, k) bool, False for a choice that is dropped.
    """
    T, k = experts.shape
    capacity = math.ceil(factor * T * k / number)
    queue = torch.nn.functional.one_hot(experts.T.flatten(), number)  # rank by rank
    place = (queue.cumsum(0) * queue).sum(1)  # 1 for the first in an expert's queue
    return (place <= capacity).view(k, T).T


# %% ex-bias-step
def bias_step(bias: Tensor, counts: Tensor, u: float) -> Tensor:
    """One step of the controller that balances by a bias, without any loss.

    bias: (E,), what the choice adds to the scores. counts: (E,), choices of the last step.
    u: how far each bias moves, whatever the size of the error.

    Returns: a new tensor (E,), the next bias: up where an expert had less than the mean,
        down where it had more.
    """
    return bias + u * torch.sign(counts.double().mean() - counts).to(bias.dtype)
