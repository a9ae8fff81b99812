"""Known-wrong answers of lab 2.4.2."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from shared import scan
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


def in_chunks(decay, inputs, chunk=64, h=None):
    """Inside a chunk by a matrix of decays, between chunks by a loop."""
    h, found = torch.zeros_like(inputs[0]) if h is None else h, []
    for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
        total = a.log().cumsum(0)
        past = torch.ones(len(a), len(a)).tril().bool().view(len(a), len(a), *[1] * (a.dim() - 1))
        L = (total[:, None] - total[None]).masked_fill(~past, -math.inf).exp()
        found.append((L * x[None]).sum(1) + total.exp() * h)
        h = found[-1][-1]
    return torch.cat(found)


def doubled(decay, inputs):
    """The states from zero along dimension 0, in log2(T) rounds."""
    shift = 1
    while shift < len(inputs):
        inputs = torch.cat([inputs[:shift], decay[shift:] * inputs[:-shift] + inputs[shift:]])
        decay = torch.cat([decay[:shift], decay[shift:] * decay[:-shift]])
        shift *= 2
    return decay, inputs


def chunks_doubled(decay, inputs, chunk=64, h=None):
    h, found = torch.zeros_like(inputs[0]) if h is None else h, []
    for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
        reach, from_zero = doubled(a, x)
        found += [from_zero + reach * h]
        h = found[-1][-1]
    return torch.cat(found)


def chunks_in_numpy(decay, inputs, chunk=64, h=None):
    T, rest, tail = len(inputs), -len(inputs) % chunk, inputs.shape[1:]
    pad = [(0, rest)] + [(0, 0)] * len(tail)
    a = np.pad(decay.numpy(), pad, constant_values=1).reshape(-1, chunk, *tail)
    x = np.pad(inputs.numpy(), pad).reshape(-1, chunk, *tail)
    for t in range(1, chunk):
        x[:, t] += a[:, t] * x[:, t - 1]
        a[:, t] *= a[:, t - 1]
    last = np.zeros(tail) if h is None else h.numpy()
    for k in range(len(x)):
        x[k] += a[k] * last
        last = x[k, -1]
    return x.reshape(-1, *tail)[:T]


def chunks_by_the_scan(decay, inputs, chunk=64, h=None):
    """The scan of steps, with all chunks beside each other."""
    T, rest = len(inputs), -len(inputs) % chunk
    a = torch.cat([decay, decay.new_ones(rest, *decay.shape[1:])]).unflatten(0, (-1, chunk)).transpose(0, 1)
    x = torch.cat([inputs, inputs.new_zeros(rest, *inputs.shape[1:])]).unflatten(0, (-1, chunk)).transpose(0, 1)
    inside, reach = states(a, x), a.cumprod(0)
    ends = states(reach[-1], inside[-1], h)
    start = torch.zeros_like(inputs[:1]) if h is None else h[None]
    return (inside + reach * torch.cat([start, ends[:-1]])).transpose(0, 1).flatten(0, 1)[:T]


def by_products(decay, inputs, h=None):
    """Sums of inputs over products of decays: 0 / 0 where these have vanished."""
    products = decay.cumprod(0)
    return products * ((inputs / products).nan_to_num().cumsum(0) + (0 if h is None else h))


def chunks_by_products(decay, inputs, chunk=64, h=None):
    found = []
    for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
        found.append(by_products(a, x, h))
        h = found[-1][-1]
    return torch.cat(found)


def kept_between_calls(decay, inputs, h=None, room={}):  # noqa: B006
    found = room.setdefault(inputs.shape, torch.empty_like(inputs))
    return found.copy_(states(decay, inputs, h))


def in_float32(decay, inputs, h=None):
    h = torch.zeros(inputs.shape[1:]) if h is None else h
    found = torch.zeros(inputs.shape)
    for t in range(len(inputs)):
        found[t] = h = decay[t] * h + inputs[t]
    return found


def fixed_to_matrices(decay, inputs, h=None):
    T, D = inputs.shape
    h = torch.zeros(D) if h is None else h
    return torch.stack([h := decay[t] * h + inputs[t] for t in range(T)])


def accumulated(decay, inputs, h=None):
    start = torch.zeros_like(inputs[0]) if h is None else h
    return list(itertools.accumulate(zip(decay, inputs, strict=True), lambda h, s: s[0] * h + s[1], initial=start))[1:]


def states_in_numpy(decay, inputs, h=None):
    a, x = decay.numpy(), inputs.numpy()
    h, found = np.zeros(x.shape[1:]) if h is None else h.numpy(), []
    for t in range(len(x)):
        h = a[t] * h + x[t]
        found.append(h)
    return np.stack(found)


def states_by_recursion(decay, inputs, h=None):
    h = 0 * inputs[0] if h is None else h
    first = (decay[0] * h + inputs[0])[None]
    if len(inputs) == 1:
        return first
    return torch.cat([first, states_by_recursion(decay[1:], inputs[1:], first[0])])


def states_doubled(decay, inputs, h=None):
    reach, from_zero = doubled(decay, inputs)
    return from_zero if h is None else from_zero + reach * h


def fused(u, delta, A, B, C, D, h=None, *, skip=True, swapped=False, early=False, ignore=False, sign=1):
    B, C = (C, B) if swapped else (B, C)
    h = torch.zeros_like(A) if h is None or ignore else h
    y = torch.empty_like(u)
    for t in range(len(u)):
        after = torch.exp(sign * delta[t, :, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
        y[t], h = (h if early else after) @ C[t], after
    return y + (D * u if skip else 0), h


def fused_laid_out(u, delta, A, B, C, D, h=None):
    A_bar, B_bar = discrete(delta, A, B)
    found = states(A_bar, B_bar * u[:, :, None], h)
    return (found * C[:, None]).sum(2) + D * u, found[-1]


def fused_in_numpy(u, delta, A, B, C, D, h=None):
    u, delta, A, B, C, D = (x.numpy() for x in (u, delta, A, B, C, D))
    h, y = np.zeros(A.shape) if h is None else h.numpy(), []
    for t in range(len(u)):
        h = np.exp(delta[t][:, None] * A) * h + np.outer(delta[t] * u[t], B[t])
        y.append(h @ C[t] + D * u[t])
    return np.stack(y), h


def fused_by_channel(u, delta, A, B, C, D, h=None):
    """One channel after another."""
    parts = [
        fused(u[:, [d]], delta[:, [d]], A[[d]], B, C, D[[d]], None if h is None else h[[d]]) for d in range(len(A))
    ]
    return torch.cat([y for y, _ in parts], 1), torch.cat([last for _, last in parts])


def fused_by_steps(u, delta, A, B, C, D, h=None):
    h = A.new_zeros(A.shape) if h is None else h.clone()
    y = []
    for now, step, write, read in zip(u, delta, B, C, strict=True):
        h.mul_(torch.exp(torch.einsum("d,dn->dn", step, A))).add_(torch.outer(step * now, write))
        y.append(torch.einsum("dn,n->d", h, read).add(D * now))
    return [torch.stack(y), h]


def fused_by_the_course(u, delta, A, B, C, D, h=None):
    y, h = scan.selective_scan(
        u.T[None], delta.T[None], A, B.T[None], C.T[None], D, return_last_state=True,
        initial_state=None if h is None else h[None],
    )  # fmt: skip
    return y[0].T, h[0]


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


def block_by_modules(x, mixer, cache=None):
    """The layer's own convolution, whose zeros stand on both sides, and the sizes from its attributes."""
    hidden, gate = mixer.in_proj(x).split([mixer.intermediate_size] * 2, dim=-1)
    K = mixer.conv_kernel_size
    window = torch.zeros(K - 1, mixer.intermediate_size, dtype=x.dtype) if cache is None else cache[0]
    seen = torch.cat([window, hidden])
    u = mixer.act(mixer.conv1d(seen.T[None])[0, :, K - 1 : K - 1 + len(x)].T)
    u = mixer.act(mixer.conv1d(seen.T[None])[0, :, K - 1 : len(seen)].T) if len(u) != len(x) else u
    shifted = mixer.conv1d(seen.T[None])[0].T[K - 1 : K - 1 + len(x)]
    delta, B, C = selected(F.silu(shifted), mixer)
    y, h = fused_by_steps(
        F.silu(shifted), delta, -mixer.A_log.exp(), B, C, mixer.D, None if cache is None else cache[1]
    )
    return mixer.out_proj(y * F.silu(gate)), (seen[len(seen) - (K - 1) :].clone(), h)


