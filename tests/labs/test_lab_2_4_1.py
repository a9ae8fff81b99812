"""What lab 2.4.1 claims, asserted on the run that `make run` gave."""

import json
import re

import pandas as pd
import pytest
import torch
from conftest import numbers, published_bytes

from shared import files, memory, models, notebooks, reference
from shared.machine import guard
from shared.models.sizes import published_config

LAB = "2.4.1"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made")]


@pytest.fixture(scope="module")
def swept() -> pd.DataFrame:
    return pd.read_csv(files.BUILD / "results" / "lab-2.4.1-tiny.csv")


def test_the_cache_passes_the_state_and_the_weights_where_the_lab_says(said):
    state, kv = 64 * 5120 * (16 * 4 + 4 * 2), 2 * 32 * 2560 * 2  # Mamba-2.8B's and Pythia-2.8B's published shapes
    first, second, third = said["first-figure-numbers"].splitlines()
    passes = int(numbers(first)[0])
    assert (passes - 1) * kv <= state < passes * kv
    passes = int(numbers(second)[0])
    weights = models.size("pythia-2.8b").weight_bytes
    assert (passes - 1) * kv <= weights < passes * kv
    assert numbers(third)[1] == round(131072 * kv / state)


def test_the_misleading_eight_megabytes_are_mamba_1_4b_in_sixteen_bits_and_the_128_kib_mixtral_s(said):
    assert models.size("mixtral-8x7b").kv_bytes_per_token == 128 * 2**10
    assert "all in 16 bits: 7.9 MB; as it is kept: 14.2 MB" in said["all-sizes"]


def test_predicted_cache_and_state_equal_the_measured_ones_to_the_byte(said):
    assert "equal to the byte: True" in said["predicted-is-measured"]


def test_the_two_scans_give_the_same_logits_and_the_library_s_takes_longer_without_a_kernel(said):
    assert "True" in said["same-result"]
    assert numbers(said["reference-against-scan-times"].splitlines()[-1])[0] > 1.2


def test_what_the_tiny_model_writes_does_not_continue_the_numbers_of_its_prompt(said):
    """Each number of its sequence is three times the one before: 4, 12, 36, 108, so 324 and 972 come next."""
    question, solution = said["write-something"].split("[mathematics]")[1].split("Solution:")
    assert "4, 12, 36, 108" in question and "is 3 times as large" in solution
    assert not {324, 972} & set(numbers(solution))


def test_the_path_is_named_before_any_timing(said):
    assert "path of the scan: reference" in said["load"]  # these machines have no kernel
    ids = list(said)
    assert ids.index("load") < min(ids.index(i) for i in ("timeline", "reference-against-scan", "sweep"))


def test_the_phases_of_the_timeline_are_visible(said):
    lines = said["timeline-figure"].splitlines()[1:]
    peaks = {line[:16].strip(): float(line[16:]) for line in lines}
    size, config = models.size("mamba-130m"), published_config("mamba-130m")
    weights, table = size.total * 4 / 1e6, config.vocab_size * config.hidden_size * 4 / 1e6
    # The output matrix exists for a moment before it is tied to the input table.
    assert peaks["load"] == pytest.approx(weights + table, rel=0.03)
    assert weights < peaks["decode"] < 1.05 * weights
    library, course = peaks["prefill, library"], peaks["prefill, course"]
    assert library > peaks["decode"] + 50  # the states of a whole prompt, freed after each layer
    assert course < library


def test_the_roofline_is_that_of_the_published_pair(said):
    """48.9 tokens/s at any context for Mamba-2.8B, 48.5, 17.0 and 5.7 at 1K, 32K and 128K for its twin, at 273 GB/s."""
    rows = {int(n[0]): n[1:] for n in map(numbers, re.findall(r"^\d+ .*$", said["roofline-full"], re.M))}
    assert {tokens: pythia for tokens, (_, pythia) in rows.items() if tokens in (1024, 32768, 131072)} == {
        1024: 48.5,
        32768: 17.0,
        131072: 5.7,
    }
    assert {mamba for mamba, _ in rows.values()} == {48.9}
    gains = dict(re.findall(r"batch (\d+): ([\d.]+) times", said["batch-gain"]))
    assert (gains["1"], gains["32"], gains["64"]) == ("1.1", "3.8", "5.6")


def test_every_length_of_the_sweep_is_saved_with_machine_and_versions(swept):
    for _, part in swept.groupby("model"):
        assert list(part.tokens) == [256, 512, 1024, 2048, 4096] and (part.status == "ok").all()
    assert set(swept.model) == {"tiny/mamba", "tiny/transformer"}
    assert {"machine", "torch", "transformers", "date", "path", "scale", "weights", "dtype", "batch"} <= set(swept)
    assert swept.notna().all(axis=None)


