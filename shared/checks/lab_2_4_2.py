"""Checks of lab 2.4.2: each exercise on small random cases against the definition, and the usual mistakes by name.

All cases are in float64, so that an answer is right or wrong and never a matter of rounding.
"""

from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from shared import scan
from shared.checks import Wrong, agree, case, exercise, expect
from shared.checks.watch import Answer


def _case(seed: int, T: int = 7, D: int = 3, N: int = 2) -> SimpleNamespace:
    """A small selective scan with every argument different, and the state to start from."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    uniform = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return SimpleNamespace(
        u=normal(T, D),
        delta=0.1 + uniform(T, D),
        A=-0.2 - 2 * uniform(D, N),
        B=normal(T, N),
        C=normal(T, N),
        D=1 + uniform(D),
        state=normal(D, N),
    )


def _states(decay, inputs, h=None, before=False):
    """The recurrence by its definition. before: the state before each step, which is off by one."""
    h = torch.zeros_like(inputs[0]) if h is None else h
    states = [h]
    for a, x in zip(decay, inputs, strict=True):
        states.append(a * states[-1] + x)
    return torch.stack(states[:-1] if before else states[1:])


def _untouched(answer, *arguments):
    """What an answer returns for copies of the arguments; `Wrong` if it has changed them."""
    given = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
    came = answer(*given)
    if not all(torch.equal(g, x) for g, x in zip(given, arguments, strict=True) if isinstance(x, torch.Tensor)):
        raise Wrong("the arguments were changed, and others still need them: write the result to a new tensor.")
    return came


def _first(function, *arguments, **faults):
    """What a wrong answer's first result is, computed only when somebody asks."""
    return lambda: function(*arguments, **faults)[0]


def _pair(result, what: str, length: int = 2):
    if not isinstance(result, (tuple, list)) or len(result) != length:
        raise Wrong(f"expected {what}, got {result!r}.")
    return result


@exercise("2.4.2", "ex-sequential-scan")
def sequential_scan(answer, random):
    case = _case(1)
    decay, inputs, start = torch.exp(-case.delta), case.u, case.state[:, 0]
    right = _states(decay, inputs)
    mistakes = {
        "That is the state before each step: update first, then store it (off by one in time).": lambda: _states(
            decay, inputs, before=True
        ),
        "The decay of a step belongs to that step: decay[t] multiplies h[t - 1].": lambda: _states(
            torch.cat([decay[:1], decay[:-1]]), inputs
        ),
        "Only the last state came: every step's state is wanted, (T, ...).": lambda: right[-1],
        "The decay is missing: that is a plain running sum.": lambda: inputs.cumsum(0),
    }
    expect(_untouched(answer, decay, inputs), right, "7 steps of 3 recurrences from zero", mistakes)
    expect(
        _untouched(answer, decay, inputs, start),
        _states(decay, inputs, start),
        "the same from a given state",
        {"The initial state is not used: the first step decays it like any other.": lambda: right},
    )
    return "every step decays the state that it was given and adds its input."


@exercise("2.4.2", "ex-discretise")
def discretise(answer, random):
    case = _case(2)
    step, A, B = case.delta[:, :, None], case.A, case.B[:, None, :]
    A_bar, B_bar = _pair(answer(case.delta, case.A, case.B), "two tensors, A_bar and B_bar")
    expect(
        A_bar,
        torch.exp(step * A),
        "A_bar of 7 steps, 3 channels and 2 states",
        {
            "A is negative already: another minus sign lets the state grow (A's sign).": lambda: torch.exp(-step * A),
            "That is the Euler rule for A, 1 + delta A: zero-order hold is its exponential.": lambda: 1 + step * A,
            "The exponential is missing: that is delta A.": lambda: step * A,
            "delta belongs inside the exponential: exp(delta A), not delta exp(A).": lambda: step * torch.exp(A),
        },
    )
    expect(
        B_bar,
        step * B,
        "B_bar of the same",
        {
            "That is the exact zero-order hold of B. Mamba has the simpler delta B.": lambda: (
                torch.expm1(step * A) / A * B
            ),
            "delta is missing: a step that takes no time must write nothing.": lambda: B.expand_as(step * A),
        },
    )
    return "exp(delta A) forgets, delta B writes; both stand still at delta = 0."


