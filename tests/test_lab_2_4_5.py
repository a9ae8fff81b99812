"""What lab 2.4.5 claims, asserted on the run that `make run` gave."""

import math
import re
import statistics
from collections import Counter, defaultdict

import nbformat
import pandas as pd
import pytest
import torch
from conftest import numbers, published_bytes, rows_of

from shared import data, evaluate, files, models, notebooks, plots, reference, scan
from shared.kits import profiles
from shared.models.cards import NARROW

LAB = "2.4.5"
FIVE = ["tiny/mamba", *NARROW, "tiny/transformer"]  # of one size as published
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made")]


@pytest.fixture(scope="module")
def quality() -> pd.DataFrame:
    table = pd.read_csv(files.BUILD / "results" / "lab-2.4.5-tiny-trained-quality.csv")
    return table.set_index("model").rename(lambda name: name.removeprefix("tiny/"))


def executed_cells() -> list:
    path = files.BUILD / "executed" / notebooks.path_of(LAB).name
    return nbformat.read(path, as_version=4).cells


@pytest.fixture(scope="module")
def cost() -> pd.DataFrame:
    return pd.read_csv(files.BUILD / "results" / "lab-2.4.5-tiny-trained-cost.csv")


# ---- protocol ------------------------------------------------------------------------------------------------------


def test_the_stride_moves_a_result_further_than_the_architecture_does(said):
    moved, apart = (numbers(line)[0] for line in said["first-figure-numbers"].splitlines()[:2])
    assert moved > apart > 0.03
    ahead, flips = said["first-figure-ranking"].splitlines()
    assert ahead == "ahead at equal strides: tiny/mamba" and flips.endswith("True")


def test_the_student_s_loop_equals_the_course_s_evaluation(said):
    assert said["by-hand"].strip().endswith("True")


def test_each_wrong_count_is_off_by_more_than_the_zoo_lies_apart(said):
    values = {line[:34].strip(): numbers(line[34:])[0] for line in said["wrong-counts"].strip().splitlines()[1:]}
    right = values.pop("right: each token once")
    zoo = [row[-2] for row in rows_of(said["quality-table"]).values()]  # token perplexity
    apart = math.log(max(zoo) / min(zoo))
    assert len(values) == 4 and all(value > right + apart for value in values.values()), (values, apart)


# ---- units ---------------------------------------------------------------------------------------------------------


def test_token_perplexity_ranks_two_models_the_wrong_way_round(said):
    lines = said["wrong-way-round"].splitlines()
    mamba, ngram = (numbers(line.split("  ", 1)[1]) for line in lines[1:3])
    assert ngram[0] < mamba[0] - 0.1  # the counting model looks better per token
    assert mamba[1] < ngram[1] / 2 and 1.7 < ngram[2] / mamba[2] < 2.3  # and needs about twice the bits
    assert lines[3] == "token perplexity prefers n-gram, bytes - bits per byte mamba, tokens"
    text = "\n\n".join(data.tiny_text("heldout").values())
    assert 2 < len(text.encode()) / len(models.tiny_tokenizer()(text, verbose=False)["input_ids"]) < 3


# ---- the zoo -------------------------------------------------------------------------------------------------------


def test_the_zoo_has_the_quality_that_its_training_reported(quality):
    reported = pd.read_json(files.ROOT / "data" / "tiny" / "report.json", typ="series").models
    assert set(quality.index) == set(reported)
    for name, row in quality.iterrows():
        assert row.bits_per_byte == pytest.approx(reported[name]["bits_per_byte"]["overall"], abs=0.015), name


def test_intervals_tell_a_tie_from_a_loss(said):
    found = rows_of(said["intervals"])
    best = said["intervals"].splitlines()[0].split("/")[1]
    assert found[best][:3] == [0, 0, 0]
    assert found["olmoe-collapsed"][1] > 0.03  # experts that died cost bits, beyond any doubt
    others = [row for name, row in found.items() if name != best]
    assert all(2 < row[3] / (row[2] - row[1]) < 4.1 for row in others)  # "two to four times as wide"
    assert sorted(found, key=lambda name: found[name][0])[1] == "jamba"  # "next to the best"
    assert all(row[1] <= row[0] <= row[2] for row in found.values())


def test_beyond_its_training_attention_breaks_and_mamba_and_the_hybrid_do_not(said):
    for name, row in rows_of(said["position-numbers"]).items():
        first, _, trained, _, _, last = row  # such as 1.09 up to 32, 0.82 to 256, last (1,024): 3.39
        assert trained < first, name  # each uses what it was trained to use
        if name in ("mamba", "jamba"):
            assert last < trained + 0.1, name
        else:
            assert last > 2 * trained, name


