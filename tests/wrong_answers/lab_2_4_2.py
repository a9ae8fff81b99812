"""Known-wrong answers of lab 2.4.2."""

import math

import numpy as np
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


def corrected(S, k, v, decay, beta, *, erase=1.0, fade_first=True, fade=True, all_of_it=False):
    faded = decay * S if fade else S
    held = torch.einsum("n,np->p", k, faded if fade_first else S)
    return faded + k[:, None] * ((1 if all_of_it else beta) * (v - erase * held))[None]


def by_projection(S, k, v, decay, beta):
    """(I - beta k k') decay S + beta k v'"""
    return (torch.eye(len(k), dtype=S.dtype) - beta * torch.outer(k, k)) @ (decay * S) + beta * torch.outer(k, v)


def row_by_row(S, k, v, decay, beta):
    held = [sum(k[n] * decay * S[n, p] for n in range(len(k))) for p in range(len(v))]
    return [[decay * S[n, p] + k[n] * beta * (v[p] - held[p]) for p in range(len(v))] for n in range(len(k))]


def in_numpy(S, k, v, decay, beta):
    S, k, v, decay, beta = (np.asarray(x) for x in (S, k, v, decay, beta))
    return decay * S + np.outer(k, beta * (v - k @ (decay * S)))


def over_batches(S, k, v, decay, beta):
    S = (decay * S).clone()
    return S.addr_(k, beta * (v - S.T.mv(k)))


def chunked(log_decay, q, k, v, chunk=64, initial_state=None, *, handed=True, start=True, diagonal=0, fade_state=True):
    S = torch.zeros(k.shape[1], v.shape[1], dtype=v.dtype) if initial_state is None or not start else initial_state
    y = []
    for a, Q, K, V in zip(*(x.split(chunk) for x in (log_decay, q, k, v)), strict=True):
        total = a.cumsum(0)
        L = (total[:, None] - total).exp().tril(diagonal)
        y.append((L * (Q @ K.T)) @ V + (total.exp()[:, None] * Q) @ S)
        keep = total[-1].exp() if fade_state else 1
        S = (keep * S if handed else 0 * S) + (K * (total[-1] - total).exp()[:, None]).T @ V
    return torch.cat(y), S


def all_chunks_at_once(log_decay, q, k, v, chunk=64, initial_state=None):
    T, rest = len(k), -len(k) % chunk
    pad = lambda x: torch.cat([x, x.new_zeros(rest, *x.shape[1:])]).unflatten(0, (-1, chunk))  # noqa: E731
    a, Q, K, V = map(pad, (log_decay, q, k, v))
    total = a.cumsum(1)
    L = (total[:, :, None] - total[:, None]).masked_fill(torch.ones(chunk, chunk).triu(1).bool(), -math.inf).exp()
    inside = torch.einsum("cij,cin,cjn,cjp->cip", L, Q, K, V) if chunk < 8 else (L * (Q @ K.mT)) @ V
    added = (K * (total[:, -1:] - total).exp()[..., None]).mT @ V
    S = v.new_zeros(k.shape[1], v.shape[1]) if initial_state is None else initial_state
    before = []
    for faded, part in zip(total[:, -1].exp(), added, strict=True):
        before.append(S)
        S = faded * S + part
    y = inside + total.exp()[..., None] * (Q @ torch.stack(before))
    return y.flatten(0, 1)[:T], S


def by_one_einsum(log_decay, q, k, v, chunk=64, initial_state=None):
    S = torch.zeros(k.shape[1], v.shape[1]).to(k) if initial_state is None else initial_state.clone()
    y = []
    for start in range(0, len(q), chunk):
        a, Q, K, V = (x[start : start + chunk] for x in (log_decay, q, k, v))
        total = torch.cumsum(a, 0)
        past = torch.tril(torch.ones(len(a), len(a), dtype=torch.bool))
        L = torch.exp(torch.where(past, total[:, None] - total[None], -torch.inf))
        y.append(torch.einsum("ij,in,jn,jp->ip", L, Q, K, V) + torch.einsum("i,in,np->ip", total.exp(), Q, S))
        S = total[-1].exp() * S + torch.einsum("j,jn,jp->np", (total[-1] - total).exp(), K, V)
    return torch.cat(y), S


def chunks_in_numpy(log_decay, q, k, v, chunk=64, initial_state=None):
    log_decay, q, k, v = (x.detach().numpy() for x in (log_decay, q, k, v))
    S = np.zeros((k.shape[1], v.shape[1])) if initial_state is None else initial_state.detach().numpy()
    y = []
    for start in range(0, len(k), chunk):
        part = slice(start, start + chunk)
        total = np.cumsum(log_decay[part])
        L = np.exp(np.where(np.tri(len(total), dtype=bool), total[:, None] - total, -np.inf))
        y.append((L * (q[part] @ k[part].T)) @ v[part] + np.exp(total)[:, None] * (q[part] @ S))
        S = np.exp(total[-1]) * S + (np.exp(total[-1] - total)[:, None] * k[part]).T @ v[part]
    return np.concatenate(y), S


def doubles(log_decay, q, k, v, chunk=64, initial_state=None):
    given = None if initial_state is None else initial_state.double()
    return chunked(log_decay.double(), q.double(), k.double(), v.double(), chunk, given)


def as_a_list(*args, **kwargs):
    return list(chunked(*args, **kwargs))