def _mixer(seed: int, width: int = 5, D: int = 6, N: int = 3, rank: int = 2, kernel: int = 4) -> SimpleNamespace:
    """The parts of a MambaMixer under transformers' names, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = lambda i, o, bias=False: torch.nn.Linear(i, o, bias).double().requires_grad_(False)  # noqa: E731
        return SimpleNamespace(
            in_proj=linear(width, 2 * D),
            conv1d=torch.nn.Conv1d(D, D, kernel, groups=D, padding=kernel - 1).double().requires_grad_(False),
            x_proj=linear(D, rank + 2 * N),
            dt_proj=linear(rank, D, bias=True),
            A_log=torch.randn(D, N, dtype=torch.float64),
            D=torch.randn(D, dtype=torch.float64),
            out_proj=linear(D, width),
            hidden_size=width,
            intermediate_size=D,
            ssm_state_size=N,
            time_step_rank=rank,
            conv_kernel_size=kernel,
        )


def _selection(u, mixer, activation=F.softplus, bias=True):
    N = mixer.A_log.shape[1]
    rank, B, C = mixer.x_proj(u).split([mixer.dt_proj.in_features, N, N], 1)
    return activation(F.linear(rank, mixer.dt_proj.weight, mixer.dt_proj.bias if bias else None)), B, C


@exercise("2.4.2", "ex-selection")
def selection(answer, random):
    mixer, u = _mixer(3), _case(3, D=6).u
    delta, B, C = _pair(answer(u, mixer), "three tensors, delta, B and C", 3)
    right, wrong = _selection(u, mixer), partial(_first, _selection, u, mixer)
    expect(
        delta,
        right[0],
        "delta of 7 steps and 6 channels",
        {
            "softplus is missing: a step size has to be positive.": wrong(lambda x: x),
            "softplus, not exp: it grows like its argument, not like an explosion.": wrong(torch.exp),
            "softplus, not the sigmoid: a step size has no upper bound.": wrong(torch.sigmoid),
            "dt_proj's bias is missing: it sets the step size that a channel has at rest.": wrong(bias=False),
            "That is x_proj's part: dt_proj still has to spread it over the channels.": lambda: mixer.x_proj(u)[:, :2],
        },
    )
    swapped = "B and C are swapped: after delta's part x_proj gives B first, then C."
    expect(B, right[1], "B of 7 steps and 3 states", {swapped: lambda: right[2]})
    expect(C, right[2], "C of 7 steps and 3 states", {swapped: lambda: right[1]})
    return "delta per channel, B and C shared by all channels, all three from the input."


@exercise("2.4.2", "ex-chunked-scan")
def chunked_scan(answer, random):
    case = _case(5, T=12)
    decay, inputs = torch.exp(case.delta[:, :, None] * case.A), case.u[:, :, None] * case.B[:, None, :]
    right = _states(decay, inputs)

    def apart(chunk, start=None):
        """Every chunk from zero, or from the given state: the state is not handed on."""
        pieces = zip(decay.split(chunk), inputs.split(chunk), strict=True)
        return torch.cat([_states(a, x, start) for a, x in pieces])

    expect(
        _untouched(answer, decay, inputs, 4),
        right,
        "12 steps in chunks of 4",
        {
            "Is the last state handed from chunk to chunk? Every chunk began from zero.": lambda: apart(4),
            "The state handed on has to decay inside the next chunk, step by step.": lambda: _handed(decay, inputs, 4),
        },
    )
    expect(
        _untouched(answer, decay[:11], inputs[:11], 4),
        right[:11],
        "11 steps in chunks of 4, so that the last chunk is short",
        {"The last chunk is cut off: T need not be a multiple of the chunk.": lambda: right[:8]},
    )
    expect(
        _untouched(answer, decay, inputs, 5, case.state),
        _states(decay, inputs, case.state),
        "12 steps in chunks of 5 from a given state",
        {
            "The first chunk starts from the initial state; here it started from zero.": lambda: right,
            "Every chunk began from the initial state: only the first one does.": lambda: apart(5, case.state),
        },
    )
    expect(_untouched(answer, decay, inputs, 64), right, "12 steps in one chunk of 64")
    return "each chunk from zero, then the state handed on, decayed as far as each step is away."


def _handed(decay, inputs, chunk):
    """Chunks with the state handed on undecayed."""
    h, out = torch.zeros_like(inputs[0]), []
    for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
        out.append(_states(a, x) + h)
        h = out[-1][-1]
    return torch.cat(out)


@exercise("2.4.2", "ex-fused-scan")
def fused_scan(answer, random):
    c = _case(6)
    batched = lambda x: x.T[None]  # noqa: E731

    def by(B=c.B, C=c.C, D=c.D, A=c.A, state=None, u=c.u):
        y, h = scan.selective_scan(
            *(batched(x) for x in (u, c.delta)), A, batched(B), batched(C), D,
            return_last_state=True, initial_state=None if state is None else state[None],
        )  # fmt: skip
        return y[0].T, h[0]

    def lagging():
        states = _states(torch.exp(c.delta[:, :, None] * c.A), (c.delta * c.u)[:, :, None] * c.B[:, None], before=True)
        return torch.einsum("tdn,tn->td", states, c.C) + c.D * c.u

    right, last = by()
    y, h = _pair(answer(c.u, c.delta, c.A, c.B, c.C, c.D), "the output y and the last state")
    expect(
        y,
        right,
        "y of 7 steps and 3 channels",
        {
            "D u, the skip from input to output, is missing.": _first(by, D=None),
            "B and C are swapped: B writes into the state, C reads from it.": _first(by, B=c.C, C=c.B),
            "The output reads the state after the step, not before it (off by one in time).": lagging,
            "A is negative already: with another minus sign the state grows (A's sign).": _first(by, A=-c.A),
            "delta is missing from the input: a step writes delta B u.": _first(by, u=c.u / c.delta, D=c.D * c.delta),
        },
    )
    expect(h, last, "the state after the last step")
    y, h = _pair(answer(c.u, c.delta, c.A, c.B, c.C, c.D, c.state), "the output y and the last state")
    handed, last = by(state=c.state)
    expect(
        y, handed, "y from a given state", {"The initial state is not used: the state is not handed on.": lambda: right}
    )
    expect(h, last, "the state after the last step, from a given one")
    return "one state, updated and read in the same step."


def _block(x, mixer, cache=None, sign=-1, skip=True, gated=True, act=F.silu, ahead=False, **selecting):
    """A Mamba block with the course's scan; the flags make it wrong in one way each."""
    hidden, gate = mixer.in_proj(x).chunk(2, 1)
    D, kernel = hidden.shape[1], mixer.conv1d.weight.shape[-1]
    past, state = cache or (hidden.new_zeros(kernel - 1, D), None)
    hidden = torch.cat([past, hidden])
    seen = torch.cat([hidden[1:], hidden.new_zeros(1, D)]) if ahead else hidden
    u = act(F.conv1d(seen.T, mixer.conv1d.weight, mixer.conv1d.bias, groups=D).T)
    delta, B, C = (t.T[None] for t in _selection(u, mixer, **selecting))
    y, state = scan.selective_scan(
        u.T[None], delta, sign * torch.exp(mixer.A_log), B, C, mixer.D if skip else None,
        return_last_state=True, initial_state=None if state is None else state[None],
    )  # fmt: skip
    y = y[0].T * (F.silu(gate) if gated else 1)
    return mixer.out_proj(y), (hidden[len(hidden) - kernel + 1 :], state[0])


