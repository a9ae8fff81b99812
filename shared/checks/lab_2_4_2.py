"""Checks of lab 2.4.2: each exercise on random cases of many sizes against the course's own answer, and the usual
mistakes by name.

Where the lab compares to rounding, the cases are in float64 and judged as exactly; what the lab passes in float32 is
judged as float32.
"""

import functools
import math
import sys
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from shared import scan
from shared.checks import Wrong, agree, as_tensor, case, exercise, expect, unpacked

EXACT = 1e-9  # relative: float64 from its beginning to its end
LONG = 1e-4  # relative: float32 where many steps add up


def _normal(random, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random.randrange(2**31)), dtype=dtype)


def _share(random, *shape: int, dtype=torch.float64) -> torch.Tensor:
    """Numbers between 0.1 and 1."""
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    return 0.1 + 0.9 * torch.rand(*shape, generator=generator, dtype=dtype)


# ---- the recurrence, all its states ---------------------------------------------------------------------------------


def _states(decay, inputs, h=None, before=False):
    """The recurrence by its definition. before: the state before each step, which is off by one."""
    h = torch.zeros_like(inputs[0]) if h is None else h
    states = [h]
    for a, x in zip(decay, inputs, strict=True):
        states.append(a * states[-1] + x)
    return torch.stack(states[:-1] if before else states[1:])


def _steps(random, *shape: int, rate=1.0, state=False, dtype=torch.float64, before=(), **options):
    """A case of a scan. rate: of the decays, exp(-rate) at the most; before: arguments between inputs and state."""
    decay, inputs = torch.exp(-rate * _share(random, *shape, dtype=dtype)), _normal(random, *shape, dtype=dtype)
    given = (_normal(random, *shape[1:], dtype=dtype),) if state else ()
    named = [f"chunk = {chunk}" for chunk in (*before, *options.values())] + ["from a given state"] * state
    what = ", ".join([f"{shape[0]} steps of {math.prod(shape[1:])} recurrences {shape[1:]}", *named])
    return case(what, decay, inputs, *before, *given, **options)


@exercise("2.4.2", "ex-sequential-scan", tensors=1)
def sequential_scan(answer, random):
    cases = [
        _steps(random, 7, 3),
        _steps(random, 7, 3, state=True),
        _steps(random, 7, 3),
        _steps(random, 1, 2),
        _steps(random, 4),
        _steps(random, 5, 3, 2, state=True),
        _steps(random, 3, 3, 3, state=True),
        _steps(random, 1, 1, state=True),
        _steps(random, 6, 2, 3, 2),
        _steps(random, 300, 2, rate=0.01),
        _steps(random, 400, 1, rate=8.0),
    ]
    mistakes = {
        "That is the state before each step: update first, then store it (off by one in time).": (
            lambda a, x, h=None: _states(a, x, h, before=True)
        ),
        "The decay of a step belongs to that step: decay[t] multiplies h[t - 1].": (
            lambda a, x, h=None: _states(torch.cat([a[:1], a[:-1]]), x, h)
        ),
        "Only the last state came: every step's state is wanted, (T, ...).": lambda a, x, h=None: _states(a, x, h)[-1],
        "The decay is missing: that is a plain running sum.": lambda a, x, h=None: x.cumsum(0),
        "The initial state is not used: the first step decays it like any other.": lambda a, x, h=None: _states(a, x),
        "The first step decays the initial state, too.": (
            lambda a, x, h=None: _states(torch.cat([torch.ones_like(a[:1]), a[1:]]), x, h)
        ),
    }
    agree(answer, cases, mistakes, rel=EXACT)
    single = {"dtype": torch.float32}
    agree(answer, [_steps(random, 12, 1, **single), _steps(random, 400, 3, rate=2.0, **single)], rel=LONG)
    return "every step decays the state that it was given and adds its input."