def block_step_by_step(x, mixer, cache=None):
    """One step at a time, the convolution as a sum."""
    K, (D, N) = mixer.conv1d.weight.shape[-1], mixer.A_log.shape
    window, h = cache if cache else (x.new_zeros(K - 1, D), x.new_zeros(D, N))
    outputs = []
    for row in x:
        hidden, gate = mixer.in_proj(row).chunk(2)
        window = torch.cat([window, hidden[None]])
        u = F.silu((window * mixer.conv1d.weight[:, 0].T).sum(0) + mixer.conv1d.bias)
        delta, B, C = (part[0] for part in selected(u[None], mixer))
        h = torch.exp(-delta[:, None] * mixer.A_log.exp()) * h + torch.outer(delta * u, B)
        outputs.append(mixer.out_proj((h @ C + mixer.D * u) * F.silu(gate)))
        window = window[1:]
    return torch.stack(outputs), [window, h]


def block_with_a_dict(x, mixer, cache=None):
    out, (window, h) = block(x, mixer, cache)
    return [out, (window.clone(), h.clone())]


def block_that_remembers(x, mixer, cache=None, kept={}):  # noqa: B006
    out, kept["cache"] = block(x, mixer, cache or (kept.get("cache") if len(x) < 3 else None))
    return out, kept["cache"]


