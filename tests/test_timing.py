"""What a timing says is what happened: synchronised, warmed up, per step, with memory; and running out is a result."""

import copy
import dataclasses
import itertools
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from recorder import Cuda, Leaves
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

from shared import files, models, results, timing
from shared.machine import pool
from shared.models.sizes import published_config


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)).eval()
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    return {"mamba": mamba, "transformer": GPTNeoXForCausalLM(config).eval()}


def prompt(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(100, 200, (batch, length), generator=torch.Generator().manual_seed(1))


class Names(Leaves):
    """How often each operator is called."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def see(self, function, args, kwargs):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs)


@pytest.mark.slow
def test_measure_counts_the_calls_after_the_warmup_only():
    calls = []

    def work():
        calls.append(time.sleep(0.4 if len(calls) < 2 else 0.002))

    seconds = timing.measure(work, warmup=2, repeats=4)
    assert len(calls) == 6 and len(seconds) == 4
    assert all(0.002 <= s < 0.4 for s in seconds)


def test_measure_waits_for_the_device_before_and_after(monkeypatch):
    events = []
    monkeypatch.setattr(timing, "synchronize", lambda device: events.append("wait"))
    timing.measure(lambda: events.append("work"), warmup=1, repeats=2)
    assert events == ["work", "wait", "work", "wait", "wait", "work", "wait"]


def test_quartiles_enclose_the_median():
    assert timing.quartiles([3.0]) == [3.0, 3.0, 3.0]
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("architecture", ["mamba", "transformer"])
def test_cached_steps_equal_one_full_forward(pair, architecture):
    model, ids = pair[architecture], prompt(12)
    with torch.inference_mode():
        logits, cache = models.forward(model, ids[:, :8])
        assert logits.shape == (1, 1, 300)
        for position in range(8, 12):
            logits, cache = models.forward(model, ids[:, position : position + 1], cache)
        full = model(ids).logits[:, -1:]
    assert torch.allclose(logits, full, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mamba", "transformer"])
def test_generation_reports_rates_that_follow_from_its_times(pair, architecture):
    t = timing.generation(pair[architecture], prompt(32, batch=2), new_tokens=6, repeats=3, warmup=1)
    assert (t.batch, t.prompt_tokens, t.new_tokens, t.repeats) == (2, 32, 6, 3)
    assert t.prefill_rate == pytest.approx(2 * 32 / t.time_to_first_token)
    assert t.decode_rate == pytest.approx(2 / t.decode_seconds)
    assert t.time_to_first_token_q1 <= t.time_to_first_token <= t.time_to_first_token_q3
    assert t.decode_seconds_q1 <= t.decode_seconds <= t.decode_seconds_q3


@pytest.mark.slow
def test_a_short_run_is_repeated_until_enough_time_has_passed(pair, monkeypatch):
    asked = {"new_tokens": 2, "repeats": 2, "warmup": 1}
    ticks = itertools.count()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 1000))
    t = timing.generation(pair["transformer"], prompt(8), least_seconds=0.3, **asked)
    assert t.time_to_first_token == pytest.approx(0.001) == t.decode_seconds
    # A run looks at the clock four times, and once more before the next: 5 ms of this clock, so 60 in 0.3 s.
    assert t.repeats in (60, 61)
    assert timing.generation(pair["transformer"], prompt(8), **asked).repeats == 2


@pytest.mark.slow
def test_the_cache_of_a_timing_is_that_of_prompt_and_new_tokens(pair):
    config = pair["transformer"].config
    t = timing.generation(pair["transformer"], prompt(32), new_tokens=6, repeats=1, warmup=1)
    # The last new token is never read: 32 + 6 - 1 tokens have keys and values, in float32.
    assert t.cache_bytes == 2 * config.num_hidden_layers * config.hidden_size * (32 + 5) * 4


def test_a_context_beyond_the_limit_is_one_clear_sentence_and_can_be_allowed(pair):
    with pytest.raises(models.ContextTooLong, match="128"):
        timing.generation(pair["transformer"], prompt(126), new_tokens=4)
    t = timing.generation(pair["transformer"], prompt(126), new_tokens=4, repeats=1, warmup=1, beyond_limit=True)
    assert t.prompt_tokens == 126


def test_one_new_token_cannot_time_decoding(pair):
    with pytest.raises(ValueError, match="2 or more"):
        timing.generation(pair["mamba"], prompt(8), new_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mamba", "transformer"])
def test_a_graph_replays_the_steps_that_count_and_fills_the_same_cache(pair, architecture, monkeypatch):
    asked = {"new_tokens": 12, "repeats": 2, "warmup": 1}
    eager = timing.generation(pair[architecture], prompt(32, batch=2), **asked)
    recorded = Cuda.install(monkeypatch)  # plays CUDA graphs on the CPU
    t = timing.generation(pair[architecture], prompt(32, batch=2), graph=True, **asked)
    assert (t.batch, t.prompt_tokens, t.new_tokens, t.repeats) == (2, 32, 12, 2)
    assert t.cache_bytes == eager.cache_bytes
    assert t.decode_rate == pytest.approx(2 / t.decode_seconds)
    # Of 11 steps the first 5 warm up; a graph belongs to one cache, so each run records its own.
    assert [graph.replays for graph in recorded] == [6, 6, 6]


@pytest.mark.slow
def test_on_a_gpu_experts_are_grouped_for_the_prompt_and_gathered_for_a_step():
    """As `generate` does it; torch's device without bytes counts as one that is no CPU."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(published_config("tiny/olmoe")).eval()
    with Names() as names:
        timing.generation(model, prompt(8), new_tokens=4, repeats=1, warmup=1)
    experts, runs = 2 * model.config.num_hidden_layers, 2
    assert names.counts["_grouped_mm"] == experts * runs and names.counts["bmm"] >= experts * runs * 3
    assert model.get_experts_implementation()[""] == "grouped_mm"


@pytest.mark.slow
def test_a_sweep_can_replay_graphs(pair, monkeypatch):
    recorded = Cuda.install(monkeypatch)
    lengths = {n: prompt(n) for n in (8, 16)}
    rows = list(timing.sweep(pair["mamba"], lengths, new_tokens=4, repeats=1, warmup=1, graph=True))
    assert [r["status"] for r in rows] == ["ok", "ok"] and len(recorded) == 4


@pytest.mark.slow
def test_a_graph_needs_a_gpu_and_a_step_to_warm_up(pair):
    with pytest.raises(models.CourseError, match="need an NVIDIA GPU"):
        timing.generation(pair["mamba"], prompt(8), new_tokens=4, graph=True)
    with pytest.raises(ValueError, match="3 or more"):
        timing.generation(pair["mamba"], prompt(8), new_tokens=2, graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize("architecture", ["mamba", "transformer"])
def test_on_a_gpu_a_graph_is_timed_beside_eager_decode(pair, architecture):
    model = copy.deepcopy(pair[architecture]).to("cuda")
    eager, replayed = (timing.generation(model, prompt(32), new_tokens=12, graph=graph) for graph in (False, True))
    assert replayed.cache_bytes == eager.cache_bytes and replayed.decode_seconds > 0


@pytest.mark.slow
def test_a_sweep_gives_a_row_per_length_in_order(pair):
    rows = list(timing.sweep(pair["mamba"], {16: prompt(16), 8: prompt(8)}, new_tokens=4, repeats=1, warmup=1))
    assert [(r["tokens"], r["status"]) for r in rows] == [(8, "ok"), (16, "ok")]
    assert {f.name for f in dataclasses.fields(timing.GenerationTiming)} <= set(rows[0])


@pytest.mark.slow
def test_a_sweep_stops_before_it_would_run_out(pair, monkeypatch):
    row = next(iter(timing.sweep(pair["mamba"], {512: prompt(512)}, new_tokens=4, repeats=1, warmup=1)))
    # Room for what 512 tokens took and not for twice that: the next length must not even be tried.
    monkeypatch.setattr(pool, "available", lambda device=None: int(row["peak_bytes"] * 1.2))
    rows = list(timing.sweep(pair["mamba"], {512: prompt(512), 4096: prompt(4096)}, new_tokens=4, repeats=1, warmup=1))
    assert [r["status"] for r in rows] == ["ok", "out of memory"]
    assert rows[1]["expected_bytes"] > rows[1]["available_bytes"]


@pytest.mark.slow
def test_running_out_is_recorded_and_ends_the_sweep(pair, monkeypatch):
    real = timing.generation

    def fails_from_16(model, ids, *args, **options):
        if ids.shape[1] >= 16:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, ids, *args, **options)

    monkeypatch.setattr(timing, "generation", fails_from_16)
    lengths = {n: prompt(n) for n in (8, 16, 32)}
    rows = list(timing.sweep(pair["mamba"], lengths, new_tokens=4, repeats=1, warmup=1))
    assert [(r["tokens"], r["status"]) for r in rows] == [(8, "ok"), (16, "out of memory")]


def clocked(monkeypatch, seconds: dict[int, float]) -> list[tuple[int, dict]]:
    """Let `generation` say that a prefill of so many tokens takes so long; returns what it was asked for."""
    asked = []

    def generation(model, ids, new_tokens, **options):
        asked.append((ids.numel(), options))
        rates = dict.fromkeys((f.name for f in dataclasses.fields(timing.GenerationTiming)), 0)
        known = {"batch": len(ids), "prompt_tokens": ids.shape[1], "peak_bytes": 1}
        return timing.GenerationTiming(**rates | known | {"time_to_first_token": seconds[ids.numel()]})

    monkeypatch.setattr(timing, "generation", generation)
    return asked


def test_a_point_that_would_take_too_long_is_a_row_and_is_not_tried(pair, monkeypatch):
    asked = clocked(monkeypatch, {8: 1.0, 16: 3.0, 32: 9.0})
    rows = list(timing.sweep(pair["mamba"], {n: prompt(n) for n in (8, 16, 32, 64)}, new_tokens=4, slow=8))
    assert [(row["tokens"], row["status"]) for row in rows] == [(8, "ok"), (16, "ok"), (32, "slow")]
    # It grew threefold where the length doubled, and will again.
    assert rows[-1]["expected_seconds"] == pytest.approx(9) and [n for n, _ in asked] == [8, 16]


def test_a_long_point_is_warmed_up_once_and_repeated_twice(pair, monkeypatch):
    asked = clocked(monkeypatch, {8: 1.0, 16: 2.0, 32: 4.0})
    options = {"repeats": 5, "warmup": 3, "least_seconds": 1}
    list(timing.sweep(pair["mamba"], {n: prompt(n) for n in (8, 16, 32)}, new_tokens=4, slow=30, **options))
    short = {"beyond_limit": True} | options
    long = {"beyond_limit": True, "repeats": 2, "warmup": 1, "least_seconds": 0.0}
    assert asked == [(8, short), (16, short), (32, long)]


def test_a_smaller_point_tells_of_the_first_one_at_another_batch(pair, monkeypatch):
    asked = clocked(monkeypatch, {8: 1.0, 32: 4.0})
    (smaller,) = timing.sweep(pair["mamba"], {8: prompt(8)}, new_tokens=4)
    lengths = {8: prompt(8, batch=4)}
    (row,) = timing.sweep(pair["mamba"], lengths, new_tokens=4, slow=3, smaller=smaller)
    assert row == {"tokens": 8, "status": "slow", "expected_seconds": 4.0} and len(asked) == 1
    (row,) = timing.sweep(pair["mamba"], lengths, new_tokens=4, slow=5, smaller=smaller)
    assert row["status"] == "ok" and row["batch"] == 4


@pytest.mark.parametrize(("seconds", "expected"), [((1, 1.5), 3), ((1, 2), 4), ((1, 4), 16), ((1, 9), 36)])
def test_seconds_grow_as_they_grew_between_linear_and_quadratic(seconds, expected):
    rows = [{"tokens": n, "batch": 1, "time_to_first_token": s} for n, s in zip((8, 16), seconds, strict=True)]
    assert timing.expected_seconds(rows, 32) == pytest.approx(expected)
    assert timing.expected_seconds(rows[:1], 32) == pytest.approx(4) and timing.expected_seconds([], 32) == 0


@pytest.mark.slow
def test_a_sweep_measures_speed_beyond_the_positions(pair):
    beyond = 2 * pair["transformer"].config.max_position_embeddings
    (row,) = timing.sweep(pair["transformer"], {beyond: prompt(beyond)}, new_tokens=4, repeats=1, warmup=1)
    assert row["status"] == "ok" and row["prompt_tokens"] == beyond


def test_other_errors_of_a_sweep_are_not_swallowed(pair):
    with pytest.raises(IndexError):
        list(timing.sweep(pair["transformer"], {4: torch.full((1, 4), 10_000)}, new_tokens=4, repeats=1, warmup=1))


def test_bandwidth_is_that_of_a_copy():
    # Any machine that runs this copies between 1 and 2,000 GB/s; a forgotten factor of 1e3 falls outside.
    assert 1e9 < timing.memory_bandwidth("cpu", megabytes=64) < 2e12


def test_the_rate_of_products_is_that_of_their_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda work, device, warmup: [0.5])
    assert timing.matrix_rate(torch.float32, width=64) == 2 * 64**3 / 0.5


