"""Mamba's selective scan in plain PyTorch: exact, resumable, and quick enough to train on a CPU.

The recurrence, per channel d and state n (Gu and Dao 2023, section 3; B by the Euler rule, as the kernels have it):

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          y_t = (sum_n C_t h_t + D u_t) silu(z_t)

The states are N times as large as what goes in and comes out, so they never exist for the whole sequence. It is cut
into chunks and the channels into tiles: the states of one chunk of one tile fit a core's cache, where they are made,
used and overwritten. The backward pass gets only the state before each chunk and makes the others again. (Under plain
autograd a loop over time costs O(T^2): the gradient of every slice that it reads has the size of the whole.)

Shapes: batch, D channels, T steps, N states; in a tile b sequences, w channels, chunks of k steps. Time comes first, so
that a step is one piece of memory, and channels last, so that arithmetic runs along them.
"""

import importlib
import math
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.errors import one_block
from shared.machine import kernels

CHUNK = 64  # steps; the kept states take N / CHUNK times the memory of u
LANES = 12288  # states of a tile: with fewer, calling torch takes longer than the arithmetic of a step


class _Tile:
    """Some channels of some sequences, and room for the decays and states of one chunk, used for one after another."""

    def __init__(self, rows: slice, channels: slice, z, u, delta, A, B, C, D, bias, softplus: bool):
        self.index, self.softplus, self.dtype = (rows, channels), softplus, A.dtype
        self.u, self.delta, self.B, self.C = self.first(u), self.first(delta), B[:, rows], C[:, rows]
        self.z = None if z is None else self.first(z)
        self.A, self.D, self.bias = A[:, channels], D[channels], bias[channels]
        self.A_log2e = self.A * math.log2(math.e)  # exp2 takes a third of exp's time on a CPU
        self.decay = A.new_empty(min(CHUNK, len(self.u)), self.u.shape[1], *self.A.shape)
        self.states = A.new_empty(len(self.decay) + 1, *self.decay.shape[1:])
        states = self.states.unbind()
        self.steps = list(zip(self.decay.unbind(), states[:-1], states[1:], strict=True))

    def first(self, x: Tensor) -> Tensor:
        """The tile's part (T, b, w) of x (batch, D, T)."""
        x = x[self.index].to(self.dtype)
        b, w, T = x.shape
        if x.stride(2) == 1:  # torch turns a matrix several times as fast as three dimensions
            return x.reshape(b * w, T).t().contiguous().view(T, b, w)
        return x.permute(2, 0, 1).contiguous()

    def run(self, now: slice) -> tuple[Tensor, ...]:
        """Make a chunk's decays and, from `states[0]`, its k states; returns u, softplus' argument, delta, decays."""
        u, raw = self.u[now], self.delta[now] + self.bias
        delta, k = F.softplus(raw) if self.softplus else raw, len(raw)
        decay = torch.mul(delta.unsqueeze(2), self.A_log2e, out=self.decay[:k]).exp2_()
        torch.mul((delta * u).unsqueeze(2), self.B[now].unsqueeze(3), out=self.states[1 : k + 1])
        for decay_t, before, after in self.steps[:k]:  # after holds the input: the only line that needs the order
            after.addcmul_(decay_t, before)
        return u, raw, delta, decay

    def readout(self, u: Tensor, now: slice) -> Tensor:
        return _weigh(self.C[now], self.states[1 : len(u) + 1]).addcmul_(self.D, u)


def _weigh(weights: Tensor, states: Tensor) -> Tensor:
    """sum_n weights (k, b, n) states (k, b, n, w) -> (k, b, w). Autocast leaves an operation with `out` in float32."""
    out = states.new_empty(*states.shape[:2], 1, states.shape[3])
    torch.bmm(weights.flatten(0, 1).unsqueeze(1), states.flatten(0, 1), out=out.flatten(0, 1))
    return out.squeeze(2)


