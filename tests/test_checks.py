"""Every check accepts its answer, refuses known-wrong ones and names their mistake, and never crashes."""

import math
import statistics
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shared import checks, notebooks
from shared.checks import lab_2_4_1, lab_2_4_2

LABS = {"2.4.1": lab_2_4_1, "2.4.2": lab_2_4_2}


def checks_of(module):
    return {f.cell_id: f for f in vars(module).values() if hasattr(f, "cell_id")}


ALL = [(lab, cell_id, check) for lab, module in LABS.items() for cell_id, check in checks_of(module).items()]
EACH = pytest.mark.parametrize(("lab", "cell_id", "check"), ALL, ids=[f"{lab}-{cell_id}" for lab, cell_id, _ in ALL])


def own(lab, check):
    return getattr(notebooks.solution(lab), check.__name__)


def test_every_exercise_has_a_check_and_every_check_an_exercise():
    for lab in notebooks.labs():
        assert set(checks_of(LABS[lab])) == set(notebooks.answers(lab))


@EACH
def test_the_answer_passes_and_is_handed_back(lab, cell_id, check, capsys):
    answer = own(lab, check)
    start = time.process_time()  # of this process: other work on the machine does not count
    assert check(answer) is answer
    assert time.process_time() - start < 1
    assert checks.PASSED in capsys.readouterr().out


@EACH
def test_an_open_exercise_is_not_attempted_yet_and_the_course_goes_on(lab, cell_id, check, capsys):
    def stub(*args, **kwargs):
        raise NotImplementedError

    assert check(stub) is own(lab, check)
    said = capsys.readouterr().out
    assert "not attempted yet" in said and checks.PASSED not in said and checks.FAILED not in said


@EACH
@pytest.mark.parametrize("result", [None, 0, -1.0, "text", [], (1, 2, 3), float("nan"), {}], ids=repr)
def test_nonsense_is_refused_without_a_traceback(lab, cell_id, check, result, capsys):
    assert check(lambda *args, **kwargs: result) is own(lab, check)
    said = capsys.readouterr().out
    assert checks.FAILED in said and "Traceback" not in said


@EACH
def test_an_answer_that_raises_is_told_what_it_raised(lab, cell_id, check, capsys):
    def broken(*args, **kwargs):
        raise KeyError("layers")

    assert check(broken) is own(lab, check)
    assert "KeyError" in capsys.readouterr().out


# ---- known-wrong answers: (check, wrong answer, what the message must name) ---------------------------------------


def kv(config, tokens, batch=1, bytes_per_value=2, *, factor=2, heads=None, layers=True):
    cached = heads or getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = config.hidden_size // config.num_attention_heads
    return factor * (config.num_hidden_layers if layers else 1) * batch * cached * tokens * size * bytes_per_value


def kv_all_heads(config, tokens, batch=1, bytes_per_value=2):
    return kv(config, tokens, batch, bytes_per_value, heads=config.num_attention_heads)


def state(config, batch=1, bytes_per_value=2, *, window_bytes=None, state_bytes=4, channels=None, window=True):
    width = channels or config.intermediate_size
    kept = width * config.conv_kernel * (window_bytes or bytes_per_value) if window else 0
    return config.num_hidden_layers * batch * (kept + width * config.state_size * state_bytes)


def timer(warm=True, before=True, after=True, together=False, count_warmup=False):
    def measure(work, synchronize, warmup=3, repeats=5):
        seconds = []
        for _ in range(warmup if warm and not count_warmup else 0):
            work()
        for _ in range(repeats + warmup * count_warmup):
            if before:
                synchronize()
            start = time.perf_counter()
            work()
            if after:
                synchronize()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds) if together else seconds

    return measure


def fit(log_x=np.log, log_y=np.log, dof=2, root=True):
    def growth_exponent(tokens, values):
        x, y = log_x(np.asarray(tokens, float)), log_y(np.asarray(values, float))
        slope, intercept = np.polyfit(x, y, 1)
        variance = ((y - slope * x - intercept) ** 2).sum() / (len(x) - dof) / ((x - x.mean()) ** 2).sum()
        return float(slope), float(math.sqrt(variance) if root else variance)

    return growth_exponent


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


def faulty(right, **fault):
    return lambda *args, **kwargs: right(*args, **kwargs, **fault)


