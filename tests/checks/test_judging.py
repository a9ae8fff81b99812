"""How a check judges, whatever the exercise: values and not types, bounds on an answer, its traces, and progress."""

import colorsys
import gc
import importlib
import io
import json
import math
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BatchEncoding

from shared import checks, files, notebooks
from shared.checks import Wrong, agree, case, expect, instead, lab_2_4_1, watch
from shared.checks.compare import difference
from shared.notebooks import notice, progress

T = torch.tensor


# ---- values ------------------------------------------------------------------------------------------------------

SAME = [
    (T(5.0), 5.0),
    (T(5.0, requires_grad=True), 5.0),
    (np.float32(0.7), 0.7),
    (np.int64(3), 3),
    (3.0, 3),
    (True, 1),
    (math.inf, math.inf),
    (np.float32(18.5455), 18.5455),
    (1e-18, 0.0),
    (0.0, 1e-17),
    ([1.0, 2.0], T([1.0, 2.0])),
    (np.ones((2, 3)), torch.ones(2, 3)),
    ([T([1.0, 2.0]), T([3.0, 4.0])], T([[1.0, 2.0], [3.0, 4.0]])),
    (T([1.0, 2.0], dtype=torch.float32), T([1.0, 2.0 + 1e-7], dtype=torch.float64)),
    (T([1, 0]), T([True, False])),
    (T([1.0, 2.0]), T([1, 2])),
    (torch.ones(2, requires_grad=True), torch.ones(2)),
    (T([math.inf, 1.0]), T([math.inf, 1.0])),
    (T([[1.0], [2.0]]), (T([1.0]), T([2.0]))),
    ([1, 2], (1, 2)),
    (iter([1, 2]), (1, 2)),
    ([0.1, 0.2], T([0.1, 0.2], dtype=torch.float64)),
    (np.array([0.5, 1.5]), (0.5, 1.5)),
    (pd.Series([0.5, 1.5], index=[5, 6]), T([0.5, 1.5])),
    (BatchEncoding({"input_ids": [1, 2]}), {"input_ids": [1, 2]}),
    ({np.int64(1): T([2.0])}, {1: T([2.0])}),
    (["b", "a"], {"a", "b"}),
    (np.str_("mamba"), "mamba"),
    (torch.Size([2, 3]), (2, 3)),
    (T([]), T([])),
]

APART = [
    ("5", 5),
    (b"5", 5),
    (5, math.inf),
    (1e308, math.inf),
    (-math.inf, math.inf),
    (math.nan, 1.0),
    (math.nan, math.nan),
    (math.inf, 1.0),
    (1001, 1000),
    (1_000_000_001, 1_000_000_000),
    (1.001, 1.0),
    (1e-3, 0.0),
    (1j, 1.0),
    (None, 0),
    ([5], [5, 5]),
    ("ab", ("a", "b")),
    ({1: 2, 2: 3}, (1, 2)),
    (T([1.0, 2.0]), T([[1.0, 2.0]])),
    (T([1.0, math.nan]), T([1.0, 2.0])),
    (T([1.0, 2.0]), T([1.0, math.inf])),
    (T([1.0, math.inf]), T([1.0, 2.0])),
    (T([1.0 + 1j]), T([1.0])),
    (T([1, 3]), T([1, 2])),
    ("text", T([1.0])),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": 1, "b": 2}, {"a": 1}),
    ({"a": 2}, {"a": 1}),
    ("Mamba", "mamba"),
    (1, "1"),
    (pd.Series([1, 2]), [1, 3]),
]


@pytest.mark.parametrize(("came", "right"), SAME, ids=map(str, range(len(SAME))))
def test_the_value_counts_and_not_its_type(came, right):
    came = list(came) if hasattr(came, "__next__") else came  # as an answer's iterator comes to a check
    assert difference(came, right) is None


@pytest.mark.parametrize(("came", "right"), APART, ids=map(str, range(len(APART))))
def test_what_is_not_the_value_is_wrong(came, right):
    said = difference(came, right)
    assert said and "expected" in said


def test_a_difference_is_said_with_the_digits_that_show_it():
    with pytest.raises(Wrong, match=r"expected 0\.7, got 0\.7001") as error:
        expect(0.7001, 0.7, "a share")
    assert "\n" not in str(error.value)
    with pytest.raises(Wrong, match=r"expected 18\.54551, got 18\.54554"):
        expect(18.54554, 18.54551, "a rate", rel=1e-9)


@pytest.mark.filterwarnings("error")
def test_an_array_that_must_not_be_written_to_is_taken_without_a_warning():
    values = np.ones((2, 2))
    values.flags.writeable = False
    assert difference(values, torch.ones(2, 2)) is None