def test_the_measured_cache_grows_with_the_context_and_the_state_does_not(swept):
    mamba, transformer = (swept[swept.architecture == a] for a in ("mamba", "transformer"))
    assert mamba.cache_bytes.nunique() == 1
    c = published_config("tiny/transformer")
    new = int(transformer.new_tokens.iloc[0])
    expected = 2 * c.num_hidden_layers * c.hidden_size * (transformer.tokens + new - 1) * 4
    assert (transformer.cache_bytes == expected).all()


def test_a_step_after_more_context_moves_more_for_the_transformer_and_exactly_as_much_for_mamba(said):
    """Why decoding slows down for one of them only. Seconds say so too, but not on every busy machine."""
    rows = [line.split() for line in said["counted"].splitlines() if "tiny/" in line]
    counted = {(name, int(tokens)): (int(operations), float(moved)) for name, tokens, operations, moved in rows}
    assert counted["tiny/mamba", 256] == counted["tiny/mamba", 1024]
    (calls, short), (still, long) = counted["tiny/transformer", 256], counted["tiny/transformer", 1024]
    c = published_config("tiny/transformer")
    cache = 2 * c.num_hidden_layers * c.hidden_size * 4 / 1e6  # MB of a token
    assert calls == still and long > 2 * short
    assert long - short == pytest.approx(3 * cache * (1024 - 256), abs=0.02)


def test_mamba_s_advantage_is_said_with_its_spread_and_where_it_begins(said, swept):
    ratio, low, high = numbers(said["advantage"].splitlines()[0].split("tokens", 1)[1])[:3]
    assert low <= ratio <= high
    found = reference.advantage(swept, "tiny/mamba", "tiny/transformer")
    assert ratio == round(found.ratio.iloc[-1], 2)
    begins = reference.begins(found)
    start = f"from {begins:,} tokens on" if begins else "at no measured context"
    assert said["advantage"].splitlines()[0].endswith(f"Mamba is ahead {start}")


def test_the_advantage_that_ships_rises_with_the_context():
    """The run of a test machine may be disturbed; what the course shows beside it was measured on a quiet one."""
    for machine, part in reference.rows("context", "tiny").groupby("machine"):
        found = reference.advantage(part[part.graph == False], "tiny/mamba", "tiny/transformer")  # noqa: E712
        assert found.ratio.iloc[-1] > 1.5 * found.ratio.iloc[0], machine


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_on_the_dotted_lines_the_transformer_climbs_from_below_and_mamba_stays_level(scale):
    mamba, transformer = {"tiny": ("tiny/mamba", "tiny/transformer"), "full": ("mamba-2.8b", "pythia-2.8b")}[scale]
    rows = reference.rows("context", scale)
    for machine, part in rows[rows.graph == False].groupby("machine"):  # noqa: E712
        ours, theirs = (part[part.model == name].set_index("tokens").decode_seconds for name in (mamba, transformer))
        assert ours.max() < 1.15 * ours.min(), machine
        first = theirs.index.min()
        assert theirs.iloc[-1] > 1.15 * theirs.iloc[0] and theirs[first] < ours[first if first in ours else 2 * first]


def test_what_machines_have_measured_stands_beside_this_run(said):
    measured = reference.machines("tiny")
    assert measured
    for cell in ("sweep-figure", "advantage", "bandwidth-before", "fits-measured"):
        assert all(machine in said[cell] for machine in measured), cell
    for name in ("tiny/olmoe", "tiny/jamba"):  # the last row of each has all of its layers
        row = [line for line in said["fits-measured"].splitlines() if name in line][-1]
        assert memory.human(models.size(name, torch.float32).weight_bytes) in row


def test_prefill_is_never_free(swept):
    for architecture in ("mamba", "transformer"):
        times = swept[swept.architecture == architecture].set_index("tokens").time_to_first_token
        assert times[4096] > 4 * times[256]  # of sixteen times the tokens: room for a noisy machine


def test_a_slope_of_zero_is_read_off_the_state_and_of_one_off_the_cache(said):
    rows = [line for line in said["exponents"].splitlines() if line.strip().startswith("cache or state")]
    mamba, transformer = (numbers(row)[-2] for row in rows)
    assert mamba == 0 and transformer == pytest.approx(1, abs=0.05)  # the new tokens are in the cache too


def test_tiny_steps_stay_below_the_roofline_because_they_cost_calls(said, swept):
    fractions = [numbers(line)[-1] for line in said["bandwidth"].splitlines() if line.strip().startswith("tiny/")]
    assert len(fractions) == 10 and max(fractions) < 0.7
    before = re.findall(r"([\d.]+)%", said["bandwidth-before"])
    assert before and all(float(share) < 100 for share in before)
    rows = {line.split()[0]: numbers(line) for line in said["operations"].splitlines() if "tiny/" in line}
    mamba, transformer = rows["tiny/mamba"], rows["tiny/transformer"]
    assert mamba[0] > 2 * transformer[0]  # operations per token
    # The sweep repeats a step for longer than a profile does: what another program takes shows less in it.
    short = swept[swept.tokens == 256].set_index("model").decode_seconds
    ratio = short["tiny/mamba"] / short["tiny/transformer"]
    assert ratio > 1  # so at a short context the small Mamba loses
    assert 1 / 3 < ratio * transformer[0] / mamba[0] < 3  # what one operation costs is alike