WRONG = [
    (lab_2_4_2.sequential_scan, faulty(states, early=True), "off by one in time"),
    (lab_2_4_2.sequential_scan, faulty(states, ignore=True), "initial state is not used"),
    (lab_2_4_2.sequential_scan, faulty(states, in_place=True), "arguments were changed"),
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
    (lab_2_4_1.kv_cache_bytes, lambda *a, **k: kv(*a, **k) // 2, "Keys and values are both cached"),
    (lab_2_4_1.kv_cache_bytes, lambda *a, **k: kv(*a, **k, layers=False), "Every layer keeps a cache"),
    (lab_2_4_1.kv_cache_bytes, kv_all_heads, "num_key_value_heads, not num_attention_heads"),
    (lab_2_4_1.kv_cache_bytes, lambda c, t, batch=1, bytes_per_value=2: kv(c, t, 1, bytes_per_value), "by batch"),
    (lab_2_4_1.kv_cache_bytes, lambda c, t, batch=1, bytes_per_value=2: kv(c, t, batch), "not always 2"),
    (lab_2_4_1.mamba_state_bytes, lambda *a, **k: state(*a, **k, state_bytes=2), "float32"),
    (lab_2_4_1.mamba_state_bytes, lambda *a, **k: state(*a, **k, window=False), "convolution window is missing"),
    (lab_2_4_1.mamba_state_bytes, lambda c, *a, **k: state(c, *a, **k, channels=c.hidden_size), "not hidden_size"),
    (
        lab_2_4_1.mamba_state_bytes,
        lambda *a, **k: state(*a, **k, window_bytes=4),
        "Only the recurrent state is float32",
    ),
    (lab_2_4_1.mamba_state_bytes, lambda c, batch=1, bytes_per_value=2: state(c, 1, bytes_per_value), "by batch"),
    (lab_2_4_1.measure, timer(warm=False), "Warm up before"),
    (lab_2_4_1.measure, timer(before=False), "before you start the clock"),
    (lab_2_4_1.measure, timer(after=False), "before you read the end"),
    (lab_2_4_1.measure, timer(count_warmup=True), "do not count"),
    (lab_2_4_1.measure, timer(together=True), "Keep them apart"),
    (lab_2_4_1.growth_exponent, fit(lambda x: x, lambda y: y), "logarithm of the values against"),
    (lab_2_4_1.growth_exponent, fit(np.log, np.log10), "both with the same base"),
    (lab_2_4_1.growth_exponent, fit(dof=0), "n - 2"),
    (lab_2_4_1.growth_exponent, fit(dof=1), "not n - 1"),
    (lab_2_4_1.growth_exponent, fit(root=False), "square root"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: bw / (w + kv + 2 * s), "not once per sequence"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / w, "cache is read at every step"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / (w + batch * (kv + s)), "moves twice"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: (w + batch * (kv + 2 * s)) / bw, "tokens per second"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / (w + kv + 2 * s), "by batch"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: m // kv, "weights take their part"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: (m - w) // kv, "divide by batch"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: (m - w) / kv, "round down"),
    (
        lab_2_4_1.context_that_fits,
        lambda m, w, kv, state_bytes=0, batch=1: max(0, m - w - batch * state_bytes) // (batch * kv),
        "return math.inf",
    ),
]


@pytest.mark.parametrize(("check", "wrong", "named"), WRONG, ids=[f"{c.cell_id}: {n}" for c, _, n in WRONG])
def test_a_known_wrong_answer_is_refused_with_its_mistake_named(check, wrong, named, capsys):
    handed_back = check(wrong)
    said = capsys.readouterr().out
    assert checks.FAILED in said and named in said, said
    assert handed_back is not wrong


def test_every_check_refuses_at_least_one_known_wrong_answer():
    refused = {check.cell_id for check, _, _ in WRONG}
    assert refused == {cell_id for _, cell_id, _ in ALL}


def test_the_right_forms_of_the_wrong_answers_pass(capsys):
    """The helpers above are right without their fault: what is refused is the fault and nothing else."""
    for check, right in {
        lab_2_4_1.kv_cache_bytes: kv,
        lab_2_4_1.mamba_state_bytes: state,
        lab_2_4_1.measure: timer(),
        lab_2_4_1.growth_exponent: fit(),
        lab_2_4_2.sequential_scan: states,
        lab_2_4_2.discretise: discrete,
        lab_2_4_2.selection: selected,
        lab_2_4_2.chunked_scan: chunks,
        lab_2_4_2.fused_scan: fused,
        lab_2_4_2.mamba_block: block,
        lab_2_4_2.hidden_attention: unrolled,
    }.items():
        assert check(right) is right, capsys.readouterr().out