@exercise("2.4.2", "ex-discretise", tensors=2)
def discretise(answer, random):
    def sizes(T, D, N, longest=1.0, dtype=torch.float64):
        delta, A = longest * _share(random, T, D, dtype=dtype), -2 * _share(random, D, N, dtype=dtype)
        return case(f"{T} steps, {D} channels and {N} states", delta, A, _normal(random, T, N, dtype=dtype))

    def rule(A_bar=lambda step, A: torch.exp(step * A), B_bar=lambda step, A, B: step * B):
        def discretise(delta, A, B):
            step, B = delta[:, :, None], B[:, None, :]
            return A_bar(step, A), B_bar(step, A, B).expand_as(step * A)

        return discretise

    cases = [
        sizes(7, 3, 2),
        sizes(1, 2, 3),
        sizes(7, 3, 2),
        sizes(3, 3, 3),
        sizes(20, 1, 1),
        sizes(1, 1, 1),
        sizes(1, 3, 1),
        sizes(4, 1, 5),
        sizes(5, 4, 3, longest=50.0),
        sizes(5, 4, 3, longest=1e-3),
    ]
    mistakes = {
        "A is negative already: another minus sign lets the state grow (A's sign).": rule(
            lambda s, A: torch.exp(-s * A)
        ),
        "That is the Euler rule for A, 1 + delta A: zero-order hold is its exponential.": rule(lambda s, A: 1 + s * A),
        "The exponential is missing: that is delta A.": rule(lambda s, A: s * A),
        "delta belongs inside the exponential: exp(delta A), not delta exp(A).": rule(lambda s, A: s * torch.exp(A)),
        "That is the exact zero-order hold of B. Mamba has the simpler delta B.": rule(
            B_bar=lambda s, A, B: torch.expm1(s * A) / A * B
        ),
        "delta is missing: a step that takes no time must write nothing.": rule(B_bar=lambda s, A, B: B),
        "The two are swapped: A_bar comes first, then B_bar.": lambda *given: rule()(*given)[::-1],
    }
    agree(answer, cases, mistakes, rel=EXACT)
    agree(answer, [sizes(6, 4, 3, dtype=torch.float32), sizes(30, 32, 16, dtype=torch.float32)])
    return "exp(delta A) forgets, delta B writes; both stand still at delta = 0."


# ---- what depends on the input --------------------------------------------------------------------------------------


def _mixer(random, width=5, expand=2, N=3, rank=2, kernel=4, dtype=torch.float64) -> MambaMixer:
    """transformers' own layer, small, with every parameter at random."""
    sizes = {"hidden_size": width, "expand": expand, "state_size": N, "time_step_rank": rank, "conv_kernel": kernel}
    mixer = MambaMixer(MambaConfig(**sizes), layer_idx=0).to(dtype).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(0.5 * _normal(random, *parameter.shape))
    return mixer


def _selection(activation=F.softplus, bias=True, rates=False, order=(0, 1, 2)):
    """The rule of the exercise, with its faults."""

    def selection(u, mixer):
        N = mixer.A_log.shape[1]
        rank, B, C = mixer.x_proj(u).split([mixer.dt_proj.in_features, N, N], 1)
        wide = rank if rates else F.linear(rank, mixer.dt_proj.weight, mixer.dt_proj.bias if bias else None)
        parts = activation(wide), B, C
        return tuple(parts[number] for number in order)

    return selection


@exercise("2.4.2", "ex-selection", tensors=3)
@torch.inference_mode()  # as in the lab, whose layers have parameters that could train
def selection(answer, random):
    def sizes(T, width=3, dtype=torch.float64, scale=1.0, **options):
        mixer = _mixer(random, width, dtype=dtype, **options)
        D, N = mixer.A_log.shape
        rank = mixer.dt_proj.in_features
        what = f"{T} steps, {D} channels, {N} states and rank {rank}"
        return case(what, scale * _normal(random, T, D, dtype=dtype), mixer)

    cases = [
        sizes(7),
        sizes(1, 2, N=2, rank=3),
        sizes(4, 3, N=2, rank=2),
        sizes(4, 2, N=1, rank=1),
        sizes(5, 2, N=4, rank=1, expand=1),
        sizes(6, 3, N=5, rank=4, expand=3, scale=8.0),
        sizes(30, 16, N=16, rank=2, dtype=torch.float32),
    ]
    mistakes = {
        "softplus is missing: a step size has to be positive.": _selection(lambda x: x),
        "softplus, not exp: it grows like its argument, not like an explosion.": _selection(torch.exp),
        "softplus, not the sigmoid: a step size has no upper bound.": _selection(torch.sigmoid),
        "softplus, not relu: a step size has to be positive.": _selection(torch.relu),
        "dt_proj's bias is missing: it sets the step size that a channel has at rest.": _selection(bias=False),
        "That is x_proj's part: dt_proj still has to spread it over the channels.": _selection(lambda x: x, rates=True),
        "B and C are swapped: after delta's part x_proj gives B first, then C.": _selection(order=(0, 2, 1)),
    }
    agree(answer, cases, mistakes)
    return "delta per channel, B and C shared by all channels, all three from the input."