def test_the_products_whose_bytes_the_bound_counts_are_the_smaller_part_of_a_tiny_step(said):
    shares = dict(re.findall(r"(tiny/\w+): for (\d+)% of a step", said["operations-figure"]))
    assert set(shares) == {"tiny/mamba", "tiny/transformer"}
    assert all(0 < int(share) < 50 for share in shares.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU prints a table there")
def test_a_machine_without_a_gpu_is_told_that_graphs_need_one(said):
    assert said["graphs"].strip() == "CUDA graphs need an NVIDIA GPU; on this CPU every step is eager."


def test_unlimited_context_is_claimed_for_a_fixed_state_alone(said):
    rows = [line for line in said["fits-a-spark"].splitlines() if "unlimited" in line]
    assert len(rows) == 1 and rows[0].startswith("mamba-2.8b")


def test_jamba_s_experts_take_most_of_a_spark():
    jamba, config = models.size("jamba-v0.1"), published_config("jamba-v0.1")
    unused = 1 - config.num_experts_per_tok / config.num_experts  # the share of the routed weights that is not active
    assert (jamba.total - jamba.active) / unused * 2 > guard.SPARK / 2


def test_the_contexts_that_fit_a_spark_leave_the_reserve_of_the_guard(said):
    room = guard.SPARK - guard.kept(guard.SPARK)
    for name in ("mixtral-8x7b", "pythia-2.8b"):
        size = models.size(name)
        (row,) = [line for line in said["fits-a-spark"].splitlines() if line.startswith(name)]
        assert numbers(row.removeprefix(name))[0] == (room - size.weight_bytes) // size.kv_bytes_per_token


def test_the_download_that_the_header_names_is_that_of_the_published_files():
    header = next(cell.source for cell in notebooks.read("2.4.1").cells if cell.id == "needs")
    published = published_bytes("mamba-2.8b", "pythia-2.8b")
    assert f"{published / 1e9:.1f} GB with `WEIGHTS" in header


def test_attention_recalls_where_a_fixed_state_is_still_guessing(said):
    mamba, hybrid, guessing = (numbers(line)[0] for line in said["recall-training"].splitlines())
    assert guessing == 0.03 and mamba < 0.1  # "still near guessing"
    assert hybrid > max(0.5, mamba + 0.5)
    longer = json.loads((files.DATA / "reference" / "curves.json").read_text())
    assert longer["settings"]["specialists"]["steps"] == 2000
    recalled = longer["recall"]
    assert min(recalled["mamba"]["8"]) > 0.5 and max(recalled["mamba"]["32"]) < min(recalled["hybrid"]["32"])


def test_a_real_document_costs_what_random_tokens_cost(said):
    first, second = said["document"].splitlines()
    tokens = numbers(first)[1]
    assert tokens > 10_000
    assert second == (
        f"Pythia-2.8B's cache of them takes {memory.human(tokens * models.size('pythia-2.8b').kv_bytes_per_token)}, "
        f"Mamba-2.8B's state {memory.human(models.size('mamba-2.8b').state_bytes)}."
    )
    assert 0.5 < numbers(said["document-speed"].splitlines()[-1])[0] < 2


def test_the_newer_models_stand_there_as_they_are_counted(said):
    rows = {line.split()[0]: numbers(line.split(maxsplit=1)[1]) for line in said["today-table"].splitlines()[1:]}
    assert len(rows) == 8
    for name, (weights, per_token, state, *_) in rows.items():
        size = models.size(name)
        assert per_token == size.kv_bytes_per_token
        assert (weights, state) == (round(size.weight_bytes / 1e9, 1), round(size.state_bytes / 1e6, 1))
    worth = dict(re.findall(r"(\S+): its state takes as much as ([\d,]+) of", said["today-worth"]))
    assert worth == {
        "qwen3.5-35b-a3b": "3,168",
        "kimi-linear-48b-a3b": "5,445",
        "granite-4.0-h-tiny": "7,029",
        "nemotron-3-nano-30b-a3b": "8,035",
    }
    hybrids = [models.size(name) for name in worth]
    mamba = models.size("mamba-2.8b")
    assert all(size.cache_bytes(128) > mamba.cache_bytes(128) for size in hybrids)  # they start above it
    pythia = models.size("pythia-2.8b")
    assert all(size.cache_bytes(2**20) < pythia.cache_bytes(2**20) / 10 for size in hybrids)
    assert all(size.kv_bytes_per_token < pythia.kv_bytes_per_token / 10 for size in hybrids)  # "less than a tenth"
