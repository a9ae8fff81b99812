"""Answers of lab 2.4.2: one block per exercise cell, which takes the place of its stub."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# %% ex-sequential-scan
def sequential_scan(
    decay: Tensor, inputs: Tensor, initial_state: Tensor | None = None
) -> Tensor:
    """The states h[t] = decay[t] * h[t - 1] + inputs[t] of a linear recurrence.

    decay, inputs: (T, ...), time first; every other dimension runs by itself.
    initial_state: (...), the state before the first step; zero without it.

    Returns: (T, ...), the state after each step, computed in the inputs' dtype.
    """
    h = torch.zeros_like(inputs[0]) if initial_state is None else initial_state
    states = torch.empty_like(inputs)
    for t in range(len(inputs)):
        h = decay[t] * h + inputs[t]
        states[t] = h
    return states


# %% ex-discretise
def discretise(delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Step sizes and continuous matrices -> what one step multiplies by, Mamba's way.

    delta: (T, D), positive. A: (D, N), negative. B: (T, N).

    Returns: A_bar (T, D, N) by zero-order hold, B_bar (T, D, N) by the Euler rule, both
        computed in delta's dtype.
    """
    step = delta.unsqueeze(2)
    return torch.exp(step * A), step * B.unsqueeze(1)


# %% ex-selection
def selection(u: Tensor, mixer) -> tuple[Tensor, Tensor, Tensor]:
    """delta, B and C of every step, computed from the input of the scan.

    u: (T, D). mixer has x_proj: D -> dt_rank + N + N (delta's part first, then B, then C),
        dt_proj: dt_rank -> D with a bias, and A_log (D, N).

    Returns: delta (T, D), positive; B (T, N); C (T, N).
    """
    N = mixer.A_log.shape[1]
    rank, B, C = mixer.x_proj(u).split([mixer.dt_proj.in_features, N, N], dim=1)
    return F.softplus(mixer.dt_proj(rank)), B, C


# %% ex-chunked-scan
def chunked_scan(
    decay: Tensor, inputs: Tensor, chunk: int = 64, initial_state: Tensor | None = None
) -> Tensor:
    """`sequential_scan` in chunks: all chunks from zero at once, then the state handed on.

    decay, inputs: (T, ...), any T, also one that `chunk` does not divide.
    initial_state: (...), the state before the first step; zero without it.

    Returns: (T, ...), the state after each step, computed in the inputs' dtype. No loop
        over all T steps, and nothing of size T times T.
    """
    T, rest = len(inputs), -len(inputs) % chunk
    # Steps that change nothing fill the last chunk: decay 1, input 0.
    decay = torch.cat([decay, torch.ones_like(decay[:1]).expand(rest, *decay.shape[1:])])
    inputs = torch.cat(
        [inputs, torch.zeros_like(inputs[:1]).expand(rest, *inputs.shape[1:])]
    )
    reach, states = decay.unflatten(0, (-1, chunk)), inputs.unflatten(0, (-1, chunk))
    for t in range(1, chunk):  # the same step of every chunk at once
        states[:, t].addcmul_(reach[:, t], states[:, t - 1])
        reach[:, t].mul_(reach[:, t - 1])
    h = torch.zeros_like(inputs[0]) if initial_state is None else initial_state
    for k in range(len(states)):
        states[k].addcmul_(reach[k], h)
        h = states[k, -1]
    return states.flatten(0, 1)[:T]