# ---- in chunks ------------------------------------------------------------------------------------------------------


class _Work(TorchDispatchMode):
    """What torch ran in the with: the operations with their shapes, and the most values that one of them laid out."""

    def __init__(self):
        super().__init__()
        self.operations, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        floating = isinstance(result, torch.Tensor) and result.is_floating_point()  # not the bytes of a copy
        shape = tuple(result.shape) if floating else None
        self.operations.append((str(function), shape))
        self.largest = max(self.largest, math.prod(shape or ()))
        return result


def _lines(one, answer) -> int:
    """How many lines of Python an answer runs one after another, without those of libraries and of the checks."""
    count, others = 0, ("<frozen", "site-packages", sysconfig.get_path("stdlib"), str(Path(__file__).parent))

    def trace(frame, event, argument):
        nonlocal count
        if any(other in frame.f_code.co_filename for other in others):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        one.of(answer)
    finally:
        sys.settrace(before)
    return count


def _in_chunks(answer, sequence) -> None:
    """Hold an answer to the chunked form. sequence: (T, **options) -> a case."""

    def work(**options):
        one = sequence(512, **options)
        with _Work() as done:
            one.of(answer)
        if done.largest >= 512 * 512 // 4:
            raise Wrong(
                f"{one.what}: a matrix of all steps by all steps was laid out. `chunk` says how large the blocks are."
            )
        return done.operations, _lines(one, answer)

    short, longer, usual, as_usual = work(chunk=8), work(chunk=32), work(chunk=64), work()
    if (lines := _lines(sequence(2048), answer)) >= 2048:
        raise Wrong(
            f"2,048 steps in chunks of 64 took {lines:,} lines of Python one after another: that is a loop over steps. "
            "Let one operation do the same step of all chunks, or a whole chunk."
        )
    if short == longer:
        raise Wrong("512 steps in chunks of 8 and in chunks of 32 were worked out the same way: `chunk` is not used.")
    if usual != as_usual:
        raise Wrong("without `chunk`, 512 steps were not worked out in chunks of 64, its default.")


def _chunks(handed=True, fades=True, whole=False, given=True, again=False):
    """Chunks by the definition, with their faults."""

    def chunked_scan(decay, inputs, chunk=64, initial_state=None):
        zero = torch.zeros_like(inputs[0])
        start = zero if initial_state is None or not given else initial_state
        h, found = start, []
        for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
            if whole and len(x) < chunk:
                break
            found.append(_states(a, x, start if again else h) if fades else _states(a, x) + h)
            h = found[-1][-1] if handed else zero
        return torch.cat(found)

    return chunked_scan


@exercise("2.4.2", "ex-chunked-scan", tensors=1)
def chunked_scan(answer, random):
    cases = [
        _steps(random, 12, 3, before=(4,)),
        _steps(random, 11, 3, 2, before=(4,)),
        _steps(random, 12, 3, 2, before=(5,), state=True),
        _steps(random, 12, 3, 2, before=(5,), state=True),
        _steps(random, 12, 2, before=(64,), state=True),
        _steps(random, 1, 2, before=(4,), state=True),
        _steps(random, 5, before=(1,)),
        _steps(random, 5, 2, before=(1,), state=True),
        _steps(random, 9, 2, 3, 2, chunk=3),
        _steps(random, 20, 8, 4, before=(7,)),
        _steps(random, 20, 2, before=(100,)),
        _steps(random, 20, 2, before=(20,), state=True),
        _steps(random, 130, 2),
        _steps(random, 150, 2, rate=20.0, before=(64,), state=True),
    ]
    mistakes = {
        "Is the last state handed from chunk to chunk? Every chunk began from zero.": _chunks(handed=False),
        "The state handed on has to decay inside the next chunk, step by step.": _chunks(fades=False),
        "The last chunk is cut off: T need not be a multiple of the chunk.": _chunks(whole=True),
        "The first chunk starts from the initial state; here it started from zero.": _chunks(given=False),
        "Every chunk began from the initial state: only the first one does.": _chunks(again=True),
    }
    agree(answer, cases, mistakes, rel=EXACT)
    single = {"dtype": torch.float32}
    agree(answer, [_steps(random, 100, 3, chunk=16, **single), _steps(random, 300, 2, rate=2.0, **single)], rel=LONG)
    _in_chunks(answer, lambda T, **options: _steps(random, T, 1, **options))
    return "each chunk from zero, then the state handed on, decayed as far as each step is away."