def step_by_step(log_decay, q, k, v, chunk=64, initial_state=None):
    S = v.new_zeros(k.shape[1], v.shape[1]) if initial_state is None else initial_state
    y = []
    for t in range(len(k)):
        S = log_decay[t].exp() * S + torch.outer(k[t], v[t])
        y.append(q[t] @ S)
    return torch.stack(y), S


def by_division(log_decay, q, k, v, chunk=64, initial_state=None):
    """Products of decays divided by products of decays: 0 / 0 where they fade."""
    S = v.new_zeros(k.shape[1], v.shape[1]) if initial_state is None else initial_state
    y = []
    for a, Q, K, V in zip(*(x.split(chunk) for x in (log_decay, q, k, v)), strict=True):
        product = a.exp().cumprod(0)
        L = (product[:, None] / product).tril().nan_to_num()
        y.append((L * (Q @ K.T)) @ V + product[:, None] * (Q @ S))
        S = product[-1] * S + (K * (product[-1] / product).nan_to_num()[:, None]).T @ V
    return torch.cat(y), S


def one_chunk(log_decay, q, k, v, chunk=64, initial_state=None):
    return chunked(log_decay, q, k, v, len(k), initial_state)


def without_decay(log_decay, *args, **kwargs):
    return chunked(0 * log_decay, *args, **kwargs)


def read_by_key(log_decay, q, k, v, *args, **kwargs):
    return chunked(log_decay, k, q, v, *args, **kwargs)


def erased_in_full(S, k, v, decay, beta):
    return decay * S + torch.outer(k, beta * v - k @ (decay * S))


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
    (lab_2_4_2.delta_step, faulty(corrected, erase=0), "adds to what the key holds"),
    (lab_2_4_2.delta_step, faulty(corrected, fade_first=False), "fades first"),
    (lab_2_4_2.delta_step, faulty(corrected, all_of_it=True), "how far to go"),
    (lab_2_4_2.delta_step, faulty(corrected, fade=False), "does not fade"),
    (lab_2_4_2.delta_step, faulty(corrected, erase=0.5), "expected"),
    (lab_2_4_2.delta_step, lambda S, k, v, decay, beta: S.mul_(decay) + torch.outer(k, beta * (v - k @ S)), "changed"),
    (lab_2_4_2.delta_step, lambda S, k, v, decay, beta: corrected(S, k, v, decay, beta).sum(0), "shape"),
    (lab_2_4_2.delta_step, lambda S, k, v, decay, beta: corrected(S, k, v, beta, decay), "expected"),
    (lab_2_4_2.delta_step, lambda S, k, v, decay, beta: corrected(S, k, v, float(decay) ** 2, beta), "expected"),
    (lab_2_4_2.delta_step, lambda S, k, v, decay, beta: torch.outer(k, v), "expected"),
    (lab_2_4_2.delta_step, lambda S, *a, **k: corrected(S, *a, **k) if len(S) < 5 else S, "expected"),
    (lab_2_4_2.delta_step, lambda S, k, v, alpha, beta: corrected(S, k, v, alpha, beta), "TypeError"),
    (lab_2_4_2.delta_step, erased_in_full, "expected"),
    (lab_2_4_2.ssd_scan, step_by_step, "a loop over steps"),
    (lab_2_4_2.ssd_scan, by_division, "off by"),
    (lab_2_4_2.ssd_scan, lambda *a, chunk=64, **k: chunked(*a, **k), "`chunk` is not used"),
    (lab_2_4_2.ssd_scan, lambda *a, chunk=64, **k: chunked(*a, chunk=max(chunk, 64), **k), "`chunk` is not used"),
    (lab_2_4_2.ssd_scan, lambda *a, chunk=32, **k: chunked(*a, chunk=chunk, **k), "keep the default"),
    (lab_2_4_2.ssd_scan, one_chunk, "all steps by all steps"),
    (lab_2_4_2.ssd_scan, faulty(chunked, handed=False), "expected"),
    (lab_2_4_2.ssd_scan, faulty(chunked, start=False), "initial state is not used"),
    (lab_2_4_2.ssd_scan, faulty(chunked, diagonal=-1), "expected"),
    (lab_2_4_2.ssd_scan, faulty(chunked, diagonal=1), "expected"),
    (lab_2_4_2.ssd_scan, faulty(chunked, fade_state=False), "expected"),
    (lab_2_4_2.ssd_scan, lambda *a, **k: chunked(*a, **k)[0], "expected"),
    (lab_2_4_2.ssd_scan, lambda *a, **k: chunked(*a, **k)[::-1], "expected"),
    (lab_2_4_2.ssd_scan, without_decay, "Nothing fades"),
    (lab_2_4_2.ssd_scan, read_by_key, "expected"),
]

RIGHT = {
    lab_2_4_2.sequential_scan: states,
    lab_2_4_2.discretise: discrete,
    lab_2_4_2.selection: selected,
    lab_2_4_2.chunked_scan: chunks,
    lab_2_4_2.fused_scan: fused,
    lab_2_4_2.mamba_block: block,
    lab_2_4_2.hidden_attention: unrolled,
    lab_2_4_2.delta_step: [corrected, by_projection, row_by_row, in_numpy, over_batches],
    lab_2_4_2.ssd_scan: [
        chunked,
        all_chunks_at_once,
        by_one_einsum,
        chunks_in_numpy,
        doubles,
        as_a_list,
        lambda *a, **k: iter(chunked(*a, **k)),
    ],
}