@exercise("2.4.2", "ex-mamba-block")
def mamba_block(answer, random):
    mixer, x = _mixer(7), _case(7, T=9, D=5).u
    (right, cache), wrong = _block(x, mixer), partial(_first, _block, x, mixer)
    out, came = _pair(answer(x, mixer), "the output and the cache")
    expect(
        out,
        right,
        "9 steps through a block of width 5",
        {
            "A is -exp(A_log): without the minus sign the state grows (A's sign).": wrong(sign=1),
            "D u, the skip around the scan, is missing.": wrong(skip=False),
            "The gate is missing: y times SiLU of the second half of in_proj.": wrong(gated=False),
            "SiLU after the convolution is missing.": wrong(act=lambda t: t),
            "softplus is missing from delta.": wrong(activation=lambda t: t),
            "The convolution looks ahead: put its K - 1 zeros before the first step, none behind.": wrong(ahead=True),
        },
    )
    window, state = _pair(came, "a cache of two tensors, the window and the state")
    expect(window, cache[0], "the window: the last K - 1 inputs of the convolution")
    expect(state, cache[1], "the state after 9 steps")
    for split in (4, 8, 1):
        _in_two(answer, x, mixer, split, right)
    return "in one piece, and in any two pieces, since window and state are handed on."


def _in_two(answer, x, mixer, split, right):
    """The check of one cut: the second piece goes on with the cache of the first."""
    first, between = answer(x[:split], mixer)
    second, _ = answer(x[split:], mixer, between)
    again = lambda **kept: lambda: _restart(x, mixer, split, **kept)  # noqa: E731
    expect(
        torch.cat([first, second]),
        right,
        f"the same 9 steps as {split} and {9 - split}",
        {
            "The cache is not used: window and state have to be handed on.": again(),
            "The state is not handed on, only the window: so does transformers' own path.": again(window=True),
            "The window is not handed on: the first K - 1 steps need the inputs before them.": again(state=True),
        },
    )