def _tiles(z, u, delta, A, *rest) -> Iterator[_Tile]:
    (batch, D, _), N = u.shape, len(A)
    lanes = batch * N * D if u.is_cuda else LANES  # a GPU wants few and large operations
    w = max(1, min(D, lanes // N))
    b = max(1, min(batch, lanes // (N * w)))
    for row in range(0, batch, b):
        for channel in range(0, D, w):
            yield _Tile(slice(row, row + b), slice(channel, channel + w), z, u, delta, A, *rest)


def _chunks(T: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, T)) for start in range(0, T, CHUNK)]


class _Scan(torch.autograd.Function):
    """z and the inputs u, delta (batch, D, T) in any dtype; the inputs A (N, D), B, C (T, batch, N), D, bias (D,) and
    h (batch, N, D) in the dtype of all arithmetic. Returns y (batch, D, T) in u's dtype and the last h."""

    @staticmethod
    def forward(ctx, keep_states, softplus, z, h, *inputs):
        batch, D, T = inputs[0].shape
        y, last = inputs[0].new_empty(batch, T, D).transpose(1, 2), h.clone()
        starts = h.new_empty(len(_chunks(T)) if keep_states else 0, *h.shape)
        for tile in _tiles(z, *inputs, softplus):
            rows, channels = tile.index
            tile.states[0] = h[rows, :, channels]
            for i, now in enumerate(_chunks(T)):
                if keep_states:
                    starts[i, rows, :, channels] = tile.states[0]
                out = tile.readout(tile.run(now)[0], now)
                if z is not None:
                    out.mul_(F.silu(tile.z[now]))
                y[tile.index][..., now] = out.permute(1, 2, 0)
                tile.states[0] = tile.states[len(out)]
            last[rows, :, channels] = tile.states[0]
            del tile  # before the next takes its room
        if keep_states:
            ctx.softplus = softplus
            ctx.save_for_backward(starts, z, *inputs)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        starts, z, *inputs = ctx.saved_tensors
        dh, (dz, *grads) = dlast.clone(), (None if x is None else torch.zeros_like(x) for x in (z, *inputs))
        du, ddelta, dA, dB, dC, dD, dbias = grads
        for tile in _tiles(z, *inputs, ctx.softplus):
            rows, channels = tile.index
            dout, room, more_room = tile.first(dy), torch.empty_like(tile.decay), torch.empty_like(tile.decay)
            later = dh[rows, :, channels].contiguous()  # dL/dh of the last step, from what follows it
            for i, now in reversed(list(enumerate(_chunks(dy.shape[2])))):
                tile.states[0] = starts[i, rows, :, channels]
                u, raw, delta, decay = tile.run(now)
                k, out = len(u), dout[now]
                if z is not None:
                    gate = tile.z[now]
                    slope = gate.sigmoid() * (1 + gate * (1 - gate.sigmoid()))
                    dz[tile.index][..., now] = (out * tile.readout(u, now) * slope).permute(1, 2, 0)
                    out = out * F.silu(gate)
                grad = torch.mul(tile.C[now].unsqueeze(3), out.unsqueeze(2), out=room[:k])
                grad[-1].add_(later)
                for t in reversed(range(k - 1)):
                    grad[t].addcmul_(decay[t + 1], grad[t + 1])  # now dL/dh_t: from y_t and from h_{t+1}
                later, product = decay[0] * grad[0], more_room[:k]
                dC[now, rows] += torch.mul(tile.states[1 : k + 1], out.unsqueeze(2), out=product).sum(3)
                dB[now, rows] += torch.mul(grad, (delta * u).unsqueeze(2), out=product).sum(3)
                dinput = _weigh(tile.B[now], grad)  # of delta u
                grad.mul_(decay).mul_(tile.states[:k])  # now of delta A
                dA[:, channels] += torch.mul(grad, delta.unsqueeze(2), out=product).sum((0, 1))
                dstep = grad.mul_(tile.A).sum(2).addcmul_(dinput, u)
                if ctx.softplus:
                    dstep.mul_(raw.sigmoid())
                dD[channels] += (out * u).sum((0, 1))
                dbias[channels] += dstep.sum((0, 1))
                ddelta[tile.index][..., now] = dstep.permute(1, 2, 0)
                du[tile.index][..., now] = dinput.mul_(delta).addcmul_(tile.D, out).permute(1, 2, 0)
            dh[rows, :, channels] = later
            del tile
        return None, None, dz, dh, *grads


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run Mamba's selective scan over a sequence; the arguments are those of mamba-ssm's `selective_scan_fn`.

    Args:
        u, delta, z: (batch, D, T). z gates the output with SiLU.
        A: (D, N), negative. B, C: (batch, N, T); constant ones by `expand`. D, delta_bias: (D,).
        delta_softplus: apply softplus to delta (after the bias).
        return_last_state: also return the state after the last step.
        initial_state: (batch, D, N), the state to start from; zero without it.

    Returns: y (batch, D, T) in u's dtype, float32 for an integer u, and, if asked for, the state (batch, D, N);
        arithmetic is float32 at least.
    Raises: ValueError where shapes disagree, or for complex tensors: Mamba's A is real, and while mamba-ssm also takes
        the complex A of S4 with B and C, this scan does not.
    """
    (batch, width, T), N = u.shape, A.shape[1]
    wanted = {"delta": (batch, width, T), "A": (width, N), "B": (batch, N, T), "C": (batch, N, T), "D": (width,)}
    wanted |= {"z": (batch, width, T), "delta_bias": (width,), "initial_state": (batch, width, N)}
    for name, shape in wanted.items():
        if (found := locals()[name]) is not None and tuple(found.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(found.shape)}, but u {tuple(u.shape)} and N = {N} need {shape}.")
    for name in ("u", *wanted):
        if (found := locals()[name]) is not None and found.is_complex():
            raise ValueError(
                f"{name} is {found.dtype}, and this scan is for real numbers: give {name}.real if you mean it."
            )
    dtype = torch.promote_types(u.dtype, torch.float32)
    u = u if u.is_floating_point() else u.to(dtype)
    A, D, delta_bias = (A.new_zeros(width) if x is None else x for x in (A.t(), D, delta_bias))
    h = A.new_zeros(batch, width, N) if initial_state is None else initial_state
    B, C, h = B.permute(2, 0, 1), C.permute(2, 0, 1), h.transpose(1, 2)
    A, B, C, D, bias, h = (x.to(dtype).contiguous() for x in (A, B, C, D, delta_bias, h))
    tensors = (z, h, u, delta, A, B, C, D, bias)
    keep_states = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, last = _Scan.apply(keep_states, delta_softplus, *tensors)
    return (y, last.transpose(1, 2)) if return_last_state else y


# Families whose scan starts from zero, whatever the cache holds, and their mixers.
MIXERS = {
    "mamba": "MambaMixer",
    "falcon_mamba": "FalconMambaMixer",
    "jamba": "JambaMambaMixer",
    "zamba": "ZambaMambaMixer",
}
# Is a cache of a family with a state exact when it goes on by several tokens? tests/test_scan.py measures each.
CONTINUES = {
    **dict.fromkeys(MIXERS, "inside in_transformers"),
    **dict.fromkeys(("mamba2", "nemotron_h", "granitemoehybrid", "falcon_h1", "zamba2"), "always"),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear"), "always"),
    **dict.fromkeys(("minimax", "bailing_hybrid", "lfm2", "lfm2_moe", "lfm3", "zaya"), "always"),
    **dict.fromkeys(("qwen4_exp_text", "inkling_text", "inkling2_text"), "always"),
    "bamba": "with position_ids",  # it counts them from zero at each call; `generate` gives them
}
_given: ContextVar[Iterator[Tensor] | None] = ContextVar("the states with which the scans that follow start")
_blocks: set[object] = set()  # that are open; they may end in another order than they began
_restored = ExitStack()


def _carrying(call):
    """The call of a mixer, with the state that its cache holds (None: the cache is new) at hand for the scan in it."""
    from transformers import Cache

    def carry(mixer, *args, **kwargs):
        cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
        state = None if cache is None else cache.get_recurrent_state(mixer.layer_idx)
        states = None
        if state is not None:  # Zamba's has heads, which are scanned one after another
            states = iter(state.unbind(1) if state.ndim == 4 else [state])
        before = _given.set(states)
        try:
            return call(mixer, *args, **kwargs)
        finally:
            _given.reset(before)

    return carry


def _resuming(implementation):
    """What stands in the library's scan's place: this module's where a state is at hand, else `implementation`."""

    def scan(*args, use_mambapy=None, use_associative_scan=None, **kwargs):
        if (states := _given.get(None)) is None:
            return implementation(*args, **kwargs)
        return selective_scan(*args, **kwargs, initial_state=next(states))

    return scan


def _give() -> None:
    """Put this scan in the library's scan's place, until `_restored` is closed."""
    kernels.by_device()
    for family, name in MIXERS.items():
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        fast = kernels.chosen(module.mamba_selective_scan)
        scan = _resuming(kernels.choose(fast, selective_scan) if kernels.is_kernel(fast) else selective_scan)
        _restored.enter_context(patch.object(module, "mamba_selective_scan", scan))
        mixer = getattr(module, name)
        _restored.enter_context(patch.object(mixer, "__call__", _carrying(mixer.__call__)))


@one_block
def in_transformers() -> Iterator[dict[str, str]]:
    """Give this scan to transformers' Mamba, FalconMamba, Jamba and Zamba, whose own loop is slow, trains in O(T^2),
    and drops the state when a filled cache is continued by more than one token.

    Inside, chunked prefill, a conversation continued from its cache and Jamba's `generate(prefill_chunk_size=)` are
    exact. (`generate(cache_params=)` of the two Mambas takes the new tokens only, here as outside.) With gradient
    checkpointing the backward belongs inside too: it runs the forward again. Where mamba-ssm's kernel runs, it still
    does every scan from zero; one that starts from a state, which the kernel cannot, is this one.

    What follows `as` is CONTINUES: {family with a state: "inside in_transformers", "always" or "with position_ids"},
    when a cache of it that goes on by several tokens is exact.
    """
    block = object()
    _blocks.add(block)
    try:
        if len(_blocks) == 1:
            _give()
        yield CONTINUES
    finally:
        _blocks.remove(block)
        if not _blocks:
            _restored.close()