# ---- a story in constant memory ------------------------------------------------------------------------------------


def test_the_state_keeps_its_size_over_the_whole_story(said):
    tokens, *sizes = numbers(said["carry"].splitlines()[0])
    assert tokens > 20_000 and len(sizes) == 1


def test_carrying_the_state_is_exact_and_dropping_it_is_not(said):
    assert all(said[cell].strip().endswith(": True") for cell in ("carry-exact", "carry-course"))
    carried, dropped = numbers(said["carry-dropped"])[-2:]
    assert dropped > 1.02 * carried


def test_mamba_fades_on_recall_where_a_cache_does_not(said):
    rows = {int(row[0]): row[1:] for row in map(numbers, said["recall"].splitlines()[2:])}
    mamba, hybrid, transformer = rows[16]
    assert mamba < 0.7 and hybrid > 0.95 and transformer > 0.95 and min(rows[2]) > 0.95
    assert rows[24][1] == max(rows[24])  # the hybrid "recalls most"


def test_mamba_copies_short_strings_and_loses_more_of_longer_ones(said):
    rows = {int(row[0]): row[1:] for row in map(numbers, said["copying"].splitlines()[3:])}
    assert list(rows) == [4, 8, 16, 24] and min(rows[4]) > 0.9
    assert abs(rows[4][0] - max(rows[4][1:])) < 0.03
    assert rows[4][0] > rows[16][0] > rows[24][0] and rows[24][0] < 0.8 < 0.95 < min(rows[24][1:])


# ---- cost and report -----------------------------------------------------------------------------------------------


def test_mamba_s_state_is_flat_and_caches_grow_with_the_context(cost):
    single = cost[cost.batch == 1]
    for name, part in single.groupby("model"):
        sizes = part.sort_values("tokens").cache_bytes.tolist()
        assert (len(set(sizes)) == 1) == (name in ("tiny/mamba", "tiny/mamba2-2.7b")), name
    longest = single[(single.tokens == single.tokens.max()) & ~single.model.isin(NARROW)]
    held = longest.set_index("model").cache_bytes
    assert held["tiny/jamba"] < held.drop(["tiny/mamba", "tiny/jamba"]).min() / 5  # "a small cache"
    assert len(single) == 27 and len(cost) == 33 and (cost.status == "ok").all()
    assert (cost.machine.str.len() > 0).all() and cost.scale.unique().tolist() == ["tiny"]


def test_reading_a_longer_prompt_takes_more_and_longer_for_every_model(cost):
    for name, part in cost[cost.batch == 1].groupby("model"):
        times = part.sort_values("tokens").time_to_first_token.tolist()
        assert times[0] < times[-1], name
        model, _ = models.load(name, torch.float32, part.weights.iloc[0], "cpu")
        read, written = zip(*(counted(model, tokens) for tokens in (256, 512)), strict=True)
        assert read[1].bytes > 1.5 * read[0].bytes, name
        # "Mamba's decode does not know the context": what a step moves is the same after either.
        assert (written[0].bytes == written[1].bytes) == (name in ("tiny/mamba", "tiny/mamba2-2.7b")), name


def counted(model, tokens: int) -> tuple[profiles.Counted, profiles.Counted]:
    """What a prefill of so many tokens does, and the decode step after it."""
    (ids,) = data.random_tokens(model.config.vocab_size, [tokens]).values()
    with torch.inference_mode(), scan.in_transformers():
        with profiles.Counted() as prefill:
            logits, cache = models.forward(model, ids)
        with profiles.Counted() as step:
            models.forward(model, logits.argmax(-1), cache)
    return prefill, step


@pytest.mark.parametrize("name", ["tiny/mamba", "tiny/transformer"])
def test_work_and_memory_of_a_dense_model_do_not_depend_on_its_weights_values(name):
    trained, random = (
        counted(models.load(name, torch.float32, weights, "cpu")[0], 256) for weights in ("trained", "random")
    )
    assert [(work.operations, work.bytes) for work in trained] == [(work.operations, work.bytes) for work in random]


