"""Mamba's selective scan in plain PyTorch: quick enough to train on a CPU, and able to start from a given state.

The recurrence, per channel d and state n (Gu and Dao 2023, section 3; B by the Euler rule, as the kernels have it):

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          y_t = sum_n C_t h_t + D u_t

Under autograd a loop that slices its inputs in time costs O(T^2), because the backward of every slice writes a gradient
of full size. So the loop stands inside an autograd.Function, whose backward runs it from the end to the start.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 16  # steps whose decays and inputs are made together: few calls, and what they make still fits the cache


class _Recurrence(torch.autograd.Function):
    """The loop over time. Time comes first, so that a step reads memory in one piece; the widest dimension comes last,
    so that every operation vectorises. Only the one line that has to be sequential is done step by step."""

    @staticmethod
    def forward(ctx, du, delta, A, B, C, h, keep_states):
        """du = delta * u, delta (T, B, D); A (N, D); B, C (T, B, N); h (B, N, D). Returns y (T, B, D), the last h."""
        T, y = len(du), torch.empty_like(du)
        states = h.new_empty(T + 1 if keep_states else BLOCK + 1, *h.shape)
        states[0] = last = h
        for start in range(0, T, BLOCK):
            now = slice(start, min(start + BLOCK, T))
            block = states[start:] if keep_states else states
            decay, inputs = _decay(delta[now], A), du[now].unsqueeze(2) * B[now].unsqueeze(3)
            for t in range(len(decay)):
                torch.addcmul(inputs[t], decay[t], block[t], out=block[t + 1])
            last = block[len(decay)]
            torch.sum(block[1 : len(decay) + 1] * C[now].unsqueeze(3), 2, out=y[now])
            if not keep_states:
                states[0] = last
        if keep_states:
            ctx.save_for_backward(du, delta, A, B, C, states)
        return y, last.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dh):
        du, delta, A, B, C, states = ctx.saved_tensors
        ddu, ddelta, dB, dC = (torch.empty_like(tensor) for tensor in (du, delta, B, C))
        dA = torch.zeros_like(A)
        for start in reversed(range(0, len(du), BLOCK)):
            now, after = slice(start, min(start + BLOCK, len(du))), slice(start + 1, min(start + BLOCK, len(du)) + 1)
            decay, outputs = _decay(delta[now], A), dy[now].unsqueeze(2)
            grad = C[now].unsqueeze(3) * outputs  # becomes dL/dh_t: what comes from y_t, then from h_{t+1}
            grad[-1] += dh
            for t in reversed(range(len(decay) - 1)):
                grad[t].addcmul_(decay[t + 1], grad[t + 1])
            torch.sum(states[after] * outputs, 3, out=dC[now])
            torch.sum(grad * du[now].unsqueeze(2), 3, out=dB[now])
            torch.sum(grad * B[now].unsqueeze(3), 2, out=ddu[now])
            grad.mul_(decay)
            dh = grad[0].clone()
            grad.mul_(states[now])  # now the gradient of delta_t A
            dA += (grad * delta[now].unsqueeze(2)).sum((0, 1))
            torch.sum(grad.mul_(A), 2, out=ddelta[now])
        return ddu, ddelta, dA, dB, dC, dh, None


def _decay(delta: Tensor, A: Tensor) -> Tensor:
    return (delta.unsqueeze(2) * A).exp_()


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
        A: (D, N), negative. B, C: (batch, N, T). D, delta_bias: (D,).
        delta_softplus: apply softplus to delta (after the bias).
        return_last_state: also return the state after the last step.
        initial_state: (batch, D, N), the state to start from; zero without it.

    Returns: y (batch, D, T) in u's dtype, and with `return_last_state` the state (batch, D, N), in float32 at least.
    Raises: ValueError where shapes disagree.
    """
    (batch, width, T), N = u.shape, A.shape[1]
    wanted = {"delta": (batch, width, T), "A": (width, N), "B": (batch, N, T), "C": (batch, N, T)}
    for name, shape in wanted.items():
        if (found := tuple(locals()[name].shape)) != shape:
            raise ValueError(f"{name} has shape {found}, but u {tuple(u.shape)} and N = {N} need {shape}.")
    dtype = torch.promote_types(u.dtype, torch.float32)
    time_major = lambda x: x.to(dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    x, step = time_major(u), time_major(delta)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)
    if delta_softplus:
        step = F.softplus(step)
    h = x.new_zeros(batch, width, N) if initial_state is None else initial_state.to(dtype)
    h = h.transpose(1, 2).contiguous()
    inputs = (step * x, step, A.to(dtype).t().contiguous(), time_major(B), time_major(C), h)
    keep_states = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    y, last = _Recurrence.apply(*inputs, keep_states)
    if D is not None:
        y = y + D.to(dtype) * x
    y = y.permute(1, 2, 0)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, last.transpose(1, 2)) if return_last_state else y


@contextmanager
def in_transformers() -> Iterator[None]:
    """Give this scan to transformers' Mamba and Jamba, whose own reference loop is slow and trains in O(T^2).

    Where mamba-ssm's kernel runs instead of the reference, nothing changes. A cache is filled as before; continuing a
    filled cache by more than one token stays wrong, as in transformers itself (the state is not handed to the scan).
    """
    import inspect

    from transformers.models.jamba import modeling_jamba
    from transformers.models.mamba import modeling_mamba

    def scan(*args, use_mambapy=None, use_associative_scan=None, **kwargs):
        return selective_scan(*args, **kwargs)

    before = {module: module.mamba_selective_scan for module in (modeling_mamba, modeling_jamba)}
    try:
        for module, function in before.items():
            chosen = inspect.getclosurevars(function).nonlocals.get("implementation", function)
            if chosen.__module__.startswith("transformers."):
                module.mamba_selective_scan = scan
        yield
    finally:
        for module, function in before.items():
            module.mamba_selective_scan = function