# ---- the selective scan ---------------------------------------------------------------------------------------------


def _fused(skip=True, swapped=False, sign=1, given=True, written=True, before=False):
    """The course's scan on a sequence, with faults."""

    def fused_scan(u, delta, A, B, C, D, initial_state=None):
        B, C = (C, B) if swapped else (B, C)
        u_in = u if written else u / delta
        if before:
            states = _states(torch.exp(delta[:, :, None] * A), (delta * u)[:, :, None] * B[:, None], initial_state)
            start = torch.zeros_like(A) if initial_state is None else initial_state
            return torch.einsum("tdn,tn->td", torch.cat([start[None], states[:-1]]), C) + D * u, states[-1]
        y, h = scan.selective_scan(
            *(x.T[None] for x in (u_in, delta)), sign * A, *(x.T[None] for x in (B, C)), return_last_state=True,
            initial_state=initial_state[None] if given and initial_state is not None else None,
        )  # fmt: skip
        return y[0].T + (D * u if skip else 0), h[0]

    return fused_scan


def _selective(random, T, D, N, state=False, rate=1.0, skip=1.0, dtype=torch.float64):
    """A case of a selective scan with every argument different."""
    u, delta = _normal(random, T, D, dtype=dtype), rate * _share(random, T, D, dtype=dtype)
    A, B, C = -2 * _share(random, D, N, dtype=dtype), *_normal(random, 2, T, N, dtype=dtype)
    given = (_normal(random, D, N, dtype=dtype),) if state else ()
    what = f"{T} steps, {D} channels and {N} states" + ", from a given state" * state
    return case(what, u, delta, A, B, C, skip * (1 + _share(random, D, dtype=dtype)), *given)


@exercise("2.4.2", "ex-fused-scan", tensors=2)
def fused_scan(answer, random):
    cases = [
        _selective(random, 7, 3, 2),
        _selective(random, 7, 3, 2, state=True),
        _selective(random, 7, 3, 2),
        _selective(random, 1, 2, 3),
        _selective(random, 1, 2, 3, state=True),
        _selective(random, 4, 4, 4, state=True),
        _selective(random, 5, 1, 1, state=True),
        _selective(random, 3, 1, 4),
        _selective(random, 6, 4, 1),
        _selective(random, 50, 3, 4, skip=0.0),
        _selective(random, 200, 2, 2, rate=10.0),
    ]
    mistakes = {
        "D u, the skip from input to output, is missing.": _fused(skip=False),
        "B and C are swapped: B writes into the state, C reads from it.": _fused(swapped=True),
        "The output reads the state after the step, not before it (off by one in time).": _fused(before=True),
        "A is negative already: with another minus sign the state grows (A's sign).": _fused(sign=-1),
        "delta is missing from the input: a step writes delta B u.": _fused(written=False),
        "The initial state is not used: the state is not handed on.": _fused(given=False),
    }
    agree(answer, cases, mistakes, rel=EXACT)
    agree(answer, [_selective(random, 30, 32, 16, dtype=torch.float32)])
    T, D, N = 256, 4, 16
    one = _selective(random, T, D, N)
    with _Work() as work:
        one.of(answer)
    if work.largest >= T * D * N // 2:
        raise Wrong(
            f"{one.what}: {work.largest:,} values were laid out at once, which is what all steps need. One state of "
            f"{D * N} is enough: make a step's decay and input where that step needs them."
        )
    return "one state, updated and read in the same step."


# ---- a whole layer --------------------------------------------------------------------------------------------------