def _restart(x, mixer, split, window=False, state=False):
    """Two pieces of which the second gets the window, the state, or none of the two."""
    first, (kept, h) = _block(x[:split], mixer)
    second, _ = _block(x[split:], mixer, (kept if window else torch.zeros_like(kept), h if state else None))
    return torch.cat([first, second])


@exercise("2.4.2", "ex-hidden-attention")
def hidden_attention(answer, random):
    c = _case(8)

    def by(C=c.C, B=c.B, shift=0, weight=c.delta, A=c.A):
        alpha = torch.zeros(3, 7, 7, dtype=torch.float64)
        for i in range(7):
            for j in range(i + 1):
                steps = c.delta[max(j + 1 - shift, 0) : i + 1].sum(0)
                alpha[:, i, j] = (torch.exp(steps[:, None] * A) * B[j] * C[i]).sum(1) * weight[j]
        return alpha

    mistakes = {
        "Off by one in time: input j enters undecayed, so the sum of delta starts at j + 1.": lambda: by(shift=1),
        "delta_j is missing: a step writes delta B u.": lambda: by(weight=torch.ones_like(c.delta)),
        "B and C are swapped: C reads at step i, B writes at step j.": lambda: by(C=c.B, B=c.C),
        "The matrix is transposed: row i is the output, column j the input.": lambda: by().transpose(1, 2),
        "A is negative already: with another minus sign the past grows (A's sign).": lambda: by(A=-c.A),
    }
    came = answer(c.delta, c.A, c.B, c.C)
    looks_ahead = isinstance(came, torch.Tensor) and came.shape == (3, 7, 7) and came.triu(1).abs().max() > 0
    if looks_ahead and came.tril(-1).abs().max() > 0:  # else it is transposed
        raise Wrong("inputs after i count in output i. The future counts for nothing: above the diagonal all is 0.")
    expect(came, by(), "alpha of 3 channels and 7 steps", mistakes)
    # So quick that exp of the future overflows: what is masked too late is nan.
    quick = answer(400 * c.delta, c.A, c.B, c.C)
    if not torch.isfinite(quick).all():
        raise Wrong(
            "with large steps nan or inf came. Above the diagonal the exponent is positive and overflows, and inf "
            "times 0 is nan: mask the exponent, not its exponential."
        )
    y, right = torch.einsum("dij,jd->id", came, c.u), scan.selective_scan(
        *(x.T[None] for x in (c.u, c.delta)), c.A, c.B.T[None], c.C.T[None]
    )[0].T  # fmt: skip
    expect(y, right, "alpha times u against the scan")
    return "one matrix per channel, zero above the diagonal, and alpha u is the scan."