def test_five_architectures_stand_in_the_sweep_and_the_lines_about_them_follow_from_it(said, cost):
    rows = cost[cost.model.isin(FIVE) & (cost.batch == 1)]
    assert sorted(rows.model.unique()) == sorted(FIVE) and len(rows) == 3 * len(FIVE)
    weights = rows.groupby("model").weights.unique().map(list).to_dict()
    assert weights == {name: ["random"] if name in NARROW else ["trained"] for name in FIVE}
    lines, rises = said["five-firsts"].splitlines(), rows_of(said["five-rises"])
    for place, (column, what) in enumerate(PRICES.items()):
        by_context = rows.pivot(index="tokens", columns="model", values=column)
        for tokens, row in by_context.iterrows():
            least, most = row.idxmin(), row.idxmax()
            line = f"{what} at {tokens:,} tokens: least {least}, most {most}, {row[most] / row[least]:.1f} times as much"
            assert line in lines
        for name, rise in (by_context.iloc[-1] / by_context.iloc[0]).items():
            assert rises[label(name)][place] == pytest.approx(rise, abs=0.006)
    held = {name: row[-1] for name, row in rises.items()}
    assert held["mamba"] == held["mamba2-2.7b"] == 1 < held["mamba2attn-2.7b"] < held["transformer"]
    shortest, longest = ((rows.tokens + rows.new_tokens - 1).agg(end) for end in ("min", "max"))
    assert held["transformer"] == held["transformerpp-2.7b"] == pytest.approx(longest / shortest, abs=0.006)


PRICES = {"time_to_first_token": "prefill", "decode_seconds": "decode", "peak_bytes": "peak"}
PRICES |= {"cache_bytes": "cache or state"}


def label(name: str) -> str:
    return name.removeprefix("tiny/")


def test_each_panel_about_the_five_has_a_line_for_each_that_says_what_its_weights_are(made):
    (cell,) = [cell for cell in executed_cells() if cell.id == "five-figure"]
    (figure,) = [output.data[plots.DRAWN] for output in cell.outputs if plots.DRAWN in output.get("data", {})]
    expected = {f"{label(name)}, {'random' if name in NARROW else 'trained'}" for name in FIVE}
    assert len(figure) == 4
    for panel in figure:
        assert expected <= {line["label"] for line in panel}
        assert {line["points"] for line in panel if line["label"] in expected} == {3}


def test_a_batch_makes_more_tokens_in_a_second(cost):
    for name, part in cost[(cost.tokens == cost.tokens.min()) & ~cost.model.isin(NARROW)].groupby("model"):
        rates = part.sort_values("batch").decode_rate.tolist()
        assert rates[0] < rates[-1], name


def test_the_front_and_the_decisions_follow_from_the_saved_numbers(said, quality):
    for line, column in zip(said["fronts"].splitlines(), ("decode_ms", "decode_long_ms"), strict=True):
        named = [name.strip().removeprefix("tiny/") for name in line.split(": ")[1].split(",")]
        points = quality[[column, "bits_per_byte"]]
        beaten = [((points <= row).all(axis=1) & (points < row).any(axis=1)).any() for _, row in points.iterrows()]
        assert set(named) == {name for name, loses in zip(points.index, beaten, strict=True) if not loses}
    decided = dict(re.findall(r"^(\w+): tiny/(\S+)", said["decisions"], flags=re.MULTILINE))
    assert decided["many"] == "mamba"
    assert decided["long"] == quality.decode_long_ms.idxmin()
    assert decided["quality"] == quality[quality.low <= 0].decode_ms.idxmin()


def test_the_page_names_the_first_of_three_panels(said, quality):
    best, quick, small = (line.split(": tiny/")[1] for line in said["one-page-firsts"].splitlines())
    assert best == quality.bits_per_byte.idxmin() and quick == quality.decode_long_ms.idxmin() and small == "mamba"


def test_models_of_a_few_megabytes_reach_a_small_share_of_the_bound(said):
    shares = [share for row in rows_of(said["roofline"]).values() for share in row]
    # The bandwidth is measured once: where other work halves it, each share doubles.
    assert len(shares) == 18 and max(shares) < 100 and statistics.median(shares) < 50, "percent"


def test_the_download_that_the_header_names_is_that_of_the_published_files():
    header = next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "needs")
    published = published_bytes("mamba-2.8b", "pythia-2.8b", "olmoe-1b-7b")
    assert f"{published / 1e9:.1f} GB of models" in header


def test_nothing_unfinished_is_left_behind(made):
    assert not list((files.BUILD / "results").glob("lab-2.4.5-*.unfinished"))