def _block(sign=-1, skip=True, gated=True, act=F.silu, ahead=False, window=True, state=True, **selecting):
    """A Mamba block with the course's scan, with faults. window, state: what of the cache it uses."""

    def mamba_block(x, mixer, cache=None):
        hidden, gate = mixer.in_proj(x).chunk(2, 1)
        D, kernel = hidden.shape[1], mixer.conv1d.weight.shape[-1]
        past, h = cache or (hidden.new_zeros(kernel - 1, D), None)
        past, h = past if window else torch.zeros_like(past), h if state else None
        hidden = torch.cat([past, hidden])
        seen = torch.cat([hidden[1:], hidden.new_zeros(1, D)]) if ahead else hidden
        u = act(F.conv1d(seen.T, mixer.conv1d.weight, mixer.conv1d.bias, groups=D).T)
        delta, B, C = _selection(**selecting)(u, mixer)
        y, h = _fused(skip)(u, delta, sign * torch.exp(mixer.A_log), B, C, mixer.D, h)
        y = y * (F.silu(gate) if gated else 1)
        return mixer.out_proj(y), (hidden[len(hidden) - kernel + 1 :], h)

    return mamba_block


@exercise("2.4.2", "ex-mamba-block")
@torch.inference_mode()  # as in the lab
def mamba_block(answer, random):
    whole = {
        "A is -exp(A_log): without the minus sign the state grows (A's sign).": _block(sign=1),
        "D u, the skip around the scan, is missing.": _block(skip=False),
        "The gate is missing: y times SiLU of the second half of in_proj.": _block(gated=False),
        "SiLU after the convolution is missing.": _block(act=lambda t: t),
        "softplus is missing from delta.": _block(activation=lambda t: t),
        "The convolution looks ahead: put its K - 1 zeros before the first step, none behind.": _block(ahead=True),
    }
    pieces = {
        "The cache is not used: window and state have to be handed on.": _block(window=False, state=False),
        "The state is not handed on, only the window: so does transformers' own path.": _block(state=False),
        "The window is not handed on: the first K - 1 steps need the inputs before them.": _block(window=False),
    }
    layers = [
        (9, _mixer(random), [(4, 5), (8, 1), (1, 8), (1,) * 9, (2, 1, 3, 3)]),
        (1, _mixer(random, width=3, expand=1, N=2, rank=1, kernel=3), []),
        (6, _mixer(random, width=4, expand=3, N=1, rank=3, kernel=2), [(1, 5), (3, 3)]),
        (7, _mixer(random, width=2, N=5, rank=1), [(2, 5), (5, 2)]),
        (20, _mixer(random, width=16, N=16, rank=1, dtype=torch.float32), [(8, 12), (1,) * 20]),
    ]
    for T, mixer, cuts in layers:
        x = _normal(random, T, mixer.hidden_size, dtype=mixer.D.dtype)
        _one_layer(answer, case(f"{T} steps through a block of width {mixer.hidden_size}", x, mixer), whole)
        for sizes in cuts:
            what = f"the same {T} steps in pieces of {', '.join(map(str, sizes))}"
            faults = {why: functools.partial(_in_pieces, f, x, mixer, sizes) for why, f in pieces.items()}
            expect(_in_pieces(answer, x, mixer, sizes), answer.own(x, mixer)[0], what, faults)
    return "in one piece and in all the pieces that were tried: window and state are handed on."


def _one_layer(answer, one, mistakes) -> None:
    """The output first, so that a mistake there has its name, then what is kept."""
    out, cache = unpacked(one.of(answer), 2, "the output and the cache")
    right, (right_window, right_state) = one.of(answer.own)
    expect(out, right, one.what, {why: lambda f=f: one.of(f)[0] for why, f in mistakes.items()})
    window, state = unpacked(cache, 2, "a cache of two tensors, the window and the state")
    expect(window, right_window, f"the window after {one.what}: the last K - 1 inputs of the convolution")
    expect(state, right_state, f"the state after {one.what}")


def _in_pieces(block, x, mixer, sizes) -> torch.Tensor:
    """The outputs of a block that reads x piece by piece, as the lab's does: with what it was handed the last time."""
    outputs, kept = [], None
    for piece in x.split(sizes):
        out, kept = unpacked(block(piece, mixer, kept), 2, "the output and the cache")
        outputs.append(out)
    return torch.cat(outputs)


# ---- the scan as a matrix -------------------------------------------------------------------------------------------