# ---- one recurrence, four updates ------------------------------------------------------------------------------------


def _normal(random, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random.randrange(2**31)), dtype=dtype)


def _delta(fade_first=True, erase=1.0, step=None, decayed=True):
    """The rule of the exercise, with its faults."""

    def delta_step(S, k, v, decay, beta):
        faded = decay * S if decayed else S
        held = erase * (k @ (faded if fade_first else S))
        return faded + torch.outer(k, (beta if step is None else step) * (v - held))

    return delta_step


@exercise("2.4.2", "ex-delta-step")
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
    for N in (16, 128):
        k = F.normalize(_normal(random, N, dtype=torch.float32), dim=0)
        S, v = _normal(random, N, 64, dtype=torch.float32), _normal(random, 64, dtype=torch.float32)
        cases.append(case(f"{N} keys by 64 values, decay 0.9, beta 0.7", S, k, v, decay=0.9, beta=0.7))
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


LEAST_WORK = 20  # operations of torch: with fewer, the work is done by numpy


class _Work(TorchDispatchMode):
    """How many operations ran in the with (`calls`), and the most values that one of them laid out (`largest`)."""

    def __init__(self):
        super().__init__()
        self.calls = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def _work(answer, one) -> _Work:
    """What the answer itself does in one case, without the copies that a check makes."""
    work = _Work()

    def counted(*args, **kwargs):
        with work:
            return answer.function(*args, **kwargs)

    one.of(Answer(counted, answer.own, answer.seconds))
    return work


def _size(work: _Work) -> tuple[int, int]:
    return work.calls, work.largest


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


@exercise("2.4.2", "ex-ssd-scan")
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
    agree(answer, cases, mistakes)
    small, middle, default, said, large = (
        _work(answer, sequence(T, 4, 3, **chunk))
        for T, chunk in (
            (512, {"chunk": 8}),
            (512, {"chunk": 64}),
            (512, {}),
            (2048, {"chunk": 64}),
            (2048, {"chunk": 256}),
        )
    )
    if small.largest >= 512 * 512 // 4:
        laid = "a matrix of all steps by all steps was laid out"
        raise Wrong(f"512 steps in chunks of 8: {laid}. `chunk` says how large the blocks are.")
    if large.calls > 2048:
        raise Wrong(
            f"2,048 steps in chunks of 256 took {large.calls:,} operations of torch: that is a loop over steps. "
            "Inside a chunk matrix products do them all at once."
        )
    for one, other, sizes in ((small, middle, "8 and of 64"), (said, large, "64 and of 256")):
        if one.calls >= LEAST_WORK and _size(one) == _size(other):
            raise Wrong(f"the same steps take the same work in chunks of {sizes} steps: `chunk` is not used.")
    if _size(default) != _size(middle):
        raise Wrong("without a word about chunks they are not 64 steps long: keep the default of `chunk`.")
    return "attention inside a chunk, one state between chunks, and the same sum."