# %% ex-fused-scan
def fused_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The selective scan that keeps one state and never lays out what all steps need.

    u, delta: (T, D). A: (D, N). B, C: (T, N). D: (D,), the skip from input to output.
    initial_state: (D, N), the state before the first step; zero without it.

    Returns: y (T, D), and the state (D, N) after the last step, computed in u's dtype.
        Nothing of size T times D times N.
    """
    h = torch.zeros_like(A) if initial_state is None else initial_state
    y, write = torch.empty_like(u), delta * u
    for t in range(len(u)):
        A_bar = torch.exp(delta[t].unsqueeze(1) * A)
        h = torch.addcmul(write[t].unsqueeze(1) * B[t], A_bar, h)
        y[t] = h @ C[t]
    return y + D * u, h


# %% ex-delta-step
def delta_step(S: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """One step of Gated DeltaNet in one head.

    S: (N, P), the state. k: (N,), a key of length 1. v: (P,), its value.
    decay: share of the state that stays. beta: share of the way to v. Numbers or scalars.

    Returns: (N, P), the next state, a new tensor.
    """
    S = decay * S
    held = k @ S
    return S + torch.outer(k, beta * (v - held))


# %% ex-ssd-scan
def ssd_scan(
    log_decay: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunk: int = 64,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence in one head, by matrix products inside chunks.

    log_decay: (T,), at most 0. q, k: (T, N). v: (T, P). Any T, also one that chunk does
        not divide. initial_state: (N, P), before the first step; zero without it.

    Returns: y (T, P), what each step reads after it has written, and the last state (N, P).
        No loop over all T steps, and nothing of size T times T.
    """
    S = k.new_zeros(k.shape[1], v.shape[1]) if initial_state is None else initial_state
    y = []
    for start in range(0, len(k), chunk):
        part = slice(start, start + chunk)
        Q, K, V, total = q[part], k[part], v[part], log_decay[part].cumsum(0)
        fades = total[:, None] - total  # from step j (columns) to step i (rows)
        future = torch.ones_like(fades).triu(1).bool()
        L = fades.masked_fill(future, -math.inf).exp()
        y.append((L * (Q @ K.T)) @ V + total.exp()[:, None] * (Q @ S))
        until_end = (total[-1] - total).exp()[:, None]
        S = total[-1].exp() * S + (until_end * K).T @ V
    return torch.cat(y), S


# %% ex-mamba-block
def mamba_block(x: Tensor, mixer, cache: tuple[Tensor, Tensor] | None = None):
    """What a Mamba layer does between its normalisation and its residual sum.

    x: (T, d_model), any T from 1 on. mixer: in_proj, conv1d, x_proj, dt_proj, A_log, D and
        out_proj, as transformers' MambaMixer names them. `cache`: what an earlier call
        returned: the last K - 1 inputs of the convolution (K - 1, D), the state (D, N).

    Returns: the output (T, d_model) and the cache after it.
    """
    hidden, gate = mixer.in_proj(x).chunk(2, dim=1)
    kernel = mixer.conv1d.weight.shape[-1]
    past, state = cache or (hidden.new_zeros(kernel - 1, hidden.shape[1]), None)
    hidden = torch.cat([past, hidden])
    filtered = F.conv1d(
        hidden.T, mixer.conv1d.weight, mixer.conv1d.bias, groups=hidden.shape[1]
    )
    u = F.silu(filtered.T)
    delta, B, C = selection(u, mixer)
    y, state = fused_scan(u, delta, -torch.exp(mixer.A_log), B, C, mixer.D, state)
    return mixer.out_proj(y * F.silu(gate)), (hidden[len(hidden) - kernel + 1 :], state)


# %% ex-hidden-attention
def hidden_attention(delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """How much the input of each step counts in each later output, per channel.

    delta: (T, D). A: (D, N). B, C: (T, N).

    Returns: alpha (D, T, T): y[i] = sum over j of alpha[:, i, j] * u[j], without the skip.
    """
    since = torch.cumsum(delta, 0)
    elapsed = since.T.unsqueeze(2) - since.T.unsqueeze(1)  # (D, i, j): delta of j+1 to i
    past = torch.ones(elapsed.shape[1:], device=delta.device).tril().bool()
    elapsed = elapsed.masked_fill(
        ~past, math.inf
    )  # exp(-inf) = 0: the future counts for nothing
    alpha = torch.zeros_like(elapsed)
    for n in range(A.shape[1]):  # one state at a time: (D, T, T) is large enough
        read_write = torch.outer(C[:, n], B[:, n])
        alpha += read_write * torch.exp(elapsed * A[:, n].view(-1, 1, 1))
    return alpha * delta.T.unsqueeze(1)