def _unrolled(since=1, write=True, swapped=False, transposed=False, sign=1, future=False):
    """The matrix by its definition, with its faults."""

    def hidden_attention(delta, A, B, C):
        B, C = (C, B) if swapped else (B, C)
        total = delta.cumsum(0).T
        elapsed = total[:, :, None] - (total if since else total - delta.T)[:, None]
        past = torch.ones(elapsed.shape[1:]).tril().bool()
        elapsed = elapsed if future else elapsed.masked_fill(~past, math.inf * sign)
        fades = torch.exp(elapsed[:, None] * sign * A[:, :, None, None])
        alpha = torch.einsum("dnij,in,jn->dij", fades, C, B) * (delta.T[:, None] if write else 1)
        return alpha.transpose(1, 2) if transposed else alpha

    return hidden_attention


@exercise("2.4.2", "ex-hidden-attention", tensors=1)
def hidden_attention(answer, random):
    def sizes(*shape, **options):
        one = _selective(random, *shape, **options)
        return case(one.what, *one.args[1:5])

    cases = [
        sizes(7, 3, 2),
        sizes(1, 2, 3),
        sizes(7, 3, 2),
        sizes(4, 4, 4),
        sizes(5, 1, 1),
        sizes(3, 1, 4),
        sizes(6, 4, 1),
        sizes(20, 32, 16, dtype=torch.float32),
    ]
    mistakes = {
        "Off by one in time: input j enters undecayed, so the sum of delta starts at j + 1.": _unrolled(since=0),
        "delta_j is missing: a step writes delta B u.": _unrolled(write=False),
        "B and C are swapped: C reads at step i, B writes at step j.": _unrolled(swapped=True),
        "The matrix is transposed: row i is the output, column j the input.": _unrolled(transposed=True),
        "A is negative already: with another minus sign the past grows (A's sign).": _unrolled(sign=-1),
        "Inputs after i count in output i. The future counts for nothing: above the diagonal all is 0.": _unrolled(
            future=True
        ),
    }
    agree(answer, cases, mistakes)
    # So quick that exp of the future overflows and that of the past vanishes: what is masked or divided late is nan.
    for quick in (sizes(7, 3, 2, rate=400.0), sizes(80, 1, 2, rate=30.0)):
        came = as_tensor(quick.of(answer))
        if came is not None and not torch.isfinite(came).all():
            raise Wrong(
                "with large steps nan or inf came. Above the diagonal the exponent is positive and overflows, and inf "
                "times 0 is nan: mask the exponent, not its exponential."
            )
        agree(answer, [quick], rel=10 * LONG)
    return "one matrix per channel, zero above the diagonal, and alpha u is the scan."


# ---- one recurrence, four updates ------------------------------------------------------------------------------------


def _delta(fade_first=True, erase=1.0, step=None, decayed=True):
    """The rule of the exercise, with its faults."""

    def delta_step(S, k, v, decay, beta):
        faded = decay * S if decayed else S
        held = erase * (k @ (faded if fade_first else S))
        return faded + torch.outer(k, (beta if step is None else step) * (v - held))

    return delta_step