def test_none_says_that_nothing_was_returned():
    with pytest.raises(Wrong, match=r"got None\. Does every way through your function end in a return"):
        expect(None, 3, "a count")


# ---- a check made for these tests --------------------------------------------------------------------------------


def own(values, scale=2.0):
    return [scale * value for value in values]


def table(answer, random):
    agree(
        answer,
        [case("two values", [1.0, 2.0]), case("another scale", [1.0, 2.0], scale=random.choice([3.0, 4.0]))],
        {"The scale is an argument.": lambda values, scale=2.0: own(values)},
    )
    return "scaled."


@pytest.fixture
def check(monkeypatch):
    """A check of an exercise that only these tests have."""
    known = SimpleNamespace(table=own)
    monkeypatch.setattr(notebooks, "solution", lambda lab: known)
    monkeypatch.setattr(progress, "_here", {})
    return checks.exercise("2.4.1", "ex-kv-cache-bytes")(table)


def of(check, answer) -> str:
    with redirect_stdout(io.StringIO()) as seen:
        check.handed = check(answer)
    return seen.getvalue()


def test_an_answer_that_agrees_on_every_case_is_handed_back(check):
    def answer(values, scale=2.0):
        return np.float32(scale) * np.float32(values)

    said = of(check, answer)
    assert notice.passed(said) and check.handed is answer
    assert said.endswith("1 of 6 solved in this lab.\n")


def test_a_known_mistake_is_named_at_the_smallest_case_that_fails(check):
    said = of(check, lambda values, scale=2.0: [2 * v for v in values])
    assert notice.FAILED in said and "another scale: expected" in said and "The scale is an argument." in said


def test_a_mistake_is_the_courses_own_with_another_argument(check):
    assert instead(own, scale=3)([1.0]) == [3.0] and instead(own, values=[5.0])([1.0], scale=1.0) == [5.0]
    assert instead(own, scale=lambda given: 1 / given.scale)([1.0]) == [0.5]


@pytest.mark.parametrize("first", [lambda values, scale=2.0: 1 / 0, lambda values, scale=2.0: None])
def test_a_check_that_is_run_twice_does_not_judge_the_courses_own_version(check, first):
    assert notice.FAILED in of(check, first)
    again = of(check, check.handed)
    assert "your answer is not here" in again and notice.PASSED not in again and check.handed is own


def test_a_stub_is_open_and_what_torch_has_not_implemented_is_not(check):
    def stub(values, scale=2.0):
        raise NotImplementedError

    def no_kernel(values, scale=2.0):
        return torch.zeros(2, dtype=torch.complex64).sort().values

    assert "not attempted yet" in of(check, stub)
    assert notice.FAILED in of(check, no_kernel)


def test_a_right_array_is_handed_on_as_a_tensor(monkeypatch):
    monkeypatch.setattr(notebooks, "solution", lambda lab: SimpleNamespace(table=lambda x: 2 * x))
    monkeypatch.setattr(progress, "_here", {})

    def doubled(answer, random):
        agree(answer, [case("twos", torch.ones(2))])
        return "twice."

    doubled.__name__ = "table"
    check = checks.exercise("2.4.1", "ex-kv-cache-bytes", tensors=1)(doubled)
    for other in (lambda x: 2 * x.numpy(), lambda x: [2.0, 2.0], lambda x: 2 * x.double(), lambda x: iter(2 * x)):
        handed = check(other)
        assert handed.__wrapped__ is other and torch.equal(handed(x=torch.ones(2)), T([2.0, 2.0]))


# ---- bounds ------------------------------------------------------------------------------------------------------


def forever(values, scale=2.0):
    while True:
        pass


def forever_whatever_comes(values, scale=2.0):
    while True:
        try:  # noqa: SIM105
            sum(range(1000))
        except:  # noqa: E722
            pass


def endless(values, scale=2.0):
    while True:
        yield 1.0


def asleep(values, scale=2.0):
    time.sleep(100)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [forever, forever_whatever_comes, endless, asleep])
def test_an_answer_that_does_not_end_is_stopped_within_a_second(check, answer):
    start, before = time.thread_time(), signal.getsignal(signal.SIGALRM)
    said = of(check, answer)
    assert "did not end" in said and time.thread_time() - start < 1.5
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.slow
def test_calls_that_are_slow_one_by_one_are_stopped_together():
    def slow():
        start = time.thread_time()
        while time.thread_time() < start + 0.3:
            pass

    answer = watch.Answer(slow, slow, 0.4)
    with pytest.raises(Wrong, match="did not end"):
        for _ in range(10):
            answer()


