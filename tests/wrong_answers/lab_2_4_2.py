"""Known-wrong answers of lab 2.4.2."""

import math

import torch
import torch.nn.functional as F

from shared.checks import lab_2_4_2
from wrong_answers import faulty


def states(decay, inputs, h=None, *, early=False, ignore=False, in_place=False):
    h = torch.zeros_like(inputs[0]) if h is None or ignore else h
    found = inputs if in_place else torch.empty_like(inputs)
    for t in range(len(inputs)):
        after = decay[t] * h + inputs[t]
        found[t] = h if early else after
        h = after
    return found


def discrete(delta, A, B, *, sign=1, exact=False, euler=False, timeless=False):
    step = delta[:, :, None]
    A_bar = 1 + step * A if euler else torch.exp(sign * step * A)
    B_bar = (torch.exp(step * A) - 1) / A * B[:, None] if exact else step * B[:, None]
    return A_bar, B_bar / step if timeless else B_bar


def selected(u, mixer, *, activation=F.softplus, swapped=False, bias=True):
    N, rank = mixer.A_log.shape[1], mixer.dt_proj.in_features
    projected = mixer.x_proj(u)
    delta = mixer.dt_proj(projected[:, :rank]) - (0 if bias else mixer.dt_proj.bias)
    B, C = projected[:, rank : rank + N], projected[:, rank + N :]
    return activation(delta), *((C, B) if swapped else (B, C))


def chunks(decay, inputs, chunk=64, h=None, *, hand=True, from_start=False, decayed=True, keep=None):
    zero = torch.zeros_like(inputs[0])
    start, found = zero if h is None else h, []
    h = start
    for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
        if len(x) < chunk and keep == "whole":
            break
        found.append(states(a, x, start if from_start else h) if decayed else states(a, x, zero) + h)
        h = found[-1][-1] if hand else zero
    return torch.cat(found)