@exercise("2.4.2", "ex-delta-step", tensors=1)
def delta_step(answer, random):
    one = torch.ones(1, dtype=torch.float64)
    cases = [
        case("S = 4, k = 1, v = 10, decay 1, beta 1", 4 * one[:, None], one, 10 * one, 1.0, 1.0),
        case("S = 4, k = 1, v = 10, decay 0.5, beta 0.5", 4 * one[:, None], one, 10 * one, 0.5, 0.5),
    ]
    for N, P, dtype in ((3, 2, torch.float64), (2, 5, torch.float32), (4, 4, torch.float64), (1, 3, torch.float32)):
        k = F.normalize(_normal(random, N, dtype=dtype), dim=0)
        S, v = _normal(random, N, P, dtype=dtype), _normal(random, P, dtype=dtype)
        gates = torch.tensor([random.random(), random.random()], dtype=dtype)
        what = f"{N} keys by {P} values, decay {gates[0]:.2f}, beta {gates[1]:.2f}"
        cases.append(case(what, S, k, v, gates[0], gates[1]))
    S, k, v, _, _ = cases[2].args
    cases.append(case("the same with decay 1 and beta 1 by name", S, k, v, decay=1.0, beta=1.0))
    for N, P in ((16, 64), (128, 8)):
        k = F.normalize(_normal(random, N, dtype=torch.float32), dim=0)
        S, v = _normal(random, N, P, dtype=torch.float32), _normal(random, P, dtype=torch.float32)
        cases.append(case(f"{N} keys by {P} values, decay 0.9, beta 0.7", S, k, v, decay=0.9, beta=0.7))
    mistakes = {
        "That adds to what the key holds: look up what it holds, and write the difference.": _delta(erase=0),
        "The state fades first, and the key is looked up in what is left.": _delta(fade_first=False),
        "beta says how far to go: the whole difference was written.": _delta(step=1),
        "The state does not fade: decay is not used.": _delta(decayed=False),
        "That is keys by values the wrong way round: S is (N, P), so the outer product is that of k and the rest.": (
            lambda S, k, v, decay, beta: decay * S + torch.outer(beta * (v - k @ (decay * S)), k)
        ),
        "beta belongs to what is erased too, not only to what is written.": (
            lambda S, k, v, decay, beta: decay * S + torch.outer(k, beta * v - k @ (decay * S))
        ),
    }
    agree(answer, cases, mistakes)
    return "fade, look up, and write the difference: the last value of a key stays."


def _fading(log_decay, q, k, v, initial_state=None, shift=0, read_first=False, decayed=True):
    """Mamba-2's recurrence by its definition, with its faults."""
    S = k.new_zeros(k.shape[1], v.shape[1]) if initial_state is None else initial_state
    log_decay = torch.cat([log_decay[:shift], log_decay])[: len(log_decay)]
    y = []
    for t in range(len(k)):
        before, S = S, (log_decay[t].exp() if decayed else 1) * S + torch.outer(k[t], v[t])
        y.append(q[t] @ (before if read_first else S))
    return torch.stack(y), S


def _by(chunked=None, given=True, **faults):
    """An answer by the definition; chunked: where the state is forgotten at the start of each chunk."""

    def ssd_scan(log_decay, q, k, v, chunk=64, initial_state=None):
        start = initial_state if given else None
        if not chunked:
            return _fading(log_decay, q, k, v, start, **faults)
        parts = [_fading(*part) for part in zip(*(x.split(chunk) for x in (log_decay, q, k, v)), strict=True)]
        return torch.cat([y for y, _ in parts]), parts[-1][1]

    return ssd_scan


@exercise("2.4.2", "ex-ssd-scan", tensors=2)
def ssd_scan(answer, random):
    def sequence(T, N, P, strength=1.0, dtype=torch.float64, **options):
        log_decay = -strength * _normal(random, T, dtype=dtype).abs()
        q, k, v = (_normal(random, T, size, dtype=dtype) for size in (N, N, P))
        named = "".join(f", {key} = {value}" for key, value in options.items() if key == "chunk")
        given = ", from a given state" if "initial_state" in options else ""
        return case(f"{T} steps of {N} keys by {P} values{named}{given}", log_decay, q, k, v, **options)

    cases = [
        sequence(1, 2, 3),
        sequence(3, 2, 2, chunk=2),
        sequence(7, 3, 2, chunk=3),
        sequence(6, 2, 4, chunk=3, initial_state=_normal(random, 2, 4)),
        sequence(5, 2, 1, chunk=1),
        sequence(5, 4, 3, chunk=64, initial_state=_normal(random, 4, 3)),
        sequence(130, 3, 2),
        sequence(64, 3, 2, strength=0.0, chunk=16),
        sequence(200, 4, 4, strength=20.0),
        sequence(300, 8, 4, strength=0.1, dtype=torch.float32, chunk=50),
    ]
    mistakes = {
        "The state is not handed on: a chunk reads what earlier chunks have written, too.": _by(chunked=True),
        "The initial state is not used.": _by(given=False),
        "A step reads after it has written: the diagonal of L is 1.": _by(read_first=True),
        "The decays are off by one: the write of step j fades by the decays of the steps after it.": _by(shift=1),
        "Nothing fades: the log decays are not used.": _by(decayed=False),
    }
    agree(answer, cases, mistakes, rel=LONG)
    _in_chunks(answer, lambda T, **options: sequence(T, 4, 3, **options))
    return "attention inside a chunk, one state between chunks, and the same sum."