@pytest.mark.slow
def test_the_time_of_an_import_does_not_count(check, tmp_path, monkeypatch):
    source = "from time import thread_time as now\nstart = now()\nwhile now() < start + 1:\n    pass\n"
    (tmp_path / "slow_to_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    def answer(values, scale=2.0):
        import slow_to_import  # noqa: F401

        return [scale * v for v in values]

    assert notice.passed(of(check, answer))


@pytest.mark.slow
def test_the_time_of_collecting_garbage_does_not_count(check):
    """A collection walks through all that a kernel holds: seconds, where labs have filled it."""
    held, end = [[] for _ in range(1_000_000)], time.thread_time() + 1

    def answer(values, scale=2.0):
        while time.thread_time() < end:
            gc.collect()
        return [scale * v for v in values]

    assert notice.passed(of(check, answer)) and held


@pytest.mark.slow
@pytest.mark.parametrize("work", ["gc.collect()", "importlib.reload(this)"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # raised where Python drops it
def test_what_is_not_counted_has_an_end(check, work, monkeypatch):
    monkeypatch.setattr(watch, "EXCUSED", 0.3)
    names = {"gc": gc, "importlib": importlib, "this": colorsys}

    def answer(values, scale=2.0):
        while True:
            exec(work, names)

    assert "did not end" in of(check, answer)


@pytest.mark.parametrize(
    "leave", [lambda: sys.exit(0), lambda: sys.exit("bye"), lambda: (_ for _ in ()).throw(KeyboardInterrupt)]
)
def test_an_answer_does_not_leave_the_check(check, leave):
    said = of(check, lambda values, scale=2.0: leave())
    assert notice.FAILED in said and "would have" in said


def test_ctrl_c_still_stops_a_check(check):
    def slow(values, scale=2.0):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        check(slow)


def test_what_an_answer_prints_is_not_a_verdict(check):
    def boast(values, scale=2.0):
        print(notice.marked(notice.PASSED, "ex-kv-cache-bytes", "scaled."))
        return None

    said = of(check, boast)
    assert not notice.passed(said) and "Your code printed:" in said and "  │ " in said


def test_an_answer_that_prints_without_end_is_stopped(check):
    def loud(values, scale=2.0):
        print("x" * (watch.PRINTED + 1))
        return own(values, scale)

    def loud_bit_by_bit(values, scale=2.0):
        while True:
            print("x" * 10_000)

    for answer in (loud, loud_bit_by_bit):
        said = of(check, answer)
        assert notice.FAILED in said and "printed more than 1,000,000 characters" in said and len(said) < 5000


def test_an_answer_that_raises_is_told_its_own_line(check):
    def answer(values, scale=2.0):
        values = torch.ones(2)
        return torch.ones(3) @ values

    said = of(check, answer)
    line = answer.__code__.co_firstlineno + 2
    assert f"(line {line} of the cell)" in said


def clock(before: bool, after: bool):
    """measure() of lab 2.4.1, which waits before it starts its clock and before it stops it, or does not."""

    def measure(work, synchronize, warmup=3, repeats=5):
        for _ in range(warmup):
            work()
        for _ in range(repeats):
            synchronize() if before else None
            start = time.perf_counter()
            work()
            synchronize() if after else None
            yield time.perf_counter() - start

    return measure


@pytest.mark.slow
def test_a_clock_is_judged_alike_beside_other_work():
    done = threading.Event()

    def other_work():
        while not done.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=other_work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        marks = [lab_2_4_1.measure.judge(clock(*waits)).mark for waits in ((1, 1), (0, 1), (1, 0))]
        assert marks == [notice.PASSED, notice.FAILED, notice.FAILED]
    finally:
        done.set()
        for thread in threads:
            thread.join()


# ---- traces ------------------------------------------------------------------------------------------------------


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).eval()


def spoil_weight(m):
    with torch.no_grad():
        m[0].weight[0, 0] = 5


TRACES = {
    "was changed": (lambda x: x.add_(1), T([1.0, 2.0])),
    "was changed, and others": (lambda x: x.append(1), [1, 2]),
    "was changed, and": (lambda x: x.update(a=5), {"a": T([1.0])}),
    "was changed, and others still": (lambda x: x.fill(0), np.ones(2)),
    "was changed, and others still need": (lambda x: setattr(x, "layers", 1), SimpleNamespace(layers=3)),
    "was left in another mode": (lambda m: m.train(), model()),
    "has a hook": (lambda m: m[0].register_forward_hook(lambda *a: None), model()),
    "has a hook on it, or a forward of yours": (lambda m: setattr(m[0], "forward", lambda x: x), model()),
    "has a hook on": (lambda m: m[0].weight.register_hook(lambda gradient: None), model()),
    "other weights": (spoil_weight, model()),
    "requires_grad": (lambda m: m[0].requires_grad_(False), model()),
    "gradients left behind": (lambda m: m(torch.ones(1, 2)).sum().backward(), model()),
}


@pytest.mark.parametrize("named", TRACES)
def test_what_an_answer_does_to_its_arguments_is_seen(named):
    spoil, argument = TRACES[named]
    answer = watch.Answer(lambda x: [spoil(x)], lambda x: None, 0.7)
    with pytest.raises(Wrong, match=f"the argument `x` .*{named.removeprefix('has a ')}"):
        answer(watch.copied(argument))
    watch.Answer(lambda x: None, lambda x: None, 0.7)(watch.copied(argument))
    watch.Answer(lambda x: [spoil(x)], lambda x: None, 0.7, ("x",))(watch.copied(argument))


def test_a_forward_that_is_put_back_is_no_trace():
    def answer(x):
        before, x[0].forward = x[0].forward, lambda y: y
        x[0].forward = before

    watch.Answer(answer, lambda x: None, 0.7)(model())


@pytest.mark.parametrize("of", [lambda x: x[..., 0], lambda x: x.T, lambda x: x[1:, 1:], lambda x: x[:1].expand(2, 3)])
def test_a_copy_is_as_contiguous_as_what_was_copied(of):
    value = of(torch.arange(6.0).view(2, 3))
    copy = watch.copied(value)
    assert copy.equal(value) and copy.stride() == value.stride() and copy.data_ptr() != value.data_ptr()
    assert watch.copied(value.clone().requires_grad_()).requires_grad


def test_gradients_that_are_switched_off_come_back_and_are_said():
    answer = watch.Answer(lambda: torch.set_grad_enabled(False) and None, lambda: None, 0.7)
    with pytest.raises(Wrong, match="stayed changed"):
        answer()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("cut", [lambda x: x.detach() * 2, lambda x: x + x.detach()])
def test_gradients_that_do_not_flow_are_wrong(cut):
    answer = watch.Answer(cut, lambda x: 2 * x, 0.7)
    values = case("ones", torch.ones(3))
    agree(answer, [values])
    with pytest.raises(Wrong, match="gradients of the arguments"):
        agree(answer, [values], gradients=True)


def test_a_result_that_a_later_call_changes_is_wrong():
    place = torch.empty(2)
    answer = watch.Answer(lambda x: place.copy_(2 * x), lambda x: 2 * x, 0.7)
    agree(answer, [case("ones", torch.ones(2))])
    with pytest.raises(Wrong, match="a later call changed it"):
        agree(answer, [case("ones", torch.ones(2)), case("zeros", torch.zeros(2))])


# ---- progress ----------------------------------------------------------------------------------------------------


def test_progress_is_kept_by_answer_and_read_back(check, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROGRESS", "")
    monkeypatch.setattr(files, "BUILD", tmp_path)
    good, bad = (lambda values, scale=2.0: own(values, scale)), (lambda values, scale=2.0: [])
    assert "1 of 6 solved" in of(check, good) and progress.solved("2.4.1") == ["ex-kv-cache-bytes"]
    kept = json.loads((tmp_path / "progress" / "lab-2.4.1.json").read_text())
    assert list(kept) == ["ex-kv-cache-bytes"]
    assert "1 of 6 solved" in of(check, own)  # not run: what was solved stays solved
    assert "0 of 6 solved" in of(check, bad) and progress.solved("2.4.1") == []
    (tmp_path / "progress" / "lab-2.4.1.json").write_text("{")
    assert progress.solved("2.4.1") == [] and "1 of 6 solved" in of(check, good)


def test_a_folder_that_cannot_be_written_takes_no_verdict(check, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_PROGRESS", "")
    (tmp_path / "progress").write_text("a file in the folder's place")
    monkeypatch.setattr(files, "BUILD", tmp_path)
    assert "1 of 6 solved" in of(check, lambda values, scale=2.0: own(values, scale))


def test_verdicts_can_be_had_without_a_print_or_a_trace(capsys):
    verdict = lab_2_4_1.decode_roofline.judge(lambda w, kv, s, rate, batch=1: batch * rate / (w + batch * (kv + 2 * s)))
    assert verdict.mark == notice.PASSED and capsys.readouterr().out == ""