def short_window(x, mixer, cache=None):
    """Only what this piece has brought, so that a piece shorter than the window loses what came before."""
    out, (_, h) = block(x, mixer, cache)
    hidden, K = mixer.in_proj(x).chunk(2, 1)[0], mixer.conv1d.weight.shape[2]
    return out, (F.pad(hidden, (0, 0, K - 1, 0))[-(K - 1) :], h)


def window_after_the_filter(x, mixer, cache=None):
    out, (window, h) = block(x, mixer, cache)
    return out, (F.silu(window), h)


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


def unrolled_by_definition(delta, A, B, C):
    T, D = delta.shape
    alpha = torch.zeros(D, T, T, dtype=delta.dtype)
    for i in range(T):
        for j in range(i + 1):
            fade = torch.exp(delta[j + 1 : i + 1].sum(0)[:, None] * A)
            alpha[:, i, j] = (fade * B[j] * C[i]).sum(1) * delta[j]
    return alpha


def unrolled_in_numpy(delta, A, B, C):
    delta, A, B, C = (x.numpy() for x in (delta, A, B, C))
    total = delta.cumsum(0).T
    elapsed = np.tril(total[:, :, None] - total[:, None])
    fades = np.exp(elapsed[..., None] * A[:, None, None])
    return np.tril(np.einsum("dijn,in,jn->dij", fades, C, B) * delta.T[:, None])


def unrolled_by_where(delta, A, B, C):
    total = delta.cumsum(0)
    exponent = (total[:, None] - total)[..., None] * A  # (i, j, D, N)
    past = torch.tril(torch.ones(len(delta), len(delta))).bool()[..., None, None]
    weights = torch.where(past, exponent, -math.inf).exp() * (C[:, None] * B)[:, :, None]
    return (weights.sum(3) * delta).permute(2, 0, 1)


def unrolled_by_impulses(delta, A, B, C):
    """Column j is what the scan makes of an input that is 1 at step j and 0 elsewhere."""
    impulses = torch.eye(len(delta), dtype=delta.dtype)
    columns = [fused(impulse[:, None].expand_as(delta), delta, A, B, C, 0 * A[:, 0])[0] for impulse in impulses]
    return torch.stack(columns).permute(2, 1, 0)


def unrolled_by_division(delta, A, B, C):
    """Products divided by products: 0 / 0 where they have vanished, hidden as 0."""
    product = torch.exp(delta.cumsum(0)[:, :, None] * A)  # (T, D, N)
    ratio = (product[:, None] / product).nan_to_num(0, 0, 0)
    return (torch.einsum("ijdn,in,jn->dij", ratio, C, B) * delta.T[:, None]).tril()


def discrete_in_numpy(delta, A, B):
    step = delta.numpy()[..., None]
    return np.exp(step * A.numpy()), step * B.numpy()[:, None]


def discrete_by_einsum(delta, A, B):
    return torch.einsum("td,dn->tdn", delta, A).exp(), torch.einsum("td,tn->tdn", delta, B)