def test_mixtures_of_other_machines_stand_beside_the_bound(said):
    for machine in reference.machines("tiny"):
        assert machine in said["mixtures-before"] and machine in said["reference-said"]
    shares = re.findall(r"(tiny/[\w-]+) at 256 tokens: ([\d.]+)%", said["mixtures-before"])
    assert {name for name, _ in shares} == {"tiny/olmoe", "tiny/deepseek-moe"}
    assert all(0 < float(share) < 50 for _, share in shares), "measured on a quiet machine"


def test_the_path_of_the_scan_is_said_where_mamba_is_timed(said, cost):
    assert "path of the scan: course" in said["by-your-clock"]  # these machines have no kernel
    assert set(cost.path[cost.model == "tiny/mamba"]) == {"course"}
    assert set(cost.path[cost.model == "tiny/transformer"]) == {"no scan"}


# ---- examples and challenges -----------------------------------------------------------------------------------------


def words_of(cell_id: str) -> str:
    return " ".join(next(cell.source for cell in notebooks.read(LAB).cells if cell.id == cell_id).split())


def test_examples_by_hand_are_right():
    its = notebooks.solution(LAB)
    assert f"`{its.windows(9, 4, 3)}`" in words_of("windows-example")
    value = (20 + 20 - 5) / (500 * math.log(2))
    assert f"= {value:.3f}$ bits" in words_of("interval-example")
    numbers_of = {"bits_per_byte": 1.0, "low": 0.0, "decode_ms": 1.0, "decode_long_ms": 1.0, "total": 1, "active": 1}
    a = {"weight_bytes": 40e6, "kv_bytes_per_token": 20e3, "state_bytes": 0}
    b = {"weight_bytes": 70e6, "kv_bytes_per_token": 0, "state_bytes": 2e6}
    table = pd.DataFrame({"a": numbers_of | a, "b": numbers_of | b}).T
    assert its.decide(table, 100e6, 1000)["many"] == "b"
    assert "3$ fit" in words_of("decide-example") and "15$ fit" in words_of("decide-example")


def test_the_targets_of_the_open_challenges_can_be_reached(said):
    mamba, ngram = (numbers(line.split("  ", 1)[1])[2] for line in said["wrong-way-round"].splitlines()[1:3])
    text = words_of("challenges")
    assert f"needs {ngram:.3f} bits per byte" in text and f"Mamba's {mamba:.3f}" in text
    scope = {"Counter": Counter, "defaultdict": defaultdict, "math": math}
    for cell in notebooks.read(LAB).cells:
        if cell.id in ("ngram", "ngram-nll"):
            exec(cell.source, scope)
    heldout = [part for text in data.tiny_text("heldout").values() for part in text.split("\n\n")][::5]
    tables = scope["count"]("\n\n".join(data.tiny_text("train").values()).encode(), (1, 2, 3, 4, 6, 9, 14, 20))
    nats = sum(scope["ngram_nll"](tables, document.encode()) for document in heldout)
    assert nats / math.log(2) / sum(len(document.encode()) for document in heldout) < 0.75
    model, tokenizer = models.load("tiny/transformer", dtype=torch.float32, device="cpu")
    passage = [data.tiny_long_text()[:4000]]
    dear, cheap = (evaluate.perplexity(model, tokenizer, passage, *way) for way in ((64, 16), (128, 96)))
    assert cheap.bits_per_byte <= dear.bits_per_byte
    parts = notebooks.solution(LAB).windows(cheap.tokens, 128, 96)
    assert sum(end - start for start, end, _ in parts) < 1.5 * cheap.tokens


def test_the_five_models_of_one_size_stand_side_by_side(said):
    rows = {line.split()[0]: numbers(line.split(maxsplit=1)[1]) for line in said["five-sizes"].splitlines()[1:]}
    weights = [row[0] for row in rows.values()]
    assert len(rows) == 5 and max(weights) < 1.1 * min(weights)
    for scale in ("", "tiny/"):
        hybrid, transformer = (models.size(f"{scale}{name}") for name in ("mamba2attn-2.7b", "transformerpp-2.7b"))
        assert hybrid.kv_bytes_per_token < transformer.kv_bytes_per_token / 3  # of the transformers' slope
    for name in ("mamba2-2.7b", "mamba-2.8b"):
        _, short, step, long, long_step = rows[name]
        assert short == long and step == long_step  # "the same bytes at each context"
    assert rows["mamba2-2.7b"][2] > rows["mamba-2.8b"][2] and rows["mamba2-2.7b"][1] > rows["mamba-2.8b"][1]