def test_a_call_takes_no_longer_with_more_of_them(monkeypatch):
    """What is measured is divided by the calls that were counted: 16 layers of norm, two products and four more."""
    monkeypatch.setattr(timing, "measure", lambda work, device, warmup, repeats: [16 * 7e-6])
    assert timing.call_seconds() == pytest.approx(1e-6)


# ---- results ----------------------------------------------------------------------------------------------------


def test_results_are_tidy_and_carry_machine_and_versions(tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.setattr(files, "BUILD", tmp_path)
    path = results.save(pd.DataFrame({"tokens": [1, 2]}), "lab-x")
    saved = pd.read_csv(path)
    assert list(saved.tokens) == [1, 2]
    assert (saved.torch == torch.__version__).all() and {"machine", "transformers", "date", "threads"} <= set(saved)
    results.save(pd.DataFrame({"tokens": [3]}), "lab-x")
    assert list(pd.read_csv(path).tokens) == [3] and list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_keeps_the_previous_results(tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.setattr(files, "BUILD", tmp_path)
    path = results.save(pd.DataFrame({"tokens": [1]}), "lab-x")

    def full(self, file, **options):
        file.write_text("tok")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(models.CourseError, match="No space left on device"):
        results.save(pd.DataFrame({"tokens": [2]}), "lab-x")
    assert list(path.parent.iterdir()) == [path] and "1" in path.read_text()
