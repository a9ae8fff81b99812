"""Every check accepts its answer, refuses known-wrong ones and names their mistake, and never crashes."""

import math
import statistics
import time

import numpy as np
import pytest

from shared import checks, notebooks
from shared.checks import lab_2_4_1

LABS = {"2.4.1": lab_2_4_1}


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
    start = time.perf_counter()
    assert check(answer) is answer
    assert time.perf_counter() - start < 1
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


WRONG = [
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
    }.items():
        assert check(right) is right, capsys.readouterr().out