def discrete_step_by_step(delta, A, B):
    steps = [((d[:, None] * A).exp(), torch.outer(d, b)) for d, b in zip(delta, B, strict=True)]
    return [torch.stack(part) for part in zip(*steps, strict=True)]


def discrete_as_powers(delta, A, B):
    return torch.stack([math.e ** (delta.unsqueeze(-1) * A), delta.unsqueeze(-1) * B.unsqueeze(-2)])


def discrete_in_lists(delta, A, B):
    A_bar = [[[math.exp(d * a) for a in row] for d, row in zip(now, A.tolist(), strict=True)] for now in delta.tolist()]
    return A_bar, [[[d * b for b in w] for d in now] for now, w in zip(delta.tolist(), B.tolist(), strict=True)]


def selected_by_weights(u, mixer):
    N = mixer.A_log.shape[-1]
    projected = u @ mixer.x_proj.weight.T
    raw = projected[:, : -2 * N] @ mixer.dt_proj.weight.T + mixer.dt_proj.bias
    return torch.logaddexp(raw, torch.zeros_like(raw)), projected[:, -2 * N : -N], projected[:, -N:]


def selected_by_attributes(u, mixer):
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    rank, B, C = torch.split(mixer.x_proj(u[None]), sizes, dim=-1)
    return [F.softplus(mixer.dt_proj(rank))[0], B[0], C[0]]


def selected_in_numpy(u, mixer):
    weight, wide, bias = (p.detach().numpy() for p in (mixer.x_proj.weight, *mixer.dt_proj.parameters()))
    N, projected = mixer.A_log.shape[1], u.numpy() @ weight.T
    raw = projected[:, : len(weight) - 2 * N] @ wide.T + bias
    return np.log1p(np.exp(raw)), projected[:, -2 * N : -N], projected[:, -N:]


def selected_without_detach(u, mixer):
    delta, B, C = selected(u, mixer)
    return delta.numpy(), B.numpy(), C.numpy()