def fused(u, delta, A, B, C, D, h=None, *, skip=True, swapped=False, early=False, ignore=False, sign=1):
    B, C = (C, B) if swapped else (B, C)
    h = torch.zeros_like(A) if h is None or ignore else h
    y = torch.empty_like(u)
    for t in range(len(u)):
        after = torch.exp(sign * delta[t, :, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
        y[t], h = (h if early else after) @ C[t], after
    return y + (D * u if skip else 0), h


def block(x, mixer, cache=None, *, sign=-1, gated=True, filtered=F.silu, hand=("window", "state"), **faults):
    hidden, gate = mixer.in_proj(x).chunk(2, 1)
    K = mixer.conv1d.weight.shape[2]
    window, h = cache or (torch.zeros_like(hidden[:1]).repeat(K - 1, 1), None)
    window = window if "window" in hand else torch.zeros_like(window)
    seen = torch.cat([window, hidden])
    u = filtered(F.conv1d(seen.T, mixer.conv1d.weight, mixer.conv1d.bias, groups=seen.shape[1]).T)
    scan = {k: v for k, v in faults.items() if k in ("skip", "early")}
    delta, B, C = selected(u, mixer, **{k: v for k, v in faults.items() if k not in scan})
    A = sign * torch.exp(mixer.A_log)
    y, h = fused(u, delta, A, B, C, mixer.D, h if "state" in hand else None, **scan)
    return mixer.out_proj(y * F.silu(gate) if gated else y), (seen[-(K - 1) :], h)


def unrolled(delta, A, B, C, *, since=1, write=True, swapped=False, transposed=False, masked="before"):
    B, C = (C, B) if swapped else (B, C)
    total = delta.cumsum(0).T
    before = total - (0 if since else delta.T)
    elapsed = total[:, :, None] - before[:, None, :]
    past = torch.ones(elapsed.shape[1:]).tril().bool()
    if masked == "before":
        elapsed = elapsed.masked_fill(~past, math.inf)
    alpha = torch.einsum("dnij,in,jn->dij", torch.exp(elapsed[:, None] * A[:, :, None, None]), C, B)
    alpha = alpha * past if masked == "after" else alpha
    alpha = alpha * delta.T[:, None, :] if write else alpha
    return alpha.transpose(1, 2) if transposed else alpha


WRONG = [
    (lab_2_4_2.sequential_scan, faulty(states, early=True), "off by one in time"),
    (lab_2_4_2.sequential_scan, faulty(states, ignore=True), "initial state is not used"),
    (lab_2_4_2.sequential_scan, faulty(states, in_place=True), "was changed, and others still need it"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a, x, h)[-1], "every step's state is wanted"),
    (lab_2_4_2.discretise, faulty(discrete, sign=-1), "A's sign"),
    (lab_2_4_2.discretise, faulty(discrete, euler=True), "zero-order hold is its exponential"),
    (lab_2_4_2.discretise, faulty(discrete, exact=True), "exact zero-order hold of B"),
    (lab_2_4_2.discretise, faulty(discrete, timeless=True), "takes no time must write nothing"),
    (lab_2_4_2.selection, faulty(selected, activation=lambda x: x), "softplus is missing"),
    (lab_2_4_2.selection, faulty(selected, swapped=True), "B and C are swapped"),
    (lab_2_4_2.selection, faulty(selected, bias=False), "dt_proj's bias is missing"),
    (lab_2_4_2.combine, lambda a, b: (a[0] * b[0], a[0] * b[1] + a[1]), "Left is the earlier step"),
    (lab_2_4_2.combine, lambda a, b: (a[0] * b[0], a[1] + b[1]), "later step decays what the earlier one put in"),
    (lab_2_4_2.combine, lambda a, b: (a[0] + b[0], b[0] * a[1] + b[1]), "Decays multiply"),
    (lab_2_4_2.chunked_scan, faulty(chunks, hand=False), "handed from chunk to chunk"),
    (lab_2_4_2.chunked_scan, faulty(chunks, decayed=False), "has to decay inside the next chunk"),
    (lab_2_4_2.chunked_scan, faulty(chunks, keep="whole"), "last chunk is cut off"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: chunks(a, x, chunk), "starts from the initial state"),
    (lab_2_4_2.fused_scan, faulty(fused, skip=False), "D u, the skip"),
    (lab_2_4_2.fused_scan, faulty(fused, swapped=True), "B and C are swapped"),
    (lab_2_4_2.fused_scan, faulty(fused, early=True), "off by one in time"),
    (lab_2_4_2.fused_scan, faulty(fused, ignore=True), "not handed on"),
    (lab_2_4_2.fused_scan, faulty(fused, sign=-1), "A's sign"),
    (lab_2_4_2.mamba_block, faulty(block, sign=1), "A's sign"),
    (lab_2_4_2.mamba_block, faulty(block, skip=False), "D u, the skip"),
    (lab_2_4_2.mamba_block, faulty(block, gated=False), "gate is missing"),
    (lab_2_4_2.mamba_block, faulty(block, activation=lambda x: x), "softplus is missing"),
    (lab_2_4_2.mamba_block, faulty(block, hand=("window",)), "state is not handed on"),
    (lab_2_4_2.mamba_block, faulty(block, hand=("state",)), "window is not handed on"),
    (lab_2_4_2.mamba_block, faulty(block, hand=()), "window and state have to be handed on"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, since=0), "Off by one in time"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, write=False), "a step writes delta B u"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, swapped=True), "B and C are swapped"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, masked="never"), "future counts for nothing"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, masked="after"), "mask the exponent"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, transposed=True), "matrix is transposed"),
]

RIGHT = {
    lab_2_4_2.sequential_scan: states,
    lab_2_4_2.discretise: discrete,
    lab_2_4_2.selection: selected,
    lab_2_4_2.chunked_scan: chunks,
    lab_2_4_2.fused_scan: fused,
    lab_2_4_2.mamba_block: block,
    lab_2_4_2.hidden_attention: unrolled,
}