def selected_row_by_row(u, mixer):
    parts = [selected(row[None], mixer) for row in u]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def selected_by_hand(u, mixer):
    delta, B, C = selected(u, mixer, activation=lambda x: torch.log(1 + torch.exp(x)))
    return delta, B.contiguous(), C.contiguous()


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
    (lab_2_4_2.sequential_scan, in_float32, "off by"),
    (lab_2_4_2.sequential_scan, fixed_to_matrices, "ValueError"),
    (lab_2_4_2.sequential_scan, by_products, "expected"),
    (lab_2_4_2.sequential_scan, kept_between_calls, "until a later call changed it"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: x.cumsum(0), "plain running sum"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a.roll(1, 0), x, h), "expected"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a.mean().expand_as(a), x, h), "off by"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a, (1 - a) * x, h), "off by"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a, x, None if h is None else h / a[0]), "off by"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a, x, h)[:, 0], "shape"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a.flip(0), x.flip(0), h).flip(0), "off by"),
    (lab_2_4_2.discretise, faulty(discrete, sign=-1), "A's sign"),
    (lab_2_4_2.discretise, faulty(discrete, euler=True), "zero-order hold is its exponential"),
    (lab_2_4_2.discretise, faulty(discrete, exact=True), "exact zero-order hold of B"),
    (lab_2_4_2.discretise, faulty(discrete, timeless=True), "takes no time must write nothing"),
    (lab_2_4_2.discretise, lambda *given: discrete(*given)[::-1], "swapped"),
    (lab_2_4_2.discretise, lambda *given: discrete(*given)[0], "expected"),
    (lab_2_4_2.discretise, lambda delta, A, B: discrete(delta.mean(1, True).expand_as(delta), A, B), "off by"),
    (lab_2_4_2.discretise, lambda delta, A, B: discrete(delta[:1].expand_as(delta), A, B), "off by"),
    (lab_2_4_2.discretise, lambda delta, A, B: discrete(delta, -A.abs().mean().expand_as(A), B), "off by"),
    (lab_2_4_2.discretise, lambda delta, A, B: [x.float() for x in discrete(delta, A, B)], "off by"),
    (lab_2_4_2.discretise, lambda d, A, B: ((2 + d[..., None] * A) / (2 - d[..., None] * A), discrete(d, A, B)[1]), ""),
    (lab_2_4_2.discretise, lambda d, A, B: (discrete(d, A, B)[0], discrete(d, A, B)[1] * A), "off by"),
    (lab_2_4_2.discretise, lambda d, A, B: discrete(d.clamp(max=1), A, B), "off by"),
    (lab_2_4_2.selection, faulty(selected, activation=lambda x: x), "softplus is missing"),
    (lab_2_4_2.selection, faulty(selected, swapped=True), "B and C are swapped"),
    (lab_2_4_2.selection, faulty(selected, bias=False), "dt_proj's bias is missing"),
    (lab_2_4_2.selection, faulty(selected, activation=torch.exp), "not exp"),
    (lab_2_4_2.selection, faulty(selected, activation=torch.sigmoid), "not the sigmoid"),
    (lab_2_4_2.selection, faulty(selected, activation=torch.relu), "not relu"),
    (lab_2_4_2.selection, faulty(selected, activation=lambda x: F.softplus(x, beta=2)), "off by"),
    (lab_2_4_2.selection, faulty(selected, activation=F.silu), "off by"),
    (lab_2_4_2.selection, lambda u, mixer: selected(u, mixer)[:2], "expected 3 values"),
    (lab_2_4_2.selection, lambda u, mixer: mixer.x_proj(u).split([2, 3, 3], 1), "expected"),
    (lab_2_4_2.selection, lambda u, mixer: (mixer.A_log.data.fill_(0), *selected(u, mixer)[1:]), "other weights"),
    (lab_2_4_2.selection, lambda u, mixer: selected(u, mixer.train()), "another mode"),
    (lab_2_4_2.selection, lambda u, mixer: selected(u[:1].expand_as(u), mixer), "off by"),
    (lab_2_4_2.chunked_scan, chunks, "a loop over steps"),
    (lab_2_4_2.chunked_scan, chunks_by_products, "expected"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: states(a, x, h), "a loop over steps"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: in_chunks(a, x, len(x), h), "all steps by all steps"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: in_chunks(a, x, 16, h), "`chunk` is not used"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: states_doubled(a, x, h), "`chunk` is not used"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=32, h=None: in_chunks(a, x, chunk, h), "its default"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: in_chunks(a, x, chunk, h).float(), "off by"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: accumulated(a, x, h), "a loop over steps"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: states_in_numpy(a, x, h), "a loop over steps"),
    (lab_2_4_2.chunked_scan, faulty(chunks, from_start=True), "expected"),
    (lab_2_4_2.chunked_scan, faulty(chunks, hand=False), "handed from chunk to chunk"),
    (lab_2_4_2.chunked_scan, faulty(chunks, decayed=False), "has to decay inside the next chunk"),
    (lab_2_4_2.chunked_scan, faulty(chunks, keep="whole"), "last chunk is cut off"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: chunks(a, x, chunk), "starts from the initial state"),
    (lab_2_4_2.fused_scan, faulty(fused, skip=False), "D u, the skip"),
    (lab_2_4_2.fused_scan, faulty(fused, swapped=True), "B and C are swapped"),
    (lab_2_4_2.fused_scan, faulty(fused, early=True), "off by one in time"),
    (lab_2_4_2.fused_scan, faulty(fused, ignore=True), "not handed on"),
    (lab_2_4_2.fused_scan, faulty(fused, sign=-1), "A's sign"),
    (lab_2_4_2.fused_scan, fused_laid_out, "laid out at once"),
    (lab_2_4_2.fused_scan, lambda *given: fused(*given)[0], "expected"),
    (lab_2_4_2.fused_scan, lambda *given: fused(*given)[::-1], "expected"),
    (lab_2_4_2.fused_scan, lambda *given: [x.float() for x in fused(*given)], "off by"),
    (lab_2_4_2.fused_scan, lambda u, delta, A, B, C, D, h=None: fused(u, delta, A, B, C, D.mean(), h), "off by"),
    (lab_2_4_2.fused_scan, lambda u, delta, A, B, C, D, h=None: fused(u, delta, A[:, :2], B[:, :2], C[:, :2], D), ""),
    (lab_2_4_2.fused_scan, lambda u, delta, *given: fused(u, delta[:1].expand_as(delta), *given), "off by"),
    (lab_2_4_2.fused_scan, lambda u, delta, *given: fused(u / delta, delta, *given), "expected"),
    (lab_2_4_2.fused_scan, lambda u, delta, A, *given: fused(u, delta, A.log1p(), *given), "expected"),
    (lab_2_4_2.fused_scan, lambda u, delta, A, B, C, D, h=None: fused(u, delta, A, B, C, D, 0 * A), "not handed on"),
    (lab_2_4_2.mamba_block, short_window, "expected"),
    (lab_2_4_2.mamba_block, window_after_the_filter, "the window"),
    (lab_2_4_2.mamba_block, block_that_remembers, "expected"),
    (lab_2_4_2.mamba_block, lambda x, mixer, cache=None: block(x, mixer, cache)[0], "expected"),
    (lab_2_4_2.mamba_block, lambda x, mixer, cache=None: (block(x, mixer, cache)[0], None), "a cache of two tensors"),
    (lab_2_4_2.mamba_block, lambda x, mixer, cache=None: (mixer(x[None])[0], block(x, mixer)[1]), "in pieces"),
    (lab_2_4_2.mamba_block, lambda x, mixer, cache=None: block(x, mixer.train(), cache), "another mode"),
    (lab_2_4_2.mamba_block, lambda x, mixer, cache=None: (x + block(x, mixer, cache)[0], block(x, mixer)[1]), "off by"),
    (lab_2_4_2.mamba_block, faulty(block, filtered=torch.tanh), "off by"),
    (lab_2_4_2.mamba_block, faulty(block, early=True), "off by"),
    (lab_2_4_2.mamba_block, faulty(block, swapped=True), "off by"),
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
    (lab_2_4_2.hidden_attention, unrolled_by_division, "expected"),
    (lab_2_4_2.hidden_attention, lambda *given: unrolled(*given).mean(0), "shape"),
    (lab_2_4_2.hidden_attention, lambda *given: unrolled(*given).abs(), "off by"),
    (lab_2_4_2.hidden_attention, lambda *given: unrolled(*given).softmax(2), "expected"),
    (lab_2_4_2.hidden_attention, lambda *given: unrolled(*given).tril(-1), "off by"),
    (lab_2_4_2.hidden_attention, lambda *given: unrolled(*given).permute(1, 2, 0), "shape"),
    (lab_2_4_2.hidden_attention, lambda d, A, B, C: unrolled(d, A.mean(1, True).expand_as(A), B, C), "off by"),
    (lab_2_4_2.hidden_attention, lambda d, A, B, C: unrolled(d, A[:, :2], B[:, :2], C[:, :2]), "off by"),
    (lab_2_4_2.hidden_attention, lambda d, A, B, C: unrolled(d[:1].expand_as(d), A, B, C), "off by"),
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
    (lab_2_4_2.delta_step, erased_in_full, "expected"),
    (lab_2_4_2.ssd_scan, step_by_step, "a loop over steps"),
    (lab_2_4_2.ssd_scan, by_division, "off by"),
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
    lab_2_4_2.sequential_scan: [states, accumulated, states_in_numpy, states_by_recursion, states_doubled],
    lab_2_4_2.discretise: [
        discrete, discrete_in_numpy, discrete_by_einsum, discrete_step_by_step, discrete_as_powers, discrete_in_lists,
    ],
    lab_2_4_2.selection: [
        selected, selected_by_weights, selected_by_attributes, selected_in_numpy, selected_row_by_row,
        selected_without_detach, selected_by_hand,
    ],
    lab_2_4_2.chunked_scan: [in_chunks, chunks_doubled, chunks_in_numpy, chunks_by_the_scan],
    lab_2_4_2.fused_scan: [fused, fused_in_numpy, fused_by_channel, fused_by_steps, fused_by_the_course],
    lab_2_4_2.mamba_block: [block, block_by_modules, block_step_by_step, block_with_a_dict],
    lab_2_4_2.hidden_attention: [
        unrolled, unrolled_by_definition, unrolled_in_numpy, unrolled_by_where, unrolled_by_impulses,
    ],
    lab_2_4_2.delta_step: [corrected, by_projection, row_by_row, in_numpy, over_batches],
    lab_2_4_2.ssd_scan: [chunked, all_chunks_at_once, doubles, as_a_list, lambda *a, **k: iter(chunked(*a, **k))],
}  # fmt: skip
